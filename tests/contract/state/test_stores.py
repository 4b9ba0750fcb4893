"""What the stores of functions, models and keys promise, on either database."""

from __future__ import annotations

import asyncio

import msgspec
import psycopg
import pytest

from faas.errors import (
    FunctionNotFoundError,
    KeyNotFoundError,
    KeyTakenError,
    ModelNotFoundError,
    RouteTakenError,
    TokenNotFoundError,
    TokenTakenError,
)
from faas.invocation import Kind
from faas.manifest import manifest_from_builtins
from faas.state.base import FileMark, InvokeKeyEntry, KeyEntry, ModelEntry, NewVersion, TokenEntry
from faas.state.postgresql import PostgresDatabase
from faas.state.settings import SecretEntry
from faas.state.state import State


@pytest.fixture
def state(database):
    return State(database, database)


def new(name="hello", digest="aa", key="bb", bundle="", **manifest):
    return NewVersion(
        manifest=manifest_from_builtins({"name": name, **manifest}),
        kind=Kind.COMMAND,
        wasm_digest=digest,
        artifact_key=key,
        bundle_digest=bundle,
    )


async def test_versions_are_numbered_from_one_per_function(state):
    assert (await state.functions.add_version_and_activate(new("a"))).version == 1
    assert (await state.functions.add_version_and_activate(new("a"))).version == 2
    assert (await state.functions.add_version_and_activate(new("b"))).version == 1
    assert [d.version for d in await state.functions.versions("a")] == [2, 1]


async def test_newest_version_is_the_active_one_and_comes_back_as_it_went_in(state):
    await state.functions.add_version_and_activate(new("a"))
    second = await state.functions.add_version_and_activate(
        new("a", digest="cc", env={"K": "v"}, limits={"timeout_s": 3.5}, routes=["GET /x/{id}", "/y/*"])
    )
    assert await state.functions.active("a") == second
    assert await state.functions.active_deployments() == (second,)


async def test_version_number_is_not_reused_after_remove(state):
    await state.functions.add_version_and_activate(new("a"))
    await state.functions.add_version_and_activate(new("a"))
    await state.functions.remove_function("a")
    assert await state.functions.next_version("a") == 3
    assert (await state.functions.add_version_and_activate(new("a"))).version == 3
    assert [d.version for d in await state.functions.versions("a")] == [3]


async def test_next_version_is_the_number_the_next_deploy_gets(state):
    expected = await state.functions.next_version("a")
    assert (await state.functions.add_version_and_activate(new("a"))).version == expected == 1


async def test_taken_route_refuses_the_whole_transaction(state):
    await state.functions.add_version_and_activate(new("a", routes=["/x"]))
    with pytest.raises(RouteTakenError):
        await state.functions.add_version_and_activate(new("b", routes=["/fine", "/x"]))
    assert await state.functions.routes() == {"a": ("/x",)}
    with pytest.raises(FunctionNotFoundError):
        await state.functions.active("b")
    assert await state.functions.next_version("b") == 1


async def test_route_that_an_older_version_had_is_free_again(state):
    await state.functions.add_version_and_activate(new("a", routes=["/x"]))
    await state.functions.add_version_and_activate(new("a", routes=["/y"]))
    await state.functions.add_version_and_activate(new("b", routes=["/x"]))
    assert await state.functions.routes() == {"a": ("/y",), "b": ("/x",)}


async def test_remove_frees_routes_and_names_what_is_gone(state):
    await state.functions.add_version_and_activate(new("a", routes=["/x"]))
    await state.functions.add_version_and_activate(new("a", routes=["/x"]))
    gone = await state.functions.remove_function("a")
    assert [d.version for d in gone] == [2, 1]
    await state.functions.add_version_and_activate(new("b", routes=["/x"]))


async def everything(state):
    return (
        await state.settings.config(),
        await state.settings.secrets(),
        await state.access.invoke_keys(),
        await state.kv.grants(),
    )


async def test_what_belongs_to_a_function_is_removed_with_it_or_not_at_all(state):
    await state.functions.add_version_and_activate(new("a"))
    for name in ("a", "b"):
        await state.settings.set_config(name, {"K": "v"})
        await state.settings.set_secret(SecretEntry(name, "S", b"sealed", "k"))
        await state.access.add_invoke_key(InvokeKeyEntry(name, "ci", f"sha {name}"))
        await state.kv.add_grant("store", name, read_only=False)
    await state.kv.set("a", "k", b"1", limit_bytes=100)
    before = await everything(state)

    def fail(_session, _function, *, purge, actor):
        raise LookupError

    state.functions.removals.append(fail)
    with pytest.raises(LookupError):
        await state.functions.remove_function("a")
    assert await everything(state) == before
    state.functions.removals.remove(fail)
    await state.functions.remove_function("a")
    config, secrets, keys, grants = await everything(state)
    assert {entry.function for entry in (*config, *secrets, *keys, *grants)} == {"b"}
    assert [store.store for store in await state.kv.stores()] == ["a"]
    await state.functions.add_version_and_activate(new("a"))
    await state.functions.remove_function("a", purge=True)
    assert await state.kv.stores() == ()


