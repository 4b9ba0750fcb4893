"""The bodies that a guest writes, of ``wasi:http/types``: where their bytes go, and how they end."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, ClassVar, Final

from faas.errors import OutputLimitError
from faas.wasi.p2.io import OutputStreamResource, StreamClosedError, WaitableOutput
from faas.wasi.p2.outbound_types import HeaderList, HttpCodeError
from faas.wasi.p2.resources import Resource, WitError
from faas.wasi.streams import OutputStream

PIPE_BYTES: Final = 64 * 1024
"""What a request's body may be ahead of who sends it; a write that begins below may pass it."""


class _ClosedSink:
    """A sink that nobody drains."""

    __slots__ = ()

    full = False

    def write(self, data: bytes) -> int:
        raise StreamClosedError


_NOWHERE: Final = _ClosedSink()


class LengthSink:
    """A sink for exactly *expected* bytes, as announced; a write that would pass them is not taken at all."""

    __slots__ = ("_case", "expected", "inner", "written")

    def __init__(self, inner: OutputStream, expected: int, case: str) -> None:
        self.inner = inner
        self.expected = expected
        self.written = 0
        self._case = case

    @property
    def full(self) -> bool:
        """Whether the sink behind it is."""
        return self.inner.full

    def write(self, data: bytes) -> int:
        """Take *data*; raises HttpCodeError with the total so far if that is too much."""
        if self.written + len(data) > self.expected:
            self.written += len(data)
            raise HttpCodeError((self._case, self.written))
        taken = self.inner.write(data)
        self.written += taken
        return taken

    async def wait_writable(self) -> None:
        """Wait for the sink behind it, if that is one to wait for."""
        inner = self.inner
        if isinstance(inner, WaitableOutput):
            await inner.wait_writable()


class _Unsent:
    """
    What a guest writes to a response's body before it has answered with that response.

    All that one guest has written so is bounded as its output is, however many responses it makes.
    """

    __slots__ = ("_http", "content")

    full = False

    def __init__(self, http: Any) -> None:
        self._http = http
        self.content = bytearray()

    def write(self, data: bytes) -> int:
        http = self._http
        if http.kept_bytes + len(data) > http.max_output_bytes:
            raise OutputLimitError(
                "the guest wrote more to responses it has not set than its output may be; call response-outparam.set "
                "before writing the body, or raise limits.max_output_bytes in function.toml"
            )
        http.kept_bytes += len(data)
        self.content += data
        return len(data)

    def forget(self) -> None:
        """Keep nothing any more."""
        self._http.kept_bytes -= len(self.content)
        self.content = bytearray()


class OutgoingBody(Resource):
    """
    An ``outgoing-body``: its stream is its child, so neither ``finish`` nor a drop may come before the stream's drop.

    A body that is dropped unfinished is broken off, as in wasmtime.
    """

    __slots__ = ("_counter", "_ended", "_sink", "_stream")

    SIZE: ClassVar[str]
    """The case of error-code for a body that is not as long as its ``content-length`` announced."""
    _counter: LengthSink | None
    """What is before the sink if a length was announced."""
    _sink: OutputStream | None
    """Where the bytes go; None: not known yet."""
    _stream: OutputStreamResource | None
    """The stream, once the guest has asked for it."""
    _ended: tuple[bool, HeaderList | None] | None
    """Whether it ended well, and with which trailers."""

    def write(self, guest: Any) -> OutputStreamResource:
        """Return the stream the first time; later raise a WitError."""
        if self._stream is not None:
            raise WitError
        stream = self._stream = OutputStreamResource(self._sink or self._keep(guest), self)
        return stream

    def finish(self, trailers: HeaderList | None) -> None:
        """
        End the body well.

        Raises: GuestTrapError while the stream has not been dropped; WitError with an error-code if the length is not
        the announced one, and the body is broken off then.
        """
        if self.children:
            self.leave()
        counter = self._counter
        if counter is not None and counter.written != counter.expected:
            self._end(False, None)
            raise WitError((self.SIZE, counter.written))
        self._end(True, trailers)

    def drop(self) -> None:
        """Break the body off, if it was not finished."""
        super().drop()
        if self._ended is None:
            self._end(self._complete_unfinished(), None)

    def _complete_unfinished(self) -> bool:
        """Return whether a body that was dropped unfinished ends well all the same."""
        return False

    def _keep(self, guest: Any) -> OutputStream:
        """Return what keeps the bytes while it is not known where they go."""
        raise NotImplementedError

    def _end(self, well: bool, trailers: HeaderList | None) -> None:
        raise NotImplementedError


