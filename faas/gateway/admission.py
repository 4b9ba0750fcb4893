"""
Admission: permits for the host's slots and per function, and a bounded queue with a deadline in front of them.

Who gets a free slot is decided by what each function holds, not by whose turn it is: the waiting function with the
fewest running instances per weight comes first. Going round by requests would give a function with slow requests most
of the host, since each of its turns lasts longer; sharing instances shares the time.
"""

from __future__ import annotations

import asyncio
from collections import deque

from faas.errors import BusyError, ConcurrencyLimitError, OverloadedError

SMOOTHING = 0.2
"""The weight of the newest observation in the moving average of service times."""
MAX_RETRY_AFTER_S = 60.0


class Permits:
    """
    One function's share of this worker, who waits for it, and how long its invocations take.

    Lives as long as the function is served or one of its requests runs; ``Admission.configure`` makes and changes it.
    """

    __slots__ = ("limit", "max_queue", "queue_timeout_s", "reserved", "service_s", "turn", "used", "waiting", "weight")

    def __init__(self) -> None:
        self.limit = 0
        self.reserved = 0
        self.weight = 1
        self.max_queue: int | None = None
        self.queue_timeout_s: float | None = None
        self.used = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.turn = 0
        self.service_s = 0.0
        """The moving average of how long a permit was held, in seconds; 0 until one came back."""

    @property
    def n_kept_free(self) -> int:
        """How many slots nobody else may take for now."""
        return max(0, self.reserved - self.used)


