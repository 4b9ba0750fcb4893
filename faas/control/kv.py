"""
Key-value stores as workers and operators use them: who may use which, how large keys and values are, sweeping.

Control is where all of it meets: grants are looked up here for each operation, so that a grant that was taken back is
none for any worker from that moment on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar

from faas.control.deployer import see_through
from faas.errors import BadRequestError, FaasError, KvDeniedError, KvKeyInvalidError, KvTooLargeError
from faas.log import event
from faas.state.kv import MAX_PAGE_KEYS, SWEEP_KEYS, Entry, Grant, Page, StoreSize
from faas.wire.peer import Handler

MAX_KEY_BYTES: Final = 512
MAX_TTL_S: Final = 10 * 366 * 86400.0
MAX_BATCH_KEYS: Final = 1000
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Of the values of one batch, either way: it is one message."""
SWEEP_EVERY_S: Final = 10.0

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class Store(Protocol):
    """``faas.state.kv.KvStore``, as far as this file looks."""

    async def get(self, store: str, key: str) -> Entry | None: ...
    async def exists(self, store: str, key: str) -> bool: ...
    async def get_many(self, store: str, keys: list[str], *, max_bytes: int) -> dict[str, bytes]: ...
    async def keys(self, store: str, prefix: str = "", *, after: str = "", limit: int = 100) -> Page: ...
    async def set_many(
        self, store: str, entries: Iterable[tuple[str, bytes]], *, limit_bytes: int, ttl_s: float | None = None
    ) -> None: ...
    async def delete_many(self, store: str, keys: Iterable[str]) -> int: ...
    async def increment(self, store: str, key: str, delta: int, *, limit_bytes: int) -> int: ...
    async def compare_and_set(
        self,
        store: str,
        key: str,
        expected: bytes | None,
        value: bytes,
        *,
        limit_bytes: int,
        ttl_s: float | None = None,
    ) -> bool: ...
    async def swap(self, store: str, key: str, revision: int, value: bytes, *, limit_bytes: int) -> bool: ...
    async def sweep(self) -> int: ...
    async def stores(self) -> tuple[StoreSize, ...]: ...
    async def drop(self, store: str, actor: str = "") -> int: ...
    async def grants(self) -> tuple[Grant, ...]: ...
    async def add_grant(self, store: str, function: str, *, read_only: bool, actor: str = "") -> Grant: ...
    async def remove_grant(self, store: str, function: str, actor: str = "") -> None: ...


