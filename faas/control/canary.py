"""Canaries: what their new versions did so far, whether that is good enough, and what follows from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

from faas.clock import Clock
from faas.control.deployer import Deployer
from faas.control.stats import Counters, Counts
from faas.errors import CanaryNotFoundError, StateError
from faas.invocation import Outcome
from faas.log import event, exception
from faas.state.base import Canary, CanaryPhase, CanaryPlan
from faas.wire.latency import percentile_ms

LOOK_S = 1.0
"""How often canaries are judged; workers report as often."""
ACTOR = "canary"
"""Who the audit log names for what canaries do by themselves."""

_BAD = (Outcome.FAILED.value, Outcome.LIMITED.value, "answered_5xx")
_JUDGED = (Outcome.OK.value, Outcome.FAILED.value, Outcome.LIMITED.value)

_logger = logging.getLogger(__name__)


class Window(NamedTuple):
    """What became of a version's requests within some time: those that were refused or given up don't count."""

    requests: int = 0
    failures: int = 0
    p99_ms: float = 0.0


class Verdict(str, Enum):
    """What is to become of a canary now."""

    WAIT = "wait"
    GO_ON = "go-on"
    ROLL_BACK = "roll-back"


def window_of(counters: Mapping[str, float], since: Mapping[str, float]) -> Window:
    """Return what was counted beyond *since*; where there is less than then, the counting began anew."""
    base: Mapping[str, float] = since if counters.get("invocations", 0) >= since.get("invocations", 0) else {}
    grown = {key: value - base.get(key, 0) for key, value in counters.items()}
    return Window(
        requests=round(sum(grown.get(key, 0) for key in _JUDGED)),
        failures=round(sum(grown.get(key, 0) for key in _BAD)),
        p99_ms=percentile_ms(grown, 0.99),
    )


def judge(plan: CanaryPlan, old: Window, new: Window, waited_s: float) -> tuple[Verdict, str]:
    """
    Return what is to become of a canary, and why it is rolled back.

    Args: *new* is since the step began, for *waited_s*; *old* is what the old version did since the canary began.
    """
    n = new.requests
    if n:
        # Over the limit already among as many as there must be at least: the others can't make up for it.
        rate = new.failures / max(n, plan.min_requests)
        if rate > plan.max_error_rate:
            return Verdict.ROLL_BACK, (
                f"{new.failures} of {n} requests failed ({new.failures / n:.1%}); {plan.max_error_rate:.1%} may"
            )
    if n < plan.min_requests:
        return Verdict.WAIT, ""
    if plan.max_p99_ms and new.p99_ms > plan.max_p99_ms:
        return Verdict.ROLL_BACK, (f"p99 of {n} requests is {new.p99_ms:.1f} ms; it may be {plan.max_p99_ms:g} ms")
    if plan.max_p99_ratio and old.requests >= plan.min_requests and new.p99_ms > plan.max_p99_ratio * old.p99_ms:
        return Verdict.ROLL_BACK, (
            f"p99 of {n} requests is {new.p99_ms:.1f} ms, {new.p99_ms / old.p99_ms:.2f} times the old version's "
            f"{old.p99_ms:.1f} ms; it may be {plan.max_p99_ratio:g} times"
        )
    if waited_s < plan.interval_s:
        return Verdict.WAIT, ""
    return Verdict.GO_ON, ""


class CanaryView(msgspec.Struct, frozen=True):
    """A canary as it stands: ``requests`` and what follows are the new version's since the step began."""

    canary: Canary
    weight: float
    requests: int = 0
    failures: int = 0
    p99_ms: float = 0.0
    old_requests: int = 0
    old_failures: int = 0
    old_p99_ms: float = 0.0


class _Watch(NamedTuple):
    """From where on a canary's counters are looked at."""

    canary: Canary
    new: Counters
    old: Counters


class CanaryController:
    """
    Judges every canary about once a second, and steps, promotes or rolls it back; lives as long as the host.

    Where a canary stands is in the state, so it goes on after a restart; what its step's requests did is counted anew
    then. Of several hosts on one database each judges by the requests that it served itself: any of them may roll a
    canary back, and the first one that has seen enough of a step goes on to the next. Thread: the loop.
    """

    def __init__(
        self,
        deployer: Deployer,
        counts: Counts,
        clock: Clock,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Look at nothing before ``start``."""
        self._deployer = deployer
        self._counts = counts
        self._clock = clock
        self._sleep = sleep
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="canaries")

    async def aclose(self) -> None:
        """Stop looking; canaries stay where they are. Safe to call more than once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def view(self, canary: Canary) -> CanaryView:
        """Return *canary* with what is counted of it so far."""
        if not canary.runs:
            return CanaryView(canary, 100.0 if canary.phase is CanaryPhase.PROMOTED else 0.0)
        new, old = self._windows(canary)
        return CanaryView(canary, canary.plan.steps[canary.step], *new, *old)

    async def look(self) -> None:
        """Judge every canary that runs once, and do what follows."""
        running = self._deployer.canaries
        keys = {(canary.function, canary.alias) for canary in running}
        self._watches = {key: watch for key, watch in self._watches.items() if key in keys}
        for canary in running:
            new, old = self._windows(canary)
            waited_s = self._clock.time_ns() / 1e9 - canary.since
            verdict, reason = judge(canary.plan, old, new, waited_s)
            try:
                await self._follow(canary, verdict, reason)
            except CanaryNotFoundError:
                continue  # it was ended by hand, or another host came first
            except StateError as exc:
                exception(_logger, "canary.failed", exc, function=canary.function)  # the next look tries again
        for canary in self._deployer.canaries:
            self._windows(canary)  # a step that just began is counted from here on

    async def _follow(self, canary: Canary, verdict: Verdict, reason: str) -> None:
        function, steps = canary.function, canary.plan.steps
        weight = steps[canary.step]
        if verdict is Verdict.ROLL_BACK:
            await self._deployer.end_canary(canary, CanaryPhase.ROLLED_BACK, f"at {weight:g} %: {reason}", actor=ACTOR)
            event(
                _logger,
                "canary.rolled_back",
                level=logging.WARNING,
                function=function,
                version=canary.other,
                weight=weight,
                reason=reason,
            )
        elif verdict is Verdict.GO_ON and canary.step + 1 < len(steps):
            await self._deployer.advance_canary(canary, actor=ACTOR)
            event(_logger, "canary.step", function=function, version=canary.other, weight=steps[canary.step + 1])
        elif verdict is Verdict.GO_ON:
            await self._deployer.end_canary(canary, CanaryPhase.PROMOTED, "all steps passed", actor=ACTOR)
            event(_logger, "canary.promoted", function=function, version=canary.other)

    def _windows(self, canary: Canary) -> tuple[Window, Window]:
        """Return what the new version did since the step began, and the old one since the canary did."""
        key = (canary.function, canary.alias)
        totals = self._counts.version_totals(canary.function)
        new, old = totals.get(canary.other, {}), totals.get(canary.version, {})
        watch = self._watches.get(key)
        if watch is None or watch.canary != canary:
            goes_on = watch is not None and (watch.canary.version, watch.canary.other) == (
                canary.version,
                canary.other,
            )
            watch = self._watches[key] = _Watch(canary, new, watch.old if watch is not None and goes_on else old)
        return window_of(new, watch.new), window_of(old, watch.old)

    async def _run(self) -> None:
        while True:
            await self._sleep(LOOK_S)
            try:
                await self.look()
            except Exception as exc:
                exception(_logger, "canary.failed", exc)
