"""Components whose byte lists are handed over whole: the same meaning, and nothing changed where that is not sure."""

from __future__ import annotations

import ctypes
import random
import re
import struct
from typing import Any

import component_wat as wat
import pytest
from wasmtime import Func, Store, WasmtimeError
from wasmtime import _bindings as ffi
from wasmtime.component import Component, Linker, ResourceHost, ResourceType, Variant

from faas.wasm.engine import MEMORY_EXPORT, ROOM_EXPORT, EngineProfile, new_engine
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
        self.read_to: list[int] = []
        self.rooms = [mark for mark in marks(wasm) if mark.startswith(ROOM_EXPORT)]
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
                streams.add_func("[method]input-stream.read2", self._read_2)
                streams.add_func("[method]output-stream.write", self._write)
        self.instance = linker.instantiate(self.store, Component.deserialize(self.engine, native))

    def call(self, name: str, *args: Any) -> Any:
        function = self.instance.get_func(self.store, name)
        assert function is not None
        return function(self.store, *args)

    def run(self) -> int:
        return self.call("run", ResourceHost.own(1, IN), ResourceHost.own(1, OUT))

    def _read(self, store: Any, this: Any, _size: int, room: int = 1) -> Any:
        this.drop(store)
        return self._in_room(store, room) if self.rooms else self.contents

    def _read_2(self, store: Any, this: Any, size: int) -> Any:
        return self._read(store, this, size, 2)

    def _in_room(self, store: Any, room: int) -> tuple[int, int]:
        """Put the contents where the guest makes room: by the function that the component's export names."""
        mark = re.fullmatch(rf"{ROOM_EXPORT}{room}-([a-z-]+)(\d+)", self.rooms[room - 1])
        assert mark is not None
        name, number = mark.groups()
        instance, found = ffi.wasmtime_instance_t(), ffi.wasmtime_extern_t()
        raw = struct.pack("<QI4x", self.instance._instance.store_id, int(number))
        ctypes.memmove(ctypes.byref(instance), raw, ctypes.sizeof(instance))
        text = name.replace("-", "_").encode()
        context = store._context()
        assert ffi.wasmtime_instance_export_get(
            context, ctypes.byref(instance), ctypes.create_string_buffer(text), len(text), ctypes.byref(found)
        )
        at = Func._from_raw(found.of.func)(store, 0, 0, 1, len(self.contents))
        ctypes.memmove(self._place(store, at, len(self.contents)), self.contents, len(self.contents))
        self.read_to.append(at)
        return at, len(self.contents)

    def _write(self, store: Any, this: Any, *contents: Any) -> Any:
        this.drop(store)
        self.written.append(self._memory(store, *contents) if len(contents) == 2 else bytes(contents[0]))
        return Variant("ok", None)

    def _memory(self, store: Any, at: int, size: int) -> bytes:
        return ctypes.string_at(self._place(store, at, size), size)

    def _place(self, store: Any, at: int, size: int) -> int:
        """Find guest memory the way a worker does: by the number that the component's export names."""
        memory = ffi.wasmtime_memory_t()
        name = next(e for e in marks(self.wasm) if e.startswith(MEMORY_EXPORT))
        raw = struct.pack("<QI4xI4x", self.instance._instance.store_id, int(name.removeprefix(MEMORY_EXPORT)), 0)
        ctypes.memmove(ctypes.byref(memory), raw, ctypes.sizeof(memory))
        base = ctypes.cast(ffi.wasmtime_memory_data(store._context(), ctypes.byref(memory)), ctypes.c_void_p).value
        assert base is not None
        assert at + size <= ffi.wasmtime_memory_data_size(store._context(), ctypes.byref(memory))
        return base + at


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
    assert marks(patched(wat.COPY)) == [f"{MEMORY_EXPORT}1", f"{ROOM_EXPORT}1-cabi-realloc1"]


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
    assert streams.functions["[method]input-stream.read"].result[1] == ("tuple", ("u32", "u32"))
    assert len(before.instances) + 2 + 2 == len(after.instances)  # two empty ones, and their exports


def test_the_memory_is_found_among_several_modules() -> None:
    first = "(core module $a (func)) (core instance (instantiate $a)) (core instance (instantiate $a))"
    guest = Guest(patched(wat.component(first, wat.STREAMS, wat.LIBC, wat.MAIN)), b"\x80abc")

    assert marks(guest.wasm) == [f"{MEMORY_EXPORT}3", f"{ROOM_EXPORT}1-cabi-realloc3"]
    assert guest.run() == 4
    assert guest.written == [b"\x80abc"]


def test_instances_made_of_exports_are_no_instances_of_the_engine() -> None:
    first = '(core module $a (func (export "f"))) (core instance $b (instantiate $a))' + (
        '(core instance (export "g" (func $b "f")))' * 3
    )
    guest = Guest(patched(wat.component(first, wat.STREAMS, wat.LIBC, wat.MAIN)), b"\x80abc")

    assert marks(guest.wasm) == [f"{MEMORY_EXPORT}2", f"{ROOM_EXPORT}1-cabi-realloc2"]
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
def test_nothing_is_changed_where_the_memory_is_not_certain(first: str) -> None:
    wasm = wat.component(first, wat.STREAMS, wat.LIBC, wat.MAIN)

    assert patched(wasm) is wasm


