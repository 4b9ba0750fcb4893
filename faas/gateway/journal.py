"""What invocations leave behind: log lines and counters, sent up to the control process in batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Set
from typing import Any

import msgspec

from faas.invocation import Outcome
from faas.wire import latency
from faas.wire.messages import Lines, Stats

FLUSH_S = 0.1
STATS_S = 1.0
MAX_BACKLOG_BYTES = 16 * 1024 * 1024

_encode = msgspec.json.Encoder().encode
_NAMES = {outcome: outcome.value for outcome in Outcome}  # an Enum's value is a slow property


class _Line(msgspec.Struct):
    """One line of a function's log."""

    ts: float
    function: str
    version: int
    request_id: str
    stream: str
    text: str


class _Finished(msgspec.Struct, omit_defaults=True, tag_field="event", tag="invocation.finished"):
    """The event that ends an invocation; reason, traceparent and caller only where there is one."""

    ts: float
    function: str
    version: int
    request_id: str
    stream: str
    outcome: Outcome
    status: int
    duration_ms: float
    start_ms: float
    cpu_ms: float
    reason: str = ""
    traceparent: str = ""
    caller: str = ""


class Journal:
    """
    Buffers lines and counters between flushes; lives as long as its worker.

    Thread: ``line`` from any (guests log from pool threads), the rest from the loop.
    """

    def __init__(
        self, gauges: Callable[[], dict[str, float]], tokens: Callable[[], dict[str, dict[str, float]]] = dict
    ) -> None:
        """Args: *gauges* and *tokens* (cumulative, by function or key) are asked at each report."""
        self._gauges = gauges
        self._tokens = tokens
        self._lines: dict[str, list[bytes]] = {}
        self._backlog_bytes = 0
        self._n_dropped = 0
        self._counters: dict[str, dict[str, float]] = {}
        self._watched: dict[tuple[str, int], dict[str, float]] = {}
        self._lock = threading.Lock()

    def watch(self, versions: Set[tuple[str, int]]) -> None:
        """Count what becomes of exactly these versions' requests apart from now on, and their latencies."""
        self._watched = {
            key: self._watched.get(key) or {"invocations": 0, "answered_5xx": 0, "duration_ms": 0} for key in versions
        }

    def line(self, function: str, version: int, request_id: str, text: str, stream: str = "stderr") -> None:
        """Keep one line of a function's log."""
        self._put(
            function,
            _Line(time.time(), function, version, request_id, stream, text),
        )

    def finished(
        self,
        function: str,
        version: int,
        request_id: str,
        outcome: Outcome,
        *,
        status: int,
        duration_ms: float,
        start_ms: float,
        cpu_ms: float,
        reason: str = "",
        traceparent: str = "",
        caller: str = "",
    ) -> None:
        """Keep the one event that ends an invocation, and count it."""
        self._put(
            function,
            _Finished(
                time.time(),
                function,
                version,
                request_id,
                "event",
                outcome,
                status,
                int(duration_ms * 1000) / 1000,  # round() takes longer than all the rest
                int(start_ms * 1000) / 1000,
                int(cpu_ms * 1000) / 1000,
                reason,
                traceparent,
                caller,
            ),
            always=True,
        )
        counters = self._counters.get(function)
        if counters is None:
            counters = self._counters[function] = {"invocations": 0, "duration_ms": 0, "start_ms": 0, "cpu_ms": 0}
        counters["invocations"] += 1
        name = _NAMES[outcome]
        counters[name] = counters.get(name, 0) + 1
        counters["duration_ms"] += duration_ms
        counters["start_ms"] += start_ms
        counters["cpu_ms"] += cpu_ms
        if status >= 500 and outcome is Outcome.OK:
            counters["answered_5xx"] = counters.get("answered_5xx", 0) + 1
        if self._watched:
            of_version = self._watched.get((function, version))
            if of_version is not None:
                _count(of_version, outcome, status, duration_ms)

    def _put(self, function: str, entry: _Line | _Finished, *, always: bool = False) -> None:
        try:
            line = _encode(entry) + b"\n"
        except UnicodeEncodeError:  # a client's or a guest's bytes that are no UTF-8
            texts = {key: _printable(value) for key, value in msgspec.structs.asdict(entry).items()}
            line = _encode(msgspec.structs.replace(entry, **texts)) + b"\n"
        with self._lock:
            if self._backlog_bytes > MAX_BACKLOG_BYTES and not always:
                self._n_dropped += 1  # control is slow or gone: memory is worth more than log lines
                return
            self._backlog_bytes += len(line)
            lines = self._lines.get(function)
            if lines is None:
                self._lines[function] = [line]
            else:
                lines.append(line)

    def take_lines(self) -> Lines | None:
        """Return what gathered since the last call, None if nothing did."""
        if not self._lines:
            return None
        with self._lock:
            lines, self._lines = self._lines, {}
            n_dropped, self._n_dropped = self._n_dropped, 0
            self._backlog_bytes = 0
        if n_dropped:
            for function in lines:  # the next batch of each begins with what this one lacks
                self.line(function, 0, "", f"{n_dropped} log lines of this worker were dropped: too many at once")
        return Lines({function: b"".join(parts) for function, parts in lines.items()})

    def stats(self) -> Stats:
        """Return the counters as they are now."""
        functions = {function: dict(counters) for function, counters in self._counters.items()}
        for (function, version), counters in self._watched.items():
            functions[f"{function}@{version}"] = dict(counters)
        for name, counters in self._tokens().items():
            counted = functions.setdefault(name, {})
            for key, n in counters.items():
                counted[key] = counted.get(key, 0) + n  # both have CPU time
        return Stats(functions, self._gauges())

    async def run(self, send: Callable[[Any], Awaitable[None]]) -> None:
        """Send lines every ``FLUSH_S`` and counters every ``STATS_S``, until cancelled."""
        loop = asyncio.get_running_loop()
        next_stats = loop.time()
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush(send)
            if loop.time() >= next_stats:
                next_stats = loop.time() + STATS_S
                await send(self.stats())

    async def flush(self, send: Callable[[Any], Awaitable[None]]) -> None:
        """Send the lines that have gathered."""
        lines = self.take_lines()
        if lines is not None:
            await send(lines)


def _count(counters: dict[str, float], outcome: Outcome, status: int, duration_ms: float) -> None:
    counters["invocations"] += 1
    counters["duration_ms"] += duration_ms
    if status >= 500 and outcome is Outcome.OK:
        counters["answered_5xx"] += 1
    for name in (_NAMES[outcome], f"{latency.PREFIX}{latency.bucket_of(duration_ms)}"):
        counters[name] = counters.get(name, 0) + 1


def _printable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
