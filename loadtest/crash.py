"""
Kills a worker, then the control process, while requests and deploys run; nothing acknowledged may be lost.

Every deploy carries a mark of its own in the function's environment, and the function answers with it: so what is
served can be told from what was acknowledged. A deploy or removal that was under way when its host was killed may
have happened or not; both are right, anything in between is not.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from loadtest.host import FUNCTIONS, Host, HostFailedError, Refused, connection, request
from loadtest.report import console as new_console

NAMES = ("mark-a", "mark-b", "mark-c")
ROUNDS = 3
LOAD_S = 2.0
"""How long requests and deploys run before and after a worker is killed, in each round."""
REMOVAL_SHARE = 0.2
ENV = FUNCTIONS / "bad" / "env.wasm"
# Different code each time it is padded: so that compiling and storing is under way too when the kill comes.
_PADDING_SECTION = b"\0"


@dataclass(frozen=True)
class Served:
    """One version with its mark; version 0 means: nothing is served."""

    version: int
    mark: str


NOTHING = Served(0, "")


@dataclass
class Ledger:
    """What was acknowledged, and what was under way and never answered, of one function."""

    last: Served = NOTHING
    highest_version: int = 0
    pending_mark: str | None = None
    """The mark of an unanswered deploy, '' for an unanswered removal."""
    deploys: int = 0
    removals: int = 0
    unanswered: int = 0


@dataclass
class Load:
    """Threads that deploy and call; live from ``start`` to ``stop``."""

    host: Host
    ledgers: dict[str, Ledger]
    folder: Path
    dying: threading.Event = field(default_factory=threading.Event)
    """Set just before the control process is killed: from here on broken connections are what was asked for."""
    over: threading.Event = field(default_factory=threading.Event)
    replies: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start one deployer for each function and two callers."""
        self.dying.clear()
        self.over.clear()
        self.threads = [threading.Thread(target=self._deploying, args=(name,), daemon=True) for name in NAMES]
        self.threads += [threading.Thread(target=self._calling, daemon=True) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the threads."""
        self.over.set()
        for thread in self.threads:
            thread.join(20)
            if thread.is_alive():
                self.wrong.append("a request hangs: no answer and no broken connection in 20 s")

    def _deploying(self, name: str) -> None:
        ledger = self.ledgers[name]
        module = self.folder / f"{name}.wasm"
        while not self.over.is_set():
            try:
                if ledger.last.version and random.random() < REMOVAL_SHARE:
                    ledger.pending_mark = ""
                    self.host.remove(name)
                    ledger.last = NOTHING
                    ledger.removals += 1
                else:
                    mark = ledger.pending_mark = uuid.uuid4().hex
                    module.write_bytes(variant(ENV.read_bytes()))
                    version = self.host.deploy({"name": name, "env": {"MARK": mark}}, module)
                    if version <= ledger.highest_version:
                        self.wrong.append(f"{name}: version {version} was given twice")
                    ledger.last = Served(version, mark)
                    ledger.highest_version = version
                    ledger.deploys += 1
                ledger.pending_mark = None
            except Refused as exc:
                ledger.pending_mark = None
                self.wrong.append(f"{name}: a deploy was refused: {exc}")
                return
            except (OSError, http.client.HTTPException) as exc:
                ledger.unanswered += 1
                if not self.dying.is_set():
                    self.wrong.append(f"{name}: the admin API broke off: {exc!r}")
                return

    def _calling(self) -> None:
        while not self.over.is_set():
            try:
                with connection(self.host.public_url, timeout_s=10) as conn:
                    while not self.over.is_set():
                        conn.request("GET", "/hello")
                        response = conn.getresponse()
                        response.read()
                        self.replies[f"{response.status}"] += 1
            except (OSError, http.client.HTTPException):
                # A worker that is killed takes its connections with it; the next one goes to another worker.
                self.replies["connection lost"] += 1
                if self.dying.is_set():
                    return
                time.sleep(0.02)


def main() -> int:
    """Return 0 when nothing that was acknowledged is lost, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.crash", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"kills (default {ROUNDS})")
    rounds = parser.parse_args().rounds
    console = new_console()
    lost: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faas-crash-") as folder:
        host = Host(Path(folder) / "home", workers=2)
        load = Load(host, {name: Ledger() for name in NAMES}, Path(folder))
        try:
            host.start()
            host.deploy({"name": "hello"}, FUNCTIONS / "hello-c" / "hello-c.wasm")
            for number in range(1, rounds + 1):
                table, found = _round(number, host, load)
                console.print(table)
                lost += found
            host.stop()
        finally:
            load.stop()
            host.kill()
    deploys = sum(ledger.deploys for ledger in load.ledgers.values())
    removals = sum(ledger.removals for ledger in load.ledgers.values())
    unanswered = sum(ledger.unanswered for ledger in load.ledgers.values())
    console.print(f"acknowledged: {deploys} deploys, {removals} removals; unanswered at a kill: {unanswered}")
    console.print("requests: " + ", ".join(f"{count} × {what}" for what, count in sorted(load.replies.items())))
    strange = [what for what in load.replies if what not in {"200", "connection lost"}]
    lost += [f"hello answered {what}" for what in strange]
    lost += load.wrong
    for line in lost:
        console.print(f"[red]{line}[/red]")
    console.print(
        "verdict: " + ("[red]LOST OR WRONG[/red]" if lost else "[green]nothing acknowledged was lost[/green]")
    )
    return 1 if lost else 0


def _round(number: int, host: Host, load: Load) -> tuple[Table, list[str]]:
    """Load the host, kill a worker, load it on, kill the control process, start it again, compare."""
    load.start()
    time.sleep(LOAD_S)
    victim = next(worker["pid"] for worker in host.status()["workers"] if worker["pid"])
    os.kill(victim, signal.SIGKILL)
    time.sleep(LOAD_S)
    workers = [worker["pid"] for worker in host.status()["workers"] if worker["state"] == "serving"]
    load.dying.set()
    host.kill()
    load.stop()
    _wait_gone(workers)
    began = time.monotonic()
    host.start()
    ready_s = time.monotonic() - began
    table = Table(
        title=f"round {number}: kill -9 of worker {victim} and of the control process; ready again in {ready_s:.1f} s"
    )
    for column in ("function", "acknowledged", "under way", "served now", "verdict"):
        table.add_column(column)
    lost: list[str] = []
    if victim in workers or len(workers) != host.workers:
        lost.append(f"round {number}: the killed worker was not replaced")
    for name, ledger in load.ledgers.items():
        served = _served(host, name)
        verdict = _verdict(ledger, served)
        pending = {None: "", "": "a removal"}.get(ledger.pending_mark, "a deploy")
        table.add_row(name, _shown(ledger.last), pending, _shown(served), verdict or "[green]right[/green]")
        if verdict:
            lost.append(f"round {number}, {name}: {verdict}")
        # What is served now is what the next round begins with.
        ledger.last, ledger.pending_mark = served, None
        ledger.highest_version = max(ledger.highest_version, served.version)
    if request(host.public_url, "GET", "/hello")[0] != 200:
        lost.append(f"round {number}: hello is not served")
    return table, lost


def _verdict(ledger: Ledger, served: Served) -> str:
    """Return what is wrong with *served*, '' if nothing is."""
    if served == ledger.last:
        return ""
    if ledger.pending_mark == "" and served == NOTHING:
        return ""
    if ledger.pending_mark and served.mark == ledger.pending_mark and served.version > ledger.highest_version:
        return ""
    return f"{_shown(ledger.last)} was acknowledged, {_shown(served)} is served"


def _served(host: Host, name: str) -> Served:
    """Ask every worker (each connection may reach another one); they have to agree."""
    answers = set()
    for _ in range(8):
        status, body, headers = request(host.public_url, "GET", f"/{name}")
        if status == 404:
            answers.add(NOTHING)
            continue
        if status != 200:
            raise HostFailedError(f"{name} answered {status} after the restart: {body[:300]!r}")
        mark = next((line[5:] for line in body.decode().splitlines() if line.startswith("MARK=")), "")
        answers.add(Served(int(headers["X-Faas-Version"]), mark))
    if len(answers) != 1:
        raise HostFailedError(f"{name}: workers serve different versions: {answers}")
    return answers.pop()


def _shown(served: Served) -> str:
    return f"v{served.version} {served.mark[:8]}" if served.version else "nothing"


def _wait_gone(pids: list[int]) -> None:
    """Wait until the orphaned workers have noticed and ended; raises HostFailedError if one does not."""
    until = time.monotonic() + 10
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in _status(pid):
            if time.monotonic() > until:
                raise HostFailedError(f"worker {pid} still runs 10 s after its control process was killed")
            time.sleep(0.02)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"


def variant(wasm: bytes) -> bytes:
    """Return *wasm* with a custom section of random bytes: the same program, another digest."""
    content = bytes([len(b"mark")]) + b"mark" + random.randbytes(16)
    return wasm + _PADDING_SECTION + bytes([len(content)]) + content


if __name__ == "__main__":
    sys.exit(main())
