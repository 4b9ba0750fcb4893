"""Versions, aliases, splits, rollbacks and canaries of a real host, seen from outside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hosting import Host, MakeHost, Reply, until, wasm

HELLO, CGI = wasm("hello-c"), wasm("cgi")


@pytest.fixture
def host(make_host: MakeHost) -> Iterator[Host]:
    host = make_host(workers=2)
    host.start()
    yield host
    host.stop()


def ask(host: Host, method: str, path: str, document: Any = None) -> Any:
    body = b"" if document is None else json.dumps(document).encode()
    reply = host.admin(method, path, body, {"Content-Type": "application/json"})
    assert reply.status < 300, reply.text
    return reply.json() if reply.body else None


def deploy(host: Host, module: bytes, query: str = "") -> int:
    boundary = "b" * 32
    parts = (("manifest", "application/json", b'{"name": "f"}'), ("module", "application/wasm", module))
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
        f"Content-Type: {kind}\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, kind, content in parts
    )
    reply = host.admin(
        "PUT",
        f"/api/functions/f{query}",
        body + f"--{boundary}--\r\n".encode(),
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert reply.status == 201, reply.text
    return int(reply.json()["version"])


def version(reply: Reply) -> int:
    return int(reply.headers["X-Faas-Version"])


def versions(host: Host, n: int = 40) -> Counter[int]:
    """Return which versions answer, asked on connections of all workers."""
    return Counter(version(host.get("/f")) for _ in range(n))


def test_aliases_and_splits_reach_every_worker_and_survive_a_restart(make_host: MakeHost) -> None:
    host = make_host(workers=2)
    host.start()
    assert [deploy(host, HELLO), deploy(host, HELLO, "?alias=beta"), deploy(host, HELLO, "?traffic=none")] == [1, 2, 3]
    ask(host, "PUT", "/api/functions/f/aliases/live", {"weights": {"1": 50, "3": 50}, "sticky": "header:X-User"})

    def check() -> None:
        assert set(versions(host)) == {1, 3}
        assert {version(host.get("/f", {"X-Faas-Alias": "beta"})) for _ in range(8)} == {2}
        sides = [{version(host.get("/f", {"X-User": user})) for _ in range(6)} for user in "abcdefgh"]
        assert {len(side) for side in sides} == {1}
        assert host.get("/f", {"X-Faas-Alias": "3"}).code == "alias-not-found"

    check()
    host.stop()
    host.start()
    check()
    found = ask(host, "GET", "/api/functions/f/versions")["versions"]
    assert [one["aliases"] for one in found] == [{"live": 50}, {"beta": 100}, {"live": 50}]
    assert host.admin("DELETE", "/api/functions/f/versions/3").code == "version-in-use"
    host.stop()


def test_one_rollback_takes_all_requests_back(host: Host) -> None:
    deploy(host, HELLO)
    deploy(host, CGI)
    assert set(versions(host, 10)) == {2}
    assert ask(host, "POST", "/api/functions/f/rollback", {})["version"] == 1
    assert set(versions(host, 20)) == {1}
    ask(host, "DELETE", "/api/functions/f/versions/2")
    assert [one["action"] for one in ask(host, "GET", "/api/audit?function=f")["entries"]] == [
        "remove-version",
        "rollback",
        "deploy",
        "deploy",
    ]


def test_numbers_that_no_version_can_have_are_refused(host: Host) -> None:
    deploy(host, HELLO)
    huge = 10**30
    for method, path, document in (
        ("POST", "rollback", {"to": huge}),
        ("POST", "canary", {"version": huge}),
        ("PUT", "aliases/live", {"weights": {str(huge): 100}}),
        ("PUT", "aliases/live", {"weights": {"0": 100}}),
    ):
        reply = host.admin(method, f"/api/functions/f/{path}", json.dumps(document).encode())
        assert (reply.status, reply.code) == (400, "bad-request"), reply.text
    assert host.admin("POST", "/api/functions/f/invoke", json.dumps({"qualifier": "9" * 40}).encode()).status == 404


def test_a_failing_canary_goes_back_to_nothing_by_itself(host: Host) -> None:
    deploy(host, HELLO)
    plan = {"steps": [50], "interval_s": 600, "min_requests": 10}
    deploy(host, CGI, "?canary=" + json.dumps(plan).replace(" ", ""))

    def ended() -> bool:
        host.get("/f?status=500+no")
        return bool(ask(host, "GET", "/api/functions/f/canary")["canary"]["phase"] != "running")

    until(ended, what="the canary ended")
    canary = ask(host, "GET", "/api/functions/f/canary")["canary"]
    assert canary["phase"] == "rolled-back"
    assert "requests failed" in canary["reason"]
    assert set(versions(host, 20)) == {1}


def test_a_version_that_no_alias_names_is_invoked_by_its_number_on_the_admin_side_only(host: Host) -> None:
    deploy(host, HELLO)
    deploy(host, CGI)
    asked = {"qualifier": "1", "target": "/f?x", "method": "GET"}
    reply = ask(host, "POST", "/api/functions/f/invoke", asked)
    assert (reply["version"], reply["status"]) == (1, 200)
    assert ask(host, "POST", "/api/functions/f/invoke", {})["version"] == 2
    unknown = host.admin("POST", "/api/functions/f/invoke", b'{"qualifier": "9"}')
    assert unknown.code == "version-not-found"
    unknown = host.admin("POST", "/api/functions/f/invoke", b'{"qualifier": "nope"}')
    assert unknown.code == "alias-not-found"


def test_a_canary_that_fails_on_another_host_than_began_it_goes_back_on_both(
    make_host: MakeHost, postgres_url: str
) -> None:
    one, two = (make_host(state=postgres_url, workers=1).start() for _ in range(2))
    deploy(one, HELLO)
    until(lambda: two.get("/f").status == 200, what="the other host serves the function")
    deploy(one, CGI, "?canary=" + json.dumps({"steps": [50], "interval_s": 600, "min_requests": 10}).replace(" ", ""))
    until(lambda: set(versions(two, 10)) == {1, 2}, what="the other host serves both versions")

    def ended() -> bool:
        two.get("/f?status=500+no")
        return bool(ask(two, "GET", "/api/functions/f/canary")["canary"]["phase"] != "running")

    until(ended, what="the canary ended")
    for host in (one, two):
        until(lambda host=host: set(versions(host, 10)) == {1}, what="all requests are back")
        host.stop()
