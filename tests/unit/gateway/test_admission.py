"""Admission: never more than allowed, fair by what each holds, and nobody waits for ever or in vain."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import ConcurrencyLimitError, OverloadedError
from faas.gateway.admission import Admission, Permits
from faas.wire.messages import Share


def admission(slots: int = 1, *, max_queue: int = 10, queue_timeout_s: float = 10.0) -> Admission:
    return Admission(slots, max_queue=max_queue, queue_timeout_s=queue_timeout_s)


_names = (f"f{n}" for n in itertools.count())


def function(gate: Admission, limit: int = 9, name: str = "", **settings: Any) -> Permits:
    """Return the permits of function *name*, by default of one that the gate did not know."""
    return gate.configure(name or next(_names), limit=limit, **settings)


async def turns() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_no_more_than_the_hosts_slots_run_at_once() -> None:
    gate = admission(2)
    assert [gate.try_acquire(function(gate, 9)) for _ in range(3)] == [True, True, False]


def test_no_more_than_a_functions_own_limit_run_at_once() -> None:
    gate = admission(9)
    mine, other = function(gate, 1), function(gate, 9)
    assert gate.try_acquire(mine)
    assert not gate.try_acquire(mine)
    assert gate.try_acquire(other)


def test_a_permit_that_is_given_back_can_be_taken_again() -> None:
    gate = admission()
    permits = function(gate, 1)
    for _ in range(3):
        assert gate.try_acquire(permits)
        gate.release(permits)
    assert (gate.active, permits.used) == (0, 0)


async def test_those_who_wait_are_served_in_the_order_they_came() -> None:
    gate = admission()
    permits = function(gate, 9)
    served: list[int] = []

    async def request(i: int) -> None:
        await gate.acquire(permits)
        served.append(i)
        gate.release(permits)

    gate.try_acquire(permits)
    async with asyncio.TaskGroup() as group:
        for i in range(5):
            group.create_task(request(i))
        await turns()
        assert (served, gate.queued) == ([], 5)
        gate.release(permits)
    assert served == [0, 1, 2, 3, 4]
    assert gate.active == 0


async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    gate = admission(2)
    permits = function(gate, 9)
    assert gate.try_acquire(permits)
    assert gate.try_acquire(permits)
    waiting = asyncio.create_task(gate.acquire(permits))
    await turns()
    gate.release(permits)
    assert not gate.try_acquire(function(gate, 9))
    await waiting


async def test_a_function_at_its_limit_does_not_hold_up_those_behind_it() -> None:
    gate = admission(2)
    busy, other = function(gate, 1), function(gate, 1)
    gate.try_acquire(busy)
    first = asyncio.create_task(gate.acquire(busy))
    await turns()
    await asyncio.wait_for(gate.acquire(other), 1)
    assert not first.done()
    gate.release(busy)
    await asyncio.wait_for(first, 1)


async def test_a_wait_over_the_deadline_is_overloaded_and_leaves_no_trace() -> None:
    gate = admission(queue_timeout_s=0.01)
    permits = function(gate, 9)
    gate.try_acquire(permits)
    with pytest.raises(OverloadedError) as raised:
        await gate.acquire(permits)
    assert raised.value.retry_after_s > 0
    assert (gate.active, gate.queued, permits.used) == (1, 0, 1)


async def test_a_full_queue_refuses_at_once() -> None:
    gate = admission(max_queue=1)
    permits = function(gate, 9)
    gate.try_acquire(permits)
    waiting = asyncio.create_task(gate.acquire(permits))
    await turns()
    with pytest.raises(OverloadedError):
        await gate.acquire(permits)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_function_with_a_full_queue_of_its_own_is_refused_while_others_wait() -> None:
    gate = admission()
    small, other = function(gate, 9, max_queue=1), function(gate, 9)
    gate.try_acquire(other)
    waiting = [asyncio.create_task(gate.acquire(permits)) for permits in (small, other, other)]
    await turns()
    with pytest.raises(OverloadedError):
        await gate.acquire(small)
    assert gate.queued == 3
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_function_at_its_own_limit_is_told_so() -> None:
    gate = admission(9, max_queue=0)
    permits = function(gate, 1)
    gate.try_acquire(permits)
    with pytest.raises(ConcurrencyLimitError, match=r"limits\.max_concurrency"):
        await gate.acquire(permits)


async def test_who_would_wait_longer_than_allowed_is_refused_at_once_with_the_time_it_takes() -> None:
    gate = admission(9, queue_timeout_s=5)
    permits = function(gate, 2)
    for _ in range(2):
        gate.try_acquire(permits)
    gate.release(permits, held_s=4.0)
    gate.try_acquire(permits)
    # Two run, 4 s each: the first two waiters may be lucky, the third would wait for 6 s.
    waiting = [asyncio.create_task(gate.acquire(permits)) for _ in range(2)]
    await turns()
    with pytest.raises(ConcurrencyLimitError) as raised:
        await gate.acquire(permits)
    assert raised.value.retry_after_s == 6.0
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_the_service_time_follows_what_is_seen() -> None:
    gate = admission()
    permits = function(gate, 1)
    for held_s in (1.0, 1.0, 2.0):
        gate.try_acquire(permits)
        gate.release(permits, held_s=held_s)
    assert permits.service_s == pytest.approx(1.2)


async def test_a_freed_slot_goes_to_who_holds_the_fewest_by_weight() -> None:
    gate = admission(7)
    slow, quick, heavy = function(gate, 9), function(gate, 9), function(gate, 9, weight=3)
    for permits in (slow, slow, slow, slow, quick, heavy, heavy):
        assert gate.try_acquire(permits)
    served: list[str] = []

    async def request(name: str, permits: Permits) -> None:
        await gate.acquire(permits)
        served.append(name)

    names = {"slow": slow, "quick": quick, "heavy": heavy}
    tasks = [asyncio.create_task(request(name, names[name])) for name in ("slow", "quick", "heavy", "heavy")]
    await turns()
    for _ in range(3):
        gate.release(slow)
        await turns()
    # The first: slow holds 3, quick 1, heavy 2 of weight 3. The second: heavy holds as much for its weight as quick,
    # and has just had a turn. The third: slow is down to 1.
    assert served == ["heavy", "quick", "slow"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_reserved_slots_are_kept_for_their_function() -> None:
    gate = admission(4)
    mine, other = function(gate, 9, reserved=2), function(gate, 9)
    assert [gate.try_acquire(other) for _ in range(3)] == [True, True, False]
    assert [gate.try_acquire(mine) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("end", ["configure", "forget"])
async def test_a_reservation_that_ends_frees_its_slots_for_those_who_wait(end: str) -> None:
    gate = admission(2)
    function(gate, 9, "mine", reserved=1)
    other = function(gate)
    assert gate.try_acquire(other)
    waiting = asyncio.create_task(gate.acquire(other))
    await turns()
    assert gate.queued == 1
    if end == "configure":
        function(gate, 9, "mine", reserved=0)
    else:
        gate.forget("mine")
    await asyncio.wait_for(waiting, 1)
    assert (gate.active, other.used) == (2, 2)


async def test_a_reserved_permit_that_is_lent_frees_its_slot_for_those_who_wait() -> None:
    gate = Admission(2, max_queue=9, queue_timeout_s=9, worker=0, n_workers=2)
    mine, other = function(gate, 2, "mine", reserved=1), function(gate, 20)
    assert gate.try_acquire(other)
    (waiting,) = await queue(gate, other, 1)
    assert not waiting.done()
    gate.lent({"mine": Share(limit=2, n_given=0, n_wanted=1)})
    await asyncio.wait_for(waiting, 1)
    assert (mine.share, other.used) == (0, 2)


async def test_a_raised_limit_lets_those_in_who_wait() -> None:
    gate = admission()
    permits = function(gate, 1, "mine")
    gate.slots = 2
    gate.try_acquire(permits)
    waiting = asyncio.create_task(gate.acquire(permits))
    await turns()
    assert function(gate, 2, "mine") is permits
    await asyncio.wait_for(waiting, 1)


async def test_what_runs_of_a_forgotten_function_still_counts_until_it_ends() -> None:
    gate = admission(1)
    permits = function(gate, 9, "mine", reserved=1)
    gate.try_acquire(permits)
    gate.forget("mine")
    other = function(gate)
    assert not gate.try_acquire(other)
    gate.release(permits)
    assert gate.try_acquire(other)


async def test_who_is_cancelled_in_the_queue_leaves_it() -> None:
    gate = admission()
    permits = function(gate, 9)
    gate.try_acquire(permits)
    leaver, stayer = (asyncio.create_task(gate.acquire(permits)) for _ in range(2))
    await turns()
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert gate.queued == 1
    gate.release(permits)
    await asyncio.wait_for(stayer, 1)
    assert gate.active == 1


async def test_who_is_cancelled_in_the_moment_of_getting_a_permit_hands_it_on() -> None:
    gate = admission()
    permits = function(gate, 9)
    gate.try_acquire(permits)
    leaver, stayer = (asyncio.create_task(gate.acquire(permits)) for _ in range(2))
    await turns()
    gate.release(permits)  # the leaver has it now, and does not know yet
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    await asyncio.wait_for(stayer, 1)
    assert (gate.active, permits.used) == (1, 1)


async def test_waiting_for_idle_ends_with_the_last_permit() -> None:
    gate = admission(2)
    permits = function(gate, 9)
    await asyncio.wait_for(gate.wait_idle(), 1)
    gate.try_acquire(permits)
    gate.try_acquire(permits)
    idle = asyncio.create_task(gate.wait_idle())
    await turns()
    gate.release(permits)
    await turns()
    assert not idle.done()
    gate.release(permits)
    await asyncio.wait_for(idle, 1)


async def test_giving_up_on_idle_is_fine() -> None:
    gate = admission()
    permits = function(gate, 9)
    gate.try_acquire(permits)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gate.wait_idle(), 0.01)
    gate.release(permits)
    assert gate.active == 0


@given(st.lists(st.tuples(st.sampled_from(["come", "go", "leave"]), st.integers(0, 5)), max_size=40))
def test_whatever_comes_and_goes_the_books_balance(steps: list[tuple[str, int]]) -> None:
    """Two slots, three functions of limit one, one with a reserved slot: whatever comes, leaves or gives up."""

    async def run() -> None:
        gate = admission(2, max_queue=4)
        functions = [function(gate, 1), function(gate, 1), function(gate, 1, reserved=1)]
        tasks: list[asyncio.Task[None]] = []
        running: list[Permits] = []

        async def request(permits: Permits) -> None:
            await gate.acquire(permits)
            running.append(permits)

        for step, n in steps:
            if step == "come":
                tasks.append(asyncio.create_task(request(functions[n % 3])))
            elif step == "go" and running:
                gate.release(running.pop(n % len(running)))
            elif step == "leave" and tasks:
                tasks[n % len(tasks)].cancel()
            if n % 2:
                await turns()
            assert gate.active == sum(permits.used for permits in functions) <= 2
            assert sum(permits.used for permits in functions[:2]) <= 1  # one slot is the third one's
            assert all(permits.used <= 1 for permits in functions)
            assert gate.queued <= 4
        await turns()
        assert gate.active == len(running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while running:
            gate.release(running.pop())
        assert (gate.active, gate.queued) == (0, 0)

    asyncio.run(run())


async def queue(gate: Admission, permits: Permits, n: int) -> list[asyncio.Task[None]]:
    """Have *n* requests wait for *permits*, in this order."""
    tasks = [asyncio.create_task(gate.acquire(permits)) for _ in range(n)]
    await turns()
    return tasks


async def end(tasks: list[asyncio.Task[None]]) -> list[BaseException | None]:
    """Give up whatever still waits; return what each one met."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_never_more_than_half_of_the_slots_are_kept_free_whatever_is_reserved() -> None:
    gate = admission(4)
    function(gate, 9, reserved=9)
    other = function(gate)
    assert [gate.try_acquire(other) for _ in range(3)] == [True, True, False]


