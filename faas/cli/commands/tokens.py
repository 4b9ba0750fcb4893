"""``faas tokens list``, ``add`` and ``remove``: who may use the admin API, and for what."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Json, segment
from faas.cli.output import ago, print_json, print_table
from faas.control.access import Role

tokens = typer.Typer(
    help="List, add and remove tokens of the admin API.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
TokenName = Annotated[str, typer.Argument(help="Name of the token.", show_default=False)]


@tokens.callback(invoke_without_command=True)
def _bare(context: typer.Context, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(home, admin_url, json)


@tokens.command("list")
def list_(home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the tokens; the one in the home is not among them, it is always an admin."""
    found = asyncio.run(_get(home, admin_url))["tokens"]
    if json:
        print_json(found)
        return
    if found:
        print_table(("NAME", "ROLE", "ADDED"), ((t["name"], t["role"], ago(t["added_at"])) for t in found))
    else:
        print("no token but the one in the home")


@tokens.command()
def add(
    name: TokenName,
    role: Annotated[
        Role,
        typer.Option(
            help="read: look at everything; deploy: change functions, too; admin: tokens, keys and models, too.",
            show_default=False,
        ),
    ],
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """Make a token and print it: this once, the host keeps only its hash."""
    made = asyncio.run(_add(name, role, home, admin_url))
    if json:
        print_json(made)
        return
    print(f"{name} is made, with the role {role.value}; keep the token now, it is not shown again:", file=sys.stderr)
    print(made["token"])


@tokens.command()
def remove(name: TokenName, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Remove a token; it opens nothing when this returns."""
    asyncio.run(_remove(name, home, admin_url))
    print(f"{name} is removed")


async def _get(home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get("/api/tokens")


async def _add(name: str, role: Role, home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.send("POST", "/api/tokens", {"name": name, "role": role.value})


async def _remove(name: str, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.delete(f"/api/tokens/{segment(name)}")
