"""Promises of wasi:io/streams: reading and writing never wait but where the WIT says blocking, and fail as it says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from faas.errors import BodyTooLargeError, GuestTrapError, OutputLimitError
from faas.wasi.p2 import io
from faas.wasi.p2.io import (
    MAX_BLOCKING_WRITE_BYTES,
    WRITE_BUDGET,
    InputStreamResource,
    OutputStreamResource,
    StreamClosedError,
)
from faas.wasi.p2.lookahead import MAX_READ_BYTES, Lookahead
from faas.wasi.p2.poll import StreamFailedError
from faas.wasi.p2.resources import WitError
from faas.wasi.streams import BytesInput, CollectingOutput, EmptyInput, LineOutput

STREAMS = io.FUNCTIONS["wasi:io/streams"]
CLOSED = ("closed", None)


def call(name: str, *args: Any) -> Any:
    return STREAMS[f"[method]{name}"].call(None, *args)


def error(name: str, *args: Any) -> Any:
    with pytest.raises(WitError) as caught:
        call(name, *args)
    return caught.value.value


def debug_string(failed: Any) -> str:
    case, handle = failed
    assert case == "last-operation-failed"
    return io.FUNCTIONS["wasi:io/error"]["[method]error.to-debug-string"].call(None, handle)


class SlowInput:
    """An input whose bytes come when a test says so."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.failure: Exception | None = None
        self.come = asyncio.Event()
        self.awaited = asyncio.Event()

    def feed(self, *chunks: bytes) -> None:
        self.chunks += chunks
        self.come.set()

    def fail(self, failure: Exception) -> None:
        self.failure = failure
        self.come.set()

    def read_nowait(self, n: int) -> bytes | None:
        assert n >= 1
        if not self.chunks:
            if self.failure is not None:
                raise self.failure
            return None
        chunk = self.chunks[0]
        if chunk:
            self.chunks[0] = chunk[n:]
            if not self.chunks[0]:
                del self.chunks[0]
        return chunk[:n]

    async def wait_readable(self) -> None:
        self.awaited.set()
        await self.come.wait()
        if self.failure is not None and not self.chunks:
            raise self.failure


class PlainSink(CollectingOutput):
    """A sink that its guest's pauses drain."""

    full = False


class SlowSink(CollectingOutput):
    """A sink that says itself when there is room."""

    def __init__(self) -> None:
        super().__init__()
        self.full = True
        self.closed = False
        self.failure: Exception | None = None
        self.room = asyncio.Event()
        self.awaited = asyncio.Event()

    def drain(self) -> None:
        self.full = False
        self.room.set()

    def write(self, data: bytes) -> int:
        if self.closed:
            raise StreamClosedError
        if self.failure is not None:
            raise self.failure
        return super().write(data)

    async def wait_writable(self) -> None:
        self.awaited.set()
        await self.room.wait()


# reading


def test_read_returns_what_is_there_and_nothing_if_that_is_nothing() -> None:
    source = SlowInput()
    stream = InputStreamResource(source)
    assert call("input-stream.read", stream, 10) == b""
    source.feed(b"abcdef")
    assert call("input-stream.read", stream, 4) == b"abcd"
    assert call("input-stream.read", stream, 4) == b"ef"
    assert call("input-stream.read", stream, 4) == b""


def test_the_end_is_closed_from_then_on() -> None:
    stream = InputStreamResource(BytesInput(b"ab"))
    assert call("input-stream.read", stream, 9) == b"ab"
    for _ in range(2):
        assert error("input-stream.read", stream, 9) == CLOSED
        assert error("input-stream.blocking-read", stream, 9) == CLOSED
        assert error("input-stream.skip", stream, 9) == CLOSED
        assert error("input-stream.blocking-skip", stream, 9) == CLOSED
        assert error("input-stream.read", stream, 0) == CLOSED


def test_reading_no_bytes_takes_none() -> None:
    stream = InputStreamResource(BytesInput(b"ab"))
    assert call("input-stream.read", stream, 0) == b""
    assert call("input-stream.blocking-read", stream, 0) == b""
    assert call("input-stream.read", stream, 2**64 - 1) == b"ab"


@pytest.mark.parametrize("looked", [False, True])
def test_one_read_is_bounded(looked: bool) -> None:
    stream = InputStreamResource(BytesInput(bytes(MAX_READ_BYTES + 1)))
    if looked:
        assert stream.ready()
    assert len(call("input-stream.read", stream, 2**64 - 1)) == MAX_READ_BYTES
    assert len(call("input-stream.read", stream, 2**64 - 1)) == 1


