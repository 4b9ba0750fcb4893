"""The meter counts exactly and limits by what is spent."""

from __future__ import annotations

import asyncio

import pytest

from faas.errors import PeerGoneError, QuotaExceededError
from faas.gateway.metering import REPORT_S, Meter
from faas.wire.messages import Spending, Spent


class FakeClock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def spend(meter: Meter, n_prompt: int, n_generated: int, limit: int = 60, name: str = "f") -> None:
    with meter.begin(name, tokens_per_minute=limit) as charge:
        charge.prompt(n_prompt)
        for _ in range(n_generated):
            charge.generated(1)


def test_counters_add_up_by_name(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 5, 2, limit=0)
    spend(meter, 1, 1, limit=0)
    spend(meter, 9, 0, limit=0, name="key:k")
    assert meter.stats() == {
        "f": {"prompt_tokens": 6, "generated_tokens": 3, "model_requests": 2},
        "key:k": {"prompt_tokens": 9, "generated_tokens": 0, "model_requests": 1},
    }


def test_what_stats_returned_stays_as_it_was(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 5, 2)
    before = meter.stats()
    spend(meter, 5, 2)
    assert before["f"]["prompt_tokens"] == 5


def test_no_limit_never_refuses(clock: FakeClock) -> None:
    meter = Meter(clock)
    for _ in range(3):
        spend(meter, 1_000_000, 0, limit=0)


def test_a_full_bucket_takes_more_than_it_holds_and_the_debt_is_waited_for(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 100, 19)
    with pytest.raises(QuotaExceededError) as caught:
        spend(meter, 1, 0)
    assert caught.value.retry_after_s == pytest.approx(60)
    clock.now += 59.9
    with pytest.raises(QuotaExceededError):
        spend(meter, 1, 0)
    clock.now += 0.2
    spend(meter, 1, 0)


def test_a_bucket_never_holds_more_than_a_minute(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 60, 0)
    clock.now += 3600
    spend(meter, 60, 0)
    with pytest.raises(QuotaExceededError):
        spend(meter, 1, 0)


def test_names_have_buckets_of_their_own(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 60, 0, name="a")
    spend(meter, 60, 0, name="b")


def test_a_refused_request_is_not_counted(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 60, 0)
    with pytest.raises(QuotaExceededError):
        spend(meter, 1, 0)
    assert meter.stats()["f"]["model_requests"] == 1


def test_requests_that_come_together_hold_back_their_prompts(clock: FakeClock) -> None:
    meter = Meter(clock)
    meter.begin("f", tokens_per_minute=60, n_prompt_bytes=240)
    with pytest.raises(QuotaExceededError):
        meter.begin("f", tokens_per_minute=60, n_prompt_bytes=240)


def test_what_was_held_and_not_spent_comes_back(clock: FakeClock) -> None:
    meter = Meter(clock)
    charge = meter.begin("f", tokens_per_minute=60, n_prompt_bytes=240)
    charge.close()
    charge.close()
    spend(meter, 59, 0)
    spend(meter, 1, 0)
    with pytest.raises(QuotaExceededError):
        spend(meter, 1, 0)


def test_the_estimate_is_replaced_by_the_real_number(clock: FakeClock) -> None:
    meter = Meter(clock)
    with meter.begin("f", tokens_per_minute=60, n_prompt_bytes=160) as charge:
        charge.prompt(59)
    spend(meter, 1, 0)
    with pytest.raises(QuotaExceededError):
        spend(meter, 1, 0)


def test_a_new_limit_holds_at_once(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 60, 0, limit=60)
    spend(meter, 1, 0, limit=120)
    with pytest.raises(QuotaExceededError):
        spend(meter, 1, 0, limit=30)


def elsewhere(n_tokens: int, limit: int = 60, name: str = "f") -> Spent:
    return Spent({name: Spending(n_tokens, limit)})


def test_what_others_spent_counts_for_the_limit_only(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 1, 0)
    meter.spent_elsewhere(elsewhere(59))
    with pytest.raises(QuotaExceededError):
        spend(meter, 1, 0)
    assert meter.stats()["f"]["prompt_tokens"] == 1


def test_a_name_that_was_only_used_elsewhere_is_refused_and_waits_as_long_as_there(clock: FakeClock) -> None:
    meter = Meter(clock)
    meter.spent_elsewhere(elsewhere(100))
    clock.now += 10
    with pytest.raises(QuotaExceededError) as caught:
        spend(meter, 1, 0)
    assert caught.value.retry_after_s == pytest.approx(31)
    assert meter.stats() == {}
    clock.now += 31.1
    spend(meter, 1, 0)


def test_time_in_which_a_bucket_was_full_does_not_pay_for_what_is_spent_elsewhere_later(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 1, 0)
    clock.now += 3600
    meter.spent_elsewhere(elsewhere(60))
    with pytest.raises(QuotaExceededError):
        spend(meter, 1, 0)


def test_what_is_given_back_elsewhere_may_be_spent_here(clock: FakeClock) -> None:
    meter = Meter(clock)
    meter.spent_elsewhere(elsewhere(60))
    meter.spent_elsewhere(elsewhere(-60))
    spend(meter, 60, 0)


def test_what_was_spent_is_reported_once_with_its_limit(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 5, 2)
    spend(meter, 9, 0, limit=600, name="key:k")
    assert meter.take_unreported() == Spent({"f": Spending(7, 60), "key:k": Spending(9, 600)})
    assert meter.take_unreported() == Spent({})


def test_names_without_a_limit_and_what_others_spent_are_not_reported(clock: FakeClock) -> None:
    meter = Meter(clock)
    spend(meter, 5, 2, limit=0)
    meter.spent_elsewhere(elsewhere(5))
    assert meter.take_unreported() == Spent({})


def test_what_is_held_is_reported_as_taken_until_it_is_known(clock: FakeClock) -> None:
    meter = Meter(clock)
    charge = meter.begin("f", tokens_per_minute=60, n_prompt_bytes=160)
    assert meter.take_unreported().names["f"] == Spending(40, 60, 40)
    charge.prompt(10)
    assert meter.take_unreported().names["f"] == Spending(0, 60, 30)
    charge.close()
    assert meter.take_unreported().names["f"] == Spending(-30, 60, 0)


async def test_reports_come_at_once_then_at_most_one_an_interval_and_none_while_nothing_is_spent(
    clock: FakeClock,
) -> None:
    meter = Meter(clock)
    sent: asyncio.Queue[Spent] = asyncio.Queue()
    pauses: asyncio.Queue[float] = asyncio.Queue()
    over = asyncio.Semaphore(0)

    async def sleep(pause_s: float) -> None:
        pauses.put_nowait(pause_s)
        await over.acquire()

    task = asyncio.create_task(meter.report(sent.put, sleep))
    spend(meter, 1, 0)
    assert (await sent.get()).names["f"].n_tokens == 1
    assert await pauses.get() == REPORT_S
    spend(meter, 2, 0)
    spend(meter, 3, 0)
    assert sent.empty()
    over.release()
    assert (await sent.get()).names["f"].n_tokens == 5
    await pauses.get()
    over.release()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sent.empty()
    assert pauses.empty()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_reporting_ends_with_the_control_process(clock: FakeClock) -> None:
    meter = Meter(clock)

    async def send(_: Spent) -> None:
        raise PeerGoneError("gone")

    spend(meter, 1, 0)
    async with asyncio.timeout(5):
        await meter.report(send)
