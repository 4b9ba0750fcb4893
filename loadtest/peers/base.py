"""What all peers have in common: a server process on a loopback port, and a folder where what it needs is kept."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loadtest.host import connection

SOURCES = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faas-bench"
"""Downloads and builds, about 200 MB; may be removed at any time, and is filled again when it is needed."""
BODY = b"hello world\n"
"""What every peer, and every function it is compared with, answers."""

_READY_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.01
_MESSAGE_LINES = 5


class PeerUnavailableError(Exception):
    """A peer can't be started here; the message has the reason and the next step."""


class Peer(ABC):
    """A server to be compared with; it has no state between two ``with peer.running()``."""

    name: str
    """Its name on the command line and in results."""
    title: str
    """What it is, in tables."""
    isolation: str
    """What stands between two requests, and between a request and the machine."""
    connections: int = 32
    """As many as it serves well; the host is driven with the same number."""

    @abstractmethod
    def command(self, port: int, scratch: Path) -> Sequence[str]:
        """
        Get everything ready and return the command that serves on 127.0.0.1:*port*; *scratch* lives as long as it.

        Raises: PeerUnavailableError.
        """

    def cleanup(self) -> None:  # noqa: B027 - most leave nothing behind
        """Remove what the server leaves behind when it ends; called once for each run."""

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """
        Yield the URL of the running peer, which answers with ``BODY``; at the end all its processes are gone.

        Raises: PeerUnavailableError.
        """
        with tempfile.TemporaryDirectory(prefix=f"faas-bench-{self.name}-") as folder:
            scratch, port = Path(folder), free_port()
            command = self.command(port, scratch)
            log_path = scratch / "peer.log"
            with log_path.open("wb") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=scratch, process_group=0
                )
            try:
                url = f"http://127.0.0.1:{port}/"
                self._wait_ready(process, url, log_path)
                yield url
            finally:
                _end(process)
                self.cleanup()

    def _wait_ready(self, process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
        until = time.monotonic() + _READY_TIMEOUT_S
        while (answer := fetched(url)) != (200, BODY):
            reason = ""
            if process.poll() is not None:
                reason = f"it ended with {process.returncode}"
            elif time.monotonic() > until:
                reason = f"no right answer in {_READY_TIMEOUT_S:g} s, the last one was {answer}"
            if reason:
                raise PeerUnavailableError(f"{self.title}: {reason}; {_last_words(log_path)}")
            time.sleep(_POLL_S)


def free_port() -> int:
    """Return a loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetched(url: str) -> tuple[int, bytes] | None:
    """Return status and body of one GET, None if there is no HTTP server."""
    try:
        with connection(url, timeout_s=10) as conn:
            conn.request("GET", "/" + url.partition("://")[2].partition("/")[2])
            response = conn.getresponse()
            return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None


def tool(arguments: Sequence[str], what: str, cwd: Path | None = None) -> str:
    """
    Run a tool that prepares a peer and return its stdout; *what* says in a message what it was for.

    Raises: PeerUnavailableError.
    """
    try:
        done = subprocess.run(
            arguments, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
        )
    except FileNotFoundError as exc:
        raise PeerUnavailableError(f"can't {what}: {arguments[0]} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise PeerUnavailableError(f"can't {what}: {arguments[0]} took more than 300 s") from exc
    if done.returncode:
        words = " ".join(done.stderr.split()[-40:])
        raise PeerUnavailableError(f"can't {what}: {arguments[0]} exited with {done.returncode}: {words}")
    return done.stdout


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """
    Return *folder* with what ``make(temporary folder)`` put there, now or in an earlier run; never a half of it.

    Raises: PeerUnavailableError, as *make* does.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            unfinished = Path(scratch) / "made"
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
            break


def _last_words(log_path: Path) -> str:
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    return "it wrote: " + " | ".join(lines[-_MESSAGE_LINES:]) if lines else "it wrote nothing"
