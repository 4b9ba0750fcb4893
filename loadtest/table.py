"""
``make bench-table``: a wasm instance beside a process and an OCI container: start, size, memory, requests per second.

All answer the same bytes. They take turns, round after round, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from loadtest.compare import OUT, check_answer, deployed
from loadtest.host import FUNCTIONS, Host, connection
from loadtest.peers import PEERS, CProgram, PeerUnavailableError, PythonProgram
from loadtest.peers.base import SOURCES, free_port
from loadtest.peers.container import Runtime, warm_server
from loadtest.peers.programs import Program, size_bytes
from loadtest.report import console as new_console
from loadtest.report import percentile, server_timing
from loadtest.resident import parse_rollup
from loadtest.wrk import WrkError, drive

ROUNDS = 5
SECONDS = 3
CONNECTIONS = 8
WORKERS = 2
N_TOGETHER = 100
_SLEEP_MS = 120_000
_SETTLE_S = 0.25
_SETTLE_TIMEOUT_S = 20.0
# Two readings are equal that differ by less than the larger of these: what else runs here shares pages with ours.
_SETTLED_BYTES = 65536
_SETTLED_SHARE = 0.002


class UnsettledError(Exception):
    """Something did not get as far as it has to before it is measured; the message says what."""


@dataclass
class Row:
    """What was measured of one way to run a program."""

    title: str
    isolation: str
    artifact: str
    starts_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    one_bytes: int | None = None
    together_bytes: int | None = None

    def cells(self) -> list[str]:
        """Return the row's texts, in the order of ``COLUMNS``."""
        return [
            self.title,
            milliseconds(percentile(self.starts_ms, 50)),
            milliseconds(percentile(self.starts_ms, 99)),
            self.artifact,
            size(self.one_bytes),
            size(self.together_bytes),
            f"{median(self.rates):,.0f}" if self.rates else "–",
            self.isolation,
        ]


COLUMNS = (
    "",
    "start p50",
    "start p99",
    "artifact on disk",
    "memory, 1 waiting",
    f"memory, {N_TOGETHER} waiting",
    f"requests/s, {CONNECTIONS} connections",
    "isolation",
)


class Subject(ABC):
    """One way to run a program; lives as long as the measurement."""

    n_starts: int
    """In one round."""

    @abstractmethod
    def row(self) -> Row:
        """Return an empty row; raises PeerUnavailableError."""

    @abstractmethod
    def starts_ms(self) -> list[float]:
        """Start it ``n_starts`` times: from the decision to start it until its answer is there."""

    @abstractmethod
    def rate(self, seconds: int) -> float:
        """Return requests per second."""

    @abstractmethod
    def memory_bytes(self) -> tuple[int, int] | None:
        """
        Return what one and ``N_TOGETHER`` take which have started and wait for a timer; None where that isn't measured.

        Raises: PeerUnavailableError, UnsettledError.
        """


