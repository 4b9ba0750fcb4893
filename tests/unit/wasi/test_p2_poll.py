"""Promises of wasi:io/poll: answers at once when it can, and waits on the loop for the first of many."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from faas.clock import SystemClock
from faas.errors import DeadlineExceededError, GuestTrapError
from faas.wasi.context import WasiContext
from faas.wasi.p2 import clocks, io
from faas.wasi.p2.poll import MAX_POLLABLES, Pollable, Timer
from faas.wasi.streams import CollectingOutput, EmptyInput

POLL = io.FUNCTIONS["wasi:io/poll"]
MS = 1_000_000
HOUR = 3600 * 1000 * MS


class StoppedClock:
    """A clock that moves when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return int(self.now_s * 1e9)


class Source:
    """Something to wait for, which comes when a test says so."""

    def __init__(self, come: bool = False) -> None:
        self.event = asyncio.Event()
        self.awaited = asyncio.Event()
        self.cancelled = False
        self.failure: Exception | None = None
        if come:
            self.event.set()

    def ready(self) -> bool:
        return self.event.is_set()

    async def wait(self) -> None:
        self.awaited.set()
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.failure is not None:
            raise self.failure


def guest(clock: Any = None) -> Any:
    wasi = WasiContext((), (), EmptyInput(), CollectingOutput(), CollectingOutput(), None, 0, clock or SystemClock())
    return SimpleNamespace(wasi=wasi)


def poll(*sources: Any) -> Any:
    return POLL["poll"].call(guest(), [Pollable(source) for source in sources])


def timer(clock: Any, after_ns: int) -> Timer:
    wasi = guest(clock).wasi
    return Timer(wasi, wasi.now_ns(1) + after_ns)


def test_an_empty_list_traps() -> None:
    with pytest.raises(GuestTrapError, match="empty list"):
        poll()


def test_a_list_that_would_keep_the_host_busy_traps() -> None:
    with pytest.raises(GuestTrapError, match="poll fewer"):
        poll(*[Source(come=True)] * (MAX_POLLABLES + 1))


def test_all_that_are_ready_are_told_at_once() -> None:
    assert poll(Source(come=True), Source(), Source(come=True)) == [0, 2]


def test_one_handle_may_be_polled_twice() -> None:
    source = Source(come=True)
    assert poll(source, source) == [0, 1]


async def test_the_first_of_several_ends_the_wait_and_the_others_are_let_go() -> None:
    sources = [Source(), Source(), Source()]
    task = asyncio.ensure_future(poll(*sources))
    for source in sources:
        await source.awaited.wait()
    sources[1].event.set()
    assert await task == [1]
    assert [source.cancelled for source in sources] == [True, False, True]


async def test_one_that_is_waited_for_under_two_handles_is_told_twice() -> None:
    source = Source()
    task = asyncio.ensure_future(poll(source, source, timer(StoppedClock(), HOUR)))
    await source.awaited.wait()
    source.event.set()
    assert await task == [0, 1]


async def test_only_the_first_timer_fires() -> None:
    clock = StoppedClock()
    assert await poll(timer(clock, HOUR), timer(clock, 1), timer(clock, 1)) == [1, 2]


@pytest.mark.parametrize("n_others", [1, 2])
async def test_a_timer_ends_the_wait_for_others(n_others: int) -> None:
    others = [Source() for _ in range(n_others)]
    assert await poll(*others, timer(StoppedClock(), 1)) == [n_others]
    assert all(other.cancelled for other in others)


@pytest.mark.parametrize("n_others", [1, 2])
async def test_what_ends_the_invocation_goes_through(n_others: int) -> None:
    others = [Source(come=False) for _ in range(n_others)]
    others[0].failure = DeadlineExceededError("late")
    task = asyncio.ensure_future(poll(*others, timer(StoppedClock(), HOUR)))
    await others[0].awaited.wait()
    others[0].event.set()
    with pytest.raises(DeadlineExceededError):
        await task


