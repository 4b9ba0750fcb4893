"""Where one request ends and the next begins, and which connections make room: nobody is told what it did not ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import re
import time

import pytest
from aiohttp import web
from wires import PLAIN, Served, served

from faas.errors import RequestTimeoutError
from faas.gateway.call import BodyPace, RequestBody
from faas.gateway.http import MAX_HEAD_BYTES, awaited_body_until
from faas.gateway.lane import Lane, Reply

LONG_S = 3600.0


def post(n_bytes: int, *headers: str) -> bytes:
    lines = ["POST /x HTTP/1.1", "Host: h", f"Content-Length: {n_bytes}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def fields(n_bytes: int, name: str) -> bytes:
    """Return headers of *n_bytes* together, each as long as one may be."""
    return b"".join(
        f"{name}{n}: ".encode() + bytes(8000).replace(b"\0", b"a") + b"\r\n" for n in range(n_bytes // 8000)
    )


def statuses(one: Served) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", one.wire.written)]


async def answered(one: Served, n_replies: int) -> None:
    await one.wire.until(lambda: len(statuses(one)) >= n_replies)


async def closed(one: Served) -> None:
    await one.wire.until(lambda: one.wire.closed)


async def ignoring(_lane: Lane) -> Reply:
    return Reply(200, b"hello\n", {})


async def counting(lane: Lane) -> Reply:
    request = await lane.leave()
    return Reply(200, b"%d" % len(await request.read()), {})


# --- the end of a body -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [5, 70_000, 200_000])
@pytest.mark.parametrize("lane", [True, False])
async def test_the_last_read_of_a_body_is_no_head(n_bytes: int, lane: bool) -> None:
    async with served(counting, lane=lane, head_timeout_s=LONG_S) as one:
        one.connection.data_received(post(n_bytes))
        assert (await one.send(bytes(n_bytes))).endswith(b"\r\n\r\n%d" % n_bytes)
        assert (await one.send(PLAIN)).endswith(b"\r\n\r\n0")
        assert statuses(one) == [200, 200]


async def test_who_closes_its_end_after_a_reply_is_told_nothing_more() -> None:
    async with served(counting, head_timeout_s=LONG_S) as one:
        one.connection.data_received(post(5))
        await one.send(b"hello")
        one.connection.eof_received()
        assert one.wire.closed
        assert statuses(one) == [200]


async def test_no_head_is_owed_behind_a_body_that_came_after_its_answer() -> None:
    async with served(ignoring, head_timeout_s=LONG_S) as one:
        one.connection.data_received(post(5))
        await one.wire.until(lambda: b"hello\n" in one.wire.written)
        one.connection.data_received(b"hello")
        await one.idle()
        assert one.connection._head_timer is None
        one.connection.evict()
        assert one.wire.closed
        assert statuses(one) == [200]


# --- heads that have begun -------------------------------------------------------------------------------------------


async def test_a_connection_that_says_nothing_is_told_408() -> None:
    async with served(ignoring) as one:
        await closed(one)
        assert statuses(one) == [408]


async def test_a_head_that_begins_behind_a_request_in_the_same_read_has_its_time() -> None:
    async with served(ignoring) as one:
        one.connection.data_received(PLAIN + PLAIN[:9])
        await closed(one)
        assert statuses(one) == [200, 408]


async def test_a_head_that_begins_while_a_request_is_in_progress_has_its_time_afterwards() -> None:
    go_on = asyncio.Event()

    async def waiting(lane: Lane) -> Reply:
        await lane.leave()
        await go_on.wait()
        return Reply(200, b"", {})

    async with served(waiting) as one:
        one.connection.data_received(PLAIN)
        one.connection.data_received(PLAIN[:9])
        assert one.connection._head_timer is None
        go_on.set()
        await closed(one)
        assert statuses(one) == [200, 408]


async def test_a_head_that_ends_early_behind_a_request_in_the_same_read_is_400() -> None:
    async with served(ignoring, head_timeout_s=LONG_S) as one:
        await one.send(PLAIN + PLAIN[:9])
        one.connection.eof_received()
        assert statuses(one) == [200, 400]


START = PLAIN[:-2]


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize(
    ("before", "parts"),
    [
        (b"", [START + fields(40_000, "A"), fields(40_000, "B") + b"\r\n"]),
        (b"", [START + fields(60_000, "A"), fields(60_000, "B") + b"\r\n"]),
        (b"", [START, fields(60_000, "A") + fields(60_000, "B") + b"\r\n"]),
        (post(5), [b"hello" + START + fields(60_000, "A"), fields(40_000, "B") + b"\r\n"]),
        (PLAIN, [PLAIN + START + fields(60_000, "A"), fields(40_000, "B") + b"\r\n"]),
    ],
    ids=["two parts", "two large parts", "one large part", "behind a body", "behind a head"],
)
async def test_the_limit_of_a_head_is_that_of_all_its_parts(lane: bool, before: bytes, parts: list[bytes]) -> None:
    async with served(counting, lane=lane, head_timeout_s=LONG_S) as one:
        if before:
            one.connection.data_received(before)
        for part in parts:
            one.connection.data_received(part)
            if part is not parts[-1]:
                await asyncio.sleep(0)
        await closed(one)
        assert statuses(one)[-1] == 431
        assert set(statuses(one)[:-1]) <= {200}


@pytest.mark.parametrize(
    "before", [b"", PLAIN + PLAIN, post(5) + b"hello"], ids=["first", "behind heads", "behind a body"]
)
async def test_a_head_below_the_limit_is_served_however_it_comes(before: bytes) -> None:
    head = START + fields(56_000, "A") + b"\r\n"
    assert len(head) < MAX_HEAD_BYTES
    for cut in (1, 30_000, len(head) - 1):
        async with served(counting, head_timeout_s=LONG_S) as one:
            one.connection.data_received(before + head[:cut])
            one.connection.data_received(head[cut:])
            n_requests = before.count(b"Host") + 1
            await answered(one, n_requests)
            assert set(statuses(one)) == {200}


async def test_a_refusal_is_logged_with_the_status_that_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with served(ignoring, head_timeout_s=LONG_S) as one:
            one.connection.data_received(START + fields(40_000, "A"))
            one.connection.data_received(fields(40_000, "B") + b"\r\n")
            await closed(one)
    (line,) = [r.getMessage() for r in caplog.records if "request.refused" in r.getMessage()]
    assert "status=431" in line
    assert "code=head-too-large" in line


# --- the last request ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
@pytest.mark.parametrize("cut", [0, 3, 5])
async def test_an_upgrade_with_a_body_is_answered_and_ends_the_connection(protocol: str, cut: int) -> None:
    async with served(counting, head_timeout_s=LONG_S) as one:
        one.connection.data_received(post(5, "Connection: Upgrade", f"Upgrade: {protocol}") + b"hello"[:cut])
        for _ in range(10):
            await asyncio.sleep(0)
        one.connection.data_received(b"hello"[cut:] + PLAIN)
        await closed(one)
        assert one.wire.written.endswith(b"\r\n\r\n5")
        assert statuses(one) == [200]
        assert b"\r\nConnection: close\r\n" in one.wire.written


async def test_an_upgrade_that_the_parser_forgets_what_is_behind_ends_the_connection() -> None:
    upgrade = START + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with served(ignoring, head_timeout_s=LONG_S) as one:
        one.connection.data_received(upgrade + PLAIN)
        await closed(one)
        assert statuses(one) == [200]
        assert b"\r\nConnection: close\r\n" in one.wire.written
    async with served(ignoring, head_timeout_s=LONG_S) as one:
        await one.send(upgrade)
        await one.send(PLAIN)
        assert statuses(one) == [200, 200]


# --- draining --------------------------------------------------------------------------------------------------------


async def test_a_drain_closes_idle_connections_without_a_word() -> None:
    async with served(ignoring) as one:
        await one.send(PLAIN)
        one.server.pre_shutdown()
        assert one.wire.closed
        assert statuses(one) == [200]


@pytest.mark.parametrize("begun", [b"", PLAIN[:9]])
async def test_a_drain_tells_a_client_that_has_not_finished_its_first_head(begun: bytes) -> None:
    async with served(ignoring, head_timeout_s=LONG_S) as one:
        if begun:
            one.connection.data_received(begun)
        one.server.pre_shutdown()
        assert one.wire.closed
        assert statuses(one) == [503]


async def test_a_drain_waits_for_a_request_in_progress() -> None:
    go_on = asyncio.Event()

    async def waiting(lane: Lane) -> Reply:
        await lane.leave()
        await go_on.wait()
        return Reply(200, b"", {})

    async with served(waiting, head_timeout_s=LONG_S) as one:
        one.connection.data_received(PLAIN)
        one.server.pre_shutdown()
        assert not one.wire.closed
        go_on.set()
        await closed(one)
        assert statuses(one) == [200]


# --- waiting for a body ----------------------------------------------------------------------------------------------


async def polled(body: RequestBody, timeout_s: float) -> None:
    """Wait as a guest does that polls stdin and a clock."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await body.wait_readable()


