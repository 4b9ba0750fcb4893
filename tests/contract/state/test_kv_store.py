"""What key-value stores promise, on either database."""

from __future__ import annotations

import asyncio

import pytest

from faas.clock import SystemClock
from faas.errors import KvConflictError, KvFullError, KvGrantNotFoundError
from faas.state.kv import CHANGED as KV_CHANGED
from faas.state.kv import Grant, KvStore, forget_function
from faas.state.settings import CHANGED as SETTINGS_CHANGED
from faas.state.settings import SecretEntry, SettingStore
from faas.state.sqlite import SqliteDatabase

MUCH = 1 << 20
SOON_S = 1e-6
"""Over before the next statement begins, on every clock."""


@pytest.fixture
def kv(database):
    return KvStore(database)


async def audit(database):
    return await database.run(
        lambda session: session.execute("SELECT actor, action, function, detail FROM audit ORDER BY seq")
    )


async def size_of(kv, store):
    return next(((s.keys, s.bytes) for s in await kv.stores() if s.store == store), (0, 0))


async def test_value_of_any_bytes_comes_back_until_it_is_deleted(kv):
    value = bytes(range(256)) * 3
    assert await kv.get("a", "k") is None
    await kv.set("a", "k", value, limit_bytes=MUCH)
    assert (await kv.get("a", "k")).value == value
    assert await kv.exists("a", "k")
    assert await kv.delete("a", "k")
    assert not await kv.delete("a", "k")
    assert not await kv.exists("a", "k")
    assert await kv.get("a", "k") is None


async def test_stores_do_not_see_each_other(kv):
    await kv.set("a", "k", b"a's", limit_bytes=MUCH)
    await kv.set("b", "k", b"b's", limit_bytes=MUCH)
    assert (await kv.get("a", "k")).value == b"a's"
    await kv.delete("b", "k")
    assert (await kv.get("a", "k")).value == b"a's"
    assert (await kv.keys("b")).keys == ()


async def test_keys_come_in_the_order_of_their_bytes_page_by_page(kv):
    keys = ["z", "a", "A", "é", "ab", "\U0001f600", "\uffee", "a/1", "a/2"]
    await kv.set_many("a", [(key, b"") for key in keys], limit_bytes=MUCH)
    await kv.set("b", "other", b"", limit_bytes=MUCH)
    found, cursor = [], ""
    while True:
        page = await kv.keys("a", after=cursor, limit=2)
        assert len(page.keys) <= 2
        found += page.keys
        cursor = page.cursor
        if not cursor:
            break
    assert found == sorted(keys, key=str.encode)


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("a", ["a", "a/1", "ab"]),
        ("a/", ["a/1"]),
        ("\ud7ff", ["\ud7ff!"]),
        ("\U0010ffff", ["\U0010ffffz"]),
        ("%", []),
        ("no", []),
    ],
)
async def test_prefix_finds_what_begins_with_it_and_nothing_else(kv, prefix, found):
    keys = ["a", "a/1", "ab", "b", "A", "\ud7ff!", "\ue000", "\U0010ffffz"]
    await kv.set_many("a", [(key, b"") for key in keys], limit_bytes=MUCH)
    assert list((await kv.keys("a", prefix)).keys) == found


async def test_page_that_ends_with_the_last_key_has_no_cursor(kv):
    await kv.set_many("a", [("1", b""), ("2", b"")], limit_bytes=MUCH)
    assert await kv.keys("a", limit=2) == (("1", "2"), "")
    assert await kv.keys("a", limit=1) == (("1",), "1")


async def test_entry_whose_time_is_over_is_there_for_nobody(kv):
    await kv.set("a", "gone", b"7", limit_bytes=MUCH, ttl_s=SOON_S)
    await kv.set("a", "kept", b"7", limit_bytes=MUCH, ttl_s=3600)
    assert await kv.get("a", "gone") is None
    assert not await kv.exists("a", "gone")
    assert await kv.get_many("a", ["gone", "kept"], max_bytes=MUCH) == {"kept": b"7"}
    assert (await kv.keys("a")).keys == ("kept",)
    assert not await kv.delete("a", "gone")
    await kv.set("a", "gone", b"7", limit_bytes=MUCH, ttl_s=SOON_S)
    assert await kv.increment("a", "gone", 1, limit_bytes=MUCH) == 1
    assert (await kv.get("a", "gone")).expires_at is None
    await kv.set("a", "gone", b"7", limit_bytes=MUCH, ttl_s=SOON_S)
    assert not await kv.compare_and_set("a", "gone", b"7", b"8", limit_bytes=MUCH)
    assert await kv.compare_and_set("a", "gone", None, b"8", limit_bytes=MUCH)


