"""Which calls into the engine run: those in C where they were compiled, unless they are not wanted or do not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from faas.wasm import calls

WHICH = "from faas.wasm import calls; print(calls.chosen().__name__)"


def which(**environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", WHICH], env=environment, capture_output=True, text=True, check=True, timeout=50
    )
    return ran.stdout.strip()


def test_the_calls_by_ctypes_can_be_asked_for() -> None:
    assert which(FAAS_NATIVE_CALLS="0") == "faas.wasm.calls"


def test_without_asking_the_compiled_ones_run_where_there_are_any() -> None:
    pytest.importorskip("faas.wasm._calls")
    assert which() == "faas.wasm._calls"


def test_ones_that_were_compiled_for_another_frame_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = pytest.importorskip("faas.wasm._calls")
    monkeypatch.setattr(compiled, "FRAME_BYTES", compiled.FRAME_BYTES + 8)
    monkeypatch.delenv("FAAS_NATIVE_CALLS", raising=False)
    assert calls.chosen.__wrapped__() is calls


def test_ones_that_were_compiled_from_an_older_file_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = pytest.importorskip("faas.wasm._calls")
    monkeypatch.delattr(compiled, "REVISION")
    monkeypatch.delenv("FAAS_NATIVE_CALLS", raising=False)
    assert calls.chosen.__wrapped__() is calls


def test_both_have_the_same_functions() -> None:
    compiled = pytest.importorskip("faas.wasm._calls")
    names = {name for name in vars(compiled) if not name.startswith("_")} - {"FRAME_BYTES", "open_library"}
    assert names <= set(vars(calls))
