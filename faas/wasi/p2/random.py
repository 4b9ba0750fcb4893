"""``wasi:random``: every kind of randomness is the host's secure one, which is fast enough for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from faas.errors import GuestTrapError
from faas.wasi.p2.resources import ComponentFunction

MAX_RANDOM_BYTES: Final = 1 << 20


def random_bytes(guest: Any, length: int) -> bytes:
    """Return *length* secure random bytes; a GuestTrapError over MAX_RANDOM_BYTES, as the WIT has no error for it."""
    if length > MAX_RANDOM_BYTES:
        raise GuestTrapError(
            f"the guest asked for {length} random bytes at once, more than {MAX_RANDOM_BYTES}; ask for fewer at a time"
        )
    content: bytes = guest.wasi.random_bytes(length)
    return content


def random_u64(guest: Any) -> int:
    """Return 64 secure random bits."""
    return int.from_bytes(guest.wasi.random_bytes(8), "little")


def insecure_seed(guest: Any) -> tuple[int, int]:
    """Return 128 random bits, which seed a guest's hash tables."""
    return random_u64(guest), random_u64(guest)


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:random/random": {
        "get-random-bytes": ComponentFunction(random_bytes),
        "get-random-u64": ComponentFunction(random_u64),
    },
    "wasi:random/insecure": {
        "get-insecure-random-bytes": ComponentFunction(random_bytes),
        "get-insecure-random-u64": ComponentFunction(random_u64),
    },
    "wasi:random/insecure-seed": {"insecure-seed": ComponentFunction(insecure_seed)},
}
