"""``make bench-density``: thousands of functions, few of them active; memory, first calls after eviction, restart."""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from loadtest.host import FUNCTIONS, Host, connection
from loadtest.report import console as new_console
from loadtest.report import percentile, server_timing

N_FUNCTIONS = 2000
N_LARGE = 20
N_ACTIVE = 10
N_WORKERS = 2
N_DEPLOYERS = 4
N_ROUNDS = 50
N_AGAIN = 300
N_RESTARTS = 3
IDLE_S = 5.0
STATS_AGE_S = 2.5
"""Workers report once a second: after this long the numbers are of now."""

MAX_RSS_BYTES = 600e6
MAX_FIRST_CALL_MS = 10.0
MAX_RESTART_S = 2.0

_SMALL = (FUNCTIONS / "hello-c" / "hello-c.wasm", b"Hello from C!")
_LARGE = (FUNCTIONS / "bad" / "big.wasm", b"hello\n%u functions")


@dataclass(frozen=True)
class Plan:
    """How much is deployed and called."""

    n_functions: int
    n_large: int
    n_active: int
    n_workers: int
    n_deployers: int

    @property
    def names(self) -> list[str]:
        """All functions; every ``n_functions / n_large``-th is a large one."""
        return [f"f{i:05d}" for i in range(self.n_functions)]

    @property
    def active(self) -> list[str]:
        """The ones that are called often, spread over all; a large one among them, if there is one."""
        step = max(1, self.n_functions // self.n_active)
        return self.names[::step][: self.n_active]

    def is_large(self, index: int) -> bool:
        """Return whether the function of that number has a module of 2 MB."""
        return bool(self.n_large) and index % max(1, self.n_functions // self.n_large) == 0

    def module(self, index: int) -> bytes:
        """Return a module that no other function has: its greeting in the data segment is its number."""
        path, greeting = _LARGE if self.is_large(index) else _SMALL
        wasm = path.read_bytes()
        if wasm.count(greeting) != 1:
            raise AssertionError(f"{path} has its greeting not just once; build it again: make functions")
        mark = f"{index:05d}".encode()
        return wasm.replace(greeting, mark + greeting[len(mark) :])


@dataclass(frozen=True)
class Finding:
    """One line of the table; ``limit`` empty means that the number is only for information."""

    what: str
    measured: str
    limit: str = ""
    holds: bool = True


@dataclass(frozen=True)
class Memory:
    """One process's memory in bytes; ``untouched`` is what its sealed copies of native code take beyond its RSS."""

    role: str
    rss: int
    pss: int
    untouched: int


def main() -> int:
    """Return 0 when every promise holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.density", description=__doc__)
    parser.add_argument("--functions", type=int, default=N_FUNCTIONS, help="how many are deployed")
    parser.add_argument("--large", type=int, default=N_LARGE, help="how many of them have a module of 2 MB")
    parser.add_argument("--active", type=int, default=N_ACTIVE, help="how many of them are called often")
    parser.add_argument("--workers", type=int, default=N_WORKERS, help="worker processes")
    parser.add_argument("--deployers", type=int, default=N_DEPLOYERS, help="deploys in flight at once")
    parser.add_argument("--home", type=Path, help="keep the home there; one that is filled already is not filled again")
    given = parser.parse_args()
    plan = Plan(given.functions, given.large, given.active, given.workers, given.deployers)
    console = new_console()
    with _home(given.home) as home:
        findings = density(home, plan)
    table = Table(title=f"{plan.n_functions} functions, {plan.n_large} of them of 2 MB, {plan.n_active} active")
    for column in ("what", "measured", "promise", "holds"):
        table.add_column(column)
    for finding in findings:
        holds = ("[green]yes[/green]" if finding.holds else "[red]NO[/red]") if finding.limit else ""
        table.add_row(finding.what, finding.measured, finding.limit, holds)
    console.print(table)
    return 0 if all(finding.holds for finding in findings) else 1


def density(home: Path, plan: Plan) -> list[Finding]:
    """Deploy, call, let evict, call again, restart; every number on the way."""
    findings: list[Finding] = []
    with Host(home, workers=plan.n_workers) as host:
        findings += _memory("before the first deploy", host)
        findings += _deploy_all(host, plan)
        findings += _memory("after the last deploy", host)
        _call_active(host, plan)
        findings += _memory(f"{plan.n_active} active", host, MAX_RSS_BYTES)
        findings += _idle(host)
        # On one connection, so in one worker: after this round it has seen all of them, the first ones longest ago.
        with connection(host.public_url) as conn:
            first = [_call(conn, plan, i) for i in range(plan.n_functions)]
            findings += _latency("first call of each", [ms for ms, _ in first])
            findings += _memory("after all were called once", host, MAX_RSS_BYTES)
            loads = _gauge(host, "code_loads")
            again = [_call(conn, plan, i) for i in range(min(N_AGAIN, plan.n_functions))]
            time.sleep(STATS_AGE_S)
            n_loaded = _gauge(host, "code_loads") - loads
            warm = [_call(conn, plan, len(again) - 1) for _ in again]
        small = [ms for i, (ms, _) in enumerate(again) if not plan.is_large(i)]
        large = [ms for i, (ms, _) in enumerate(again) if plan.is_large(i)]
        findings += _latency("evicted, called again", small, MAX_FIRST_CALL_MS)
        if large:
            findings += _latency("evicted, 2 MB, called again", large, MAX_FIRST_CALL_MS)
        findings.append(Finding("  of these calls, so many had to load their code", f"{n_loaded:.0f} of {len(again)}"))
        findings += _latency("warm, on the same connection", [ms for ms, _ in warm])
        host.stop()
        with tempfile.TemporaryDirectory(prefix="faas-bench-") as folder:
            findings += _restarts(host, plan, Host(Path(folder) / "home", workers=plan.n_workers))
    return findings


def _deploy_all(host: Host, plan: Plan) -> list[Finding]:
    """Deploy what is not there yet."""
    there = {function["name"] for function in json.loads(host.admin("GET", "/api/functions"))["functions"]}
    todo = [i for i in range(plan.n_functions) if plan.names[i] not in there]
    if not todo:
        return [Finding("deploys", "were there already")]

    def deploy(index: int) -> float:
        with tempfile.NamedTemporaryFile(suffix=".wasm") as file:
            file.write(plan.module(index))
            file.flush()
            began = time.perf_counter()
            host.deploy({"name": plan.names[index]}, Path(file.name))
            return (time.perf_counter() - began) * 1000

    took_ms: list[float] = []
    ended: list[float] = []
    began = time.perf_counter()
    with ThreadPoolExecutor(plan.n_deployers) as pool:
        for ms in pool.map(deploy, todo):
            took_ms.append(ms)
            ended.append(time.perf_counter())
            if len(ended) % 100 == 0:
                print(f"{len(ended)} deployed, {ended[-1] - began:.1f} s", flush=True)
    total_s = ended[-1] - began
    tenth = max(1, len(todo) // 10)
    early = (ended[tenth - 1] - began) / tenth * 1000
    late = (ended[-1] - ended[-tenth - 1]) / tenth * 1000 if len(todo) > tenth else early
    return [
        Finding(f"{len(todo)} deploys, {plan.n_deployers} in flight", f"{total_s:.1f} s"),
        Finding(
            "per deploy: all / first tenth / last tenth",
            f"{total_s / len(todo) * 1000:.0f} / {early:.0f} / {late:.0f} ms",
        ),
        Finding(
            "one deploy as its caller sees it, p50 / max", f"{percentile(took_ms, 50):.0f} / {max(took_ms):.0f} ms"
        ),
    ]


def _call_active(host: Host, plan: Plan) -> None:
    """Call the active ones on many connections, so that every worker has them."""
    for _ in range(N_ROUNDS):
        with connection(host.public_url) as conn:
            for name in plan.active:
                _call(conn, plan, int(name[1:]))


def _call(conn: http.client.HTTPConnection, plan: Plan, index: int) -> tuple[float, float]:
    """Return what a request took and its cold start, both in ms; its answer must be that function's own."""
    began = time.perf_counter()
    conn.request("GET", f"/{plan.names[index]}")
    response = conn.getresponse()
    body = response.read()
    took_ms = (time.perf_counter() - began) * 1000
    if response.status != 200 or not body.startswith(f"{index:05d}".encode()):
        raise AssertionError(f"{plan.names[index]}: {response.status} {body[:200]!r}")
    return took_ms, server_timing(response.headers["Server-Timing"])["start"]


def _idle(host: Host) -> list[Finding]:
    before = sum(map(_cpu_s, _pids(host)))
    time.sleep(IDLE_S)
    used_ms = (sum(map(_cpu_s, _pids(host))) - before) / IDLE_S * 1000
    return [Finding("CPU of all processes while nothing is called", f"{used_ms:.0f} ms per second")]


def _gauge(host: Host, name: str) -> float:
    """Return a worker gauge, added up over the workers."""
    return sum(float(worker["gauges"].get(name, 0)) for worker in host.status()["workers"])


def _restarts(host: Host, plan: Plan, empty: Host) -> list[Finding]:
    """Restart *host* and, in turn, one without any function."""
    took_s: list[float] = []
    empty_s: list[float] = []
    for _ in range(N_RESTARTS):
        began = time.perf_counter()
        empty.start()
        empty_s.append(time.perf_counter() - began)
        empty.stop()
        began = time.perf_counter()
        host.start()
        with connection(host.public_url) as conn:
            _call(conn, plan, int(plan.active[-1][1:]))
        took_s.append(time.perf_counter() - began)
        memory = _memory("after a restart", host)
        host.stop()
    host.start()
    slowest = max(took_s)
    return [
        Finding(
            "restart: from its start to the first reply",
            " ".join(f"{seconds:.2f}" for seconds in took_s) + " s",
            f"< {MAX_RESTART_S:g} s",
            slowest < MAX_RESTART_S,
        ),
        Finding("  a host without functions, in turn", " ".join(f"{seconds:.2f}" for seconds in empty_s) + " s"),
        *memory,
    ]


# ---- numbers --------------------------------------------------------------------------------------------------------


def _latency(what: str, values_ms: Sequence[float], limit_ms: float = 0.0) -> list[Finding]:
    p50, p99, most = percentile(values_ms, 50), percentile(values_ms, 99), max(values_ms)
    return [
        Finding(
            f"{what} ({len(values_ms)}), p50 / p99 / max",
            f"{p50:.2f} / {p99:.2f} / {most:.2f} ms",
            f"p99 < {limit_ms:g} ms" if limit_ms else "",
            not limit_ms or p99 < limit_ms,
        )
    ]


def _memory(when: str, host: Host, limit_bytes: float = 0.0) -> list[Finding]:
    """Return one line for each process, and one for their sum."""
    time.sleep(STATS_AGE_S)
    processes = [_memory_of(pid) for pid in _pids(host)]
    rss = sum(process.rss for process in processes)
    untouched = sum(process.untouched for process in processes)
    # Pages of a sealed copy that nobody touched are memory too, but no process's RSS has them.
    findings = [
        Finding(
            f"{when}: RSS / PSS / untouched code",
            f"{rss / 1e6:.0f} / {sum(process.pss for process in processes) / 1e6:.0f} / {untouched / 1e6:.0f} MB",
            f"RSS + code < {limit_bytes / 1e6:.0f} MB" if limit_bytes else "",
            not limit_bytes or rss + untouched < limit_bytes,
        )
    ]
    gauges = {worker["worker"]: worker["gauges"] for worker in host.status()["workers"]}
    workers = itertools.count()
    for process in processes:
        loaded = f", {gauges[next(workers)].get('modules', 0):.0f} modules" if process.role == "worker" else ""
        findings.append(
            Finding(
                f"  {process.role}",
                f"{process.rss / 1e6:.0f} / {process.pss / 1e6:.0f} / {process.untouched / 1e6:.0f} MB{loaded}",
            )
        )
    return findings


def _pids(host: Host) -> list[int]:
    """Return the control process and its children."""
    children = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()
    return [host.pid, *map(int, children)]


def _memory_of(pid: int) -> Memory:
    folder = Path(f"/proc/{pid}")
    sizes = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in (folder / "smaps_rollup").read_text().splitlines()
        if line.startswith(("Rss:", "Pss:", "Pss_Shmem:"))
    }
    ends: dict[str, int] = {}
    for line in (folder / "maps").read_text().splitlines():
        span, _, offset, _, inode, *path = line.split(maxsplit=5)
        if path and path[0].startswith("/memfd:"):
            begin, end = (int(part, 16) for part in span.split("-"))
            ends[inode] = max(ends.get(inode, 0), int(offset, 16) + end - begin)
    words = (folder / "cmdline").read_bytes().split(b"\0")
    role = "worker" if b"faas.gateway.worker" in words else "model server" if b"faas.modelserver.main" in words else ""
    untouched = max(0, sum(ends.values()) - sizes["Pss_Shmem"])
    return Memory(role or "control", sizes["Rss"], sizes["Pss"], untouched)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _home(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="faas-bench-") as folder:
        yield Path(folder) / "home"


if __name__ == "__main__":
    sys.exit(main())
