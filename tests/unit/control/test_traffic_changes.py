"""Changes of traffic reach every worker whole, and canaries end by themselves as they should."""

from __future__ import annotations

import asyncio

import pytest

from faas.control.canary import CanaryController, Verdict, Window, judge, window_of
from faas.control.deployer import Placement
from faas.control.stats import Counts
from faas.control.traffic import alias_name, checked, split_of, sticky_by
from faas.errors import (
    BadRequestError,
    CanaryNotFoundError,
    CanaryRunningError,
    CompileFailedError,
    StartFailedError,
    VersionInUseError,
    VersionNotFoundError,
)
from faas.gateway.journal import Journal
from faas.invocation import Alias, Outcome
from faas.state.base import CanaryPhase, CanaryPlan
from faas.wire.latency import bound_ms, bucket_of, percentile_ms
from faas.wire.messages import Stats


def ignored(stage):
    """Take progress that the test does not look at."""


async def deployed(bench, *wasm, **placement):
    for one in wasm:
        await bench.deployer.deploy(bench.upload(wasm=b"\0asm " + one), ignored, Placement(**placement))


def told(bench):
    """Return what every worker was told last: versions and aliases."""
    tables = [worker.tables[-1] for worker in bench.fleet.workers]
    assert all(table == tables[0] for table in tables)
    return [d.version for d in tables[0].deployments], tables[0].aliases


# changes


async def test_a_plain_function_needs_no_alias_in_the_table(bench):
    await deployed(bench, b"1", b"22")
    assert told(bench) == ([2], ())


async def test_a_version_for_an_alias_or_for_nobody_leaves_live_alone(bench):
    await deployed(bench, b"1")
    await deployed(bench, b"22", alias="beta")
    await deployed(bench, b"333", alias="")
    assert told(bench) == ([1, 2], (Alias("hello", "live", 1), Alias("hello", "beta", 2)))
    assert len(bench.stored()) == 3 * 3  # all three are kept


async def test_every_worker_loads_a_version_before_an_alias_names_it(bench):
    await deployed(bench, b"1", b"22")
    bench.fleet.log.clear()
    await bench.deployer.set_alias(Alias("hello", "live", 2, 1, 10.0))
    assert [kind for kind, _ in bench.fleet.log] == ["prepare", "prepare", "table", "table"]
    assert told(bench) == ([1, 2], (Alias("hello", "live", 2, 1, 10.0),))
    bench.fleet.log.clear()
    await bench.deployer.set_alias(Alias("hello", "live", 2, 1, 20.0))
    assert [kind for kind, _ in bench.fleet.log] == ["table", "table"]  # all of them have it


async def test_a_version_that_does_not_start_any_more_is_not_named(bench):
    await deployed(bench, b"1", b"22")
    before = told(bench)

    async def on_prepare(worker, deployment):
        return StartFailedError("it loops") if worker.index == 1 else None

    bench.fleet.on_prepare = on_prepare
    for change in (
        bench.deployer.set_alias(Alias("hello", "live", 1)),
        bench.deployer.rollback("hello"),
        bench.deployer.start_canary("hello", 1, CanaryPlan()),
    ):
        with pytest.raises(StartFailedError):
            await change
    assert told(bench) == before
    assert [entry.action for entry in await bench.state.audit.entries()] == ["deploy", "deploy"]


async def test_rollback_recompiles_what_an_older_engine_left(bench):
    await deployed(bench, b"1", b"22")
    bench.compiler.current = False
    version, _ = await bench.deployer.rollback("hello", actor="ann")
    assert version == 1
    assert bench.compiler.recompiled == ["hello"]
    assert told(bench) == ([1], ())
    assert (await bench.state.audit.entries())[0].actor == "ann"


async def test_rollback_that_can_not_be_compiled_changes_nothing(bench):
    await deployed(bench, b"1", b"22")
    bench.compiler.current, bench.compiler.refuse = False, CompileFailedError("no")
    with pytest.raises(CompileFailedError):
        await bench.deployer.rollback("hello")
    assert told(bench) == ([2], ())


async def test_versions_beyond_those_that_are_kept_go_with_their_files(bench):
    bench.deployer._keep_versions = 1
    await deployed(bench, b"1", b"22", b"333", b"4444")
    assert [d.version for d in await bench.state.functions.versions("hello")] == [4, 3]
    assert len(bench.stored()) == 2 * 3


async def test_a_removed_version_takes_its_files_along(bench):
    await deployed(bench, b"1", b"22")
    with pytest.raises(VersionInUseError):
        await bench.deployer.remove_version("hello", 2)
    await bench.deployer.remove_version("hello", 1)
    assert len(bench.stored()) == 3
    with pytest.raises(VersionNotFoundError):
        await bench.deployer.rollback("hello")


