"""
``faas_v1`` as host functions: guest memory to values of ``faas.guest`` and back.

A handler takes ``guest`` and the call's integers, all unsigned, and returns an errno, or an awaitable of it where
something has to be waited for. Every range is checked as a whole, and every place for a result before anything is done:
a call that fails writes nothing. A guest that exports no memory traps.

Source: docs/abi.md, section faas_v1.
"""
# ruff: noqa: PLR0917 - the ABI fixes the parameters, and an engine calls by position

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Concatenate, Final, ParamSpec, Protocol

from faas.errors import FaasError, GuestTrapError
from faas.guest.errno import Errno, GuestError
from faas.guest.requests import MAX_REQUEST_BYTES
from faas.guest.session import (
    MAX_CURSOR_BYTES,
    MAX_HANDLES,
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    MAX_VALUE_BYTES,
    GuestSession,
    told,
)
from faas.guest.signatures import SIGNATURES
from faas.wasm.host import HostFunction
from faas.wasm.memory import GuestMemory, MemoryFaultError

MAX_READ_BYTES: Final = 1024 * 1024
"""What one ``response_read`` moves at most; it says how much it moved."""
MAX_WAIT_MS: Final = 7 * 86_400_000
"""A ``wait_any`` for as long or longer waits for as long as it takes."""
EXPECT_ABSENT: Final = 1
"""The one flag of ``kv_compare_and_set``."""
_U64: Final = 2**64 - 1


class ServiceGuest(Protocol):
    """What a handler needs of the instance that calls it; valid during the call, and while its awaitable runs."""

    @property
    def memory(self) -> GuestMemory:
        """The instance's linear memory."""

    @property
    def services(self) -> GuestSession | None:
        """What the invocation has open; None outside of one, as in the trial instance at deploy."""


_P = ParamSpec("_P")
_Later = Callable[[], Awaitable[None]]  # no coroutine yet: it may never be awaited
_Call = Callable[Concatenate[ServiceGuest, _P], _Later | None]
_Handler = Callable[Concatenate[ServiceGuest, _P], int | Awaitable[int]]


def _answering(call: _Call[_P]) -> _Handler[_P]:
    """Turn a handler that raises into one that answers: 0, or the errno of what was raised, now or later."""

    @wraps(call)
    def handler(guest: ServiceGuest, /, *args: _P.args, **kwargs: _P.kwargs) -> int | Awaitable[int]:
        try:
            later = call(guest, *args, **kwargs)
        except (GuestError, MemoryFaultError, FaasError) as error:
            return _errno(guest, call.__name__, error)
        return _later(guest, call.__name__, later) if later is not None else 0

    return handler


async def _later(guest: ServiceGuest, name: str, work: _Later) -> int:
    try:
        await work()
    except (GuestError, MemoryFaultError, FaasError) as error:
        return _errno(guest, name, error)
    return 0


def _errno(guest: ServiceGuest, name: str, error: GuestError | MemoryFaultError | FaasError) -> int:
    """
    Return the errno for *error*, which is logged.

    Raises: GuestTrapError for a guest without memory.
    """
    if isinstance(error, MemoryFaultError):
        _require_memory(guest.memory)
        found = GuestError(Errno.FAULT, "a range is not inside the guest's memory")
    else:
        found = told(error)
    if guest.services is not None:
        guest.services.report(name, found)
    return int(found.errno)


def _require_memory(memory: GuestMemory) -> None:
    try:
        memory.read(0, 0)
    except MemoryFaultError as exc:
        raise GuestTrapError("the module calls faas_v1 without a memory; export it as 'memory' and redeploy") from exc


def _session(guest: ServiceGuest) -> GuestSession:
    if guest.services is None:
        raise GuestError(Errno.UNAVAILABLE, "there is no request yet")
    return guest.services


def _within(memory: GuestMemory, ptr: int, length: int) -> None:
    """Check a range without copying it: where it ends has to be inside, or right behind the last byte."""
    memory.read(ptr + length, 0)


def _taken(memory: GuestMemory, ptr: int, length: int, most: int) -> bytes:
    """Return the bytes of a range that is wholly inside; at most one more than *most*, which says it is longer."""
    _within(memory, ptr, length)
    return memory.read(ptr, min(length, most + 1))


def _sized(memory: GuestMemory, ptr: int, length: int, most: int, what: str) -> bytes:
    """As ``_taken``, but what is longer than *most* is refused here."""
    taken = _taken(memory, ptr, length, most)
    if len(taken) > most:
        raise GuestError(Errno.TOO_LARGE, f"a {what} of {length} bytes is over {most}")
    return taken


