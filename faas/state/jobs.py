"""Jobs, the durable queue of asynchronous invocations; their results, keys and callbacks; deliveries of webhooks."""

from __future__ import annotations

import hashlib
import heapq
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import msgspec

from faas.errors import (
    ConcurrencyLimitError,
    IdempotencyConflictError,
    JobFinishedError,
    JobNotFoundError,
    JobUnfinishedError,
)
from faas.manifest import Async
from faas.state.database import Database, Row, Session

QUEUED: Final = "jobs"
"""The topic of jobs that somebody may claim."""
CALLBACKS: Final = "job-callbacks"
"""The topic of callbacks that somebody may claim."""
ENDED: Final = "jobs-ended"
"""The topic of jobs that were ended from outside: whoever runs one looks whether it still should."""
ID_BYTES: Final = 16
"""Of randomness: who knows an id may see the job's result, and cancel it."""
MAX_LOST: Final = 5
"""Runs of a job that may end with their process; one more and it is taken for the reason."""
DEAD_KEEP_S: Final = 14 * 86400.0
"""How long a dead letter is kept, where ``keep_s`` is no longer."""
SHARE: Final = 3
"""A function begins another job while it runs fewer than so many times the slots that are left: some always are."""
CONTENDED_S: Final = 0.05
"""What another host is claiming just now is looked at again after this."""
KEY_GRACE_S: Final = 60.0
"""A key that is of no use any more is swept so much later, when nobody can be using it anew."""
MAX_SWEPT: Final = 500
"""Jobs that one transaction forgets, cancels or queues again: others wait for it."""
MAX_LISTED: Final = 1000
MAX_WAITING: Final = 100_000
"""Jobs of one function that may wait at once, or a little more: they are not counted each time."""
COUNT_AGAIN: Final = 8
"""They are counted again when a part (1/N) of the room that there was is taken, or ``MAX_UNCOUNTED`` came."""
MAX_UNCOUNTED: Final = 1000
FULL_RETRY_S: Final = 10.0

_COLUMNS = (
    "id, function, qualifier, source, state, created_at, due_at, expires_at, finished_at, keep_until, n_attempts,"
    " n_counted, n_lost, n_postponed, status, reason, policy, callback, method, target, schedule"
)


class JobState(str, Enum):
    """Where a job is; the last four are for good, but for what is redriven."""

    QUEUED = "queued"
    RETRYING = "retrying"  # queued again; kept as queued
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # answered, below 500 and not with 429
    DEAD = "dead"  # tried in vain
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # too old before it ever ran; a dead letter too

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self not in (JobState.QUEUED, JobState.RETRYING, JobState.RUNNING)


FINISHED: Final = tuple(state.value for state in JobState if state.finished)
DEAD_LETTERS: Final = (JobState.DEAD.value, JobState.EXPIRED.value)


class JobRequest(msgspec.Struct, frozen=True):
    """What the function is sent; ``target`` is path and query, header values are bytes."""

    method: str
    target: str
    headers: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b""
    remote: str = ""


class NewJob(msgspec.Struct, frozen=True):
    """
    A job about to be queued.

    ``key`` tells it from repetitions among the function's jobs, with its kind before a colon, and counts for
    ``key_keep_s`` or as long as the job is kept, whatever is longer. ``source`` says where it came from.
    """

    function: str
    qualifier: str
    source: str
    request: JobRequest
    policy: Async
    delay_s: float = 0.0
    key: str = ""
    key_keep_s: float = 0.0
    callback: str = ""
    schedule: str = ""


class Queued(msgspec.Struct, frozen=True):
    """What became of a ``NewJob``; ``duplicate`` True: nothing, the job was there already."""

    id: str
    duplicate: bool = False


class Attempt(msgspec.Struct, frozen=True):
    """One run of a job; ``ended_at`` 0: it goes on. ``version`` 0: not known."""

    number: int
    began_at: float
    ended_at: float = 0.0
    version: int = 0
    outcome: str = ""
    status: int = 0
    reason: str = ""


class Job(msgspec.Struct, frozen=True):
    """A job as it is kept, without request and result; times are seconds since the epoch, 0 where there is none."""

    id: str
    function: str
    qualifier: str
    source: str
    state: JobState
    created_at: float
    due_at: float
    expires_at: float
    finished_at: float
    keep_until: float
    n_attempts: int
    n_counted: int
    """Of these, those that count against ``max_attempts``: not those whose process went away."""
    n_lost: int
    n_postponed: int
    """How often in a row it found no room, or no function."""
    status: int
    reason: str
    policy: Async
    callback: str
    method: str
    target: str
    schedule: str


