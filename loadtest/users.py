"""
What all locust users here share: every reply is checked, and its cold start is a statistic of its own.

Runs in locust's process only: importing locust makes the standard library cooperative for the whole process.
"""

# locust is not looked into by mypy (pyproject.toml), so its base class and decorators have no types.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

import csv
import os
from typing import Any

from locust import FastHttpUser, events
from locust.event import EventHook

from loadtest.report import REFUSED, SUMMARY_FILE, percentile, server_timing

cold_start = EventHook()
"""Fired once for each good reply, with ``name`` and ``start_ms``: what making that request's instance took."""

_SUMMARY = ("function", "requests", "failures", "per_s", "p50", "p95", "p99", "start_p50", "start_p99", "start_max")
_times_ms: dict[str, list[float]] = {}
_starts_ms: dict[str, list[float]] = {}


@cold_start.add_listener
def _count_start(name: str, start_ms: float) -> None:
    _starts_ms.setdefault(name, []).append(start_ms)


@events.request.add_listener
def _count_request(name: str, response_time: float, **_: Any) -> None:
    # locust's own statistics round to whole milliseconds, and most replies here take about one.
    _times_ms.setdefault(name, []).append(response_time)


@events.quitting.add_listener
def _write_summary(environment: Any, **_: Any) -> None:
    path = os.environ.get(SUMMARY_FILE)
    if not path:
        return
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(_SUMMARY)
        for entry in sorted(environment.stats.entries.values(), key=lambda entry: str(entry.name)):
            times, starts = _times_ms.get(entry.name, []), _starts_ms.get(entry.name, [])
            rows.writerow(
                [entry.name, entry.num_requests, entry.num_failures, f"{entry.total_rps:.1f}"]
                + [f"{percentile(times, percent):.2f}" for percent in (50, 95, 99)]
                + [f"{percentile(starts, percent):.3f}" for percent in (50, 99, 100)]
            )


class CheckedUser(FastHttpUser):
    """Someone who looks at every reply."""

    abstract = True
    connection_timeout = 10.0
    network_timeout = 30.0
    may_be_refused = False
    """Whether 429 and 503 with ``Retry-After`` are right answers; they are counted under a name of their own."""

    def call(
        self,
        function: str,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        name: str = "",
    ) -> Any:
        """
        Send a request; the reply has to come from *function*, and its cold start is counted.

        Returns: a context manager of the reply, in which the caller checks its content.
        """
        name = name or function
        reply = self.client.request(method, path, data=body, headers=headers, name=name, catch_response=True)
        entered = reply.__enter__()
        if entered.status_code == 200:
            timing = server_timing(entered.headers.get("Server-Timing", ""))
            if entered.headers.get("X-Faas-Function") != function or "start" not in timing:
                entered.failure("the reply lacks X-Faas-Function or Server-Timing")
            else:
                cold_start.fire(name=name, start_ms=timing["start"])
        elif (
            self.may_be_refused
            and entered.status_code in {429, 503}
            and entered.headers.get("Retry-After", "").isdigit()
        ):
            entered.request_meta["name"] = name + REFUSED
            entered.success()
        return reply

    def expect(self, reply: Any, content: bytes) -> None:
        """Fail a reply with status 200 that is not *content*, byte for byte."""
        found = reply.content or b""
        if reply.status_code == 200 and found != content:
            reply.failure(f"{len(found)} bytes that begin {found[:40]!r}, and not the {len(content)} that were due")
