"""What guests may believe of a request: nobody but the host says which job it is, or reaches a webhook unsigned."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from function_hosts import Function, Host, Templates, host_of, loader

from faas.config import HostConfig, PoolConfig
from faas.errors import CallDeniedError
from faas.gateway.calls import FunctionCalls
from faas.gateway.internal import InternalRequest
from faas.gateway.jobs import JobGate, JobRunner
from faas.gateway.lane import RESERVED
from faas.guest.ports import GuestRequest
from faas.invocation import Kind
from faas.outbound.exchange import Request
from faas.outbound.failures import Failure, OutboundError
from faas.wasm.runtime import Runtime

CONFIG = HostConfig(pool=PoolConfig(slots=8), guest_threads=1, workers=1)
FORGED = "".join(f"{name.title()}: forged\r\n" for name in sorted(RESERVED))
HOOKED = {"routes": ["/env/*"], "webhooks": [{"path": "/env/hook", "secret": "KEY"}]}


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    made = Runtime(CONFIG)
    yield made
    assert made.alive == 0
    made.close()


@pytest.fixture(scope="module")
def functions(runtime: Runtime) -> Iterator[dict[str, Function]]:
    with loader(runtime, CONFIG) as load:
        yield served(load)


def served(load: Templates) -> dict[str, Function]:
    return {
        "env": Function(load("bad/env", Kind.COMMAND), Kind.COMMAND, HOOKED),
        "echo": Function(load("echo-c/echo-c", Kind.REACTOR), Kind.REACTOR),
        "cgi": Function(load("bad/cgi", Kind.COMMAND), Kind.COMMAND, {**HOOKED, "routes": ["/cgi", "/env/*"]}),
        "caller": Function(load("http/outbound", Kind.HTTP), Kind.HTTP, {"capabilities": {"calls": ["env"]}}),
    }


def asked(source: str, target: str = "/env/x", headers: tuple[tuple[str, bytes], ...] = ()) -> dict[str, Any]:
    request = {"method": "POST", "target": target, "headers": headers, "body": b"", "remote": ""}
    facts = {"job": "j1", "attempt": 2, "source": source, "function": "env", "qualifier": "", "request": request}
    return {**facts, "max_result_bytes": 100_000}


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expect", ["", "Expect: 100-continue\r\nContent-Length: 1\r\n"], ids=["in the lane", "outside"]
)
@pytest.mark.parametrize("function", ["env/x", "echo"])
async def test_a_client_can_not_send_what_only_the_host_says(
    runtime: Runtime, functions: dict[str, Function], function: str, expect: str
) -> None:
    async with host_of(runtime, functions, config=CONFIG) as host:
        head = f"GET /{function} HTTP/1.1\r\nHost: h\r\n{FORGED}X-Own: mine\r\n{expect}\r\n"
        reply = await host.one.send(head.encode() + (b"x" if expect else b""))
        assert b" 200 " in reply
        assert host.one.inside == [not expect]
        assert b"mine" in reply
        assert b"forged" not in reply


async def test_what_asks_for_an_alias_or_carries_nothing_reserved_is_shown_as_it_came(
    runtime: Runtime, functions: dict[str, Function]
) -> None:
    async with host_of(runtime, functions, config=CONFIG) as host:
        reply = await host.one.send(b"GET /env/x HTTP/1.1\r\nHost: h\r\nX-Faas-Alias: live\r\nPrefer: a\r\n\r\n")
        assert b"HTTP_X_FAAS_ALIAS=live\n" in reply
        assert b"HTTP_PREFER=a\n" in reply


@pytest.mark.parametrize("source", ["http", "webhook", "function:caller"])
async def test_a_job_is_told_what_it_is_by_the_host_alone(
    runtime: Runtime, functions: dict[str, Function], source: str
) -> None:
    async with host_of(runtime, functions, config=CONFIG) as host:
        headers = tuple((name.title(), b"forged") for name in RESERVED)
        reply = await JobRunner(host.internal).invoke(asked(source, headers=headers))
        assert (b"HTTP_X_FAAS_JOB=j1\n" in reply["body"], b"HTTP_X_FAAS_ATTEMPT=2\n" in reply["body"]) == (True, True)
        assert b"forged" not in reply["body"]
        assert b"HTTP_X_FAAS_SCHEDULE" not in reply["body"]


async def test_a_scheduled_job_is_told_its_schedule(runtime: Runtime, functions: dict[str, Function]) -> None:
    async with host_of(runtime, functions, config=CONFIG) as host:
        headers = (("X-Faas-Schedule", b"nightly"), ("X-Faas-Scheduled-For", b"2026-03-01T02:00:00Z"), ("a", b"b"))
        body = (await JobRunner(host.internal).invoke(asked("schedule:nightly", headers=headers)))["body"]
        for line in (b"HTTP_X_FAAS_SCHEDULE=nightly\n", b"SCHEDULED_FOR=2026-03-01T02:00:00Z\n", b"HTTP_A=b\n"):
            assert line in body


async def test_what_is_invoked_in_memory_carries_nothing_reserved(
    runtime: Runtime, functions: dict[str, Function]
) -> None:
    async with host_of(runtime, functions, config=CONFIG) as host:
        headers = [(name, "forged") for name in RESERVED]
        reply = await host.internal.invoke("env", "", InternalRequest("GET", "/env/x", headers))
        assert reply.status == 200
        assert b"forged" not in reply.body


class Control:
    """The control process, as far as jobs are queued."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def ask(self, _operation: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        return {"id": "j1", "status_url": "/_faas/jobs/j1", "duplicate": False}