class Wasm(Subject):
    """An instance of the host's, of one kind of function."""

    n_starts = 500

    def __init__(self, host: Host, kind: str) -> None:
        self._host, self._kind = host, kind
        self._url = deployed(host, kind)

    def row(self) -> Row:
        module = FUNCTIONS / f"hello-{self._kind}" / f"hello-{self._kind}.wasm"
        check_answer(self._url)
        natives = (self._host.home / "artifacts" / "native").glob("*.cwasm")
        # Deployed one after the other, so the newest is this one's.
        native = max(natives, key=lambda path: path.stat().st_mtime_ns)
        return Row(
            f"wasm instance, {self._kind}",
            "wasm sandbox, virtual WASI: sees its request and nothing of the machine; new for each request",
            f"{size(size_bytes(module))}, {size(size_bytes(native))} compiled",
        )

    def starts_ms(self) -> list[float]:
        """Return ``start`` and ``run`` of Server-Timing together: the instance is made, and has answered."""
        values = []
        with connection(self._url) as conn:
            for _ in range(self.n_starts):
                conn.request("GET", urlsplit(self._url).path)
                response = conn.getresponse()
                response.read()
                timing = server_timing(response.headers["Server-Timing"])
                values.append(timing["start"] + timing["run"])
        return values

    def rate(self, seconds: int) -> float:
        return drive(self._url, connections=CONNECTIONS, seconds=seconds).requests_per_s

    def memory_bytes(self) -> tuple[int, int] | None:
        """Return by how much the host's own memory grows, and a hundredth of it: one alone is lost in the noise."""
        if self._kind != "command":
            return None
        self._host.deploy({"name": "sleeper", "limits": {"timeout_s": 300}}, FUNCTIONS / "bad" / "sleeper.wasm")
        url = f"{self._host.public_url}/sleeper"
        for _ in range(4 * WORKERS):  # each worker has loaded its code
            with connection(url) as conn:
                conn.request("GET", "/sleeper?1")
                conn.getresponse().read()
        before = settled(self._private_bytes, 0)
        with requests_waiting(url, N_TOGETHER):
            _until(lambda: self._running() == N_TOGETHER, f"the host never ran {N_TOGETHER} instances at once")
            taken = settled(self._private_bytes, 0) - before
        _until(lambda: self._running() == 0, "instances go on after their clients went away")
        self._host.remove("sleeper")
        return taken // N_TOGETHER, taken

    def _private_bytes(self) -> int:
        return sum(memory_bytes(pid, "Private_Clean", "Private_Dirty") for pid in self._host.processes())

    def _running(self) -> int:
        return int(sum(value for name, value in self._host.metrics().items() if name.startswith(RUNNING)))


RUNNING = "faas_worker_active"


class Started(Subject):
    """A program in a process or a container of its own for each request."""

    def __init__(self, peer: str, program: Program, waiting: Program, runtime: Runtime | None, scratch: Path) -> None:
        """Args: *waiting* is the program that waits as QUERY_STRING says; *runtime* is None for plain processes."""
        self._peer = PEERS[peer]
        self._program, self._waiting, self._runtime, self._scratch = program, waiting, runtime, scratch
        self._n_names = 0
        self.n_starts = 20 if runtime else 100

    def row(self) -> Row:
        root = self._program.image().root
        if self._runtime:
            artifact = f"{size(size_bytes(root))} image"
        elif isinstance(self._program, PythonProgram):
            artifact = f"{size(size_bytes(SOURCES / 'handler.py'))}, and the machine's Python"
        else:
            artifact = size(size_bytes(Path(self._program.native()[0])))
        return Row(self._peer.title, self._peer.isolation, artifact)

    def starts_ms(self) -> list[float]:
        """Return times from the spawn until the answer's first byte, which both programs write last of all."""
        values = []
        for _ in range(self.n_starts):
            command = self._command(self._program, "")
            began = time.perf_counter()
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={}) as process:
                assert process.stdout is not None
                first = process.stdout.read(1)
                values.append((time.perf_counter() - began) * 1000)
                process.stdout.read()
            if process.returncode or not first:
                raise PeerUnavailableError(f"{self._peer.title}: {command[0]} exited with {process.returncode}")
        if self._runtime:
            self._runtime.cleanup()
        return values

    def rate(self, seconds: int) -> float:
        with self._peer.running() as url:
            return drive(url, connections=CONNECTIONS, seconds=seconds).requests_per_s

    def memory_bytes(self) -> tuple[int, int]:
        return self._waiting_bytes(1), self._waiting_bytes(N_TOGETHER)

    def _waiting_bytes(self, n: int) -> int:
        processes = []
        try:
            for _ in range(n):
                query = f"QUERY_STRING={_SLEEP_MS}"
                processes.append(
                    subprocess.Popen(
                        self._command(self._waiting, query),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        env=dict([query.split("=")]),
                    )
                )
            if self._runtime:
                runtime = self._runtime
                _until(lambda: runtime.n_running() == n, f"{self._peer.title}: there never were {n} at once")
            return settled(lambda: sum(pss_bytes(pid) for process in processes for pid in descendants(process.pid)))
        finally:
            if self._runtime:
                self._runtime.cleanup()
            for process in processes:
                process.kill()
                process.wait()

    def _command(self, program: Program, variable: str) -> Sequence[str]:
        if self._runtime is None:
            return program.native()
        bundle = self._scratch / self._peer.name
        bundle.mkdir(exist_ok=True)
        self._n_names += 1
        return self._runtime.command(program.image(), bundle, str(self._n_names), env=[variable] if variable else [])


