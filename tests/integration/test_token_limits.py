"""Tokens per minute hold for the whole host, whichever worker is asked; generations under /v1 are seen and awaited."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import FUNCTIONS, Host, MakeHost, Reply, until

from faas.gateway.worker import CUT_OFF_S

LIMIT = 1000
MANY = {"prompt": "many", "n": 4, "max_tokens": 400, "ignore_eos": True}
"""Takes 1600 tokens and its prompt."""
FEW = {"prompt": "", "max_tokens": 1, "ignore_eos": True}
"""Takes two tokens, one of them the model's BOS."""


def start(host: Host, folder: Path, **file: Any) -> Host:
    path = folder / "model.fake"
    path.write_text(json.dumps(file))
    host.settings.update(model_backend="fake", model_ctx=512, models={"default": str(path)})
    host.start()
    until(lambda: host.get("/v1/models").json().get("data"), what="the model server")
    return host


def worker_of(host: Host, connection: http.client.HTTPConnection) -> int:
    """Return the pid of the worker that accepted *connection*: the one that has the other end's inode."""
    port = connection.sock.getsockname()[1]
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode = row.split()[:10]
        if int(local.split(":")[1], 16) == host.port and int(remote.split(":")[1], 16) == port:
            break
    else:
        raise AssertionError("the connection is not in /proc/net/tcp")
    for pid in host.worker_pids():
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(fd) == f"socket:[{inode}]":
                    return pid
    raise AssertionError("no worker has the connection")


class Caller:
    """Connections that stay, one to each worker, all with the same key."""

    def __init__(self, host: Host, key: str) -> None:
        self.host = host
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self, *others: int) -> tuple[http.client.HTTPConnection, int]:
        """Return a connection to a worker that is none of *others*, and that worker's pid."""

        def one() -> tuple[http.client.HTTPConnection, int] | None:
            connection = self._stack.enter_context(contextlib.closing(self.host.connect()))
            self.send(connection, "GET", "/v1/models")
            pid = worker_of(self.host, connection)
            return None if pid in others else (connection, pid)

        return until(one, what="a connection to another worker")

    def send(self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> Reply:
        connection.request(method, path, None if body is None else json.dumps(body), self.headers)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    def complete(self, connection: http.client.HTTPConnection, body: dict[str, Any]) -> Reply:
        return self.send(connection, "POST", "/v1/completions", body)


@pytest.fixture
def host(make_host: MakeHost, tmp_path: Path) -> Host:
    return start(make_host(workers=2), tmp_path)


def refuses(reply: Reply) -> bool:
    assert reply.status in (200, 429), reply.body
    return reply.status == 429


def test_a_key_that_is_exhausted_on_one_worker_is_refused_by_the_other_and_by_its_successor(host: Host) -> None:
    key = host.admin("POST", "/api/keys", json.dumps({"name": "k", "tokens_per_minute": LIMIT}).encode()).json()["key"]
    with Caller(host, key) as caller:
        first, first_pid = caller.connect()
        second, second_pid = caller.connect(first_pid)
        assert caller.complete(first, MANY).status == 200

        answers = [caller.complete(second, FEW)]
        until(lambda: refuses(answers[-1]) or answers.append(caller.complete(second, FEW)), what="the other worker")
        *served, refused = answers
        # What it served itself is far below the limit: it is the other one's tokens that it refuses for.
        assert sum(answer.json()["usage"]["total_tokens"] for answer in served) < LIMIT / 2
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["Retry-After"]) <= 50
        until(lambda: int(caller.complete(second, FEW).headers["Retry-After"]) >= 30, what="the rest of the tokens")

        os.kill(second_pid, signal.SIGKILL)
        until(lambda: len({first_pid, second_pid, *host.worker_pids()}) == 3, what="a new worker")
        third, _ = caller.connect(first_pid, second_pid)
        refused = caller.complete(third, FEW)  # the first request there with this key
        assert refused.status == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 50


def test_a_function_that_is_exhausted_on_one_worker_is_refused_by_the_other(
    make_host: MakeHost, tmp_path: Path
) -> None:
    host = start(make_host(workers=2), tmp_path, answers={"FEW": "!"})  # no text that is made up has capitals
    # Two full contexts of 512 tokens leave a few tokens, so a third one may begin and leaves a debt of half a minute.
    manifest = {
        "routes": ["/f"],
        "capabilities": {"models": ["default"]},
        "limits": {"tokens_per_minute": 1030},
    }
    host.deploy("f", (FUNCTIONS / "nn-test" / "nn-test.wasm").read_bytes(), manifest)
    with Caller(host, "") as caller:

        def compute(connection: http.client.HTTPConnection, prompt: str) -> str:
            steps = f"load_by_name:default;init_execution_context:0;set_input:0:0:{prompt};compute:0"
            return caller.send(connection, "GET", f"/f?{steps}").text.splitlines()[-1]

        first, first_pid = caller.connect()
        second, _ = caller.connect(first_pid)
        assert [compute(first, "many") for _ in range(4)] == ["compute 101"] * 3 + ["compute 4"]

        answers = [compute(second, "FEW")]  # 5 tokens each
        until(
            lambda: answers[-1] == "compute 4" or answers.append(compute(second, "FEW")),
            what="the other worker",
        )
        assert set(answers[:-1]) <= {"compute 0"}
        assert 5 * len(answers) < 1030 / 2  # it is the other one's tokens that it refuses for


@contextlib.contextmanager
def gate(folder: Path) -> Iterator[tuple[Path, int]]:
    """Lend a fifo for a fake model, and its descriptor: each byte lets one decode through."""
    path = folder / "gate"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    try:
        yield path, fd
    finally:
        os.close(fd)


def test_a_generation_in_progress_is_in_the_gauges_and_draining_waits_for_it(
    make_host: MakeHost, tmp_path: Path
) -> None:
    with gate(tmp_path) as (path, fd):
        host = start(make_host(workers=2, drain_timeout_s=15), tmp_path, gate=str(path))
        until(lambda: host.gauge("openai_active") == 0, what="the gauges")
        with contextlib.closing(host.connect()) as connection:
            body = {"prompt": "x", "max_tokens": 20, "ignore_eos": True, "stream": True}
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            os.write(fd, b"x")
            response = connection.getresponse()
            assert response.readline().startswith(b"data: ")
            assert response.readline() == b"\n"
            until(lambda: host.gauge("openai_active") == 1, what="the gauge")
            metrics = host.admin("GET", "/metrics").text.splitlines()
            samples = sorted(line.split()[1] for line in metrics if line.startswith("faas_worker_openai_active{"))
            assert samples == ["0", "1"]

            host.terminate()
            until(lambda: refuses_connections(host.port), what="new connections are refused")
            # What is not waited for is cut off after so long.
            assert select.select([connection.sock], [], [], 2 * CUT_OFF_S)[0] == []
            os.write(fd, b"x" * 100)
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert host.wait() == 0


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # it arrived while the listening socket was being closed: the next one is refused
    return False


def test_a_missing_or_unknown_key_is_401_in_that_apis_form(host: Host) -> None:
    host.admin("POST", "/api/keys", b'{"name": "k"}')
    for headers in ({}, {"Authorization": "Bearer faas-wrong"}):
        for reply in (
            host.get("/v1/models", headers),
            host.request("POST", "/v1/completions", b"{", {"Content-Type": "application/json", **headers}),
        ):
            assert (reply.status, reply.json()["error"]["code"]) == (401, "invalid_api_key")
            assert reply.headers["WWW-Authenticate"].startswith("Bearer ")
