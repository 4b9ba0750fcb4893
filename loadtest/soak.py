"""
``make soak``: hours in minutes: mixed load while processes are killed and functions come and go; nothing may be lost.

At moments that a seed fixes, a worker or the model server is killed with SIGKILL. Meanwhile functions are deployed
again and again, each time with a mark that they answer with, and removed; others have a warm pool and reuse, a
``max_concurrency`` of 1, a reservation. Every answer is checked: against what was acknowledged when its request was
sent, and against the kills, which excuse some errors for some time. In the end no permit may be missing, and memory
and descriptors have to be what they were: those of the control process and of one worker, which both live long enough
to tell, and those of model servers of the same age.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from faas.control.models import find_demo
from loadtest import plot
from loadtest.crash import ENV, variant
from loadtest.host import FUNCTIONS, Host, HostFailedError, Refused, request
from loadtest.report import console as new_console
from loadtest.report import percentile
from loadtest.resident import chat, parse_rollup
from loadtest.scenarios import HELLO_ANSWER, PRIMES, PROMPTS, missing_for_models, primes_answer

OUT = Path(__file__).resolve().parent / "out"
MINUTES = 10.0
SEED = 1
N_WORKERS = 2
NAMES = ("mark-a", "mark-b", "mark-c")
"""Functions that are deployed and removed all the time."""

ALONE = "alone"
"""The function with a ``max_concurrency`` of 1."""
SPECIAL: tuple[tuple[dict[str, Any], str], ...] = (
    ({"name": "pooled", "warm": {"max": 2, "reuse": 3}}, "hello-reactor/hello-reactor.wasm"),
    ({"name": ALONE, "limits": {"max_concurrency": 1}}, "bad/sleeper.wasm"),
    ({"name": "reserved", "limits": {"reserved_concurrency": 4}}, "hello-reactor/hello-reactor.wasm"),
)
"""Manifests of functions with settings of their own, and their modules."""

KILL_PAUSE_S = (8.0, 16.0)
SPARED = 0
"""The worker that is not killed after the first fifth, so that it lives long enough to see if it grows."""
MODEL_SHARE = 0.35
"""Of the kills, so many are the model server's."""
SURELY_KILLED_S = 300.0
"""In a soak of this length the model server has to be killed, or it was no test of that."""
DEPLOY_PAUSE_S = (0.5, 3.0)
REMOVAL_SHARE = 0.2
REST_S = 10.0
SETTLE_S = 5.0
"""Nothing is killed in the last seconds: all is to be served when the load ends."""
REPLACED_WITHIN_S = 30.0
WORKER_EXCUSE_S = 1.0
"""So long after a worker's kill connections may break and requests get 503."""
MODEL_EXCUSE_S = 15.0
"""So long after the model server's kill model requests may be told to try again: it starts, and loads the model."""

SAMPLE_S = 5.0
MEMORY_SHARE, MEMORY_BYTES = 0.1, 8e6
WORKER_BYTES, MODEL_SERVER_BYTES = 16e6, 32e6
"""The margins of the spared worker and of the model server, whose memory goes up and down with their requests."""
AGED_S = 10.0
"""Model servers die too often to be compared with themselves; from this age on they are compared with each other."""
DESCRIPTORS_SHARE, DESCRIPTORS = 0.1, 16.0
"""Flat means: the median of the last fifth is above that of the second fifth by no more than this share and this."""

CHAT_TOKENS = 24
_TIMEOUT_S = 60.0
_POLL_S = 0.1
_MAX_SHOWN = 20
_HOST_GONE = (HostFailedError, Refused, OSError, http.client.HTTPException)
"""What calls of the admin API raise when it does not answer as it should."""


class Fate(Enum):
    """How a request ended."""

    RIGHT = "right"
    BROKEN = "connection broke"
    REFUSED = "503"
    RETRY = "retryable model error"
    WRONG = "wrong"


class Victim(Enum):
    """What is killed."""

    WORKER = "worker"
    MODEL_SERVER = "model server"


@dataclass(frozen=True)
class Kill:
    """One SIGKILL; ``at_s`` is on the clock of the soak, taken just before it."""

    victim: Victim
    pid: int
    at_s: float


