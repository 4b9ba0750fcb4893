"""What is set for functions beside their versions: config values, and secrets, which come and go sealed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from faas.errors import SettingNotFoundError, SettingsTooLargeError
from faas.state.database import Database, Session
from faas.state.noting import note

CHANGED: Final = "settings"
"""The topic of every change here."""
MAX_FUNCTION_BYTES: Final = 256 * 1024
"""Names, config values and sealed secrets of one function."""
MAX_BYTES: Final = 16 * 1024 * 1024
"""The same of all functions: workers are told all of it in one message."""
_LOCK: Final = "faas settings"


class ConfigEntry(msgspec.Struct, frozen=True):
    """A config value of a function."""

    function: str
    name: str
    value: str
    set_at: float = 0.0


class SecretEntry(msgspec.Struct, frozen=True):
    """A secret of a function as it is kept: sealed with the key of which ``key_id`` is a fingerprint."""

    function: str
    name: str
    sealed: bytes
    key_id: str
    set_at: float = 0.0


class SettingStore:
    """
    Config values and sealed secrets, by function and name; the audit log gets names, never values.

    Raises: StateError from every operation when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def config(self) -> tuple[ConfigEntry, ...]:
        """Return every config value, by function and name."""
        rows = await self._database.run(
            lambda session: session.execute(
                "SELECT function, name, value, set_at FROM config_values ORDER BY function, name"
            )
        )
        return tuple(ConfigEntry(*row) for row in rows)

    async def secrets(self) -> tuple[SecretEntry, ...]:
        """Return every secret, sealed, by function and name."""
        return await self._database.run(_secrets)

    async def set_config(self, function: str, values: Mapping[str, str], actor: str = "") -> None:
        """
        Set config values of *function*; the others stay.

        Raises: SettingsTooLargeError.
        """

        def write(session: Session) -> None:
            session.lock(_LOCK)
            for name, value in values.items():
                session.execute(
                    "INSERT INTO config_values (function, name, value, bytes, set_at) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (function, name) DO UPDATE SET value = excluded.value, bytes = excluded.bytes,"
                    " set_at = excluded.set_at",
                    function,
                    name,
                    value,
                    len(name) + len(value.encode()),
                    session.now(),
                )
            _check_sizes(session, function)
            note(session, actor, "config.set", function, names=sorted(values))
            session.notify(CHANGED)

        await self._database.run(write)

    async def unset_config(self, function: str, names: Iterable[str], actor: str = "") -> None:
        """
        Forget config values of *function*, all or none.

        Raises: SettingNotFoundError if one of them is not set.
        """
        gone = tuple(dict.fromkeys(names))

        def write(session: Session) -> None:
            session.lock(_LOCK)
            for name in gone:
                if not session.changed("DELETE FROM config_values WHERE function = ? AND name = ?", function, name):
                    raise SettingNotFoundError(
                        f"{function!r} has no config value {name!r}; 'faas config list {function}' shows those it has"
                    )
            note(session, actor, "config.unset", function, names=sorted(gone))
            session.notify(CHANGED)

        await self._database.run(write)

    async def set_secret(self, entry: SecretEntry, actor: str = "") -> SecretEntry:
        """
        Keep a sealed secret in the place of the one before, and return it with its time.

        Raises: SettingsTooLargeError.
        """

        def write(session: Session) -> SecretEntry:
            session.lock(_LOCK)
            kept = msgspec.structs.replace(entry, set_at=session.now())
            _put_secret(session, kept)
            _check_sizes(session, kept.function)
            note(session, actor, "secret.set", kept.function, name=kept.name)
            session.notify(CHANGED)
            return kept

        return await self._database.run(write)

    async def unset_secret(self, function: str, name: str, actor: str = "") -> None:
        """
        Forget a secret of *function*.

        Raises: SettingNotFoundError.
        """

        def write(session: Session) -> None:
            session.lock(_LOCK)
            if not session.changed("DELETE FROM secrets WHERE function = ? AND name = ?", function, name):
                raise SettingNotFoundError(
                    f"{function!r} has no secret {name!r}; 'faas secrets list {function}' shows those it has"
                )
            note(session, actor, "secret.unset", function, name=name)
            session.notify(CHANGED)

        await self._database.run(write)

    async def reseal(self, entries: Iterable[SecretEntry], actor: str = "") -> None:
        """Keep *entries*, sealed anew, in the place of those of the same names; their times stay."""
        anew = tuple(entries)

        def write(session: Session) -> None:
            session.lock(_LOCK)
            for entry in anew:
                session.execute(
                    "UPDATE secrets SET sealed = ?, key_id = ? WHERE function = ? AND name = ?",
                    entry.sealed,
                    entry.key_id,
                    entry.function,
                    entry.name,
                )
            note(session, actor, "secrets.rotate", "", n=len(anew))
            session.notify(CHANGED)

        await self._database.run(write)


def forget_function(session: Session, function: str, *, purge: bool, actor: str) -> None:
    """Forget all that is set for *function*, which is removed, also without *purge*."""
    del purge
    session.lock(_LOCK)
    n_gone = sum(
        session.changed(f"DELETE FROM {table} WHERE function = ?", function) for table in ("config_values", "secrets")
    )
    if n_gone:
        note(session, actor, "settings.forget", function, n=n_gone)
        session.notify(CHANGED)


def _secrets(session: Session) -> tuple[SecretEntry, ...]:
    rows = session.execute("SELECT function, name, sealed, key_id, set_at FROM secrets ORDER BY function, name")
    return tuple(SecretEntry(function, name, bytes(sealed), key_id, at) for function, name, sealed, key_id, at in rows)


def _put_secret(session: Session, entry: SecretEntry) -> None:
    session.execute(
        "INSERT INTO secrets (function, name, sealed, key_id, bytes, set_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (function, name) DO UPDATE SET sealed = excluded.sealed, key_id = excluded.key_id,"
        " bytes = excluded.bytes, set_at = excluded.set_at",
        entry.function,
        entry.name,
        entry.sealed,
        entry.key_id,
        len(entry.name) + len(entry.sealed),
        entry.set_at,
    )


def _check_sizes(session: Session, function: str) -> None:
    def total(table: str, where: str = "", *arguments: str) -> int:
        return int(session.execute(f"SELECT COALESCE(SUM(bytes), 0) FROM {table} {where}", *arguments)[0][0])

    for limit, what, n_bytes in (
        (
            MAX_FUNCTION_BYTES,
            f"config values and secrets of {function!r}",
            sum(total(table, "WHERE function = ?", function) for table in ("config_values", "secrets")),
        ),
        (MAX_BYTES, "config values and secrets of all functions", total("config_values") + total("secrets")),
    ):
        if n_bytes > limit:
            raise SettingsTooLargeError(
                f"the {what} would take {n_bytes} bytes and may take {limit}; unset some, or put what is large into"
                " the function's files or its store",
                limit_bytes=limit,
            )
