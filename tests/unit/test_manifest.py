"""Manifests: unknown keys are named, wrong values refused, and what was read can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import ManifestError
from faas.manifest import (
    MAX_MANIFEST_BYTES,
    Limits,
    Manifest,
    manifest_from_builtins,
    manifest_from_toml,
    manifest_to_builtins,
)


def test_a_name_is_enough_and_gives_the_route() -> None:
    manifest = manifest_from_toml('name = "hello"')
    assert manifest.routes == ("/hello",)
    assert manifest.limits == Limits()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('name = "f"\nroute = "/f"', "route"),
        ('name = "f"\n[limits]\nmemory = 1', "memory"),
        ('name = "f"\n[capabilities]\nhttp = ["x"]', "http"),
    ],
)
def test_an_unknown_key_is_named(text: str, key: str) -> None:
    with pytest.raises(ManifestError, match=f"unknown key `{key}`"):
        manifest_from_toml(text)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({}, "name"),
        ({"name": "Hello"}, "name"),
        ({"name": "-x"}, "name"),
        ({"name": "x" * 64}, "name"),
        ({"name": "a/../b"}, "name"),
        ({"name": "f", "kind": "daemon"}, "kind"),
        ({"name": "f", "limits": {"timeout_s": 0}}, "limits.timeout_s"),
        ({"name": "f", "limits": {"cpu_s": -1}}, "limits.cpu_s"),
        ({"name": "f", "limits": {"memory_bytes": 1}}, "limits.memory_bytes"),
        ({"name": "f", "limits": {"max_concurrency": 0}}, "limits.max_concurrency"),
        ({"name": "f", "limits": {"max_body_bytes": "1 MiB"}}, "limits.max_body_bytes"),
        ({"name": "f", "warm": {"max": -1}}, "warm.max"),
        ({"name": "f", "warm": {"max": 1, "reuse": 0}}, "warm.reuse"),
        ({"name": "f", "warm": {"max": 1, "min": 2}}, "warm.min is 2 and warm.max 1"),
        ({"name": "f", "warm": {"reuse": 2}}, "set warm.max"),
        ({"name": "f", "routes": "/f"}, "routes"),
        ({"name": "f", "env": {"A": 1}}, "env"),
    ],
)
def test_a_wrong_value_is_refused_by_name(raw: dict[str, Any], key: str) -> None:
    with pytest.raises(ManifestError, match=key):
        manifest_from_builtins(raw)


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0y"}, {"A\0": "x"}])
def test_an_env_entry_that_no_environment_can_hold_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(ManifestError, match="env"):
        manifest_from_builtins({"name": "f", "env": env})


def test_a_wrong_route_is_refused() -> None:
    with pytest.raises(ManifestError, match="must begin with '/'"):
        manifest_from_builtins({"name": "f", "routes": ["f"]})


def test_what_is_not_toml_says_so() -> None:
    with pytest.raises(ManifestError, match="is not TOML"):
        manifest_from_toml("name: f")


def message_of(read: Callable[[], object]) -> str:
    """Return what a manifest error says, '' if there was none; anything else raised is a bug."""
    try:
        read()
    except ManifestError as exc:
        return exc.message
    return ""


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_any_builtins_give_a_manifest_or_a_manifest_error_of_one_line(raw: Any) -> None:
    assert "\n" not in message_of(lambda: manifest_from_builtins(raw))


@given(st.text(max_size=200))
def test_any_text_gives_a_manifest_or_a_manifest_error(text: str) -> None:
    message_of(lambda: manifest_from_toml(text))


def test_a_manifest_survives_being_written_and_read() -> None:
    manifest = manifest_from_toml(
        'name = "f"\nkind = "command"\nroutes = ["GET /a/{b}", "/c/*"]\npreinit = "init"\n'
        '[env]\nA = "ä"\n[limits]\ntimeout_s = 2.5\ncpu_s = 1\n'
    )
    written = msgspec.json.decode(msgspec.json.encode(manifest_to_builtins(manifest)))
    assert manifest_from_builtins(written) == manifest


def test_a_manifest_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Manifest(name="f").name = "g"


@pytest.mark.parametrize("raw", [{"name": "f\n"}, {"name": "f", "kind": "command\n"}, {"name": "f", "kind": "\n"}])
def test_a_newline_at_the_end_is_part_of_no_name(raw: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match=r"name|kind"):
        manifest_from_builtins(raw)


HALF = "\ud800"


@pytest.mark.parametrize(
    "raw",
    [
        *({"env": {"A": HALF}}, {"env": {HALF: "x"}}, {"routes": ["/" + HALF]}, {"module": HALF}, {HALF: 1}),
        *({"preinit": HALF}, {"files": HALF}, {"capabilities": {"models": [HALF]}}, {"name": HALF}),
    ],
)
def test_half_a_surrogate_pair_is_refused_in_a_message_that_can_be_sent(raw: dict[str, Any]) -> None:
    with pytest.raises(ManifestError) as caught:
        manifest_from_builtins({"name": "f", **raw})
    caught.value.message.encode()


def test_a_manifest_of_more_than_its_cap_is_refused_with_what_to_do() -> None:
    fits = {"name": "f", "env": {"A": "x" * (MAX_MANIFEST_BYTES - 100)}}
    manifest_from_builtins(fits)
    with pytest.raises(ManifestError, match="may take 65536; put what is large into a file"):
        manifest_from_builtins({**fits, "env": {"A": "x" * MAX_MANIFEST_BYTES}})
