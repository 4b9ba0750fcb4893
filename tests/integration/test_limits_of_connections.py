"""Clients that are slow, half closed, endless, or do not read: each gets an answer, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosting import Host, MakeHost, until

MAX_CONNECTIONS = 24
KEEPALIVE_REQUESTS = 12


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host of one worker that waits for nobody."""
    one = Host(
        tmp_path_factory.mktemp("strict") / "home",
        workers=1,
        header_timeout_s=0.5,
        body_timeout_s=0.4,
        body_min_bytes_per_s=1000,
        send_timeout_s=0.5,
        keepalive_requests=KEEPALIVE_REQUESTS,
        max_connections=MAX_CONNECTIONS,
    )
    try:
        one.start()
        yield one
        one.stop()
    finally:
        one.dispose()


def everything(sock: socket.socket) -> bytes:
    """Return what comes until the host closes; a reset fails the test."""
    reply = b""
    while chunk := sock.recv(65536):
        reply += chunk
    return reply


def ask(host: Host, request: bytes, *, half_close: bool = False) -> tuple[int, str]:
    """Return status and problem code of the one reply to *request*, after which the host has closed."""
    with host.socket() as sock:
        sock.sendall(request)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        return told(everything(sock))


def told(reply: bytes) -> tuple[int, str]:
    head, _, body = reply.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100 "):
        return told(body)
    assert head.startswith(b"HTTP/1."), reply[:100]
    code = ""
    if b"application/problem+json" in head:
        code = json.loads(body)["code"]
    return int(head.split()[1]), code


def drip(sock: socket.socket, data: bytes, reply: bytes = b"") -> bytes:
    """Send *data* again and again, slowly, until the host answers; return the whole answer."""
    for _ in range(2000):
        if select.select([sock], [], [], 0.02)[0]:
            return reply + everything(sock)
        sock.sendall(data)
    raise AssertionError("no answer")


def post(name: str, *headers: str) -> bytes:
    return f"POST /{name} HTTP/1.1\r\n".encode() + "".join(f"{h}\r\n" for h in ("Host: x", *headers)).encode()


def get(name: str, *headers: str) -> bytes:
    return post(name, *headers).replace(b"POST", b"GET", 1)


def fine(host: Host) -> bool:
    """Whether others are served."""
    return host.get("/" + host.serves("hello-c")).status == 200


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "more"),
    [(b"", b"\r\n"), (b"GET /", b"x"), (b"GET /x HTTP/1.1\r\nHost: x\r\n", b"x"), (b"GET /x HTTP/1.1\r\nA: ", b"x")],
    ids=["blank lines", "line", "name", "value"],
)
def test_a_head_byte_by_byte_is_408_in_the_end(strict: Host, begun: bytes, more: bytes) -> None:
    with strict.socket() as sock:
        sock.sendall(begun)
        assert told(drip(sock, more)) == (408, "request-timeout")


