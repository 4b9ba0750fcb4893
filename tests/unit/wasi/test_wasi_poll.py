"""Promises of polling: it answers at once when it can, and waits on the loop when it must."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from faas.clock import SystemClock
from faas.wasi.context import WasiContext
from faas.wasi.errno import Errno, EventType, SubClockFlags
from faas.wasi.poll import ClockSubscription, Event, FdSubscription, poll
from faas.wasi.streams import BytesInput, CollectingOutput, EmptyInput

MS = 1_000_000
HOUR = 3600 * 1000 * MS


class EventInput:
    """An input that gets its bytes when a test says so."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.arrived = asyncio.Event()
        self.waited = asyncio.Event()

    def feed(self, content: bytes) -> None:
        self.content = content
        self.arrived.set()

    def read_nowait(self, n: int) -> bytes | None:
        return self.content

    async def wait_readable(self) -> None:
        self.waited.set()
        await self.arrived.wait()


def make_context(stdin: Any = None) -> WasiContext:
    return WasiContext(
        (), (), stdin or EmptyInput(), CollectingOutput(), CollectingOutput(), None, 1 << 16, SystemClock()
    )


def clock(userdata: int, timeout_ns: int, clock_id: int = 1, flags: int = 0) -> ClockSubscription:
    return ClockSubscription(userdata, clock_id, timeout_ns, flags)


def reading(userdata: int, fd: int = 0) -> FdSubscription:
    return FdSubscription(userdata, EventType.FD_READ, fd)


def test_a_zero_timeout_is_answered_at_once() -> None:
    assert poll(make_context(), [clock(7, 0)]) == [Event(7, Errno.SUCCESS, EventType.CLOCK)]


@pytest.mark.parametrize("clock_id", [0, 1])
def test_an_absolute_time_that_has_passed_is_answered_at_once(clock_id: int) -> None:
    wasi = make_context()
    passed = clock(7, wasi.now_ns(clock_id), clock_id, SubClockFlags.ABSTIME)
    assert poll(wasi, [passed]) == [Event(7, Errno.SUCCESS, EventType.CLOCK)]


@pytest.mark.parametrize("clock_id", [0, 1])
async def test_an_absolute_time_to_come_is_waited_for(clock_id: int) -> None:
    wasi = make_context()
    until = wasi.now_ns(clock_id) + MS
    events = poll(wasi, [clock(7, until, clock_id, SubClockFlags.ABSTIME)])
    assert not isinstance(events, list)
    assert await events == [Event(7, Errno.SUCCESS, EventType.CLOCK)]
    assert wasi.now_ns(clock_id) >= until - MS // 10


async def test_only_the_first_timer_fires() -> None:
    events = poll(make_context(), [clock(1, HOUR), clock(2, MS), clock(3, MS)])
    assert not isinstance(events, list)
    assert [event.userdata for event in await events] == [2, 3]


@pytest.mark.parametrize("wrong", [clock(1, 0, clock_id=2), clock(1, 0, clock_id=99), clock(1, 0, flags=2)])
def test_a_wrong_clock_subscription_is_an_event_of_its_own(wrong: ClockSubscription) -> None:
    assert poll(make_context(), [clock(2, HOUR), wrong]) == [Event(1, Errno.INVAL, EventType.CLOCK)]


def test_a_descriptor_that_is_not_open_is_an_event_of_its_own() -> None:
    assert poll(make_context(), [reading(1, 99)]) == [Event(1, Errno.BADF, EventType.FD_READ)]


def test_outputs_and_files_are_ready_at_once() -> None:
    events = poll(make_context(), [FdSubscription(1, EventType.FD_WRITE, 1), reading(2, 4), clock(3, HOUR)])
    assert isinstance(events, list)
    assert [event.userdata for event in events] == [1, 2]


def test_stdin_with_bytes_tells_how_many() -> None:
    assert poll(make_context(BytesInput(b"abc")), [reading(1)]) == [Event(1, Errno.SUCCESS, EventType.FD_READ, 3)]


def test_stdin_at_its_end_hangs_up() -> None:
    assert poll(make_context(), [reading(1)]) == [Event(1, Errno.SUCCESS, EventType.FD_READ, 0, hangup=True)]


@pytest.mark.parametrize("others", [[], [clock(9, HOUR)]])
async def test_stdin_without_bytes_is_waited_for(others: list[ClockSubscription]) -> None:
    stdin = EventInput()
    waiting = poll(make_context(stdin), [reading(1), reading(2), *others])
    assert not isinstance(waiting, list)
    task = asyncio.ensure_future(waiting)
    await stdin.waited.wait()
    stdin.feed(b"ab")
    assert await task == [
        Event(1, Errno.SUCCESS, EventType.FD_READ, 2),
        Event(2, Errno.SUCCESS, EventType.FD_READ, 2),
    ]


async def test_a_timer_ends_the_wait_for_stdin() -> None:
    events = poll(make_context(EventInput()), [reading(1), clock(2, MS)])
    assert not isinstance(events, list)
    assert await events == [Event(2, Errno.SUCCESS, EventType.CLOCK)]


async def test_a_timeout_of_the_stream_itself_is_not_taken_for_the_timer() -> None:
    class Failing(EventInput):
        async def wait_readable(self) -> None:
            raise TimeoutError

    events = poll(make_context(Failing()), [reading(1), clock(2, HOUR)])
    assert not isinstance(events, list)
    with pytest.raises(TimeoutError):
        await events


async def test_cancelling_goes_through() -> None:
    stdin = EventInput()
    waiting = poll(make_context(stdin), [reading(1), clock(2, 2**64 - 1)])
    assert not isinstance(waiting, list)
    task = asyncio.ensure_future(waiting)
    await stdin.waited.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
