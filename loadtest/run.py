"""``make loadtest``: starts a host, lets locust loose on it, prints what came of it; ``--scenario`` says how."""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from loadtest.host import FUNCTIONS, ROOT, Host, HostFailedError, Refused
from loadtest.report import SUMMARY_FILE
from loadtest.report import console as new_console
from loadtest.scenarios import CHAT_FIRST, DEFAULT, SCENARIOS, Finding, Scenario, missing_for_models

OUT = Path(__file__).resolve().parent / "out"
_STOP_TIMEOUT_S = 10
_GRACE_S = 60.0
_AT_ONCE_PER_S = 10_000


def main() -> int:
    """Return 0 when every request was answered as it should be, else 1."""
    args = _parser().parse_args()
    console = new_console()
    scenario = SCENARIOS[args.scenario]
    if scenario.needs_model and (missing := missing_for_models()):
        print(f"error: {args.scenario}: {missing}", file=sys.stderr)
        return 1
    users, duration_s = args.users or scenario.users, args.duration or scenario.duration_s
    args.out.mkdir(parents=True, exist_ok=True)
    prefix = "load" if args.scenario == DEFAULT else f"load-{args.scenario}"
    for old in (*args.out.glob(f"{prefix}_*.csv"), args.out / f"{prefix}.html"):
        old.unlink(missing_ok=True)
    report, summary = args.out / f"{prefix}.html", args.out / f"{prefix}_summary.csv"
    with tempfile.TemporaryDirectory(prefix="faas-loadtest-") as folder:
        samples = [FUNCTIONS / name for name in scenario.deploy]
        host = Host(Path(folder) / "home", workers=args.workers, deploy=samples, settings=scenario.settings)
        try:
            with host:
                console.print(f"{args.scenario}: {scenario.summary}")
                afterwards = scenario.set_up(host)
                console.print(f"host on {host.public_url}, {users} users for at most {duration_s} s ...")
                locust = _drive(scenario, host.public_url, users, duration_s, args.out / prefix)
                finding = afterwards() if afterwards else None
        except (HostFailedError, Refused) as exc:
            console.print(str(exc), style="red", markup=False)
            return 1
    rows = _rows(summary)
    console.print(_table(args.scenario, rows))
    problems = found_problems(scenario.rows, rows, _rows(args.out / f"{prefix}_failures.csv"), finding)
    if locust.returncode and not problems:
        problems = ["locust failed:", *locust.stderr.splitlines()[-20:]]
    if finding and finding.ok:
        console.print(finding.text, markup=False)
    for problem in problems:
        console.print(problem, style="red", markup=False)
    console.print(f"report: {_short(report)}")
    return 1 if problems else 0


def _drive(
    scenario: Scenario, url: str, users: int, duration_s: int, reports: Path
) -> subprocess.CompletedProcess[str]:
    """Run locust to its end; its reports, the summary among them, begin with the path *reports*."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name(scenario.users_file))),
            *("--host", url, "--headless", "--users", str(users)),
            *("--spawn-rate", str(_AT_ONCE_PER_S if scenario.at_once else users)),
            *("--run-time", f"{duration_s}s", "--stop-timeout", str(_STOP_TIMEOUT_S)),
            *("--html", f"{reports}.html", "--csv", str(reports), "--only-summary"),
            *("--loglevel", "WARNING"),
            *scenario.user_classes,
        ],
        cwd=ROOT,
        env={**os.environ, SUMMARY_FILE: f"{reports}_summary.csv", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=duration_s + _GRACE_S,
        check=False,
    )


def found_problems(
    wanted: Sequence[str], rows: list[dict[str, str]], failures: list[dict[str, str]], finding: Finding | None
) -> list[str]:
    """
    Return what is wrong with a load test, a line each.

    Args: *wanted* are names that have to be in the summary's *rows*; *failures* is locust's own list of them.
    """
    problems = [f"{row['Occurrences']} × {row['Name']}: {row['Error']}" for row in failures]
    answered = {row["function"] for row in rows if int(row["requests"]) > 0}
    problems += [f"{name!r} has no request; was the load too short?" for name in wanted if name not in answered]
    if finding and not finding.ok:
        problems.append(finding.text)
    return problems


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.run", description=__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, default=DEFAULT, help=f"what is called (default {DEFAULT})")
    parser.add_argument("--users", type=int, default=0, metavar="N", help="callers at once (0: as the scenario has it)")
    parser.add_argument("--duration", type=int, default=0, metavar="S", help="seconds of load (0: as it has it)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="worker processes (0: one per processor)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where the report goes")
    return parser


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _table(name: str, rows: list[dict[str, str]]) -> Table:
    table = Table(title=f"load test {name!r}: what requests took, and the cold start in them, in ms")
    table.add_column("function")
    for column in ("requests", "failures", "req/s", "p50", "p95", "p99", "start p50", "start p99", "start max"):
        table.add_column(column, justify="right")
    for row in rows:
        function, *cells = row.values()
        table.add_row(function, *("–" if math.isnan(float(cell)) else cell for cell in cells))
    requests = [row for row in rows if row["function"] != CHAT_FIRST]
    total = [str(sum(int(row[key]) for row in requests)) for key in ("requests", "failures")]
    table.add_section()
    table.add_row("all", *total, f"{sum(float(row['per_s']) for row in requests):.1f}")
    return table


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
