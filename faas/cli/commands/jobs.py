"""``faas jobs …``: asynchronous invocations, and the dead letters among them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Json, segment
from faas.cli.output import ago, print_json, print_table, visible, when
from faas.state.jobs import MAX_LISTED, JobState

jobs = typer.Typer(
    help="Look at jobs, cancel them, and try dead letters again.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Id = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]
Function = Annotated[str | None, typer.Argument(help="Only those of this function.", show_default=False)]
States = Annotated[
    list[JobState] | None,
    typer.Option("--state", help="Only those in this state; may be repeated.", show_default=False),
]


@jobs.callback(invoke_without_command=True)
def _bare(context: typer.Context, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(home=home, admin_url=admin_url, json=json)


@jobs.command("list")
def list_(
    name: Function = None,
    *,
    state: States = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LISTED, help="At most so many jobs.")] = 100,
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """List jobs, the newest first."""
    query = [*_query(name, state), ("limit", str(limit))]
    found = asyncio.run(_ask("GET", f"/api/jobs?{urlencode(query)}", home, admin_url))["jobs"]
    if json:
        print_json(found)
    elif found:
        print_table(("JOB", "FUNCTION", "FROM", "STATE", "QUEUED", "RUNS", "NEXT", "REASON"), map(_row, found))
    else:
        print("no jobs")


@jobs.command()
def show(job: Id, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """Show one job: where it is, its runs, and what came of it."""
    found = asyncio.run(_ask("GET", f"/api/jobs/{segment(job)}", home, admin_url))
    if json:
        print_json(found)
        return
    facts = [
        ("job", found["job"]),
        ("function", f"{found['function']} ({found['qualifier']})"),
        ("request", f"{found['method']} {found['target'] or '(first route)'}"),
        ("from", found["source"]),
        ("state", found["state"] + (f": {found['reason']}" if found["reason"] else "")),
        ("queued", when(found["created_at"])),
        ("tries", f"{len(found['attempts'])}, at most {found['max_attempts']} that fail"),
    ]
    if found["next_at"]:
        facts.append(("next try", _in(found["next_at"])))
    if found["finished_at"]:
        facts.append(("finished", f"{when(found['finished_at'])}, kept until {when(found['kept_until'])}"))
    if found["result"]:
        kept = "" if found["result"]["kept"] else ", not kept"
        facts.append(("result", f"{found['result']['status']}, {found['result']['n_bytes']} bytes{kept}"))
        facts.append(("result at", found["result_url"]))
    if found["callback"]:
        told = found["callback"]
        facts.append(("callback", f"{told['url']}: {told['state']}, {told['n_tries']} tries {told['reason']}".rstrip()))
    print_table(("", ""), [(name, visible(text)) for name, text in facts])
    if found["attempts"]:
        print()
        print_table(
            ("RUN", "BEGAN", "TOOK", "VERSION", "OUTCOME", "STATUS", "REASON"),
            [
                (
                    str(run["number"]),
                    when(run["began_at"]),
                    f"{run['ended_at'] - run['began_at']:.3f} s" if run["ended_at"] else "-",
                    str(run["version"] or "-"),
                    run["outcome"] or "running",
                    str(run["status"] or "-"),
                    visible(run["reason"]),
                )
                for run in found["attempts"]
            ],
        )


@jobs.command()
def cancel(job: Id, home: Home = None, admin_url: AdminUrl = None) -> None:
    """End a job: it does not run any more; if it does just now, its invocation is ended."""
    asyncio.run(_ask("POST", f"/api/jobs/{segment(job)}/cancel", home, admin_url))
    print(f"{job} is cancelled")


@jobs.command()
def redrive(
    job: Annotated[str | None, typer.Argument(help="The job's id.", show_default=False)] = None,
    *,
    all_: Annotated[
        str | None, typer.Option("--all", metavar="NAME", help="All dead letters of this function.", show_default=False)
    ] = None,
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Queue a job that is dead, expired or cancelled again, with all its tries."""
    if (job is None) == (all_ is None):
        raise typer.BadParameter("give the id of a job, or --all NAME", param_hint="JOB")
    if all_ is not None:
        done = asyncio.run(_ask("POST", f"/api/functions/{segment(all_)}/jobs/redrive", home, admin_url))
        print(f"{done['jobs']} jobs of {all_} are queued again")
        return
    asyncio.run(_ask("POST", f"/api/jobs/{segment(job or '')}/redrive", home, admin_url))
    print(f"{job} is queued again")


@jobs.command()
def purge(
    name: Function = None,
    *,
    state: States = None,
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Forget finished jobs and their results; others stay."""
    done = asyncio.run(_ask("DELETE", f"/api/jobs?{urlencode(_query(name, state))}", home, admin_url))
    print(f"{done['jobs']} jobs are forgotten")


def _query(name: str | None, states: list[JobState] | None) -> list[tuple[str, str]]:
    return [*([("function", name)] if name else []), *(("state", state.value) for state in states or ())]


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    return (
        job["job"],
        job["function"],
        job["source"],
        job["state"],
        ago(job["created_at"]),
        str(job["n_attempts"]),
        _in(job["next_at"]) if job["next_at"] else "-",
        visible(job["reason"][:80]),
    )


def _in(at: float) -> str:
    left_s = at - time.time()
    return f"in {left_s:.0f} s" if left_s > 0 else "now"


async def _ask(method: str, path: str, home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get(path) if method == "GET" else await client.send(method, path, None)