async def test_a_deploy_that_a_canary_keeps_out_is_refused_before_it_compiles(bench):
    await deployed(bench, b"1")
    await deployed(bench, b"22", canary=CanaryPlan())
    stages = []
    with pytest.raises(CanaryRunningError):
        await bench.deployer.deploy(bench.upload(), stages.append)
    assert stages == []


async def test_refresh_serves_what_another_host_changed(bench):
    await deployed(bench, b"1", b"22")
    await bench.state.functions.set_alias(Alias("hello", "live", 2, 1, 30.0))
    await bench.deployer.refresh()
    assert told(bench) == ([1, 2], (Alias("hello", "live", 2, 1, 30.0),))


async def test_what_another_host_rolls_back_does_not_wait_for_a_deploy_that_is_under_way(bench):
    await deployed(bench, b"1")
    await deployed(bench, b"22", canary=CanaryPlan())
    preparing, go_on = asyncio.Event(), asyncio.Event()

    async def on_prepare(_worker, _deployment):
        preparing.set()
        await go_on.wait()

    bench.fleet.on_prepare = on_prepare
    other = asyncio.create_task(bench.deployer.deploy(bench.upload("other"), ignored, Placement()))
    await preparing.wait()
    (canary,) = bench.deployer.canaries
    await bench.state.functions.end_canary(canary, CanaryPhase.ROLLED_BACK, "by another host")
    refreshing = asyncio.create_task(bench.deployer.refresh())
    while bench.deployer.aliases:
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(refreshing, other)
    assert told(bench) == ([1, 1], ())


async def test_a_version_that_nothing_names_is_compiled_for_the_engine_of_today(bench):
    await deployed(bench, b"1", b"22")
    bench.compiler.current = False
    assert await bench.deployer.version("hello", 1) == await bench.state.functions.version("hello", 1)
    assert bench.compiler.recompiled == ["hello"]


async def test_a_restarted_host_serves_its_splits_and_goes_on_with_its_canaries(new_bench):
    bench = new_bench()
    await bench.start()
    await deployed(bench, b"1")
    await deployed(bench, b"22", canary=CanaryPlan())
    await bench.stop()
    bench = new_bench()
    await bench.start()
    assert bench.deployer.aliases == (Alias("hello", "live", 1, 2, 10.0),)
    assert [canary.other for canary in bench.deployer.canaries] == [2]
    await bench.stop()


async def test_a_worker_that_comes_later_begins_with_the_aliases(bench):
    await deployed(bench, b"1")
    await deployed(bench, b"22", alias="beta")
    bench.fleet.workers[0].die()
    async with asyncio.timeout(5):
        while len(bench.fleet.workers) < 3 or not bench.fleet.workers[2].tables:
            await asyncio.sleep(0.001)
    assert bench.fleet.workers[2].tables[0].aliases == bench.deployer.aliases != ()


# what people say


def test_the_version_that_was_there_stays_the_first_of_the_two():
    before = Alias("f", "live", 2, 3, 10.0)
    assert split_of(before, "f", "live", {3: 90, 2: 10}, "") == Alias("f", "live", 2, 3, 90.0)
    assert split_of(None, "f", "live", {3: 90, 2: 10}, "cookie") == Alias("f", "live", 3, 2, 10.0, "cookie")
    assert split_of(before, "f", "live", {3: 100, 2: 0}, "") == Alias("f", "live", 3)


@pytest.mark.parametrize("weights", [{}, {1: 50}, {1: 50, 2: 49}, {1: 120, 2: -20}, {1: 30, 2: 30, 3: 40}, {1: 0}])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(BadRequestError):
        split_of(None, "f", "live", weights, "")


@pytest.mark.parametrize("name", ["", "1", "007", "A", "a_b", "-a", "a" * 64, "live\n"])
def test_names_that_no_alias_may_have(name):
    with pytest.raises(BadRequestError):
        alias_name(name)


def test_names_and_stickiness_that_are_fine():
    assert (alias_name("live"), alias_name("v2"), alias_name("a" * 63)) == ("live", "v2", "a" * 63)
    assert [sticky_by(text) for text in ("", "cookie", "header:X-User")] == ["", "cookie", "header:X-User"]
    for text in ("header:", "header:a b", "Cookie"):
        with pytest.raises(BadRequestError):
            sticky_by(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": ()},
        {"steps": (10.0, 10.0)},
        {"steps": (0.0,)},
        {"steps": (101.0,)},
        {"interval_s": -1.0},
        {"max_error_rate": 1.1},
        {"max_p99_ms": 1.0, "max_p99_ratio": 2.0},
        {"min_requests": 0},
    ],
)
def test_plans_that_no_canary_can_go_by(fields):
    with pytest.raises(BadRequestError):
        checked(CanaryPlan(**fields))


