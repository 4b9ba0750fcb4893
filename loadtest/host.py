"""A host of the tests' own: a ``faas serve`` process on free loopback ports, with a temporary home."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = ROOT / "functions"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.02

# The entry point of the `faas` script, by the interpreter that runs the test: no script need be on PATH.
_FAAS = (sys.executable, "-c", "import sys; from faas.cli import main; sys.exit(main())")


class HostFailedError(Exception):
    """The host did not do what a test needs of it; the message has the last lines of its log."""


class Refused(Exception):
    """The admin API answered with a problem document."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{problem.get('code')}: {problem.get('detail')}")
        self.code = str(problem.get("code", ""))


class Host:
    """
    One host process; ``with Host(home) as host`` starts it, and ends it whatever happens.

    ``start``, ``stop`` and ``kill`` may be called in turn any number of times: the home stays.
    Thread: any, one at a time; ``deploy`` and the like use a connection per call and may run beside each other.
    """

    def __init__(
        self,
        home: Path,
        *,
        workers: int = 1,
        deploy: Sequence[Path] = (),
        models: Mapping[str, Path] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """
        Args: *deploy* lists folders that ``faas serve`` deploys by itself at each start; *models* maps names to GGUF
        files; *settings* are further ones by the names of docs/configuration.md, such as ``model_slots``.
        """
        self.home = home
        self.workers = workers
        self._deploy = deploy
        self._models = dict(models or {})
        self._settings = {
            "FAAS_" + key.replace(".", "_").upper(): str(value) for key, value in (settings or {}).items()
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.public_url = ""
        self.admin_url = ""
        self._token = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()

    @property
    def pid(self) -> int:
        """The control process."""
        return self._running().pid

    def start(self) -> None:
        """
        Start the host; it answers, with everything deployed, when this returns.

        Raises: HostFailedError.
        """
        command = [*_FAAS, "serve", "--home", str(self.home), "--host", "127.0.0.1", "--port", "0", "--admin-port", "0"]
        command += ["--workers", str(self.workers)]
        for folder in self._deploy:
            command += ["--deploy", str(folder)]
        for name, path in self._models.items():
            command += ["--model", f"{name}={path}"]
        self.home.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                # The settings of whoever runs the test are not the test's.
                env={key: value for key, value in os.environ.items() if not key.startswith("FAAS_")} | self._settings,
                process_group=0,  # not a session of its own: see faas.control.process
            )
        until = time.monotonic() + READY_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None:
                raise HostFailedError(f"the host ended with {self._process.returncode}:\n{self._last_words()}")
            if time.monotonic() > until:
                raise HostFailedError(f"the host was not ready in {READY_TIMEOUT_S:g} s:\n{self._last_words()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """
        Drain the host and wait until it is gone.

        Raises: HostFailedError if it does not end, or ends with an error.
        """
        process = self._running()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            self.kill()
            raise HostFailedError(f"the host did not stop in {STOP_TIMEOUT_S:g} s:\n{self._last_words()}") from exc
        self._process = None
        if code:
            raise HostFailedError(f"the host ended with {code}:\n{self._last_words()}")

    def kill(self) -> None:
        """End the control process with SIGKILL; its workers notice and end by themselves."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None

    def kill_all(self) -> None:
        """End every process of the host at once, with SIGKILL."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kill()

    # ---- the admin API ----------------------------------------------------------------------------------------------

    def deploy(self, manifest: Mapping[str, Any], module: Path) -> int:
        """
        Deploy *module* and return the version that serves.

        Raises: Refused, OSError when the host is gone.
        """
        boundary = uuid.uuid4().hex
        parts = [
            ("manifest", "application/json", json.dumps(manifest).encode()),
            ("module", "application/wasm", module.read_bytes()),
        ]
        body = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n".encode()
            + content
            + b"\r\n"
            for name, kind, content in parts
        )
        body += f"--{boundary}--\r\n".encode()
        answer = self.admin(
            "PUT",
            f"/api/functions/{manifest['name']}",
            body,
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        return int(json.loads(answer)["version"])

    def remove(self, name: str) -> None:
        """Remove a function; raises Refused, OSError."""
        self.admin("DELETE", f"/api/functions/{name}")

    def status(self) -> dict[str, Any]:
        """Return what ``GET /api/status`` answers."""
        status: dict[str, Any] = json.loads(self.admin("GET", "/api/status"))
        return status

    def metrics(self) -> dict[str, float]:
        """Return what ``GET /metrics`` answers: each sample by its name with its labels, as it stands there."""
        return parse_metrics(request(self.admin_url, "GET", "/metrics")[1].decode())

    def processes(self) -> list[int]:
        """Return the control process and all that descend from it: workers, model server, precompile jobs."""
        found = [self.pid]
        for pid in found:  # grows meanwhile
            with contextlib.suppress(OSError):
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += map(int, children.read_text().split())
        return found

    def log(self, name: str, n_lines: int) -> list[dict[str, Any]]:
        """Return the last lines of a function's log."""
        return [
            json.loads(line) for line in self.admin("GET", f"/api/functions/{name}/logs?tail={n_lines}").splitlines()
        ]

    def admin(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        """Return the body of one admin request's reply; raises Refused, OSError."""
        status, answer, _ = request(
            self.admin_url, method, path, body, {"Authorization": f"Bearer {self._token}", **(headers or {})}
        )
        if status >= 400:
            raise Refused(json.loads(answer))
        return answer

    # ---- inside -----------------------------------------------------------------------------------------------------

    @property
    def _log_path(self) -> Path:
        return self.home / "host.log"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise HostFailedError("the host is not running")
        return self._process

    def _is_ready(self) -> bool:
        try:
            where = json.loads((self.home / "run" / "host.json").read_text())
            # A host that was killed leaves its file behind.
            if where["pid"] != self.pid:
                return False
            self.public_url, self.admin_url = where["public_url"], where["admin_url"]
            self._token = Path(where["token_path"]).read_text().strip()
            if request(self.public_url, "GET", "/_faas/health")[0] != 200:
                return False
            served = json.loads(self.admin("GET", "/api/functions"))["functions"]
        except (OSError, http.client.HTTPException, FileNotFoundError):
            return False
        return {folder.name for folder in self._deploy} <= {function["name"] for function in served}

    def _last_words(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-20:])
        return "(it wrote nothing)"


def parse_metrics(text: str) -> dict[str, float]:
    """
    Return the samples of a page of metrics, by name with labels.

    Source: Prometheus text exposition format 0.0.4, without timestamps.
    """
    samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def request(
    url: str,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Return status, body and headers of one request on a connection of its own; raises OSError, HTTPException."""
    with connection(url) as conn:
        conn.request(method, path, body or None, dict(headers or {}))
        response = conn.getresponse()
        return response.status, response.read(), response.headers


@contextlib.contextmanager
def connection(url: str, timeout_s: float = 60.0) -> Iterator[http.client.HTTPConnection]:
    """Yield a connection to *url*, which is closed at the end."""
    conn = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)
    try:
        yield conn
    finally:
        conn.close()
