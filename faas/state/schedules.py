"""What is kept of schedules: up to when each was handled, its last run, and whether it is paused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from faas.errors import IdempotencyConflictError, ScheduleNotFoundError
from faas.invocation import LIVE
from faas.manifest import Manifest, Schedule
from faas.state.database import Database, Row, Session
from faas.state.jobs import JobState, NewJob, Queued, add_job

CHANGED: Final = "schedules"
"""The topic of schedules that were paused, resumed or run by hand."""
_LOCK: Final = "faas schedules"
_COLUMNS = "function, schedule, spec, handled, paused, last_due, last_job, n_fired, n_skipped, n_missed"
Key = tuple[str, str]
"""Function and schedule."""


class Mark(msgspec.Struct, frozen=True):
    """What is kept of one schedule; ``handled`` is the time up to which it was, in seconds since the epoch."""

    function: str
    schedule: str
    spec: str
    handled: float
    paused: bool
    last_due: float
    last_job: str
    n_fired: int
    n_skipped: int
    n_missed: int


class Plan(msgspec.Struct, frozen=True):
    """A schedule of a version that serves, and that version's manifest."""

    manifest: Manifest
    schedule: Schedule
    mark: Mark | None
    """None: it is not enabled."""

    @property
    def key(self) -> Key:
        """Function and schedule."""
        return self.manifest.name, self.schedule.name


class Fired(msgspec.Struct, frozen=True):
    """What became of due times: jobs that were queued, and how many were left out because the one before goes on."""

    jobs: tuple[Queued, ...]
    n_skipped: int


class ScheduleStore:
    """
    The marks of all schedules.

    Raises: StateError from every operation when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def plans(self) -> tuple[tuple[Plan, ...], float]:
        """
        Return every schedule of the versions that serve, and the time.

        A schedule that is new, or says another time than before, has been handled up to now.
        """
        return await self._database.run(_plans)

    async def now(self) -> float:
        """Return the time by which all hosts go."""
        return await self._database.run(lambda session: session.now())

    async def fire(
        self, mark: Mark, jobs: Sequence[tuple[float, NewJob]], *, handled: float, n_missed: int, overlap: bool
    ) -> Fired | None:
        """
        Queue *jobs*, by the times they were due, and have the schedule handled up to *handled*.

        Without *overlap* a run that is not over keeps the next from being queued.
        Returns: None if somebody else was faster, or changed the schedule: nothing was done then.
        """

        def fire(session: Session) -> Fired | None:
            if not session.changed(
                "UPDATE schedules SET handled = ? WHERE function = ? AND schedule = ? AND spec = ? AND handled = ?"
                " AND paused = 0",
                handled,
                mark.function,
                mark.schedule,
                mark.spec,
                mark.handled,
            ):
                return None
            return _enqueue(session, mark.function, mark.schedule, jobs, n_missed=n_missed, overlap=overlap)

        return await self._database.run(fire)

    async def run_now(self, function: str, schedule: str, job: NewJob) -> Queued:
        """
        Queue *job* as a run of the schedule, whatever else it does.

        Raises: ScheduleNotFoundError if it is not one of an enabled schedule.
        """

        def run_now(session: Session) -> Queued:
            _mark(session, function, schedule)
            now = session.now()
            fired = _enqueue(session, function, schedule, [(now, job)], n_missed=0, overlap=True)
            session.notify(CHANGED)
            return fired.jobs[0]

        return await self._database.run(run_now)

    async def pause(self, function: str, schedule: str, *, paused: bool) -> Mark:
        """
        Keep a schedule from running, or have it run again: not for the times meanwhile.

        Raises: ScheduleNotFoundError.
        """

        def pause(session: Session) -> Mark:
            before = _mark(session, function, schedule)
            if before.paused != paused:
                session.execute(
                    "UPDATE schedules SET paused = ?, handled = ? WHERE function = ? AND schedule = ?",
                    int(paused),
                    session.now(),
                    function,
                    schedule,
                )
                session.notify(CHANGED)
            return _mark(session, function, schedule)

        return await self._database.run(pause)

    async def job_states(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the state of each job that is still kept."""
        wanted = list(ids)

        def states(session: Session) -> dict[str, str]:
            found: dict[str, str] = {}
            for id in wanted:
                found.update(dict(session.execute("SELECT id, state FROM jobs WHERE id = ?", id)))
            return found

        return await self._database.run(states)


