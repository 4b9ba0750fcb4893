"""Log lines of functions: appended to one file each, rotated by size, tailed and followed."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from faas.clock import Clock
from faas.log import event

KEPT_FILES = 2
"""How many full files stay beside the one being written."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?")
_MAX_OPEN_FILES = 64
_MAX_PENDING_BLOBS = 256
_READ_BYTES = 64 * 1024

_logger = logging.getLogger(__name__)


class Follower:
    """One reader of new lines; lives until it is closed, or until it is so slow that it is dropped."""

    def __init__(self, function: str, max_pending: int) -> None:
        """Use ``FunctionLogs.follow``."""
        self.function = function
        self._pending: asyncio.Queue[bytes | None] = asyncio.Queue(max_pending + 1)
        self._max_pending = max_pending
        self._ended = False
        self.too_slow = False

    def offer(self, blob: bytes) -> bool:
        """Queue *blob*; False if the reader is too far behind and was therefore given up."""
        if self._ended:
            return False
        if self._pending.qsize() >= self._max_pending:
            self.too_slow = True
            self.end()
            return False
        self._pending.put_nowait(blob)
        return True

    def end(self) -> None:
        """Let the reader stop once it has read what is queued."""
        if not self._ended:
            self._ended = True
            self._pending.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (blob := await self._pending.get()) is not None:
            yield blob


class Snapshot:
    """One function's files as they were at one moment; lives until ``last_lines`` returns, so call that once."""

    def __init__(self, files: list[tuple[BinaryIO, int]]) -> None:
        """Use ``FunctionLogs.snapshot``. Args: *files* are open, newest first, each with the size that counts."""
        self._files = files

    async def last_lines(self, n_lines: int) -> list[bytes]:
        """Return the last *n_lines* lines, oldest first, each with its newline; read in a thread, from the end."""
        try:
            return await asyncio.to_thread(self._read, n_lines)
        finally:
            for file, _ in self._files:
                file.close()

    def _read(self, n_lines: int) -> list[bytes]:
        lines: list[bytes] = []
        for file, size in self._files:
            if len(lines) >= n_lines:
                break
            lines = [*_last_lines(file, size, n_lines - len(lines)), *lines]
        return lines


class FunctionLogs:
    """
    The log files ``DIR/NAME.jsonl`` of all functions; lives as long as the host.

    Thread: the control loop only. Appends go to the page cache, so they are done inline.
    """

    def __init__(self, folder: Path, rotate_bytes: int, clock: Clock, max_pending: int = _MAX_PENDING_BLOBS) -> None:
        """Args: *rotate_bytes* is the size at which a file is set aside; *max_pending* blobs may wait per follower."""
        self._folder = folder
        self._rotate_bytes = rotate_bytes
        self._clock = clock
        self._max_pending = max_pending
        self._open: OrderedDict[str, tuple[int, int]] = OrderedDict()  # name → (descriptor, bytes written)
        self._followers: set[Follower] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def append(self, function: str, blob: bytes) -> None:
        """Write *blob* (whole lines) to *function*'s file and hand it to its followers; a full disk loses lines."""
        if not blob or not _NAME.fullmatch(function):
            return
        try:
            self._write(function, blob)
        except OSError as exc:
            event(_logger, "log.write_failed", level=logging.ERROR, function=function, reason=exc.strerror)
        for follower in [f for f in self._followers if f.function == function]:
            if not follower.offer(blob):
                self._followers.discard(follower)

    def snapshot(self, function: str) -> Snapshot:
        """Return what is written of *function* right now: what comes later, a rotation too, does not change it."""
        files: list[tuple[BinaryIO, int]] = []
        if _NAME.fullmatch(function):
            for path in self._files(function):
                with suppress(FileNotFoundError):
                    file = path.open("rb")
                    files.append((file, file.seek(0, os.SEEK_END)))
        return Snapshot(files)

    def follow(self, function: str) -> Follower:
        """Return a reader of every line that is appended from now on; ``unfollow`` it."""
        follower = Follower(function, self._max_pending)
        self._followers.add(follower)
        return follower

    def unfollow(self, follower: Follower) -> None:
        """Forget *follower*."""
        follower.end()
        self._followers.discard(follower)

    def dropped_note(self, function: str) -> bytes:
        """Return the line that tells a reader that it was too slow and lines are missing from here on."""
        note = {
            "ts": self._clock.time_ns() / 1e9,
            "function": function,
            "stream": "event",
            "event": "logs.dropped",
            "text": "this reader was too slow and was dropped; the file has every line",
        }
        return json.dumps(note, separators=(",", ":")).encode() + b"\n"

    def known(self, function: str) -> bool:
        """Return whether *function* ever logged something that is still kept."""
        return bool(_NAME.fullmatch(function)) and self._files(function)[0].exists()

    def end_followers(self) -> None:
        """Let every follower stop once it has read what is queued."""
        for follower in tuple(self._followers):
            self.unfollow(follower)

    def close(self) -> None:
        """Close the files and end every follower."""
        self.end_followers()
        while self._open:
            os.close(self._open.popitem()[1][0])

    def _files(self, function: str) -> list[Path]:
        """Newest first."""
        current = self._folder / f"{function}.jsonl"
        return [current, *(current.with_name(f"{current.name}.{i}") for i in range(1, KEPT_FILES + 1))]

    def _write(self, function: str, blob: bytes) -> None:
        descriptor, size = self._descriptor(function)
        if size and size + len(blob) > self._rotate_bytes:
            self._rotate(function)
            descriptor, size = self._descriptor(function)
        view = memoryview(blob)
        while view:
            view = view[os.write(descriptor, view) :]
        self._open[function] = (descriptor, size + len(blob))

    def _descriptor(self, function: str) -> tuple[int, int]:
        if function in self._open:
            self._open.move_to_end(function)
            return self._open[function]
        descriptor = os.open(self._files(function)[0], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._open[function] = (descriptor, os.fstat(descriptor).st_size)
        if len(self._open) > _MAX_OPEN_FILES:
            os.close(self._open.popitem(last=False)[1][0])
        return self._open[function]

    def _rotate(self, function: str) -> None:
        os.close(self._open.pop(function)[0])
        files = self._files(function)
        for newer, older in reversed(list(itertools.pairwise(files))):
            if newer.exists():
                newer.replace(older)


def _last_lines(file: BinaryIO, size: int, n_lines: int) -> list[bytes]:
    """Read the first *size* bytes of *file* backwards until *n_lines* are found; a last line may lack its newline."""
    blocks: list[bytes] = []
    n_newlines = 0
    while size and n_newlines <= n_lines:
        step = min(_READ_BYTES, size)
        size -= step
        file.seek(size)
        blocks.append(file.read(step))
        n_newlines += blocks[-1].count(b"\n")
    return b"".join(reversed(blocks)).splitlines(keepends=True)[-n_lines:]
