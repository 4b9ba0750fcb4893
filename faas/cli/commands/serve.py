"""``faas serve``."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from faas import log
from faas.cli.client import Access, AdminClient, environ, find_host
from faas.cli.commands.deploy import curl_line, print_warnings, send
from faas.cli.options import Home, pairs
from faas.cli.package import Package, load_package
from faas.config import load_config
from faas.control.main import RunningHost
from faas.control.main import serve as serve_host
from faas.control.views import DeploymentView, FunctionView
from faas.errors import FaasError, FunctionNotFoundError


def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address for functions.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port for functions; 0: any.  [default: 8080]")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of the admin API.  [default: 8081]")] = None,
    admin_host: Annotated[str | None, typer.Option(help="Address of the admin API.  [default: 127.0.0.1]")] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Certificate for functions, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its private key.")] = None,
    admin_tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Certificate for the admin API.")] = None,
    admin_tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its private key.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; 0: one per processor.  [default: 0]")] = None,
    home: Home = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="URL", help="postgresql://… for state that hosts share; SQLite in the home if left out."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings; HOME/faas.toml if left out.", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Offer this GGUF file as NAME for this run; may be repeated."),
    ] = None,
    deploy: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Deploy this once the host is up; may be repeated.")
    ] = None,
) -> None:
    """Run the host until Ctrl-C or SIGTERM, then finish what is in flight."""
    flags = {
        "home": None if home is None else str(home),
        "host": host,
        "port": port,
        "admin_port": admin_port,
        "admin_host": admin_host,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "admin_tls_cert": admin_tls_cert,
        "admin_tls_key": admin_tls_key,
        "workers": workers,
        "state": state,
        "models": dict(pairs(model, "--model")) if model else None,
    }
    settings = load_config(flags, environ(), file=config)
    packages = [load_package(path) for path in deploy or []]
    log.configure(sys.stderr)

    async def ready(running: RunningHost) -> None:
        deployed = await _deploy_all(find_host(Path(running.home), running.admin_url, environ()), packages)
        _print_banner(running, deployed)

    asyncio.run(serve_host(settings, ready))


async def _deploy_all(access: Access, packages: list[Package]) -> list[DeploymentView]:
    """Deploy each of *packages*; one that is refused is named, and the host stays up for the others."""
    deployed: list[DeploymentView] = []
    for package in packages:
        try:
            view = await _serving_already(access, package) or await send(access, package, quiet=True)
            print_warnings(view)
            deployed.append(view)
        except FaasError as exc:
            print(f"error: {package.manifest.name} is not deployed: {exc.message}", file=sys.stderr, flush=True)
    return deployed


async def _serving_already(access: Access, package: Package) -> DeploymentView | None:
    """Return the serving version if it is *package* to the byte: starting a host again makes no new versions."""
    async with AdminClient(access) as client:
        try:
            raw = await client.get(f"/api/functions/{package.manifest.name}")
        except FunctionNotFoundError:
            return None
    active = msgspec.convert(raw, FunctionView).active
    bundle_digest = hashlib.sha256(package.bundle).hexdigest() if package.bundle else ""
    wanted = (hashlib.sha256(package.module.read_bytes()).hexdigest(), bundle_digest, package.manifest)
    return active if (active.wasm_digest, active.bundle_digest, active.manifest) == wanted else None


def _print_banner(running: RunningHost, deployed: list[DeploymentView]) -> None:
    lines = [
        f"functions   {running.public_url}   ({running.workers} workers)",
        f"admin API   {running.admin_url}   token in {running.token_path}",
    ]
    if running.models or running.models_problem:
        problem = f"not served now: {running.models_problem}" if running.models_problem else ""
        lines.append(f"models      {'   '.join(filter(None, (' '.join(running.models), problem)))}")
    lines += [f"deployed    {view.function} version {view.version}: {' '.join(view.urls)}" for view in deployed]
    if running.models:
        lines += [
            f"stream      curl -N {view.urls[0]} -d 'What is the capital of France?'"
            for view in deployed
            if view.function == "chat"
        ]
        lines.append(f"OpenAI API  {running.public_url}/v1   (any key; 'faas keys add NAME' makes it ask for one)")
    lines.append(f"try         {curl_line(deployed[0]) if deployed else f'curl {running.public_url}/_faas/health'}")
    print("\n".join(lines), flush=True)
