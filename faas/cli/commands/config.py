"""``faas config list``, ``set`` and ``unset``: config values of functions, which are environment variables to them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.commands.traffic import call
from faas.cli.options import AdminUrl, Home, Json, Name, pairs, segment
from faas.cli.output import ago, print_json, print_table, visible

config = typer.Typer(
    help="Set config values of functions: environment variables that need no deploy.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@config.command("list")
def list_(name: Name, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the config values of a function."""
    found = asyncio.run(call("GET", f"/api/functions/{segment(name)}/config", None, home, admin_url))["values"]
    if json:
        print_json(found)
    elif found:
        rows = ((value["name"], visible(value["value"]), ago(value["set_at"])) for value in found)
        print_table(("NAME", "VALUE", "SET"), rows)
    else:
        print(f"{name} has no config values; 'faas config set {name} KEY=VALUE' sets one")


@config.command("set")
def set_(
    name: Name,
    values: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="What to set.", show_default=False)],
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Set config values, which win over the manifest's env; every worker goes by them when this returns."""
    document = {"values": dict(pairs(values, "KEY=VALUE"))}
    asyncio.run(_set(f"/api/functions/{segment(name)}/config", document, home, admin_url))
    print(f"{', '.join(document['values'])} of {name} {'is' if len(document['values']) == 1 else 'are'} set")


@config.command()
def unset(
    name: Name,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="What to forget.", show_default=False)],
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Forget config values of a function; the manifest's env, if it has them, counts again."""
    path = f"/api/functions/{segment(name)}/config"
    asyncio.run(_unset(path, keys, home, admin_url))
    print(f"{', '.join(keys)} of {name} {'is' if len(keys) == 1 else 'are'} unset")


async def _set(path: str, document: Any, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.tell("PATCH", path, document)


async def _unset(path: str, keys: list[str], home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.tell("DELETE", path, params=[("name", key) for key in keys])
