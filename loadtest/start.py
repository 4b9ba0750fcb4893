"""``make bench-start``: what a cold start takes, after a restart too, and whether waiting or spinning guests matter."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.table import Table

from loadtest.host import FUNCTIONS, Host, connection
from loadtest.report import console as new_console
from loadtest.report import percentile, server_timing

N_REQUESTS = 10_000
N_RESTARTS = 5
N_SLEEPERS = 200
N_LOOPS = 4
LOOP_TIMEOUT_S = 2.0
LOOP_CPU_S = 0.5

HELLO = FUNCTIONS / "hello-c" / "hello-c.wasm"
BAD = FUNCTIONS / "bad"
_WARM_UP = 200


@dataclass(frozen=True)
class Finding:
    """One line of the table; ``limit`` empty means that the number is only for information."""

    benchmark: str
    what: str
    measured: str
    limit: str = ""
    holds: bool = True


def main() -> int:
    """Return 0 when every promise holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.start", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="run just this one")
    only = parser.parse_args().only
    console = new_console()
    findings: list[Finding] = []
    for name, benchmark in BENCHMARKS.items():
        if only in {None, name}:
            console.print(f"{name} ...")
            with tempfile.TemporaryDirectory(prefix="faas-bench-") as folder:
                findings += benchmark(Path(folder) / "home")
    console.print(_table(findings))
    return 0 if all(finding.holds for finding in findings) else 1


def starts(home: Path) -> list[Finding]:
    """Many requests to a small command, one after the other on one worker: ``start`` of each."""
    with Host(home) as host:
        host.deploy({"name": "hello"}, HELLO)
        values: list[float] = []
        seen: list[float] = []
        with connection(host.public_url) as conn:
            for i in range(_WARM_UP + N_REQUESTS):
                took_ms, start_ms = _timed(conn, "/hello")
                if i >= _WARM_UP:
                    seen.append(took_ms)
                    values.append(start_ms)
    p50, p99 = percentile(values, 50), percentile(values, 99)
    print(f"start p50={p50:.3f} p99={p99:.3f} max={max(values):.3f} ms over {len(values)} requests")
    return [
        Finding("starts", f"start p50 of {len(values):,} requests", f"{p50:.3f} ms", "≤ 0.15 ms", p50 <= 0.15),
        Finding("starts", "start p99", f"{p99:.3f} ms", "≤ 1 ms", p99 <= 1.0),
        Finding("starts", "start max", f"{max(values):.3f} ms"),
        Finding(
            "starts",
            "as the client sees it, p50 / p99",
            f"{percentile(seen, 50):.3f} / {percentile(seen, 99):.3f} ms",
        ),
    ]


def restart(home: Path) -> list[Finding]:
    """The first request after a restart, to a module of 2 MB whose native code is on the disk."""
    seen: list[float] = []
    values: list[float] = []
    with Host(home) as host:
        host.deploy({"name": "big"}, BAD / "big.wasm")
        for _ in range(N_RESTARTS):
            host.stop()
            host.start()
            with connection(host.public_url) as conn:
                took_ms, start_ms = _timed(conn, "/big")
            seen.append(took_ms)
            values.append(start_ms)
    size_mb = (BAD / "big.wasm").stat().st_size / 1e6
    median = percentile(seen, 50)
    return [
        Finding(
            "restart",
            f"first request to {size_mb:.1f} MB, p50 of {N_RESTARTS}",
            f"{median:.2f} ms",
            "≤ 10 ms",
            median <= 10,
        ),
        Finding("restart", "each, as the client sees it", _listed(seen)),
        Finding("restart", "start of each", _listed(values)),
    ]


def sleepers(home: Path) -> list[Finding]:
    """Many guests that sleep a second, all at once on one worker."""
    with Host(home) as host:
        host.deploy({"name": "sleeper"}, BAD / "sleeper.wasm")
        with connection(host.public_url) as conn:
            _timed(conn, "/sleeper?1")
        took_s = asyncio.run(_sleep_together(host.public_url))
    return [
        Finding("sleepers", f"{N_SLEEPERS} requests that sleep 1 s", f"{took_s:.2f} s", "< 3 s", took_s < 3.0),
    ]


async def _sleep_together(url: str) -> float:
    async def one(session: aiohttp.ClientSession) -> None:
        async with session.get("/sleeper?1000") as reply:
            text = await reply.text()
            if reply.status != 200 or text != "slept 1000 ms\n":
                raise AssertionError(f"{reply.status} {text}")

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(one(session) for _ in range(N_SLEEPERS)))
        return time.perf_counter() - began