async def _store(memory: GuestMemory, work: Callable[[], Awaitable[int]], ptr: int) -> None:
    memory.write_u32(ptr, await work())


# Results


@_answering
def result_read(guest: ServiceGuest, buffer_ptr: int, buffer_len: int, offset: int) -> None:
    """Copy *buffer_len* bytes of the last result, from *offset* on."""
    _within(guest.memory, buffer_ptr, buffer_len)
    guest.memory.write(buffer_ptr, _session(guest).result(offset, buffer_len))


# Keys and values


@_answering
def kv_open(guest: ServiceGuest, name_ptr: int, name_len: int, store_ptr: int) -> None:
    """Store a handle of a store."""
    memory = guest.memory
    _within(memory, store_ptr, 4)
    name = _taken(memory, name_ptr, name_len, MAX_NAME_BYTES)
    memory.write_u32(store_ptr, _session(guest).kv_open(name))


@_answering
def kv_get(guest: ServiceGuest, store: int, key_ptr: int, key_len: int, size_ptr: int) -> _Later:
    """Make a value the result, and store its length."""
    memory = guest.memory
    _within(memory, size_ptr, 4)
    key = _taken(memory, key_ptr, key_len, MAX_KEY_BYTES)
    return partial(_store, memory, partial(_session(guest).kv_get, store, key), size_ptr)


@_answering
def kv_set(
    guest: ServiceGuest, store: int, key_ptr: int, key_len: int, value_ptr: int, value_len: int, ttl_ms: int
) -> _Later:
    """Store a value under a key."""
    memory = guest.memory
    key = _taken(memory, key_ptr, key_len, MAX_KEY_BYTES)
    value = _sized(memory, value_ptr, value_len, MAX_VALUE_BYTES, "value")
    return partial(_session(guest).kv_set, store, key, value, ttl_ms)


@_answering
def kv_delete(guest: ServiceGuest, store: int, key_ptr: int, key_len: int) -> _Later:
    """Remove a key."""
    return partial(_session(guest).kv_delete, store, _taken(guest.memory, key_ptr, key_len, MAX_KEY_BYTES))


@_answering
def kv_list(
    guest: ServiceGuest,
    store: int,
    prefix_ptr: int,
    prefix_len: int,
    cursor_ptr: int,
    cursor_len: int,
    limit: int,
    size_ptr: int,
) -> _Later:
    """Make a page of keys the result, and store its length."""
    memory = guest.memory
    _within(memory, size_ptr, 4)
    prefix = _taken(memory, prefix_ptr, prefix_len, MAX_KEY_BYTES)
    cursor = _taken(memory, cursor_ptr, cursor_len, MAX_CURSOR_BYTES)
    return partial(_store, memory, partial(_session(guest).kv_list, store, prefix, cursor, limit), size_ptr)


@_answering
def kv_increment(guest: ServiceGuest, store: int, key_ptr: int, key_len: int, delta: int, sum_ptr: int) -> _Later:
    """Add to an integer, and store the sum; both are signed."""
    memory = guest.memory
    _within(memory, sum_ptr, 8)
    key = _taken(memory, key_ptr, key_len, MAX_KEY_BYTES)
    session = _session(guest)

    async def increment() -> None:
        total = await session.kv_increment(store, key, delta - 2**64 if delta >> 63 else delta)
        memory.write_u64(sum_ptr, total & _U64)

    return increment


@_answering
def kv_compare_and_set(
    guest: ServiceGuest,
    store: int,
    key_ptr: int,
    key_len: int,
    flags: int,
    expected_ptr: int,
    expected_len: int,
    value_ptr: int,
    value_len: int,
    ttl_ms: int,
) -> _Later:
    """Store a value where the expected one is, or none."""
    memory = guest.memory
    key = _taken(memory, key_ptr, key_len, MAX_KEY_BYTES)
    expected: bytes | None = _sized(memory, expected_ptr, expected_len, MAX_VALUE_BYTES, "value")
    value = _sized(memory, value_ptr, value_len, MAX_VALUE_BYTES, "value")
    if flags & ~EXPECT_ABSENT or (flags and expected):
        raise GuestError(Errno.INVALID, "flags are 0, or 1 without an expected value")
    if flags:
        expected = None
    return partial(_session(guest).kv_compare_and_set, store, key, expected, value, ttl_ms)


# Settings


@_answering
def config_get(guest: ServiceGuest, name_ptr: int, name_len: int, size_ptr: int) -> None:
    """Make a config value the result, and store its length."""
    memory = guest.memory
    _within(memory, size_ptr, 4)
    name = _taken(memory, name_ptr, name_len, MAX_NAME_BYTES)
    memory.write_u32(size_ptr, _session(guest).config_get(name))


