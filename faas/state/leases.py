"""Work that exactly one of several hosts does, for as long as it says that it lives."""

from __future__ import annotations

from faas.state.database import Database, Session


class LeaseStore:
    """
    Names held by one host each, until they run out by the database's clock.

    Raises: StateError from every operation when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def hold(self, name: str, holder: str, ttl_s: float) -> bool:
        """Return whether *holder* has *name* for the next *ttl_s* seconds: it had it, or nobody did."""

        def hold(session: Session) -> bool:
            now = session.now()
            return (
                session.changed(
                    "INSERT INTO leases (name, holder, until) VALUES (?, ?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until"
                    " WHERE leases.holder = excluded.holder OR leases.until < ?",
                    name,
                    holder,
                    now + ttl_s,
                    now,
                )
                == 1
            )

        return await self._database.run(hold)

    async def let_go(self, name: str, holder: str) -> None:
        """Have *name* free at once, if *holder* has it."""
        await self._database.run(
            lambda session: session.execute("DELETE FROM leases WHERE name = ? AND holder = ?", name, holder)
        )