def excused(fate: Fate, ended_s: float, kills: Sequence[Kill]) -> bool:
    """Return whether one of *kills* explains that a request ended so, then."""
    for kill in kills:
        late_s = ended_s - kill.at_s
        if kill.victim is Victim.WORKER and 0 <= late_s <= WORKER_EXCUSE_S and fate is not Fate.WRONG:
            return True
        if kill.victim is Victim.MODEL_SERVER and 0 <= late_s <= MODEL_EXCUSE_S and fate is Fate.RETRY:
            return True
    return False


# ---- what was acknowledged ------------------------------------------------------------------------------------------


@dataclass
class State:
    """What a function is to serve after one deploy or removal; no mark: it is removed. The version comes later."""

    mark: str = ""
    version: int | None = None


@dataclass
class Ledger:
    """All that one function was told to serve, in order; one thing at a time is told to it."""

    states: list[State] = field(default_factory=lambda: [State("", 0)])
    acknowledged: int = 0
    """The newest state that was acknowledged; later ones are under way."""
    highest_version: int = 0

    @property
    def newest(self) -> State:
        """What has to be served if nothing is under way."""
        return self.states[self.acknowledged]

    def begin(self, mark: str) -> None:
        """Note a deploy (or, without a mark, a removal) that is about to be sent."""
        self.states.append(State(mark, None if mark else 0))

    def acknowledge(self, version: int) -> str:
        """Note that what was begun last is done; return what is wrong with its *version*, '' if nothing."""
        self.acknowledged = len(self.states) - 1
        state = self.newest
        if not state.mark:
            return ""
        seen, state.version = state.version, version
        if seen not in {None, version}:
            return f"{state.mark} was served as version {seen} and acknowledged as {version}"
        before, self.highest_version = self.highest_version, max(self.highest_version, version)
        return "" if version > before else f"version {version} came after {before}"

    def judge(self, since: int, mark: str, version: int) -> str:
        """
        Return what is wrong with an answer, '' if nothing.

        Args: *since* is what was ``acknowledged`` when the request was sent; that or anything later may be served.
        """
        for state in self.states[since:]:
            if state.mark == mark and state.version in {None, version}:
                state.version = version
                return ""
        due = self.states[since]
        return f"served {mark or 'nothing'} v{version}, acknowledged was {due.mark or 'nothing'} v{due.version}"


# ---- numbers over time ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """What one process takes."""

    role: str
    rss: int
    pss: int
    descriptors: int
    pid: int = 0


@dataclass(frozen=True)
class Sample:
    """The host at one moment, and the requests since the sample before; sizes in bytes, per process of that role."""

    at_s: float
    processes: list[Process]
    n_requests: int
    n_errors: int

    def of(self, role: str, number: str) -> float:
        """Return the mean of a *number* over the processes of a *role*; NaN if there is none."""
        values = [float(getattr(process, number)) for process in self.processes if process.role == role]
        return statistics.fmean(values) if values else math.nan


