"""What a guest's stdin, stdout and stderr are connected to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

LOG_LIMIT_LINE = b"log limit reached"
LINE_COST_BYTES = 64
MAX_WRITE_BYTES = 64 * 1024
MAX_WRITE_LINES = 256


class InputStream(Protocol):
    """
    Where a guest's stdin comes from; lives as long as the invocation.

    Thread: ``read_nowait`` runs wherever the guest does, ``wait_readable`` on the loop.
    """

    def read_nowait(self, n: int) -> bytes | None:
        """Return 1..*n* bytes, None when there is nothing yet, or ``b""`` at the end; *n* is at least 1."""

    async def wait_readable(self) -> None:
        """Return once ``read_nowait`` would not return None."""


class OutputStream(Protocol):
    """
    Where a guest's stdout or stderr goes; lives as long as the invocation.

    Thread: runs wherever the guest does, which may be a pool thread while the consumer drains on the loop.
    """

    @property
    def full(self) -> bool:
        """True: the guest should be made to yield, so that the consumer can drain."""

    def write(self, data: bytes) -> int:
        """
        Take *data*, or a shorter prefix that is not empty, and return how many bytes were taken.

        Raises: any FaasError, such as OutputLimitError; it ends the invocation, the guest never sees it.
        """


class EmptyInput:
    """An input that is at its end from the start."""

    __slots__ = ()

    def read_nowait(self, n: int) -> bytes | None:
        """Return ``b""``."""
        return b""

    async def wait_readable(self) -> None:
        """Return at once."""


class BytesInput:
    """An input whose bytes are all there from the start."""

    __slots__ = ("_content", "_position")

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def read_nowait(self, n: int) -> bytes | None:
        """Return the next bytes, at most *n*."""
        start = self._position
        chunk = self._content[start : start + n]
        self._position = start + len(chunk)
        return chunk

    async def wait_readable(self) -> None:
        """Return at once."""


class CollectingOutput:
    """An output that keeps everything in ``chunks``; unbounded, so only where the writer is trusted or limited."""

    __slots__ = ("chunks",)

    full = False

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep all of *data*."""
        self.chunks.append(data)
        return len(data)

    def getvalue(self) -> bytes:
        """Return all that was written."""
        return b"".join(self.chunks)


class DiscardedOutput:
    """An output that takes everything and keeps nothing."""

    __slots__ = ()

    full = False

    def write(self, data: bytes) -> int:
        """Take all of *data*."""
        return len(data)


class LineOutput:
    """
    An output that hands complete lines to *on_line* without their newline; a guest can neither fail nor flood it.

    A line over *max_line_bytes* arrives in pieces of that length. Past *max_bytes* in all, one last line says
    ``log limit reached`` and the rest is dropped; a line costs LINE_COST_BYTES besides its own, for what is kept with
    it. One write takes at most MAX_WRITE_BYTES and MAX_WRITE_LINES: no host call lasts. *on_line* must not raise.
    """

    __slots__ = ("_left", "_max_line_bytes", "_on_line", "_tail")

    full = False

    def __init__(self, on_line: Callable[[bytes], None], max_bytes: int, max_line_bytes: int) -> None:
        self._on_line = on_line
        self._left = max_bytes
        self._max_line_bytes = max_line_bytes
        self._tail = b""

    def write(self, data: bytes) -> int:
        """Take *data*, or as much of it as one call may, whether or not it is kept."""
        if self._left < 0:
            return len(data)
        data = data[:MAX_WRITE_BYTES]
        n_lines = data.count(b"\n")
        if n_lines > MAX_WRITE_LINES:
            data = b"\n".join(data.split(b"\n", MAX_WRITE_LINES)[:MAX_WRITE_LINES]) + b"\n"
            n_lines = MAX_WRITE_LINES
        if self._left >= 0:
            kept = data[: self._left]
            self._left -= len(data) + n_lines * LINE_COST_BYTES
            self._split(kept)
            if self._left < 0:
                self.close()
                self._on_line(LOG_LIMIT_LINE)
        return len(data)

    def close(self) -> None:
        """Hand on what follows the last newline; call it when the guest is done."""
        tail, self._tail = self._tail, b""
        if tail:
            self._on_line(tail)

    def _split(self, data: bytes) -> None:
        limit = self._max_line_bytes
        *lines, tail = (self._tail + data).split(b"\n")
        for line in lines:
            self._on_line(line[:limit])
            for start in range(limit, len(line), limit):
                self._on_line(line[start : start + limit])
        cut = max(len(tail) - 1, 0) // limit * limit
        for start in range(0, cut, limit):
            self._on_line(tail[start : start + limit])
        self._tail = tail[cut:]
