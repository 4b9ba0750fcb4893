"""Warm pools follow the arrival rate, give way to requests, and never hand out what another request has used."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from faas.artifacts.store import ArtifactStore
from faas.config import HostConfig, PoolConfig
from faas.gateway.admission import Admission, Permits
from faas.gateway.code import Code, CodeCache
from faas.gateway.instance import REUSED, WARM, Instance
from faas.gateway.journal import Journal
from faas.gateway.warm import IDLE_S, MAX_FAILURES, MAX_PAUSE_S, Arrivals, WarmPool, WarmPools
from faas.invocation import Deployment, Kind, Outcome
from faas.manifest import manifest_from_builtins
from faas.wasm import capi
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.runtime import Runtime

SLOTS = 40
ADMITTED = 32  # a quarter of which warm pools may hold
CONFIG = HostConfig(pool=PoolConfig(slots=SLOTS, max_memory_bytes=64 << 20), guest_threads=2, tick_ms=1000)

COUNTER = """(module
  (memory (export "memory") 2)
  (global $n (mut i32) (i32.const 0))
  (func (export "_initialize") (global.set $n (i32.const 100)))
  (func (export "count") (result i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"""
COMMAND = '(module (memory (export "memory") 1) (func (export "_start")))'
NOSY = """(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $ask (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $begin (drop (call $ask (i32.const 0) (i32.const 4))))
  (start $begin)
  (func (export "_start")))"""
TALKATIVE = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\08\\00\\00\\00\\03\\00\\00\\00hi\\0a")
  (func $say (export "say") (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 64))))
  (func (export "_initialize") (call $say)))"""
TRAPS = '(module (memory (export "memory") 1) (func (export "_initialize") unreachable))'
SPINS = '(module (memory (export "memory") 1) (func (export "_initialize") (loop $again (br $again))))'
REFUSED = """(module
  (memory (export "memory") 1)
  (global $refused (export "faas:grow-failed") (mut i32) (i32.const 0))
  (func (export "ask") (global.set $refused (i32.const 1))))"""
# Writes one page into /tmp, whose descriptor is 4.
HOARDER = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "\\00\\00\\00\\00\\00\\00\\01\\00x")
  (func (export "_initialize")
    (if (call $open (i32.const 4) (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 1)
          (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 64))
      (then unreachable))
    (if (call $write (i32.load (i32.const 64)) (i32.const 0) (i32.const 1) (i32.const 80)) (then unreachable))))"""
MODELLER = """(module
  (import "wasi_ephemeral_nn" "init_execution_context" (func $ask (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_initialize") (drop (call $ask (i32.const 0) (i32.const 0)))))"""


class HandClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


class Rig:
    """A worker's parts around its warm pools."""

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        self.runtime = runtime
        self.store = ArtifactStore(folder)
        self.clock = HandClock()
        self.admission = Admission(ADMITTED, max_queue=10, queue_timeout_s=1)
        self.code = CodeCache(runtime, self.store, self._no_repair, budget_bytes=1 << 30)
        self.lines: list[tuple[str, int, bytes]] = []
        self.pools = self.make_pools()
        self._permits: Permits | None = None
        self._versions = itertools.count(1)

    def make_pools(self, budget_bytes: int = 1 << 30, prepare_timeout_s: float = 5.0) -> WarmPools:
        return WarmPools(
            self.runtime,
            self.code,
            self.admission,
            self.clock,
            n_workers=1,
            at_once=1,
            budget_bytes=budget_bytes,
            prepare_timeout_s=prepare_timeout_s,
            on_line=lambda name, version, line: self.lines.append((name, version, line)),
        )

    async def _no_repair(self, deployment: Deployment) -> None:
        raise AssertionError("nothing is missing")

    def deployment(self, text: str, name: str = "f", *, kind: Kind = Kind.REACTOR, **manifest: Any) -> Deployment:
        key = format(abs(hash(text)), "064x")
        if not self.store.keeps_native(key):
            engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
            native = self.store.scratch / key
            native.write_bytes(wasmtime.Module(engine, wasmtime.wat2wasm(text)).serialize())
            self.store.put_native(key, native)
        raw = {"name": name, "warm": {"max": 4}, **manifest}
        return Deployment(name, next(self._versions), kind, "0" * 64, key, "", manifest_from_builtins(raw))

    async def open(self, text: str = COUNTER, name: str = "f", **options: Any) -> tuple[WarmPool, Code]:
        """Return the pool of a new function and its code, which is loaded and in use."""
        deployment = self.deployment(text, name, **options)
        code = await self.code.acquire(deployment)
        pool = self.pools.open(deployment)
        assert pool is not None
        return pool, code

    async def settled(self) -> None:
        """Let the loop turn until nothing more is going to be made."""
        await asyncio.sleep(0)
        while self.pools._looking or self.pools._making:
            await asyncio.sleep(0)

    async def until_none_runs(self) -> None:
        """Let slices that run on after their instance was closed come to their ends."""
        async with asyncio.timeout(5):  # else something was never closed
            while self.runtime.alive:
                capi.engine_increment_epoch(self.runtime.engine)
                await asyncio.sleep(0)

    async def filled(self, pool: WarmPool, code: Code) -> None:
        """Have a first request find nothing, unless there is a min, so that *pool* has an instance for the next."""
        assert pool.n_min or pool.take(code) is None
        await self.settled()
        assert len(pool.stock) == 1

    def occupy(self, n: int) -> None:
        """Have *n* requests run."""
        if self._permits is None:
            self._permits = self.admission.configure("others", limit=1000)
        for _ in range(n):
            assert self.admission.try_acquire(self._permits)
            self.pools.make_room()


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    made = Runtime(CONFIG)
    yield made
    made.close()


@pytest.fixture
async def rig(runtime: Runtime, tmp_path: Path) -> Any:
    made = Rig(runtime, tmp_path)
    yield made
    made.pools.close()
    await made.settled()
    await made.until_none_runs()
    assert (made.pools.n_held, made.pools.n_bytes, runtime.alive) == (0, 0, 0)


async def test_first_request_finds_nothing_and_the_second_what_was_made_meanwhile(rig: Rig) -> None:
    pool, code = await rig.open()
    await rig.filled(pool, code)
    instance = pool.take(code)
    assert instance is not None
    assert await instance.fiber.call(b"count", results=1) == 101  # _initialize has run
    counted = {name: n for name, n in pool.counters.items() if name != "cpu_ms"}
    assert counted == {"warm_hits": 1, "warm_misses": 1, "warm_prepared": 1}
    pool.give_back(instance, answered=True)


async def test_each_request_gets_an_instance_that_none_has_used(rig: Rig) -> None:
    pool, code = await rig.open()
    await rig.filled(pool, code)
    for _ in range(3):
        instance = pool.take(code)
        assert instance is not None
        assert await instance.fiber.call(b"count", results=1) == 101
        pool.give_back(instance, answered=True)
        await rig.settled()


async def test_function_without_warm_has_no_pool(rig: Rig) -> None:
    assert rig.pools.open(rig.deployment(COUNTER, warm={})) is None
    assert rig.pools.open(rig.deployment(COUNTER, kind=Kind.HTTP, warm={"max": 2, "min": 1})) is None


async def test_instance_serves_as_many_requests_as_reuse_says_and_then_goes(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 1, "min": 1, "reuse": 3})
    await rig.filled(pool, code)
    counted = []
    for _ in range(4):
        instance = pool.take(code)
        assert instance is not None
        instance.begin(lambda line: None)
        counted.append(await instance.fiber.call(b"count", results=1))
        pool.give_back(instance, answered=True)
        await rig.settled()
    assert counted == [101, 102, 103, 101]


async def test_no_other_instance_is_made_while_one_that_serves_comes_back(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 4, "reuse": 100})
    assert pool.take(code) is None
    own = Instance(rig.runtime, pool.deployment, code, rig.clock, lambda line: None)
    own.n_requests = 1
    await own.start()
    await rig.settled()
    assert rig.pools.n_held == 0
    pool.give_back(own, answered=True)
    assert pool.stock == [own]
    assert pool.take(code) is own
    pool.give_back(own, answered=False)
    await rig.settled()
    assert len(pool.stock) == 1  # in its place


async def test_instance_whose_request_failed_is_not_used_again(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 1, "min": 1, "reuse": 100})
    await rig.filled(pool, code)
    instance = pool.take(code)
    assert instance is not None
    pool.give_back(instance, answered=False)
    await rig.settled()
    assert instance not in pool.stock


@pytest.mark.parametrize(("n_pages", "stays"), [(7, True), (8, False)])
async def test_instance_that_grew_over_half_of_what_it_may_is_not_used_again(
    rig: Rig, n_pages: int, stays: bool
) -> None:
    """It begins with 2 pages of at most 16: 9 are halfway."""
    pool, code = await rig.open(warm={"max": 1, "min": 1, "reuse": 100}, limits={"memory_bytes": 16 * 65536})
    await rig.filled(pool, code)
    instance = pool.take(code)
    assert instance is not None
    assert await instance.fiber.call(b"grow", n_pages, results=1) == 2
    pool.give_back(instance, answered=True)
    assert (instance in pool.stock) is stays


async def test_instance_that_was_refused_memory_is_not_used_again(rig: Rig) -> None:
    """The next request's trap would be taken for want of memory."""
    pool, code = await rig.open(REFUSED, warm={"max": 1, "min": 1, "reuse": 100})
    await rig.filled(pool, code)
    first = pool.take(code)
    assert first is not None
    pool.give_back(first, answered=True)
    assert pool.stock == [first]
    assert pool.take(code) is first
    await first.fiber.call(b"ask")
    pool.give_back(first, answered=True)
    assert first not in pool.stock


async def test_requests_that_wait_for_a_permit_keep_nobody_from_making_and_reusing(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 4, "reuse": 100})
    busy = rig.admission.configure("busy", limit=1)
    assert rig.admission.try_acquire(busy)
    waiting = asyncio.create_task(rig.admission.acquire(busy))
    await asyncio.sleep(0)
    assert rig.admission.queued == 1
    own = Instance(rig.runtime, pool.deployment, code, rig.clock, lambda line: None)
    own.n_requests = 1
    assert pool.take(code) is None
    await own.start()
    pool.give_back(own, answered=True)
    assert pool.stock == [own]
    other, other_code = await rig.open(COUNTER, "other")
    await rig.filled(other, other_code)
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_cpu_time_of_making_counts_for_the_function(rig: Rig) -> None:
    pool, code = await rig.open()
    await rig.filled(pool, code)
    cpu_ms = pool.stock[0].fiber.cpu_ns / 1e6
    assert cpu_ms > 0
    assert rig.pools.stats()["f"]["cpu_ms"] == cpu_ms
    journal = Journal(dict, rig.pools.stats)
    journal.finished("f", 1, "id", Outcome.OK, status=200, duration_ms=2, start_ms=1, cpu_ms=1000)
    assert journal.stats().functions["f"]["cpu_ms"] == pytest.approx(1000 + cpu_ms)


async def test_guest_that_waited_for_its_request_has_a_whole_slice_and_all_its_cpu_time(rig: Rig) -> None:
    pool, code = await rig.open()
    await rig.filled(pool, code)
    for _ in range(10):  # more ticks than a slice has
        capi.engine_increment_epoch(rig.runtime.engine)
    instance = pool.take(code)
    assert instance is not None
    assert instance.fiber.cpu_ns > 0
    instance.begin(lambda line: None)
    assert instance.fiber.cpu_ns == 0
    waits: list[str] = []

    async def note() -> None:
        waits.append("the slice had ended")

    instance.fiber.before_wait = note
    assert await instance.fiber.call(b"count", results=1) == 101
    assert waits == []
    pool.give_back(instance, answered=False)


async def test_lines_go_to_the_request_that_the_guest_runs_for(rig: Rig) -> None:
    pool, code = await rig.open(TALKATIVE)
    await rig.filled(pool, code)
    version = pool.deployment.version
    assert rig.lines == [("f", version, b"hi")]
    instance = pool.take(code)
    assert instance is not None
    lines: list[bytes] = []
    log = instance.begin(lines.append)
    await instance.fiber.call(b"say")
    log.close()
    assert (lines, len(rig.lines)) == ([b"hi"], 1)
    pool.give_back(instance, answered=True)


# a request that comes while an instance is made


async def joining(rig: Rig, pool: WarmPool, code: Code) -> asyncio.Task[Instance | None]:
    """Return a request that waits for the instance that is being made."""
    pool.prepare_s = pool.prepare_s or 5.0
    pool.arrivals.note(rig.clock.now)
    rig.pools._want(pool)
    while not rig.pools._making:
        await asyncio.sleep(0)
    assert pool.take(code) is None

    async def leave() -> None:
        return None

    task = asyncio.create_task(pool.join(leave))
    while pool.heir is None:
        assert not task.done()
        await asyncio.sleep(0)
    return task


async def test_request_that_finds_none_gets_the_one_that_is_being_made(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 1, "reuse": 2})
    instance = await (await joining(rig, pool, code))
    assert instance is not None
    assert await instance.fiber.call(b"count", results=1) == 101
    assert (instance.n_requests, pool.stock) == (1, [])
    pool.give_back(instance, answered=True)
    assert pool.stock == [instance]


