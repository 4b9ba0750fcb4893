"""What the job queue and the schedules promise, on either database."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest

from faas.errors import (
    ConcurrencyLimitError,
    IdempotencyConflictError,
    JobFinishedError,
    JobNotFoundError,
    JobUnfinishedError,
    ScheduleNotFoundError,
)
from faas.invocation import Kind
from faas.manifest import Async, manifest_from_builtins
from faas.state import jobs as queue
from faas.state.base import NewVersion
from faas.state.jobs import (
    MAX_LOST,
    SHARE,
    Attempt,
    Delivery,
    JobRequest,
    JobResult,
    JobState,
    NewJob,
)
from faas.state.state import State

HOST = "host-a"
FAILED = Attempt(1, 0.0, outcome="failed", status=500, reason="it trapped")
OK = Attempt(1, 0.0, version=3, outcome="ok", status=200)


@pytest.fixture
def state(database):
    return State(database, database)


@pytest.fixture
def jobs(state):
    return state.jobs


def new(function="a", body=b"x", **more):
    policy = more.pop("policy", Async(backoff_s=0))
    return NewJob(function, "", "http", JobRequest("POST", f"/{function}", (), body), policy, **more)


async def claim(jobs, n=1, running=None, holder=HOST, lease_s=30.0):
    return (await jobs.claim(holder, n, running or {}, lease_s)).jobs


async def claim_all(jobs, n):
    """One at a time, as if each were over at once: no function's share counts."""
    return [run for _ in range(n) for run in await claim(jobs)]


async def test_job_comes_back_as_it_was_queued_and_says_so(jobs):
    request = JobRequest("PUT", "/a?b=c", (("X-Bytes", b"\xff\x00"),), b"\x00body", "192.0.2.1")
    queued = await jobs.add(NewJob("a", "canary", "http", request, Async(max_attempts=7)))
    job, attempts = await jobs.get(queued.id)
    assert (job.function, job.qualifier, job.state, job.policy.max_attempts) == ("a", "canary", JobState.QUEUED, 7)
    assert attempts == ()
    (run,) = await claim(jobs)
    assert run.request == request
    assert run.job.state is JobState.RUNNING
    assert run.job.n_attempts == 1


async def test_ids_have_128_bits_and_differ(jobs):
    ids = {(await jobs.add(new())).id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(bytes.fromhex(id)) == 16 for id in ids)


async def test_what_is_queued_survives_a_restart_and_what_ran_is_queued_again(open_database):
    first = await open_database()
    jobs = State(first, first).jobs
    ids = {(await jobs.add(new(body=str(n).encode()))).id for n in range(3)}
    (run,) = await claim(jobs)
    await first.aclose()

    second = await open_database()
    jobs = State(second, second).jobs
    assert await jobs.recover(HOST, alone=False) == 1
    assert {one.job.id for one in await claim_all(jobs, 3)} == ids
    job, attempts = await jobs.get(run.job.id)
    assert [attempt.outcome for attempt in attempts] == ["lost", ""]
    assert job.n_counted == 0
    await second.aclose()


async def test_recover_leaves_what_another_host_runs_unless_we_are_alone(jobs):
    await jobs.add(new())
    await claim(jobs, holder="host-b")
    assert await jobs.recover(HOST, alone=False) == 0
    assert await jobs.recover(HOST, alone=True) == 1


async def test_each_job_is_claimed_by_one_holder(open_database):
    databases = [await open_database() for _ in range(2)]
    stores = [State(database, database).jobs for database in databases]
    if not databases[0].shared:
        stores[1] = stores[0]
    ids = {(await stores[0].add(new(f"f{n}"))).id for n in range(40)}
    claimed = [
        run.job.id
        for runs in await asyncio.gather(*(claim(stores[n % 2], 8, holder=f"host-{n}") for n in range(8)))
        for run in runs
    ]
    while len(claimed) < 40:
        claimed += [run.job.id for run in await claim(stores[0], 40)]
    assert sorted(claimed) == sorted(ids)
    for database in databases:
        await database.aclose()


async def test_job_whose_holder_is_silent_is_taken_over_and_the_late_word_of_it_dropped(jobs):
    queued = await jobs.add(new())
    (first,) = await claim(jobs, holder="host-b", lease_s=0.0)
    (second,) = await claim(jobs)
    assert (second.job.id, second.job.n_attempts) == (queued.id, 2)
    assert not await jobs.succeed("host-b", first.job, OK, JobResult(200))
    assert await jobs.renew("host-b", [(queued.id, 1)], 30.0) == frozenset()
    assert await jobs.succeed(HOST, second.job, OK, JobResult(200))


