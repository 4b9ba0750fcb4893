"""docs/tutorial-agent.md: what it prints is what happens, and what it builds is ``functions/triage``."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hosting import FUNCTIONS, Host, free_port, until, wasm

from faas.testing.github import signature

ROOT = FUNCTIONS.parent
PAGE = (ROOT / "docs" / "tutorial-agent.md").read_text()
TRIAGE = FUNCTIONS / "triage"
LICENSE_LINE = "// SPDX-License-Identifier: Apache-2.0\n"
WRITTEN = {"main.rs", "classify.rs", "memory.rs", "chat.rs", "function.toml"}
TYPED = WRITTEN | {"model.json", "send.sh", "chat_server.py", "test_triage.py"}
END = "--- the command has ended"
TOOLS = ("make", "curl", "openssl", "sh", "bash", "grep")
WASI_TARGETS = ("wasm32-wasip1", "wasm32-wasi")


class Block(NamedTuple):
    """A fenced block; *label* is the word behind its language: a file's path, or a terminal."""

    language: str
    label: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^( *)```(\w+)(?: (\S+))?\n(.*?)^\1```$", PAGE, re.MULTILINE | re.DOTALL)
    return [Block(language, label, text) for _, language, label, text in found]


def changed(before: str, diff: str) -> str:
    """Return *before* with each part of *diff* applied where its lines are, once."""
    for part in diff.split("@@\n")[1:]:
        lines = part.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert before.count(old) == 1, f"not once in the file:\n{old}"
        before = before.replace(old, new)
    return before


def write(block: Block, folder: Path) -> None:
    """Do to a file what a reader is told to."""
    path = folder / block.label
    text = changed(path.read_text(), block.text) if block.language == "diff" else block.text
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def published(name: str) -> str:
    return (TRIAGE / name).read_text().removeprefix(LICENSE_LINE)


def is_of_triage(block: Block) -> bool:
    return block.label.startswith("triage/")


# --- what is printed --------------------------------------------------------------------------------------------------


def test_who_types_the_page_has_the_sample(tmp_path: Path) -> None:
    for block in filter(is_of_triage, blocks()):
        write(block, tmp_path)
    typed = {path.name: path.read_text() for path in (tmp_path / "triage").iterdir()}
    assert set(typed) == TYPED
    assert typed == {name: published(name) for name in TYPED}


def test_every_file_has_its_path_above_it() -> None:
    # What stands behind the language of a block is not shown to readers.
    above = re.findall(r"^(.*)\n\n```\w+ (\S+/\S+)$", PAGE, re.MULTILINE)
    assert [path for _, path in above] == [block.label for block in blocks() if "/" in block.label]
    assert [path for line, path in above if not line.endswith(f"`{path}`:")] == []


def test_excerpts_are_in_the_files_that_they_are_from() -> None:
    excerpts = [block for block in blocks() if block.label.startswith("functions/")]
    assert excerpts
    assert [block.label for block in excerpts if block.text not in (ROOT / block.label).read_text()] == []


def test_files_of_the_repository_that_are_linked_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_every_module_and_setting_of_the_review_bot_is_named() -> None:
    modules = {path.name for path in (FUNCTIONS / "review-bot").glob("*.rs")} - {"json_out.rs"}
    settings = set(re.findall(r'(?:number|config)\("([A-Z_]+)"', (FUNCTIONS / "review-bot" / "main.rs").read_text()))
    assert settings
    assert {word for word in modules | settings if f"`{word}`" not in PAGE and f"{word}=" not in PAGE} == set()


# --- what it says that happens ----------------------------------------------------------------------------------------


