"""What a request needs of its guest is done in one go; wherever that stops, the rest goes on as if it had not been."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import wasmtime
from whole_gateways import whole_gateway
from wires import Served

from faas.config import HostConfig, PoolConfig
from faas.invocation import Kind
from faas.wasi.context import GuestExit
from faas.wasm import calls
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.fiber import Fiber
from faas.wasm.host import HostFunction
from faas.wasm.host.wasi import FUNCTIONS
from faas.wasm.runtime import Runtime

CONFIG = HostConfig(pool=PoolConfig(slots=8), guest_threads=2)
# {"status": 200, "body": "ok"} in msgpack
ANSWER = r"\82\a6status\cc\c8\a4body\a2ok"
STEP = """
  (import "env" "hook" (func $hook (param i32) (result i32)))
  (import "env" "yield" (func $yield (param i32)))
  (memory (export "memory") 2)
  (func $callee)
  (func $step (param i32)
    (if (call $hook (local.get 0)) (then unreachable))
    (call $yield (local.get 0)) (call $callee))
"""
REACTOR = f"""(module {STEP}
  (data (i32.const 16) "{ANSWER}")
  (func $start (call $step (i32.const 0))) (start $start)
  (func (export "_initialize") (call $step (i32.const 1)))
  (func (export "faas_alloc") (param i32) (result i32) (call $step (i32.const 2)) (i32.const PTR))
  (func (export "faas_handle") (param i32 i32) (result i64) (call $step (i32.const 3)) (i64.const RESULT)))
"""
COMMAND = f"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  {STEP}
  (data (i32.const 0) "\\10\\00\\00\\00\\0f\\00\\00\\00")
  (data (i32.const 16) "Status: 200\\0a\\0aok")
  (func $start (call $step (i32.const 0))) (start $start)
  (func (export "_start")
    (call $step (i32.const 4)) (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""
OK = 16 << 32 | 18
PLAIN = b"GET /f HTTP/1.1\r\nHost: h\r\n\r\n"
REACTOR_STEPS = [calls.INSTANTIATE, calls.INITIALIZE, calls.ALLOC, calls.HANDLE]
STEPS = [(Kind.REACTOR, step) for step in REACTOR_STEPS] + [
    (Kind.COMMAND, step) for step in (calls.INSTANTIATE, calls.START)
]


class Host:
    """What the guest's host functions do at each step."""

    def __init__(self) -> None:
        self.hook: Callable[[int], Any] = lambda _step: 0
        self.yields_at = -1


HOST = Host()


def _yield(guest: Fiber, step: int) -> None:
    if step == HOST.yields_at:
        guest.request_yield()


IMPORTS = {
    "env": {
        "hook": HostFunction("i", "i", lambda _guest, step: HOST.hook(step), True),
        "yield": HostFunction("i", "", _yield),
    },
    "wasi_snapshot_preview1": FUNCTIONS,
}


@pytest.fixture(autouse=True)
def _fresh_host() -> None:
    HOST.__init__()  # type: ignore[misc]


