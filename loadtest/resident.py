"""
``make bench-models``: what resident models promise, measured on a real host with a real model behind the samples.

Each benchmark has a host of its own with two workers, and ends in lines of a table: what was measured, and whether the
promise holds. Every client of a function is an ordinary HTTP client; what it sees is what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.table import Table

from faas.control.models import find_demo
from loadtest.host import FUNCTIONS, Host, HostFailedError, Refused
from loadtest.report import console as new_console

WORKERS = 2
N_FUNCTIONS = 20
N_CALLS = 200
N_AT_ONCE = 4
MEMORY_RATIO = 1.2

N_GENERATIONS = 8
N_GENERATING_FUNCTIONS = 4
GENERATION_TOKENS = 64
BATCH_ROUNDS = 5
BATCH_RATIO = 1.4

PREFIX_TOKENS = 1000
PREFIX_ROUNDS = 3
PREFIX_RATIO = 0.3

STREAM_TOKENS = 200
FIRST_TOKEN_SHARE = 0.3
OWN_READ_SHARE = 0.8
"""Of the tokens that curl prints, so many have to arrive alone: the pipe to us may join two on a busy machine."""

LEAVE_AFTER = 5
LEAVE_OF = 500
LEAVE_ROUNDS = 5
FREE_MS = 200

CRASH_STREAMS = 3
CRASH_TOKENS = 1000
BACK_WITHIN_S = 60.0

TIMEOUT_S = 120.0
_POLL_S = 0.02

HELLO = FUNCTIONS / "hello-c" / "hello-c.wasm"
TOPICS = ("a river", "a lighthouse", "two brothers", "the moon", "a clockmaker", "a storm", "an old map", "winter")
_WORDS = (
    "apple",
    "river",
    "stone",
    "garden",
    "window",
    "paper",
    "market",
    "bridge",
    "summer",
    "kitchen",
    "forest",
    "music",
)


@dataclass(frozen=True)
class Finding:
    """One line of the table; ``promise`` empty means that the number is only for information."""

    benchmark: str
    what: str
    measured: str
    promise: str = ""
    holds: bool = True


@dataclass
class Answer:
    """What a function said to one request, as its client saw it; times in s since the request was sent."""

    status: int = 0
    pieces: list[str] = field(default_factory=list)
    usage: Mapping[str, int] = field(default_factory=dict)
    error: str = ""
    """Of an error event, or a body that is no event stream."""
    ended: bool = False
    """The stream came to its ``[DONE]``."""
    retry_after: str = ""
    first_s: float = 0.0
    total_s: float = 0.0

    def checked(self) -> Answer:
        """Return it if it is whole; raises HostFailedError."""
        if self.status != 200 or self.error or not self.ended:
            raise HostFailedError(f"chat answered {self.status} {self.error or 'and broke off'}")
        return self


def main() -> int:
    """Return 0 when every promise holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.resident", description=__doc__)
    parser.add_argument("--only", choices=list(BENCHMARKS), action="append", help="run just this one; may be repeated")
    parser.add_argument(
        "--model", type=Path, metavar="PATH", help="a GGUF file of a ChatML model (default: the demo model)"
    )
    args = parser.parse_args()
    model = args.model.resolve() if args.model else find_demo()
    missing = _missing(model)
    if model is None or missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    console = new_console()
    findings: list[Finding] = []
    for name, benchmark in BENCHMARKS.items():
        if not args.only or name in args.only:
            console.print(f"{name} ...")
            for finding in _found(name, benchmark, model):
                console.print(f"  {finding.what}: {finding.measured}", markup=False)
                findings.append(finding)
    console.print(_table(findings, model))
    return 0 if all(finding.holds for finding in findings) else 1


def _found(name: str, benchmark: Callable[[Path, Path], list[Finding]], model: Path) -> list[Finding]:
    """Return what *benchmark* found; one that breaks off has kept no promise, and the others go on."""
    with tempfile.TemporaryDirectory(prefix="faas-bench-") as folder:
        try:
            return benchmark(Path(folder) / "home", model)
        except (HostFailedError, Refused, OSError, aiohttp.ClientError, TimeoutError) as exc:
            return [Finding(name, "broke off", f"{type(exc).__name__}: {exc}", "ends", holds=False)]


