"""What the soak judges by: ledgers of what was acknowledged, kills that excuse errors, and numbers that stay flat."""

from __future__ import annotations

import math

import pytest

from loadtest.soak import (
    MODEL_EXCUSE_S,
    NAMES,
    WORKER_EXCUSE_S,
    Fate,
    Kill,
    Ledger,
    Process,
    Sample,
    Victim,
    aged,
    all_serve,
    excused,
    fifths,
    is_flat,
    long_lived,
    mark_in,
    of_process,
)

KILLED_AT_S = 100.0
OF_WORKER = (Kill(Victim.WORKER, 1, KILLED_AT_S),)
OF_MODEL_SERVER = (Kill(Victim.MODEL_SERVER, 1, KILLED_AT_S),)


def deployed(*marks: str) -> Ledger:
    """Return a ledger of versions 1, 2, … that were all acknowledged; no mark is a removal."""
    ledger = Ledger()
    version = 0
    for mark in marks:
        ledger.begin(mark)
        version += bool(mark)
        assert ledger.acknowledge(version) == ""
    return ledger


# what was acknowledged


def test_what_was_acknowledged_last_is_right():
    assert deployed("one", "two").judge(2, "two", 2) == ""


def test_an_older_version_after_a_newer_one_was_acknowledged_is_lost():
    assert deployed("one", "two").judge(2, "one", 1) == "served one v1, acknowledged was two v2"


def test_an_older_version_is_right_for_a_request_that_was_sent_before_the_newer_one_was_acknowledged():
    assert deployed("one", "two").judge(1, "one", 1) == ""


def test_a_version_under_way_may_be_served_and_the_old_one_too():
    ledger = deployed("one")
    ledger.begin("two")
    assert ledger.judge(ledger.acknowledged, "two", 2) == ""
    assert ledger.judge(ledger.acknowledged, "one", 1) == ""


def test_nothing_served_is_right_before_the_first_deploy_and_after_a_removal_only():
    assert Ledger().judge(0, "", 0) == ""
    assert deployed("one", "").judge(2, "", 0) == ""
    assert deployed("one").judge(1, "", 0) == "served nothing v0, acknowledged was one v1"


def test_a_removed_version_that_is_still_served_is_wrong():
    assert deployed("one", "").judge(2, "one", 1) == "served one v1, acknowledged was nothing v0"


def test_a_mark_under_another_version_is_wrong():
    assert deployed("one").judge(1, "one", 2) == "served one v2, acknowledged was one v1"


def test_a_version_that_was_seen_has_to_be_the_one_that_is_acknowledged():
    ledger = Ledger()
    ledger.begin("one")
    ledger.judge(0, "one", 1)
    assert ledger.acknowledge(2) == "one was served as version 1 and acknowledged as 2"


def test_a_version_number_that_does_not_grow_is_wrong_also_across_a_removal():
    ledger = deployed("one", "")
    ledger.begin("two")
    assert ledger.acknowledge(1) == "version 1 came after 1"


# kills


@pytest.mark.parametrize("fate", [Fate.BROKEN, Fate.REFUSED, Fate.RETRY])
def test_a_workers_kill_excuses_broken_and_refused_requests_for_its_time(fate: Fate):
    assert excused(fate, KILLED_AT_S, OF_WORKER)
    assert excused(fate, KILLED_AT_S + WORKER_EXCUSE_S, OF_WORKER)
    assert not excused(fate, KILLED_AT_S - 0.01, OF_WORKER)
    assert not excused(fate, KILLED_AT_S + WORKER_EXCUSE_S + 0.01, OF_WORKER)


def test_a_model_servers_kill_excuses_nothing_but_retryable_model_errors():
    ended_s = KILLED_AT_S + MODEL_EXCUSE_S
    assert excused(Fate.RETRY, ended_s, OF_MODEL_SERVER)
    assert not excused(Fate.RETRY, ended_s + 0.01, OF_MODEL_SERVER)
    assert not any(excused(fate, KILLED_AT_S, OF_MODEL_SERVER) for fate in (Fate.BROKEN, Fate.REFUSED, Fate.WRONG))