@pytest.fixture(scope="module", params=["ctypes", "c"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    if request.param == "c" and calls.chosen() is calls:
        pytest.skip("_calls was not compiled here")
    made = Runtime(CONFIG, IMPORTS, calls if request.param == "ctypes" else calls.chosen())
    yield made
    assert made.alive == 0
    made.close()


@asynccontextmanager
async def gateway(
    runtime: Runtime, kind: Kind, *, ptr: int = 1024, result: int = OK, text: str = "", **limits: float
) -> AsyncIterator[Served]:
    """A connection to a gateway with one function at ``/f``, whose instances have been made once."""
    text = text or (REACTOR if kind is Kind.REACTOR else COMMAND)
    text = text.replace("PTR", str(ptr)).replace("RESULT", str(result))
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
    template = runtime.load(bytes(wasmtime.Module(engine, wasmtime.wat2wasm(text)).serialize()))
    template.has_initialize = kind is Kind.REACTOR
    try:
        async with whole_gateway(runtime, template, kind, **limits) as one:
            yield one
    finally:
        template.close()


async def ask(one: Served) -> tuple[int, bytes]:
    """Return the status and the body of the reply to one plain request."""
    reply = await one.send(PLAIN)
    head, _, body = reply.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.1 (\d+) ", head)
    assert status
    return int(status[1]), body


@pytest.mark.parametrize("kind", [Kind.REACTOR, Kind.COMMAND])
async def test_a_guest_that_never_waits_is_done_in_the_lane(runtime: Runtime, kind: Kind) -> None:
    async with gateway(runtime, kind) as one:
        for _ in range(3):
            one.connection.data_received(PLAIN)
        assert one.wire.written.count(b"\r\n\r\nok") == 3
        assert one.inside == [True] * 3


@pytest.mark.parametrize(("kind", "step"), STEPS)
async def test_a_guest_may_wait_in_any_step(runtime: Runtime, kind: Kind, step: int) -> None:
    seen: list[int] = []

    async def later() -> int:
        await asyncio.sleep(0)
        return 0

    def hook(at: int) -> Any:
        seen.append(at)
        return later() if at == step else 0

    HOST.hook = hook
    async with gateway(runtime, kind) as one:
        assert await ask(one) == (200, b"ok")
    assert seen == (REACTOR_STEPS if kind is Kind.REACTOR else [calls.INSTANTIATE, calls.START])


@pytest.mark.parametrize(("kind", "step"), STEPS)
async def test_a_guest_may_yield_in_any_step(runtime: Runtime, kind: Kind, step: int) -> None:
    HOST.yields_at = step
    async with gateway(runtime, kind) as one:
        assert await ask(one) == (200, b"ok")


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("kind", "step"), STEPS)
async def test_a_trap_in_any_step_is_the_guests_failure(runtime: Runtime, kind: Kind, step: int, waits: bool) -> None:
    async def later() -> int:
        await asyncio.sleep(0)
        return 1

    HOST.hook = lambda at: (later() if waits else 1) if at == step else 0
    async with gateway(runtime, kind) as one:
        status, body = await ask(one)
        assert status == 502
        assert b"unreachable" in body


@pytest.mark.parametrize(("kind", "step"), STEPS)
async def test_an_exit_in_any_step_is_told_with_its_code(runtime: Runtime, kind: Kind, step: int) -> None:
    def hook(at: int) -> int:
        if at == step:
            raise GuestExit(7)
        return 0

    HOST.hook = hook
    async with gateway(runtime, kind) as one:
        status, body = await ask(one)
        assert status == 502
        assert b"exited with code 7" in body


@pytest.mark.parametrize(("kind", "step"), STEPS)
async def test_the_deadline_ends_any_step(runtime: Runtime, kind: Kind, step: int) -> None:
    HOST.hook = lambda at: asyncio.Event().wait() if at == step else 0
    async with gateway(runtime, kind, timeout_s=0.05) as one:
        status, _ = await ask(one)
        assert status == 504


@pytest.mark.parametrize(("kind", "step"), STEPS)
async def test_a_client_that_goes_away_ends_any_step(runtime: Runtime, kind: Kind, step: int) -> None:
    waits = asyncio.Event()
    ended = asyncio.Event()

    async def forever() -> int:
        waits.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 0

    HOST.hook = lambda at: forever() if at == step else 0
    async with gateway(runtime, kind) as one:
        one.connection.data_received(PLAIN)
        await waits.wait()
        one.lose()
        await ended.wait()
        while runtime.alive:
            await asyncio.sleep(0)


SPIN = "(loop $spin (br $spin))"


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        (Kind.REACTOR, at)
        for at in ("(call $step (i32.const 0))", '"_initialize")', "(param i32) (result i32) (call", "i64) (")
    ]
    + [(Kind.COMMAND, at) for at in ("(call $step (i32.const 0))", '"_start")')],
)
async def test_the_cpu_limit_ends_any_step(runtime: Runtime, kind: Kind, at: str) -> None:
    text = REACTOR if kind is Kind.REACTOR else COMMAND
    place = text.index(at) + (len(at) if at.endswith(")") and not at.startswith("(call") else at.rindex("("))
    async with gateway(runtime, kind, text=text[:place] + SPIN + text[place:], cpu_s=0.02) as one:
        status, body = await ask(one)
        assert status == 504, body
        assert b"CPU" in body


@pytest.mark.parametrize(
    ("ptr", "result", "said"),
    [
        (0, OK, b"faas_alloc("),
        (2 * 65536 - 4, OK, b"outside its memory"),
        (1024, 16 << 32 | (2 << 20), b"more than 65536"),
        (1024, (2 * 65536 - 4) << 32 | 18, b"outside its memory"),
    ],
)
async def test_a_buffer_that_can_not_be_is_refused(runtime: Runtime, ptr: int, result: int, said: bytes) -> None:
    async with gateway(runtime, Kind.REACTOR, ptr=ptr, result=result, max_output_bytes=65536) as one:
        status, body = await ask(one)
        assert status >= 500
        assert said in body


@pytest.mark.parametrize(
    ("kind", "gone", "named"),
    [
        (Kind.REACTOR, '(export "faas_alloc")', b"'faas_alloc'"),
        (Kind.REACTOR, '(export "faas_handle")', b"'faas_handle'"),
        (Kind.REACTOR, '(export "memory")', b"'memory'"),
        (Kind.COMMAND, '(export "_start")', b"'_start'"),
    ],
)
async def test_an_export_that_is_not_there_is_named(runtime: Runtime, kind: Kind, gone: str, named: bytes) -> None:
    text = (REACTOR if kind is Kind.REACTOR else COMMAND).replace(gone, "")
    async with gateway(runtime, kind, text=text) as one:
        status, body = await ask(one)
        assert status == 502
        assert named in body