async def test_reply_says_of_its_instance_what_the_metric_counts(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 1, "reuse": 3})
    instance = await (await joining(rig, pool, code))
    assert instance is not None
    said = [instance.desc]
    for _ in range(2):
        pool.give_back(instance, answered=True)
        assert pool.take(code) is instance
        said.append(instance.desc)
    assert said == ["", REUSED, REUSED]
    assert (pool.counters["warm_misses"], pool.counters["warm_hits"]) == (1, 2)
    pool.give_back(instance, answered=True)
    await rig.settled()
    ready = pool.take(code)
    assert ready is not None
    assert ready.desc == WARM
    pool.give_back(ready, answered=False)


async def test_request_waits_no_longer_than_making_takes_as_a_rule(rig: Rig) -> None:
    pool, code = await rig.open(SPINS)
    pool.prepare_s = 0.001
    assert await (await joining(rig, pool, code)) is None
    assert (pool in rig.pools._making, pool.heir) == (True, None)  # it goes on, for the next one
    rig.pools.retire(pool)
    await rig.until_none_runs()


@pytest.mark.parametrize("prepare_s", [0.0, 0.5])
async def test_request_does_not_wait_for_an_instance_that_is_late(rig: Rig, prepare_s: float) -> None:
    """Nor for the very first one: nobody knows how long that takes."""
    pool, code = await rig.open(SPINS)
    pool.prepare_s = prepare_s
    assert pool.take(code) is None
    while not rig.pools._making:
        await asyncio.sleep(0)
    rig.clock.now += 2 * prepare_s

    async def leave() -> None:
        raise AssertionError("it need not wait")

    assert await pool.join(leave) is None
    rig.pools.retire(pool)
    await rig.until_none_runs()


