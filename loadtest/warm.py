"""``make bench-warm``: what a warm pool saves a request: an expensive start and a cheap one, cold beside warm."""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import wasmtime
from rich.table import Table

from loadtest.host import FUNCTIONS, Host, connection
from loadtest.report import console as new_console
from loadtest.report import percentile, server_timing

ROUNDS = 2
"""How often each of cold and warm has its turn, one after the other: A B A B."""
LEAST_HITS = 0.9
MOST_OF_START = 0.5
"""Where a pool is to pay, a start takes at most this part of a cold one, at the median."""
MOST_LATE = 1.25
MOST_LATE_MS = 0.2
"""Where it can't, a request takes no more than this times a cold one's time and this, at the median."""
_WARM_UP = 20

# Like an interpreter: 8 MiB of its memory are filled, and 10 million rounds of arithmetic done, before the first
# request can be answered. The answer is the map {"body": "ok"}.
_INTERPRETER = """(module
  (memory (export "memory") 160)
  (data (i32.const 2048) "\\81\\a4body\\a2ok")
  (func (export "_initialize") (local $i i32) (local $x i32)
    (memory.fill (i32.const 65536) (i32.const 7) (i32.const 8388608))
    (loop $more
      (local.set $x (i32.add (i32.mul (local.get $x) (i32.const 1664525)) (local.get $i)))
      (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 10000000))))
    (i32.store (i32.const 1024) (local.get $x)))
  (func (export "faas_alloc") (param i32) (result i32) (i32.const 4096))
  (func (export "faas_handle") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.const 2048) (i64.const 32)) (i64.const 9))))"""


@dataclass(frozen=True)
class Case:
    """One way of asking: *pause_ms* is between a reply and the next request of the one client."""

    what: str
    module: str
    n_requests: int
    pause_ms: float
    warm: dict[str, int]
    pays: bool = False
    """The host has the time to make an instance before the next request, and one takes much longer than a request."""


CASES = (
    Case("expensive start, a pause of 30 ms", "interpreter", 300, 30, {"max": 4}, pays=True),
    Case("expensive start, a pause of 30 ms, reused", "interpreter", 300, 30, {"max": 4, "reuse": 1000}, pays=True),
    Case("expensive start, no pause", "interpreter", 300, 0, {"max": 4}),
    Case("hello, a pause of 5 ms", "hello", 1000, 5, {"max": 4}),
    Case("hello, no pause", "hello", 4000, 0, {"max": 4}),
)


@dataclass
class Seen:
    """What the requests of one side took, in ms; ``cpu_ms`` is the worker's, over all of them."""

    start: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    n_hits: int = 0
    cpu_ms: float = 0.0


def main() -> int:
    """Measure all cases on one worker and print a table; return 0 when every promise holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.warm", description=__doc__)
    parser.add_argument("--only", help="run just the cases whose names hold this")
    only = parser.parse_args().only
    console = new_console()
    broken: list[str] = []
    table = Table(title="cold starts beside warm pools: one worker, one client, A B A B")
    for column in ("case", "side", "start p50", "start p99", "request p50", "request p99", "hits", "CPU per request"):
        table.add_column(column)
    with tempfile.TemporaryDirectory(prefix="faas-bench-") as folder:
        modules = {"hello": FUNCTIONS / "hello-c" / "hello-c.wasm", "interpreter": Path(folder) / "interpreter.wasm"}
        modules["interpreter"].write_bytes(wasmtime.wat2wasm(_INTERPRETER))
        with Host(Path(folder) / "home") as host:
            for case in CASES:
                if only is None or only in case.what:
                    console.print(f"{case.what} ...")
                    sides = _measure(host, case, modules[case.module])
                    for side, seen in sides.items():
                        table.add_row(case.what, side, *_cells(seen))
                    broken += broken_by(case, **sides)
    console.print(table)
    for what in broken:
        console.print(what, style="red", markup=False)
    return 1 if broken else 0


def broken_by(case: Case, *, cold: Seen, warm: Seen) -> list[str]:
    """Return the promises that were not kept: a pool saves starts where it can, and costs next to nothing elsewhere."""
    broken = []
    if case.pays:
        hits, start, cold_start = warm.n_hits / len(warm.start), percentile(warm.start, 50), percentile(cold.start, 50)
        if not hits >= LEAST_HITS:
            broken.append(f"{case.what}: an instance was ready for {hits:.0%} of requests, not for {LEAST_HITS:.0%}")
        if not start <= MOST_OF_START * cold_start:
            broken.append(
                f"{case.what}: a start takes {start:.3f} ms, not half of the {cold_start:.3f} ms of a cold one"
            )
    whole, bound = percentile(warm.whole, 50), MOST_LATE * percentile(cold.whole, 50) + MOST_LATE_MS
    if not whole <= bound:
        broken.append(f"{case.what}: a request takes {whole:.3f} ms, more than {bound:.3f} ms: the pool costs time")
    return broken


def _measure(host: Host, case: Case, module: Path) -> dict[str, Seen]:
    """Return what was seen cold and warm; each side is a function of its own, of the same module."""
    sides = {"cold": Seen(), "warm": Seen()}
    host.deploy({"name": "cold"}, module)
    host.deploy({"name": "warm", "warm": case.warm}, module)
    worker = _worker(host)
    for _ in range(ROUNDS):
        for side, seen in sides.items():
            with connection(host.public_url) as conn:
                for _ in range(_WARM_UP):
                    _ask(conn, side)
                cpu_ms = _cpu_ms(worker)
                for _ in range(case.n_requests):
                    time.sleep(case.pause_ms / 1000)
                    _ask(conn, side, seen)
                seen.cpu_ms += _cpu_ms(worker) - cpu_ms
    host.remove("cold")
    host.remove("warm")
    return sides


def _ask(conn: http.client.HTTPConnection, name: str, seen: Seen | None = None) -> None:
    began = time.perf_counter()
    conn.request("GET", f"/{name}")
    response = conn.getresponse()
    body = response.read()
    took_ms = (time.perf_counter() - began) * 1000
    if response.status != 200:
        raise AssertionError(f"/{name} answered {response.status}: {body[:300].decode(errors='replace')}")
    if seen is not None:
        timing = response.headers["Server-Timing"]
        seen.start.append(server_timing(timing)["start"])
        seen.whole.append(took_ms)
        seen.n_hits += "desc=" in timing


def _worker(host: Host) -> int:
    """Return the process id of the one gateway worker."""
    (worker,) = host.status()["workers"]
    return int(worker["pid"])


def _cpu_ms(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def _cells(seen: Seen) -> list[str]:
    numbers = [percentile(values, percent) for values in (seen.start, seen.whole) for percent in (50, 99)]
    n = len(seen.start)
    return [*(f"{number:.3f} ms" for number in numbers), f"{seen.n_hits / n:.0%}", f"{seen.cpu_ms / n:.2f} ms"]


if __name__ == "__main__":
    sys.exit(main())