def _missing(model: Path | None) -> str:
    """Return what this machine lacks, with the next step; '' if nothing."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed; run 'make models' first"
    if model is None:
        return "there is no demo model; run 'make models' first, or name a file with --model PATH"
    if not model.is_file():
        return f"there is no model {model}; check --model"
    if shutil.which("curl") is None:
        return "curl is not installed; apt-get install curl"
    return ""


# ---- one model for many functions -----------------------------------------------------------------------------------


def memory(home: Path, model: Path) -> list[Finding]:
    """Twenty functions and one: how often the weights are loaded, and what all processes of the host take."""

    async def calls(names: list[str]) -> None:
        async with _session(host) as session:
            queue = asyncio.Queue[tuple[int, str]]()
            for numbered in enumerate(names):
                queue.put_nowait(numbered)

            async def caller() -> None:
                while not queue.empty():
                    number, name = queue.get_nowait()
                    (await chat(session, name, f"What is {number} plus {len(name)}?", max_tokens=16)).checked()

            await asyncio.gather(*(caller() for _ in range(N_AT_ONCE)))

    names = [f"chat-{number:02}" for number in range(1, N_FUNCTIONS + 1)]
    each = N_CALLS // N_FUNCTIONS
    with _host(home, model) as host:
        _deploy_chats(host, names[:1])
        asyncio.run(calls(names[:1] * each))
        pss_one, rss_one = _memory_of(host)
        _deploy_chats(host, names[1:])
        asyncio.run(calls(names[1:] * each))
        pss_all, rss_all = _memory_of(host)
        n_requests = _metric_reaches(host, 'faas_model_requests_total{model="default"}', N_CALLS)
        loads = host.metrics()['faas_model_loads_total{model="default"}']
    ratio = pss_all / pss_one
    return [
        Finding(
            "memory",
            f"times the weights were loaded for {n_requests:.0f} calls of {N_FUNCTIONS} functions",
            f"{loads:.0f}",
            "once",
            loads == 1 and n_requests == N_CALLS,
        ),
        Finding(
            "memory",
            f"PSS of all processes after them / after {each} calls of one",
            f"{ratio:.2f} ({pss_all / 1e6:.0f} / {pss_one / 1e6:.0f} MB)",
            f"< {MEMORY_RATIO}",
            ratio < MEMORY_RATIO,
        ),
        Finding("memory", "the same in RSS", f"{rss_all / rss_one:.2f} ({rss_all / 1e6:.0f} / {rss_one / 1e6:.0f} MB)"),
    ]


def _memory_of(host: Host) -> tuple[int, int]:
    """Return PSS and RSS of all the host's processes, in bytes; pages that they share count once in PSS."""
    pss = rss = 0
    for pid in host.processes():
        with contextlib.suppress(OSError):  # a precompile job that has just ended
            numbers = parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
            pss, rss = pss + numbers["Pss"], rss + numbers["Rss"]
    return pss, rss


def parse_rollup(text: str) -> dict[str, int]:
    """
    Return the sizes in a process's ``smaps_rollup``, in bytes.

    Source: proc(5).
    """
    fields = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if len(words) == 3 and words[2] == "kB"}


# ---- generations of several functions together ----------------------------------------------------------------------


