"""Promises of a faas_v1 session: what is under way ends with it, limits hold, failures have their errno."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from faas import errors
from faas.guest.errno import _BY_CODE, Errno, GuestError, to_guest_error
from faas.guest.ports import GuestRequest, Ports
from faas.guest.requests import MAX_BODY_BYTES, decode, http_request
from faas.guest.session import MAX_HANDLES, MAX_SENT_BYTES, GuestSession, told
from faas.guest.signatures import SIGNATURES, lacking
from faas.manifest import Capabilities
from faas.testing.services import MemoryBody, MemoryResponse, MemoryServices

ALL = Capabilities(outbound=("a.test",), kv=("default",), calls=("g",), secrets=("KEY",))
encode = msgspec.msgpack.encode
GET = encode({"url": "https://a.test/"})


def session(host: MemoryServices, capabilities: Capabilities = ALL) -> GuestSession:
    return GuestSession("f", capabilities, host.ports)


async def errno_of(awaitable: Any) -> Errno:
    with pytest.raises(GuestError) as caught:
        await awaitable
    return caught.value.errno


async def tasks_over() -> None:
    while asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.sleep(0)


async def test_closing_ends_requests_before_their_head_and_within_their_body() -> None:
    body = MemoryBody([b"first", None, b"second"])
    host = MemoryServices(answer=lambda request: MemoryResponse(200, (), body))
    one = session(host)
    host.calls.hold("")
    waiting = await one.call_begin(encode({"function": "g"}))
    reading = await one.http_begin(GET)
    assert await one.read(reading, 100) == b"first"
    wait = asyncio.ensure_future(one.wait_any([waiting, reading], None))
    await asyncio.sleep(0)
    one.close()
    one.close()
    wait.cancel()
    await tasks_over()
    assert (host.calls.n_running, host.http.closed, host.calls.closed) == (0, True, True)
    assert host.http.responses[0].closed


async def test_a_response_that_comes_as_its_session_closes_is_closed() -> None:
    host = MemoryServices()
    one = session(host)
    await one.http_begin(GET)
    await asyncio.sleep(0)  # it is sent
    one.close()
    await tasks_over()
    assert all(response.closed for response in host.http.responses)
    with pytest.raises(GuestError):
        await one.http_begin(GET)


async def test_a_request_that_was_never_begun_leaves_nothing_to_complain_about() -> None:
    host = MemoryServices()
    one = session(host)
    await one.http_begin(GET)
    one.close()  # before its task had a turn
    await tasks_over()
    assert host.http.sent == []


async def test_a_wait_that_times_out_loses_nothing_of_what_it_waited_for() -> None:
    body = MemoryBody([None, b"late"])
    one = session(MemoryServices(answer=lambda request: MemoryResponse(200, (), body)))
    handle = await one.http_begin(GET)
    await one.response_head(handle)
    assert await errno_of(one.wait_any([handle], 0)) == Errno.TIMEOUT
    body.go_on()
    assert await one.wait_any([handle], None) == 0
    assert await one.read(handle, 2) == b"la"
    assert one.read_nowait(handle, 100) == b"te"
    assert await one.read(handle, 1) == b""
    assert one.ready([handle]) == 0
    one.close()


class Failing(MemoryBody):
    """A body that breaks off."""

    def __init__(self, failure: Exception) -> None:
        super().__init__([b"some", None])
        self.failure = failure

    async def wait_readable(self) -> None:
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "errno"),
    [
        (GuestError(Errno.TIMEOUT), Errno.TIMEOUT),
        (errors.OverloadedError("busy"), Errno.UNAVAILABLE),
        (errors.GuestTrapError("it trapped"), Errno.FAILED),
    ],
)
async def test_a_body_that_breaks_off_tells_it_after_what_had_come(failure: Exception, errno: Errno) -> None:
    one = session(MemoryServices(answer=lambda request: MemoryResponse(200, (), Failing(failure))))
    handle = await one.http_begin(GET)
    assert await one.read(handle, 100) == b"some"
    for _ in range(2):
        with pytest.raises((GuestError, errors.FaasError)) as caught:
            await one.read(handle, 100)
        assert told(caught.value).errno == errno
    assert one.ready([handle]) == 0
    one.close()
    await tasks_over()


async def test_the_bodies_under_way_are_limited_together() -> None:
    one = session(MemoryServices())
    large = encode({"url": "https://a.test/", "body": b"x" * MAX_BODY_BYTES})
    handles = [await one.http_begin(large) for _ in range(MAX_SENT_BYTES // len(large))]
    assert await errno_of(one.http_begin(large)) == Errno.LIMIT
    await one.close_request(handles[0])
    await one.http_begin(large)
    assert await errno_of(one.http_begin(encode({"url": "u", "body": b"x" * (MAX_BODY_BYTES + 1)}))) == Errno.TOO_LARGE
    one.close()
    await tasks_over()


async def test_stores_are_limited_and_default_is_the_functions_own() -> None:
    host = MemoryServices()
    one = session(host)
    store = one.kv_open(b"default")
    await one.kv_set(store, b"k", b"v", 0)
    assert set(host.kv._stores) == {"f"}
    for _ in range(MAX_HANDLES - 1):
        one.kv_open(b"default")
    with pytest.raises(GuestError) as caught:
        one.kv_open(b"default")
    assert caught.value.errno == Errno.LIMIT


async def test_what_a_host_does_not_have_is_unavailable() -> None:
    one = GuestSession("f", ALL, Ports)
    store = one.kv_open(b"default")
    for asked in (
        one.kv_get(store, b"k"),
        one.http_begin(GET),
        one.call_begin(encode({"function": "g"})),
        one.job_enqueue(encode({"function": "g"})),
    ):
        assert await errno_of(asked) == Errno.UNAVAILABLE
    for get in (one.config_get, one.secret_get):
        with pytest.raises(GuestError) as caught:
            get(b"KEY")
        assert caught.value.errno == Errno.UNAVAILABLE


async def test_ports_are_opened_at_the_first_use() -> None:
    opened: list[Ports] = []

    def open_ports() -> Ports:
        opened.append(MemoryServices().ports())
        return opened[-1]

    one = GuestSession("f", ALL, open_ports)
    assert opened == []
    for _ in range(2):
        with pytest.raises(GuestError) as caught:
            one.config_get(b"A")
        assert caught.value.errno == Errno.NOT_FOUND
    assert len(opened) == 1
    one.close()
    late = GuestSession("f", ALL, open_ports)
    late.close()
    for session in (one, late):  # a slice that still runs while its invocation ends
        with pytest.raises(GuestError) as caught:
            session.config_get(b"A")
        assert caught.value.errno == Errno.UNAVAILABLE
    assert len(opened) == 1


def test_the_table_of_errnos_names_errors_that_there_are() -> None:
    assert set(_BY_CODE) <= {leaf.code for leaf in errors.leaves()}


@pytest.mark.parametrize("leaf", errors.leaves(), ids=lambda leaf: leaf.code)
def test_every_error_of_ours_is_an_errno_with_its_reason(leaf: type[errors.FaasError]) -> None:
    found = to_guest_error(leaf("what is wrong"))
    assert found.errno is not Errno.SUCCESS
    assert found.reason.endswith("what is wrong")


def test_an_error_without_a_row_is_a_failure_that_names_its_code() -> None:
    found = told(errors.SettingsTooLargeError("too much"))
    assert (found.errno, found.reason) == (Errno.FAILED, "settings-too-large: too much")


async def test_a_bug_of_a_port_is_a_failure_whose_text_is_for_the_hosts_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_request: GuestRequest) -> MemoryResponse:
        raise ValueError("Bearer s3cret")

    one = session(MemoryServices(answer=broken))
    with pytest.raises(errors.InternalError) as caught:
        await one.response_head(await one.http_begin(GET))
    assert told(caught.value).errno is Errno.FAILED
    assert "s3cret" not in str(caught.value)
    assert "guest.port_failed" in caplog.text
    one.close()


def test_a_request_shows_no_body_in_its_repr() -> None:
    request = http_request(decode(encode({"url": "https://a.test/", "body": "s3cret"})))
    assert isinstance(request, GuestRequest)
    assert "s3cret" not in repr(request)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_an_import_is_granted_by_its_capability_and_by_no_other(name: str) -> None:
    kind = name.partition("_")[0]
    free = kind not in ("kv", "secret", "http", "call", "job")
    assert (lacking(name, Capabilities()) == "") is free
    assert lacking(name, ALL) == ""
    assert (lacking(name, Capabilities(kv=("default",))) == "") is (free or kind == "kv")
    assert (lacking(name, Capabilities(secrets=("A",))) == "") is (free or kind == "secret")
    assert (lacking(name, Capabilities(outbound=("a",))) == "") is (free or kind == "http")
    assert (lacking(name, Capabilities(calls=("g",))) == "") is (free or kind in ("http", "call", "job"))