class JobResult(msgspec.Struct, frozen=True):
    """What the function answered; ``kept`` False: the body was over ``max_result_bytes``, and is not here."""

    status: int
    headers: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b""
    n_bytes: int = 0
    kept: bool = True


Run = tuple[str, int]
"""A job's id and the number of its run."""


class Claimed(msgspec.Struct, frozen=True):
    """A job that is to be run now; ``job.n_attempts`` is the number of this run."""

    job: Job
    request: JobRequest


class Claims(msgspec.Struct, frozen=True):
    """Jobs to run, and in how many seconds to look again if nothing is heard before (None: not at all)."""

    jobs: tuple[Claimed, ...]
    wait_s: float | None


class Callback(msgspec.Struct, frozen=True):
    """Word of a finished job that is to be sent; ``n_tries`` counts this one."""

    job: Job
    url: str
    n_tries: int
    expires_at: float


class CallbackView(msgspec.Struct, frozen=True):
    """What became of a job's callback: ``waiting``, ``delivered`` or ``failed``; '' before the job is finished."""

    url: str
    state: str
    n_tries: int
    reason: str


class Shown(msgspec.Struct, frozen=True):
    """A job and what is known of it; ``result`` has no body here."""

    job: Job
    attempts: tuple[Attempt, ...]
    result: JobResult | None
    callback: CallbackView | None


class Delivery(str, Enum):
    """What is known of a webhook's delivery that is about to be served."""

    NEW = "new"
    DONE = "done"
    UNDER_WAY = "under-way"


