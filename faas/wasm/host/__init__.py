"""Host functions that guests import, one module each: guest memory to Python values and back, no meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class HostFunction(NamedTuple):
    """One importable function: its core-wasm signature and the Python callable behind it."""

    params: str
    """One letter each: i = i32, I = i64; the callable gets them as unsigned Python ints after ``guest``."""
    results: str
    call: Callable[..., Any]
    may_suspend: bool = False
    """The callable may return an awaitable of its result instead of the result."""
