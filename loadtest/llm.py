"""
``make bench-llm``: tokens per second of this host beside those of llama.cpp's own server, on the same model file.

Both servers are resident for the whole run and one of them at a time is under load: A B A B at each number of callers.
The same client code in the same process asks both, over HTTP, for streamed completions of the same prompts: distinct
ones, in the model's chat format, greedy, and always to the full number of tokens, whatever the model would do.
Prompt caching is on in both, as it is by default; distinct prompts leave it nothing but the first few tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import itertools
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.table import Table

from faas.control.models import find_demo
from loadtest.host import Host, HostFailedError
from loadtest.peers_llm import Peer, PeerFailedError
from loadtest.plot import PlotMissingError, bars
from loadtest.report import console as new_console
from loadtest.report import percentile

OUT = Path(__file__).resolve().parent / "out"
OURS, THEIRS = "faas", "llama.cpp server"
GOAL = 1.0
LEVELS = (1, 4, 8, 16)
ALTERNATIONS = 5
THREADS = 2
SLOTS = 16
CTX_PER_SLOT = 1024
MAX_TOKENS = 64
WARM_UP_ROUNDS = 4
"""Requests of each slot before anything is measured: our prefix cache holds so many earlier prompts, as in use."""
WARM_UP_TOKENS = 8
"""Few: their prompts are twice as long instead, which leaves as many cells behind in less time."""
MODEL_NAME = "bench"
REQUEST_TIMEOUT_S = 120.0

OUR_SETTINGS = {
    "flash attention": "enabled",
    "K cells": "f16",
    "V cells": "bf16",
    "kv_unified": True,
    "extra buffers (repacked weights)": False,
    "prompt cache": "on, within the KV cells",
}
"""What faas/modelserver/backends/llama.py sets, for the record: results name the flags of both sides."""

# Distinct first words leave the prompts nothing in common but the template's beginning.
_NOUNS = re.findall(
    r"\w+",
    "anchor apple bakery balloon basket bicycle bridge button camera candle castle chimney circus clock compass cotton "
    "desert dolphin drum eagle engine feather festival forest fountain garden glacier guitar hammer harbour honey "
    "island jacket kettle ladder lantern library lighthouse magnet market meadow mirror mountain needle orchard oven "
    "paper piano planet pumpkin rainbow river rocket saddle sailor scissors shadow silver spider station telescope "
    "theatre thunder tunnel umbrella valley violin volcano wagon whistle window winter",
)


@dataclass(frozen=True)
class Reply:
    """One streamed completion as the client saw it; times are seconds since it was sent."""

    first_s: float
    last_s: float
    n_prompt: int
    n_cached: int
    n_generated: int

    @property
    def ttft_ms(self) -> float:
        """Time to the first text."""
        return self.first_s * 1000

    @property
    def tpot_ms(self) -> float:
        """Time for each token after the first; NaN if there was none."""
        return (self.last_s - self.first_s) * 1000 / (self.n_generated - 1) if self.n_generated > 1 else math.nan


class RequestFailedError(Exception):
    """A completion did not go as it should; the message says how."""


@dataclass
class Tally:
    """Reads the lines of one event stream as they come; times are of one clock, in seconds."""

    sent_at: float
    first_at: float = 0.0
    last_at: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)
    done: bool = False

    def feed(self, line: bytes, now: float) -> None:
        """Take a line; raises RequestFailedError if it is an error or no event."""
        if not line.startswith(b"data:"):
            if line.strip() and not line.startswith(b":"):
                raise RequestFailedError(f"not an event: {line[:200]!r}")
            return
        content = line[5:].strip()
        if content == b"[DONE]":
            self.done = True
            return
        event = json.loads(content)
        if "error" in event:
            raise RequestFailedError(f"the stream broke off: {event['error']}")
        if any(choice.get("text") for choice in event.get("choices", ())):
            self.first_at = self.first_at or now
            self.last_at = now
        self.usage = event.get("usage") or self.usage

    def reply(self) -> Reply:
        """Return the whole; raises RequestFailedError if something is missing."""
        if not (self.done and self.usage and self.first_at):
            missing = [
                name
                for name, there in (("[DONE]", self.done), ("usage", self.usage), ("text", self.first_at))
                if not there
            ]
            raise RequestFailedError(f"the stream ended without {' and '.join(missing)}")
        details = self.usage.get("prompt_tokens_details") or {}
        return Reply(
            self.first_at - self.sent_at,
            self.last_at - self.sent_at,
            int(self.usage["prompt_tokens"]),
            int(details.get("cached_tokens", 0)),
            int(self.usage["completion_tokens"]),
        )


@dataclass(frozen=True)
class Visit:
    """One server under the load of so many callers, once."""

    server: str
    callers: int
    took_s: float
    replies: tuple[Reply, ...]

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens of all callers together."""
        return sum(reply.n_generated for reply in self.replies) / self.took_s

    @property
    def ttft_ms(self) -> float:
        """The median time to the first text."""
        return percentile([reply.ttft_ms for reply in self.replies], 50)

    @property
    def tpot_ms(self) -> float:
        """The median time for each further token."""
        return percentile([reply.tpot_ms for reply in self.replies], 50)


