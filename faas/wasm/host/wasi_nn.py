"""
``wasi_ephemeral_nn`` as host functions: guest memory to values of ``faas.nn`` and back.

A handler takes ``guest`` and the call's integers, all unsigned, and returns an errno, or an awaitable of it where the
model has to be waited for. Every range is checked as a whole, and every place for a result before anything is done:
a call that fails writes nothing, except the size that a buffer would need. A guest that exports no memory traps.

Source: wasi-nn witx and WasmEdge's extensions; layouts and errnos as in WasmEdge ``plugins/wasi_nn``.
"""
# ruff: noqa: PLR0917 - WASI-NN fixes the parameters, and an engine calls by position

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Concatenate, Final, ParamSpec, Protocol

from faas.errors import FaasError, GuestTrapError
from faas.nn.errno import NnErrno, NnError, to_nn_error
from faas.nn.options import MAX_CONFIG_BYTES
from faas.nn.session import MAX_NAME_BYTES, MAX_PROMPT_BYTES, METADATA_INDEX, NnContext
from faas.nn.signatures import SIGNATURES
from faas.wasm.host import HostFunction
from faas.wasm.memory import GuestMemory, MemoryFaultError

MAX_BUILDERS: Final = 64
ZERO_BUFFER_BYTES: Final = 2**14 * 15 + 128
"""
What LlamaEdge reserves for an output that it asks for with a buffer of length 0.

It trusts the host to fill the reserved room, as WasmEdge does; answering 7 would break all of its applications. The
room is the guest's own memory, so nothing but the guest can be harmed. ``NnContext.zero_buffer_compat`` switches it.
"""

_GGML_ENCODINGS: Final = frozenset({5, 6})  # ggml and autodetect, one way round or the other
_LAST_TARGET: Final = 3  # cpu, gpu, tpu, auto
_LAST_TENSOR_TYPE: Final = 5
# The type is one byte: the three behind it are padding, which real guests leave uninitialised.
_TENSOR: Final = struct.Struct("<IIB3xII")


class NnGuest(Protocol):
    """What a handler needs of the instance that calls it; valid during the call, and while its awaitable runs."""

    @property
    def memory(self) -> GuestMemory:
        """The instance's linear memory."""

    @property
    def nn(self) -> NnContext | None:
        """The instance's WASI-NN state; None if its function has no models."""


_P = ParamSpec("_P")
_Later = Callable[[], Awaitable[None]]  # no coroutine yet: it may never be awaited
_Call = Callable[Concatenate[NnGuest, _P], _Later | None]
_Handler = Callable[Concatenate[NnGuest, _P], int | Awaitable[int]]


def _answering(call: _Call[_P]) -> _Handler[_P]:
    """Turn a handler that raises into one that answers: 0, or the errno of what was raised, now or later."""

    @wraps(call)
    def handler(guest: NnGuest, /, *args: _P.args, **kwargs: _P.kwargs) -> int | Awaitable[int]:
        try:
            later = call(guest, *args, **kwargs)
        except (NnError, MemoryFaultError) as error:
            return _errno(guest, call.__name__, error)
        return _later(guest, call.__name__, later) if later is not None else 0

    return handler


async def _later(guest: NnGuest, name: str, work: _Later) -> int:
    try:
        await work()
    except (NnError, MemoryFaultError, FaasError) as error:
        return _errno(guest, name, error)
    return 0


def _errno(guest: NnGuest, name: str, error: NnError | MemoryFaultError | FaasError) -> int:
    """
    Return the errno for *error*, which is logged.

    Raises: *error* itself if it is not the guest's to see, GuestTrapError for a guest without memory.
    """
    if isinstance(error, MemoryFaultError):
        _require_memory(guest.memory)
        told: NnError | None = NnError(NnErrno.INVALID_ARGUMENT, "a range is not inside the guest's memory")
    elif isinstance(error, NnError):
        told = error
    else:
        told = to_nn_error(error)
    if told is None:
        raise error
    if guest.nn is not None:
        guest.nn.report(name, told)
    return int(told.errno)


def _require_memory(memory: GuestMemory) -> None:
    try:
        memory.read(0, 0)
    except MemoryFaultError as exc:
        raise GuestTrapError("the module calls WASI-NN without a memory; export it as 'memory' and redeploy") from exc


def _nn(guest: NnGuest, otherwise: NnErrno = NnErrno.UNSUPPORTED_OPERATION) -> NnContext:
    if guest.nn is None:
        raise NnError(otherwise, "the function has no models")
    return guest.nn


