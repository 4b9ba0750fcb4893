"""Who may be reached: nothing by default, no private address unless named, and never another one than was checked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest
from aiohttp import web
from outbound_origins import Chunks, failure, get, outside, read

from faas.outbound.client import MAX_LOG_LINES
from faas.outbound.failures import Failure, OutboundError


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def untouched(_request: web.Request) -> web.Response:
    raise AssertionError("nobody may get here")


async def test_nothing_is_allowed_by_default() -> None:
    async with outside() as out:
        port = await out.origin(untouched)
        assert await failure(out.caller(), get(port)) is Failure.DENIED
        assert out.lines == [
            f"outbound: GET http://127.0.0.1:{port}: denied: the function may reach no other host; add it to "
            "[capabilities] outbound of function.toml"
        ]


async def test_what_no_entry_allows_is_denied_without_a_look_up() -> None:
    async with outside() as out:
        port = await out.origin(untouched)
        caller = out.caller("*.example.org", f"localhost:{port}", "http://127.0.0.1")
        assert await failure(caller, get(port, host="evil.org")) is Failure.DENIED
        assert await failure(caller, get(port)) is Failure.DENIED
        assert out.looked_up == []
        assert len(out.lines) == 2


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("169.254.169.254", Failure.ADDRESS_PROHIBITED),
        ("[::ffff:127.0.0.1]", Failure.ADDRESS_PROHIBITED),
        ("[::ffff:169.254.169.254]", Failure.ADDRESS_PROHIBITED),
        ("[::1]", Failure.ADDRESS_PROHIBITED),
        ("127.0.0.1", Failure.ADDRESS_PROHIBITED),
        ("127.0.0.1.", Failure.ADDRESS_PROHIBITED),
        ("10.0.0.1", Failure.ADDRESS_PROHIBITED),
        ("0.0.0.0", Failure.ADDRESS_PROHIBITED),
        ("[::]", Failure.ADDRESS_PROHIBITED),
        ("100.64.0.1", Failure.ADDRESS_PROHIBITED),
        ("224.0.0.1", Failure.ADDRESS_PROHIBITED),
        ("[64:ff9b::7f00:1]", Failure.ADDRESS_PROHIBITED),
        ("[2002:7f00:1::]", Failure.ADDRESS_PROHIBITED),
        ("2130706433", Failure.URL_INVALID),
        ("0x7f.1", Failure.URL_INVALID),
        ("127.1", Failure.URL_INVALID),
        ("0177.0.0.1", Failure.URL_INVALID),
    ],
)
async def test_a_wildcard_is_not_enough_for_addresses_of_this_side(host: str, expected: Failure) -> None:
    async with outside() as out:
        port = await out.origin(untouched)
        assert await failure(out.caller("*"), get(port, host=host)) is expected
        assert len(out.lines) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "10.0.0.1"])
async def test_a_name_that_means_an_address_of_this_side_is_refused(address: str) -> None:
    async with outside() as out:
        port = await out.origin(untouched)
        out.names["inside.example.org"] = [address]
        assert await failure(out.caller("*"), get(port, host="inside.example.org")) is Failure.ADDRESS_PROHIBITED
        wildcard = out.caller(f"*.example.org:{port}")
        assert await failure(wildcard, get(port, host="inside.example.org")) is Failure.ADDRESS_PROHIBITED


async def test_localhost_is_refused_by_the_systems_own_resolver() -> None:
    async with outside() as out:
        port = await out.origin(untouched)
        out.client._lookup = None
        assert await failure(out.caller("*"), get(port, host="localhost")) is Failure.ADDRESS_PROHIBITED


async def test_localhost_is_reached_where_it_is_named() -> None:
    async with outside() as out:
        port = await out.origin(hello)
        out.client._lookup = None
        response = await out.caller(f"localhost:{port}").send(get(port, host="localhost"))
        assert await read(response) == b"hello"


async def test_an_address_is_reached_where_it_is_named() -> None:
    async with outside() as out:
        port = await out.origin(hello)
        assert await read(await out.caller(f"http://127.0.0.1:{port}").send(get(port))) == b"hello"
        out.names["any.example.org"] = ["127.0.0.1"]
        caller = out.caller("*", f"127.0.0.1:{port}")
        assert await read(await caller.send(get(port, host="any.example.org"))) == b"hello"


async def test_metadata_is_not_reached_by_a_name_even_where_that_is_named() -> None:
    async with outside() as out:
        out.names["metadata.example.org"] = ["169.254.169.254"]
        caller = out.caller("metadata.example.org")
        assert await failure(caller, get(80, host="metadata.example.org")) is Failure.ADDRESS_PROHIBITED
        assert "names the address itself" in out.lines[0]


async def test_an_entry_for_one_port_names_the_address_for_that_port_only() -> None:
    async with outside() as out:
        port = await out.origin(untouched)
        caller = out.caller("*", "http://127.0.0.1:9000")
        assert await failure(caller, get(port)) is Failure.ADDRESS_PROHIBITED


async def test_only_allowed_addresses_of_a_name_are_tried() -> None:
    async with outside() as out:
        port = await out.origin(hello)
        out.names["mixed.example.org"] = ["169.254.169.254", "10.255.255.1", "127.0.0.1"]
        caller = out.caller("*", f"127.0.0.1:{port}")
        assert await read(await caller.send(get(port, host="mixed.example.org"))) == b"hello"


async def test_what_fails_behind_an_allowed_address_is_not_called_prohibited() -> None:
    async with outside() as out:

        async def hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            return

        port = await out.raw_origin(hang_up)
        out.names["mixed.example.org"] = ["169.254.169.254", "127.0.0.1"]
        caller = out.caller("*", f"127.0.0.1:{port}")
        assert await failure(caller, get(port, host="mixed.example.org")) is Failure.TERMINATED


async def test_a_name_that_changes_its_meaning_is_checked_for_each_connection() -> None:
    async with outside() as out:
        port = await out.origin(hello)
        answers: list[Sequence[str]] = [["127.0.0.1"], ["127.0.0.2"]]

        async def rebinding(_host: str) -> Sequence[str]:
            return answers.pop(0)

        out.client._lookup = rebinding
        caller = out.caller("*", f"127.0.0.1:{port}")
        first = await caller.send(get(port, host="rebinding.example.org"))
        first.close()  # unread: its connection ends with it
        assert await failure(caller, get(port, host="rebinding.example.org")) is Failure.ADDRESS_PROHIBITED
        assert answers == []


async def test_a_refused_request_lets_go_of_its_body() -> None:
    async with outside() as out:
        for caller, host in ((out.caller(), "a.example.org"), (out.caller("*"), "127.0.0.1"), (out.caller("*"), "0x1")):
            body = Chunks(b"x")
            await failure(caller, get(80, host=host, body=body))
            assert body.closed.is_set()
            assert body.n_taken == 0


async def test_a_kept_connection_serves_no_other_function_and_no_other_allow_list() -> None:
    async with outside() as out:
        peers: list[int] = []

        async def note(request: web.Request) -> web.Response:
            assert request.transport is not None
            peers.append(request.transport.get_extra_info("peername")[1])
            return web.Response(text="x")

        port = await out.origin(note)
        here = f"127.0.0.1:{port}"
        for caller in (
            out.caller(here, function="a"),
            out.caller(here, function="a"),
            out.caller(here, function="b"),
            out.caller(here, "*", function="a"),
        ):
            await read(await caller.send(get(port)))
        assert peers[0] == peers[1]
        assert len(set(peers)) == 3


async def test_a_narrower_allow_list_does_not_inherit_a_connection() -> None:
    async with outside() as out:
        port = await out.origin(hello)
        out.names["inside.example.org"] = ["127.0.0.1"]
        named = out.caller(f"inside.example.org:{port}")
        await read(await named.send(get(port, host="inside.example.org")))
        wildcard = out.caller(f"*.example.org:{port}")
        assert await failure(wildcard, get(port, host="inside.example.org")) is Failure.ADDRESS_PROHIBITED


async def test_redirects_are_the_guests_to_follow() -> None:
    async with outside() as out:

        async def elsewhere(_request: web.Request) -> web.Response:
            raise web.HTTPFound("http://169.254.169.254/latest/meta-data")

        port = await out.origin(elsewhere)
        response = await out.caller(f"127.0.0.1:{port}").send(get(port))
        assert response.status == 302
        assert ("Location", b"http://169.254.169.254/latest/meta-data") in response.headers


async def test_a_name_that_does_not_exist_is_a_dns_error() -> None:
    async with outside() as out:

        async def fails(_host: str) -> Sequence[str]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        out.client._lookup = fails
        with pytest.raises(OutboundError) as caught:
            await out.caller("*").send(get(80, host="nowhere.example.org"))
        assert (caught.value.failure, caught.value.detail) == (Failure.DNS_ERROR, "NXDOMAIN")


@pytest.mark.parametrize(
    ("code", "expected"), [(socket.EAI_AGAIN, Failure.DNS_ERROR), (socket.EAI_FAIL, Failure.DNS_ERROR)]
)
async def test_a_resolver_that_fails_is_a_dns_error(code: int, expected: Failure) -> None:
    async with outside() as out:

        async def fails(_host: str) -> Sequence[str]:
            raise socket.gaierror(code, "failure")

        out.client._lookup = fails
        assert await failure(out.caller("*"), get(80, host="nowhere.example.org")) is expected


async def test_a_name_without_addresses_leads_nowhere() -> None:
    async with outside() as out:
        out.names["empty.example.org"] = []
        assert await failure(out.caller("*"), get(80, host="empty.example.org")) is Failure.NO_ADDRESS


async def test_the_log_has_each_refusal_once_and_no_flood() -> None:
    async with outside() as out:
        caller = out.caller()
        for _ in range(MAX_LOG_LINES + 5):
            await failure(caller, get(80, "/secret?token=x", host="a.example.org"))
        assert len(out.lines) == MAX_LOG_LINES + 1
        assert out.lines[-1] == "outbound: further failures are not logged"
        assert not any("secret" in line or "token" in line for line in out.lines)


async def test_a_log_line_is_one_line_whatever_the_guest_names() -> None:
    async with outside() as out:
        await failure(out.caller("*"), get(80, host="a\r\nfaked line\x1b[31m"))
        (line,) = out.lines
        assert line.isprintable()


async def test_a_closed_caller_sends_nothing() -> None:
    async with outside() as out:
        port = await out.origin(untouched)
        caller = out.caller(f"127.0.0.1:{port}")
        caller.close()
        assert await failure(caller, get(port)) is Failure.DENIED


async def test_requests_in_progress_are_limited_by_function_and_by_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faas.outbound.client.MAX_REQUESTS_PER_FUNCTION", 2)
    monkeypatch.setattr("faas.outbound.client.MAX_REQUESTS", 3)
    async with outside() as out:
        port = await out.origin(hello)
        here = f"127.0.0.1:{port}"
        caller, other = out.caller(here), out.caller(here, function="g")
        first, second = await asyncio.gather(caller.send(get(port)), caller.send(get(port)))
        assert await failure(caller, get(port)) is Failure.LIMIT_REACHED
        third = await other.send(get(port))
        assert await failure(other, get(port)) is Failure.LIMIT_REACHED
        for response in (first, second, third):
            response.close()
        await read(await caller.send(get(port)))
        assert out.client.n_running == 0


@pytest.mark.parametrize("limit", ["MAX_KEPT_PER_FUNCTION", "MAX_KEPT"])
async def test_a_function_or_worker_with_many_connections_keeps_no_more(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"faas.outbound.client.{limit}", 1)
    async with outside() as out:
        asked: list[str | None] = []

        async def note(request: web.Request) -> web.Response:
            asked.append(request.headers.get("Connection"))
            return web.Response(text="x")

        ports = [await out.origin(note), await out.origin(note)]
        caller = out.caller(*(f"127.0.0.1:{port}" for port in ports))
        for port in ports:
            await read(await caller.send(get(port)))
        assert asked == [None, "close"]


async def test_what_a_function_shares_is_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faas.outbound.client.MAX_SHARES", 3)
    async with outside() as out:
        for n in range(50):
            await failure(out.caller("a.example.org", function=f"f{n}"), get(1))
        assert len(out.client._shares) <= 3