async def test_request_whose_client_leaves_before_it_waits_brings_nothing_back(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 1, "reuse": 100})
    pool.prepare_s = 5.0
    pool.arrivals.note(rig.clock.now)
    rig.pools._want(pool)
    while not rig.pools._making:
        await asyncio.sleep(0)
    assert pool.take(code) is None

    async def leave() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await pool.join(leave)
    assert pool.n_coming_back == 0
    await rig.settled()


async def test_request_makes_its_own_if_the_one_that_was_being_made_fails(rig: Rig) -> None:
    pool, code = await rig.open(TRAPS)
    assert await (await joining(rig, pool, code)) is None


async def test_instance_whose_request_has_gone_waits_for_the_next(rig: Rig) -> None:
    pool, code = await rig.open()
    pool.n_max = 1
    task = await joining(rig, pool, code)
    task.cancel()
    await asyncio.wait([task])
    await rig.settled()
    assert (task.cancelled(), len(pool.stock)) == (True, 1)


async def test_request_does_not_wait_for_an_instance_that_is_given_up(rig: Rig) -> None:
    pool, code = await rig.open()
    task = await joining(rig, pool, code)
    rig.occupy(ADMITTED)
    assert await task is None
    while rig.runtime.alive:  # its slice, if it runs, ends first
        await asyncio.sleep(0)


