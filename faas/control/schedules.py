"""Schedules: when they are due, and jobs for them, once over all hosts."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim

from faas.control.jobs import ANYTHING, keep_looking
from faas.log import event
from faas.manifest import Manifest, Missed, Schedule
from faas.state.database import Database
from faas.state.functions import CHANGED as FUNCTIONS_CHANGED
from faas.state.jobs import JobRequest, NewJob, Queued
from faas.state.schedules import CHANGED, Plan, ScheduleStore

GRACE_S: Final = 30.0
"""A time that is no longer ago than this is not missed, only late."""
MAX_MISSED: Final = 100
"""Missed times of one schedule that are looked at after a pause of all hosts: the last ones."""
MAX_LATE: Final = 100
N_NEXT: Final = 5
"""Runs that listings look ahead."""
_WITH_SECONDS: Final = 6

_logger = logging.getLogger(__name__)


class ScheduleView(msgspec.Struct, frozen=True):
    """
    A schedule as it is shown; ``next`` are its next runs in its own time zone (ISO 8601).

    ``last_due`` is when the last run was due, in seconds since the epoch, ``last_state`` where its job is: '' if there
    was none, or it is not kept any more.
    """

    function: str
    schedule: str
    cron: str
    timezone: str
    enabled: bool
    paused: bool
    overlap: bool
    missed: str
    next: list[str]
    last_due: float
    last_job: str
    last_state: str
    n_fired: int
    n_skipped: int
    n_missed: int


def due_after(schedule: Schedule, after: float) -> Iterator[datetime]:
    """Yield the times of *schedule* later than *after*, in seconds since the epoch; they are in its own time zone."""
    return _due(schedule, after, reverse=False)


def due_before(schedule: Schedule, before: int) -> Iterator[datetime]:
    """Yield the times of *schedule* before *before*, the last one first."""
    return _due(schedule, before, reverse=True)


def _due(schedule: Schedule, start: float, *, reverse: bool) -> Iterator[datetime]:
    zone = ZoneInfo(schedule.timezone)
    fields = schedule.cron.split()
    if len(fields) == _WITH_SECONDS and fields[0].isdigit():
        # The library minds summer time as Debian's cron does, but only where it is given five fields.
        second = int(fields[0])
        five = CronSim(" ".join(fields[1:]), datetime.fromtimestamp(start - second, zone), reverse=reverse)
        return (at.replace(second=second) for at in five)  # unlike a sum, that keeps which of two hours it is
    times = iter(CronSim(schedule.cron, datetime.fromtimestamp(start, zone), reverse=reverse))
    if len(fields) == _WITH_SECONDS and not fields[1].startswith("*") and not fields[2].startswith("*"):
        return (at for at in times if not at.fold)  # a time of day comes once, also where the clock shows it twice
    return times


def next_due(schedule: Schedule, after: float) -> float | None:
    """Return the next time after *after*; None if there is none within decades."""
    found = next(due_after(schedule, after), None)
    return None if found is None else found.timestamp()


def times(schedule: Schedule, handled: float, now: float) -> tuple[list[float], int]:
    """
    Return the times for which jobs are to be queued, the first one first, and how many were missed for good.

    Args: everything up to *handled* was dealt with before.
    """
    late_from = max(handled, now - GRACE_S)
    fresh = [
        at.timestamp()
        for at in itertools.takewhile(
            lambda at: at.timestamp() <= now, itertools.islice(due_after(schedule, late_from), MAX_LATE)
        )
    ]
    missed: list[float] = []
    if handled < late_from:
        # Both ends as whole seconds, as the library takes them: its times before exclude where it begins.
        for at in itertools.islice(due_before(schedule, int(late_from) + 1), MAX_MISSED):
            if at.timestamp() <= int(handled):
                break
            missed.insert(0, at.timestamp())
    if schedule.missed is Missed.ALL:
        return missed + fresh, 0
    if schedule.missed is Missed.LAST and missed and not fresh:
        return missed[-1:], len(missed) - 1
    return fresh, len(missed)


class Scheduler:
    """
    Queues a job whenever a schedule is due; lives from ``start`` to ``aclose``.

    Every host does: whoever is first to say up to when a schedule was handled queues its job, in that transaction.
    Time is the database's. Thread: the control loop only.
    """

    def __init__(self, store: ScheduleStore, database: Database) -> None:
        self._store = store
        self._database = database
        self._plans: tuple[Plan, ...] = ()
        self._next: dict[tuple[str, str], float] = {}
        self._stale = True
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._database.listen(self._heard)
        self._task = asyncio.create_task(keep_looking(self.step, self._wake, "schedules"), name="schedules")

    async def aclose(self) -> None:
        """Stop. Safe to call more than once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _heard(self, topic: str) -> None:
        if topic in (FUNCTIONS_CHANGED, CHANGED, ANYTHING):
            self._stale = True
            self._wake.set()

    async def step(self) -> float | None:
        """
        Queue what is due; return in how many seconds the next one is, None if there is none.

        Raises: StateError.
        """
        if self._stale:
            self._stale = False
            try:
                self._plans, now = await self._store.plans()
            except BaseException:
                self._stale = True
                raise
            self._next = {}
            for plan in self._plans:
                self._plan_next(plan)
        else:
            now = await self._store.now()
        plans = []
        for plan in self._plans:
            due = self._next.get(plan.key)
            plans.append(plan if due is None or due > now else await self._fire(plan, now))
        self._plans = tuple(plans)
        if self._stale:
            return 0.0
        return max(0.0, min(self._next.values()) - now) if self._next else None

    def _plan_next(self, plan: Plan) -> None:
        self._next.pop(plan.key, None)
        if plan.mark is not None and not plan.mark.paused:
            due = next_due(plan.schedule, plan.mark.handled)
            if due is not None:
                self._next[plan.key] = due

    async def _fire(self, plan: Plan, now: float) -> Plan:
        mark, schedule = plan.mark, plan.schedule
        assert mark is not None
        due, n_missed = times(schedule, mark.handled, now)
        fired = await self._store.fire(
            mark,
            [(at, job_of(plan.manifest, schedule, at)) for at in due],
            handled=now,
            n_missed=n_missed,
            overlap=schedule.overlap,
        )
        if fired is None:  # another host was faster, or somebody changed it
            self._stale = True
            return plan
        level = logging.WARNING if fired.n_skipped or n_missed else logging.INFO
        event(
            _logger,
            "schedule.fired",
            level=level,
            function=mark.function,
            schedule=mark.schedule,
            jobs=len(fired.jobs),
            skipped=fired.n_skipped,
            missed=n_missed,
            late_s=round(now - due[-1], 3) if due else 0.0,
        )
        plan = msgspec.structs.replace(plan, mark=msgspec.structs.replace(mark, handled=now))
        self._plan_next(plan)
        return plan

    # ---- by hand ----------------------------------------------------------------------------------------------------

    async def views(self, function: str = "") -> list[ScheduleView]:
        """Return every schedule of the versions that serve, or of one function's, with what became of it."""
        plans, now = await self._store.plans()
        plans = tuple(plan for plan in plans if function in ("", plan.key[0]))
        states = await self._store.job_states(plan.mark.last_job for plan in plans if plan.mark and plan.mark.last_job)
        return [_view(plan, now, states) for plan in plans]

    async def pause(self, function: str, schedule: str, *, paused: bool) -> None:
        """
        Keep a schedule from running, or have it run again.

        Raises: ScheduleNotFoundError.
        """
        await self._store.plans()  # so that a schedule that was just deployed is there
        await self._store.pause(function, schedule, paused=paused)
        event(_logger, "schedule.paused" if paused else "schedule.resumed", function=function, schedule=schedule)

    async def run_now(self, function: str, schedule: str) -> Queued:
        """
        Queue a job for a schedule at once, whatever else it does.

        Raises: ScheduleNotFoundError.
        """
        plans, now = await self._store.plans()
        plan = next((plan for plan in plans if plan.key == (function, schedule)), None)
        # The store says what is wrong where there is none.
        manifest, wanted = (
            (plan.manifest, plan.schedule)
            if plan is not None
            else (Manifest(function), Schedule(schedule, "* * * * *"))
        )
        job = msgspec.structs.replace(job_of(manifest, wanted, now), key="")
        queued = await self._store.run_now(function, schedule, job)
        event(_logger, "schedule.run", function=function, schedule=schedule, job=queued.id)
        return queued


