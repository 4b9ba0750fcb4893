"""The command line from start to end: what a newcomer types, and what they see when it goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hosting import FUNCTIONS

BAD = FUNCTIONS / "bad"
FAAS = Path(sys.executable).with_name("faas")


class Ran(NamedTuple):
    """One command that has ended."""

    code: int
    out: str
    err: str


class Cli:
    """The command line against one home; ``serve`` runs until the fixture ends."""

    def __init__(self, home: Path) -> None:
        self.environ = {**os.environ, "FAAS_HOME": str(home), "COLUMNS": "100", "TZ": "UTC"}

    def __call__(self, *arguments: str | Path, stdin: str = "", cwd: Path | None = None) -> Ran:
        ran = subprocess.run(
            [FAAS, *arguments], input=stdin, capture_output=True, text=True, env=self.environ, cwd=cwd, check=False
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def json(self, *arguments: str | Path) -> Any:
        ran = self(*arguments, "--json")
        assert ran.code == 0, ran.err
        return json.loads(ran.out)


def serve(cli: Cli, stderr: Path, *options: str | Path) -> tuple[subprocess.Popen[str], str]:
    """Start ``faas serve`` and return it with its banner."""
    with stderr.open("a") as errors:
        process = subprocess.Popen(
            [FAAS, "serve", "--port", "0", "--admin-port", "0", "--workers", "1", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=cli.environ,
        )
    assert process.stdout is not None
    banner = ""
    while line := process.stdout.readline():
        banner += line
        if line.startswith("try"):
            return process, banner
    raise AssertionError(stderr.read_text())


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> int:
    assert process.stdout is not None
    process.send_signal(number)
    code = process.wait(30)
    process.stdout.close()
    return code


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A host with ``hello`` deployed, started and stopped as a user would."""
    folder = tmp_path_factory.mktemp("cli")
    made = Cli(folder / "home")
    process, _ = serve(made, folder / "stderr")
    try:
        assert made("deploy", FUNCTIONS / "hello-c" / "hello-c.wasm", "--name", "hello", "--route", "/hello").code == 0
        yield made
        assert stop(process) == 0
    finally:
        if process.poll() is None:
            process.kill()
            stop(process)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line where no host runs."""
    return Cli(tmp_path_factory.mktemp("alone") / "home")


# --- with a host -----------------------------------------------------------------------------------------------------


def test_a_deployed_wasm_is_listed_and_answers(cli: Cli) -> None:
    listed = {function["name"]: function for function in cli.json("list")}
    assert listed["hello"]["routes"] == ["/hello"]
    invoked = cli("invoke", "hello")
    assert (invoked.code, invoked.out) == (0, "Hello from C!\nGET /hello\n")


def test_deploy_prints_an_address_that_answers(cli: Cli) -> None:
    deployed = cli("deploy", FUNCTIONS / "echo-c")
    assert deployed.code == 0
    found = re.search(r"try: +(curl .+)", deployed.out)
    assert found
    with urllib.request.urlopen(found[1].split()[-1], timeout=20) as answer:
        assert json.load(answer)["function"] == "echo-c"


def test_deploying_again_makes_the_next_version(cli: Cli) -> None:
    module = FUNCTIONS / "hello-rust" / "hello-rust.wasm"
    versions = [cli.json("deploy", module, "--name", "twice")["version"] for _ in range(2)]
    assert versions[1] == versions[0] + 1
    newest = cli.json("versions", "twice")[0]
    assert (newest["version"], newest["active"]) == (versions[1], True)


def test_env_given_at_deploy_reaches_the_function(cli: Cli) -> None:
    assert cli("deploy", BAD / "env.wasm", "--env", "GREETING=moin moin").code == 0
    assert "GREETING=moin moin\n" in cli("invoke", "env").out


def test_invoke_sends_stdin_headers_and_method(cli: Cli) -> None:
    cli("deploy", FUNCTIONS / "echo-rust")
    sent = cli("invoke", "echo-rust", "--data-file", "-", "-H", "Content-Type: text/x-mine", "-i", stdin="some data")
    assert sent.out == "some data"
    assert "text/x-mine" in sent.err


def test_invoke_shows_the_timing_of_the_start(cli: Cli) -> None:
    """The promise is well under a millisecond; on a busy machine it is still only a few."""
    found = re.search(r"start;dur=([\d.]+)", cli("invoke", "hello", "-i").err)
    assert found
    assert float(found[1]) < 50


def test_markdown_of_our_own_readme_becomes_html(cli: Cli) -> None:
    cli("deploy", FUNCTIONS / "markdown")
    page = cli("invoke", "markdown", "--data-file", FUNCTIONS / "README.md")
    assert page.code == 0
    assert '<h1 id="functions">Functions</h1>' in page.out
    assert "<table>" in page.out


def test_a_function_that_fails_is_exit_code_1_and_its_log_says_why(cli: Cli) -> None:
    cli("deploy", BAD / "trap.wasm")
    failed = cli("invoke", "trap")
    assert failed.code == 1
    assert json.loads(failed.out)["code"] == "guest-trap"
    followed = subprocess.Popen([FAAS, "logs", "trap", "-f"], stdout=subprocess.PIPE, text=True, env=cli.environ)
    assert followed.stdout is not None
    with followed.stdout:
        log = ""
        for line in followed.stdout:
            log += line
            if "invocation.finished" in line:
                break
        followed.send_signal(signal.SIGINT)
    followed.wait(10)
    assert "about to execute unreachable" in log
    assert "wasm backtrace" in log
    assert "guest-trap" in log


def test_status_and_inspect_tell_what_runs(cli: Cli) -> None:
    status = cli.json("status")
    assert [worker["state"] for worker in status["workers"]] == ["serving"]
    inspected = cli("inspect", "hello")
    assert inspected.code == 0
    assert re.search(r"version +1\b", inspected.out)


def test_a_removed_function_is_gone(cli: Cli) -> None:
    cli("deploy", FUNCTIONS / "hello-c" / "hello-c.wasm", "--name", "brief")
    assert cli("remove", "brief").code == 0
    assert cli("invoke", "brief").code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("deploy", BAD / "component.wasm"), "component"),
        (("deploy", BAD / "unknown-import.wasm"), "env.mystery"),
        (("deploy", BAD / "no-such.wasm"), "no-such.wasm"),
        (("deploy", BAD / "env.wasm", "--name", "thief", "--route", "/hello"), "already taken"),
        (("inspect", "nobody"), "nobody"),
    ],
    ids=["component", "imports", "missing", "route", "name"],
)
def test_what_is_refused_is_one_line_and_exit_code_1(cli: Cli, arguments: tuple[str | Path, ...], said: str) -> None:
    refused = cli(*arguments)
    assert refused.code == 1
    (line,) = [line for line in refused.err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert "Traceback" not in refused.err


def test_a_second_host_on_the_home_is_refused(cli: Cli) -> None:
    refused = cli("serve", "--port", "0", "--admin-port", "0")
    assert refused.code == 1
    assert refused.err.startswith("error: another host")


# --- without a host --------------------------------------------------------------------------------------------------


def test_without_a_host_a_command_says_how_to_start_one(alone: Cli) -> None:
    refused = alone("list")
    assert refused.code == 1
    assert "faas serve" in refused.err
    assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("frobnicate",), ("deploy",)])
def test_wrong_usage_is_exit_code_2(alone: Cli, arguments: tuple[str, ...]) -> None:
    assert alone(*arguments).code == 2


def test_run_behaves_like_a_native_program(alone: Cli, tmp_path: Path) -> None:
    """Arguments, stdin and a mounted folder in; stdout, stderr and the exit code out."""
    (tmp_path / "file").write_text("from a file\n")
    cat = BAD / "cat.wasm"
    ran = alone(
        "run", cat, "--dir", f"{tmp_path}::/data", "--", "/data/file", "-", "/data/missing", stdin="from stdin\n"
    )
    assert ran.out == "from a file\nfrom stdin\n"
    assert "missing" in ran.err
    assert ran.code == 1


@pytest.mark.parametrize("code", [0, 1, 255])
def test_run_keeps_the_exit_code(alone: Cli, code: int) -> None:
    assert alone("run", BAD / "exit.wasm", "--env", f"QUERY_STRING={code}").code == code


def test_run_gives_env_and_arguments_and_nothing_else(alone: Cli) -> None:
    ran = alone("run", BAD / "env.wasm", "--env", "A=b c", "--", "--flag", "x")
    assert ran.out.splitlines()[2:] == ["arg 0=env.wasm", "arg 1=--flag", "arg 2=x", "A=b c"]


def test_run_of_a_trap_is_an_aborted_program(alone: Cli) -> None:
    ran = alone("run", BAD / "trap.wasm")
    assert ran.code == 134
    assert "unreachable" in ran.err


def test_run_takes_components_that_are_programs(alone: Cli) -> None:
    program = BAD.parent / "http" / "program.wasm"
    ran = alone("run", program, "--", "one", "two", stdin="from stdin\n")
    assert (ran.code, ran.out) == (0, "program.wasm\none\ntwo\nfrom stdin\n")
    assert alone("run", program, "--", "fail").code == 1


def test_run_refuses_a_component_that_only_answers_requests(alone: Cli) -> None:
    ran = alone("run", BAD.parent / "http" / "hello.wasm")
    assert ran.code == 1
    assert "exports no wasi:cli/run" in ran.err
    assert "deploy it" in ran.err


def test_doctor_finds_this_machine_fit(alone: Cli) -> None:
    found = alone("doctor")
    assert found.code == 0, found.out + found.err


# --- a host's life ---------------------------------------------------------------------------------------------------


def test_serve_deploys_what_it_is_told_and_serves_it_again_after_a_kill(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "home")
    process, banner = serve(
        cli, tmp_path / "stderr", "--deploy", FUNCTIONS / "hello-c", "--deploy", FUNCTIONS / "echo-c"
    )
    assert "hello-c version 1" in banner
    assert "echo-c version 1" in banner
    assert stop(process, signal.SIGKILL) == -signal.SIGKILL
    process, _ = serve(cli, tmp_path / "stderr")
    assert {function["name"] for function in cli.json("list")} == {"hello-c", "echo-c"}
    assert cli("invoke", "hello-c").out.startswith("Hello from C!")
    assert stop(process, signal.SIGINT) == 0


def test_serve_makes_no_new_version_of_what_serves_already(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "home")
    for wanted in (("--deploy", FUNCTIONS / "hello-c"), ("--deploy", FUNCTIONS / "hello-c")):
        process, banner = serve(cli, tmp_path / "stderr", *wanted)
        assert "hello-c version 1" in banner
        assert stop(process, signal.SIGINT) == 0


def test_new_makes_a_function_that_builds_deploys_and_answers(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    made = cli("new", "mine", "--lang", "c", cwd=tmp_path)
    assert made.code == 0, made.err
    python = f"PYTHON={sys.executable}"
    built = subprocess.run(["make", "-C", tmp_path / "mine", python], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert cli("deploy", tmp_path / "mine").code == 0
    assert cli("invoke", "mine").code == 0
