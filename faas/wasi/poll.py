"""``poll_oneoff``: waiting for clocks and stdin without holding the thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Sequence
from typing import Any, Final, NamedTuple

from faas.wasi.context import WasiContext
from faas.wasi.descriptors import InputDescriptor
from faas.wasi.errno import Errno, ErrnoError, EventType, SubClockFlags

# Event loops refuse or misread huge delays; no invocation lives for a day.
_MAX_SLEEP_S: Final = 86400.0
_WRITABLE_BYTES: Final = 65536


class ClockSubscription(NamedTuple):
    """Wait until a clock has moved by, or is at, *timeout_ns*."""

    userdata: int
    clock_id: int
    timeout_ns: int
    flags: int


class FdSubscription(NamedTuple):
    """Wait until a descriptor can be read or written."""

    userdata: int
    kind: EventType
    fd: int


class Event(NamedTuple):
    """One subscription that came true, or failed with *errno*."""

    userdata: int
    errno: Errno
    kind: EventType
    n_bytes: int = 0
    hangup: bool = False


Subscription = ClockSubscription | FdSubscription


def poll(wasi: WasiContext, subscriptions: Sequence[Subscription]) -> list[Event] | Awaitable[list[Event]]:
    """
    Return the events that are there now, at least one; if there are none, what waits for the first.

    Only stdin and clocks are ever waited for: files are always ready, and outputs make a guest yield elsewhere.
    """
    ready: list[Event] = []
    timers: list[tuple[int, Event]] = []
    stdin: InputDescriptor | None = None
    readers: list[int] = []
    for subscription in subscriptions:
        if isinstance(subscription, ClockSubscription):
            try:
                timers.append((_remaining_ns(wasi, subscription), _clock_event(subscription, Errno.SUCCESS)))
            except ErrnoError as error:
                ready.append(_clock_event(subscription, error.errno))
            continue
        try:
            descriptor = wasi.descriptor(subscription.fd)
        except ErrnoError as error:
            ready.append(Event(subscription.userdata, error.errno, subscription.kind))
            continue
        if subscription.kind is EventType.FD_WRITE:
            ready.append(Event(subscription.userdata, Errno.SUCCESS, EventType.FD_WRITE, _WRITABLE_BYTES))
            continue
        n_bytes = descriptor.readable_bytes()
        if n_bytes is not None:
            ready.append(_read_event(subscription.userdata, n_bytes, stream=isinstance(descriptor, InputDescriptor)))
        elif isinstance(descriptor, InputDescriptor):
            stdin = descriptor
            readers.append(subscription.userdata)
    ready += [event for remaining_ns, event in timers if remaining_ns <= 0]
    return ready or _Waiting(timers, stdin, readers)


class _Waiting:
    """Begins to wait when it is awaited; unlike a coroutine it may be dropped, with a guest that ends here."""

    __slots__ = ("_readers", "_stdin", "_timers")

    def __init__(self, timers: list[tuple[int, Event]], stdin: InputDescriptor | None, readers: list[int]) -> None:
        self._timers = timers
        self._stdin = stdin
        self._readers = readers

    def __await__(self) -> Generator[Any, None, list[Event]]:
        return _wait(self._timers, self._stdin, self._readers).__await__()


async def _wait(timers: list[tuple[int, Event]], stdin: InputDescriptor | None, readers: list[int]) -> list[Event]:
    first_ns = min((remaining_ns for remaining_ns, _ in timers), default=None)
    delay_s = None if first_ns is None else min(first_ns / 1e9, _MAX_SLEEP_S)
    if stdin is None:
        await asyncio.sleep(delay_s or 0)
    else:
        try:
            async with asyncio.timeout(delay_s) as scope:
                await stdin.wait_readable()
        except TimeoutError:
            if not scope.expired():
                raise
        else:
            n_bytes = stdin.readable_bytes() or 0
            return [_read_event(userdata, n_bytes, stream=True) for userdata in readers]
    # What was asked to be first is due by construction; the clocks are not asked again, they may be coarser.
    return [event for remaining_ns, event in timers if remaining_ns == first_ns]


def _remaining_ns(wasi: WasiContext, subscription: ClockSubscription) -> int:
    if subscription.flags & ~int(SubClockFlags.ABSTIME):
        raise ErrnoError(Errno.INVAL)
    now_ns = wasi.now_ns(subscription.clock_id)
    return subscription.timeout_ns - now_ns if subscription.flags else subscription.timeout_ns


def _clock_event(subscription: ClockSubscription, errno: Errno) -> Event:
    return Event(subscription.userdata, errno, EventType.CLOCK)


def _read_event(userdata: int, n_bytes: int, *, stream: bool) -> Event:
    return Event(userdata, Errno.SUCCESS, EventType.FD_READ, n_bytes, hangup=stream and n_bytes == 0)
