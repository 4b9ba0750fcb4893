"""Functions call functions: those that their manifest names, in their own time, over no socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from function_hosts import Function, Host, Templates, host_of, loader

from faas.config import HostConfig, PoolConfig
from faas.errors import (
    CallDeniedError,
    CallDepthError,
    ConcurrencyLimitError,
    FunctionNotFoundError,
    GuestTrapError,
    MalformedRequestError,
)
from faas.gateway.calls import MAX_CALLS, CallResponse, FunctionCalls, function_at
from faas.gateway.internal import InternalRequest
from faas.guest.ports import GuestRequest
from faas.invocation import Kind
from faas.outbound.exchange import Request
from faas.outbound.failures import Failure, OutboundError
from faas.wasm.host import HostFunction
from faas.wasm.runtime import HOST_IMPORTS, Runtime

CONFIG = HostConfig(pool=PoolConfig(slots=64), guest_threads=2, workers=1)
# Says "first", waits for the hook, traps.
BREAKER = r"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "env" "hook" (func $hook (param i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\10\00\00\00\12\00\00\00")
  (data (i32.const 16) "Status: 201\0a\0afirst")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
    (drop (call $hook (i32.const 0)))
    unreachable))
"""
# What error-codes of wasi:http are, by their place in the variant.
DENIED, NOT_FOUND, URL_INVALID, LOOP = 15, 2, 19, 36