def batching(home: Path, model: Path) -> list[Finding]:
    """Eight generations one after the other and all at once, in turn; the greedy texts have to be the same."""
    names = [f"chat-{number}" for number in range(1, N_GENERATING_FUNCTIONS + 1)]
    jobs = [
        (names[number % len(names)], f"Write a long story about {TOPICS[number]}.") for number in range(N_GENERATIONS)
    ]

    async def alone(session: aiohttp.ClientSession) -> list[Answer]:
        return [await chat(session, *job, max_tokens=GENERATION_TOKENS) for job in jobs]

    async def together(session: aiohttp.ClientSession) -> list[Answer]:
        return await asyncio.gather(*(chat(session, *job, max_tokens=GENERATION_TOKENS) for job in jobs))

    async def rounds() -> tuple[list[float], list[float], Counter[str]]:
        solo_rates, joint_rates = [], []
        different = Counter[str]()
        async with _session(host) as session:
            first = [answer.checked().pieces for answer in await alone(session)]  # each computed its prompt, alone
            for number in range(1, BATCH_ROUNDS + 1):
                solo, solo_rate = await _rated(alone(session))
                joint, joint_rate = await _rated(together(session))
                solo_rates.append(solo_rate)
                joint_rates.append(joint_rate)
                for how, answers in (("alone", solo), ("together", joint)):
                    n_different = sum(answer.pieces != pieces for answer, pieces in zip(answers, first, strict=True))
                    different += Counter({f"{how} in round {number}": n_different})
        return solo_rates, joint_rates, different

    with _host(home, model) as host:
        _deploy_chats(host, names)
        solo_rates, joint_rates, different = asyncio.run(rounds())
    ratios = [joint / solo for joint, solo in zip(joint_rates, solo_rates, strict=True)]
    ratio = statistics.median(ratios)
    return [
        Finding(
            "batching",
            f"tokens/s of {N_GENERATIONS} generations of {len(names)} functions / of one, median of {BATCH_ROUNDS}",
            f"{ratio:.2f} ({statistics.median(joint_rates):.0f} / {statistics.median(solo_rates):.0f} tokens/s)",
            f"≥ {BATCH_RATIO}",
            ratio >= BATCH_RATIO,
        ),
        Finding("batching", "each round", " ".join(f"{ratio:.2f}" for ratio in ratios)),
        Finding(
            "batching",
            f"greedy texts that differ from the first solo run, of {2 * BATCH_ROUNDS * N_GENERATIONS}",
            _counted(different),
            "0",
            not different,
        ),
    ]


async def _rated(running: Awaitable[list[Answer]]) -> tuple[list[Answer], float]:
    """Return the answers and how many tokens they have per second, all together."""
    began = time.perf_counter()
    answers = [answer.checked() for answer in await running]
    took_s = time.perf_counter() - began
    return answers, sum(answer.usage["completion_tokens"] for answer in answers) / took_s


# ---- a prefix that another function has used ------------------------------------------------------------------------


def prefix(home: Path, model: Path) -> list[Finding]:
    """The time to the first token after a long prompt, and after its beginning in a request to another function."""

    async def rounds() -> tuple[list[tuple[float, float]], int]:
        found, n_tokens = [], 0
        async with _session(host) as session:
            (await chat(session, "first", "Hi", max_tokens=1)).checked()  # the model is loaded now
            for number in range(PREFIX_ROUNDS):
                text = long_text(number)
                one = (await chat(session, "first", f"{text}\nHow many words are these?", max_tokens=4)).checked()
                two = (await chat(session, "second", f"{text}\nWhich word is the last?", max_tokens=4)).checked()
                found.append((one.first_s, two.first_s))
                n_tokens = one.usage["prompt_tokens"]
        return found, n_tokens

    with _host(home, model) as host:
        _deploy_chats(host, ["first", "second"])
        found, n_tokens = asyncio.run(rounds())
        metric = 'faas_model_tokens_total{model="default",kind="cached"}'
        n_cached = _metric_reaches(host, metric, PREFIX_ROUNDS * PREFIX_TOKENS) / PREFIX_ROUNDS
    share = statistics.median(two / one for one, two in found)
    return [
        Finding(
            "prefix",
            f"first token of the second / of the first, prompts of {n_tokens} tokens, median of {PREFIX_ROUNDS}",
            f"{share:.0%} ({' '.join(f'{two * 1000:.0f}/{one * 1000:.0f}' for one, two in found)} ms)",
            f"≤ {PREFIX_RATIO:.0%}",
            share <= PREFIX_RATIO and n_tokens >= PREFIX_TOKENS,
        ),
        Finding(
            "prefix",
            "tokens of each second prompt that came from the cache",
            f"{n_cached:.0f}",
            f"≥ {PREFIX_TOKENS}",
            n_cached >= PREFIX_TOKENS,
        ),
    ]


