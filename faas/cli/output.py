"""What commands print: results to stdout, talk and errors to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from faas.errors import FaasError


def print_error(error: FaasError) -> None:
    """Print *error* as one line on stderr."""
    print(f"error: {visible(' '.join(error.message.split()))}", file=sys.stderr)


def visible(text: str) -> str:
    """Return *text* with control characters written out: what a guest says must not move anybody's cursor."""
    return "".join(char if char.isprintable() or char == "\t" else repr(char)[1:-1] for char in text)


def print_json(document: Any) -> None:
    """Print *document* as JSON, indented, on stdout."""
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def print_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table on stdout; columns are as wide as the terminal allows, and whole when it is no terminal."""
    titles = list(headings)
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(titles))
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console = Console(highlight=False, width=10_000)  # a pipe has no width to wrap at
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def ago(at: float, now: float | None = None) -> str:
    """Return how long ago the Unix time *at* was, roughly."""
    seconds = max(0.0, (time.time() if now is None else now) - at)
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds // unit_s:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def size(n_bytes: float) -> str:
    """Return *n_bytes* with the unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def when(at: float) -> str:
    """Return the Unix time *at* in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
