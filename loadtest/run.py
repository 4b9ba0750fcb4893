"""``make loadtest``: starts a host with the samples, lets locust loose on it for a minute, prints what came of it."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.table import Table

from loadtest.host import FUNCTIONS, ROOT, Host
from loadtest.report import SUMMARY_FILE
from loadtest.report import console as new_console

OUT = Path(__file__).resolve().parent / "out"
SAMPLES = ("hello-c", "hello-rust", "echo-c", "echo-rust", "markdown")
_GRACE_S = 60.0


def main() -> int:
    """Return 0 when every request was answered as it should be, else 1."""
    args = _parser().parse_args()
    console = new_console()
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("load*"):
        old.unlink()
    report, summary = args.out / "load.html", args.out / "load_summary.csv"
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
                env={**os.environ, SUMMARY_FILE: str(summary), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=args.duration + _GRACE_S,
                check=False,
            )
    rows = _rows(summary)
    console.print(_table(rows))
    problems = [
        f"{row['Occurrences']} × {row['Name']}: {row['Error']}" for row in _rows(args.out / "load_failures.csv")
    ]
    answered = {row["function"] for row in rows if int(row["requests"]) > 0}
    problems += [f"{name} was never called" for name in SAMPLES if name not in answered]
    if locust.returncode and not problems:
        problems = ["locust failed:", *locust.stderr.splitlines()[-20:]]
    for problem in problems:
        console.print(problem, style="red", markup=False)
    console.print(f"report: {_short(report)}")
    return 1 if problems else 0


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


def _table(rows: list[dict[str, str]]) -> Table:
    table = Table(title="load test: what requests took, and the cold start in them, in ms")
    table.add_column("function")
    for name in ("requests", "failures", "req/s", "p50", "p95", "p99", "start p50", "start p99", "start max"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row.values())
    total = [str(sum(int(row[key]) for row in rows)) for key in ("requests", "failures")]
    table.add_section()
    table.add_row("all", *total, f"{sum(float(row['per_s']) for row in rows):.1f}")
    return table


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