async def test_run_that_its_own_holder_knows_nothing_of_is_queued_again_and_one_that_it_knows_is_not(jobs):
    """A claim may be committed although who asked heard of a failure."""
    queued = await jobs.add(new())
    (first,) = await claim(jobs, lease_s=0.0)
    assert await claim(jobs, running={(queued.id, 1): "a"}) == ()
    (again,) = await claim(jobs)
    assert (again.job.id, again.job.n_attempts) == (first.job.id, 2)


async def test_claim_of_a_holder_does_not_wait_for_leases_of_its_own_runs(jobs):
    queued = await jobs.add(new())
    claims = await jobs.claim(HOST, 1, {}, 0.0)
    assert claims.wait_s is None
    assert (await jobs.claim(HOST, 1, {(queued.id, 1): "a"}, 0.0)).wait_s is None
    assert (await jobs.claim("host-b", 0, {}, 30.0)).jobs == ()


async def test_renewed_lease_keeps_the_job(jobs):
    queued = await jobs.add(new())
    await claim(jobs, holder="host-b", lease_s=0.0)
    assert await jobs.renew("host-b", [(queued.id, 1)], 60.0) == {(queued.id, 1)}
    assert await claim(jobs) == ()


async def test_flood_of_one_function_leaves_slots_for_others(jobs):
    for n in range(50):
        await jobs.add(new("flood", body=str(n).encode()))
    flood = await claim(jobs, 32)
    assert len(flood) == SHARE * 32 // (SHARE + 1)
    late = await jobs.add(new("late"))
    runs = await claim(jobs, 32 - len(flood), {(run.job.id, 1): "flood" for run in flood})
    assert [run.job.id for run in runs] == [late.id]


async def test_functions_take_turns_and_each_ones_oldest_comes_first(jobs):
    first = [(await jobs.add(new("a", body=b"1"))).id, (await jobs.add(new("a", body=b"2"))).id]
    other = (await jobs.add(new("b"))).id
    assert [run.job.id for run in await claim(jobs, 8)] == [first[0], other, first[1]]


async def test_result_is_kept_and_the_attempt_says_which_version_answered(jobs):
    queued = await jobs.add(new())
    (run,) = await claim(jobs)
    result = JobResult(201, (("content-type", b"text/plain"),), b"done", 4)
    assert await jobs.succeed(HOST, run.job, OK, result)
    job, attempts = await jobs.get(queued.id)
    assert (job.state, job.status) == (JobState.SUCCEEDED, 201)
    assert [(attempt.number, attempt.version, attempt.outcome) for attempt in attempts] == [(1, 3, "ok")]
    assert (await jobs.result(queued.id))[1] == result
    assert (await jobs.show(queued.id)).result == msgspec.structs.replace(result, body=b"")


async def test_failed_job_is_tried_again_and_dead_after_its_tries(jobs):
    queued = await jobs.add(new(policy=Async(max_attempts=2, backoff_s=0)))
    (run,) = await claim(jobs)
    assert await jobs.retry(HOST, run.job, FAILED, delay_s=0, result=None) is JobState.RETRYING
    assert (await jobs.get(queued.id))[0].state is JobState.RETRYING
    (run,) = await claim(jobs)
    assert run.job.n_attempts == 2
    assert await jobs.retry(HOST, run.job, FAILED, delay_s=0, result=None) is JobState.DEAD
    job, attempts = await jobs.get(queued.id)
    assert (job.state, job.reason, len(attempts)) == (JobState.DEAD, "it trapped", 2)
    assert await claim(jobs) == ()


async def test_retry_waits_for_its_time_and_the_claim_says_how_long(jobs):
    await jobs.add(new())
    (run,) = await claim(jobs)
    await jobs.retry(HOST, run.job, FAILED, delay_s=100, result=None)
    claims = await jobs.claim(HOST, 1, {}, 30)
    assert claims.jobs == ()
    assert 90 < claims.wait_s <= 100


