"""
Component values: wasmtime's ``wasmtime_component_val_t`` to Python objects and back, driven by WIT types, by ctypes.

``_values.c`` has the same in C, and is what runs where it was compiled (pip does so when it finds a C compiler and
Python's headers); ``chosen`` says which. Both are tested by the same tests.

Python values of WIT types: bool, int, float and str as they are (a char is a str of one character); ``list<u8>`` is
bytes, other lists are lists; tuples and records are tuples in the WIT's order; a variant is (case, payload or None),
an enum the case's name, flags a frozenset of names; an option is None or the payload, a result ("ok", payload or
None) or ("err", payload or None); handles are the objects that they stand for.

Source: wasmtime C API headers wasmtime/component/{func,instance,linker,val}.h and wasmtime/async.h, version 50.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from ctypes import c_uint32, c_uint64, c_void_p
from types import ModuleType
from typing import Any, Final

from faas.errors import GuestTrapError
from faas.log import event
from faas.wasi.p2.resources import WitError
from faas.wasm import capi
from faas.wasm.engine import MAX_ROOMS

_log = logging.getLogger(__name__)

MAX_PARAMS: Final = 12
"""How many parameters a host function may have."""
MAX_ARGS: Final = 4
"""How many arguments ``begin_call`` takes."""

# wasmtime_component_valkind_t
(
    _BOOL,
    _S8,
    _U8,
    _S16,
    _U16,
    _S32,
    _U32,
    _S64,
    _U64,
    _F32,
    _F64,
    _CHAR,
    _STRING,
    _LIST,
    _RECORD,
    _TUPLE,
    _VARIANT,
    _ENUM,
    _OPTION,
    _RESULT,
    _FLAGS,
    _RESOURCE,
) = range(22)

# wasmtime_component_val_t: its kind, then a union of 24 bytes; a record's entry is a name and such a value.
_VALUE_BYTES = 32
_FIELD_BYTES = 48
_NAME_BYTES = 16
_OF = 8
_NO_VALUE = bytes(_VALUE_BYTES)  # false, and nothing to free
# A size and where that many are: names, lists, records, flags.
_VEC = struct.Struct("<QQ")
_RESULT_OF = struct.Struct("<?7xQ")
_TRAP_TEXT = b"host"
_MAX_REALLOC_NAME_BYTES = 31
_FIRST_SURROGATE, _LAST_SURROGATE = "\ud800", "\udfff"


# --- handles ---------------------------------------------------------------------------------------------------------


class Handles:
    """
    What one guest's handles stand for, by number, and the places of the values of its calls; lives as long as it.

    Thread: as the guest's.
    """

    __slots__ = (
        "_args", "_cell", "_free", "_func", "_guest", "_max", "_memory", "_n_args", "_objects", "_reallocs", "_result",
        "_room", "_waits",
    )  # fmt: skip

    def __init__(self, guest: Any, max: int) -> None:
        """
        Args: *guest* is what host functions get as the first argument; it must outlive this object, and isn't kept by
        it. *max* is how many handles there may be at once.
        """
        # Addresses of objects, read as references when needed: the guest has us, and a cycle would keep both.
        self._guest = c_void_p(id(guest))
        self._cell = c_void_p(id(self))
        self._max = max
        self._objects: list[Any] = []  # by number - 1; _FREE: none
        self._free: list[int] = []
        self._args = ctypes.create_string_buffer(MAX_ARGS * _VALUE_BYTES)
        self._n_args = 0
        self._result = ctypes.create_string_buffer(_VALUE_BYTES)
        self._func = ctypes.create_string_buffer(_VALUE_BYTES)
        self._waits: tuple[Node | None, int, int, int] | None = None
        self._reallocs: dict[int, tuple[int, bytes]] = {}  # by room: core instance, name
        self._room: _Room | None = None
        self._memory = (c_uint64 * 3)()  # wasmtime_memory_t: store, core instance (0: not known), which memory

    def bind(self, context: int) -> None:
        """Make this the table of the guest with this store *context*: host calls find it there."""
        capi.context_set_data(context, ctypes.addressof(self._cell))

    def memory_is(self, store: int, number: int) -> None:
        """
        Say where the guest's memory is, for bytes that it passes by address (``precompile/bytelists.py``).

        Args: *store* is the number that handles of its store begin with, 0 before there is one: then the guest's
        ``store_number`` is asked. *number* is that of the core instance with the memory. A wrong one ends the process.
        """
        self._memory[:] = [store, number & 0xFFFFFFFF, 0]

    def room_is(self, room: int, number: int, name: bytes) -> None:
        """
        Say which function makes room in the guest's memory for bytes that host functions return.

        Args: *room* is what such host functions were made with; *number* that of the core instance that exports it as
        *name*, counted as for ``memory_is``, which has to be called as well. A wrong one ends the process.
        """
        if not 0 < room <= MAX_ROOMS or len(name) > _MAX_REALLOC_NAME_BYTES:
            raise ValueError("room_is() takes 1 or 2, a number, and a name of at most 31 bytes")
        self._reallocs[room] = number & 0xFFFFFFFF, name

    def objects(self) -> list[Any]:
        """Return what its handles stand for: what the guest has not dropped, and not given away."""
        return [object_ for object_ in self._objects if object_ is not _FREE]

    def __len__(self) -> int:
        """Return how many handles there are."""
        return len(self._objects) - len(self._free)

    def __del__(self) -> None:
        self._delete_args()
        capi.value_delete(ctypes.addressof(self._result))

    def _delete_args(self) -> None:
        while self._n_args:
            self._n_args -= 1
            capi.value_delete(ctypes.addressof(self._args) + self._n_args * _VALUE_BYTES)

    def _delete_result(self) -> None:
        capi.value_delete(ctypes.addressof(self._result))
        ctypes.memset(self._result, 0, _VALUE_BYTES)

    def _put(self, object_: Any) -> int:
        if len(self) >= self._max:
            raise GuestTrapError(
                f"the guest holds more than {self._max} handles at once; drop those that it is done with"
            )
        if self._free:
            number = self._free.pop()
            self._objects[number - 1] = object_
            return number
        self._objects.append(object_)
        return len(self._objects)

    def _look(self, number: int) -> Any:
        object_ = self._objects[number - 1] if 0 < number <= len(self._objects) else _FREE
        if object_ is _FREE:
            raise LookupError(f"no handle {number}")
        return object_

    def _take(self, number: int) -> Any:
        object_ = self._look(number)
        self._objects[number - 1] = _FREE
        self._free.append(number)
        return object_

    def _set_failure(self, failure: BaseException) -> None:
        _object_in(self._guest).failure = failure

    def _fail(self, failure: BaseException) -> int:
        """Make *failure* the guest's, and return the error that ends its call."""
        self._set_failure(failure)
        error: int = capi.error_new(_TRAP_TEXT)
        return error


