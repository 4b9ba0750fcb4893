"""
``python -m loadtest.kv``: what an operation on a key-value store takes, from a guest over HTTP and from the port.

From guests: a component that does one operation of wasi:keyvalue on each request, beside one that does none, over real
HTTP with wrk. From the port: what a worker sends, over a socket from another process, without HTTP and without guests.
At the end: is the sum of all increments that were acknowledged what is kept?
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop
from rich.table import Table

from faas.clock import SystemClock
from faas.config import HostConfig
from faas.control.kv import KvService
from faas.errors import PeerGoneError
from faas.gateway.kv import WorkerKv
from faas.state.state import open_state
from faas.testing.postgres import find_postgres, postgres_server
from faas.wire.framing import Channel
from faas.wire.peer import Answer, Ask, Cancel, Peer
from loadtest.host import FUNCTIONS, Host
from loadtest.report import console, percentile
from loadtest.wrk import WrkError, drive

AT_ONCE = 64
VALUE = b"v" * 100
_Message = Ask | Answer | Cancel
_OPERATIONS = ("get", "set", "increment", "increment of 64 keys")


@dataclass(frozen=True)
class Row:
    """One operation: alone, one after another, and with many at once."""

    operation: str
    alone_p50_ms: float
    alone_p99_ms: float
    per_s: float
    p50_ms: float
    p99_ms: float


# ---- from the port --------------------------------------------------------------------------------------------------


async def _converse(channel: Channel[_Message], peer: Peer) -> None:
    try:
        while True:
            peer.take(await channel.receive())
    except PeerGoneError:
        peer.close()


async def _control(socket: Path, folder: Path, url: str) -> None:
    """Be the control process: the stores, and one worker."""
    config = HostConfig()
    state = await open_state(url, folder / "state.db", SystemClock())
    service = KvService(state.kv, max_value_bytes=config.kv_max_value_bytes, max_store_bytes=config.kv_max_store_bytes)
    await service.start()
    done = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel: Channel[_Message] = Channel(reader, writer, _Message)
        await _converse(channel, Peer(channel.send_nowait, service.handlers()))
        await channel.aclose()
        done.set()

    server = await asyncio.start_unix_server(accept, socket)
    print("ready", flush=True)
    await done.wait()
    server.close()
    await service.aclose()
    await state.aclose()


async def _from_port(seconds: float, url: str) -> tuple[list[Row], int, int]:
    """Return the rows, the increments that were acknowledged, and what was kept of them."""
    with tempfile.TemporaryDirectory(prefix="faas-kv-") as temporary:
        folder = Path(temporary)
        socket = folder / "control.sock"
        control = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "loadtest.kv", "--control", str(socket), str(folder), url,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert control.stdout is not None
            if not await control.stdout.readline():
                raise RuntimeError("the control side did not start; its last words are above")
            reader, writer = await asyncio.open_unix_connection(socket)
            channel: Channel[_Message] = Channel(reader, writer, _Message)
            peer = Peer(channel.send_nowait, {})
            conversation = asyncio.create_task(_converse(channel, peer))
            port = WorkerKv(peer)
            await port.set("f", "f", "k", VALUE)
            n_acknowledged = 0

            async def increment(_caller: int) -> None:
                nonlocal n_acknowledged
                await port.increment("f", "f", "n", 1)
                n_acknowledged += 1

            asks: tuple[Callable[[int], Awaitable[object]], ...] = (
                lambda _caller: port.get("f", "f", "k"),
                lambda caller: port.set("f", "f", f"k{caller}", VALUE),
                increment,
                lambda caller: port.increment("f", "f", f"n{caller}", 1),
            )
            rows = [await _measured(name, ask, seconds) for name, ask in zip(_OPERATIONS, asks, strict=True)]
            kept = await port.increment("f", "f", "n", 0)
            conversation.cancel()
            await asyncio.gather(conversation, return_exceptions=True)
            await channel.aclose()
            await control.wait()
            return rows, n_acknowledged, kept
        finally:
            with contextlib.suppress(ProcessLookupError):
                control.kill()


async def _measured(operation: str, ask: Callable[[int], Awaitable[object]], seconds: float) -> Row:
    alone: list[float] = []
    until = time.perf_counter() + seconds / 2
    while time.perf_counter() < until:
        began = time.perf_counter()
        await ask(0)
        alone.append((time.perf_counter() - began) * 1000)
    together: list[float] = []
    until = (first := time.perf_counter()) + seconds

    async def caller(number: int) -> None:
        while (began := time.perf_counter()) < until:
            await ask(number)
            together.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(caller(number) for number in range(AT_ONCE)))
    per_s = len(together) / (time.perf_counter() - first)
    return Row(operation, median(alone), percentile(alone, 99), per_s, median(together), percentile(together, 99))


# ---- from guests ----------------------------------------------------------------------------------------------------


def _from_guests(seconds: int, workers: int) -> tuple[list[Row], int]:
    """Return the rows, and how many requests failed."""
    asks = (
        ("no operation", "/none"),
        ("get", "/kv?get&default&k"),
        ("set", f"/kv?set&default&k&{VALUE.decode()}"),
        ("increment", "/kv?increment&default&n&1"),
    )
    rows, n_failed = [], 0
    with (
        tempfile.TemporaryDirectory(prefix="faas-kv-") as temporary,
        Host(Path(temporary) / "home", workers=workers) as host,
    ):
        host.deploy({"name": "none"}, FUNCTIONS / "http" / "hello.wasm")
        host.deploy({"name": "kv", "capabilities": {"kv": ["default"]}}, FUNCTIONS / "http" / "kv.wasm")
        host.admin("PUT", "/api/kv/kv/value?key=k", VALUE)
        for operation, path in asks:
            alone = drive(host.public_url + path, connections=1, seconds=max(1, seconds // 2))
            together = drive(host.public_url + path, connections=AT_ONCE, seconds=seconds)
            n_failed += alone.n_failed + together.n_failed
            rows.append(
                Row(operation, alone.p50_ms, alone.p99_ms, together.requests_per_s, together.p50_ms, together.p99_ms)
            )
    return rows, n_failed


# ---- the table ------------------------------------------------------------------------------------------------------


def _show(title: str, rows: list[Row]) -> None:
    table = Table("operation", "alone, p50", "p99", f"{AT_ONCE} at once, per s", "p50", "p99", title=title)
    for row in rows:
        times = (row.alone_p50_ms, row.alone_p99_ms, row.p50_ms, row.p99_ms)
        shown = [f"{ms:.2f} ms" for ms in times]
        table.add_row(row.operation, shown[0], shown[1], f"{row.per_s:,.0f}", shown[2], shown[3])
    console().print(table)


def main() -> int:
    """Measure and print; 1 if a request failed, or an acknowledged increment was lost."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.kv", description=__doc__)
    parser.add_argument("--seconds", type=int, default=4, help="of each run with many at once")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--control", nargs=3, metavar=("SOCKET", "FOLDER", "URL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.control:
        socket, folder, url = arguments.control
        uvloop.run(_control(Path(socket), Path(folder), url))
        return 0
    fine = True
    try:
        rows, n_failed = _from_guests(arguments.seconds, arguments.workers)
    except WrkError as exc:
        print(f"from guests: not measured: {exc}", file=sys.stderr)
    else:
        _show(f"from guests over HTTP, {arguments.workers} workers", rows)
        fine = not n_failed
        print(f"requests that failed: {n_failed}")
    fine &= _port("SQLite", arguments.seconds, "")
    if find_postgres() is not None:
        with postgres_server(durable=True) as url:
            fine &= _port("PostgreSQL", arguments.seconds, url)
    return 0 if fine else 1


def _port(title: str, seconds: int, url: str) -> bool:
    rows, n_acknowledged, kept = uvloop.run(_from_port(seconds, url))
    _show(f"from the port, {title}", rows)
    print(f"increments: {n_acknowledged} acknowledged, {kept} kept")
    return n_acknowledged == kept


if __name__ == "__main__":
    sys.exit(main())