async def test_what_is_served_is_of_one_moment_though_another_host_changes_it(postgres_url):
    database = await PostgresDatabase.open(postgres_url)
    functions = State(database, database).functions
    await functions.add_version_and_activate(new("a"))
    await functions.add_version_and_activate(new("a"))
    with psycopg.connect(postgres_url) as other_host, psycopg.connect(postgres_url, autocommit=True) as observer:
        other_host.execute("SELECT pg_advisory_xact_lock(hashtextextended('faas functions', 0))")
        other_host.execute("UPDATE aliases SET version = 1")
        reading = asyncio.create_task(functions.serving())
        while not observer.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchall():
            await asyncio.sleep(0)
    serving = await reading
    assert [d.version for d in serving.deployments] == [alias.version for alias in serving.aliases] == [1]
    await database.aclose()


async def test_unknown_function_is_not_found(state):
    for operation in (state.functions.active, state.functions.versions, state.functions.remove_function):
        with pytest.raises(FunctionNotFoundError):
            await operation("nobody")


async def test_references_cover_every_kept_version(state):
    await state.functions.add_version_and_activate(new("a", digest="w1", key="k1", bundle="b1"))
    await state.functions.add_version_and_activate(new("a", digest="w2", key="k2"))
    references = await state.functions.references()
    assert references.wasm_digests == {"w1", "w2"}
    assert references.artifact_keys == {"k1", "k2"}
    assert references.bundle_digests == {"b1"}


async def test_artifact_key_can_change_and_nothing_else_does(state):
    first = await state.functions.add_version_and_activate(new("a", key="old"))
    await state.functions.update_artifact_key("a", 1, "fresh")
    assert await state.functions.active("a") == msgspec.structs.replace(first, artifact_key="fresh")


async def test_concurrent_deploys_get_different_numbers(state):
    deployments = await asyncio.gather(*(state.functions.add_version_and_activate(new("a")) for _ in range(20)))
    assert sorted(d.version for d in deployments) == list(range(1, 21))


async def test_models_come_back_as_they_went_in_and_are_replaced_by_name(state):
    await state.models.put_model(ModelEntry("b", "/old", "d1", 1))
    kept = await state.models.put_model(ModelEntry("b", "/new", "d2", 2))
    other = await state.models.put_model(ModelEntry("a", "/a", "d3", 3))
    assert kept.added_at > 0
    assert await state.models.models() == (other, kept)
    await state.models.remove_model("b")
    assert await state.models.models() == (other,)
    with pytest.raises(ModelNotFoundError):
        await state.models.remove_model("b")


async def test_fingerprint_holds_for_just_the_file_it_was_made_of(state):
    mark = FileMark("/m.gguf", 10, 20)
    assert await state.models.fingerprint(mark) == ""
    await state.models.keep_fingerprint(mark, "dd")
    assert await state.models.fingerprint(mark) == "dd"
    for other in (FileMark("/m.gguf", 11, 20), FileMark("/m.gguf", 10, 21), FileMark("/n.gguf", 10, 20)):
        assert await state.models.fingerprint(other) == ""
    await state.models.keep_fingerprint(FileMark("/m.gguf", 11, 22), "ee")
    assert await state.models.fingerprint(mark) == ""


async def test_keys_come_back_as_they_went_in_and_names_are_taken_once(state):
    kept = await state.access.add_key(KeyEntry("b", "h1", 5))
    other = await state.access.add_key(KeyEntry("a", "h2"))
    assert await state.access.keys() == (other, kept)
    with pytest.raises(KeyTakenError):
        await state.access.add_key(KeyEntry("b", "h3"))
    await state.access.remove_key("b")
    with pytest.raises(KeyNotFoundError):
        await state.access.remove_key("b")


async def test_tokens_come_back_as_they_went_in_and_names_are_taken_once(state):
    kept = await state.access.add_token(TokenEntry("b", "h1", "read"))
    other = await state.access.add_token(TokenEntry("a", "h2", "admin"))
    assert await state.access.tokens() == (other, kept)
    with pytest.raises(TokenTakenError):
        await state.access.add_token(TokenEntry("b", "h3", "read"))
    await state.access.remove_token("b")
    with pytest.raises(TokenNotFoundError):
        await state.access.remove_token("b")


async def test_invoke_keys_are_named_per_function(state):
    kept = await state.access.add_invoke_key(InvokeKeyEntry("f", "b", "h1", 60))
    other = await state.access.add_invoke_key(InvokeKeyEntry("e", "b", "h2"))
    assert await state.access.invoke_keys() == (other, kept)
    with pytest.raises(KeyTakenError):
        await state.access.add_invoke_key(InvokeKeyEntry("f", "b", "h3"))
    await state.access.remove_invoke_key("f", "b")
    with pytest.raises(KeyNotFoundError):
        await state.access.remove_invoke_key("f", "b")
    assert await state.access.invoke_keys() == (other,)
