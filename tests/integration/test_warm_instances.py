"""A real host makes instances ahead of requests, and reuses them only where the manifest says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import wasmtime
from hosting import Host, MakeHost, until, wasm

# Answers how many requests this instance has served; the eighth traps. The map is {"body": "N"}.
COUNTING = """(module
  (memory (export "memory") 2)
  (data (i32.const 2048) "\\81\\a4body\\a1")
  (global $n (mut i32) (i32.const 0))
  (func (export "faas_alloc") (param i32) (result i32) (i32.const 4096))
  (func (export "faas_handle") (param i32 i32) (result i64)
    (global.set $n (i32.add (global.get $n) (i32.const 1)))
    (if (i32.ge_u (global.get $n) (i32.const 8)) (then unreachable))
    (i32.store8 (i32.const 2055) (i32.add (i32.const VERSION) (global.get $n)))
    (i64.or (i64.shl (i64.const 2048) (i64.const 32)) (i64.const 8))))"""


def counting(first: str = "0") -> bytes:
    """Return a module that counts up from *first*, a character."""
    return bytes(wasmtime.wat2wasm(COUNTING.replace("VERSION", str(ord(first)))))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("warm") / "home", workers=1, pool={"slots": 64})
    try:
        host.start()
        yield host
        host.stop()
    finally:
        host.dispose()


@pytest.fixture
def one_worker(shared: Host) -> Iterator[Host]:
    """A host with one worker and no functions; what a test deploys is removed."""
    yield shared
    for name in shared.functions():
        assert shared.admin("DELETE", f"/api/functions/{name}").status == 204


def counters(host: Host, name: str = "count") -> dict[str, float]:
    return host.admin("GET", f"/api/functions/{name}").json()["counters"]


def await_prepared(host: Host, n: int, name: str = "count") -> None:
    """Return once *n* instances have been made ahead in all."""
    until(lambda: counters(host, name).get("warm_prepared") == n, what=f"{n} instances were made ahead")


def timing(reply: Any) -> str:
    return reply.headers["Server-Timing"].split(", ")[1].partition(";dur=")[2].partition(";")[2]


def test_without_reuse_no_request_sees_what_another_one_left(one_worker: Host) -> None:
    host = one_worker
    host.deploy("fresh", counting(), {"name": "fresh", "warm": {"max": 2}})
    seen = []
    for n in range(1, 4):
        reply = host.get("/fresh")
        seen.append((reply.text, timing(reply)))
        await_prepared(host, n, "fresh")
    assert seen == [("1", ""), *[("1", 'desc="warm"')] * 2]
    counted = counters(host, "fresh")
    assert (counted["warm_hits"], counted["warm_misses"]) == (2, 1)
    metrics = host.admin("GET", "/metrics").text
    assert 'faas_warm_starts_total{function="fresh",result="hit"} 2\n' in metrics
    assert 'faas_warm_starts_total{function="fresh",result="miss"} 1\n' in metrics
    assert 'faas_warm_prepared_total{function="fresh"} 3\n' in metrics


def test_with_reuse_an_instance_serves_so_many_requests(one_worker: Host) -> None:
    host = one_worker
    host.deploy("reused", counting(), {"name": "reused", "warm": {"max": 1, "reuse": 3}})
    assert [host.get("/reused").text for _ in range(3)] == ["1", "2", "3"]
    await_prepared(host, 1, "reused")
    replies = [host.get("/reused") for _ in range(3)]
    assert [reply.text for reply in replies] == ["1", "2", "3"]
    assert [timing(reply) for reply in replies] == ['desc="warm"', 'desc="reused"', 'desc="reused"']


def test_instance_that_trapped_serves_nobody_again(one_worker: Host) -> None:
    host = one_worker
    host.deploy("traps", counting(), {"name": "traps", "warm": {"max": 1, "reuse": 100}})
    replies = [host.get("/traps") for _ in range(8)]
    assert [reply.code or reply.text for reply in replies] == [*"1234567", "guest-trap"]
    await_prepared(host, 1, "traps")
    assert [host.get("/traps").text for _ in range(2)] == ["1", "2"]


def test_new_version_takes_no_instance_of_the_old_one(one_worker: Host) -> None:
    host = one_worker
    manifest = {"name": "versions", "warm": {"max": 2, "min": 2, "reuse": 5}}
    host.deploy("versions", counting("0"), manifest)
    await_prepared(host, 2, "versions")
    assert [host.get("/versions").text for _ in range(2)] == ["1", "2"]
    host.deploy("versions", counting("A"), manifest)
    await_prepared(host, 4, "versions")
    assert [host.get("/versions").text for _ in range(2)] == ["B", "C"]
    host.deploy("versions", counting("A"), {**manifest, "env": {"SAME": "code"}})
    await_prepared(host, 6, "versions")
    until(lambda: host.gauge("warm_instances") == 2, what="the old version's instances are gone")
    assert [host.get("/versions").text for _ in range(2)] == ["B", "C"]
    assert host.admin("DELETE", "/api/functions/versions").status == 204
    until(lambda: host.gauge("instances") == 0, what="no instance is left")
    assert (host.gauge("warm_instances"), host.gauge("warm_bytes")) == (0, 0)


def test_command_is_made_ahead_and_gets_its_own_request(one_worker: Host) -> None:
    host = one_worker
    host.deploy("cgi", wasm("hello-c"), {"name": "cgi", "routes": ["/cgi/*"], "warm": {"max": 2, "min": 2}})
    for n in range(2, 4):
        await_prepared(host, n, "cgi")
        reply = host.get(f"/cgi/{n}")
        assert (reply.status, reply.text.splitlines()[1]) == (200, f"GET /cgi/{n}")
        assert timing(reply) == 'desc="warm"'


def test_command_with_reuse_is_refused_with_what_to_do(one_worker: Host) -> None:
    reply = one_worker.try_deploy("cgi", wasm("hello-c"), {"name": "cgi", "warm": {"max": 1, "reuse": 2}})
    assert reply.code == "manifest-invalid"
    assert "leave warm.reuse out, or build a reactor" in reply.text


def test_requests_of_others_get_the_slots_of_instances_that_wait(make_host: MakeHost) -> None:
    """20 slots less 4 that are spare: as many guests run at once as without warm instances."""
    host = make_host(workers=1, guest_threads=2, pool={"slots": 20}).start()
    host.deploy("count", counting(), {"name": "count", "warm": {"max": 4, "min": 4}})
    host.deploy("slow", wasm("echo-stdin"))
    await_prepared(host, 4)
    clients = []
    for _ in range(16):
        client = host.connect()
        client.putrequest("POST", "/slow")
        client.putheader("Content-Length", "1")
        client.endheaders()
        clients.append(client)
    until(lambda: host.gauge("active") == 16, what="all run at once")
    assert (host.gauge("queued"), host.gauge("warm_instances")) == (0, 0)
    for client in clients:
        client.send(b"x")
        assert client.getresponse().read() == b"x"
        client.close()
    await_prepared(host, 8)
    host.stop()
