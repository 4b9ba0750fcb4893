"""
Jobs on their way: queued for workers and commands (``JobDesk``), run by workers (``Dispatcher``), and told about to who
asked for it (``CallbackSender``). What is promised is kept by ``faas.state.jobs``.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import hmac
import logging
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec

from faas import __version__
from faas.control.supervisor import WorkerState, WorkerView
from faas.destinations import AllowList
from faas.errors import (
    BadRequestError,
    CallbackRefusedError,
    FaasError,
    FunctionNotFoundError,
    HostError,
    InternalError,
    JobUnfinishedError,
    PeerGoneError,
    ResultNotKeptError,
    StateError,
)
from faas.invocation import LIVE
from faas.log import event, exception
from faas.manifest import Async, Manifest
from faas.outbound.client import Client
from faas.outbound.credentials import Added, Credentials
from faas.outbound.exchange import Request, check
from faas.outbound.failures import OutboundError
from faas.state.database import Database
from faas.state.functions import FunctionStore
from faas.state.jobs import (
    CALLBACKS,
    ENDED,
    QUEUED,
    Attempt,
    Callback,
    CallbackView,
    Claimed,
    Delivery,
    Job,
    JobRequest,
    JobResult,
    JobState,
    JobStore,
    NewJob,
    Queued,
    Run,
)
from faas.wire.peer import Handler

LEASE_S: Final = 15.0
"""How long a host that says nothing keeps others from running its jobs again."""
SWEEP_S: Final = 60.0
NO_WORKER_S: Final = 0.2
AGAIN_S: Final = 1.0
"""Until the database is asked again after it failed."""
LONGEST_WAIT_S: Final = 60.0
POSTPONE_S: Final = (0.1, 30.0)
"""Pauses before a job that found no room, or no function, is tried again: the first, and the longest."""
DELIVERY_PATIENCE_S: Final = 5.0
"""How long a repeated delivery waits for the one that is being served."""
CALLBACK_TIMEOUT_S: Final = 30.0
CALLBACKS_AT_ONCE: Final = 16
MAX_CALLBACK_TRIES: Final = 20
ANYTHING: Final = ""
"""The topic that stands for all of them: notices may have been missed."""

_NEVER_BEGAN = frozenset(
    ("overloaded", "concurrency-limit", "rate-limited", "function-not-found", "alias-not-found", "artifact-missing")
)
"""Codes of what may be otherwise a moment later, and of which no guest knows."""
_DROPPED_HEADERS = frozenset(("prefer", "x-faas-callback", "x-faas-job", "x-faas-attempt"))

_logger = logging.getLogger(__name__)


class AttemptView(msgspec.Struct, frozen=True):
    """One run of a job; ``ended_at`` 0: it goes on."""

    number: int
    began_at: float
    ended_at: float
    version: int
    outcome: str
    status: int
    reason: str


class ResultView(msgspec.Struct, frozen=True):
    """What the function answered; the body is at ``result_url`` of the job, if it was kept."""

    status: int
    headers: list[tuple[str, str]]
    n_bytes: int
    kept: bool


class JobView(msgspec.Struct, frozen=True):
    """
    A job as it is shown; times are seconds since the epoch, 0 where there is none.

    ``next_at`` is when it is tried next, while it waits; ``callback`` None: nobody asked for one.
    """

    job: str
    function: str
    qualifier: str
    source: str
    state: JobState
    method: str
    target: str
    created_at: float
    next_at: float
    expires_at: float
    finished_at: float
    kept_until: float
    reason: str
    max_attempts: int
    attempts: list[AttemptView]
    result: ResultView | None
    callback: CallbackView | None
    status_url: str
    result_url: str


class JobLine(msgspec.Struct, frozen=True):
    """A job in a list."""

    job: str
    function: str
    source: str
    state: JobState
    created_at: float
    next_at: float
    finished_at: float
    n_attempts: int
    status: int
    reason: str


def status_url(id: str) -> str:
    """Return the path of a job on the public port."""
    return f"/_faas/jobs/{id}"


def line_of(job: Job) -> JobLine:
    """Return *job* as lists show it."""
    return JobLine(
        job=job.id,
        function=job.function,
        source=job.source,
        state=job.state,
        created_at=job.created_at,
        next_at=_next_at(job),
        finished_at=job.finished_at,
        n_attempts=job.n_attempts,
        status=job.status,
        reason=job.reason,
    )


def _next_at(job: Job) -> float:
    return job.due_at if job.state in (JobState.QUEUED, JobState.RETRYING) else 0.0


class JobDesk:
    """Takes jobs in and says what became of them; lives as long as the host. Thread: the control loop only."""

    def __init__(self, store: JobStore, functions: FunctionStore, *, max_job_bytes: int) -> None:
        self._store = store
        self._functions = functions
        self._max_job_bytes = max_job_bytes
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = {}
        """Who waits for a delivery that is being served."""

    def handlers(self) -> dict[str, Handler]:
        """Return what workers may ask."""
        return {
            "jobs.submit": self._submit,
            "jobs.status": lambda asked: self._status(asked["id"]),
            "jobs.result": lambda asked: self._result(asked["id"]),
            "jobs.cancel": self._cancel,
            "deliveries.begin": self._begin_delivery,
            "deliveries.end": self._end_delivery,
        }

    async def submit(
        self,
        function: str,
        qualifier: str,
        request: JobRequest,
        *,
        source: str,
        key: str = "",
        key_keep_s: float = 0.0,
        callback: str = "",
        delay_s: float = 0.0,
        max_attempts: int | None = None,
        max_age_s: float | None = None,
    ) -> Queued:
        """
        Queue a job; it is durable when this returns.

        Raises: FunctionNotFoundError, BadRequestError for options out of range or a function that takes no jobs,
        CallbackRefusedError, IdempotencyConflictError.
        """
        manifest = (await self._functions.active(function)).manifest
        if not manifest.jobs.enabled:
            raise BadRequestError(f"{function!r} takes no jobs; set async.enabled to true in its function.toml")
        if len(request.body) > self._max_job_bytes:
            raise BadRequestError(
                f"the request is {len(request.body)} bytes and may be {self._max_job_bytes} (max_job_bytes); send less"
            )
        if callback:
            check_callback(manifest, callback)
        headers = tuple(item for item in request.headers if item[0].lower() not in _DROPPED_HEADERS)
        queued = await self._store.add(
            NewJob(
                function=function,
                qualifier="" if qualifier == LIVE else qualifier,
                source=source,
                request=msgspec.structs.replace(request, headers=headers),
                policy=_policy(manifest.jobs, max_attempts, max_age_s),
                delay_s=_in_range("delay_s", delay_s, 0.0, 30 * 86400.0),
                key=key,
                key_keep_s=key_keep_s,
                callback=callback,
            )
        )
        if not queued.duplicate:
            event(_logger, "job.queued", job=queued.id, function=function, source=source)
        return queued

    async def view(self, id: str) -> JobView:
        """
        Return everything about a job but its bodies.

        Raises: JobNotFoundError.
        """
        shown = await self._store.show(id)
        job = shown.job
        return JobView(
            job=job.id,
            function=job.function,
            qualifier=job.qualifier or LIVE,
            source=job.source,
            state=job.state,
            method=job.method,
            target=job.target,
            created_at=job.created_at,
            next_at=_next_at(job),
            expires_at=job.expires_at,
            finished_at=job.finished_at,
            kept_until=job.keep_until,
            reason=job.reason,
            max_attempts=job.policy.max_attempts,
            attempts=[AttemptView(*msgspec.structs.astuple(attempt)) for attempt in shown.attempts],
            result=None if shown.result is None else _shown(shown.result),
            callback=shown.callback,
            status_url=status_url(id),
            result_url=status_url(id) + "/result",
        )

    async def result(self, id: str) -> JobResult:
        """
        Return what the function answered last.

        Raises: JobNotFoundError, JobUnfinishedError, ResultNotKeptError.
        """
        job, result = await self._store.result(id)
        if not job.state.finished:
            raise JobUnfinishedError(f"the job is {job.state.value}; ask again later", job=id)
        if result is None:
            raise ResultNotKeptError(f"the job is {job.state.value}, and the function has not answered", job=id)
        if not result.kept:
            raise ResultNotKeptError(
                f"the answer has {result.n_bytes} bytes, more than the function's async.max_result_bytes, and was not "
                "kept",
                job=id,
            )
        return result

    async def cancel(self, id: str) -> JobView:
        """
        End a job; if it runs, its invocation is ended soon.

        Raises: JobNotFoundError, JobFinishedError.
        """
        job = await self._store.cancel(id)
        event(_logger, "job.cancelled", job=id, function=job.function)
        return await self.view(id)

    async def redrive(self, id: str) -> JobView:
        """
        Queue a dead letter again, with all its tries.

        Raises: JobNotFoundError, JobFinishedError, JobUnfinishedError.
        """
        job = await self._store.redrive(id)
        event(_logger, "job.redriven", job=id, function=job.function)
        return await self.view(id)

    async def redrive_all(self, function: str) -> int:
        """Queue all dead letters of *function* again; return how many."""
        n = await self._store.redrive_all(function)
        event(_logger, "jobs.redriven", function=function, jobs=n)
        return n

    async def purge(self, function: str, states: Sequence[JobState]) -> int:
        """Forget finished jobs of *function* ('' for all functions) in *states*, or in any; return how many."""
        n = await self._store.purge(function, states)
        event(_logger, "jobs.purged", function=function, jobs=n)
        return n

    async def forget_function(self, function: str, *, purge: bool = True, actor: str = "") -> None:
        """End the jobs of a function that is removed: another one of that name must not get them."""
        del purge, actor
        n = await self._store.cancel_all(function)
        if n:
            event(_logger, "jobs.cancelled", function=function, jobs=n)

    async def _submit(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            queued = await self.submit(
                asked["function"],
                asked["qualifier"],
                msgspec.convert(asked["request"], JobRequest),
                source=asked["source"],
                key=asked.get("key", ""),
                key_keep_s=asked.get("key_keep_s", 0.0),
                callback=asked.get("callback", ""),
                delay_s=asked.get("delay_s", 0.0),
                max_attempts=asked.get("max_attempts"),
                max_age_s=asked.get("max_age_s"),
            )
        except msgspec.ValidationError as exc:
            raise BadRequestError(f"that is no job: {exc}") from exc
        return {"id": queued.id, "duplicate": queued.duplicate, "status_url": status_url(queued.id)}

    async def _status(self, id: str) -> Any:
        return msgspec.to_builtins(await self.view(id))

    async def _result(self, id: str) -> Any:
        result = await self.result(id)
        return {"status": result.status, "headers": list(result.headers), "body": result.body}

    async def _cancel(self, asked: dict[str, Any]) -> Any:
        return msgspec.to_builtins(await self.cancel(asked["id"]))

    async def _begin_delivery(self, asked: dict[str, Any]) -> str:
        """Say what is known of a delivery; one that comes while it is served waits a little for what becomes of it."""
        delivery = asked["function"], asked["key"]
        ended = asyncio.Event()
        waiting = self._waiting.setdefault(delivery, set())
        waiting.add(ended)  # before the question, or its end could come in between
        try:
            found = await self._store.begin_delivery(*delivery, asked["lease_s"])
            if found is Delivery.UNDER_WAY:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DELIVERY_PATIENCE_S):
                        await ended.wait()
                found = await self._store.begin_delivery(*delivery, asked["lease_s"])
            return found.value
        finally:
            waiting.discard(ended)
            if not waiting and self._waiting.get(delivery) is waiting:
                del self._waiting[delivery]

    async def _end_delivery(self, asked: dict[str, Any]) -> None:
        delivery = asked["function"], asked["key"]
        try:
            await self._store.end_delivery(*delivery, asked["keep_s"], served=asked["served"])
        finally:
            for ended in self._waiting.get(delivery, ()):
                ended.set()


def _shown(result: JobResult) -> ResultView:
    headers = [(name, value.decode("utf-8", "replace")) for name, value in result.headers]
    return ResultView(result.status, headers, result.n_bytes, result.kept)


def _policy(policy: Async, max_attempts: int | None, max_age_s: float | None) -> Async:
    if max_attempts is not None:
        attempts = int(_in_range("max_attempts", max_attempts, 1, 100))
        policy = msgspec.structs.replace(policy, max_attempts=attempts)
    if max_age_s is not None:
        policy = msgspec.structs.replace(policy, max_age_s=_in_range("max_age_s", max_age_s, 0.0, 30 * 86400.0))
    return policy


def _in_range(name: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise BadRequestError(f"{name} is {value:g}; it may be {least:g} to {most:g}")
    return value


def check_callback(manifest: Manifest, url: str) -> None:
    """
    Refuse a URL for word of finished jobs that is none, that the function itself may not reach, or that could not be
    signed.

    Raises: CallbackRefusedError.
    """
    if not manifest.jobs.callback_secret:
        raise CallbackRefusedError(
            f"{manifest.name!r} names no async.callback_secret, and word of jobs is not sent unsigned; name one in "
            "function.toml and deploy again"
        )
    try:
        outgoing = check(_request_to(url))
    except (OutboundError, ValueError) as exc:
        reason = exc.reason if isinstance(exc, OutboundError) else exc
        raise CallbackRefusedError(f"X-Faas-Callback is no URL to send to: {reason}; correct it") from exc
    if not AllowList(manifest.capabilities.outbound).allows(outgoing.scheme, outgoing.host, outgoing.port):
        raise CallbackRefusedError(
            f"no entry of [capabilities] outbound of {manifest.name!r} allows {outgoing.origin}; add it and "
            "deploy again"
        )


def _request_to(url: str) -> Request:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Request("POST", parts.scheme, parts.netloc, target, [])


# ---- running --------------------------------------------------------------------------------------------------------


class Fate(str, Enum):
    """What follows from a run."""

    DONE = "done"
    RETRY = "retry"
    FINAL = "final"  # trying again would change nothing
    POSTPONE = "postpone"  # the guest never began
    LOST = "lost"  # nobody knows how far it came


class Ran(msgspec.Struct, frozen=True):
    """What a worker says of a run; ``code`` is empty with outcome ``ok``."""

    status: int
    headers: tuple[tuple[str, bytes], ...]
    body: bytes
    n_bytes: int
    outcome: str
    code: str
    detail: str
    version: int


def fate_of(ran: Ran) -> Fate:
    """Return what follows from what a worker says."""
    if ran.outcome == "ok":
        return Fate.RETRY if ran.status >= 500 or ran.status == 429 else Fate.DONE
    if ran.code in _NEVER_BEGAN:
        return Fate.POSTPONE
    if ran.outcome == "cancelled":
        return Fate.LOST  # its worker was told to end, and could not wait for it
    return Fate.FINAL if ran.outcome == "refused" else Fate.RETRY


def back_off_s(policy: Async, n_failed: int, jitter: float) -> float:
    """
    Return the pause after the *n_failed*-th failure: exponential, with full jitter.

    Args: *jitter* is between 0 and 1.
    """
    return jitter * min(policy.max_backoff_s, policy.backoff_s * 2.0 ** min(n_failed - 1, 60))


def retry_after_s(headers: Sequence[tuple[str, bytes]], now: float) -> float:
    """
    Return how long an answer asks to be left alone: seconds, or until a date; 0 if it does not say.

    Source: RFC 9110, 10.2.3.
    """
    value = next((value for name, value in headers if name.lower() == "retry-after"), b"").decode("latin-1").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    if value:
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    return 0.0


class Fleet(Protocol):
    """The workers, as far as jobs look."""

    def workers(self) -> list[WorkerView]:
        """Return what is known of each."""

    async def ask(self, index: int, operation: str, /, **arguments: Any) -> Any:
        """Return what worker *index* answers; raises what it raised, PeerGoneError."""


class Dispatcher:
    """
    Has workers run the jobs that are due, this host's part of them; lives from ``start`` to ``aclose``.

    It looks when something was queued, when something is due and when a run ends; else it sleeps.
    Thread: the control loop only.
    """

    def __init__(
        self,
        store: JobStore,
        database: Database,
        fleet: Fleet,
        *,
        holder: str,
        slots: int,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Args: *holder* is this host's name, the same after a restart; *slots* jobs run at once. *jitter* and *sleep* are
        there for tests.
        """
        self._store = store
        self._database = database
        self._fleet = fleet
        self._holder = holder
        self._slots = slots
        self._jitter = jitter
        self._sleep = sleep
        self._wake = asyncio.Event()
        self._look = asyncio.Event()
        """Set when a job was ended from outside: it may be one that runs here."""
        self._running: dict[Run, tuple[Claimed, asyncio.Task[None]]] = {}
        self._by_worker: Counter[int] = Counter()
        self._loops: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None

    @property
    def n_running(self) -> int:
        """How many jobs this host runs."""
        return len(self._running)

    async def start(self) -> None:
        """
        Queue again what this host ran when it ended, and begin.

        Raises: StateError.
        """
        n = await self._store.recover(self._holder, alone=not self._database.shared)
        if n:
            event(_logger, "jobs.recovered", jobs=n)
        self._database.listen(self._heard)
        self._loops.append(asyncio.create_task(keep_looking(self.step, self._wake, "jobs"), name="jobs"))
        self._loops.append(asyncio.create_task(self._sweep(), name="jobs-sweep"))
        self._watching = asyncio.create_task(self._watch(), name="jobs-watch")

    async def stop(self) -> None:
        """Begin nothing any more; what runs goes on. Safe to call more than once."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    async def aclose(self) -> None:
        """Stop, and leave what still runs to the queue. Safe to call more than once."""
        await self.stop()
        tasks = [task for _, task in self._running.values()]
        if tasks:
            # The workers are gone, so they are about to hear of it, and put their jobs back.
            await asyncio.wait(tasks, timeout=AGAIN_S)
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _heard(self, topic: str) -> None:
        if topic in (QUEUED, ANYTHING):
            self._wake.set()
        if topic in (ENDED, ANYTHING):
            self._look.set()

    async def step(self) -> float | None:
        """
        Begin what is due and has room; return in how many seconds to look again if nothing is heard before.

        Raises: StateError.
        """
        n_free = self._slots - len(self._running)
        if n_free <= 0:
            return None
        if not self._serving():
            return NO_WORKER_S
        running = {run: claimed.job.function for run, (claimed, _) in self._running.items()}
        # Seen through also when we are stopped meanwhile: what was claimed must not be forgotten.
        claiming = asyncio.ensure_future(self._store.claim(self._holder, n_free, running, LEASE_S))
        try:
            claims = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with contextlib.suppress(FaasError):
                self._begin((await claiming).jobs)
            raise
        self._begin(claims.jobs)
        return claims.wait_s

    def _begin(self, jobs: Sequence[Claimed]) -> None:
        for claimed in jobs:
            task = asyncio.create_task(self._run(claimed), name=f"job-{claimed.job.id}")
            self._running[claimed.job.id, claimed.job.n_attempts] = claimed, task

    def _serving(self) -> list[int]:
        return [view.worker for view in self._fleet.workers() if view.state == WorkerState.SERVING.value]

    async def _run(self, claimed: Claimed) -> None:
        """See one run through, and note what came of it."""
        job = claimed.job
        serving = self._serving()
        try:
            if not serving:
                await self._note(lambda: self._store.postpone(self._holder, job, "no worker serves", NO_WORKER_S))
                return
            worker = min(serving, key=lambda index: (self._by_worker[index], index))
            self._by_worker[worker] += 1
            try:
                ran = await self._ran(worker, claimed)
            finally:
                self._by_worker[worker] -= 1
            await self._settle(claimed, ran)
        except Exception as exc:
            exception(_logger, "job.failed", exc, job=job.id)
        finally:
            if self._running.get((job.id, job.n_attempts), (None,))[0] is claimed:
                del self._running[job.id, job.n_attempts]
            self._wake.set()

    async def _ran(self, worker: int, claimed: Claimed) -> Ran | None:
        """Return what came of a run; None if its worker went away."""
        job, request = claimed.job, claimed.request
        try:
            said = await self._fleet.ask(
                worker,
                "invoke",
                function=job.function,
                qualifier=job.qualifier,
                request=msgspec.to_builtins(request, builtin_types=(bytes,)),
                job=job.id,
                attempt=job.n_attempts,
                source=job.source,
                max_result_bytes=job.policy.max_result_bytes,
            )
            return msgspec.convert(said, Ran)
        except PeerGoneError:
            return None
        except FaasError as exc:
            refused = not isinstance(exc, (HostError, InternalError))
            return Ran(0, (), b"", 0, "refused" if refused else "failed", exc.code, exc.message, 0)

    async def _settle(self, claimed: Claimed, ran: Ran | None) -> None:
        job, store, holder = claimed.job, self._store, self._holder
        fate = Fate.LOST if ran is None else fate_of(ran)
        facts: dict[str, Any] = {"job": job.id, "function": job.function, "attempt": job.n_attempts, "fate": fate.value}
        if ran is None or fate is Fate.LOST:
            event(_logger, "job.lost", level=logging.WARNING, **facts)
            await self._note(lambda: store.lose(holder, job, "its worker went away while it ran"))
            return
        reason = "" if ran.outcome == "ok" and fate is Fate.DONE else _reason(ran)
        if fate is Fate.POSTPONE:
            first_s, most_s = POSTPONE_S
            pause_s = min(most_s, first_s * 2.0 ** min(job.n_postponed, 60)) * (0.5 + self._jitter() / 2)
            pause_s = max(pause_s, min(most_s, retry_after_s(ran.headers, job.created_at)))
            await self._note(lambda: store.postpone(holder, job, reason, pause_s))
            return
        attempt = Attempt(job.n_attempts, 0.0, 0.0, ran.version, ran.outcome, ran.status, reason)
        kept = ran.n_bytes <= job.policy.max_result_bytes
        result = JobResult(ran.status, ran.headers, ran.body if kept else b"", ran.n_bytes, kept)
        if fate is Fate.DONE:
            await self._note(lambda: store.succeed(holder, job, attempt, result))
            event(_logger, "job.succeeded", status=ran.status, **facts)
            return
        now = await self._note(self._store.now)
        delay_s = max(
            back_off_s(job.policy, job.n_counted + 1, self._jitter()), retry_after_s(ran.headers, now or job.created_at)
        )
        state = await self._note(
            lambda: store.retry(
                holder,
                job,
                attempt,
                delay_s=delay_s,
                result=result if ran.status else None,
                final=fate is Fate.FINAL,
            )
        )
        level = logging.WARNING if state is JobState.DEAD else logging.INFO
        where = state.value if state is not None else "not ours"
        event(_logger, "job.failed", level=level, reason=reason, state=where, retry_s=delay_s, **facts)

    async def _note(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do *work* in the database, again and again while it can't be reached: what is known must not be forgotten."""
        while True:
            try:
                return await work()
            except StateError as exc:
                event(_logger, "jobs.not_noted", level=logging.ERROR, reason=exc)
                await self._sleep(AGAIN_S)

    async def check(self) -> None:
        """Keep what is still ours, and end the runs of what is not: cancelled, or run by another host by now."""
        runs = dict(self._running)
        try:
            kept = await self._store.renew(self._holder, runs, LEASE_S)
        except StateError as exc:
            event(_logger, "jobs.not_renewed", level=logging.WARNING, reason=exc)
            return
        for run, (claimed, task) in runs.items():
            if run not in kept and run in self._running:  # else it has ended by itself meanwhile
                event(_logger, "job.ended", job=claimed.job.id, function=claimed.job.function)
                task.cancel()

    async def _watch(self) -> None:
        """Keep the leases of what runs, and end what is not ours any more."""
        while True:
            await _wait(self._look, LEASE_S / 3 if self._database.shared else None)
            self._look.clear()
            if self._running:
                try:
                    await self.check()
                except Exception as exc:
                    exception(_logger, "jobs.not_checked", exc)

    async def _sweep(self) -> None:
        while True:
            try:
                n = await self._store.sweep()
            except StateError as exc:
                event(_logger, "jobs.not_swept", level=logging.WARNING, reason=exc)
                n = 0
            if not n:
                await self._sleep(SWEEP_S)