def fifths(values: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the second and of the last fifth; NaN is left out, and the result if nothing is left."""
    n = len(values) // 5
    parts = (values[n : 2 * n], values[len(values) - n :])
    second, last = ([value for value in part if not math.isnan(value)] for part in parts)
    return (statistics.median(second) if second else math.nan, statistics.median(last) if last else math.nan)


def of_process(samples: Sequence[Sample], pid: int, number: str) -> list[float]:
    """Return a *number* of one process in each of *samples*; NaN where it did not live."""
    found = [[p for p in sample.processes if p.pid == pid] for sample in samples]
    return [float(getattr(each[0], number)) if each else math.nan for each in found]


def long_lived(samples: Sequence[Sample], role: str) -> list[int]:
    """Return the processes of a *role* that are in every sample from the first fifth's last one to the end."""
    lives = [{p.pid for p in sample.processes if p.role == role} for sample in samples[max(0, len(samples) // 5 - 1) :]]
    return sorted(set.intersection(*lives)) if lives else []


def aged(samples: Sequence[Sample], role: str, number: str, age_s: float) -> list[float]:
    """Return the mean of a *number* over the processes of a *role* that have lived so long; NaN where there is none."""
    born: dict[int, float] = {}
    values = []
    for sample in samples:
        old = []
        for process in sample.processes:
            if process.role == role and sample.at_s - born.setdefault(process.pid, sample.at_s) >= age_s:
                old.append(float(getattr(process, number)))
        values.append(statistics.fmean(old) if old else math.nan)
    return values


def is_flat(values: Sequence[float], share: float, margin: float) -> bool:
    """Return whether the last fifth is no more than *share* and *margin* above the second; not if one is missing."""
    second, last = fifths(values)
    return last <= second * (1 + share) + margin


def processes(host: Host) -> list[Process]:
    """Return control process, workers and model server with what they take; one that is just gone is left out."""
    found = []
    for pid in host.processes():
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError, KeyError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            role = next((role for word, role in _ROLES.items() if word in words), "")
            role = "control" if pid == host.pid else role
            if role:
                sizes = parse_rollup((folder / "smaps_rollup").read_text())
                found.append(Process(role, sizes["Rss"], sizes["Pss"], len(os.listdir(folder / "fd")), pid))
    return found


_ROLES = {b"faas.gateway.worker": "worker", b"faas.modelserver.main": "model server"}


# ---- the soak -------------------------------------------------------------------------------------------------------

Probe = Callable[[aiohttp.ClientSession, random.Random], Awaitable[tuple[Fate, str]]]


class Soak:
    """One soak of a running host; ``run`` once, then read what it noted."""

    def __init__(self, host: Host, *, seed: int, seconds: float, with_models: bool, folder: Path) -> None:
        self.host = host
        self.seed = seed
        self.seconds = seconds
        self.with_models = with_models
        self.kills: list[Kill] = []
        self.samples: list[Sample] = []
        self.ledgers = {name: Ledger() for name in NAMES}
        self.tallies: dict[str, Counter[str]] = {}
        self.problems: list[str] = []
        self.n_deploys = 0
        self.n_removals = 0
        self.deploys_s: list[float] = []
        self.slept_s = 0.0
        """So long all answered requests of the function with one instance slept, and nothing else may run beside."""
        self._folder = folder
        self._began = 0.0
        self._n_requests = 0
        self._n_errors = 0
        self._texts: dict[str, list[str]] = {}
        self._vectors: dict[str, list[float]] = {}

    async def run(self) -> None:
        """Load the host, kill, deploy and sample until the time is over."""
        self._began = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(self.host.public_url, timeout=timeout) as kept,
            # A connection for each request, so that they reach all workers.
            aiohttp.ClientSession(
                self.host.public_url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True)
            ) as fresh,
        ):
            for session in (kept, fresh):
                # Else it sends a GET whose connection broke once more, and nobody hears of it; no public setting does
                # this, aiohttp's own test client sets it so too.
                session._retry_connection = False
            tasks: list[Coroutine[Any, Any, None]] = [
                *(self._call("hello", kept, _hello, number, 0.01) for number in range(2)),
                *(self._call("hello, new connection", fresh, _hello, number, 0.05) for number in range(2)),
                *(self._call("echo", kept, _echo, number, 0.02) for number in range(2)),
                self._call("primes", fresh, _primes, 0, 0.05),
                *(self._call("sleeper", fresh, _sleeper, number, 0.01) for number in range(4)),
                *(self._call("pooled, reused", fresh, _reactor("pooled"), number, 0.02) for number in range(2)),
                *(self._call("max_concurrency = 1", fresh, self._alone, number, 0.005) for number in range(3)),
                *(self._call("reserved", fresh, _reactor("reserved"), number, 0.02) for number in range(2)),
                *(self._call(name, fresh, self._marked(name), 0, 0.02) for name in NAMES),
                *(self._deploy(name) for name in NAMES),
                self._kill(),
                self._sample(),
            ]
            if self.with_models:
                tasks += [
                    *(self._call("chat", fresh, self._chat, number, 0.2) for number in range(2)),
                    self._call("embed", fresh, self._embed, 0, 0.2),
                ]
            try:
                async with asyncio.TaskGroup() as group:
                    for task in tasks:
                        group.create_task(task)
            except ExceptionGroup as exc:
                _, rest = exc.split(_HOST_GONE)
                if rest is not None:
                    raise
                raise HostFailedError(repr(exc.exceptions[0])) from exc

    def wrong(self, what: str) -> None:
        """Note a broken promise."""
        self.problems.append(f"{self._now():.1f} s: {what}")

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _random(self, *what: object) -> random.Random:
        """Return numbers that the seed fixes, others for each user of them."""
        return random.Random(" ".join(map(str, (self.seed, *what))))

    # ---- requests

    async def _call(self, kind: str, session: aiohttp.ClientSession, probe: Probe, number: int, pause_s: float) -> None:
        """Ask one request after the other, and judge how each ends."""
        numbers = self._random(kind, number)
        tally = self.tallies.setdefault(kind, Counter())
        while self._now() < self.seconds:
            try:
                fate, what = await probe(session, numbers)
            except TimeoutError:
                fate, what = Fate.WRONG, f"no end in {_TIMEOUT_S:g} s"
            except (aiohttp.ClientError, OSError) as exc:
                fate, what = Fate.BROKEN, repr(exc)
            except ValueError as exc:
                fate, what = Fate.WRONG, f"an answer that can't be read: {exc!r}"
            self._n_requests += 1
            tally[fate.value] += 1
            if fate is not Fate.RIGHT:
                self._n_errors += 1
                if not excused(fate, self._now(), self.kills):
                    tally["not excused"] += 1
                    self.wrong(f"{kind}: {fate.value}: {what}")
            await asyncio.sleep(pause_s)

    def _marked(self, name: str) -> Probe:
        ledger = self.ledgers[name]

        async def probe(session: aiohttp.ClientSession, _: random.Random) -> tuple[Fate, str]:
            since = ledger.acknowledged
            async with session.get(f"/{name}") as reply:
                text = await reply.text()
            if reply.status == 503:
                return Fate.REFUSED, text
            if reply.status not in {200, 404}:
                return Fate.WRONG, f"{reply.status}: {text[:200]}"
            version = int(reply.headers.get("X-Faas-Version", 0)) if reply.status == 200 else 0
            problem = ledger.judge(since, mark_in(text) if reply.status == 200 else "", version)
            return (Fate.WRONG, problem) if problem else (Fate.RIGHT, "")

        return probe

    async def _alone(self, session: aiohttp.ClientSession, numbers: random.Random) -> tuple[Fate, str]:
        """One of these runs at a time on the whole host, so all of them together sleep no longer than the soak."""
        ms = numbers.randrange(5, 60)
        fate, what = await _plain(session, "GET", f"/{ALONE}?{ms}", None, f"slept {ms} ms\n".encode())
        if fate is Fate.RIGHT:
            self.slept_s += ms / 1000
        return fate, what

    async def _chat(self, session: aiohttp.ClientSession, numbers: random.Random) -> tuple[Fate, str]:
        """A greedy answer is the same each time, by whichever model server."""
        prompt = numbers.choice(PROMPTS)
        answer = await chat(session, "chat", prompt, CHAT_TOKENS)
        if answer.status == 503 and answer.retry_after.isdigit():
            return Fate.RETRY, answer.error
        if answer.status != 200:
            return Fate.WRONG, f"{answer.status}: {answer.error[:200]}"
        if not answer.ended:
            return Fate.BROKEN, "the stream has no end"
        if answer.error:
            return Fate.RETRY, answer.error
        known = self._texts.setdefault(prompt, answer.pieces)
        return _judged(answer.pieces == known, f"another text: {''.join(answer.pieces)!r}, before {''.join(known)!r}")

    async def _embed(self, session: aiohttp.ClientSession, numbers: random.Random) -> tuple[Fate, str]:
        """A text has the same vector each time, but for rounding, which depends on what is computed beside it."""
        line = numbers.choice(PROMPTS)
        async with session.post("/embed", data=line.encode()) as reply:
            text = await reply.text()
        if reply.status == 503 and reply.headers.get("Retry-After", "").isdigit():
            return Fate.RETRY, text
        if reply.status != 200:
            return Fate.WRONG, f"{reply.status}: {text[:200]}"
        (vector,) = json.loads(text)["embeddings"]
        known = self._vectors.setdefault(line, vector)
        cosine = sum(a * b for a, b in zip(vector, known, strict=True))
        return _judged(cosine > 0.999, f"another vector: the cosine is {cosine:.4f}")

    # ---- what happens meanwhile

    async def _deploy(self, name: str) -> None:
        """Deploy new versions of one function, and remove it now and then; each is told in the function's ledger."""
        ledger, numbers = self.ledgers[name], self._random("deploy", name)
        module = self._folder / f"{name}.wasm"
        while self._now() < self.seconds - SETTLE_S:
            removes = bool(ledger.newest.mark) and numbers.random() < REMOVAL_SHARE
            mark = "" if removes else f"{name}-{len(ledger.states)}"
            ledger.begin(mark)
            began = time.monotonic()
            try:
                if removes:
                    await asyncio.to_thread(self.host.remove, name)
                    version = 0
                    self.n_removals += 1
                else:
                    module.write_bytes(variant(ENV.read_bytes()))
                    manifest = {"name": name, "env": {"MARK": mark}}
                    version = await asyncio.to_thread(self.host.deploy, manifest, module)
                    self.n_deploys += 1
                    self.deploys_s.append(time.monotonic() - began)
            except _HOST_GONE as exc:
                self.wrong(f"{name}: {mark or 'its removal'} was not acknowledged, nothing more is told to it: {exc!r}")
                return
            if problem := ledger.acknowledge(version):
                self.wrong(f"{name}: {problem}")
            await asyncio.sleep(numbers.uniform(*DEPLOY_PAUSE_S))

    async def _kill(self) -> None:
        """Kill a worker or the model server, and again once all is served."""
        numbers = self._random("kill")
        while True:
            await asyncio.sleep(numbers.uniform(*KILL_PAUSE_S))
            of_model, which = numbers.random() < MODEL_SHARE, numbers.randrange(N_WORKERS)
            if not await self._all_serve() or self._now() > self.seconds - SETTLE_S:
                return
            status = await asyncio.to_thread(self.host.status)
            if self.with_models and of_model:
                victim, pid = Victim.MODEL_SERVER, int(status["model_server"]["pid"])
            else:
                if which == SPARED and self._now() > self.seconds / 5 - SAMPLE_S:
                    which = 1 - SPARED
                victim, pid = Victim.WORKER, int(status["workers"][which]["pid"])
            self.kills.append(Kill(victim, pid, self._now()))
            os.kill(pid, signal.SIGKILL)

    async def _all_serve(self) -> bool:
        """Wait until all processes serve; note and return if one of them is not replaced in time."""
        until = time.monotonic() + REPLACED_WITHIN_S
        while not all_serve(status := await asyncio.to_thread(self.host.status), with_models=self.with_models):
            if time.monotonic() > until:
                states = [worker["state"] for worker in status["workers"]]
                self.wrong(f"not replaced in {REPLACED_WITHIN_S:g} s: {states}, {status.get('model_server')}")
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _sample(self) -> None:
        n_requests = n_errors = 0
        number = 0
        while (number := number + 1) * SAMPLE_S <= self.seconds:
            await asyncio.sleep(max(0.0, number * SAMPLE_S - self._now()))
            found = await asyncio.to_thread(processes, self.host)
            at_s, requests, errors = self._now(), self._n_requests, self._n_errors
            self.samples.append(Sample(at_s, found, requests - n_requests, errors - n_errors))
            n_requests, n_errors = requests, errors


def all_serve(status: dict[str, Any], *, with_models: bool) -> bool:
    """Return whether *status* of the admin API has every process serving."""
    models = status["model_server"]["state"] == "serving" if with_models else True
    return models and all(worker["state"] == "serving" for worker in status["workers"])


def mark_in(text: str) -> str:
    """Return the mark in an answer of functions/bad/env."""
    return next((line[5:] for line in text.splitlines() if line.startswith("MARK=")), "")


async def _hello(session: aiohttp.ClientSession, _: random.Random) -> tuple[Fate, str]:
    return await _plain(session, "GET", "/hello", None, HELLO_ANSWER)


async def _echo(session: aiohttp.ClientSession, numbers: random.Random) -> tuple[Fate, str]:
    body = numbers.randbytes(numbers.choice((1, 1000, 30_000, 300_000)))
    return await _plain(session, "POST", "/echo", body, body)


async def _primes(session: aiohttp.ClientSession, numbers: random.Random) -> tuple[Fate, str]:
    limit, count = numbers.choice(list(PRIMES.items())[:2])
    return await _plain(session, "GET", f"/primes?{limit}", None, primes_answer(limit, count))


async def _sleeper(session: aiohttp.ClientSession, numbers: random.Random) -> tuple[Fate, str]:
    ms = numbers.randrange(50, 1000)
    return await _plain(session, "GET", f"/sleeper?{ms}", None, f"slept {ms} ms\n".encode())


def _reactor(name: str) -> Probe:
    async def probe(session: aiohttp.ClientSession, _: random.Random) -> tuple[Fate, str]:
        return await _plain(session, "GET", f"/{name}", None, b"hello world\n")

    return probe


async def _plain(
    session: aiohttp.ClientSession, method: str, path: str, body: bytes | None, due: bytes
) -> tuple[Fate, str]:
    async with session.request(method, path, data=body) as reply:
        content = await reply.read()
    if reply.status == 503:
        return Fate.REFUSED, content.decode(errors="replace")
    return _judged(reply.status == 200 and content == due, f"{reply.status}: {content[:200]!r}")


def _judged(right: bool, otherwise: str) -> tuple[Fate, str]:
    return (Fate.RIGHT, "") if right else (Fate.WRONG, otherwise)


# ---- the command ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One line of the table; ``promise`` empty means that the number is only for information."""

    what: str
    measured: str
    promise: str = ""
    holds: bool = True


def main() -> int:
    """Return 0 when every promise was kept, else 1."""
    args = _parser().parse_args()
    console = new_console()
    missing = missing_for_models()
    if missing:
        console.print(f"without models: {missing}", style="yellow", markup=False)
    model = None if missing else find_demo()
    with tempfile.TemporaryDirectory(prefix="faas-soak-") as folder:
        host = Host(
            Path(folder) / "home",
            workers=N_WORKERS,
            models={"default": model} if model else {},
            settings={"model_demo": False},
        )
        soak = Soak(host, seed=args.seed, seconds=args.minutes * 60, with_models=model is not None, folder=Path(folder))
        try:
            findings = _soaked(soak, console)
        except _HOST_GONE as exc:
            soak.wrong(f"the soak broke off: {exc}")
            findings = []
        finally:
            host.kill()
    console.print(_table(soak, findings))
    for problem in soak.problems[:_MAX_SHOWN]:
        console.print(problem, style="red", markup=False)
    if len(soak.problems) > _MAX_SHOWN:
        console.print(f"and {len(soak.problems) - _MAX_SHOWN} more, all in the report", style="red")
    _write(soak, findings, args.out, console)
    return 1 if soak.problems or not all(finding.holds for finding in findings) else 0


def _soaked(soak: Soak, console: Console) -> list[Finding]:
    """Prepare the host, soak it, restart it; return what was found."""
    host = soak.host
    host.start()
    for name, module in {"hello": "hello-c", "echo": "echo-c", "primes": "primes"}.items():
        host.deploy({"name": name}, FUNCTIONS / module / f"{module}.wasm")
    host.deploy({"name": "sleeper"}, FUNCTIONS / "bad" / "sleeper.wasm")
    for special, path in SPECIAL:
        host.deploy(special, FUNCTIONS / path)
    if soak.with_models:
        for name in ("chat", "embed"):
            manifest = {"name": name, "limits": {"timeout_s": _TIMEOUT_S}, "capabilities": {"models": ["default"]}}
            host.deploy(manifest, FUNCTIONS / name / f"{name}.wasm")
        request(host.public_url, "POST", "/embed", b"The model is loaded now.")
    console.print(f"soaking {host.public_url} for {soak.seconds:g} s, seed {soak.seed} ...")
    began = time.monotonic()
    asyncio.run(soak.run())
    took_s = time.monotonic() - began
    lost = _lost(soak)
    unserved = _unserved(soak)
    active, queued, metrics = _at_rest(host)
    host.stop()
    host.start()
    lost_by_restart = _lost(soak)
    host.stop()
    for when, names in (("at the end", lost + unserved), ("after a restart", lost_by_restart)):
        for name in names:
            soak.wrong(f"{when}, {name}")
    restarts = sum(value for name, value in metrics.items() if name.startswith("faas_worker_restarts_total"))
    n_workers = sum(kill.victim is Victim.WORKER for kill in soak.kills)
    n_models = len(soak.kills) - n_workers
    model_restarts = metrics.get("faas_model_server_restarts", 0.0)
    warm_starts = {
        result: metrics.get(f'faas_warm_starts_total{{function="pooled",result="{result}"}}', 0.0)
        for result in ("hit", "miss")
    }
    n_unexcused = sum(tally["not excused"] for tally in soak.tallies.values())
    return [
        Finding("acknowledged deploys; removals", f"{soak.n_deploys}; {soak.n_removals}"),
        Finding(
            "a deploy, p50 / max",
            f"{percentile(soak.deploys_s, 50) * 1000:.0f} / {max(soak.deploys_s, default=math.nan) * 1000:.0f} ms",
        ),
        Finding("functions not as acknowledged, at the end", str(len(lost)), "0", not lost),
        Finding("  and after a restart", str(len(lost_by_restart)), "0", not lost_by_restart),
        Finding("wrong answers, and errors without a kill", str(n_unexcused), "0", n_unexcused == 0),
        Finding(
            "seconds that requests with max_concurrency = 1 slept, of those there were",
            f"{soak.slept_s:.1f} of {took_s:.1f}",
            "some, no more",
            0 < soak.slept_s <= took_s,
        ),
        Finding("functions that do not answer at the end", str(len(unserved)), "0", not unserved),
        Finding(
            "permits in use; requests waiting, at rest", f"{active:.0f}; {queued:.0f}", "0; 0", active == queued == 0
        ),
        Finding(
            "requests of the warm pool: an instance was ready; was not",
            f"{warm_starts['hit']:.0f}; {warm_starts['miss']:.0f}",
            "some were",
            warm_starts["hit"] > 0,
        ),
        Finding(
            "workers replaced, of those killed",
            f"{restarts:.0f} of {n_workers}",
            "all, no more",
            restarts == n_workers > 0,
        ),
        *(
            [
                Finding(
                    "model servers replaced, of those killed",
                    f"{model_restarts:.0f} of {n_models}",
                    "all, no more",
                    model_restarts == n_models and (n_models > 0 or soak.seconds < SURELY_KILLED_S),
                )
            ]
            if soak.with_models
            else []
        ),
        *_flatness(soak),
    ]


def _lost(soak: Soak) -> list[str]:
    """Return the functions that some worker does not serve as it was acknowledged; many connections reach them all."""
    lost = []
    for name, ledger in soak.ledgers.items():
        for _ in range(8 * N_WORKERS):
            status, body, headers = request(soak.host.public_url, "GET", f"/{name}")
            if status not in {200, 404}:
                lost.append(f"{name}: {status} {body[:200]!r}")
                break
            mark = mark_in(body.decode()) if status == 200 else ""
            version = int(headers.get("X-Faas-Version", 0)) if status == 200 else 0
            if problem := ledger.judge(ledger.acknowledged, mark, version):
                lost.append(f"{name}: {problem}")
                break
    return lost


def _unserved(soak: Soak) -> list[str]:
    """Return the functions with settings of their own that some worker does not answer for."""
    found = []
    for manifest, _ in SPECIAL:
        name = str(manifest["name"])
        replies = [request(soak.host.public_url, "GET", f"/{name}?1") for _ in range(8 * N_WORKERS)]
        if bad := [(status, body[:200]) for status, body, _ in replies if status != 200]:
            found.append(f"{name}: {bad[0][0]} {bad[0][1]!r}")
    return found


def _at_rest(host: Host) -> tuple[float, float, dict[str, float]]:
    """Return permits in use and requests waiting once nothing is asked, and all metrics; workers report in seconds."""
    until = time.monotonic() + REST_S
    while True:
        metrics = host.metrics()
        active, queued = (
            sum(value for name, value in metrics.items() if name.startswith(f"faas_worker_{what}{{"))
            for what in ("active", "queued")
        )
        if active == queued == 0 or time.monotonic() > until:
            return active, queued, metrics
        time.sleep(_POLL_S)


def _flatness(soak: Soak) -> list[Finding]:
    """Return whether memory and descriptors are what they were, where a process lived long enough to tell."""
    roles = ("control", "worker", *(("model server",) if soak.with_models else ()))
    found = []
    for number in ("rss", "pss"):
        values = [sample.of("control", number) for sample in soak.samples]
        second, last = fifths(values)
        found.append(
            Finding(
                f"{number.upper()} of the control process, second / last fifth",
                f"{second / 1e6:.1f} / {last / 1e6:.1f} MB",
                f"≤ +{MEMORY_SHARE:.0%} and {MEMORY_BYTES / 1e6:g} MB",
                is_flat(values, MEMORY_SHARE, MEMORY_BYTES),
            )
        )
        found += _growth_of_workers(soak, number)
        if soak.with_models:
            found.append(_growth_of_model_servers(soak, number))
    for role in roles:
        values = [sample.of(role, "descriptors") for sample in soak.samples]
        second, last = fifths(values)
        found.append(
            Finding(
                f"descriptors, {role}, second / last fifth",
                f"{second:g} / {last:g}",
                f"≤ +{DESCRIPTORS_SHARE:.0%} and {DESCRIPTORS:g}",
                is_flat(values, DESCRIPTORS_SHARE, DESCRIPTORS),
            )
        )
    return found


def _growth_of_workers(soak: Soak, number: str) -> list[Finding]:
    """Return how a number of each worker that was not killed went; one has to be there."""
    promise = f"≤ +{MEMORY_SHARE:.0%} and {WORKER_BYTES / 1e6:g} MB"
    what = f"{number.upper()} of a worker that lived on, second / last fifth"
    found = []
    for pid in long_lived(soak.samples, "worker"):
        values = of_process(soak.samples, pid, number)
        second, last = fifths(values)
        measured = f"{second / 1e6:.1f} / {last / 1e6:.1f} MB"
        found.append(Finding(what, measured, promise, is_flat(values, MEMORY_SHARE, WORKER_BYTES)))
    return found or [Finding(what, "no worker lived on", promise, holds=False)]


def _growth_of_model_servers(soak: Soak, number: str) -> Finding:
    """Return how a number of the model servers went; without any that lived long enough it is no promise."""
    values = aged(soak.samples, "model server", number, AGED_S)
    second, last = fifths(values)
    known = not math.isnan(second + last)
    return Finding(
        f"{number.upper()} of model servers over {AGED_S:g} s old, second / last fifth",
        f"{second / 1e6:.1f} / {last / 1e6:.1f} MB" if known else "none lived so long",
        f"≤ +{MEMORY_SHARE:.0%} and {MODEL_SERVER_BYTES / 1e6:g} MB" if known else "",
        not known or is_flat(values, MEMORY_SHARE, MODEL_SERVER_BYTES),
    )


def _table(soak: Soak, findings: Sequence[Finding]) -> Table:
    table = Table(title=f"soak of {soak.seconds:g} s with seed {soak.seed}: {len(soak.kills)} kills")
    for column in ("what", "measured", "promise", "holds"):
        table.add_column(column)
    for kind, tally in soak.tallies.items():
        rest = [f"{n} × {what}" for what, n in tally.items() if what != Fate.RIGHT.value]
        table.add_row(f"requests: {kind}", ", ".join((f"{tally[Fate.RIGHT.value]} right", *rest)), "", "")
    table.add_section()
    for finding in findings:
        holds = ("[green]yes[/green]" if finding.holds else "[red]NO[/red]") if finding.promise else ""
        table.add_row(finding.what, finding.measured, finding.promise, holds)
    return table


def _write(soak: Soak, findings: Sequence[Finding], out: Path, console: Console) -> None:
    """Write the report and, where matplotlib is installed, the plot."""
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "seed": soak.seed,
        "seconds": soak.seconds,
        "with_models": soak.with_models,
        "kills": [{"victim": kill.victim.value, "pid": kill.pid, "at_s": kill.at_s} for kill in soak.kills],
        "requests": soak.tallies,
        "findings": [asdict(finding) for finding in findings],
        "problems": soak.problems,
        "samples": [asdict(sample) for sample in soak.samples],
    }
    report = out / "soak.json"
    report.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"report: {report}", soft_wrap=True)
    roles = ("control", "worker", *(("model server",) if soak.with_models else ()))
    samples = soak.samples
    try:
        path = plot.panels(
            out / "soak.svg",
            f"soak, seed {soak.seed}",
            [sample.at_s for sample in samples],
            [
                plot.Panel("PSS, MB", {role: [sample.of(role, "pss") / 1e6 for sample in samples] for role in roles}),
                plot.Panel(
                    "control, MB",
                    {name.upper(): [sample.of("control", name) / 1e6 for sample in samples] for name in ("rss", "pss")},
                ),
                plot.Panel(
                    "descriptors", {role: [sample.of(role, "descriptors") for sample in samples] for role in roles}
                ),
                plot.Panel("requests/s", {"requests": [sample.n_requests / SAMPLE_S for sample in samples]}),
                plot.Panel(f"errors in {SAMPLE_S:g} s", {"errors": [float(sample.n_errors) for sample in samples]}),
            ],
            x_label="seconds",
            marks={
                f"kill of a {victim.value}": [kill.at_s for kill in soak.kills if kill.victim is victim]
                for victim in Victim
            },
        )
        console.print(f"plot: {path}", soft_wrap=True)
    except plot.PlotMissingError as exc:
        console.print(f"no plot: {exc}", style="yellow", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.soak", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=_minutes, default=MINUTES, metavar="M", help="length, 1 or more")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="fixes the moments of kills and deploys")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where report and plot go")
    return parser


def _minutes(text: str) -> float:
    minutes = float(text)
    if not minutes >= 1:
        raise argparse.ArgumentTypeError("give 1 or more: shorter soaks have too few samples to tell what is flat")
    return minutes


if __name__ == "__main__":
    sys.exit(main())