def long_text(number: int) -> str:
    """Return a text of a little over ``PREFIX_TOKENS`` tokens, another one for each *number*; each word is one."""
    shuffle = random.Random(number)
    return " ".join(shuffle.choice(_WORDS) for _ in range(PREFIX_TOKENS + 10))


# ---- streaming ------------------------------------------------------------------------------------------------------


def streaming(home: Path, model: Path) -> list[Finding]:
    """What ``curl -N`` prints, and when."""
    with _host(home, model) as host:
        _deploy_chats(host, ["chat"])
        url = f"{host.public_url}/chat"
        _curl(url, _body("Hi", 1))  # the model is loaded now
        reads = _curl(url, _body("Write a long story about a train.", STREAM_TOKENS))
    with_tokens = [(at_s, blob.count(b'{"text"')) for at_s, blob in reads if b'{"text"' in blob]
    if not with_tokens:
        raise HostFailedError(f"chat answered no tokens: {b''.join(blob for _, blob in reads)[:300]!r}")
    n_tokens = sum(n for _, n in with_tokens)
    n_alone = sum(n == 1 for _, n in with_tokens)
    first_s, total_s = with_tokens[0][0], reads[-1][0]
    share = first_s / total_s
    return [
        Finding(
            "streaming",
            f"curl -N: the first of {n_tokens} tokens, as a part of the whole time",
            f"{share:.1%} ({first_s * 1000:.0f} of {total_s * 1000:.0f} ms)",
            f"< {FIRST_TOKEN_SHARE:.0%}",
            share < FIRST_TOKEN_SHARE,
        ),
        Finding(
            "streaming",
            f"tokens that arrived alone; most in one read: {max(n for _, n in with_tokens)}",
            f"{n_alone} of {n_tokens}",
            f"≥ {OWN_READ_SHARE:.0%}",
            n_alone >= OWN_READ_SHARE * n_tokens,
        ),
    ]


def _curl(url: str, body: bytes) -> list[tuple[float, bytes]]:
    """Return what each read of curl's output brought and when, in s since curl was started."""
    command = ["curl", "-sS", "-N", "-H", "Content-Type: application/json", "--data-binary", "@-", url]
    reads: list[tuple[float, bytes]] = []
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(body)
        process.stdin.close()
        while blob := os.read(process.stdout.fileno(), 65536):
            reads.append((time.perf_counter() - began, blob))
    if process.returncode:
        raise HostFailedError(f"curl ended with {process.returncode}")
    return reads


# ---- clients that hang up -------------------------------------------------------------------------------------------


def leaving(home: Path, model: Path) -> list[Finding]:
    """
    A client that hangs up early in a long answer: how soon somebody else has its slot.

    The model has one slot here, and a second request waits for it. Its first token shows that the slot is free, and
    more exactly than the gauge of active generations, which the host learns once a second.
    """
    story = "Write a long story about a train."

    async def one(session: aiohttp.ClientSession, *, leaves: bool) -> tuple[float, int]:
        """Return the time in s from the end of the first request to the first token of the second; tokens till then."""
        async with events(session, "first", story, max_tokens=LEAVE_OF) as stream:
            n_read = 0
            waiter: asyncio.Task[float] | None = None
            async for _, event in stream:
                if "text" not in event:
                    continue
                n_read += 1
                waiter = waiter or asyncio.create_task(_first_token_at(session, "second"))
                if leaves and n_read == LEAVE_AFTER:
                    break
            if waiter is None:
                raise HostFailedError("the first request got no token")
            left_at = time.perf_counter()
        return await waiter - left_at, n_read

    async def rounds() -> tuple[list[float], float, int]:
        async with _session(host) as session:
            (await chat(session, "second", "Hi", max_tokens=1)).checked()
            stays_s, n_tokens = await one(session, leaves=False)
            found = [(await one(session, leaves=True))[0] * 1000 for _ in range(LEAVE_ROUNDS)]
            return found, stays_s, n_tokens

    with _host(home, model, settings={"model_slots": 1}) as host:
        _deploy_chats(host, ["first", "second"])
        found, stays_s, n_tokens = asyncio.run(rounds())
        left_at = time.perf_counter()
        _metric_reaches(host, 'faas_model_active{model="default"}', 0, at_most=True)
        gauge_s = time.perf_counter() - left_at
    return [
        Finding(
            "leaving",
            f"hung up at token {LEAVE_AFTER} of {n_tokens}: first token of who waited, worst of {len(found)}",
            f"{max(found):.0f} ms later",
            f"≤ {FREE_MS} ms",
            max(found) <= FREE_MS and n_tokens == LEAVE_OF,
        ),
        Finding("leaving", "each", f"{' '.join(f'{ms:.0f}' for ms in found)} ms later"),
        Finding("leaving", "the same when nobody hangs up, after the last token", f"{stays_s * 1000:.0f} ms later"),
        Finding("leaving", "faas_model_active is 0 in /metrics", f"{gauge_s * 1000:.0f} ms after the last of them"),
    ]


