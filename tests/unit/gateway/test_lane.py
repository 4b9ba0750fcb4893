"""The fast lane: the same bytes as aiohttp sends; what has to wait or is not plain goes on outside."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest
from aiohttp import web
from wires import PLAIN, served

from faas.gateway import http
from faas.gateway.http import missing_internals
from faas.gateway.lane import Lane, Reply


async def hello(_lane: Lane) -> Reply:
    return Reply(200, b"hello\n", {"X-Own": "1"}, [("Content-Type", "text/plain")])


async def leaving(lane: Lane) -> Reply:
    request = await lane.leave()
    assert isinstance(request, web.BaseRequest)
    assert not lane.inside
    await asyncio.sleep(0)
    return Reply(200, request.raw_path.encode(), {})


# --- the lane is there -----------------------------------------------------------------------------------------------


def test_the_locked_aiohttp_has_all_that_the_lane_needs() -> None:
    assert missing_internals() == []


async def test_without_its_parts_the_lane_is_off_and_requests_are_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http, "_HANDLER_PARTS", ("_waiter", "_gone"))
    with caplog.at_level(logging.WARNING):
        async with served(hello) as one:
            assert b"\r\n\r\nhello\n" in await one.send(PLAIN)
            assert one.inside == [False]
    assert [record.getMessage() for record in caplog.records if "lane.off" in record.getMessage()] != []


async def test_a_plain_request_is_answered_before_data_received_returns() -> None:
    async with served(hello) as one:
        for n in (1, 2):
            one.connection.data_received(PLAIN)
            assert one.wire.written.count(b"\r\n\r\nhello\n") == n
        assert one.inside == [True, True]
        assert one.server.requests_count == 2


# --- the same bytes --------------------------------------------------------------------------------------------------

REPLIES = {
    "plain": Reply(200, b"hello\n", {"X-Own": "1"}, [("Content-Type", "text/plain")]),
    "untyped": Reply(200, b"hello\n", {}),
    "empty": Reply(200, b"", {"X-Own": "1"}),
    "empty typed": Reply(200, b"", {}, [("content-type", "text/html")]),
    "own type": Reply(404, b"{}", {"Content-Type": "application/problem+json"}),
    "reason": Reply(418, b"tea", {}, reason="Short And Stout"),
    "no phrase": Reply(299, b"odd", {}),
    "204": Reply(204, b"", {}, [("X-A", "b")]),
    "304": Reply(304, b"", {}, [("ETag", '"x"')]),
    "205": Reply(205, b"", {}),
    "twice": Reply(200, b"x", {"Server-Timing": "a"}, [("Set-Cookie", "a=1"), ("set-cookie", "b=2")]),
    "own twice": Reply(200, b"x", {"Server-Timing": "a"}, [("server-timing", "b")]),
    "date": Reply(200, b"x", {}, [("DATE", "Thu, 01 Jan 1970 00:00:00 GMT")]),
    "server": Reply(200, b"x", {"X-Own": "1"}, [("server", "mine"), ("X-After", "1"), ("Server", "too")]),
    "unicode": Reply(200, b"x", {}, [("X-Name", "grüß \u2713 \ud800.")]),
}


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "POST"])
@pytest.mark.parametrize("name", REPLIES)
async def test_the_lane_writes_what_aiohttp_writes(method: str, name: str) -> None:
    async def handler(_lane: Lane) -> Reply:
        return REPLIES[name]

    written = []
    for lane in (True, False):
        async with served(handler, lane=lane) as one:
            answer = await one.send(f"{method} /x HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert one.inside == [lane]
            written.append(re.sub(rb"(?m)^Date: [^\r]*2\d{3} [^\r]*", b"Date: now", answer))
    assert written[0] == written[1]


# --- what is not plain -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET /x HTTP/1.0\r\nHost: h\r\n\r\n",
        b"GET /x HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET http://h/x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab",
        b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n",
    ],
)
async def test_a_request_that_is_not_plain_goes_the_way_of_aiohttp(head: bytes) -> None:
    async with served(hello) as one:
        one.connection.data_received(head)
        await one.wire.until(lambda: b"hello\n" in one.wire.written)
        assert one.inside == [False]


async def test_pipelined_requests_in_one_packet_are_answered_in_order() -> None:
    async def path(lane: Lane) -> Reply:
        return Reply(200, lane.request.raw_path.encode(), {})

    async with served(path) as one:
        answer = await one.send(b"".join(PLAIN.replace(b"/x", b"/%d" % n) for n in range(5)), 5)
        assert re.findall(rb"\r\n\r\n(/\d)", answer) == [b"/%d" % n for n in range(5)]
        assert one.inside == [False] * 5
        assert b"/again" in await one.send(PLAIN.replace(b"/x", b"/again"))
        assert one.inside[-1]


async def test_a_head_in_two_packets_is_served_in_the_lane() -> None:
    async with served(hello) as one:
        one.connection.data_received(PLAIN[:9])
        assert not one.wire.written
        assert b"hello\n" in await one.send(PLAIN[9:])
        assert one.inside == [True]


async def test_while_the_client_does_not_read_nothing_is_served_in_the_lane() -> None:
    async with served(hello) as one:
        one.connection.pause_writing()
        one.connection.data_received(PLAIN)
        one.connection.resume_writing()
        await one.wire.until(lambda: b"hello\n" in one.wire.written)
        assert one.inside == [False]


async def test_what_is_no_http_is_refused_on_a_connection_with_a_lane() -> None:
    async with served(hello) as one:
        await one.send(PLAIN)
        one.connection.data_received(b"no http at all\r\n\r\n")
        await one.wire.until(lambda: one.wire.closed)
        assert b" 400 Bad Request\r\n" in one.wire.written


# --- leaving it ------------------------------------------------------------------------------------------------------


async def test_a_request_that_has_to_wait_goes_on_in_a_task_with_the_real_request() -> None:
    async with served(leaving) as one:
        assert (await one.send(PLAIN)).endswith(b"\r\n\r\n/x")
        assert one.inside == [True]
        assert (await one.send(PLAIN)).endswith(b"\r\n\r\n/x")
        assert one.server.requests_count == 2


async def test_what_comes_while_a_request_waits_is_served_after_it() -> None:
    go_on = asyncio.Event()

    async def first_waits(lane: Lane) -> Reply:
        if lane.request.raw_path == "/x":
            await lane.leave()
            await go_on.wait()
        return Reply(200, lane.request.raw_path.encode(), {})

    async with served(first_waits) as one:
        one.connection.data_received(PLAIN)
        one.connection.data_received(PLAIN.replace(b"/x", b"/second"))
        go_on.set()
        await one.wire.until(lambda: one.wire.written.count(b"HTTP/1.1 200") == 2)
        assert re.findall(rb"\r\n\r\n(/x|/second)", one.wire.written) == [b"/x", b"/second"]


@pytest.mark.parametrize("in_task", [False, True])
async def test_a_client_that_goes_away_cancels_a_request_that_began_in_the_lane(in_task: bool) -> None:
    ended: list[str] = []
    waits = asyncio.Event()

    async def waiting(lane: Lane) -> Reply:
        try:
            await lane.leave()
            waits.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        raise AssertionError

    async with served(waiting) as one:
        one.connection.data_received(PLAIN)
        if in_task:
            await waits.wait()
        task = one.connection._task_handler
        one.lose()
        assert task is not None
        await asyncio.gather(task, return_exceptions=True)
        assert ended == ["cancelled"]
        assert waits.is_set() == in_task


@pytest.mark.parametrize("lane", [True, False])
async def test_the_deadline_ends_what_waits_wherever_it_began(lane: bool) -> None:
    async def too_slow(lane: Lane) -> Reply:
        try:
            async with lane.until(asyncio.get_running_loop().time() + 0.01):
                await lane.leave()
                await asyncio.Event().wait()
        except TimeoutError:
            return Reply(504, b"late", {})
        raise AssertionError

    async with served(too_slow, lane=lane) as one:
        assert b" 504 " in await one.send(PLAIN)
        assert one.inside == [lane]


async def test_a_deadline_that_is_over_does_not_end_what_waits_afterwards() -> None:
    async def twice(lane: Lane) -> Reply:
        async with lane.until(asyncio.get_running_loop().time() + 1e-6):
            pass
        await lane.leave()
        async with asyncio.timeout(None):
            await asyncio.sleep(0)
        return Reply(200, b"fine", {})

    async with served(twice) as one:
        assert (await one.send(PLAIN)).endswith(b"fine")


async def test_who_awaits_in_the_lane_without_leaving_it_is_told() -> None:
    async def wrong(_lane: Lane) -> Reply:
        await asyncio.sleep(0)
        raise AssertionError("not reached")

    async with served(wrong) as one:
        with pytest.raises(AssertionError, match="without leaving"):
            one.connection.data_received(PLAIN)


async def test_a_reply_that_is_given_up_closes_the_connection() -> None:
    async def given_up(_lane: Lane) -> Reply:
        raise asyncio.CancelledError

    async with served(given_up) as one:
        one.connection.data_received(PLAIN)
        assert one.wire.closed
        assert not one.wire.written


# --- timers ----------------------------------------------------------------------------------------------------------


async def test_an_idle_connection_is_closed_when_its_keep_alive_ends_after_a_lane_request() -> None:
    async with served(hello, keepalive_timeout_s=0.02) as one:
        began = asyncio.get_running_loop().time()
        await one.send(PLAIN)
        await one.wire.until(lambda: one.wire.closed)
        assert asyncio.get_running_loop().time() - began >= 0.02
        assert b" 408 " not in one.wire.written


async def test_a_half_sent_head_after_a_lane_request_is_answered_408() -> None:
    async with served(hello) as one:
        await one.send(PLAIN)
        one.connection.data_received(PLAIN[:9])
        await one.wire.until(lambda: one.wire.closed)
        assert b"HTTP/1.1 408 Request Timeout\r\n" in one.wire.written


async def test_no_head_is_owed_after_a_lane_request() -> None:
    async with served(hello) as one:
        assert one.connection._head_timer is not None
        await one.send(PLAIN)
        assert one.connection._head_timer is None


async def test_what_stands_in_for_the_request_says_the_same() -> None:
    seen = []

    async def look(lane: Lane) -> Reply:
        for _ in range(2):
            request = lane.request
            seen.append(
                (
                    request.method,
                    request.raw_path,
                    request.version,
                    request.remote,
                    request.scheme,
                    request.host,
                    request.body_exists,
                    request.content_length,
                    list(request.headers.items()),
                    request.transport is one.wire,
                )
            )
            await lane.leave()
        return Reply(200, b"", {})

    async with served(look) as one:
        await one.send(b"DELETE /a%20b?c HTTP/1.1\r\nHost: h:1\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
    assert seen[0] == seen[1]
    assert seen[0][:6] == ("DELETE", "/a%20b?c", (1, 1), "192.0.2.7", "http", "h:1")
