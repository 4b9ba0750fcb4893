"""Components whose byte lists are handed over whole: the same meaning, and nothing changed where that is not sure."""

from __future__ import annotations

import ctypes
import random
import struct
from typing import Any

import component_wat as wat
import pytest
from wasmtime import Store, WasmtimeError
from wasmtime import _bindings as ffi
from wasmtime.component import Component, Linker, ResourceHost, ResourceType, Variant

from faas.wasm.engine import LATIN1_EXPORT, MEMORY_EXPORT, EngineProfile, new_engine
from precompile.bytelists import pass_bytes_whole
from precompile.component import read_component

PROFILE = EngineProfile(slots=1, max_table_elements=1000)
IN, OUT, ERROR = 1, 2, 3


def patched(wasm: bytes) -> bytes:
    return pass_bytes_whole(wasm, read_component(wasm))


def marks(wasm: bytes) -> list[str]:
    return [export.name for export in read_component(wasm).exports if export.name.startswith("faas:")]


class Guest:
    """An instance in a pool, as a worker has it, whose streams are *contents* and a list of what was written."""

    def __init__(self, wasm: bytes, contents: bytes = b"") -> None:
        self.wasm = wasm
        self.written: list[bytes] = []
        self.contents = contents
        self.text = LATIN1_EXPORT in marks(wasm)
        native = Component(new_engine(PROFILE, pooling=False), wasm).serialize()
        self.engine = new_engine(PROFILE, pooling=True)
        self.store = Store(self.engine)
        self.store.set_epoch_deadline(1)
        linker = Linker(self.engine)
        with linker.root() as root:
            with root.add_instance("wasi:io/error@0.2.12") as errors:
                errors.add_resource("error", ResourceType.host(ERROR), lambda *_: None)
            with root.add_instance("wasi:io/streams@0.2.12") as streams:
                streams.add_resource("input-stream", ResourceType.host(IN), lambda *_: None)
                streams.add_resource("output-stream", ResourceType.host(OUT), lambda *_: None)
                streams.add_func("[method]input-stream.read", self._read)
                streams.add_func("[method]output-stream.write", self._write)
        self.instance = linker.instantiate(self.store, Component.deserialize(self.engine, native))

    def call(self, name: str, *args: Any) -> Any:
        function = self.instance.get_func(self.store, name)
        assert function is not None
        return function(self.store, *args)

    def run(self) -> int:
        return self.call("run", ResourceHost.own(1, IN), ResourceHost.own(1, OUT))

    def _read(self, store: Any, this: Any, size: int) -> Any:
        this.drop(store)
        return self.contents.decode("latin-1") if self.text else self.contents

    def _write(self, store: Any, this: Any, *contents: Any) -> Any:
        this.drop(store)
        self.written.append(self._memory(store, *contents) if len(contents) == 2 else bytes(contents[0]))
        return Variant("ok", None)

    def _memory(self, store: Any, at: int, size: int) -> bytes:
        """Read guest memory the way a worker does: by the number that the component's export names."""
        memory = ffi.wasmtime_memory_t()
        name = next(e for e in marks(self.wasm) if e.startswith(MEMORY_EXPORT))
        raw = struct.pack("<QI4xI4x", self.instance._instance.store_id, int(name.removeprefix(MEMORY_EXPORT)), 0)
        ctypes.memmove(ctypes.byref(memory), raw, ctypes.sizeof(memory))
        base = ctypes.cast(ffi.wasmtime_memory_data(store._context(), ctypes.byref(memory)), ctypes.c_void_p).value
        assert base is not None
        assert at + size <= ffi.wasmtime_memory_data_size(store._context(), ctypes.byref(memory))
        return ctypes.string_at(base + at, size)


@pytest.mark.parametrize("make", [bytes, patched], ids=["as-built", "whole"])
@pytest.mark.parametrize(
    "contents",
    [b"", b"plain", bytes(range(256)) * 20, b"\xff" * 9999, random.Random(7).randbytes(5001)],
    ids=["nothing", "ascii", "every-byte", "all-high", "random"],
)
def test_a_guest_reads_and_writes_the_same_bytes_either_way(make: Any, contents: bytes) -> None:
    guest = Guest(make(wat.COPY), contents)

    assert guest.run() == len(contents)
    assert guest.written == [contents]


def test_what_was_changed_is_marked_by_exports() -> None:
    assert marks(wat.COPY) == []
    assert marks(patched(wat.COPY)) == [f"{MEMORY_EXPORT}1", LATIN1_EXPORT]


def test_an_empty_list_at_address_one_is_passed_as_it_is() -> None:
    guest = Guest(patched(wat.COPY))
    guest.call("write-at", ResourceHost.own(1, OUT), 1, 0)

    assert guest.written == [b""]