# what may be made ahead


async def test_command_whose_start_function_asks_for_its_request_is_never_made_ahead(rig: Rig) -> None:
    pool, code = await rig.open(NOSY, kind=Kind.COMMAND)
    assert pool.take(code) is None
    await rig.settled()
    assert pool.gave_up
    assert b"its start function calls WASI" in rig.lines[0][2]
    assert pool.take(code) is None
    await rig.settled()
    assert (pool.stock, pool.counters["warm_prepared"], len(rig.lines)) == ([], 0, 1)


async def test_command_without_one_is_made_ahead(rig: Rig) -> None:
    pool, code = await rig.open(COMMAND, kind=Kind.COMMAND)
    await rig.filled(pool, code)


async def test_reactor_that_asks_for_a_model_while_it_starts_is_never_made_ahead(rig: Rig) -> None:
    pool, code = await rig.open(MODELLER, capabilities={"models": ["m"]})
    assert pool.take(code) is None
    await rig.settled()
    assert pool.gave_up
    assert b"a model" in rig.lines[0][2]


async def test_guest_that_fails_to_start_is_tried_a_few_times_and_no_more(rig: Rig) -> None:
    pool, code = await rig.open(TRAPS)
    assert pool.take(code) is None
    for n in range(1, MAX_FAILURES + 1):
        assert not pool.gave_up
        await rig.settled()
        assert pool.n_failures == n
        rig.pools.sweep()
    await rig.settled()
    assert pool.n_failures == MAX_FAILURES
    assert pool.gave_up
    assert b"unreachable" in rig.lines[0][2]
    assert rig.runtime.alive == 0


