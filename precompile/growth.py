"""
Growth watch: makes a module tell the host when one of its ``memory.grow`` was refused.

wasmtime's C API limits a store's memory but does not say when the limit bit; a guest that dies of it would look like
any other trap. So each ``memory.grow`` becomes a call of one added function, which does the same and, when refused,
sets an added exported global. Nothing is renumbered: function, global and export are appended.

Source: WebAssembly core specification 2.0, section 5 (binary format).
"""

from __future__ import annotations

from faas.wasm.engine import GROW_FAILED_EXPORT

_HEADER_BYTES = 8
_TYPE, _IMPORT, _FUNCTION, _GLOBAL, _EXPORT, _CODE = 1, 2, 3, 6, 7, 10
_MEMORY = 5
# Where each section stands; 13 (tags) and 12 (data count) are out of numeric order.
_ORDER = {section: place for place, section in enumerate((1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11))}
_GROW = b"\x40\x00"
_I32_TO_I32 = b"\x60\x01\x7f\x01\x7f"


class _UnknownInstructionError(Exception):
    """An instruction newer than the tables below: the module stays as it is."""


def watch_growth(wasm: bytes) -> bytes:
    """
    Return *wasm*, which must validate, with its ``memory.grow`` watched; unchanged if it has none that can be.

    Unchanged too: modules that import their memory, and those that this reader does not understand.
    """
    try:
        return _watched(wasm)
    except (_UnknownInstructionError, IndexError, KeyError):
        return wasm


def _watched(wasm: bytes) -> bytes:
    sections = _split(wasm)
    found = dict(sections)
    if _MEMORY not in found or _GROW not in found.get(_CODE, b"") or GROW_FAILED_EXPORT in found.get(_EXPORT, b""):
        return wasm
    n_functions, n_globals = _count_imports(found.get(_IMPORT, b"\0"))
    watcher = n_functions + _leb(found[_FUNCTION], 0)[0]
    flag = n_globals + _leb(found.get(_GLOBAL, b"\0"), 0)[0]
    type_index, types = _with_type(found[_TYPE])
    code = _rewritten_code(found[_CODE], b"\x10" + _encoded(watcher), flag)
    if code is None:
        return wasm
    export = _encoded(len(GROW_FAILED_EXPORT)) + GROW_FAILED_EXPORT + b"\x03" + _encoded(flag)
    changed = {
        _TYPE: types,
        _FUNCTION: _appended(found[_FUNCTION], _encoded(type_index)),
        _GLOBAL: _appended(found.get(_GLOBAL, b"\0"), b"\x7f\x01\x41\x00\x0b"),
        _EXPORT: _appended(found.get(_EXPORT, b"\0"), export),
        _CODE: code,
    }
    return _joined(wasm[:_HEADER_BYTES], sections, changed)


def _rewritten_code(code: bytes, call: bytes, flag: int) -> bytes | None:
    """Return the code section with every ``memory.grow`` replaced by *call* and the watcher appended; None: no such."""
    count, at = _leb(code, 0)
    bodies: list[bytes] = []
    any_grow = False
    for _ in range(count):
        size, at = _leb(code, at)
        body = code[at : at + size]
        at += size
        places = _grow_places(body) if _GROW in body else []
        if places:
            any_grow = True
            parts, done = [], 0
            for place in places:
                parts += [body[done:place], call]
                done = place + len(_GROW)
            body = b"".join([*parts, body[done:]])
        bodies.append(_encoded(len(body)) + body)
    if not any_grow:
        return None
    # (param i32) (result i32): grow, keep the answer, set the flag if it is -1, return the answer.
    watcher = b"\x00\x20\x00\x40\x00\x22\x00\x41\x7f\x46\x04\x40\x41\x01\x24" + _encoded(flag) + b"\x0b\x20\x00\x0b"
    return b"".join([_encoded(count + 1), *bodies, _encoded(len(watcher)), watcher])


def _grow_places(body: bytes) -> list[int]:
    """Return the offsets of the ``memory.grow`` instructions in a function *body*."""
    n_groups, at = _leb(body, 0)
    for _ in range(n_groups):
        _, at = _leb(body, at)
        _, at = _leb(body, at)
    places: list[int] = []
    while at < len(body):
        op = body[at]
        if op == 0x40:
            places.append(at)
        at = _after(body, at + 1, op)
    return places


