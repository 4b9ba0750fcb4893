"""A whole precompile job: from bytes to a stored artifact, or to one error with nothing left behind."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import time
from pathlib import Path

import msgspec
import pytest
from wasm_bytes import FUNCTIONS, HEADER, compile_bomb, leb, name, section
from wasmtime import Instance, Module, Store, wat2wasm

from faas.artifacts.store import ArtifactStore
from faas.config import HostConfig, PoolConfig, PrecompileConfig
from faas.errors import (
    ArtifactTamperedError,
    CompileFailedError,
    CompileLimitError,
    InvalidModuleError,
    MemoryTooLargeError,
    NotWasmError,
    PreinitError,
    StateError,
    UnknownImportsError,
    UnknownKindError,
)
from faas.invocation import Kind
from faas.manifest import Limits, Manifest
from faas.wasm.engine import EngineProfile, new_engine
from precompile.job import Failed, Job, Line, _try_load, main, run_job
from precompile.run import Precompiled, precompile, recompile

MIB = 1024 * 1024
FUNCTION = Manifest(name="f")
CONFIG = HostConfig(pool=PoolConfig(slots=2))
HELLO = bytes(wat2wasm('(module (memory (export "memory") 1) (func (export "_start")))'))
needs_wizer = pytest.mark.skipif(importlib.util.find_spec("wasmtime_cli") is None, reason="needs faas[preinit]")
REACTOR = """
    (memory (export "memory") 1)
    (func (export "faas_alloc") (param i32) (result i32) i32.const 0)