async def test_a_reservation_is_served_before_others_of_those_who_wait() -> None:
    gate = admission(4)
    mine, other = function(gate, 9, reserved=2), function(gate, 9, weight=100)
    assert all(gate.try_acquire(permits) for permits in (mine, mine, other, other))
    waiting = [*await queue(gate, other, 1), *await queue(gate, mine, 1)]
    gate.release(mine)
    await turns()
    # By weight it is the other's turn, but the slot was kept for this one.
    assert [task.done() for task in waiting] == [False, True]
    await end(waiting)


async def test_a_function_with_a_long_queue_and_few_running_gets_its_fair_part_and_is_not_refused_early() -> None:
    gate = admission(10, max_queue=99, queue_timeout_s=5)
    mine, other = function(gate), function(gate, 100)
    gate.try_acquire(mine)
    gate.release(mine, held_s=4.0)
    assert gate.try_acquire(mine)
    assert all(gate.try_acquire(other) for _ in range(9))
    waiting = [*await queue(gate, other, 1), *await queue(gate, mine, 6)]
    # One runs, but of the ten slots five are its due: six waiters take 6 × 4 s / 5, not 24 s.
    assert not any(task.done() for task in waiting)
    waiting += await queue(gate, mine, 1)
    assert isinstance(waiting[-1].exception(), OverloadedError)
    await end(waiting)


