"""What stores rely on, whichever database is behind it."""

from __future__ import annotations

import asyncio

import pytest

from faas.errors import StateError
from faas.state.state import State


async def counted(database, name="n"):
    return (await database.run(lambda session: session.execute("SELECT count(*) FROM tokens")))[0][0]


def insert(name):
    def work(session):
        session.execute(
            "INSERT INTO tokens (name, sha256, role, added_at) VALUES (?, ?, ?, ?)", name, f"sha {name}", "read", 1.5
        )
        return name

    return work


async def test_work_returns_its_value_and_is_kept_after_reopening(open_database):
    database = await open_database()
    assert await database.run(insert("a")) == "a"
    await database.aclose()
    database = await open_database()
    rows = await database.run(lambda session: session.execute("SELECT name, added_at FROM tokens"))
    assert rows == [("a", 1.5)]
    await database.aclose()


async def test_what_work_raises_comes_out_and_undoes_only_its_own_statements(database):
    def fail(session):
        insert("b")(session)
        raise LookupError("no")

    results = await asyncio.gather(
        database.run(insert("a")), database.run(fail), database.run(insert("c")), return_exceptions=True
    )
    assert (results[0], results[2]) == ("a", "c")
    assert isinstance(results[1], LookupError)
    rows = await database.run(lambda session: session.execute("SELECT name FROM tokens ORDER BY name"))
    assert rows == [("a",), ("c",)]


async def test_a_constraint_that_is_broken_is_a_state_error_of_that_work_alone(database):
    results = await asyncio.gather(
        database.run(insert("a")), database.run(insert("a")), database.run(insert("b")), return_exceptions=True
    )
    assert sorted(type(result) for result in results if not isinstance(result, str)) == [StateError]
    assert await counted(database) == 2


async def test_a_hundred_at_once_are_all_kept(database):
    names = await asyncio.gather(*(database.run(insert(f"t{n}")) for n in range(100)))
    assert len(set(names)) == 100
    assert await counted(database) == 100


async def test_read_then_write_under_a_lock_loses_nothing(database):
    def increment(session):
        session.lock("counter")
        rows = session.execute("SELECT added_at FROM tokens WHERE name = 'n'")
        if not rows:
            insert("n")(session)
        session.execute("UPDATE tokens SET added_at = ? WHERE name = 'n'", (rows[0][0] if rows else 0.0) + 1)

    await asyncio.gather(*(database.run(increment) for _ in range(50)))
    assert await database.run(lambda session: session.execute("SELECT added_at FROM tokens")) == [(50.0,)]


async def test_changed_counts_rows(database):
    await database.run(insert("a"))
    await database.run(insert("b"))
    assert await database.run(lambda session: session.changed("UPDATE tokens SET role = 'deploy'")) == 2
    assert await database.run(lambda session: session.changed("DELETE FROM tokens WHERE name = ?", "x")) == 0


async def test_values_come_back_as_they_went_in(database):
    def work(session):
        session.execute(
            "INSERT INTO models (name, path, digest, bytes, added_at) VALUES (?, ?, ?, ?, ?)",
            "ü%?", "a%s", "", 2**62, 0.1,
        )  # fmt: skip
        return session.execute("SELECT name, path, digest, bytes, added_at FROM models WHERE name = ?", "ü%?")

    assert await database.run(work) == [("ü%?", "a%s", "", 2**62, 0.1)]


async def test_text_is_ordered_by_its_bytes(database):
    for name in ("b", "B", "a", "é", "_"):
        await database.run(insert(name))
    rows = await database.run(lambda session: session.execute("SELECT name FROM tokens ORDER BY name"))
    assert [row[0] for row in rows] == sorted(("b", "B", "a", "é", "_"), key=str.encode)


async def test_now_stands_still_within_a_transaction(database):
    first, second = await database.run(lambda session: (session.now(), session.now()))
    assert first == second > 1.7e9


async def test_a_notice_is_heard_after_the_commit_and_never_without_one(open_database):
    database = await open_database()
    heard: asyncio.Queue[str] = asyncio.Queue()
    database.listen(heard.put_nowait)

    def fail(session):
        session.notify("lost")
        raise LookupError

    def work(session):
        insert("a")(session)
        session.notify("one")
        session.notify("one")
        session.notify("two")

    with pytest.raises(LookupError):
        await database.run(fail)
    await database.run(work)
    assert {await heard.get(), await heard.get()} == {"one", "two"}
    assert heard.empty()
    await database.aclose()


async def test_nothing_runs_after_closing_which_may_be_said_twice(open_database):
    database = await open_database()
    await database.aclose()
    await database.aclose()
    with pytest.raises(StateError):
        await database.run(insert("a"))


async def test_one_host_hears_what_another_one_changes_in_postgresql(postgres_url):
    from faas.state.postgresql import PostgresDatabase

    one, other = await PostgresDatabase.open(postgres_url), await PostgresDatabase.open(postgres_url)
    heard: asyncio.Queue[str] = asyncio.Queue()
    other.listen(heard.put_nowait)
    await one.run(lambda session: session.notify("functions"))
    assert await heard.get() == "functions"
    assert State(one, other).shared
    await one.aclose()
    await other.aclose()


async def test_a_lost_connection_is_made_again_and_listeners_hear_that_they_may_have_missed_something(postgres_url):
    import psycopg

    from faas.state import postgresql

    database = await postgresql.PostgresDatabase.open(postgres_url)
    heard: asyncio.Queue[str] = asyncio.Queue()
    database.listen(heard.put_nowait)
    await database.run(insert("a"))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'faas%'")
    assert await heard.get() == postgresql.ANYTHING
    assert await database.run(insert("b")) == "b"
    await database.aclose()


async def test_postgresql_that_is_not_there_is_a_clear_error(tmp_path):
    from faas.state.postgresql import PostgresDatabase

    with pytest.raises(StateError, match="can't reach PostgreSQL"):
        await PostgresDatabase.open(f"postgresql://faas@/faas?host={tmp_path}")