class ResponseBody(OutgoingBody):
    """
    The body of a response: it goes to the gateway once the guest has answered, and is kept until then.

    A guest that returns without finishing or dropping it ends it well, as in wasmtime.
    """

    __slots__ = ("_http",)

    SIZE = "HTTP-response-body-size"

    def __init__(self, expected: int | None) -> None:
        # Not super().__init__: this is made for each request, and never has a parent.
        self.children = 0
        self.parent = None
        self._counter = None if expected is None else LengthSink(_NOWHERE, expected, self.SIZE)
        self._sink = self._stream = self._ended = None
        self._http: Any = None

    def attach(self, http: Any, sink: OutputStream) -> None:
        """Send what was kept, and all that comes, to *sink*; the guest has answered with this body."""
        self._http = http
        counter = self._counter
        kept = self._sink if counter is None else counter.inner
        if type(kept) is _Unsent:
            left = bytes(kept.content)
            while left:
                left = left[sink.write(left) :]
        self._lead_to(sink)
        if self._ended is not None:
            self._end(*self._ended)

    def abandon(self) -> None:
        """Let all that the guest writes fail as ``closed``: it has dropped the response."""
        self._lead_to(_NOWHERE)

    def _lead_to(self, sink: OutputStream) -> None:
        counter = self._counter
        before = self._sink if counter is None else counter.inner
        if type(before) is _Unsent:
            before.forget()
        if counter is not None:
            counter.inner = sink
            sink = counter
        self._sink = sink
        stream = self._stream
        if stream is not None and stream.sink is not None:
            stream.sink = sink

    def _keep(self, guest: Any) -> OutputStream:
        self._lead_to(_Unsent(guest.http))
        assert self._sink is not None
        return self._sink

    def _end(self, well: bool, trailers: HeaderList | None) -> None:
        self._ended = (well, trailers)
        http = self._http
        if http is None:
            return  # until the guest answers
        if not well:
            http.on_abort()
            return
        if trailers:
            http.on_trailers(trailers)
        http.on_finish()

    def _complete_unfinished(self) -> bool:
        counter = self._counter
        complete = counter is None or counter.written == counter.expected
        return complete and self._http is not None and self._http.returned


class RequestPipe:
    """
    From a guest that writes a request's body to who sends it: an OutputStream at one end, a BodySource at the other.

    Thread: ``write``, ``finish`` and ``abort`` wherever the guest runs, all others on the loop, at the same time.
    """

    __slots__ = (
        "_aborted", "_among", "_closed", "_ended", "_parts", "_reader", "_taken_bytes", "_trailers", "_writer",
        "_written_bytes",
    )  # fmt: skip

    def __init__(self, among: set[RequestPipe] | None = None) -> None:
        """Args: *among* has it until it is closed."""
        self._among = among
        if among is not None:
            among.add(self)
        self._parts: deque[bytes] = deque()
        # Two counts, so that each is changed by one thread only.
        self._written_bytes = 0
        self._taken_bytes = 0
        self._ended = False
        self._aborted = False
        self._closed = False
        self._trailers: HeaderList | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # the guest's end

    @property
    def full(self) -> bool:
        """Whether the guest should wait; never once it is closed."""
        return self._written_bytes - self._taken_bytes >= PIPE_BYTES and not self._closed

    def write(self, data: bytes) -> int:
        """Keep all of *data*; raises StreamClosedError if nobody will take it."""
        if self._closed:
            raise StreamClosedError
        self._parts.append(data)
        self._written_bytes += len(data)
        self._wake_reader()
        return len(data)

    async def wait_writable(self) -> None:
        """Return once the pipe is not full, or closed."""
        while self.full:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    def finish(self, trailers: HeaderList | None) -> None:
        """End the body well."""
        self._trailers = trailers
        self._ended = True
        self._wake_reader()

    def abort(self) -> None:
        """Have the request broken off."""
        self._aborted = True
        self._wake_reader()

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.get_loop().call_soon_threadsafe(_wake, reader)

    # the sender's end

    async def next_chunk(self) -> bytes:
        """Return what there is, once there is something; ``b""`` at the end; raises HttpCodeError if broken off."""
        parts = self._parts
        while True:
            aborted, ended = self._aborted, self._ended  # read before the parts: what is written comes before the end
            if aborted:
                raise HttpCodeError(("HTTP-protocol-error", None))
            if parts:
                return self._take()
            if ended or self._closed:
                return b""
            reader = self._reader = asyncio.get_running_loop().create_future()
            if parts or self._aborted or self._ended:  # what came while we looked did not know whom to wake
                self._reader = None
                continue
            await reader

    def trailers(self) -> HeaderList | None:
        """Return what ``finish`` was given."""
        return self._trailers

    def close(self) -> None:
        """Take no more."""
        self._closed = True
        self._parts.clear()
        if self._among is not None:
            self._among.discard(self)
        self._wake_writer()

    def _take(self) -> bytes:
        parts = self._parts
        taken = [parts.popleft() for _ in range(len(parts))]
        chunk = taken[0] if len(taken) == 1 else b"".join(taken)
        self._taken_bytes += len(chunk)
        self._wake_writer()
        return chunk

    def _wake_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            _wake(writer)


class PipedBody(OutgoingBody):
    """The body of an outbound request."""

    __slots__ = ("pipe",)

    SIZE = "HTTP-request-body-size"

    def __init__(self, expected: int | None, among: set[RequestPipe] | None = None) -> None:
        """Args: *among* has its pipe until that is closed."""
        super().__init__()
        pipe = self.pipe = RequestPipe(among)
        self._counter = None if expected is None else LengthSink(pipe, expected, self.SIZE)
        self._sink = self._counter or pipe
        self._stream = self._ended = None

    def _end(self, well: bool, trailers: HeaderList | None) -> None:
        self._ended = (well, trailers)
        if well:
            self.pipe.finish(trailers)
        else:
            self.pipe.abort()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