class Kept(Subject):
    """A container that is kept: started once, here again and again."""

    n_starts = 3

    def __init__(self, scratch: Path) -> None:
        self._peer = PEERS["container-warm"]
        self._scratch = scratch

    def row(self) -> Row:
        image = PythonProgram().image()
        return Row(self._peer.title, self._peer.isolation, f"{size(size_bytes(image.root))} image")

    def starts_ms(self) -> list[float]:
        """Return times from ``runc run`` until its server has answered a first request."""
        values = []
        for _ in range(self.n_starts):
            with self._container() as (_, _, took_ms):
                values.append(took_ms)
        return values

    def rate(self, seconds: int) -> float:
        with self._peer.running() as url:
            return drive(url, connections=CONNECTIONS, seconds=seconds).requests_per_s

    def memory_bytes(self) -> tuple[int, int]:
        """Return what the whole container takes: it is there with or without requests."""
        return self._waiting_bytes(1), self._waiting_bytes(N_TOGETHER)

    def _waiting_bytes(self, n: int) -> int:
        with self._container() as (pid, url, _), requests_waiting(url, n):
            return settled(lambda: sum(pss_bytes(each) for each in descendants(pid)))

    @contextlib.contextmanager
    def _container(self) -> Iterator[tuple[int, str, float]]:
        """Yield runc's process, the server's URL, and the start in ms."""
        runtime, bundle, port = Runtime(), self._scratch / "kept", free_port()
        bundle.mkdir(exist_ok=True)
        command = runtime.command(warm_server(port), bundle, "kept", own_network=False)
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            while not _listens(port):
                if process.poll() is not None:
                    raise PeerUnavailableError(f"{self._peer.title}: runc exited with {process.returncode}")
                time.sleep(0.001)
            url = f"http://127.0.0.1:{port}/"
            check_answer(url)
            yield process.pid, url, (time.perf_counter() - began) * 1000
        finally:
            runtime.cleanup()
            process.kill()
            process.wait()


def main() -> int:
    """Return 0 when every row was measured, else 1."""
    args = _parser().parse_args()
    console = new_console()
    with tempfile.TemporaryDirectory(prefix="faas-table-") as folder:
        scratch = Path(folder)
        with Host(scratch / "home", workers=WORKERS) as host:
            try:
                host_bytes = settled(lambda: sum(pss_bytes(pid) for pid in host.processes()))
                rows, problems = _measure(_subjects(host, scratch), args.rounds, args.seconds)
            except (WrkError, UnsettledError) as exc:
                console.print(str(exc), style="red", markup=False)
                return 1
    text = markdown([list(COLUMNS), *(row.cells() for row in rows)]) + _notes(host_bytes, problems)
    print(text, end="")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(text)
    return 1 if problems else 0


def _subjects(host: Host, scratch: Path) -> list[Subject]:
    wait_c, wait_python = CProgram(FUNCTIONS / "bad" / "sleeper.c"), PythonProgram()
    return [
        Wasm(host, "reactor"),
        Wasm(host, "command"),
        Started("process-c", CProgram(), wait_c, None, scratch),
        Started("process-python", PythonProgram(), wait_python, None, scratch),
        Started("container-c", CProgram(), wait_c, Runtime(), scratch),
        Started("container-python", PythonProgram(), wait_python, Runtime(), scratch),
        Kept(scratch),
    ]


