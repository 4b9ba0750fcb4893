"""Admission: never more than allowed, first come first served, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import OverloadedError
from faas.gateway.admission import Admission, Permits


def admission(slots: int = 1, *, max_queue: int = 10, queue_timeout_s: float = 10.0) -> Admission:
    return Admission(slots, max_queue=max_queue, queue_timeout_s=queue_timeout_s)


async def turns() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_no_more_than_the_hosts_slots_run_at_once() -> None:
    gate = admission(2)
    assert [gate.try_acquire(Permits(9)) for _ in range(3)] == [True, True, False]


def test_no_more_than_a_functions_own_limit_run_at_once() -> None:
    gate, mine, other = admission(9), Permits(1), Permits(9)
    assert gate.try_acquire(mine)
    assert not gate.try_acquire(mine)
    assert gate.try_acquire(other)


def test_a_permit_that_is_given_back_can_be_taken_again() -> None:
    gate, permits = admission(), Permits(1)
    for _ in range(3):
        assert gate.try_acquire(permits)
        gate.release(permits)
    assert (gate.active, permits.used) == (0, 0)


async def test_those_who_wait_are_served_in_the_order_they_came() -> None:
    gate, permits = admission(), Permits(9)
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
    gate, permits = admission(2), Permits(9)
    assert gate.try_acquire(permits)
    assert gate.try_acquire(permits)
    waiting = asyncio.create_task(gate.acquire(permits))
    await turns()
    gate.release(permits)
    assert not gate.try_acquire(Permits(9))
    await waiting


async def test_a_function_at_its_limit_does_not_hold_up_those_behind_it() -> None:
    gate, busy, other = admission(2), Permits(1), Permits(1)
    gate.try_acquire(busy)
    first = asyncio.create_task(gate.acquire(busy))
    await turns()
    await asyncio.wait_for(gate.acquire(other), 1)
    assert not first.done()
    gate.release(busy)
    await asyncio.wait_for(first, 1)


async def test_a_wait_over_the_deadline_is_overloaded_and_leaves_no_trace() -> None:
    gate, permits = admission(queue_timeout_s=0.01), Permits(9)
    gate.try_acquire(permits)
    with pytest.raises(OverloadedError) as raised:
        await gate.acquire(permits)
    assert raised.value.retry_after_s == 0.01
    assert (gate.active, gate.queued, permits.used) == (1, 0, 1)


async def test_a_full_queue_refuses_at_once() -> None:
    gate, permits = admission(max_queue=1), Permits(9)
    gate.try_acquire(permits)
    waiting = asyncio.create_task(gate.acquire(permits))
    await turns()
    with pytest.raises(OverloadedError):
        await gate.acquire(permits)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_who_is_cancelled_in_the_queue_leaves_it() -> None:
    gate, permits = admission(), Permits(9)
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
    gate, permits = admission(), Permits(9)
    gate.try_acquire(permits)
    leaver, stayer = (asyncio.create_task(gate.acquire(permits)) for _ in range(2))
    await turns()
    gate.release(permits)  # the leaver has it now, and does not know yet
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    await asyncio.wait_for(stayer, 1)
    assert (gate.active, permits.used) == (1, 1)


async def test_waiting_for_idle_ends_with_the_last_permit() -> None:
    gate, permits = admission(2), Permits(9)
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
    gate, permits = admission(), Permits(9)
    gate.try_acquire(permits)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gate.wait_idle(), 0.01)
    gate.release(permits)
    assert gate.active == 0


@given(st.lists(st.tuples(st.sampled_from(["come", "go", "leave"]), st.integers(0, 5)), max_size=40))
def test_whatever_comes_and_goes_the_books_balance(steps: list[tuple[str, int]]) -> None:
    """Two slots, three functions of limit one: arrivals, departures and cancellations in any order."""

    async def run() -> None:
        gate, functions = admission(2, max_queue=4), [Permits(1) for _ in range(3)]
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