# judging


@pytest.mark.parametrize(
    ("new", "waited_s", "verdict"),
    [
        (Window(49, 0), 100, Verdict.WAIT),
        (Window(50, 0), 29, Verdict.WAIT),
        (Window(50, 0), 30, Verdict.GO_ON),
        (Window(50, 2), 30, Verdict.GO_ON),
        (Window(50, 3), 1, Verdict.ROLL_BACK),
        (Window(1, 1), 1, Verdict.WAIT),
        (Window(3, 3), 1, Verdict.ROLL_BACK),  # whatever the other 47 do
        (Window(200, 10), 30, Verdict.GO_ON),
        (Window(200, 11), 30, Verdict.ROLL_BACK),
        (Window(50, 0, p99_ms=101), 1, Verdict.ROLL_BACK),
        (Window(49, 0, p99_ms=101), 1, Verdict.WAIT),
    ],
)
def test_a_canary_goes_on_when_enough_went_well_for_long_enough(new, waited_s, verdict):
    plan = CanaryPlan(interval_s=30, max_error_rate=0.05, max_p99_ms=100, min_requests=50)
    found, reason = judge(plan, Window(), new, waited_s)
    assert found is verdict
    assert bool(reason) == (verdict is Verdict.ROLL_BACK)


def test_latency_is_compared_with_the_old_version_once_both_have_enough_requests():
    plan = CanaryPlan(interval_s=0, max_p99_ratio=1.5, min_requests=10)
    new = Window(10, 0, 31.0)
    assert judge(plan, Window(9, 0, 20.0), new, 0) == (Verdict.GO_ON, "")
    assert judge(plan, Window(10, 0, 21.0), new, 0) == (Verdict.GO_ON, "")
    verdict, reason = judge(plan, Window(10, 0, 20.0), new, 0)
    assert verdict is Verdict.ROLL_BACK
    assert "31.0 ms, 1.55 times" in reason


def test_a_window_counts_what_was_answered_and_not_what_never_began():
    counters = {"invocations": 20, "ok": 10, "failed": 2, "limited": 1, "refused": 4, "cancelled": 3, "answered_5xx": 5}
    assert window_of(counters, {}) == Window(13, 8)
    assert window_of(counters, {"invocations": 10, "ok": 8, "answered_5xx": 4}) == Window(5, 4)
    assert window_of(counters, {"invocations": 100, "ok": 90}) == Window(13, 8)  # the counting began anew


def test_percentiles_are_within_a_bucket_of_the_truth():
    values = [1.07**n for n in range(1, 150)]
    counters = {}
    for ms in values:
        name = f"latency:{bucket_of(ms)}"
        counters[name] = counters.get(name, 0) + 1
    for part in (0.5, 0.9, 0.99):
        true = values[int(part * len(values))]
        assert true / 1.2 < percentile_ms(counters, part) < true * 1.2
    assert percentile_ms({}, 0.99) == 0.0
    assert all(bound_ms(bucket_of(ms) - 1) < ms <= bound_ms(bucket_of(ms)) * 1.000001 for ms in values)
    assert bucket_of(0.0) == 0


# counting


def finished(journal, version, *, outcome=Outcome.OK, status=200, ms=1.0):
    journal.finished("f", version, "id", outcome, status=status, duration_ms=ms, start_ms=0, cpu_ms=0)


def test_only_versions_that_share_requests_are_counted_apart():
    journal = Journal(dict)
    finished(journal, 1)
    journal.watch({("f", 1), ("f", 2)})
    finished(journal, 1)
    finished(journal, 2, status=503)
    finished(journal, 2, outcome=Outcome.FAILED, status=502, ms=50)
    functions = journal.stats().functions
    assert functions["f"]["invocations"] == 4
    assert functions["f"]["answered_5xx"] == 1
    assert functions["f@1"]["invocations"] == 1
    assert window_of(functions["f@2"], {})[:2] == (2, 2)
    journal.watch({("f", 2), ("f", 3)})
    assert {name for name in journal.stats().functions if "@" in name} == {"f@2", "f@3"}
    assert journal.stats().functions["f@2"]["invocations"] == 2


