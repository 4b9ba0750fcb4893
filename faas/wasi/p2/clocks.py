"""``wasi:clocks``: the guest's two clocks, timers, and a timezone that is always UTC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from faas.wasi.context import WasiContext
from faas.wasi.errno import ClockId
from faas.wasi.p2.poll import Pollable, Timer
from faas.wasi.p2.resources import ComponentFunction

_REALTIME: Final = int(ClockId.REALTIME)
_MONOTONIC: Final = int(ClockId.MONOTONIC)
_NS: Final = 1_000_000_000

Datetime = tuple[int, int]
"""Seconds since the Unix epoch, and nanoseconds."""


def wall_clock_now(guest: Any) -> Datetime:
    """Return the time of day."""
    wasi: WasiContext = guest.wasi
    return divmod(wasi.now_ns(_REALTIME), _NS)


def wall_clock_resolution(guest: Any) -> Datetime:
    """Return the resolution of the time of day."""
    wasi: WasiContext = guest.wasi
    return divmod(wasi.resolution_ns(_REALTIME), _NS)


def monotonic_clock_now(guest: Any) -> int:
    """Return nanoseconds that never go back."""
    wasi: WasiContext = guest.wasi
    return wasi.now_ns(_MONOTONIC)


def monotonic_clock_resolution(guest: Any) -> int:
    """Return the resolution of the monotonic clock in nanoseconds."""
    wasi: WasiContext = guest.wasi
    return wasi.resolution_ns(_MONOTONIC)


def monotonic_clock_subscribe_instant(guest: Any, when_ns: int) -> Pollable:
    """Return what is ready once the monotonic clock is at *when_ns*."""
    return Pollable(Timer(guest.wasi, when_ns))


def monotonic_clock_subscribe_duration(guest: Any, duration_ns: int) -> Pollable:
    """Return what is ready *duration_ns* from now."""
    return Pollable(Timer(guest.wasi, guest.wasi.now_ns(_MONOTONIC) + duration_ns))


def timezone_display(_guest: Any, _when: Datetime) -> tuple[int, str, bool]:
    """Return UTC as what to show: a function does not learn where its host stands."""
    return 0, "UTC", False


def timezone_utc_offset(_guest: Any, _when: Datetime) -> int:
    """Return 0 seconds."""
    return 0


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:clocks/wall-clock": {
        "now": ComponentFunction(wall_clock_now),
        "resolution": ComponentFunction(wall_clock_resolution),
    },
    "wasi:clocks/monotonic-clock": {
        "now": ComponentFunction(monotonic_clock_now),
        "resolution": ComponentFunction(monotonic_clock_resolution),
        "subscribe-instant": ComponentFunction(monotonic_clock_subscribe_instant),
        "subscribe-duration": ComponentFunction(monotonic_clock_subscribe_duration),
    },
    "wasi:clocks/timezone": {
        "display": ComponentFunction(timezone_display),
        "utc-offset": ComponentFunction(timezone_utc_offset),
    },
}
