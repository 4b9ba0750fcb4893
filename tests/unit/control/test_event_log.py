"""Our own log is events with fields that a script can split again."""

from __future__ import annotations

import io
import logging

import pytest

from faas.log import configure, event, exception


@pytest.fixture
def stream():
    logger = logging.getLogger("faas")
    before = (logger.level, logger.propagate)
    stream = io.StringIO()
    handler = configure(stream)
    yield stream
    logger.removeHandler(handler)
    logger.level, logger.propagate = before


def test_event_is_one_line_with_its_fields(stream):
    event(logging.getLogger("faas.x"), "deploy.done", function="hello", version=3, duration_ms=41.25)
    line = stream.getvalue()
    assert line.endswith(" info faas.x deploy.done function=hello version=3 duration_ms=41.25\n")


@pytest.mark.parametrize("value", ["two words", 'a "quote"', "a=b", "", "line\nbreak", "\x1b[2J", "\x9b2J"])
def test_value_that_would_break_the_line_is_quoted(stream, value):
    event(logging.getLogger("faas.x"), "e", field=value)
    (line,) = stream.getvalue().splitlines()
    assert line.partition("field=")[2].startswith('"')


def test_percent_signs_are_left_alone(stream):
    event(logging.getLogger("faas.x"), "e", field="100%s")
    assert "100%s" in stream.getvalue()


def test_level_below_the_configured_one_is_not_written(stream):
    event(logging.getLogger("faas.x"), "e", level=logging.DEBUG)
    assert stream.getvalue() == ""


def test_exception_brings_its_traceback(stream):
    try:
        raise ValueError("boom")
    except ValueError as exc:
        exception(logging.getLogger("faas.x"), "thing.failed", exc, function="f")
    assert "thing.failed function=f\nTraceback" in stream.getvalue()
    assert "ValueError: boom" in stream.getvalue()
