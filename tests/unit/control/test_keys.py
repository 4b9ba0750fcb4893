"""An API key is shown once, kept as a hash, and known to every worker before its maker hears of it."""

from __future__ import annotations

import hashlib

import pytest

from faas.errors import KeyNotFoundError, KeyTakenError
from faas.wire.messages import ApiKey


async def test_new_key_is_known_to_every_worker_as_a_hash(bench):
    entry, text = await bench.keys.add("bot", 1000)
    expected = ApiKey("bot", hashlib.sha256(text.encode()).hexdigest(), 1000)
    assert [worker.keys.keys for worker in bench.fleet.workers] == [(expected,)] * 2
    assert entry.added_at > 0
    assert text not in (bench.home / "state.db").read_bytes().decode(errors="ignore")


async def test_removed_key_is_forgotten_by_every_worker(bench):
    await bench.keys.add("a", 0)
    await bench.keys.add("b", 0)
    await bench.keys.remove("a")
    assert [key.name for key in bench.fleet.workers[1].keys.keys] == ["b"]


async def test_name_is_taken_once_and_removed_once(bench):
    await bench.keys.add("a", 0)
    with pytest.raises(KeyTakenError, match="faas keys remove a"):
        await bench.keys.add("a", 0)
    await bench.keys.remove("a")
    with pytest.raises(KeyNotFoundError, match="faas keys list"):
        await bench.keys.remove("a")


async def test_name_of_those_without_a_key_is_taken(bench):
    with pytest.raises(KeyTakenError, match="another name"):
        await bench.keys.add("anonymous", 0)


async def test_two_keys_are_never_the_same(bench):
    assert (await bench.keys.add("a", 0))[1] != (await bench.keys.add("b", 0))[1]


async def test_worker_that_starts_later_has_the_keys_in_its_settings(new_bench):
    bench = new_bench()
    await bench.start()
    entry, _ = await bench.keys.add("a", 5)
    await bench.stop()
    again = new_bench()
    await again.start()
    key = {"name": "a", "sha256": entry.sha256, "tokens_per_minute": 5}
    assert again.fleet.workers[0].settings["keys"] == [key]
    await again.stop()
