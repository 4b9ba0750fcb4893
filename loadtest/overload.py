"""``make bench-overload``: ten times more requests than can be served, and endless loops, beside a small function."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import uvloop

from loadtest.host import FUNCTIONS, Host
from loadtest.openloop import OpenLoop, Tally
from loadtest.report import Finding, findings_table, percentile
from loadtest.report import console as new_console

HELLO = FUNCTIONS / "hello-c" / "hello-c.wasm"
PRIMES = FUNCTIONS / "primes" / "primes.wasm"
SLEEPER = FUNCTIONS / "bad" / "sleeper.wasm"
LOOP = FUNCTIONS / "bad" / "loop.wasm"

N_WORKERS = 2
MORE_WORKERS = 4
"""With these some workers lack permits that lie idle at others."""
OVERLOAD = 10
NEIGHBOUR_PER_S = 100.0
QUEUE_TIMEOUT_S = 1.0
MAX_CONCURRENCY = 4
SLEEP_S = 0.1
IDEAL_PER_S = MAX_CONCURRENCY / SLEEP_S
"""What a function that only waits is to answer if no permit lies idle."""
LEAST_GOODPUT = 0.8
"""Of what it answers alone, a function that waits answers so much while ten times as many ask."""
LEAST_GOODPUT_COMPUTING = 0.6
"""One that computes has fewer processors then: refusing the others takes its part of them, and so does the client."""
NEIGHBOUR_P99_S = 0.1
"""So long a neighbour may take beside it at most, or three times as long as alone where that is more."""
N_LOOPS = 64
LOOP_TIMEOUT_S = 2.0
SOLO_S = 4.0
ALONE_S = 5.0
_WARM_UP = 100


def main() -> int:
    """Return 0 when every promise holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.overload", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="run just this one")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each overload")
    args = parser.parse_args()
    console = new_console()
    findings: list[Finding] = []
    for name, benchmark in BENCHMARKS.items():
        if args.only in {None, name}:
            console.print(f"{name} ...")
            with tempfile.TemporaryDirectory(prefix="faas-bench-") as folder:
                findings += benchmark(Path(folder) / "home", args.seconds)
    console.print(
        findings_table(f"overload and endless loops, on {N_WORKERS} workers where nothing else is said", findings)
    )
    return 0 if all(finding.holds for finding in findings) else 1


def waiting(home: Path, seconds: float) -> list[Finding]:
    """Overload of a function that waits: 100 ms of sleep per request."""
    return _overload(home, seconds, "waiting", SLEEPER, f"/busy?{SLEEP_S * 1000:.0f}", ideal_per_s=IDEAL_PER_S)


def spread(home: Path, seconds: float) -> list[Finding]:
    """The same on four workers, for a third of the time: few connections, so that some workers have none."""
    path = f"/busy?{SLEEP_S * 1000:.0f}"
    return _overload(
        home,
        max(1.0, seconds / 3),
        f"waiting, {MORE_WORKERS} workers",
        SLEEPER,
        path,
        workers=MORE_WORKERS,
        ideal_per_s=IDEAL_PER_S,
    )


def computing(home: Path, seconds: float) -> list[Finding]:
    """Overload of a function that computes, some 10 ms of CPU time per request."""
    return _overload(home, seconds, "computing", PRIMES, "/busy?1000000", least_goodput=LEAST_GOODPUT_COMPUTING)


def _overload(
    home: Path,
    seconds: float,
    name: str,
    module: Path,
    path: str,
    *,
    workers: int = N_WORKERS,
    ideal_per_s: float = 0.0,
    least_goodput: float = LEAST_GOODPUT,
) -> list[Finding]:
    with Host(home, workers=workers) as host:
        host.deploy({"name": "hello"}, HELLO)
        limits = {"max_concurrency": MAX_CONCURRENCY, "queue_timeout_s": QUEUE_TIMEOUT_S}
        host.deploy({"name": "busy", "limits": limits}, module)
        tallies = uvloop.run(_drive(host.public_url, seconds, path))
    return findings_of(name, seconds, tallies, ideal_per_s=ideal_per_s, least_goodput=least_goodput)


