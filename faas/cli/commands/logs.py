"""``faas logs``."""

from __future__ import annotations

import asyncio
import json as jsonlib
import time
from contextlib import suppress
from typing import Annotated, Any

import typer

from faas.cli.client import Access, AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Json, Name
from faas.cli.output import visible

_SHOWN_ELSEWHERE = {"ts", "function", "version", "request_id", "stream", "event", "text"}


def logs(
    name: Name,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, max=100_000, help="How many lines to begin with.")] = 100,
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """Print the log of a function."""
    with suppress(KeyboardInterrupt):  # Ctrl-C is how following ends
        asyncio.run(_logs(find_host(home, admin_url, environ()), name, follow, tail, json))


async def _logs(access: Access, name: str, follow: bool, tail: int, json: bool) -> None:
    async with AdminClient(access) as client:
        params = {"tail": str(tail), "follow": "1" if follow else "0"}
        async for line in client.lines(f"/api/functions/{name}/logs", params):
            print(line.decode(errors="replace") if json else readable(line), flush=follow)


def readable(line: bytes) -> str:
    """Return a log line as people read it; one that is no JSON as it is. Control characters are made visible."""
    try:
        entry: Any = jsonlib.loads(line)
        ts = float(entry.get("ts", 0))
        parts = [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ts)) + f".{int(ts * 1000) % 1000:03d}",
            f"v{entry.get('version', '?')}",
            str(entry.get("request_id", "-")),
        ]
        if entry.get("stream") == "event":
            parts.append(str(entry.get("event", "event")))
            parts += [f"{key}={value}" for key, value in entry.items() if key not in _SHOWN_ELSEWHERE]
        if entry.get("text"):
            parts.append(str(entry["text"]).rstrip("\n"))
    except (ValueError, AttributeError, TypeError, OverflowError):
        return visible(line.decode(errors="replace"))
    return visible(" ".join(parts))