def test_only_declarations_change() -> None:
    whole = patched(wat.COPY)
    before, after = read_component(wat.COPY), read_component(whole)
    for old, new in zip(before.modules, after.modules, strict=True):
        assert whole[slice(*new.span)] == wat.COPY[slice(*old.span)]
    streams = next(i for i in after.instances if i is not None and i.name.startswith("wasi:io/streams"))
    assert streams.functions["[method]output-stream.write"].params[1:] == (
        ("contents-at", "u32"),
        ("contents-size", "u32"),
    )
    assert streams.functions["[method]input-stream.read"].result[1] == "string"
    assert len(before.instances) + 2 + 2 == len(after.instances)  # two empty ones, and their exports


def test_the_memory_is_found_among_several_modules() -> None:
    first = "(core module $a (func)) (core instance (instantiate $a)) (core instance (instantiate $a))"
    guest = Guest(patched(wat.component(first, wat.STREAMS, wat.LIBC, wat.MAIN)), b"\x80abc")

    assert marks(guest.wasm)[0] == f"{MEMORY_EXPORT}3"
    assert guest.run() == 4
    assert guest.written == [b"\x80abc"]


def test_instances_made_of_exports_are_no_instances_of_the_engine() -> None:
    first = '(core module $a (func (export "f"))) (core instance $b (instantiate $a))' + (
        '(core instance (export "g" (func $b "f")))' * 3
    )
    guest = Guest(patched(wat.component(first, wat.STREAMS, wat.LIBC, wat.MAIN)), b"\x80abc")

    assert marks(guest.wasm)[0] == f"{MEMORY_EXPORT}2"
    assert guest.run() == 4
    assert guest.written == [b"\x80abc"]


@pytest.mark.parametrize(
    "first",
    [
        # Whose memory it is, or which instance has it, would be a guess.
        "(core module (memory 1))",
        "(component $c (core module $m (func)) (core instance (instantiate $m))) (instance (instantiate $c))",
        '(core module $l (func (export "f"))) (core instance $l (instantiate $l))'
        ' (alias core export $l "f" (core func $f)) (func (canon lift (core func $f)))',
        "(component (core module (memory 1)))",
    ],
    ids=["second-memory", "nested-instance", "lifted-function", "nested-memory"],
)
def test_addresses_are_not_taken_where_the_memory_is_not_certain(first: str) -> None:
    whole = patched(wat.component(first, wat.STREAMS, wat.LIBC, wat.MAIN))

    assert marks(whole) == [LATIN1_EXPORT]
    guest = Guest(whole, b"\x80abc") if "memory" not in first else None
    assert guest is None or (guest.run(), guest.written) == (4, [b"\x80abc"])


def test_two_instances_of_the_module_with_the_memory_are_not_told_apart() -> None:
    whole = patched(wat.component(wat.STREAMS, wat.LIBC, "(core instance (instantiate $libc))", wat.MAIN))

    assert marks(whole) == [LATIN1_EXPORT]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # The preview-1 adapter's allocator, which neither takes more than was asked for nor gives any back.
        ('"cabi_realloc"', '"cabi_import_realloc"'),
        ("(realloc $realloc)", "(realloc $realloc) string-encoding=utf16"),
    ],
    ids=["other-allocator", "other-encoding"],
)
def test_results_stay_lists_where_the_guest_could_not_take_text(old: str, new: str) -> None:
    whole = patched(wat.component(wat.STREAMS, wat.LIBC.replace(old, new), wat.MAIN))

    assert marks(whole) == [f"{MEMORY_EXPORT}1"]
    guest = Guest(whole, b"\x80abc")
    assert (guest.run(), guest.written) == (4, [b"\x80abc"])


def test_one_lowering_that_can_not_take_text_keeps_it_from_all() -> None:
    other = """(alias core export $libc "f" (core func $f))
        (core func (canon lower (func $read) (memory $memory) (realloc $f)))"""
    libc = wat.LIBC.replace(
        '(memory (export "memory") 2)',
        """(memory (export "memory") 2)
        (func (export "f") (param i32 i32 i32 i32) (result i32) unreachable)""",
    )

    assert marks(patched(wat.component(wat.STREAMS, libc, other, wat.MAIN))) == [f"{MEMORY_EXPORT}1"]


def test_a_component_without_byte_lists_stays_as_it_is() -> None:
    wasm = wat.handler()

    assert patched(wasm) is wasm


def test_streams_handed_on_to_a_component_inside_do_not_fit_afterwards() -> None:
    inside = f"(component $inside {wat.STREAMS})" + wat.STREAMS.replace("@0.2.3", "@0.2.4")
    wasm = wat.component(
        inside,
        '(instance (instantiate $inside (with "wasi:io/error@0.2.3" (instance $errors))'
        ' (with "wasi:io/streams@0.2.3" (instance $streams))))',
        wat.LIBC,
        wat.MAIN,
    )
    engine = new_engine(PROFILE, pooling=False)
    Component(engine, wasm)

    with pytest.raises(WasmtimeError, match="at offset"):
        Component(engine, patched(wasm))
