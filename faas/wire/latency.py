"""Latencies as counters: workers count requests by bucket, control adds the buckets up and finds percentiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

PREFIX: Final = "latency:"
"""A counter ``latency:N`` has the requests that took at most ``bound_ms(N)``, and more than that of N-1."""
_PER_OCTAVE: Final = 4
_LEAST_MS: Final = 0.1


def bucket_of(ms: float) -> int:
    """Return the number of the bucket that *ms* milliseconds fall into."""
    return math.ceil(math.log2(ms / _LEAST_MS) * _PER_OCTAVE) if ms > _LEAST_MS else 0


def bound_ms(bucket: int) -> float:
    """Return the upper bound of a bucket in milliseconds; each one's is 19 % above the one before it."""
    return _LEAST_MS * float(2 ** (bucket / _PER_OCTAVE))


def percentile_ms(counters: Mapping[str, float], part: float) -> float:
    """Return below which latency *part* of the requests in *counters* are, in milliseconds; 0 without requests."""
    buckets = {int(key.removeprefix(PREFIX)): n for key, n in counters.items() if key.startswith(PREFIX) and n > 0}
    rank = part * sum(buckets.values())
    below = 0.0
    for bucket in sorted(buckets):
        n = buckets[bucket]
        if below + n >= rank:
            floor_ms = bound_ms(bucket - 1) if bucket else 0.0
            return floor_ms + (bound_ms(bucket) - floor_ms) * (rank - below) / n
        below += n
    return 0.0