"""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def files(store: ArtifactStore) -> list[str]:
    base = store.scratch.parent
    return sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())


def limited(**limits) -> HostConfig:
    return HostConfig(pool=CONFIG.pool, precompile=PrecompileConfig(**limits))


def handle(store: ArtifactStore, made: Precompiled) -> int:
    """Load the stored code as a worker does and call its faas_handle."""
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=True)
    instance_store = Store(engine)
    instance_store.set_epoch_deadline(1)
    module = Module.deserialize_file(engine, str(store.open_native(made.artifact_key)))
    return Instance(instance_store, module, []).exports(instance_store)["faas_handle"](instance_store, 0, 0)


async def test_precompile_stores_native_code_and_the_module(store) -> None:
    stages: list[str] = []

    made = await precompile(HELLO, FUNCTION, CONFIG, store, on_progress=stages.append)

    assert stages == ["validate", "compile", "store"]
    assert made.facts.kind is Kind.COMMAND
    assert store.wasm_path(made.wasm_digest).read_bytes() == HELLO
    assert store.open_native(made.artifact_key).stat().st_size == made.native_bytes
    assert not list(store.scratch.iterdir())


async def test_the_stored_code_runs_in_a_pooling_engine(store) -> None:
    wat = f'(module {REACTOR} (func (export "faas_handle") (param i32 i32) (result i64) i64.const 42))'

    made = await precompile(bytes(wat2wasm(wat)), FUNCTION, CONFIG, store)

    assert handle(store, made) == 42


async def test_the_same_module_is_compiled_once_and_validated_always(store) -> None:
    first = await precompile(HELLO, FUNCTION, CONFIG, store)
    stages: list[str] = []

    second = await precompile(HELLO, FUNCTION, CONFIG, store, on_progress=stages.append)

    assert second.reused
    assert second.native_bytes == first.native_bytes > 0
    assert second.artifact_key == first.artifact_key
    assert "compile" not in stages
    with pytest.raises(UnknownKindError):
        await precompile(HELLO, Manifest(name="f", kind="reactor"), CONFIG, store)


async def test_recompile_replaces_tampered_code_from_the_kept_module(store) -> None:
    made = await precompile(HELLO, FUNCTION, CONFIG, store)
    path = store.open_native(made.artifact_key)
    path.chmod(0o600)
    path.write_bytes(b"evil")
    with pytest.raises(ArtifactTamperedError):
        store.open_native(made.artifact_key)

    again = await recompile(made.wasm_digest, FUNCTION, CONFIG, store)

    assert again.artifact_key == made.artifact_key
    assert store.open_native(again.artifact_key).read_bytes() != b"evil"


@pytest.mark.parametrize(
    ("wasm", "error"),
    [
        (b"#!/bin/sh\n", NotWasmError),
        (HELLO[:20], InvalidModuleError),
        ((FUNCTIONS / "bad/component.wasm").read_bytes(), UnknownKindError),
        ((FUNCTIONS / "bad/unknown-import.wasm").read_bytes(), UnknownImportsError),
        ((FUNCTIONS / "bad/no-exports.wasm").read_bytes(), UnknownKindError),
        ((FUNCTIONS / "bad/big-memory.wasm").read_bytes(), MemoryTooLargeError),
    ],
    ids=lambda case: getattr(case, "__name__", "module"),
)
async def test_a_refused_module_gets_its_own_error_and_leaves_nothing(store, wasm: bytes, error) -> None:
    with pytest.raises(error):
        await precompile(wasm, FUNCTION, CONFIG, store)

    assert files(store) == []


async def test_a_body_that_does_not_validate_is_an_invalid_module(store) -> None:
    assert HELLO.endswith(b"\x0a\x04\x01\x02\x00\x0b")
    ill_typed = HELLO[:-6] + b"\x0a\x05\x01\x03\x00\x6a\x0b"  # i32.add on an empty stack

    with pytest.raises(InvalidModuleError, match="type mismatch"):
        await precompile(ill_typed, FUNCTION, CONFIG, store)

    assert files(store) == []


async def test_a_module_over_the_wall_limit_ends_within_a_second_of_it(store) -> None:
    began = time.monotonic()

    with pytest.raises(CompileLimitError, match=r"precompile\.timeout_s") as caught:
        await precompile(compile_bomb(1, 500_000), FUNCTION, limited(timeout_s=1), store)

    assert time.monotonic() - began < 2
    assert caught.value.facts["limit"] == "precompile.timeout_s"
    assert files(store) == []
    assert not list(store.scratch.iterdir())


async def test_a_module_over_the_cpu_limit_names_that_setting(store) -> None:
    with pytest.raises(CompileLimitError, match=r"precompile\.cpu_s"):
        await precompile(compile_bomb(1, 500_000), FUNCTION, limited(cpu_s=1), store)

    assert files(store) == []


async def test_a_module_over_the_memory_limit_names_that_setting(store) -> None:
    with pytest.raises(CompileLimitError, match=r"128 MiB .* precompile\.memory_bytes"):
        await precompile(compile_bomb(1, 500_000), FUNCTION, limited(memory_bytes=128 * MIB), store)

    assert files(store) == []


async def test_cancelling_kills_the_job_and_leaves_nothing(store) -> None:
    compiling = asyncio.Event()
    job = asyncio.create_task(
        precompile(
            compile_bomb(1, 500_000),
            FUNCTION,
            CONFIG,
            store,
            on_progress=lambda stage: compiling.set() if stage == "compile" else None,
        )
    )
    await compiling.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job

    assert files(store) == []
    assert not list(store.scratch.iterdir())
    assert not _children()


async def test_a_progress_callback_that_raises_ends_the_job(store) -> None:
    def fail(stage: str) -> None:
        raise LookupError(stage)

    with pytest.raises(LookupError):
        await precompile(HELLO, FUNCTION, CONFIG, store, on_progress=fail)

    assert not list(store.scratch.iterdir())


def test_code_that_does_not_fit_a_slot_is_refused_before_it_is_stored(tmp_path) -> None:
    roomy = EngineProfile(max_memory_bytes=64 * MIB)
    native = tmp_path / "x.cwasm"
    native.write_bytes(bytes(Module(new_engine(roomy, pooling=False), "(module (memory 32))").serialize()))

    with pytest.raises(CompileFailedError, match="does not fit this host's pool"):
        _try_load(native, EngineProfile(max_memory_bytes=MIB))


@needs_wizer
async def test_preinit_keeps_memory_and_globals_and_runs_initialize_once(store) -> None:
    wat = f"""(module {REACTOR}
      (global $g (mut i64) (i64.const 0))
      (func (export "_initialize") (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1))))
      (func (export "wizer-initialize") (global.set $g (i64.const 500)) (drop (memory.grow (i32.const 2))))
      (func (export "faas_handle") (param i32 i32) (result i64)
        (i64.add (i64.load (i32.const 8)) (global.get $g))))"""
    stages: list[str] = []

    made = await precompile(bytes(wat2wasm(wat)), FUNCTION, CONFIG, store, on_progress=stages.append)

    assert stages == ["validate", "preinit", "compile", "store"]
    assert handle(store, made) == 501
    assert made.facts.preinit == "wizer-initialize"
    assert not made.facts.has_initialize
    assert made.facts.memory_min_bytes == 3 * 65536
    assert store.wasm_path(made.wasm_digest).read_bytes() == bytes(wat2wasm(wat))


@needs_wizer
async def test_preinit_may_call_wasi_and_sees_neither_environment_nor_folders(store, monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    wat = f"""(module
      (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
      {REACTOR}
      (func (export "warm")
        (drop (call $environ (i32.const 16) (i32.const 20)))
        (i32.store (i32.const 24) (call $prestat (i32.const 3) (i32.const 32)))
        ;; trap if there is a variable, or if descriptor 3 is anything but EBADF
        (if (i32.load (i32.const 16)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 24)) (i32.const 8)) (then unreachable)))
      (func (export "faas_handle") (param i32 i32) (result i64) i64.const 1))"""

    made = await precompile(bytes(wat2wasm(wat)), Manifest(name="f", preinit="warm"), CONFIG, store)

    assert made.facts.preinit == "warm"


@needs_wizer
async def test_a_trap_during_preinit_says_why(store) -> None:
    wat = '(module (func (export "wizer-initialize") unreachable) (func (export "_start")))'

    with pytest.raises(PreinitError, match=r"'wizer-initialize' failed: .*unreachable"):
        await precompile(bytes(wat2wasm(wat)), FUNCTION, CONFIG, store)

    assert files(store) == []


@needs_wizer
async def test_an_endless_preinit_ends_at_the_limit(store) -> None:
    wat = '(module (func (export "wizer-initialize") (loop br 0)) (func (export "_start")))'

    with pytest.raises(CompileLimitError, match="initialising"):
        await precompile(bytes(wat2wasm(wat)), FUNCTION, limited(timeout_s=0.7), store)

    assert files(store) == []
    assert not _children()


@needs_wizer
async def test_preinit_can_not_grow_memory_over_the_functions_limit(store) -> None:
    wat = """(module (memory (export "memory") 1)
      (func (export "wizer-initialize") (if (i32.eq (memory.grow (i32.const 99)) (i32.const -1)) (then unreachable)))
      (func (export "_start")))"""
    manifest = Manifest(name="f", limits=Limits(memory_bytes=MIB))

    with pytest.raises(PreinitError, match="unreachable"):
        await precompile(bytes(wat2wasm(wat)), manifest, CONFIG, store)


def _children() -> list[str]:
    """Return the jobs that still run or were not waited for; a host that other tests share is none of them."""
    me = Path("/proc/self").resolve().name
    commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()}
    return [pid for pid, path in commands.items() if (command := path.read_bytes()) == b"" or b"precompile" in command]


async def test_jobs_run_side_by_side(store) -> None:
    async def one(n: int) -> Precompiled:
        wat = f'(module (func (export "_start")) (func (export "n") (result i32) i32.const {n}))'
        return await precompile(bytes(wat2wasm(wat)), FUNCTION, CONFIG, store)

    made = await asyncio.gather(*(one(n) for n in range(4)))

    assert len({each.artifact_key for each in made}) == 4


async def test_the_same_module_deployed_twice_at_once_is_stored_once(store) -> None:
    first, second = await asyncio.gather(*(precompile(HELLO, FUNCTION, CONFIG, store) for _ in range(2)))

    assert first.artifact_key == second.artifact_key
    assert store.has_native(first.artifact_key)


async def test_another_engine_setting_gives_another_key(store, monkeypatch) -> None:
    first = await precompile(HELLO, FUNCTION, CONFIG, store)
    profile = EngineProfile(nan_canonicalization=True)
    monkeypatch.setattr(EngineProfile, "from_config", classmethod(lambda cls, config: profile))

    second = await precompile(HELLO, FUNCTION, CONFIG, store)

    assert second.artifact_key != first.artifact_key
    assert store.has_native(first.artifact_key)
    assert store.has_native(second.artifact_key)


async def test_the_job_gets_none_of_the_hosts_environment(store, monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    seen: dict[str, str] = {}
    start = asyncio.create_subprocess_exec

    async def spy(*command, **options):
        seen.update(options["env"])
        return await start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spy)
    await precompile(HELLO, FUNCTION, CONFIG, store)

    assert set(seen) == {"PYTHONPATH", "LANG", "TMPDIR"}


def job_of(wasm: bytes, folder: Path) -> Job:
    path = folder / "module.wasm"
    path.write_bytes(wasm)
    return Job(
        wasm_path=str(path),
        wasm_digest="0" * 64,
        output_path=str(folder / "module.cwasm"),
        scratch=str(folder),
        manifest=FUNCTION,
        profile=EngineProfile.from_config(CONFIG),
        cpu_s=10,
        memory_bytes=512 * MIB,
        timeout_s=10,
    )


@pytest.mark.parametrize(
    "body", [b"\x00\x41\x40\x00\x41\x80", b"\x00\x40\x00\x0e\xff", b"\x40\x00", b"\x00\x40\x00\xfc"]
)
def test_a_malformed_body_with_the_bytes_of_a_grow_is_an_invalid_module(tmp_path: Path, body: bytes) -> None:
    wasm = HEADER + section(1, b"\x01\x60\x00\x00") + section(3, b"\x01\x00") + section(5, b"\x01\x00\x01")
    wasm += section(7, b"\x01" + name("_start") + b"\x00\x00") + section(10, b"\x01" + leb(len(body)) + body)
    with pytest.raises(InvalidModuleError, match="the module is not valid"):
        run_job(job_of(wasm, tmp_path), lambda stage: None)


async def test_a_disk_that_fills_up_during_a_job_is_a_state_error_and_leaves_nothing(store, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for target in ("precompile.run.tempfile.mkdtemp", "pathlib.Path.write_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            with pytest.raises(StateError, match="disk full"):
                await precompile(HELLO, FUNCTION, CONFIG, store)
        assert files(store) == []


def test_a_disk_that_is_full_for_the_job_itself_is_its_answer(tmp_path: Path, monkeypatch, capsysbinary) -> None:
    encoded = msgspec.json.encode(job_of(HELLO, tmp_path))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(encoded)))
    monkeypatch.setattr("precompile.job.limit_process", lambda **_: None)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main() == 0
    last = msgspec.json.decode(capsysbinary.readouterr().out.splitlines()[-1], type=Line)
    assert isinstance(last, Failed)
    assert last.problem["code"] == "state-failed"
