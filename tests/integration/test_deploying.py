"""Deploys over the admin API, seen from outside: refused without a trace, or served by every worker at once."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from hosting import Host, MakeHost, wasm

HELLO = wasm("hello-c")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with one function, ``kept``, and tight limits on what a deploy may cost."""
    host = Host(
        tmp_path_factory.mktemp("deploys") / "home",
        workers=2,
        max_upload_bytes=8 << 20,
        **{"precompile.cpu_s": 1, "precompile.start_timeout_s": 0.5},
    )
    try:
        host.start()
        host.deploy("kept", HELLO, {"routes": ["/kept", "/items/{id}"]})
        yield host
        host.stop()
    finally:
        host.dispose()


def leb(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def compile_bomb() -> bytes:
    """Return a valid command of 7 MB: the compiler would work on it for far more than a second."""
    one_round = b"\x20\x00\x41\xb7\x02\x6c\x20\x00\x41\x03\x76\x6a\x21\x00"  # x = x * 311 + (x >> 3)
    work, start, n = b"\0" + one_round * 2500 + b"\x20\x00\x0b", b"\0\x0b", 200
    sections = {
        1: leb(2) + b"\x60\x00\x00" + b"\x60\x01\x7f\x01\x7f",
        3: leb(1 + n) + b"\0" + b"\1" * n,
        7: leb(1) + b"\x06_start\0\0",
        10: leb(1 + n) + leb(len(start)) + start + (leb(len(work)) + work) * n,
    }
    return b"\0asm\1\0\0\0" + b"".join(bytes([id]) + leb(len(body)) + body for id, body in sections.items())


REFUSED = {
    "text": (b"#!/bin/sh\necho hello\n", None, 422, "not-wasm"),
    "empty": (b"", None, 422, "not-wasm"),
    "truncated": (HELLO[: len(HELLO) // 2], None, 422, "module-invalid"),
    "garbage": (b"\0asm\x01\0\0\0" + b"\xff" * 100, None, 422, "module-invalid"),
    "component": (wasm("component"), None, 422, "kind-unknown"),
    "imports": (wasm("unknown-import"), None, 422, "unknown-imports"),
    "exports": (wasm("no-exports"), None, 422, "kind-unknown"),
    "memory": (wasm("big-memory"), None, 422, "memory-too-large"),
    "start": (wasm("start-loop"), None, 422, "start-failed"),
    "manifest-key": (HELLO, {"route": ["/x"]}, 422, "manifest-invalid"),
    "manifest-value": (HELLO, {"limits": {"cpu_s": -1}}, 422, "manifest-invalid"),
    "manifest-toml": (HELLO, "name = [", 422, "manifest-invalid"),
    "route-syntax": (HELLO, {"routes": ["no-slash"]}, 422, "manifest-invalid"),
    "route-reserved": (HELLO, {"routes": ["/_faas/health"]}, 422, "manifest-invalid"),
    "route-taken": (HELLO, {"routes": ["/kept"]}, 409, "route-taken"),
    "route-same-shape": (HELLO, {"routes": ["/items/{key}"]}, 409, "route-taken"),
    "too-large": (b"\0asm\x01\0\0\0" + bytes(9 << 20), None, 413, "upload-too-large"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_and_nothing_of_it_stays(target: Host, case: str) -> None:
    module, manifest, status, code = REFUSED[case]
    functions, artifacts = target.functions(), target.artifacts()
    reply = target.try_deploy("fresh", module, manifest)
    assert (reply.status, reply.code) == (status, code)
    assert "\n" not in reply.json()["detail"]
    assert target.functions() == functions
    assert target.artifacts() == artifacts
    assert list((target.home / "tmp").iterdir()) == []
    assert target.get("/fresh").status == 404
    assert target.get("/kept").headers["X-Faas-Version"] == str(functions["kept"])


@pytest.mark.parametrize("case", ["truncated", "imports", "start", "memory"])
def test_a_refused_redeploy_leaves_the_old_version_serving(target: Host, case: str) -> None:
    before = target.functions()
    reply = target.try_deploy("kept", REFUSED[case][0], {"routes": ["/kept", "/items/{id}"]})
    assert reply.code == REFUSED[case][3]
    assert target.functions() == before
    served = target.get("/kept")
    assert (served.status, served.headers["X-Faas-Version"]) == (200, str(before["kept"]))


def test_a_compile_bomb_is_stopped_by_its_limit(target: Host) -> None:
    functions, artifacts = target.functions(), target.artifacts()
    reply = target.try_deploy("bomb", compile_bomb())
    assert (reply.status, reply.code) == (422, "compile-limit")
    assert (target.functions(), target.artifacts()) == (functions, artifacts)


def test_unknown_imports_are_named(target: Host) -> None:
    assert "env.mystery" in target.try_deploy("fresh", wasm("unknown-import")).json()["detail"]


def test_an_unknown_manifest_key_is_named(target: Host) -> None:
    assert "`rout`" in target.try_deploy("fresh", HELLO, {"rout": ["/x"]}).json()["detail"]


def test_a_taken_route_names_its_owner(target: Host) -> None:
    problem = target.try_deploy("fresh", HELLO, {"routes": ["GET /kept", "/kept"]}).json()
    assert "'kept'" in problem["detail"]
    assert problem["owner"] == "kept"


def test_a_redeploy_is_served_by_every_worker_when_it_returns(target: Host) -> None:
    for _ in range(3):
        version = target.deploy("again", HELLO, {"env": {}})["version"]
        seen = Counter(target.get("/again").headers["X-Faas-Version"] for _ in range(50))
        assert seen == {str(version): 50}


def test_routes_of_the_old_version_are_gone_with_it(target: Host) -> None:
    target.deploy("moving", HELLO, {"routes": ["/old-place"]})
    target.deploy("moving", HELLO, {"routes": ["/new-place"]})
    assert target.get("/old-place").status == 404
    assert target.get("/new-place").status == 200


def test_a_removed_function_is_gone_from_every_worker_and_from_the_disk(target: Host) -> None:
    before = target.artifacts()
    target.deploy("short-lived", wasm("random"))
    assert target.artifacts() > before
    assert target.admin("DELETE", "/api/functions/short-lived").status == 204
    assert {target.get("/short-lived").status for _ in range(20)} == {404}
    assert target.artifacts() == before


def test_a_request_in_flight_finishes_on_the_version_it_began_with(target: Host) -> None:
    first = target.deploy("slow", wasm("stream"))["version"]
    with target.socket() as raw, raw.makefile("rb") as reply:
        raw.sendall(b"GET /slow?12 HTTP/1.0\r\n\r\n")
        head = b"".join(iter(reply.readline, b"chunk 0\n"))
        second = target.deploy("slow", HELLO)["version"]
        assert target.get("/slow").headers["X-Faas-Version"] == str(second)
        assert reply.read().endswith(b"chunk 11\n")
    assert f"X-Faas-Version: {first}\r\n".encode() in head


def test_deploys_at_the_same_time_are_all_served(target: Host) -> None:
    names = [f"at-once-{i}" for i in range(4)]
    threads = [threading.Thread(target=target.deploy, args=(name, HELLO)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [target.get(f"/{name}").status for name in names] == [200] * 4


def test_the_admin_api_wants_its_token(target: Host) -> None:
    for path in ("/api/status", "/api/functions", "/api/functions/kept/logs"):
        reply = target.admin("GET", path, headers={"Authorization": "Bearer wrong"})
        assert (reply.status, reply.code) == (401, "unauthorized")


def test_a_deploy_tells_its_stages_when_asked(make_host: MakeHost) -> None:
    host = make_host().start()
    body = b'--b\r\nContent-Disposition: form-data; name="module"; filename="m"\r\n\r\n' + HELLO + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Accept": "application/x-ndjson"}
    reply = host.admin("PUT", "/api/functions/told", body, headers)
    events = [json.loads(line) for line in reply.text.splitlines()]
    assert [event["stage"] for event in events[:-1]] == [
        "upload", "validate", "compile", "store", "prepare", "activate",
    ]  # fmt: skip
    assert events[-1]["event"] == "done"
    host.stop()


def test_a_module_with_an_initialiser_is_served_from_its_snapshot(host: Host) -> None:
    pytest.importorskip("wasmtime_cli")
    assert "pre-initialised: yes" in host.get(f"/{host.serves('wizer')}").text