@_answering
def secret_get(guest: ServiceGuest, name_ptr: int, name_len: int, size_ptr: int) -> None:
    """Make a secret the result, and store its length."""
    memory = guest.memory
    _within(memory, size_ptr, 4)
    name = _taken(memory, name_ptr, name_len, MAX_NAME_BYTES)
    memory.write_u32(size_ptr, _session(guest).secret_get(name))


# Requests


@_answering
def http_begin(guest: ServiceGuest, request_ptr: int, request_len: int, handle_ptr: int) -> _Later:
    """Begin an HTTP request, and store its handle."""
    memory = guest.memory
    _within(memory, handle_ptr, 4)
    request = _sized(memory, request_ptr, request_len, MAX_REQUEST_BYTES, "request")
    return partial(_store, memory, partial(_session(guest).http_begin, request), handle_ptr)


@_answering
def call_begin(guest: ServiceGuest, request_ptr: int, request_len: int, handle_ptr: int) -> _Later:
    """Begin a call of another function, and store its handle."""
    memory = guest.memory
    _within(memory, handle_ptr, 4)
    request = _sized(memory, request_ptr, request_len, MAX_REQUEST_BYTES, "request")
    return partial(_store, memory, partial(_session(guest).call_begin, request), handle_ptr)


@_answering
def job_enqueue(guest: ServiceGuest, request_ptr: int, request_len: int, size_ptr: int) -> _Later:
    """Enqueue a job, make its id the result, and store the id's length."""
    memory = guest.memory
    _within(memory, size_ptr, 4)
    request = _sized(memory, request_ptr, request_len, MAX_REQUEST_BYTES, "request")
    return partial(_store, memory, partial(_session(guest).job_enqueue, request), size_ptr)


@_answering
def response_head(guest: ServiceGuest, handle: int, size_ptr: int) -> _Later:
    """Wait for a response's head, make it the result, and store its length."""
    memory = guest.memory
    _within(memory, size_ptr, 4)
    return partial(_store, memory, partial(_session(guest).response_head, handle), size_ptr)


@_answering
def response_read(guest: ServiceGuest, handle: int, buffer_ptr: int, buffer_len: int, n_read_ptr: int) -> _Later | None:
    """Store the next bytes of a response's body, and how many they are; 0 at its end."""
    memory = guest.memory
    _within(memory, n_read_ptr, 4)
    _within(memory, buffer_ptr, buffer_len)
    session = _session(guest)
    n = min(buffer_len, MAX_READ_BYTES)

    def store(piece: bytes) -> None:
        memory.write(buffer_ptr, piece)
        memory.write_u32(n_read_ptr, len(piece))

    piece = session.read_nowait(handle, n)
    if piece is not None:
        store(piece)
        return None

    async def wait_and_store() -> None:
        store(await session.read(handle, n))

    return wait_and_store


@_answering
def wait_any(guest: ServiceGuest, handles_ptr: int, n_handles: int, timeout_ms: int, index_ptr: int) -> _Later | None:
    """Wait until one of some requests has something to say, and store its index."""
    memory = guest.memory
    _within(memory, index_ptr, 4)
    _within(memory, handles_ptr, 4 * n_handles)
    handles = memory.read_u32s(handles_ptr, min(n_handles, MAX_HANDLES + 1))
    session = _session(guest)
    index = session.ready(handles)
    if index is not None:
        memory.write_u32(index_ptr, index)
        return None
    timeout_s = None if timeout_ms >= MAX_WAIT_MS else timeout_ms / 1000
    return partial(_store, memory, partial(session.wait_any, handles, timeout_s), index_ptr)


@_answering
def close(guest: ServiceGuest, handle: int) -> _Later | None:
    """Forget a store, or end a request, whatever of it is left."""
    session = _session(guest)
    if session.is_store(handle):
        session.close_store(handle)
        return None
    return partial(session.close_request, handle)


_HANDLERS: Final[tuple[Callable[..., int | Awaitable[int]], ...]] = (
    result_read,
    kv_open,
    kv_get,
    kv_set,
    kv_delete,
    kv_list,
    kv_increment,
    kv_compare_and_set,
    config_get,
    secret_get,
    http_begin,
    call_begin,
    job_enqueue,
    response_head,
    response_read,
    wait_any,
    close,
)

_AT_ONCE: Final = frozenset({"result_read", "kv_open", "config_get", "secret_get"})

FUNCTIONS: Final[dict[str, HostFunction]] = {
    call.__name__: HostFunction(*SIGNATURES[call.__name__], call, call.__name__ not in _AT_ONCE) for call in _HANDLERS
}
