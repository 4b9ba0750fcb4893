"""``faas alias list``, ``set`` and ``remove``."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.commands.traffic import call, shares_text, show_aliases
from faas.cli.options import AdminUrl, Home, Json, Name, segment
from faas.cli.output import print_json

alias = typer.Typer(
    help="List, set and remove names for versions.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@alias.command("list")
def list_(name: Name, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the aliases of a function."""
    show_aliases(asyncio.run(call("GET", f"/api/functions/{segment(name)}/aliases", None, home, admin_url)), json)


@alias.command("set")
def set_(
    name: Name,
    wanted: Annotated[str, typer.Argument(metavar="ALIAS=V", help="The alias, and its version.", show_default=False)],
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """Have an alias name a version; it is made if it is not there."""
    which, mark, version = wanted.partition("=")
    if not mark or not version.isdigit():
        raise typer.BadParameter(f"{wanted!r} is not of the form ALIAS=VERSION", param_hint="ALIAS=V")
    path = f"/api/functions/{segment(name)}/aliases/{segment(which)}"
    view = asyncio.run(call("PUT", path, {"weights": {version: 100}}, home, admin_url))
    if json:
        print_json(view)
    else:
        print(f"{which} of {name}: {shares_text(view['weights'])}")


@alias.command("remove")
def remove(
    name: Name,
    which: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.", show_default=False)],
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Remove an alias; its version stays."""

    async def go() -> None:
        async with AdminClient(find_host(home, admin_url, environ())) as client:
            await client.delete(f"/api/functions/{segment(name)}/aliases/{segment(which)}")

    asyncio.run(go())
    print(f"{which} of {name} is removed")
