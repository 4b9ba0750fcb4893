"""
``make bench``: how many requests the host answers beside other ways to do it, driven side by side by the same wrk.

All answer the same twelve bytes, each request in a fresh instance, process or container (a container that is kept is
there too, for comparison). The host and one peer at a time take turns, round after round; what counts is the ratio
within a round, since only that is free of what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from faas import __version__
from loadtest import plot
from loadtest.host import FUNCTIONS, Host, Refused
from loadtest.peers import BODY, PEERS, Peer, PeerUnavailableError, wat
from loadtest.peers.base import fetched
from loadtest.report import console as new_console
from loadtest.wrk import Run, WrkError, drive

OUT = Path(__file__).resolve().parent / "out"
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
README_PLOTS = {"bench.svg": "make bench", "llm.svg": "make bench-llm"}
"""The plots that README.md and docs/benchmarks.md show, each with what makes it."""
ROUNDS = 5
SECONDS = 5
SINGLE_SECONDS = 2
WORKERS = 2
KINDS = ("reactor", "command", "component")
DEFAULT_KINDS = KINDS
_WARM_UP_S = 1


class WrongAnswerError(Exception):
    """A server that is measured answers something else than it should."""


@dataclass(frozen=True)
class Side:
    """One server in one comparison: all its rounds, with many connections and with one."""

    many: tuple[Run, ...]
    single: tuple[Run, ...]

    @property
    def requests_per_s(self) -> float:
        """Median over the rounds."""
        return median(run.requests_per_s for run in self.many)

    @property
    def p50_ms(self) -> float:
        """Median over the rounds of a single connection's p50."""
        return median(run.p50_ms for run in self.single)

    @property
    def n_failed(self) -> int:
        """Requests that went wrong, in all rounds."""
        return sum(run.n_failed for run in self.many + self.single)


