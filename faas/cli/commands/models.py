"""``faas models list``, ``add`` and ``remove``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from faas.cli.client import Access, AdminClient, environ, find_host
from faas.cli.commands.status import print_model_server
from faas.cli.options import AdminUrl, Home, Json, segment
from faas.cli.output import print_json, print_table, size, visible
from faas.control.views import ModelView

models = typer.Typer(help="List, add and remove models.", rich_markup_mode=None, pretty_exceptions_enable=False)
ModelName = Annotated[str, typer.Argument(help="Name of the model.", show_default=False)]


@models.callback(invoke_without_command=True)
def _bare(context: typer.Context, home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(home, admin_url, json)


@models.command("list")
def list_(home: Home = None, admin_url: AdminUrl = None, json: Json = False) -> None:
    """List the models, what they did since the host started, and the process that serves them."""
    found = asyncio.run(_get(home, admin_url))
    if json:
        print_json(found)
        return
    if not found["models"]:
        print("no model is registered; try: faas models add NAME PATH.gguf")
        print()
        print_model_server(found["server"])
        return
    print_table(
        (
            "NAME",
            "SIZE",
            "ARCHITECTURE",
            "CONTEXT",
            "LOADED",
            "SOURCE",
            "DIGEST",
            "PROMPT",
            "CACHED",
            "GENERATED",
            "REQUESTS",
        ),
        (_row(model) for model in found["models"]),
    )
    for model in found["models"]:
        if model["problem"]:
            print(f"{model['name']}: {visible(model['problem'])}")
    print()
    print_model_server(found["server"])


@models.command()
def add(
    name: ModelName,
    path: Annotated[Path, typer.Argument(help="A GGUF file of the host's machine.", show_default=False)],
    home: Home = None,
    admin_url: AdminUrl = None,
    json: Json = False,
) -> None:
    """Register a GGUF file under a name; it stays where it is, and can be used when this returns."""
    model = asyncio.run(_add(name, path.expanduser().absolute(), find_host(home, admin_url, environ()), quiet=json))
    if json:
        print_json(model)
        return
    print(f"{name} is registered: {model.architecture or 'a model'}, {size(model.bytes)}, sha256:{model.digest}")
    if model.problem:
        print(f"{name}: {visible(model.problem)}")
    print(f'grant it:  faas deploy PATH --model {name}    or in function.toml: [capabilities] models = ["{name}"]')


@models.command()
def remove(name: ModelName, home: Home = None, admin_url: AdminUrl = None) -> None:
    """Forget a registered model; its file stays."""
    asyncio.run(_remove(name, home, admin_url))
    print(f"{name} is removed; its file stays")


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    counters = model["counters"]
    loaded = "yes" if model["loaded"] else "no"
    return (
        model["name"],
        size(model["bytes"]),
        model["architecture"] or "-",
        str(model["n_ctx"] or model["n_ctx_train"] or "-"),
        "unusable" if model["problem"] else loaded,
        model["source"],
        model["digest"][:12] or "-",
        *(f"{counters.get(key, 0):.0f}" for key in ("prompt_tokens", "cached_tokens", "generated_tokens", "requests")),
    )


async def _get(home: Home, admin_url: AdminUrl) -> Any:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        return await client.get("/api/models")


async def _add(name: str, path: Path, access: Access, *, quiet: bool) -> ModelView:
    """Add a model; a terminal shows how much of its file is hashed, which takes long for a big one."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(f"hash {visible(path.name)}", total=_bytes_of(path))
        async with AdminClient(access) as client:
            return await client.add_model(
                segment(name), str(path), on_hashed=lambda n_bytes: progress.update(task, completed=n_bytes)
            )


def _bytes_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None  # only the host may see it, or nobody; the host says which


async def _remove(name: str, home: Home, admin_url: AdminUrl) -> None:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        await client.delete(f"/api/models/{segment(name)}")
