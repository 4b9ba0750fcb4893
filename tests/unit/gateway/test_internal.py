"""Functions are invoked in memory as they are over HTTP: one funnel, other permits, no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from function_hosts import Function, Host, Templates, host_of, loader
from test_component_answers import GUEST as RUNS_ON

from faas.config import HostConfig, PoolConfig
from faas.errors import (
    CallDepthError,
    DeadlineExceededError,
    FunctionNotFoundError,
    GuestTrapError,
    MalformedRequestError,
    NotServedError,
    OverloadedError,
)
from faas.gateway.inmemory import HIGH_WATER_BYTES
from faas.gateway.internal import InternalReply, InternalRequest, Invocation
from faas.invocation import Kind, Outcome
from faas.wasm.host import HostFunction
from faas.wasm.runtime import HOST_IMPORTS, Runtime

CONFIG = HostConfig(pool=PoolConfig(slots=64), guest_threads=2, workers=1)
# Says "first"; asks the hook, which may wait or have it trap; says "second".
TALKER = r"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "env" "hook" (func $hook (param i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\10\00\00\00\12\00\00\00\30\00\00\00\06\00\00\00")
  (data (i32.const 16) "Status: 201\0a\0afirst")
  (data (i32.const 48) "second")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
    (if (call $hook (i32.const 0)) (then unreachable))
    (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 64)))))
"""
# Writes 64 pieces of 64 KiB, and says so after each.
FLOOD = r"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "env" "hook" (func $hook (param i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "\10\00\00\00\0d\00\00\00\00\00\01\00\00\00\01\00")
  (data (i32.const 16) "Status: 200\0a\0a")
  (func (export "_start") (local $i i32)
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
    (loop $more
      (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 64)))
      (drop (call $hook (local.get $i)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $i) (i32.const 64))))))
"""


class Hooks:
    """What the guests' hook does."""

    def __init__(self) -> None:
        self.hook: Callable[[int], Any] = lambda _at: 0


HOOKS = Hooks()
IMPORTS = {**HOST_IMPORTS, "env": {"hook": HostFunction("i", "i", lambda _guest, at: HOOKS.hook(at), True)}}


@pytest.fixture(autouse=True)
def _fresh_hooks() -> None:
    HOOKS.__init__()  # type: ignore[misc]


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


class Gate:
    """A hook that waits: ``reached`` when a guest came, ``opened`` with what it is told."""

    def __init__(self, answer: int = 0) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.n_waiting = 0
        self._answer = answer
        HOOKS.hook = self._hook

    def _hook(self, _at: int) -> Awaitable[int]:
        return self._wait()

    async def _wait(self) -> int:
        self.n_waiting += 1
        self.reached.set()
        await self.opened.wait()
        return self._answer


async def ask(host: Host, function: str, target: str = "", body: bytes = b"", **facts: Any) -> InternalReply:
    return await host.internal.invoke(function, "", InternalRequest("POST", target, body=body), **facts)


def flooding() -> list[int]:
    """Have the hook wait for a turn of the loop, which lets go of what was written; return how often it did."""
    written: list[int] = []

    async def wrote(at: int) -> int:
        written.append(at)
        await asyncio.sleep(0)
        return 0

    HOOKS.hook = wrote
    return written


async def read(invocation: Invocation, n_bytes: int) -> bytes:
    """Return the next *n_bytes* of the body."""
    got = b""
    while len(got) < n_bytes:
        piece = invocation.body.read_nowait(n_bytes - len(got))
        if piece is None:
            await invocation.body.wait_readable()
        else:
            got += piece
    return got


