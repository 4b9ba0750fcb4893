"""The binary reader: right about real modules, and only our errors for any bytes whatever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasm_bytes import FUNCTIONS, HEADER, leb, name, section
from wasmtime import Engine, Module, wat2wasm

from faas.errors import DeployError, InvalidModuleError, NotWasmError
from precompile.binary import ItemKind, read_layout
from precompile.component import is_component

RICH = bytes(
    wat2wasm("""
    (module
      (import "env" "f" (func (param i32 i64 f32 f64 v128 funcref externref) (result i32)))
      (import "env" "g" (global (mut i64)))
      (import "env" "t" (table 3 9 funcref))
      (memory (export "memory") 2 5)
      (table 7 externref)
      (global i32 (i32.const 1))
      (func $start)
      (func (export "_start"))
      (func (export "handle") (param i32 i32) (result i64) i64.const 0)
      (start $start)
      (elem (table 0) (i32.const 0) func 1)
      (data (i32.const 0) "hello"))
    """)
)
REAL = [path.read_bytes() for path in sorted(FUNCTIONS.glob("*/*.wasm")) if path.stat().st_size < 40_000]


def test_read_layout_tells_imports_exports_memories_tables_and_start() -> None:
    layout = read_layout(RICH)

    assert [(item.module, item.name, item.kind) for item in layout.imports] == [
        ("env", "f", ItemKind.FUNC),
        ("env", "g", ItemKind.GLOBAL),
        ("env", "t", ItemKind.TABLE),
    ]
    assert str(layout.imports[0].type) == "(i32, i64, f32, f64, v128, funcref, externref) -> i32"
    assert str(layout.export("handle").type) == "(i32, i32) -> i64"
    assert str(layout.export("_start").type) == "() -> ()"
    assert [(memory.min_pages, memory.max_pages, memory.is_imported) for memory in layout.memories] == [(2, 5, False)]
    assert [(table.min_elements, table.max_elements) for table in layout.tables] == [(3, 9), (7, None)]
    assert layout.has_start


@pytest.mark.parametrize("flags", ["i64 1", "1 2 shared"])
def test_read_layout_tells_64_bit_and_shared_memories(flags: str) -> None:
    memory = read_layout(bytes(wat2wasm(f"(module (memory {flags}))"))).memories[0]

    assert (memory.is_64, memory.is_shared) == ("i64" in flags, "shared" in flags)


def test_read_layout_agrees_with_wasmtime_on_every_sample_function() -> None:
    engine = Engine()
    for path in sorted(FUNCTIONS.glob("*/*.wasm")):
        wasm = path.read_bytes()
        if is_component(wasm):
            continue
        layout = read_layout(wasm)
        module = Module.from_file(engine, str(path))
        assert [(item.module, item.name) for item in layout.imports] == [(i.module, i.name) for i in module.imports]
        assert [export.name for export in layout.exports] == [export.name for export in module.exports]


def test_an_empty_file_is_not_wasm() -> None:
    with pytest.raises(NotWasmError, match="empty"):
        read_layout(b"")


@pytest.mark.parametrize(
    ("head", "hint"),
    [
        (b"(module)", "wasm-tools parse"),
        (b"\x7fELF\x02", "native code"),
        (b"PK\x03\x04", "archive"),
        (b"hi", "compiled"),
    ],
)
def test_another_format_is_named_with_what_to_do(head: bytes, hint: str) -> None:
    with pytest.raises(NotWasmError, match=hint):
        read_layout(head)


def test_a_component_is_no_module() -> None:
    with pytest.raises(InvalidModuleError, match="layer 1 is not known"):
        read_layout(b"\0asm\x0d\0\x01\0")


def refusal(wasm: bytes) -> DeployError | None:
    """Return how *wasm* is refused, or None; anything but our own errors passes through and fails the test."""
    try:
        read_layout(wasm)
    except DeployError as exc:
        return exc
    return None


def test_every_truncation_of_a_module_is_invalid_or_still_readable() -> None:
    n_invalid = 0
    for length in range(8, len(RICH)):
        error = refusal(RICH[:length])
        if error is not None:
            assert isinstance(error, InvalidModuleError)
            assert 0 <= error.facts["offset"] <= length
            n_invalid += 1
    # Only a cut between two sections can pass (then the code is missing, which the compiler says).
    assert n_invalid > len(RICH) - 8 - 16


@pytest.mark.parametrize("length", range(1, 8))
def test_a_cut_header_says_that_the_file_is_cut_off(length: int) -> None:
    with pytest.raises((InvalidModuleError, NotWasmError)) as caught:
        read_layout(RICH[:length])
    if length >= 4:
        assert caught.value.facts["offset"] == length


@pytest.mark.parametrize(
    ("wasm", "why"),
    [
        (HEADER + b"\x01\xff\xff\xff\xff\x0f", "cut off"),
        (HEADER + section(1, leb(1_000_001) + b"\x60\0\0"), "do not fit"),
        (HEADER + section(1, leb(900_000)), "do not fit"),
        (HEADER + section(3, leb(0xFFFFFFFF)), "do not fit"),
        (HEADER + section(1, leb(1) + b"\x60" + leb(0xFFFFFFFF)), "the limit"),
        (HEADER + section(2, leb(1) + leb(0xFFFFFFF) + b"abc"), "does not fit"),
        (HEADER + section(3, b"\x80\x80\x80\x80\x80\x80\x80\x00"), "longer than 32 bits"),
        (HEADER + section(3, b"\xff\xff\xff\xff\x7f"), "longer than 32 bits"),
        (HEADER + section(1, leb(0)) + section(1, leb(0)), "twice"),
        (HEADER + section(7, leb(0)) + section(1, leb(0)), "out of order"),
        (HEADER + section(99, b""), "not known"),
        (HEADER + section(1, leb(0) + b"\0"), "longer than its contents"),
        (HEADER + section(1, leb(1) + b"\x5f\0\0"), "garbage collection"),
        (HEADER + section(2, leb(1) + leb(1) + b"\xff" + name("f") + b"\0\0"), "UTF-8"),
        (HEADER + section(7, leb(1) + name("f") + b"\0\x05"), "names function 5 of 0"),
        (HEADER + section(7, leb(1) + name("f") + b"\x09\0"), "kind 9"),
        (HEADER + section(5, leb(1) + b"\x08\0"), "custom page sizes"),
    ],
)
def test_a_lying_module_is_invalid_and_says_where(wasm: bytes, why: str) -> None:
    with pytest.raises(InvalidModuleError, match=why) as caught:
        read_layout(wasm)
    assert caught.value.facts["offset"] <= len(wasm)


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_raise_only_our_errors(tail: bytes, has_header: bool) -> None:
    error = refusal(HEADER * has_header + tail)

    assert error is None or error.message.isprintable()


@settings(max_examples=300)
@given(st.data())
def test_mutated_real_modules_raise_only_our_errors(data: st.DataObject) -> None:
    wasm = bytearray(data.draw(st.sampled_from([RICH, *REAL])))
    # Early bytes are declarations; late ones are code, which is skipped.
    places = st.integers(0, min(len(wasm), 1500) - 1)
    for at, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        wasm[at] = byte
    error = refusal(bytes(wasm))

    assert error is None or error.code in {"not-wasm", "module-invalid", "component-unsupported"}
