"""Guests on fibers: they wait without a thread, spin without blocking, and end when they are told to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import wasmtime

from faas.clock import SystemClock
from faas.config import HostConfig, PoolConfig
from faas.errors import (
    ArtifactTamperedError,
    ConfigError,
    CpuLimitError,
    GuestTrapError,
    InternalError,
    OverloadedError,
    UnknownImportsError,
)
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.streams import CollectingOutput, EmptyInput
from faas.wasm import calls, capi
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.fiber import Fiber
from faas.wasm.host import HostFunction
from faas.wasm.memory import MemoryFaultError
from faas.wasm.runtime import MAX_RETIRED, Runtime
from faas.wasm.template import Template

SLOTS = 40
CONFIG = HostConfig(pool=PoolConfig(slots=SLOTS), guest_threads=2)

GUEST = """(module
  (import "env" "add" (func $add (param i32 i32) (result i32)))
  (import "env" "wait" (func $wait (param i32) (result i32)))
  (import "env" "fail" (func $fail (param i32)))
  (import "env" "yield" (func $yield))
  (import "env" "peek" (func $peek (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "hello")
  (global $n (mut i32) (i32.const 0))
  (func (export "count") (result i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))
  (func (export "add") (param i32 i32) (result i32) (call $add (local.get 0) (local.get 1)))
  (func (export "minus-one") (result i32) (i32.const -1))
  (func (export "minus-one-64") (result i64) (i64.const -1))
  (func (export "wait") (param i32) (result i32) (call $wait (local.get 0)))
  (func (export "wait-twice") (param i32) (result i32)
    (i32.add (call $wait (local.get 0)) (call $wait (local.get 0))))
  (func (export "fail") (param i32) (call $fail (local.get 0)))
  (func (export "peek") (param i32 i32) (result i32) (call $peek (local.get 0) (local.get 1)))
  (func $step (param i32) (result i32) (local.get 0))
  (func (export "pauses") (result i32) (call $yield) (call $step (i32.const 7)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "trap") unreachable)
  (func (export "divide") (result i32) (i32.div_u (i32.const 1) (i32.const 0)))
  (func (export "out-of-bounds") (result i32) (i32.load (i32.const 0x7fffffff)))
  (func $down (export "down") (result i32) (i32.add (call $down) (i32.const 1)))
  (func (export "loop") (loop $l (br $l))))
"""


class Host:
    """What the host functions of a test do; reset for each test."""

    def __init__(self) -> None:
        self.wait: Callable[[int], Any] = lambda n: n
        self.fail: BaseException = AssertionError("not set")
        self.closed: list[str] = []


HOST = Host()


def _raise(_guest: Fiber, _n: int) -> int:
    raise HOST.fail


def _peek(guest: Fiber, ptr: int, length: int) -> int:
    try:
        return sum(guest.memory.read(ptr, length))
    except MemoryFaultError:
        return 0xFFFFFFFF


IMPORTS = {
    "env": {
        "add": HostFunction("ii", "i", lambda _guest, a, b: (a + b) & 0xFFFFFFFF),
        "wait": HostFunction("i", "i", lambda _guest, n: HOST.wait(n), True),
        "fail": HostFunction("i", "", _raise),
        "yield": HostFunction("", "", lambda guest: guest.request_yield()),
        "peek": HostFunction("ii", "i", _peek),
    }
}


@pytest.fixture(autouse=True)
def _fresh_host() -> None:
    HOST.__init__()  # type: ignore[misc]


def compiled(text: str) -> bytes:
    """Return the native code of a module in text form, as the compile job would make it."""
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
    return bytes(wasmtime.Module(engine, wasmtime.wat2wasm(text)).serialize())


@pytest.fixture(scope="module", params=["ctypes", "c"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    if request.param == "c" and calls.chosen() is calls:
        pytest.skip("_calls was not compiled here")
    made = Runtime(CONFIG, IMPORTS, calls if request.param == "ctypes" else calls.chosen())
    yield made
    assert made.alive == 0
    made.close()


@pytest.fixture(scope="module")
def template(runtime: Runtime) -> Iterator[Template]:
    loaded = runtime.load(compiled(GUEST))
    yield loaded
    loaded.close()


def wasi() -> WasiContext:
    return WasiContext([], [], EmptyInput(), CollectingOutput(), CollectingOutput(), None, 0, SystemClock())


@asynccontextmanager
async def instance(runtime: Runtime, template: Template, **limits: Any) -> AsyncIterator[Fiber]:
    options = {"memory_limit_bytes": 1 << 20, "cpu_limit_s": 5.0, **limits}
    fiber = runtime.fiber(wasi(), **options)
    try:
        await fiber.instantiate(template)
        yield fiber
    finally:
        fiber.close()


async def call(runtime: Runtime, template: Template, name: str, *args: int, results: int = 1, **limits: Any) -> int:
    async with instance(runtime, template, **limits) as fiber:
        return await fiber.call(name.encode(), *args, results=results)


async def none_alive(runtime: Runtime) -> None:
    """Wait for slices that were running when their guest was closed."""
    async with asyncio.timeout(5):
        while runtime.alive:
            await asyncio.sleep(0.001)


# --- calls and memory ------------------------------------------------------------------------------------------------


async def test_a_call_passes_arguments_and_returns_the_result(runtime: Runtime, template: Template) -> None:
    assert await call(runtime, template, "add", 40, 2) == 42


async def test_results_are_unsigned_and_of_their_own_width(runtime: Runtime, template: Template) -> None:
    assert await call(runtime, template, "minus-one") == 0xFFFFFFFF
    assert await call(runtime, template, "minus-one-64") == 0xFFFFFFFFFFFFFFFF


async def test_every_instance_starts_from_the_beginning(runtime: Runtime, template: Template) -> None:
    async with instance(runtime, template) as fiber:
        assert [await fiber.call(b"count", results=1) for _ in range(2)] == [1, 2]
    assert await call(runtime, template, "count") == 1


async def test_the_host_sees_the_memory_of_the_guest_that_calls(runtime: Runtime, template: Template) -> None:
    assert await call(runtime, template, "peek", 0, 5) == sum(b"hello")


@pytest.mark.parametrize(("ptr", "length"), [(131071, 2), (0xFFFFFFFF, 1), (0, 0x80000000), (131072, 1)])
async def test_no_access_leaves_the_guests_memory(runtime: Runtime, template: Template, ptr: int, length: int) -> None:
    assert await call(runtime, template, "peek", ptr, length) == 0xFFFFFFFF


async def test_memory_that_grew_can_be_used_at_once(runtime: Runtime, template: Template) -> None:
    async with instance(runtime, template) as fiber:
        memory = fiber.own_memory()
        assert await fiber.call(b"grow", 1, results=1) == 2
        memory.write(131072, b"new")
        assert memory.read(131072, 3) == b"new"


async def test_memory_does_not_grow_over_its_limit(runtime: Runtime, template: Template) -> None:
    async with instance(runtime, template, memory_limit_bytes=3 * 65536) as fiber:
        assert await fiber.call(b"grow", 1, results=1) == 2
        assert await fiber.call(b"grow", 1, results=1) == 0xFFFFFFFF


async def test_a_function_that_is_not_exported_is_named(runtime: Runtime, template: Template) -> None:
    with pytest.raises(GuestTrapError, match="'missing'"):
        await call(runtime, template, "missing")


# --- traps and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "results", "reason"),
    [
        ("trap", 0, "unreachable-code-reached"),
        ("divide", 1, "integer-division-by-zero"),
        ("out-of-bounds", 1, "memory-out-of-bounds"),
        ("down", 1, "stack-overflow"),
    ],
)
async def test_a_trap_tells_its_reason_and_its_backtrace(
    runtime: Runtime, template: Template, name: str, results: int, reason: str
) -> None:
    with pytest.raises(GuestTrapError) as raised:
        await call(runtime, template, name, results=results)
    assert raised.value.facts["reason"] == reason
    assert "backtrace" in raised.value.facts["trace"]
    assert await call(runtime, template, "add", 1, 1) == 2


@pytest.mark.parametrize("error", [GuestExit(9), OverloadedError("no")], ids=["exit", "ours"])
async def test_what_a_host_function_raises_ends_the_call_as_it_is(
    runtime: Runtime, template: Template, error: Exception
) -> None:
    HOST.fail = error
    with pytest.raises(type(error)) as raised:
        await call(runtime, template, "fail", 0, results=0)
    assert raised.value is error


async def test_a_bug_in_a_host_function_is_an_internal_error(runtime: Runtime, template: Template) -> None:
    HOST.fail = KeyError("oops")
    with pytest.raises(InternalError, match="oops"):
        await call(runtime, template, "fail", 0, results=0)


async def test_an_error_of_ours_while_a_guest_waits_ends_the_call(runtime: Runtime, template: Template) -> None:
    async def refuse() -> int:
        await asyncio.sleep(0)
        raise OverloadedError("not now")

    HOST.wait = lambda _n: refuse()
    with pytest.raises(OverloadedError, match="not now"):
        await call(runtime, template, "wait", 1)


# --- waiting ---------------------------------------------------------------------------------------------------------


async def test_a_host_call_may_answer_at_once_or_later(runtime: Runtime, template: Template) -> None:
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n * 2

    HOST.wait = lambda n: n
    assert await call(runtime, template, "wait-twice", 4) == 8
    HOST.wait = later
    assert await call(runtime, template, "wait-twice", 4) == 16


async def test_many_guests_wait_at_once_without_a_thread_each(runtime: Runtime, template: Template) -> None:
    arrived, go = 0, asyncio.Event()

    async def meet(n: int) -> int:
        nonlocal arrived
        arrived += 1
        if arrived == SLOTS:
            go.set()
        await go.wait()
        return n

    HOST.wait = meet
    before = threading.active_count()
    answers = await asyncio.gather(*(call(runtime, template, "wait", i) for i in range(SLOTS)))
    assert answers == list(range(SLOTS))
    assert threading.active_count() <= before + 2


async def test_one_guest_more_than_slots_is_overloaded(runtime: Runtime, template: Template) -> None:
    go, waiting = asyncio.Event(), asyncio.Semaphore(0)

    async def stay(n: int) -> int:
        waiting.release()
        await go.wait()
        return n

    HOST.wait = stay
    guests = [asyncio.create_task(call(runtime, template, "wait", 1)) for _ in range(SLOTS)]
    for _ in guests:
        await waiting.acquire()
    with pytest.raises(OverloadedError):
        await call(runtime, template, "add", 1, 1)
    go.set()
    assert sum(await asyncio.gather(*guests)) == SLOTS
    assert await call(runtime, template, "add", 1, 1) == 2


async def test_a_guest_cancelled_while_it_waits_is_gone_at_once(runtime: Runtime, template: Template) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def wait_for_ever(_n: int) -> int:
        entered.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            left.set()

    HOST.wait = wait_for_ever
    guest = asyncio.create_task(call(runtime, template, "wait", 1))
    await entered.wait()
    guest.cancel()
    with pytest.raises(asyncio.CancelledError):
        await guest
    assert left.is_set()
    assert runtime.alive == 0


# --- spinning --------------------------------------------------------------------------------------------------------


async def test_a_guest_over_its_cpu_limit_is_ended(runtime: Runtime, template: Template) -> None:
    began = time.monotonic()
    with pytest.raises(CpuLimitError, match=r"0\.1 s"):
        await call(runtime, template, "loop", results=0, cpu_limit_s=0.1)
    assert time.monotonic() - began < 5


async def test_the_loop_runs_on_while_guests_spin(runtime: Runtime, template: Template) -> None:
    spinning = asyncio.gather(
        *(call(runtime, template, "loop", results=0, cpu_limit_s=0.1) for _ in range(4)), return_exceptions=True
    )
    n_calls = 0
    while not spinning.done():
        assert await call(runtime, template, "add", 1, 1) == 2
        n_calls += 1
        await asyncio.sleep(0)
    assert {type(outcome) for outcome in await spinning} == {CpuLimitError}
    assert n_calls > 10


async def test_cpu_time_is_counted_and_waiting_is_not(runtime: Runtime, template: Template) -> None:
    async with instance(runtime, template, cpu_limit_s=0.05) as spinner:
        with pytest.raises(CpuLimitError):
            await spinner.call(b"loop")
        assert spinner.cpu_ns >= 50_000_000

    async def nap(n: int) -> int:
        await asyncio.sleep(0.2)
        return n

    HOST.wait = nap
    async with instance(runtime, template, cpu_limit_s=0.05) as sleeper:
        assert await sleeper.call(b"wait", 3, results=1) == 3
        assert sleeper.cpu_ns < 50_000_000


async def test_a_guest_cancelled_in_the_middle_of_a_slice_is_closed_after_it(
    runtime: Runtime, template: Template
) -> None:
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await call(runtime, template, "loop", results=0)
    await none_alive(runtime)
    assert await call(runtime, template, "add", 1, 1) == 2


async def test_closing_twice_is_fine(runtime: Runtime, template: Template) -> None:
    async with instance(runtime, template) as fiber:
        fiber.close()
    assert runtime.alive == 0


async def test_a_guest_asked_to_yield_pauses_and_goes_on(runtime: Runtime, template: Template) -> None:
    paused: list[int] = []

    async def on_pause() -> None:
        paused.append(1)

    assert await call(runtime, template, "pauses", on_pause=on_pause) == 7
    assert paused


async def test_what_fails_in_a_pause_ends_the_guest(runtime: Runtime, template: Template) -> None:
    async def on_pause() -> None:
        raise OverloadedError("enough")

    with pytest.raises(OverloadedError, match="enough"):
        await call(runtime, template, "pauses", on_pause=on_pause)
    await none_alive(runtime)


# --- runtime, ticker, C API ------------------------------------------------------------------------------------------


def test_the_ticker_sleeps_when_nothing_runs_and_wakes_for_the_next_guest(runtime: Runtime) -> None:
    ticker = runtime._calls.Ticker(runtime.engine, 0.0001)
    try:
        deadline = time.monotonic() + 5
        for _ in range(2):
            while not ticker.asleep:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            ticker.wake()
            while ticker.asleep:
                assert time.monotonic() < deadline
                time.sleep(0.0001)
    finally:
        ticker.stop()
    ticker.stop()


async def test_a_spinning_guest_is_ended_after_a_long_silence_too(runtime: Runtime, template: Template) -> None:
    async with asyncio.timeout(5):
        while not runtime._ticker.asleep:
            await asyncio.sleep(0.01)
    with pytest.raises(CpuLimitError):
        await call(runtime, template, "loop", results=0, cpu_limit_s=0.05)


def test_code_that_the_engine_does_not_know_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ArtifactTamperedError):
        runtime.load(b"\x7fELF" + bytes(200))


def test_code_for_other_engine_settings_is_refused(runtime: Runtime) -> None:
    module = wasmtime.Module(wasmtime.Engine(), wasmtime.wat2wasm("(module)"))
    with pytest.raises(ArtifactTamperedError):
        runtime.load(bytes(module.serialize()))


def test_a_module_with_an_import_that_nobody_offers_is_refused(runtime: Runtime) -> None:
    with pytest.raises(UnknownImportsError, match="mystery"):
        runtime.load(compiled('(module (import "env" "mystery" (func)))'))


async def test_a_guest_without_memory_can_run_but_not_be_read(runtime: Runtime) -> None:
    template = runtime.load(compiled('(module (func (export "f") (result i32) (i32.const 1)))'))
    async with instance(runtime, template) as fiber:
        assert await fiber.call(b"f", results=1) == 1
        with pytest.raises(GuestTrapError, match="memory"):
            fiber.own_memory()
    template.close()


def test_a_library_without_a_symbol_that_we_need_is_named() -> None:
    with pytest.raises(ConfigError, match="no_such_symbol"):
        capi._bind(capi._held, "no_such_symbol", None)


# --- functions that take long ----------------------------------------------------------------------------------------


async def test_a_function_that_used_up_its_slices_begins_in_the_pool_the_next_time(
    runtime: Runtime, template: Template
) -> None:
    template.slow.clear()
    with pytest.raises(CpuLimitError):
        await call(runtime, template, "loop", results=0, cpu_limit_s=0.01)
    assert set(template.slow) == {b"loop"}
    async with instance(runtime, template, cpu_limit_s=0.01) as fiber:
        used_ns: list[int] = []

        async def note() -> None:
            used_ns.append(fiber.cpu_ns)

        fiber.before_wait = note
        before_ns = fiber.cpu_ns
        with pytest.raises(CpuLimitError):
            await fiber.call(b"loop")
        assert used_ns[0] == before_ns  # it had to wait before its first slice
    template.slow.clear()


async def test_a_function_that_is_quick_in_the_pool_comes_back(runtime: Runtime, template: Template) -> None:
    template.slow[b"count"] = time.monotonic() + 60
    async with instance(runtime, template) as fiber:
        fiber.cpu_ns = 0
        assert await fiber.call(b"count", results=1) == 1
    assert b"count" not in template.slow


# --- closing --------------------------------------------------------------------------------------------------------


async def test_a_store_that_is_closed_soon_goes_at_the_end_of_the_turn(runtime: Runtime, template: Template) -> None:
    fibers = []
    for _ in range(MAX_RETIRED + 2):
        fibers.append(runtime.fiber(wasi(), memory_limit_bytes=1 << 20, cpu_limit_s=5.0))
        await fibers[-1].instantiate(template)
    for fiber in fibers:
        fiber.close(soon=True)
        fiber.close(soon=True)
    assert runtime.alive == MAX_RETIRED  # no more than these wait
    await asyncio.sleep(0)
    assert runtime.alive == 0


async def test_while_slots_are_scarce_a_store_goes_at_once(runtime: Runtime, template: Template) -> None:
    fibers = [runtime.fiber(wasi(), memory_limit_bytes=1 << 20, cpu_limit_s=5.0) for _ in range(SLOTS // 2 + 1)]
    for fiber in fibers:
        await fiber.instantiate(template)
    fibers[0].close(soon=True)
    assert runtime.alive == SLOTS // 2
    for fiber in fibers:
        fiber.close()
    assert runtime.alive == 0


# --- memory ----------------------------------------------------------------------------------------------------------

PAGE = 65536
END = 2 * PAGE


async def test_memory_is_read_and_written_as_little_endian_up_to_its_last_byte(
    runtime: Runtime, template: Template
) -> None:
    async with instance(runtime, template) as fiber:
        memory = fiber.own_memory()
        assert memory.size() == END
        assert memory.read(0, 5) == b"hello"
        memory.write(END - 3, b"abc")
        assert memory.read(END - 3, 3) == b"abc"
        memory.write_u32(8, 0x01020304)
        assert memory.read(8, 4) == b"\4\3\2\1"
        memory.write_u64(16, 0xFFFFFFFFFFFFFFFE)
        assert memory.read_u32s(16, 2) == (0xFFFFFFFE, 0xFFFFFFFF)
        assert memory.read_u32(END - 4) & 0xFFFFFF00 == int.from_bytes(b"abc", "little") << 8
        assert memory.read(END, 0) == b""
        assert memory.read_u32s(0, 0) == ()
        memory.write(4, memoryview(bytearray(b"xy")))
        assert memory.read(4, 2) == b"xy"


@pytest.mark.parametrize(
    "access",
    [
        lambda memory: memory.read(END, 1),
        lambda memory: memory.read(END + 1, 0),
        lambda memory: memory.read(0, END + 1),
        lambda memory: memory.read(0xFFFFFFFF, 0xFFFFFFFF),
        lambda memory: memory.read(0xFFFFFFFFFFFFFFFF, 2),
        lambda memory: memory.write(END - 1, b"ab"),
        lambda memory: memory.read_u32(END - 3),
        lambda memory: memory.read_u32s(END - 8, 3),
        lambda memory: memory.read_u32s(0, 0xFFFFFFFF),
        lambda memory: memory.write_u32(END - 3, 1),
        lambda memory: memory.write_u64(END - 7, 1),
        lambda memory: memory.write_u64(0xFFFFFFFF, 1),
    ],
)
async def test_an_access_outside_of_the_memory_faults_and_writes_nothing(
    runtime: Runtime, template: Template, access: Callable[[Any], Any]
) -> None:
    async with instance(runtime, template) as fiber:
        memory = fiber.own_memory()
        before = memory.read(0, END)
        with pytest.raises(MemoryFaultError):
            access(memory)
        assert memory.read(0, END) == before


async def test_a_memory_that_grew_is_all_accessible(runtime: Runtime, template: Template) -> None:
    async with instance(runtime, template) as fiber:
        memory = fiber.own_memory()
        with pytest.raises(MemoryFaultError):
            memory.read_u32(END)
        assert await fiber.call(b"grow", 1, results=1) == 2
        assert memory.read_u32(END) == 0
        memory.write(END, b"new")
        assert memory.read(END, 3) == b"new"


async def test_what_is_asked_of_the_calls_with_wrong_types_is_refused(runtime: Runtime, template: Template) -> None:
    async with instance(runtime, template) as fiber:
        memory = fiber.own_memory()
        for wrong in (lambda: memory.read(0), lambda: memory.write(0, 7), lambda: memory.read("0", 1)):
            with pytest.raises(TypeError):
                wrong()
        assert memory.read(0, 5) == b"hello"
