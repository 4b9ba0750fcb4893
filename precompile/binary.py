"""A small reader of the WebAssembly binary format: what a module imports, exports and asks for, without compiling."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TypeVar

import msgspec

from faas.errors import InvalidModuleError, NotWasmError

MAGIC = b"\0asm"
PAGE_BYTES = 65536

# The limits every engine keeps (wasmparser's limits.rs): counts beyond them are lies or attacks.
_MAX_ITEMS = 1_000_000
_MAX_NAME_BYTES = 100_000
_MAX_FUNC_VALUES = 1000

_VALUE_TYPES = {0x7F: "i", 0x7E: "I", 0x7D: "f", 0x7C: "F", 0x7B: "v", 0x70: "r", 0x6F: "x"}
_TYPE_WORDS = {
    "i": "i32",
    "I": "i64",
    "f": "f32",
    "F": "f64",
    "v": "v128",
    "r": "funcref",
    "x": "externref",
}
# Sections may come once each, in this order; custom sections (0) anywhere. Tags (13) stand between 5 and 6,
# the data count (12) between 9 and 10.
_SECTION_ORDER = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 13: 6, 6: 7, 7: 8, 8: 9, 9: 10, 12: 11, 10: 12, 11: 13}

T = TypeVar("T")


class ItemKind(str, Enum):
    """What an import or export is."""

    FUNC = "func"
    TABLE = "table"
    MEMORY = "memory"
    GLOBAL = "global"
    TAG = "tag"


_ITEM_KINDS = (ItemKind.FUNC, ItemKind.TABLE, ItemKind.MEMORY, ItemKind.GLOBAL, ItemKind.TAG)


class FuncType(msgspec.Struct, frozen=True):
    """A function's type: one letter per value, i=i32 I=i64 f=f32 F=f64 v=v128 r=funcref x=externref."""

    params: str
    results: str

    def __str__(self) -> str:
        """Return it as text: ``(i32, i32) -> i64``."""
        params, results = (
            ", ".join(_TYPE_WORDS.get(letter, letter) for letter in side) for side in (self.params, self.results)
        )
        return f"({params}) -> {results or '()'}"


class Import(msgspec.Struct, frozen=True):
    """One import; ``type`` only for functions."""

    module: str
    name: str
    kind: ItemKind
    type: FuncType | None = None


class Export(msgspec.Struct, frozen=True):
    """One export; ``type`` only for functions."""

    name: str
    kind: ItemKind
    type: FuncType | None = None


class MemoryType(msgspec.Struct, frozen=True):
    """A linear memory; sizes in pages of 64 KiB."""

    min_pages: int
    max_pages: int | None
    is_64: bool
    is_shared: bool
    is_imported: bool


class TableType(msgspec.Struct, frozen=True):
    """A table; sizes in elements."""

    min_elements: int
    max_elements: int | None
    is_imported: bool


class Layout(msgspec.Struct, frozen=True):
    """What a core module says about itself in its declarations."""

    imports: tuple[Import, ...]
    exports: tuple[Export, ...]
    memories: tuple[MemoryType, ...]
    tables: tuple[TableType, ...]
    has_start: bool

    def export(self, name: str, kind: ItemKind = ItemKind.FUNC) -> Export | None:
        """Return the export of that name and kind, or None."""
        return next((export for export in self.exports if export.name == name and export.kind is kind), None)


def read_layout(wasm: bytes) -> Layout:
    """
    Return the declarations of the core module in *wasm*; function bodies and segments are skipped, not checked.

    Memory and time are bounded by the length of *wasm*, whatever its counts claim.
    Raises: NotWasmError, InvalidModuleError (``offset``: where reading stopped).
    Source: WebAssembly core specification 3.0, chapter 5 (binary format).
    """
    _check_header(wasm)
    return _ModuleReader(wasm, 8, len(wasm)).read()


def read_sizes(wasm: bytes, start: int, end: int) -> Layout:
    """
    Return only the memories and tables that the core module in ``wasm[start:end]`` defines; the rest is skipped.

    Raises: InvalidModuleError.
    """
    if wasm[start : start + 8] != MAGIC + b"\x01\0\0\0":
        raise InvalidModuleError(
            f"the module is not valid at offset {start}: no core module begins there; build it anew", offset=start
        )
    return _SizeReader(wasm, start + 8, end).read()