class JobStore:
    """
    The queue. A job that was claimed is its holder's until its lease runs out; what a holder says of a run that is not
    the job's last one any more has no effect.

    Raises: StateError from every operation when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._n_uncounted: dict[str, int] = {}
        """How many more jobs a function may queue before its queue is counted again."""

    async def add(self, new: NewJob) -> Queued:
        """
        Queue a job; it is durable when this returns. The same key with the same request is the same job.

        Raises: IdempotencyConflictError for a key that another request had; ConcurrencyLimitError if too many of the
        function's wait.
        """
        n_uncounted = self._n_uncounted.get(new.function, 0) or await self._count_room(new.function)
        self._n_uncounted[new.function] = n_uncounted - 1
        return await self._database.run(lambda session: add_job(session, new))

    async def _count_room(self, function: str) -> int:
        """Return how many more jobs *function* may queue before this is asked again; raises ConcurrencyLimitError."""
        # A flood must not fill the disk, and counting it takes milliseconds.
        ((n_waiting,),) = await self._database.run(
            lambda session: session.execute(
                "SELECT COUNT(*) FROM (SELECT 1 FROM jobs WHERE state = 'queued' AND function = ? LIMIT ?) AS waiting",
                function,
                MAX_WAITING,
            )
        )
        room = MAX_WAITING - int(n_waiting)
        if room <= 0:
            self._n_uncounted.pop(function, None)
            raise ConcurrencyLimitError(
                f"{MAX_WAITING} jobs of {function!r} wait already; try again later", retry_after_s=FULL_RETRY_S
            )
        return max(1, min(room // COUNT_AGAIN, MAX_UNCOUNTED))

    async def get(self, id: str) -> tuple[Job, tuple[Attempt, ...]]:
        """
        Return a job and its runs, the first one first.

        Raises: JobNotFoundError.
        """

        return await self._database.run(lambda session: (_get(session, id), _attempts(session, id)))

    async def show(self, id: str) -> Shown:
        """
        Return everything about a job but its bodies.

        Raises: JobNotFoundError.
        """

        def show(session: Session) -> Shown:
            told = session.execute("SELECT url, state, n_tries, reason FROM job_callbacks WHERE job = ?", id)
            return Shown(
                _get(session, id),
                _attempts(session, id),
                _result(session, id, with_body=False),
                CallbackView(*told[0]) if told else None,
            )

        return await self._database.run(show)

    async def result(self, id: str) -> tuple[Job, JobResult | None]:
        """
        Return a job and what its last finished run answered; None if the function has not answered.

        Raises: JobNotFoundError.
        """
        return await self._database.run(lambda session: (_get(session, id), _result(session, id, with_body=True)))

    async def list(self, function: str = "", states: Iterable[JobState] = (), limit: int = 100) -> tuple[Job, ...]:
        """Return the newest jobs, of one function or all, in one of *states* or any."""
        wanted = frozenset(states)

        def listed(session: Session) -> tuple[Job, ...]:
            where, arguments = _matching(function, wanted)
            rows = session.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE {where} ORDER BY created_at DESC, id LIMIT ?",
                *arguments,
                min(limit, MAX_LISTED),
            )
            return tuple(map(_from_row, rows))

        return await self._database.run(listed)

    async def now(self) -> float:
        """Return the time by which all hosts go, in seconds since the epoch."""
        return await self._database.run(lambda session: session.now())

    async def counts(self) -> dict[tuple[str, str], int]:
        """Return how many jobs there are, by function and state as it is kept."""
        rows = await self._database.run(
            lambda session: session.execute("SELECT function, state, COUNT(*) FROM jobs GROUP BY function, state")
        )
        return {(function, state): int(n) for function, state, n in rows}

    # ---- running ----------------------------------------------------------------------------------------------------

    async def recover(self, holder: str, *, alone: bool) -> int:
        """
        Queue again what *holder* ran when it ended, and return how many; with *alone* whatever anybody ran.

        Call it before the first ``claim``.
        """

        def recover(session: Session) -> int:
            where, arguments = ("", ()) if alone else (" AND holder = ?", (holder,))
            rows = session.execute(f"SELECT id FROM jobs WHERE state = 'running'{where}", *arguments)
            for (id,) in rows:
                _lose(session, _get(session, id), "the host ended while it ran")
            if alone:
                session.execute(
                    "UPDATE job_callbacks SET due_at = ? WHERE state = 'waiting' AND due_at > ?",
                    session.now(),
                    session.now(),
                )
                session.execute("DELETE FROM deliveries WHERE done = 0")  # those that were served ended with the host
            return len(rows)

        return await self._database.run(recover)

    async def claim(self, holder: str, n_free: int, running: Mapping[Run, str], lease_s: float) -> Claims:
        """
        Give *holder* up to *n_free* jobs that are due, those of functions first that run fewest, then the oldest.

        Jobs whose lease ran out are queued again, but for what this holder still runs; those that are too old end.
        Args: *running* are the runs of this holder, with their functions.
        """
        return await self._database.run(lambda session: _claim(session, holder, n_free, running, lease_s))

    async def renew(self, holder: str, runs: Iterable[Run], lease_s: float) -> frozenset[Run]:
        """
        Keep the jobs of *runs* for *lease_s* more seconds.

        Returns: those that are still *holder*'s; the others were cancelled, or are run by somebody else.
        """
        wanted = sorted(runs)

        def renew(session: Session) -> frozenset[Run]:
            until = session.now() + lease_s
            return frozenset(
                (id, number)
                for id, number in wanted
                if session.changed(
                    "UPDATE jobs SET lease_until = ?"
                    " WHERE id = ? AND state = 'running' AND holder = ? AND n_attempts = ?",
                    until,
                    id,
                    holder,
                    number,
                )
            )

        return await self._database.run(renew)

    async def succeed(self, holder: str, run: Job, attempt: Attempt, result: JobResult) -> bool:
        """End *run* well; return whether it was still *holder*'s to end."""

        def succeed(session: Session) -> bool:
            if not _ended(session, holder, run, attempt):
                return False
            _keep_result(session, run.id, result)
            _finish(session, run, JobState.SUCCEEDED, result.status, "")
            return True

        return await self._database.run(succeed)

    async def retry(
        self,
        holder: str,
        run: Job,
        attempt: Attempt,
        *,
        delay_s: float,
        result: JobResult | None,
        final: bool = False,
    ) -> JobState | None:
        """
        End *run* badly: it is tried again after *delay_s*, unless it had its tries, is too old, or *final* says so.

        Returns: where the job is then; None if it was not *holder*'s any more.
        """

        def retry(session: Session) -> JobState | None:
            if not _ended(session, holder, run, attempt):
                return None
            if result is not None:
                _keep_result(session, run.id, result)
            now = session.now()
            if final or run.n_counted + 1 >= run.policy.max_attempts or now + delay_s >= run.expires_at:
                _finish(session, run, JobState.DEAD, attempt.status, attempt.reason)
                return JobState.DEAD
            _requeue(session, run.id, now + delay_s, attempt.status, attempt.reason)
            return JobState.RETRYING

        return await self._database.run(retry)

    async def postpone(self, holder: str, run: Job, reason: str, delay_s: float) -> bool:
        """Take *run* back, which never began: it is tried again after *delay_s*, and counts as nothing."""

        def postpone(session: Session) -> bool:
            if not session.changed(
                "UPDATE jobs SET state = 'queued', holder = '', lease_until = 0.0, due_at = ?, reason = ?,"
                " n_attempts = n_attempts - 1, n_postponed = n_postponed + 1"
                " WHERE id = ? AND state = 'running' AND holder = ? AND n_attempts = ?",
                session.now() + delay_s,
                reason,
                run.id,
                holder,
                run.n_attempts,
            ):
                return False
            session.execute("DELETE FROM job_attempts WHERE job = ? AND number = ?", run.id, run.n_attempts)
            session.notify(QUEUED)
            return True

        return await self._database.run(postpone)

    async def lose(self, holder: str, run: Job, reason: str) -> bool:
        """Queue *run* again, whose process went away; after ``MAX_LOST`` times it is a dead letter."""

        def lose(session: Session) -> bool:
            if not _is_held(session, holder, run):
                return False
            _lose(session, run, reason)
            return True

        return await self._database.run(lose)

    # ---- by hand ----------------------------------------------------------------------------------------------------

    async def cancel(self, id: str) -> Job:
        """
        End a job: it never runs any more, and if it does just now it is stopped soon.

        Raises: JobNotFoundError, JobFinishedError.
        """

        def cancel(session: Session) -> Job:
            job = _get(session, id, locked=True)
            if job.state.finished:
                raise JobFinishedError(f"the job is {job.state.value} already, so there is nothing to cancel", job=id)
            if job.state is JobState.RUNNING:
                session.execute(
                    "UPDATE job_attempts SET ended_at = ?, outcome = 'cancelled', reason = 'the job was cancelled'"
                    " WHERE job = ? AND ended_at = 0.0",
                    session.now(),
                    id,
                )
            _finish(session, job, JobState.CANCELLED, 0, "cancelled")
            session.notify(ENDED)
            return _get(session, id)

        return await self._database.run(cancel)

    async def cancel_all(self, function: str) -> int:
        """End every job of *function* that is not finished; return how many."""

        n = 0
        while some := await self._database.run(lambda session: _cancel_some(session, function)):
            n += some
        return n

    async def redrive(self, id: str) -> Job:
        """
        Queue a dead letter again, as if it were new.

        Raises: JobNotFoundError, JobFinishedError for one that succeeded, JobUnfinishedError.
        """

        def redrive(session: Session) -> Job:
            job = _get(session, id, locked=True)
            if not job.state.finished:
                raise JobUnfinishedError(f"the job is {job.state.value}: it will be tried by itself", job=id)
            if job.state is JobState.SUCCEEDED:
                raise JobFinishedError("the job has succeeded; submit a new one to do it again", job=id)
            _redrive(session, job)
            return _get(session, id)

        return await self._database.run(redrive)

    async def redrive_all(self, function: str) -> int:
        """Queue every dead letter of *function* again, once each; return how many."""
        began = await self.now()

        def redrive_some(session: Session) -> int:
            rows = session.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE state IN ('dead', 'expired') AND function = ? AND finished_at <= ?"
                f" LIMIT {MAX_SWEPT}{session.skip_locked}",
                function,
                began,
            )
            for row in rows:
                _redrive(session, _from_row(row))
            return len(rows)

        return await self._all_of(redrive_some)

    async def purge(self, function: str, states: Iterable[JobState]) -> int:
        """Forget the finished jobs of *function* ('' for all functions) in *states*; return how many."""
        wanted = frozenset(states)
        gone = frozenset(state for state in wanted or frozenset(JobState) if state.finished)

        def purge_some(session: Session) -> int:
            # Locked, or a job that somebody queues again just now would be forgotten.
            where, arguments = _matching(function, gone)
            ids = session.execute(
                f"SELECT id FROM jobs WHERE {where} LIMIT {MAX_SWEPT}{session.skip_locked}", *arguments
            )
            _forget(session, [id for (id,) in ids])
            return len(ids)

        return await self._all_of(purge_some) if gone else 0

    async def _all_of(self, some: Callable[[Session], int]) -> int:
        """Do *some*, which does ``MAX_SWEPT`` at most, until all is done; return how many there were."""
        n_all = 0
        while True:
            n = await self._database.run(some)
            n_all += n
            if n < MAX_SWEPT:
                return n_all

    async def sweep(self) -> int:
        """Forget what was kept long enough, ``MAX_SWEPT`` jobs at most; return how many."""

        def sweep(session: Session) -> int:
            now = session.now()
            rows = session.execute(
                f"SELECT id FROM jobs WHERE keep_until > 0.0 AND keep_until <= ? AND NOT EXISTS (SELECT 1 FROM"
                f" job_callbacks c WHERE c.job = jobs.id AND c.state = 'waiting') LIMIT {MAX_SWEPT}"
                f"{session.skip_locked}",  # a job that somebody queues again just now stays
                now,
            )
            _forget(session, [id for (id,) in rows])
            session.execute("DELETE FROM job_keys WHERE forgotten = 1 AND until <= ?", now - KEY_GRACE_S)
            session.execute("DELETE FROM deliveries WHERE until <= ?", now)
            return len(rows)

        return await self._database.run(sweep)

    # ---- callbacks --------------------------------------------------------------------------------------------------

    async def claim_callbacks(self, n_free: int, lease_s: float) -> tuple[tuple[Callback, ...], float | None]:
        """Return up to *n_free* callbacks that are due, ours for *lease_s*, and in how many seconds to look again."""

        def claim(session: Session) -> tuple[tuple[Callback, ...], float | None]:
            now = session.now()
            found = []
            for _ in range(n_free):
                rows = session.execute(
                    "UPDATE job_callbacks SET n_tries = n_tries + 1, due_at = ? WHERE job = (SELECT job FROM"
                    " job_callbacks WHERE state = 'waiting' AND due_at <= ? ORDER BY due_at"
                    f" LIMIT 1{session.skip_locked}) RETURNING job, url, n_tries, expires_at",
                    now + lease_s,
                    now,
                )
                if not rows:
                    break
                job, url, n_tries, expires_at = rows[0]
                found.append(Callback(_get(session, job), url, n_tries, expires_at))
            ((at,),) = session.execute("SELECT MIN(due_at) FROM job_callbacks WHERE state = 'waiting'")
            return tuple(found), None if at is None else max(CONTENDED_S, at - now)

        return await self._database.run(claim)

    async def settle_callback(self, callback: Callback, reason: str, delay_s: float | None) -> None:
        """Note how a try ended: '' is well; with a *delay_s* it is tried again, without one it has failed."""

        def settle(session: Session) -> None:
            state = "waiting" if delay_s is not None else "failed" if reason else "delivered"
            session.execute(
                "UPDATE job_callbacks SET state = ?, reason = ?, due_at = ?"
                " WHERE job = ? AND n_tries = ? AND state = 'waiting'",
                state,
                reason,
                session.now() + (delay_s or 0.0),
                callback.job.id,
                callback.n_tries,
            )
            if delay_s is not None:
                session.notify(CALLBACKS)

        await self._database.run(settle)

    # ---- deliveries -------------------------------------------------------------------------------------------------

    async def begin_delivery(self, function: str, key: str, lease_s: float) -> Delivery:
        """Note that a delivery is about to be served, unless it was, or is; after *lease_s* it may come again."""

        def begin(session: Session) -> Delivery:
            now = session.now()
            if session.changed(
                "INSERT INTO deliveries (function, delivery, done, until) VALUES (?, ?, 0, ?)"
                " ON CONFLICT (function, delivery) DO UPDATE SET done = 0, until = excluded.until"
                " WHERE deliveries.until <= ?",
                function,
                key,
                now + lease_s,
                now,
            ):
                return Delivery.NEW
            rows = session.execute("SELECT done FROM deliveries WHERE function = ? AND delivery = ?", function, key)
            return Delivery.DONE if rows and rows[0][0] else Delivery.UNDER_WAY

        return await self._database.run(begin)

    async def end_delivery(self, function: str, key: str, keep_s: float, *, served: bool) -> None:
        """Note that a delivery was served, for *keep_s*; or that it was not, and may come again."""

        def end(session: Session) -> None:
            if served:
                session.execute(
                    "UPDATE deliveries SET done = 1, until = ? WHERE function = ? AND delivery = ?",
                    session.now() + keep_s,
                    function,
                    key,
                )
            else:
                session.execute(
                    "DELETE FROM deliveries WHERE function = ? AND delivery = ? AND done = 0", function, key
                )

        await self._database.run(end)