class Gate:
    """Where the guests' hook waits."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def wait(self, _at: int) -> int:
        self.reached.set()
        await self.opened.wait()
        return 0


GATES: list[Gate] = []
IMPORTS = {**HOST_IMPORTS, "env": {"hook": HostFunction("i", "i", lambda _guest, at: GATES[-1].wait(at), True)}}


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    made = Runtime(CONFIG, IMPORTS)
    yield made
    assert made.alive == 0
    made.close()


@pytest.fixture(scope="module")
def load(runtime: Runtime) -> Iterator[Templates]:
    with loader(runtime, CONFIG) as made:
        yield made


@pytest.fixture
def gate() -> Iterator[Gate]:
    GATES.append(Gate())
    yield GATES[-1]
    GATES.pop()


@pytest.fixture
def make_host(runtime: Runtime, load: Templates) -> Any:
    """Make a host on which ``a`` and ``b`` are components that pass on what a URL answers, and others answer."""

    @asynccontextmanager
    async def make(
        calls: tuple[str, ...] = ("a", "b", "echo", "env", "hello", "breaker"), **settings: Any
    ) -> AsyncIterator[Host]:
        caller = Function(load("http/outbound", Kind.HTTP), Kind.HTTP, {"capabilities": {"calls": list(calls)}})
        permits = settings.pop("permits", 8)
        limits = settings.pop("limits", {})
        functions = {
            "a": caller._replace(manifest={**caller.manifest, "limits": limits}),
            "b": caller,
            "echo": Function(load("echo-c/echo-c", Kind.REACTOR), Kind.REACTOR),
            "env": Function(load("bad/env", Kind.COMMAND), Kind.COMMAND),
            "hello": Function(load("http/hello", Kind.HTTP), Kind.HTTP),
            "breaker": Function(load(BREAKER, Kind.COMMAND), Kind.COMMAND),
        }
        config = HostConfig(workers=1, **settings)
        async with host_of(runtime, functions, config=config, permits=permits) as host:
            yield host

    return make


def calls_of(
    host: Host, name: str = "a", *, depth: int = 0, seconds: float = 60, **facts: Any
) -> tuple[FunctionCalls, list[str]]:
    """Return what an invocation of function *name* may call, and its log."""
    log: list[str] = []
    deadline = asyncio.get_running_loop().time() + seconds
    deployment = host.table.resolve(name, "").deployment
    calls = FunctionCalls(
        host.internal,
        deployment,
        deadline=deadline,
        depth=depth,
        request_id="r1",
        log_line=lambda line: log.append(line.decode()),
        **facts,
    )
    return calls, log


async def whole(response: CallResponse) -> bytes:
    body = await response.body.read_all()
    response.close()
    return body


async def ask(host: Host, url: str, function: str = "a") -> tuple[int, bytes]:
    """Return what a function that passes on what *url* answers answers to a client."""
    reply = await host.one.send(f"GET /{function}?{url} HTTP/1.1\r\nHost: h\r\nX-Request-Id: r9\r\n\r\n".encode())
    head, _, body = reply.partition(b"\r\n\r\n")
    if b"chunked" in head:
        body = b"".join(body.split(b"\r\n")[1::2])
    return int(head.split()[1]), body


# --- by faas_v1 -------------------------------------------------------------------------------------------------------


async def test_a_call_reaches_the_function_under_the_callers_request_id(make_host: Any) -> None:
    async with make_host() as host:
        calls, log = calls_of(host, traceparent=f"00-{'a' * 32}-{'b' * 16}-01", remote="192.0.2.3")
        request = GuestRequest("POST", "/env/x?q", [("X-One", b"\xff"), ("X-Faas-Key", b"secret")], b"body")
        response = await calls.begin("env", "", request)
        assert response.status == 200
        assert ("X-Request-Id", b"r1") in response.headers
        env = dict(line.split(b"=", 1) for line in (await whole(response)).splitlines() if b"=" in line)
        assert env[b"HTTP_TRACEPARENT"].startswith(b"00-aaaa")
        assert (env[b"REMOTE_ADDR"], env[b"FAAS_REQUEST_ID"], env[b"QUERY_STRING"]) == (b"192.0.2.3", b"r1", b"q")
        assert env[b"HTTP_X_ONE"] == b"\xff"
        assert b"HTTP_X_FAAS_KEY" not in env
        (finished,) = host.finished("env")
        assert (finished["request_id"], finished["caller"]) == ("r1", "a")
        assert finished["traceparent"].startswith("00-aaaa")
        assert log == []
        calls.close()


async def test_only_functions_that_the_manifest_names_are_called(make_host: Any) -> None:
    async with make_host(calls=("hello", "gone")) as host:
        calls, log = calls_of(host)
        for function, error in (("env", CallDeniedError), ("a", CallDeniedError), ("gone", FunctionNotFoundError)):
            with pytest.raises(error):
                await calls.begin(function, "", GuestRequest("GET", ""))
        with pytest.raises(MalformedRequestError):
            await calls.begin("hello", "", GuestRequest("GET", "no path"))
        assert [line.split(": ")[1:3] for line in log] == [
            ["GET env", "call-denied"],
            ["GET a", "call-denied"],
            ["GET gone", "function-not-found"],
            ["GET hello", "malformed-request"],
        ]
        assert (await calls.begin("hello", "1", GuestRequest("GET", ""))).status == 200
        calls.close()
        with pytest.raises(CallDeniedError):
            await calls.begin("hello", "", GuestRequest("GET", ""))


async def test_calls_end_where_the_host_says(make_host: Any) -> None:
    async with make_host(max_call_depth=3) as host:
        calls, _ = calls_of(host, depth=2)
        assert (await calls.begin("hello", "", GuestRequest("GET", ""))).status == 200
        calls.close()
        calls, log = calls_of(host, depth=3)
        with pytest.raises(CallDepthError):
            await calls.begin("hello", "", GuestRequest("GET", ""))
        assert "call-depth: functions called each other 4 deep, and max_call_depth is 3" in log[0]


async def test_one_invocation_has_a_bound_on_open_calls(make_host: Any, gate: Gate) -> None:
    async with make_host() as host:
        calls, _ = calls_of(host)
        begun = [asyncio.create_task(calls.begin("breaker", "", GuestRequest("GET", ""))) for _ in range(MAX_CALLS)]
        await asyncio.sleep(0)
        with pytest.raises(ConcurrencyLimitError):
            await calls.begin("breaker", "", GuestRequest("GET", ""))
        begun[0].cancel()
        await asyncio.gather(begun[0], return_exceptions=True)
        begun.append(asyncio.create_task(calls.begin("hello", "", GuestRequest("GET", ""))))
        assert (await begun[-1]).status == 200
        calls.close()
        await asyncio.gather(*begun, return_exceptions=True)


async def test_the_end_of_an_invocation_ends_what_it_called(make_host: Any, gate: Gate) -> None:
    async with make_host() as host:
        calls, _ = calls_of(host)
        response = await calls.begin("breaker", "", GuestRequest("GET", ""))
        assert response.status == 201
        calls.close()
        await host.internal.wait_idle()
        assert [entry["outcome"] for entry in host.finished("breaker")] == ["cancelled"]


async def test_a_call_has_the_callers_time_or_less(make_host: Any, gate: Gate) -> None:
    async with make_host() as host:
        for seconds, timeout_s in ((0.03, None), (60, 0.03)):
            calls, _ = calls_of(host, seconds=seconds)
            request = GuestRequest("GET", "", timeout_s=timeout_s)
            response = await calls.begin("breaker", "", request)
            with pytest.raises(Exception, match="the caller's time was over"):
                await whole(response)
            calls.close()


async def test_a_callee_that_traps_behind_its_head_breaks_the_body_off(make_host: Any, gate: Gate) -> None:
    async with make_host() as host:
        calls, _ = calls_of(host)
        response = await calls.begin("breaker", "", GuestRequest("GET", ""))
        gate.opened.set()
        with pytest.raises(GuestTrapError):
            await whole(response)
        calls.close()


async def test_a_guest_calls_by_the_import_module_and_by_http(runtime: Runtime, load: Templates) -> None:
    guest = load("services/services-c", Kind.COMMAND)
    functions = {
        "f": Function(guest, Kind.COMMAND, {"capabilities": {"calls": ["callee"], "kv": ["default"]}}),
        "callee": Function(load("hello-reactor/hello-reactor", Kind.REACTOR), Kind.REACTOR),
    }
    async with host_of(runtime, functions) as host:
        reply = await host.internal.invoke("f", "", InternalRequest())
        assert b"\ncall: 200 - hello world\n" in reply.body
        assert b"\ncall unknown: not granted\n" in reply.body
        reply = await host.internal.invoke("f", "", InternalRequest("GET", "?fetch=http://callee.faas.internal/"))
        assert (reply.status, reply.body) == (200, b"hello world\n")
        assert [entry["caller"] for entry in host.finished("callee")] == ["f", "f"]


# --- by HTTP ----------------------------------------------------------------------------------------------------------


async def test_a_component_reaches_functions_by_their_names(make_host: Any) -> None:
    async with make_host() as host:
        assert await ask(host, "http://hello.faas.internal/") == (200, b"hello world\n")
        status, body = await ask(host, "http://1.env.faas.internal:80/env/x?a=b")
        assert (status, b"PATH_INFO=/env/x\n" in body, b"HTTP_HOST=1.env.faas.internal" in body) == (200, True, True)
        assert await ask(host, "http://breaker.b.faas.internal/") == (502, b"error-code %d\n" % NOT_FOUND)
        assert {entry["request_id"] for entry in (*host.finished("hello"), *host.finished("env"))} == {"r9"}


async def test_what_a_callee_answers_is_what_its_caller_reads(make_host: Any) -> None:
    async with make_host() as host:
        url = "http://b.faas.internal/?http://c.faas.internal/"
        assert await ask(host, url) == (502, b"error-code %d\n" % DENIED)


async def test_a_callee_that_traps_leaves_no_reply_that_looks_whole(make_host: Any, gate: Gate) -> None:
    async with make_host() as host:
        wire = host.one.wire
        host.one.connection.data_received(b"GET /a?http://breaker.faas.internal/ HTTP/1.1\r\nHost: h\r\n\r\n")
        await wire.until(lambda: b"first" in wire.written)
        gate.opened.set()
        await wire.until(lambda: wire.closed)
        assert wire.written.startswith(b"HTTP/1.1 201 ")
        assert not wire.written.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("url", "code", "reason"),
    [
        ("http://c.faas.internal/", DENIED, "call-denied"),
        ("http://C.FAAS.internal./", DENIED, "call-denied"),
        ("https://hello.faas.internal/", URL_INVALID, "no TLS between functions"),
        ("http://hello.faas.internal:81/", URL_INVALID, "functions are called at"),
        ("http://x.y.hello.faas.internal/", URL_INVALID, "functions are called at"),
        ("http://faas.internal/", URL_INVALID, "functions are called at"),
    ],
)
async def test_what_may_not_be_called_is_refused_and_never_looked_up(
    make_host: Any, url: str, code: int, reason: str
) -> None:
    async with make_host() as host:
        assert await ask(host, url) == (502, b"error-code %d\n" % code)
        said = [entry["text"] for entry in host.entries("a") if "text" in entry]
        assert len(said) == 1
        assert reason in said[0]


async def test_a_client_that_goes_away_takes_the_callees_of_its_function_along(make_host: Any, gate: Gate) -> None:
    async with make_host() as host:
        url = "http://b.faas.internal/?http://breaker.faas.internal/"
        host.one.connection.data_received(f"GET /a?{url} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        await gate.reached.wait()
        host.one.lose()
        await host.internal.wait_idle()
        await host.admission.wait_idle()
        assert [host.finished(name)[0]["outcome"] for name in ("a", "b", "breaker")] == ["cancelled"] * 3


async def test_without_the_capability_nothing_is_called(make_host: Any) -> None:
    async with make_host(calls=()) as host:
        assert await ask(host, "http://hello.faas.internal/") == (502, b"error-code %d\n" % DENIED)
        assert "[capabilities] calls" in host.entries("a")[0]["text"]


async def test_a_circle_of_calls_ends_at_the_depth(make_host: Any) -> None:
    async with make_host(max_call_depth=5, call_slots=1, permits=1) as host:
        way = "".join(f"http://{'ab'[i % 2]}.faas.internal/?" for i in range(1, 9))
        assert await ask(host, way) == (502, b"error-code %d\n" % LOOP)
        assert [len(host.finished(name)) for name in "ab"] == [3, 3]


async def test_callers_that_take_all_permits_do_not_block_themselves(make_host: Any) -> None:
    async with make_host(limits={"max_concurrency": 1}, call_slots=1, permits=1) as host:
        # All of a's permits of each depth are taken on the way.
        url = "http://a.faas.internal/?http://b.faas.internal/?http://a.faas.internal/?http://hello.faas.internal/"
        for _ in range(3):
            assert await ask(host, url) == (200, b"hello world\n")


async def test_many_callers_at_once_share_one_slot_of_each_depth(make_host: Any) -> None:
    async with make_host(call_slots=1, async_concurrency=5) as host:
        target = "?http://b.faas.internal/?http://a.faas.internal/?http://hello.faas.internal/"
        jobs = [host.internal.invoke("a", "", InternalRequest("GET", target)) for _ in range(20)]
        assert [reply.body for reply in await asyncio.gather(*jobs)] == [b"hello world\n"] * 20


@pytest.mark.parametrize(
    ("authority", "found"),
    [
        ("b.faas.internal", ("b", "")),
        ("B.Faas.Internal.", ("b", "")),
        ("live.b.faas.internal:80", ("b", "live")),
        ("b.faas.internal.example.org", None),
        ("bfaas.internal", None),
        ("x@b.faas.internal", None),
        ("example.org", None),
        (None, None),
    ],
)
def test_names_of_functions_are_told_from_hosts(authority: str | None, found: tuple[str, str] | None) -> None:
    assert function_at(authority) == found


async def test_an_http_call_has_the_timeouts_of_its_request(make_host: Any, gate: Gate) -> None:
    async with make_host() as host:
        calls, _ = calls_of(host)
        target = Request("GET", "http", "breaker.faas.internal", None, [], between_bytes_timeout_s=0.02)
        response = await calls.fetch("breaker", "", target)
        assert response.read_nowait(9) == b"first"
        with pytest.raises(OutboundError) as slow:
            await response.wait_readable()
        assert slow.value.failure is Failure.READ_TIMEOUT
        gate.opened.set()
        await response.wait_readable()
        with pytest.raises(OutboundError) as broken:
            response.read_nowait(9)
        assert broken.value.failure is Failure.RESPONSE_INCOMPLETE
        calls.close()


async def test_an_http_call_that_does_not_begin_to_answer_times_out(
    runtime: Runtime, load: Templates, gate: Gate
) -> None:
    silent = BREAKER.replace("(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))", "")
    function = Function(load(silent, Kind.COMMAND), Kind.COMMAND, {"capabilities": {"calls": ["f"]}})
    async with host_of(runtime, {"f": function}) as host:
        calls, _ = calls_of(host, "f")
        with pytest.raises(OutboundError) as late:
            await calls.fetch("f", "", Request("GET", "http", "f.faas.internal", "/", [], first_byte_timeout_s=0.02))
        assert late.value.failure is Failure.RESPONSE_TIMEOUT
        await host.internal.wait_idle()
        assert [entry["outcome"] for entry in host.finished("f")] == ["cancelled"]


async def test_trailers_of_a_component_reach_its_caller(runtime: Runtime, load: Templates) -> None:
    function = Function(load("http/trailers", Kind.HTTP), Kind.HTTP, {"capabilities": {"calls": ["f"]}})
    async with host_of(runtime, {"f": function}) as host:
        calls, _ = calls_of(host, "f")
        response = await calls.fetch("f", "", Request("POST", "http", "f.faas.internal", "/", []))
        while response.read_nowait(1000) != b"":
            await response.wait_readable()
        assert response.trailers() == [("x-body-bytes", b"0")]
        calls.close()
