"""A guest memory without an engine, for tests of host functions."""

from __future__ import annotations

import struct

from faas.wasm.memory import MemoryFaultError

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class BytesMemory:
    """A GuestMemory over a bytearray."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def _check(self, ptr: int, length: int) -> None:
        if ptr + length > len(self.data):
            raise MemoryFaultError

    def read(self, ptr: int, length: int) -> bytes:
        """Return a copy of *length* bytes at *ptr*."""
        self._check(ptr, length)
        return bytes(self.data[ptr : ptr + length])

    def write(self, ptr: int, payload: bytes) -> None:
        """Copy *payload* to *ptr*."""
        self._check(ptr, len(payload))
        self.data[ptr : ptr + len(payload)] = payload

    def read_u32(self, ptr: int) -> int:
        """Return the u32 at *ptr*."""
        self._check(ptr, 4)
        value: int = _U32.unpack_from(self.data, ptr)[0]
        return value

    def read_u32s(self, ptr: int, count: int) -> tuple[int, ...]:
        """Return *count* consecutive u32 at *ptr*."""
        self._check(ptr, 4 * count)
        return struct.unpack_from(f"<{count}I", self.data, ptr)

    def write_u32(self, ptr: int, value: int) -> None:
        """Store a u32."""
        self._check(ptr, 4)
        _U32.pack_into(self.data, ptr, value)

    def write_u64(self, ptr: int, value: int) -> None:
        """Store a u64."""
        self._check(ptr, 8)
        _U64.pack_into(self.data, ptr, value)
