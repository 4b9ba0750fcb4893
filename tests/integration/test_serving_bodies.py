"""Request and response bodies: limits, and streaming in both directions."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import threading
import time
from pathlib import Path

import pytest
from hosting import Host


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def test_a_body_over_the_limit_is_413_by_its_length(host: Host) -> None:
    name = host.serves("echo-c", max_body_bytes=1000)
    assert host.request("POST", f"/{name}", b"x" * 1000).status == 200
    reply = host.request("POST", f"/{name}", b"x" * 1001)
    assert (reply.status, reply.code) == (413, "body-too-large")


@pytest.mark.parametrize("guest", ["echo-c", "slow-reader"])
def test_a_chunked_body_over_the_limit_is_413(host: Host, guest: str) -> None:
    name = host.serves(guest, max_body_bytes=1000)
    reply = host.request("POST", f"/{name}?0", iter([b"x" * 600, b"x" * 600]))
    assert (reply.status, reply.code) == (413, "body-too-large")


def test_a_large_declared_body_is_refused_before_it_is_sent(host: Host) -> None:
    name = host.serves("echo-c", max_body_bytes=1000)
    with host.socket() as raw:
        raw.sendall(f"POST /{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n".encode())
        assert raw.makefile("rb").readline().startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("guest", ["echo-c", "echo-stdin"])
def test_expect_100_continue_is_answered_when_the_guest_reads(host: Host, guest: str) -> None:
    with host.socket() as raw, raw.makefile("rb") as lines:
        raw.sendall(
            f"POST /{host.serves(guest)} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n".encode()
        )
        assert lines.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert lines.readline() == b"\r\n"
        raw.sendall(b"hello")
        assert lines.readline().startswith(b"HTTP/1.1 200")
        assert b"hello" in lines.read()


def test_a_refused_body_gets_its_refusal_instead_of_100_continue(host: Host) -> None:
    name = host.serves("echo-c", max_body_bytes=1000)
    with host.socket() as raw, raw.makefile("rb") as lines:
        raw.sendall(
            f"POST /{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert lines.readline().startswith(b"HTTP/1.1 413")


def test_output_reaches_the_client_while_the_guest_still_runs(host: Host) -> None:
    """Chunks are 50 ms apart: a client that has the first of eight still waits for the last."""
    with contextlib.closing(host.connect()) as connection:
        connection.request("GET", f"/{host.serves('stream')}?8")
        response = connection.getresponse()
        assert response.readline() == b"chunk 0\n"
        first_at = time.monotonic()
        assert response.read().endswith(b"chunk 7\n")
        assert time.monotonic() - first_at > 0.3


def test_both_directions_stream_at_once(host: Host) -> None:
    """A client that waits for the echo of each part before it sends the next one never waits in vain."""
    with host.socket() as raw, raw.makefile("rb") as lines:
        raw.sendall(
            f"POST /{host.serves('echo-stdin')} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for i in range(5):
            part = f"part {i}".encode()
            raw.sendall(chunked(part))
            if i == 0:
                assert lines.readline().startswith(b"HTTP/1.1 200")
                while lines.readline() != b"\r\n":
                    pass
            assert lines.readline() == b"%x\r\n" % len(part)
            assert lines.read(len(part) + 2) == part + b"\r\n"
        raw.sendall(b"0\r\n\r\n")
        assert lines.read(5) == b"0\r\n\r\n"


def test_a_large_body_passes_through_unchanged(host: Host) -> None:
    """The client has to read while it sends: the host keeps neither direction in memory."""
    body = bytes(range(251)) * 40_000
    with host.socket() as raw:
        head = f"POST /{host.serves('echo-stdin')} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        sender = threading.Thread(target=raw.sendall, args=(head.encode() + body,))
        sender.start()
        response = http.client.HTTPResponse(raw)
        response.begin()
        assert response.read() == body
        sender.join()


def test_a_slow_reader_gets_every_byte(host: Host) -> None:
    reply = host.request("POST", f"/{host.serves('slow-reader')}?1", b"x" * 50)
    assert reply.text == "read 50 bytes\n"


def test_a_guest_need_not_read_its_body(host: Host) -> None:
    with contextlib.closing(host.connect()) as connection:
        for _ in range(2):
            connection.request("POST", f"/{host.serves('hello-c')}", b"x" * 100_000)
            with connection.getresponse() as response:
                assert response.status == 200
                assert response.read().startswith(b"Hello")


def test_a_body_that_ends_early_ends_the_guest(host: Host) -> None:
    name = host.serves("echo-stdin")
    with host.socket() as raw:
        raw.sendall(
            f"POST /{name} HTTP/1.1\r\nHost: x\r\nX-Request-Id: cut-body\r\nContent-Length: 100\r\n\r\nhalf".encode()
        )
        assert raw.recv(12) == b"HTTP/1.1 200"
    assert host.log_of(name, "cut-body")[-1]["outcome"] == "cancelled"


@pytest.mark.parametrize("guest", ["echo-c", "echo-stdin"])
def test_a_compressed_body_reaches_the_guest_as_it_was_sent(host: Host, guest: str) -> None:
    body = gzip.compress(b"hello" * 100)
    reply = host.request("POST", f"/{host.serves(guest)}", body, {"Content-Encoding": "gzip"})
    assert reply.body == body


def test_a_body_with_broken_chunks_ends_with_the_connection_once_the_reply_has_begun(host: Host) -> None:
    name = host.serves("echo-stdin")
    with host.socket() as raw:
        raw.sendall(
            f"POST /{name} HTTP/1.1\r\nHost: x\r\nX-Request-Id: broken\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        raw.sendall(chunked(b"part"))
        received = raw.recv(65536)
        assert received.startswith(b"HTTP/1.1 200")
        raw.sendall(b"no chunk at all\r\n")
        with contextlib.suppress(ConnectionError):
            while piece := raw.recv(65536):
                received += piece
    assert received.count(b"HTTP/1.1") == 1
    assert b"0\r\n\r\n" not in received
    assert host.log_of(name, "broken")[-1]["outcome"] == "cancelled"


def test_a_client_that_does_not_read_holds_the_guest_back(host: Host) -> None:
    """Its output stays in the guest and not in our memory, and others are served meanwhile."""
    name, others = host.serves("flood", max_output_bytes=1 << 30), host.serves("hello-c")
    with host.socket() as raw:
        raw.sendall(f"GET /{name} HTTP/1.1\r\nHost: x\r\nX-Request-Id: stalled\r\n\r\n".encode())
        assert raw.recv(12) == b"HTTP/1.1 200"
        before = _resident_bytes(host)
        for _ in range(200):
            assert host.get(f"/{others}").status == 200
        assert _resident_bytes(host) - before < 64 << 20
    finished = host.log_of(name, "stalled")[-1]
    assert finished["outcome"] == "cancelled"


def _resident_bytes(host: Host) -> int:
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in host.worker_pids()]
    return sum(pages) * 4096
