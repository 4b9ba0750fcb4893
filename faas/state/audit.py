"""The audit log: who changed what, when. ``faas.state.noting`` writes its entries, each with the change itself."""

from __future__ import annotations

import msgspec

from faas.state.base import AuditEntry
from faas.state.database import Database


class AuditStore:
    """
    The entries, which are only ever added.

    Raises: StateError when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def entries(self, function: str = "", *, limit: int = 100) -> tuple[AuditEntry, ...]:
        """Return the last *limit* entries, newest first; only those about *function* where one is named."""
        which, arguments = ("WHERE function = ? ", (function,)) if function else ("", ())
        rows = await self._database.run(
            lambda session: session.execute(
                f"SELECT seq, at, actor, action, function, detail FROM audit {which}ORDER BY seq DESC LIMIT ?",
                *arguments,
                limit,
            )
        )
        return tuple(
            AuditEntry(seq, at, actor, action, about, msgspec.json.decode(detail))
            for seq, at, actor, action, about, detail in rows
        )