async def test_a_timeout_of_the_source_itself_is_not_taken_for_the_timer() -> None:
    source = Source()
    source.failure = TimeoutError()
    task = asyncio.ensure_future(poll(source, timer(StoppedClock(), HOUR)))
    await source.awaited.wait()
    source.event.set()
    with pytest.raises(TimeoutError):
        await task


@pytest.mark.parametrize("n_others", [1, 2])
async def test_cancelling_goes_through_to_all(n_others: int) -> None:
    others = [Source() for _ in range(n_others)]
    task = asyncio.ensure_future(poll(*others))
    for other in others:
        await other.awaited.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(other.cancelled for other in others)


async def test_a_wait_may_be_dropped_before_it_begins() -> None:
    source = Source()
    poll(source)  # warnings are errors: a coroutine that nobody awaits would fail this test
    assert not source.awaited.is_set()


READY = POLL["[method]pollable.ready"].call


def test_ready_says_at_once_what_is_ready_and_that_a_time_has_not_come() -> None:
    assert READY(guest(), Pollable(Source(come=True))) is True
    assert READY(guest(), Pollable(timer(StoppedClock(), HOUR))) is False


async def test_ready_does_not_wait_for_a_source_but_lets_it_get_on() -> None:
    source = Source()
    assert await READY(guest(), Pollable(source)) is False
    assert source.awaited.is_set()
    assert source.cancelled


async def test_a_guest_that_only_ever_asks_sees_its_source_come() -> None:
    class Pulled(Source):
        """Something that comes only because somebody waited for it, as bytes of a connection do."""

        async def wait(self) -> None:
            self.event.set()

    assert await READY(guest(), Pollable(Pulled())) is True


async def test_block_returns_at_once_or_when_it_comes() -> None:
    block = POLL["[method]pollable.block"].call
    assert block(guest(), Pollable(Source(come=True))) is None
    source = Source()
    task = asyncio.ensure_future(block(guest(), Pollable(source)))
    await source.awaited.wait()
    assert not task.done()
    source.event.set()
    assert await task is None


def test_a_timer_is_ready_when_the_guests_clock_says_so() -> None:
    clock = StoppedClock()
    g = guest(clock)
    duration = clocks.FUNCTIONS["wasi:clocks/monotonic-clock"]["subscribe-duration"].call(g, 1000 * MS)
    instant = clocks.FUNCTIONS["wasi:clocks/monotonic-clock"]["subscribe-instant"].call(g, 101_000 * MS)
    assert not READY(g, duration)
    assert not READY(g, instant)
    clock.now_s = 101.0
    assert READY(g, duration)
    assert READY(g, instant)


def test_no_duration_and_a_time_that_has_passed_are_ready_at_once() -> None:
    g = guest(StoppedClock())
    functions = clocks.FUNCTIONS["wasi:clocks/monotonic-clock"]
    assert POLL["poll"].call(g, [functions["subscribe-duration"].call(g, 0)]) == [0]
    assert POLL["poll"].call(g, [functions["subscribe-instant"].call(g, 0)]) == [0]


async def test_the_longest_duration_can_be_waited_for() -> None:
    functions = clocks.FUNCTIONS["wasi:clocks/monotonic-clock"]
    g = guest()
    task = asyncio.ensure_future(
        POLL["[method]pollable.block"].call(g, functions["subscribe-duration"].call(g, 2**64 - 1))
    )
    await asyncio.wait([task], timeout=0)
    assert not task.done()
    task.cancel()


async def test_a_timer_on_the_real_clock_is_due_after_its_wait() -> None:
    g = guest()
    pollable = clocks.FUNCTIONS["wasi:clocks/monotonic-clock"]["subscribe-duration"].call(g, MS)
    await POLL["[method]pollable.block"].call(g, pollable)
    assert pollable.source.remaining_ns() < MS // 10