async def test_guest_that_is_only_slow_is_tried_again_after_longer_and_longer_pauses(rig: Rig) -> None:
    """The host may have been busy, so no number of them is enough to give up."""
    rig.pools = rig.make_pools(prepare_timeout_s=0.001)
    pool, _ = await rig.open(SPINS, warm={"max": 1, "min": 1})
    pauses = []
    for _ in range(MAX_FAILURES + 5):
        await rig.settled()
        await rig.until_none_runs()
        pauses.append(pool.pause_s)
        rig.clock.now += pool.pause_s / 2
        rig.pools.sweep()
        assert not rig.pools._looking  # not yet
        rig.clock.now += pool.pause_s / 2
        rig.pools.sweep()
        assert rig.pools._looking
    assert pauses == [1, 2, 4, 8, 16, 32, MAX_PAUSE_S, MAX_PAUSE_S]
    assert not pool.gave_up
    assert len(rig.lines) == 7  # none once the pause does not change any more
    assert b"for 2 s: it took too long to start" in rig.lines[1][2]
    rig.pools.retire(pool)
    await rig.until_none_runs()


# how many


def test_rate_is_that_of_steady_arrivals_and_fades() -> None:
    arrivals = Arrivals()
    for i in range(2000):
        arrivals.note(i / 100)
    assert arrivals.rate(20) == pytest.approx(100, rel=0.05)
    assert arrivals.rate(25) == pytest.approx(100 / 2.718, rel=0.05)
    assert Arrivals().rate(5) == 0


