"""Time as an object that is passed in, so that tests own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Return seconds that never go back; comparable between processes of one machine."""

    def time_ns(self) -> int:
        """Return nanoseconds since the Unix epoch."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Return ``CLOCK_MONOTONIC`` in seconds."""
        return time.monotonic()

    def time_ns(self) -> int:
        """Return ``CLOCK_REALTIME`` in nanoseconds."""
        return time.time_ns()
