"""
``wasi:keyvalue``: the stores that the manifest grants, as buckets; ``default`` (or "") is the function's own.

Both drafts that guests are built for are here: 0.2.0-draft (wasmtime's) and 0.2.0-draft2 (Spin's, with compare and
swap). What they call eventually consistent is better here: a write is durable when it has returned, and every later
read of any instance sees it; a batch is done as a whole or not at all.

Source: WebAssembly/wasi-keyvalue, drafts 0.2.0-draft and 0.2.0-draft2.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from faas.errors import FaasError, InternalError
from faas.wasi.context import WasiContext
from faas.wasi.p2.poll import Waiting
from faas.wasi.p2.resources import ComponentFunction, Resource, WitError

OWN_STORE: Final = "default"
MAX_CURSORS: Final = 10_000
"""Of one invocation, which gets numbers for them in 0.2.0-draft."""
PAGE_KEYS: Final = 1000
_MAX_S64: Final = 2**63 - 1

_T = TypeVar("_T")


class Port(Protocol):
    """Where the stores are; raises FaasError: no grant, too large, full, not right now. Thread: the loop's only."""

    async def get(self, caller: str, store: str, key: str) -> bytes | None: ...
    async def set(self, caller: str, store: str, key: str, value: bytes) -> None: ...
    async def delete(self, caller: str, store: str, key: str) -> bool: ...
    async def exists(self, caller: str, store: str, key: str) -> bool: ...
    async def list(
        self, caller: str, store: str, prefix: str, *, cursor: str = "", limit: int = 100
    ) -> tuple[Sequence[str], str]: ...
    async def increment(self, caller: str, store: str, key: str, delta: int) -> int: ...
    async def entry(self, caller: str, store: str, key: str) -> tuple[bytes | None, int]: ...
    async def swap(self, caller: str, store: str, key: str, revision: int, value: bytes) -> bool: ...
    async def get_many(self, caller: str, store: str, keys: Sequence[str]) -> dict[str, bytes]: ...
    async def set_many(self, caller: str, store: str, entries: Sequence[tuple[str, bytes]]) -> None: ...
    async def delete_many(self, caller: str, store: str, keys: Sequence[str]) -> int: ...


@dataclass(slots=True)
class Granted:
    """What one invocation may use of stores and secrets; made with its instance."""

    function: str
    kv: tuple[str, ...]
    """Names of stores, as the manifest has them."""
    secrets: tuple[str, ...]
    port: Port | None
    secret: Callable[[str, str], str | None]
    """Returns a secret by function and name, None if it is not set. Thread: any."""
    cursors: list[str] = field(default_factory=list)


class StoresGuest(Protocol):
    """What these functions need of the instance that calls them."""

    @property
    def wasi(self) -> WasiContext:
        """The instance's WASI state, for its log."""

    @property
    def granted(self) -> Granted | None:
        """What it may use; None if that is nothing."""


class Bucket(Resource):
    """A store under a handle."""

    __slots__ = ("function", "granted", "port", "store")

    def __init__(self, granted: Granted, port: Port, store: str) -> None:
        super().__init__()
        self.granted = granted
        self.port = port
        self.function = granted.function
        self.store = store


class Cas(Resource):
    """
    A key as it was when its value was looked at last.

    The value itself is not kept: a guest may have many of these, and large values.
    """

    __slots__ = ("bucket", "key", "revision")

    def __init__(self, bucket: Bucket, key: str, revision: int) -> None:
        super().__init__()
        self.bucket = bucket
        self.key = key
        self.revision = revision


def _later(
    guest: StoresGuest, work: Callable[[], Awaitable[_T]], wrap: Callable[[Any], Any] = lambda error: error
) -> Awaitable[_T]:
    """Return what awaits *work*, its errors as the WIT declares them, in *wrap*."""

    async def run() -> _T:
        try:
            return await work()
        except InternalError:
            raise  # a bug of ours, not the guest's to handle
        except FaasError as error:
            raise WitError(wrap(_declared(guest, error))) from error

    return Waiting(run)


def _declared(guest: StoresGuest, error: FaasError) -> tuple[str, str | None]:
    if error.code != "kv-denied":
        return "other", error.message
    guest.wasi.warn_once(f"wasi:keyvalue: access-denied: {error.message}")  # which has no room for the reason
    return "access-denied", None


# store


def open_(guest: StoresGuest, identifier: str) -> Bucket:
    """Return a store that the manifest names."""
    granted = guest.granted
    name = identifier or OWN_STORE
    if granted is None or granted.port is None or name not in granted.kv:
        guest.wasi.warn_once(
            f"wasi:keyvalue: access-denied: the function is not granted the store {name[:64]!r}; add it to"
            " [capabilities] kv of function.toml"
        )
        raise WitError(("access-denied", None))
    return Bucket(granted, granted.port, granted.function if name == OWN_STORE else name)


def get(guest: StoresGuest, self: Bucket, key: str) -> Awaitable[bytes | None]:
    """Return the value, None if there is none."""
    return _later(guest, lambda: self.port.get(self.function, self.store, key))


def set_(guest: StoresGuest, self: Bucket, key: str, value: bytes) -> Awaitable[None]:
    """Store *value* for good."""
    return _later(guest, lambda: self.port.set(self.function, self.store, key, value))


def delete(guest: StoresGuest, self: Bucket, key: str) -> Awaitable[None]:
    """Remove the key, if it is there."""

    async def run() -> None:
        await self.port.delete(self.function, self.store, key)

    return _later(guest, run)


def exists(guest: StoresGuest, self: Bucket, key: str) -> Awaitable[bool]:
    """Return whether there is a value."""
    return _later(guest, lambda: self.port.exists(self.function, self.store, key))