def add_job(session: Session, new: NewJob) -> Queued:
    """
    Queue a job in a transaction of somebody else's, however many wait.

    Raises: IdempotencyConflictError.
    """
    now = session.now()
    id = secrets.token_hex(ID_BYTES)
    if new.key:
        fingerprint = _fingerprint(new)
        # What another transaction has just added would not be seen by the condition below, which began before.
        session.lock(f"job key {new.function} {new.key}")
        if not session.changed(
            "INSERT INTO job_keys (function, key, fingerprint, job, until, forgotten) VALUES (?, ?, ?, ?, ?, 0)"
            " ON CONFLICT (function, key) DO UPDATE SET fingerprint = excluded.fingerprint, job = excluded.job,"
            " until = excluded.until, forgotten = 0 WHERE job_keys.forgotten = 1 AND job_keys.until <= ?",
            new.function,
            new.key,
            fingerprint,
            id,
            now + new.key_keep_s,
            now,
        ):
            ((known, first),) = session.execute(
                "SELECT job, fingerprint FROM job_keys WHERE function = ? AND key = ?", new.function, new.key
            )
            if first != fingerprint:
                raise IdempotencyConflictError(
                    "another request had this idempotency key; repeat that very request, or use a new key"
                )
            return Queued(known, duplicate=True)
    due_at = now + new.delay_s
    request, policy = new.request, new.policy
    session.execute(
        f"INSERT INTO jobs ({_COLUMNS}, holder, lease_until)"
        " VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, 0.0, 0.0, 0, 0, 0, 0, 0, '', ?, ?, ?, ?, ?, '', 0.0)",
        id,
        new.function,
        new.qualifier,
        new.source,
        now,
        due_at,
        due_at + policy.max_age_s,
        msgspec.json.encode(policy).decode(),
        new.callback,
        request.method,
        request.target,
        new.schedule,
    )
    session.execute("INSERT INTO job_requests (job, request) VALUES (?, ?)", id, msgspec.msgpack.encode(request))
    session.notify(QUEUED)
    return Queued(id)


