"""
The warm pools: instances that are made between requests, so that a request need not wait for its own.

A function whose manifest asks for it (``[warm]``) has a pool in each worker. How many instances it holds follows the
rate at which requests come, up to the manifest's ``max``; without requests it holds ``min``. Instances are made in
moments in which the event loop has nothing else to do, and given up as soon as a request needs their slot.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from faas.clock import Clock
from faas.errors import FaasError, InvocationError, OverloadedError
from faas.gateway.admission import Admission
from faas.gateway.code import Code, CodeCache, CodeKey, code_key
from faas.gateway.instance import REUSED, WARM, Instance, NotPreparableError
from faas.invocation import Deployment, Kind
from faas.log import event
from faas.wasi.context import GuestExit
from faas.wasm.runtime import Runtime

RATE_S = 5.0
"""How far back the arrival rate looks: what came that long ago counts for a third of what comes now."""
SAFETY = 3.0
"""How many times as many instances as requests come while one is made: they do not come evenly."""
IDLE_S = 30.0
"""A function that was not called for this long is left with its ``min``."""
SWEEP_S = 1.0
"""How often what is too much is dropped, one instance of each function."""
BUSY_S = 100e-6
"""A turn of the event loop that took longer had something to do."""
INLINE_NS = 300_000
"""An instance that takes less CPU time than this is made on the loop's thread; others in the guests' threads."""
GRACE_S = 0.001
"""How long an instance that is made in a guests' thread waits first: the reply that was just sent is to be read."""
MAX_FAILURES = 3
"""So many failures of the guest in a row, and a version's instances are made at their requests for good."""
MAX_PAUSE_S = 64.0
"""Any other failure may be the host's, or its load's: none is made for a while, each time twice as long, up to this."""

_SMOOTHING = 0.3
_log = logging.getLogger(__name__)


class Arrivals:
    """How often something happens, per second: an average in which the past fades. Times are monotonic seconds."""

    __slots__ = ("_rate", "last")

    def __init__(self) -> None:
        self._rate = 0.0
        self.last = -math.inf
        """When it last happened."""

    def note(self, now: float) -> None:
        """It happened."""
        self._rate = self.rate(now) + 1 / RATE_S
        self.last = now

    def rate(self, now: float) -> float:
        """Return the rate as of *now*."""
        return self._rate * math.exp((self.last - now) / RATE_S) if self._rate else 0.0


