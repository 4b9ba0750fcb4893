"""Two hosts on one PostgreSQL: what is deployed on one is served by both, and what must happen once happens once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hosting import Host, MakeHost, until, wasm

PAIR = {"drain_timeout_s": 5.0}


@pytest.fixture
def pair(make_host: MakeHost, postgres_url: str) -> tuple[Host, Host]:
    """Two hosts that share their state."""
    one, other = (make_host(state=postgres_url, **PAIR) for _ in range(2))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Host.start, (one, other)))
    return one, other


def jobs_of(host: Host, function: str) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = host.admin("GET", f"/api/jobs?function={function}").json()["jobs"]
    return jobs


def test_what_one_host_deploys_the_other_serves_within_a_second(pair: tuple[Host, Host]) -> None:
    one, other = pair
    one.deploy("hello-c", wasm("hello-c"))
    until(lambda: other.get("/hello-c").status == 200, timeout_s=5)
    one.deploy("hello-c", wasm("hello-c"), {"env": {"A": "b"}})
    until(lambda: other.get("/hello-c").headers["X-Faas-Version"] == "2", timeout_s=5)
    assert other.functions() == {"hello-c": 2}
    reply = other.admin("POST", "/api/functions/hello-c/rollback", b"{}")
    assert reply.status == 200, reply.body
    until(lambda: one.get("/hello-c").headers["X-Faas-Version"] == "1", timeout_s=5)
    assert other.admin("DELETE", "/api/functions/hello-c").status == 204
    until(lambda: one.get("/hello-c").status == 404, timeout_s=5)


def test_a_host_that_comes_later_serves_what_was_deployed_before(make_host: MakeHost, postgres_url: str) -> None:
    one = make_host(state=postgres_url, **PAIR).start()
    one.deploy("echo-c", wasm("echo-c"), {"routes": ["/echo-c", "/echo-c/*"]})
    late = make_host(state=postgres_url, **PAIR).start()
    assert late.get("/echo-c/x").status == 200


def test_a_split_of_one_host_is_the_others(pair: tuple[Host, Host]) -> None:
    one, other = pair
    for _ in range(2):
        one.deploy("hello-c", wasm("hello-c"))
    reply = one.admin("PUT", "/api/functions/hello-c/aliases/live", b'{"weights": {"1": 50, "2": 50}}')
    assert reply.status == 200, reply.body
    until(lambda: {other.get("/hello-c").headers["X-Faas-Version"] for _ in range(20)} == {"1", "2"})


def test_deploys_on_both_at_once_get_different_versions(pair: tuple[Host, Host]) -> None:
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda host: host.deploy("hello-c", wasm("hello-c"))["version"], pair * 4))
    assert sorted(versions) == list(range(1, 9))
    for host in pair:
        until(lambda host=host: host.get("/hello-c").headers["X-Faas-Version"] == "8")


def test_a_schedule_on_two_hosts_fires_once_for_each_time(pair: tuple[Host, Host]) -> None:
    one, other = pair
    tick = {"name": "tick", "cron": "* * * * * *", "method": "GET", "overlap": True}
    one.deploy("echo-c", wasm("echo-c"), {"schedules": [tick]})

    def done() -> list[dict[str, Any]]:
        return [job for job in jobs_of(one, "echo-c") if job["state"] == "succeeded"]

    jobs = until(lambda: len(found := done()) >= 4 and found)
    headers = [dict(other.get(f"/_faas/jobs/{job['job']}/result").json()["headers"]) for job in jobs]
    times = sorted(given["x-faas-scheduled-for"] for given in headers)
    assert len(set(times)) == len(times), times
    assert {job["source"] for job in jobs} == {"schedule:tick"}
    assert {given["x-faas-attempt"] for given in headers} == {"1"}


def test_kill_of_one_host_under_load_loses_no_job_and_no_request_of_the_other(
    make_host: MakeHost, postgres_url: str, tmp_path: Path
) -> None:
    one, other = (make_host(state=postgres_url, async_concurrency=4, **PAIR).start() for _ in range(2))
    one.deploy("sleeper", wasm("sleeper"), {"routes": ["/sleeper", "/sleeper/*"]})
    one.deploy("hello-c", wasm("hello-c"), {"schedules": [{"name": "tick", "cron": "* * * * * *", "overlap": True}]})
    until(lambda: other.get("/hello-c").status == 200)
    with ThreadPoolExecutor(8) as pool:
        queued = list(
            pool.map(lambda n: one.request("POST", "/sleeper?300", headers={"Prefer": "respond-async"}), range(30))
        )
    assert {reply.status for reply in queued} == {202}
    stop = threading.Event()
    seen: Counter[int] = Counter()

    def load() -> None:
        while not stop.is_set():
            seen[other.get("/hello-c").status] += 1

    client = threading.Thread(target=load)
    client.start()
    try:
        until(lambda: Counter(job["state"] for job in jobs_of(other, "sleeper"))["running"] >= 5)
        one.kill_all()
        finished = until(
            lambda: (
                len(jobs := [job for job in jobs_of(other, "sleeper") if job["state"] == "succeeded"]) == 30 and jobs
            ),
            timeout_s=60,
        )
        before = len(jobs_of(other, "hello-c"))
        until(lambda: len(jobs_of(other, "hello-c")) > before)
    finally:
        stop.set()
        client.join()
    assert {job["job"] for job in finished} == {reply.json()["job"] for reply in queued}
    assert set(seen) == {200}, seen
