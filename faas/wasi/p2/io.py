"""
``wasi:io``: errors and byte streams, over the sources and sinks of ``faas.wasi.streams``.

A sink is drained while its guest is suspended: ``Fiber.on_pause`` comes before whatever the guest waits for. So a guest
that waits for room in a plain sink has it as soon as it waits; a sink that is drained by somebody else says when there
is room, as ``WaitableOutput``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

from faas.errors import GuestTrapError
from faas.wasi.p2 import poll
from faas.wasi.p2.lookahead import MAX_READ_BYTES, Lookahead
from faas.wasi.p2.poll import Pollable, StreamFailedError, Waiting
from faas.wasi.p2.resources import ComponentFunction, Resource, WitError
from faas.wasi.streams import EmptyInput, InputStream, OutputStream

WRITE_BUDGET: Final = 64 * 1024
"""What ``check-write`` permits while there is room."""
MAX_BLOCKING_WRITE_BYTES: Final = 4096

_CLOSED: Final = ("closed", None)
_NOTHING: Final = EmptyInput()
_ZEROES: Final = bytes(WRITE_BUDGET)


class StreamClosedError(Exception):
    """What a sink raises when nobody will take anything any more; the guest sees ``closed``."""


@runtime_checkable
class WaitableOutput(Protocol):
    """An OutputStream that is not drained by its guest's pauses: it says itself when there is room."""

    async def wait_writable(self) -> None:
        """Return once the stream is not full, or closed."""


class IoError(Resource):
    """An ``error``: why the last operation of a stream failed."""

    __slots__ = ("cause",)

    def __init__(self, cause: StreamFailedError) -> None:
        super().__init__()
        self.cause = cause


class InputStreamResource(Resource):
    """An ``input-stream`` over *source*; its pollables are its children."""

    __slots__ = ("_ahead", "_failure", "_source")

    def __init__(self, source: InputStream, parent: Resource | None = None) -> None:
        super().__init__(parent)
        self._source = source
        self._ahead: bytes | None = None
        """What ``ready`` has read before the guest did; ``b""``: the end was seen."""
        self._failure: StreamFailedError | None = None

    def ready(self) -> bool:
        """Return whether a read has something to say: bytes, the end, or a failure."""
        if self._ahead is not None or self._failure is not None:
            return True
        source = self._source
        try:
            if type(source) is Lookahead:
                return source.ready()
            self._ahead = source.read_nowait(MAX_READ_BYTES)
        except StreamFailedError as exc:
            self._failure = exc
            return True
        return self._ahead is not None

    async def wait(self) -> None:
        """Return once ``ready``."""
        while not self.ready():
            try:
                await self._source.wait_readable()
            except StreamFailedError as exc:
                self._failure = exc

    def read(self, length: int) -> bytes:
        """
        Return what is there, at most *length* bytes; ``b""`` if that is nothing yet.

        Raises: WitError, a ``stream-error``: ``last-operation-failed`` once, ``closed`` at the end and from then on.
        """
        if self._failure is not None:
            raise self._failed(self._failure)
        ahead = self._ahead
        if ahead is None:
            if not length:
                return b""
            try:
                ahead = self._source.read_nowait(min(length, MAX_READ_BYTES))
            except StreamFailedError as exc:
                raise self._failed(exc) from exc
            if ahead is None:
                return b""
            if not ahead:
                self._ahead = b""
                raise WitError(_CLOSED)
            return ahead
        if not ahead:
            raise WitError(_CLOSED)
        if length:
            self._ahead = ahead[length:] or None
        return ahead[:length]

    async def wait_and_read(self, length: int) -> bytes:
        """Return what ``read`` does once there is something to say."""
        await self.wait()
        return self.read(length)

    def _failed(self, exc: StreamFailedError) -> WitError:
        self._failure = None
        self._source = _NOTHING
        self._ahead = b""
        return WitError(("last-operation-failed", IoError(exc)))


