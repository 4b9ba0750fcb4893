"""What workers ask of the stores is answered within grants and limits, whatever they ask."""

from __future__ import annotations

import asyncio

import pytest

from faas.clock import SystemClock
from faas.control.kv import MAX_BATCH_BYTES, MAX_BATCH_KEYS, MAX_KEY_BYTES, MAX_TTL_S, KvService
from faas.errors import BadRequestError, KvDeniedError, KvFullError, KvKeyInvalidError, KvTooLargeError, StateError
from faas.gateway.kv import WorkerKv
from faas.guest.errno import to_guest_error
from faas.state.kv import SWEEP_KEYS, KvStore
from faas.state.sqlite import SqliteDatabase
from faas.wire.peer import Peer


@pytest.fixture
async def store(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "state.db", SystemClock())
    yield KvStore(database)
    await database.aclose()


@pytest.fixture
async def service(store):
    service = KvService(store, max_value_bytes=100, max_store_bytes=1000)
    await service.start()
    yield service
    await service.aclose()


@pytest.fixture
def worker(service):
    """A worker's port, with both ends of the conversation and no socket between them."""

    def ask(message):
        control.take(message)

    asking = Peer(ask, {})
    control = Peer(asking.take, service.handlers())
    return WorkerKv(asking)


async def test_every_operation_of_a_worker_comes_back(worker):
    await worker.set("f", "f", "k", b"\0\xff", ttl_s=3600)
    assert await worker.get("f", "f", "k") == b"\0\xff"
    assert await worker.get("f", "f", "none") is None
    assert await worker.exists("f", "f", "k")
    assert await worker.increment("f", "f", "n", 3) == 3
    assert not await worker.compare_and_set("f", "f", "k", b"x", b"y")
    assert await worker.compare_and_set("f", "f", "k", b"\0\xff", b"y")
    assert await worker.compare_and_set("f", "f", "new", None, b"z", ttl_s=3600)
    value, revision = await worker.entry("f", "f", "k")
    assert value == b"y"
    assert await worker.swap("f", "f", "k", revision, b"w")
    assert not await worker.swap("f", "f", "k", revision, b"v")
    assert await worker.entry("f", "f", "none") == (None, 0)
    await worker.set_many("f", "f", [("a", b"1"), ("b", b"2")])
    assert await worker.get_many("f", "f", ["a", "b", "c"]) == {"a": b"1", "b": b"2"}
    page = await worker.list("f", "f", "", limit=2)
    assert (list(page.keys), page.cursor) == (["a", "b"], "b")
    page = await worker.list("f", "f", "", cursor=page.cursor, limit=10)
    assert (list(page.keys), page.cursor) == (["k", "n", "new"], "")
    assert await worker.delete_many("f", "f", ["a", "b", "c"]) == 2
    assert await worker.delete("f", "f", "k")
    assert not await worker.delete("f", "f", "k")


def operations(worker, caller, store):
    """Return every operation as (coroutine function, whether it writes)."""
    return [
        (lambda: worker.get(caller, store, "k"), False),
        (lambda: worker.exists(caller, store, "k"), False),
        (lambda: worker.entry(caller, store, "k"), False),
        (lambda: worker.list(caller, store, ""), False),
        (lambda: worker.get_many(caller, store, ["k"]), False),
        (lambda: worker.set(caller, store, "k", b"1"), True),
        (lambda: worker.delete(caller, store, "k"), True),
        (lambda: worker.increment(caller, store, "n", 1), True),
        (lambda: worker.compare_and_set(caller, store, "k", None, b"1"), True),
        (lambda: worker.swap(caller, store, "k", 0, b"1"), True),
        (lambda: worker.set_many(caller, store, [("k", b"1")]), True),
        (lambda: worker.delete_many(caller, store, ["k"]), True),
    ]


async def test_every_operation_asks_for_a_grant(worker, service):
    assert len(operations(worker, "g", "f")) == len(service.handlers())
    for ask, _ in operations(worker, "g", "f"):
        with pytest.raises(KvDeniedError, match="kv grant f g"):
            await ask()
    await service.grant("f", "g", read_only=True, actor="")
    for ask, writes in operations(worker, "g", "f"):
        if writes:
            with pytest.raises(KvDeniedError, match="read only"):
                await ask()
        else:
            await ask()
    await service.grant("f", "g", read_only=False, actor="")
    for ask, _ in operations(worker, "g", "f"):
        await ask()
    with pytest.raises(KvDeniedError):
        await worker.get("f", "g", "k")  # a grant goes one way
    await service.revoke("f", "g", "")
    for ask, _ in operations(worker, "g", "f"):
        with pytest.raises(KvDeniedError):
            await ask()


async def test_grants_are_known_from_the_start(worker, service, store):
    await service.grant("f", "g", read_only=True, actor="")
    again = KvService(store, max_value_bytes=1, max_store_bytes=1)
    await again.start()
    assert await again.handlers()["kv.get"]({"caller": "g", "store": "f", "key": "k"}) is None
    await again.aclose()


async def test_own_store_can_not_be_granted(service):
    with pytest.raises(BadRequestError, match="own store"):
        await service.grant("f", "f", read_only=True, actor="")