async def test_sweep_takes_expired_entries_away_and_their_bytes_off_the_count(kv):
    await kv.set_many("a", [(str(i), b"12345") for i in range(3)], limit_bytes=MUCH, ttl_s=SOON_S)
    await kv.set_many("b", [("k", b"12345")], limit_bytes=MUCH, ttl_s=SOON_S)
    await kv.set("a", "kept", b"1234", limit_bytes=MUCH)
    assert await size_of(kv, "a") == (4, 26)
    assert sorted([await kv.sweep(), await kv.sweep()]) == [1, 3]
    assert await kv.sweep() == 0
    assert await kv.stores() == (("a", 1, 8),)


async def test_value_that_is_set_again_lives_by_its_new_time(kv):
    await kv.set("a", "k", b"1", limit_bytes=MUCH, ttl_s=3600)
    await kv.set("a", "k", b"2", limit_bytes=MUCH)
    assert (await kv.get("a", "k")).expires_at is None


async def test_increment_counts_from_nothing_and_keeps_the_time_to_live(kv):
    assert await kv.increment("a", "n", -5, limit_bytes=MUCH) == -5
    assert await kv.increment("a", "n", 7, limit_bytes=MUCH) == 2
    await kv.set("a", "n", b"40", limit_bytes=MUCH, ttl_s=3600)
    until = (await kv.get("a", "n")).expires_at
    assert await kv.increment("a", "n", 2, limit_bytes=MUCH) == 42
    entry = await kv.get("a", "n")
    assert (entry.value, entry.expires_at) == (b"42", until)


@pytest.mark.parametrize("value", [b"", b"x", b"1.5", b"-", b" 1", b"1_0", b"9223372036854775808", "\u0663".encode()])
async def test_increment_of_what_is_no_number_is_a_conflict_and_changes_nothing(kv, value):
    await kv.set("a", "n", value, limit_bytes=MUCH)
    with pytest.raises(KvConflictError):
        await kv.increment("a", "n", 1, limit_bytes=MUCH)
    assert (await kv.get("a", "n")).value == value


async def test_sum_beyond_64_bits_is_a_conflict(kv):
    await kv.set("a", "n", b"9223372036854775807", limit_bytes=MUCH)
    assert await kv.increment("a", "n", 0, limit_bytes=MUCH) == 2**63 - 1
    with pytest.raises(KvConflictError):
        await kv.increment("a", "n", 1, limit_bytes=MUCH)


async def test_a_thousand_increments_at_once_are_a_thousand(kv):
    sums = await asyncio.gather(*(kv.increment("a", "n", 1, limit_bytes=MUCH) for _ in range(1000)))
    assert sorted(sums) == list(range(1, 1001))
    assert (await kv.get("a", "n")).value == b"1000"


async def test_of_many_who_claim_an_absent_key_one_gets_it(kv):
    won = await asyncio.gather(*(kv.compare_and_set("a", "lock", None, b"%d" % i, limit_bytes=MUCH) for i in range(50)))
    assert sum(won) == 1
    assert (await kv.get("a", "lock")).value == b"%d" % won.index(True)


async def test_compare_and_set_goes_by_the_value(kv):
    await kv.set("a", "k", b"1", limit_bytes=MUCH)
    assert not await kv.compare_and_set("a", "k", None, b"2", limit_bytes=MUCH)
    assert not await kv.compare_and_set("a", "k", b"0", b"2", limit_bytes=MUCH)
    assert await kv.compare_and_set("a", "k", b"1", b"2", limit_bytes=MUCH)
    assert not await kv.compare_and_set("a", "absent", b"", b"2", limit_bytes=MUCH)


