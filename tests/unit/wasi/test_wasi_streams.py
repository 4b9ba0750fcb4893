"""Promises of the streams behind stdin, stdout and stderr."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from faas.wasi.streams import (
    LINE_COST_BYTES,
    LOG_LIMIT_LINE,
    MAX_WRITE_BYTES,
    MAX_WRITE_LINES,
    BytesInput,
    CollectingOutput,
    EmptyInput,
    LineOutput,
)


def test_empty_input_is_at_its_end() -> None:
    assert EmptyInput().read_nowait(10) == b""


async def test_inputs_without_a_source_are_readable_at_once() -> None:
    await EmptyInput().wait_readable()
    await BytesInput(b"").wait_readable()


@given(st.binary(max_size=100), st.integers(1, 40))
def test_bytes_input_gives_everything_once_in_order(content: bytes, n: int) -> None:
    stream = BytesInput(content)
    chunks = []
    while chunk := stream.read_nowait(n):
        assert len(chunk) <= n
        chunks.append(chunk)
    assert b"".join(chunks) == content


def test_collecting_output_keeps_what_was_written() -> None:
    output = CollectingOutput()
    assert output.write(b"ab") == 2
    output.write(b"c")
    assert output.getvalue() == b"abc"
    assert not output.full


def test_line_output_joins_a_line_written_in_pieces() -> None:
    lines: list[bytes] = []
    output = LineOutput(lines.append, 1000, 100)
    for piece in (b"he", b"llo\nwor", b"ld\n"):
        output.write(piece)
    assert lines == [b"hello", b"world"]


def test_line_output_hands_on_the_tail_at_close_and_only_once() -> None:
    lines: list[bytes] = []
    output = LineOutput(lines.append, 1000, 100)
    output.write(b"no newline")
    assert lines == []
    output.close()
    output.close()
    assert lines == [b"no newline"]


def test_line_output_keeps_empty_lines() -> None:
    lines: list[bytes] = []
    LineOutput(lines.append, 1000, 100).write(b"a\n\nb\n")
    assert lines == [b"a", b"", b"b"]


def test_line_output_says_once_that_the_limit_is_reached_and_drops_the_rest() -> None:
    lines: list[bytes] = []
    output = LineOutput(lines.append, 6, 100)
    assert output.write(b"one\ntwo\nthree\n") == 14
    assert output.write(b"more\n") == 5
    output.close()
    assert lines == [b"one", b"tw", LOG_LIMIT_LINE]


def test_line_output_takes_a_bounded_number_of_lines_and_bytes_at_once() -> None:
    lines: list[bytes] = []
    output = LineOutput(lines.append, 10_000_000, 100_000)
    assert output.write(b"\n" * 1_000_000) == MAX_WRITE_LINES
    assert output.write(b"x" * 1_000_000) == MAX_WRITE_BYTES
    assert len(lines) == MAX_WRITE_LINES


def test_line_output_counts_what_each_line_costs_besides_its_own_bytes() -> None:
    lines: list[bytes] = []
    output = LineOutput(lines.append, 2 * LINE_COST_BYTES, 100)
    for _ in range(100):
        output.write(b"\n")
    assert lines == [b"", b"", LOG_LIMIT_LINE]


def test_line_output_does_not_complain_when_exactly_the_limit_is_written() -> None:
    lines: list[bytes] = []
    output = LineOutput(lines.append, 4 + LINE_COST_BYTES, 100)
    output.write(b"one\n")
    output.close()
    assert lines == [b"one"]


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\0", b"\n")), max_size=10), st.integers(1, 8))
def test_line_output_loses_nothing_below_its_limit_and_bounds_every_line(pieces: list[bytes], limit: int) -> None:
    lines: list[bytes] = []
    output = LineOutput(lines.append, 100_000, limit)
    for piece in pieces:
        output.write(piece)
    output.close()
    assert b"".join(lines) == b"".join(pieces).replace(b"\n", b"")
    assert all(len(line) <= limit and b"\n" not in line for line in lines)
