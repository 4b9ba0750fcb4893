"""``faas deploy``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from faas.cli.client import Access, AdminClient, environ, find_host
from faas.cli.commands.canary import DEFAULT_STEPS, Interval, MaxErrorRate, MaxP99, MinRequests, Steps, plan_of
from faas.cli.commands.traffic import Sticky
from faas.cli.options import AdminUrl, Home, Json, pairs
from faas.cli.output import print_json, visible
from faas.cli.package import Package, example_path, load_package
from faas.control.views import DeploymentView


def deploy(
    path: Annotated[Path, typer.Argument(help="A .wasm, or a folder with function.toml.", show_default=False)],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the function.", show_default=False)] = None,
    route: Annotated[
        list[str] | None, typer.Option(metavar="'[METHOD ]/PATH'", help="Answer here instead; may be repeated.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="An environment variable.")] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A model the function may use.")] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="ALIAS", help="Only who asks for this alias gets it.", show_default=False)
    ] = None,
    no_traffic: Annotated[bool, typer.Option("--no-traffic", help="Nobody gets it yet.")] = False,
    canary: Annotated[
        bool, typer.Option("--canary", help="Its part of the requests grows by the steps below, or it goes back.")
    ] = False,
    steps: Steps = DEFAULT_STEPS,
    interval: Interval = "30s",
    max_error_rate: MaxErrorRate = "5%",
    max_p99: MaxP99 = "",
    min_requests: MinRequests = 50,
    sticky: Sticky = None,
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """Deploy a function; when this returns, every worker serves it."""
    if (alias is not None) + no_traffic + canary > 1:
        raise typer.BadParameter("give one of --alias, --no-traffic and --canary", param_hint="--alias")
    placement = {"alias": alias} if alias is not None else {"traffic": "none"} if no_traffic else {}
    if canary:
        plan = plan_of(steps, interval, max_error_rate, max_p99, min_requests)
        placement = {"canary": msgspec.json.encode(plan).decode(), "sticky": sticky or ""}
    package = load_package(path, name=name, routes=route or (), env=dict(pairs(env or [], "--env")), models=model or ())
    access = find_host(home, admin_url, environ())
    deployment = asyncio.run(send(access, package, quiet=json, placement=placement))
    if not json:
        print_warnings(deployment)
    if json:
        print_json(deployment)
    elif placement:
        print(f"{deployment.function} version {deployment.version} ({deployment.kind.value}) is deployed")
        print(f"see:  faas traffic {deployment.function}")
    else:
        print_deployed(deployment)


async def send(
    access: Access, package: Package, *, quiet: bool, placement: Mapping[str, str] | None = None
) -> DeploymentView:
    """Deploy *package*, showing on stderr how far it is unless *quiet*; *placement* says who gets it."""
    console = Console(stderr=True, quiet=quiet, highlight=False)
    module_bytes = package.module.stat().st_size
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    steps = _Steps(console)
    # Without a terminal there is no bar to move: each step is one line, and no more.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"upload {package.manifest.name}", total=module_bytes)

        def stage(entered: str) -> None:
            if entered == "upload":
                return
            progress.update(task, visible=False)
            steps.enter(entered)

        async with AdminClient(access) as client:
            done = await client.deploy(
                package.manifest,
                package.module,
                package.bundle,
                on_sent=lambda n_bytes: progress.update(task, advance=n_bytes),
                on_stage=stage,
                placement=placement,
            )
        steps.enter("")
    return done.deployment


def print_warnings(deployment: DeploymentView) -> None:
    """Say on stderr what the function names and the host has not."""
    for warning in deployment.warnings:
        print(f"warning: {visible(warning)}", file=sys.stderr, flush=True)


def print_deployed(deployment: DeploymentView) -> None:
    """Say where the function answers, and how to try it."""
    print(f"{deployment.function} version {deployment.version} ({deployment.kind.value}) serves:")
    for url in deployment.urls:
        print(f"  {url}")
    print(f"try:  {curl_line(deployment)}")


def curl_line(deployment: DeploymentView) -> str:
    """Return a command that calls the function's first route."""
    method, path = example_path(deployment.routes[0])
    own = deployment.urls[0]
    base = "/".join(own.split("/", 3)[:3])
    return f"curl {base}{path}" if method == "GET" else f"curl -X {method} {base}{path}"


class _Steps:
    """Prints each stage with the time it took, once the next one begins."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._current = ""
        self._began = 0.0

    def enter(self, stage: str) -> None:
        now = time.monotonic()
        if self._current:
            self._console.print(f"[green]✓[/green] {self._current} [dim]{(now - self._began) * 1000:.0f} ms[/dim]")
        self._current, self._began = stage, now