class WarmPool:
    """
    One served version's instances that are ready; lives as long as the version is served or a request of it runs.

    Thread: the loop.
    """

    __slots__ = (
        "_pools", "arrivals", "closed", "code", "counters", "deployment", "gave_up", "heir", "instance_bytes", "key",
        "making_since", "n_coming_back", "n_failures", "n_max", "n_min", "pause_s", "paused_until", "prepare_ns",
        "prepare_s", "quiet_until", "reuse", "stock",
    )  # fmt: skip

    def __init__(self, pools: WarmPools, deployment: Deployment, *, n_max: int, n_min: int) -> None:
        self._pools = pools
        self.deployment = deployment
        self.key = code_key(deployment)
        self.n_max = n_max
        self.n_min = n_min
        self.reuse = deployment.manifest.warm.reuse
        self.arrivals = Arrivals()
        self.counters = pools.counters_of(deployment.function)
        self.stock: list[Instance] = []
        self.code: Code | None = None
        """Kept in use by the pool itself: only where some instances are always to be there."""
        self.n_coming_back = 0
        """How many serve a request that is not their last."""
        self.quiet_until = -math.inf
        """Only the ``min`` is made before: its code was unloaded from under what had been made."""
        self.heir: asyncio.Future[Instance | None] | None = None
        """The request that waits for the instance that is being made."""
        self.closed = False
        self.gave_up = False
        self.n_failures = 0
        self.pause_s = 0.0
        self.paused_until = -math.inf
        """None is made before: the last one failed, by no fault of the guest that is known."""
        self.making_since = 0.0
        """When the instance that is being made was begun."""
        self.prepare_s = 0.0
        """What making an instance takes, in seconds and (``prepare_ns``) in CPU nanoseconds; 0 until one was made."""
        self.prepare_ns = 0
        self.instance_bytes = 0
        """What the last one that was made took of memory."""

    def target(self, now: float) -> int:
        """Return how many instances should be ready."""
        if self.closed or self.gave_up:
            return 0
        wanted = 0
        if now - self.arrivals.last <= IDLE_S and now >= self.quiet_until:
            wanted = max(1, math.ceil(self.arrivals.rate(now) * self.prepare_s * SAFETY))
        return max(self.n_min, min(self.n_max, wanted))

    def lacks(self, now: float) -> bool:
        """Return whether one more should be made."""
        return len(self.stock) + self.n_coming_back < self.target(now)

    def most(self, now: float) -> int:
        """Return how many may stay; of those that serve many requests, as many as requests came at once."""
        return self.n_max if self.reuse > 1 and now - self.arrivals.last <= IDLE_S else self.target(now)

    @property
    def is_quick(self) -> bool:
        """Whether making an instance takes next to nothing."""
        return 0 < self.prepare_ns <= INLINE_NS

    def take(self, code: Code) -> Instance | None:
        """
        Return an instance of *code* that is ready and now the caller's, None if there is none.

        To be called once for each request: the pool's size follows how often that happens.
        """
        return self._pools.take(self, code)

    async def join(self, leave: Callable[[], Awaitable[object]]) -> Instance | None:
        """
        Return the instance that is being made, once it is, for a request that found none; None if it gets none.

        Making another one beside it would take longer and slow both down. But one that is late may be late for long:
        nobody waits for it longer than for an own one. Args: *leave* is awaited before anything is.
        """
        if not self._is_worth_waiting():
            return None
        heir: asyncio.Future[Instance | None] | None = None
        try:
            await leave()
            if not self._is_worth_waiting():
                return None
            heir = self.heir = asyncio.get_running_loop().create_future()
            # Not wait_for: what has been handed over is never lost to the timeout.
            await asyncio.wait((heir,), timeout=self.prepare_s)
            return heir.result() if heir.done() else None
        except BaseException:
            if heir is not None and heir.done():
                handed_over = heir.result()
                if handed_over is not None:
                    handed_over.close()
            if self.reuse > 1:
                self.n_coming_back -= 1  # nobody gives back what nobody got
            raise
        finally:
            if heir is not None and self.heir is heir:
                self.heir = None

    def _is_worth_waiting(self) -> bool:
        """Whether an instance is being made, for nobody yet, and as quickly as usual."""
        return self.heir is None and self._pools.is_making(self, begun_within_s=2 * self.prepare_s)

    def hand_over(self, instance: Instance | None) -> bool:
        """Give *instance* to the request that waits for it, or tell it that there is none; return whether one waits."""
        heir, self.heir = self.heir, None
        if heir is None or heir.done():
            return False
        if instance is not None:
            instance.n_requests = 1
        heir.set_result(instance)
        return True

    def give_back(self, instance: Instance, *, answered: bool) -> None:
        """Keep *instance* for another request if it may serve one and its guest *answered* as it should; or drop it."""
        self._pools.give_back(self, instance, answered=answered)


