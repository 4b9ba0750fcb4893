"""
The load tests that locust can run: what each needs of a host, who calls it, and which rows have to come of it.

Their users are in loadtest/scenario_users.py; this file is read by locust's process and by the one that starts it.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faas.control.models import find_demo
from loadtest.density import Plan
from loadtest.host import FUNCTIONS, Host, HostFailedError, request
from loadtest.report import REFUSED

HELLO_ANSWER = b"Hello from C!\nGET /hello\n"

ECHOES = ("echo-c", "echo-rust")
BODY_ROWS = {
    1: "echo 0000001 B",
    64: "echo 0000064 B",
    1024: "echo 0001024 B",
    16 * 1024: "echo 0016384 B",
    128 * 1024: "echo 0131072 B",
    1024 * 1024: "echo 1048576 B",
}
"""The sizes of bodies, and the rows of the table that they go to; the digits keep those in order."""

PRIMES = {100_000: 9592, 1_000_000: 78498, 3_000_000: 216816}
"""How many primes there are below a number."""

ALONE_S = 8.0
"""How long the quiet neighbour is alone, for comparison."""
QUIET_USERS = 5
ALONE, BESIDE = "hello, alone", "hello, beside primes"
NOISE_LIMIT = 1_000_000
# Two instances for each of two workers would fill two processors; what waits beyond the queue is refused.
_NOISY_LIMITS = {"max_concurrency": 4, "max_queue": 16, "queue_timeout_s": 1}

IDLE_S = 5.0
FIRST_SECOND, LATER = "hello, first second", "hello, later"

FLEET = Plan(n_functions=1000, n_large=0, n_active=0, n_workers=2, n_deployers=4)
FLEET_ROUNDS = 5
COLD = "cold functions"
_FLEET_BUDGET_BYTES = 4 * 1024 * 1024
"""Code of some 80 of the thousand: who comes round again finds its code unloaded."""
_STATS_AGE_S = 2.0
"""Workers report once a second: after this long the numbers are of now."""

CHAT, CHAT_FIRST = "chat", "chat: first token"
CHAT_TOKENS = 48
PROMPTS = (
    "What is the capital of France?",
    "Write a short story about a river.",
    "Explain what a lighthouse is for.",
    "List three things to take on a walk in winter.",
)
CHAT_ANSWERS: dict[str, str] = {}
"""The first answer to each prompt, in the process that asks."""

Afterwards = Callable[[], "Finding"]


@dataclass(frozen=True)
class Finding:
    """What is told of a scenario beside its table; one that is no ``ok`` fails it."""

    text: str
    ok: bool = True


@dataclass(frozen=True)
class Scenario:
    """One load test; ``set_up`` prepares its host and may return what is to be looked at when the load is over."""

    summary: str
    users_file: str
    user_classes: tuple[str, ...]
    users: int
    duration_s: int
    rows: tuple[str, ...]
    """Each has to have a request in the end."""
    set_up: Callable[[Host], Afterwards | None] = lambda _: None
    deploy: tuple[str, ...] = ()
    """Sample functions that are deployed as they are."""
    settings: Mapping[str, object] = field(default_factory=dict)
    needs_model: bool = False
    at_once: bool = False
    """All users begin at the same moment, and not one after the other within a second."""


def missing_for_models() -> str:
    """Return what this machine lacks to serve the demo model, with the next step; '' if nothing."""
    if importlib.util.find_spec("llama_cpp") is None or find_demo() is None:
        return "there is no llama-cpp-python, or no demo model; run 'make models' first"
    return ""


def primes_answer(limit: int, count: int) -> bytes:
    """Return what functions/primes answers."""
    return f"{count} primes below {limit}\n".encode()


def primes_row(limit: int) -> str:
    """Return the row of the table for sieves of that size."""
    return f"primes {limit:7}"


def chat_body(prompt: str, max_tokens: int = CHAT_TOKENS) -> dict[str, Any]:
    """Return what functions/chat is asked, for a greedy answer."""
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0}


def _hello(host: Host) -> None:
    host.deploy({"name": "hello"}, FUNCTIONS / "hello-c" / "hello-c.wasm")


def _noisy_neighbour(host: Host) -> None:
    _hello(host)
    host.deploy({"name": "primes", "limits": _NOISY_LIMITS}, FUNCTIONS / "primes" / "primes.wasm")


def _chat(host: Host) -> None:
    """Have the model loaded: how long that takes is not what is measured."""
    host.deploy(
        {"name": "chat", "limits": {"timeout_s": 120}, "capabilities": {"models": ["default"]}},
        FUNCTIONS / "chat" / "chat.wasm",
    )
    status, body, _ = request(host.public_url, "POST", "/chat", json.dumps(chat_body("Hi", 1)).encode())
    if status != 200:
        raise HostFailedError(f"chat answered {status} {body[:300]!r}; look at 'faas models list' of such a host")


def _cold_fleet(host: Host) -> Afterwards:
    """Deploy a thousand functions, each with code of its own; afterwards, tell how often code was loaded."""

    def deploy(index: int) -> None:
        with tempfile.NamedTemporaryFile(suffix=".wasm") as file:
            file.write(FLEET.module(index))
            file.flush()
            host.deploy({"name": FLEET.names[index]}, Path(file.name))

    with ThreadPoolExecutor(FLEET.n_deployers) as pool:
        for _ in pool.map(deploy, range(FLEET.n_functions)):
            pass
    before = _code_loads(host)

    def afterwards() -> Finding:
        n_calls = FLEET.n_functions * FLEET_ROUNDS
        n_loads = _code_loads(host) - before
        return Finding(f"{n_loads} of {n_calls} calls had to load their code", n_loads >= n_calls * COLD_SHARE)

    return afterwards


COLD_SHARE = 0.9
"""A trial instance leaves its code loaded, so the functions that were deployed last may be warm."""


def _code_loads(host: Host) -> int:
    time.sleep(_STATS_AGE_S)
    return sum(int(worker["gauges"].get("code_loads", 0)) for worker in host.status()["workers"])


_MIX = ("hello-c", "hello-rust", "echo-c", "echo-rust", "markdown")
_USERS_FILE = "scenario_users.py"
DEFAULT = "mix"
SCENARIOS: dict[str, Scenario] = {
    DEFAULT: Scenario("the sample functions, all of them", "locustfile.py", ("Caller",), 20, 60, _MIX, deploy=_MIX),
    "hello": Scenario("the smallest function", _USERS_FILE, ("Hello",), 20, 30, ("hello",), _hello),
    "mixed-sizes": Scenario(
        "bodies from a byte to a mebibyte, echoed",
        *(_USERS_FILE, ("MixedSizes",), 10, 30, tuple(BODY_ROWS.values())),
        deploy=ECHOES,
    ),
    "cpu": Scenario(
        "a function that only computes",
        *(_USERS_FILE, ("Cpu",), 4, 30, tuple(map(primes_row, PRIMES))),
        deploy=("primes",),
    ),
    "chat": Scenario(
        "a function that streams from a resident model",
        *(_USERS_FILE, ("Chat",), 4, 45, (CHAT, CHAT_FIRST), _chat),
        needs_model=True,
    ),
    "noisy-neighbour": Scenario(
        f"a small function, {ALONE_S:g} s alone and then beside an overloaded one that computes",
        *(_USERS_FILE, ("Quiet", "Noisy"), QUIET_USERS + 60, 30, (ALONE, BESIDE, "primes", "primes" + REFUSED)),
        _noisy_neighbour,
        at_once=True,
    ),
    "burst": Scenario(
        f"{IDLE_S:g} s without a request, then everybody at once",
        *(_USERS_FILE, ("Burst",), 200, 15, (FIRST_SECOND, LATER), _hello),
        at_once=True,
    ),
    "cold-fleet": Scenario(
        f"{FLEET.n_functions} functions called in turn, {FLEET_ROUNDS} times, with room for the code of few",
        *(_USERS_FILE, ("Cold",), 4, 300, (COLD,), _cold_fleet),
        settings={"code_budget_bytes": _FLEET_BUDGET_BYTES},
        at_once=True,
    ),
}
