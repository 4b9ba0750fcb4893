"""Runs of wrk, the load generator, and what it prints."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
_GRACE_S = 30.0


class WrkError(Exception):
    """There is no wrk, or it didn't do what was asked for; the message has the next step."""


@dataclass(frozen=True)
class Run:
    """What one run measured."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    n_failed: int
    """Replies other than 2xx and 3xx, and errors and timeouts of sockets."""


def drive(url: str, *, connections: int, seconds: int) -> Run:
    """
    Drive *url* with *connections* from one thread, each sending its next request when it has its reply.

    Raises: WrkError.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
    if shutil.which("wrk") is None:
        raise WrkError("wrk is not installed; run: apt-get install wrk")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + _GRACE_S, check=False
    )
    if done.returncode:
        raise WrkError(
            f"{' '.join(command)} exited with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return parsed(done.stdout)


def parsed(output: str) -> Run:
    """
    Return what wrk printed with ``--latency``.

    Raises: WrkError if a number is missing.
    """
    p50_ms, p99_ms = (_duration_ms(_found(rf"^\s*{percent}%\s+([\d.]+)([a-z]+)$", output)) for percent in (50, 99))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    return Run(
        requests_per_s=float(_found(r"^Requests/sec:\s+([\d.]+)$", output)[1]),
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        n_failed=sum(int(number) for match in (failed, errors) if match for number in match.groups()),
    )


def _found(pattern: str, output: str) -> re.Match[str]:
    match = re.search(pattern, output, re.MULTILINE)
    if match is None:
        raise WrkError(f"wrk printed nothing like {pattern!r}; another version? it printed: {output[:500]!r}")
    return match


def _duration_ms(match: re.Match[str]) -> float:
    number, unit = match.groups()
    if unit not in _UNITS_MS:
        raise WrkError(f"wrk printed a duration in {unit!r}, which is no unit it is known to use: {match[0]!r}")
    return float(number) * _UNITS_MS[unit]