async def _first_token_at(session: aiohttp.ClientSession, function: str) -> float:
    sent_at = time.perf_counter()
    answer = (await chat(session, function, "Hi", max_tokens=1)).checked()
    return sent_at + answer.first_s


# ---- a model server that dies ---------------------------------------------------------------------------------------


@dataclass
class Probes:
    """What requests of all kinds met from before the kill until all of them are served again."""

    hellos: Counter[str] = field(default_factory=Counter)
    hello_max_ms: float = 0.0
    refusals: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    back_s: dict[str, float] = field(default_factory=dict)
    """Kind of model request → when it was served again, in s since the kill."""


def crash(home: Path, model: Path) -> list[Finding]:
    """``kill -9`` of the model server while functions stream from it."""
    names = [f"chat-{number}" for number in range(1, CRASH_STREAMS + 1)]
    with _host(home, model) as host:
        host.deploy({"name": "hello"}, HELLO)
        _deploy_chats(host, names)
        for name in ("summarize", "embed", "nn-test"):
            _deploy_sample(host, name, name)
        probes, broken = asyncio.run(_crash(host, names))
        restarts = _metric_reaches(host, "faas_model_server_restarts", 1)
    n_hellos = probes.hellos.total()
    return [
        Finding(
            "crash",
            "hello requests meanwhile that were not answered with 200",
            f"{n_hellos - probes.hellos['200']} of {n_hellos}",
            "0",
            n_hellos == probes.hellos["200"] > 0,
        ),
        Finding("crash", "the slowest of them", f"{probes.hello_max_ms:.0f} ms"),
        Finding(
            "crash",
            "streams in flight that ended in an error event",
            f"{sum(bool(answer.error) and answer.ended for answer in broken)} of {len(broken)}",
            "all",
            all(answer.status == 200 and answer.error and answer.ended for answer in broken),
        ),
        Finding(
            "crash",
            "model requests meanwhile that were refused without 'try again'",
            _counted(probes.wrong),
            "0",
            not probes.wrong,
        ),
        Finding("crash", "refused with it", _counted(probes.refusals)),
        Finding(
            "crash",
            f"served again by itself: {', '.join(probes.back_s)}",
            f"{max(probes.back_s.values()):.2f} s after the kill",
            "all",
            restarts == 1,
        ),
    ]


async def _crash(host: Host, names: list[str]) -> tuple[Probes, list[Answer]]:
    """Kill the model server once *names* stream; return what was seen until everything is served again."""
    probes = Probes()
    over = asyncio.Event()
    async with _session(host) as session:
        for kind, probe in MODEL_REQUESTS.items():
            if refusal := await probe(session):
                raise HostFailedError(f"{kind} does not work: {refusal.what}")
        flowing = [asyncio.Event() for _ in names]
        streams = [
            asyncio.create_task(
                chat(session, name, f"Write a long story about {TOPICS[number]}.", CRASH_TOKENS, flows=flowing[number])
            )
            for number, name in enumerate(names)
        ]
        hellos = asyncio.create_task(_say_hello(session, probes, over))
        await asyncio.gather(*(event.wait() for event in flowing))
        os.kill(host.status()["model_server"]["pid"], signal.SIGKILL)
        killed_at = time.perf_counter()
        broken = await asyncio.gather(*streams)
        async with asyncio.timeout(BACK_WITHIN_S):
            await asyncio.gather(*(_until_served(session, kind, killed_at, probes) for kind in MODEL_REQUESTS))
        over.set()
        await hellos
    return probes, broken