# --- one funnel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("hello-command/hello-command", Kind.COMMAND),
        ("hello-reactor/hello-reactor", Kind.REACTOR),
        ("http/hello", Kind.HTTP),
    ],
)
async def test_every_kind_answers_in_memory_what_it_answers_over_http(
    runtime: Runtime, load: Templates, source: str, kind: Kind
) -> None:
    async with host_of(runtime, {"f": Function(load(source, kind), kind, version=3)}) as host:
        over_http = await host.one.send(b"GET /f HTTP/1.1\r\nHost: h\r\nX-Request-Id: r1\r\n\r\n")
        reply = await host.internal.invoke("f", "", InternalRequest(), request_id="r1", caller="a")
        head, _, body = over_http.partition(b"\r\n\r\n")
        theirs = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        ours = {name.lower(): value for name, value in reply.headers}
        assert (reply.status, reply.body) == (200, body)
        for name, value in theirs.items():
            if name.lower() not in (b"date", b"server", b"server-timing", b"transfer-encoding"):
                assert ours[name.decode().lower()] == value.decode()
        assert ours["x-faas-version"] == "3"
        assert (reply.outcome, reply.code, reply.detail, reply.version) == (Outcome.OK, "", "", 3)
        first, second = host.finished("f")
        assert (first["outcome"], first.get("caller")) == ("ok", None)
        assert (second["outcome"], second["caller"], second["request_id"]) == ("ok", "a", "r1")
        assert host.counters("f")["invocations"] == 2


async def test_a_function_sees_the_request_as_http_would_bring_it(runtime: Runtime, load: Templates) -> None:
    echo = Function(load("bad/env", Kind.COMMAND), Kind.COMMAND, {"routes": ["/users/{id}/*"], "env": {"A": "b"}})
    async with host_of(runtime, {"f": echo}) as host:
        request = InternalRequest(
            "PUT",
            "/users/7/x/y?a=b",
            [("X-One", "1"), ("Connection", "x-two"), ("Host", "h:81")],
            b"12345",
            "192.0.2.9",
        )
        reply = await host.internal.invoke("f", "1", request, request_id="r2")
        env = dict(line.split("=", 1) for line in reply.body.decode().splitlines() if "=" in line)
        said = {
            "REQUEST_METHOD": "PUT",
            "SCRIPT_NAME": "/users/7",
            "PATH_INFO": "/x/y",
            "QUERY_STRING": "a=b",
            "X_MATCHED_ROUTE": "/users/{id}/*",
            "FAAS_PARAM_ID": "7",
            "CONTENT_LENGTH": "5",
            "HTTP_X_ONE": "1",
            "HTTP_HOST": "h:81",
            "SERVER_NAME": "h",
            "REMOTE_ADDR": "192.0.2.9",
            "FAAS_REQUEST_ID": "r2",
            "A": "b",
        }
        assert {name: env.get(name) for name in said} == said
        assert "HTTP_CONNECTION" not in env


@pytest.mark.parametrize(
    ("routes", "target", "said"),
    [
        (["/g/{id}", "POST /first/*", "/second"], "", ("/first", "", "/first/*")),
        (["/g/{id}"], "?q", ("", "/", "")),
        (["/first"], "?q", ("/first", "", "/first")),
        (["/first"], "/other/path", ("", "/other/path", "")),
        (["GET /first"], "/first", ("", "/first", "")),  # routes say what HTTP reaches, and keep no caller out
    ],
)
async def test_a_target_that_no_route_matches_reaches_the_function_all_the_same(
    runtime: Runtime, load: Templates, routes: list[str], target: str, said: tuple[str, str, str]
) -> None:
    env_guest = Function(load("bad/env", Kind.COMMAND), Kind.COMMAND, {"routes": routes})
    async with host_of(runtime, {"f": env_guest}) as host:
        body = (await ask(host, "f", target)).body.decode()
        env = dict(line.split("=", 1) for line in body.splitlines() if "=" in line)
        assert (env["SCRIPT_NAME"], env["PATH_INFO"], env["X_MATCHED_ROUTE"]) == said