_FREE: Final = object()


class _Room:
    """The call that makes room in the guest for *content*, and where its arguments and results are."""

    __slots__ = ("_failures", "_future", "_realloc", "_values", "content")

    def __init__(self, context: int, realloc: capi.Extern, content: bytes) -> None:
        self.content = content
        self._realloc = realloc  # the call keeps its address
        self._values = (capi.Val * 5)()
        for value, number in zip(self._values, (0, 0, 1, len(content)), strict=False):  # no old one; alignment; size
            value.kind, value.i64 = capi.I32, number
        self._failures = (c_void_p * 2)()  # trap, error
        values, failures = ctypes.addressof(self._values), ctypes.addressof(self._failures)
        answer = values + 4 * ctypes.sizeof(capi.Val)
        func = ctypes.addressof(realloc) + capi.Extern.of.offset
        self._future: int = capi.func_call_async(context, func, values, 4, answer, 1, failures, failures + 8)

    def poll(self) -> bool:
        return bool(capi.call_future_poll(self._future))

    def take(self) -> tuple[int, str | None]:
        """Give up the call, done or not; return the address and None, or what it failed with."""
        capi.call_future_delete(self._future)
        trap, error = self._failures
        if error:
            return 0, capi.take_error(error)
        return self._values[4].i64 & 0xFFFFFFFF, capi.take_trap(trap)[1] if trap else None


def _object_in(cell: c_void_p) -> Any:
    """Return the object whose address a cell holds."""
    return ctypes.py_object.from_buffer(cell).value


def _handles_at(address: int) -> Handles:
    """Return the table whose cell is at this address."""
    handles: Any = ctypes.py_object.from_address(address).value
    return handles  # type: ignore[no-any-return]


# --- types -----------------------------------------------------------------------------------------------------------


def _mismatch() -> GuestTrapError:
    return GuestTrapError(
        "the component imports a function of this host with other types than the interface has; "
        "build it against the published WIT"
    )


def _vec_at(at: int) -> tuple[int, int]:
    return _VEC.unpack(ctypes.string_at(at, 16))


def _text_at(at: int) -> bytes:
    """Return the bytes of the name at this address."""
    size, data = _vec_at(at)
    return ctypes.string_at(data, size) if size else b""


def _write_text(at: int, text: bytes) -> None:
    capi.byte_vec_new(at, len(text))
    if text:
        ctypes.memmove(_vec_at(at)[1], text, len(text))