def _within(memory: GuestMemory, ptr: int, length: int) -> None:
    """Check a range without copying it: where it ends has to be inside, or right behind the last byte."""
    memory.read(ptr + length, 0)


def _taken(memory: GuestMemory, ptr: int, length: int, most: int) -> bytes:
    """Return the bytes of a range that is wholly inside; at most one more than *most*, which says it is longer."""
    _within(memory, ptr, length)
    return memory.read(ptr, min(length, most + 1))


# Graphs


@_answering
def load(guest: NnGuest, builders_ptr: int, n_builders: int, encoding: int, target: int, graph_ptr: int) -> _Later:
    """Load the granted model that the first builder names, the second one is its configuration; store the graph."""
    memory = guest.memory
    _within(memory, graph_ptr, 4)
    _within(memory, builders_ptr, 8 * n_builders)
    if not 0 < n_builders <= MAX_BUILDERS:
        raise NnError(NnErrno.INVALID_ARGUMENT, f"{n_builders} builders are not between 1 and {MAX_BUILDERS}")
    builders = memory.read_u32s(builders_ptr, 2 * n_builders)
    for ptr, length in zip(builders[::2], builders[1::2], strict=True):
        _within(memory, ptr, length)
    if encoding & 0xFF not in _GGML_ENCODINGS:
        raise NnError(NnErrno.INVALID_ENCODING, f"encoding {encoding & 0xFF} is not offered, only GGML and autodetect")
    if target > _LAST_TARGET:
        raise NnError(NnErrno.INVALID_ARGUMENT, f"there is no target {target}")
    name = _taken(memory, builders[0], builders[1], MAX_NAME_BYTES)
    config = _taken(memory, builders[2], builders[3], MAX_CONFIG_BYTES) if n_builders > 1 else None
    return partial(_store_graph, memory, partial(_nn(guest, NnErrno.NOT_FOUND).load, name, config), graph_ptr)


@_answering
def load_by_name(guest: NnGuest, name_ptr: int, name_len: int, graph_ptr: int) -> _Later:
    """Load a granted model, or find it loaded, and store the graph."""
    memory = guest.memory
    _within(memory, graph_ptr, 4)
    name = _taken(memory, name_ptr, name_len, MAX_NAME_BYTES)
    return partial(_store_graph, memory, partial(_nn(guest, NnErrno.NOT_FOUND).load_by_name, name), graph_ptr)


@_answering
def load_by_name_with_config(
    guest: NnGuest, name_ptr: int, name_len: int, config_ptr: int, config_len: int, graph_ptr: int
) -> _Later:
    """Load a granted model with a JSON configuration, or find it loaded, and store the graph."""
    memory = guest.memory
    _within(memory, graph_ptr, 4)
    name = _taken(memory, name_ptr, name_len, MAX_NAME_BYTES)
    config = _taken(memory, config_ptr, config_len, MAX_CONFIG_BYTES)
    return partial(_store_graph, memory, partial(_nn(guest, NnErrno.NOT_FOUND).load_by_name, name, config), graph_ptr)


async def _store_graph(memory: GuestMemory, load_graph: Callable[[], Awaitable[int]], graph_ptr: int) -> None:
    memory.write_u32(graph_ptr, await load_graph())


@_answering
def unload(guest: NnGuest, graph: int) -> None:
    """Make a graph's handle invalid."""
    _nn(guest).unload(graph)


@_answering
def init_execution_context(guest: NnGuest, graph: int, context_ptr: int) -> None:
    """Store a new execution context of a graph."""
    _within(guest.memory, context_ptr, 4)
    guest.memory.write_u32(context_ptr, _nn(guest).init_execution_context(graph))


# Inputs and computing


@_answering
def set_input(guest: NnGuest, context: int, index: int, tensor_ptr: int) -> _Later | None:
    """
    Give a context its configuration (input 1) or its prompt (any other).

    Only the bytes of the tensor count: guests of GGML models say dimensions [1] whatever they send, and two numberings
    of the types are in use.
    """
    memory = guest.memory
    dimensions, n_dimensions, kind, ptr, length = _TENSOR.unpack(memory.read(tensor_ptr, _TENSOR.size))
    _within(memory, dimensions, 4 * n_dimensions)
    _within(memory, ptr, length)
    nn = _nn(guest)
    if kind > _LAST_TENSOR_TYPE:
        raise NnError(NnErrno.INVALID_ARGUMENT, f"there is no tensor type {kind}")
    if index == METADATA_INDEX:
        nn.set_config(context, _taken(memory, ptr, length, MAX_CONFIG_BYTES))
        return None
    nn.set_prompt(context, _taken(memory, ptr, length, MAX_PROMPT_BYTES))
    return partial(nn.end_stream, context) if nn.streams(context) else None