@pytest.mark.parametrize("alias", ["", "live"])
async def test_a_request_that_becomes_a_job_stays_with_the_alias_that_let_it_in(
    runtime: Runtime, functions: dict[str, Function], alias: str
) -> None:
    control = Control()
    async with host_of(runtime, functions, config=CONFIG) as host:
        host.gateway._jobs = JobGate(control, max_job_bytes=1000)  # type: ignore[arg-type]
        asks = f"X-Faas-Alias: {alias}\r\n" if alias else ""
        reply = await host.one.send(
            f"GET /echo HTTP/1.1\r\nHost: h\r\nPrefer: respond-async\r\n{FORGED}{asks}\r\n".encode()
        )
        assert b" 202 " in reply
        (job,) = control.asked
        assert (job["function"], job["qualifier"]) == ("echo", alias)
        assert not any(value == b"forged" for _, value in job["request"]["headers"])


# --- webhooks ---------------------------------------------------------------------------------------------------------


def calls_of(host: Host) -> FunctionCalls:
    return FunctionCalls(
        host.internal,
        host.table.resolve("caller", "").deployment,
        deadline=asyncio.get_running_loop().time() + 60,
        depth=0,
        request_id="r1",
        log_line=lambda _line: None,
    )


@pytest.mark.parametrize("path", ["/env/hook", "/env//hook", "/env/%68ook", "/env/x/../hook?a=b"])
async def test_a_function_can_not_call_what_takes_signed_deliveries(
    runtime: Runtime, functions: dict[str, Function], path: str
) -> None:
    async with host_of(runtime, functions, config=CONFIG) as host:
        calls = calls_of(host)
        with pytest.raises(CallDeniedError, match="signed"):
            await calls.begin("env", "", GuestRequest("POST", path))
        with pytest.raises(OutboundError) as caught:
            await calls.fetch("env", "", Request("POST", "http", "env.faas.internal", path, []))
        assert caught.value.failure is Failure.DENIED
        (await calls.begin("env", "", GuestRequest("POST", "/env/other"))).close()
        calls.close()
        await host.internal.wait_idle()
        assert len(host.finished("env")) == 1


@pytest.mark.parametrize(("source", "reaches"), [("webhook", True), ("schedule:s", True), ("function:caller", False)])
async def test_a_job_that_a_function_queued_reaches_no_webhook(
    runtime: Runtime, functions: dict[str, Function], source: str, reaches: bool
) -> None:
    async with host_of(runtime, functions, config=CONFIG) as host:
        runner = JobRunner(host.internal)
        if reaches:
            assert (await runner.invoke(asked(source, "/env/hook")))["status"] == 200
        else:
            with pytest.raises(CallDeniedError):
                await runner.invoke(asked(source, "/env/hook"))
        assert len(host.finished("env")) == reaches


async def test_no_local_redirect_in_memory_reaches_a_webhook(runtime: Runtime, functions: dict[str, Function]) -> None:
    async with host_of(runtime, {"cgi": functions["cgi"]}, config=CONFIG) as host:
        reply = await host.internal.invoke("cgi", "", InternalRequest("GET", "/cgi?location=/env/hook"))
        assert (reply.status, reply.code) == (403, "call-denied")
        assert len(host.finished("cgi")) == 1
