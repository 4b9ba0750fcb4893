"""Admission: permits for the host's slots and per function, and a bounded queue with a deadline in front of them."""

from __future__ import annotations

import asyncio
from collections import deque

from faas.errors import OverloadedError


class Permits:
    """One function's share: how many of its invocations may run at once in this worker."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class Admission:
    """
    Lets at most ``slots`` invocations run at once, and at most ``Permits.limit`` of each function.

    Who finds no permit waits in order of arrival, up to ``queue_timeout_s`` and among at most ``max_queue``; a
    function that is at its own limit doesn't hold up those behind it.
    """

    def __init__(self, slots: int, *, max_queue: int, queue_timeout_s: float) -> None:
        self.slots = slots
        self.active = 0
        self._max_queue = max_queue
        self._timeout_s = queue_timeout_s
        self._waiting: deque[tuple[Permits, asyncio.Future[None]]] = deque()
        self._idle: list[asyncio.Future[None]] = []

    @property
    def queued(self) -> int:
        """How many requests wait for a permit."""
        return len(self._waiting)

    def try_acquire(self, permits: Permits) -> bool:
        """Take a permit if one is free and nobody waits before; the caller gives it back with ``release``."""
        if self._waiting or self.active >= self.slots or permits.used >= permits.limit:
            return False
        self.active += 1
        permits.used += 1
        return True

    async def acquire(self, permits: Permits) -> None:
        """
        Wait for a permit; the caller gives it back with ``release``.

        Raises: OverloadedError at once when the queue is full, or after ``queue_timeout_s``.
        """
        if len(self._waiting) >= self._max_queue:
            raise OverloadedError(
                f"{len(self._waiting)} requests already wait for an instance; try again later",
                retry_after_s=self._timeout_s,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (permits, turn)
        self._waiting.append(entry)
        self._hand_out()
        try:
            async with asyncio.timeout(self._timeout_s):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self.release(permits)  # the permit came in the very moment of giving up
            else:
                self._waiting.remove(entry)
            if isinstance(exc, TimeoutError):
                raise OverloadedError(
                    f"no instance became free within {self._timeout_s:g} s; try again later",
                    retry_after_s=self._timeout_s,
                ) from exc
            raise

    def release(self, permits: Permits) -> None:
        """Give a permit back; the first in the queue that may have it gets it."""
        self.active -= 1
        permits.used -= 1
        if self._waiting:
            self._hand_out()
        if self.active == 0 and self._idle:
            idle, self._idle = self._idle, []
            for done in idle:
                if not done.done():
                    done.set_result(None)

    async def wait_idle(self) -> None:
        """Return when no invocation runs."""
        if self.active:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(done)
            await done

    def _hand_out(self) -> None:
        passed: list[tuple[Permits, asyncio.Future[None]]] = []
        while self._waiting and self.active < self.slots:
            permits, turn = self._waiting.popleft()
            if turn.done():
                passed.append((permits, turn))  # cancelled: its owner removes it
            elif permits.used < permits.limit:
                self.active += 1
                permits.used += 1
                turn.set_result(None)
            else:
                passed.append((permits, turn))
        self._waiting.extendleft(reversed(passed))