_N_LEBS = {
    **dict.fromkeys((0x02, 0x03, 0x04, 0x0C, 0x0D, 0x10, 0x12, 0x41, 0x42, 0x3F, 0x40, 0xD0, 0xD2), 1),
    **dict.fromkeys(range(0x20, 0x27), 1),
    **dict.fromkeys((0x11, 0x13), 2),
    **dict.fromkeys((0x00, 0x01, 0x05, 0x0B, 0x0F, 0x1A, 0x1B, 0xD1), 0),
    **dict.fromkeys(range(0x45, 0xC5), 0),
}
"""How many LEB128 immediates follow a one-byte opcode."""
_N_LEBS_FC = {**dict.fromkeys(range(8), 0), 8: 2, 9: 1, 10: 2, 11: 1, 12: 2, 13: 1, 14: 2, 15: 1, 16: 1, 17: 1}


def _after(body: bytes, at: int, op: int) -> int:
    """Return the offset behind the immediates of *op*, which begin at *at*."""
    n_lebs = _N_LEBS.get(op)
    if n_lebs is not None:
        return _skip(body, at, n_lebs)
    if 0x28 <= op <= 0x3E:
        return _after_memarg(body, at)
    if op in (0x43, 0x44):
        return at + (4 if op == 0x43 else 8)
    if op in (0x0E, 0x1C):  # br_table: labels and a default; select with types
        count, at = _leb(body, at)
        return _skip(body, at, count + (op == 0x0E))
    if op == 0xFC:
        sub, at = _leb(body, at)
        if sub in _N_LEBS_FC:
            return _skip(body, at, _N_LEBS_FC[sub])
    if op == 0xFD:
        return _after_vector(body, at)
    raise _UnknownInstructionError(op)


def _after_vector(body: bytes, at: int) -> int:
    sub, at = _leb(body, at)
    if sub <= 11 or sub in (92, 93):
        return _after_memarg(body, at)
    if sub in (12, 13):
        return at + 16
    if 21 <= sub <= 34:
        return at + 1
    if 84 <= sub <= 91:
        return _after_memarg(body, at) + 1
    if sub <= 275:
        return at
    raise _UnknownInstructionError(sub)


def _after_memarg(body: bytes, at: int) -> int:
    align, at = _leb(body, at)
    return _skip(body, at, 2 if align & 0x40 else 1)


def _skip(body: bytes, at: int, count: int) -> int:
    for _ in range(count):
        while body[at] & 0x80:
            at += 1
        at += 1
    return at


# --- sections -------------------------------------------------------------------------------------------------------


def _split(wasm: bytes) -> list[tuple[int, bytes]]:
    sections: list[tuple[int, bytes]] = []
    at = _HEADER_BYTES
    while at < len(wasm):
        size, start = _leb(wasm, at + 1)
        sections.append((wasm[at], wasm[start : start + size]))
        at = start + size
    return sections


def _joined(header: bytes, sections: list[tuple[int, bytes]], changed: dict[int, bytes]) -> bytes:
    left = dict(changed)
    merged: list[tuple[int, bytes]] = []
    for section, payload in sections:
        if section in _ORDER:
            for new in sorted(left, key=_ORDER.__getitem__):
                if _ORDER[new] < _ORDER[section]:
                    merged.append((new, left.pop(new)))
        merged.append((section, left.pop(section, payload)))
    return header + b"".join(bytes([section]) + _encoded(len(payload)) + payload for section, payload in merged)


def _with_type(types: bytes) -> tuple[int, bytes]:
    count, at = _leb(types, 0)
    for index in range(count):
        begin = at
        _, at = _leb(types, at)  # the form, 0x60: engines of our profile know no other
        for _ in range(2):
            n, at = _leb(types, at)
            at = _skip(types, at, n)
        if types[begin:at] == _I32_TO_I32:
            return index, types
    return count, _appended(types, _I32_TO_I32)


def _count_imports(imports: bytes) -> tuple[int, int]:
    """Return how many functions and globals are imported."""
    count, at = _leb(imports, 0)
    kinds = [0, 0, 0, 0, 0]
    for _ in range(count):
        for _ in range(2):
            length, at = _leb(imports, at)
            at += length
        kind = imports[at]
        kinds[kind] += 1
        at += 1
        if kind == 0:
            at = _skip(imports, at, 1)
        elif kind == 3:
            at = _skip(imports, at, 1) + 1
        else:
            if kind in (1, 4):  # a table's element type, a tag's attribute
                at = _skip(imports, at, 1)
            if kind == 4:
                at = _skip(imports, at, 1)
            else:
                limits = imports[at]
                at = _skip(imports, at + 1, 2 if limits & 1 else 1)
    return kinds[0], kinds[3]


def _appended(vector: bytes, item: bytes) -> bytes:
    count, at = _leb(vector, 0)
    return _encoded(count + 1) + vector[at:] + item


def _leb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