def _fingerprint(new: NewJob) -> str:
    """What makes two requests the same one: where it goes and what it brings, not the headers that proxies add."""
    request = new.request
    kinds = sorted(value for name, value in request.headers if name.lower() == "content-type")
    seen = (new.qualifier, request.method, request.target, kinds, request.body, new.callback)
    return hashlib.sha256(msgspec.msgpack.encode(seen)).hexdigest()


def _claim(session: Session, holder: str, n_free: int, running: Mapping[Run, str], lease_s: float) -> Claims:
    now = session.now()
    late = session.execute(
        "SELECT id, n_attempts, holder FROM jobs WHERE state = 'running' AND lease_until <= ?"
        f" ORDER BY id LIMIT {MAX_SWEPT + len(running)}{session.skip_locked}",
        now,
    )
    for id, number, whose in late:
        # One of ours that we know nothing of was claimed by a transaction whose end we did not hear.
        if whose != holder or (id, number) not in running:
            _lose(session, _get(session, id), "its host was not heard of any more")
    old = session.execute(
        f"SELECT {_COLUMNS} FROM jobs WHERE state = 'queued' AND expires_at <= ?"
        f" ORDER BY expires_at LIMIT {MAX_SWEPT}{session.skip_locked}",
        now,
    )
    for row in old:
        job = _from_row(row)
        state = JobState.DEAD if job.n_counted else JobState.EXPIRED
        _finish(session, job, state, job.status, f"older than max_age_s; last: {job.reason or 'it had no turn'}")

    # A loose scan of the index: one step a function, however many jobs it has.
    waiting = session.execute(
        "WITH RECURSIVE f(function) AS (SELECT MIN(function) FROM jobs WHERE state = 'queued' UNION ALL"
        " SELECT (SELECT MIN(j.function) FROM jobs j WHERE j.state = 'queued' AND j.function > f.function)"
        " FROM f WHERE f.function IS NOT NULL)"
        " SELECT f.function, (SELECT MIN(j.due_at) FROM jobs j WHERE j.state = 'queued' AND j.function = f.function)"
        " FROM f WHERE f.function IS NOT NULL"
    )
    again = [at for _, at in waiting if at > now]
    n_running = Counter(running.values())
    fewest = [(n_running[function], at, function) for function, at in waiting if at <= now]
    heapq.heapify(fewest)
    claimed: list[Claimed] = []
    while fewest and n_free > 0:
        n, at, function = heapq.heappop(fewest)
        if n >= SHARE * n_free:
            continue  # what is left is for others; a job that ends wakes us
        rows = session.execute(
            "UPDATE jobs SET state = 'running', holder = ?, lease_until = ?, n_attempts = n_attempts + 1 WHERE id ="
            " (SELECT id FROM jobs WHERE state = 'queued' AND function = ? AND due_at <= ? ORDER BY due_at, id LIMIT 1"
            f"{session.skip_locked}) RETURNING {_COLUMNS}",
            holder,
            now + lease_s,
            function,
            now,
        )
        if not rows:
            if n == n_running[function]:  # not even one: another host has them just now
                again.append(now + CONTENDED_S)
            continue
        job = _from_row(rows[0])
        session.execute(
            "INSERT INTO job_attempts (job, number, began_at, ended_at, version, outcome, status, reason)"
            " VALUES (?, ?, ?, 0.0, 0, '', 0, '')",
            job.id,
            job.n_attempts,
            now,
        )
        ((packed,),) = session.execute("SELECT request FROM job_requests WHERE job = ?", job.id)
        claimed.append(Claimed(job, msgspec.msgpack.decode(packed, type=JobRequest)))
        n_free -= 1
        heapq.heappush(fewest, (n + 1, at, function))
    known = {*running, *((one.job.id, one.job.n_attempts) for one in claimed)}
    again += [
        until
        for id, number, whose, until in session.execute(
            "SELECT id, n_attempts, holder, lease_until FROM jobs WHERE state = 'running'"
        )
        if whose != holder or (id, number) not in known
    ]
    ((expiring,),) = session.execute("SELECT MIN(expires_at) FROM jobs WHERE state = 'queued'")
    if claimed:  # others of these functions may be due later than what was their first
        again += [
            at
            for one in {one.job.function for one in claimed}
            for (at,) in session.execute(
                "SELECT MIN(due_at) FROM jobs WHERE state = 'queued' AND function = ? AND due_at > ?", one, now
            )
            if at is not None
        ]
    if expiring is not None:
        again.append(expiring)
    return Claims(tuple(claimed), max(CONTENDED_S, min(again) - now) if again else None)


