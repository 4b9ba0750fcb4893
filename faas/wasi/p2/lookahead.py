"""Looking whether an input has something to say without losing what it says."""

from __future__ import annotations

import asyncio
from typing import Final

from faas.wasi.streams import InputStream

MAX_READ_BYTES: Final = 64 * 1024
"""What one read answers at most, so that no host call lasts."""


class Lookahead:
    """
    An InputStream that several handles share, such as stdin: what one of them looked at is not lost to the others.

    Thread: as InputStream.
    """

    __slots__ = ("_ahead", "_lock", "_source")

    def __init__(self, source: InputStream) -> None:
        self._source = source
        self._ahead: bytes | None = None
        self._lock = asyncio.Lock()

    def ready(self) -> bool:
        """Return whether a read has something to say."""
        if not self._ahead:
            self._ahead = self._source.read_nowait(MAX_READ_BYTES)
        return self._ahead is not None

    def read_nowait(self, n: int) -> bytes | None:
        """Return what a look has read, or read now."""
        ahead = self._ahead
        if not ahead:
            return self._source.read_nowait(n)
        self._ahead = ahead[n:] or None
        return ahead[:n]

    async def wait_readable(self) -> None:
        """Return once ``ready``; one of those who wait does so at the source, which may know only one."""
        async with self._lock:
            if not self.ready():
                await self._source.wait_readable()
