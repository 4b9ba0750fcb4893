"""
Key-value stores: one for each function that writes to one, keys in the order of their bytes, values of any bytes.

Every operation is one transaction, and what it returned is durable. An entry whose time is over is not there for
anybody, and is taken away in small batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from faas.errors import KvConflictError, KvFullError, KvGrantNotFoundError, KvTooLargeError
from faas.state.database import Database, Row, Session
from faas.state.noting import note

CHANGED: Final = "kv"
"""The topic of grants that changed."""
SWEEP_KEYS: Final = 500
"""Expired entries that one transaction takes away."""
MAX_PAGE_KEYS: Final = 1000
_INT64: Final = range(-(2**63), 2**63)
_MAX_SWEEPS: Final = 20


class Entry(NamedTuple):
    """A value; ``revision`` is another one after each write, ``expires_at`` (Unix time) None means never."""

    value: bytes
    revision: int
    expires_at: float | None


class Page(NamedTuple):
    """Some keys in order; ``cursor`` "" says that these were the last."""

    keys: tuple[str, ...]
    cursor: str


class StoreSize(NamedTuple):
    """What a store holds; entries that expired a moment ago are still counted."""

    store: str
    keys: int
    bytes: int


class Grant(NamedTuple):
    """A function that may use another one's store."""

    store: str
    function: str
    read_only: bool
    added_at: float = 0.0


