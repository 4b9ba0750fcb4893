"""A guest's linear memory as the host may touch it: every access is bounds-checked, nothing is ever aliased out."""

from __future__ import annotations

from typing import Protocol


class MemoryFaultError(Exception):
    """A guest-supplied range is not inside the guest's memory; host functions answer it with their own errno."""


class GuestMemory(Protocol):
    """
    Reads and writes of one instance's memory; valid only during a host call of that instance.

    Raises (each method): MemoryFaultError when the range is not wholly inside; then nothing was written.
    All integers are little-endian; pointers are unsigned 32-bit byte offsets, no alignment is demanded.
    """

    def read(self, ptr: int, length: int) -> bytes:
        """Return a copy of *length* bytes at *ptr*."""

    def write(self, ptr: int, payload: bytes) -> None:
        """Copy *payload* to *ptr*."""

    def read_u32(self, ptr: int) -> int:
        """Return the u32 at *ptr*."""

    def read_u32s(self, ptr: int, count: int) -> tuple[int, ...]:
        """Return *count* consecutive u32 at *ptr* (an iovec array is 2 per entry)."""

    def write_u32(self, ptr: int, value: int) -> None:
        """Store a u32."""

    def write_u64(self, ptr: int, value: int) -> None:
        """Store a u64."""
