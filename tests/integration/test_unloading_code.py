"""Deployed functions that are not called take no memory in a worker, and answer when they are called again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosting import Host, MakeHost, until, wasm


@pytest.fixture
def tight(make_host: MakeHost) -> Host:
    """A host with one worker that keeps no code but what runs."""
    host = make_host(workers=1, code_budget_bytes=0).start()
    for guest in ("hello-c", "hello-rust", "echo-c", "echo-stdin"):
        host.deploy(guest, wasm(guest))
    return host


def mapped_code(host: Host) -> set[str]:
    """Return which sealed copies of native code the worker has mapped, by artifact key."""
    (pid,) = host.worker_pids()
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    names = {line.rpartition("/memfd:")[2].split()[0] for line in maps if "/memfd:" in line}
    return {name for name in names if len(name) == 64}


def test_code_that_is_not_used_is_unmapped_and_answers_again(tight: Host) -> None:
    for _ in range(2):
        assert tight.get("/hello-c").text.startswith("Hello from C!")
        assert tight.get("/hello-rust").text.startswith("Hello from Rust!")
        assert tight.request("POST", "/echo-c", b"again").body == b"again"
    until(lambda: not mapped_code(tight), what="no native code is mapped")
    # Four trial instances and six requests, each on its own.
    until(lambda: tight.gauge("code_loads") == 10)
    assert (tight.gauge("modules"), tight.gauge("code_bytes"), tight.gauge("code_evictions")) == (0, 0, 10)
    tight.stop()


def test_code_under_a_running_instance_stays_while_others_come_and_go(tight: Host) -> None:
    """A guest waits for the rest of its body while every other function is loaded and unloaded around it."""
    with tight.socket() as client:
        client.sendall(b"POST /echo-stdin HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nab")
        until(lambda: len(mapped_code(tight)) == 1, what="the guest's code is mapped")
        (running,) = mapped_code(tight)
        for _ in range(3):
            assert tight.get("/hello-c").status == 200
            assert tight.get("/hello-rust").status == 200
            assert running in mapped_code(tight)
        client.sendall(b"cd")
        reply = b"".join(iter(lambda: client.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert reply.endswith(b"cd\r\n0\r\n\r\n")
    until(lambda: not mapped_code(tight), what="no native code is mapped")
    tight.stop()


def test_code_of_a_removed_function_is_unmapped(make_host: MakeHost) -> None:
    host = make_host(workers=1).start()
    for guest in ("hello-c", "hello-rust"):
        host.deploy(guest, wasm(guest))
        assert host.get(f"/{guest}").status == 200
    assert len(mapped_code(host)) == 2
    assert host.admin("DELETE", "/api/functions/hello-c").status == 204
    until(lambda: len(mapped_code(host)) == 1, what="only one module is mapped")
    assert host.get("/hello-rust").status == 200
    host.stop()