async def _say_hello(session: aiohttp.ClientSession, probes: Probes, over: asyncio.Event) -> None:
    while not over.is_set():
        began = time.perf_counter()
        try:
            async with session.get("/hello") as reply:
                await reply.read()
                probes.hellos[str(reply.status)] += 1
        except aiohttp.ClientError as exc:
            probes.hellos[type(exc).__name__] += 1
        probes.hello_max_ms = max(probes.hello_max_ms, (time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.002)  # the model's threads want the processors too


async def _until_served(session: aiohttp.ClientSession, kind: str, killed_at: float, probes: Probes) -> None:
    while refusal := await MODEL_REQUESTS[kind](session):
        (probes.refusals if refusal.retryable else probes.wrong)[f"{kind}: {refusal.what}"] += 1
        await asyncio.sleep(_POLL_S)
    probes.back_s[kind] = time.perf_counter() - killed_at


@dataclass(frozen=True)
class Refusal:
    """A model request that was not served; ``retryable`` when its client is told to try again."""

    what: str
    retryable: bool


async def _ask_chat(session: aiohttp.ClientSession) -> Refusal | None:
    answer = await chat(session, "chat-1", "Hi", max_tokens=4)
    if answer.status == 200 and answer.pieces and not answer.error:
        return None
    if answer.status == 200:
        return Refusal("error event", bool(answer.error) and answer.ended)
    return _refusal(answer.status, answer.retry_after)


async def _ask_summarize(session: aiohttp.ClientSession) -> Refusal | None:
    return await _post(session, "/summarize?tokens=4", b"The sun rose over the hills.")


async def _ask_embed(session: aiohttp.ClientSession) -> Refusal | None:
    return await _post(session, "/embed", b"a cat\n")


async def _ask_openai(session: aiohttp.ClientSession) -> Refusal | None:
    document = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    return await _post(session, "/v1/chat/completions", json.dumps(document).encode(), code="model_unavailable")


async def _ask_nn(session: aiohttp.ClientSession) -> Refusal | None:
    steps = "load_by_name:default;init_execution_context:0;set_input:0:1:{%22n-predict%22:4};set_input:0:0:Hi;compute:0"
    async with session.get(f"/nn-test?{steps}") as reply:
        errnos = [line.split()[1] for line in (await reply.text()).splitlines()]
        if reply.status == 200 and errnos == ["0"] * len(errnos):
            return None
        # errno 4 is 'busy'; what comes after it in the list has no handle to work on
        errno = next((errno for errno in errnos if errno != "0"), "")
        return Refusal(f"{reply.status} errno {errno}", reply.status == 200 and errno == "4")


async def _post(session: aiohttp.ClientSession, path: str, body: bytes, *, code: str = "") -> Refusal | None:
    async with session.post(path, data=body, headers={"Content-Type": "application/json"}) as reply:
        text = await reply.text()
        if reply.status == 200:
            return None
        said = json.loads(text)["error"]["code"] if code else ""
        refusal = _refusal(reply.status, reply.headers.get("Retry-After", ""), said)
        return Refusal(refusal.what, refusal.retryable and said == code)


def _refusal(status: int, retry_after: str, code: str = "") -> Refusal:
    what = " ".join(filter(None, (str(status), code, f"Retry-After {retry_after}" if retry_after else "")))
    return Refusal(what, status == 503 and retry_after.isdigit())


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} × {kind}" for kind, n in kinds.items()) or "0"


MODEL_REQUESTS: dict[str, Callable[[aiohttp.ClientSession], Awaitable[Refusal | None]]] = {
    "chat": _ask_chat,
    "summarize": _ask_summarize,
    "embed": _ask_embed,
    "nn-test": _ask_nn,
    "/v1": _ask_openai,
}


# ---- shared ---------------------------------------------------------------------------------------------------------


def _host(home: Path, model: Path, settings: Mapping[str, object] | None = None) -> Host:
    # The demo model is offered by its path, like any other: `--model` of this command may name another one.
    return Host(home, workers=WORKERS, models={"default": model}, settings={"model_demo": False, **(settings or {})})