@_answering
def compute(guest: NnGuest, context: int) -> _Later:
    """Answer the prompt; only this guest waits."""
    return partial(_nn(guest).compute, context)


@_answering
def compute_single(guest: NnGuest, context: int) -> _Later:
    """Generate one more token; only this guest waits, and what it has written before goes out meanwhile."""
    return partial(_nn(guest).compute_single, context)


@_answering
def fini_single(guest: NnGuest, context: int) -> _Later | None:
    """End a stream, and clear its outputs."""
    nn = _nn(guest)
    later = partial(nn.end_stream, context) if nn.streams(context) else None
    nn.fini_single(context)
    return later


@_answering
def finalize_execution_context(guest: NnGuest, context: int) -> _Later | None:
    """Make a context's handle invalid."""
    nn = _nn(guest)
    if nn.streams(context):
        return partial(_finalize_later, nn, context)
    nn.finalize_execution_context(context)
    return None


async def _finalize_later(nn: NnContext, context: int) -> None:
    await nn.end_stream(context)
    nn.finalize_execution_context(context)


# Outputs


@_answering
def get_output(
    guest: NnGuest, context: int, index: int, buffer_ptr: int, buffer_len: int, n_written_ptr: int
) -> _Later | None:
    """Store the counts (output 1), or all of the text or the embedding (any other), and its length."""
    return _get_output(guest, NnContext.output, context, index, buffer_ptr, buffer_len, n_written_ptr)


@_answering
def get_output_single(
    guest: NnGuest, context: int, index: int, buffer_ptr: int, buffer_len: int, n_written_ptr: int
) -> _Later | None:
    """Store the counts (output 1), or the last token's bytes (any other), and their length."""
    return _get_output(guest, NnContext.output_single, context, index, buffer_ptr, buffer_len, n_written_ptr)


def _get_output(
    guest: NnGuest,
    output: Callable[[NnContext, int, int], bytes],
    context: int,
    index: int,
    buffer_ptr: int,
    buffer_len: int,
    n_written_ptr: int,
) -> _Later | None:
    memory = guest.memory
    _within(memory, n_written_ptr, 4)
    _within(memory, buffer_ptr, buffer_len)
    nn = _nn(guest)

    def store() -> None:
        _store_output(memory, output(nn, context, index), buffer_ptr, buffer_len, n_written_ptr, nn.zero_buffer_compat)

    if not nn.must_count(context, index):
        store()
        return None

    async def count_and_store() -> None:
        await nn.count(context)
        store()

    return count_and_store


def _store_output(
    memory: GuestMemory, content: bytes, buffer_ptr: int, buffer_len: int, n_written_ptr: int, zero_buffer: bool
) -> None:
    if zero_buffer and buffer_len == 0:
        content, room = _for_reserved_room(memory, content, buffer_ptr)
    else:
        room = buffer_len
    if len(content) > room:
        memory.write_u32(n_written_ptr, len(content))
        raise NnError(NnErrno.TOO_LARGE, "")  # no reason, no line in the log: this is how guests ask for the size
    memory.write(buffer_ptr, content)
    memory.write_u32(n_written_ptr, len(content))


def _for_reserved_room(memory: GuestMemory, content: bytes, buffer_ptr: int) -> tuple[bytes, int]:
    """Return what is written for a buffer of length 0, and how much room there is for it; see ZERO_BUFFER_BYTES."""
    cut = content[:ZERO_BUFFER_BYTES]
    try:
        _within(memory, buffer_ptr, len(cut))
    except MemoryFaultError:
        return content, 0
    return cut, len(cut)


_HANDLERS: Final[tuple[Callable[..., int | Awaitable[int]], ...]] = (
    load,
    load_by_name,
    load_by_name_with_config,
    init_execution_context,
    set_input,
    compute,
    get_output,
    compute_single,
    get_output_single,
    fini_single,
    unload,
    finalize_execution_context,
)

_AT_ONCE: Final = frozenset({"init_execution_context", "unload"})

FUNCTIONS: Final[dict[str, HostFunction]] = {
    call.__name__: HostFunction(*SIGNATURES[call.__name__], call, call.__name__ not in _AT_ONCE) for call in _HANDLERS
}