def rustc() -> str:
    """Return the compiler that the template's Makefile would take, or ''."""
    for compiler in ("rustc", "/usr/bin/rustc"):
        for target in WASI_TARGETS:
            asked = [compiler, "--print", "target-libdir", "--target", target]
            try:
                told = subprocess.run(asked, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                continue
            if told.returncode == 0 and any(Path(told.stdout.strip()).glob("*.rlib")):
                return compiler
    return ""


class Terminals:
    """A reader with a shell and further terminals, who compares; ports are free ones in the place of the page's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {old: str(free_port()) for old in ("8080", "8081", "9300")}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FAAS_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "REPO": str(ROOT),
            "FAAS_HOME": str(folder / "home"),
            "PORTS": f"--port {self.ports['8080']} --admin-port {self.ports['8081']} --workers 1",
        }
        self.shell = self.begin("bash", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.others: dict[str, subprocess.Popen[str]] = {}

    def begin(self, command: str, **streams: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", *(["-c", f"exec env {command}"] if command != "bash" else [])],
            cwd=self.folder, env=self.environment, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **streams},
        )  # fmt: skip

    def here(self, text: str) -> str:
        """Return a text of the page with this run's ports."""
        return re.sub(r"\b(8080|8081|9300)\b", lambda found: self.ports[found[0]], text)

    def read(self, block: Block) -> None:
        """Do what one block says."""
        if is_of_triage(block):
            write(block._replace(text=self.here(block.text)), self.folder)
        elif block.language == "text":
            self.shows(block.label, self.here(block.text))
        elif block.label in ("", "again"):
            for command, expected in commands(self.here(block.text)):
                self.type(command, expected, again=block.label == "again")
        else:
            ((command, expected),) = commands(self.here(block.text))
            with (self.folder / f"{block.label}.out").open("w") as output:
                self.others[block.label] = self.begin(command.replace("faas serve", "faas serve $PORTS"), stdout=output)
            self.shows(block.label, expected)

    def shows(self, terminal: str, expected: str) -> None:
        """Wait until a terminal's output has *expected* in it, as whole lines."""
        if not expected:
            return
        output = self.folder / f"{terminal}.out"
        # The mark keeps the last line break, which would be taken off at the end.
        until(lambda: matches(f"…\n{expected}…|", f"\n{output.read_text()}|"), what=f"{terminal}: {expected}")

    def type(self, command: str, expected: str, *, again: bool) -> None:
        shown = self.run(command)
        if again:
            until(lambda: matches(expected, shown) or matches(expected, self.run(command)), what=f"{command}: {shown}")
        assert again or matches(expected, shown), f"$ {command}\n{shown}\n--- but the page says\n{expected}"

    def run(self, command: str) -> str:
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(f"{{ {command}\n}} </dev/null\necho; echo '{END}'\n" if "=$(" not in command else
                               f"{command}\necho; echo '{END}'\n")  # fmt: skip
        self.shell.stdin.flush()
        lines = []
        while (line := self.shell.stdout.readline()) != f"{END}\n":
            assert line, "the shell has ended"
            lines.append(line)
        return "".join(lines)

    def close(self) -> None:
        for process in (*self.others.values(), self.shell):
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield what is typed and what is shown then; no command here has more than a line."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def matches(expected: str, shown: str) -> bool:
    """Whether *shown* is *expected*, where ``…`` stands for anything; blank lines at the end are nothing."""
    pattern = "(?s:.*)".join(re.escape(piece) for piece in expected.rstrip().split("…"))
    return re.fullmatch(pattern, shown.rstrip()) is not None


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None] + ([] if rustc() else ["a rustc for WASI"])
    if missing:
        pytest.skip(f"without {', '.join(missing)} nobody can follow the page")
    reader = Terminals(tmp_path)
    try:
        yield reader
    finally:
        reader.close()


@pytest.mark.timeout(300)  # eight builds of Rust, and two hosts
def test_every_command_of_the_page_shows_what_the_page_says(terminals: Terminals) -> None:
    for block in blocks():
        if is_of_triage(block) or block.language in ("console", "text"):
            terminals.read(block)
    built = {name: (terminals.folder / "triage" / name).read_text() for name in TYPED}
    assert built == {name: terminals.here(published(name)) for name in TYPED}


def test_what_shows_something_else_is_noticed() -> None:
    assert matches("a … c\n…\n", "a b c\nanything\n")
    assert not matches("a … c\n", "a b c\nmore\n")
    assert not matches("…security…\n", "another problem\n")


# --- the committed module ---------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    models = {"default": str(TRIAGE / "model.json")}
    host = Host(tmp_path / "home", model_backend="fake", models=models)
    try:
        yield host.start()
        host.stop()
    finally:
        host.dispose()


