"""``faas run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from faas.cli.options import pairs
from faas.errors import ModelsMissingError
from faas.wasm.oneshot import run_once


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE.wasm", help="A WASI command.", show_default=False)],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]", help="Passed to the program.", show_default=False)
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="An environment variable.")] = None,
    dir: Annotated[
        list[str] | None, typer.Option(metavar="HOST::GUEST", help="Show the folder HOST to the program as GUEST.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Let the program use this GGUF file as NAME.")
    ] = None,
) -> None:
    """Run a WASI program once, with this terminal's stdio; its exit code becomes ours."""
    if pairs(model or [], "--model"):
        raise ModelsMissingError(
            "'faas run' can't give a program models yet; 'faas deploy --model NAME' to a host does"
        )
    folders = []
    for given in dir or []:
        host, mark, guest = given.partition("::")
        folders.append((host, guest if mark else host))
    raise typer.Exit(run_once(file, arguments or [], dict(pairs(env or [], "--env")), folders))
