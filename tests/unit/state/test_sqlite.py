"""The state store keeps what it acknowledged, whole, whatever happens to the process."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys

import msgspec
import pytest

from faas.clock import SystemClock
from faas.errors import (
    FunctionNotFoundError,
    KeyNotFoundError,
    KeyTakenError,
    ModelNotFoundError,
    RouteTakenError,
    StateError,
)
from faas.invocation import Kind
from faas.manifest import manifest_from_builtins
from faas.state.base import FileMark, KeyEntry, ModelEntry, NewVersion
from faas.state.sqlite import MIGRATIONS, SqliteState


@pytest.fixture
async def state(tmp_path):
    state = await SqliteState.open(tmp_path / "state.db", SystemClock())
    yield state
    await state.aclose()


def new(name="hello", digest="aa", key="bb", bundle="", **manifest):
    return NewVersion(
        manifest=manifest_from_builtins({"name": name, **manifest}),
        kind=Kind.COMMAND,
        wasm_digest=digest,
        artifact_key=key,
        bundle_digest=bundle,
    )


async def test_versions_are_numbered_from_one_per_function(state):
    assert (await state.add_version_and_activate(new("a"))).version == 1
    assert (await state.add_version_and_activate(new("a"))).version == 2
    assert (await state.add_version_and_activate(new("b"))).version == 1
    assert [d.version for d in await state.versions("a")] == [2, 1]


async def test_newest_version_is_the_active_one_and_comes_back_as_it_went_in(state):
    await state.add_version_and_activate(new("a"))
    second = await state.add_version_and_activate(
        new("a", digest="cc", env={"K": "v"}, limits={"timeout_s": 3.5}, routes=["GET /x/{id}", "/y/*"])
    )
    assert await state.active("a") == second
    assert await state.active_deployments() == (second,)


async def test_version_number_is_not_reused_after_remove(state):
    await state.add_version_and_activate(new("a"))
    await state.add_version_and_activate(new("a"))
    await state.remove_function("a")
    assert await state.next_version("a") == 3
    assert (await state.add_version_and_activate(new("a"))).version == 3
    assert [d.version for d in await state.versions("a")] == [3]


async def test_next_version_is_the_number_the_next_deploy_gets(state):
    expected = await state.next_version("a")
    assert (await state.add_version_and_activate(new("a"))).version == expected == 1


async def test_taken_route_refuses_the_whole_transaction(state):
    await state.add_version_and_activate(new("a", routes=["/x"]))
    with pytest.raises(RouteTakenError):
        await state.add_version_and_activate(new("b", routes=["/fine", "/x"]))
    assert await state.routes() == {"a": ("/x",)}
    with pytest.raises(FunctionNotFoundError):
        await state.active("b")
    assert await state.next_version("b") == 1


async def test_route_that_an_older_version_had_is_free_again(state):
    await state.add_version_and_activate(new("a", routes=["/x"]))
    await state.add_version_and_activate(new("a", routes=["/y"]))
    await state.add_version_and_activate(new("b", routes=["/x"]))
    assert await state.routes() == {"a": ("/y",), "b": ("/x",)}


async def test_remove_frees_routes_and_names_what_is_gone(state):
    await state.add_version_and_activate(new("a", routes=["/x"]))
    await state.add_version_and_activate(new("a", routes=["/x"]))
    gone = await state.remove_function("a")
    assert [d.version for d in gone] == [2, 1]
    await state.add_version_and_activate(new("b", routes=["/x"]))


async def test_unknown_function_is_not_found(state):
    for operation in (state.active, state.versions, state.remove_function):
        with pytest.raises(FunctionNotFoundError):
            await operation("nobody")


async def test_references_cover_every_kept_version(state):
    await state.add_version_and_activate(new("a", digest="w1", key="k1", bundle="b1"))
    await state.add_version_and_activate(new("a", digest="w2", key="k2"))
    references = await state.references()
    assert references.wasm_digests == {"w1", "w2"}
    assert references.artifact_keys == {"k1", "k2"}
    assert references.bundle_digests == {"b1"}


async def test_artifact_key_can_change_and_nothing_else_does(state):
    first = await state.add_version_and_activate(new("a", key="old"))
    await state.update_artifact_key("a", 1, "fresh")
    assert await state.active("a") == msgspec.structs.replace(first, artifact_key="fresh")


async def test_concurrent_deploys_get_different_numbers(state):
    deployments = await asyncio.gather(*(state.add_version_and_activate(new("a")) for _ in range(20)))
    assert sorted(d.version for d in deployments) == list(range(1, 21))


async def test_state_is_there_after_reopening(tmp_path):
    for expected in (1, 2, 3):
        state = await SqliteState.open(tmp_path / "state.db", SystemClock())
        assert (await state.add_version_and_activate(new())).version == expected
        await state.aclose()


async def test_changes_are_noted_for_an_audit(state, tmp_path):
    await state.add_version_and_activate(new("a"))
    await state.remove_function("a")
    db = sqlite3.connect(tmp_path / "state.db")
    rows = db.execute("SELECT action, function, version FROM changes ORDER BY seq").fetchall()
    db.close()
    assert rows == [("deploy", "a", 1), ("remove", "a", 1)]


async def test_models_come_back_as_they_went_in_and_are_replaced_by_name(state):
    await state.put_model(ModelEntry("b", "/old", "d1", 1))
    kept = await state.put_model(ModelEntry("b", "/new", "d2", 2))
    other = await state.put_model(ModelEntry("a", "/a", "d3", 3))
    assert kept.added_at > 0
    assert await state.models() == (other, kept)
    await state.remove_model("b")
    assert await state.models() == (other,)
    with pytest.raises(ModelNotFoundError):
        await state.remove_model("b")


async def test_fingerprint_holds_for_just_the_file_it_was_made_of(state):
    mark = FileMark("/m.gguf", 10, 20)
    assert await state.fingerprint(mark) == ""
    await state.keep_fingerprint(mark, "dd")
    assert await state.fingerprint(mark) == "dd"
    for other in (FileMark("/m.gguf", 11, 20), FileMark("/m.gguf", 10, 21), FileMark("/n.gguf", 10, 20)):
        assert await state.fingerprint(other) == ""
    await state.keep_fingerprint(FileMark("/m.gguf", 11, 22), "ee")
    assert await state.fingerprint(mark) == ""


async def test_keys_come_back_as_they_went_in_and_names_are_taken_once(state):
    kept = await state.add_key(KeyEntry("b", "h1", 5))
    other = await state.add_key(KeyEntry("a", "h2"))
    assert await state.keys() == (other, kept)
    with pytest.raises(KeyTakenError):
        await state.add_key(KeyEntry("b", "h3"))
    await state.remove_key("b")
    with pytest.raises(KeyNotFoundError):
        await state.remove_key("b")


async def test_database_of_the_first_release_gets_the_new_tables_and_keeps_what_it_has(tmp_path):
    db = sqlite3.connect(tmp_path / "state.db")
    db.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
    db.execute("INSERT INTO functions VALUES ('a', 3, NULL)")
    db.commit()
    db.close()
    state = await SqliteState.open(tmp_path / "state.db", SystemClock())
    assert await state.next_version("a") == 4
    assert await state.models() == ()
    await state.aclose()


async def test_foreign_file_is_a_state_error(tmp_path):
    (tmp_path / "state.db").write_bytes(b"this is no database at all, and long enough to be looked at" * 10)
    with pytest.raises(StateError, match="can't open"):
        await SqliteState.open(tmp_path / "state.db", SystemClock())


async def test_schema_of_a_newer_release_is_refused(tmp_path):
    db = sqlite3.connect(tmp_path / "state.db")
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StateError, match="newer release"):
        await SqliteState.open(tmp_path / "state.db", SystemClock())


async def test_sqlite_failure_in_the_middle_is_a_state_error_and_rolls_back(state, tmp_path):
    await state.add_version_and_activate(new("a"))
    db = sqlite3.connect(tmp_path / "state.db")
    db.execute("CREATE TRIGGER refuse BEFORE INSERT ON changes BEGIN SELECT RAISE(ABORT, 'no more'); END")
    db.commit()
    db.close()
    with pytest.raises(StateError, match="no more"):
        await state.add_version_and_activate(new("a"))
    assert [d.version for d in await state.versions("a")] == [1]


_CHILD = """
import asyncio, sys
from pathlib import Path
from faas.clock import SystemClock
from faas.invocation import Kind
from faas.manifest import manifest_from_builtins
from faas.state.base import FileMark, KeyEntry, ModelEntry, NewVersion
from faas.state.sqlite import SqliteState

async def main():
    state = await SqliteState.open(Path(sys.argv[1]), SystemClock())
    new = NewVersion(manifest_from_builtins({"name": "a", "routes": ["/x", "/y"]}), Kind.COMMAND, "w", "k")
    while True:
        print((await state.add_version_and_activate(new)).version, flush=True)

asyncio.run(main())
"""


async def test_what_was_acknowledged_is_there_after_kill_minus_nine(tmp_path):
    path = tmp_path / "state.db"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CHILD, str(path), stdout=asyncio.subprocess.PIPE
    )
    acknowledged = 0
    while acknowledged < 7:
        acknowledged = int(await child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    rest = await child.stdout.read()
    await child.wait()
    acknowledged = max([acknowledged, *(int(line) for line in rest.split(b"\n")[:-1] if line)])

    state = await SqliteState.open(path, SystemClock())
    kept = await state.versions("a")
    routes = await state.routes()
    await state.aclose()
    assert [d.version for d in kept] == list(range(len(kept), 0, -1))
    assert acknowledged <= len(kept) <= acknowledged + 1
    assert routes == {"a": ("/x", "/y")}