async def test_when_no_place_is_left_the_longest_queue_gives_its_newest_one_up() -> None:
    gate = admission(max_queue=4)
    busy, quiet = function(gate), function(gate)
    gate.try_acquire(busy)
    crowd = await queue(gate, busy, 4)
    newcomers = await queue(gate, quiet, 3)
    refused = crowd[3].exception()
    assert isinstance(refused, OverloadedError)
    assert refused.retry_after_s > 0
    # Two and two: one more would be no fairer.
    assert [task.done() for task in (*crowd, *newcomers)] == [False, False, True, True, False, False, True]
    assert isinstance(newcomers[2].exception(), OverloadedError)
    assert (gate.queued, len(busy.waiting), len(quiet.waiting)) == (4, 2, 2)
    for _ in range(2):
        gate.release(busy)
        await turns()
    assert [task.done() for task in (crowd[0], newcomers[0])] == [True, True]
    await end(crowd + newcomers)
    assert gate.queued == 0


async def test_places_to_wait_are_shared_by_weight() -> None:
    gate = admission(max_queue=8)
    light, heavy = function(gate), function(gate, weight=3)
    gate.try_acquire(light)
    tasks = [*await queue(gate, light, 8), *await queue(gate, heavy, 8)]
    assert (len(light.waiting), len(heavy.waiting)) == (2, 6)
    await end(tasks)


