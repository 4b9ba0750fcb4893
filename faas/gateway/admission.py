"""Admission: permits for the host's slots and per function, and a bounded queue with a deadline in front of them."""

from __future__ import annotations

import asyncio
from collections import deque

from faas.errors import OverloadedError


class Permits:
    """One function's share: how many of its invocations may run at once in this worker, and who waits for it."""

    __slots__ = ("limit", "used", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.waiting: deque[asyncio.Future[None]] = deque()


class Admission:
    """
    Lets at most ``slots`` invocations run at once, and at most ``Permits.limit`` of each function.

    Who finds no permit waits in its function's queue, up to ``queue_timeout_s`` and among at most ``max_queue`` in
    all. Freed slots go round the functions that wait, one each; a function at its own limit holds nobody else up.
    """

    def __init__(self, slots: int, *, max_queue: int, queue_timeout_s: float) -> None:
        self.slots = slots
        self.active = 0
        self.queued = 0
        self._max_queue = max_queue
        self._timeout_s = queue_timeout_s
        # Functions with somebody in their queue, in the order of their turns.
        self._turns: deque[Permits] = deque()
        self._idle: list[asyncio.Future[None]] = []

    def try_acquire(self, permits: Permits) -> bool:
        """Take a permit if one is free and nobody of this function waits; the caller gives it back by ``release``."""
        if permits.waiting or self.active >= self.slots or permits.used >= permits.limit:
            return False
        self.active += 1
        permits.used += 1
        return True

    async def acquire(self, permits: Permits) -> None:
        """
        Wait for a permit; the caller gives it back by ``release``.

        Raises: OverloadedError at once when the queue is full, or after ``queue_timeout_s``.
        """
        if self.try_acquire(permits):
            return
        if self.queued >= self._max_queue:
            raise OverloadedError(
                f"{self.queued} requests already wait for an instance; try again later",
                retry_after_s=self._timeout_s,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not permits.waiting:
            self._turns.append(permits)
        permits.waiting.append(turn)
        self.queued += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self.release(permits)  # the permit came in the very moment of giving up
            else:
                self._leave(permits, turn)
            if isinstance(exc, TimeoutError):
                raise OverloadedError(
                    f"no instance became free within {self._timeout_s:g} s; try again later",
                    retry_after_s=self._timeout_s,
                ) from exc
            raise

    def release(self, permits: Permits) -> None:
        """Give a permit back; who may have it and waits longest by the turns gets it."""
        self.active -= 1
        permits.used -= 1
        if self._turns:
            self._hand_out()
        if self.active == 0 and self._idle:
            idle, self._idle = self._idle, []
            for done in idle:
                if not done.done():
                    done.set_result(None)

    async def wait_idle(self) -> None:
        """Return when no invocation runs."""
        while self.active:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(done)
            await done

    def _hand_out(self) -> None:
        """Give free slots to the functions that wait, each one's first in line, until none can take one."""
        blocked = 0
        while self.active < self.slots and blocked < len(self._turns):
            permits = self._turns.popleft()
            if permits.used >= permits.limit:
                self._turns.append(permits)
                blocked += 1
                continue
            blocked = 0
            turn = permits.waiting.popleft()
            self.queued -= 1
            if permits.waiting:
                self._turns.append(permits)
            if not turn.done():
                self.active += 1
                permits.used += 1
                turn.set_result(None)

    def _leave(self, permits: Permits, turn: asyncio.Future[None]) -> None:
        if turn not in permits.waiting:
            return  # passed over in _hand_out, in the moment of its cancellation
        permits.waiting.remove(turn)
        self.queued -= 1
        if not permits.waiting:
            self._turns.remove(permits)
