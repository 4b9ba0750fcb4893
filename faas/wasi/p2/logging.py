"""``wasi:logging``: messages become lines of the function's log, beside what it writes to stderr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from faas.wasi.p2.resources import ComponentFunction

MAX_MESSAGE_CHARS: Final = 16 * 1024
MAX_CONTEXT_CHARS: Final = 256


def log(guest: Any, level: str, context: str, message: str) -> None:
    """Write ``level context: message``; an empty context is left out, what is too long is cut."""
    cut = message[:MAX_MESSAGE_CHARS].rstrip("\n")
    # A context that could begin a line would look like a message of another level.
    place = " ".join(context[:MAX_CONTEXT_CHARS].split())
    guest.wasi.log(f"{level} {place}: {cut}" if place else f"{level}: {cut}")


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:logging/logging@0.1.0-draft": {"log": ComponentFunction(log)},
}
