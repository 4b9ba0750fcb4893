"""Registered models, and the fingerprints of their files."""

from __future__ import annotations

import msgspec

from faas.errors import ModelNotFoundError
from faas.state.base import FileMark, ModelEntry
from faas.state.database import Database, Session


class ModelStore:
    """
    The models of this host. They are files of its machine, so hosts that share a database share the names only.

    Raises: StateError from every operation when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put_model(self, entry: ModelEntry) -> ModelEntry:
        """Keep *entry* in place of what has its name, and return it with its time."""

        def put(session: Session) -> ModelEntry:
            kept = msgspec.structs.replace(entry, added_at=session.now())
            session.execute(
                "INSERT INTO models (name, path, digest, bytes, added_at) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET path = excluded.path, digest = excluded.digest,"
                " bytes = excluded.bytes, added_at = excluded.added_at",
                *msgspec.structs.astuple(kept),
            )
            return kept

        return await self._database.run(put)

    async def remove_model(self, name: str) -> None:
        """
        Forget the model *name*; its file stays.

        Raises: ModelNotFoundError.
        """

        def remove(session: Session) -> None:
            if not session.changed("DELETE FROM models WHERE name = ?", name):
                raise ModelNotFoundError(f"no model {name!r} is registered; 'faas models list' shows those that are")

        await self._database.run(remove)

    async def models(self) -> tuple[ModelEntry, ...]:
        """Return every registered model, ordered by name."""
        rows = await self._database.run(
            lambda session: session.execute("SELECT name, path, digest, bytes, added_at FROM models ORDER BY name")
        )
        return tuple(ModelEntry(*row) for row in rows)

    async def fingerprint(self, mark: FileMark) -> str:
        """Return the digest that was kept for just this file; '' if none was, or if it has changed since."""
        rows = await self._database.run(
            lambda session: session.execute(
                "SELECT digest FROM fingerprints WHERE path = ? AND bytes = ? AND mtime_ns = ?",
                *msgspec.structs.astuple(mark),
            )
        )
        return str(rows[0][0]) if rows else ""

    async def keep_fingerprint(self, mark: FileMark, digest: str) -> None:
        """Remember *digest* for as long as the file at that path stays as *mark* says."""

        def keep(session: Session) -> None:
            session.execute(
                "INSERT INTO fingerprints (path, bytes, mtime_ns, digest) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (path) DO UPDATE SET bytes = excluded.bytes, mtime_ns = excluded.mtime_ns,"
                " digest = excluded.digest",
                *msgspec.structs.astuple(mark),
                digest,
            )

        await self._database.run(keep)
