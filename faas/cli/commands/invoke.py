"""``faas invoke``."""

from __future__ import annotations

import asyncio
import base64
import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import aiohttp
import typer

from faas.cli.client import Access, AdminClient, environ, find_host, public_access, why_no_tls
from faas.cli.options import AdminUrl, Home, pairs, segment
from faas.cli.package import example_path
from faas.errors import BadRequestError, HostUnreachableError

Target = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@ALIAS|@V]", help="Name of the function; or one alias or version of it.", show_default=False
    ),
]


def invoke(
    name: Target,
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
    run_async: Annotated[
        bool, typer.Option("--async", help="Queue it as a job, and print its id and where to ask for it.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same key with the same request is the same job.")
    ] = None,
    callback: Annotated[
        str | None, typer.Option(metavar="URL", help="Where to send word of the job when it is finished.")
    ] = None,
    home: Home = None,
    admin_url: AdminUrl = None,
) -> None:
    """Call a function over HTTP; its answer goes to stdout, and a status from 400 is exit code 1."""
    if data is not None and data_file is not None:
        raise typer.BadParameter("give --data or --data-file, not both", param_hint="--data-file")
    if path is not None and not path.startswith("/"):
        raise typer.BadParameter("a path begins with '/'", param_hint="--path")
    headers = [(key.strip(), value.strip()) for key, value in pairs(header or [], "--header", ":")]
    if run_async:
        headers.append(("Prefer", "respond-async"))
        asked = (("Idempotency-Key", idempotency_key), ("X-Faas-Callback", callback))
        headers += [(name, value) for name, value in asked if value is not None]
    elif idempotency_key is not None or callback is not None:
        raise typer.BadParameter("only jobs have one; add --async", param_hint="--idempotency-key, --callback")
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
            run_async=run_async,
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
    run_async: bool,
    home: Home,
    admin_url: AdminUrl,
) -> int:
    name, _, qualifier = name.partition("@")
    async with AdminClient(find_host(home, admin_url, environ())) as client:
        if qualifier.isdigit():
            if run_async:
                raise BadRequestError(
                    f"a job is run by what routes serve or an alias names when its turn comes; leave @{qualifier} out, "
                    f"or give it an alias: 'faas alias set {name} ALIAS={qualifier}'"
                )
            return await _invoke_version(client, name, qualifier, (method, path, headers, body), include=include)
        function = await client.get(f"/api/functions/{segment(name)}")
        base = (await client.get("/api/status"))["public_url"]
        routes = function["active"]["routes"]
        if qualifier:
            headers = [*headers, ("X-Faas-Alias", qualifier)]
            found = (await client.get(f"/api/functions/{segment(name)}/versions"))["versions"]
            routes = next((v["manifest"]["routes"] for v in found if qualifier in v["aliases"]), routes)
    plain = [route for route in routes if "{" not in route]
    usual_method, usual_path = example_path((plain or routes)[0])
    if method is None:
        method = "POST" if body is not None and usual_method == "GET" else usual_method
    access = public_access(home, base, environ())
    return await _call(access, base + (path or usual_path), method, body, headers, include=include)


async def _invoke_version(
    client: AdminClient,
    name: str,
    version: str,
    request: tuple[str | None, str | None, list[tuple[str, str]], bytes | None],
    *,
    include: bool,
) -> int:
    """Have the admin side call one version, whether or not an alias names it."""
    method, path, headers, body = request
    function = await client.get(f"/api/functions/{segment(name)}/versions/{version}")
    routes = function["manifest"]["routes"]
    usual_method, usual_path = example_path(next((route for route in routes if "{" not in route), routes[0]))
    reply = await client.send(
        "POST",
        f"/api/functions/{segment(name)}/invoke",
        {
            "qualifier": version,
            "method": method or ("POST" if body is not None and usual_method == "GET" else usual_method),
            "target": path or usual_path,
            "headers": headers,
            "body": base64.b64encode(body or b"").decode(),
        },
    )
    if include:
        print(f"HTTP/1.1 {reply['status']}", file=sys.stderr)
        for key, value in reply["headers"]:
            print(f"{key}: {value}", file=sys.stderr)
    sys.stdout.buffer.write(base64.b64decode(reply["body"]))
    sys.stdout.buffer.flush()
    return int(reply["status"])


async def _call(
    access: Access, url: str, method: str, body: bytes | None, headers: list[tuple[str, str]], *, include: bool
) -> int:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    try:
        # Bytes as they come: nothing is followed, unpacked or added that curl would not.
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.request(
                method, url, data=body, headers=headers, allow_redirects=False, ssl=access.trust()
            ) as response,
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
    except (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch) as exc:
        raise HostUnreachableError(why_no_tls(access, exc)) from exc
    except aiohttp.ClientConnectorError as exc:
        raise HostUnreachableError(f"nothing answers on {url}; 'faas status' shows the workers") from exc
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise HostUnreachableError(f"the answer of {url} broke off: {exc or type(exc).__name__}") from exc
    except ValueError as exc:
        raise BadRequestError(f"the request can't be sent: {exc}; check -H, --method and --path") from exc