class KvService:
    """
    The stores of one host; lives from ``start`` to ``aclose``. Thread: the control loop only.

    A function may use its own store, and those that are granted to it.
    Raises: StoreError, StateError.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_value_bytes: int,
        max_store_bytes: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._max_value_bytes = max_value_bytes
        self._max_store_bytes = max_store_bytes
        self._sleep = sleep
        self._grants: Mapping[tuple[str, str], Grant] = {}
        self._loading = asyncio.Lock()
        self._sweeping: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Go by the grants that are kept now."""
        async with self._loading:  # else what was read first could be taken last
            self._grants = {(grant.store, grant.function): grant for grant in await self._store.grants()}

    async def start(self) -> None:
        """Read the grants, and sweep from now on."""
        await self.load()
        self._sweeping = asyncio.create_task(self._sweep(), name="kv-sweep")

    async def aclose(self) -> None:
        """Stop sweeping. Safe to call more than once."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    async def _sweep(self) -> None:
        while True:
            try:
                while await self._store.sweep() == SWEEP_KEYS:
                    await self._sleep(0)
            except FaasError as exc:
                event(_logger, "kv.sweep_failed", level=logging.WARNING, reason=exc.message)
            await self._sleep(SWEEP_EVERY_S)

    # ---- what workers ask -------------------------------------------------------------------------------------------

    def handlers(self) -> dict[str, Handler]:
        """Return what answers a worker's questions, by operation; each names ``caller``, a function, and ``store``."""
        return {
            "kv.get": self._get,
            "kv.exists": self._exists,
            "kv.entry": self._entry,
            "kv.set": self._set,
            "kv.delete": self._delete,
            "kv.list": self._list,
            "kv.increment": self._increment,
            "kv.compare_and_set": self._compare_and_set,
            "kv.swap": self._swap,
            "kv.get_many": self._get_many,
            "kv.set_many": self._set_many,
            "kv.delete_many": self._delete_many,
        }

    async def _get(self, asked: dict[str, Any]) -> bytes | None:
        entry = await self._store.get(self._readable(asked), checked_key(asked["key"]))
        return None if entry is None else entry.value

    async def _exists(self, asked: dict[str, Any]) -> bool:
        return await self._store.exists(self._readable(asked), checked_key(asked["key"]))

    async def _entry(self, asked: dict[str, Any]) -> tuple[bytes | None, int]:
        """Return the value and its revision; None and 0 if there is nothing."""
        entry = await self._store.get(self._readable(asked), checked_key(asked["key"]))
        return (None, 0) if entry is None else (entry.value, entry.revision)

    async def _set(self, asked: dict[str, Any]) -> None:
        await self.set(self._writable(asked), asked["key"], asked["value"], asked.get("ttl_s"))

    async def _delete(self, asked: dict[str, Any]) -> bool:
        return await self.delete(self._writable(asked), asked["key"])

    async def _list(self, asked: dict[str, Any]) -> tuple[tuple[str, ...], str]:
        page = await self.keys(self._readable(asked), asked["prefix"], asked["cursor"], asked["limit"])
        return page.keys, page.cursor

    async def _increment(self, asked: dict[str, Any]) -> int:
        return await self._store.increment(
            self._writable(asked), checked_key(asked["key"]), asked["delta"], limit_bytes=self._max_store_bytes
        )

    async def _compare_and_set(self, asked: dict[str, Any]) -> bool:
        return await self._store.compare_and_set(
            self._writable(asked),
            checked_key(asked["key"]),
            asked["expected"],
            self._checked(asked["value"]),
            limit_bytes=self._max_store_bytes,
            ttl_s=checked_ttl(asked.get("ttl_s")),
        )

    async def _swap(self, asked: dict[str, Any]) -> bool:
        return await self._store.swap(
            self._writable(asked),
            checked_key(asked["key"]),
            asked["revision"],
            self._checked(asked["value"]),
            limit_bytes=self._max_store_bytes,
        )

    async def _get_many(self, asked: dict[str, Any]) -> dict[str, bytes]:
        keys = _checked_batch(asked["keys"])
        return await self._store.get_many(self._readable(asked), keys, max_bytes=MAX_BATCH_BYTES)

    async def _set_many(self, asked: dict[str, Any]) -> None:
        entries = [(key, self._checked(value)) for key, value in asked["entries"]]
        _checked_batch([key for key, _ in entries])
        _check_batch_bytes(value for _, value in entries)
        await self._store.set_many(self._writable(asked), entries, limit_bytes=self._max_store_bytes)

    async def _delete_many(self, asked: dict[str, Any]) -> int:
        return await self._store.delete_many(self._writable(asked), _checked_batch(asked["keys"]))

    def _readable(self, asked: dict[str, Any]) -> str:
        """Return the store, which the caller may read."""
        caller, store = asked["caller"], asked["store"]
        if caller != store and (store, caller) not in self._grants:
            raise KvDeniedError(
                f"the store of {store!r} is not granted to {caller!r}; 'faas kv grant {store} {caller}' grants it"
            )
        return str(store)

    def _writable(self, asked: dict[str, Any]) -> str:
        """Return the store, which the caller may write to."""
        store = self._readable(asked)
        grant = self._grants.get((store, asked["caller"]))
        if grant is not None and grant.read_only and store != asked["caller"]:
            raise KvDeniedError(
                f"the store of {store!r} is granted to {asked['caller']!r} to read only; 'faas kv grant {store}"
                f" {asked['caller']}' lets it write, too"
            )
        return store

    # ---- what operators ask -----------------------------------------------------------------------------------------

    async def get(self, store: str, key: str) -> Entry | None:
        """Return what is under *key*."""
        return await self._store.get(store, checked_key(key))

    async def set(self, store: str, key: str, value: bytes, ttl_s: float | None = None) -> None:
        """Keep *value*, for good or for *ttl_s*."""
        entry = (checked_key(key), self._checked(value))
        await self._store.set_many(store, (entry,), limit_bytes=self._max_store_bytes, ttl_s=checked_ttl(ttl_s))

    async def delete(self, store: str, key: str) -> bool:
        """Remove *key*; return whether it was there."""
        return await self._store.delete_many(store, (checked_key(key),)) == 1

    async def keys(self, store: str, prefix: str, cursor: str, limit: int) -> Page:
        """Return a page of keys."""
        for text, what in ((prefix, "prefix"), (cursor, "cursor")):
            if text:
                checked_key(text, what)
        if not 1 <= limit <= MAX_PAGE_KEYS:
            raise KvKeyInvalidError(f"a page has 1 to {MAX_PAGE_KEYS} keys, not {limit}; ask for the rest behind it")
        return await self._store.keys(store, prefix, after=cursor, limit=limit)

    async def stores(self) -> tuple[StoreSize, ...]:
        """Return every store that holds something."""
        return await self._store.stores()

    async def drop(self, store: str, actor: str) -> int:
        """Remove all that *store* holds; return how many keys that were."""
        n_keys = await self._store.drop(store, actor)
        event(_logger, "kv.dropped", store=store, keys=n_keys, actor=actor)
        return n_keys

    async def grants(self) -> tuple[Grant, ...]:
        """Return every grant."""
        return await self._store.grants()

    async def grant(self, store: str, function: str, *, read_only: bool, actor: str) -> Grant:
        """Let *function* use *store*; it may when this returns."""
        if store == function:
            raise BadRequestError(f"{function!r} may use its own store anyway; grant it to another function")
        change = self._store.add_grant(store, function, read_only=read_only, actor=actor)
        grant = await see_through(self._loaded(change))
        event(_logger, "kv.granted", store=store, function=function, read_only=read_only, actor=actor)
        return grant

    async def revoke(self, store: str, function: str, actor: str) -> None:
        """Let *function* use *store* no longer; it may not when this returns."""
        await see_through(self._loaded(self._store.remove_grant(store, function, actor)))
        event(_logger, "kv.revoked", store=store, function=function, actor=actor)

    async def _loaded(self, change: Coroutine[Any, Any, T]) -> T:
        """Go by what *change*, once it is made, has left, whoever still waits for it."""
        done = await change
        await self.load()
        return done

    async def forget_function(self, function: str, *, purge: bool, actor: str) -> None:
        """Go by the grants that are left: the state has forgotten those of a removed function."""
        del function, purge, actor
        await self.load()

    def _checked(self, value: bytes) -> bytes:
        if len(value) > self._max_value_bytes:
            raise KvTooLargeError(
                f"a value of {len(value)} bytes is over {self._max_value_bytes}; split it over several keys, or raise"
                " kv_max_value_bytes of the host",
                limit_bytes=self._max_value_bytes,
            )
        return value


