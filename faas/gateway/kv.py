"""The worker's end of the key-value stores: each operation is one question to control, where all of them meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from faas.guest.ports import KeyPage


class Asker(Protocol):
    """``faas.wire.peer.Peer``, as far as this file looks."""

    async def ask(self, operation: str, /, **arguments: Any) -> Any: ...


class WorkerKv:
    """
    A ``KvPort`` and a ``faas.wasi.p2.keyvalue.Port``; lives as long as its worker. Nothing is kept here.

    A write that has returned is durable, and every later read of any worker sees it. One whose answer did not come
    (PeerGoneError) may have happened or not.
    Raises: StoreError, StateError, PeerGoneError.
    """

    def __init__(self, control: Asker) -> None:
        self._ask = control.ask

    async def get(self, caller: str, store: str, key: str) -> bytes | None:
        """Return the value, None if there is none."""
        value: bytes | None = await self._ask("kv.get", caller=caller, store=store, key=key)
        return value

    async def set(self, caller: str, store: str, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Store *value*."""
        await self._ask("kv.set", caller=caller, store=store, key=key, value=value, ttl_s=ttl_s)

    async def delete(self, caller: str, store: str, key: str) -> bool:
        """Remove the key; return whether it was there."""
        return bool(await self._ask("kv.delete", caller=caller, store=store, key=key))

    async def exists(self, caller: str, store: str, key: str) -> bool:
        """Return whether there is a value."""
        return bool(await self._ask("kv.exists", caller=caller, store=store, key=key))

    async def list(self, caller: str, store: str, prefix: str, *, cursor: str = "", limit: int = 100) -> KeyPage:
        """Return a page of keys."""
        keys, after = await self._ask("kv.list", caller=caller, store=store, prefix=prefix, cursor=cursor, limit=limit)
        return KeyPage(keys, after)

    async def increment(self, caller: str, store: str, key: str, delta: int) -> int:
        """Add *delta* and return the sum."""
        return int(await self._ask("kv.increment", caller=caller, store=store, key=key, delta=delta))

    async def compare_and_set(
        self, caller: str, store: str, key: str, expected: bytes | None, value: bytes, *, ttl_s: float | None = None
    ) -> bool:
        """Store *value* if *expected* is there."""
        return bool(
            await self._ask(
                "kv.compare_and_set",
                caller=caller,
                store=store,
                key=key,
                expected=expected,
                value=value,
                ttl_s=ttl_s,
            )
        )

    async def entry(self, caller: str, store: str, key: str) -> tuple[bytes | None, int]:
        """Return the value and its revision; None and 0 if there is none."""
        value, revision = await self._ask("kv.entry", caller=caller, store=store, key=key)
        return value, revision

    async def swap(self, caller: str, store: str, key: str, revision: int, value: bytes) -> bool:
        """Store *value* if what is there still has that *revision*."""
        return bool(await self._ask("kv.swap", caller=caller, store=store, key=key, revision=revision, value=value))

    async def get_many(self, caller: str, store: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the values of those keys that are there."""
        found: dict[str, bytes] = await self._ask("kv.get_many", caller=caller, store=store, keys=keys)
        return found

    async def set_many(self, caller: str, store: str, entries: Sequence[tuple[str, bytes]]) -> None:
        """Store all of *entries* or none."""
        await self._ask("kv.set_many", caller=caller, store=store, entries=entries)

    async def delete_many(self, caller: str, store: str, keys: Sequence[str]) -> int:
        """Remove the keys, all or none; return how many were there."""
        return int(await self._ask("kv.delete_many", caller=caller, store=store, keys=keys))
