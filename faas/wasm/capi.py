"""
The one file that wraps wasmtime's raw C API: what wasmtime-py ships only as ctypes functions, and nothing more.

Two handles on the same library: ``_free`` releases the GIL around a call (anything that runs guest code, compiles
or touches many pages), ``_held`` keeps it (calls of well under a microsecond, where letting go costs more).
Pointers are plain ints here; who makes one deletes it.

Source: wasmtime C API headers ``wasmtime/{async,store,linker,instance,func,trap}.h``, version 50.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from typing import Any

from wasmtime import _ffi

from faas.errors import ConfigError

LIBRARY_PATH = str(_ffi.filename)
_free = ctypes.CDLL(LIBRARY_PATH)
_held = ctypes.PyDLL(LIBRARY_PATH)

Pointer = int | None


def _bind(handle: ctypes.CDLL, name: str, restype: Any, *argtypes: Any) -> Callable[..., Any]:
    try:
        function = getattr(handle, name)
    except AttributeError as exc:
        raise ConfigError(
            f"this wasmtime library lacks {name}; install the pinned version: pip install wasmtime==50.0.1"
        ) from exc
    # A fresh function object: wasmtime-py sets its own prototypes on the objects its handle caches.
    function.restype = restype
    function.argtypes = argtypes
    return function  # type: ignore[no-any-return]


class Extern(ctypes.Structure):
    """``wasmtime_extern_t``: kind, then a union of handles (24 bytes) at offset 8."""

    _fields_ = (("kind", c_uint8), ("of", c_uint64 * 3))


class Val(ctypes.Structure):
    """``wasmtime_val_t``: kind, then the value (24 bytes) at offset 8; integers only here."""

    _fields_ = (("kind", c_uint8), ("i64", c_int64), ("_rest", c_uint64 * 2))


class Frame(ctypes.Structure):
    """The out-parameters of one fiber in one allocation; the C side keeps pointers into it while it runs."""

    _fields_ = (
        ("instance", c_uint64 * 2),
        ("export", Extern),
        ("memory", Extern),
        ("trap", c_void_p),
        ("error", c_void_p),
        ("args", Val * 2),
        ("results", Val * 1),
    )


class Continuation(ctypes.Structure):
    """``wasmtime_async_continuation_t``."""

    _fields_ = (("callback", c_void_p), ("env", c_void_p), ("finalizer", c_void_p))


I32, I64 = 0, 1
EXTERN_FUNC, EXTERN_GLOBAL, EXTERN_MEMORY = 0, 1, 3
FRAME_INSTANCE = Frame.instance.offset
FRAME_EXPORT = Frame.export.offset
FRAME_EXPORT_OF = Frame.export.offset + Extern.of.offset
FRAME_MEMORY = Frame.memory.offset
FRAME_MEMORY_OF = Frame.memory.offset + Extern.of.offset
FRAME_TRAP = Frame.trap.offset
FRAME_ERROR = Frame.error.offset
FRAME_ARGS = Frame.args.offset
FRAME_RESULTS = Frame.results.offset

UncheckedCallback = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_size_t)
AsyncCallback = CFUNCTYPE(
    None, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, POINTER(c_void_p), POINTER(Continuation)
)
ContinuationCallback = CFUNCTYPE(c_bool, c_void_p)
ComponentCallback = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t)
ComponentAsyncCallback = CFUNCTYPE(
    None,
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
    c_size_t,
    c_void_p,
    c_size_t,
    POINTER(c_void_p),
    POINTER(Continuation),
)
ResourceDestructor = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_uint32)
Finalizer = CFUNCTYPE(None, c_void_p)


class TrapCode(IntEnum):
    """``wasmtime_trap_code_enum``."""

    STACK_OVERFLOW = 0
    MEMORY_OUT_OF_BOUNDS = 1
    HEAP_MISALIGNED = 2
    TABLE_OUT_OF_BOUNDS = 3
    INDIRECT_CALL_TO_NULL = 4
    BAD_SIGNATURE = 5
    INTEGER_OVERFLOW = 6
    INTEGER_DIVISION_BY_ZERO = 7
    BAD_CONVERSION_TO_INTEGER = 8
    UNREACHABLE_CODE_REACHED = 9
    INTERRUPT = 10


# --- engine, modules ------------------------------------------------------------------------------------------------
engine_increment_epoch = _bind(_held, "wasmtime_engine_increment_epoch", None, c_void_p)
module_deserialize = _bind(
    _free, "wasmtime_module_deserialize", c_void_p, c_void_p, c_char_p, c_size_t, POINTER(c_void_p)
)
module_deserialize_file = _bind(
    _free, "wasmtime_module_deserialize_file", c_void_p, c_void_p, c_char_p, POINTER(c_void_p)
)
module_delete = _bind(_free, "wasmtime_module_delete", None, c_void_p)

# --- linker ---------------------------------------------------------------------------------------------------------
linker_new = _bind(_held, "wasmtime_linker_new", c_void_p, c_void_p)
linker_delete = _bind(_held, "wasmtime_linker_delete", None, c_void_p)
linker_define_func_unchecked = _bind(
    _held,
    "wasmtime_linker_define_func_unchecked",
    c_void_p,
    c_void_p,
    c_char_p,
    c_size_t,
    c_char_p,
    c_size_t,
    c_void_p,
    c_void_p,  # an UncheckedCallback, or C's own
    c_void_p,
    c_void_p,
)
linker_define_async_func = _bind(
    _held,
    "wasmtime_linker_define_async_func",
    c_void_p,
    c_void_p,
    c_char_p,
    c_size_t,
    c_char_p,
    c_size_t,
    c_void_p,
    AsyncCallback,
    c_void_p,
    c_void_p,
)
linker_instantiate_pre = _bind(
    _free, "wasmtime_linker_instantiate_pre", c_void_p, c_void_p, c_void_p, POINTER(c_void_p)
)
instance_pre_delete = _bind(_held, "wasmtime_instance_pre_delete", None, c_void_p)

# --- components -----------------------------------------------------------------------------------------------------
component_deserialize = _bind(
    _free, "wasmtime_component_deserialize", c_void_p, c_void_p, c_char_p, c_size_t, POINTER(c_void_p)
)
component_deserialize_file = _bind(
    _free, "wasmtime_component_deserialize_file", c_void_p, c_void_p, c_char_p, POINTER(c_void_p)
)
component_delete = _bind(_free, "wasmtime_component_delete", None, c_void_p)
component_get_export_index = _bind(
    _held, "wasmtime_component_get_export_index", c_void_p, c_void_p, c_void_p, c_char_p, c_size_t
)
component_export_index_delete = _bind(_held, "wasmtime_component_export_index_delete", None, c_void_p)
component_linker_new = _bind(_held, "wasmtime_component_linker_new", c_void_p, c_void_p)
component_linker_delete = _bind(_held, "wasmtime_component_linker_delete", None, c_void_p)
component_linker_root = _bind(_held, "wasmtime_component_linker_root", c_void_p, c_void_p)
component_linker_instance_delete = _bind(_held, "wasmtime_component_linker_instance_delete", None, c_void_p)
component_linker_add_instance = _bind(
    _held,
    "wasmtime_component_linker_instance_add_instance",
    c_void_p,
    c_void_p,
    c_char_p,
    c_size_t,
    POINTER(c_void_p),
)
component_linker_add_func = _bind(
    _held,
    "wasmtime_component_linker_instance_add_func",
    c_void_p,
    c_void_p,
    c_char_p,
    c_size_t,
    c_void_p,
    c_void_p,
    c_void_p,
)
component_linker_add_func_async = _bind(
    _held,
    "wasmtime_component_linker_instance_add_func_async",
    c_void_p,
    c_void_p,
    c_char_p,
    c_size_t,
    c_void_p,
    c_void_p,
    c_void_p,
)
component_linker_add_resource = _bind(
    _held,
    "wasmtime_component_linker_instance_add_resource",
    c_void_p,
    c_void_p,
    c_char_p,
    c_size_t,
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
)
component_resource_type_new_host = _bind(_held, "wasmtime_component_resource_type_new_host", c_void_p, c_uint32)
component_resource_type_delete = _bind(_held, "wasmtime_component_resource_type_delete", None, c_void_p)
component_linker_instantiate_async = _bind(
    _held,
    "wasmtime_component_linker_instantiate_async",
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
)

# --- component values -----------------------------------------------------------------------------------------------
component_get_func = _bind(
    _held, "wasmtime_component_instance_get_func", c_bool, c_void_p, c_void_p, c_void_p, c_void_p
)
component_func_call_async = _bind(
    _held,
    "wasmtime_component_func_call_async",
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
    c_size_t,
    c_void_p,
    c_size_t,
    c_void_p,
)
byte_vec_new = _bind(_held, "wasm_byte_vec_new_uninitialized", None, c_void_p, c_size_t)
value_new = _bind(_held, "wasmtime_component_val_new", c_void_p, c_void_p)
value_delete = _bind(_held, "wasmtime_component_val_delete", None, c_void_p)
value_list_new = _bind(_held, "wasmtime_component_vallist_new_uninit", None, c_void_p, c_size_t)
value_tuple_new = _bind(_held, "wasmtime_component_valtuple_new_uninit", None, c_void_p, c_size_t)
value_record_new = _bind(_held, "wasmtime_component_valrecord_new_uninit", None, c_void_p, c_size_t)
value_flags_new = _bind(_held, "wasmtime_component_valflags_new_uninit", None, c_void_p, c_size_t)
resource_host_new = _bind(_held, "wasmtime_component_resource_host_new", c_void_p, c_bool, c_uint32, c_uint32)
resource_host_rep = _bind(_held, "wasmtime_component_resource_host_rep", c_uint32, c_void_p)
resource_host_type = _bind(_held, "wasmtime_component_resource_host_type", c_uint32, c_void_p)
resource_host_owned = _bind(_held, "wasmtime_component_resource_host_owned", c_bool, c_void_p)
resource_host_delete = _bind(_held, "wasmtime_component_resource_host_delete", None, c_void_p)
resource_host_to_any = _bind(
    _held, "wasmtime_component_resource_host_to_any", c_void_p, c_void_p, c_void_p, POINTER(c_void_p)
)
resource_any_to_host = _bind(
    _held, "wasmtime_component_resource_any_to_host", c_void_p, c_void_p, c_void_p, POINTER(c_void_p)
)

# --- stores and fibers ----------------------------------------------------------------------------------------------
store_new = _bind(_held, "wasmtime_store_new", c_void_p, c_void_p, c_void_p, c_void_p)
store_context = _bind(_held, "wasmtime_store_context", c_void_p, c_void_p)
store_limiter = _bind(_held, "wasmtime_store_limiter", None, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int64)
store_delete = _bind(_free, "wasmtime_store_delete", None, c_void_p)
context_get_data = _bind(_held, "wasmtime_context_get_data", c_void_p, c_void_p)
context_set_data = _bind(_held, "wasmtime_context_set_data", None, c_void_p, c_void_p)
context_set_epoch_deadline = _bind(_held, "wasmtime_context_set_epoch_deadline", None, c_void_p, c_uint64)
context_epoch_deadline_async_yield_and_update = _bind(
    _held, "wasmtime_context_epoch_deadline_async_yield_and_update", c_void_p, c_void_p, c_uint64
)
instance_pre_instantiate_async = _bind(
    _held, "wasmtime_instance_pre_instantiate_async", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p
)
instance_export_get = _bind(
    _held, "wasmtime_instance_export_get", c_bool, c_void_p, c_void_p, c_char_p, c_size_t, c_void_p
)
func_call_async = _bind(
    _held,
    "wasmtime_func_call_async",
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
    c_size_t,
    c_void_p,
    c_size_t,
    c_void_p,
    c_void_p,
)
# Runs guest code: must release the GIL, or the ticker could never end a guest's slice.
call_future_poll = _bind(_free, "wasmtime_call_future_poll", c_bool, c_void_p)
call_future_delete = _bind(_free, "wasmtime_call_future_delete", None, c_void_p)
caller_export_get = _bind(_held, "wasmtime_caller_export_get", c_bool, c_void_p, c_char_p, c_size_t, c_void_p)
global_get = _bind(_held, "wasmtime_global_get", None, c_void_p, c_void_p, c_void_p)
memory_data = _bind(_held, "wasmtime_memory_data", c_void_p, c_void_p, c_void_p)
memory_data_size = _bind(_held, "wasmtime_memory_data_size", c_size_t, c_void_p, c_void_p)

# --- traps and errors -----------------------------------------------------------------------------------------------
trap_new = _bind(_held, "wasmtime_trap_new", c_void_p, c_char_p, c_size_t)
_trap_code = _bind(_held, "wasmtime_trap_code", c_bool, c_void_p, POINTER(c_uint8))
_trap_message = _bind(_held, "wasm_trap_message", None, c_void_p, c_void_p)
_trap_delete = _bind(_held, "wasm_trap_delete", None, c_void_p)
_error_message = _bind(_held, "wasmtime_error_message", None, c_void_p, c_void_p)
error_new = _bind(_held, "wasmtime_error_new", c_void_p, c_char_p)
error_delete = _bind(_held, "wasmtime_error_delete", None, c_void_p)

# --- types ----------------------------------------------------------------------------------------------------------
_valtype_new = _bind(_held, "wasm_valtype_new", c_void_p, c_uint8)
_functype_new = _bind(_held, "wasm_functype_new", c_void_p, c_void_p, c_void_p)
functype_delete = _bind(_held, "wasm_functype_delete", None, c_void_p)
_valtype_vec_new = _bind(_held, "wasm_valtype_vec_new", None, c_void_p, c_size_t, c_void_p)
_globaltype_new = _bind(_held, "wasm_globaltype_new", c_void_p, c_void_p, c_uint8)
_globaltype_delete = _bind(_held, "wasm_globaltype_delete", None, c_void_p)
_global_new = _bind(_held, "wasmtime_global_new", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
_byte_vec_delete = _bind(_held, "wasm_byte_vec_delete", None, c_void_p)

# A view on foreign memory without a ctypes array type of its own per size.
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.restype = ctypes.py_object
_view.argtypes = (c_void_p, ctypes.c_ssize_t, c_int)
_PYBUF_WRITE = 0x200


class _Vec(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("data", c_void_p))


def memory_view(base: int, size: int) -> memoryview:
    """Return a writable view of *size* bytes at *base*; valid for as long as the instance lives, not longer."""
    view: memoryview = _view(base, size, _PYBUF_WRITE)
    return view


def functype(params: str, results: str) -> int:
    """Return a new ``wasm_functype_t`` for letters i (i32) and I (i64); the caller deletes it."""

    def vec(letters: str) -> _Vec:
        array = (c_void_p * max(1, len(letters)))(*[_valtype_new(I64 if letter == "I" else I32) for letter in letters])
        out = _Vec()
        _valtype_vec_new(ctypes.addressof(out), len(letters), ctypes.addressof(array))
        return out

    params_vec, results_vec = vec(params), vec(results)
    made: int = _functype_new(ctypes.addressof(params_vec), ctypes.addressof(results_vec))
    return made


def _take_message(read: Callable[..., Any], pointer: int) -> str:
    out = _Vec()
    read(pointer, ctypes.addressof(out))
    text = ctypes.string_at(out.data, out.size) if out.size else b""
    _byte_vec_delete(ctypes.addressof(out))
    return text.rstrip(b"\0").decode("utf-8", "replace")


def take_trap(pointer: int) -> tuple[TrapCode | None, str]:
    """Return a trap's code (None: raised by a host function) and message with backtrace; the trap is deleted."""
    code = c_uint8()
    known = _trap_code(pointer, code)
    message = _take_message(_trap_message, pointer)
    _trap_delete(pointer)
    try:
        return (TrapCode(code.value) if known else None), message
    except ValueError:
        return None, message  # a code newer than our list: the message says it


def take_error(pointer: int) -> str:
    """Return a ``wasmtime_error_t``'s message; the error is deleted."""
    message = _take_message(_error_message, pointer)
    error_delete(pointer)
    return message


def store_number(context: int) -> int:
    """Return what handles into this store begin with; a global is left in it, which counts as nothing else."""
    type_ = _globaltype_new(_valtype_new(I32), 0)
    value, made = Val(kind=I32), (c_uint64 * 3)()
    error = _global_new(context, type_, ctypes.addressof(value), ctypes.addressof(made))
    _globaltype_delete(type_)
    if error:
        raise AssertionError(take_error(error))
    return made[0]