def job_of(manifest: Manifest, schedule: Schedule, due: float) -> NewJob:
    """Return the job of *schedule* for the time *due*."""
    at = datetime.fromtimestamp(due, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    headers = [(name, value.encode()) for name, value in schedule.headers.items()]
    headers += [("X-Faas-Schedule", schedule.name.encode()), ("X-Faas-Scheduled-For", at.encode())]
    return NewJob(
        function=manifest.name,
        qualifier="",
        source=f"schedule:{schedule.name}",
        request=JobRequest(schedule.method, schedule.path, tuple(headers), schedule.body.encode()),
        policy=manifest.jobs,
        key=f"schedule:{schedule.name}:{due:.0f}",
        schedule=schedule.name,
    )


def _view(plan: Plan, now: float, states: dict[str, str]) -> ScheduleView:
    schedule, mark = plan.schedule, plan.mark
    going = mark is not None and not mark.paused
    return ScheduleView(
        function=plan.key[0],
        schedule=schedule.name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        enabled=schedule.enabled,
        paused=mark is not None and mark.paused,
        overlap=schedule.overlap,
        missed=schedule.missed.value,
        next=[at.isoformat() for at in itertools.islice(due_after(schedule, now), N_NEXT)] if going else [],
        last_due=mark.last_due if mark is not None else 0.0,
        last_job=mark.last_job if mark is not None else "",
        last_state=states.get(mark.last_job, "") if mark is not None else "",
        n_fired=mark.n_fired if mark is not None else 0,
        n_skipped=mark.n_skipped if mark is not None else 0,
        n_missed=mark.n_missed if mark is not None else 0,
    )
