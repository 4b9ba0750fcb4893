"""Code is loaded at its first use, the least recently used goes first, and what is in use stays."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from faas.artifacts.bundle import pack_bundle
from faas.artifacts.store import ArtifactStore
from faas.errors import ArtifactMissingError, CompileFailedError
from faas.gateway.code import MODULE_OVERHEAD_BYTES, CodeCache, code_key
from faas.invocation import Deployment, Kind
from faas.manifest import manifest_from_builtins

NATIVE_BYTES = 1000
EACH = NATIVE_BYTES + MODULE_OVERHEAD_BYTES


class LoadedTemplate:
    """Stands for linked native code; what the engine would free goes with the last reference."""

    def __init__(self, native):
        self.native = native


class RecordingRuntime:
    """Loads whatever the store proved; ``loaded`` has the first byte of each, in order."""

    def __init__(self):
        self.loaded = []
        self.templates = []

    def load(self, path):
        template = LoadedTemplate(path.read_bytes())
        self.loaded.append(template.native[:1].decode())
        self.templates.append(weakref.ref(template))
        return template

    def alive(self):
        gc.collect()
        return [template().native[:1].decode() for template in self.templates if template() is not None]


@pytest.fixture
def runtime():
    return RecordingRuntime()


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path)


@pytest.fixture
def deployed(store):
    """Make a deployment whose stored native code begins with the given letter."""

    def make(letter, function="", bundle_digest=""):
        key = letter.encode().hex().rjust(64, "0")
        if not store.keeps_native(key):
            native = store.scratch / letter
            native.write_bytes(letter.encode().ljust(NATIVE_BYTES, b"."))
            store.put_native(key, native)
        name = function or letter
        return Deployment(name, 1, Kind.COMMAND, "0" * 64, key, bundle_digest, manifest_from_builtins({"name": name}))

    return make


@pytest.fixture
def make_cache(runtime, store):
    async def no_repair(deployment):
        raise AssertionError(f"nothing of {deployment.function} is missing")

    return lambda budget_bytes, repair=no_repair: CodeCache(runtime, store, repair, budget_bytes=budget_bytes)


async def use(cache, deployment):
    cache.release(await cache.acquire(deployment))
    await room_is_made(cache)


async def room_is_made(cache):
    """Let the loop turn until nothing more is going to be evicted."""
    await asyncio.sleep(0)
    while cache._shrinking:
        await asyncio.sleep(0)


async def test_code_is_loaded_once_and_found_again(make_cache, runtime, deployed):
    cache = make_cache(10 * EACH)
    code = await cache.acquire(deployed("a"))
    assert cache.try_acquire(code_key(deployed("a"))) is code
    assert code.n_users == 2
    assert runtime.loaded == ["a"]
    assert cache.n_bytes == EACH


async def test_deployments_of_one_module_and_bundle_share_their_code(make_cache, deployed):
    cache = make_cache(10 * EACH)
    assert await cache.acquire(deployed("a", "one")) is await cache.acquire(deployed("a", "two"))
    assert cache.n_loads == 1


async def test_least_recently_used_goes_first_and_its_memory_with_it(make_cache, runtime, deployed):
    cache = make_cache(2 * EACH)
    for letter in "abac":
        await use(cache, deployed(letter))
    assert [letter for letter in "abc" if code_key(deployed(letter)) in cache] == ["a", "c"]
    assert runtime.alive() == ["a", "c"]
    assert (cache.n_bytes, cache.n_evictions) == (2 * EACH, 1)
    await use(cache, deployed("b"))
    assert runtime.loaded == ["a", "b", "c", "b"]


async def test_code_in_use_is_never_unloaded(make_cache, runtime, deployed):
    cache = make_cache(EACH)
    held = await cache.acquire(deployed("a"))
    for letter in "bcd":
        await use(cache, deployed(letter))
    assert cache.try_acquire(code_key(deployed("a"))) is held
    assert runtime.alive() == ["a"]
    cache.release(held)
    cache.release(held)
    await room_is_made(cache)
    assert cache.n_bytes == EACH


async def test_budget_of_nothing_keeps_only_what_runs(make_cache, runtime, deployed):
    cache = make_cache(0)
    code = await cache.acquire(deployed("a"))
    assert runtime.alive() == ["a"]
    cache.release(code)
    del code
    await room_is_made(cache)
    assert (runtime.alive(), cache.n_bytes) == ([], 0)


async def test_too_many_small_modules_are_unloaded_within_the_budget_too(make_cache, deployed, monkeypatch):
    monkeypatch.setattr("faas.gateway.code.MAX_MODULES", 2)
    cache = make_cache(100 * EACH)
    for letter in "abc":
        await use(cache, deployed(letter))
    assert len(cache) == 2


async def test_bundle_counts_and_is_read_again_with_its_module(make_cache, store, deployed, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    (files / "page.html").write_bytes(b"x" * 5000)
    archive = pack_bundle(files)
    deployment = deployed("a", bundle_digest=store.put_bundle(archive))
    cache = make_cache(100 * EACH)
    code = await cache.acquire(deployment)
    assert code.bundle is not None
    assert cache.n_bytes == EACH + len(archive)


async def test_code_that_is_not_served_any_more_goes_with_its_last_user(make_cache, runtime, deployed):
    cache = make_cache(10 * EACH)
    held = await cache.acquire(deployed("a"))
    await use(cache, deployed("b"))
    await use(cache, deployed("c"))
    cache.keep_only({code_key(deployed("c"))})
    assert runtime.alive() == ["a", "c"]
    assert cache.n_bytes == 2 * EACH
    cache.release(held)
    del held
    assert runtime.alive() == ["c"]
    assert cache.n_bytes == EACH


async def test_code_dropped_in_use_and_loaded_again_is_counted_once_each(make_cache, deployed):
    cache = make_cache(10 * EACH)
    old = await cache.acquire(deployed("a"))
    cache.keep_only(frozenset())
    new = await cache.acquire(deployed("a"))
    assert new is not old
    assert cache.n_bytes == 2 * EACH
    cache.release(old)
    assert cache.n_bytes == EACH
    cache.release(new)
    assert cache.n_bytes == EACH


async def test_first_users_wait_together_and_one_that_gives_up_harms_no_other(make_cache, runtime, deployed):
    cache = make_cache(10 * EACH)
    first, second = (asyncio.create_task(cache.acquire(deployed("a"))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    code = await second
    assert first.cancelled()
    assert (runtime.loaded, code.n_users) == (["a"], 1)


async def test_loads_that_end_together_do_not_evict_each_other_before_their_use(make_cache, runtime, deployed):
    cache = make_cache(0)
    codes = await asyncio.gather(*(cache.acquire(deployed(letter)) for letter in "abcdefghijklmnopqrst"))
    assert sorted(runtime.loaded) == list("abcdefghijklmnopqrst")
    for code in codes:
        cache.release(code)
    await room_is_made(cache)
    assert (len(cache), cache.n_bytes) == (0, 0)


async def test_code_that_was_loaded_for_who_gave_up_makes_room_too(make_cache, runtime, deployed):
    cache = make_cache(0)
    waiting = asyncio.create_task(cache.acquire(deployed("a")))
    while not cache.n_loads:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await room_is_made(cache)
    assert (len(cache), cache.n_bytes) == (0, 0)


async def test_missing_code_is_made_again_and_loaded(make_cache, runtime, store, deployed):
    deployment = deployed("a")
    store.open_native(deployment.artifact_key).unlink()
    asked = []

    async def repair(missing):
        asked.append(missing.function)
        deployed("a")

    await use(make_cache(10 * EACH, repair), deployment)
    assert (asked, runtime.loaded) == (["a"], ["a"])


async def test_code_that_cannot_be_made_again_is_an_error_for_all_who_wait_and_tried_anew_later(
    make_cache, store, deployed
):
    deployment = deployed("a")
    store.open_native(deployment.artifact_key).unlink()
    failures = [CompileFailedError("not today"), ArtifactMissingError("gone")]

    async def repair(missing):
        raise failures.pop(0)

    cache = make_cache(10 * EACH, repair)
    answers = await asyncio.gather(cache.acquire(deployment), cache.acquire(deployment), return_exceptions=True)
    assert [type(answer) for answer in answers] == [CompileFailedError, CompileFailedError]
    with pytest.raises(ArtifactMissingError):
        await cache.acquire(deployment)
    assert (len(cache), cache.n_bytes) == (0, 0)
