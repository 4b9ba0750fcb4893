"""Schedules fire when they are due, once, by the clock that the test owns."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest

from faas.control.schedules import GRACE_S, MAX_MISSED, Scheduler, due_after, next_due, times
from faas.errors import ScheduleNotFoundError
from faas.invocation import Kind
from faas.manifest import Missed, Schedule, manifest_from_builtins
from faas.state.base import NewVersion
from faas.state.jobs import Attempt, JobResult
from faas.state.sqlite import SqliteDatabase
from faas.state.state import State

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp()


class OwnedClock:
    """Time that stands still until a test moves it."""

    def __init__(self, now_s):
        self.now_s = now_s

    def monotonic(self):
        return self.now_s

    def time_ns(self):
        return round(self.now_s * 1e9)


@pytest.fixture
def clock():
    return OwnedClock(NOON + 0.5)


@pytest.fixture
async def state(tmp_path, clock):
    database = await SqliteDatabase.open(tmp_path / "state.db", clock)
    yield State(database, database)
    await database.aclose()


@pytest.fixture
def scheduler(state):
    return Scheduler(state.schedules, state.database)


async def deploy(state, *schedules, name="f"):
    manifest = manifest_from_builtins({"name": name, "schedules": list(schedules)})
    await state.functions.add_version_and_activate(NewVersion(manifest, Kind.COMMAND, "d", "k"))


async def run_all(state):
    """Run every job that waits, and return when each was due."""
    claims = await state.jobs.claim("me", 100, {}, 60.0)
    for run in claims.jobs:
        await state.jobs.succeed("me", run.job, Attempt(1, 0.0, outcome="ok"), JobResult(200))
    return sorted(dict(run.request.headers)["X-Faas-Scheduled-For"].decode() for run in claims.jobs)


EVERY_MINUTE = {"name": "tick", "cron": "* * * * *", "path": "/f/tick", "body": "go", "headers": {"X-Own": "1"}}


async def test_schedule_fires_when_it_is_due_and_not_before(state, scheduler, clock):
    await deploy(state, EVERY_MINUTE)
    assert await scheduler.step() == pytest.approx(59.5)
    assert await run_all(state) == []
    clock.now_s = NOON + 60
    assert await scheduler.step() == pytest.approx(60)
    (job,) = await state.jobs.list()
    assert (job.source, job.method, job.target) == ("schedule:tick", "POST", "/f/tick")
    ((run,), _) = msgspec.structs.astuple(await state.jobs.claim("me", 1, {}, 60.0))
    assert run.request.body == b"go"
    assert dict(run.request.headers)["X-Own"] == b"1"


async def test_two_hosts_fire_each_time_once(state, clock):
    await deploy(state, {**EVERY_MINUTE, "overlap": True})
    hosts = [Scheduler(state.schedules, state.database) for _ in range(2)]
    for host in hosts:
        await host.step()
    for _ in range(5):
        clock.now_s += 60
        for host in hosts:
            await host.step()
    assert len(await state.jobs.list()) == 5


async def test_run_that_goes_on_skips_the_next_which_is_counted(state, scheduler, clock):
    await deploy(state, EVERY_MINUTE)
    await scheduler.step()
    for _ in range(3):
        clock.now_s += 60
        await scheduler.step()
    (view,) = await scheduler.views()
    assert (view.n_fired, view.n_skipped, view.last_state) == (1, 2, "queued")
    await run_all(state)
    clock.now_s += 60
    await scheduler.step()
    assert (await scheduler.views())[0].n_fired == 2


@pytest.mark.parametrize(("missed", "counts"), [("skip", (0, 3)), ("last", (1, 2)), ("all", (3, 0))])
async def test_times_while_no_host_ran_go_by_the_manifest(state, scheduler, clock, missed, counts):
    await deploy(state, {**EVERY_MINUTE, "missed": missed, "overlap": True})
    await scheduler.step()
    clock.now_s = NOON + 3 * 60 + GRACE_S + 5
    await Scheduler(state.schedules, state.database).step()
    (view,) = await scheduler.views()
    assert (view.n_fired, view.n_missed) == counts
    due = await run_all(state)
    assert due == {"skip": [], "last": ["2026-03-01T12:03:00Z"]}.get(
        missed, [f"2026-03-01T12:0{n}:00Z" for n in (1, 2, 3)]
    )


async def test_time_that_is_only_a_little_ago_is_late_and_not_missed(state, scheduler, clock):
    await deploy(state, EVERY_MINUTE)
    await scheduler.step()
    clock.now_s = NOON + 60 + GRACE_S / 2
    await Scheduler(state.schedules, state.database).step()
    assert await run_all(state) == ["2026-03-01T12:01:00Z"]


async def test_new_version_says_a_new_time_and_a_removed_function_none(state, scheduler, clock):
    await deploy(state, EVERY_MINUTE)
    await scheduler.step()
    await deploy(state, {**EVERY_MINUTE, "cron": "0 * * * *"})
    scheduler._heard("functions")
    assert await scheduler.step() == pytest.approx(3599.5)
    await state.functions.remove_function("f")
    scheduler._heard("functions")
    assert await scheduler.step() is None


async def test_started_scheduler_hears_of_a_deploy(state, scheduler, clock):
    scheduler.start()
    await deploy(state, EVERY_MINUTE)
    while not await state.database.run(lambda session: session.execute("SELECT 1 FROM schedules")):
        pass
    await scheduler.aclose()


async def test_paused_schedule_waits_for_resume_and_can_be_run_by_hand(state, scheduler, clock):
    await deploy(state, EVERY_MINUTE)
    await scheduler.step()
    await scheduler.pause("f", "tick", paused=True)
    clock.now_s += 600
    scheduler._heard("schedules")
    assert await scheduler.step() is None
    (view,) = await scheduler.views("f")
    assert (view.paused, view.next) == (True, [])
    await scheduler.run_now("f", "tick")
    assert len(await state.jobs.list()) == 1
    await scheduler.pause("f", "tick", paused=False)
    scheduler._heard("schedules")
    assert await scheduler.step() == pytest.approx(59.5)
    assert len(await state.jobs.list()) == 1


async def test_schedule_that_is_not_there_or_off_is_refused(state, scheduler):
    await deploy(state, {**EVERY_MINUTE, "enabled": False})
    for name in ("tick", "tock"):
        with pytest.raises(ScheduleNotFoundError):
            await scheduler.run_now("f", name)
        with pytest.raises(ScheduleNotFoundError):
            await scheduler.pause("f", name, paused=True)
    (view,) = await scheduler.views()
    assert (view.enabled, view.next) == (False, [])


async def test_views_show_five_next_runs_in_the_schedules_own_zone(state, scheduler):
    await deploy(state, {"name": "tick", "cron": "0 9 * * *", "timezone": "America/New_York"})
    (view,) = await scheduler.views()
    assert view.next[0] == "2026-03-01T09:00:00-05:00"
    assert view.next[-1] == "2026-03-05T09:00:00-05:00"
    assert await scheduler.views("other") == []


def schedule(cron, timezone="UTC", missed=Missed.SKIP):
    return Schedule("s", cron, timezone, missed=missed)


def at(text, timezone):
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(timezone)).timestamp()


@pytest.mark.parametrize(
    ("cron", "second"), [("30 2 * * *", "00"), ("0 30 2 * * *", "00"), ("7 30 2 * * *", "07"), ("5-5 30 2 * * *", "05")]
)
def test_time_that_the_clock_shows_twice_fires_once(cron, second):
    """The clocks go back at 3:00 on 2026-10-25 in Berlin."""
    days = itertools.islice(due_after(schedule(cron, "Europe/Berlin"), at("2026-10-24T12:00", "Europe/Berlin")), 3)
    assert [day.isoformat()[:19] for day in days] == [
        f"2026-10-25T02:30:{second}",
        f"2026-10-26T02:30:{second}",
        f"2026-10-27T02:30:{second}",
    ]


@pytest.mark.parametrize("cron", ["*/30 * * * *", "0 */30 * * * *"])
def test_what_runs_all_day_runs_in_both_hours_that_the_clock_shows_twice(cron):
    after = at("2026-10-25T01:45", "Europe/Berlin")
    times = [day.timestamp() for day in itertools.islice(due_after(schedule(cron, "Europe/Berlin"), after), 6)]
    assert times == [after + 900 + 1800 * n for n in range(6)]


@pytest.mark.parametrize("cron", ["30 2 * * *", "0 30 2 * * *"])
def test_time_that_the_clock_leaves_out_fires_late_that_day(cron):
    """The clocks go forward at 2:00 on 2026-03-29 in Berlin."""
    days = due_after(schedule(cron, "Europe/Berlin"), at("2026-03-28T12:00", "Europe/Berlin"))
    assert next(days).isoformat() == "2026-03-29T03:00:00+02:00"


def test_six_fields_begin_with_seconds():
    assert next_due(schedule("*/15 * * * * *"), NOON + 1) == NOON + 15


def test_missed_times_are_looked_at_no_further_than_the_last_ones():
    due, n_missed = times(schedule("* * * * * *", missed=Missed.ALL), NOON, NOON + 100_000)
    assert len(due) <= MAX_MISSED + GRACE_S + 1
    assert due[-1] == NOON + 100_000
    assert due == sorted(set(due))
    assert n_missed == 0


def test_every_time_between_is_either_fired_or_missed_and_never_both():
    every = schedule("*/7 * * * * *", missed=Missed.ALL)
    whole = [
        due.timestamp() for due in itertools.takewhile(lambda t: t.timestamp() <= NOON + 300, due_after(every, NOON))
    ]
    assert times(every, NOON, NOON + 300)[0] == whole
