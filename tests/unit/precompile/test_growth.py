"""The growth watch: modules behave as before, and say when they were refused memory."""

from pathlib import Path

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st
from wasm_bytes import HEADER, leb, section

from faas.wasm.engine import GROW_FAILED_EXPORT
from precompile.growth import watch_growth

FLAG = GROW_FAILED_EXPORT.decode()
GUESTS = sorted(Path("functions").rglob("*.wasm"))


def instance(wat: str, *, limit: int = 4 * 65536) -> tuple[wasmtime.Store, dict]:
    store = wasmtime.Store()
    store.set_limits(memory_size=limit)
    module = wasmtime.Module(store.engine, watch_growth(bytes(wasmtime.wat2wasm(wat))))
    return store, wasmtime.Instance(store, module, []).exports(store)


def test_a_refused_grow_sets_the_flag_and_still_answers_minus_one():
    store, exports = instance(
        '(module (memory 1) (func (export "f") (param i32) (result i32) local.get 0 memory.grow))'
    )
    assert exports["f"](store, 1) == 1
    assert exports[FLAG].value(store) == 0
    assert exports["f"](store, 100) == -1
    assert exports[FLAG].value(store) == 1


def test_a_grow_behind_every_kind_of_immediate_is_found():
    wat = """(module (memory 1) (table 2 funcref) (global $g (mut i32) (i32.const 0)) (data "ab") (elem func $h)
      (func $h)
      (func (export "f") (result i32) (local i64 f32)
        (block (br_table 0 0 (i32.const 64)))
        (drop (v128.const i64x2 0x4000400040004000 0x40)) (drop (f64.const 2.0)) (drop (f32.const 2.0))
        (drop (i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 (v128.const i64x2 0 0) (v128.const i64x2 0 0)))
        (drop (i64x2.extract_lane 1 (v128.const i64x2 0 0)))
        (drop (v128.load32_lane 1 (i32.const 0) (v128.const i64x2 0 0)))
        (drop (select (result i32) (i32.const 1) (i32.const 2) (i32.const 64)))
        (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 1)) (data.drop 0)
        (memory.copy (i32.const 0) (i32.const 0) (i32.const 1)) (memory.fill (i32.const 0) (i32.const 0) (i32.const 1))
        (table.init 0 (i32.const 0) (i32.const 0) (i32.const 1)) (elem.drop 0) (drop (table.size 0))
        (call_indirect (i32.const 0)) (drop (ref.is_null (ref.func $h))) (drop (ref.null func))
        (drop (i32.trunc_sat_f32_s (f32.const 0))) (i32.store offset=64 (i32.const 0) (i32.load8_u (i32.const 64)))
        (if (i32.const 1) (then (global.set $g (memory.size))))
        (memory.grow (i32.const 1000))))"""
    store, exports = instance(wat)
    assert exports["f"](store) == -1
    assert exports[FLAG].value(store) == 1


@pytest.mark.parametrize(
    "wat",
    [
        "(module (memory 1))",
        "(module)",
        '(module (import "m" "m" (memory 1)) (func (drop (memory.grow (i32.const 1)))))',
        "(module (memory 1) (func (drop (i32.const 64)) (block unreachable)))",
    ],
)
def test_a_module_that_never_grows_its_own_memory_is_left_alone(wat):
    wasm = bytes(wasmtime.wat2wasm(wat))
    assert watch_growth(wasm) == wasm


@pytest.mark.parametrize("path", GUESTS, ids=lambda path: path.stem)
def test_every_guest_still_validates(path):
    engine = wasmtime.Engine()
    wasm = path.read_bytes()
    try:
        wasmtime.Module.validate(engine, wasm)
    except wasmtime.WasmtimeError:
        pytest.skip("invalid before")
    wasmtime.Module.validate(engine, watch_growth(wasm))


def test_imports_of_every_kind_do_not_shift_the_added_indices():
    wat = """(module
      (import "a" "f" (func (param i32))) (import "a" "g" (global i32)) (import "a" "t" (table 1 2 funcref))
      (memory 1) (global (mut i64) (i64.const 7))
      (func (export "f") (result i32) (memory.grow (i32.const 1000))))"""
    store = wasmtime.Store()
    store.set_limits(memory_size=65536)
    module = wasmtime.Module(store.engine, watch_growth(bytes(wasmtime.wat2wasm(wat))))
    i32 = wasmtime.ValType.i32()
    imports = [
        wasmtime.Func(store, wasmtime.FuncType([i32], []), lambda _: None),
        wasmtime.Global(store, wasmtime.GlobalType(i32, mutable=False), wasmtime.Val.i32(1)),
        wasmtime.Table(store, wasmtime.TableType(wasmtime.ValType.funcref(), wasmtime.Limits(1, 2)), None),
    ]
    exports = wasmtime.Instance(store, module, imports).exports(store)
    assert exports["f"](store) == -1
    assert exports[FLAG].value(store) == 1


@settings(max_examples=300)
@given(st.data())
def test_a_module_that_can_not_be_read_is_left_alone(data):
    wasm = bytearray(
        wasmtime.wat2wasm(
            '(module (import "a" "f" (func (param i32))) (memory 1) (global i32 (i32.const 1))'
            ' (func (export "f") (local i64)'
            " (drop (memory.grow (i32.const 64))) (block (br_table 0 0 (i32.const 64)))))"
        )
    )
    for at, byte in data.draw(st.lists(st.tuples(st.integers(8, len(wasm) - 1), st.integers(0, 255)), max_size=4)):
        wasm[at] = byte
    cut = bytes(wasm[: data.draw(st.integers(8, len(wasm)))])
    assert watch_growth(cut)[:8] == cut[:8]


def test_a_body_that_ends_in_the_middle_of_a_grow_is_left_alone():
    body = b"\x00\x41\x40\x00\x41\x80"
    wasm = HEADER + section(1, b"\x01\x60\x00\x00") + section(3, b"\x01\x00") + section(5, b"\x01\x00\x01")
    wasm += section(10, b"\x01" + leb(len(body)) + body)
    assert watch_growth(wasm) == wasm