def _measure(subjects: Sequence[Subject], rounds: int, seconds: int) -> tuple[list[Row], list[str]]:
    """Return a row for each subject that could be started, and what is wrong; raises WrkError."""
    found: list[tuple[Subject, Row]] = []
    problems: list[str] = []
    for subject in subjects:
        try:
            row = subject.row()
            row.one_bytes, row.together_bytes = subject.memory_bytes() or (None, None)
        except (PeerUnavailableError, UnsettledError) as exc:
            problems.append(str(exc))
        else:
            found.append((subject, row))
    for _ in range(rounds):
        for subject, row in found:
            row.starts_ms += subject.starts_ms()
            row.rates.append(subject.rate(seconds))
    return [row for _, row in found], problems


def _notes(host_bytes: int, problems: Sequence[str]) -> str:
    lines = [
        "",
        "Start: from the decision to start until the answer is there; for a container that is kept, until it first"
        " answers.",
        "Memory: proportional set size (PSS) of what waits for a timer, `runc` itself included; for instances, what the"
        f" host's private memory grows by with {N_TOGETHER} of them, their connections included, and a"
        f" {N_TOGETHER}th of that. Kernel memory is not counted. No reactor waits, so theirs is not measured.",
        f"The host itself, a control process and {WORKERS} workers, takes {size(host_bytes)} without any instance;"
        " the front server of the processes and containers is not counted either.",
        *(f"Not measured: {problem}" for problem in problems),
    ]
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first of *rows* is its head."""
    head, *body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def milliseconds(value_ms: float) -> str:
    """Return a duration with three digits that count."""
    return f"{value_ms:.3f} ms" if value_ms < 1 else f"{value_ms:.3g} ms"


def size(n_bytes: int | None) -> str:
    """Return a size in kB or MB (powers of ten), – for None."""
    if n_bytes is None:
        return "–"
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.1f} kB"


def memory_bytes(pid: int, *fields: str) -> int:
    """Return the sum of some *fields* of a process's ``smaps_rollup``, 0 if it is gone; source: proc(5)."""
    with contextlib.suppress(OSError):
        sizes = parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
        return sum(sizes[field] for field in fields)
    return 0


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set size: pages that it shares count in part."""
    return memory_bytes(pid, "Pss")


def descendants(pid: int) -> list[int]:
    """Return *pid* and all processes below it."""
    found = [pid]
    for each in found:  # grows meanwhile
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{each}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found


def settled(reading: Callable[[], int], tolerated_share: float = _SETTLED_SHARE) -> int:
    """Return *reading* once it stays the same but for a share of it; raises UnsettledError."""
    until = time.monotonic() + _SETTLE_TIMEOUT_S
    last = reading()
    equal = 0
    while equal < 3:
        if time.monotonic() > until:
            raise UnsettledError(f"memory still changed after {_SETTLE_TIMEOUT_S:g} s; is the machine very busy?")
        time.sleep(_SETTLE_S)
        now = reading()
        equal = equal + 1 if abs(now - last) < max(_SETTLED_BYTES, tolerated_share * now) else 0
        last = now
    return last


@contextlib.contextmanager
def requests_waiting(url: str, n: int) -> Iterator[None]:
    """Send *n* requests that are answered much later; at the end their clients go away."""
    parts = urlsplit(url)
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            client = stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=30))
            client.sendall(f"GET {parts.path}?{_SLEEP_MS} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        yield


def _until(holds: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + _SETTLE_TIMEOUT_S
    while not holds():
        if time.monotonic() > until:
            raise UnsettledError(otherwise)
        time.sleep(_SETTLE_S)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.table", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="turns of each")
    parser.add_argument("--seconds", type=int, default=SECONDS, metavar="S", help="of load in a turn")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where the table goes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
