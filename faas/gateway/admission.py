"""
Admission: permits for the host's slots and per function, and a bounded queue with a deadline in front of them.

Who gets a free slot is decided by what each function holds, not by whose turn it is: the waiting function with the
fewest running instances per weight comes first. Going round by requests would give a function with slow requests most
of the host, since each of its turns lasts longer; sharing instances shares the time.

A function's ``max_concurrency`` is the whole host's. Each worker begins with a share of it, and workers that lack
permits get those that others don't use, by way of the control process (``faas.control.shares``). A request that finds
a permit here never asks.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from faas.clock import Clock, SystemClock
from faas.errors import BusyError, ConcurrencyLimitError, FunctionNotFoundError, OverloadedError, PeerGoneError
from faas.wire.messages import Share, Shares, first_share

SMOOTHING = 0.2
"""The weight of the newest observation in the moving average of service times."""
MAX_RETRY_AFTER_S = 60.0
HOLD_S = 0.05
"""So long a worker keeps a permit that another one lacks, if it has work for it and no more than its part."""
LENDING_S = 0.1
"""So long after its first request began to wait a function may still get what other workers don't use: that takes some
milliseconds, or more while the processors are busy with something else."""


class Permits:
    """
    One function's share of this worker, who waits for it, and how long its invocations take.

    Lives as long as the function is served or one of its requests runs; ``Admission.configure`` makes and changes it.
    """

    __slots__ = (
        "asked",
        "changed_at",
        "given",
        "limit",
        "max_queue",
        "name",
        "queue_timeout_s",
        "removed",
        "reserved",
        "service_s",
        "share",
        "since",
        "turn",
        "used",
        "waiting",
        "waits_since",
        "wanted",
        "weight",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.limit = 0
        """What the manifest allows on the whole host; 0 until ``configure`` set it."""
        self.share = 0
        """How many of these this worker may have running now."""
        self.reserved = 0
        self.weight = 1
        self.max_queue: int | None = None
        self.queue_timeout_s: float | None = None
        self.used = 0
        self.waiting: deque[asyncio.Future[bool]] = deque()  # true: a permit; false: the place is somebody else's
        self.since = 0
        self.waits_since = 0.0
        """When the first of those that wait came, by the clock of ``Admission``."""
        self.turn = 0
        self.service_s = 0.0
        """The moving average of how long a permit was held, in seconds; 0 until one came back."""
        self.wanted = 0
        """So many permits of others the control process knows that are wanted here."""
        self.asked = 0
        """So many permits others want, as far as the control process said."""
        self.given = 0
        self.changed_at = 0.0
        self.removed = False

    @property
    def n_kept_free(self) -> int:
        """How many slots nobody else may take for now."""
        return max(0, min(self.reserved, self.share) - self.used)


class Admission:
    """
    Lets at most ``slots`` invocations run at once, and at most ``Permits.share`` of each function.

    Who finds no permit waits in its function's queue, for a bounded time and among a bounded number; who would wait
    longer than that is told so at once, with the time after which trying again makes sense. A function at its own
    limit holds nobody else up. When all places to wait are taken, the function with the most waiters per weight gives
    one up for a function that has fewer. Whenever nothing is being called, no function that waits could take a slot.
    """

    def __init__(
        self,
        slots: int,
        *,
        max_queue: int,
        queue_timeout_s: float,
        worker: int = 0,
        n_workers: int = 1,
        clock: Clock | None = None,
    ) -> None:
        """Args: *worker* is the index of this one of *n_workers*, which share each function's limit."""
        self.slots = slots
        self.active = 0
        self.queued = 0
        self._max_queue = max_queue
        self._timeout_s = queue_timeout_s
        self._worker = worker
        self._n_workers = n_workers
        self._clock = SystemClock() if clock is None else clock
        self._reserved_free = 0  # reserved slots that nobody uses: the sum of all Permits.n_kept_free
        self._functions: dict[str, Permits] = {}
        self._service_s = 0.0
        self._turn = 0
        self._n_came = 0
        self._waiting_weight = 0
        # The functions that wait and are below their own limit, by who is next: those below what they reserved, others.
        self._entitled = _Ranking()
        self._ordinary = _Ranking()
        self._longest = _Ranking()  # all that wait, by who gives a place up next
        # The functions that wait and lack a permit as well as a slot; those below what they reserved, others.
        self._held_back: dict[bool, dict[Permits, None]] = {True: {}, False: {}}
        self._idle: list[asyncio.Future[None]] = []
        self._untold: dict[str, Permits] = {}
        self._news = asyncio.Event()

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

        At most *limit* of it run at once on the host, and on this worker its share of that; *reserved* slots of this
        worker are kept free for it while it uses fewer; *weight* is its part of what everybody wants. *max_queue* and
        *queue_timeout_s* of None mean the host's.
        """
        permits = self._functions.get(name)
        if permits is None:
            permits = self._functions[name] = Permits(name)
        self._reserved_free -= permits.n_kept_free
        if permits.limit != limit:  # with another limit all workers begin anew, as the control process does
            permits.limit, permits.share = limit, first_share(limit, name, self._worker, self._n_workers)
            permits.wanted = permits.asked = permits.given = 0
        if permits.waiting:
            self._waiting_weight += weight - permits.weight
        permits.reserved, permits.weight = reserved, weight
        permits.max_queue, permits.queue_timeout_s = max_queue, queue_timeout_s
        self._reserved_free += permits.n_kept_free
        if permits.waiting:
            self._rank(permits)
            self._longest.put(permits, (-len(permits.waiting) / weight,))
        self._hand_out()
        self._want(permits)
        return permits

    def forget(self, name: str) -> None:
        """
        Keep nothing for function *name* any more, and lend nothing; its requests in flight keep their permits.

        Those that wait get these one after the other; where this worker has none, they are refused: none will come.
        """
        permits = self._functions.pop(name)
        self._reserved_free -= permits.n_kept_free
        permits.removed, permits.reserved = True, 0
        permits.wanted = permits.asked = 0
        for held_back in self._held_back.values():
            held_back.pop(permits, None)
        while permits.waiting and not permits.share:
            turn = permits.waiting.popleft()
            if not turn.done():
                turn.set_result(False)
            self._went(permits)
        if permits.waiting:
            self._rank(permits)
        self._hand_out()

    # permits

    def try_acquire(self, permits: Permits) -> bool:
        """Take a permit if one is free and nobody of this function waits; the caller gives it back by ``release``."""
        if permits.waiting or permits.used >= permits.share:
            return False
        if not self._reserved_free and not permits.reserved:  # as nearly always, and what follows comes to the same
            if self.active >= self.slots:
                return False
            self.active += 1
            permits.used += 1
            return True
        if not self._has_slot(permits):
            return False
        self._take(permits)
        return True

    async def acquire(self, permits: Permits) -> None:
        """
        Wait for a permit; the caller gives it back by ``release``.

        Raises: ConcurrencyLimitError if it is the function that is busy, else OverloadedError: at once when the queue
        is full or too slow, or after the queue's timeout; FunctionNotFoundError if the function was removed.
        """
        if self.try_acquire(permits):
            return
        if permits.removed and not permits.share:
            raise _removed(permits)
        self.shed(permits)
        timeout_s = self._timeout(permits)
        turn = self._queue(permits)
        try:
            async with asyncio.timeout(timeout_s):
                admitted = await turn
        except BaseException as exc:
            if not turn.done() or turn.cancelled():
                self._leave(permits, turn)
            elif turn.result():
                self.release(permits)  # the permit came in the very moment of giving up
            if isinstance(exc, TimeoutError):
                raise self._refusal(permits, f"no instance became free within {timeout_s:g} s") from exc
            raise
        if not admitted:
            if permits.removed and not permits.share:
                raise _removed(permits)
            raise OverloadedError(
                "too many requests wait on this worker, and most of them for this function; try again later",
                retry_after_s=self._retry_after_s(permits),
            )

    def release(self, permits: Permits, held_s: float | None = None) -> None:
        """Give a permit back that was held for *held_s* seconds (None: not to be learned from), and hand it on."""
        self.active -= 1
        permits.used -= 1
        if permits.used < permits.reserved and permits.used < permits.share:
            self._reserved_free += 1
        if held_s is not None:
            permits.service_s += (held_s - permits.service_s) * (SMOOTHING if permits.service_s else 1.0)
            self._service_s += (held_s - self._service_s) * (SMOOTHING if self._service_s else 1.0)
        if permits.asked:
            self._give(permits)
        if self.queued:
            if permits.waiting:
                self._rank(permits)
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

    @property
    def _kept_free(self) -> int:
        """How many slots are kept from everybody who has no right to them: never more than half."""
        # Deploys are checked against this, but the host may have been started again with fewer slots or workers.
        return min(self._reserved_free, self.slots // 2)

    def _may_take(self, permits: Permits) -> bool:
        return permits.used < permits.share and self._has_slot(permits)

    def _has_slot(self, permits: Permits) -> bool:
        """Return whether a slot is free that *permits* may take."""
        if permits.used < permits.reserved:
            return self.active < self.slots
        return self.active + self._kept_free < self.slots

    def _take(self, permits: Permits) -> None:
        self.active += 1
        if permits.used < permits.reserved and permits.used < permits.share:
            self._reserved_free -= 1
        permits.used += 1

    # queues

    def _queue(self, permits: Permits) -> asyncio.Future[bool]:
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        permits.waiting.append(turn)
        self.queued += 1
        if len(permits.waiting) == 1:
            self._n_came += 1
            permits.since = self._n_came
            permits.waits_since = self._clock.monotonic()
            self._waiting_weight += permits.weight
            self._rank(permits)
        self._longest.put(permits, (-len(permits.waiting) / permits.weight,))
        self._want(permits)
        return turn

    def _hand_out(self) -> None:
        """Give free slots to the functions that wait, each one's first in line, until none can take one."""
        while self.queued and (permits := self._next()) is not None:
            turn = permits.waiting.popleft()
            if not turn.done():
                self._turn += 1
                permits.turn = self._turn
                self._take(permits)
                turn.set_result(True)
            self._went(permits)
            if permits.waiting:
                self._want(permits)  # so far a slot was all that it lacked
        if self._n_workers > 1:
            self._want_held_back()

    def _next(self) -> Permits | None:
        """Return the function to serve next; None if none that waits can take a slot."""
        if self.active >= self.slots:
            return None
        entitled = self._entitled.first()
        if self.active + self._kept_free >= self.slots:
            return None if entitled is None else entitled[1]
        ordinary = self._ordinary.first()
        if entitled is None or ordinary is None:
            first = entitled or ordinary
            return None if first is None else first[1]
        return min(entitled, ordinary, key=lambda entry: entry[0])[1]

    def _leave(self, permits: Permits, turn: asyncio.Future[bool]) -> None:
        if turn not in permits.waiting:
            return  # passed over in _hand_out, in the moment of its cancellation
        permits.waiting.remove(turn)
        self._went(permits)

    def _went(self, permits: Permits) -> None:
        """Keep the books after one of *permits*' waiters is gone."""
        self.queued -= 1
        self._rank(permits)
        if permits.waiting:
            self._longest.put(permits, (-len(permits.waiting) / permits.weight,))
            return
        self._waiting_weight -= permits.weight
        self._longest.drop(permits)
        if permits.wanted:
            permits.wanted = 0
            self._tell(permits)
        if permits.asked:
            self._give(permits)  # what was kept for those that waited

    def _rank(self, permits: Permits) -> None:
        """Put a function where ``_next`` finds it, or take it away if it could not run another one."""
        below = permits.used < permits.reserved
        ranking, other = (self._entitled, self._ordinary) if below else (self._ordinary, self._entitled)
        other.drop(permits)
        if permits.waiting and permits.used < permits.share:
            ranking.put(permits, (permits.used / permits.weight, permits.turn, permits.since))
        else:
            ranking.drop(permits)

    def _timeout(self, permits: Permits) -> float:
        return self._timeout_s if permits.queue_timeout_s is None else permits.queue_timeout_s

    # refusing

    def shed(self, permits: Permits) -> None:
        """
        Refuse at once who has no chance to get a permit by waiting: better to tell now than after the timeout.

        ``acquire`` does so itself; this is for who wants to know before it prepares to wait.
        Raises: ConcurrencyLimitError, OverloadedError.
        """
        timeout_s = self._timeout(permits)
        if permits.max_queue is not None and len(permits.waiting) >= permits.max_queue:
            raise self._refusal(permits, f"{len(permits.waiting)} requests already wait for this function")
        # Those that run now end some time within their service time, so their number of waiters may well be lucky.
        n_running = self._most_here(permits) if self._may_borrow(permits) else permits.used
        if len(permits.waiting) >= max(1, n_running) and self._expected_wait_s(permits) > timeout_s:
            raise self._refusal(permits, f"the queue of this function is longer than its {timeout_s:g} s")
        if self.queued >= self._max_queue and not self._displace(permits):
            raise self._refusal(permits, f"{self.queued} requests already wait on this worker")

    def _displace(self, permits: Permits) -> bool:
        """Take a place from the function with the most waiters per weight, its newest; False if that is no fairer."""
        longest = self._longest.first()
        if longest is None:
            return False
        other = longest[1]
        if (len(permits.waiting) + 1) / permits.weight >= len(other.waiting) / other.weight:
            return False
        turn = other.waiting.pop()
        if not turn.done():
            turn.set_result(False)
        self._went(other)
        return True

    def _expected_wait_s(self, permits: Permits) -> float:
        """Return when one more in the function's queue would get a permit, by the service times seen so far."""
        service_s = permits.service_s or self._service_s
        share = permits.used
        if share < permits.share:  # it is others who hold it up: it has its fair part of the slots coming
            weight = self._waiting_weight + (0 if permits.waiting else permits.weight)
            share = max(share, min(permits.share, self.slots * permits.weight // weight))
        elif self._may_borrow(permits):
            share = self._most_here(permits)
        else:  # what others have of its part comes back with their next requests that end
            share = max(share, min(self.slots, permits.limit // self._n_workers))
        # As many leave in each service time.
        return (len(permits.waiting) + 1) * service_s / max(1, share)

    def _may_borrow(self, permits: Permits) -> bool:
        """Return whether the function lacks permits that may lie idle elsewhere: nobody has had the time to say."""
        if permits.removed or not permits.used >= permits.share < permits.limit or not self._has_slot(permits):
            return False
        return not permits.waiting or self._clock.monotonic() - permits.waits_since < LENDING_S

    def _most_here(self, permits: Permits) -> int:
        """Return how many this worker would run with all permits of the host."""
        return min(permits.limit, self.slots)

    def _retry_after_s(self, permits: Permits) -> float:
        return min(MAX_RETRY_AFTER_S, self._expected_wait_s(permits) or 1.0)

    def _refusal(self, permits: Permits, reason: str) -> BusyError:
        wait_s = self._retry_after_s(permits)
        if permits.used >= permits.share:
            self._want(permits, at_least=1)
            return ConcurrencyLimitError(
                f"{reason}, and limits.max_concurrency allows it {permits.limit} at once on this host; "
                "try again later, or raise it in function.toml",
                retry_after_s=wait_s,
            )
        return OverloadedError(f"{reason}; try again later", retry_after_s=wait_s)

    # what workers lend each other

    def lent(self, shares: Mapping[str, Share]) -> None:
        """Go by what the control process says: permits granted to this worker, and how many others want."""
        told: list[Permits] = []
        for name, share in shares.items():
            permits = self._functions.get(name)
            if permits is None or permits.limit != share.limit:
                continue  # it is about a limit of before; the control process knows by now
            self._regrant(permits, share.n_given)
            permits.wanted = max(0, permits.wanted - share.n_given)
            permits.asked = share.n_wanted
            told.append(permits)
            if permits.waiting:
                self._rank(permits)
        # What came is handed out before anything is given: else two workers that lack permits give back at once, since
        # the other one lacks them, what an idle one lent them, and it goes to and fro between them, unused.
        self._hand_out()
        for permits in told:
            self._give(permits)
            if permits.waiting:
                self._rank(permits)
            self._want(permits)
        self._hand_out()  # a slot that was kept free for a permit that is given away

    def begin_with(self, n_permits: Mapping[str, int]) -> None:
        """Begin with these shares where permits were lent before this worker began; to be called before any request."""
        for name, n in n_permits.items():
            permits = self._functions.get(name)
            if permits is not None:
                self._regrant(permits, n - permits.share)

    async def exchange(self, send: Callable[[Shares], Awaitable[None]]) -> None:
        """Tell the control process what is wanted and what is given back; ends when it is gone."""
        while True:
            await self._news.wait()
            try:
                await send(self.take_news())
            except PeerGoneError:
                return

    def take_news(self) -> Shares:
        """Return what the control process has not heard yet, which it then has."""
        self._news.clear()
        untold, self._untold = self._untold, {}
        told: dict[str, Share] = {}
        for name, permits in untold.items():
            if self._functions.get(name) is permits:
                told[name] = Share(limit=permits.limit, n_given=permits.given, n_wanted=permits.wanted)
                permits.given = 0
        return Shares(told)

    def _tell(self, permits: Permits) -> None:
        if self._n_workers > 1 and not permits.removed:
            self._untold[permits.name] = permits
            self._news.set()

    def _want(self, permits: Permits, at_least: int = 0) -> None:
        """Have it known if more requests wait than known, for permits that other workers have."""
        if permits.used < permits.share or permits.share >= permits.limit or permits.removed:
            return
        if not self._has_slot(permits):  # here it would lie idle, and elsewhere it may be lacking
            self._held_back[permits.used < permits.reserved][permits] = None
            return
        wanted = min(max(at_least, len(permits.waiting)), permits.limit - permits.share)
        if wanted > permits.wanted:
            permits.wanted = wanted
            self._tell(permits)

    def _want_held_back(self) -> None:
        """Have it known what is wanted by those that were held back for want of a slot, now that one is free."""
        for reserved, held_back in self._held_back.items():
            while held_back and self.active + (0 if reserved else self._kept_free) < self.slots:
                permits, _ = held_back.popitem()
                if permits.waiting:
                    self._want(permits)

    def _give(self, permits: Permits) -> None:
        """Give back what others want: what is idle; of what is busy here, what is more than this worker's part."""
        n_given = 0
        while permits.asked and permits.used < permits.share:
            if permits.waiting and not self._may_lose(permits):
                break
            self._regrant(permits, -1)
            permits.asked -= 1
            n_given += 1
        if n_given:
            permits.given += n_given
            self._tell(permits)
            self._want(permits)

    def _may_lose(self, permits: Permits) -> bool:
        """
        Return whether a permit that is wanted here, too, goes to another worker now.

        All begin with the same number, but for a remainder, which is passed round: with a limit of 1 and two workers,
        each has it for ``HOLD_S`` in turn, if requests are shorter than that.
        """
        least, remainder = divmod(permits.limit, self._n_workers)
        if permits.share > least + bool(remainder):
            return True
        return permits.share > least and self._clock.monotonic() - permits.changed_at >= HOLD_S

    def _regrant(self, permits: Permits, n_more: int) -> None:
        if n_more:
            self._reserved_free -= permits.n_kept_free
            permits.share += n_more
            self._reserved_free += permits.n_kept_free
            permits.changed_at = self._clock.monotonic()


def _removed(permits: Permits) -> FunctionNotFoundError:
    return FunctionNotFoundError(
        f"function {permits.name} was removed while this request waited; `faas list` shows those that are deployed"
    )


class _Ranking:
    """
    Functions by a key, the smallest first: a heap in which a changed key is a new entry.

    Entries that count no more are passed over when they come up, and swept when they are more than half.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, ...], int, Permits]] = []
        self._current: dict[Permits, int] = {}
        self._ids = itertools.count()

    def put(self, permits: Permits, key: tuple[float, ...]) -> None:
        """Have *permits* in it with *key*, and no other."""
        id = self._current[permits] = next(self._ids)
        heapq.heappush(self._heap, (key, id, permits))
        if len(self._heap) > 2 * len(self._current) + 64:
            self._heap = [entry for entry in self._heap if self._current.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def drop(self, permits: Permits) -> None:
        """Have *permits* not in it."""
        self._current.pop(permits, None)

    def first(self) -> tuple[tuple[float, ...], Permits] | None:
        """Return the smallest key and whose it is."""
        heap = self._heap
        while heap:
            key, id, permits = heap[0]
            if self._current.get(permits) == id:
                return key, permits
            heapq.heappop(heap)
        return None