async def test_a_guest_that_ceased_to_wait_for_the_body_is_late_by_itself() -> None:
    found: list[bool] = []

    async def polling(lane: Lane) -> Reply:
        request = await lane.leave()
        body = RequestBody(request, 1000)
        began = time.monotonic()
        found.append(awaited_body_until(request, began))
        waiting = asyncio.ensure_future(polled(body, LONG_S))
        await asyncio.sleep(0)
        found.append(awaited_body_until(request, math.inf))
        one.connection.data_received(b"hello")
        await waiting
        found.append(awaited_body_until(request, began))
        assert body.read_nowait(10) == b"hello"
        waiting = asyncio.ensure_future(polled(body, LONG_S))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        found.append(awaited_body_until(request, began))
        found.append(awaited_body_until(request, time.monotonic() + 1))
        one.connection.data_received(b"hello")
        return Reply(200, b"", {})

    async with served(polling, head_timeout_s=LONG_S) as one:
        await one.send(post(10))
    assert found == [False, True, False, True, False]


@pytest.mark.parametrize("pace", [BodyPace(0.05, 0), BodyPace(0.05, 1_000_000)])
async def test_a_guest_that_polls_waits_no_longer_for_a_body_than_one_that_reads(pace: BodyPace) -> None:
    async def polling(lane: Lane) -> Reply:
        request = await lane.leave()
        body = RequestBody(request, 1 << 30)
        for _ in range(10_000):
            try:
                await polled(body, 0.001)
            except RequestTimeoutError as late:
                return Reply(408, late.message.encode(), {})
            if body.read_nowait(1000) is None and pace.min_bytes_per_s:
                one.connection.data_received(b"x")  # something always comes, but too little
        raise AssertionError("waited for ever")

    async with served(polling, head_timeout_s=LONG_S) as one:
        one.connection.body_pace = pace
        assert b"too slowly" in await one.send(post(900_000))