def test_two_instances_of_the_module_with_the_memory_are_not_told_apart() -> None:
    wasm = wat.component(wat.STREAMS, wat.LIBC, "(core instance (instantiate $libc))", wat.MAIN)

    assert patched(wasm) is wasm


def test_an_allocator_of_any_encoding_makes_room() -> None:
    """The preview-1 adapter's goes by another name; bytes have no encoding."""
    for old, new in (
        ('"cabi_realloc"', '"cabi_import_realloc"'),
        ("(realloc $realloc)", "(realloc $realloc) string-encoding=utf16"),
    ):
        guest = Guest(patched(wat.component(wat.STREAMS, wat.LIBC.replace(old, new), wat.MAIN)), b"\x80abc")
        assert len(guest.rooms) == 1
        assert (guest.run(), guest.written) == (4, [b"\x80abc"])


BUMP = """(global.get $next) (global.set $next (i32.add (global.get $next) (local.get $size)))"""
# What they do with an old place is between them and those who ask for another one: here nobody does.
ONCE = f"(if (local.get $old) (then unreachable)) {BUMP}"


@pytest.mark.parametrize("realloc", [BUMP, ONCE], ids=["ignores-old", "refuses-old"])
@pytest.mark.parametrize("make", [bytes, patched], ids=["as-built", "whole"])
def test_room_is_asked_for_once(make: Any, realloc: str) -> None:
    start = wat.LIBC.index("(if (local.get $old)")
    end = wat.LIBC.index("  )\n  (core instance $libc")
    libc = f"{wat.LIBC[:start]}{realloc}){wat.LIBC[end:]}"
    contents = bytes(range(256)) * 37

    guest = Guest(make(wat.component(wat.STREAMS, libc, wat.MAIN)), contents)
    assert (guest.run(), guest.written) == (len(contents), [contents])


OTHER_LIBC = """
  (core module $other
    (func (export "NAME") (param i32 i32 i32 i32) (result i32) (i32.const 90000)))
  (core instance $other (instantiate $other))
  (alias core export $other "NAME" (core func $other_realloc))
  (alias export $streams "[method]input-stream.read" (func $read_again))
  (core func $in_read_again (canon lower (func $FUNCTION) (memory $memory) (realloc $other_realloc)))
"""
MAIN_OF_THE_OTHER = wat.MAIN.replace('"read" (func $in_read)', '"read" (func $in_read_again)')


@pytest.mark.parametrize(("main", "at"), [(wat.MAIN, 65536), (MAIN_OF_THE_OTHER, 90000)], ids=["first", "second"])
def test_parts_of_a_component_have_their_own_room(main: str, at: int) -> None:
    """Those of the second part read by another name: the host can't see who calls."""
    other = OTHER_LIBC.replace("NAME", "cabi_import_realloc").replace("FUNCTION", "read_again")
    guest = Guest(patched(wat.component(wat.STREAMS, wat.LIBC, other, main)), b"\x80abc")

    assert guest.rooms == [f"{ROOM_EXPORT}1-cabi-realloc1", f"{ROOM_EXPORT}2-cabi-import-realloc2"]
    assert guest.run() == 4
    assert guest.written == [b"\x80abc"]
    assert guest.read_to == [at]


MORE = OTHER_LIBC.replace("NAME", "cabi_realloc").replace("FUNCTION", "read_again")
THIRD = re.sub(r"\$(other\w*|read_again|in_read_again)", r"$third_\1", MORE)


@pytest.mark.parametrize(
    ("streams", "more"),
    [
        (wat.STREAMS, MORE.replace("func $read_again) (memory", "func $read) (memory")),
        (wat.STREAMS, MORE + THIRD),
        (wat.STREAMS, MORE.replace('"cabi_realloc"', '"allocate"')),
        (
            wat.STREAMS.replace("(type $some (result", '(export "bytes" (type (eq $bytes))) (type $some (result'),
            MORE,
        ),
    ],
    ids=["one-alias", "three-rooms", "unknown-name", "other-use"],
)
def test_results_stay_lists_where_it_is_not_certain_who_makes_room(streams: str, more: str) -> None:
    whole = patched(wat.component(streams, wat.LIBC, more, wat.MAIN))

    assert marks(whole) == [f"{MEMORY_EXPORT}1"]
    guest = Guest(whole, b"\x80abc")
    assert (guest.run(), guest.written) == (4, [b"\x80abc"])


def test_a_component_without_byte_lists_stays_as_it_is() -> None:
    wasm = wat.handler()

    assert patched(wasm) is wasm


def test_streams_handed_on_to_a_component_inside_do_not_fit_afterwards() -> None:
    inside = f"(component $inside {wat.STREAMS})" + wat.STREAMS.replace("@0.2.3", "@0.2.4")
    wasm = wat.component(
        inside,
        wat.LIBC,
        '(instance (instantiate $inside (with "wasi:io/error@0.2.3" (instance $errors))'
        ' (with "wasi:io/streams@0.2.3" (instance $streams))))',
        wat.MAIN,
    )
    engine = new_engine(PROFILE, pooling=False)
    Component(engine, wasm)

    with pytest.raises(WasmtimeError, match="at offset"):
        Component(engine, patched(wasm))
