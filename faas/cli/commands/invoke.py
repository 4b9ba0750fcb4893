"""``faas invoke``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import aiohttp
import typer

from faas.cli.client import AdminClient, environ, find_host
from faas.cli.options import AdminUrl, Home, Name, pairs
from faas.cli.package import example_path
from faas.errors import BadRequestError, HostUnreachableError


def invoke(
    name: Name,
    *,
    path: Annotated[
        str | None, typer.Option(metavar="PATH", help="Path and query; the function's first route if left out.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-X", help="Default: what the route takes, POST with data.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="The request body.")] = None,
    data_file: Annotated[str | None, typer.Option(metavar="FILE", help="The request body; - is stdin.")] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="'K: V'", help="A header; may be repeated.")
    ] = None,
    include: Annotated[bool, typer.Option("--include", "-i", help="Print status and headers on stderr.")] = False,
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Call a function over HTTP; its answer goes to stdout, and a status from 400 is exit code 1."""
    if data is not None and data_file is not None:
        raise typer.BadParameter("give --data or --data-file, not both", param_hint="--data-file")
    if path is not None and not path.startswith("/"):
        raise typer.BadParameter("a path begins with '/'", param_hint="--path")
    headers = [(key.strip(), value.strip()) for key, value in pairs(header or [], "--header", ":")]
    body = None if data is None else data.encode()
    if data_file is not None:
        body = _read(data_file)
    status = asyncio.run(
        _invoke(
            name,
            path=path,
            method=method,
            body=body,
            headers=headers,
            include=include,
            home=home,
            admin_url=admin_url,
        )
    )
    raise typer.Exit(1 if status >= 400 else 0)


def _read(data_file: str) -> bytes:
    if data_file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(data_file).read_bytes()
    except OSError as exc:
        raise BadRequestError(f"can't read {data_file}: {exc.strerror}; check --data-file") from exc


async def _invoke(
    name: str,
    *,
    path: str | None,
    method: str | None,
    body: bytes | None,
    headers: list[tuple[str, str]],
    include: bool,
    home: Home,
    admin_url: AdminUrl,
) -> int:
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        function = await client.get(f"/api/functions/{name}")
        base = (await client.get("/api/status"))["public_url"]
    routes = function["active"]["routes"]
    plain = [route for route in routes if "{" not in route]
    usual_method, usual_path = example_path((plain or routes)[0])
    if method is None:
        method = "POST" if body is not None and usual_method == "GET" else usual_method
    return await _call(base + (path or usual_path), method, body, headers, include)


async def _call(url: str, method: str, body: bytes | None, headers: list[tuple[str, str]], include: bool) -> int:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    try:
        # Bytes as they come: nothing is followed, unpacked or added that curl would not.
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.request(method, url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            if include:
                print(f"HTTP/1.1 {response.status} {response.reason or ''}".rstrip(), file=sys.stderr)
                for key, value in response.headers.items():
                    print(f"{key}: {value}", file=sys.stderr)
            stdout: BinaryIO = sys.stdout.buffer
            async for chunk in response.content.iter_any():
                stdout.write(chunk)
                stdout.flush()
            return response.status
    except aiohttp.ClientConnectorError as exc:
        raise HostUnreachableError(f"nothing answers on {url}; 'faas status' shows the workers") from exc
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise HostUnreachableError(f"the answer of {url} broke off: {exc or type(exc).__name__}") from exc
    except ValueError as exc:
        raise BadRequestError(f"the request can't be sent: {exc}; check -H, --method and --path") from exc