class OutputStreamResource(Resource):
    """An ``output-stream`` over *sink*; None: it is closed. Its pollables are its children."""

    __slots__ = ("permitted", "sink")

    def __init__(self, sink: OutputStream | None, parent: Resource | None = None) -> None:
        # Not super().__init__: this is made for each request.
        self.children = 0
        self.parent = parent
        if parent is not None:
            parent.children += 1
        self.sink = sink
        self.permitted = WRITE_BUDGET
        """What is left of the last permit; a guest that has not asked yet may write what it would have got."""

    def ready(self) -> bool:
        """Return whether ``check-write`` would not answer 0."""
        sink = self.sink
        return sink is None or not sink.full

    async def wait(self) -> None:
        """Return once there is room, or the stream is closed."""
        sink = self.sink
        if isinstance(sink, WaitableOutput):
            await sink.wait_writable()

    def permit(self) -> int:
        """Permit to write, and return how much; raises WitError if the stream is closed."""
        sink = self.sink
        if sink is None:
            raise WitError(_CLOSED)
        permitted = self.permitted = 0 if sink.full else WRITE_BUDGET
        return permitted

    def use_permit(self, length: int) -> None:
        """Take *length* off what is permitted; raises GuestTrapError if that is too much, but not once it is closed."""
        self.permitted -= length
        if self.permitted < 0 and self.sink is not None:
            raise GuestTrapError(
                f"the guest wrote {length} bytes, more than check-write permits; ask it before each write, and write "
                "no more"
            )

    def write(self, contents: bytes) -> None:
        """
        Write all of *contents*, whatever was permitted.

        Raises: WitError, a ``stream-error``; what the sink raises otherwise ends the invocation.
        """
        sink = self.sink
        if sink is None:
            raise WitError(_CLOSED)
        left = len(contents)
        try:
            while left:
                taken = sink.write(contents)
                left -= taken
                if left:
                    contents = contents[taken:]
        except StreamFailedError as exc:
            self.sink = None
            raise WitError(("last-operation-failed", IoError(exc))) from exc
        except StreamClosedError as exc:
            self.sink = None
            raise WitError(_CLOSED) from exc

    def check(self) -> None:
        """Raise WitError if the stream is closed."""
        if self.sink is None:
            raise WitError(_CLOSED)

    async def write_when_ready(self, contents: bytes) -> None:
        """Write *contents* once there is room, and return when there is room again."""
        await self.wait()
        self.write(contents)
        await self.flushed()

    async def flushed(self) -> None:
        """Return once there is room; raises WitError if the stream was closed meanwhile."""
        if not self.ready():
            await self.wait()
        self.check()


# wasi:io/error


def error_to_debug_string(_guest: Any, self: IoError) -> str:
    """Return a text for people; the WIT forbids to depend on it."""
    return str(self.cause)


# wasi:io/streams: input-stream


def input_stream_read(_guest: Any, self: InputStreamResource, length: int) -> bytes:
    """Return what is there, at most *length* bytes, ``b""`` if that is nothing yet; never waits."""
    return self.read(length)


def input_stream_blocking_read(_guest: Any, self: InputStreamResource, length: int) -> bytes | Awaitable[bytes]:
    """Return at least one byte, or raise as ``read``; waits for it."""
    if self.ready():
        return self.read(length)
    return Waiting(partial(self.wait_and_read, length))


def input_stream_skip(_guest: Any, self: InputStreamResource, length: int) -> int:
    """Read as ``read`` and return only how many bytes that were."""
    return len(self.read(length))


def input_stream_blocking_skip(_guest: Any, self: InputStreamResource, length: int) -> int | Awaitable[int]:
    """Read as ``blocking-read`` and return only how many bytes that were."""
    if self.ready():
        return len(self.read(length))
    return Waiting(partial(_wait_and_skip, self, length))


async def _wait_and_skip(stream: InputStreamResource, length: int) -> int:
    return len(await stream.wait_and_read(length))


def input_stream_subscribe(_guest: Any, self: InputStreamResource) -> Pollable:
    """Return what is ready once a read has something to say; a child of the stream, which can't be dropped before."""
    return Pollable(self, self)


# wasi:io/streams: output-stream


def output_stream_check_write(_guest: Any, self: OutputStreamResource) -> int:
    """Return how many bytes ``write`` may be given now: 0 while the stream is full."""
    return self.permit()


def output_stream_write(_guest: Any, self: OutputStreamResource, contents: bytes) -> None:
    """Write all of *contents*; a GuestTrapError if that is more than ``check-write`` permitted, as the WIT has it."""
    self.use_permit(len(contents))
    self.write(contents)


def output_stream_write_zeroes(_guest: Any, self: OutputStreamResource, length: int) -> None:
    """Write *length* zero bytes, under the rule of ``write``."""
    self.use_permit(length)
    self.write(_ZEROES[:length])