async def test_retry_that_would_come_too_late_is_dead_at_once(jobs):
    await jobs.add(new(policy=Async(max_age_s=50)))
    (run,) = await claim(jobs)
    assert await jobs.retry(HOST, run.job, FAILED, delay_s=100, result=None) is JobState.DEAD


async def test_postponed_job_counts_as_never_begun(jobs):
    queued = await jobs.add(new())
    (run,) = await claim(jobs)
    assert await jobs.postpone(HOST, run.job, "overloaded", 0.0)
    job, attempts = await jobs.get(queued.id)
    assert (job.state, job.n_attempts, job.n_counted, attempts) == (JobState.QUEUED, 0, 0, ())
    assert job.n_postponed == 1
    (run,) = await claim(jobs)
    await jobs.retry(HOST, run.job, FAILED, delay_s=0, result=None)
    assert (await jobs.get(queued.id))[0].n_postponed == 0


async def test_job_that_is_too_old_expires_without_having_run(jobs):
    queued = await jobs.add(new(policy=Async(max_age_s=1e-9)))
    claims = await jobs.claim(HOST, 1, {}, 30)
    assert claims.jobs == ()
    assert (await jobs.get(queued.id))[0].state is JobState.EXPIRED


async def test_job_that_ends_its_process_again_and_again_is_a_dead_letter(jobs):
    queued = await jobs.add(new())
    for _ in range(MAX_LOST + 1):
        (run,) = await claim(jobs)
        await jobs.lose(HOST, run.job, "the worker died")
    assert (await jobs.get(queued.id))[0].state is JobState.DEAD


async def test_same_key_and_request_is_the_same_job_another_request_a_conflict(jobs):
    first = await jobs.add(new(key="http:1"))
    again = await jobs.add(new(key="http:1"))
    assert (again.id, again.duplicate, first.duplicate) == (first.id, True, False)
    with pytest.raises(IdempotencyConflictError):
        await jobs.add(new(key="http:1", body=b"other"))
    assert (await jobs.add(new("b", key="http:1"))).id != first.id
    assert len(await jobs.list()) == 2


async def test_keys_that_come_together_make_one_job(jobs):
    queued = await asyncio.gather(*(jobs.add(new(key="http:1")) for _ in range(10)))
    assert len({one.id for one in queued}) == 1
    assert [one.duplicate for one in queued].count(False) == 1


async def test_key_counts_longer_than_its_job_is_kept(jobs):
    first = await jobs.add(new(key="webhook:1", key_keep_s=60, policy=Async(keep_s=0)))
    (run,) = await claim(jobs)
    await jobs.succeed(HOST, run.job, OK, JobResult(200))
    assert await jobs.sweep() == 1
    assert (await jobs.add(new(key="webhook:1", key_keep_s=60))).duplicate
    with pytest.raises(JobNotFoundError):
        await jobs.get(first.id)


async def test_key_without_a_time_of_its_own_counts_as_long_as_its_job(jobs):
    await jobs.add(new(key="http:1", policy=Async(keep_s=0)))
    (run,) = await claim(jobs)
    await jobs.succeed(HOST, run.job, OK, JobResult(200))
    assert (await jobs.add(new(key="http:1"))).duplicate
    await jobs.sweep()
    assert not (await jobs.add(new(key="http:1"))).duplicate


async def test_cancelled_job_never_runs_and_one_that_runs_is_its_holders_no_more(jobs):
    waiting, running = await jobs.add(new("z")), await jobs.add(new("a"))
    (run,) = await claim(jobs)
    if run.job.id != running.id:
        waiting, running = running, waiting
    await jobs.cancel(waiting.id)
    await jobs.cancel(running.id)
    assert await claim(jobs) == ()
    assert await jobs.renew(HOST, [(run.job.id, 1)], 30) == frozenset()
    assert not await jobs.succeed(HOST, run.job, OK, JobResult(200))
    job, (attempt,) = await jobs.get(running.id)
    assert (job.state, attempt.outcome) == (JobState.CANCELLED, "cancelled")
    with pytest.raises(JobFinishedError):
        await jobs.cancel(waiting.id)


async def test_dead_letter_is_redriven_with_its_request_and_all_its_tries(jobs):
    queued = await jobs.add(new(policy=Async(max_attempts=1)))
    with pytest.raises(JobUnfinishedError):
        await jobs.redrive(queued.id)
    (run,) = await claim(jobs)
    await jobs.retry(HOST, run.job, FAILED, delay_s=0, result=JobResult(500))
    assert (await jobs.redrive(queued.id)).n_counted == 0
    (run,) = await claim(jobs)
    assert (run.request.body, run.job.n_attempts) == (b"x", 2)
    await jobs.succeed(HOST, run.job, OK, JobResult(200))
    with pytest.raises(JobFinishedError):
        await jobs.redrive(queued.id)


