"""Outbound HTTP in the words of wasi:http: each failure is a case of its error-code, with the payload that WIT asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from faas.gateway.outbound import FunctionOutbound, Outbound, error_code
from faas.invocation import Deployment, Kind
from faas.manifest import Capabilities, Limits, Manifest
from faas.outbound.failures import Failure, OutboundError
from faas.wasi.p2.http_bodies import PipedBody
from faas.wasi.p2.outbound_types import HttpCodeError, OutboundRequest
from faas.wasi.wit import interfaces


def deployment(*entries: str, timeout_s: float = 10.0) -> Deployment:
    manifest = Manifest("f", capabilities=Capabilities(outbound=entries), limits=Limits(timeout_s=timeout_s))
    return Deployment("f", 1, Kind.COMMAND, "", "", "", manifest)


@contextlib.asynccontextmanager
async def silent_port() -> AsyncIterator[int]:
    """The port of a server that reads and never answers."""
    writers: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)


def fits(value: Any, kind: Any) -> bool:
    """Whether a Python value is one of a WIT type; of those that error-codes are made of."""
    if kind is None:
        return value is None
    if kind == "string":
        return isinstance(value, str)
    if isinstance(kind, str):
        return isinstance(value, int) and 0 <= value < 1 << int(kind[1:])
    name, inner = kind
    if name == "option":
        return value is None or fits(value, inner)
    assert name == "record"
    return isinstance(value, tuple) and all(fits(part, field) for part, (_, field) in zip(value, inner, strict=True))


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize("detail", [None, 131072, "NXDOMAIN"])
def test_every_failure_is_a_valid_error_code(failure: Failure, detail: Any) -> None:
    named = failure in (Failure.DNS_ERROR, Failure.TLS_ALERT)
    if isinstance(detail, str) is not named and detail is not None:
        detail = None
    kind, cases = interfaces()["wasi:http/types"].types["error-code"]
    assert kind == "variant"
    case, payload = error_code(OutboundError(failure, "reason", detail=detail))
    assert case in dict(cases)
    assert fits(payload, dict(cases)[case])


async def test_a_request_of_a_guest_is_sent_and_answered() -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(status=201, body=await request.read(), headers={"X-Path": request.path_qs})

    app = web.Application()
    app.router.add_route("POST", "/{path:.*}", echo)
    async with TestServer(app) as server:
        outbound = Outbound()
        lines: list[bytes] = []
        way_out = outbound.for_function(deployment(f"127.0.0.1:{server.port}"), lines.append)
        body = PipedBody(None)
        body.pipe.write(b"from the guest")
        body.pipe.finish([("x-trailer", b"1")])
        request = OutboundRequest("POST", "http", f"127.0.0.1:{server.port}", "/a?b", [], body.pipe)
        response = await way_out.send(request)
        assert response.status == 201
        assert ("X-Path", b"/a?b") in response.headers
        await response.body.wait_readable()
        assert response.body.read_nowait(100) == b"from the guest"
        await response.body.wait_readable()
        assert response.body.read_nowait(100) == b""
        assert response.trailers() is None
        response.close()
        way_out.close()
        assert lines == []
        await outbound.aclose()


async def refusal(way_out: FunctionOutbound, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "method": "GET",
        "scheme": "https",
        "authority": "169.254.169.254",
        "path_with_query": "/latest",
        "headers": [],
    }
    with pytest.raises(HttpCodeError) as caught:
        await way_out.send(OutboundRequest(**{**settings, **changes}))
    return caught.value.code


async def test_refusals_are_error_codes_and_lines_of_the_log() -> None:
    outbound = Outbound()
    lines: list[bytes] = []
    nothing = outbound.for_function(deployment(), lines.append)
    assert await refusal(nothing) == ("HTTP-request-denied", None)
    everything = outbound.for_function(deployment("*"), lines.append)
    assert await refusal(everything) == ("destination-IP-prohibited", None)
    assert await refusal(everything, authority="2130706433") == ("HTTP-request-URI-invalid", None)
    assert await refusal(everything, authority=None) == ("HTTP-request-URI-invalid", None)
    assert await refusal(everything, scheme="ftp") == ("HTTP-request-URI-invalid", None)
    assert await refusal(everything, method="CONNECT") == ("HTTP-request-method-invalid", None)
    assert len(lines) == 6
    assert lines[0].startswith(b"outbound: GET https://169.254.169.254:443: denied: ")
    await outbound.aclose()


async def test_a_guest_that_gives_its_body_up_gets_its_own_error_code() -> None:
    async with silent_port() as port:
        outbound = Outbound()
        way_out = outbound.for_function(deployment(f"127.0.0.1:{port}"), lambda _line: None)
        body = PipedBody(None)
        body.pipe.write(b"half")
        body.pipe.abort()
        code = await refusal(way_out, method="POST", scheme="http", authority=f"127.0.0.1:{port}", body=body.pipe)
        assert code == ("HTTP-protocol-error", None)
        await outbound.aclose()


async def test_an_invocation_waits_no_longer_than_its_manifest_says() -> None:
    async with silent_port() as port:
        outbound = Outbound()
        way_out = outbound.for_function(deployment(f"127.0.0.1:{port}", timeout_s=0.02), lambda _line: None)
        code = await refusal(way_out, scheme="http", authority=f"127.0.0.1:{port}", first_byte_timeout_s=60.0)
        assert code in (("HTTP-response-timeout", None), ("connection-timeout", None))
        await outbound.aclose()
