"""``make bench-jobs``: kill -9 of everything with jobs queued and running, dead letters, cancelling, two hosts."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from faas.testing.postgres import find_postgres, postgres_server
from loadtest.host import FUNCTIONS, Host, connection, request
from loadtest.report import console as new_console
from loadtest.report import percentile

SLEEPER = FUNCTIONS / "bad" / "sleeper.wasm"
EXIT = FUNCTIONS / "bad" / "exit.wasm"
ECHO = FUNCTIONS / "bad" / "echo-stdin.wasm"
HELLO = FUNCTIONS / "hello-c" / "hello-c.wasm"

N_WORKERS = 2
N_QUEUED = 100
N_RUNNING = 10
SLOTS = 13
"""Of these one function alone gets ten: the rest is for others."""
NAP_MS = 500
N_QUICK = 1000
PATIENCE_S = 90.0
_POLL_S = 0.02


@dataclass(frozen=True)
class Finding:
    """One line of the table; ``asked`` empty means that the number is only for information."""

    benchmark: str
    what: str
    measured: str
    asked: str = ""
    holds: bool = True


def main() -> int:
    """Return 0 when every promise holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.jobs", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="run just this one")
    args = parser.parse_args()
    console = new_console()
    findings: list[Finding] = []
    for name, benchmark in BENCHMARKS.items():
        if args.only in {None, name}:
            console.print(f"{name} ...")
            with tempfile.TemporaryDirectory(prefix="faas-bench-") as folder:
                findings += benchmark(Path(folder))
    table = Table(title=f"jobs, on {N_WORKERS} workers")
    for column in ("benchmark", "what", "measured", "asked", "holds"):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for f in findings:
        table.add_row(f.benchmark, f.what, f.measured, f.asked, "" if not f.asked else "yes" if f.holds else "NO")
    console.print(table)
    return 0 if all(finding.holds for finding in findings) else 1


def speed(folder: Path) -> list[Finding]:
    """How fast jobs are taken in, each synced to disk before its 202, and how soon they are done."""
    with Host(folder / "home", workers=N_WORKERS) as host:
        host.deploy({"name": "hello"}, HELLO)
        began = time.perf_counter()
        taken_s: list[float] = []
        jobs = list(_submitted(host, "/hello", N_QUICK, taken_s))
        submitted_s = time.perf_counter() - began
        _until(lambda: not _in_state(host, "hello", "queued", "retrying", "running"))
        done_s = time.perf_counter() - began
        (done,) = (len(_in_state(host, "hello", "succeeded")),)
    return [
        Finding(
            "speed", f"{N_QUICK} jobs by one client: 202 in p50 / p99", f"{_ms(taken_s, 50)} / {_ms(taken_s, 99)} ms"
        ),
        Finding("speed", "taken in; done", f"{len(jobs) / submitted_s:.0f}/s; {len(jobs) / done_s:.0f}/s"),
        Finding("speed", "succeeded", str(done), str(N_QUICK), done == N_QUICK),
    ]


def crash(folder: Path) -> list[Finding]:
    """kill -9 of every process of the host with jobs queued and running."""
    with Host(folder / "home", workers=N_WORKERS, settings={"async_concurrency": SLOTS}) as host:
        host.deploy({"name": "nap", "async": {"max_attempts": 1}}, SLEEPER)
        jobs = list(_submitted(host, f"/nap?{NAP_MS}", N_QUEUED + N_RUNNING, []))
        _until(lambda: len(_in_state(host, "nap", "running")) == N_RUNNING)
        before = Counter(job["state"] for job in _listed(host, "nap"))
        _kill_all(host)
        began = time.perf_counter()
        host.start()
        ready_s = time.perf_counter() - began
        _until(lambda: not _in_state(host, "nap", "queued", "retrying", "running"))
        finished_s = time.perf_counter() - began
        found = [_job(host, job) for job in jobs]
    states = Counter(job["state"] for job in found)
    runs = [len(job["attempts"]) for job in found]
    lost = sum(run["outcome"] == "lost" for job in found for run in job["attempts"])
    return [
        Finding(
            "crash",
            "when everything was killed: running; queued; done",
            f"{before['running']}; {before['queued'] + before['retrying']}; {before['succeeded']}",
            f"{N_RUNNING}; some 100",
            before["running"] == N_RUNNING and before["queued"] >= N_QUEUED - 3 * N_RUNNING,
        ),
        Finding(
            "crash",
            "jobs finished after the restart",
            str(states["succeeded"]),
            str(len(jobs)),
            states["succeeded"] == len(jobs),
        ),
        Finding(
            "crash",
            "jobs lost, dead or unfinished",
            str(len(jobs) - states["succeeded"]),
            "0",
            states["succeeded"] == len(jobs),
        ),
        Finding(
            "crash",
            "runs in all; of these, broken off and repeated",
            f"{sum(runs)}; {lost}",
            f"≤ {N_RUNNING} repeated",
            lost <= N_RUNNING and sum(runs) == len(jobs) + lost,
        ),
        Finding("crash", "host ready; all finished, after its start", f"{ready_s:.1f} s; {finished_s:.1f} s"),
    ]