def shown(text: str, *, limit: int = 200) -> str:
    """Return foreign *text* fit for one line of a terminal or a log: cut to *limit*, nothing unprintable."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def _check_header(wasm: bytes) -> None:
    if not wasm:
        raise NotWasmError("the file is empty; give a compiled .wasm file")
    if wasm[:4] != MAGIC[: len(wasm)]:
        hint = _foreign_format(wasm)
        raise NotWasmError(f"the file does not begin like WebAssembly (\\0asm){hint}")
    if len(wasm) < 8:
        raise InvalidModuleError(
            f"the module is cut off after {len(wasm)} bytes; upload the whole file", offset=len(wasm)
        )
    version, layer = int.from_bytes(wasm[4:6], "little"), int.from_bytes(wasm[6:8], "little")
    if (version, layer) != (1, 0):
        raise InvalidModuleError(
            f"WebAssembly binary version {version}, layer {layer} is not known; build a version 1 core module", offset=4
        )


def _foreign_format(wasm: bytes) -> str:
    """Name what the file looks like instead, with what to do."""
    head = wasm[:512].lstrip()
    if head.startswith((b"(module", b"(component", b";;")):
        return "; it is WebAssembly text: convert it with `wasm-tools parse x.wat -o x.wasm`"
    if head.startswith(b"\x7fELF"):
        return "; it is native code: build for wasm32-wasip1"
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        return "; it is an archive: unpack it and deploy the .wasm in it"
    return "; give a compiled .wasm file"


class Reader:
    """Reads numbers and names of the binary format from a part of a file; nothing is copied but the names."""

    def __init__(self, wasm: bytes, pos: int, end: int) -> None:
        self._wasm = wasm
        self._pos = pos
        self._end = end

    def _name(self) -> str:
        at = self._pos
        length = self._u32()
        if length > min(_MAX_NAME_BYTES, self._end - self._pos):
            raise self._error(f"a name of {length} bytes does not fit", at)
        raw = self._wasm[self._pos : self._pos + length]
        self._pos += length
        try:
            return raw.decode()
        except UnicodeDecodeError as exc:
            raise self._error("a name is not UTF-8", at) from exc

    def _count(self, *, min_item_bytes: int) -> int:
        """Read an item count and refuse one that the section's own bytes can't hold."""
        at = self._pos
        count = self._u32()
        if count > _MAX_ITEMS or count * min_item_bytes > self._end - self._pos:
            raise self._error(f"{count} items do not fit into their section", at)
        return count

    # --- bytes ------------------------------------------------------------------------------------------------------

    def _byte(self) -> int:
        if self._pos >= self._end:
            raise self._error("the module ends in the middle of a section; upload the whole file", self._pos)
        byte = self._wasm[self._pos]
        self._pos += 1
        return byte

    def _u32(self) -> int:
        return self._leb(32)

    def _u64(self) -> int:
        return self._leb(64)

    def _leb(self, bits: int) -> int:
        """Read an unsigned LEB128 of at most *bits* bits, padding allowed as the specification allows it."""
        at = self._pos
        number = shift = 0
        while shift < bits:
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if number >> bits:
                    break
                return number
            shift += 7
        raise self._error(f"an integer is longer than {bits} bits", at)

    def _error(self, what: str, at: int) -> InvalidModuleError:
        return InvalidModuleError(f"the module is not valid at offset {at}: {what}", offset=at)


class _ModuleReader(Reader):
    """One pass over a module's sections; lives for one ``read``."""

    def __init__(self, wasm: bytes, pos: int, end: int) -> None:
        super().__init__(wasm, pos, end)
        self._stop = end
        self._types: list[FuncType] = []
        self._func_types: list[int] = []
        self._imports: list[Import] = []
        self._exports: list[tuple[str, ItemKind, int]] = []
        self._memories: list[MemoryType] = []
        self._tables: list[TableType] = []
        self._has_start = False

    def read(self) -> Layout:
        last = 0
        while self._pos < self._stop:
            at = self._pos
            section = self._byte()
            size = self._u32()
            if size > self._stop - self._pos:
                raise self._error(
                    f"section {section} claims {size} bytes and {self._stop - self._pos} are left: the file is cut"
                    " off; upload the whole file",
                    at,
                )
            if section:
                order = _SECTION_ORDER.get(section)
                if order is None:
                    raise self._error(f"section {section} is not known", at)
                if order <= last:
                    raise self._error(f"section {section} comes twice or out of order", at)
                last = order
            self._end = self._pos + size
            read = self._SECTIONS.get(section)
            if read is None:
                self._pos = self._end
            else:
                read(self)
                if self._pos != self._end:
                    raise self._error(f"section {section} is longer than its contents", self._pos)
            self._end = self._stop
        return self._layout()

    def _layout(self) -> Layout:
        return Layout(
            imports=tuple(self._imports),
            exports=tuple(Export(name, kind, self._type_of(kind, index)) for name, kind, index in self._exports),
            memories=tuple(self._memories),
            tables=tuple(self._tables),
            has_start=self._has_start,
        )

    def _type_of(self, kind: ItemKind, index: int) -> FuncType | None:
        if kind is not ItemKind.FUNC:
            return None
        if index >= len(self._func_types):
            raise self._error(f"an export names function {index} of {len(self._func_types)}", self._end)
        return self._func_type(self._func_types[index], self._end)

    def _func_type(self, index: int, at: int) -> FuncType:
        if index >= len(self._types):
            raise self._error(f"function type {index} does not exist (there are {len(self._types)})", at)
        return self._types[index]

    # --- sections ---------------------------------------------------------------------------------------------------

    def _read_types(self) -> None:
        for _ in range(self._count(min_item_bytes=3)):
            at = self._pos
            form = self._byte()
            if form != 0x60:
                raise self._error(
                    f"type form 0x{form:02x} belongs to the garbage collection proposal, which is off on this host;"
                    " build without it",
                    at,
                )
            self._types.append(FuncType(self._value_types(), self._value_types()))

    def _read_imports(self) -> None:
        for _ in range(self._count(min_item_bytes=4)):
            module, name = self._name(), self._name()
            kind = self._item_kind()
            func_type = None
            if kind is ItemKind.FUNC:
                at = self._pos
                index = self._u32()
                func_type = self._func_type(index, at)
                self._func_types.append(index)
            elif kind is ItemKind.TABLE:
                self._tables.append(self._table(is_imported=True))
            elif kind is ItemKind.MEMORY:
                self._memories.append(self._memory(is_imported=True))
            elif kind is ItemKind.GLOBAL:
                self._value_type()
                self._byte()
            else:
                self._byte()
                self._u32()
            self._imports.append(Import(module, name, kind, func_type))

    def _read_functions(self) -> None:
        n_functions = self._count(min_item_bytes=1)
        self._func_types.extend(self._u32() for _ in range(n_functions))

    def _read_tables(self) -> None:
        for _ in range(self._count(min_item_bytes=3)):
            self._tables.append(self._table(is_imported=False))

    def _read_memories(self) -> None:
        for _ in range(self._count(min_item_bytes=2)):
            self._memories.append(self._memory(is_imported=False))

    def _read_exports(self) -> None:
        for _ in range(self._count(min_item_bytes=3)):
            name, kind, index = self._name(), self._item_kind(), self._u32()
            self._exports.append((name, kind, index))

    def _read_start(self) -> None:
        self._u32()
        self._has_start = True

    _SECTIONS: dict[int, Callable[[_ModuleReader], None]] = {  # noqa: RUF012 (never changed)
        1: _read_types,
        2: _read_imports,
        3: _read_functions,
        4: _read_tables,
        5: _read_memories,
        7: _read_exports,
        8: _read_start,
    }

    # --- items ------------------------------------------------------------------------------------------------------

    def _table(self, *, is_imported: bool) -> TableType:
        at = self._pos
        element = self._value_type()
        if element not in "rx":
            raise self._error("a table holds neither funcref nor externref", at)
        flags = self._byte()
        if flags & ~0b101:
            raise self._error(f"table limits 0x{flags:02x} are not known", at)
        read = self._u64 if flags & 0b100 else self._u32
        return TableType(read(), read() if flags & 1 else None, is_imported)

    def _memory(self, *, is_imported: bool) -> MemoryType:
        at = self._pos
        flags = self._byte()
        if flags & ~0b111:
            raise self._error(f"memory limits 0x{flags:02x} are not known (custom page sizes are off on this host)", at)
        is_64 = bool(flags & 0b100)
        read = self._u64 if is_64 else self._u32
        return MemoryType(read(), read() if flags & 1 else None, is_64, bool(flags & 0b10), is_imported)

    def _item_kind(self) -> ItemKind:
        at = self._pos
        number = self._byte()
        if number >= len(_ITEM_KINDS):
            raise self._error(f"import or export kind {number} is not known", at)
        return _ITEM_KINDS[number]

    def _value_type(self) -> str:
        at = self._pos
        number = self._byte()
        letter = _VALUE_TYPES.get(number)
        if letter is None:
            raise self._error(f"value type 0x{number:02x} is not known, or of a proposal that is off on this host", at)
        return letter

    def _value_types(self) -> str:
        at = self._pos
        count = self._u32()
        if count > _MAX_FUNC_VALUES:
            raise self._error(f"a function type has {count} values; {_MAX_FUNC_VALUES} is the limit", at)
        return "".join(self._value_type() for _ in range(count))


class _SizeReader(_ModuleReader):
    """One pass that looks at tables and memories only: what else is in the modules of a component is wasmtime's."""

    _SECTIONS: dict[int, Callable[[_ModuleReader], None]] = {  # noqa: RUF012 (never changed)
        4: _ModuleReader._read_tables,
        5: _ModuleReader._read_memories,
    }