def test_a_look_loses_nothing() -> None:
    stream = InputStreamResource(BytesInput(b"abc"))
    pollable = call("input-stream.subscribe", stream)
    assert pollable.source.ready()
    assert call("input-stream.read", stream, 1) == b"a"
    assert pollable.source.ready()
    assert call("input-stream.read", stream, 9) == b"bc"
    assert pollable.source.ready()
    assert error("input-stream.read", stream, 1) == CLOSED


def test_skip_tells_how_many() -> None:
    stream = InputStreamResource(BytesInput(b"abcdef"))
    assert call("input-stream.skip", stream, 2) == 2
    assert call("input-stream.blocking-skip", stream, 3) == 3
    assert call("input-stream.read", stream, 9) == b"f"


@pytest.mark.parametrize(("name", "result"), [("blocking-read", b"abc"), ("blocking-skip", 3)])
async def test_blocking_waits_for_the_first_byte(name: str, result: Any) -> None:
    source = SlowInput()
    task = asyncio.ensure_future(call(f"input-stream.{name}", InputStreamResource(source), 10))
    await source.awaited.wait()
    source.feed(b"abc")
    assert await task == result


@pytest.mark.parametrize("name", ["blocking-read", "blocking-skip"])
async def test_blocking_at_the_end_fails_as_closed(name: str) -> None:
    source = SlowInput()
    task = asyncio.ensure_future(call(f"input-stream.{name}", InputStreamResource(source), 10))
    await source.awaited.wait()
    source.feed(b"")
    with pytest.raises(WitError) as caught:
        await task
    assert caught.value.value == CLOSED


def test_a_failure_is_told_once_and_then_closed() -> None:
    source = SlowInput()
    stream = InputStreamResource(source)
    source.fail(StreamFailedError("the cable is cut"))
    assert debug_string(error("input-stream.read", stream, 1)) == "the cable is cut"
    assert error("input-stream.read", stream, 1) == CLOSED
    assert stream.ready()


async def test_a_failure_while_it_waits_makes_the_stream_ready_and_the_read_fail() -> None:
    source = SlowInput()
    stream = InputStreamResource(source)
    pollable = call("input-stream.subscribe", stream)
    task = asyncio.ensure_future(pollable.source.wait())
    await source.awaited.wait()
    source.fail(StreamFailedError("reset"))
    await task
    assert pollable.source.ready()
    assert debug_string(error("input-stream.blocking-read", stream, 1)) == "reset"
    assert error("input-stream.blocking-read", stream, 1) == CLOSED


async def test_what_ends_the_invocation_passes_through_a_read() -> None:
    source = SlowInput()
    source.fail(BodyTooLargeError("too large"))
    with pytest.raises(BodyTooLargeError):
        call("input-stream.read", InputStreamResource(source), 1)
    with pytest.raises(BodyTooLargeError):
        await InputStreamResource(source).wait_and_read(1)


def test_a_stream_can_not_be_dropped_before_its_pollables() -> None:
    for stream, name in (
        (InputStreamResource(EmptyInput()), "input-stream.subscribe"),
        (OutputStreamResource(PlainSink()), "output-stream.subscribe"),
    ):
        pollable = call(name, stream)
        with pytest.raises(GuestTrapError, match="drop those first"):
            stream.drop()
        pollable.drop()
        stream.drop()


def test_handles_of_one_source_share_what_one_of_them_looked_at() -> None:
    shared = Lookahead(BytesInput(b"abcd"))
    first, second = InputStreamResource(shared), InputStreamResource(shared)
    assert first.ready()
    assert call("input-stream.read", second, 3) == b"abc"
    assert call("input-stream.read", first, 3) == b"d"
    assert first.ready()
    assert error("input-stream.read", second, 1) == CLOSED


async def test_handles_of_one_source_may_wait_at_the_same_time() -> None:
    class Strict(SlowInput):
        n_waiting = 0

        async def wait_readable(self) -> None:
            assert self.n_waiting == 0, "a request's body is waited for by one at a time"
            self.n_waiting += 1
            await super().wait_readable()
            self.n_waiting -= 1

    source = Strict()
    shared = Lookahead(source)
    handles = [InputStreamResource(shared), InputStreamResource(shared)]
    tasks = [asyncio.ensure_future(handle.wait()) for handle in handles]
    await source.awaited.wait()
    source.feed(b"ab")
    await asyncio.gather(*tasks)
    assert [call("input-stream.read", handle, 1) for handle in handles] == [b"a", b"b"]


