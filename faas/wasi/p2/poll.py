"""``wasi:io/poll``: waiting for the first of several sources, on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from faas.errors import GuestTrapError
from faas.wasi.context import WasiContext
from faas.wasi.errno import ClockId
from faas.wasi.p2.resources import ComponentFunction, Resource

MAX_POLLABLES: Final = 10_000
# Event loops refuse or misread huge delays; no invocation lives for a day.
_MAX_SLEEP_S: Final = 86400.0
_MONOTONIC: Final = int(ClockId.MONOTONIC)

T = TypeVar("T")


class StreamFailedError(Exception):
    """What a stream's source or sink raises when an operation failed; the guest sees its text and then ``closed``."""


class Waitable(Protocol):
    """
    What a pollable waits for.

    Thread: ``ready`` runs wherever the guest does, ``wait`` on the loop, and may be cancelled.
    """

    def ready(self) -> bool:
        """Return whether the guest can go on with it: also when it failed or is closed."""

    async def wait(self) -> None:
        """Return once ``ready``; raises a FaasError at most, which ends the invocation."""


class Pollable(Resource):
    """A handle on something to wait for: a child of what it was made from."""

    __slots__ = ("source",)

    def __init__(self, source: Waitable, parent: Resource | None = None) -> None:
        super().__init__(parent)
        self.source = source


class Timer:
    """A time on the guest's monotonic clock, in nanoseconds."""

    __slots__ = ("_wasi", "_when_ns")

    def __init__(self, wasi: WasiContext, when_ns: int) -> None:
        self._wasi = wasi
        self._when_ns = when_ns

    def remaining_ns(self) -> int:
        """Return how long it is until then; negative if that has passed."""
        return self._when_ns - self._wasi.now_ns(_MONOTONIC)

    def ready(self) -> bool:
        """Return whether the time has come."""
        return self.remaining_ns() <= 0

    async def wait(self) -> None:
        """Sleep until then."""
        await asyncio.sleep(_delay_s(self.remaining_ns()))


class Waiting(Generic[T]):
    """Begins when it is awaited; unlike a coroutine it may be dropped, with a guest that ends here."""

    __slots__ = ("_begin",)

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Any, None, T]:
        return self._begin().__await__()


def pollable_ready(_guest: Any, self: Pollable) -> bool | Awaitable[bool]:
    """
    Return whether the pollable is ready; if it does not seem so, what lets the loop have a look, without waiting.

    Sources get on only while somebody waits for them, so a guest that asks again and again would never see one come.
    """
    source = self.source
    if source.ready():
        return True
    return False if type(source) is Timer else Waiting(partial(_look, source))


async def _look(source: Waitable) -> bool:
    """Wait for *source* as long as one turn of the loop."""
    await _first_of({0: source}, 0)
    return source.ready()


def pollable_block(_guest: Any, self: Pollable) -> Awaitable[None] | None:
    """Return once the pollable is ready: at once, or an awaitable."""
    return None if self.source.ready() else Waiting(self.source.wait)


def poll(_guest: Any, pollables: Sequence[Pollable]) -> list[int] | Awaitable[list[int]]:
    """
    Return the indices of those that are ready, at least one; an awaitable of them if none is yet.

    Raises: GuestTrapError for an empty list, as the WIT documents, and for one of more than MAX_POLLABLES.
    """
    if not pollables:
        raise GuestTrapError("the guest polled an empty list, which waits for nothing; poll at least one pollable")
    if len(pollables) > MAX_POLLABLES:
        raise GuestTrapError(
            f"the guest polled {len(pollables)} pollables, more than {MAX_POLLABLES}; poll fewer at a time"
        )
    sources = [pollable.source for pollable in pollables]
    ready = [index for index, source in enumerate(sources) if source.ready()]
    return ready or Waiting(partial(_first, sources))


async def _first(sources: list[Waitable]) -> list[int]:
    """Wait for the first of *sources* and return the indices of all that are ready then."""
    timers: dict[int, int] = {}
    others: dict[int, Waitable] = {}
    for source in sources:
        if isinstance(source, Timer):
            timers[id(source)] = source.remaining_ns()
        else:
            others[id(source)] = source
    first_ns = min(timers.values(), default=None)
    fired = await _first_of(others, None if first_ns is None else _delay_s(first_ns))
    if not fired:
        # What was asked to be first is due by construction; the clocks are not asked again, they may be coarser.
        fired = {key for key, remaining_ns in timers.items() if remaining_ns == first_ns}
    return [index for index, source in enumerate(sources) if id(source) in fired or source.ready()]


async def _first_of(sources: dict[int, Waitable], delay_s: float | None) -> set[int]:
    """Return the keys of those whose wait has ended, or none once *delay_s* has passed."""
    if not sources:
        await asyncio.sleep(delay_s or 0)
        return set()
    if len(sources) == 1:
        [(key, source)] = sources.items()
        try:
            async with asyncio.timeout(delay_s) as scope:
                await source.wait()
        except TimeoutError:
            if not scope.expired():
                raise
            return set()
        return {key}
    tasks = {asyncio.ensure_future(source.wait()): key for key, source in sources.items()}
    try:
        done, _ = await asyncio.wait(tasks, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return {tasks[task] for task in done}


def _delay_s(remaining_ns: int) -> float:
    return min(max(remaining_ns, 0) / 1e9, _MAX_SLEEP_S)


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:io/poll": {
        "[method]pollable.ready": ComponentFunction(pollable_ready, may_suspend=True),
        "[method]pollable.block": ComponentFunction(pollable_block, may_suspend=True),
        "poll": ComponentFunction(poll, may_suspend=True),
    }
}
