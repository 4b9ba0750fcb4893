"""Lending: no host runs more of a function than its limit, and no permit lies idle while a request lacks one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.control.shares import ShareLedger
from faas.errors import ConcurrencyLimitError, FunctionNotFoundError
from faas.gateway.admission import HOLD_S, LENDING_S, Admission, Permits
from faas.invocation import Deployment, Kind
from faas.manifest import Limits, Manifest
from faas.wire.messages import Share, Shares, first_share


class HandClock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


def deployment(name: str, limit: int) -> Deployment:
    return Deployment(
        function=name,
        version=1,
        kind=Kind.COMMAND,
        manifest=Manifest(name=name, limits=Limits(max_concurrency=limit)),
        wasm_digest="",
        artifact_key="",
        bundle_digest="",
    )


class Host:
    """Workers and the ledger; messages lie on the wire until ``deliver``."""

    def __init__(
        self, n_workers: int, limit: int, *, slots: int = 99, max_queue: int = 99, timeout_s: float = 60
    ) -> None:
        self.n_workers, self.slots, self.max_queue, self.timeout_s = n_workers, slots, max_queue, timeout_s
        self.clock = HandClock()
        self.ledger = ShareLedger(n_workers)
        self.limit = limit
        self.ledger.serve([deployment("f", limit)])
        self.workers: list[Admission] = []
        self.permits: list[Permits] = []
        self.up: list[deque[Shares]] = [deque() for _ in range(n_workers)]
        self.down: list[deque[Shares]] = [deque() for _ in range(n_workers)]
        for index in range(n_workers):
            self.workers.append(None)  # type: ignore[arg-type]
            self.permits.append(None)  # type: ignore[arg-type]
            self.begin(index)

    def begin(self, index: int) -> None:
        """Start the process of worker *index*."""
        gate = Admission(
            self.slots,
            max_queue=self.max_queue,
            queue_timeout_s=self.timeout_s,
            worker=index,
            n_workers=self.n_workers,
            clock=self.clock,
        )
        self.workers[index] = gate
        self.permits[index] = gate.configure("f", limit=self.limit)
        gate.begin_with(self.ledger.connect(index))

    def die(self, index: int) -> None:
        """End the process of worker *index*, with all that runs in it; what it sent last still arrives."""
        self.collect()
        while self.up[index]:
            self._tell(self.ledger.report(index, self.up[index].popleft()))
        self.down[index].clear()
        self._tell(self.ledger.retire(index))
        self.down[index].clear()

    def _tell(self, told: dict[int, Shares]) -> None:
        for index, shares in told.items():
            self.down[index].append(shares)

    def collect(self) -> None:
        """Put on the wire what workers have to say."""
        for index, gate in enumerate(self.workers):
            news = gate.take_news()
            if news.names:
                self.up[index].append(news)

    def step(self, index: int, *, up: bool) -> None:
        """Have the oldest message to or from worker *index* arrive."""
        self.collect()
        if up and self.up[index]:
            self._tell(self.ledger.report(index, self.up[index].popleft()))
        elif not up and self.down[index]:
            self.workers[index].lent(self.down[index].popleft().names)

    async def deliver(self) -> None:
        """Have all messages arrive, and what they cause."""
        for _ in range(100):
            for _ in range(5):
                await asyncio.sleep(0)
            self.collect()
            if not any(self.up) and not any(self.down):
                return
            for index in range(self.n_workers):
                self.step(index, up=True)
                self.step(index, up=False)
        raise AssertionError("they never stop talking")

    @property
    def used(self) -> list[int]:
        return [permits.used for permits in self.permits]

    def come(self, demand: Sequence[int]) -> list[asyncio.Task[None]]:
        """Have so many requests come to each worker; give them up by ``_cancelled``."""
        return [
            asyncio.create_task(gate.acquire(permits))
            for gate, permits, n in zip(self.workers, self.permits, demand, strict=True)
            for _ in range(n)
        ]

    def owner(self) -> int:
        """The worker that the only permit begins at."""
        return next(w for w in range(self.n_workers) if first_share(self.limit, "f", w, self.n_workers))


@pytest.mark.parametrize(("limit", "n_workers"), [(1, 1), (1, 2), (3, 2), (7, 4), (500, 3), (2, 5)])
def test_what_workers_begin_with_adds_up_to_the_limit(limit: int, n_workers: int) -> None:
    for name in ("a", "b", "c"):
        shares = [first_share(limit, name, worker, n_workers) for worker in range(n_workers)]
        assert sum(shares) == limit
        assert max(shares) - min(shares) <= 1


async def test_a_request_that_finds_a_permit_says_nothing_to_anybody() -> None:
    host = Host(2, 2)
    for gate, permits in zip(host.workers, host.permits, strict=True):
        assert gate.try_acquire(permits)
        gate.release(permits)
        assert gate.take_news() == Shares({})


async def test_a_worker_without_a_permit_gets_the_one_that_lies_idle_elsewhere() -> None:
    host = Host(2, 1)
    without = 1 - host.owner()
    waiting = asyncio.create_task(host.workers[without].acquire(host.permits[without]))
    await host.deliver()
    assert waiting.done()
    assert host.used[without] == 1
    assert not host.workers[1 - without].try_acquire(host.permits[1 - without])


async def test_one_worker_can_run_all_that_the_function_may_while_the_others_are_idle() -> None:
    host = Host(4, 6)
    tasks = [asyncio.create_task(host.workers[0].acquire(host.permits[0])) for _ in range(8)]
    await host.deliver()
    assert host.used == [6, 0, 0, 0]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_workers_that_are_all_busy_have_the_only_permit_in_turn() -> None:
    host = Host(2, 1)
    a = host.owner()
    tasks = [asyncio.create_task(host.workers[w].acquire(host.permits[w])) for w in (a, a, a, 1 - a, 1 - a, 1 - a)]
    await host.deliver()
    assert host.used[a] == 1
    host.workers[a].release(host.permits[a])
    await host.deliver()
    assert (host.used[a], host.used[1 - a]) == (0, 1)
    host.workers[1 - a].release(host.permits[1 - a])  # it keeps it for a while: it has work for it
    await host.deliver()
    assert (host.used[a], host.used[1 - a]) == (0, 1)
    host.clock.now += 2 * HOLD_S
    host.workers[1 - a].release(host.permits[1 - a])
    await host.deliver()
    assert (host.used[a], host.used[1 - a]) == (1, 0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_was_borrowed_goes_back_as_it_comes_free_to_a_worker_that_wants_its_part() -> None:
    host = Host(2, 4)
    tasks = [asyncio.create_task(host.workers[0].acquire(host.permits[0])) for _ in range(9)]
    await host.deliver()
    assert host.used == [4, 0]
    tasks += [asyncio.create_task(host.workers[1].acquire(host.permits[1])) for _ in range(9)]
    await host.deliver()
    for _ in range(4):
        host.workers[0].release(host.permits[0])
        await host.deliver()
    assert host.used == [2, 2]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_function_whose_requests_never_wait_still_gets_the_permit_for_the_next_one() -> None:
    host = Host(2, 1, max_queue=0)
    without = 1 - host.owner()
    with pytest.raises(ConcurrencyLimitError):
        await host.workers[without].acquire(host.permits[without])
    await host.deliver()
    assert host.workers[without].try_acquire(host.permits[without])


async def test_a_worker_that_dies_leaves_its_permits_to_the_others_and_its_successor_gets_them_back() -> None:
    host = Host(2, 2)
    tasks = [asyncio.create_task(host.workers[1].acquire(host.permits[1])) for _ in range(2)]
    await host.deliver()
    assert host.used == [0, 2]
    host.die(1)
    await asyncio.gather(*(_cancelled(task) for task in tasks))
    tasks = [asyncio.create_task(host.workers[0].acquire(host.permits[0])) for _ in range(3)]
    await host.deliver()
    assert host.used[0] == 2
    host.begin(1)
    assert not host.workers[1].try_acquire(host.permits[1])
    late = asyncio.create_task(host.workers[1].acquire(host.permits[1]))
    await host.deliver()
    host.workers[0].release(host.permits[0])
    await host.deliver()
    assert late.done()
    assert host.used == [1, 1]
    await asyncio.gather(*(_cancelled(task) for task in tasks))


async def test_what_is_about_a_limit_of_before_is_void() -> None:
    host = Host(2, 4)
    host.ledger.serve([deployment("f", 6)])
    assert host.ledger.report(0, Shares({"f": Share(limit=4, n_given=2, n_wanted=3)})) == {}
    gate = host.workers[0]
    gate.lent({"f": Share(limit=3, n_given=2, n_wanted=1)})
    assert host.permits[0].share == 2
    assert gate.configure("f", limit=6).share == 3


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


STEPS = st.lists(
    st.tuples(st.sampled_from(["come", "come", "go", "leave", "up", "down", "time", "die"]), st.integers(0, 15)),
    max_size=80,
)


@pytest.mark.parametrize(
    ("limit", "demand"),
    [
        (3, (5, 5, 0)),
        (4, (0, 6, 6, 0)),
        (5, (7, 7, 0, 0)),
        (8, (10, 10, 0, 0)),
        (16, (18, 18, 18, 18) + 12 * (0,)),
        (7, (2, 3, 0, 1, 0)),
    ],
)
async def test_busy_workers_share_what_idle_ones_lend_and_keep_it(limit: int, demand: tuple[int, ...]) -> None:
    host = Host(len(demand), limit)
    tasks = host.come(demand)
    await host.deliver()  # fails if they never stop talking
    assert sum(host.used) == min(limit, sum(demand))
    await asyncio.gather(*map(_cancelled, tasks))


@given(limit=st.integers(1, 40), demand=st.lists(st.integers(0, 12), min_size=3, max_size=16), data=st.data())
def test_however_many_workers_lack_permits_all_are_used_and_they_stop_talking(
    limit: int, demand: list[int], data: st.DataObject
) -> None:
    """Requests come while messages are under way."""

    async def run() -> None:
        host = Host(len(demand), limit)
        tasks = host.come(demand)
        for w in data.draw(st.lists(st.integers(0, len(demand) - 1), max_size=40)):
            host.step(w, up=data.draw(st.booleans()))
        more = data.draw(st.lists(st.integers(0, 3), min_size=len(demand), max_size=len(demand)))
        tasks += host.come(more)
        await host.deliver()
        assert sum(host.used) == min(limit, sum(demand) + sum(more))
        await asyncio.gather(*map(_cancelled, tasks))

    asyncio.run(run())


@given(
    limit=st.integers(1, 20),
    workers=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=8),
    reserved=st.integers(0, 2),
)
def test_workers_whose_slots_are_taken_are_quiet_and_get_permits_once_slots_are_free(
    limit: int, workers: list[tuple[int, int]], reserved: int
) -> None:
    """Of each worker's three slots another function has some; permits that can't be used there are not asked for."""

    async def run() -> None:
        host = Host(len(workers), limit, slots=3)
        others = [gate.configure("other", limit=1000) for gate in host.workers]
        for gate, other, (n_taken, _) in zip(host.workers, others, workers, strict=True):
            for _ in range(n_taken):
                assert gate.try_acquire(other)
        for gate in host.workers:
            gate.configure("f", limit=limit, reserved=reserved)
        tasks = host.come([n for _, n in workers])
        await host.deliver()
        for gate, other, (n_taken, _) in zip(host.workers, others, workers, strict=True):
            for _ in range(n_taken):
                gate.release(other)
                await host.deliver()
        # Each worker can run three of those that wait there.
        assert sum(host.used) == min(limit, sum(min(3, n) for _, n in workers))
        await asyncio.gather(*map(_cancelled, tasks))

    asyncio.run(run())


@pytest.mark.parametrize(("limit", "n_workers"), [(2, 4), (8, 4), (16, 4), (4, 2)])
async def test_a_burst_at_one_worker_is_not_refused_while_permits_lie_idle_elsewhere(
    limit: int, n_workers: int
) -> None:
    host = Host(n_workers, limit, timeout_s=5)
    for permits in host.permits:
        permits.service_s = 3.0
    w = min(range(n_workers), key=lambda w: host.permits[w].share)
    tasks = host.come([limit if w == index else 0 for index in range(n_workers)])
    await host.deliver()
    assert host.used[w] == limit
    assert all(task.done() and task.exception() is None for task in tasks)


async def test_a_long_queue_is_refused_early_again_once_the_others_had_time_to_lend() -> None:
    host = Host(2, 4, timeout_s=5)
    tasks = host.come([2, 3])
    await host.deliver()
    assert host.used == [2, 2]
    host.permits[1].service_s = 4.0
    tasks += host.come([0, 2])
    await host.deliver()
    assert not any(task.done() for task in tasks[4:])  # three wait: with all four permits that would be 4 s
    host.clock.now += 2 * LENDING_S
    with pytest.raises(ConcurrencyLimitError) as refused:
        await host.workers[1].acquire(host.permits[1])
    assert refused.value.retry_after_s == 8.0  # the fourth: in two rounds of two
    await asyncio.gather(*map(_cancelled, tasks))


async def test_who_waits_on_a_worker_without_a_permit_is_told_when_the_function_is_removed() -> None:
    host = Host(2, 2)
    tasks = host.come([0, 2])
    await host.deliver()
    assert host.used == [0, 2]
    stranded = host.come([2, 0])
    tasks += host.come([0, 1])
    for _ in range(3):
        await asyncio.sleep(0)
    late = host.permits[0]
    for gate in host.workers:
        gate.forget("f")
    host.ledger.serve([])
    for task in stranded:
        with pytest.raises(FunctionNotFoundError):
            await task
    with pytest.raises(FunctionNotFoundError):  # it had found the function, and not yet begun to wait
        await host.workers[0].acquire(late)
    assert host.workers[0].queued == 0
    # The other one's requests go on, one after the other.
    host.workers[1].release(host.permits[1])
    await asyncio.gather(*tasks)
    assert host.used == [0, 2]
    assert not any(gate.take_news().names for gate in host.workers)


async def test_what_ends_of_a_removed_function_does_not_hide_what_its_successor_wants() -> None:
    host = Host(2, 2)
    gate, old = host.workers[0], host.permits[0]
    assert gate.try_acquire(old)
    gate.lent({"f": Share(limit=2, n_given=0, n_wanted=1)})
    gate.forget("f")
    new = gate.configure("f", limit=2)
    assert gate.try_acquire(new)
    waiting = asyncio.create_task(gate.acquire(new))
    await asyncio.sleep(0)
    gate.release(old)
    assert gate.take_news() == Shares({"f": Share(limit=2, n_given=0, n_wanted=1)})
    await _cancelled(waiting)


@given(steps=STEPS, limit=st.integers(1, 20), n_workers=st.integers(1, 16))
def test_whatever_happens_no_more_run_than_allowed_and_all_that_wait_are_served_in_the_end(
    steps: list[tuple[str, int]], limit: int, n_workers: int
) -> None:
    """Messages arrive late, workers die at any time."""

    async def run() -> None:
        host = Host(n_workers, limit)
        tasks: list[list[asyncio.Task[None]]] = [[] for _ in range(n_workers)]
        for step, n in steps:
            w = n % n_workers
            if step == "come":
                tasks[w].append(asyncio.create_task(host.workers[w].acquire(host.permits[w])))
            elif step == "go" and host.permits[w].used:
                host.workers[w].release(host.permits[w])
            elif step == "leave" and tasks[w]:
                tasks[w][n % len(tasks[w])].cancel()
            elif step in {"up", "down"}:
                host.step(w, up=step == "up")
            elif step == "time":
                host.clock.now += 2 * HOLD_S
            elif step == "die":
                host.die(w)
                await asyncio.gather(*map(_cancelled, tasks[w]))
                tasks[w] = []
                host.begin(w)
            for _ in range(3):
                await asyncio.sleep(0)
            assert sum(host.used) <= limit
        for _ in range(400):
            await host.deliver()
            assert sum(host.used) <= limit
            if not any(gate.queued for gate in host.workers):
                break
            host.clock.now += 2 * HOLD_S
            # Nobody waits while a permit lies idle anywhere.
            assert sum(host.used) == limit
            busy = next(w for w in range(n_workers) if host.permits[w].used)
            host.workers[busy].release(host.permits[busy])
        assert not any(gate.queued for gate in host.workers)
        await asyncio.gather(*(_cancelled(task) for each in tasks for task in each))

    asyncio.run(run())