def _deploy_chats(host: Host, names: list[str]) -> None:
    for name in names:
        _deploy_sample(host, "chat", name)


def _deploy_sample(host: Host, sample: str, name: str) -> None:
    manifest = {
        "name": name,
        "routes": [f"/{name}"],
        "limits": {"timeout_s": TIMEOUT_S, "memory_bytes": 32 * 1024 * 1024},
        "capabilities": {"models": ["default"]},
    }
    host.deploy(manifest, FUNCTIONS / sample / f"{sample}.wasm")


def _session(host: Host) -> aiohttp.ClientSession:
    """Return a client whose requests each take a connection of their own, so that they reach all workers."""
    return aiohttp.ClientSession(
        host.public_url,
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    )


def _body(text: str, max_tokens: int) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"messages": messages, "max_tokens": max_tokens, "temperature": 0}).encode()


async def chat(
    session: aiohttp.ClientSession,
    function: str,
    text: str,
    max_tokens: int,
    *,
    flows: asyncio.Event | None = None,
) -> Answer:
    """Ask a chat function, greedily; *flows* is set at the fifth token, or at the end if it does not come to that."""
    answer = Answer()
    try:
        async with events(session, function, text, max_tokens, answer=answer) as stream:
            async for at_s, event in stream:
                answer.total_s = at_s
                if "text" in event:
                    answer.first_s = answer.first_s or at_s
                    answer.pieces.append(event["text"])
                    if flows is not None and len(answer.pieces) == 5:
                        flows.set()
                answer.usage = event.get("usage", answer.usage)
                answer.error = event.get("error", answer.error)
    finally:
        if flows is not None:
            flows.set()
    return answer


@contextlib.asynccontextmanager
async def events(
    session: aiohttp.ClientSession,
    function: str,
    text: str,
    max_tokens: int,
    *,
    answer: Answer | None = None,
) -> AsyncIterator[AsyncIterator[tuple[float, dict[str, Any]]]]:
    """
    Yield the events of a chat function's answer with their times, in s since the request was sent.

    A block that is left early hangs up. What is no event stream is noted in *answer* and has no events.
    """
    answer = answer or Answer()
    began = time.perf_counter()
    async with session.post(f"/{function}", data=_body(text, max_tokens)) as reply:
        answer.status = reply.status
        answer.retry_after = reply.headers.get("Retry-After", "")

        async def each() -> AsyncIterator[tuple[float, dict[str, Any]]]:
            if reply.content_type != "text/event-stream":
                answer.error = await reply.text()
                return
            async for line in reply.content:
                data = line.strip().removeprefix(b"data: ")
                if data == b"[DONE]":
                    answer.ended = True
                elif data:
                    yield time.perf_counter() - began, json.loads(data)

        try:
            yield each()
        finally:
            if not answer.ended:
                reply.close()


def _metric_reaches(host: Host, name: str, value: float, *, at_most: bool = False) -> float:
    """Return a metric once it is *value* or more (or less), or as it is after 5 s: the host learns it once a second."""
    until = time.monotonic() + 5
    while True:
        found = host.metrics().get(name, 0.0)
        if (found <= value if at_most else found >= value) or time.monotonic() > until:
            return found
        time.sleep(_POLL_S)


def _table(findings: list[Finding], model: Path) -> Table:
    table = Table(title=f"functions on resident models: {model.name}, {WORKERS} workers, {os.cpu_count()} processors")
    for column in ("benchmark", "what", "measured", "promise", "holds"):
        table.add_column(column)
    for finding in findings:
        holds = ("[green]yes[/green]" if finding.holds else "[red]NO[/red]") if finding.promise else ""
        table.add_row(finding.benchmark, finding.what, finding.measured, finding.promise, holds)
    return table


BENCHMARKS: dict[str, Callable[[Path, Path], list[Finding]]] = {
    "memory": memory,
    "batching": batching,
    "prefix": prefix,
    "streaming": streaming,
    "leaving": leaving,
    "crash": crash,
}


if __name__ == "__main__":
    sys.exit(main())
