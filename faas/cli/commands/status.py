"""``faas status``."""

from __future__ import annotations

import asyncio
from typing import Any

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Json
from faas.cli.output import print_json, print_table, size, visible


def status(home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """Show the host, its workers and its model server."""
    found = asyncio.run(_status(home, admin_url))
    if json:
        print_json(found)
        return
    print_table(
        ("", ""),
        (
            ("version", found["version"]),
            ("pid", str(found["pid"])),
            ("up", f"{found['uptime_s']:.0f} s"),
            ("home", found["home"]),
            ("functions at", found["public_url"]),
            ("admin at", found["admin_url"]),
            ("functions", str(found["functions"])),
            ("table", str(found["generation"])),
        ),
    )
    print()
    print_table(
        ("WORKER", "PID", "STATE", "RESTARTS", "TABLE", "ACTIVE", "QUEUED"),
        (
            (
                str(worker["worker"]),
                str(worker["pid"] or "-"),
                worker["state"],
                str(worker["restarts"]),
                str(worker["generation"]),
                f"{worker['gauges'].get('active', 0):.0f}",
                f"{worker['gauges'].get('queued', 0):.0f}",
            )
            for worker in found["workers"]
        ),
    )
    print()
    print_model_server(found["model_server"])


def print_model_server(server: dict[str, Any]) -> None:
    """Print one line about the process that serves models, and why it does not when it doesn't."""
    print_table(
        ("MODEL SERVER", "PID", "RESTARTS", "LOADED", "MEMORY", "BACKEND"),
        (
            (
                server["state"],
                str(server["pid"] or "-"),
                str(server["restarts"]),
                str(server["models_loaded"]),
                size(server["rss_bytes"]) if server["rss_bytes"] else "-",
                server["backend"] or "-",
            ),
        ),
    )
    if server["reason"]:
        print(f"{server['state']}: {visible(server['reason'])}")


async def _status(home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get("/api/status")
