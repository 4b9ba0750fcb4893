"""Guests made to hurt the host itself: the worker lives on, and others are served meanwhile."""

from __future__ import annotations

import socket

import pytest
from hosting import Host, until
from wasmtime import wat2wasm

FD_WRITE = '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'
YIELD = '(import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))'
REACTOR = '(memory (export "memory") %d) (func (export "faas_alloc") (param i32) (result i32) (i32.const 65536))'


def cgi(head: bytes, rest: bytes) -> bytes:
    """Return a command that writes *head*, lets the host send it, and then writes *rest*."""

    def quoted(text: bytes) -> str:
        return "".join(f"\\{byte:02x}" for byte in text)

    wat = f"""(module {FD_WRITE} {YIELD} (memory (export "memory") 2)
      (func $burn (local $i i32)
        (loop $l
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $l (i32.lt_u (local.get $i) (i32.const 9)))))
      (func (export "_start")
        (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const {len(head)}))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (drop (call $yield)) (call $burn)
        (i32.store (i32.const 0) (i32.const 8192)) (i32.store (i32.const 4) (i32.const {len(rest)}))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
      (data (i32.const 1024) "{quoted(head)}") (data (i32.const 8192) "{quoted(rest)}"))"""
    return bytes(wat2wasm(wat))


def unharmed(host: Host, workers: list[int]) -> bool:
    return host.worker_pids() == workers and host.get(host_hello(host)).status == 200


def host_hello(host: Host) -> str:
    if "hostile-hello" not in host.functions():
        host.deploy("hostile-hello", cgi(b"A: b\n\n", b"hello"))
    return "/hostile-hello"


def test_a_start_function_that_traps_only_when_served_is_a_problem_and_no_crash(host: Host) -> None:
    wat = """(module
      (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func $s (drop (call $sizes (i32.const 0) (i32.const 4))) (if (i32.load (i32.const 0)) (then unreachable)))
      (start $s) (func (export "_start")))"""
    host_hello(host)
    workers = host.worker_pids()
    host.deploy("start-traps-later", bytes(wat2wasm(wat)))
    assert host.get("/start-traps-later").code == "guest-trap"
    assert unharmed(host, workers)


def test_a_start_function_that_always_traps_is_refused_at_deploy(host: Host) -> None:
    workers = host.worker_pids()
    refused = host.try_deploy(
        "start-traps", bytes(wat2wasm('(module (start 0) (func unreachable) (func (export "_start")))'))
    )
    assert refused.code == "start-failed"
    assert host.worker_pids() == workers


@pytest.mark.parametrize(
    "export", ['(global (export "memory") i32 (i32.const 7))', '(table (export "memory") 4 funcref)']
)
def test_something_else_under_the_name_of_memory_never_reaches_the_engine(host: Host, export: str) -> None:
    host_hello(host)
    workers = host.worker_pids()
    module = bytes(wat2wasm(f'(module {export} (func (export "_start") unreachable))'))
    if host.try_deploy("confused", module).status < 400:
        assert host.get("/confused").code == "guest-trap"
    assert unharmed(host, workers)


@pytest.mark.parametrize("status", [204, 304])
def test_a_body_where_http_allows_none_never_reaches_the_connection(host: Host, status: int) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Evil: 1\r\n\r\nHACKED"
    host.deploy(f"splits-{status}", cgi(b"Status: %d\nA: b\n\nX" % status, evil))
    with host.socket() as sock:
        request = f"GET /splits-{status} HTTP/1.1\r\nHost: x\r\n%s\r\n"
        sock.sendall((request % "").encode() + (request % "Connection: close\r\n").encode())
        reply = b""
        while chunk := sock.recv(65536):
            reply += chunk
    assert reply.count(b"HTTP/1.1 ") == 2
    assert reply.count(b"HTTP/1.1 %d " % status) == 2
    assert b"Evil" not in reply


def test_an_answer_of_millions_of_headers_is_refused_before_it_is_built(host: Host) -> None:
    wat = f"""(module {REACTOR % 600} (func (export "faas_handle") (param i32 i32) (result i64)
      (memory.fill (i32.const 1038) (i32.const 0x90) (i32.const 30000000))
      (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 30000014)))
      (data (i32.const 1024) "\\81\\a7headers\\dd\\01\\c9\\c3\\80"))"""
    host.deploy("header-bomb", bytes(wat2wasm(wat)))
    assert host.get("/header-bomb").code == "malformed-response"


def test_who_does_not_read_the_reply_is_cut_off_at_the_deadline_and_gives_the_permit_back(host: Host) -> None:
    wat = f"""(module {REACTOR % 700} (func (export "faas_handle") (param i32 i32) (result i64)
      (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 30000011)))
      (data (i32.const 1024) "\\81\\a4body\\c6\\01\\c9\\c3\\80"))"""
    host.deploy("huge", bytes(wat2wasm(wat)), {"name": "huge", "limits": {"timeout_s": 0.5}})
    with host.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"GET /huge HTTP/1.1\r\nHost: x\r\nX-Request-Id: unread\r\n\r\n")
        until(lambda: host.log_of("huge", "unread"), what="the outcome in the log")
    assert host.log_of("huge", "unread")[-1]["outcome"] == "limited"


def test_a_client_that_goes_while_its_body_is_unread_is_noticed(host: Host) -> None:
    name = host.serves("sleeper")
    with host.socket() as sock:
        head = f"POST /{name}?50000 HTTP/1.1\r\nHost: x\r\nX-Request-Id: gone-unread\r\nContent-Length: 9000000\r\n\r\n"
        sock.sendall(head.encode() + b"x" * 300_000)
    until(lambda: host.log_of(name, "gone-unread"), what="the outcome in the log")
    assert host.log_of(name, "gone-unread")[-1]["outcome"] == "cancelled"


@pytest.mark.parametrize("traceparent", [b"\xff", b"-x" * 10])
def test_bytes_that_are_no_text_do_not_hide_the_outcome_of_an_invocation(host: Host, traceparent: bytes) -> None:
    host_hello(host)
    request_id = f"odd-{len(traceparent)}"
    with host.socket() as sock:
        sock.sendall(
            b"GET /hostile-hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: "
            + request_id.encode()
            + b"\r\ntraceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01-" + traceparent + b"\r\n\r\n"
        )  # fmt: skip
        assert b" 200 OK" in sock.recv(65536)
    until(lambda: host.log_of("hostile-hello", request_id), what="the outcome in the log")


def test_a_status_that_is_no_text_is_a_malformed_response(host: Host) -> None:
    host.deploy("bad-status", cgi(b"Status: abc\xff\n\n", b""))
    assert host.get("/bad-status").code == "malformed-response"


def test_a_local_redirect_to_bytes_that_are_no_text_reaches_a_reactor(host: Host) -> None:
    wat = f"""(module {REACTOR % 3} (func (export "faas_handle") (param i32 i32) (result i64)
      (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 11)))
      (data (i32.const 1024) "\\81\\a4body\\a4okay"))"""
    host.deploy("okay", bytes(wat2wasm(wat)), {"name": "okay", "routes": ["/okay/{x}"]})
    host.deploy("redirects", cgi(b"Location: /okay/\xff\n\n", b""))
    assert host.get("/redirects").text == "okay"