async def test_redrive_all_takes_the_dead_letters_of_one_function(jobs):
    for function in ("a", "a", "b"):
        await jobs.add(new(function))
    for run in await claim_all(jobs, 3):
        await jobs.retry(HOST, run.job, FAILED, delay_s=0, result=None, final=True)
    assert await jobs.redrive_all("a") == 2
    assert {job.function for job in await jobs.list(states=[JobState.DEAD])} == {"b"}


async def test_flood_of_jobs_of_one_function_is_refused_and_others_are_not(jobs, monkeypatch):
    monkeypatch.setattr(queue, "MAX_WAITING", 3)
    for _ in range(3):
        await jobs.add(new("a"))
    with pytest.raises(ConcurrencyLimitError):
        await jobs.add(new("a", key="http:1"))
    await jobs.add(new("b"))
    await claim(jobs)
    await jobs.add(new("a", key="http:1"))


async def test_everything_of_a_removed_function_ends_with_its_runs(jobs, monkeypatch):
    monkeypatch.setattr(queue, "MAX_SWEPT", 2)
    ids = [(await jobs.add(new(callback="https://example.org/done"))).id for _ in range(5)]
    other = await jobs.add(new("b"))
    runs = await claim(jobs, 4, {("x", n): "b" for n in range(3)})
    assert await jobs.cancel_all("a") == 5
    ended = [(await jobs.get(id))[0] for id in ids]
    assert {job.state for job in ended} == {JobState.CANCELLED}
    assert all(job.keep_until > job.finished_at > 0 for job in ended)
    (attempt,) = (await jobs.get(runs[0].job.id))[1]
    assert (attempt.outcome, attempt.ended_at > 0) == ("cancelled", True)
    assert (await jobs.get(other.id))[0].state is JobState.QUEUED
    assert len((await jobs.claim_callbacks(10, 30))[0]) == 5


async def test_more_than_one_transaction_takes_are_redriven_and_forgotten(jobs, monkeypatch):
    monkeypatch.setattr(queue, "MAX_SWEPT", 2)
    for _ in range(5):
        await jobs.add(new(policy=Async(max_attempts=1)))
    for run in await claim_all(jobs, 5):
        await jobs.retry(HOST, run.job, FAILED, delay_s=0, result=None)
    assert await jobs.redrive_all("a") == 5
    for run in await claim_all(jobs, 5):
        await jobs.retry(HOST, run.job, FAILED, delay_s=0, result=None)
    assert await jobs.purge("a", []) == 5
    assert await jobs.list() == ()


async def test_what_is_being_redriven_is_neither_swept_nor_purged(open_database):
    databases = [await open_database() for _ in range(2)]
    if not databases[0].shared:
        for database in databases:
            await database.aclose()
        pytest.skip("transactions of SQLite come one after another")
    jobs, others = (State(database, database).jobs for database in databases)
    queued = await jobs.add(new(policy=Async(keep_s=0)))
    await jobs.cancel(queued.id)
    loop, redriven, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def redrive(session):
        queue._redrive(session, queue._get(session, queued.id, locked=True))
        loop.call_soon_threadsafe(redriven.set)
        go_on.wait(10)

    redriving = asyncio.create_task(databases[1].run(redrive))
    await redriven.wait()
    sweeping, purging = asyncio.create_task(jobs.sweep()), asyncio.create_task(jobs.purge("", []))
    try:
        assert await sweeping == 0
        assert await purging == 0
    finally:
        go_on.set()
    await redriving
    assert (await others.get(queued.id))[0].state is JobState.QUEUED
    (run,) = await claim(jobs)
    assert run.request.body == b"x"
    for database in databases:
        await database.aclose()


async def test_list_goes_by_function_and_state(jobs):
    await jobs.add(new("a"))
    await jobs.add(new("b"))
    (run,) = await claim(jobs)
    await jobs.retry(HOST, run.job, FAILED, delay_s=0, result=None)
    other = "b" if run.job.function == "a" else "a"
    assert [job.id for job in await jobs.list(states=[JobState.RETRYING])] == [run.job.id]
    assert [job.function for job in await jobs.list(states=[JobState.QUEUED])] == [other]
    assert len(await jobs.list(run.job.function)) == 1
    assert len(await jobs.list(limit=1)) == 1


