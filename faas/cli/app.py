"""The list of commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from faas import __version__
from faas.cli.commands.aliases import alias
from faas.cli.commands.canary import canary
from faas.cli.commands.config import config
from faas.cli.commands.deploy import deploy
from faas.cli.commands.doctor import doctor
from faas.cli.commands.functions import inspect, list_, remove, versions
from faas.cli.commands.invoke import invoke
from faas.cli.commands.jobs import jobs
from faas.cli.commands.keys import keys
from faas.cli.commands.kv import kv
from faas.cli.commands.logs import logs
from faas.cli.commands.models import models
from faas.cli.commands.new import new
from faas.cli.commands.run import run
from faas.cli.commands.schedules import schedules
from faas.cli.commands.secrets import secrets
from faas.cli.commands.serve import serve
from faas.cli.commands.status import status
from faas.cli.commands.tokens import tokens
from faas.cli.commands.traffic import audit, rollback, traffic
from faas.cli.output import print_error
from faas.errors import FaasError

app = typer.Typer(
    name="faas",
    help="A serverless function host for WebAssembly.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # errors stay one line that a script can read
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"faas {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    ca_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Trust these certificates (PEM) over https://.  [env: FAAS_CA_FILE]"),
    ] = None,
) -> None:
    """A serverless function host for WebAssembly."""
    if ca_file is not None:
        os.environ["FAAS_CA_FILE"] = ca_file  # where every command looks for it


app.command()(serve)
app.command()(deploy)
app.command()(invoke)
app.command("list")(list_)
app.command()(inspect)
app.command()(remove)
app.command()(versions)
app.add_typer(alias, name="alias")
app.command()(traffic)
app.command()(rollback)
app.add_typer(canary, name="canary")
app.command()(audit)
app.command()(logs)
app.command()(status)
app.add_typer(models, name="models")
app.add_typer(keys, name="keys")
app.add_typer(kv, name="kv")
app.add_typer(config, name="config")
app.add_typer(secrets, name="secrets")
app.add_typer(tokens, name="tokens")
app.add_typer(jobs, name="jobs")
app.add_typer(schedules, name="schedules")
app.command()(run)
app.command()(new)
app.command()(doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run one command and end the process: 0 done, 1 failed, 2 used wrongly.

    Args: *arguments* without the program's name; the process's own when None.
    """
    try:
        app(None if arguments is None else list(arguments), prog_name="faas")
    except FaasError as exc:
        print_error(exc)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain about it while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
