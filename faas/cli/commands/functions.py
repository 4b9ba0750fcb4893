"""``faas list``, ``inspect``, ``versions`` and ``remove``."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Json, Name, Version
from faas.cli.output import ago, print_json, print_table, size, when
from faas.manifest import Limits


def list_(home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the functions that serve."""
    found = asyncio.run(_get("/api/functions", home, admin_url))
    if json:
        print_json(found["functions"])
        return
    if not found["functions"]:
        print("no function is deployed; try: faas deploy PATH")
        return
    print_table(
        ("NAME", "VERSION", "KIND", "DEPLOYED", "CALLS", "ROUTES"),
        (
            (
                function["name"],
                str(function["version"]),
                function["kind"],
                ago(function["created_at"]),
                f"{function['counters'].get('invocations', 0):.0f}",
                ", ".join(function["routes"]),
            )
            for function in found["functions"]
        ),
    )


def inspect(
    name: Name, version: Version = None, home: Home = None, admin_url: AdminUrl = None, json: Json = False
) -> None:
    """Show one function: version, routes, limits, sizes, counters."""
    path = f"/api/functions/{name}" + (f"/versions/{version}" if version is not None else "")
    function = asyncio.run(_get(path, home, admin_url))
    if json:
        print_json(function)
        return
    if version is not None:
        served = [f"{alias} {weight:g} %" for alias, weight in function["aliases"].items()]
        warnings = [] if served else ["no alias names it, so it gets no requests"]
        function |= {"name": name, "counters": {}, "active": {**function, "urls": served, "warnings": warnings}}
    active = function["active"]
    manifest = active["manifest"]
    counters = function["counters"]
    limits = msgspec.to_builtins(msgspec.convert(manifest.get("limits", {}), _AllLimits))
    rows = [
        ("name", function["name"]),
        ("version", f"{active['version']} ({when(active['created_at'])})"),
        ("kind", active["kind"]),
        *((("url" if version is None else "gets") if i == 0 else "", url) for i, url in enumerate(active["urls"])),
        ("digest", f"sha256:{active['wasm_digest']}"),
        ("module", size(function["wasm_bytes"])),
        ("native code", size(function["artifact_bytes"]) if function["artifact_bytes"] else "missing"),
    ]
    if active["bundle_digest"]:
        rows.append(("files", size(function["bundle_bytes"])))
    rows += [
        (f"limit {key}", f"{value:g}" if isinstance(value, float) else str(value)) for key, value in limits.items()
    ]
    rows += [(f"env {key}", value) for key, value in sorted(manifest.get("env", {}).items())]
    rows += [("warning", warning) for warning in active["warnings"]]
    rows += [("model", model) for model in manifest.get("capabilities", {}).get("models", ())]
    capabilities = manifest.get("capabilities", {})
    rows += [("outbound", entry) for entry in capabilities.get("outbound", ())]
    rows += [("credential", f"{entry['secret']} for {entry['host']}") for entry in capabilities.get("credentials", ())]
    rows += [("store", store) for store in capabilities.get("kv", ())]
    rows += [("calls", function) for function in capabilities.get("calls", ())]
    rows += [("secret", secret) for secret in capabilities.get("secrets", ())]
    rows += [(f"count {key}", f"{value:g}") for key, value in sorted(counters.items())]
    print_table(("", ""), rows)


def versions(name: Name, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the versions of a function, newest first."""
    found = asyncio.run(_get(f"/api/functions/{name}/versions", home, admin_url))
    if json:
        print_json(found["versions"])
        return
    print_table(
        ("VERSION", "SERVES", "KIND", "DEPLOYED", "DIGEST"),
        (
            (
                str(version["version"]),
                ", ".join(f"{alias} {weight:g} %" for alias, weight in version["aliases"].items()),
                version["kind"],
                when(version["created_at"]),
                version["wasm_digest"][:12],
            )
            for version in found["versions"]
        ),
    )


def remove(
    name: Name,
    version: Version = None,
    purge: Annotated[bool, typer.Option("--purge", help="What its key-value store holds, too.")] = False,
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """
    Remove a function with its versions, config values and secrets; what its store holds stays, without --purge.

    With --version: that version alone, which no alias may name.
    """
    if version is not None:
        asyncio.run(_delete(f"/api/functions/{name}/versions/{version}", home, admin_url))
        print(f"{name} version {version} is removed")
        return
    asyncio.run(_delete(f"/api/functions/{name}" + ("?purge=1" if purge else ""), home, admin_url))
    print(f"{name} is removed")


class _AllLimits(Limits, frozen=True, omit_defaults=False):
    """Limits that show their defaults too."""


async def _get(path: str, home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get(path)


async def _delete(path: str, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.delete(path)