async def test_pool_holds_what_comes_while_one_is_made_and_shrinks_when_less_comes(rig: Rig) -> None:
    pool, _code = await rig.open(warm={"max": 8})
    assert pool.target(rig.clock.now) == 0
    pool.prepare_s = 0.012
    for _ in range(2000):
        rig.clock.now += 0.01
        pool.arrivals.note(rig.clock.now)
    assert pool.target(rig.clock.now) == 4  # 100 a second, 12 ms each: 1.2, three times
    pool.prepare_s = 0.050
    assert pool.target(rig.clock.now) == 8  # the manifest's max
    assert pool.target(rig.clock.now + 7) == 4
    assert pool.target(rig.clock.now + IDLE_S) == 1
    assert pool.target(rig.clock.now + IDLE_S + 1) == 0


async def test_idle_pool_is_emptied_down_to_its_min_and_then_costs_no_timer(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 4})
    kept, _ = await rig.open(COUNTER, "kept", warm={"max": 4, "min": 2})
    await rig.settled()
    assert len(kept.stock) == 2
    await rig.filled(pool, code)
    rig.clock.now += IDLE_S + 1
    rig.pools.sweep()
    assert (len(pool.stock), len(kept.stock)) == (0, 2)
    assert rig.pools._sweeping is None
    assert rig.runtime.alive == 2


async def test_min_is_there_without_any_request_and_loads_its_code(rig: Rig) -> None:
    deployment = rig.deployment(COUNTER, warm={"max": 2, "min": 2})
    pool = rig.pools.open(deployment)
    assert pool is not None
    await rig.settled()
    assert len(pool.stock) == 2
    assert pool.key in rig.code


# giving way


async def test_requests_that_need_slots_get_them_at_once(rig: Rig) -> None:
    pool, _code = await rig.open(warm={"max": 8, "min": 8})
    await rig.settled()
    assert (len(pool.stock), rig.pools.n_held) == (8, 8)  # a quarter of the slots
    rig.occupy(ADMITTED - 8)
    assert rig.pools.n_held == 8
    rig.occupy(3)
    assert rig.pools.n_held == 5
    rig.occupy(5)
    assert (rig.pools.n_held, rig.runtime.alive) == (0, 0)
    await rig.settled()
    assert rig.pools.n_held == 0  # while there is no slot to spare, none is made


async def test_all_pools_together_hold_a_quarter_of_the_slots(rig: Rig) -> None:
    for name in ("a", "b", "c"):
        await rig.open(COUNTER, name, warm={"max": 6, "min": 6})
    await rig.settled()
    assert rig.pools.n_held == ADMITTED // 4


async def test_what_is_over_a_min_goes_first_and_of_the_function_called_longest_ago(rig: Rig) -> None:
    kept, _ = await rig.open(COUNTER, "kept", warm={"max": 1, "min": 1})
    await rig.settled()
    old, old_code = await rig.open(COUNTER, "old")
    new, new_code = await rig.open(COUNTER, "new")
    await rig.filled(old, old_code)
    await rig.filled(new, new_code)
    left = []
    rig.occupy(ADMITTED - 3)
    for _ in range(3):
        rig.occupy(1)
        left.append((len(kept.stock), len(old.stock), len(new.stock)))
    assert left == [(1, 0, 1), (1, 0, 0), (0, 0, 0)]


async def test_instances_that_wait_stay_within_their_memory(rig: Rig) -> None:
    rig.pools = rig.make_pools(budget_bytes=5 * 65536)
    pool, _ = await rig.open(warm={"max": 4, "min": 4})
    await rig.settled()
    assert (len(pool.stock), rig.pools.n_bytes) == (2, 4 * 65536)


async def test_tmp_counts_as_memory_of_an_instance_that_waits(rig: Rig) -> None:
    await rig.open(HOARDER, warm={"max": 1, "min": 1})
    await rig.settled()
    assert rig.pools.n_held == 1
    assert 3 * 65536 <= rig.pools.n_bytes < 4 * 65536  # two pages of memory, and one in a file


