"""The locust users of ``python -m loadtest.run --scenario NAME``; loadtest/scenarios.py says which of them run."""

# locust is not looked into by mypy (pyproject.toml), so its base class and decorators have no types.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from locust import User, between, constant, constant_throughput, events, task
from locust.exception import StopUser

from loadtest import scenarios
from loadtest.users import CheckedUser

_CHAT_TIMEOUT_S = 120.0

_began: list[float] = []


@events.test_start.add_listener
def _begin(**_: Any) -> None:
    _began.append(time.monotonic())


def _since_begin_s() -> float:
    return time.monotonic() - _began[-1]


def _wait_until(begin_s: float) -> None:
    """Wait until so many seconds after the load test's begin."""
    # locust makes `sleep` a switch to other users.
    time.sleep(max(0.0, begin_s - _since_begin_s()))


class Greeted(CheckedUser):
    """Someone who calls the smallest function; without a task, since locust adds a parent's tasks to a class's own."""

    abstract = True

    def hello_as(self, name: str) -> None:
        """Call it; *name* is the row in the table."""
        with self.call("hello", "GET", "/hello", name=name) as reply:
            self.expect(reply, scenarios.HELLO_ANSWER)


class Hello(Greeted):
    """Someone who calls it again and again."""

    wait_time = between(0.001, 0.01)

    @task
    def hello(self) -> None:
        """A greeting that is known byte for byte."""
        self.hello_as("hello")


class MixedSizes(CheckedUser):
    """Someone who sends bodies from a byte to a mebibyte and wants them back."""

    wait_time = between(0.005, 0.02)

    def on_start(self) -> None:
        self._functions = itertools.cycle(scenarios.ECHOES)

    @task
    def echo(self) -> None:
        """All sizes are equally likely: the large ones are what the host is busy with."""
        size = random.choice(list(scenarios.BODY_ROWS))
        function, body = next(self._functions), random.randbytes(size)
        headers = {"Content-Type": "application/x-test"}
        name = scenarios.BODY_ROWS[size]
        with self.call(function, "POST", f"/{function}", body, headers, name=name) as reply:
            self.expect(reply, body)


class Cpu(CheckedUser):
    """Someone who lets the host compute."""

    wait_time = constant(0)

    @task
    def primes(self) -> None:
        """Sieves of some sizes whose answer is known."""
        limit, count = random.choice(list(scenarios.PRIMES.items()))
        with self.call("primes", "GET", f"/primes?{limit}", name=scenarios.primes_row(limit)) as reply:
            self.expect(reply, scenarios.primes_answer(limit, count))


class Quiet(Greeted):
    """A small function's caller, ten times a second, before and while its neighbour is overloaded."""

    wait_time = constant_throughput(10)
    fixed_count = scenarios.QUIET_USERS

    @task
    def hello(self) -> None:
        """The same request in both phases, under two names."""
        self.hello_as(scenarios.ALONE if _since_begin_s() < scenarios.ALONE_S else scenarios.BESIDE)


class Noisy(CheckedUser):
    """One of too many who want to compute."""

    wait_time = constant(0.05)
    may_be_refused = True

    def on_start(self) -> None:
        _wait_until(scenarios.ALONE_S)

    @task
    def primes(self) -> None:
        """A sieve that takes some 10 ms of CPU time."""
        limit = scenarios.NOISE_LIMIT
        with self.call("primes", "GET", f"/primes?{limit}") as reply:
            self.expect(reply, scenarios.primes_answer(limit, scenarios.PRIMES[limit]))


class Burst(Greeted):
    """One of many who all come at the same moment, to a host that was idle."""

    wait_time = constant(0.1)
    may_be_refused = True

    def on_start(self) -> None:
        _wait_until(scenarios.IDLE_S)

    @task
    def hello(self) -> None:
        """Requests that are sent within the first second have a row of their own."""
        first = _since_begin_s() < scenarios.IDLE_S + 1
        self.hello_as(scenarios.FIRST_SECOND if first else scenarios.LATER)


class Cold(CheckedUser):
    """Someone who takes the next function of the fleet, so that none is called again before all others were."""

    wait_time = constant(0)

    @task
    def cold(self) -> None:
        """Each answers with its own number; when all had their turns, the load test ends."""
        index = next(_cold_turns, None)
        if index is None:
            if next(_last_words, False):
                # Not from here: locust would wait for this user to stop.
                threading.Thread(target=self.environment.runner.quit).start()
            raise StopUser
        name = scenarios.FLEET.names[index]
        with self.call(name, "GET", f"/{name}", name=scenarios.COLD) as reply:
            content = reply.content or b""
            if reply.status_code == 200 and not content.startswith(f"{index:05d}".encode()):
                reply.failure(f"{name} answered like another function: {content[:40]!r}")


_cold_turns = itertools.chain.from_iterable(
    itertools.repeat(range(scenarios.FLEET.n_functions), scenarios.FLEET_ROUNDS)
)
_last_words = iter([True])  # the first user without a turn ends the load test


class Chat(User):
    """
    Someone who reads a model's answer while it is made; the time to its first token is a row of its own.

    A plain HTTP client, because locust's own ones tell when the head of a reply came, not when its first token did.
    """

    wait_time = constant(0.1)

    @task
    def chat(self) -> None:
        """The same prompt has to have the same (greedy) answer, whoever else is answered meanwhile."""
        prompt = random.choice(scenarios.PROMPTS)
        began = time.perf_counter()
        failure: Exception | None = None
        text, first_s = "", 0.0
        try:
            text, first_s = self._answer(prompt, began)
            known = scenarios.CHAT_ANSWERS.setdefault(prompt, text)
            if text != known:
                failure = ValueError(f"another answer to {prompt!r}: {text[:80]!r} and before {known[:80]!r}")
        except (OSError, http.client.HTTPException, ValueError) as exc:
            failure = exc
        took_s = time.perf_counter() - began
        if first_s:
            self._count("TTFT", scenarios.CHAT_FIRST, first_s, 0, None)
        self._count("POST", scenarios.CHAT, took_s, len(text), failure)

    def _answer(self, prompt: str, began: float) -> tuple[str, float]:
        """Return text and time to its first piece in s; raises ValueError if it is not whole."""
        conn = http.client.HTTPConnection(urlsplit(self.host).netloc, timeout=_CHAT_TIMEOUT_S)
        try:
            conn.request("POST", "/chat", json.dumps(scenarios.chat_body(prompt)).encode())
            reply = conn.getresponse()
            if reply.status != 200 or reply.getheader("Content-Type") != "text/event-stream":
                raise ValueError(f"{reply.status}: {reply.read()[:200]!r}")
            pieces, first_s, usage, ended = [], 0.0, 0, False
            while line := reply.readline():
                data = line.strip().removeprefix(b"data: ")
                if data == b"[DONE]":
                    ended = True
                elif data:
                    event = json.loads(data)
                    if "error" in event:
                        raise ValueError(f"an error event: {event['error']}")
                    if "text" in event:
                        first_s = first_s or time.perf_counter() - began
                        pieces.append(event["text"])
                    usage = event.get("usage", {}).get("completion_tokens", usage)
        finally:
            conn.close()
        if not ended or not pieces or not usage:
            raise ValueError(f"the stream broke off after {len(pieces)} pieces")
        return "".join(pieces), first_s

    def _count(self, kind: str, name: str, took_s: float, n_bytes: int, failure: Exception | None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=took_s * 1000,
            response_length=n_bytes,
            exception=failure,
            context={},
        )