def _reason(ran: Ran) -> str:
    return f"{ran.code}: {ran.detail}" if ran.code else f"the function answered {ran.status}"


async def keep_looking(step: Callable[[], Awaitable[float | None]], wake: asyncio.Event, what: str) -> None:
    """
    Do *step* again whenever *wake* is set, or when the seconds are over that it returned; until cancelled.

    Args: *what* is whose events the log has where it fails.
    """
    while True:
        wake.clear()
        try:
            wait_s = await step()
        except StateError as exc:
            event(_logger, f"{what}.stuck", level=logging.ERROR, reason=exc)
            wait_s = AGAIN_S
        except Exception as exc:
            exception(_logger, f"{what}.failed", exc)
            wait_s = AGAIN_S
        await _wait(wake, wait_s)


async def _wait(wake: asyncio.Event, wait_s: float | None) -> None:
    """Return when *wake* is set, or after *wait_s* seconds, a minute at most: clocks may be set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_WAIT_S if wait_s is None else min(wait_s, LONGEST_WAIT_S)):
            await wake.wait()


def host_name(home: Path) -> str:
    """Return this host's name among those that share its state; ``home/host-id`` keeps it from the first start on."""
    path = home / "host-id"
    with contextlib.suppress(FileNotFoundError):
        name = path.read_text().strip()
        if name:
            return name
    name = secrets.token_hex(8)
    aside = path.with_suffix(".new")
    aside.write_text(name + "\n")
    aside.replace(path)
    return name


