"""The engine profile: compiler and workers agree, and what is compiled elsewhere has another fingerprint."""

from __future__ import annotations

import msgspec
import pytest
from wasmtime import Instance, Module, Store, Trap, WasmtimeError, wat2wasm

from faas.config import HostConfig, PoolConfig
from faas.errors import ConfigError
from faas.wasm.engine import EngineProfile, cpu_features, engine_pointer, fingerprint, new_engine

SMALL = EngineProfile(slots=2, max_memory_bytes=1 << 20, max_table_elements=100)


@pytest.fixture
def native(tmp_path):
    path = tmp_path / "add.cwasm"
    wat = """(module (memory 1) (table 3 funcref)
      (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))"""
    path.write_bytes(bytes(Module(new_engine(SMALL, pooling=False), wat).serialize()))
    return path


def test_code_compiled_without_a_pool_runs_in_a_pooling_engine(native) -> None:
    engine = new_engine(SMALL, pooling=True)
    store = Store(engine)
    store.set_epoch_deadline(1)

    instance = Instance(store, Module.deserialize_file(engine, str(native)), [])

    assert instance.exports(store)["add"](store, 2, 3) == 5


def test_code_is_interruptible_by_epochs() -> None:
    engine = new_engine(SMALL, pooling=True)
    store = Store(engine)
    store.set_epoch_deadline(1)
    module = Module(engine, '(module (func (export "spin") (loop br 0)))')
    spin = Instance(store, module, []).exports(store)["spin"]
    engine.increment_epoch()

    with pytest.raises(Trap, match="interrupt"):
        spin(store)


def test_code_of_other_compile_settings_does_not_load(native) -> None:
    other = msgspec.structs.replace(SMALL, memory_reservation_bytes=1 << 21, memory_guard_bytes=1 << 16)

    with pytest.raises(WasmtimeError):
        Module.deserialize_file(new_engine(other, pooling=True), str(native))


def test_a_pool_of_n_slots_holds_n_instances(native) -> None:
    engine = new_engine(SMALL, pooling=True)
    module = Module.deserialize_file(engine, str(native))
    alive = []
    for _ in range(SMALL.slots):
        store = Store(engine)
        alive.append((store, Instance(store, module, [])))

    with pytest.raises(WasmtimeError, match="concurrent"):
        Instance(Store(engine), module, [])


@pytest.mark.parametrize(
    "change",
    [
        {"memory_reservation_bytes": 1 << 30},
        {"memory_guard_bytes": 1 << 20},
        {"memory_init_cow": False},
        {"nan_canonicalization": True},
    ],
)
def test_another_compile_setting_gives_another_fingerprint(change) -> None:
    assert fingerprint(msgspec.structs.replace(SMALL, **change)) != fingerprint(SMALL)


def test_resizing_the_pool_keeps_the_fingerprint() -> None:
    assert fingerprint(msgspec.structs.replace(SMALL, slots=9, max_memory_bytes=1 << 22)) == fingerprint(SMALL)


def test_the_profile_takes_its_sizes_from_the_pool_settings() -> None:
    pool = PoolConfig(slots=7, max_memory_bytes=1 << 20, max_table_elements=9, keep_resident_bytes=4096)

    profile = EngineProfile.from_config(HostConfig(pool=pool))

    assert (profile.slots, profile.max_memory_bytes) == (7, 1 << 20)
    assert (profile.max_table_elements, profile.keep_resident_bytes) == (9, 4096)


def test_the_largest_allowed_pool_can_be_made() -> None:
    assert engine_pointer(new_engine(EngineProfile(slots=20_000), pooling=True)) > 0


def test_a_pool_beyond_the_address_space_is_a_config_error_and_no_abort() -> None:
    with pytest.raises(ConfigError, match=r"lower pool\.slots"):
        new_engine(EngineProfile(slots=60_000), pooling=True)


def test_callbacks_have_a_mebibyte_of_stack_beyond_the_guests() -> None:
    assert SMALL.async_stack_bytes - SMALL.max_wasm_stack_bytes >= 1 << 20


@pytest.mark.parametrize("line", ["flags\t\t: sse4_2 avx2 sse4_2", "Features\t: sse4_2 avx2"])
def test_cpu_features_are_sorted_names(tmp_path, line: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n\nprocessor : 1\n{line}\n")

    assert cpu_features(tmp_path / "cpuinfo") == ["avx2", "sse4_2"]


def test_proposals_that_are_off_do_not_validate() -> None:
    engine = new_engine(SMALL, pooling=False)
    for wat in ("(module (memory i64 1))", "(module (memory 1) (memory 1))", "(module (type (struct)))"):
        with pytest.raises(WasmtimeError):
            Module.validate(engine, bytes(wat2wasm(wat)))