def test_no_kill_excuses_a_wrong_answer():
    assert not excused(Fate.WRONG, KILLED_AT_S, (*OF_WORKER, *OF_MODEL_SERVER))


def test_each_of_several_kills_excuses():
    kills = (Kill(Victim.WORKER, 1, 50.0), *OF_WORKER)
    assert excused(Fate.BROKEN, 50.5, kills)
    assert excused(Fate.BROKEN, 100.5, kills)
    assert not excused(Fate.BROKEN, 75.0, kills)


# numbers over time


def test_medians_of_the_second_and_last_fifth_leave_warming_up_and_outliers_out():
    values = [1.0, 1.0, 1.0, 5.0, 6.0, 99.0, *[50.0] * 6, 7.0, 8.0, 99.0]
    assert fifths(values) == (6.0, 8.0)


def test_missing_values_are_left_out_and_a_fifth_without_any_has_no_median():
    assert fifths([0.0, 0.0, math.nan, 3.0, 0.0, 0.0, 0.0, 0.0, 4.0, math.nan]) == (3.0, 4.0)
    assert math.isnan(fifths([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, math.nan, math.nan])[1])


def test_flat_is_up_to_the_share_and_the_margin_above():
    start = [100.0] * 8
    assert is_flat([*start, 115.0, 115.0], share=0.1, margin=5.0)
    assert not is_flat([*start, 115.1, 115.1], share=0.1, margin=5.0)


def test_what_was_never_measured_is_not_flat():
    assert not is_flat([math.nan] * 10, share=0.1, margin=5.0)


def test_a_sample_has_the_mean_of_a_roles_processes():
    sample = Sample(5.0, [Process("worker", 1, 2, 30), Process("worker", 1, 2, 34), Process("control", 1, 2, 9)], 0, 0)
    assert sample.of("worker", "descriptors") == 32.0
    assert math.isnan(sample.of("model server", "pss"))


def samples_of(*lives: tuple[int, int, int]) -> list[Sample]:
    """Return ten samples, one each 5 s, of workers (pid, first, last sample), whose RSS grows by 1 with each sample."""
    return [
        Sample(5.0 * n, [Process("worker", n, n, 9, pid) for pid, first, last in lives if first <= n <= last], 0, 0)
        for n in range(10)
    ]


def test_a_process_that_was_there_at_the_end_of_the_first_fifth_and_ever_after_lived_on():
    samples = samples_of((1, 0, 9), (2, 1, 9), (3, 2, 9), (4, 0, 8))
    assert long_lived(samples, "worker") == [1, 2]
    assert long_lived(samples, "control") == []
    assert long_lived([], "worker") == []


def test_the_numbers_of_one_process_are_its_own_and_missing_where_it_did_not_live():
    values = of_process(samples_of((1, 0, 9), (2, 8, 9)), 2, "rss")
    assert values[8:] == [8.0, 9.0]
    assert all(math.isnan(value) for value in values[:8])


def test_processes_are_compared_from_an_age_on():
    values = aged(samples_of((1, 0, 3), (2, 4, 9)), "worker", "rss", 10.0)
    assert [n for n, value in enumerate(values) if not math.isnan(value)] == [2, 3, 6, 7, 8, 9]


# answers


def test_the_mark_is_read_from_the_guests_environment():
    assert mark_in(f"arg 0=x\nPATH_INFO=\nMARK={NAMES[0]}-7\n") == "mark-a-7"
    assert mark_in("arg 0=x\n") == ""


@pytest.mark.parametrize(
    ("worker", "model_server", "with_models", "expected"),
    [
        ("serving", "serving", True, True),
        ("backing-off", "serving", True, False),
        ("serving", "starting", True, False),
        ("serving", "absent", False, True),
    ],
)
def test_all_serve_when_each_process_does(worker: str, model_server: str, with_models: bool, expected: bool):
    status = {"workers": [{"state": "serving"}, {"state": worker}], "model_server": {"state": model_server}}
    assert all_serve(status, with_models=with_models) is expected