class Chat(ThreadingHTTPServer):
    """Keeps what it is sent, with which token."""

    def __init__(self) -> None:
        self.said: list[tuple[str | None, str]] = []
        super().__init__(("127.0.0.1", 0), Listening)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Listening(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.said.append((self.headers["Authorization"], body["text"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def chat() -> Iterator[Chat]:
    with Chat() as chat:
        serving = threading.Thread(target=chat.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield chat
        finally:
            chat.shutdown()
            serving.join()


@pytest.fixture
def agent(host: Host, chat: Chat) -> Host:
    """The host with the committed agent, which tells that chat."""
    until(lambda: host.get("/v1/models").json().get("data"), what="the model server")
    manifest = tomllib.loads((TRIAGE / "function.toml").read_text())
    manifest["capabilities"]["outbound"] = [chat.url]
    manifest["capabilities"]["credentials"][0]["host"] = chat.url
    host.deploy("llm", wasm("llm"), (FUNCTIONS / "llm" / "function.toml").read_text())
    host.deploy("triage", wasm("triage"), manifest)
    tell(host, "PATCH", "config", {"values": {"CHAT_URL": f"{chat.url}/messages"}})
    tell(host, "PUT", "secrets/TICKET_SECRET", {"value": "ticket-secret"})
    tell(host, "PUT", "secrets/CHAT_TOKEN", {"value": "chat-token"})
    return host


def test_the_committed_agent_sorts_remembers_and_tells_the_chat_once(agent: Host, chat: Chat) -> None:
    assert agent.get("/triage").code == "invalid-invoke-key"
    assert deliver(agent, "0", b"{}", secret="another").code == "signature-invalid"
    for delivery, number, text in (("1", "A", "How do I pay?"), ("2", "B", "The shop is down."), ("3", "B", "Hello?")):
        becomes(agent, send(agent, delivery, number, text), "succeeded")
    assert chat.said == [("Bearer chat-token", "B: The shop does not answer. (outage)")]
    kept = agent.admin("GET", "/api/kv/triage/keys?prefix=verdict/").json()["keys"]
    assert [key if isinstance(key, str) else key["key"] for key in kept] == ["verdict/A", "verdict/B"]


def test_of_two_jobs_of_a_ticket_side_by_side_one_tells_the_chat_and_the_other_waits(agent: Host, chat: Chat) -> None:
    claim(agent, "A", until_ms=9_999_999_999_999)  # as a first job does while it tells the chat
    second = send(agent, "2", "A", "The shop is down.")
    assert becomes(agent, second, "retrying")["attempts"][0]["status"] == 503
    assert chat.said == []
    claim(agent, "A", until_ms=1)
    becomes(agent, second, "succeeded")
    assert len(chat.said) == 1
    becomes(agent, send(agent, "3", "A", "The shop is down."), "succeeded")
    assert len(chat.said) == 1


def test_the_claim_of_a_run_that_died_ends(agent: Host, chat: Chat) -> None:
    claim(agent, "A", until_ms=1_700_000_000_000)
    becomes(agent, send(agent, "1", "A", "The shop is down."), "succeeded")
    assert len(chat.said) == 1
    assert agent.admin("GET", "/api/kv/triage/value?key=told/A").body == b"done"


def test_a_ticket_that_is_too_long_for_the_model_is_not_tried_again(agent: Host) -> None:
    job = becomes(agent, send(agent, "1", "A", "word " * 4000), "succeeded")
    assert [attempt["status"] for attempt in job["attempts"]] == [422]
    assert "longer than its context" in agent.get(job["result_url"]).json()["error"]


def claim(host: Host, number: str, *, until_ms: int) -> None:
    """Put the mark of a run that is telling the chat of a ticket."""
    assert host.admin("PUT", f"/api/kv/triage/value?key=told/{number}", str(until_ms).encode()).status < 300


def send(host: Host, delivery: str, number: str, text: str) -> str:
    """Deliver a ticket, and return the path of its job."""
    accepted = deliver(host, delivery, json.dumps({"id": number, "text": text}).encode())
    assert accepted.status == 202, accepted.body
    path: str = accepted.json()["status_url"]
    return path


def becomes(host: Host, job: str, state: str) -> dict[str, Any]:
    """Wait until a job is in a state, and return what is known of it."""
    seen: list[dict[str, Any]] = []
    until(lambda: seen.append(host.get(job).json()) or seen[-1]["state"] == state, what=f"{state}: {seen[-1:]}")
    return seen[-1]


def tell(host: Host, method: str, what: str, document: dict[str, Any]) -> None:
    path = f"/api/functions/triage/{what}"
    reply = host.admin(method, path, json.dumps(document).encode(), {"Content-Type": "application/json"})
    assert reply.status < 300, reply.body


def deliver(host: Host, delivery: str, body: bytes, *, secret: str = "ticket-secret") -> Any:
    headers = {"X-Hub-Signature-256": signature(body, secret), "X-GitHub-Delivery": delivery}
    return host.request("POST", "/triage/tickets", body, headers)