async def test_who_is_displaced_in_the_moment_of_giving_up_gives_no_permit_back() -> None:
    gate = admission(max_queue=2)
    busy, quiet = function(gate), function(gate)
    gate.try_acquire(busy)
    crowd = await queue(gate, busy, 2)
    newcomer = asyncio.create_task(gate.acquire(quiet))
    crowd[1].cancel()  # both happen before the displaced one runs again
    await turns()
    assert crowd[1].cancelled()
    assert (gate.active, gate.queued, busy.used) == (1, 2, 1)
    await end([*crowd, newcomer])


async def test_a_refusal_names_the_functions_own_limit_and_not_this_workers_part() -> None:
    gate = Admission(9, max_queue=0, queue_timeout_s=1, worker=0, n_workers=2)
    permits = function(gate, 8)
    assert [gate.try_acquire(permits) for _ in range(5)] == [True] * 4 + [False]
    with pytest.raises(ConcurrencyLimitError, match="allows it 8 at once on this host"):
        await gate.acquire(permits)


@given(
    st.lists(st.tuples(st.sampled_from(["come", "go", "leave"]), st.integers(0, 11)), max_size=60),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 3)), min_size=4, max_size=4),
)
def test_whatever_happens_the_next_one_served_is_the_one_a_search_of_all_would_find(
    steps: list[tuple[str, int]], settings: list[tuple[int, int, int]]
) -> None:
    async def run() -> None:
        gate = admission(5, max_queue=6, queue_timeout_s=60)
        functions = [function(gate, limit, reserved=reserved, weight=weight) for limit, reserved, weight in settings]
        tasks: list[asyncio.Task[None]] = []
        running: list[Permits] = []

        async def request(permits: Permits) -> None:
            await gate.acquire(permits)
            running.append(permits)

        for step, n in steps:
            if step == "come":
                tasks.append(asyncio.create_task(request(functions[n % 4])))
            elif step == "go" and running:
                gate.release(running.pop(n % len(running)))
            elif step == "leave" and tasks:
                tasks[n % len(tasks)].cancel()
            await turns()
            kept = min(sum(permits.n_kept_free for permits in functions), 2)
            able = [
                permits
                for permits in functions
                if permits.waiting
                and permits.used < permits.limit
                and gate.active + (0 if permits.used < permits.reserved else kept) < 5
            ]
            assert not able  # nobody waits who could run
            assert gate.queued == sum(len(permits.waiting) for permits in functions) <= 6
        # One slot comes free by itself: who gets it is who a search finds.
        while running:
            gone = running[0]
            before = {permits: permits.used - (permits is gone) for permits in functions}
            turn = {permits: (permits.turn, permits.since) for permits in functions}
            kept = min(sum(max(0, min(p.reserved, p.limit) - before[p]) for p in functions), 2)
            n_active = gate.active - 1
            able = [
                p
                for p in functions
                if p.waiting and before[p] < p.limit and n_active + (0 if before[p] < p.reserved else kept) < 5
            ]
            wanted = min(able, key=lambda p: (before[p] / p.weight, *turn[p]), default=None)
            gate.release(running.pop(0))
            served = [p for p in functions if p.used > before[p]]
            assert (wanted in served) if wanted is not None else not served
            await turns()
        await end(tasks)
        assert (gate.active, gate.queued) == (len(running), 0)

    asyncio.run(run())