def _get(session: Session, id: str, *, locked: bool = False) -> Job:
    # An update of nothing keeps others from it until we are done, in the words of both databases.
    if locked:
        session.execute("UPDATE jobs SET state = state WHERE id = ?", id)
    rows = session.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", id)
    if not rows:
        raise JobNotFoundError("there is no such job; it may have been kept long enough, or the id is wrong", job=id)
    return _from_row(rows[0])


def _attempts(session: Session, id: str) -> tuple[Attempt, ...]:
    rows = session.execute(
        "SELECT number, began_at, ended_at, version, outcome, status, reason FROM job_attempts WHERE job = ?"
        " ORDER BY number",
        id,
    )
    return tuple(Attempt(*row) for row in rows)


def _result(session: Session, id: str, *, with_body: bool) -> JobResult | None:
    rows = session.execute(f"SELECT head{', body' if with_body else ''} FROM job_results WHERE job = ?", id)
    if not rows:
        return None
    head = msgspec.msgpack.decode(rows[0][0], type=JobResult)
    return msgspec.structs.replace(head, body=rows[0][1]) if with_body else head


def _keep_result(session: Session, id: str, result: JobResult) -> None:
    session.execute(
        "INSERT INTO job_results (job, head, body) VALUES (?, ?, ?)"
        " ON CONFLICT (job) DO UPDATE SET head = excluded.head, body = excluded.body",
        id,
        msgspec.msgpack.encode(msgspec.structs.replace(result, body=b"")),
        result.body,
    )


