"""
The model server process: reads its settings from stdin, serves on a unix socket, ends with the control process.

Started as ``python -m faas.modelserver.main`` with one JSON document on stdin (``ServerSettings``). It is ready when a
client gets its ``ServerHello``. It ends (exit code 0) on SIGTERM, when the connection of the client named ``control``
has been there and closed, or when its parent process is gone.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import uvloop
from msgspec import Meta

from faas.clock import SystemClock
from faas.errors import FaasError
from faas.log import configure, event
from faas.modelserver.backends.base import LoadOptions, OpenBackend
from faas.modelserver.owner import Outgoing, Owner
from faas.modelserver.residency import Residency
from faas.modelserver.server import STATS_INTERVAL_S, HandOver, ModelServer
from faas.wire.models import ModelStats

EXIT_NO_BACKEND = 3
"""The model library is not installed: starting again will not help."""
_BACKENDS = {"llama": "faas.modelserver.backends.llama", "fake": "faas.testing.fake_backend"}

_log = logging.getLogger("faas.modelserver.main")  # not __name__: the module runs as __main__


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the process that starts the model server tells it."""

    socket: str
    token: str
    models: dict[str, str]
    digests: dict[str, str] = {}
    """SHA-256 of the model files, where known; the others are computed when they are loaded."""
    budget_bytes: Annotated[int, Meta(ge=0, description="memory of all models together; 0: no limit")] = 0
    threads: Annotated[int, Meta(ge=0, description="0: one per processor")] = 0
    n_ctx: Annotated[int, Meta(ge=0, description="tokens per sequence; 0: what the model was trained with")] = 4096
    n_slots: Annotated[int, Meta(ge=1, le=256, description="generations that decode at once, per model")] = 16
    n_cells: Annotated[int, Meta(ge=0, description="KV cells per model; 0: the larger of n_ctx and 512 a slot")] = 0
    saved_bytes: Annotated[int, Meta(ge=0, description="memory per model for prefixes besides the cells")] = 256 << 20
    gpu_layers: Annotated[int, Meta(ge=-1, description="-1: all, where the library can")] = -1
    backend: Literal["llama", "fake"] = "llama"
    log_level: Literal["debug", "info", "warning"] = "info"


async def serve(settings: ServerSettings, parent: int) -> None:
    """
    Serve until told to stop.

    Raises: ModelsMissingError.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal's ^C is for the control process
    open_backend: OpenBackend = importlib.import_module(_BACKENDS[settings.backend]).open_backend
    backend = open_backend()
    residency = Residency(
        {name: Path(path) for name, path in settings.models.items()}, settings.digests, settings.budget_bytes
    )
    options = LoadOptions(
        n_ctx=settings.n_ctx,
        n_slots=settings.n_slots,
        n_cells=settings.n_cells,
        threads=settings.threads,
        gpu_layers=settings.gpu_layers,
        saved_bytes=settings.saved_bytes,
    )

    def publish(stats: ModelStats) -> None:
        loop.call_soon_threadsafe(server.publish, stats)

    def deliver(outgoing: list[Outgoing]) -> None:
        server.deliver(outgoing)

    owner = Owner(backend, options, residency, SystemClock(), HandOver(loop, deliver))
    server = ModelServer(owner, token=settings.token, backend=backend.name, build=backend.build, commit=backend.commit)
    owner.start()
    await server.listen(Path(settings.socket))
    event(
        _log,
        "modelserver.ready",
        pid=os.getpid(),
        backend=backend.name,
        build=backend.build,
        commit=backend.commit,
        models=len(settings.models),
    )

    watch = asyncio.create_task(_watch(parent, server, owner, stop, publish))
    gone = asyncio.create_task(server.control_gone.wait())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([watch, gone, stopped], return_when=asyncio.FIRST_COMPLETED)
    reason = "told to" if stopped.done() else "control is gone"
    for task in (watch, gone, stopped):
        task.cancel()
    await asyncio.get_running_loop().run_in_executor(None, owner.stop)
    await asyncio.sleep(0)  # the last finals were handed over with call_soon
    await server.aclose()
    event(_log, "modelserver.stopped", reason=reason)


async def _watch(
    parent: int, server: ModelServer, owner: Owner, stop: asyncio.Event, publish: Callable[[ModelStats], None]
) -> None:
    """Send the counters about once a second; stop when the parent process is gone."""
    while True:
        await asyncio.sleep(STATS_INTERVAL_S)
        if os.getppid() != parent:
            stop.set()
        if server.has_control:
            owner.stats(publish)


def main() -> int:
    """Read the settings from stdin and serve; return the exit code."""
    parent = os.getppid()  # before anything that takes time: a parent that dies meanwhile must be missed
    handler = configure(sys.stderr)
    try:
        settings = msgspec.json.decode(sys.stdin.buffer.read(), type=ServerSettings)
    except msgspec.DecodeError as exc:
        event(_log, "modelserver.settings_invalid", level=logging.ERROR, reason=str(exc))
        return 2
    logging.getLogger("faas").setLevel(settings.log_level.upper())
    try:
        uvloop.run(serve(settings, parent))
    except FaasError as exc:
        event(_log, "modelserver.refused", level=logging.ERROR, code=exc.code, reason=exc.message)
        return EXIT_NO_BACKEND
    finally:
        handler.flush()
    return 0


if __name__ == "__main__":
    code = main()
    # A loader thread may still be inside the library; nothing of it is worth waiting for.
    os._exit(code)