@dataclass(frozen=True)
class Row:
    """What a number of callers got of both servers: medians over the visits, ratios of neighbouring visits."""

    callers: int
    ours_tokens_per_s: float
    theirs_tokens_per_s: float
    ratio: float
    ratio_min: float
    ratio_max: float
    ours_ttft_ms: float
    theirs_ttft_ms: float
    ours_tpot_ms: float
    theirs_tpot_ms: float

    @property
    def meets_goal(self) -> bool:
        """Whether ours is at least as fast."""
        return self.ratio >= GOAL


def prompts(seed: int) -> Iterator[str]:
    """Yield distinct prompts without end, in ChatML, each of some 50 to 70 tokens; the same ones for the same seed."""
    rng = random.Random(seed)
    seen: set[tuple[str, ...]] = set()
    while True:
        chosen = tuple(rng.sample(_NOUNS, 7))
        if chosen in seen:
            continue
        seen.add(chosen)
        a, b, c, d, e, f, g = chosen
        yield (
            f"<|im_start|>user\n{a.capitalize()}, {b}, {c} and {d}: explain how these four could come together in one "
            f"short story. It should begin beside the {e}, mention the {f} at least once, and say near its end why "
            f"the {g} matters.<|im_end|>\n<|im_start|>assistant\n"
        )


def requests_per_caller(callers: int) -> int:
    """Return how many requests each of *callers* makes in one visit: few callers make more, for a visit of seconds."""
    return max(1, 6 // callers)


def summarise(visits: Sequence[Visit]) -> list[Row]:
    """Return a row for each number of callers; visits of both servers are paired in order."""
    rows = []
    for callers in sorted({visit.callers for visit in visits}):
        ours = [visit for visit in visits if visit.callers == callers and visit.server == OURS]
        theirs = [visit for visit in visits if visit.callers == callers and visit.server == THEIRS]
        ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            Row(
                callers,
                statistics.median(visit.tokens_per_s for visit in ours),
                statistics.median(visit.tokens_per_s for visit in theirs),
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                statistics.median(visit.ttft_ms for visit in ours),
                statistics.median(visit.ttft_ms for visit in theirs),
                statistics.median(visit.tpot_ms for visit in ours),
                statistics.median(visit.tpot_ms for visit in theirs),
            )
        )
    return rows


def unlike(ours: Sequence[Reply], theirs: Sequence[Reply]) -> list[str]:
    """Return where the usage that both servers report for the same requests, in the same order, differs."""
    found = []
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if (a.n_prompt, a.n_generated) != (b.n_prompt, b.n_generated):
            found.append(
                f"request {i}: {OURS} counts {a.n_prompt} + {a.n_generated} tokens, "
                f"{THEIRS} {b.n_prompt} + {b.n_generated}"
            )
    return found