@dataclass(frozen=True)
class Comparison:
    """The host's kinds of function and one peer, in turns."""

    connections: int
    ours: Mapping[str, Side]
    theirs: Side

    def throughput_ratio(self, kind: str) -> float:
        """Ours to theirs, median of the rounds' ratios; above 1 we answer more."""
        return paired_ratio(
            [run.requests_per_s for run in self.ours[kind].many], [run.requests_per_s for run in self.theirs.many]
        )

    def latency_ratio(self, kind: str) -> float:
        """Our p50 with one connection to theirs, median of the rounds' ratios; below 1 we are faster."""
        return paired_ratio([run.p50_ms for run in self.ours[kind].single], [run.p50_ms for run in self.theirs.single])


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of ours to theirs round by round; raises ValueError if one has more rounds."""
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def main() -> int:
    """Return 0 when all that was asked for was measured without a failed request, else 1."""
    args = _parser().parse_args()
    console = new_console()
    if args.readme:
        return _publish(args.out, IMAGES, console)
    try:
        results, problems = _measure(args, console)
    except (WrkError, WrongAnswerError, Refused, PeerUnavailableError) as exc:
        console.print(str(exc), style="red", markup=False)
        return 1
    console.print(_table(results, args.workers))
    for problem in problems:
        console.print(problem, style="red", markup=False)
    args.out.mkdir(parents=True, exist_ok=True)
    report = args.out / "bench.json"
    report.write_text(json.dumps(_document(args, results, problems), indent=1) + "\n")
    console.print(f"report: {report}", soft_wrap=True)
    try:
        console.print(f"plot: {_draw(args.out / 'bench.svg', results)}", soft_wrap=True)
    except plot.PlotMissingError as exc:
        console.print(f"no plot: {exc}", style="yellow", markup=False)
    return 1 if problems else 0


def _publish(out: Path, images: Path, console: Console) -> int:
    """Take the plots of the last runs from *out* into *images*; return 1 if one is not there, and keep the old one."""
    n_missing = 0
    for name, command in README_PLOTS.items():
        try:
            console.print(f"plot: {plot.publish(out / name, images)}", soft_wrap=True)
        except FileNotFoundError:
            n_missing += 1
            console.print(f"{images / name} stays as it is: no {out / name}; run {command} first", style="red")
    return 1 if n_missing else 0


def _measure(args: argparse.Namespace, console: Console) -> tuple[dict[str, Comparison], list[str]]:
    """Return a comparison for each peer that could be started, and what is wrong."""
    results: dict[str, Comparison] = {}
    problems: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="faas-bench-") as folder,
        Host(Path(folder) / "home", workers=args.workers) as host,
    ):
        ours = {kind: deployed(host, kind) for kind in args.kinds}
        for name in args.peers:
            peer = PEERS[name]
            console.print(f"{peer.title} ...")
            try:
                with peer.running() as url:
                    results[name] = _compare(ours, url, peer.connections, args)
            except PeerUnavailableError as exc:
                problems.append(f"not measured: {exc}")
    for name, comparison in results.items():
        sides = {**comparison.ours, PEERS[name].title: comparison.theirs}
        problems += [
            f"{side.n_failed} failed requests to {who}, beside {name}" for who, side in sides.items() if side.n_failed
        ]
    return results, problems


def deployed(host: Host, kind: str) -> str:
    """
    Deploy the function with the fixed answer and return its URL.

    Raises: Refused, PeerUnavailableError if a component can't be built here.
    """
    name = f"hello-{kind}"
    module = wat.component("hello") if kind == "component" else FUNCTIONS / name / f"{name}.wasm"
    host.deploy({"name": name}, module)
    return f"{host.public_url}/{name}"


def _compare(ours: Mapping[str, str], theirs: str, connections: int, args: argparse.Namespace) -> Comparison:
    """Drive all in turns; raises WrkError, WrongAnswerError."""
    urls = {**ours, "": theirs}
    many: dict[str, list[Run]] = {who: [] for who in urls}
    single: dict[str, list[Run]] = {who: [] for who in urls}
    for url in urls.values():
        check_answer(url)
        drive(url, connections=connections, seconds=_WARM_UP_S)
    for _ in range(args.rounds):
        for who, url in urls.items():
            many[who].append(drive(url, connections=connections, seconds=args.seconds))
        for who, url in urls.items():
            single[who].append(drive(url, connections=1, seconds=args.single_seconds))
    for url in urls.values():
        check_answer(url)
    sides = {who: Side(tuple(many[who]), tuple(single[who])) for who in urls}
    return Comparison(connections, {kind: sides[kind] for kind in ours}, sides[""])


def check_answer(url: str) -> None:
    """Raise WrongAnswerError unless *url* answers as all of them have to."""
    answer = fetched(url)
    if answer != (200, BODY):
        raise WrongAnswerError(f"{url} answers {answer} and not {(200, BODY)}; look into its log")


def _table(results: Mapping[str, Comparison], workers: int) -> Table:
    table = Table(
        title=f"requests per second and, with one connection, p50: the host with {workers} workers beside each peer",
        caption="medians of the rounds; a ratio is the median of the rounds' ratios, ours to theirs",
    )
    for column in ("peer", "ours"):
        table.add_column(column)
    for column in ("connections", "ours/s", "peer/s", "ratio", "ours p50 ms", "peer p50 ms", "ratio"):
        table.add_column(column, justify="right")
    for name, kind, comparison in _rows(results):
        ours, theirs = comparison.ours[kind], comparison.theirs
        table.add_row(
            PEERS[name].title,
            kind,
            str(comparison.connections),
            f"{ours.requests_per_s:,.0f}",
            f"{theirs.requests_per_s:,.0f}",
            f"{comparison.throughput_ratio(kind):.2f}",
            f"{ours.p50_ms:.3f}",
            f"{theirs.p50_ms:.3f}",
            f"{comparison.latency_ratio(kind):.3f}",
        )
    return table


def _rows(results: Mapping[str, Comparison]) -> Iterator[tuple[str, str, Comparison]]:
    return ((name, kind, comparison) for name, comparison in results.items() for kind in comparison.ours)


def _document(args: argparse.Namespace, results: Mapping[str, Comparison], problems: Sequence[str]) -> dict[str, Any]:
    """Return all that was measured, each run of each round."""
    return {
        "faas": __version__,
        "machine": {"system": platform.system(), "machine": platform.machine(), "processors": os.cpu_count()},
        "workers": args.workers,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "single_seconds": args.single_seconds,
        "problems": list(problems),
        "peers": {
            name: {
                "title": PEERS[name].title,
                "isolation": PEERS[name].isolation,
                **asdict(comparison),
                "ratios": {
                    kind: {
                        "requests_per_s": comparison.throughput_ratio(kind),
                        "p50_single": comparison.latency_ratio(kind),
                    }
                    for kind in comparison.ours
                },
            }
            for name, comparison in results.items()
        },
    }


def _draw(path: Path, results: Mapping[str, Comparison]) -> Path:
    """Draw requests per second, with the lowest and highest round; raises plot.PlotMissingError."""
    sides: dict[str, list[Side]] = {"the peer": [comparison.theirs for comparison in results.values()]}
    for _, kind, comparison in _rows(results):
        sides.setdefault(f"the host, {kind}", []).append(comparison.ours[kind])
    return plot.bars(
        path,
        "requests per second, side by side",
        [_wrapped(PEERS[name]) for name in results],
        {who: [side.requests_per_s for side in measured] for who, measured in sides.items()},
        x_label="peer",
        y_label="requests/s",
        ranges={
            who: [
                (min(run.requests_per_s for run in side.many), max(run.requests_per_s for run in side.many))
                for side in measured
            ]
            for who, measured in sides.items()
        },
    )


def _wrapped(peer: Peer) -> str:
    return peer.name.replace("-", "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.compare", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="who to compare with")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(DEFAULT_KINDS), help="our kinds of function")
    parser.add_argument("--workers", type=int, default=WORKERS, metavar="N", help="the host's worker processes")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="turns of each")
    parser.add_argument("--seconds", type=int, default=SECONDS, metavar="S", help="of a turn with many connections")
    parser.add_argument(
        "--single-seconds", type=int, default=SINGLE_SECONDS, metavar="S", help="of a turn with one connection"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where the report goes")
    parser.add_argument(
        "--readme", action="store_true", help="measure nothing; put the plots of the last runs into docs/images"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
