"""What opens things: keys for the OpenAI-compatible endpoints, tokens for the admin API, invoke keys of functions."""

from __future__ import annotations

import msgspec

from faas.errors import KeyNotFoundError, KeyTakenError, TokenNotFoundError, TokenTakenError
from faas.state.base import InvokeKeyEntry, KeyEntry, TokenEntry
from faas.state.database import Database, Session

CHANGED = "access"
"""The topic of every change here."""


class AccessStore:
    """
    Names and hashes, never texts; ordered by name.

    Raises: StateError from every operation when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_key(self, entry: KeyEntry) -> KeyEntry:
        """
        Keep *entry*, and return it with its time.

        Raises: KeyTakenError if a key has that name.
        """

        def add(session: Session) -> KeyEntry:
            kept = msgspec.structs.replace(entry, added_at=session.now())
            if not session.changed(
                "INSERT INTO keys (name, sha256, tokens_per_minute, added_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (name) DO NOTHING",
                *msgspec.structs.astuple(kept),
            ):
                raise KeyTakenError(f"a key {kept.name!r} is there already; 'faas keys remove {kept.name}' first")
            session.notify(CHANGED)
            return kept

        return await self._database.run(add)

    async def remove_key(self, name: str) -> None:
        """
        Forget the key *name*.

        Raises: KeyNotFoundError if there is none.
        """

        def remove(session: Session) -> None:
            if not session.changed("DELETE FROM keys WHERE name = ?", name):
                raise KeyNotFoundError(f"there is no key {name!r}; 'faas keys list' shows those that are")
            session.notify(CHANGED)

        await self._database.run(remove)

    async def keys(self) -> tuple[KeyEntry, ...]:
        """Return every API key."""
        rows = await self._database.run(
            lambda session: session.execute("SELECT name, sha256, tokens_per_minute, added_at FROM keys ORDER BY name")
        )
        return tuple(KeyEntry(*row) for row in rows)

    async def add_token(self, entry: TokenEntry) -> TokenEntry:
        """
        Keep *entry*, and return it with its time.

        Raises: TokenTakenError if a token has that name.
        """

        def add(session: Session) -> TokenEntry:
            kept = msgspec.structs.replace(entry, added_at=session.now())
            if not session.changed(
                "INSERT INTO tokens (name, sha256, role, added_at) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
                *msgspec.structs.astuple(kept),
            ):
                raise TokenTakenError(f"a token {kept.name!r} is there already; 'faas tokens remove {kept.name}' first")
            session.notify(CHANGED)
            return kept

        return await self._database.run(add)

    async def remove_token(self, name: str) -> None:
        """
        Forget the token *name*.

        Raises: TokenNotFoundError if there is none.
        """

        def remove(session: Session) -> None:
            if not session.changed("DELETE FROM tokens WHERE name = ?", name):
                raise TokenNotFoundError(f"there is no token {name!r}; 'faas tokens list' shows those that are")
            session.notify(CHANGED)

        await self._database.run(remove)

    async def tokens(self) -> tuple[TokenEntry, ...]:
        """Return every admin token but the one in the home."""
        rows = await self._database.run(
            lambda session: session.execute("SELECT name, sha256, role, added_at FROM tokens ORDER BY name")
        )
        return tuple(TokenEntry(*row) for row in rows)

    async def add_invoke_key(self, entry: InvokeKeyEntry) -> InvokeKeyEntry:
        """
        Keep *entry*, and return it with its time.

        Raises: KeyTakenError if the function has a key of that name.
        """

        def add(session: Session) -> InvokeKeyEntry:
            kept = msgspec.structs.replace(entry, added_at=session.now())
            if not session.changed(
                "INSERT INTO invoke_keys (function, name, sha256, requests_per_minute, added_at)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (function, name) DO NOTHING",
                *msgspec.structs.astuple(kept),
            ):
                raise KeyTakenError(
                    f"{kept.function!r} has a key {kept.name!r} already; 'faas keys remove {kept.name} --function "
                    f"{kept.function}' first"
                )
            session.notify(CHANGED)
            return kept

        return await self._database.run(add)

    async def remove_invoke_key(self, function: str, name: str) -> None:
        """
        Forget the invoke key *name* of *function*.

        Raises: KeyNotFoundError if there is none.
        """

        def remove(session: Session) -> None:
            if not session.changed("DELETE FROM invoke_keys WHERE function = ? AND name = ?", function, name):
                raise KeyNotFoundError(
                    f"{function!r} has no key {name!r}; 'faas keys list --function {function}' shows those that are"
                )
            session.notify(CHANGED)

        await self._database.run(remove)

    async def invoke_keys(self) -> tuple[InvokeKeyEntry, ...]:
        """Return the invoke keys of all functions, ordered by function and name."""
        rows = await self._database.run(
            lambda session: session.execute(
                "SELECT function, name, sha256, requests_per_minute, added_at FROM invoke_keys ORDER BY function, name"
            )
        )
        return tuple(InvokeKeyEntry(*row) for row in rows)


def forget_function(session: Session, function: str, *, purge: bool, actor: str) -> None:
    """Forget the invoke keys of *function*, which is removed, also without *purge*."""
    del purge, actor
    if session.changed("DELETE FROM invoke_keys WHERE function = ?", function):
        session.notify(CHANGED)
