"""One limit for the whole host: workers hear of each other's tokens, and one that starts later begins with that."""

from __future__ import annotations

import pytest

from faas.control.stats import Ledger
from faas.errors import QuotaExceededError
from faas.gateway.metering import Meter
from faas.wire.messages import Spending, Spent

LIMIT = 60


class FakeClock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 0


class TwoWorkers:
    """The meters of two workers, and the ledger between them; ``exchange`` is one reporting interval's worth."""

    def __init__(self):
        self.clock = FakeClock()
        self.ledger = Ledger(self.clock)
        self.meters = [Meter(self.clock), Meter(self.clock)]

    def exchange(self):
        for index, meter in enumerate(self.meters):
            self.meters[1 - index].spent_elsewhere(self.ledger.report(index, meter.take_unreported()))

    def restart(self, index):
        """Let a worker die with what it had not reported."""
        self.meters[1 - index].spent_elsewhere(self.ledger.retire(index))
        self.meters[index] = Meter(self.clock)
        self.meters[index].spent_elsewhere(self.ledger.snapshot())

    def spend(self, index, n_tokens, limit=LIMIT):
        with self.meters[index].begin("f", tokens_per_minute=limit) as charge:
            charge.prompt(n_tokens)

    def wait_s(self, index):
        """Return how long a request would have to wait; 0 if it may begin."""
        try:
            self.meters[index].begin("f", tokens_per_minute=LIMIT).close()
        except QuotaExceededError as exc:
            return exc.retry_after_s
        return 0


@pytest.fixture
def two():
    return TwoWorkers()


@pytest.fixture
def clock(two):
    return two.clock


def test_limit_that_one_worker_exhausted_is_exhausted_on_the_other_for_as_long(two, clock):
    two.spend(0, 100)
    two.exchange()
    assert two.wait_s(1) == pytest.approx(41)
    clock.now += 30
    assert two.wait_s(0) == two.wait_s(1) == pytest.approx(11)
    clock.now += 11.5
    two.spend(1, 30)
    two.exchange()
    assert two.wait_s(0) == two.wait_s(1) > 0


def test_workers_together_get_what_the_limit_says_over_many_minutes(two, clock):
    n_spent = 0
    for step in range(600):
        if not two.wait_s(step % 2):
            two.spend(step % 2, 5)
            n_spent += 5
        two.exchange()
        clock.now += 1
    assert LIMIT * 10 <= n_spent <= LIMIT * 11 + 5


def test_prompts_that_wait_on_one_worker_are_held_back_on_the_other(two):
    charge = two.meters[0].begin("f", tokens_per_minute=LIMIT, n_prompt_bytes=400)
    two.exchange()
    assert two.wait_s(1) > 0
    charge.close()
    two.exchange()
    assert two.wait_s(1) == 0


def test_worker_that_starts_again_begins_where_the_others_are(two, clock):
    two.spend(0, 100)
    two.exchange()
    clock.now += 5
    two.restart(0)
    two.restart(1)
    assert two.wait_s(0) == two.wait_s(1) == pytest.approx(36)


def test_what_a_worker_held_when_it_died_comes_back(two):
    two.spend(0, 10)
    two.meters[0].begin("f", tokens_per_minute=LIMIT, n_prompt_bytes=4_000_000)
    two.exchange()
    assert two.wait_s(1) > 1000
    two.restart(0)
    assert two.wait_s(1) == two.wait_s(0) == 0
    assert two.ledger.snapshot() == Spent({"f": Spending(10, LIMIT)})


def test_buckets_that_are_full_again_are_not_in_the_snapshot(two, clock):
    two.spend(0, 60)
    two.exchange()
    assert two.ledger.snapshot() == Spent({"f": Spending(60, LIMIT)})
    clock.now += 60
    assert two.ledger.snapshot() == Spent({})


def test_new_limit_holds_on_every_worker_and_for_those_that_start_later(two):
    two.spend(0, 60)
    two.exchange()
    two.spend(1, 1, limit=120)
    two.exchange()
    assert two.ledger.snapshot() == Spent({"f": Spending(61, 120)})
    two.restart(0)
    two.spend(0, 1, limit=120)