class Admission:
    """
    Lets at most ``slots`` invocations run at once, and at most ``Permits.limit`` of each function.

    Who finds no permit waits in its function's queue, for a bounded time and among a bounded number; who would wait
    longer than that is told so at once, with the time after which trying again makes sense. A function at its own
    limit holds nobody else up. Whenever nothing is being called, no function that waits could take a slot.
    """

    def __init__(self, slots: int, *, max_queue: int, queue_timeout_s: float) -> None:
        self.slots = slots
        self.active = 0
        self.queued = 0
        self._max_queue = max_queue
        self._timeout_s = queue_timeout_s
        self._kept_free = 0  # reserved slots that nobody uses: the sum of all Permits.n_kept_free
        self._functions: dict[str, Permits] = {}
        self._service_s = 0.0
        self._turn = 0
        self._waiting: dict[Permits, None] = {}  # a set that keeps the order in which they came
        self._idle: list[asyncio.Future[None]] = []

    # functions

    def configure(
        self,
        name: str,
        *,
        limit: int,
        reserved: int = 0,
        weight: int = 1,
        max_queue: int | None = None,
        queue_timeout_s: float | None = None,
    ) -> Permits:
        """
        Return the permits of function *name*, which all its versions share, with these settings from now on.

        At most *limit* of it run at once; *reserved* slots are kept free for it while it uses fewer; *weight* is its
        part of what everybody wants. *max_queue* and *queue_timeout_s* of None mean the host's.
        """
        permits = self._functions.get(name)
        if permits is None:
            permits = self._functions[name] = Permits()
        self._kept_free -= permits.n_kept_free
        permits.limit, permits.reserved, permits.weight = limit, min(reserved, limit), weight
        permits.max_queue, permits.queue_timeout_s = max_queue, queue_timeout_s
        self._kept_free += permits.n_kept_free
        self._hand_out()
        return permits

    def forget(self, name: str) -> None:
        """Keep nothing for function *name* any more; its requests in flight keep their permits."""
        permits = self._functions.pop(name)
        self._kept_free -= permits.n_kept_free
        permits.reserved = 0
        self._hand_out()

    # permits

    def try_acquire(self, permits: Permits) -> bool:
        """Take a permit if one is free and nobody of this function waits; the caller gives it back by ``release``."""
        if permits.waiting or not self._may_take(permits):
            return False
        self._take(permits)
        return True

    async def acquire(self, permits: Permits) -> None:
        """
        Wait for a permit; the caller gives it back by ``release``.

        Raises: ConcurrencyLimitError if it is the function that is busy, else OverloadedError: at once when the queue
        is full or too slow, or after the queue's timeout.
        """
        if self.try_acquire(permits):
            return
        timeout_s = self._timeout_s if permits.queue_timeout_s is None else permits.queue_timeout_s
        self._shed(permits, timeout_s)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        permits.waiting.append(turn)
        self._waiting[permits] = None
        self.queued += 1
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self.release(permits)  # the permit came in the very moment of giving up
            else:
                self._leave(permits, turn)
            if isinstance(exc, TimeoutError):
                raise self._refusal(permits, f"no instance became free within {timeout_s:g} s") from exc
            raise

    def release(self, permits: Permits, held_s: float | None = None) -> None:
        """Give a permit back that was held for *held_s* seconds (None: not to be learned from), and hand it on."""
        self.active -= 1
        permits.used -= 1
        if permits.used < permits.reserved:
            self._kept_free += 1
        if held_s is not None:
            permits.service_s += (held_s - permits.service_s) * (SMOOTHING if permits.service_s else 1.0)
            self._service_s += (held_s - self._service_s) * (SMOOTHING if self._service_s else 1.0)
        if self._waiting:
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

    def _may_take(self, permits: Permits) -> bool:
        if permits.used >= permits.limit:
            return False
        kept_free = 0 if permits.used < permits.reserved else self._kept_free
        return self.active + kept_free < self.slots

    def _take(self, permits: Permits) -> None:
        self.active += 1
        if permits.used < permits.reserved:
            self._kept_free -= 1
        permits.used += 1

    def _hand_out(self) -> None:
        """Give free slots to the functions that wait, each one's first in line, until none can take one."""
        while self._waiting and self.active < self.slots:
            able = [permits for permits in self._waiting if self._may_take(permits)]
            if not able:
                return
            permits = min(able, key=lambda p: (p.used / p.weight, p.turn))
            turn = permits.waiting.popleft()
            self.queued -= 1
            if not permits.waiting:
                self._waiting.pop(permits, None)
            if not turn.done():
                self._turn += 1
                permits.turn = self._turn
                self._take(permits)
                turn.set_result(None)

    def _leave(self, permits: Permits, turn: asyncio.Future[None]) -> None:
        if turn not in permits.waiting:
            return  # passed over in _hand_out, in the moment of its cancellation
        permits.waiting.remove(turn)
        self.queued -= 1
        if not permits.waiting:
            self._waiting.pop(permits, None)

    # refusing

    def _shed(self, permits: Permits, timeout_s: float) -> None:
        """
        Refuse at once who has no chance: better to tell now than after the timeout.

        Raises: ConcurrencyLimitError, OverloadedError.
        """
        if permits.max_queue is not None and len(permits.waiting) >= permits.max_queue:
            raise self._refusal(permits, f"{len(permits.waiting)} requests already wait for this function")
        if self.queued >= self._max_queue:
            raise self._refusal(permits, f"{self.queued} requests already wait on this worker")
        # Those that run now end some time within their service time, so their number of waiters may well be lucky.
        if len(permits.waiting) >= max(1, permits.used) and self._expected_wait_s(permits) > timeout_s:
            raise self._refusal(permits, f"the queue of this function is longer than its {timeout_s:g} s")

    def _expected_wait_s(self, permits: Permits) -> float:
        """Return when one more in the function's queue would get a permit, by the service times seen so far."""
        service_s = permits.service_s or self._service_s
        # As many as run now leave in each service time; where it has none yet, its fair part of the slots.
        share = permits.used or max(1, self.slots // max(1, len(self._waiting)))
        return (len(permits.waiting) + 1) * service_s / share

    def _refusal(self, permits: Permits, reason: str) -> BusyError:
        wait_s = min(MAX_RETRY_AFTER_S, self._expected_wait_s(permits) or 1.0)
        if permits.used >= permits.limit:
            return ConcurrencyLimitError(
                f"{reason}, all its {permits.limit} instances are busy; try again later, "
                "or raise limits.max_concurrency in function.toml",
                retry_after_s=wait_s,
            )
        return OverloadedError(f"{reason}; try again later", retry_after_s=wait_s)