@pytest.mark.parametrize("key", ["", "nul\0", "é" * (MAX_KEY_BYTES // 2) + "x", "\ud800"])
async def test_key_that_can_not_be_one_is_refused(service, key):
    asked = {
        "caller": "f", "store": "f", "key": key, "value": b"", "expected": None, "delta": 1, "revision": 0,
        "keys": [key], "entries": [(key, b"")], "prefix": key or "\0", "cursor": "", "limit": 1,
    }  # fmt: skip
    for operation, handler in service.handlers().items():
        with pytest.raises(KvKeyInvalidError):
            await handler(asked)
        assert operation
    with pytest.raises(KvKeyInvalidError):
        await service.keys("f", "", key or "\0", 1)


async def test_longest_key_is_kept(worker):
    key = "é" * (MAX_KEY_BYTES // 2)
    await worker.set("f", "f", key, b"1")
    assert await worker.get("f", "f", key) == b"1"


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_page_has_a_size(service, limit):
    with pytest.raises(KvKeyInvalidError, match="1 to 1000"):
        await service.keys("f", "", "", limit)


@pytest.mark.parametrize("ttl_s", [0, -1, MAX_TTL_S + 1, float("inf"), float("nan")])
async def test_time_to_live_has_a_range(worker, ttl_s):
    with pytest.raises(KvKeyInvalidError, match="time to live"):
        await worker.set("f", "f", "k", b"", ttl_s=ttl_s)
    with pytest.raises(KvKeyInvalidError, match="time to live"):
        await worker.compare_and_set("f", "f", "k", None, b"", ttl_s=ttl_s)


async def test_values_and_stores_have_limits(worker):
    big = b"x" * 101
    for ask in (
        lambda: worker.set("f", "f", "k", big),
        lambda: worker.compare_and_set("f", "f", "k", None, big),
        lambda: worker.swap("f", "f", "k", 0, big),
        lambda: worker.set_many("f", "f", [("k", b""), ("l", big)]),
    ):
        with pytest.raises(KvTooLargeError, match="kv_max_value_bytes"):
            await ask()
    with pytest.raises(KvFullError, match="kv_max_store_bytes"):
        await worker.set_many("f", "f", [(str(i), b"x" * 100) for i in range(10)])
    assert (await worker.list("f", "f", "")).keys == ()


async def test_batches_have_limits(worker, store):
    many = [str(i) for i in range(MAX_BATCH_KEYS + 1)]
    for ask in (
        lambda: worker.get_many("f", "f", many),
        lambda: worker.set_many("f", "f", [(key, b"") for key in many]),
        lambda: worker.delete_many("f", "f", many),
    ):
        with pytest.raises(KvTooLargeError, match="1000 keys"):
            await ask()
    half = b"x" * (MAX_BATCH_BYTES // 2 + 1)
    await store.set_many("f", [("a", half), ("b", half)], limit_bytes=1 << 30)
    with pytest.raises(KvTooLargeError, match="one batch"):
        await worker.get_many("f", "f", ["a", "b"])


async def test_grant_that_was_taken_back_is_none_though_who_took_it_back_is_gone(service, worker, store):
    await service.grant("f", "g", read_only=False, actor="")
    revoking = asyncio.create_task(service.revoke("f", "g", ""))
    await asyncio.sleep(0)
    revoking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await revoking
    assert await store.grants() == ()
    with pytest.raises(KvDeniedError):
        await worker.get("g", "f", "k")


async def test_grants_that_were_read_first_are_not_taken_last(service, store, monkeypatch):
    slow, reading = asyncio.Event(), asyncio.Event()
    grants, n_reads = store.grants, 0

    async def read():
        nonlocal n_reads
        n_reads += 1
        found = await grants()
        if n_reads == 1:
            reading.set()
            await slow.wait()
        return found

    await service.grant("f", "g", read_only=False, actor="")
    monkeypatch.setattr(store, "grants", read)
    first = asyncio.create_task(service.load())
    await reading.wait()
    revoking = asyncio.create_task(service.revoke("f", "g", ""))
    while await grants():
        await asyncio.sleep(0)
    slow.set()
    await asyncio.gather(first, revoking)
    assert service._grants == {}


async def test_every_refusal_is_one_that_a_guest_is_told_of():
    for refusal in (KvDeniedError, KvFullError, KvKeyInvalidError, KvTooLargeError, StateError):
        assert to_guest_error(refusal("x")) is not None


async def test_expired_entries_are_swept_until_none_is_left(store):
    slept = asyncio.Event()

    async def sleep(pause_s):
        if pause_s:
            slept.set()
            await asyncio.get_running_loop().create_future()

    entries = [(f"{i}", b"x") for i in range(SWEEP_KEYS + 5)]
    await store.set_many("f", entries, limit_bytes=1 << 20, ttl_s=1e-6)
    await store.set("f", "kept", b"x", limit_bytes=1 << 20)
    service = KvService(store, max_value_bytes=1, max_store_bytes=1, sleep=sleep)
    await service.start()
    await slept.wait()
    await service.aclose()
    assert [(size.store, size.keys) for size in await store.stores()] == [("f", 1)]