def _is_held(session: Session, holder: str, run: Job) -> bool:
    """Whether *run* is still its job's last one; if so it stays that until the transaction ends."""
    return bool(
        session.changed(
            "UPDATE jobs SET holder = holder WHERE id = ? AND state = 'running' AND holder = ? AND n_attempts = ?",
            run.id,
            holder,
            run.n_attempts,
        )
    )


def _ended(session: Session, holder: str, run: Job, attempt: Attempt) -> bool:
    if not _is_held(session, holder, run):
        return False
    session.execute(
        "UPDATE job_attempts SET ended_at = ?, version = ?, outcome = ?, status = ?, reason = ?"
        " WHERE job = ? AND number = ?",
        session.now(),
        attempt.version,
        attempt.outcome,
        attempt.status,
        attempt.reason,
        run.id,
        run.n_attempts,
    )
    session.execute("UPDATE jobs SET n_counted = n_counted + 1, n_postponed = 0 WHERE id = ?", run.id)
    return True


def _lose(session: Session, run: Job, reason: str) -> None:
    session.execute(
        "UPDATE job_attempts SET ended_at = ?, outcome = 'lost', reason = ? WHERE job = ? AND ended_at = 0.0",
        session.now(),
        reason,
        run.id,
    )
    session.execute("UPDATE jobs SET n_lost = n_lost + 1 WHERE id = ?", run.id)
    if run.n_lost + 1 > MAX_LOST:
        _finish(session, run, JobState.DEAD, 0, f"{run.n_lost + 1} runs ended with their process; last: {reason}")
    else:
        _requeue(session, run.id, session.now(), run.status, reason)


def _requeue(session: Session, id: str, due_at: float, status: int, reason: str) -> None:
    session.execute(
        "UPDATE jobs SET state = 'queued', holder = '', lease_until = 0.0, due_at = ?, status = ?, reason = ?"
        " WHERE id = ?",
        due_at,
        status,
        reason,
        id,
    )
    session.notify(QUEUED)


def _finish(session: Session, job: Job, state: JobState, status: int, reason: str) -> None:
    now = session.now()
    keep_s = job.policy.keep_s
    if state.value in DEAD_LETTERS:
        keep_s = max(keep_s, DEAD_KEEP_S)
    session.execute(
        "UPDATE jobs SET state = ?, holder = '', lease_until = 0.0, finished_at = ?, keep_until = ?, status = ?,"
        " reason = ? WHERE id = ?",
        state.value,
        now,
        now + keep_s,
        status,
        reason,
        job.id,
    )
    if state is JobState.SUCCEEDED:
        session.execute("DELETE FROM job_requests WHERE job = ?", job.id)  # nothing will run it any more
    _call_back(session, job)