def _plans(session: Session) -> tuple[tuple[Plan, ...], float]:
    session.lock(_LOCK)
    now = session.now()
    rows = session.execute(
        "SELECT v.manifest FROM versions v JOIN aliases a ON a.function = v.function AND a.version = v.version"
        " WHERE a.alias = ? ORDER BY v.function",
        LIVE,
    )
    manifests = [msgspec.json.decode(text, type=Manifest) for (text,) in rows]
    wanted = {
        (manifest.name, schedule.name): (manifest, schedule)
        for manifest in manifests
        for schedule in manifest.schedules
    }
    marks = {
        mark.function + "\0" + mark.schedule: mark
        for mark in (_mark_of(row) for row in session.execute(f"SELECT {_COLUMNS} FROM schedules"))
    }
    plans = []
    for (function, name), (manifest, schedule) in wanted.items():
        mark = marks.pop(f"{function}\0{name}", None)
        if not schedule.enabled:
            if mark is not None:
                _forget(session, mark)
            plans.append(Plan(manifest, schedule, None))
            continue
        spec = spec_of(schedule)
        if mark is None:
            mark = Mark(function, name, spec, now, False, 0.0, "", 0, 0, 0)
            session.execute(
                f"INSERT INTO schedules ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *(int(value) if isinstance(value, bool) else value for value in msgspec.structs.astuple(mark)),
            )
        elif mark.spec != spec:
            mark = msgspec.structs.replace(mark, spec=spec, handled=now)
            session.execute(
                "UPDATE schedules SET spec = ?, handled = ? WHERE function = ? AND schedule = ?",
                spec,
                now,
                function,
                name,
            )
        plans.append(Plan(manifest, schedule, mark))
    for mark in marks.values():
        _forget(session, mark)
    return tuple(plans), now


def spec_of(schedule: Schedule) -> str:
    """Return what says when a schedule runs."""
    return f"{schedule.cron} {schedule.timezone}"


def _enqueue(
    session: Session,
    function: str,
    schedule: str,
    jobs: Sequence[tuple[float, NewJob]],
    *,
    n_missed: int,
    overlap: bool,
) -> Fired:
    queued: list[Queued] = []
    n_skipped = 0
    ((last_due, last_job),) = session.execute(
        "SELECT last_due, last_job FROM schedules WHERE function = ? AND schedule = ?", function, schedule
    )
    for due, job in jobs:
        if not overlap and last_job and _goes_on(session, last_job):
            n_skipped += 1
            continue
        try:
            one = add_job(session, job)
        except IdempotencyConflictError:  # the clock was set back, and another version had this time before
            n_skipped += 1
            continue
        queued.append(one)
        last_due, last_job = due, one.id
    session.execute(
        "UPDATE schedules SET last_due = ?, last_job = ?, n_fired = n_fired + ?, n_skipped = n_skipped + ?,"
        " n_missed = n_missed + ? WHERE function = ? AND schedule = ?",
        last_due,
        last_job,
        len(queued),
        n_skipped,
        n_missed,
        function,
        schedule,
    )
    return Fired(tuple(queued), n_skipped)


def _goes_on(session: Session, job: str) -> bool:
    rows = session.execute("SELECT state FROM jobs WHERE id = ?", job)
    return bool(rows) and not JobState(rows[0][0]).finished


def _mark(session: Session, function: str, schedule: str) -> Mark:
    rows = session.execute(f"SELECT {_COLUMNS} FROM schedules WHERE function = ? AND schedule = ?", function, schedule)
    if not rows:
        raise ScheduleNotFoundError(
            f"{function!r} has no schedule {schedule!r} that is enabled; 'faas schedules list {function}' shows them"
        )
    return _mark_of(rows[0])


def _mark_of(row: Row) -> Mark:
    fields = list(row)
    fields[4] = bool(row[4])
    return Mark(*fields)


def _forget(session: Session, mark: Mark) -> None:
    session.execute("DELETE FROM schedules WHERE function = ? AND schedule = ?", mark.function, mark.schedule)
