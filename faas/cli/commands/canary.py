"""``faas canary start``, ``status``, ``promote`` and ``abort``."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any

import typer

from faas.cli.commands.traffic import Sticky, call
from faas.cli.options import AdminUrl, Home, Json, Name, segment
from faas.cli.output import ago, print_json, print_table
from faas.state.base import CanaryPlan

canary = typer.Typer(
    help="Try a version on a growing part of the requests.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Alias = Annotated[str, typer.Option("--alias", metavar="ALIAS", help="Whose requests.")]
Steps = Annotated[str, typer.Option(metavar="P,P,...", help="Percents, one after another.")]
Interval = Annotated[str, typer.Option(metavar="DURATION", help="How long a step lasts at least.")]
MaxErrorRate = Annotated[str, typer.Option(metavar="P%", help="More failures, and it goes back.")]
MaxP99 = Annotated[
    str,
    typer.Option("--max-p99-ms", metavar="MS|Nx", help="A longer p99, or N times the old version's, and it goes back."),
]
MinRequests = Annotated[int, typer.Option(metavar="N", min=1, help="So many before a step is judged good.")]

DEFAULT_STEPS = ",".join(f"{step:g}" for step in CanaryPlan().steps)


def plan_of(steps: str, interval: str, max_error_rate: str, max_p99: str, min_requests: int) -> CanaryPlan:
    """Return the plan that the options say; a usage error (exit code 2) if one can't be read."""
    ratio = max_p99.endswith("x")
    p99 = _number(max_p99.removesuffix("x").removesuffix("ms"), "--max-p99-ms") if max_p99 else 0.0
    rate = _number(max_error_rate.removesuffix("%"), "--max-error-rate")
    return CanaryPlan(
        steps=tuple(_number(step.strip().removesuffix("%"), "--steps") for step in steps.split(",")),
        interval_s=_seconds(interval, "--interval"),
        max_error_rate=rate / 100 if max_error_rate.endswith("%") else rate,
        max_p99_ms=0.0 if ratio else p99,
        max_p99_ratio=p99 if ratio else 0.0,
        min_requests=min_requests,
    )


@canary.command()
def start(
    name: Name,
    version: Annotated[int, typer.Argument(metavar="V", min=1, help="The version to try.", show_default=False)],
    *,
    alias: Alias = "live",
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
    """Send a growing part of the requests to a version; back to none by itself if it fails or is slow."""
    plan = plan_of(steps, interval, max_error_rate, max_p99, min_requests)
    wanted = {"version": version, "alias": alias, "sticky": sticky or "", "plan": plan_document(plan)}
    _show(asyncio.run(call("POST", f"/api/functions/{segment(name)}/canary", wanted, home, admin_url)), json)


@canary.command()
def status(
    name: Name, alias: Alias = "live", home: Home = None, admin_url: AdminUrl = None, json: Json = False
) -> None:
    """Show the last canary."""
    path = f"/api/functions/{segment(name)}/canary?alias={segment(alias)}"
    _show(asyncio.run(call("GET", path, None, home, admin_url)), json)


@canary.command()
def promote(
    name: Name, alias: Alias = "live", home: Home = None, admin_url: AdminUrl = None, json: Json = False
) -> None:
    """End it: the new version gets all requests."""
    path = f"/api/functions/{segment(name)}/canary/promote"
    _show(asyncio.run(call("POST", path, {"alias": alias}, home, admin_url)), json)


@canary.command()
def abort(name: Name, alias: Alias = "live", home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """End it: the old version gets all requests."""
    path = f"/api/functions/{segment(name)}/canary/abort"
    _show(asyncio.run(call("POST", path, {"alias": alias}, home, admin_url)), json)


def plan_document(plan: CanaryPlan) -> dict[str, Any]:
    """Return *plan* as the API takes it."""
    return {field: getattr(plan, field) for field in plan.__struct_fields__}


def _show(view: dict[str, Any], json: bool) -> None:
    if json:
        print_json(view)
        return
    found = view["canary"]
    plan = found["plan"]
    rows = [
        ("canary", f"version {found['other']} beside {found['version']}, alias {found['alias']}"),
        ("phase", found["phase"] + (f": {found['reason']}" if found["reason"] else "")),
        ("since", ago(found["since"])),
    ]
    if found["phase"] == "running":
        step = f"{found['step'] + 1} of {len(plan['steps'])}"
        rows += [
            ("weight", f"{view['weight']:g} % (step {step}, at least {plan['interval_s']:g} s)"),
            ("new version", _did(view, "", f" of {plan['min_requests']} needed")),
            ("old version", _did(view, "old_", "")),
            ("limits", _limits(plan)),
        ]
    print_table(("", ""), rows)


def _did(view: dict[str, Any], prefix: str, more: str) -> str:
    requests, failures = view[f"{prefix}requests"], view[f"{prefix}failures"]
    part = f" ({failures / requests:.1%})" if requests else ""
    return f"{requests} requests{more}, {failures} failed{part}, p99 {view[f'{prefix}p99_ms']:.1f} ms"


def _limits(plan: dict[str, Any]) -> str:
    limits = [f"{plan['max_error_rate']:.1%} may fail"]
    if plan["max_p99_ms"]:
        limits.append(f"p99 {plan['max_p99_ms']:g} ms")
    if plan["max_p99_ratio"]:
        limits.append(f"p99 {plan['max_p99_ratio']:g} times the old version's")
    return ", ".join(limits)


def _number(text: str, option: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise typer.BadParameter(f"{text!r} is no number from 0 on", param_hint=option)
    return number


def _seconds(text: str, option: str) -> float:
    """Return the seconds that *text* says, such as ``30s``, ``5m`` or a plain number."""
    for unit, seconds in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        if text.endswith(unit):
            return _number(text.removesuffix(unit), option) * seconds
    return _number(text, option)
