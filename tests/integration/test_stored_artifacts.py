"""Native code on disk that is not what this host compiled: made again, never loaded."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import msgspec
import pytest
from hosting import Host, MakeHost, wasm

from faas.artifacts.store import ArtifactStore, native_key
from faas.config import HostConfig
from faas.wasm.engine import EngineProfile, fingerprint


def flip(path: Path, at: int = -1) -> None:
    """Change one byte in the middle, or *at*."""
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[at if at >= 0 else len(content) // 2] ^= 1
    path.write_bytes(content)


def of(host: Host, name: str, what: str) -> Path:
    """Return the stored file of function *name*: its 'wasm', 'cwasm' or 'mac'."""
    view = host.admin("GET", f"/api/functions/{name}").json()
    digest = view["active"]["wasm_digest"]
    if what == "wasm":
        return host.home / "artifacts" / "wasm" / f"{digest}.wasm"
    size = view["artifact_bytes"]
    (found,) = [path for path in (host.home / "artifacts" / "native").glob("*.cwasm") if path.stat().st_size == size]
    return found.with_suffix(f".{what}")


@pytest.fixture
def files(make_host: MakeHost) -> dict[str, Path]:
    """What a host that was stopped after two deploys keeps on the disk."""
    host = make_host("stored").start()
    host.deploy("hello", wasm("hello-c"))
    host.deploy("other", wasm("hello-rust"))
    found = {f"{name}.{what}": of(host, name, what) for name in ("hello", "other") for what in ("wasm", "cwasm", "mac")}
    host.stop()
    return found


@pytest.mark.parametrize("damaged", ["hello.cwasm", "hello.mac"])
def test_a_flipped_byte_is_found_before_the_code_is_loaded_and_compiled_away(
    make_host: MakeHost, files: dict[str, Path], damaged: str
) -> None:
    original = files["hello.cwasm"].read_bytes()
    flip(files[damaged])
    host = make_host("stored").start()
    assert host.get("/hello").status == 200
    assert "artifact.needed function=hello" in host.stderr_path.read_text()
    assert files["hello.cwasm"].read_bytes() == original
    host.stop()


def test_missing_native_code_is_compiled_again(make_host: MakeHost, files: dict[str, Path]) -> None:
    files["hello.cwasm"].unlink()
    host = make_host("stored").start()
    assert host.get("/hello").status == 200
    assert "restore.recompiled function=hello" in host.stderr_path.read_text()
    host.stop()


def test_native_code_of_another_function_is_not_run_in_its_place(make_host: MakeHost, files: dict[str, Path]) -> None:
    """Both files are genuine, only their names are swapped."""
    for what in ("cwasm", "mac"):
        one, two = files[f"hello.{what}"], files[f"other.{what}"]
        aside = one.with_name("aside")
        one.rename(aside)
        two.rename(one)
        aside.rename(two)
    host = make_host("stored").start()
    assert host.get("/hello").text.startswith("Hello from C!")
    assert host.get("/other").text.startswith("Hello from Rust!")
    host.stop()


def test_a_byte_flipped_under_a_running_host_is_found_before_the_code_is_loaded(
    make_host: MakeHost, files: dict[str, Path]
) -> None:
    """Code is loaded at the first request; a worker that finds it damaged has it compiled again, and answers."""
    host = make_host("stored").start()
    flip(files["hello.cwasm"])
    assert host.get("/hello").status == 200
    assert "artifact.needed function=hello" in host.stderr_path.read_text()
    host.stop()


def test_a_function_whose_kept_module_is_damaged_too_is_a_problem_and_the_others_serve(
    make_host: MakeHost, files: dict[str, Path]
) -> None:
    flip(files["hello.cwasm"])
    flip(files["hello.wasm"])
    host = make_host("stored").start()
    reply = host.get("/hello")
    assert (reply.status, reply.code) == (500, "artifact-tampered")
    assert host.get("/other").status == 200
    assert host.get("/hello").status == 500
    host.deploy("hello", wasm("hello-c"))
    assert host.get("/hello").status == 200
    host.stop()


def test_code_for_another_engine_is_compiled_again(make_host: MakeHost, files: dict[str, Path]) -> None:
    """Restored from a backup of another machine: the key says which engine the code is for, and ours differs."""
    home = files["hello.wasm"].parents[2]
    profile = msgspec.structs.replace(EngineProfile.from_config(HostConfig()), nan_canonicalization=True)
    foreign = native_key(files["hello.wasm"].stem, "", fingerprint(profile))
    ours = files["hello.cwasm"].stem
    assert foreign != ours
    aside = home / "artifacts" / "scratch" / "foreign"
    shutil.copy(files["hello.cwasm"], aside)
    ArtifactStore(home).put_native(foreign, aside)
    for what in ("cwasm", "mac"):
        files[f"hello.{what}"].unlink()
    with sqlite3.connect(home / "state.db") as state:
        changed = state.execute("UPDATE versions SET artifact_key = ? WHERE artifact_key = ?", (foreign, ours))
        assert changed.rowcount == 1
    state.close()

    host = make_host("stored").start()
    assert host.get("/hello").status == 200
    assert "restore.recompiled function=hello" in host.stderr_path.read_text()
    assert files["hello.cwasm"].exists()
    assert not files["hello.cwasm"].with_name(f"{foreign}.cwasm").exists()
    host.stop()


def test_an_artifact_that_is_cut_or_overwritten_while_it_runs_changes_nothing(make_host: MakeHost) -> None:
    host = make_host("running").start()
    host.deploy("hello", wasm("hello-c"))
    before = host.get("/hello")
    native = of(host, "hello", "cwasm")
    native.chmod(0o600)
    with native.open("r+b") as file:
        file.write(b"\xcc" * 4096)
        file.truncate(8192)
    workers = host.worker_pids()
    for _ in range(5):
        assert host.get("/hello").text == before.text
    assert host.worker_pids() == workers
