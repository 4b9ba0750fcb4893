"""
Makes components hand bytes over whole: in the C API a ``list<u8>`` costs a value of 32 bytes for each byte.

Where a function takes a ``list<u8>``, the component is made to pass two numbers, address and length: for its core code
that is the same. Where one returns a ``list<u8>`` it is made to take a string of Latin-1 characters, a character for
each byte: its core code gets the same bytes in the same place. Nothing but declarations changes.

Strings would not do for what guests pass: the canonical ABI wants Latin-1 strings at even addresses, and a guest's
bytes begin anywhere. Where they are returned, the guest is asked for room twice: more than needed at first, then it is
told how much it was. The preview-1 adapter allows neither, so only lowerings with an ordinary ``cabi_realloc`` qualify.

Whoever changes what is changed here bumps the profile's revision in ``faas.wasm.engine``: stored code is named by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from faas.wasm.engine import LATIN1_EXPORT, MEMORY_EXPORT
from precompile.component import OPTION_REALLOC, Component, InstanceImport, Lower, Span, interface_key

TAKEN: Final = frozenset(
    {
        ("wasi:io/streams", "[method]output-stream.write"),
        ("wasi:io/streams", "[method]output-stream.blocking-write-and-flush"),
        ("wasi:nn/tensor@0.2.0-rc-2024-08-19", "[constructor]tensor"),
        ("wasi:nn/tensor@0.2.0-rc-2024-10-28", "[constructor]tensor"),
    }
)
"""Functions whose last parameter is a ``list<u8>`` that may be passed as address and length."""
RETURNED: Final = frozenset(
    {
        ("wasi:io/streams", "[method]input-stream.read"),
        ("wasi:io/streams", "[method]input-stream.blocking-read"),
    }
)
"""Functions whose result's ok side is a ``list<u8>`` that may be returned as Latin-1 text: all of them or none."""

_BYTES: Final = ("list", "u8")
_U32, _STRING = b"\x79", b"\x73"
_OPTION_LATIN1 = b"\x02"
_REALLOC = "cabi_realloc"
# Runtimes of wit-dylib (componentize-py) have a cabi_realloc that panics when it is asked for room a second time.
_WIT_DYLIB = b"wit_dylib_initialize"
_INSTANCE_SECTION, _EXPORT_SECTION = 5, 11
_INSTANCE_SORT = b"\x05"

_Edits = dict[Span, bytes]


def pass_bytes_whole(wasm: bytes, component: Component) -> bytes:
    """
    Return *wasm* with the functions above changed where that can be done, and marked by exports; else as it is.

    The result still has to be validated: a component that hands such a function on to one inside it is not valid
    afterwards, and has to stay as it was.
    Args: *component* is what ``read_component`` read from *wasm*, its imports known to be of the types of their WIT.
    """
    edits: _Edits = {}
    marks: list[str] = []
    number = _memory_number(component)
    if number is not None and _take_by_address(wasm, component, edits):
        marks.append(f"{MEMORY_EXPORT}{number}")
    if _return_as_text(wasm, component, edits):
        marks.append(LATIN1_EXPORT)
    if not marks:
        return wasm
    return b"".join(_edited(wasm, component, edits)) + _marked(component, marks)


def _memory_number(component: Component) -> int | None:
    """Return which of the core instances, from 1, has the only memory; None where that is not certain."""
    owners = [i for i, module in enumerate(component.all_modules) if module.memories]
    if len(owners) != 1 or owners[0] >= len(component.modules):
        return None
    # Instances that are made of other instances' exports are no instances of the engine's.
    made = [module for module in component.core_instances[: component.n_core_before_guests] if module is not None]
    all_made = [module for module in component.core_instances if module is not None]
    if all_made.count(owners[0]) != 1 or owners[0] not in made:
        return None
    return made.index(owners[0]) + 1


def _imported(component: Component, names: Iterable[tuple[str, str]]) -> list[tuple[InstanceImport, str]]:
    return [
        (instance, function)
        for instance in component.instances
        if instance is not None
        for interface, function in sorted(names)
        if interface_key(instance.name) == interface and function in instance.functions
    ]


def _take_by_address(wasm: bytes, component: Component, edits: _Edits) -> bool:
    found = _imported(component, TAKEN)
    for instance, name in found:
        function = instance.functions[name]
        label, type_ = function.params[-1]
        assert type_ == _BYTES, name  # as its WIT says
        last = function.param_spans[-1]
        edits[Span(function.params_at, function.param_spans[0].start)] = _leb(len(function.params) + 1)
        edits[last] = _name(f"{label}-at") + _U32 + _name(f"{label}-size") + _U32
    return bool(found)


def _return_as_text(wasm: bytes, component: Component, edits: _Edits) -> bool:
    found = _imported(component, RETURNED)
    lowers = [lower for lower in component.lowers if _returns_bytes(component, lower)]
    spans = [instance.functions[name].ok_span for instance, name in found]
    if not lowers or not all(spans) or not all(_room_is_made_by_cabi_realloc(component, lower) for lower in lowers):
        return False
    if any(_WIT_DYLIB in wasm[slice(*module.span)] for module in component.modules):
        return False
    for span in spans:
        assert span is not None
        edits[span] = _STRING
    for lower in lowers:
        first = lower.options[0][2].start
        edits[Span(lower.options_at, first)] = _leb(len(lower.options) + 1) + _OPTION_LATIN1
    return True


def _returns_bytes(component: Component, lower: Lower) -> bool:
    instance = component.instances[lower.instance] if lower.instance is not None else None
    return instance is not None and (interface_key(instance.name), lower.function) in RETURNED


def _room_is_made_by_cabi_realloc(component: Component, lower: Lower) -> bool:
    """Return whether the guest's ordinary allocator answers, and no string encoding was chosen."""
    kinds = {kind for kind, _, _ in lower.options}
    if kinds & {0x00, 0x01, 0x02}:
        return False
    origins = [component.core_funcs[index] for kind, index, _ in lower.options if kind == OPTION_REALLOC]
    return len(origins) == 1 and origins[0] is not None and origins[0][1] == _REALLOC


def _edited(wasm: bytes, component: Component, edits: _Edits) -> Iterable[bytes]:
    """Return the parts of the edited component: sections without an edit as they are, the others with a new size."""
    todo = sorted(edits.items())
    yield wasm[: component.sections[0].header]
    for section in component.sections:
        start, end = section.contents
        mine = [(span, new) for span, new in todo if start <= span.start < end]
        if not mine:
            yield wasm[section.header : end]
            continue
        parts, at = [], start
        for span, new in mine:
            parts += [wasm[at : span.start], new]
            at = span.end
        contents = b"".join([*parts, wasm[at:end]])
        yield bytes([section.id]) + _leb(len(contents)) + contents


def _marked(component: Component, marks: list[str]) -> bytes:
    """Return sections that export an empty instance under each of these names."""
    first = len(component.instances)
    instances = _leb(len(marks)) + b"\x01\x00" * len(marks)
    exports = _leb(len(marks)) + b"".join(
        b"\x00" + _name(mark) + _INSTANCE_SORT + _leb(first + i) + b"\x00" for i, mark in enumerate(marks)
    )
    return b"".join(
        bytes([number]) + _leb(len(contents)) + contents
        for number, contents in ((_INSTANCE_SECTION, instances), (_EXPORT_SECTION, exports))
    )


def _name(text: str) -> bytes:
    raw = text.encode()
    return _leb(len(raw)) + raw


def _leb(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)