async def test_many_requests_behind_a_body_that_came_late_are_all_answered() -> None:
    async with served(counting, head_timeout_s=LONG_S) as one:
        one.connection.data_received(post(5))
        for _ in range(10):
            await asyncio.sleep(0)
        one.connection.data_received(b"hello" + PLAIN * 60)
        await answered(one, 61)
        one.connection.data_received(post(5))
        for _ in range(10):
            await asyncio.sleep(0)
        one.connection.data_received(b"hello")
        one.connection.data_received(PLAIN * 60)
        await answered(one, 122)
        assert set(statuses(one)) == {200}


# --- all of it -------------------------------------------------------------------------------------------------------


async def echoing(lane: Lane) -> Reply:
    """Do what the path says: answer at once, or after some turns of the loop, with the body or without reading it."""
    path = lane.request.raw_path
    body = path.encode()
    if path.startswith("/later"):
        await lane.leave()
        for _ in range(int(path.partition("?")[2]) % 7):
            await asyncio.sleep(0)
    elif path.startswith("/body"):
        request = await lane.leave()
        assert isinstance(request, web.BaseRequest)
        body = await RequestBody(request, 1 << 30).read_all()
    return Reply(200, body, {})


def any_request(chosen: random.Random) -> tuple[bytes, bytes]:
    """Return a request and the body of its reply."""
    kind = chosen.choice(["now", "now", "later", "body", "chunks", "ignored", "big"])
    path = f"/{kind}?{chosen.randrange(10**9)}".encode()
    if kind in ("now", "later"):
        return b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n", path
    body = b"%d" % chosen.randrange(10**9) * chosen.randint(1, 30_000 if kind == "big" else 200)
    if chosen.random() < 0.2:
        body += b"\r\n\r\nGET /"  # looks like a head, and is none
    target = path if kind == "ignored" else b"/body"
    head = b"POST " + target + b" HTTP/1.1\r\nHost: h\r\n"
    if kind == "chunks":
        half = len(body) // 2
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", body
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, path if kind == "ignored" else body


@pytest.mark.parametrize("seed", range(6))
async def test_every_request_gets_its_answer_and_nothing_else_is_said_however_they_are_cut(seed: int) -> None:
    chosen = random.Random(seed)
    for _ in range(100):
        requests = [any_request(chosen) for _ in range(chosen.choice([1, 2, 3, 5, 7, 40]))]
        sent = b"".join(request for request, _ in requests)
        cuts = sorted(chosen.sample(range(1, len(sent)), min(len(sent) - 1, chosen.randint(0, 6))))
        async with served(echoing, head_timeout_s=LONG_S) as one:
            connection, wire = one.connection, one.wire
            for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                for at in range(start, end, 256 * 1024):  # as much as one read brings
                    while not wire.reading:
                        await asyncio.sleep(0)
                    connection.data_received(sent[at : min(end, at + 256 * 1024)])
                for _ in range(chosen.choice([0, 0, 1, 3, 20])):
                    await asyncio.sleep(0)
            while not wire.reading:
                await asyncio.sleep(0)
            if chosen.random() < 0.5:
                await answered(one, len(requests))
                await one.idle()
            connection.eof_received()
            await closed(one)
            rest = wire.written
            for _, body in requests:
                head, _, rest = rest.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 "), (head, cuts)
                n_bytes = int(head.partition(b"Content-Length: ")[2].split()[0])
                assert rest[:n_bytes] == body
                rest = rest[n_bytes:]
            assert rest == b""
