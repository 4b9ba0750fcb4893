"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

Home = Annotated[
    Path | None,
    typer.Option(help="Folder with everything that survives.  [env: FAAS_HOME]", show_default=False),
]
AdminUrl = Annotated[
    str | None,
    typer.Option(help="Where the admin API is.  [env: FAAS_ADMIN_URL]", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Version = Annotated[int | None, typer.Option(metavar="V", min=1, help="This version of it.", show_default=False)]
Name = Annotated[str, typer.Argument(help="Name of the function.", show_default=False)]


def pairs(values: list[str], option: str, separator: str = "=") -> list[tuple[str, str]]:
    """Split each of *values* at *separator*; a usage error (exit code 2) if it is not there."""
    found: list[tuple[str, str]] = []
    for value in values:
        left, mark, right = value.partition(separator)
        if not mark or not left:
            raise typer.BadParameter(f"{value!r} is not of the form LEFT{separator}RIGHT", param_hint=option)
        found.append((left, right))
    return found


def segment(name: str) -> str:
    """Return *name* as one segment of a URL's path, whatever is in it."""
    return quote(name, safe="") or "%20"