async def test_swap_tells_a_value_that_came_back_from_the_one_it_saw(kv):
    await kv.set("a", "k", b"1", limit_bytes=MUCH)
    seen = (await kv.get("a", "k")).revision
    await kv.set("a", "k", b"2", limit_bytes=MUCH)
    await kv.set("a", "k", b"1", limit_bytes=MUCH)
    assert not await kv.swap("a", "k", seen, b"3", limit_bytes=MUCH)
    assert await kv.swap("a", "k", (await kv.get("a", "k")).revision, b"3", limit_bytes=MUCH)
    assert await kv.swap("a", "new", 0, b"x", limit_bytes=MUCH)
    assert not await kv.swap("a", "new", 0, b"y", limit_bytes=MUCH)


@pytest.mark.parametrize("gone", ["deleted", "dropped", "expired"])
async def test_revision_is_never_given_twice(kv, gone):
    await kv.set("a", "k", b"1", limit_bytes=MUCH)
    seen = (await kv.get("a", "k")).revision
    if gone == "deleted":
        await kv.delete("a", "k")
    elif gone == "dropped":
        await kv.drop("a")
    else:
        await kv.set("a", "k", b"1", limit_bytes=MUCH, ttl_s=SOON_S)
        await kv.sweep()
    await kv.set("a", "k", b"1", limit_bytes=MUCH)
    assert (await kv.get("a", "k")).revision != seen


async def test_batches_are_done_as_a_whole_or_not_at_all(kv):
    await kv.set_many("a", [("1", b"a"), ("2", b"b"), ("1", b"c")], limit_bytes=MUCH)
    assert await kv.get_many("a", ["1", "2", "3", "1"], max_bytes=MUCH) == {"1": b"c", "2": b"b"}
    with pytest.raises(KvFullError):
        await kv.set_many("a", [("1", b"d"), ("big", b"x" * 100)], limit_bytes=50)
    assert await kv.get_many("a", ["1", "big"], max_bytes=MUCH) == {"1": b"c"}
    assert await kv.delete_many("a", ["1", "2", "3", "2"]) == 2
    assert await kv.stores() == ()


async def test_more_keys_than_one_statement_names_are_found(kv):
    entries = {f"{i:04}": b"%d" % i for i in range(450)}
    await kv.set_many("a", entries.items(), limit_bytes=MUCH)
    assert await kv.get_many("a", [*entries, "absent"], max_bytes=MUCH) == entries


async def test_store_holds_so_many_bytes_and_no_more(kv):
    await kv.set("a", "12", b"345", limit_bytes=10)
    await kv.set("a", "67", b"890", limit_bytes=10)
    with pytest.raises(KvFullError) as caught:
        await kv.set("a", "67", b"8901", limit_bytes=10)
    assert caught.value.facts["limit_bytes"] == 10
    assert (await kv.get("a", "67")).value == b"890"
    await kv.set("a", "67", b"8", limit_bytes=5)  # less than before is always welcome
    await kv.set("b", "12", b"345", limit_bytes=10)
    await kv.delete("a", "12")
    await kv.set("a", "67", b"8901", limit_bytes=10)
    assert await size_of(kv, "a") == (1, 6)


async def test_what_is_expired_makes_room_for_a_write(kv):
    await kv.set_many("a", [("1", b"1234"), ("2", b"1234")], limit_bytes=10, ttl_s=SOON_S)
    await kv.set("a", "1", b"12345678", limit_bytes=10)
    assert await size_of(kv, "a") == (1, 9)
    assert (await kv.get("a", "1")).value == b"12345678"


async def test_write_to_a_full_store_does_not_look_at_all_of_it(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "state.db", SystemClock())
    kv = KvStore(database)
    await kv.set_many("a", [(f"{n:05}", b"x") for n in range(5000)], limit_bytes=MUCH)
    n_steps = 0

    def count():
        nonlocal n_steps
        n_steps += 100

    await database.run(lambda _session: database._connection.set_progress_handler(count, 100))
    with pytest.raises(KvFullError):
        await kv.set("a", "more", b"x", limit_bytes=5000 * 6)
    assert n_steps < 5000
    await database.aclose()