class Node:
    """A WIT type, prepared for converting; made by ``node``."""

    __slots__ = ("kind",)

    def __init__(self, kind: int) -> None:
        self.kind = kind

    def lift(self, handles: Handles, context: int, at: int) -> Any:
        """
        Return the value at this address as a Python object.

        Raises: GuestTrapError: what the component declares is its own to say, and this is of another type.
        """
        if ctypes.c_uint8.from_address(at).value != self.kind:
            raise _mismatch()
        return self.lift_of(handles, context, at + _OF)

    def lift_of(self, handles: Handles, context: int, at: int) -> Any:
        """As ``lift``, for the union of a value of this kind."""
        raise NotImplementedError

    def lower(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        """
        Store *object_* at this address, which has no value yet.

        Raises: TypeError, ValueError or OverflowError for an object that the type does not have; then there is
        something at the address that may be deleted.
        """
        ctypes.memmove(at, _NO_VALUE, _VALUE_BYTES)
        self.lower_of(handles, context, object_, at)
        ctypes.c_uint8.from_address(at).value = self.kind

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        """As ``lower``, without the kind unless that makes a value of what is there when it fails."""
        raise NotImplementedError


class _Bool(Node):
    __slots__ = ()

    def lift_of(self, handles: Handles, context: int, at: int) -> bool:
        return ctypes.c_bool.from_address(at).value

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        ctypes.c_bool.from_address(at + _OF).value = bool(object_)


class _Integer(Node):
    __slots__ = ("_cell", "_max", "_min")

    def __init__(self, kind: int, cell: Any) -> None:
        super().__init__(kind)
        self._cell = cell
        bits = 8 * ctypes.sizeof(cell)
        signed = cell(-1).value < 0
        self._min = -(1 << (bits - 1)) if signed else 0
        self._max = (1 << (bits - 1 if signed else bits)) - 1

    def lift_of(self, handles: Handles, context: int, at: int) -> int:
        value: int = self._cell.from_address(at).value
        return value

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        if not isinstance(object_, int):
            raise TypeError(f"a host function must answer an integer here, not {object_!r}")
        if not self._min <= object_ <= self._max:
            raise OverflowError(
                f"a host function must answer an integer from {self._min} to {self._max} here, not {object_!r}"
            )
        self._cell.from_address(at + _OF).value = int(object_)


class _Float(Node):
    __slots__ = ("_cell",)

    def __init__(self, kind: int, cell: Any) -> None:
        super().__init__(kind)
        self._cell = cell

    def lift_of(self, handles: Handles, context: int, at: int) -> float:
        value: float = self._cell.from_address(at).value
        return value

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        self._cell.from_address(at + _OF).value = object_


class _Char(Node):
    __slots__ = ()

    def lift_of(self, handles: Handles, context: int, at: int) -> str:
        return chr(c_uint32.from_address(at).value)

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        # Surrogates are no characters: the engine would abort.
        if not isinstance(object_, str) or len(object_) != 1 or _FIRST_SURROGATE <= object_ <= _LAST_SURROGATE:
            raise ValueError(f"a host function must answer one character here, not {object_!r}")
        c_uint32.from_address(at + _OF).value = ord(object_)


class _String(Node):
    __slots__ = ()

    def lift_of(self, handles: Handles, context: int, at: int) -> str:
        return _text_at(at).decode()

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        if not isinstance(object_, str):
            raise TypeError(f"a host function must answer text here, not {object_!r}")
        _write_text(at + _OF, object_.encode())


class _Bytes(Node):
    """``list<u8>``."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_LIST)

    def lift_of(self, handles: Handles, context: int, at: int) -> bytes:
        size, data = _vec_at(at)
        if size == 0:
            return b""
        if ctypes.c_uint8.from_address(data).value != _U8:
            raise _mismatch()
        return ctypes.string_at(data, size * _VALUE_BYTES)[_OF::_VALUE_BYTES]

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        content = bytes(memoryview(object_))
        capi.value_list_new(at + _OF, len(content))
        values = bytearray(len(content) * _VALUE_BYTES)
        values[::_VALUE_BYTES] = bytes((_U8,)) * len(content)
        values[_OF::_VALUE_BYTES] = content
        if content:
            ctypes.memmove(_vec_at(at + _OF)[1], (ctypes.c_char * len(values)).from_buffer(values), len(values))


class _List(Node):
    __slots__ = ("_of",)

    def __init__(self, of: Node) -> None:
        super().__init__(_LIST)
        self._of = of

    def lift_of(self, handles: Handles, context: int, at: int) -> list[Any]:
        size, data = _vec_at(at)
        return [self._of.lift(handles, context, data + i * _VALUE_BYTES) for i in range(size)]

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        items = _items(object_)
        capi.value_list_new(at + _OF, len(items))
        data = _zeroed(at, self.kind, len(items) * _VALUE_BYTES)
        for i, item in enumerate(items):
            self._of.lower(handles, context, item, data + i * _VALUE_BYTES)


class _Tuple(Node):
    __slots__ = ("_of",)

    def __init__(self, of: tuple[Node, ...]) -> None:
        super().__init__(_TUPLE)
        self._of = of

    def lift_of(self, handles: Handles, context: int, at: int) -> tuple[Any, ...]:
        size, data = _vec_at(at)
        if size != len(self._of):
            raise _mismatch()
        return tuple(node_.lift(handles, context, data + i * _VALUE_BYTES) for i, node_ in enumerate(self._of))

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        items = _items(object_, len(self._of))
        capi.value_tuple_new(at + _OF, len(items))
        data = _zeroed(at, self.kind, len(items) * _VALUE_BYTES)
        for i, (node_, item) in enumerate(zip(self._of, items, strict=True)):
            node_.lower(handles, context, item, data + i * _VALUE_BYTES)


class _Record(Node):
    __slots__ = ("_names", "_of")

    def __init__(self, names: tuple[str, ...], of: tuple[Node, ...]) -> None:
        super().__init__(_RECORD)
        self._names = tuple(name.encode() for name in names)
        self._of = of

    def lift_of(self, handles: Handles, context: int, at: int) -> tuple[Any, ...]:
        size, data = _vec_at(at)
        if size != len(self._of):
            raise _mismatch()
        fields = []
        for i, (name, node_) in enumerate(zip(self._names, self._of, strict=True)):
            field = data + i * _FIELD_BYTES
            if _text_at(field) != name:
                raise _mismatch()
            fields.append(node_.lift(handles, context, field + _NAME_BYTES))
        return tuple(fields)

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        items = _items(object_, len(self._of))
        capi.value_record_new(at + _OF, len(items))
        data = _zeroed(at, self.kind, len(items) * _FIELD_BYTES)
        for i, (name, node_, item) in enumerate(zip(self._names, self._of, items, strict=True)):
            field = data + i * _FIELD_BYTES
            _write_text(field, name)
            node_.lower(handles, context, item, field + _NAME_BYTES)


class _Variant(Node):
    __slots__ = ("_cases", "_names")

    def __init__(self, cases: tuple[tuple[str, Node | None], ...]) -> None:
        super().__init__(_VARIANT)
        self._names = {name.encode(): (name, payload) for name, payload in cases}
        self._cases = dict(cases)

    def lift_of(self, handles: Handles, context: int, at: int) -> tuple[str, Any]:
        found = self._names.get(_text_at(at))
        if found is None:
            raise _mismatch()
        name, payload = found
        return name, _lift_payload(handles, context, payload, c_void_p.from_address(at + _NAME_BYTES).value)

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        name, value = _pair(object_)
        if name not in self._cases:
            raise ValueError(f"no case {name!r} here")
        payload = _lower_payload(handles, context, self._cases[name], value)
        c_void_p.from_address(at + _OF + _NAME_BYTES).value = payload
        _write_text(at + _OF, name.encode())


class _Enum(Node):
    __slots__ = ("_names",)

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(_ENUM)
        self._names = {name.encode(): name for name in names}

    def lift_of(self, handles: Handles, context: int, at: int) -> str:
        name = self._names.get(_text_at(at))
        if name is None:
            raise _mismatch()
        return name

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        _write_text(at + _OF, _case(self._names, object_))


class _Flags(Node):
    __slots__ = ("_names",)

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(_FLAGS)
        self._names = {name.encode(): name for name in names}

    def lift_of(self, handles: Handles, context: int, at: int) -> frozenset[str]:
        size, data = _vec_at(at)
        try:
            return frozenset(self._names[_text_at(data + i * _NAME_BYTES)] for i in range(size))
        except KeyError:
            raise _mismatch() from None

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        names = [_case(self._names, name) for name in object_]
        capi.value_flags_new(at + _OF, len(names))
        data = _zeroed(at, self.kind, len(names) * _NAME_BYTES)
        for i, name in enumerate(names):
            _write_text(data + i * _NAME_BYTES, name)


class _Option(Node):
    __slots__ = ("_of",)

    def __init__(self, of: Node) -> None:
        super().__init__(_OPTION)
        self._of = of

    def lift_of(self, handles: Handles, context: int, at: int) -> Any:
        payload = c_void_p.from_address(at).value
        return None if payload is None else self._of.lift(handles, context, payload)

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        if object_ is not None:
            c_void_p.from_address(at + _OF).value = _lower_payload(handles, context, self._of, object_)


class _Result(Node):
    __slots__ = ("_of",)

    def __init__(self, ok: Node | None, err: Node | None) -> None:
        super().__init__(_RESULT)
        self._of = {True: ok, False: err}

    def lift_of(self, handles: Handles, context: int, at: int) -> tuple[str, Any]:
        is_ok, payload = _RESULT_OF.unpack(ctypes.string_at(at, _RESULT_OF.size))
        return ("ok" if is_ok else "err"), _lift_payload(handles, context, self._of[is_ok], payload or None)

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        name, value = _pair(object_)
        if name not in {"ok", "err"}:
            raise ValueError(f'a host function must answer ("ok" or "err", payload) here, not {object_!r}')
        self.lower_as(handles, context, name == "ok", value, at)

    def lower_as(self, handles: Handles, context: int, is_ok: bool, value: Any, at: int) -> None:
        """Store a value that is known to be one or the other."""
        payload = _lower_payload(handles, context, self._of[is_ok], value)
        c_void_p.from_address(at + 2 * _OF).value = payload
        ctypes.c_bool.from_address(at + _OF).value = is_ok
        ctypes.c_uint8.from_address(at).value = self.kind


class _Handle(Node):
    __slots__ = ("_owned", "_resource")

    def __init__(self, resource: int, owned: bool) -> None:
        super().__init__(_RESOURCE)
        self._resource = resource
        self._owned = owned

    def lift_of(self, handles: Handles, context: int, at: int) -> Any:
        host = c_void_p()
        error = capi.resource_any_to_host(context, c_void_p.from_address(at).value, host)
        if error is not None:
            capi.error_delete(error)
            raise _mismatch()
        number = capi.resource_host_rep(host)
        fits = capi.resource_host_type(host) == self._resource and capi.resource_host_owned(host) == self._owned
        capi.resource_host_delete(host)
        if not fits:
            raise _mismatch()
        return handles._take(number) if self._owned else handles._look(number)

    def lower_of(self, handles: Handles, context: int, object_: Any, at: int) -> None:
        number = handles._put(object_)
        host = capi.resource_host_new(True, number, self._resource)
        any_ = c_void_p()
        error = capi.resource_host_to_any(context, host, any_)
        capi.resource_host_delete(host)
        if error is not None:
            capi.error_delete(error)
            handles._take(number)
            raise RuntimeError("the engine refused a resource")
        c_void_p.from_address(at + _OF).value = any_.value


def _items(object_: Any, n: int | None = None) -> Any:
    if not isinstance(object_, (list, tuple)):
        try:
            object_ = list(object_)
        except TypeError:
            raise TypeError("a host function must answer a list or a tuple here") from None
    if n is not None and len(object_) != n:
        raise TypeError(f"a host function must answer {n} fields here, not {len(object_)}")
    return object_


def _zeroed(at: int, kind: int, size: int) -> int:
    """Return where a new vector's items are, all zero; from here on, deleting the value at *at* deletes them."""
    data = _vec_at(at + _OF)[1]
    ctypes.memset(data, 0, size)
    ctypes.c_uint8.from_address(at).value = kind
    return data


def _pair(object_: Any) -> tuple[Any, Any]:
    if not isinstance(object_, tuple) or len(object_) != 2:
        raise TypeError(f"a host function must answer (case, payload) here, not {object_!r}")
    return object_


def _case(names: Mapping[bytes, str], name: Any) -> bytes:
    encoded = name.encode() if isinstance(name, str) else b""
    if encoded not in names:
        raise ValueError(f"no case {name!r} here")
    return encoded


def _lift_payload(handles: Handles, context: int, node_: Node | None, at: int | None) -> Any:
    if (node_ is None) != (at is None):
        raise _mismatch()
    return None if node_ is None or at is None else node_.lift(handles, context, at)


def _lower_payload(handles: Handles, context: int, node_: Node | None, object_: Any) -> int | None:
    """Return the address of a new value; None for a case without one."""
    if node_ is None:
        return None
    value = ctypes.create_string_buffer(_VALUE_BYTES)
    try:
        node_.lower(handles, context, object_, ctypes.addressof(value))
    except BaseException:
        capi.value_delete(ctypes.addressof(value))
        raise
    made: int = capi.value_new(ctypes.addressof(value))  # takes what is there
    return made


_MAX_U32 = 2**32 - 1
_PRIMITIVES: Final[Mapping[str, Node]] = {
    "bool": _Bool(_BOOL),
    "s8": _Integer(_S8, ctypes.c_int8),
    "u8": _Integer(_U8, ctypes.c_uint8),
    "s16": _Integer(_S16, ctypes.c_int16),
    "u16": _Integer(_U16, ctypes.c_uint16),
    "s32": _Integer(_S32, ctypes.c_int32),
    "u32": _Integer(_U32, ctypes.c_uint32),
    "s64": _Integer(_S64, ctypes.c_int64),
    "u64": _Integer(_U64, ctypes.c_uint64),
    "f32": _Float(_F32, ctypes.c_float),
    "f64": _Float(_F64, ctypes.c_double),
    "char": _Char(_CHAR),
    "string": _String(_STRING),
}


_ADDRESS_AND_SIZE: Final = _Result(_Tuple((_PRIMITIVES["u32"], _PRIMITIVES["u32"])), None)


def node(type: Any, ids: Mapping[str, int]) -> Node:
    """
    Return a WIT type (``faas.wasi.wit.Type``), prepared for converting values.

    Args: *ids* are the numbers of the resource types in the linker, by their WIT keys.
    Raises: TypeError for what is no type, LookupError for an unknown resource.
    """
    if isinstance(type, str) and type in _PRIMITIVES:
        return _PRIMITIVES[type]
    if not isinstance(type, tuple) or len(type) < 2 or len(type) != (3 if type[0] == "result" else 2):
        raise TypeError(f"no WIT type: {type!r}")
    head, of = type[:2]

    def part(inner: Any) -> Node | None:
        return None if inner is None else node(inner, ids)

    match head:
        case "list":
            return _Bytes() if of == "u8" else _List(node(of, ids))
        case "option":
            return _Option(node(of, ids))
        case "result":
            return _Result(part(of), part(type[2]))
        case "tuple":
            return _Tuple(tuple(node(inner, ids) for inner in of))
        case "record":
            return _Record(_names(name for name, _ in of), tuple(node(inner, ids) for _, inner in of))
        case "variant":
            names = _names(name for name, _ in of)
            return _Variant(tuple(zip(names, (part(inner) for _, inner in of), strict=True)))
        case "enum":
            return _Enum(_names(of))
        case "flags":
            return _Flags(_names(of))
        case "own" | "borrow":
            if of not in ids:
                raise LookupError(f"unknown resource {of!r}")
            return _Handle(ids[of], head == "own")
    raise TypeError(f"no WIT type: {type!r}")


def _names(names: Iterable[Any]) -> tuple[str, ...]:
    checked = tuple(names)
    for name in checked:
        if not isinstance(name, str):
            raise TypeError(f"no WIT name: {name!r}")
    return checked


# --- host functions --------------------------------------------------------------------------------------------------


def host_function(
    call: Callable[..., Any], params: tuple[Node, ...], result: Node | None, may_suspend: bool, room: int
) -> tuple[int, int | None, Any]:
    """
    Return the C callback of a host function, its environment, and what to keep as long as the linker.

    *call* gets the guest and the parameters. What it answers becomes the result; where that is a ``result``, the
    ``ok`` of it, and a WitError that it raises the ``err``. What else it raises becomes the guest's ``failure``, and
    ends its call. With *may_suspend*, for ``add_func_async``, it may answer an awaitable instead: that goes to the
    guest's ``suspend``, and ``settled`` tells what came of it, or raises that; NotImplemented: it isn't done.
    *room*, for functions with *may_suspend* whose ``ok`` is bytes: which realloc of the guest's makes room for them, if
    ``Handles.room_is`` told of it; the component declares a tuple of two u32 there then. 0: none.
    """
    fits = 0 <= room <= MAX_ROOMS and isinstance(params, tuple) and len(params) <= MAX_PARAMS
    fits = fits and all(isinstance(node_, Node) for node_ in params)
    if not fits or not isinstance(result, Node | None):
        raise TypeError("host_function() takes a tuple of at most 12 nodes, and a node or None")
    made = _suspending(call, params, result, room) if may_suspend else _plain(call, params, result)
    return ctypes.cast(made, c_void_p).value or 0, None, made


def _store_of(handles: Handles) -> int:
    if not handles._memory[0]:  # its component is still being instantiated
        handles._memory[0] = _object_in(handles._guest).store_number()
    return handles._memory[0]


def _begin_room(handles: Handles, context: int, room: int, answer: Any) -> None:
    """Begin to make room in the guest for what a host function answered."""
    number, name = handles._reallocs[room]
    content = bytes(memoryview(answer))
    instance, realloc = (c_uint64 * 2)(_store_of(handles), number), capi.Extern()
    at = ctypes.addressof(realloc)
    found = capi.instance_export_get(context, ctypes.addressof(instance), name, len(name), at)
    if len(content) > _MAX_U32 or not found or realloc.kind != capi.EXTERN_FUNC:
        raise _mismatch()
    handles._room = _Room(context, realloc, content)


def _make_room(handles: Handles, context: int, results: int) -> bool:
    """Go on making room: whether it is done, and the host call has its result or failed."""
    room = handles._room
    assert room is not None
    if not room.poll():
        return False
    handles._room = None
    at, failure = room.take()
    memory, size = ctypes.addressof(handles._memory), len(room.content)
    if failure is None and at + size > capi.memory_data_size(context, memory):
        failure = "the guest's cabi_realloc returned an address that is beyond the end of its memory"
    if failure is not None:
        _object_in(handles._guest).room_failed(failure)
    else:
        ctypes.memmove(capi.memory_data(context, memory) + at, room.content, size)
        _ADDRESS_AND_SIZE.lower_as(handles, context, True, (at, size), results)
    return True


def _forget_room(handles: Handles) -> None:
    room, handles._room = handles._room, None
    if room is not None:
        room.take()


def _bytes_at(handles: Handles, context: int, args: int) -> bytes:
    """Return bytes that a function takes by address and size."""
    kinds = {ctypes.c_uint8.from_address(args + i * _VALUE_BYTES).value for i in (0, 1)}
    memory = ctypes.addressof(handles._memory)
    if kinds != {_U32} or not handles._memory[1]:
        raise _mismatch()
    _store_of(handles)
    at, size = (ctypes.c_uint32.from_address(args + i * _VALUE_BYTES + _OF).value for i in (0, 1))
    if not size:
        return b""
    if at + size > capi.memory_data_size(context, memory):
        raise GuestTrapError("the guest passed bytes that are not in its memory")
    return ctypes.string_at(capi.memory_data(context, memory) + at, size)


def _called(  # noqa: PLR0917 - as in C
    handles: Handles,
    context: int,
    call: Callable[..., Any],
    params: tuple[Node, ...],
    args: int,
    n_args: int,
) -> Any:
    if handles._room is not None:  # as the engine has it where it asks for room by itself
        raise GuestTrapError("the guest calls the host from its cabi_realloc, which must only make room")
    by_address = n_args == len(params) + 1 and isinstance(params[-1], _Bytes) if params else False
    if n_args != len(params) and not by_address:
        raise _mismatch()
    plain = params[:-1] if by_address else params
    lifted = [node_.lift(handles, context, args + i * _VALUE_BYTES) for i, node_ in enumerate(plain)]
    if by_address:
        lifted.append(_bytes_at(handles, context, args + len(plain) * _VALUE_BYTES))
    return call(_object_in(handles._guest), *lifted)


def _answered(handles: Handles, context: int, result: Node | None, answer: Any, results: int) -> None:
    if result is None:
        return
    try:
        if isinstance(result, _Result):
            result.lower_as(handles, context, True, answer, results)
        else:
            result.lower(handles, context, answer, results)
    except BaseException:
        capi.value_delete(results)
        ctypes.memmove(results, _NO_VALUE, _VALUE_BYTES)
        raise


def _declared(handles: Handles, context: int, result: Node | None, error: WitError, results: int) -> None:
    if not isinstance(result, _Result):
        raise error
    result.lower_as(handles, context, False, error.value, results)


def _plain(call: Callable[..., Any], params: tuple[Node, ...], result: Node | None) -> Any:
    n_wanted = 0 if result is None else 1

    def callback(
        _env: int, context: int, _type: int, args: int, n_args: int, results: int, n_results: int
    ) -> int | None:
        handles = _handles_at(capi.context_get_data(context))
        try:
            if n_results != n_wanted:
                raise _mismatch()
            try:
                answer = _called(handles, context, call, params, args, n_args)
            except WitError as error:
                _declared(handles, context, result, error, results)
            else:
                _answered(handles, context, result, answer, results)
        except BaseException as exc:
            return handles._fail(exc)
        return None

    return capi.ComponentCallback(callback)


def _suspending(call: Callable[..., Any], params: tuple[Node, ...], result: Node | None, room: int) -> Any:
    n_wanted = 0 if result is None else 1

    def callback(  # noqa: PLR0917 - wasmtime's
        _env: int,
        context: int,
        _type: int,
        args: int,
        n_args: int,
        results: int,
        n_results: int,
        error_at: Any,
        continuation: Any,
    ) -> None:
        handles = _handles_at(capi.context_get_data(context))
        slot = continuation.contents
        slot.callback, slot.env, slot.finalizer = _READY_AT, None, None
        try:
            if n_results != n_wanted:
                raise _mismatch()
            try:
                answer = _called(handles, context, call, params, args, n_args)
            except WitError as error:
                _declared(handles, context, result, error, results)
                return
            waits, room_of = hasattr(type(answer), "__await__"), room if room in handles._reallocs else 0
            if not waits and not room_of:
                _answered(handles, context, result, answer, results)
                return
            if handles._waits is not None:
                raise GuestTrapError("the guest waits in two calls of the host at once; await one after the other")
            if waits:
                _object_in(handles._guest).suspend(answer)
            else:
                _begin_room(handles, context, room_of, answer)
            slot.callback, slot.finalizer = _RESUME_AT, _FORGET_AT
            slot.env = ctypes.addressof(handles._cell)
            handles._waits = result, room_of, context, results
        except BaseException as exc:
            error_at.contents.value = handles._fail(exc)

    return capi.ComponentAsyncCallback(callback)


def _ready(_env: int | None) -> bool:
    """A host call that was answered at once goes on."""
    return True


def _resume(env: int) -> bool:
    """A host call that waited, or whose bytes need room in the guest, goes on: whether it is done."""
    handles = _handles_at(env)
    waits = handles._waits
    if waits is None:
        return True
    result, room, context, results = waits
    done = True
    try:
        if handles._room is None:
            try:
                answer = _object_in(handles._guest).settled()
            except WitError as error:
                _declared(handles, context, result, error, results)
            else:
                if answer is NotImplemented:
                    return False
                if room:
                    _begin_room(handles, context, room, answer)
                else:
                    _answered(handles, context, result, answer, results)
        if handles._room is not None:
            done = _make_room(handles, context, results)
    except BaseException as exc:
        handles._set_failure(exc)  # without a result: the guest traps
    if done:
        handles._waits = None
    return done


def _forget(env: int) -> None:
    """The engine gave up a host call that waited, or it is done: where its results were to go is gone."""
    handles = _handles_at(env)
    _forget_room(handles)
    handles._waits = None


def _dropped(_env: int | None, context: int, number: int) -> int | None:
    """A guest dropped a handle that it owned."""
    handles = _handles_at(capi.context_get_data(context))
    try:
        handles._take(number).drop()
    except BaseException as exc:
        return handles._fail(exc)
    return None


_KEEP: Final = (
    capi.ContinuationCallback(_ready),
    capi.ContinuationCallback(_resume),
    capi.Finalizer(_forget),
    capi.ResourceDestructor(_dropped),
)
_READY_AT, _RESUME_AT, _FORGET_AT, _DROPPED_AT = (ctypes.cast(made, c_void_p).value or 0 for made in _KEEP)


def destructor() -> tuple[int, None, None]:
    """
    Return the C callback for a resource that a guest drops, its environment, and what to keep as long as the linker.

    It takes the object out of the guest's table and calls its ``drop``; what that raises becomes the guest's
    ``failure``, and ends its call.
    """
    return _DROPPED_AT, None, None


# --- calls into a component ------------------------------------------------------------------------------------------


def begin_call(  # noqa: PLR0917 - the same as in C
    handles: Handles,
    context: int,
    instance: int,
    error: int,
    index: int,
    values: tuple[tuple[Node, Any], ...],
    has_result: bool,
) -> int | None:
    """
    Begin to call an exported function; nothing runs before the first ``poll`` of the future that is returned.

    None if *instance* (the address of a ``wasmtime_component_instance_t``) has no such function. *error* is where an
    error will be left; *values* are at most four (node, value), kept until the next call; with *has_result*,
    ``take_result`` gets the result once the future is done. *handles* must outlive the future.
    Raises: as a host function's answer that its type does not have.
    """
    if not isinstance(handles, Handles) or not isinstance(values, tuple) or len(values) > MAX_ARGS:
        raise TypeError("begin_call() takes Handles, and at most 4 (node, value)")
    for pair in values:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], Node):
            raise TypeError("begin_call() takes Handles, and at most 4 (node, value)")
    handles._delete_args()
    handles._delete_result()
    func, args = ctypes.addressof(handles._func), ctypes.addressof(handles._args)
    if not capi.component_get_func(instance, context, index, func):
        return None
    for node_, value in values:
        at = args + handles._n_args * _VALUE_BYTES
        handles._n_args += 1
        node_.lower(handles, context, value, at)
    future: int = capi.component_func_call_async(
        func, context, args, len(values), ctypes.addressof(handles._result), 1 if has_result else 0, error
    )
    return future


def take_result(handles: Handles, context: int, result: Node) -> Any:
    """
    Return the result of the call that is done, once.

    Raises: GuestTrapError if the component declares another type.
    """
    if not isinstance(handles, Handles) or not isinstance(result, Node):
        raise TypeError("take_result() takes Handles and a node")
    try:
        return result.lift(handles, context, ctypes.addressof(handles._result))
    finally:
        handles._delete_result()


# --- which one runs --------------------------------------------------------------------------------------------------


@functools.cache
def chosen() -> ModuleType:
    """Return ``_values`` if it was compiled and fits, else this module; FAAS_NATIVE_CALLS=0 asks for this one."""
    if os.environ.get("FAAS_NATIVE_CALLS") != "0":
        try:
            from faas.wasm import _values  # noqa: PLC0415 - there only where it could be compiled

            _values.open_library(capi.LIBRARY_PATH, WitError, GuestTrapError)
        except (ImportError, OSError) as exc:
            event(_log, "native_calls.off", reason=str(exc))
        else:
            return _values
    return sys.modules[__name__]