def loops(home: Path) -> list[Finding]:
    """A small command while endless loops use every guest thread; how late each loop was ended."""
    with Host(home) as host:
        host.deploy({"name": "hello"}, HELLO)
        host.deploy({"name": "loop", "limits": {"timeout_s": LOOP_TIMEOUT_S, "cpu_s": 60}}, BAD / "loop.wasm")
        host.deploy({"name": "burner", "limits": {"timeout_s": 30, "cpu_s": LOOP_CPU_S}}, BAD / "loop.wasm")
        with connection(host.public_url) as conn:
            for _ in range(_WARM_UP):
                _timed(conn, "/hello")
        ended_s, seen = asyncio.run(_spin(host.public_url))
        with connection(host.public_url) as conn:
            _timed(conn, "/burner", expect=504)
        used_s = _cpu_used_s(host)
    late_ms = [(took_s - LOOP_TIMEOUT_S) * 1000 for took_s in ended_s]
    p99 = percentile(seen, 99)
    over_ms = (used_s - LOOP_CPU_S) * 1000
    return [
        Finding("loops", f"hello p99 beside {N_LOOPS} endless loops", f"{p99:.2f} ms", "< 50 ms", p99 < 50),
        Finding(
            "loops",
            f"hello p50 / max of {len(seen):,} requests",
            f"{percentile(seen, 50):.2f} / {max(seen):.2f} ms",
        ),
        Finding(
            "loops",
            f"loops ended after their {LOOP_TIMEOUT_S:g} s, the last",
            f"{max(late_ms):.0f} ms later",
            "≤ 100 ms",
            max(late_ms) <= 100,
        ),
        Finding("loops", "each", f"{' '.join(f'{late:.0f}' for late in late_ms)} ms later"),
        Finding(
            "loops", f"CPU time used over a budget of {LOOP_CPU_S:g} s", f"{over_ms:.1f} ms", "≤ 100 ms", over_ms <= 100
        ),
    ]


async def _spin(url: str) -> tuple[list[float], list[float]]:
    """Return how long each loop took to be ended, in s, and what every hello meanwhile took, in ms."""
    connector = aiohttp.TCPConnector(limit=0)

    async def loop(session: aiohttp.ClientSession) -> float:
        began = time.perf_counter()
        async with session.get("/loop") as reply:
            problem = await reply.json(content_type="application/problem+json")
            took_s = time.perf_counter() - began
        if reply.status != 504 or problem["code"] != "deadline-exceeded":
            raise AssertionError(f"{reply.status} {problem}")
        return took_s

    async with aiohttp.ClientSession(url, connector=connector) as session:
        spinning = [asyncio.ensure_future(loop(session)) for _ in range(N_LOOPS)]
        seen: list[float] = []
        await asyncio.sleep(0.05)  # all of them run by now
        while not any(task.done() for task in spinning):
            began = time.perf_counter()
            async with session.get("/hello") as reply:
                await reply.read()
                if reply.status != 200:
                    raise AssertionError(reply.status)
            seen.append((time.perf_counter() - began) * 1000)
        return await asyncio.gather(*spinning), seen


def _cpu_used_s(host: Host) -> float:
    """Return the CPU time in the log's line about the one invocation of ``burner``."""
    until = time.monotonic() + 5.0
    while True:
        for line in host.log("burner", 100):
            if line.get("event") == "invocation.finished":
                return float(line["cpu_ms"]) / 1000
        if time.monotonic() > until:
            raise AssertionError("the log has no invocation.finished of 'burner'")
        time.sleep(0.05)


def _timed(conn: http.client.HTTPConnection, path: str, expect: int = 200) -> tuple[float, float]:
    """Return what a request took and its cold start, both in ms."""
    began = time.perf_counter()
    conn.request("GET", path)
    response = conn.getresponse()
    body = response.read()
    took_ms = (time.perf_counter() - began) * 1000
    if response.status != expect:
        raise AssertionError(f"{path} answered {response.status}: {body[:300].decode(errors='replace')}")
    return took_ms, server_timing(response.headers["Server-Timing"])["start"]


def _listed(values_ms: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values_ms) + " ms"


def _table(findings: list[Finding]) -> Table:
    table = Table(title="cold starts, restarts, sleepers and endless loops, on one worker")
    for column in ("benchmark", "what", "measured", "promise", "holds"):
        table.add_column(column)
    for finding in findings:
        holds = ("[green]yes[/green]" if finding.holds else "[red]NO[/red]") if finding.limit else ""
        table.add_row(finding.benchmark, finding.what, finding.measured, finding.limit, holds)
    return table


BENCHMARKS: dict[str, Callable[[Path], list[Finding]]] = {
    "starts": starts,
    "restart": restart,
    "sleepers": sleepers,
    "loops": loops,
}


if __name__ == "__main__":
    sys.exit(main())