def checked_key(key: str, what: str = "key") -> str:
    """Return *key*; raises KvKeyInvalidError if no store can have it."""
    try:
        n_bytes = len(key.encode())
    except UnicodeEncodeError:
        n_bytes = 0
    if not 0 < n_bytes <= MAX_KEY_BYTES or "\0" in key:
        raise KvKeyInvalidError(
            f"a {what} has 1 to {MAX_KEY_BYTES} bytes of UTF-8 without a NUL; this one has {n_bytes}"
            f"{', and a NUL among them' if chr(0) in key else ''}; choose another"
        )
    return key


def checked_ttl(ttl_s: float | None) -> float | None:
    """Return *ttl_s*; raises KvKeyInvalidError if it is out of its range."""
    if ttl_s is not None and not (math.isfinite(ttl_s) and 0 < ttl_s <= MAX_TTL_S):
        raise KvKeyInvalidError(
            f"a time to live is over 0 and at most {MAX_TTL_S:.0f} s, not {ttl_s:g}; leave it out to keep the value"
        )
    return ttl_s


def _checked_batch(keys: list[str]) -> list[str]:
    if len(keys) > MAX_BATCH_KEYS:
        raise KvTooLargeError(f"a batch has at most {MAX_BATCH_KEYS} keys, not {len(keys)}; make several of it")
    return [checked_key(key) for key in keys]


def _check_batch_bytes(values: Iterable[bytes]) -> None:
    n_bytes = sum(map(len, values))
    if n_bytes > MAX_BATCH_BYTES:
        raise KvTooLargeError(
            f"the values of one batch are {n_bytes} bytes together, over {MAX_BATCH_BYTES}; make several of it"
        )
