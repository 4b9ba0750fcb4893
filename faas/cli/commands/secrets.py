"""``faas secrets list``, ``set``, ``unset`` and ``rotate-key``; a value is never an argument: others see those."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.commands.kv import read_file
from faas.cli.commands.traffic import call
from faas.cli.options import AdminUrl, Home, Json, Name, segment
from faas.cli.output import ago, print_json, print_table
from faas.errors import ConfigError

secrets = typer.Typer(
    help="Set secrets of functions; they are kept sealed, and shown by nothing.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
SecretName = Annotated[str, typer.Argument(metavar="KEY", help="Name of the secret.", show_default=False)]


@secrets.command("list")
def list_(name: Name, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the names of a function's secrets."""
    found = asyncio.run(call("GET", f"/api/functions/{segment(name)}/secrets", None, home, admin_url))["secrets"]
    if json:
        print_json(found)
    elif found:
        rows = (
            (
                secret["name"],
                ago(secret["set_at"]),
                "" if secret["readable"] else "sealed with another key: set it again",
            )
            for secret in found
        )
        print_table(("NAME", "SET", ""), rows)
    else:
        print(f"{name} has no secrets; 'faas secrets set {name} KEY' sets one")


@secrets.command("set")
def set_(
    name: Name,
    key: SecretName,
    from_file: Annotated[
        Path | None, typer.Option(help="Read it from a file, all of it; '-' is stdin.", show_default=False)
    ] = None,
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """
    Set a secret of a function: asked for without echo, or the first line of stdin where that is no terminal.

    Every worker that needs it has it when this returns.
    """
    value = _value(f"{name} {key}", from_file)
    path = f"/api/functions/{segment(name)}/secrets/{segment(key)}"
    asyncio.run(_tell("PUT", path, {"value": value}, home, admin_url))
    print(f"{key} of {name} is set")


@secrets.command()
def unset(name: Name, key: SecretName, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Forget a secret of a function; no worker has it when this returns."""
    asyncio.run(_tell("DELETE", f"/api/functions/{segment(name)}/secrets/{segment(key)}", None, home, admin_url))
    print(f"{key} of {name} is unset")


@secrets.command("rotate-key")
def rotate_key(home: Home = None, admin_url: AdminUrl = None) -> None:
    """Seal all secrets of all functions with a new key, and forget the one before."""
    done = asyncio.run(call("POST", "/api/secrets/rotate-key", None, home, admin_url))
    print(f"{done['secrets']} secrets are sealed with a new key; copies of the old key open nothing any more")


def _value(what: str, from_file: Path | None) -> str:
    """Return the secret; raises ConfigError, without it, if it is none."""
    if from_file is not None:
        content = sys.stdin.buffer.read() if str(from_file) == "-" else read_file(from_file)
    elif sys.stdin.isatty():
        content = typer.prompt(f"value of {what}", hide_input=True, err=True).encode()
    else:
        content = sys.stdin.buffer.readline().rstrip(b"\r\n")
    if not content:
        raise ConfigError("the secret is empty; type it, pipe it in, or name a file with --from-file")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError("the secret is not UTF-8; encode it as base64, and have the function decode it") from None


async def _tell(method: str, path: str, document: Any, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.tell(method, path, document)
