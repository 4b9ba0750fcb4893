"""State in one SQLite file: write-ahead log, full sync, one thread that does all the work."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from faas.clock import Clock
from faas.errors import FunctionNotFoundError, KeyNotFoundError, KeyTakenError, ModelNotFoundError, StateError
from faas.invocation import Deployment, Kind
from faas.manifest import Manifest
from faas.routes import refuse_conflicts
from faas.state.base import FileMark, KeyEntry, ModelEntry, NewVersion, References

# One entry per schema version, applied in order; never change one that was released, append.
MIGRATIONS = (
    """
    CREATE TABLE functions (
        name           TEXT PRIMARY KEY,
        last_version   INTEGER NOT NULL,            -- the high-water mark; stays when the function is removed
        active_version INTEGER                      -- NULL: removed
    ) STRICT;
    CREATE TABLE versions (
        function      TEXT NOT NULL REFERENCES functions(name),
        version       INTEGER NOT NULL,
        kind          TEXT NOT NULL,
        wasm_digest   TEXT NOT NULL,
        artifact_key  TEXT NOT NULL,
        bundle_digest TEXT NOT NULL,
        manifest      TEXT NOT NULL,
        created_at    REAL NOT NULL,
        PRIMARY KEY (function, version)
    ) STRICT;
    CREATE TABLE routes (                           -- of active versions only
        function TEXT NOT NULL REFERENCES functions(name),
        route    TEXT NOT NULL,
        PRIMARY KEY (function, route)
    ) STRICT;
    CREATE TABLE changes (                          -- append-only: who served when
        seq      INTEGER PRIMARY KEY AUTOINCREMENT,
        at       REAL NOT NULL,
        action   TEXT NOT NULL CHECK (action IN ('deploy', 'remove')),
        function TEXT NOT NULL,
        version  INTEGER NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE models (                           -- files are referred to, never copied
        name     TEXT PRIMARY KEY,
        path     TEXT NOT NULL,
        digest   TEXT NOT NULL,
        bytes    INTEGER NOT NULL,
        added_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE fingerprints (                     -- so that gigabytes are hashed once
        path     TEXT PRIMARY KEY,
        bytes    INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        digest   TEXT NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        name              TEXT PRIMARY KEY,
        sha256            TEXT NOT NULL UNIQUE,
        tokens_per_minute INTEGER NOT NULL,
        added_at          REAL NOT NULL
    ) STRICT;
    """,
)

_COLUMNS = "function, version, kind, wasm_digest, artifact_key, bundle_digest, manifest, created_at"

T = TypeVar("T")
_Row = tuple[str, int, str, str, str, str, str, float]


class SqliteState:
    """
    ``faas.state.base.State`` in a SQLite file; lives from ``open`` to ``aclose``.

    Thread: every statement runs on one private thread, so operations are serial and the loop never waits for a disk.
    """

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, clock: Clock) -> None:
        """Use ``open``."""
        self._connection = connection
        self._thread = thread
        self._clock = clock

    @classmethod
    async def open(cls, path: Path, clock: Clock) -> SqliteState:
        """
        Open the file at *path*, made if it is not there, and bring its schema up to date.

        Raises: StateError if it is not a state database or was written by a newer release.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="faas-state")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except sqlite3.Error as exc:
            thread.shutdown()
            raise StateError(
                f"can't open {path}: {exc}; restore it from a copy, or move it away to begin anew"
            ) from exc
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(connection, thread, clock)

    async def aclose(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    async def next_version(self, name: str) -> int:
        return await self._run(lambda db: _last_version(db, name) + 1)

    async def add_version_and_activate(self, new: NewVersion) -> Deployment:
        return await self._run(lambda db: self._add(db, new))

    async def remove_function(self, name: str) -> tuple[Deployment, ...]:
        return await self._run(lambda db: self._remove(db, name))

    async def active_deployments(self) -> tuple[Deployment, ...]:
        return await self._run(_active_deployments)

    async def active(self, name: str) -> Deployment:
        return await self._run(lambda db: _active(db, name))

    async def versions(self, name: str) -> tuple[Deployment, ...]:
        return await self._run(lambda db: _versions(db, name))

    async def routes(self) -> dict[str, tuple[str, ...]]:
        return await self._run(_routes)

    async def references(self) -> References:
        return await self._run(_references)

    async def update_artifact_key(self, function: str, version: int, artifact_key: str) -> None:
        def update(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE versions SET artifact_key = ? WHERE function = ? AND version = ?",
                (artifact_key, function, version),
            )

        await self._run(update)

    async def put_model(self, entry: ModelEntry) -> ModelEntry:
        kept = msgspec.structs.replace(entry, added_at=self._clock.time_ns() / 1e9)

        def put(db: sqlite3.Connection) -> ModelEntry:
            db.execute(
                "INSERT OR REPLACE INTO models (name, path, digest, bytes, added_at) VALUES (?, ?, ?, ?, ?)",
                msgspec.structs.astuple(kept),
            )
            return kept

        return await self._run(put)

    async def remove_model(self, name: str) -> None:
        def remove(db: sqlite3.Connection) -> None:
            if not db.execute("DELETE FROM models WHERE name = ?", (name,)).rowcount:
                raise ModelNotFoundError(f"no model {name!r} is registered; 'faas models list' shows those that are")

        await self._run(remove)

    async def models(self) -> tuple[ModelEntry, ...]:
        return await self._run(_models)

    async def fingerprint(self, mark: FileMark) -> str:
        def find(db: sqlite3.Connection) -> str:
            row = db.execute(
                "SELECT digest FROM fingerprints WHERE path = ? AND bytes = ? AND mtime_ns = ?",
                msgspec.structs.astuple(mark),
            ).fetchone()
            return str(row[0]) if row else ""

        return await self._run(find)

    async def keep_fingerprint(self, mark: FileMark, digest: str) -> None:
        def keep(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO fingerprints (path, bytes, mtime_ns, digest) VALUES (?, ?, ?, ?)",
                (*msgspec.structs.astuple(mark), digest),
            )

        await self._run(keep)

    async def add_key(self, entry: KeyEntry) -> KeyEntry:
        kept = msgspec.structs.replace(entry, added_at=self._clock.time_ns() / 1e9)

        def add(db: sqlite3.Connection) -> KeyEntry:
            if db.execute("SELECT 1 FROM keys WHERE name = ?", (kept.name,)).fetchone():
                raise KeyTakenError(f"a key {kept.name!r} is there already; 'faas keys remove {kept.name}' first")
            db.execute(
                "INSERT INTO keys (name, sha256, tokens_per_minute, added_at) VALUES (?, ?, ?, ?)",
                msgspec.structs.astuple(kept),
            )
            return kept

        return await self._run(add)

    async def remove_key(self, name: str) -> None:
        def remove(db: sqlite3.Connection) -> None:
            if not db.execute("DELETE FROM keys WHERE name = ?", (name,)).rowcount:
                raise KeyNotFoundError(f"there is no key {name!r}; 'faas keys list' shows those that are")

        await self._run(remove)

    async def keys(self) -> tuple[KeyEntry, ...]:
        return await self._run(_keys)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The gate: run *work* in one transaction on the thread, and map what SQLite says."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        db = self._connection
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        except sqlite3.Error as exc:
            raise StateError(f"the state database refused: {exc}; is the disk full or the file damaged?") from exc
        except msgspec.ValidationError as exc:
            raise StateError(f"the state database holds what this release can't read: {exc}") from exc
        return result

    def _add(self, db: sqlite3.Connection, new: NewVersion) -> Deployment:
        name = new.manifest.name
        refuse_conflicts(name, new.manifest.routes, _routes(db))
        deployment = Deployment(
            function=name,
            version=_last_version(db, name) + 1,
            kind=new.kind,
            wasm_digest=new.wasm_digest,
            artifact_key=new.artifact_key,
            bundle_digest=new.bundle_digest,
            manifest=new.manifest,
            created_at=self._clock.time_ns() / 1e9,
        )
        db.execute(
            "INSERT INTO functions (name, last_version, active_version) VALUES (?1, ?2, ?2)"
            " ON CONFLICT (name) DO UPDATE SET last_version = ?2, active_version = ?2",
            (name, deployment.version),
        )
        db.execute(f"INSERT INTO versions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _to_row(deployment))
        db.execute("DELETE FROM routes WHERE function = ?", (name,))
        db.executemany(
            "INSERT OR IGNORE INTO routes (function, route) VALUES (?, ?)",
            [(name, route) for route in new.manifest.routes],
        )
        _note(db, deployment.created_at, "deploy", name, deployment.version)
        return deployment

    def _remove(self, db: sqlite3.Connection, name: str) -> tuple[Deployment, ...]:
        active = _active(db, name)
        gone = _versions(db, name)
        db.execute("DELETE FROM routes WHERE function = ?", (name,))
        db.execute("DELETE FROM versions WHERE function = ?", (name,))
        db.execute("UPDATE functions SET active_version = NULL WHERE name = ?", (name,))
        _note(db, self._clock.time_ns() / 1e9, "remove", name, active.version)
        return gone


def _connect(path: Path) -> sqlite3.Connection:
    # check_same_thread is off only because the thread is named, not found: one executor thread ever uses it.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA busy_timeout = 5000")
        db.execute("PRAGMA foreign_keys = ON")
        (at,) = db.execute("PRAGMA user_version").fetchone()
        if at > len(MIGRATIONS):
            raise StateError(
                f"{path} has schema {at}, this release knows up to {len(MIGRATIONS)}; use the newer release again",
                schema=at,
            )
        for number, script in enumerate(MIGRATIONS[at:], start=at + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def _last_version(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("SELECT last_version FROM functions WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _active_deployments(db: sqlite3.Connection) -> tuple[Deployment, ...]:
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM versions JOIN functions ON name = function AND active_version = version ORDER BY name"
    )
    return tuple(map(_from_row, rows))


def _active(db: sqlite3.Connection, name: str) -> Deployment:
    row = db.execute(
        f"SELECT {_COLUMNS} FROM versions JOIN functions ON name = function AND active_version = version"
        " WHERE name = ?",
        (name,),
    ).fetchone()
    if row is None:
        raise FunctionNotFoundError(f"no function {name!r} is deployed; 'faas list' shows those that are")
    return _from_row(row)


def _versions(db: sqlite3.Connection, name: str) -> tuple[Deployment, ...]:
    _active(db, name)
    rows = db.execute(f"SELECT {_COLUMNS} FROM versions WHERE function = ? ORDER BY version DESC", (name,))
    return tuple(map(_from_row, rows))


def _routes(db: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    taken: dict[str, tuple[str, ...]] = {}
    for function, route in db.execute("SELECT function, route FROM routes ORDER BY function, rowid"):
        taken[function] = (*taken.get(function, ()), route)
    return taken


def _references(db: sqlite3.Connection) -> References:
    rows = db.execute("SELECT wasm_digest, artifact_key, bundle_digest FROM versions").fetchall()
    return References(
        wasm_digests=frozenset(row[0] for row in rows),
        artifact_keys=frozenset(row[1] for row in rows),
        bundle_digests=frozenset(row[2] for row in rows if row[2]),
    )


def _models(db: sqlite3.Connection) -> tuple[ModelEntry, ...]:
    rows = db.execute("SELECT name, path, digest, bytes, added_at FROM models ORDER BY name")
    return tuple(ModelEntry(*row) for row in rows)


def _keys(db: sqlite3.Connection) -> tuple[KeyEntry, ...]:
    rows = db.execute("SELECT name, sha256, tokens_per_minute, added_at FROM keys ORDER BY name")
    return tuple(KeyEntry(*row) for row in rows)


def _note(db: sqlite3.Connection, at: float, action: str, function: str, version: int) -> None:
    db.execute(
        "INSERT INTO changes (at, action, function, version) VALUES (?, ?, ?, ?)", (at, action, function, version)
    )


def _to_row(deployment: Deployment) -> _Row:
    return (
        deployment.function,
        deployment.version,
        deployment.kind.value,
        deployment.wasm_digest,
        deployment.artifact_key,
        deployment.bundle_digest,
        msgspec.json.encode(deployment.manifest).decode(),
        deployment.created_at,
    )


def _from_row(row: _Row) -> Deployment:
    function, version, kind, wasm_digest, artifact_key, bundle_digest, manifest, created_at = row
    return Deployment(
        function=function,
        version=version,
        kind=Kind(kind),
        wasm_digest=wasm_digest,
        artifact_key=artifact_key,
        bundle_digest=bundle_digest,
        manifest=msgspec.json.decode(manifest, type=Manifest),
        created_at=created_at,
    )
