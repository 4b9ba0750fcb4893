"""Hosts that share a database follow each other and have each other's files."""

from __future__ import annotations

import asyncio

import pytest

from faas.artifacts.store import ArtifactStore
from faas.clock import SystemClock
from faas.control.sharing import ANYTHING, Follower, SharedFiles
from faas.errors import ArtifactMissingError, StateError
from faas.invocation import Deployment, Kind
from faas.manifest import manifest_from_builtins
from faas.state.sqlite import SqliteDatabase
from faas.state.state import State


class SharedSqlite(SqliteDatabase):
    """Stands for a database of several hosts: they are all in this process."""

    shared = True


@pytest.fixture
async def database(tmp_path):
    database = await SharedSqlite.open(tmp_path / "state.db", SystemClock())
    yield database
    await database.aclose()


@pytest.fixture
def state(database):
    return State(database, database)


async def test_a_notice_has_its_topic_looked_at_and_anything_has_all_of_them():
    looked = asyncio.Queue()

    async def look(topic):
        looked.put_nowait(topic)

    follower = Follower({"a": lambda: look("a"), "b": lambda: look("b")})
    follower.heard("unknown")
    follower.heard("b")
    assert await looked.get() == "b"
    follower.heard(ANYTHING)
    assert {await looked.get(), await looked.get()} == {"a", "b"}
    await follower.aclose()


async def test_what_is_heard_during_a_look_is_one_more_look():
    began, go, n_looks = asyncio.Semaphore(0), asyncio.Semaphore(0), 0

    async def look():
        nonlocal n_looks
        n_looks += 1
        began.release()
        await go.acquire()

    follower = Follower({"a": look})
    follower.heard("a")
    await began.acquire()
    for _ in range(5):
        follower.heard("a")
    go.release()
    await began.acquire()
    (task,) = follower._running.values()
    go.release()
    await task
    assert n_looks == 2


async def test_a_look_that_fails_is_tried_again_and_a_bug_ends_it():
    tries = []

    async def look():
        tries.append(1)
        if len(tries) == 1:
            raise StateError("away")
        raise KeyError("a bug")

    async def at_once(_seconds):
        return

    follower = Follower({"a": look}, sleep=at_once)
    follower.heard("a")
    (task,) = follower._running.values()
    await task
    assert len(tries) == 2


def of(wasm, bundle=""):
    return Deployment("a", 1, Kind.COMMAND, wasm, "k", bundle, manifest_from_builtins({"name": "a"}))


async def test_what_one_host_publishes_another_one_has(state, tmp_path):
    one, other = ArtifactStore(tmp_path / "one"), ArtifactStore(tmp_path / "other")
    wasm, bundle = one.put_wasm(b"\0asm"), one.put_bundle(b"tar")
    await SharedFiles(state, one).publish(wasm, bundle)
    await SharedFiles(state, other).fetch(of(wasm, bundle))
    assert other.wasm_path(wasm).read_bytes() == b"\0asm"
    assert other.bundle_path(bundle).read_bytes() == b"tar"


async def test_what_nobody_published_is_missing(state, tmp_path):
    with pytest.raises(ArtifactMissingError):
        await SharedFiles(state, ArtifactStore(tmp_path / "one")).fetch(of("0" * 64))


async def test_a_host_of_its_own_publishes_nothing(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "own.db", SystemClock())
    store = ArtifactStore(tmp_path / "one")
    wasm = store.put_wasm(b"\0asm")
    files = SharedFiles(State(database, database), store)
    await files.publish(wasm, "")
    await files.fetch(of("0" * 64))
    assert await database.run(lambda session: session.execute("SELECT count(*) FROM blobs")) == [(0,)]
    await database.aclose()
