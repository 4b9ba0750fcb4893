"""Numbers out of replies, percentiles that are values somebody measured, and where the tables are printed."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

SUMMARY_FILE = "FAAS_LOADTEST_SUMMARY"
"""The environment variable that tells locust's process where to write its summary at the end, as CSV."""
REFUSED = ": refused"
"""What the rows of that summary end in that count requests which were told to come again, as they should be."""


def server_timing(header: str) -> dict[str, float]:
    """
    Return each metric's ``dur`` in ms; metrics without one are left out.

    Source: W3C Server Timing.
    """
    durations: dict[str, float] = {}
    for metric in header.split(","):
        name, *parameters = (part.strip() for part in metric.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "dur":
                durations[name] = float(value.strip().strip('"'))
    return durations


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of *values* that *percent* of them are not above (nearest rank); NaN if there are none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def console() -> Console:
    """Return the console on stdout; a log or a pipe gets lines that are wide enough for every table."""
    return Console(width=None if sys.stdout.isatty() else 120, soft_wrap=False)


@dataclass(frozen=True)
class Finding:
    """One line of a table of promises; ``limit`` empty means that the number is only for information."""

    benchmark: str
    what: str
    measured: str
    limit: str = ""
    holds: bool = True


def findings_table(title: str, findings: Iterable[Finding]) -> Table:
    """Return what was measured beside what is asked for."""
    table = Table(title=title)
    for column in ("benchmark", "what", "measured", "asked", ""):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for f in findings:
        table.add_row(f.benchmark, f.what, f.measured, f.limit, "" if not f.limit else "yes" if f.holds else "NO")
    return table
