"""The benchmarks of overload and of warm pools say so when a promise is broken."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtest.openloop import Tally
from loadtest.overload import ALONE_S, NEIGHBOUR_PER_S, SOLO_S, Finding, findings_of, loop_findings
from loadtest.warm import CASES, Case, Seen, broken_by

SECONDS = 10.0
PAYS = next(case for case in CASES if case.pays)
PAYS_NOT = next(case for case in CASES if not case.pays)


def tally(n_ok: float, taken_s: float, **others: int) -> Tally:
    """Return what came of requests of which *n_ok* were answered after *taken_s*; *others* are by s429 and the like."""
    n = round(n_ok)
    statuses = Counter({200: n, **{int(status[1:]): count for status, count in others.items()}})
    return Tally(statuses, [taken_s] * n, [taken_s] * n, [taken_s] * n, [0.0] * n)


def tallies() -> dict[str, Tally]:
    """Return a run in which all promises were kept: 40 answers a second, of 400 asked for."""
    return {
        "solo": tally(40 * SOLO_S, 0.1),
        "alone": tally(NEIGHBOUR_PER_S * ALONE_S, 0.002),
        "busy": tally(39 * SECONDS, 0.9, s429=3600),
        "beside": tally(NEIGHBOUR_PER_S * SECONDS, 0.01),
    }


def broken(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if not finding.holds]


def test_a_run_as_it_should_be_breaks_nothing() -> None:
    assert broken(findings_of("waiting", SECONDS, tallies(), ideal_per_s=40)) == []


@pytest.mark.parametrize(
    ("which", "instead", "what"),
    [
        ("solo", tally(20 * SOLO_S, 0.1), "capacity alone; service time p99"),
        ("busy", tally(30 * SECONDS, 0.9, s429=3600), "answered, of the capacity"),
        ("busy", tally(39 * SECONDS, 0.9, s429=3600, s500=1), "statuses but 200, 429 and 503"),
        ("busy", tally(39 * SECONDS, 1.2, s429=3600), "answered in p99"),
        ("beside", tally(NEIGHBOUR_PER_S * SECONDS, 0.2), "neighbour's p50 / p99 beside it (alone)"),
        ("beside", tally(NEIGHBOUR_PER_S * SECONDS * 0.8, 0.01, s503=200), "neighbour's rate, of its rate alone"),
    ],
)
def test_each_promise_about_overload_can_be_broken(which: str, instead: Tally, what: str) -> None:
    assert broken(findings_of("waiting", SECONDS, {**tallies(), which: instead}, ideal_per_s=40)) == [what]


def test_a_run_that_answers_nothing_breaks_promises() -> None:
    nothing = {which: Tally() for which in ("solo", "busy")}
    assert "answered, of the capacity" in broken(findings_of("computing", SECONDS, {**tallies(), **nothing}))


@pytest.mark.parametrize(
    "hello", [tally(180, 0.002, s503=1), tally(180, 0.002, s429=1), tally(180, 0.002, s500=1), tally(0, 0.0)]
)
def test_hellos_beside_loops_that_are_refused_or_fail_break_the_promise(hello: Tally) -> None:
    assert "hellos that failed or were refused" in broken(loop_findings([0.01], hello))


def test_hellos_beside_loops_that_are_all_answered_break_nothing() -> None:
    assert broken(loop_findings([0.01], tally(180, 0.002))) == []
    assert broken(loop_findings([0.01, 0.06], tally(180, 0.04))) != []


def seen(start: float, whole: float, hits: float = 0.0) -> Seen:
    return Seen([start] * 100, [whole] * 100, round(hits * 100))


@pytest.mark.parametrize(
    ("case", "warm", "n_broken"),
    [
        (PAYS, seen(1.0, 3.0, hits=0.95), 0),
        (PAYS, seen(1.0, 3.0, hits=0.85), 1),
        (PAYS, seen(6.0, 8.0, hits=0.95), 1),
        (PAYS, seen(20.0, 22.0), 3),
        (PAYS_NOT, seen(10.0, 12.0), 0),
        (PAYS_NOT, seen(10.0, 16.0, hits=1.0), 1),
    ],
)
def test_a_pool_that_saves_nothing_or_costs_time_breaks_a_promise(case: Case, warm: Seen, n_broken: int) -> None:
    assert len(broken_by(case, cold=seen(10.0, 12.0), warm=warm)) == n_broken