async def test_instance_larger_than_all_that_may_wait_is_made_at_its_request(rig: Rig) -> None:
    rig.pools = rig.make_pools(budget_bytes=65536)
    pool, code = await rig.open()
    assert pool.take(code) is None
    await rig.settled()
    assert pool.gave_up
    assert (rig.pools.n_held, rig.runtime.alive) == (0, 0)


# versions and code


async def test_retired_version_loses_its_instances_and_takes_none_back(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 2, "min": 1, "reuse": 10})
    await rig.filled(pool, code)
    running = pool.take(code)
    assert running is not None
    await rig.settled()
    rig.pools.retire(pool)
    assert (pool.stock, rig.runtime.alive) == ([], 1)
    pool.give_back(running, answered=True)
    assert rig.runtime.alive == 0
    assert pool.take(code) is None
    await rig.settled()
    assert rig.pools.n_held == 0


async def test_new_version_is_prepared_for_the_requests_that_come_to_the_old_one(rig: Rig) -> None:
    old, code = await rig.open()
    await rig.filled(old, code)
    new = rig.pools.open(rig.deployment(COUNTER), after=old)
    rig.pools.retire(old)
    assert new is not None
    await rig.settled()
    assert len(new.stock) == 1


async def test_version_that_is_retired_while_an_instance_is_made_gets_none(rig: Rig) -> None:
    pool, code = await rig.open()
    pool.take(code)
    while not rig.pools._making:
        await asyncio.sleep(0)
    rig.pools.retire(pool)
    assert rig.pools.n_held == 0
    while rig.runtime.alive:  # its slice, if it runs, ends first
        await asyncio.sleep(0)
    assert pool.stock == []


async def test_code_that_is_unloaded_takes_its_instances_with_it(rig: Rig) -> None:
    pool, code = await rig.open()
    await rig.filled(pool, code)
    rig.code.release(code)
    rig.code.keep_only(set())
    assert (pool.stock, rig.runtime.alive) == ([], 0)
    code = await rig.code.acquire(pool.deployment)
    assert pool.take(code) is None
    await rig.settled()
    assert pool.stock == []  # not again and again while there is not enough memory for the code
    rig.clock.now += IDLE_S
    await rig.filled(pool, code)


async def test_min_keeps_its_code_loaded_until_it_is_retired(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 1, "min": 1})
    await rig.settled()
    rig.code.release(code)
    assert code.n_users == 1
    rig.pools.retire(pool)
    assert code.n_users == 0


async def test_code_is_released_once_when_its_version_is_retired_while_another_instance_is_made(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 2, "min": 2})
    while not pool.stock:
        await asyncio.sleep(0)
    pool.prepare_ns = 10**9  # so that the second one is made in a guests' thread
    while not rig.pools._making:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert pool in rig.pools._making
    rig.pools.retire(pool)
    await rig.until_none_runs()
    assert code.n_users == 1  # ours


async def test_code_that_is_dropped_from_under_a_min_is_let_go(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 1, "min": 1})
    await rig.settled()
    rig.code.release(code)
    rig.code.keep_only(set())
    assert (pool.code, code.n_users, rig.code.n_bytes) == (None, 0, 0)


async def test_instance_of_code_that_was_loaded_anew_is_not_used(rig: Rig) -> None:
    pool, code = await rig.open()
    await rig.filled(pool, code)
    again = Code(code.key, code.template, code.bundle, code.n_bytes)
    assert pool.take(again) is None
    assert pool.stock == []
    await rig.settled()


async def test_draining_worker_drops_all_and_makes_none(rig: Rig) -> None:
    pool, code = await rig.open(warm={"max": 4, "min": 1, "reuse": 5})
    await rig.filled(pool, code)
    running = pool.take(code)
    assert running is not None
    rig.pools.close()
    pool.give_back(running, answered=True)
    assert rig.runtime.alive == 0
    assert pool.take(code) is None
    await rig.settled()
    assert rig.pools.n_held == 0