ENDLESS = {
    "target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "target-too-long"),
    "endless target": (b"GET /" + b"a" * 3_000_000, 414, "target-too-long"),
    "endless value": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 3_000_000, 431, "head-too-large"),
    "endless name": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 3_000_000, 431, "head-too-large"),
    "endless headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 500_000, 431, "head-too-large"),
    "too many": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 128 + b"\r\n", 431, "head-too-large"),
    "too large": (
        b"GET / HTTP/1.1\r\nHost: x\r\n" + (b"A: " + b"b" * 8000 + b"\r\n") * 9 + b"\r\n",
        431,
        "head-too-large",
    ),
    "blank lines": (b"\r\n" * 500_000, 431, "head-too-large"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_head_that_is_too_large_is_refused_while_it_is_being_sent(strict: Host, kind: str) -> None:
    request, status, code = ENDLESS[kind]
    assert ask(strict, request) == (status, code)


def test_the_largest_head_is_served_whole_or_in_pieces(strict: Host) -> None:
    head = get(strict.serves("hello-c"), *[f"A{n}: {'b' * 8000}" for n in range(7)], "Connection: close") + b"\r\n"
    assert ask(strict, head)[0] == 200
    with strict.socket() as sock:
        for at in range(0, len(head), 5000):
            sock.sendall(head[at : at + 5000])
        assert told(everything(sock))[0] == 200


# --- what is no request, or two in one -------------------------------------------------------------------------------

CHUNKED = "Transfer-Encoding: chunked"
AMBIGUOUS = {
    "length and chunks": post("x", "Content-Length: 5", CHUNKED) + b"\r\n0\r\n\r\n",
    "chunks and length": post("x", CHUNKED, "Content-Length: 5") + b"\r\n0\r\n\r\n",
    "length twice": post("x", "Content-Length: 5", "Content-Length: 5") + b"\r\nhello",
    "lengths that differ": post("x", "Content-Length: 5", "Content-Length: 6") + b"\r\nhello",
    "list of lengths": post("x", "Content-Length: 5, 5") + b"\r\nhello",
    "length with a sign": post("x", "Content-Length: +5") + b"\r\nhello",
    "negative length": post("x", "Content-Length: -5") + b"\r\nhello",
    "hexadecimal length": post("x", "Content-Length: 0x5") + b"\r\nhello",
    "length of 2**64 - 1": post("x", "Content-Length: 18446744073709551615") + b"\r\nhello",
    "length past 2**64": post("x", "Content-Length: 99999999999999999999999") + b"\r\nhello",
    "chunked twice": post("x", CHUNKED, CHUNKED) + b"\r\n0\r\n\r\n",
    "chunked is not last": post("x", "Transfer-Encoding: chunked, gzip") + b"\r\n0\r\n\r\n",
    "unknown coding": post("x", "Transfer-Encoding: xchunked") + b"\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": post("x", CHUNKED).replace(b"/1.1", b"/1.0") + b"\r\n0\r\n\r\n",
    "bare LF": b"GET /x HTTP/1.1\nHost: x\n\n",
    "bare CR": b"GET /x HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
    "space before colon": get("x", "A : b") + b"\r\n",
    "obs-fold": get("x", "A: b\r\n c") + b"\r\n",
    "NUL in a value": get("x", "A: b\0c") + b"\r\n",
    "NUL in a name": get("x", "A\0: b") + b"\r\n",
    "NUL in the target": get("x?\0") + b"\r\n",
    "two hosts": get("x", "Host: y") + b"\r\n",
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "unknown method": b"FOO /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/1.2": get("x").replace(b"/1.1", b"/1.2") + b"\r\n",
    "TLS hello": bytes.fromhex("1603010200010001fc0303") + bytes(100),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_400_and_the_end_of_the_connection(strict: Host, kind: str) -> None:
    assert ask(strict, AMBIGUOUS[kind] + get("hello-c") + b"\r\n") == (400, "malformed-request")


@pytest.mark.parametrize("version", [b"0.9", b"2.0"])
def test_other_versions_of_http_are_505(strict: Host, version: bytes) -> None:
    assert ask(strict, get("x").replace(b"1.1", version) + b"\r\n") == (505, "http-version")


def test_a_request_line_of_http_0_9_is_no_hang(strict: Host) -> None:
    assert ask(strict, b"GET /x\r\n") == (408, "request-timeout")


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_an_upgrade_is_declined_by_an_ordinary_answer(strict: Host, protocol: str) -> None:
    name = strict.serves("hello-c")
    assert ask(strict, get(name, "Connection: Upgrade, close", f"Upgrade: {protocol}") + b"\r\n") == (200, "")


def test_nothing_behind_an_upgrade_or_connect_is_a_request(strict: Host) -> None:
    hidden = get(strict.serves("hello-c")) + b"\r\n"
    assert ask(strict, get("nope", "Connection: Upgrade", "Upgrade: websocket") + b"\r\n" + hidden)[0] == 404
    assert ask(strict, b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n" + hidden) == (400, "malformed-request")


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guest", ["echo-c", "slow-reader"])
@pytest.mark.parametrize("framing", ["Content-Length: 9000000", CHUNKED])
def test_a_body_that_stops_coming_is_408(strict: Host, guest: str, framing: str) -> None:
    assert ask(strict, post(strict.serves(guest), framing) + b"\r\n") == (408, "request-timeout")


@pytest.mark.parametrize(
    ("framing", "begun", "more"),
    [
        ("Content-Length: 9000000", b"", b"x"),
        (CHUNKED, b"", b"1\r\nx\r\n"),
        (CHUNKED, b"5;", b"x"),
        (CHUNKED, b"0\r\nA: ", b"x"),
    ],
    ids=["length", "chunks", "chunk extension", "trailer"],
)
def test_a_body_byte_by_byte_is_408_in_the_end(strict: Host, framing: str, begun: bytes, more: bytes) -> None:
    with strict.socket() as sock:
        sock.sendall(post(strict.serves("echo-c"), framing) + b"\r\n" + begun)
        assert told(drip(sock, more)) == (408, "request-timeout")


def test_a_body_is_408_at_the_functions_deadline_and_no_fault_of_the_guest(strict: Host) -> None:
    assert ask(strict, post(strict.serves("echo-c", timeout_s=0.1), "Content-Length: 9") + b"\r\n") == (
        408,
        "request-timeout",
    )


@pytest.mark.parametrize(
    "body",
    [b"5;" + b"x" * 2_000_000, b"0\r\n" + b"A: b\r\n" * 100_000, b"0\r\nA: " + b"b" * 100_000],
    ids=["extension", "trailers", "trailer"],
)
def test_endless_parts_of_chunks_end(strict: Host, body: bytes) -> None:
    status, code = ask(strict, post(strict.serves("echo-c"), CHUNKED) + b"\r\n" + body)
    assert (status, code) in {(400, "malformed-request"), (408, "request-timeout"), (431, "head-too-large")}


@pytest.mark.parametrize("guest", ["echo-c", "slow-reader"])
def test_broken_chunks_are_400_at_once(strict: Host, guest: str) -> None:
    with strict.socket() as sock:
        sock.sendall(post(strict.serves(guest), CHUNKED) + b"\r\n5\r\nhello\r\n")
        sock.sendall(b"no chunk\r\n")
        assert told(everything(sock)) == (400, "malformed-request")


@pytest.mark.parametrize("path", ["echo-c", "nope"])
@pytest.mark.parametrize("framing", ["Content-Length: 99999999", CHUNKED])
def test_an_early_answer_reaches_a_client_that_sends_all_before_it_reads(strict: Host, path: str, framing: str) -> None:
    name = strict.serves("echo-c", max_body_bytes=1000) if path == "echo-c" else path
    body = b"1000\r\n" + b"x" * 4096 + b"\r\n" if framing == CHUNKED else b"x" * 4096
    with strict.socket() as sock:
        sock.sendall(post(name, framing) + b"\r\n" + body * 3000)
        reply = everything(sock)
    assert told(reply)[0] == (404 if path == "nope" else 413)
    assert b"\r\nConnection: close\r\n" in reply


def test_a_refused_body_that_waits_to_be_asked_for_is_never_asked_for(strict: Host) -> None:
    name = strict.serves("echo-c", max_body_bytes=1000)
    request = post(name, "Content-Length: 5000", "Expect: 100-continue") + b"\r\n"
    assert ask(strict, request) == (413, "body-too-large")


# --- half-closed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["hello-c", "sleeper?50", "stream", "nope"])
def test_a_client_that_only_closed_its_end_gets_its_answer(strict: Host, path: str) -> None:
    guest, mark, query = path.partition("?")
    name = guest if guest == "nope" else strict.serves(guest)
    assert ask(strict, get(name + mark + query) + b"\r\n", half_close=True)[0] == (404 if path == "nope" else 200)


@pytest.mark.parametrize("guest", ["echo-c", "echo-stdin"])
def test_a_client_that_closed_its_end_behind_its_body_gets_its_answer(strict: Host, guest: str) -> None:
    with strict.socket() as sock:
        sock.sendall(post(strict.serves(guest), "Content-Length: 5") + b"\r\nhello")
        sock.shutdown(socket.SHUT_WR)
        assert b"hello" in everything(sock)


def test_a_client_that_closed_its_end_gets_all_its_answers(strict: Host) -> None:
    name = strict.serves("echo-c")
    with strict.socket() as sock:
        sock.sendall((post(name, "Content-Length: 5") + b"\r\nhello") * 9)
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock).count(b"\r\n\r\nhello") == 9


def test_a_client_that_closed_its_end_is_asked_once_and_answered_however_long_it_takes(strict: Host) -> None:
    with strict.socket() as sock:
        sock.sendall(get(strict.serves("sleeper") + "?1600") + b"\r\n")
        sock.shutdown(socket.SHUT_WR)
        reply = everything(sock)
    assert reply.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert reply.endswith(b"slept 1600 ms\n")


def test_a_client_that_is_gone_is_found_out_long_before_the_guest_is_done(strict: Host) -> None:
    name = strict.serves("sleeper")
    with strict.socket() as sock:
        sock.sendall(get(name + "?50000", "X-Request-Id: gone") + b"\r\n")
    assert strict.log_of(name, "gone")[-1]["outcome"] == "cancelled"


@pytest.mark.parametrize("guest", ["echo-c", "slow-reader", "echo-stdin"])
@pytest.mark.parametrize("body", [("Content-Length: 50", b"hello"), (CHUNKED, b"5\r\nhel")], ids=["length", "chunks"])
def test_a_body_that_ends_early_is_400_and_never_taken_for_whole(
    strict: Host, guest: str, body: tuple[str, bytes]
) -> None:
    name, (framing, part) = strict.serves(guest), body
    with strict.socket() as sock:
        sock.sendall(post(name, framing, f"X-Request-Id: early-{guest}") + b"\r\n" + part)
        sock.shutdown(socket.SHUT_WR)
        reply = b""
        with contextlib.suppress(ConnectionResetError):
            reply = everything(sock)
    if guest == "echo-stdin":  # had begun to answer: cut off
        assert b"0\r\n\r\n" not in reply
    else:
        assert told(reply) == (400, "malformed-request")


def test_a_head_that_ends_early_is_400(strict: Host) -> None:
    assert ask(strict, b"GET /x HTTP/1.1\r\nHos", half_close=True) == (400, "malformed-request")


def test_a_client_that_closes_without_a_word_gets_none(strict: Host) -> None:
    with strict.socket() as sock:
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock) == b""


# --- clients that don't read -----------------------------------------------------------------------------------------


def worker_bytes(host: Host) -> int:
    (pid,) = host.worker_pids()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def unread(host: Host) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", host.port))
    return sock


@pytest.mark.parametrize("path", ["nope", "hello-c"])
def test_ten_thousand_requests_whose_answers_are_not_read_are_cut_off(strict: Host, path: str) -> None:
    name = strict.serves(path) if path != "nope" else path
    assert fine(strict)
    before = worker_bytes(strict)
    with unread(strict) as sock:
        sock.settimeout(20)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                sock.sendall((get(name) + b"\r\n") * 100)
        assert worker_bytes(strict) - before < 8 * 1024 * 1024
    assert fine(strict)


# --- connections -----------------------------------------------------------------------------------------------------


def test_the_last_request_of_a_connection_says_so(strict: Host) -> None:
    name = strict.serves("hello-c")
    with strict.socket() as sock, sock.makefile("rb") as lines:
        closing = []
        for _ in range(KEEPALIVE_REQUESTS):
            sock.sendall(get(name) + b"\r\n")
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += lines.readline()
            lines.read(int(head.lower().partition(b"content-length: ")[2].split()[0]))
            closing.append(b"connection: close" in head.lower())
        assert closing == [False] * (KEEPALIVE_REQUESTS - 1) + [True]
        assert lines.read() == b""


def test_a_connection_whose_client_reads_nothing_is_given_up(make_host: MakeHost) -> None:
    """Without a send timeout it would stay for ever: no request is in progress whose deadline could pass."""
    host = make_host(workers=1, send_timeout_s=0.3, keepalive_requests=0).start()
    before = worker_bytes(host)
    with unread(host) as sock:
        sock.settimeout(20)
        request = get("nope") + b"\r\n"
        with contextlib.suppress(ConnectionError):
            while sock.sendall(request * 100) is None:  # a TimeoutError fails the test
                pass
    assert worker_bytes(host) - before < 16 * 1024 * 1024


def test_at_the_limit_a_new_client_gets_the_place_of_one_that_is_idle(strict: Host) -> None:
    path = "/" + strict.serves("hello-c")
    with contextlib.ExitStack() as opened:
        idle = [opened.enter_context(strict.socket()) for _ in range(3 * MAX_CONNECTIONS)]
        # On a busy machine the last of them may be too young yet, and a search in vain is not repeated at once.
        until(lambda: strict.get(path).status == 200)
        first = everything(idle[0])
    assert told(first) == (503, "overloaded")
    assert b"\r\nRetry-After: 1\r\n" in first


def test_at_the_limit_of_busy_clients_a_new_one_is_told_so(strict: Host) -> None:
    name = strict.serves("sleeper")
    with contextlib.ExitStack() as opened:
        busy = [opened.enter_context(strict.socket()) for _ in range(MAX_CONNECTIONS)]
        for number, sock in enumerate(busy):
            sock.sendall(get(name + "?50000", f"X-Request-Id: busy-{number}") + b"\r\n")
        until(lambda: strict.gauge("active") == MAX_CONNECTIONS, what="all of them run")
        assert ask(strict, get("hello-c") + b"\r\n") == (503, "overloaded")
    until(lambda: fine(strict), what="their places are free again")


def test_without_a_file_left_those_that_are_connected_are_served_on(make_host: MakeHost) -> None:
    host = make_host(workers=1).start()
    request = get(host.serves("hello-c")) + b"\r\n"
    with host.socket() as before:
        before.sendall(request)
        assert before.recv(65536).startswith(b"HTTP/1.1 200 ")
        (pid,) = host.worker_pids()
        n_open = len(os.listdir(f"/proc/{pid}/fd"))
        usual = resource.prlimit(pid, resource.RLIMIT_NOFILE, (n_open, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for _ in range(5):
            with host.socket() as refused, contextlib.suppress(ConnectionResetError):
                assert refused.recv(1) == b""
            before.sendall(request)
            assert before.recv(65536).startswith(b"HTTP/1.1 200 ")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
    assert fine(host)
    assert host.worker_pids() == [pid]