class Client:
    """Asks one server; make it with ``async with``."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        # A connection for each request: one that rests while the other server has its turn may be closed under us.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            url, connector=connector, timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def visit(self, callers: int, texts: Sequence[str], max_tokens: int) -> Visit:
        """
        Let *callers* work through *texts*, each its equal share, one after the other.

        Raises: RequestFailedError.
        """
        share = len(texts) // callers

        async def call(mine: Sequence[str]) -> list[Reply]:
            return [await self._complete(text, max_tokens) for text in mine]

        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(call(texts[i * share : (i + 1) * share])) for i in range(callers)]
        except ExceptionGroup as exc:
            failed, others = exc.split(RequestFailedError)
            if failed is None or others is not None:
                raise
            first = failed.exceptions[0]
            raise RequestFailedError(f"{first} ({len(failed.exceptions)} of {callers} callers failed)") from exc
        took_s = time.perf_counter() - began
        return Visit(self.name, callers, took_s, tuple(itertools.chain.from_iterable(task.result() for task in tasks)))

    async def _complete(self, prompt: str, max_tokens: int) -> Reply:
        body = {
            "model": MODEL_NAME,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        tally = Tally(time.perf_counter())
        try:
            async with self._session.post("/v1/completions", json=body) as response:
                if response.status != 200:
                    text = await response.text()
                    raise RequestFailedError(f"{self.name} answered {response.status}: {text[:300]}")
                async for line in response.content:
                    tally.feed(line, time.perf_counter())
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise RequestFailedError(f"{self.name}: {type(exc).__name__} {exc}") from exc
        reply = tally.reply()
        if reply.n_generated != max_tokens:
            raise RequestFailedError(f"{self.name} generated {reply.n_generated} tokens, asked for {max_tokens}")
        return reply


async def measure(
    ours_url: str, theirs_url: str, levels: Sequence[int], alternations: int, say: Any
) -> tuple[list[Visit], list[str]]:
    """
    Return every visit, and where the servers' counts of tokens differ.

    Args: *say* prints a line of progress.
    Raises: RequestFailedError at the first request that fails.
    """
    texts = prompts(seed=1)
    visits: list[Visit] = []
    differences: list[str] = []
    async with Client(OURS, ours_url) as ours, Client(THEIRS, theirs_url) as theirs:
        for client in (ours, theirs):
            for _ in range(WARM_UP_ROUNDS):
                longer = [next(texts) + next(texts) for _ in range(SLOTS)]
                await client.visit(SLOTS, longer, WARM_UP_TOKENS)
            say(f"{client.name} is warm")
        for alternation in range(alternations):
            for callers in levels:
                chosen = list(itertools.islice(texts, callers * requests_per_caller(callers)))
                a = await ours.visit(callers, chosen, MAX_TOKENS)
                b = await theirs.visit(callers, chosen, MAX_TOKENS)
                differences += unlike(a.replies, b.replies)
                visits += [a, b]
                say(
                    f"{alternation + 1}/{alternations}  {callers:2} callers: {a.tokens_per_s:6.1f} and "
                    f"{b.tokens_per_s:6.1f} tokens/s, ratio {a.tokens_per_s / b.tokens_per_s:.2f}"
                )
    return visits, differences


def main() -> int:
    """Return 0 when every request was answered in full and both servers count alike, else 1; the goal is only told."""
    args = _parser().parse_args()
    console = new_console()
    model = args.model.resolve() if args.model else find_demo()
    if model is None:
        console.print("there is no model to measure with; run `make models`, or give --model FILE.gguf", style="red")
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="faas-bench-") as folder:
            home = Path(folder) / "home"
            _write_settings(home, model, args.ctx, args.threads)
            peer = Peer(Path(folder) / "peer.log", model, threads=args.threads, slots=SLOTS, ctx_per_slot=args.ctx)
            with Host(home) as host, peer:
                console.print(f"{OURS} on {host.public_url} (pid {host.pid}), {THEIRS} on {peer.url} (pid {peer.pid})")
                visits, differences = asyncio.run(
                    measure(host.public_url, peer.url, args.levels, args.alternations, console.print)
                )
    except (HostFailedError, PeerFailedError, RequestFailedError) as exc:
        console.print(str(exc), style="red", markup=False)
        return 1
    rows = summarise(visits)
    console.print(_table(rows))
    for row in rows:
        met = "met" if row.meets_goal else "NOT met"
        console.print(f"{row.callers:2} callers: ratio {row.ratio:.2f}, the goal of {GOAL:g} or more is {met}")
    for difference in differences:
        console.print(difference, style="red", markup=False)
    if not differences:
        console.print(f"both count tokens alike: {sum(len(v.replies) for v in visits) // 2} requests compared")
    _write(args, model, visits, peer.settings, console.print)
    return 1 if differences else 0


def _write_settings(home: Path, model: Path, ctx: int, threads: int) -> None:
    home.mkdir(parents=True)
    home.joinpath("faas.toml").write_text(
        f"model_threads = {threads}\nmodel_slots = {SLOTS}\nmodel_ctx = {ctx}\nmodel_demo = false\n"
        f"[models]\n{MODEL_NAME} = {json.dumps(str(model))}\n"
    )


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title=f"{OURS} beside {THEIRS}: medians over alternating visits, ours first where there are two")
    for name in ("callers", f"{OURS} tok/s", "llama.cpp tok/s", "ratio", "lowest, highest"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("ms to first token", "ms per further one", f"goal ≥ {GOAL:g}"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row.callers),
            f"{row.ours_tokens_per_s:.1f}",
            f"{row.theirs_tokens_per_s:.1f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_min:.2f}, {row.ratio_max:.2f}",
            f"{row.ours_ttft_ms:.0f} / {row.theirs_ttft_ms:.0f}",
            f"{row.ours_tpot_ms:.1f} / {row.theirs_tpot_ms:.1f}",
            "[green]met[/green]" if row.meets_goal else "[red]NOT met[/red]",
        )
    return table


def _write(
    args: argparse.Namespace, model: Path, visits: Sequence[Visit], peer_settings: dict[str, Any], say: Any
) -> None:
    rows = summarise(visits)
    replies = [reply for visit in visits for reply in visit.replies]
    settings: dict[str, dict[str, Any]] = {
        OURS: {
            "threads": args.threads,
            "slots": SLOTS,
            "n_ctx (a slot)": args.ctx,
            "gateway workers": 1,
            **OUR_SETTINGS,
            "build": f"compiled on this machine: {_our_build()}",
        },
        THEIRS: peer_settings,
    }
    load = {
        "max_tokens": MAX_TOKENS,
        "prompt_tokens": [min(r.n_prompt for r in replies), max(r.n_prompt for r in replies)],
        "cached_tokens_at_most": {
            name: max(r.n_cached for v in visits if v.server == name for r in v.replies) for name in (OURS, THEIRS)
        },
        "alternations": args.alternations,
        "requests_per_caller": {callers: requests_per_caller(callers) for callers in args.levels},
    }
    document = {
        "model": {"file": model.name, "bytes": model.stat().st_size},
        "processors": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("faas", "llama-cpp-python", "xllamacpp")},
        "load": load,
        "settings": settings,
        "rows": [{**asdict(row), "meets_goal": row.meets_goal} for row in rows],
        "visits": [
            {
                "server": visit.server,
                "callers": visit.callers,
                "took_s": visit.took_s,
                "tokens_per_s": visit.tokens_per_s,
                "ttft_ms": visit.ttft_ms,
                "tpot_ms": visit.tpot_ms,
            }
            for visit in visits
        ],
    }
    report = args.out / "llm.json"
    report.write_text(json.dumps(document, indent=2) + "\n")
    for name, given in settings.items():
        say(f"{name}: {', '.join(f'{key} {value}' for key, value in given.items())}", markup=False, highlight=False)
    say(f"load: {load}", markup=False, highlight=False)
    written = [report]
    speeds = {
        name: [[v.tokens_per_s for v in visits if v.server == name and v.callers == row.callers] for row in rows]
        for name in (OURS, THEIRS)
    }
    try:
        written.append(
            bars(
                args.out / "llm.svg",
                f"tokens/s of all callers together, {model.stem}, {args.threads} threads",
                [str(row.callers) for row in rows],
                {name: [statistics.median(each) for each in by_level] for name, by_level in speeds.items()},
                x_label="callers at once",
                y_label="generated tokens/s",
                ranges={name: [(min(each), max(each)) for each in by_level] for name, by_level in speeds.items()},
            )
        )
    except PlotMissingError as exc:
        say(f"no plot: {exc}", markup=False)
    say(f"report: {', '.join(str(_short(path)) for path in written)}", markup=False)


def _our_build() -> str:
    """Return what llama.cpp says of itself; asked in another process, so that this one never loads the library."""
    said = subprocess.run(
        [sys.executable, "-c", "import llama_cpp.llama_cpp as low; print(low.llama_print_system_info().decode())"],
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.llm", description="Measure this host beside llama.cpp's own server."
    )
    parser.add_argument("--alternations", type=int, default=ALTERNATIONS, metavar="N", help=f"default {ALTERNATIONS}")
    parser.add_argument(
        "--callers",
        dest="levels",
        type=int,
        nargs="+",
        default=LEVELS,
        metavar="N",
        help="how many at once, each in turn",
    )
    parser.add_argument("--threads", type=int, default=THREADS, metavar="N", help=f"of each server, default {THREADS}")
    parser.add_argument(
        "--ctx", type=int, default=CTX_PER_SLOT, metavar="N", help=f"tokens a slot, default {CTX_PER_SLOT}"
    )
    parser.add_argument("--model", type=Path, metavar="FILE.gguf", help="default: the demo model; it must know ChatML")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where JSON and plot go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
