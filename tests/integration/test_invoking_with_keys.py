"""Invoke keys on a real host: every worker takes them, none takes a removed one, all keep a limit together."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from hosting import Host, MakeHost, until, wasm


def keyed(host: Host, name: str = "secret", guest: str = "hello-c", invoke: str = "key") -> str:
    host.deploy(name, wasm(guest), {"access": {"invoke": invoke}})
    return f"/{name}"


def new_key(host: Host, function: str, name: str, per_minute: int = 0) -> str:
    body = json.dumps({"name": name, "requests_per_minute": per_minute}).encode()
    reply = host.admin("POST", f"/api/functions/{function}/keys", body)
    assert reply.status == 201, reply.body
    key: str = reply.json()["key"]
    return key


def counters(host: Host, function: str, name: str) -> dict[str, Any]:
    (found,) = [
        key for key in host.admin("GET", f"/api/invoke-keys?function={function}").json()["keys"] if key["name"] == name
    ]
    counted: dict[str, Any] = found["counters"]
    return counted


def test_every_worker_asks_for_a_key_and_takes_it_and_none_takes_a_removed_one(make_host: MakeHost) -> None:
    host = make_host(workers=2).start()
    path = keyed(host)
    tries = 12  # each on a connection of its own: both workers are met
    assert {host.get(path).code for _ in range(tries)} == {"invalid-invoke-key"}
    key = new_key(host, "secret", "bot")
    for headers in ({"X-Faas-Key": key}, {"Authorization": f"Bearer {key}"}):
        assert {host.get(path, headers).status for _ in range(tries)} == {200}
    assert host.admin("DELETE", "/api/functions/secret/keys/bot").status == 204
    assert {host.get(path, {"X-Faas-Key": key}).status for _ in range(tries)} == {401}
    host.stop()


def test_keys_and_counters_survive_a_workers_death_and_keys_a_restart(make_host: MakeHost) -> None:
    host = make_host("kept", workers=1).start()
    path = keyed(host)
    key = new_key(host, "secret", "bot")
    assert host.get(path, {"X-Faas-Key": key}).status == 200
    until(lambda: counters(host, "secret", "bot").get("requests") == 1)
    (worker,) = host.worker_pids()
    os.kill(worker, signal.SIGKILL)
    until(lambda: host.status()["workers"][0]["state"] == "serving" and host.worker_pids() not in ([], [worker]))
    assert host.get(path, {"X-Faas-Key": key}).status == 200
    until(lambda: counters(host, "secret", "bot").get("requests") == 2)
    host.stop()
    again = make_host("kept", workers=1).start()
    assert again.get(path).status == 401
    assert again.get(path, {"X-Faas-Key": key}).status == 200
    again.stop()


def test_requests_per_minute_are_kept_by_all_workers_together(make_host: MakeHost) -> None:
    host = make_host(workers=2).start()
    path = keyed(host)
    key = new_key(host, "secret", "bot", per_minute=5)

    def ask() -> str:
        reply = host.get(path, {"X-Faas-Key": key})
        if reply.status == 429:
            assert int(reply.headers["Retry-After"]) >= 1
        return reply.code or str(reply.status)

    # Both copies of the bucket are at their end: the first refusals may come while the other worker has not heard yet.
    answers: list[str] = []
    until(lambda: answers.append(ask()) or answers[-8:] == ["rate-limited"] * 8)  # type: ignore[func-returns-value]
    n_served = answers.count("200")
    assert 5 <= n_served <= 10, answers
    until(lambda: counters(host, "secret", "bot").get("requests") == n_served)
    until(lambda: counters(host, "secret", "bot").get("rate_limited") == answers.count("rate-limited"))
    metrics = host.admin("GET", "/metrics").text
    assert f'faas_invoke_key_requests_total{{function="secret",key="bot"}} {n_served}' in metrics
    host.stop()


def test_a_local_redirect_to_a_function_that_asks_for_a_key_needs_that_key(make_host: MakeHost) -> None:
    host = make_host(workers=1).start()
    keyed(host)
    key = new_key(host, "secret", "bot")
    host.deploy("door", wasm("cgi"), {"routes": ["/door", "/door/*"]})
    path = "/door?location=/secret"
    assert host.get(path).status == 401
    assert host.get(path, {"X-Faas-Key": key}).status == 200
    host.stop()