# writing


def test_check_write_permits_while_there_is_room() -> None:
    sink = PlainSink()
    stream = OutputStreamResource(sink)
    assert call("output-stream.check-write", stream) == WRITE_BUDGET
    sink.full = True
    assert call("output-stream.check-write", stream) == 0


def test_write_takes_all_that_is_permitted() -> None:
    sink = PlainSink()
    stream = OutputStreamResource(sink)
    call("output-stream.write", stream, b"x" * WRITE_BUDGET)
    call("output-stream.write", stream, b"")
    call("output-stream.check-write", stream)
    call("output-stream.write-zeroes", stream, WRITE_BUDGET)
    assert sink.getvalue() == b"x" * WRITE_BUDGET + bytes(WRITE_BUDGET)


@pytest.mark.parametrize("name", ["write", "write-zeroes"])
@pytest.mark.parametrize("full", [False, True])
def test_writing_more_than_permitted_traps(name: str, full: bool) -> None:
    sink = PlainSink()
    sink.full = full
    stream = OutputStreamResource(sink)
    length = call("output-stream.check-write", stream) + 1
    with pytest.raises(GuestTrapError, match="check-write permits"):
        call(f"output-stream.{name}", stream, length if name == "write-zeroes" else bytes(length))
    assert not sink.chunks


def test_a_permit_is_used_up_by_what_is_written() -> None:
    sink = PlainSink()
    stream = OutputStreamResource(sink)
    for _ in range(2):
        assert call("output-stream.check-write", stream) == WRITE_BUDGET
        call("output-stream.write", stream, bytes(WRITE_BUDGET - 1))
        call("output-stream.write-zeroes", stream, 1)
    call("output-stream.blocking-write-and-flush", stream, b"needs none")
    with pytest.raises(GuestTrapError, match="check-write permits"):
        call("output-stream.write", stream, b"x")
    assert len(sink.getvalue()) == 2 * WRITE_BUDGET + 10


def test_a_sink_that_takes_pieces_gets_all_of_them() -> None:
    lines: list[bytes] = []
    sink = LineOutput(lines.append, 1 << 20, 100)
    call("output-stream.write", OutputStreamResource(sink), b"a\n" * 1000)
    assert lines == [b"a"] * 1000


def test_a_blocking_write_to_a_sink_with_room_does_not_wait() -> None:
    sink = PlainSink()
    stream = OutputStreamResource(sink)
    assert call("output-stream.blocking-write-and-flush", stream, b"a" * MAX_BLOCKING_WRITE_BYTES) is None
    assert call("output-stream.blocking-write-zeroes-and-flush", stream, MAX_BLOCKING_WRITE_BYTES) is None
    assert sink.getvalue() == b"a" * MAX_BLOCKING_WRITE_BYTES + bytes(MAX_BLOCKING_WRITE_BYTES)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("blocking-write-and-flush", bytes(MAX_BLOCKING_WRITE_BYTES + 1)),
        ("blocking-write-zeroes-and-flush", MAX_BLOCKING_WRITE_BYTES + 1),
        ("blocking-write-zeroes-and-flush", 2**64 - 1),
    ],
)
def test_a_blocking_write_of_more_than_4096_bytes_traps(name: str, argument: Any) -> None:
    sink = PlainSink()
    with pytest.raises(GuestTrapError, match="4096"):
        call(f"output-stream.{name}", OutputStreamResource(sink), argument)
    assert not sink.chunks


async def test_a_full_plain_sink_is_written_after_the_pause_that_drains_it() -> None:
    sink = PlainSink()
    sink.full = True
    writing = call("output-stream.blocking-write-and-flush", OutputStreamResource(sink), b"abc")
    assert not sink.chunks
    sink.full = False  # what the gateway's pause does
    await writing
    assert sink.getvalue() == b"abc"


async def test_a_blocking_write_that_fills_a_sink_waits_for_room_again() -> None:
    class Filling(SlowSink):
        def write(self, data: bytes) -> int:
            self.full = True
            return super().write(data)

    sink = Filling()
    sink.full = False
    stream = OutputStreamResource(sink)
    task = asyncio.ensure_future(call("output-stream.blocking-write-and-flush", stream, b"abc"))
    await sink.awaited.wait()
    assert sink.getvalue() == b"abc"
    assert not task.done()
    sink.drain()
    await task