def _call_back(session: Session, job: Job) -> None:
    """Have word of a job that is finished be sent, if somebody wants it."""
    if not job.callback:
        return
    now = session.now()
    session.execute(
        "INSERT INTO job_callbacks (job, url, state, due_at, expires_at, n_tries, reason)"
        " VALUES (?, ?, 'waiting', ?, ?, 0, '') ON CONFLICT (job) DO UPDATE SET state = 'waiting',"
        " due_at = excluded.due_at, expires_at = excluded.expires_at, n_tries = 0, reason = ''",
        job.id,
        job.callback,
        now,
        now + job.policy.max_age_s,
    )
    session.notify(CALLBACKS)


def _cancel_some(session: Session, function: str) -> int:
    """End some jobs of *function* that are not finished; return how many, 0 if there are none."""
    now, reason = session.now(), "the function was removed"
    rows = session.execute(
        "UPDATE jobs SET state = 'cancelled', holder = '', lease_until = 0.0, finished_at = ?, status = 0, reason = ?"
        " WHERE id IN (SELECT id FROM jobs WHERE state IN ('queued', 'running') AND function = ?"
        f" LIMIT {MAX_SWEPT}) AND state IN ('queued', 'running') RETURNING {_COLUMNS}",
        now,
        reason,
        function,
    )
    kept: dict[float, list[str]] = {}
    for job in map(_from_row, rows):
        kept.setdefault(job.policy.keep_s, []).append(job.id)
        _call_back(session, job)
    for keep_s, ids in kept.items():
        these = _marks(ids)
        session.execute(f"UPDATE jobs SET keep_until = ? WHERE id IN ({these})", now + keep_s, *ids)
        session.execute(
            f"UPDATE job_attempts SET ended_at = ?, outcome = 'cancelled', reason = ? WHERE job IN ({these})"
            " AND ended_at = 0.0",
            now,
            reason,
            *ids,
        )
    if rows:
        session.notify(ENDED)
    return len(rows)


def _redrive(session: Session, job: Job) -> None:
    now = session.now()
    session.execute(
        "UPDATE jobs SET state = 'queued', due_at = ?, expires_at = ?, finished_at = 0.0, keep_until = 0.0,"
        " n_counted = 0, n_lost = 0, n_postponed = 0, status = 0, reason = '' WHERE id = ?",
        now,
        now + job.policy.max_age_s,
        job.id,
    )
    session.execute("DELETE FROM job_results WHERE job = ?", job.id)
    session.execute("DELETE FROM job_callbacks WHERE job = ?", job.id)
    session.notify(QUEUED)


def _forget(session: Session, ids: Sequence[str]) -> None:
    """Forget jobs, ``MAX_SWEPT`` at most; their keys are left to ``sweep``."""
    if not ids:
        return
    these = _marks(ids)
    for table in ("job_requests", "job_results", "job_attempts", "job_callbacks"):
        session.execute(f"DELETE FROM {table} WHERE job IN ({these})", *ids)
    session.execute(f"UPDATE job_keys SET forgotten = 1 WHERE job IN ({these})", *ids)
    session.execute(f"DELETE FROM jobs WHERE id IN ({these})", *ids)


def _marks(values: Sequence[str]) -> str:
    """Return a place in a statement for each of *values*."""
    return ", ".join("?" * len(values))


def _matching(function: str, states: frozenset[JobState]) -> tuple[str, list[Any]]:
    """Return a condition on jobs and its arguments."""
    conditions, arguments = ["1 = 1"], []
    if function:
        conditions.append("function = ?")
        arguments.append(function)
    if states:
        either = []
        for state in sorted(states):
            if state is JobState.RETRYING:
                either.append("(state = 'queued' AND n_attempts > 0)")
            elif state is JobState.QUEUED:
                either.append("(state = 'queued' AND n_attempts = 0)")
            else:
                either.append(f"state = '{state.value}'")
        conditions.append(f"({' OR '.join(either)})")
    return " AND ".join(conditions), arguments


def _from_row(row: Row) -> Job:
    fields = list(row)
    fields[4], fields[16] = JobState(row[4]), msgspec.json.decode(row[16], type=Async)
    job = Job(*fields)
    if job.state is JobState.QUEUED and job.n_attempts:
        return msgspec.structs.replace(job, state=JobState.RETRYING)
    return job
