"""Length-prefixed msgpack frames over a stream: 4 bytes little-endian length, then one msgpack map."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Generic, TypeVar

import msgspec

from faas.errors import FrameTooLargeError, PeerGoneError, ProtocolError

MAX_FRAME_BYTES = 64 * 1024 * 1024

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
In = TypeVar("In")


def encode_frame(message: msgspec.Struct) -> bytes:
    """
    Return *message* as one frame.

    Raises: FrameTooLargeError.
    """
    payload = _encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameTooLargeError(f"a frame of {len(payload)} bytes is over the cap of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class Channel(Generic[In]):
    """One end of a conversation; lives until ``aclose`` or until the peer goes away."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, incoming: Any) -> None:
        """Args: *incoming* is the union of message classes the peer may send."""
        self._reader = reader
        self._writer = writer
        self._decode = msgspec.msgpack.Decoder(incoming).decode

    def send_nowait(self, message: msgspec.Struct) -> None:
        """
        Queue *message*; order is kept. Use for small, rare messages only, the rest goes through ``send``.

        Raises: PeerGoneError, FrameTooLargeError.
        """
        if self._writer.is_closing():
            raise PeerGoneError("the peer closed the connection")
        self._writer.write(encode_frame(message))

    async def send(self, message: msgspec.Struct) -> None:
        """
        Send *message* and wait while the peer is slow to read.

        Raises: PeerGoneError, FrameTooLargeError.
        """
        self.send_nowait(message)
        try:
            await self._writer.drain()
        except (ConnectionError, OSError) as exc:
            raise PeerGoneError("the peer closed the connection") from exc

    async def receive(self) -> In:
        """
        Return the next message.

        Raises: PeerGoneError at the end, ProtocolError, FrameTooLargeError.
        """
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME_BYTES:
                raise FrameTooLargeError(f"the peer announced a frame of {length} bytes; the cap is {MAX_FRAME_BYTES}")
            payload = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError, OSError) as exc:
            raise PeerGoneError("the peer closed the connection") from exc
        try:
            message: In = self._decode(payload)
        except (msgspec.DecodeError, ValueError, RecursionError) as exc:
            raise ProtocolError(f"the peer sent a frame that is none of its messages: {exc}") from exc
        return message

    async def aclose(self) -> None:
        """Close the connection; queued messages are still sent if the peer reads them."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except (ConnectionError, OSError):
            return  # the peer closed first: the same end
