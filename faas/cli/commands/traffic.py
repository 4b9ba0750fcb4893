"""``faas traffic``, ``rollback`` and ``audit``: which version gets which requests, and who changed that."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Json, Name, pairs, segment
from faas.cli.output import print_json, print_table, when

Sticky = Annotated[
    str | None,
    typer.Option(metavar="cookie|header:NAME", help="Keep a client on its side.", show_default=False),
]


def traffic(
    name: Name,
    weights: Annotated[
        list[str] | None, typer.Argument(metavar="[V=PERCENT]...", help="One or two versions; 100 together.")
    ] = None,
    *,
    alias: Annotated[str, typer.Option(metavar="ALIAS", help="Whose requests.")] = "live",
    sticky: Sticky = None,
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """Split requests between two versions by weight; without weights, show how they are split."""
    path = f"/api/functions/{segment(name)}/aliases"
    if not weights:
        show_aliases(asyncio.run(call("GET", path, None, home, admin_url)), json)
        return
    wanted: dict[str, object] = {"weights": weights_of(weights)}
    if sticky is not None:
        wanted["sticky"] = sticky
    view = asyncio.run(call("PUT", f"{path}/{segment(alias)}", wanted, home, admin_url))
    if json:
        print_json(view)
    else:
        print(f"{alias} of {name}: {shares_text(view['weights'])}")


def rollback(
    name: Name,
    to: Annotated[int, typer.Option(metavar="V", min=0, help="Go back to this one.", show_default=False)] = 0,
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """Have all requests answered by the version that was live before; ends a canary."""
    done = asyncio.run(call("POST", f"/api/functions/{segment(name)}/rollback", {"to": to}, home, admin_url))
    if json:
        print_json(done)
    else:
        print(f"{name} version {done['version']} is live")


def audit(
    name: Annotated[str | None, typer.Argument(help="Only about this function.", show_default=False)] = None,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many entries.")] = 100,
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """Show who changed what, newest first."""
    about = f"&function={segment(name)}" if name else ""
    entries = asyncio.run(call("GET", f"/api/audit?limit={limit}{about}", None, home, admin_url))["entries"]
    if json:
        print_json(entries)
        return
    print_table(
        ("WHEN", "WHO", "WHAT", "FUNCTION", "DETAIL"),
        (
            (when(entry["at"]), entry["actor"] or "-", entry["action"], entry["function"], _detail(entry["detail"]))
            for entry in entries
        ),
    )


def weights_of(texts: list[str]) -> dict[str, float]:
    """Return version → percent of texts such as ``3=90``; a usage error (exit code 2) if one is no such text."""
    weights: dict[str, float] = {}
    for version, percent in pairs(texts, "[V=PERCENT]..."):
        try:
            weights[str(int(version))] = float(percent.removesuffix("%"))
        except ValueError as exc:
            raise typer.BadParameter(f"'{version}={percent}' is not VERSION=PERCENT, such as 3=90") from exc
    return weights


def show_aliases(found: dict[str, Any], json: bool) -> None:
    """Print a function's aliases."""
    if json:
        print_json(found["aliases"])
        return
    print_table(
        ("ALIAS", "VERSIONS", "STICKY"),
        ((alias["alias"], shares_text(alias["weights"]), alias["sticky"] or "-") for alias in found["aliases"]),
    )


def shares_text(weights: dict[str, float]) -> str:
    """Return how requests are shared out, for people."""
    if len(weights) == 1:
        return f"version {next(iter(weights))}"
    return ", ".join(f"version {version} {weight:g} %" for version, weight in weights.items())


def _detail(detail: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in detail.items() if value not in ("", None))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{key}={_value(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "/".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


async def call(method: str, path: str, document: Any, home: Home, admin_url: AdminUrl) -> Any:
    """Return the admin API's answer."""
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await (client.get(path) if method == "GET" else client.send(method, path, document))
