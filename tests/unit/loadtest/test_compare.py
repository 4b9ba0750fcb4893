"""Ratios are taken round by round, and medians of them."""

import pytest

from loadtest.compare import Comparison, Side, paired_ratio
from loadtest.wrk import Run


def side(*rounds: tuple[float, float]) -> Side:
    runs = tuple(Run(requests_per_s=rate, p50_ms=p50, p99_ms=9.0, n_failed=1) for rate, p50 in rounds)
    return Side(many=runs, single=runs)


def test_a_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians():
    # The machine was busy in the second round: both were slow, and the ratio is what it is in the others.
    assert paired_ratio([100, 10, 200], [200, 20, 400]) == 0.5
    assert paired_ratio([100, 300, 80], [100, 100, 20]) == 3.0


def test_rounds_of_one_side_only_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_a_side_is_its_medians_and_all_its_failures():
    measured = side((10.0, 0.3), (30.0, 0.1), (20.0, 0.2))

    assert (measured.requests_per_s, measured.p50_ms, measured.n_failed) == (20.0, 0.2, 6)


def test_more_requests_and_less_time_are_ours_to_theirs():
    comparison = Comparison(32, {"reactor": side((20.0, 0.1)), "command": side((5.0, 0.4))}, side((10.0, 0.2)))

    assert comparison.throughput_ratio("reactor") == 2.0
    assert comparison.latency_ratio("reactor") == 0.5
    assert comparison.throughput_ratio("command") == 0.5
    assert comparison.latency_ratio("command") == 2.0
