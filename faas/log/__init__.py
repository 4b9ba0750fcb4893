"""Events with fields for our own processes: ``deploy.done function=hello version=3 duration_ms=41.2``."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, TextIO

_PLAIN = re.compile(r"[^\s\"=\\]+")


def configure(stream: TextIO, *, level: int = logging.INFO) -> logging.Handler:
    """
    Send the events of every ``faas`` logger to *stream*, one line each, for the life of the process.

    Returns the handler, so that a test can take it off again (``logging.getLogger('faas').removeHandler``).
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_LineFormatter())
    logger = logging.getLogger("faas")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return handler


def event(logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log the event *name* (``thing.happened``) with *fields*; bodies and secrets have no place in them."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", " ".join([name, *(f"{key}={_written(value)}" for key, value in fields.items())]))


def exception(logger: logging.Logger, name: str, exc: BaseException, **fields: Any) -> None:
    """Log *name* at error level together with the traceback of *exc*: for bugs of ours."""
    text = " ".join([name, *(f"{key}={_written(value)}" for key, value in fields.items())])
    logger.error("%s", text, exc_info=(type(exc), exc, exc.__traceback__))


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    if _PLAIN.fullmatch(text) and text.isprintable():
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


class _LineFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z info faas.control.supervisor worker.started worker=0 pid=17``."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = f"{at.removesuffix('+00:00')}Z {record.levelname.lower()} {record.name} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
