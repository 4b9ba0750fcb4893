"""``make bench-hosts``: two hosts on one PostgreSQL: deploys that reach both, and a host that is killed under load."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from faas.testing.postgres import postgres_server
from loadtest.host import FUNCTIONS, Host, connection, request
from loadtest.jobs import listed, shown, until
from loadtest.report import Finding, findings_table, percentile
from loadtest.report import console as new_console

HELLO = FUNCTIONS / "hello-c" / "hello-c.wasm"
ECHO = FUNCTIONS / "echo-c" / "echo-c.wasm"
SLEEPER = FUNCTIONS / "bad" / "sleeper.wasm"

N_DEPLOYS = 20
REACH_S = 1.0
N_JOBS = 100
CONCURRENCY = 10
JOB_MS = 200
PATIENCE_S = 90.0
TICK = {"name": "tick", "cron": "* * * * * *", "method": "GET", "overlap": True}


def main() -> int:
    """Return 0 when every promise holds, else 1."""
    console = new_console()
    findings: list[Finding] = []
    for title, benchmark in (("deploys", deploys), ("kill", kill)):
        console.print(f"{title} ...")
        with (
            tempfile.TemporaryDirectory(prefix="faas-bench-") as folder,
            postgres_server(durable=True) as url,
            pair(Path(folder), url) as (one, other),
        ):
            findings += benchmark(one, other)
    console.print(findings_table("two hosts on one PostgreSQL, a worker each", findings))
    return 0 if all(finding.holds for finding in findings) else 1


@contextmanager
def pair(folder: Path, url: str) -> Iterator[tuple[Host, Host]]:
    """Run two hosts on the database at *url*; killed at the end, if they still run."""
    hosts = [
        Host(folder / name, settings={"state": url, "async_concurrency": CONCURRENCY}) for name in ("one", "other")
    ]
    try:
        for host in hosts:
            host.start()
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.kill()


def deploys(one: Host, other: Host) -> list[Finding]:
    """From a deploy's answer on either host to the first reply of the new version by the other one."""
    late_ms: list[float] = []
    one.deploy({"name": "reach"}, HELLO)
    for n in range(N_DEPLOYS):
        here, there = (one, other) if n % 2 else (other, one)
        version = here.deploy({"name": "reach", "env": {"N": str(n)}}, HELLO if n % 2 else ECHO)
        acknowledged = time.perf_counter()
        with connection(there.public_url) as client:
            while True:
                client.request("GET", "/reach")
                reply = client.getresponse()
                reply.read()
                if reply.headers["X-Faas-Version"] == str(version):
                    break
                if time.perf_counter() - acknowledged > PATIENCE_S:
                    raise TimeoutError(f"version {version} never reached the other host")
        late_ms.append((time.perf_counter() - acknowledged) * 1000)
    return [
        Finding(
            "deploys",
            f"{N_DEPLOYS} deploys, by turns: until the other host serves, p50",
            f"{percentile(late_ms, 50):.0f} ms",
        ),
        Finding("deploys", "worst", f"{max(late_ms):.0f} ms", f"<= {REACH_S:g} s", max(late_ms) <= REACH_S * 1000),
    ]


def kill(one: Host, other: Host) -> list[Finding]:
    """SIGKILL of one host's processes with jobs queued and running, schedules firing, and the other one under load."""
    one.deploy({"name": "slow", "routes": ["/slow", "/slow/*"]}, SLEEPER)
    one.deploy({"name": "ticking", "schedules": [TICK]}, ECHO)
    one.deploy({"name": "hello"}, HELLO)
    until(lambda: request(other.public_url, "GET", "/hello")[0] == 200, "the other host serves")
    with ThreadPoolExecutor(16) as pool:
        queued = list(
            pool.map(
                lambda _n: request(one.public_url, "POST", f"/slow?{JOB_MS}", headers={"Prefer": "respond-async"}),
                range(N_JOBS),
            )
        )
    ids = {json.loads(body)["job"] for status, body, _ in queued if status == 202}
    seen: Counter[object] = Counter()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                seen[request(other.public_url, "GET", "/hello")[0]] += 1
            except OSError as exc:
                seen[type(exc).__name__] += 1

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        until(lambda: states(other, "slow")["running"] >= CONCURRENCY, "jobs run")
        n_running = states(other, "slow")["running"]
        killed = time.monotonic()
        one.kill_all()
        until(lambda: states(other, "slow")["succeeded"] == N_JOBS, "all jobs are done")
        took_s = time.monotonic() - killed
    finally:
        stop.set()
        for client in clients:
            client.join()
    runs = Counter(len(shown(other, job)["attempts"]) for job in ids)
    ticks = [job for job in listed(other, "ticking") if job["state"] == "succeeded"]
    due = Counter(
        dict(json.loads(request(other.public_url, "GET", f"/_faas/jobs/{job['job']}/result")[1])["headers"])[
            "x-faas-scheduled-for"
        ]
        for job in ticks
    )
    return [
        Finding("kill", f"jobs acknowledged of {N_JOBS}", str(len(ids)), str(N_JOBS), len(ids) == N_JOBS),
        Finding("kill", "of them running when one host was killed", str(n_running)),
        Finding("kill", "all done after it (a lease is 15 s)", f"{took_s:.1f} s", "< 30 s", took_s < 30),
        Finding("kill", "jobs by how often they ran", ", ".join(f"{n} x {k}" for k, n in sorted(runs.items()))),
        Finding("kill", "requests to the other host", f"{sum(seen.values())}"),
        Finding("kill", "of them failed", str(sum(n for s, n in seen.items() if s != 200)), "0", set(seen) == {200}),
        Finding("kill", "times at which the schedule fired", str(len(due))),
        Finding("kill", "of them more than once", str(sum(n > 1 for n in due.values())), "0", max(due.values()) == 1),
    ]


def states(host: Host, function: str) -> Counter[str]:
    """Return how many jobs of a function are in each state."""
    return Counter(job["state"] for job in listed(host, function))


if __name__ == "__main__":
    sys.exit(main())
