"""Child processes of the host: started with a settings document on stdin, waited for, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from faas.log import event

BACK_OFF_S = (0.05, 5.0)
"""First and longest pause before a dead process is replaced; it doubles in between."""
HEALTHY_S = 10.0
"""A process that lived this long begins again with the first pause."""

_logger = logging.getLogger(__name__)


class ChildProcess(Protocol):
    """A started process, as far as those who supervise it look."""

    @property
    def pid(self) -> int:
        """Return its process id."""

    async def wait(self) -> int:
        """Return its exit code, once it is gone."""

    def kill(self) -> None:
        """End it at once; ProcessLookupError if it is gone already."""


_OURS = frozenset(("FAAS_STATE",))
"""Variables that no child needs, and that may hold a password."""

Spawn = Callable[[bytes], Awaitable[ChildProcess]]
"""Starts a process and gives it the settings document on its stdin."""


async def spawn_module(module: str, settings: bytes) -> ChildProcess:
    """Start ``python -m MODULE`` in a process group of its own; it writes its complaints to our stderr."""
    return await spawn_python(("-m", module), settings)


async def spawn_python(arguments: tuple[str, ...], settings: bytes) -> ChildProcess:
    """Start this Python with *arguments*, as ``spawn_module`` does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name not in _OURS},
        stdout=2,  # stdout belongs to whoever started us; a child has nothing to say there
        # Ctrl-C in a terminal reaches only us: we end our children in order. Not a session of their own: Linux shares
        # processors between sessions (sched_autogroup), and one worker's guests held up the others for a second.
        process_group=0,
    )
    assert process.stdin is not None
    process.stdin.write(settings)
    try:
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()
    except ConnectionError:
        event(_logger, "process.died_early", level=logging.WARNING, pid=process.pid, arguments=" ".join(arguments))
    return process


async def first(exited: asyncio.Future[int], other: Coroutine[Any, Any, object], timeout_s: float | None) -> bool:
    """Wait until the process exited or *other* came true; False if neither did in time."""
    task = asyncio.ensure_future(other)
    try:
        done, _ = await asyncio.wait((exited, task), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return bool(done)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of process *pid*; 0 if it is gone, or where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0