async def test_purge_forgets_finished_jobs_only(jobs):
    for _ in range(2):
        await jobs.add(new())
    (run,) = await claim(jobs)
    await jobs.retry(HOST, run.job, FAILED, delay_s=0, result=None, final=True)
    assert await jobs.purge("", [JobState.QUEUED]) == 0
    assert await jobs.purge("a", []) == 1
    assert [job.state for job in await jobs.list()] == [JobState.QUEUED]


async def test_sweep_keeps_dead_letters_and_what_waits_for_its_callback(jobs):
    await jobs.add(new(policy=Async(keep_s=0)))
    await jobs.add(new(policy=Async(keep_s=0), callback="https://example.org/done"))
    runs = {bool(run.job.callback): run for run in await claim_all(jobs, 2)}
    await jobs.retry(HOST, runs[False].job, FAILED, delay_s=0, result=None, final=True)
    await jobs.succeed(HOST, runs[True].job, OK, JobResult(200))
    assert await jobs.sweep() == 0
    ((callback,), _) = await jobs.claim_callbacks(5, 30)
    await jobs.settle_callback(callback, "", None)
    assert await jobs.sweep() == 1


async def test_callback_is_due_when_the_job_is_finished_and_tried_until_it_is_settled(jobs):
    queued = await jobs.add(new(callback="https://example.org/done"))
    assert await jobs.claim_callbacks(5, 30) == ((), None)
    (run,) = await claim(jobs)
    await jobs.succeed(HOST, run.job, OK, JobResult(200))
    ((callback,), _) = await jobs.claim_callbacks(5, 30)
    assert (callback.url, callback.n_tries, callback.job.id) == ("https://example.org/done", 1, queued.id)
    nobody, wait_s = await jobs.claim_callbacks(5, 30)
    assert nobody == ()
    assert 25 < wait_s <= 30
    await jobs.settle_callback(callback, "it answered 500", 0.0)
    ((callback,), _) = await jobs.claim_callbacks(5, 30)
    assert callback.n_tries == 2
    await jobs.settle_callback(callback, "", None)
    assert (await jobs.show(queued.id)).callback.state == "delivered"
    assert await jobs.claim_callbacks(5, 30) == ((), None)


async def test_delivery_is_served_once_and_again_if_it_was_not(jobs):
    assert await jobs.begin_delivery("a", "d1", 60) is Delivery.NEW
    assert await jobs.begin_delivery("a", "d1", 60) is Delivery.UNDER_WAY
    await jobs.end_delivery("a", "d1", 60, served=False)
    assert await jobs.begin_delivery("a", "d1", 60) is Delivery.NEW
    await jobs.end_delivery("a", "d1", 60, served=True)
    assert await jobs.begin_delivery("a", "d1", 60) is Delivery.DONE
    assert await jobs.begin_delivery("b", "d1", 60) is Delivery.NEW


async def test_delivery_that_nobody_ended_may_come_again(jobs):
    await jobs.begin_delivery("a", "d1", 0.0)
    assert await jobs.begin_delivery("a", "d1", 60) is Delivery.NEW


async def test_notices_wake_who_claims(database, jobs):
    heard = asyncio.Queue()
    database.listen(heard.put_nowait)
    await jobs.add(new())
    assert await heard.get() == "jobs"
    (job,) = await jobs.list()
    await jobs.cancel(job.id)
    assert await heard.get() == "jobs-ended"
    await jobs.redrive(job.id)
    assert await heard.get() == "jobs"


# ---- schedules ------------------------------------------------------------------------------------------------------


async def deploy(state, *schedules, name="a"):
    manifest = manifest_from_builtins({"name": name, "schedules": list(schedules)})
    await state.functions.add_version_and_activate(NewVersion(manifest, Kind.COMMAND, "d", "k"))


def tick(due, name="a", schedule="tick"):
    return due, new(name, key=f"schedule:{schedule}:{due}", schedule=schedule)


HOURLY = {"name": "tick", "cron": "0 * * * *"}