async def _drive(url: str, seconds: float, path: str) -> dict[str, Tally]:
    host, port = _address(url)
    # Each stream has connections of its own: the neighbour is another client.
    guests, neighbours = OpenLoop(host, port), OpenLoop(host, port)
    await neighbours.stream("/hello", per_s=_WARM_UP, seconds=0.5)
    await guests.stream(path, per_s=_WARM_UP, seconds=0.5)
    # The capacity, by as many callers as may run at once, and what the neighbour gets while nobody disturbs it.
    solo = await guests.callers(path, n_callers=MAX_CONCURRENCY, seconds=SOLO_S)
    capacity_per_s = solo.statuses[200] / SOLO_S
    alone = await neighbours.stream("/hello", per_s=NEIGHBOUR_PER_S, seconds=ALONE_S)
    busy, beside = await asyncio.gather(
        guests.stream(path, per_s=OVERLOAD * capacity_per_s, seconds=seconds),
        neighbours.stream("/hello", per_s=NEIGHBOUR_PER_S, seconds=seconds),
    )
    guests.close()
    neighbours.close()
    return {"solo": solo, "alone": alone, "busy": busy, "beside": beside}


def findings_of(
    name: str,
    seconds: float,
    tallies: dict[str, Tally],
    *,
    ideal_per_s: float = 0.0,
    least_goodput: float = LEAST_GOODPUT,
) -> list[Finding]:
    """
    Return the findings: *solo* and *busy* are the function's requests, *alone* and *beside* its neighbour's.

    Args: *ideal_per_s* is what it would answer alone if nothing but its limit held it up; 0: nobody knows.
    *least_goodput* is how much of what it answers alone it has to answer under overload.
    """
    solo, alone, busy, beside = (tallies[which] for which in ("solo", "alone", "busy", "beside"))
    capacity_per_s = solo.statuses[200] / SOLO_S
    asked = sum(busy.statuses.values()) + sum(busy.errors.values())
    goodput = busy.statuses[200] / seconds / capacity_per_s if capacity_per_s else 0.0
    kept = beside.statuses[200] / (NEIGHBOUR_PER_S * seconds) / (alone.statuses[200] / (NEIGHBOUR_PER_S * ALONE_S))
    service_s = percentile(solo.taken_s, 99)
    p99 = percentile(busy.taken_s, 99)
    bound = QUEUE_TIMEOUT_S + service_s
    neighbour_p99 = percentile(beside.taken_s, 99)
    # What the client was late with its sending it was late with its reading, too.
    neighbour_bound = max(NEIGHBOUR_P99_S, 3 * percentile(alone.taken_s, 99)) + percentile(beside.late_s, 99)
    errors = solo.errors + alone.errors + busy.errors + beside.errors
    n_bad = sum(tally.n_bad for tally in (solo, alone, busy, beside))
    return [
        Finding(
            name,
            "capacity alone; service time p99",
            f"{capacity_per_s:.0f}/s; {service_s * 1000:.0f} ms",
            f"≥ {LEAST_GOODPUT * ideal_per_s:.0f}/s" if ideal_per_s else "",
            capacity_per_s >= LEAST_GOODPUT * ideal_per_s,
        ),
        Finding(
            name,
            f"offered for {seconds:g} s; answered; told to come again",
            f"{asked / seconds:.0f}/s; {busy.statuses[200] / seconds:.0f}/s; {busy.n_refused / seconds:.0f}/s",
        ),
        Finding(
            name, "answered, of the capacity", f"{goodput:.0%}", f"≥ {least_goodput:.0%}", goodput >= least_goodput
        ),
        Finding(name, "connection errors", _counted(errors), "0", not errors),
        Finding(name, "statuses but 200, 429 and 503", str(n_bad), "0", n_bad == 0),
        Finding(
            name,
            "429 and 503 without Retry-After",
            str(busy.without_retry_after),
            "0",
            busy.without_retry_after == 0 and busy.n_refused > 0,
        ),
        Finding(name, "answered in p50", f"{percentile(busy.taken_s, 50) * 1000:.0f} ms"),
        Finding(name, "answered in p99", f"{p99 * 1000:.0f} ms", f"< {bound * 1000:.0f} ms", p99 < bound),
        Finding(name, "… in the worker, p50 / p99", f"{_ms(busy.inside_s, 50)} / {_ms(busy.inside_s, 99)} ms"),
        Finding(name, "… … after the queue, p50 / p99", f"{_ms(busy.running_s, 50)} / {_ms(busy.running_s, 99)} ms"),
        Finding(name, "… sent late by the client, p50 / p99", f"{_ms(busy.late_s, 50)} / {_ms(busy.late_s, 99)} ms"),
        Finding(name, "neighbour's rate, of its rate alone", f"{kept:.0%}", "≥ 90 %", kept >= 0.9),
        Finding(
            name,
            "neighbour's p50 / p99 beside it (alone)",
            f"{_ms(beside.taken_s, 50)} / {_ms(beside.taken_s, 99)} ({_ms(alone.taken_s, 50)} / "
            f"{_ms(alone.taken_s, 99)}) ms",
            f"p99 < {neighbour_bound * 1000:.0f} ms",
            neighbour_p99 < neighbour_bound,
        ),
    ]


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