def dead_letters(folder: Path) -> list[Finding]:
    """A job that always fails, redriving it, and cancelling."""
    tries = 3
    with Host(folder / "home", workers=N_WORKERS, settings={"async_concurrency": 4}) as host:
        host.deploy({"name": "poison", "async": {"max_attempts": tries, "backoff_s": 0.2}}, EXIT)
        host.deploy({"name": "nap"}, SLEEPER)
        (poison,) = _submitted(host, "/poison?3", 1, [])
        _until(lambda: _job(host, poison)["finished_at"])
        dead = _job(host, poison)
        letters = [job["job"] for job in _in_state(host, "poison", "dead")]
        host.deploy({"name": "poison"}, ECHO)
        redriven = json.loads(host.admin("POST", "/api/functions/poison/jobs/redrive"))["jobs"]
        _until(lambda: _job(host, poison)["finished_at"])
        again = _job(host, poison)

        naps = list(_submitted(host, "/nap?20000", 8, []))
        _until(lambda: len(_in_state(host, "nap", "running")) == 3)
        began = time.perf_counter()
        for job in reversed(naps):  # those that wait first: else they begin in the places of those that ran
            host.admin("POST", f"/api/jobs/{job}/cancel")
        cancelled_s = time.perf_counter() - began
        cancelled = len(_in_state(host, "nap", "cancelled"))
        _until(lambda: sum(line.get("outcome") == "cancelled" for line in host.log("nap", 100)) == 3)
        ended_s = time.perf_counter() - began
        runs = sum(len(_job(host, job)["attempts"]) for job in naps)
    return [
        Finding(
            "dead letters",
            "a poison job: its state, after runs",
            f"{dead['state']}, {len(dead['attempts'])}",
            f"dead, {tries}",
            (dead["state"], len(dead["attempts"])) == ("dead", tries),
        ),
        Finding(
            "dead letters",
            "the list of dead letters is that job",
            str(letters == [poison]),
            "True",
            letters == [poison],
        ),
        Finding(
            "dead letters",
            "redriven; then",
            f"{redriven}; {again['state']}",
            "1; succeeded",
            redriven == 1 and again["state"] == "succeeded",
        ),
        Finding("cancel", "of 3 running and 5 queued jobs, cancelled", str(cancelled), "8", cancelled == 8),
        Finding("cancel", "runs that were ever begun", str(runs), "3", runs == 3),
        Finding(
            "cancel",
            "8 cancelled in; guests of 20 s ended within",
            f"{cancelled_s:.2f} s; {ended_s:.2f} s",
            "< 5 s",
            ended_s < 5,
        ),
    ]