def list_keys(guest: StoresGuest, self: Bucket, cursor: str | None) -> Awaitable[tuple[list[str], str | None]]:
    """Return a page of keys in the order of their bytes, and the cursor of the next one."""

    async def run() -> tuple[list[str], str | None]:
        keys, after = await self.port.list(self.function, self.store, "", cursor=cursor or "", limit=PAGE_KEYS)
        return list(keys), after or None

    return _later(guest, run)


def list_keys_numbered(guest: StoresGuest, self: Bucket, cursor: int | None) -> Awaitable[tuple[list[str], int | None]]:
    """As ``list_keys``, for guests that know cursors as numbers; these hold for the invocation."""
    known = self.granted.cursors
    if cursor is not None and cursor >= len(known):
        raise WitError(("other", f"{cursor} is no cursor that list-keys has returned here"))
    after = "" if cursor is None else known[cursor]

    async def run() -> tuple[list[str], int | None]:
        keys, following = await self.port.list(self.function, self.store, "", cursor=after, limit=PAGE_KEYS)
        if not following:
            return list(keys), None
        if len(known) >= MAX_CURSORS:
            raise WitError(("other", f"{MAX_CURSORS} cursors were given out, which is the most"))
        known.append(following)
        return list(keys), len(known) - 1

    return _later(guest, run)


# atomics


def increment(guest: StoresGuest, bucket: Bucket, key: str, delta: int) -> Awaitable[int]:
    """Add *delta* and return the sum."""
    return _later(guest, lambda: bucket.port.increment(bucket.function, bucket.store, key, delta))


def increment_unsigned(guest: StoresGuest, bucket: Bucket, key: str, delta: int) -> Awaitable[int]:
    """As ``increment``, for guests that know no negative numbers."""
    if delta > _MAX_S64:
        raise WitError(("other", f"{delta} is over what can be added at once, {_MAX_S64}"))

    async def run() -> int:
        total = await bucket.port.increment(bucket.function, bucket.store, key, delta)
        if total < 0:
            raise WitError(("other", f"the number is {total} now, and this interface knows no negative ones"))
        return total

    return _later(guest, run)


def cas_new(guest: StoresGuest, bucket: Bucket, key: str) -> Awaitable[Cas]:
    """Return the key as it is now, to be swapped later."""

    async def run() -> Cas:
        _, revision = await bucket.port.entry(bucket.function, bucket.store, key)
        return Cas(bucket, key, revision)

    return _later(guest, run)


def cas_current(guest: StoresGuest, self: Cas) -> Awaitable[bytes | None]:
    """Return the value, and swap only what is there now."""

    async def run() -> bytes | None:
        value, self.revision = await self.bucket.port.entry(self.bucket.function, self.bucket.store, self.key)
        return value

    return _later(guest, run)


def swap(guest: StoresGuest, cas: Cas, value: bytes) -> Awaitable[None]:
    """Store *value* if nobody has written since; else the error has a handle on the key as it is now."""
    bucket = cas.bucket

    async def run() -> None:
        if not await bucket.port.swap(bucket.function, bucket.store, cas.key, cas.revision, value):
            _, revision = await bucket.port.entry(bucket.function, bucket.store, cas.key)
            raise WitError(("cas-failed", Cas(bucket, cas.key, revision)))

    return _later(guest, run, lambda error: ("store-error", error))


# batch


def get_many(guest: StoresGuest, bucket: Bucket, keys: list[str]) -> Awaitable[list[tuple[str, bytes] | None]]:
    """Return the pairs of *keys* in their order, None for those that are not there."""

    async def run() -> list[tuple[str, bytes] | None]:
        found = await bucket.port.get_many(bucket.function, bucket.store, keys)
        return [(key, found[key]) if key in found else None for key in keys]

    return _later(guest, run)


def set_many(guest: StoresGuest, bucket: Bucket, key_values: list[tuple[str, bytes]]) -> Awaitable[None]:
    """Store all pairs, or none."""
    return _later(guest, lambda: bucket.port.set_many(bucket.function, bucket.store, key_values))


def delete_many(guest: StoresGuest, bucket: Bucket, keys: list[str]) -> Awaitable[None]:
    """Remove those of *keys* that are there."""

    async def run() -> None:
        await bucket.port.delete_many(bucket.function, bucket.store, keys)

    return _later(guest, run)


def _waits(call: Callable[..., Any]) -> ComponentFunction:
    return ComponentFunction(call, may_suspend=True)


_BUCKET: Final[Mapping[str, ComponentFunction]] = {
    "open": ComponentFunction(open_),
    "[method]bucket.get": _waits(get),
    "[method]bucket.set": _waits(set_),
    "[method]bucket.delete": _waits(delete),
    "[method]bucket.exists": _waits(exists),
}
_BATCH: Final[Mapping[str, ComponentFunction]] = {
    "get-many": _waits(get_many),
    "set-many": _waits(set_many),
    "delete-many": _waits(delete_many),
}

FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:keyvalue/store@0.2.0-draft2": {**_BUCKET, "[method]bucket.list-keys": _waits(list_keys)},
    "wasi:keyvalue/atomics@0.2.0-draft2": {
        "increment": _waits(increment),
        "[static]cas.new": _waits(cas_new),
        "[method]cas.current": _waits(cas_current),
        "swap": _waits(swap),
    },
    "wasi:keyvalue/batch@0.2.0-draft2": _BATCH,
    "wasi:keyvalue/store@0.2.0-draft": {**_BUCKET, "[method]bucket.list-keys": _waits(list_keys_numbered)},
    "wasi:keyvalue/atomics@0.2.0-draft": {"increment": _waits(increment_unsigned)},
    "wasi:keyvalue/batch@0.2.0-draft": _BATCH,
}
