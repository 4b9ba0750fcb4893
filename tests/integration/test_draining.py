"""SIGTERM: what runs may finish, what is new is refused, and the exit code says that all went well."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import BinaryIO

import pytest
from hosting import Host, MakeHost, alive, until


@pytest.fixture
def busy(make_host: MakeHost) -> Host:
    host = make_host(workers=2, drain_timeout_s=10).start()
    host.serves("stream")
    return host


@contextlib.contextmanager
def running(host: Host, n_chunks: int) -> Iterator[BinaryIO]:
    """Lend the reply of a guest that writes a chunk every 50 ms, and has begun."""
    with host.socket() as raw, raw.makefile("rb") as reply:
        raw.sendall(f"GET /stream?{n_chunks} HTTP/1.0\r\n\r\n".encode())
        assert reply.readline().startswith(b"HTTP/1.0 200")
        while reply.readline() != b"chunk 0\n":
            pass
        yield reply


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # it arrived while the listening socket was being closed: the next one is refused
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered_and_new_ones_are_refused(busy: Host, number: signal.Signals) -> None:
    with running(busy, 30) as reply:
        os.kill(busy.pid, number)
        until(lambda: refuses(busy.port), timeout_s=1, what="new connections are refused")
        assert reply.read().endswith(b"chunk 29\n")
    assert busy.wait() == 0


def test_an_idle_connection_does_not_hold_the_host_up(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.socket() as raw:
        raw.sendall(f"GET /{host.serves('hello-c')} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert raw.recv(12) == b"HTTP/1.1 200"
        began = time.monotonic()
        host.stop()
        assert time.monotonic() - began < 5


def test_a_guest_that_outlives_the_drain_budget_is_cut_off(make_host: MakeHost) -> None:
    host = make_host(drain_timeout_s=0.3).start()
    host.serves("stream")
    with running(host, 1000) as reply:
        began = time.monotonic()
        host.stop()
        assert time.monotonic() - began < 8
        with contextlib.suppress(ConnectionError):
            assert not reply.read().endswith(b"chunk 999\n")


def test_a_second_signal_ends_the_host_at_once(busy: Host) -> None:
    with running(busy, 180):
        workers = busy.worker_pids()
        busy.terminate()
        until(lambda: refuses(busy.port), what="it drains")
        busy.terminate()
        assert busy.wait(5) != 0
    until(lambda: not any(alive(pid) for pid in workers), what="the workers are gone")


def test_logs_of_the_last_requests_are_kept(make_host: MakeHost) -> None:
    host = make_host("logs").start()
    name = host.serves("stderr")
    host.get(f"/{name}?1", {"X-Request-Id": "last"})
    host.stop()
    again = make_host("logs").start()
    assert again.log_of(name, "last")[-1]["outcome"] == "ok"
    again.stop()