async def test_bodies_of_any_size_arrive_whole(runtime: Runtime, load: Templates) -> None:
    functions = {
        "reactor": Function(load("echo-c/echo-c", Kind.REACTOR), Kind.REACTOR, {"routes": ["/r"]}),
        "command": Function(load("bad/slow-reader", Kind.COMMAND), Kind.COMMAND),
        "http": Function(load("http/echo", Kind.HTTP), Kind.HTTP),
    }
    async with host_of(runtime, functions) as host:
        for name in ("reactor", "http"):
            for n_bytes in (0, 1, 3_000_000):
                body = bytes(i & 0xFF for i in range(251)) * (n_bytes // 251 + 1)
                reply = await ask(host, name, body=body[:n_bytes])
                assert (reply.status, reply.body == body[:n_bytes]) == (200, True), (name, n_bytes)


class Written:
    """A request's body that comes in pieces."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = list(pieces)
        self.closed = False

    async def next_chunk(self) -> bytes:
        await asyncio.sleep(0)
        piece = self._pieces.pop(0) if self._pieces else b""
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        self.closed = True


async def test_a_body_may_come_while_it_is_read(runtime: Runtime, load: Templates) -> None:
    async with host_of(runtime, {"f": Function(load("http/echo", Kind.HTTP), Kind.HTTP)}) as host:
        body = Written(b"one", b"two" * 100_000)
        reply = await host.internal.invoke("f", "", InternalRequest("POST", "", (), body))
        assert reply.body == b"one" + b"two" * 100_000
        await host.internal.wait_idle()
        assert body.closed


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"x" * 11, 413, "body-too-large"),
        (Written(b"x" * 10, b"x"), 413, "body-too-large"),
        (Written(b"x", ValueError("given up")), 400, "malformed-request"),
    ],
)
async def test_a_body_that_is_too_long_or_broken_off_is_refused(
    runtime: Runtime, load: Templates, body: Any, status: int, code: str
) -> None:
    function = Function(load("echo-c/echo-c", Kind.REACTOR), Kind.REACTOR, {"limits": {"max_body_bytes": 10}})
    async with host_of(runtime, {"f": function}) as host:
        reply = await host.internal.invoke("f", "", InternalRequest("POST", "", (), body))
        assert (reply.status, reply.code, reply.outcome) == (status, code, Outcome.REFUSED)


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("CONNECT", "/", ()),
        ("GE T", "/", ()),
        ("GET", "f", ()),
        ("GET", "/a b", ()),
        ("GET", "/a#b", ()),
        ("GET", "/a\r\nb", ()),
        ("GET", "/", [("a b", "c")]),
        ("GET", "/", [("a", "b\r\nc: d")]),
    ],
)
async def test_what_is_no_request_is_refused(
    runtime: Runtime, load: Templates, method: str, target: str, headers: Any
) -> None:
    function = Function(load("hello-command/hello-command", Kind.COMMAND), Kind.COMMAND)
    async with host_of(runtime, {"f": function}) as host:
        with pytest.raises(MalformedRequestError):
            host.internal.begin("f", "", InternalRequest(method, target, headers))


@pytest.mark.parametrize(("function", "qualifier"), [("g", ""), ("f", "2"), ("f", "nope")])
async def test_what_is_not_served_is_not_found(
    runtime: Runtime, load: Templates, function: str, qualifier: str
) -> None:
    async with host_of(runtime, {"f": Function(load("bad/cgi", Kind.COMMAND), Kind.COMMAND)}) as host:
        with pytest.raises(NotServedError):
            host.internal.begin(function, qualifier, InternalRequest())


async def test_a_head_request_has_a_head_and_no_body(runtime: Runtime, load: Templates) -> None:
    async with host_of(runtime, {"f": Function(load("bad/cgi", Kind.COMMAND), Kind.COMMAND)}) as host:
        reply = await host.internal.invoke("f", "", InternalRequest("HEAD"))
        assert (reply.status, reply.body) == (200, b"")
        assert ("Content-Length", "6") in reply.headers


async def test_a_local_redirect_stays_in_the_function_where_it_can(runtime: Runtime, load: Templates) -> None:
    cgi = load("bad/cgi", Kind.COMMAND)
    functions = {
        "f": Function(cgi, Kind.COMMAND, {"routes": ["/f/*"]}),
        "open": Function(load("hello-command/hello-command", Kind.COMMAND), Kind.COMMAND),
        "keyed": Function(cgi, Kind.COMMAND, {"access": {"invoke": "key"}}),
    }
    async with host_of(runtime, functions) as host:
        for location, status, version_of in (("/f/x?status=202", 202, "f"), ("/open", 200, "open")):
            reply = await ask(host, "f", f"/f?location={location}")
            assert (reply.status, dict(reply.headers)["X-Faas-Function"]) == (status, version_of)
        assert (await ask(host, "f", "/f?location=/keyed")).code == "call-denied"
        assert (await ask(host, "f", "/f?location=/nowhere")).code == "route-not-found"


# --- how it ends ------------------------------------------------------------------------------------------------------


async def test_a_guest_that_traps_is_answered_with_a_problem(runtime: Runtime, load: Templates) -> None:
    async with host_of(runtime, {"f": Function(load("bad/trap", Kind.COMMAND), Kind.COMMAND)}) as host:
        reply = await ask(host, "f", request_id="r3")
        assert (reply.status, reply.code, reply.outcome) == (502, "guest-trap", Outcome.FAILED)
        assert dict(reply.headers)["Content-Type"] == "application/problem+json"
        assert b'"request_id": "r3"' in reply.body
        assert host.finished("f")[0]["status"] == 502


async def test_a_reply_streams_while_its_function_runs(runtime: Runtime, load: Templates) -> None:
    gate = Gate()
    async with host_of(runtime, {"f": Function(load(TALKER, Kind.COMMAND), Kind.COMMAND)}) as host:
        invocation = host.internal.begin("f", "", InternalRequest())
        head = await invocation.head()
        assert head.status == 201
        assert ("X-Faas-Function", "f") in head.headers
        assert await read(invocation, 5) == b"first"
        assert invocation.body.read_nowait(1) is None
        gate.opened.set()
        assert await invocation.body.read_all() == b"second"
        assert invocation.body.read_nowait(1) == b""
        invocation.close()


async def test_a_trap_behind_the_head_breaks_the_body_off(runtime: Runtime, load: Templates) -> None:
    gate = Gate(answer=1)
    async with host_of(runtime, {"f": Function(load(TALKER, Kind.COMMAND), Kind.COMMAND)}) as host:
        invocation = host.internal.begin("f", "", InternalRequest())
        assert (await invocation.head()).status == 201
        gate.opened.set()
        assert await read(invocation, 5) == b"first"
        for _ in range(2):
            with pytest.raises(GuestTrapError):
                await read(invocation, 1)
        invocation.close()
        reply = await ask(host, "f")
        assert (reply.status, reply.code, reply.outcome) == (502, "guest-trap", Outcome.FAILED)
        assert b"first" not in reply.body
        assert ("X-Faas-Function", "f") in reply.headers
        assert [entry["outcome"] for entry in host.finished("f")] == ["failed", "failed"]


async def test_a_caller_that_does_not_read_holds_its_callee_back(runtime: Runtime, load: Templates) -> None:
    written = flooding()
    async with host_of(runtime, {"f": Function(load(FLOOD, Kind.COMMAND), Kind.COMMAND)}) as host:
        invocation = host.internal.begin("f", "", InternalRequest())
        await invocation.head()
        while invocation.body._writer is None:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (len(written) + 1) * 65536 == HIGH_WATER_BYTES
        assert len(await invocation.body.read_all()) == 64 * 65536
        assert len(written) == 64
        invocation.close()


@pytest.mark.parametrize("closed", [False, True], ids=["read", "closed"])
async def test_a_whole_reply_that_is_not_read_holds_its_permit(
    runtime: Runtime, load: Templates, *, closed: bool
) -> None:
    """Else a caller could have the host keep any number of replies, each as long as its function may answer."""
    sent = b"x" * (HIGH_WATER_BYTES + 1)
    async with host_of(runtime, {"f": Function(load("echo-c/echo-c", Kind.REACTOR), Kind.REACTOR)}) as host:
        invocation = host.internal.begin("f", "", InternalRequest("POST", body=sent))
        await invocation.head()
        for _ in range(100):
            await asyncio.sleep(0)
        assert host.internal.active == host.internal._levels[0].admission.active == 1
        if closed:
            invocation.close()
        else:
            assert await invocation.body.read_all() == sent
        await host.internal.wait_idle()
        assert host.finished("f")[0]["outcome"] == ("cancelled" if closed else "ok")


async def test_a_reply_that_is_not_taken_in_time_is_broken_off_and_not_kept(runtime: Runtime, load: Templates) -> None:
    echo = Function(load("echo-c/echo-c", Kind.REACTOR), Kind.REACTOR, {"limits": {"timeout_s": 0.1}})
    async with host_of(runtime, {"f": echo}) as host:
        invocation = host.internal.begin("f", "", InternalRequest("POST", body=b"x" * (HIGH_WATER_BYTES + 1)))
        await invocation.head()
        await host.internal.wait_idle()
        assert not invocation.body._parts
        with pytest.raises(DeadlineExceededError):
            await invocation.body.read_all()


async def test_closing_ends_a_function_that_is_held_back(runtime: Runtime, load: Templates) -> None:
    flooding()
    async with host_of(runtime, {"f": Function(load(FLOOD, Kind.COMMAND), Kind.COMMAND)}) as host:
        invocation = host.internal.begin("f", "", InternalRequest())
        await invocation.head()
        invocation.close()
        await host.internal.wait_idle()
        assert [entry["outcome"] for entry in host.finished("f")] == ["cancelled"]


async def test_a_component_may_run_on_behind_its_reply(runtime: Runtime, load: Templates) -> None:
    text = RUNS_ON.replace("STATUS", "200").replace("COUNT", "0").replace("WAIT", "1")
    async with host_of(runtime, {"f": Function(load(text, Kind.HTTP), Kind.HTTP)}) as host:
        reply = await ask(host, "f")
        assert (reply.status, reply.body) == (200, b"")
        assert host.internal.active == 1
        await host.internal.wait_idle()
        (finished,) = host.entries("f")
        assert finished["outcome"] == "ok"


async def test_cancelling_who_waits_ends_the_function(runtime: Runtime, load: Templates) -> None:
    gate = Gate()
    async with host_of(runtime, {"f": Function(load(TALKER, Kind.COMMAND), Kind.COMMAND)}) as host:
        waiting = asyncio.create_task(ask(host, "f", depth=1, caller="a"))
        await gate.reached.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await host.internal.wait_idle()
        (finished,) = host.finished("f")
        assert (finished["outcome"], finished["reason"]) == ("cancelled", "the caller went away")


async def test_a_function_has_its_own_timeout(runtime: Runtime, load: Templates) -> None:
    Gate()
    talker = Function(load(TALKER, Kind.COMMAND), Kind.COMMAND, {"limits": {"timeout_s": 0.05}})
    silent = Function(load("bad/sleeper", Kind.COMMAND), Kind.COMMAND, {"limits": {"timeout_s": 0.05}})
    async with host_of(runtime, {"talker": talker, "silent": silent}) as host:
        for name in ("talker", "silent"):
            reply = await ask(host, name, deadline=asyncio.get_running_loop().time() + 60)
            assert (reply.status, reply.code, reply.outcome) == (504, "deadline-exceeded", Outcome.LIMITED)
            assert "within 0.05 s" in reply.detail


async def test_the_callers_deadline_ends_a_function_that_may_run_longer(runtime: Runtime, load: Templates) -> None:
    Gate()
    async with host_of(runtime, {"f": Function(load(TALKER, Kind.COMMAND), Kind.COMMAND)}) as host:
        deadline = asyncio.get_running_loop().time() + 0.05
        invocation = host.internal.begin("f", "", InternalRequest(), deadline=deadline, depth=1)
        assert (await invocation.head()).status == 201
        assert await read(invocation, 5) == b"first"
        with pytest.raises(DeadlineExceededError, match="caller's time"):
            await read(invocation, 1)
        assert asyncio.get_running_loop().time() >= deadline - 0.002
        invocation.close()
        assert host.finished("f")[0]["outcome"] == "limited"


async def test_the_callers_deadline_counts_in_the_queue_too(runtime: Runtime, load: Templates) -> None:
    gate = Gate()
    function = Function(load(TALKER, Kind.COMMAND), Kind.COMMAND, {"limits": {"max_concurrency": 1}})
    async with host_of(runtime, {"f": function}) as host:
        first = host.internal.begin("f", "", InternalRequest(), depth=1)
        await gate.reached.wait()
        reply = await ask(host, "f", depth=1, deadline=asyncio.get_running_loop().time() + 0.02)
        assert (reply.status, reply.code) == (504, "deadline-exceeded")
        assert "before an instance became free" in reply.detail
        gate.opened.set()
        assert (await first.reply()).body == b"firstsecond"
        first.close()


async def test_output_beyond_the_limit_is_a_problem(runtime: Runtime, load: Templates) -> None:
    function = Function(load(FLOOD, Kind.COMMAND), Kind.COMMAND, {"limits": {"max_output_bytes": 1_000_000}})
    async with host_of(runtime, {"f": function}) as host:
        reply = await ask(host, "f")
        assert (reply.status, reply.code, reply.outcome) == (507, "output-limit", Outcome.LIMITED)


async def test_a_bug_of_ours_is_an_answer_too(runtime: Runtime, load: Templates) -> None:
    async with host_of(runtime, {"f": Function(load("bad/cgi", Kind.COMMAND), Kind.COMMAND)}) as host:
        host.table.try_acquire = lambda _served: 1 // 0  # type: ignore[method-assign,assignment,return-value]
        reply = await ask(host, "f")
        assert (reply.status, reply.code, reply.outcome) == (500, "internal-error", Outcome.FAILED)


# --- permits and depth ------------------------------------------------------------------------------------------------


async def test_deeper_than_allowed_is_refused(runtime: Runtime, load: Templates) -> None:
    config = HostConfig(workers=1, max_call_depth=2)
    async with host_of(runtime, {"f": Function(load("bad/cgi", Kind.COMMAND), Kind.COMMAND)}, config=config) as host:
        for depth in (0, 1, 2):
            assert (await ask(host, "f", depth=depth)).status == 200
        with pytest.raises(CallDepthError):
            host.internal.begin("f", "", InternalRequest(), depth=3)


async def test_calls_have_permits_where_http_has_none_left(runtime: Runtime, load: Templates) -> None:
    gate = Gate()
    function = Function(load(TALKER, Kind.COMMAND), Kind.COMMAND, {"limits": {"max_concurrency": 1}})
    async with host_of(runtime, {"f": function}, permits=1) as host:
        host.one.connection.data_received(b"GET /f HTTP/1.1\r\nHost: h\r\n\r\n")
        await gate.reached.wait()
        assert host.admission.active == 1
        calls = [asyncio.create_task(ask(host, "f", depth=depth)) for depth in (0, 1, 2, 8)]
        while gate.n_waiting < 5:
            await asyncio.sleep(0)
        gate.opened.set()
        assert [(await call).body for call in calls] == [b"firstsecond"] * 4
        await host.one.idle()


async def test_one_depth_has_a_bound_of_its_own_and_says_so(runtime: Runtime, load: Templates) -> None:
    gate = Gate()
    config = HostConfig(workers=1, call_slots=1, queue_timeout_s=0.01)
    async with host_of(runtime, {"f": Function(load(TALKER, Kind.COMMAND), Kind.COMMAND)}, config=config) as host:
        first = host.internal.begin("f", "", InternalRequest(), depth=1)
        await gate.reached.wait()
        reply = await ask(host, "f", depth=1)
        assert (reply.status, reply.code, reply.outcome) == (503, "overloaded", Outcome.REFUSED)
        assert "Retry-After" in dict(reply.headers)
        gate.opened.set()
        assert (await first.reply()).status == 201
        first.close()


async def test_a_removed_function_takes_its_permits_along(runtime: Runtime, load: Templates) -> None:
    function = Function(load("bad/cgi", Kind.COMMAND), Kind.COMMAND)
    async with host_of(runtime, {"f": function, "g": function}) as host:
        assert (await ask(host, "f")).status == 200
        host.table.replace(2, (host.table.resolve("g", "").deployment,))
        with pytest.raises(FunctionNotFoundError):
            host.internal.begin("f", "", InternalRequest())
        assert list(host.internal._levels[0].admission._functions) == []


async def test_a_draining_worker_takes_only_what_its_functions_call(runtime: Runtime, load: Templates) -> None:
    async with host_of(runtime, {"f": Function(load("bad/cgi", Kind.COMMAND), Kind.COMMAND)}) as host:
        host.internal.draining = True
        with pytest.raises(OverloadedError):
            host.internal.begin("f", "", InternalRequest())
        assert (await ask(host, "f", depth=1)).status == 200


@pytest.mark.parametrize(
    ("settings", "slots"),
    [
        ({}, (32, 256, 128, 64, 32, 16, 8, 8, 8)),
        ({"call_slots": 1, "max_call_depth": 3, "async_concurrency": 5}, (5, 1, 1, 1)),
        ({"call_slots": 20, "max_call_depth": 2}, (32, 20, 10)),
    ],
)
def test_every_depth_has_slots(settings: dict[str, int], slots: tuple[int, ...]) -> None:
    config = HostConfig(**settings)  # type: ignore[arg-type]
    assert config.level_slots == slots
    assert config.with_whole_pool.pool.slots == config.pool.slots + sum(slots)
