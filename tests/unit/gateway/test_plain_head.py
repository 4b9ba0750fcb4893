"""A plain head is read in C just as aiohttp's parser reads it; what may be anything else is left to that."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp.http import HttpRequestParser
from aiohttp.streams import EMPTY_PAYLOAD
from hypothesis import example, given
from hypothesis import strategies as st
from wires import Served, served

from faas.gateway.http import MAX_FIELD_BYTES, MAX_HEADERS, MAX_TARGET_BYTES, _is_plain
from faas.gateway.lane import Lane, Reply
from faas.wasm import calls

PLAIN = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
native = pytest.mark.skipif(calls.chosen() is calls, reason="_calls was not compiled here")
pytestmark = native


def by_aiohttp(head: bytes) -> Any:
    """Return the one message in *head*, as the connection's parser reads it."""
    parser = HttpRequestParser(
        Mock(),
        Mock(),
        2**16,
        max_line_size=MAX_TARGET_BYTES,
        max_field_size=MAX_FIELD_BYTES,
        max_headers=MAX_HEADERS,
    )
    messages, upgraded, rest = parser.feed_data(head)
    assert not upgraded
    assert rest == b""
    [(message, payload)] = messages
    assert payload is EMPTY_PAYLOAD
    return message


def agree(head: bytes) -> bool:
    """Return whether *head* is read in C; then aiohttp reads the same."""
    found = calls.chosen().plain_head(head)
    if found is None:
        return False
    message = by_aiohttp(head)
    assert _is_plain(message)
    method, target, fields = found
    assert (method, target) == (message.method, message.path)
    assert list(fields.items()) == [(name.lower(), value) for name, value in message.headers.items()]
    return True


@pytest.mark.parametrize(
    "head",
    [
        PLAIN,
        b"HEAD /a/b%20c?d=e&f=%ff HTTP/1.1\r\nHost: h:8080\r\n\r\n",
        b"DELETE //x/../y?? HTTP/1.1\r\nhOST:h\r\nX-A: \t two  words \t\r\nX-Empty:\r\nX-B_c.d~: \"'<>\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: h\r\n\r\n",
        PLAIN[:-2] + b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(31)) + b"\r\n",
    ],
)
def test_a_plain_head_is_read(head: bytes) -> None:
    assert agree(head)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\r\n\r\n",
        PLAIN[:-1],
        PLAIN[:-2],
        PLAIN + PLAIN,
        PLAIN + b"\r\n",
        b"\r\n" + PLAIN,
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"GET", b"get"),
        PLAIN.replace(b"GET", b"BREW"),
        PLAIN.replace(b"/x", b"http://h/x"),
        PLAIN.replace(b"/x", b"*"),
        PLAIN.replace(b"/x", b"/x#y"),
        PLAIN.replace(b"/x", b"/\xc3\xbc"),
        PLAIN.replace(b"/x", b"/ x"),
        PLAIN.replace(b"/x", b"/" + b"x" * 4096),
        PLAIN.replace(b"Host: h\r\n", b""),
        PLAIN.replace(b"Host", b"Host "),
        PLAIN.replace(b"\r\nHost", b"\nHost"),
        *(
            PLAIN[:-2] + line + b"\r\n\r\n"
            for line in (
                b"Host: h",
                b"X-A: 1\r\nx-a: 2",
                b" folded",
                b"X-A: \xff",
                b"X-A: \x00",
                b"X-A: \x7f",
                b"X-A",
                b": a",
                b"X-A\x00: b",
                b"X" * 65 + b": a",
                b"Connection: close",
                b"Connection: keep-alive",
                b"Upgrade: h2c",
                b"Content-Length: 0",
                b"Transfer-Encoding: chunked",
                b"Content-Encoding: gzip",
                b"Expect: 100-continue",
                b"Proxy-Connection: close",
                b"\r\n".join(b"X-%d: a" % n for n in range(32)),
            )
        ),
    ],
)
def test_what_may_not_be_plain_is_left_to_aiohttp(head: bytes) -> None:
    assert calls.chosen().plain_head(head) is None


def test_only_bytes_are_heads() -> None:
    with pytest.raises(TypeError):
        calls.chosen().plain_head("GET / HTTP/1.1\r\n\r\n")


NAMES = st.sampled_from(
    [b"Host", b"X-A", b"Accept", b"Cookie", b"User-Agent", b"ETag", b"Te", b"Keep-Alive"]
) | st.binary(max_size=4)
FIELDS = st.lists(st.tuples(NAMES, st.text(max_size=6).map(str.encode) | st.binary(max_size=4)), max_size=4)


@given(st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT"]), st.binary(max_size=6), FIELDS)
@example(b"GET", b"", [(b"Host", b"")])
def test_whatever_is_read_in_c_aiohttp_reads_alike(
    method: bytes, rest: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    lines = b"".join(b"%s: %s\r\n" % field for field in fields)
    agree(method + b" /" + rest + b" HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n")
    agree(method + b" /" + rest + b" HTTP/1.1\r\n" + lines + b"\r\n")


@given(st.integers(0, len(PLAIN)), st.integers(0, 3), st.binary(max_size=3))
def test_a_damaged_head_is_read_alike_or_not_at_all(at: int, gone: int, put: bytes) -> None:
    agree(PLAIN[:at] + put + PLAIN[at + gone :])


PARTS = [
    PLAIN,
    b"GET /y?a=b HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n",
    b"\r\n" + PLAIN,
    b"POST /z HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /z HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n",
    b"GET /waits HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"no http\r\n\r\n",
]


async def _talk(packets: list[bytes], *, in_c: bool) -> bytes:
    async def handler(lane: Lane) -> Reply:
        path = lane.request.raw_path
        if path == "/waits":
            await lane.leave()
            await asyncio.sleep(0)
        said = [path, *(f"{name.lower()}={value}" for name, value in lane.request.headers.items())]
        return Reply(200, " ".join(said).encode(), {})

    def left_to_aiohttp(_head: bytes) -> None:
        return None

    async with served(handler, head_timeout_s=60) as one:
        if not in_c:
            one.server.plain_head = left_to_aiohttp
        for packet in packets:
            one.connection.data_received(packet)
            await _settled(one)
        return re.sub(rb"(?m)^Date: [^\r]*", b"Date: now", one.wire.written)


async def _settled(one: Served) -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5), st.lists(st.integers(0, 400), max_size=6))
def test_however_requests_are_cut_the_replies_are_the_same(parts: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(parts)
    ends = sorted({*(cut % (len(whole) + 1) for cut in cuts), len(whole)} - {0})
    packets = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    by_c = asyncio.run(_talk(packets, in_c=True))
    assert by_c == asyncio.run(_talk(packets, in_c=False))


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6))
def test_a_packet_for_each_request_gets_the_same_replies(parts: list[bytes]) -> None:
    by_c = asyncio.run(_talk(parts, in_c=True))
    assert by_c == asyncio.run(_talk(parts, in_c=False))