class WarmPools:
    """
    A worker's warm pools, within one bound on slots and one on memory; lives as long as the worker.

    Instances that are ready count against nobody's permits. They never take more than a quarter of the worker's
    slots, are made only while another quarter is free, and go at once when requests need their slots. A function that
    is not called and has no ``min`` costs nothing: no timer, no memory, no code that stays loaded.
    Thread: the loop.
    """

    def __init__(
        self,
        runtime: Runtime,
        code: CodeCache,
        admission: Admission,
        clock: Clock,
        *,
        n_workers: int,
        at_once: int,
        budget_bytes: int,
        prepare_timeout_s: float,
        on_line: Callable[[str, int, bytes], None],
    ) -> None:
        """
        Args: *n_workers* share what a manifest asks for; *at_once* instances are made side by side, each within
        *prepare_timeout_s*; *budget_bytes* is what the memories of those that wait may take; *on_line* gets function,
        version and a line for the function's log.
        """
        self._runtime = runtime
        self._code = code
        self._admission = admission
        self._clock = clock
        self._n_workers = n_workers
        self._at_once = at_once
        self._budget_bytes = budget_bytes
        self._prepare_timeout_s = prepare_timeout_s
        self._on_line = on_line
        self._max_held = admission.slots // 4
        self._counters: dict[str, dict[str, float]] = {}
        self._stocked: dict[WarmPool, None] = {}  # who has instances, the one that was used last at the end
        self._wanting: dict[WarmPool, None] = {}  # who has too few; each makes one, then it is the next one's turn
        self._failing: dict[WarmPool, None] = {}  # who wants one, but not before the next sweep, or its pause is over
        self._keeping: dict[WarmPool, None] = {}  # who keeps its code in use
        self._making: dict[WarmPool, asyncio.Task[None]] = {}
        self._looked_at = 0.0
        self._looking = False
        self._graced = False
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False
        self.n_held = 0
        """How many slots the pools hold, for instances that are ready or being made."""
        self.n_bytes = 0
        """What the memories and the ``/tmp`` of instances that are ready take."""
        code.on_drop = self._drop_code

    # functions

    def open(self, deployment: Deployment, *, after: WarmPool | None = None) -> WarmPool | None:
        """
        Return a pool for *deployment*, which is served from now on; None if its manifest wants none.

        Args: *after* is the pool of the version it replaces: its arrivals go on.
        """
        warm = deployment.manifest.warm
        if not warm.max or not self._max_held or self._closed:
            return None
        if deployment.kind is Kind.HTTP:
            return None  # a component's instance is made for its request; deploy refuses the setting
        pool = WarmPool(
            self,
            deployment,
            n_max=math.ceil(warm.max / self._n_workers),
            n_min=math.ceil(warm.min / self._n_workers),
        )
        if after is not None:
            pool.arrivals = after.arrivals
            pool.prepare_s = after.prepare_s
        self._want(pool)
        return pool

    def retire(self, pool: WarmPool) -> None:
        """Drop all that *pool* holds, for good: its version is not served any more."""
        pool.closed = True
        self._empty(pool)

    def counters_of(self, function: str) -> dict[str, float]:
        """Return the counters of *function*, which go on over its versions."""
        return self._counters.setdefault(function, {"warm_hits": 0, "warm_misses": 0, "warm_prepared": 0, "cpu_ms": 0})

    def stats(self) -> dict[str, dict[str, float]]:
        """Return the cumulative counters of each function that has or had a pool."""
        return self._counters

    def close(self) -> None:
        """Drop everything, and make nothing any more: the worker drains."""
        self._closed = True
        for pool in (*self._stocked, *self._making, *self._keeping):
            self.retire(pool)
        self._wanting.clear()
        self._failing.clear()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    # instances

    def take(self, pool: WarmPool, code: Code) -> Instance | None:
        """See ``WarmPool.take``."""
        now = self._clock.monotonic()
        pool.arrivals.note(now)
        instance = self._out(pool) if pool.stock else None
        if instance is not None and instance.code is not code:
            instance.close()  # the code was loaded anew since
            instance = None
        if instance is None:
            pool.counters["warm_misses"] += 1
        else:
            pool.counters["warm_hits"] += 1
            instance.n_requests += 1
            instance.desc = REUSED if instance.n_requests > 1 else WARM
        if (1 if instance is None else instance.n_requests) < pool.reuse:
            pool.n_coming_back += 1
        self._want(pool)
        return instance

    def give_back(self, pool: WarmPool, instance: Instance, *, answered: bool) -> None:
        """See ``WarmPool.give_back``."""
        may_return = instance.n_requests < pool.reuse
        if may_return:
            pool.n_coming_back -= 1
        if answered and may_return and len(pool.stock) < pool.n_max and self._may_wait(pool) and not instance.is_spent:
            n_bytes = instance.held_bytes
            if self.n_bytes + n_bytes <= self._budget_bytes:
                instance.end()
                self._put(pool, instance, n_bytes)
                return
        instance.close()
        if may_return:
            self._want(pool)

    def is_making(self, pool: WarmPool, *, begun_within_s: float) -> bool:
        """Return whether an instance of *pool* is being made, since less than *begun_within_s*."""
        return pool in self._making and self._clock.monotonic() - pool.making_since < begun_within_s

    def make_room(self) -> None:
        """Give up as many instances as requests that have a permit may need slots."""
        while self.n_held and self._admission.active + self.n_held > self._admission.slots:
            pool = self._first_to_give()
            if pool.stock:
                self._out(pool, oldest=True).close()
            else:
                self._cancel(pool)
            self._want(pool)

    def _first_to_give(self) -> WarmPool:
        """Return who loses an instance: what is beyond a ``min`` first, and of the function called longest ago."""
        for pool in self._stocked:
            if len(pool.stock) > pool.n_min:
                return pool
        return next(iter(self._stocked or self._making))

    def _may_wait(self, pool: WarmPool) -> bool:
        """Whether *pool* may hold one more: a quarter of the slots stays free, so that it isn't given up right away."""
        admission = self._admission
        n_free = admission.slots - admission.active - self.n_held
        return not (pool.closed or self._closed) and self.n_held < self._max_held and n_free > admission.slots // 4

    def _put(self, pool: WarmPool, instance: Instance, n_bytes: int) -> None:
        instance.waiting_bytes = n_bytes
        pool.stock.append(instance)
        self.n_held += 1
        self.n_bytes += n_bytes
        self._stocked.pop(pool, None)
        self._stocked[pool] = None
        self._sweep_later()

    def _out(self, pool: WarmPool, *, oldest: bool = False) -> Instance:
        instance = pool.stock.pop(0 if oldest else -1)
        self.n_held -= 1
        self.n_bytes -= instance.waiting_bytes
        if not pool.stock:
            del self._stocked[pool]
        return instance

    def _cancel(self, pool: WarmPool) -> None:
        making = self._making.pop(pool, None)
        if making is not None:
            self.n_held -= 1
            making.cancel()
            pool.hand_over(None)

    def _empty(self, pool: WarmPool) -> None:
        """Let go of all that *pool* has and wants."""
        self._wanting.pop(pool, None)
        self._failing.pop(pool, None)
        self._cancel(pool)
        while pool.stock:
            self._out(pool).close()
        self._release_code(pool)

    def _keep_code(self, pool: WarmPool, code: Code) -> None:
        """Have *pool* keep *code* in use, which is in use for it already."""
        pool.code = code
        self._keeping[pool] = None

    def _release_code(self, pool: WarmPool) -> None:
        code, pool.code = pool.code, None
        if code is not None:
            del self._keeping[pool]
            self._code.release(code)

    def _drop_code(self, key: CodeKey) -> None:
        """Drop the instances of code that is unloaded: they must not keep it in memory."""
        for pool in [pool for pool in self._stocked if pool.key == key]:
            pool.quiet_until = self._clock.monotonic() + IDLE_S  # else it might go on like this with every request
            while pool.stock:
                self._out(pool).close()
        for pool in [pool for pool in self._keeping if pool.key == key]:
            self._release_code(pool)

    # dropping what is too much

    def _sweep_later(self) -> None:
        if self._sweeping is None and not self._closed:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self.sweep)

    def sweep(self) -> None:
        """Drop one instance of each pool that has too many, and again later, until there is nothing left to drop."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        now = self._clock.monotonic()
        for pool in tuple(self._stocked):
            if len(pool.stock) > pool.most(now):
                self._out(pool, oldest=True).close()
        for pool in tuple(self._failing):
            if now >= pool.paused_until or not pool.lacks(now):
                del self._failing[pool]
                self._wanting[pool] = None
        if self._wanting:
            self._look_soon()
        if self._wanting or self._failing or any(len(pool.stock) > pool.n_min for pool in self._stocked):
            self._sweep_later()

    # making

    def _want(self, pool: WarmPool) -> None:
        """Have *pool* make instances when there is time, until it has as many as it should."""
        now = self._clock.monotonic()
        if self._closed or not pool.lacks(now):
            return
        if now < pool.paused_until:
            self._failing[pool] = None
            self._sweep_later()
            return
        self._wanting[pool] = None
        self._look_soon()

    def _look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looked_at = self._clock.monotonic()
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Make an instance, if the loop had nothing to do since the last look; it went round once meanwhile."""
        if self._clock.monotonic() - self._looked_at > BUSY_S:
            self._look()
            return
        self._looking = False
        pool = self._next()
        if pool is not None and not self._graced and not pool.is_quick:
            self._wanting[pool] = None
            self._looking = self._graced = True
            asyncio.get_running_loop().call_later(GRACE_S, self._look)
            return
        self._graced = False
        if pool is not None:
            self.n_held += 1
            pool.making_since = self._clock.monotonic()
            self._making[pool] = asyncio.get_running_loop().create_task(self._make(pool))
        elif self._wanting and not self._making:
            self._sweep_later()  # no room now

    def _next(self) -> WarmPool | None:
        """Return who is to make an instance now, None if nobody wants to or may."""
        if len(self._making) >= self._at_once:
            return None
        now = self._clock.monotonic()
        for pool in tuple(self._wanting):
            if pool in self._making:
                continue
            if not pool.lacks(now):
                del self._wanting[pool]
            elif self._may_wait(pool) and self.n_bytes + pool.instance_bytes <= self._budget_bytes:
                del self._wanting[pool]
                return pool
        return None

    async def _make(self, pool: WarmPool) -> None:
        instance: Instance | None = None
        failed = False
        try:
            instance = await self._made(pool)
        except OverloadedError:
            failed = True
        except (FaasError, GuestExit, NotPreparableError, TimeoutError) as exc:
            failed = True
            self._failed(pool, exc)
        finally:
            # Not if it was cancelled by us: then whoever did that has counted already.
            if self._making.get(pool) is asyncio.current_task():
                del self._making[pool]
                self.n_held -= 1
            if instance is None:
                pool.hand_over(None)
        if instance is not None:
            self._put_new(pool, instance)
        if failed:
            self._wanting.pop(pool, None)
            if pool.lacks(self._clock.monotonic()):
                self._failing[pool] = None
                self._sweep_later()
        elif instance is not None:
            self._want(pool)
        if self._wanting:
            self._look_soon()

    async def _made(self, pool: WarmPool) -> Instance | None:
        """
        Return a new instance of *pool*; None if its code is not loaded, and need not be.

        Raises: FaasError, GuestExit, NotPreparableError, TimeoutError.
        """
        # For itself, also where the pool keeps it: the pool may let go of it before this one is made.
        code = self._code.try_acquire(pool.key)
        if code is None:
            if not pool.n_min:
                return None
            code = await self._code.acquire(pool.deployment)
        try:
            deployment = pool.deployment
            instance = Instance(
                self._runtime,
                deployment,
                code,
                self._clock,
                lambda line: self._on_line(deployment.function, deployment.version, line),
            )
            began = self._clock.monotonic()
            try:
                async with asyncio.timeout(self._prepare_timeout_s):
                    await instance.prepare(background=not pool.is_quick)
            except BaseException:
                instance.close()
                raise
            finally:
                pool.counters["cpu_ms"] += instance.fiber.cpu_ns / 1e6
            _smooth(pool, self._clock.monotonic() - began, instance.fiber.cpu_ns)
            return instance
        finally:
            if pool.code is None and pool.n_min and not (pool.closed or pool.gave_up or self._closed):
                self._keep_code(pool, code)
            else:
                self._code.release(code)

    def _put_new(self, pool: WarmPool, instance: Instance) -> None:
        n_bytes = instance.held_bytes
        pool.n_failures = 0
        pool.pause_s = 0.0
        pool.instance_bytes = n_bytes
        pool.counters["warm_prepared"] += 1
        if pool.hand_over(instance):
            return
        if n_bytes > self._budget_bytes:
            instance.close()
            self._give_up(pool, f"its memory and /tmp of {n_bytes} bytes are more than all that wait may take")
        elif pool.closed or self._closed or self.n_bytes + n_bytes > self._budget_bytes:
            instance.close()
        else:
            self._put(pool, instance, n_bytes)

    def _failed(self, pool: WarmPool, failure: BaseException) -> None:
        cause = failure.__cause__ if isinstance(failure.__cause__, NotPreparableError) else failure
        if isinstance(cause, NotPreparableError):
            self._give_up(pool, _reason(cause))
        elif isinstance(cause, (GuestExit, InvocationError)):
            pool.n_failures += 1
            if pool.n_failures >= MAX_FAILURES:
                self._give_up(pool, _reason(cause))
        else:
            self._pause(pool, _reason(cause))

    def _pause(self, pool: WarmPool, reason: str) -> None:
        before_s, pool.pause_s = pool.pause_s, min(MAX_PAUSE_S, 2 * pool.pause_s or SWEEP_S)
        pool.paused_until = self._clock.monotonic() + pool.pause_s
        if pool.pause_s > before_s:  # else the log has it already
            line = f"no instance of this version is made ahead of its request for {pool.pause_s:g} s: {reason}"
            self._on_line(pool.deployment.function, pool.deployment.version, line.encode("utf-8", "replace"))

    def _give_up(self, pool: WarmPool, reason: str) -> None:
        pool.gave_up = True
        self._empty(pool)
        deployment = pool.deployment
        event(_log, "warm.gave_up", function=deployment.function, version=deployment.version, reason=reason)
        line = f"no instance of this version is made ahead of its request: {reason}"
        self._on_line(deployment.function, deployment.version, line.encode("utf-8", "replace"))


def _smooth(pool: WarmPool, took_s: float, cpu_ns: int) -> None:
    weight = _SMOOTHING if pool.prepare_ns else 1.0
    pool.prepare_s += (took_s - pool.prepare_s) * weight
    pool.prepare_ns += int((cpu_ns - pool.prepare_ns) * weight)


def _reason(failure: BaseException) -> str:
    if isinstance(failure, TimeoutError):
        return "it took too long to start"
    if isinstance(failure, GuestExit):
        return f"it exited with code {failure.code} while it started"
    return failure.message if isinstance(failure, FaasError) else str(failure)
