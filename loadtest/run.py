"""``make loadtest``: starts a host with the samples, lets locust loose on it for a minute, prints what came of it."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.host import FUNCTIONS, ROOT, Host
from loadtest.timing import STARTS_FILE

OUT = Path(__file__).resolve().parent / "out"
SAMPLES = ("hello-c", "hello-rust", "echo-c", "echo-rust", "markdown")
_GRACE_S = 60.0


def main() -> int:
    """Return 0 when every request was answered as it should be, else 1."""
    args = _parser().parse_args()
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("load*"):
        old.unlink()
    report, starts = args.out / "load.html", args.out / "load_starts.csv"
    with tempfile.TemporaryDirectory(prefix="faas-loadtest-") as folder:
        samples = [FUNCTIONS / name for name in SAMPLES]
        with Host(Path(folder) / "home", workers=args.workers, deploy=samples) as host:
            console.print(f"host on {host.public_url}, {args.users} users for {args.duration} s ...")
            locust = subprocess.run(
                [
                    *(sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py"))),
                    *("--host", host.public_url, "--headless", "--users", str(args.users)),
                    *("--spawn-rate", str(args.users), "--run-time", f"{args.duration}s", "--stop-timeout", "10"),
                    *("--html", str(report), "--csv", str(args.out / "load"), "--only-summary"),
                    *("--loglevel", "WARNING"),
                ],
                cwd=ROOT,
                env={**os.environ, STARTS_FILE: str(starts), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=args.duration + _GRACE_S,
                check=False,
            )
    rows = _rows(args.out / "load_stats.csv")
    console.print(_table(rows, _rows(starts)))
    failures = _failures(args.out / "load_failures.csv")
    for line in failures:
        console.print(line)
    console.print(f"report: {_short(report)}")
    answered = {row["Name"] for row in rows if int(row["Request Count"]) > 0}
    missed = [name for name in SAMPLES if name not in answered]
    if missed:
        console.print(f"never called: {', '.join(missed)}")
    if locust.returncode or failures or missed:
        console.print("[red]failed[/red]")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.run", description=__doc__)
    parser.add_argument("--users", type=int, default=20, metavar="N", help="callers at once (default 20)")
    parser.add_argument("--duration", type=int, default=60, metavar="S", help="seconds of load (default 60)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="worker processes (0: one per processor)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where the report goes")
    return parser


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _failures(path: Path) -> list[str]:
    return [f"{row['Occurrences']} × {row['Name']}: {row['Error']}" for row in _rows(path)]


def _table(rows: list[dict[str, str]], starts: list[dict[str, str]]) -> Table:
    table = Table(title="load test: milliseconds as the client sees them, and the cold start in them")
    table.add_column("function")
    for name in ("requests", "failures", "req/s", "p50", "p95", "p99", "start p50", "start p99"):
        table.add_column(name, justify="right")
    by_function = {row["function"]: row for row in starts}
    for row in rows:
        start = by_function.get(row["Name"])
        cold = [f"{float(start[key]):.3f}" for key in ("start_p50_ms", "start_p99_ms")] if start else ["", ""]
        table.add_row(
            row["Name"],
            row["Request Count"],
            row["Failure Count"],
            f"{float(row['Requests/s']):.1f}",
            *(row[percent] for percent in ("50%", "95%", "99%")),
            *cold,
        )
    return table


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
