"""``faas kv …``: what functions keep under keys, and who may use whose store."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.commands.traffic import call
from faas.cli.options import AdminUrl, Home, Json, segment
from faas.cli.output import print_json, print_table, size, visible
from faas.errors import ConfigError

kv = typer.Typer(
    help="Look into functions' key-value stores, and grant them to other functions.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Store = Annotated[str, typer.Argument(help="Name of the function whose store it is.", show_default=False)]
Key = Annotated[str, typer.Argument(help="The key.", show_default=False)]
Function = Annotated[str, typer.Argument(help="Name of the function that is to use it.", show_default=False)]
_PAGE_KEYS = 1000


@kv.callback(invoke_without_command=True)
def _bare(context: typer.Context, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        stores(home, admin_url, json)


@kv.command()
def stores(home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the stores that hold something."""
    found = asyncio.run(call("GET", "/api/kv", None, home, admin_url))["stores"]
    if json:
        print_json(found)
    elif found:
        print_table(("STORE", "KEYS", "SIZE"), ((s["store"], str(s["keys"]), size(s["bytes"])) for s in found))
    else:
        print("no function keeps anything")


@kv.command("list")
def list_(
    store: Store,
    *,
    prefix: Annotated[str, typer.Option(help="Only keys that begin so.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many keys.")] = 1000,
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """List the keys of a store, in the order of their bytes."""
    keys, more = asyncio.run(_keys(store, prefix, limit, home, admin_url))
    if json:
        print_json(keys)
        return
    for key in keys:
        print(visible(key))
    if more:
        print(f"there are more; --limit {limit * 10} shows them, too", file=sys.stderr)


@kv.command()
def get(store: Store, key: Key, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Write the bytes under a key to stdout, as they are."""
    content = asyncio.run(_value(store, key, home, admin_url))
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


@kv.command("set")
def set_(
    store: Store,
    key: Key,
    value: Annotated[
        str | None, typer.Argument(help="The value; without it stdin is read.", show_default=False)
    ] = None,
    *,
    from_file: Annotated[Path | None, typer.Option(help="Read the value from a file.", show_default=False)] = None,
    ttl: Annotated[
        float | None, typer.Option(min=0.001, metavar="SECONDS", help="Keep it so long; else for good.")
    ] = None,
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Keep a value under a key."""
    if value is not None and from_file is not None:
        raise typer.BadParameter("give the value or --from-file, not both")
    if value is not None:
        content = value.encode("utf-8", "surrogateescape")
    elif from_file is not None:
        content = read_file(from_file)
    else:
        content = sys.stdin.buffer.read()
    params = {"key": key} if ttl is None else {"key": key, "ttl_s": str(ttl)}
    asyncio.run(_set(store, params, content, home, admin_url))


@kv.command()
def delete(store: Store, key: Key, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Remove a key."""
    asyncio.run(_delete(store, key, home, admin_url))


@kv.command()
def drop(
    store: Store,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Remove everything that a store holds; grants stay."""
    if not yes:
        typer.confirm(f"remove everything that {store} keeps?", abort=True)
    gone = asyncio.run(call("DELETE", f"/api/kv/{segment(store)}", None, home, admin_url))
    print(f"{gone['keys']} keys of {store} are removed")


@kv.command()
def grant(
    store: Store,
    function: Function,
    read_only: Annotated[bool, typer.Option("--read-only", help="It may read and list only.")] = False,
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Let a function use another one's store, if its manifest names it, too; it may when this returns."""
    document = {"function": function, "read_only": read_only}
    asyncio.run(call("POST", f"/api/kv/{segment(store)}/grants", document, home, admin_url))
    print(f"{function} may {'read' if read_only else 'use'} the store of {store}")
    print(
        f'its function.toml has to name it, too: kv = ["{store}"] under [capabilities]',
        file=sys.stderr,
    )


@kv.command()
def revoke(store: Store, function: Function, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Let a function use another one's store no longer; it may not when this returns."""
    asyncio.run(_tell("DELETE", f"/api/kv/{segment(store)}/grants/{segment(function)}", home, admin_url))
    print(f"{function} may not use the store of {store}")


@kv.command()
def grants(home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List which functions may use others' stores."""
    found = asyncio.run(call("GET", "/api/kv-grants", None, home, admin_url))["grants"]
    if json:
        print_json(found)
    elif found:
        rows = ((g["store"], g["function"], "read" if g["read_only"] else "read, write") for g in found)
        print_table(("STORE", "FUNCTION", "MAY"), rows)
    else:
        print("every function uses its own store only")


def read_file(path: Path) -> bytes:
    """Return a file's content; raises ConfigError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"can't read {path}: {exc.strerror}; check --from-file") from exc


async def _tell(method: str, path: str, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.tell(method, path)


async def _keys(store: str, prefix: str, limit: int, home: Home, admin_url: AdminUrl) -> tuple[list[str], bool]:
    found: list[str] = []
    cursor = ""
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        while True:
            params = {"prefix": prefix, "cursor": cursor, "limit": str(min(_PAGE_KEYS, limit - len(found)))}
            page = await client.get(f"/api/kv/{segment(store)}/keys", params)
            found += page["keys"]
            cursor = page["cursor"]
            if not cursor or len(found) >= limit:
                return found, bool(cursor)


async def _value(store: str, key: str, home: Home, admin_url: AdminUrl) -> bytes:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get_bytes(f"/api/kv/{segment(store)}/value", {"key": key})


async def _set(store: str, params: dict[str, str], content: bytes, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.put_bytes(f"/api/kv/{segment(store)}/value", params, content)


async def _delete(store: str, key: str, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.tell("DELETE", f"/api/kv/{segment(store)}/value", params={"key": key})