def hosts(folder: Path) -> list[Finding]:
    """Two hosts on one PostgreSQL: a schedule on both, and kill -9 of one of them while jobs run."""
    if find_postgres() is None:
        return [Finding("two hosts", "PostgreSQL", "not on this machine")]
    n_jobs = 60
    with postgres_server() as url, contextlib.ExitStack() as stack:
        key = folder / "secrets.key"
        settings = {"state": url, "async_concurrency": SLOTS, "secrets_key_file": str(key)}
        key.write_bytes(base64.b64encode(os.urandom(32)))
        key.chmod(0o600)
        one = Host(folder / "one", workers=1, settings=settings)
        stack.callback(one.kill)  # it does not live to be stopped
        one.start()
        every = {"name": "tick", "cron": "* * * * * *", "overlap": True}
        one.deploy({"name": "nap", "schedules": [{**every, "path": "/nap?0"}]}, SLEEPER)
        two = stack.enter_context(Host(folder / "two", workers=1, settings=settings))
        _until(lambda: request(two.public_url, "GET", "/nap?0")[0] == 200)
        jobs = list(_submitted(one, f"/nap?{NAP_MS}", n_jobs, []))
        _until(
            lambda: (
                len([job for job in _listed(two, "nap") if job["source"] == "http" and job["state"] == "running"])
                > SLOTS
            )
        )
        _kill_all(one)
        began = time.perf_counter()
        _until(lambda: all(_job(two, job)["finished_at"] for job in jobs))
        finished_s = time.perf_counter() - began
        found = [_job(two, job) for job in jobs]
        ticks = [job for job in _listed(two, "nap") if job["source"] == "schedule:tick"]
    states = Counter(job["state"] for job in found)
    lost = sum(run["outcome"] == "lost" for job in found for run in job["attempts"])
    runs = sum(len(job["attempts"]) for job in found)
    seconds = Counter(int(job["created_at"]) for job in ticks)
    twice = sum(n - 1 for n in seconds.values())
    return [
        Finding(
            "two hosts",
            f"of {n_jobs} jobs, finished by the other host after kill -9 of one",
            str(states["succeeded"]),
            str(n_jobs),
            states["succeeded"] == n_jobs,
        ),
        Finding(
            "two hosts",
            "runs in all; of these, broken off and repeated",
            f"{runs}; {lost}",
            f"{n_jobs} + repeated",
            runs == n_jobs + lost,
        ),
        Finding(
            "two hosts",
            "all finished after the kill (a lease is 15 s)",
            f"{finished_s:.1f} s",
            "< 30 s",
            finished_s < 30,
        ),
        Finding(
            "two hosts",
            f"a schedule of every second: runs in {len(seconds)} s; twice in one",
            f"{len(ticks)}; {twice}",
            "0 twice",
            twice == 0 < len(ticks),
        ),
    ]


def _submitted(host: Host, path: str, n: int, taken_s: list[float]) -> Iterator[str]:
    """Queue *n* jobs on one connection and yield their ids; *taken_s* gets how long each 202 took."""
    with connection(host.public_url) as conn:
        for number in range(n):
            began = time.perf_counter()
            conn.request("POST", path, str(number).encode(), {"Prefer": "respond-async"})
            reply = conn.getresponse()
            document = json.loads(reply.read())
            taken_s.append(time.perf_counter() - began)
            if reply.status != 202:
                raise AssertionError(f"{reply.status} {document}")
            yield str(document["job"])


def _listed(host: Host, function: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(host.admin("GET", f"/api/jobs?function={function}&limit=1000"))["jobs"]
    return found


def _in_state(host: Host, function: str, *states: str) -> list[dict[str, Any]]:
    wanted = "".join(f"&state={state}" for state in states)
    path = f"/api/jobs?function={function}&limit=1000{wanted}"
    found: list[dict[str, Any]] = json.loads(host.admin("GET", path))["jobs"]
    return found


def _job(host: Host, id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.admin("GET", f"/api/jobs/{id}"))
    return found


def _kill_all(host: Host) -> None:
    """End every process of *host* at once, with SIGKILL."""
    for pid in host.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    host.kill()


def _until(probe: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not probe():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_S:g} s")
        time.sleep(_POLL_S)


def _ms(values_s: Iterable[float], percent: float) -> str:
    return f"{percentile(list(values_s), percent) * 1000:.1f}"


BENCHMARKS: dict[str, Callable[[Path], list[Finding]]] = {
    "speed": speed,
    "crash": crash,
    "dead-letters": dead_letters,
    "hosts": hosts,
}


if __name__ == "__main__":
    sys.exit(main())
