"""What hosts that share a database keep in it for each other: files, and who does what only one of them may do."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from faas.errors import ArtifactMissingError, ArtifactTamperedError
from faas.state import blobs
from faas.state.blobs import BlobStore
from faas.state.leases import LeaseStore


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


async def test_a_lease_is_one_holders_until_it_runs_out(database):
    leases = LeaseStore(database)
    held = await asyncio.gather(*(leases.hold("canaries", holder, 60) for holder in "abcde"))
    assert sum(held) == 1
    holder, other = "abcde"[held.index(True)], "abcde"[held.index(False)]
    assert await leases.hold("canaries", holder, 60)
    assert not await leases.hold("canaries", other, 60)
    assert await leases.hold("another", other, 60)
    await at(database, "leases", "until", -61)
    assert await leases.hold("canaries", other, 60)
    assert not await leases.hold("canaries", holder, 60)


async def test_a_lease_that_was_let_go_is_free_at_once_and_only_its_holder_can(database):
    leases = LeaseStore(database)
    assert await leases.hold("canaries", "a", 60)
    await leases.let_go("canaries", "b")
    assert not await leases.hold("canaries", "b", 60)
    await leases.let_go("canaries", "a")
    assert await leases.hold("canaries", "b", 60)