def loops(home: Path, seconds: float) -> list[Finding]:
    """Endless loops, many more than guest threads, beside a small function."""
    del seconds
    with Host(home, workers=N_WORKERS) as host:
        host.deploy({"name": "hello"}, HELLO)
        host.deploy({"name": "loop", "limits": {"timeout_s": LOOP_TIMEOUT_S, "cpu_s": 60}}, LOOP)
        late_s, hello = uvloop.run(_spin(host.public_url))
    return loop_findings(late_s, hello)


def loop_findings(late_s: list[float], hello: Tally) -> list[Finding]:
    """Return the findings about loops that were ended so many seconds late, and hellos meanwhile."""
    n_failed = hello.n_refused + hello.n_bad + sum(hello.errors.values())
    p99 = percentile(hello.taken_s, 99) * 1000
    worst = max(late_s) * 1000
    return [
        Finding("loops", f"hello p99 beside {N_LOOPS} endless loops", f"{p99:.1f} ms", "< 30 ms", p99 < 30),
        Finding("loops", f"hello p50 of {len(hello.taken_s)}", f"{_ms(hello.taken_s, 50)} ms"),
        Finding("loops", "hellos that failed or were refused", str(n_failed), "0", n_failed == 0 < len(hello.taken_s)),
        Finding(
            "loops",
            f"loops ended after their {LOOP_TIMEOUT_S:g} s, the last",
            f"{worst:.0f} ms later",
            "≤ 50 ms",
            worst <= 50,
        ),
        Finding("loops", "the median loop", f"{percentile(late_s, 50) * 1000:.0f} ms later"),
    ]


async def _spin(url: str) -> tuple[list[float], Tally]:
    """Return how late each loop was ended, by the host's own clock where it says, and what came of the hellos."""
    connector = aiohttp.TCPConnector(limit=0)

    async def loop(session: aiohttp.ClientSession) -> float:
        began = time.perf_counter()
        async with session.get("/loop") as reply:
            problem = await reply.json(content_type="application/problem+json")
            took_s = time.perf_counter() - began
        if reply.status != 504 or problem["code"] != "deadline-exceeded":
            raise AssertionError(f"{reply.status} {problem}")
        return took_s - LOOP_TIMEOUT_S

    async with aiohttp.ClientSession(url, connector=connector) as session:
        neighbours = OpenLoop(*_address(url))
        await neighbours.stream("/hello", per_s=_WARM_UP, seconds=0.5)
        spinning = [asyncio.ensure_future(loop(session)) for _ in range(N_LOOPS)]
        hello = await neighbours.stream("/hello", per_s=100, seconds=LOOP_TIMEOUT_S - 0.2)
        late_s = await asyncio.gather(*spinning)
        neighbours.close()
        return late_s, hello


def _ms(values_s: list[float], percent: float) -> str:
    return f"{percentile(values_s, percent) * 1000:.1f}"


def _counted(errors: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in errors.items()) or "0"


BENCHMARKS: dict[str, Callable[[Path, float], list[Finding]]] = {
    "waiting": waiting,
    "spread": spread,
    "computing": computing,
    "loops": loops,
}


if __name__ == "__main__":
    sys.exit(main())
