"""
Makes components hand bytes over whole: in the C API a ``list<u8>`` costs a value of 32 bytes for each byte.

Where a function takes or returns a ``list<u8>``, the component is made to pass two numbers instead, address and size:
for its core code that is the same. Nothing but declarations changes. What is returned needs room in the guest first:
the host calls the guest's own function for that, the same as the engine does for a list.

Two parts of a component may have such a function each (Python: libc, and the interpreter). They can't be told apart
when they call, so those of the second part import the functions by other names, which the host has as well.

Whoever changes what is changed here bumps the profile's revision in ``faas.wasm.engine``: stored code is named by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from faas.wasm.engine import BYTES_RETURNED, MAX_ROOMS, MEMORY_EXPORT, ROOM_EXPORT, ROOM_MAKERS, room_function
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
RETURNED: Final = BYTES_RETURNED

_BYTES: Final = ("list", "u8")
_U32 = b"\x79"
_ADDRESS_AND_SIZE = b"\x6f\x02" + 2 * _U32  # the type tuple<u32, u32>
_EXPORT_DECLARED = b"\x04\x00"
_INSTANCE_SECTION, _EXPORT_SECTION = 5, 11
_INSTANCE_SORT = b"\x05"

_Edits = dict[Span, bytes]
_Maker = tuple[int, str]


def pass_bytes_whole(wasm: bytes, component: Component) -> bytes:
    """
    Return *wasm* with the functions above changed where that can be done, and marked by exports; else as it is.

    The result still has to be validated: a component that hands such a function on to one inside it is not valid
    afterwards, and has to stay as it was.
    Args: *component* is what ``read_component`` read from *wasm*, its imports known to be of the types of their WIT.
    """
    edits: _Edits = {}
    number = _memory_number(component)
    if number is None:
        return wasm
    _take_by_address(component, edits)
    makers = _return_by_address(wasm, component, edits)
    if not edits:
        return wasm
    marks = [f"{MEMORY_EXPORT}{number}"]
    for room, (instance, name) in enumerate(makers, 1):
        marks.append(f"{ROOM_EXPORT}{room}-{name.replace('_', '-')}{instance}")
    return b"".join(_edited(wasm, component, edits)) + _marked(component, marks)


def _memory_number(component: Component) -> int | None:
    """Return which of the core instances, from 1, has the only memory; None where that is not certain."""
    owners = [i for i, module in enumerate(component.all_modules) if module.memories]
    if len(owners) != 1 or component.core_instances.count(owners[0]) != 1:
        return None
    return _number(component, component.core_instances.index(owners[0]))


def _number(component: Component, core_instance: int) -> int | None:
    """Return which of the engine's instances this one is, from 1; None where that is not certain."""
    if core_instance >= component.n_core_before_guests or component.core_instances[core_instance] is None:
        return None
    # Instances that are made of other instances' exports are no instances of the engine's.
    return sum(module is not None for module in component.core_instances[: core_instance + 1])


def _imported(component: Component, names: Iterable[tuple[str, str]]) -> list[tuple[InstanceImport, str]]:
    return [
        (instance, function)
        for instance in component.instances
        if instance is not None
        for interface, function in sorted(names)
        if interface_key(instance.name) == interface and function in instance.functions
    ]


def _take_by_address(component: Component, edits: _Edits) -> None:
    for instance, name in _imported(component, TAKEN):
        function = instance.functions[name]
        label, type_ = function.params[-1]
        assert type_ == _BYTES, name  # as its WIT says
        last = function.param_spans[-1]
        edits[Span(function.params_at, function.param_spans[0].start)] = _leb(len(function.params) + 1)
        edits[last] = _name(f"{label}-at") + _U32 + _name(f"{label}-size") + _U32


def _return_by_address(wasm: bytes, component: Component, edits: _Edits) -> list[_Maker]:
    """Edit what returns bytes; return what makes room for them, in the order of the rooms. None: nothing is edited."""
    rooms = _rooms(component)
    lists = {_list_of(instance, name) for instance, name in _imported(component, RETURNED)}
    if rooms is None or None in lists:
        return []
    for span in lists:
        assert span is not None
        edits[span] = _ADDRESS_AND_SIZE
    makers = sorted(set(rooms.values()))
    other: dict[int, set[str]] = {}  # by instance: what is wanted by another name
    for (instance, function, span), maker in rooms.items():
        if makers.index(maker) > 0:
            other.setdefault(instance, set()).add(function)
            edits[span] = _name(room_function(function, 2))
    for index, functions in other.items():
        declares = component.instances[index]
        assert declares is not None
        n_declared = _read_leb(wasm[slice(*declares.count_at)])
        edits[declares.count_at] = _leb(n_declared + len(functions))
        edits[Span(declares.end, declares.end)] = b"".join(
            _EXPORT_DECLARED + _name(room_function(name, 2)) + wasm[slice(*declares.declared[name])]
            for name in sorted(functions)
        )
    return makers


def _rooms(component: Component) -> dict[tuple[int, str, Span], _Maker] | None:
    """Return what makes room for each imported function that returns bytes; None where that is not certain."""
    rooms: dict[tuple[int, str, Span], _Maker] = {}
    for lower in component.lowers:
        instance = component.instances[lower.instance] if lower.instance is not None else None
        if instance is None or (interface_key(instance.name), lower.function) not in RETURNED:
            continue
        maker = _maker(component, lower)
        assert lower.instance is not None
        assert lower.name is not None
        if maker is None or rooms.setdefault((lower.instance, lower.function, lower.name), maker) != maker:
            return None
    return rooms if rooms and len(set(rooms.values())) <= MAX_ROOMS else None


def _maker(component: Component, lower: Lower) -> _Maker | None:
    """Return the number of the core instance that makes room for *lower*, and its function's name."""
    origins = [component.core_funcs[index] for kind, index, _ in lower.options if kind == OPTION_REALLOC]
    if len(origins) != 1 or origins[0] is None or origins[0][1] not in ROOM_MAKERS:
        return None
    number = _number(component, origins[0][0])
    return None if number is None else (number, origins[0][1])


def _list_of(instance: InstanceImport, name: str) -> Span | None:
    """Return the definition of what a function returns; None if others use it that stay as they are."""
    returned = {instance.functions[one].ok_end for key, one in RETURNED if one in instance.functions}
    taken = {instance.functions[one].param_spans[-1].end for key, one in TAKEN if one in instance.functions}
    for span, used in instance.byte_lists:
        if instance.functions[name].ok_end in used:
            return span if {*used} <= returned | taken else None
    return None


def _edited(wasm: bytes, component: Component, edits: _Edits) -> Iterable[bytes]:
    """Return the parts of the edited component: sections without an edit as they are, the others with a new size."""
    todo = sorted(edits.items())
    yield wasm[: component.sections[0].header]
    for section in component.sections:
        start, end = section.contents
        mine = [(span, new) for span, new in todo if start <= span.start <= end]
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


def _read_leb(raw: bytes) -> int:
    return sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(raw))


def _leb(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)
