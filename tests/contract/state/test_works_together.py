"""Works that go together share a transaction and nothing else, and keep nobody from theirs."""

from __future__ import annotations

import asyncio
import subprocess

import psycopg
import pytest

from faas.clock import SystemClock
from faas.errors import KvConflictError, KvFullError, StateError
from faas.state.kv import KvStore
from faas.state.postgresql import ANYTHING, CONNECTIONS, PostgresDatabase
from faas.state.sqlite import SqliteDatabase
from faas.testing.postgres import find_postgres, running_postgres

MUCH = 1 << 30


def put(name):
    def work(session):
        session.lock("tokens")
        session.execute(
            "INSERT INTO tokens (name, sha256, role, added_at) VALUES (?, ?, ?, ?)", name, f"sha {name}", "read", 1.5
        )
        return name

    return work


def failing(error):
    def work(session):
        put("undone")(session)
        raise error

    return work


async def names(database):
    rows = await database.run(lambda session: session.execute("SELECT name FROM tokens ORDER BY name"))
    return [row[0] for row in rows]


async def test_each_of_those_that_go_together_gets_what_came_of_it_alone(database):
    await database.run(put("there"))
    works = [put("a"), failing(LookupError("no")), put("there"), put("b")]
    ended = await asyncio.gather(*(database.run(work, together="t") for work in works), return_exceptions=True)
    assert (ended[0], ended[3]) == ("a", "b")
    assert (type(ended[1]), type(ended[2])) == (LookupError, StateError)
    assert await names(database) == ["a", "b", "there"]


async def test_those_that_go_together_see_each_other_in_their_order(database):
    def last(session):
        rows = session.execute("SELECT max(added_at) FROM tokens")
        at = (rows[0][0] or 0.0) + 1
        session.execute("INSERT INTO tokens VALUES (?, ?, 'read', ?)", f"t{at:g}", f"sha {at:g}", at)
        return at

    # Without a lock: on either database they come one after another.
    assert await asyncio.gather(*(database.run(last, together="t") for _ in range(200))) == [
        float(n) for n in range(1, 201)
    ]


async def test_who_asked_may_go_away_and_the_others_get_theirs(database):
    asking = [asyncio.create_task(database.run(put(f"t{n}"), together="t")) for n in range(10)]
    await asyncio.sleep(0)
    asking[3].cancel()
    ended = await asyncio.gather(*asking, return_exceptions=True)
    assert [one for n, one in enumerate(ended) if n != 3] == [f"t{n}" for n in range(10) if n != 3]
    assert isinstance(ended[3], asyncio.CancelledError)


async def test_listeners_hear_of_a_commit_though_who_asked_is_gone(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "state.db", SystemClock())
    heard: asyncio.Queue[str] = asyncio.Queue()
    database.listen(heard.put_nowait)
    asking = asyncio.create_task(database.run(lambda session: session.notify("jobs")))
    await asyncio.sleep(0)
    asking.cancel()
    assert await heard.get() == "jobs"
    assert asking.cancelled()
    await database.aclose()


async def test_increments_and_refusals_beside_each_other_are_exact(database):
    kv = KvStore(database)
    await kv.set("a", "text", b"x", limit_bytes=MUCH)
    ended = await asyncio.gather(
        *(kv.increment("a", "n", 1, limit_bytes=MUCH) for _ in range(100)),
        *(kv.increment("a", "text", 1, limit_bytes=MUCH) for _ in range(5)),
        *(kv.set("a", "big", b"x" * 100, limit_bytes=50) for _ in range(5)),
        return_exceptions=True,
    )
    assert sorted(one for one in ended[:100]) == list(range(1, 101))
    assert [type(one) for one in ended[100:]] == [KvConflictError] * 5 + [KvFullError] * 5
    assert await kv.stores() == (("a", 2, len("text") + 1 + len("n") + 3),)


async def test_writers_to_one_store_keep_nobody_else_waiting(postgres_url):
    database = await PostgresDatabase.open(postgres_url)
    kv = KvStore(database)
    with psycopg.connect(postgres_url) as other_host:  # which is in the middle of a write to the store
        other_host.execute("SELECT pg_advisory_xact_lock(hashtextextended('faas kv hot', 0))")
        writing = [asyncio.create_task(kv.increment("hot", "n", 1, limit_bytes=MUCH)) for _ in range(4 * CONNECTIONS)]
        await asyncio.sleep(0)
        await kv.set("cold", "k", b"1", limit_bytes=MUCH)
        assert await kv.get("hot", "n") is None
    assert sorted(await asyncio.gather(*writing)) == list(range(1, 4 * CONNECTIONS + 1))
    await database.aclose()


async def test_closing_leaves_nobody_waiting(postgres_url):
    database = await PostgresDatabase.open(postgres_url)
    asking = [asyncio.create_task(database.run(put(f"t{n}"), together="t")) for n in range(200)]
    await asyncio.sleep(0)
    await database.aclose()
    ended = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(one) for one in ended} <= {str, StateError}
    database = await PostgresDatabase.open(postgres_url)
    assert sorted(await names(database)) == sorted(one for one in ended if isinstance(one, str))
    await database.aclose()


async def test_a_runtime_error_of_the_work_is_not_taken_for_a_closed_database(database):
    with pytest.raises(RuntimeError, match="of mine"):
        await database.run(failing(RuntimeError("of mine")))


async def test_a_server_that_is_restarted_is_found_again_and_nothing_acknowledged_is_lost():
    if find_postgres() is None:
        pytest.skip("there is no PostgreSQL on this machine: apt-get install postgresql")
    with running_postgres() as server:
        database = await PostgresDatabase.open(server.url)
        heard: asyncio.Queue[str] = asyncio.Queue()
        database.listen(heard.put_nowait)
        kv = KvStore(database)
        await asyncio.gather(*(kv.increment(f"s{n}", "n", 1, limit_bytes=MUCH) for n in range(CONNECTIONS)))
        await asyncio.to_thread(server.stop)
        with pytest.raises(StateError):
            await kv.increment("s0", "n", 1, limit_bytes=MUCH)
        await asyncio.to_thread(server.start)
        assert await heard.get() == ANYTHING
        sums = await asyncio.gather(*(kv.increment(f"s{n}", "n", 1, limit_bytes=MUCH) for n in range(CONNECTIONS)))
        assert sums == [2] * CONNECTIONS
        await database.aclose()


async def test_a_database_of_another_encoding_is_refused(postgres):
    folder = postgres.partition("host=")[2]
    subprocess.run(
        [
            f"{find_postgres()}/createdb", "-h", folder, "-U", "faas", "-E", "LATIN1", "-T", "template0",
            "--locale", "C", "latin",
        ],
        check=True,
    )  # fmt: skip
    with pytest.raises(StateError, match="encoding LATIN1"):
        await PostgresDatabase.open(f"postgresql://faas@/latin?host={folder}")
