"""``make bench-jobs``: kill -9 of everything with jobs queued and running, dead letters, cancelling."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from loadtest.host import FUNCTIONS, Host, connection
from loadtest.report import Finding, findings_table, percentile
from loadtest.report import console as new_console

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
UNFINISHED = ("queued", "retrying", "running")
_POLL_S = 0.02


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
    console.print(findings_table(f"jobs, on {N_WORKERS} workers", findings))
    return 0 if all(finding.holds for finding in findings) else 1


def speed(folder: Path) -> list[Finding]:
    """How fast jobs are taken in, each synced to disk before its 202, and how soon they are done."""
    with Host(folder / "home", workers=N_WORKERS) as host:
        host.deploy({"name": "hello"}, HELLO)
        began = time.perf_counter()
        taken_s: list[float] = []
        jobs = list(_submitted(host, "/hello", N_QUICK, taken_s))
        submitted_s = time.perf_counter() - began
        until(lambda: not listed(host, "hello", *UNFINISHED), "all jobs are done")
        done_s = time.perf_counter() - began
        (done,) = (len(listed(host, "hello", "succeeded")),)
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
        until(lambda: len(listed(host, "nap", "running")) == N_RUNNING, "jobs run")
        before = Counter(job["state"] for job in listed(host, "nap"))
        host.kill_all()
        began = time.perf_counter()
        host.start()
        ready_s = time.perf_counter() - began
        until(lambda: not listed(host, "nap", *UNFINISHED), "all jobs are done")
        finished_s = time.perf_counter() - began
        found = [shown(host, job) for job in jobs]
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
        until(lambda: shown(host, poison)["finished_at"], "the job is finished")
        dead = shown(host, poison)
        letters = [job["job"] for job in listed(host, "poison", "dead")]
        host.deploy({"name": "poison"}, ECHO)
        redriven = json.loads(host.admin("POST", "/api/functions/poison/jobs/redrive"))["jobs"]
        until(lambda: shown(host, poison)["finished_at"], "the job is finished")
        again = shown(host, poison)

        naps = list(_submitted(host, "/nap?20000", 8, []))
        until(lambda: len(listed(host, "nap", "running")) == 3, "jobs run")
        began = time.perf_counter()
        for job in reversed(naps):  # those that wait first: else they begin in the places of those that ran
            host.admin("POST", f"/api/jobs/{job}/cancel")
        cancelled_s = time.perf_counter() - began
        cancelled = len(listed(host, "nap", "cancelled"))
        until(lambda: sum(line.get("outcome") == "cancelled" for line in host.log("nap", 100)) == 3, "guests end")
        ended_s = time.perf_counter() - began
        runs = sum(len(shown(host, job)["attempts"]) for job in naps)
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


def listed(host: Host, function: str, *states: str) -> list[dict[str, Any]]:
    """Return the newest 1000 jobs of a function, in one of *states* or any."""
    wanted = "".join(f"&state={state}" for state in states)
    path = f"/api/jobs?function={function}&limit=1000{wanted}"
    found: list[dict[str, Any]] = json.loads(host.admin("GET", path))["jobs"]
    return found


def shown(host: Host, id: str) -> dict[str, Any]:
    """Return one job with its runs."""
    found: dict[str, Any] = json.loads(host.admin("GET", f"/api/jobs/{id}"))
    return found


def until(probe: Callable[[], object], what: str) -> None:
    """Return when *probe* says so; raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_S
    while not probe():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_S:g} s: {what}")
        time.sleep(_POLL_S)


def _ms(values_s: Iterable[float], percent: float) -> str:
    return f"{percentile(list(values_s), percent) * 1000:.1f}"


BENCHMARKS: dict[str, Callable[[Path], list[Finding]]] = {
    "speed": speed,
    "crash": crash,
    "dead-letters": dead_letters,
}


if __name__ == "__main__":
    sys.exit(main())
