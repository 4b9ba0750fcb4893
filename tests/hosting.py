"""A real host for tests: control process and workers on free ports, with a home of its own."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from faas.control.models import find_demo

TESTS = Path(__file__).resolve().parent
FUNCTIONS = TESTS.parent / "functions"
TIMEOUT_S = 20.0

T = TypeVar("T")


class Reply(NamedTuple):
    """One HTTP response, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The ``code`` of a problem document; '' for any other reply."""
        if self.headers.get_content_type() != "application/problem+json":
            return ""
        return str(self.json()["code"])


class HostFailedError(Exception):
    """The host process ended before it served; its stderr is the message."""


def wasm(guest: str) -> bytes:
    """Return the committed module *guest*, a sample or one of ``functions/bad``."""
    for path in (FUNCTIONS / "bad" / f"{guest}.wasm", FUNCTIONS / guest / f"{guest}.wasm"):
        if path.exists():
            return path.read_bytes()
    raise FileNotFoundError(guest)


def demo_model() -> Path | None:
    """Return the file of the demo model if it can be run here."""
    return find_demo() if importlib.util.find_spec("llama_cpp") is not None else None


def until(probe: Callable[[], T], *, timeout_s: float = TIMEOUT_S, what: str = "") -> T:
    """Return the first true answer of *probe*; for what can only be asked for, never awaited."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what or probe}"
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that was free a moment ago, for hosts that must come back on the same one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Host:
    """A running host; ``start`` returns when it serves, ``stop`` drains it and wants exit code 0."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.settings = {"home": str(home), "port": 0, "admin_port": 0, "workers": 1, "model_demo": False, **settings}
        self.process: subprocess.Popen[str] | None = None
        self.port = 0
        self.admin_port = 0
        self._served: set[str] = set()

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def stderr_path(self) -> Path:
        return self.home.with_suffix(".stderr")

    def start(self) -> Host:
        self.home.parent.mkdir(parents=True, exist_ok=True)
        with self.stderr_path.open("a") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(TESTS / "host_process.py"), json.dumps(self.settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.wait()
            raise HostFailedError(self.stderr_path.read_text())
        ready = json.loads(line)
        self.port = int(ready["public_url"].rpartition(":")[2])
        self.admin_port = int(ready["admin_url"].rpartition(":")[2])
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 40.0) -> int:
        """Return the exit code of the control process."""
        assert self.process is not None
        code = self.process.wait(timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        return code

    def stop(self) -> None:
        self.terminate()
        assert self.wait() == 0, self.stderr_path.read_text()

    def kill_all(self) -> None:
        """kill -9 of the control process and of every worker; nobody gets to say goodbye."""
        victims = [self.pid, *self.worker_pids()]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()
        # Orphans are reaped by init; until then they hold their ports.
        until(lambda: not any(alive(pid) for pid in victims), what="killed processes are gone")

    def dispose(self) -> None:
        """End whatever still runs, for a fixture's end."""
        if self.process is not None:
            self.kill_all()

    def worker_pids(self) -> list[int]:
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in children.split() if _is_worker(int(pid))]

    # --- the public port --------------------------------------------------------------------------------------------

    def connect(self) -> http.client.HTTPConnection:
        return self._connection("tls_cert", self.port, TIMEOUT_S)

    def _connection(self, setting: str, port: int, timeout_s: float) -> http.client.HTTPConnection:
        """Return a connection to a port that speaks TLS if *setting* names its certificate."""
        if cert := self.settings.get(setting):
            context = ssl.create_default_context(cafile=cert)
            return http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Reply:
        """Send one request on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, dict(headers or {}), **options)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.request("GET", path, headers=headers)

    @contextlib.contextmanager
    def socket(self) -> Iterator[socket.socket]:
        """Lend a raw connection, for what a well-behaved client would not do."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S) as raw:
            yield raw

    # --- the admin port ---------------------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        return (self.home / "token").read_text().strip()

    def admin(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        connection = self._connection("admin_tls_cert", self.admin_port, 60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Authorization": f"Bearer {self.token}", **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def try_deploy(
        self, name: str, module: bytes, manifest: Mapping[str, Any] | str | None = None, bundle: bytes = b""
    ) -> Reply:
        """Return what the admin API answers to a deploy; a *manifest* that is text is TOML."""
        boundary = secrets.token_hex(8)
        parts = []
        if manifest is not None:
            kind = "application/toml" if isinstance(manifest, str) else "application/json"
            text = manifest if isinstance(manifest, str) else json.dumps(manifest)
            parts.append(("manifest", kind, text.encode()))
        parts.append(("module", "application/wasm", module))
        if bundle:
            parts.append(("bundle", "application/x-tar", bundle))
        body = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{part}"; filename="{part}"\r\n'
            f"Content-Type: {kind}\r\n\r\n".encode()
            + content
            + b"\r\n"
            for part, kind, content in parts
        )
        return self.admin(
            "PUT",
            f"/api/functions/{name}",
            body + f"--{boundary}--\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )

    def deploy(
        self, name: str, module: bytes, manifest: Mapping[str, Any] | str | None = None, bundle: bytes = b""
    ) -> dict[str, Any]:
        """Deploy and return what serves now."""
        reply = self.try_deploy(name, module, manifest, bundle)
        assert reply.status == 201, reply.body
        deployment: dict[str, Any] = reply.json()
        return deployment

    def serves(self, guest: str, **limits: Any) -> str:
        """Have the committed *guest* deployed with *limits* by now, and return its name; it serves /NAME."""
        mark = "-" + hashlib.sha256(repr(sorted(limits.items())).encode()).hexdigest()[:6] if limits else ""
        name = guest + mark
        if name not in self._served:
            self.deploy(name, wasm(guest), {"limits": limits, "routes": [f"/{name}", f"/{name}/*"]})
            self._served.add(name)
        return name

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.admin("GET", "/api/status").json()
        return status

    def gauge(self, name: str) -> float:
        """Return a worker gauge, added up over the workers; it is up to a second old."""
        return sum(worker["gauges"].get(name, -1e9) for worker in self.status()["workers"])

    def functions(self) -> dict[str, int]:
        """Return the version of each function that serves."""
        return {f["name"]: f["version"] for f in self.admin("GET", "/api/functions").json()["functions"]}

    def artifacts(self) -> set[str]:
        """Return every file that the artifact store holds now."""
        base = self.home / "artifacts"
        return {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}

    def log_of(self, function: str, request_id: str) -> list[dict[str, Any]]:
        """Return the log lines of one request, the event that ends it last; waits for it."""
        connection = self._connection("admin_tls_cert", self.admin_port, TIMEOUT_S)
        with contextlib.closing(connection):
            path = f"/api/functions/{function}/logs?tail=100000&follow=1"
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            lines = []
            with connection.getresponse() as response:
                assert response.status == 200, response.read()
                for raw in response:
                    line = json.loads(raw)
                    if line.get("request_id") == request_id:
                        lines.append(line)
                        if line.get("event") == "invocation.finished":
                            break
            return lines


MakeHost = Callable[..., Host]
"""``make_host(home="", **settings)``: see conftest.py."""


def alive(pid: int) -> bool:
    """Return whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b"faas.gateway.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
