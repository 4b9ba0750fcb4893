"""What hosts that share a database keep in it for each other: modules and bundles."""

from __future__ import annotations

import asyncio
import hashlib
import threading

import pytest

from faas.errors import ArtifactMissingError, ArtifactTamperedError
from faas.state import blobs
from faas.state.blobs import BlobStore
from faas.state.postgresql import PostgresDatabase


def digest_of(contents):
    return hashlib.sha256(contents).hexdigest()


async def at(database, table, column, seconds):
    """Move a time of every row of *table* by *seconds*."""
    await database.run(lambda session: session.execute(f"UPDATE {table} SET {column} = {column} + ?", seconds))


@pytest.mark.parametrize("contents", [b"", b"\x00asm", b"\xff" * 100, bytes(range(256)) * 3])
async def test_a_blob_comes_back_whole_however_many_parts_it_took(database, contents, monkeypatch):
    monkeypatch.setattr(blobs, "PART_BYTES", 100)
    store = BlobStore(database)
    await asyncio.gather(*(store.put(digest_of(contents), contents) for _ in range(3)))
    assert await store.get(digest_of(contents)) == contents


async def test_a_missing_and_a_damaged_blob_are_told_apart(database):
    store = BlobStore(database)
    with pytest.raises(ArtifactMissingError):
        await store.get("ab")
    await store.put(digest_of(b"x"), b"x")
    await database.run(lambda session: session.execute("UPDATE blob_parts SET content = ?", b"y"))
    with pytest.raises(ArtifactTamperedError):
        await store.get(digest_of(b"x"))


async def test_a_sweep_leaves_what_is_named_and_what_is_young(database):
    store = BlobStore(database)
    for contents in (b"kept", b"old"):
        await store.put(digest_of(contents), contents)
    await at(database, "blobs", "added_at", -blobs.YOUNG_S - 1)
    await store.put(digest_of(b"young"), b"young")
    assert await store.sweep({digest_of(b"kept")}) == 1
    assert await store.get(digest_of(b"kept")) == b"kept"
    assert await store.get(digest_of(b"young")) == b"young"
    with pytest.raises(ArtifactMissingError):
        await store.get(digest_of(b"old"))


async def test_a_blob_that_is_put_again_is_young_again(database):
    store = BlobStore(database)
    await store.put(digest_of(b"x"), b"x")
    await at(database, "blobs", "added_at", -blobs.YOUNG_S - 1)
    await store.put(digest_of(b"x"), b"x")
    assert await store.sweep(set()) == 0


async def test_a_blob_that_is_put_again_while_a_sweep_is_about_to_take_it_stays(postgres_url):
    one, other = await PostgresDatabase.open(postgres_url), await PostgresDatabase.open(postgres_url)
    store = BlobStore(one)
    await store.put(digest_of(b"x"), b"x")
    await at(one, "blobs", "added_at", -blobs.YOUNG_S - 1)
    has_read, put_again = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Reading(set):
        """What is named: the sweep looks here between what it has read and what it removes."""

        def __contains__(self, _digest):
            loop.call_soon_threadsafe(has_read.set)
            assert put_again.wait(10)
            return False

    sweeping = asyncio.create_task(BlobStore(other).sweep(Reading()))
    await has_read.wait()
    await store.put(digest_of(b"x"), b"x")
    put_again.set()
    assert await sweeping == 0
    assert await store.get(digest_of(b"x")) == b"x"
    await one.aclose()
    await other.aclose()