# ---- callbacks ------------------------------------------------------------------------------------------------------

SecretLookup = Callable[[str, str], str | None]
"""Returns the secret of a function, by (function, name); None if it is not set."""


class CallbackSender:
    """
    Tells those who asked for it that their jobs are finished; lives from ``start`` to ``aclose``.

    What is told goes the way of a function's own requests: only where its ``capabilities.outbound`` allows, and never
    to a private address that is not named there. Thread: the control loop only.
    """

    def __init__(
        self,
        desk: JobDesk,
        store: JobStore,
        functions: FunctionStore,
        database: Database,
        client: Client,
        *,
        secret: SecretLookup,
        log: Callable[[str, bytes], None],
        now: Callable[[], float],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Args: *log* gets a line for a function's log; *now* is the time in seconds since the epoch."""
        self._desk = desk
        self._store = store
        self._functions = functions
        self._database = database
        self._client = client
        self._secret = secret
        self._log = log
        self._now = now
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; what a killed host was sending is sent again."""
        self._database.listen(self._heard)
        self._loop_task = asyncio.create_task(keep_looking(self.step, self._wake, "callbacks"), name="job-callbacks")

    async def aclose(self) -> None:
        """Stop; what is being sent is sent again after the next start. Safe to call more than once."""
        tasks = [*self._sending, *([self._loop_task] if self._loop_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _heard(self, topic: str) -> None:
        if topic in (CALLBACKS, ANYTHING):
            self._wake.set()

    async def step(self) -> float | None:
        """
        Begin to send what is due; return in how many seconds to look again if nothing is heard before.

        Raises: StateError.
        """
        n_free = CALLBACKS_AT_ONCE - len(self._sending)
        if n_free <= 0:
            return None
        callbacks, wait_s = await self._store.claim_callbacks(n_free, CALLBACK_TIMEOUT_S * 2)
        for callback in callbacks:
            task = asyncio.create_task(self._tell(callback))
            self._sending.add(task)
            task.add_done_callback(self._sent)
        return wait_s

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._wake.set()

    async def _tell(self, callback: Callback) -> None:
        job = callback.job
        reason, delay_s = "", None
        try:
            reason = await self._send(callback)
            if reason:
                pause_s = back_off_s(job.policy, callback.n_tries, self._jitter())
                if callback.n_tries < MAX_CALLBACK_TRIES and self._now() + pause_s < callback.expires_at:
                    delay_s = pause_s
            event(
                _logger,
                "job.told" if not reason else "job.not_told",
                job=job.id,
                function=job.function,
                tries=callback.n_tries,
                reason=reason,
                again=delay_s is not None,
            )
            await self._store.settle_callback(callback, reason, delay_s)
        except StateError as exc:  # its lease runs out, and it is sent again
            event(_logger, "callbacks.stuck", level=logging.ERROR, reason=exc)
        except Exception as exc:
            exception(_logger, "callback.failed", exc, job=job.id)

    async def _send(self, callback: Callback) -> str:
        """Send one; return why it failed, '' if it did not."""
        job = callback.job
        try:
            manifest = (await self._functions.active(job.function)).manifest
        except FunctionNotFoundError as exc:
            return exc.message
        secret = self._secret(job.function, job.policy.callback_secret)
        if secret is None:
            return (
                f"the secret {job.policy.callback_secret!r} is not set; say `faas secrets set {job.function} "
                f"{job.policy.callback_secret}`"
            )
        body = msgspec.json.encode(await self._desk.view(job.id))
        request = _request_to(callback.url)
        request.headers = [
            ("content-type", b"application/json"),
            ("content-length", str(len(body)).encode()),
            ("user-agent", f"faas/{__version__}".encode()),
        ]
        # Nobody else can send headers of these names: they are added where a function's credentials are.
        ours = [
            Added("x-faas-job", job.id),
            Added("x-faas-signature", signature(secret, body, int(self._now()))),
        ]
        request.body = _Whole(body)
        caller = self._client.caller(
            job.function,
            manifest.capabilities.outbound,
            deadline=asyncio.get_running_loop().time() + CALLBACK_TIMEOUT_S,
            log=lambda line: self._log(job.function, line),
            credentials=_Ours(job.function, ours),
        )
        try:
            async with asyncio.timeout(CALLBACK_TIMEOUT_S):
                response = await caller.send(request)
            status = response.status
            response.close()
        except OutboundError as exc:
            return f"{exc.failure.value}: {exc.reason}"
        except TimeoutError:
            return f"no answer within {CALLBACK_TIMEOUT_S:g} s"
        finally:
            caller.close()
        return "" if 200 <= status < 300 else f"it answered {status}"


def signature(secret: str, body: bytes, at: int) -> str:
    """Return the value of ``X-Faas-Signature`` of *body*, sent at the Unix time *at*."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


class _Ours(Credentials):
    """Headers of the host's own, wherever the request goes."""

    __slots__ = ("_headers",)

    def __init__(self, function: str, headers: Sequence[Added]) -> None:
        super().__init__(function, (), lambda _function, _name: None)
        self._headers = headers

    def added(self, scheme: str, host: str, port: int) -> Sequence[Added]:
        """Return all of them."""
        return self._headers


class _Whole:
    """A body that is all there; as ``faas.outbound.exchange.Body``."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def next_chunk(self) -> bytes:
        body, self._body = self._body, b""
        return body

    def close(self) -> None:
        self._body = b""