def test_counters_of_versions_add_up_over_workers_and_outlive_them_while_they_are_split():
    counts = Counts()
    counts.report(0, Stats({"f": {"ok": 1}, "f@1": {"ok": 1}, "f@2": {"ok": 2}}, {}))
    counts.report(1, Stats({"f@1": {"ok": 10}, "ff@1": {"ok": 7}}, {}))
    assert counts.version_totals("f") == {1: {"ok": 11}, 2: {"ok": 2}}
    assert set(counts.totals()) == {"f"}
    counts.retire(0)
    counts.report(1, Stats({"f@1": {"ok": 10}, "f@2": {"ok": 0}}, {}))
    assert counts.version_totals("f") == {1: {"ok": 11}, 2: {"ok": 2}}
    counts.report(1, Stats({}, {}))
    assert counts.version_totals("f") == {}


# the controller


class Traffic:
    """What a canary's versions answer, as one worker would report it."""

    def __init__(self, bench):
        self.bench = bench
        self.clock = Clock()
        self.controller = CanaryController(bench.deployer, bench.counts, self.clock)
        self.stats = {"hello@1": {"invocations": 0}, "hello@2": {"invocations": 0}}

    async def look(self, version=0, *, ok=0, failed=0, after_s=0.0):
        if version:
            counters = self.stats[f"hello@{version}"]
            for key, n in (("invocations", ok + failed), ("ok", ok), ("failed", failed)):
                counters[key] = counters.get(key, 0) + n
        self.bench.counts.report(0, Stats({name: dict(c) for name, c in self.stats.items()}, {}))
        self.clock.ahead_s += after_s
        await self.controller.look()

    def weight(self):
        _, aliases = told(self.bench)
        return aliases[0].weight if aliases else None


class Clock:
    """The real time, and more where a test says so."""

    def __init__(self):
        self.ahead_s = 0.0

    def monotonic(self):
        raise AssertionError("not asked")

    def time_ns(self):
        import time

        return time.time_ns() + int(self.ahead_s * 1e9)


@pytest.fixture
async def canary(bench):
    await deployed(bench, b"1")
    plan = CanaryPlan(steps=(10.0, 100.0), interval_s=30, min_requests=20)
    await deployed(bench, b"22", canary=plan, sticky="cookie")
    traffic = Traffic(bench)
    await traffic.look()
    return traffic


async def test_a_good_canary_goes_all_its_steps_and_is_promoted(bench, canary):
    await canary.look(2, ok=20)
    assert canary.weight() == 10.0  # not for long enough
    await canary.look(after_s=31)
    assert canary.weight() == 100.0
    await canary.look(2, ok=19, after_s=31)
    assert canary.weight() == 100.0  # too few since the step began
    await canary.look(2, ok=1)
    assert told(bench) == ([2], ())
    ended = await bench.state.functions.canary("hello")
    assert ended.phase is CanaryPhase.PROMOTED
    actions = [(entry.action, entry.actor) for entry in await bench.state.audit.entries(limit=2)]
    assert actions == [("canary-promoted", "canary"), ("canary-step", "canary")]


async def test_a_canary_that_fails_is_rolled_back_with_its_numbers(bench, canary):
    await canary.look(2, ok=8, failed=1)
    assert canary.weight() == 10.0
    await canary.look(2, failed=1)
    assert told(bench) == ([1], ())
    ended = await bench.state.functions.canary("hello")
    assert ended.phase is CanaryPhase.ROLLED_BACK
    assert ended.reason == "at 10 %: 2 of 10 requests failed (20.0%); 5.0% may"
    (entry,) = await bench.state.audit.entries(limit=1)
    assert (entry.action, entry.actor, entry.detail["reason"]) == ("canary-rolled-back", "canary", ended.reason)


async def test_failures_of_the_old_version_do_not_count_against_the_new_one(canary):
    await canary.look(1, failed=100)
    assert canary.weight() == 10.0


async def test_a_step_that_another_host_has_taken_is_not_taken_twice(bench, canary):
    (running,) = bench.deployer.canaries
    await bench.state.functions.advance_canary(running)
    await canary.look(2, ok=20, after_s=31)
    assert (await bench.state.functions.canary("hello")).step == 1
    await bench.deployer.refresh()
    assert canary.weight() == 100.0
    await canary.look(after_s=31)
    assert told(bench)[0] == [1, 2]  # what was counted before belongs to the step before


async def test_a_canary_that_was_ended_by_hand_stays_so(bench, canary):
    (running,) = bench.deployer.canaries
    await bench.state.functions.end_canary(running, CanaryPhase.ABORTED, "by hand")
    await canary.look(2, failed=20)
    assert (await bench.state.functions.canary("hello")).reason == "by hand"
    with pytest.raises(CanaryNotFoundError):
        await bench.deployer.advance_canary(running)


async def test_what_is_shown_of_a_canary_is_its_step(bench, canary):
    await canary.look(2, ok=3, failed=1)
    view = canary.controller.view(bench.deployer.canaries[0])
    assert (view.weight, view.requests, view.failures, view.old_requests) == (10.0, 4, 1, 0)
