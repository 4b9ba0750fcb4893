"""
The default mix, a locust user of the sample functions: ``make loadtest``, which starts a host and runs this.

On a host with the samples deployed: ``locust -f loadtest/locustfile.py --host http://127.0.0.1:8080``.
"""

# locust is not looked into by mypy (pyproject.toml), so its base class and decorators have no types.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

import random
from pathlib import Path

from locust import between, task

from loadtest.users import CheckedUser

README = (Path(__file__).resolve().parent.parent / "README.md").read_bytes()
BODY_SIZES = (0, 1, 100, 4 * 1024, 64 * 1024, 256 * 1024)
BODY_WEIGHTS = (5, 10, 50, 25, 8, 2)


class Caller(CheckedUser):
    """Someone who calls one function after the other."""

    wait_time = between(0.005, 0.02)

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
        with self.call("markdown", "POST", "/markdown", README, {"Content-Type": "text/markdown"}) as reply:
            page = reply.content or b""
            if reply.status_code == 200 and not (b"<h1" in page and b"</html>" in page):
                reply.failure("the page has no heading, or no end")

    def _hello(self, function: str, greeting: bytes) -> None:
        with self.call(function, "GET", f"/{function}/to/you?q=1") as reply:
            content = reply.content or b""
            if reply.status_code == 200 and not (greeting in content and b"/to/you" in content):
                reply.failure(f"an unexpected greeting: {content[:80]!r}")

    def _echo(self, function: str) -> None:
        (size,) = random.choices(BODY_SIZES, BODY_WEIGHTS)
        body = random.randbytes(size)
        with self.call(function, "POST", f"/{function}", body, {"Content-Type": "application/x-test"}) as reply:
            self.expect(reply, body)
