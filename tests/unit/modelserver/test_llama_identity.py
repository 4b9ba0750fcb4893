"""What the llama.cpp backend says of itself: a build number if the library has one, else every version it knows."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import pytest

pytest.importorskip("llama_cpp")

from faas.modelserver.backends.llama import _build_of, open_backend


def test_a_build_and_its_commit_are_taken_from_the_library() -> None:
    assert _build_of(SimpleNamespace(llama_version=lambda: b"b8757-c0ffee")) == (8757, "c0ffee")


@pytest.mark.parametrize("low", [SimpleNamespace(), SimpleNamespace(llama_version=lambda: b"0.5.0-dev")])
def test_without_a_build_number_the_versions_are_named(low: SimpleNamespace) -> None:
    number, said = _build_of(low)
    assert number == 0
    assert said.startswith(f"llama-cpp-python/{importlib.metadata.version('llama-cpp-python')}")
    assert ("llama.cpp/0.5.0-dev" in said) == hasattr(low, "llama_version")


def test_the_installed_library_is_named() -> None:
    backend = open_backend()
    assert backend.build > 0 or "llama-cpp-python/" in backend.commit
