"""A database of an earlier release can be rolled back to the versions that were live before the present one."""

from __future__ import annotations

import sqlite3

import pytest

from faas.clock import SystemClock
from faas.errors import VersionNotFoundError
from faas.state.schema import MIGRATIONS
from faas.state.state import open_state


async def test_versions_of_an_earlier_release_are_its_history(tmp_path):
    db = sqlite3.connect(tmp_path / "state.db")
    db.executescript(f"{MIGRATIONS[0]} {MIGRATIONS[1]} PRAGMA user_version = 2;")
    db.execute("INSERT INTO functions VALUES ('f', 3, 3)")
    for version in (1, 2, 3):
        db.execute(
            "INSERT INTO versions VALUES ('f', ?, 'command', 'aa', 'bb', '', '{\"name\": \"f\"}', 1.5)", (version,)
        )
    db.execute("INSERT INTO routes VALUES ('f', '/f')")
    db.commit()
    db.close()
    state = await open_state("", tmp_path / "state.db", SystemClock())
    for expected in (2, 1):
        assert (await state.functions.rollback_target("f")).version == expected
        await state.functions.rollback("f", expected=expected)
    with pytest.raises(VersionNotFoundError):
        await state.functions.rollback_target("f")
    await state.aclose()
