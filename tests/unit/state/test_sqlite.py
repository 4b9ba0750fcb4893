"""The state store keeps what it acknowledged, whole, whatever happens to the process."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys

import pytest

from faas.clock import SystemClock
from faas.errors import FunctionNotFoundError, RouteTakenError, StateError, VersionNotFoundError
from faas.invocation import Kind
from faas.manifest import manifest_from_builtins
from faas.state.base import NewVersion
from faas.state.schema import MIGRATIONS
from faas.state.state import open_state


@pytest.fixture
async def state(tmp_path):
    state = await open_state("", tmp_path / "state.db", SystemClock())
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


async def test_state_is_there_after_reopening(tmp_path):
    for expected in (1, 2, 3):
        state = await open_state("", tmp_path / "state.db", SystemClock())
        assert (await state.functions.add_version_and_activate(new())).version == expected
        await state.aclose()


async def test_changes_are_noted_for_an_audit(state, tmp_path):
    await state.functions.add_version_and_activate(new("a"))
    await state.functions.remove_function("a")
    db = sqlite3.connect(tmp_path / "state.db")
    rows = db.execute("SELECT action, function, detail FROM audit ORDER BY seq").fetchall()
    db.close()
    assert rows == [("deploy", "a", '{"version":1,"alias":"live"}'), ("remove", "a", '{"version":1}')]


async def test_database_of_the_first_release_gets_the_new_tables_and_keeps_what_it_has(tmp_path):
    db = sqlite3.connect(tmp_path / "state.db")
    db.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
    db.execute("INSERT INTO functions VALUES ('a', 3, NULL), ('b', 2, 2)")
    db.execute("INSERT INTO versions VALUES ('b', 2, 'command', 'w', 'k', '', '{\"name\":\"b\"}', 1.0)")
    db.execute("INSERT INTO changes (at, action, function, version) VALUES (1.0, 'deploy', 'b', 2)")
    db.commit()
    db.close()
    state = await open_state("", tmp_path / "state.db", SystemClock())
    assert await state.functions.next_version("a") == 4
    assert (await state.functions.active("b")).version == 2
    assert await state.models.models() == ()
    await state.aclose()


async def test_functions_of_the_last_release_go_on_where_they_were(tmp_path):
    db = sqlite3.connect(tmp_path / "state.db")
    db.executescript(f"{MIGRATIONS[0]} {MIGRATIONS[1]} PRAGMA user_version = 2; PRAGMA foreign_keys = ON;")
    db.execute("INSERT INTO functions VALUES ('gone', 4, NULL), ('b', 3, 3), ('one', 1, 1)")
    for function, version in (("b", 1), ("b", 2), ("b", 3), ("one", 1)):
        manifest = f'{{"name":"{function}","routes":["/{function}"]}}'
        row = (function, version, "command", f"w{version}", "k", "", manifest, float(version))
        db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT INTO changes (at, action, function, version) VALUES (?, 'deploy', ?, ?)", row[7:] + row[:2])
    db.execute("INSERT INTO changes (at, action, function, version) VALUES (9.0, 'remove', 'gone', 4)")
    db.execute("INSERT INTO routes VALUES ('b', '/b'), ('one', '/one')")
    db.execute("INSERT INTO keys VALUES ('ci', 'sha', 100, 1.0)")
    db.commit()
    db.close()
    state = await open_state("", tmp_path / "state.db", SystemClock())
    functions = state.functions
    serving = await functions.serving()
    assert [(d.function, d.version) for d in serving.deployments] == [("b", 3), ("one", 1)]
    assert [(alias.function, alias.alias, alias.shares) for alias in serving.aliases] == [
        ("b", "live", {3: 100}), ("one", "live", {1: 100}),
    ]  # fmt: skip
    assert [d.version for d in await functions.versions("b")] == [3, 2, 1]
    with pytest.raises(RouteTakenError):
        await functions.add_version_and_activate(new("other", routes=["/b"]))
    with pytest.raises(FunctionNotFoundError):
        await functions.versions("gone")
    assert await functions.next_version("gone") == 5
    for version in (2, 1):
        await functions.rollback("b", expected=version)
    with pytest.raises(VersionNotFoundError):
        await functions.rollback_target("one")
    last = (await state.audit.entries("gone"))[0]
    assert (last.at, last.action, last.detail) == (9.0, "remove", {"version": 4})
    assert [key.name for key in await state.access.keys()] == ["ci"]
    await state.aclose()


async def test_foreign_file_is_a_state_error(tmp_path):
    (tmp_path / "state.db").write_bytes(b"this is no database at all, and long enough to be looked at" * 10)
    with pytest.raises(StateError, match="can't open"):
        await open_state("", tmp_path / "state.db", SystemClock())


async def test_schema_of_a_newer_release_is_refused(tmp_path):
    db = sqlite3.connect(tmp_path / "state.db")
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StateError, match="newer release"):
        await open_state("", tmp_path / "state.db", SystemClock())


async def test_sqlite_failure_in_the_middle_is_a_state_error_and_rolls_back(state, tmp_path):
    await state.functions.add_version_and_activate(new("a"))
    db = sqlite3.connect(tmp_path / "state.db")
    db.execute("CREATE TRIGGER refuse BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no more'); END")
    db.commit()
    db.close()
    with pytest.raises(StateError, match="no more"):
        await state.functions.add_version_and_activate(new("a"))
    assert [d.version for d in await state.functions.versions("a")] == [1]


_CHILD = """
import asyncio, sys
from pathlib import Path
from faas.clock import SystemClock
from faas.invocation import Kind
from faas.manifest import manifest_from_builtins
from faas.state.base import FileMark, KeyEntry, ModelEntry, NewVersion
from faas.state.state import open_state

async def main():
    state = await open_state("", Path(sys.argv[1]), SystemClock())
    new = NewVersion(manifest_from_builtins({"name": "a", "routes": ["/x", "/y"]}), Kind.COMMAND, "w", "k")
    while True:
        print((await state.functions.add_version_and_activate(new)).version, flush=True)

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

    state = await open_state("", path, SystemClock())
    kept = await state.functions.versions("a")
    routes = await state.functions.routes()
    await state.aclose()
    assert [d.version for d in kept] == list(range(len(kept), 0, -1))
    assert acknowledged <= len(kept) <= acknowledged + 1
    assert routes == {"a": ("/x", "/y")}
