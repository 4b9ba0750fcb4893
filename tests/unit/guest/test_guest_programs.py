"""Promises of the SDKs: the C and the Rust program come to the same with every operation of faas_v1."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from faas.clock import SystemClock
from faas.config import HostConfig, PoolConfig
from faas.errors import GuestTrapError
from faas.guest.ports import GuestRequest
from faas.guest.session import GuestSession
from faas.manifest import Capabilities
from faas.testing.services import MemoryResponse, MemoryServices
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.streams import CollectingOutput, EmptyInput
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.fiber import Fiber
from faas.wasm.runtime import Runtime
from faas.wasm.template import Template

ROOT = Path(__file__).parents[3]
CONFIG = HostConfig(pool=PoolConfig(slots=4), guest_threads=1)
GRANTED = Capabilities(kv=("default",), secrets=("KEY",), outbound=("a.test",), calls=("callee",))
TRANSCRIPT = """\
open: ok
open another: not granted
get: not found
set: ok
get: v1
set for a while: ok
compare with nothing: conflict
compare with v0: conflict
compare with v1: ok
get: v2
increment a text: conflict
increment: ok
increment: -2 ok
list: k n (ok)
list: temp (ok)
delete: ok
delete: not found
set nothing: invalid argument
close: ok
close: no such handle
config: größer
config: not found
secret: s3cret
secret: not granted
http: ok
http: ok
first: ok quick
quick: 200 POST hello
wait: timed out
close: ok
close: no such handle
call: ok
call: 200 GET in
call unknown: not granted
job: job-1
job: job-1
"""


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    made = Runtime(CONFIG)
    yield made
    made.close()


def load(runtime: Runtime, name: str) -> Template:
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
    module = wasmtime.Module(engine, (ROOT / "functions/services" / name).read_bytes())
    return runtime.load(bytes(module.serialize()))


@pytest.fixture(scope="module")
def program(runtime: Runtime) -> Iterator[Template]:
    template = load(runtime, "services-c.wasm")
    yield template
    template.close()


class One:
    """One run of a program on a fiber, with ports in memory."""

    def __init__(self, runtime: Runtime, host: MemoryServices, query: str = "", **limits: Any) -> None:
        self.host = host
        self.out = CollectingOutput()
        self.log: list[bytes] = []
        wasi = WasiContext(
            args=[b"f"],
            env=lambda: [b"QUERY_STRING=" + query.encode()],
            stdin=EmptyInput(),
            stdout=self.out,
            stderr=self.out,
            bundle=None,
            tmp_bytes=0,
            clock=SystemClock(),
        )
        self.fiber: Fiber = runtime.fiber(wasi, memory_limit_bytes=1 << 24, cpu_limit_s=10, **limits)
        self.fiber.open_services = lambda: GuestSession("f", GRANTED, host.ports, self.log.append)

    async def run(self, template: Template, *, background: bool = False) -> str:
        try:
            await self.fiber.instantiate(template, background=background)
            await self.fiber.call(b"_start", background=background)
        finally:
            self.fiber.close()
        return self.out.getvalue().decode().partition("\n\n")[2]


async def tasks_over() -> None:
    """Return when no task but the test's own is left; its time limit is the test's."""
    while asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.sleep(0)


@pytest.mark.parametrize("background", [False, True], ids=["on the loop", "in the pool"])
@pytest.mark.parametrize("name", ["services-c.wasm", "services-rust.wasm"])
async def test_every_operation_comes_to_the_same_in_both_languages(
    runtime: Runtime, name: str, background: bool
) -> None:
    host = MemoryServices(config={("f", "MODE"): "größer"}, secrets={("f", "KEY"): "s3cret"})
    host.http.hold("https://a.test/slow")
    template = load(runtime, name)
    one = One(runtime, host)
    try:
        written = await one.run(template, background=background)
    finally:
        template.close()
    expected = TRANSCRIPT
    if "rust" in name:  # which closes what it drops, once
        expected = "".join(line for line in TRANSCRIPT.splitlines(keepends=True) if not line.startswith("close:"))
    assert written == expected
    assert [request.target for _, _, request in host.http.sent] == ["https://a.test/slow", "https://a.test/quick"]
    (_, function, qualifier, request, options) = host.jobs.jobs["job-1"]
    assert (function, qualifier, request.target, request.body) == ("callee", "live", "/x", b"in")
    assert (options.delay_s, options.idempotency_key) == (0.01, "once")
    await tasks_over()
    assert host.http.n_running == 0
    assert all(response.closed for response in host.http.responses + host.calls.responses)


@pytest.mark.parametrize(
    ("end", "failure"),
    [("return", str), ("exit", GuestExit), ("trap", GuestTrapError), ("wait", asyncio.CancelledError)],
)
async def test_what_is_under_way_ends_with_its_invocation(
    runtime: Runtime, program: Template, end: str, failure: type
) -> None:
    host = MemoryServices()
    held = host.http.hold("https://a.test/")
    one = One(runtime, host, f"begin=https://a.test/&end={end}")
    running = asyncio.ensure_future(one.run(program))
    if end == "wait":
        while not host.http.n_running:
            await asyncio.sleep(0)
        running.cancel()
    outcome = (await asyncio.gather(running, return_exceptions=True))[0]
    assert isinstance(outcome, failure)
    await tasks_over()
    assert not held.is_set()
    assert (host.http.n_running, host.http.closed) == (0, True)
    assert runtime.alive == 0


async def test_a_guest_that_computes_on_is_ended_with_its_request(runtime: Runtime, program: Template) -> None:
    host = MemoryServices()
    host.http.hold("https://a.test/")
    one = One(runtime, host, "begin=https://a.test/&end=loop")
    running = asyncio.ensure_future(one.run(program))
    while not host.http.n_running:
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await tasks_over()
    assert host.http.n_running == 0
    while runtime.alive:  # once the slice that runs right now has ended
        await asyncio.sleep(0)


async def test_a_fiber_that_is_closed_opens_nothing_for_a_slice_that_still_runs(runtime: Runtime) -> None:
    one = One(runtime, MemoryServices())
    one.fiber.close()
    assert one.fiber.services is None


async def test_a_bug_of_a_port_is_a_failure_that_the_guest_may_get_over(runtime: Runtime, program: Template) -> None:
    def broken(_request: GuestRequest) -> MemoryResponse:
        raise ZeroDivisionError

    one = One(runtime, MemoryServices(answer=broken), "fetch=https://a.test/")
    await one.run(program)
    reason = b"internal-error: the host failed at this; its log has the reason"
    assert one.log == [b"faas_v1.response_head: failed: " + reason]
    await tasks_over()