async def test_schedule_is_handled_up_to_its_first_sight_and_fires_once(state):
    await deploy(state, HOURLY)
    ((plan,), now) = await state.schedules.plans()
    assert plan.mark.handled == pytest.approx(now, abs=5)
    fired = await asyncio.gather(
        *(state.schedules.fire(plan.mark, [tick(1.0)], handled=now + 1, n_missed=0, overlap=False) for _ in range(5))
    )
    assert [one is None for one in fired].count(False) == 1
    assert len(await state.jobs.list()) == 1


async def test_run_that_goes_on_keeps_the_next_one_out_unless_overlap_is_asked_for(state):
    await deploy(state, HOURLY)
    ((plan,), now) = await state.schedules.plans()
    both = [tick(1.0), tick(2.0)]
    fired = await state.schedules.fire(plan.mark, both, handled=now + 1, n_missed=3, overlap=False)
    assert (len(fired.jobs), fired.n_skipped) == (1, 1)
    ((plan,), _) = await state.schedules.plans()
    assert (plan.mark.n_fired, plan.mark.n_skipped, plan.mark.n_missed) == (1, 1, 3)
    fired = await state.schedules.fire(plan.mark, [tick(3.0)], handled=now + 2, n_missed=0, overlap=True)
    assert len(fired.jobs) == 1


async def test_time_that_another_version_had_already_is_left_out(state):
    """The clock was set back, and a version with another request was deployed meanwhile: others must go on."""
    await deploy(state, HOURLY)
    ((plan,), now) = await state.schedules.plans()
    await state.schedules.fire(plan.mark, [tick(1.0)], handled=now + 1, n_missed=0, overlap=True)
    ((plan,), _) = await state.schedules.plans()
    again = [(1.0, new("a", b"other", key="schedule:tick:1.0", schedule="tick")), tick(2.0)]
    fired = await state.schedules.fire(plan.mark, again, handled=now + 2, n_missed=0, overlap=True)
    assert (len(fired.jobs), fired.n_skipped) == (1, 1)


async def test_next_run_comes_when_the_one_before_is_over(state):
    await deploy(state, HOURLY)
    ((plan,), now) = await state.schedules.plans()
    await state.schedules.fire(plan.mark, [tick(1.0)], handled=now + 1, n_missed=0, overlap=False)
    (run,) = await claim(state.jobs)
    await state.jobs.succeed(HOST, run.job, OK, JobResult(200))
    ((plan,), _) = await state.schedules.plans()
    fired = await state.schedules.fire(plan.mark, [tick(2.0)], handled=now + 2, n_missed=0, overlap=False)
    assert fired.n_skipped == 0


async def test_paused_schedule_does_not_fire_and_resuming_makes_up_for_nothing(state):
    await deploy(state, HOURLY)
    ((plan,), now) = await state.schedules.plans()
    await state.schedules.pause("a", "tick", paused=True)
    assert await state.schedules.fire(plan.mark, [tick(1.0)], handled=now + 1, n_missed=0, overlap=False) is None
    resumed = await state.schedules.pause("a", "tick", paused=False)
    assert resumed.handled >= plan.mark.handled
    assert not resumed.paused


async def test_new_expression_begins_anew_and_a_gone_schedule_is_forgotten(state):
    await deploy(state, HOURLY, {"name": "off", "cron": "0 0 * * *", "enabled": False})
    (off, plan), _ = sorted(await plans_of(state), key=lambda plan: plan.schedule.name), None
    assert (off.mark, plan.mark.spec) == (None, "0 * * * * UTC")
    await deploy(state, {**HOURLY, "cron": "5 * * * *"})
    ((plan,), _) = await state.schedules.plans()
    assert plan.mark.spec == "5 * * * * UTC"
    await deploy(state)
    assert (await state.schedules.plans())[0] == ()
    with pytest.raises(ScheduleNotFoundError):
        await state.schedules.pause("a", "tick", paused=True)


async def plans_of(state):
    return (await state.schedules.plans())[0]


async def test_run_by_hand_is_queued_whatever_else_goes_on(state):
    await deploy(state, HOURLY)
    await state.schedules.plans()
    for n in range(2):
        await state.schedules.run_now("a", "tick", new(key=f"schedule:tick:hand-{n}", schedule="tick"))
    assert len(await state.jobs.list()) == 2
    with pytest.raises(ScheduleNotFoundError):
        await state.schedules.run_now("a", "tock", new())
