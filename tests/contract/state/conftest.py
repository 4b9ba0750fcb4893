"""Both databases for the tests of this folder: SQLite in a file, and a real PostgreSQL."""

from __future__ import annotations

import pytest

from faas.clock import SystemClock
from faas.state.postgresql import PostgresDatabase
from faas.state.sqlite import SqliteDatabase


@pytest.fixture(params=["sqlite", "postgresql"])
def open_database(request, tmp_path):
    """Opens the same database each time it is called: another host's, or the same one's after a restart."""
    if request.param == "sqlite":
        return lambda: SqliteDatabase.open(tmp_path / "state.db", SystemClock())
    url = request.getfixturevalue("postgres_url")
    return lambda: PostgresDatabase.open(url)


@pytest.fixture
async def database(open_database):
    database = await open_database()
    yield database
    await database.aclose()
