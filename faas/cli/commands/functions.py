"""``faas list``, ``inspect``, ``versions`` and ``remove``."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Json, Name
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


def inspect(name: Name, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """Show one function: version, routes, limits, sizes, counters."""
    function = asyncio.run(_get(f"/api/functions/{name}", home, admin_url))
    if json:
        print_json(function)
        return
    active = function["active"]
    manifest = active["manifest"]
    counters = function["counters"]
    limits = msgspec.to_builtins(msgspec.convert(manifest.get("limits", {}), _AllLimits))
    rows = [
        ("name", function["name"]),
        ("version", f"{active['version']} ({when(active['created_at'])})"),
        ("kind", active["kind"]),
        *(("url" if i == 0 else "", url) for i, url in enumerate(active["urls"])),
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
    rows += [("outbound", entry) for entry in manifest.get("capabilities", {}).get("outbound", ())]
    rows += [(f"count {key}", f"{value:g}") for key, value in sorted(counters.items())]
    print_table(("", ""), rows)


def versions(name: Name, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the versions of a function, newest first."""
    found = asyncio.run(_get(f"/api/functions/{name}/versions", home, admin_url))
    if json:
        print_json(found["versions"])
        return
    print_table(
        ("VERSION", "ACTIVE", "KIND", "DEPLOYED", "DIGEST"),
        (
            (
                str(version["version"]),
                "yes" if version["active"] else "",
                version["kind"],
                when(version["created_at"]),
                version["wasm_digest"][:12],
            )
            for version in found["versions"]
        ),
    )


def remove(name: Name, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Remove a function and all its versions."""
    asyncio.run(_delete(f"/api/functions/{name}", home, admin_url))
    print(f"{name} is removed")


class _AllLimits(Limits, frozen=True, omit_defaults=False):
    """Limits that show their defaults too."""


async def _get(path: str, home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get(path)


async def _delete(path: str, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.delete(path)
