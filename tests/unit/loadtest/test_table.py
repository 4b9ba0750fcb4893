"""The table's texts, and memory that is read only once it stays the same."""

import math
import os

import pytest

from loadtest import table
from loadtest.table import COLUMNS, Row, UnsettledError, descendants, markdown, milliseconds, pss_bytes, settled, size


def test_sizes_are_in_powers_of_ten():
    assert [size(n) for n in (None, 0, 999_949, 1_000_000, 1_234_567_890)] == [
        "–",
        "0.0 kB",
        "999.9 kB",
        "1.0 MB",
        "1,234.6 MB",
    ]


def test_durations_have_three_digits_that_count():
    assert [milliseconds(ms) for ms in (0.0712, 5.678, 75.91, math.nan)] == ["0.071 ms", "5.68 ms", "75.9 ms", "nan ms"]


def test_markdown_keeps_bars_out_of_cells():
    assert markdown([["a", "b"], ["1|2", "3"]]) == "| a | b |\n|---|---|\n| 1\\|2 | 3 |\n"


def test_a_row_has_a_cell_for_each_column():
    row = Row(
        "t", "i", "3 kB", starts_ms=[1.0, 2.0, 3.0], rates=[10.0, 30.0, 20.0], one_bytes=2000, together_bytes=None
    )

    assert row.cells() == ["t", "2 ms", "3 ms", "3 kB", "2.0 kB", "–", "20", "i"]
    assert len(row.cells()) == len(COLUMNS)


def test_memory_counts_once_it_stays_the_same(monkeypatch):
    monkeypatch.setattr(table, "_SETTLE_S", 0)
    readings = iter([0, 10**6, 2 * 10**6, 2 * 10**6, 3 * 10**6, 3_000_001, 3_000_002, 3_000_003, 7])

    assert settled(lambda: next(readings)) == 3_000_003


def test_memory_that_never_settles_is_no_measurement(monkeypatch):
    monkeypatch.setattr(table, "_SETTLE_S", 0)
    monkeypatch.setattr(table, "_SETTLE_TIMEOUT_S", 0)

    with pytest.raises(UnsettledError, match="still changed"):
        settled(lambda: 1)


def test_this_process_takes_memory_and_is_its_own_first_descendant():
    assert pss_bytes(os.getpid()) > 1_000_000
    assert descendants(os.getpid())[0] == os.getpid()
