"""
Locust users for the sample functions: every reply is checked, and the cold start of each is a statistic of its own.

Needs a host with the samples deployed: ``locust -f loadtest/locustfile.py --host http://127.0.0.1:8080``, or
``make loadtest``, which starts one.
"""

# locust is not looked into by mypy (pyproject.toml), so its base class and decorators have no types.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

import csv
import os
import random
from pathlib import Path
from typing import Any

from locust import FastHttpUser, between, events, task
from locust.event import EventHook

from loadtest.report import SUMMARY_FILE, percentile, server_timing

README = (Path(__file__).resolve().parent.parent / "README.md").read_bytes()
BODY_SIZES = (0, 1, 100, 4 * 1024, 64 * 1024, 256 * 1024)
BODY_WEIGHTS = (5, 10, 50, 25, 8, 2)

cold_start = EventHook()
"""Fired once for each good reply, with ``function`` and ``start_ms``: what making that request's instance took."""

_SUMMARY = ("function", "requests", "failures", "per_s", "p50", "p95", "p99", "start_p50", "start_p99", "start_max")
_times_ms: dict[str, list[float]] = {}
_starts_ms: dict[str, list[float]] = {}


@cold_start.add_listener
def _count_start(function: str, start_ms: float) -> None:
    _starts_ms.setdefault(function, []).append(start_ms)


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


class Caller(FastHttpUser):
    """Someone who calls one function after the other."""

    wait_time = between(0.005, 0.02)
    connection_timeout = 10.0
    network_timeout = 30.0

    @task(4)
    def hello_c(self) -> None:
        """The smallest command there is, in C."""
        self._hello("hello-c", b"Hello from C!")

    @task(4)
    def hello_rust(self) -> None:
        """The same in Rust."""
        self._hello("hello-rust", b"Hello from Rust!")

    @task(3)
    def echo_c(self) -> None:
        """A reactor in C gets a body back as it was."""
        self._echo("echo-c")

    @task(3)
    def echo_rust(self) -> None:
        """The same in Rust."""
        self._echo("echo-rust")

    @task(1)
    def markdown(self) -> None:
        """A real job: this project's README as a page."""
        with self._call("markdown", "POST", "/markdown", README, {"Content-Type": "text/markdown"}) as reply:
            page = reply.content or b""
            if reply.status_code == 200 and not (b"<h1" in page and b"</html>" in page):
                reply.failure("the page has no heading, or no end")

    def _hello(self, function: str, greeting: bytes) -> None:
        with self._call(function, "GET", f"/{function}/to/you?q=1") as reply:
            content = reply.content or b""
            if reply.status_code == 200 and not (greeting in content and b"/to/you" in content):
                reply.failure(f"an unexpected greeting: {content[:80]!r}")

    def _echo(self, function: str) -> None:
        (size,) = random.choices(BODY_SIZES, BODY_WEIGHTS)
        body = random.randbytes(size)
        with self._call(function, "POST", f"/{function}", body, {"Content-Type": "application/x-test"}) as reply:
            if reply.status_code == 200 and (reply.content or b"") != body:
                reply.failure(f"{size} bytes did not come back as they were")

    def _call(
        self, function: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        """Send a request; the reply has to come from *function*, and its cold start is counted."""
        reply = self.client.request(method, path, data=body, headers=headers, name=function, catch_response=True)
        entered = reply.__enter__()
        if entered.status_code == 200:
            timing = server_timing(entered.headers.get("Server-Timing", ""))
            if entered.headers.get("X-Faas-Function") != function or "start" not in timing:
                entered.failure("the reply lacks X-Faas-Function or Server-Timing")
            else:
                cold_start.fire(function=function, start_ms=timing["start"])
        return reply