async def test_writers_at_once_keep_the_count_exact(kv):
    async def work(i):
        await kv.set("a", f"{i % 7}", b"x" * (i % 13), limit_bytes=MUCH, ttl_s=SOON_S if i % 5 == 0 else None)
        await kv.delete("a", f"{(i * 3) % 7}")
        await kv.increment("a", f"n{i % 3}", i, limit_bytes=MUCH)
        await kv.sweep()

    await asyncio.gather(*(work(i) for i in range(60)))
    while await kv.sweep():
        pass
    keys = (await kv.keys("a", limit=1000)).keys
    values = await kv.get_many("a", keys, max_bytes=MUCH)
    assert await size_of(kv, "a") == (len(keys), sum(len(key) + len(value) for key, value in values.items()))


async def test_grants_are_kept_changed_and_taken_back(kv, database):
    await kv.add_grant("a", "b", read_only=True, actor="ann")
    await kv.add_grant("a", "c", read_only=False)
    first = await kv.add_grant("a", "b", read_only=False, actor="ann")
    assert [(g.store, g.function, g.read_only) for g in await kv.grants()] == [("a", "b", False), ("a", "c", False)]
    assert isinstance(first, Grant)
    await kv.remove_grant("a", "b", actor="bob")
    with pytest.raises(KvGrantNotFoundError, match="kv grants"):
        await kv.remove_grant("a", "b")
    assert [g.function for g in await kv.grants()] == ["c"]
    rows = await audit(database)
    assert rows[0] == ("ann", "kv.grant", "a", '{"to":"b","read_only":true}')
    assert rows[-1] == ("bob", "kv.revoke", "a", '{"to":"b"}')


@pytest.mark.parametrize("purge", [False, True])
async def test_removed_function_loses_its_grants_and_with_purge_its_store(kv, database, purge):
    await kv.set("a", "k", b"1", limit_bytes=MUCH)
    await kv.set("b", "k", b"1", limit_bytes=MUCH)
    await kv.add_grant("a", "b", read_only=False)
    await kv.add_grant("b", "a", read_only=False)
    await database.run(lambda session: forget_function(session, "a", purge=purge, actor=""))
    assert [(g.store, g.function) for g in await kv.grants()] == ([] if purge else [("a", "b")])
    assert [store.store for store in await kv.stores()] == (["b"] if purge else ["a", "b"])


async def test_every_host_hears_of_grants_and_settings_that_change(open_database):
    database = await open_database()
    heard: asyncio.Queue[str] = asyncio.Queue()
    database.listen(heard.put_nowait)
    kv, settings = KvStore(database), SettingStore(database)
    for change, topic in (
        (lambda: kv.add_grant("a", "b", read_only=False), KV_CHANGED),
        (lambda: kv.remove_grant("a", "b"), KV_CHANGED),
        (lambda: settings.set_config("a", {"A": "1"}), SETTINGS_CHANGED),
        (lambda: settings.unset_config("a", ["A"]), SETTINGS_CHANGED),
        (lambda: settings.set_secret(SecretEntry("a", "S", b"", "k")), SETTINGS_CHANGED),
        (lambda: settings.reseal([]), SETTINGS_CHANGED),
        (lambda: settings.unset_secret("a", "S"), SETTINGS_CHANGED),
    ):
        await change()
        assert await heard.get() == topic
    await database.aclose()


async def test_what_was_written_is_there_after_reopening(open_database):
    database = await open_database()
    await KvStore(database).set("a", "k", b"1", limit_bytes=MUCH)
    await database.aclose()
    database = await open_database()
    assert (await KvStore(database).get("a", "k")).value == b"1"
    await database.aclose()


async def test_time_is_the_databases(tmp_path):
    class Clock(SystemClock):
        at_s = 1000.0

        def time_ns(self):
            return int(self.at_s * 1e9)

    clock = Clock()
    database = await SqliteDatabase.open(tmp_path / "state.db", clock)
    kv = KvStore(database)
    await kv.set("a", "k", b"1", limit_bytes=MUCH, ttl_s=10)
    clock.at_s = 1009.9
    assert (await kv.get("a", "k")).expires_at == pytest.approx(1010)
    clock.at_s = 1010.0
    assert await kv.get("a", "k") is None
    await database.aclose()