async def test_a_sink_that_is_drained_by_others_is_waited_for() -> None:
    sink = SlowSink()
    stream = OutputStreamResource(sink)
    pollable = call("output-stream.subscribe", stream)
    assert not pollable.source.ready()
    task = asyncio.ensure_future(call("output-stream.blocking-write-and-flush", stream, b"abc"))
    await sink.awaited.wait()
    assert not sink.chunks
    sink.drain()
    await task
    assert sink.getvalue() == b"abc"
    assert pollable.source.ready()


async def test_blocking_flush_waits_for_room_only() -> None:
    sink = SlowSink()
    stream = OutputStreamResource(sink)
    task = asyncio.ensure_future(call("output-stream.blocking-flush", stream))
    await sink.awaited.wait()
    sink.drain()
    assert await task is None
    assert call("output-stream.blocking-flush", stream) is None


OPERATIONS = [
    ("check-write", ()),
    ("write", (b"x",)),
    ("write-zeroes", (1,)),
    ("blocking-write-and-flush", (b"x",)),
    ("blocking-write-zeroes-and-flush", (1,)),
    ("flush", ()),
    ("blocking-flush", ()),
    ("splice", (InputStreamResource(BytesInput(b"abc")), 1)),
    ("blocking-splice", (InputStreamResource(BytesInput(b"abc")), 1)),
]


@pytest.mark.parametrize(("name", "args"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_every_operation_on_a_closed_stream_says_so(name: str, args: tuple[Any, ...]) -> None:
    stream = OutputStreamResource(None)
    assert error(f"output-stream.{name}", stream, *args) == CLOSED
    assert call("output-stream.subscribe", stream).source.ready()


def test_a_sink_that_nobody_takes_from_closes_the_stream() -> None:
    sink = SlowSink()
    sink.full, sink.closed = False, True
    stream = OutputStreamResource(sink)
    assert error("output-stream.write", stream, b"x") == CLOSED
    assert error("output-stream.check-write", stream) == CLOSED
    assert error("output-stream.write", stream, bytes(WRITE_BUDGET + 1)) == CLOSED


async def test_a_stream_that_is_closed_while_a_write_waits_says_so() -> None:
    sink = SlowSink()
    stream = OutputStreamResource(sink)
    task = asyncio.ensure_future(call("output-stream.blocking-write-and-flush", stream, b"x"))
    await sink.awaited.wait()
    sink.closed = True
    sink.drain()
    with pytest.raises(WitError) as caught:
        await task
    assert caught.value.value == CLOSED


def test_a_failed_write_is_told_once_and_then_closed() -> None:
    sink = SlowSink()
    sink.full, sink.failure = False, StreamFailedError("disk full")
    stream = OutputStreamResource(sink)
    assert debug_string(error("output-stream.write", stream, b"x")) == "disk full"
    assert error("output-stream.write", stream, b"x") == CLOSED


def test_what_ends_the_invocation_passes_through_a_write() -> None:
    sink = SlowSink()
    sink.full, sink.failure = False, OutputLimitError("too much")
    with pytest.raises(OutputLimitError):
        call("output-stream.write", OutputStreamResource(sink), b"x")


# splicing


@pytest.mark.parametrize("name", ["splice", "blocking-splice"])
def test_splice_moves_what_is_there(name: str) -> None:
    sink = PlainSink()
    out, src = OutputStreamResource(sink), InputStreamResource(BytesInput(b"abcdef"))
    assert call(f"output-stream.{name}", out, src, 4) == 4
    assert call(f"output-stream.{name}", out, src, 4) == 2
    assert sink.getvalue() == b"abcdef"
    assert error(f"output-stream.{name}", out, src, 4) == CLOSED


def test_splice_does_not_wait() -> None:
    sink = PlainSink()
    out, src = OutputStreamResource(sink), InputStreamResource(SlowInput())
    assert call("output-stream.splice", out, src, 4) == 0
    sink.full = True
    full = InputStreamResource(BytesInput(b"abc"))
    assert call("output-stream.splice", out, full, 4) == 0
    assert call("input-stream.read", full, 9) == b"abc"


async def test_blocking_splice_waits_for_room_then_for_bytes() -> None:
    sink, source = SlowSink(), SlowInput()
    task = asyncio.ensure_future(
        call("output-stream.blocking-splice", OutputStreamResource(sink), InputStreamResource(source), 2)
    )
    await sink.awaited.wait()
    sink.drain()
    await source.awaited.wait()
    source.feed(b"abc")
    assert await task == 2
    assert sink.getvalue() == b"ab"
