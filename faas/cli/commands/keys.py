"""``faas keys list``, ``add`` and ``remove``: what opens functions, and the OpenAI-compatible endpoints."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Json, segment
from faas.cli.output import ago, print_json, print_table

keys = typer.Typer(
    help="List, add and remove keys: of a function, or for the OpenAI-compatible endpoints.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
KeyName = Annotated[str, typer.Argument(help="Name of the key.", show_default=False)]
Function = Annotated[
    str | None,
    typer.Option("--function", "-f", metavar="NAME", help="Keys of this function; else of /v1/.", show_default=False),
]
_OPEN = "no key: the OpenAI-compatible endpoints answer to this machine without one (openai_open_to_all: to everybody)"


@keys.callback(invoke_without_command=True)
def _bare(context: typer.Context, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(None, home, admin_url, json)


@keys.command("list")
def list_(function: Function = None, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the keys, and what they used since the host started."""
    if function is not None:
        _list_of_function(asyncio.run(_get_of_function(function, home, admin_url))["keys"], json)
        return
    found = asyncio.run(_get(home, admin_url))
    if json:
        print_json(found["keys"])
        return
    rows = [
        (key["name"], ago(key["added_at"]), str(key["tokens_per_minute"] or "no limit"), *_used(key["counters"]))
        for key in found["keys"]
    ]
    if found["anonymous"]:
        rows.append(("(without a key)", "-", "-", *_used(found["anonymous"])))
    if rows:
        print_table(("NAME", "ADDED", "TOKENS/MIN", "PROMPT", "GENERATED", "REQUESTS"), rows)
    if not found["keys"]:
        print(_OPEN)


def _list_of_function(found: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(found)
        return
    rows = [
        (
            key["name"],
            ago(key["added_at"]),
            str(key["requests_per_minute"] or "no limit"),
            *(f"{key['counters'].get(counter, 0):.0f}" for counter in ("requests", "rate_limited")),
        )
        for key in found
    ]
    if rows:
        print_table(("NAME", "ADDED", "REQUESTS/MIN", "REQUESTS", "OVER THE LIMIT"), rows)
    else:
        print('no key of that function; with [access] invoke = "key" nobody can call it until there is one')


@keys.command()
def add(
    name: KeyName,
    *,
    function: Function = None,
    tokens_per_minute: Annotated[
        int, typer.Option(min=0, metavar="N", help="Prompt and generated tokens, without --function; 0: no limit.")
    ] = 0,
    requests_per_minute: Annotated[
        int, typer.Option(min=0, metavar="N", help="Requests, with --function; 0: no limit.")
    ] = 0,
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """Make a key and print it: this once, the host keeps only its hash."""
    if function is None and requests_per_minute:
        raise typer.BadParameter("it is for keys of a function; give --function", param_hint="--requests-per-minute")
    if function is not None and tokens_per_minute:
        raise typer.BadParameter("it is for keys without --function", param_hint="--tokens-per-minute")
    if function is None:
        made = asyncio.run(_add(name, tokens_per_minute, home, admin_url))
    else:
        made = asyncio.run(_add_to_function(function, name, requests_per_minute, home, admin_url))
    if json:
        print_json(made)
        return
    print(f"{name} is made; keep the key now, it is not shown again:", file=sys.stderr)
    print(made["key"])


@keys.command()
def remove(name: KeyName, function: Function = None, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Remove a key; no worker takes it when this returns."""
    if function is not None:
        asyncio.run(_remove_of_function(function, name, home, admin_url))
        print(f"{name} of {function} is removed")
        return
    left = asyncio.run(_remove(name, home, admin_url))
    print(f"{name} is removed")
    if not left:
        print(_OPEN, file=sys.stderr)


def _used(counters: dict[str, float]) -> tuple[str, str, str]:
    prompt, generated, requests = (
        f"{counters.get(name, 0):.0f}" for name in ("prompt_tokens", "generated_tokens", "model_requests")
    )
    return prompt, generated, requests


async def _get(home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get("/api/keys")


async def _add(name: str, tokens_per_minute: int, home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.send("POST", "/api/keys", {"name": name, "tokens_per_minute": tokens_per_minute})


async def _remove(name: str, home: Home, admin_url: AdminUrl) -> int:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.delete(f"/api/keys/{segment(name)}")
        return len((await client.get("/api/keys"))["keys"])


async def _get_of_function(function: str, home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get(f"/api/invoke-keys?function={segment(function)}")


async def _add_to_function(function: str, name: str, requests_per_minute: int, home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.send(
            "POST",
            f"/api/functions/{segment(function)}/keys",
            {"name": name, "requests_per_minute": requests_per_minute},
        )


async def _remove_of_function(function: str, name: str, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.delete(f"/api/functions/{segment(function)}/keys/{segment(name)}")
