"""``faas schedules …``: what functions do by themselves, and when."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Json, Name, segment
from faas.cli.output import print_json, print_table, when

schedules = typer.Typer(
    help="Look at schedules, pause them, and run them by hand.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Schedule = Annotated[str, typer.Argument(help="Name of the schedule in function.toml.", show_default=False)]


@schedules.callback(invoke_without_command=True)
def _bare(context: typer.Context, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(None, home, admin_url, json)


@schedules.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only those of this function.", show_default=False)] = None,
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """List schedules with their next runs and what became of the last one."""
    query = f"?{urlencode({'function': name})}" if name else ""
    found = asyncio.run(_ask("GET", f"/api/schedules{query}", home, admin_url))["schedules"]
    if json:
        print_json(found)
    elif found:
        print_table(
            ("FUNCTION", "SCHEDULE", "CRON", "ZONE", "NEXT", "LAST", "OUTCOME", "RUNS", "SKIPPED", "MISSED"),
            map(_row, found),
        )
    else:
        print("no schedules")


@schedules.command()
def pause(name: Name, schedule: Schedule, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Keep a schedule from running until it is resumed."""
    asyncio.run(_tell(name, schedule, "pause", home, admin_url))
    print(f"{schedule} of {name} is paused")


@schedules.command()
def resume(name: Name, schedule: Schedule, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Have a paused schedule run again; the times meanwhile are left out."""
    asyncio.run(_tell(name, schedule, "resume", home, admin_url))
    print(f"{schedule} of {name} runs again")


@schedules.command()
def run(name: Name, schedule: Schedule, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Queue a job of a schedule at once and print its id."""
    queued = asyncio.run(_ask("POST", f"{_path(name, schedule)}/run", home, admin_url))
    print(queued["job"])


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    if not found["enabled"]:
        following = "off"
    elif found["paused"]:
        following = "paused"
    else:
        following = "\n".join(found["next"]) or "never"
    return (
        found["function"],
        found["schedule"],
        found["cron"],
        found["timezone"],
        following,
        when(found["last_due"]) if found["last_due"] else "-",
        found["last_state"] or "-",
        str(found["n_fired"]),
        str(found["n_skipped"]),
        str(found["n_missed"]),
    )


def _path(name: str, schedule: str) -> str:
    return f"/api/functions/{segment(name)}/schedules/{segment(schedule)}"


async def _ask(method: str, path: str, home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get(path) if method == "GET" else await client.send(method, path, None)


async def _tell(name: str, schedule: str, what: str, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.tell("POST", f"{_path(name, schedule)}/{what}")
