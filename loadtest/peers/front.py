"""
The HTTP server in front of programs that are started for each request, CGI: aiohttp on plain asyncio.

Not on uvloop, which starts programs more slowly; for the same reason children are awaited by pidfd and not by threads.

Usage: python -m loadtest.peers.front PORT PROGRAM ARGUMENT...; ``{id}`` in an argument is a number of its own for each
request.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from asyncio.subprocess import DEVNULL, PIPE

from aiohttp import web

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "GATEWAY_INTERFACE": "CGI/1.1"}


def answer(output: bytes) -> tuple[dict[str, str], bytes]:
    """Split a CGI program's output into headers and body; raises ValueError if there is no blank line."""
    head, blank, body = output.partition(b"\n\n")
    if not blank:
        raise ValueError("no blank line after the headers")
    headers = {}
    for line in head.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        headers[name.strip()] = value.strip()
    return headers, body


def application(program: list[str]) -> web.Application:
    """Return the server; it has no state but a counter."""
    numbers = itertools.count()

    async def handle(request: web.Request) -> web.Response:
        number = str(next(numbers))
        process = await asyncio.create_subprocess_exec(
            *(part.replace("{id}", number) for part in program),
            stdin=DEVNULL,
            stdout=PIPE,
            env={**_ENVIRONMENT, "REQUEST_METHOD": request.method, "QUERY_STRING": request.query_string},
        )
        output, _ = await process.communicate()
        try:
            headers, body = answer(output)
        except ValueError as exc:
            return web.Response(status=502, text=f"exit status {process.returncode}, {exc}")
        return web.Response(body=body, headers=headers)

    app = web.Application()
    app.router.add_get("/", handle)
    return app


def main() -> None:
    """Serve until SIGTERM."""
    port, *program = sys.argv[1:]
    loop = asyncio.new_event_loop()
    if sys.version_info < (3, 12):  # from then on asyncio chooses it by itself
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(loop)
        asyncio.set_child_watcher(watcher)
    web.run_app(application(program), host="127.0.0.1", port=int(port), access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