class KvStore:
    """
    Every store; ``limit_bytes`` of the operations that write is what the store may hold, keys and values together.

    Writes to one store come one after another, so its size is exact.
    Raises: StateError from every operation when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- entries ----------------------------------------------------------------------------------------------------

    async def get(self, store: str, key: str) -> Entry | None:
        """Return what is under *key*, None if there is nothing (any more)."""
        return await self._database.run(lambda session: _live(session, _find(session, store, key)))

    async def exists(self, store: str, key: str) -> bool:
        """Return whether there is something under *key*."""

        def look(session: Session) -> bool:
            rows = session.execute("SELECT expires_at FROM kv WHERE store = ? AND key = ?", store, key)
            return bool(rows) and not _is_over(session, rows[0][0])

        return await self._database.run(look)

    async def get_many(self, store: str, keys: Sequence[str], *, max_bytes: int) -> dict[str, bytes]:
        """
        Return the values of those *keys* that are there.

        Raises: KvTooLargeError, before it reads them, if they have more than *max_bytes* with their keys.
        """

        def read(session: Session) -> dict[str, bytes]:
            wanted = tuple(dict.fromkeys(keys))
            # One statement for all, so that they are of one moment; 32,766 is what SQLite takes.
            live = f"store = ? AND key IN ({', '.join('?' * len(wanted))}) AND (expires_at IS NULL OR expires_at > ?)"
            which = (store, *wanted, session.now())
            n_bytes = int(session.execute(f"SELECT COALESCE(SUM(bytes), 0) FROM kv WHERE {live}", *which)[0][0])
            if n_bytes > max_bytes:
                raise KvTooLargeError(
                    f"keys and values of one batch would be {n_bytes} bytes together, over {max_bytes}; make several"
                    " of it",
                    limit_bytes=max_bytes,
                )
            rows = session.execute(f"SELECT key, value FROM kv WHERE {live}", *which)
            return {key: bytes(value) for key, value in rows}

        return await self._database.run(read)

    async def keys(self, store: str, prefix: str = "", *, after: str = "", limit: int = 100) -> Page:
        """Return up to *limit* keys that begin with *prefix*, from behind *after*, a cursor, in the order of bytes."""

        def read(session: Session) -> Page:
            sql = "SELECT key FROM kv WHERE store = ? AND (expires_at IS NULL OR expires_at > ?) AND key >= ?"
            arguments: list[str | float] = [store, session.now(), prefix]
            end = _behind(prefix)
            if end:
                sql += " AND key < ?"
                arguments.append(end)
            if after:
                sql += " AND key > ?"
                arguments.append(after)
            rows = session.execute(f"{sql} ORDER BY key LIMIT ?", *arguments, limit + 1)
            keys = tuple(row[0] for row in rows[:limit])
            return Page(keys, keys[-1] if len(rows) > limit else "")

        return await self._database.run(read)

    async def set(self, store: str, key: str, value: bytes, *, limit_bytes: int, ttl_s: float | None = None) -> None:
        """
        Keep *value*, for good or for *ttl_s*, whatever was there before.

        Raises: KvFullError.
        """
        await self.set_many(store, ((key, value),), limit_bytes=limit_bytes, ttl_s=ttl_s)

    async def set_many(
        self, store: str, entries: Iterable[tuple[str, bytes]], *, limit_bytes: int, ttl_s: float | None = None
    ) -> None:
        """
        Keep all of *entries* or, when that fails, none.

        Raises: KvFullError.
        """
        kept = dict(entries)

        def write(session: Session) -> None:
            _lock(session, store)
            for key, value in kept.items():
                _put(session, store, key, value, _until(session, ttl_s), _size(session, store, key), limit_bytes)

        await self._database.run(write, together=_lock_of(store))

    async def delete(self, store: str, key: str) -> bool:
        """Remove *key*; return whether it was there."""
        return await self.delete_many(store, (key,)) == 1

    async def delete_many(self, store: str, keys: Iterable[str]) -> int:
        """Remove *keys*; return how many of them were there."""
        gone = tuple(dict.fromkeys(keys))

        def write(session: Session) -> int:
            _lock(session, store)
            n_live = n_bytes = n_keys = 0
            for key in gone:
                rows = session.execute(
                    "DELETE FROM kv WHERE store = ? AND key = ? RETURNING bytes, expires_at", store, key
                )
                for freed, expires_at in rows:
                    n_keys += 1
                    n_bytes += freed
                    n_live += not _is_over(session, expires_at)
            if n_keys:
                _count(session, store, -n_keys, -n_bytes)
            return n_live

        return await self._database.run(write, together=_lock_of(store))

    async def increment(self, store: str, key: str, delta: int, *, limit_bytes: int) -> int:
        """
        Add *delta* to the decimal number under *key*, 0 if there is none, and return the sum; its time stays.

        Raises: KvConflictError if what is there is no number of 64 bits, or the sum would be none; KvFullError.
        """

        def write(session: Session) -> int:
            _lock(session, store)
            row = _find(session, store, key)
            entry = _live(session, row)
            total = delta + (_number(entry.value, key) if entry is not None else 0)
            if total not in _INT64:
                raise KvConflictError(f"the number under the key would leave the 64 bits of an integer: {total}")
            expires_at = entry.expires_at if entry is not None else None
            _put(session, store, key, b"%d" % total, expires_at, None if row is None else row[3], limit_bytes)
            return total

        return await self._database.run(write, together=_lock_of(store))

    async def compare_and_set(
        self,
        store: str,
        key: str,
        expected: bytes | None,
        value: bytes,
        *,
        limit_bytes: int,
        ttl_s: float | None = None,
    ) -> bool:
        """
        Keep *value* if *expected* is there (None: nothing); return whether it was.

        Raises: KvFullError.
        """

        def write(session: Session) -> bool:
            _lock(session, store)
            row = _find(session, store, key)
            entry = _live(session, row)
            if (None if entry is None else entry.value) != expected:
                return False
            _put(session, store, key, value, _until(session, ttl_s), None if row is None else row[3], limit_bytes)
            return True

        return await self._database.run(write, together=_lock_of(store))

    async def swap(self, store: str, key: str, revision: int, value: bytes, *, limit_bytes: int) -> bool:
        """
        Keep *value* if what is there has still that *revision* (0: nothing is there); return whether it had.

        Other than with ``compare_and_set``, a value that went away and came back is another one.
        Raises: KvFullError.
        """

        def write(session: Session) -> bool:
            _lock(session, store)
            row = _find(session, store, key)
            entry = _live(session, row)
            if (0 if entry is None else entry.revision) != revision:
                return False
            expires_at = entry.expires_at if entry is not None else None
            _put(session, store, key, value, expires_at, None if row is None else row[3], limit_bytes)
            return True

        return await self._database.run(write, together=_lock_of(store))

    async def sweep(self) -> int:
        """Take away up to ``SWEEP_KEYS`` expired entries of one store; return how many there were."""

        def write(session: Session) -> int:
            rows = session.execute(
                "SELECT store FROM kv WHERE expires_at <= ? ORDER BY expires_at LIMIT 1", session.now()
            )
            if not rows:
                return 0
            _lock(session, rows[0][0])
            return _sweep(session, rows[0][0])[0]

        return await self._database.run(write)

    # ---- stores and grants ------------------------------------------------------------------------------------------

    async def stores(self) -> tuple[StoreSize, ...]:
        """Return every store that holds something, by name."""
        rows = await self._database.run(
            lambda session: session.execute("SELECT store, keys, bytes FROM kv_stores WHERE keys > 0 ORDER BY store")
        )
        return tuple(StoreSize(*row) for row in rows)

    async def drop(self, store: str, actor: str = "") -> int:
        """Remove everything that *store* holds; return how many keys that were. Grants stay."""
        return await self._database.run(lambda session: _drop(session, store, actor))

    async def grants(self) -> tuple[Grant, ...]:
        """Return every grant, by store and function."""
        rows = await self._database.run(
            lambda session: session.execute(
                "SELECT store, function, read_only, added_at FROM kv_grants ORDER BY store, function"
            )
        )
        return tuple(Grant(store, function, bool(read_only), at) for store, function, read_only, at in rows)

    async def add_grant(self, store: str, function: str, *, read_only: bool, actor: str = "") -> Grant:
        """Let *function* use *store*, or change how it may."""

        def write(session: Session) -> Grant:
            grant = Grant(store, function, read_only, session.now())
            session.execute(
                "INSERT INTO kv_grants (store, function, read_only, added_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (store, function) DO UPDATE SET read_only = excluded.read_only",
                store,
                function,
                int(read_only),
                grant.added_at,
            )
            note(session, actor, "kv.grant", store, to=function, read_only=read_only)
            session.notify(CHANGED)
            return grant

        return await self._database.run(write)

    async def remove_grant(self, store: str, function: str, actor: str = "") -> None:
        """
        Let *function* use *store* no longer.

        Raises: KvGrantNotFoundError.
        """

        def write(session: Session) -> None:
            if not session.changed("DELETE FROM kv_grants WHERE store = ? AND function = ?", store, function):
                raise KvGrantNotFoundError(
                    f"the store {store!r} is not granted to {function!r}; 'faas kv grants' shows those that are"
                )
            note(session, actor, "kv.revoke", store, to=function)
            session.notify(CHANGED)

        await self._database.run(write)


def forget_function(session: Session, function: str, *, purge: bool, actor: str) -> None:
    """
    Forget what *function*, which is removed, was granted; with *purge* its own store and grants of it, too.

    Without *purge* those stay: another function of that name goes on with them.
    """
    n_grants = session.changed("DELETE FROM kv_grants WHERE function = ?", function)
    if purge:
        n_grants += session.changed("DELETE FROM kv_grants WHERE store = ?", function)
        _drop(session, function, actor)
    if n_grants:
        session.notify(CHANGED)


def _drop(session: Session, store: str, actor: str) -> int:
    """Remove everything that *store* holds; return how many keys that were."""
    _lock(session, store)
    n_keys = session.changed("DELETE FROM kv WHERE store = ?", store)
    # The row stays: its revision must not begin again.
    session.execute("UPDATE kv_stores SET keys = 0, bytes = 0 WHERE store = ?", store)
    if n_keys:
        note(session, actor, "kv.drop", store, keys=n_keys)
    return n_keys


def _lock_of(store: str) -> str:
    return f"faas kv {store}"


def _lock(session: Session, store: str) -> None:
    session.lock(_lock_of(store))


def _find(session: Session, store: str, key: str) -> Row | None:
    """Return value, revision, expires_at and bytes of an entry, even if its time is over."""
    rows = session.execute("SELECT value, revision, expires_at, bytes FROM kv WHERE store = ? AND key = ?", store, key)
    return rows[0] if rows else None


def _size(session: Session, store: str, key: str) -> int | None:
    rows = session.execute("SELECT bytes FROM kv WHERE store = ? AND key = ?", store, key)
    return int(rows[0][0]) if rows else None


def _live(session: Session, row: Row | None) -> Entry | None:
    if row is None or _is_over(session, row[2]):
        return None
    return Entry(bytes(row[0]), row[1], row[2])


def _is_over(session: Session, expires_at: float | None) -> bool:
    return expires_at is not None and expires_at <= session.now()


def _until(session: Session, ttl_s: float | None) -> float | None:
    return None if ttl_s is None else session.now() + ttl_s


def _put(  # noqa: PLR0917 - one row's columns
    session: Session,
    store: str,
    key: str,
    value: bytes,
    expires_at: float | None,
    old_bytes: int | None,
    limit_bytes: int,
) -> None:
    """Write an entry in the place of one of *old_bytes* (None: there is none), and count it."""
    n_bytes = len(key.encode()) + len(value)
    more_bytes = n_bytes - (old_bytes or 0)
    revision, total = _count(session, store, old_bytes is None, more_bytes)
    if total > limit_bytes and more_bytes > 0:
        for _ in range(_MAX_SWEEPS):
            n_gone, freed = _sweep(session, store, but=key)
            total -= freed
            if total <= limit_bytes or not n_gone:
                break
        if total > limit_bytes:
            raise KvFullError(
                f"the store {store!r} would hold {total} bytes and may hold {limit_bytes}; delete keys, give them a"
                " time to live, or raise kv_max_store_bytes of the host",
                limit_bytes=limit_bytes,
            )
    session.execute(
        "INSERT INTO kv (store, key, value, revision, expires_at, bytes) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (store, key) DO UPDATE SET value = excluded.value, revision = excluded.revision,"
        " expires_at = excluded.expires_at, bytes = excluded.bytes",
        store,
        key,
        value,
        revision,
        expires_at,
        n_bytes,
    )


def _count(session: Session, store: str, more_keys: int, more_bytes: int) -> tuple[int, int]:
    """Add to what *store* holds; return a revision that none of its entries has had, and its bytes."""
    rows = session.execute(
        "INSERT INTO kv_stores (store, keys, bytes, revision) VALUES (?, ?, ?, 1) ON CONFLICT (store) DO UPDATE SET"
        " keys = kv_stores.keys + excluded.keys, bytes = kv_stores.bytes + excluded.bytes,"
        " revision = kv_stores.revision + 1 RETURNING revision, bytes",
        store,
        int(more_keys),
        more_bytes,
    )
    revision, n_bytes = rows[0]
    return int(revision), int(n_bytes)


def _sweep(session: Session, store: str, but: str = "") -> tuple[int, int]:
    """Take away expired entries of *store*, not that of the key *but*; return how many and their bytes."""
    rows = session.execute(
        "DELETE FROM kv WHERE store = ? AND key IN (SELECT key FROM kv WHERE store = ? AND expires_at <= ?"
        " AND key <> ? LIMIT ?) RETURNING bytes",
        store,
        store,
        session.now(),
        but,
        SWEEP_KEYS,
    )
    freed = sum(int(row[0]) for row in rows)
    if rows:
        _count(session, store, -len(rows), -freed)
    return len(rows), freed


def _number(value: bytes, key: str) -> int:
    digits = value[1:] if value[:1] == b"-" else value
    if 0 < len(digits) <= 19 and digits.isdigit():
        number = int(value)
        if number in _INT64:
            return number
    raise KvConflictError(
        f"the value under {key!r} is not a decimal integer of 64 bits, so nothing can be added to it; set a number"
        " there first"
    )


def _behind(prefix: str) -> str:
    """Return the first text behind all that begin with *prefix*; "" if there is none."""
    while prefix:
        point = ord(prefix[-1])
        prefix = prefix[:-1]
        if point < 0x10FFFF:
            following = point + 1
            return prefix + chr(0xE000 if 0xD800 <= following <= 0xDFFF else following)
    return ""
