"""Ratios are taken round by round, and medians of them."""

from pathlib import Path

import pytest
from rich.console import Console

from loadtest.compare import README_PLOTS, Comparison, Side, _publish, paired_ratio
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


def test_the_readme_gets_the_plots_of_the_last_runs(tmp_path: Path):
    for name in README_PLOTS:
        (tmp_path / name).write_text(
            f"<svg>\n <metadata>\n  Matplotlib v1\n </metadata>\n <text>{name}</text> \n</svg>\n"
        )

    assert _publish(tmp_path, tmp_path / "images", Console(quiet=True)) == 0

    for name in README_PLOTS:
        assert (tmp_path / "images" / name).read_text() == f"<svg>\n <text>{name}</text>\n</svg>\n"


def test_a_plot_that_was_not_made_is_named_and_the_old_one_stays(tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "llm.svg").write_text("the old one")
    (tmp_path / "bench.svg").write_text("<svg/>\n")
    console = Console(width=500)
    with console.capture() as capture:
        assert _publish(tmp_path, images, console) == 1

    said = capture.get()
    assert "llm.svg" in said
    assert "make bench-llm" in said
    assert (images / "llm.svg").read_text() == "the old one"
    assert (images / "bench.svg").read_text() == "<svg/>\n"