def output_stream_blocking_write_and_flush(
    _guest: Any, self: OutputStreamResource, contents: bytes
) -> Awaitable[None] | None:
    """
    Write *contents*, and return once the stream has room again; a full stream is waited for before.

    Raises: GuestTrapError for more than MAX_BLOCKING_WRITE_BYTES, as wasmtime traps.
    """
    if len(contents) > MAX_BLOCKING_WRITE_BYTES:
        raise GuestTrapError(
            f"the guest gave {len(contents)} bytes to a blocking write, which takes {MAX_BLOCKING_WRITE_BYTES}; "
            "write in pieces, or use check-write and write"
        )
    sink = self.sink
    if sink is not None and sink.full:
        return Waiting(partial(self.write_when_ready, contents))
    self.write(contents)
    return Waiting(self.flushed) if sink is not None and sink.full else None


def output_stream_blocking_write_zeroes_and_flush(
    guest: Any, self: OutputStreamResource, length: int
) -> Awaitable[None] | None:
    """Write *length* zero bytes as ``blocking-write-and-flush`` does."""
    return output_stream_blocking_write_and_flush(guest, self, _ZEROES[: min(length, MAX_BLOCKING_WRITE_BYTES + 1)])


def output_stream_flush(_guest: Any, self: OutputStreamResource) -> None:
    """
    Do nothing but tell whether the stream is closed: all that was written goes out when the guest next pauses.

    As in wasmtime's HTTP bodies, ``check-write`` need not answer 0 until then.
    """
    self.check()


def output_stream_blocking_flush(_guest: Any, self: OutputStreamResource) -> Awaitable[None] | None:
    """Return once there is room; see ``flush``."""
    self.check()
    return None if self.ready() else Waiting(self.flushed)


def output_stream_subscribe(_guest: Any, self: OutputStreamResource) -> Pollable:
    """Return what is ready once ``check-write`` is not 0; a child of the stream, which can't be dropped before."""
    return Pollable(self, self)


def output_stream_splice(_guest: Any, self: OutputStreamResource, src: InputStreamResource, length: int) -> int:
    """Move at most *length* bytes that are there to where there is room; return how many; never waits."""
    length = min(length, self.permit())
    if not length:
        return 0
    contents = src.read(length)
    self.write(contents)
    return len(contents)


def output_stream_blocking_splice(
    _guest: Any, self: OutputStreamResource, src: InputStreamResource, length: int
) -> int | Awaitable[int]:
    """Move bytes as ``splice`` does, once there is room and something to read."""
    if self.ready() and src.ready():
        return output_stream_splice(_guest, self, src, length)
    return Waiting(partial(_wait_and_splice, self, src, length))


async def _wait_and_splice(out: OutputStreamResource, src: InputStreamResource, length: int) -> int:
    if not out.ready():
        await out.wait()
    out.check()
    contents = await src.wait_and_read(min(length, WRITE_BUDGET))
    out.write(contents)
    return len(contents)


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    **poll.FUNCTIONS,
    "wasi:io/error": {"[method]error.to-debug-string": ComponentFunction(error_to_debug_string)},
    "wasi:io/streams": {
        "[method]input-stream.read": ComponentFunction(input_stream_read),
        "[method]input-stream.blocking-read": ComponentFunction(input_stream_blocking_read, may_suspend=True),
        "[method]input-stream.skip": ComponentFunction(input_stream_skip),
        "[method]input-stream.blocking-skip": ComponentFunction(input_stream_blocking_skip, may_suspend=True),
        "[method]input-stream.subscribe": ComponentFunction(input_stream_subscribe),
        "[method]output-stream.check-write": ComponentFunction(output_stream_check_write),
        "[method]output-stream.write": ComponentFunction(output_stream_write),
        "[method]output-stream.blocking-write-and-flush": ComponentFunction(
            output_stream_blocking_write_and_flush, may_suspend=True
        ),
        "[method]output-stream.flush": ComponentFunction(output_stream_flush),
        "[method]output-stream.blocking-flush": ComponentFunction(output_stream_blocking_flush, may_suspend=True),
        "[method]output-stream.subscribe": ComponentFunction(output_stream_subscribe),
        "[method]output-stream.write-zeroes": ComponentFunction(output_stream_write_zeroes),
        "[method]output-stream.blocking-write-zeroes-and-flush": ComponentFunction(
            output_stream_blocking_write_zeroes_and_flush, may_suspend=True
        ),
        "[method]output-stream.splice": ComponentFunction(output_stream_splice),
        "[method]output-stream.blocking-splice": ComponentFunction(output_stream_blocking_splice, may_suspend=True),
    },
}
