"""A guest's stdout between the guest and the client, and the journal of what happened."""

from __future__ import annotations

import json

import pytest

from faas.errors import InternalError, OutputLimitError, leaves
from faas.gateway import journal as journal_module
from faas.gateway.call import OUTPUT_HIGH_WATER, Output
from faas.gateway.journal import Journal
from faas.gateway.middleware import outcome_of, problem_response
from faas.invocation import Outcome


def test_output_is_taken_once_in_the_order_it_was_written() -> None:
    output = Output(100)
    output.write(b"ab")
    output.write(b"c")
    assert (output.take(), output.take(), output.pending_bytes) == (b"abc", b"", 0)


def test_output_is_full_at_the_high_water_mark_until_it_is_taken() -> None:
    output = Output(1 << 30)
    output.write(bytes(OUTPUT_HIGH_WATER - 1))
    assert not output.full
    output.write(b"x")
    assert output.full
    output.take()
    assert not output.full


def test_output_counts_all_that_was_ever_written() -> None:
    output = Output(10)
    output.write(bytes(10))
    output.take()
    with pytest.raises(OutputLimitError, match="10 bytes"):
        output.write(b"x")


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_every_error_counts_as_some_outcome_that_is_not_ok(leaf: type) -> None:
    assert outcome_of(leaf("it failed")) in set(Outcome) - {Outcome.OK}


def test_a_problem_never_shows_a_backtrace() -> None:
    body = problem_response(InternalError("it failed", trace="secret"), "id").body
    assert isinstance(body, bytes)
    assert b"secret" not in body


# --- journal ---------------------------------------------------------------------------------------------------------


def new_journal() -> Journal:
    return Journal(lambda: {"active": 1.0})


def finish(journal: Journal, outcome: Outcome = Outcome.OK) -> None:
    journal.finished("f", 1, "id", outcome, status=200, duration_ms=2.0, start_ms=0.5, cpu_ms=1.0)


def test_lines_are_taken_once_each_a_json_document() -> None:
    journal = new_journal()
    journal.line("f", 1, "id", 'quo"te\n')
    finish(journal)
    lines = journal.take_lines()
    assert lines is not None
    line, event = map(json.loads, lines.by_function["f"].splitlines())
    assert (line["text"], line["stream"]) == ('quo"te\n', "stderr")
    assert (event["event"], event["outcome"]) == ("invocation.finished", "ok")
    assert journal.take_lines() is None


def test_counters_add_up_by_outcome() -> None:
    journal = new_journal()
    for outcome in (Outcome.OK, Outcome.OK, Outcome.FAILED):
        finish(journal, outcome)
    stats = journal.stats()
    assert stats.functions["f"] == {
        "invocations": 3, "ok": 2, "failed": 1, "duration_ms": 6.0, "start_ms": 1.5, "cpu_ms": 3.0,
    }  # fmt: skip
    assert stats.gauges == {"active": 1.0}


def test_a_backlog_that_nobody_takes_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_BACKLOG_BYTES", 500)
    journal = new_journal()
    for _ in range(100):
        journal.line("f", 1, "id", "x" * 50)
    kept = journal.take_lines()
    assert kept is not None
    n_kept = kept.by_function["f"].count(b"\n")
    assert n_kept < 10
    notice = journal.take_lines()
    assert notice is not None
    (line,) = notice.by_function["f"].splitlines()
    assert json.loads(line)["text"].startswith(f"{100 - n_kept} log lines")


def test_a_backlog_that_was_taken_leaves_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_BACKLOG_BYTES", 500)
    journal = new_journal()
    for _ in range(20):
        journal.line("f", 1, "id", "x" * 50)
        taken = journal.take_lines()
        assert taken is not None
        assert taken.by_function["f"].count(b"\n") == 1
