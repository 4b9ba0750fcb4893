"""Promises of wasi:config and wasi:logging: the environment to read, and lines in the function's log."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from faas.clock import SystemClock
from faas.wasi import wit
from faas.wasi.context import WasiContext
from faas.wasi.p2 import config, logging
from faas.wasi.p2.keyvalue import Granted
from faas.wasi.p2.logging import MAX_CONTEXT_CHARS, MAX_MESSAGE_CHARS
from faas.wasi.streams import DiscardedOutput, EmptyInput, LineOutput

STORE = "wasi:config/store@0.2.0-rc.1"
LOGGING = "wasi:logging/logging@0.1.0-draft"


class FakeGuest:
    """An instance without an engine, with two variables and a log."""

    def __init__(self, env: tuple[bytes, ...] = (b"MODE=dark", b"URL=http://x/?a=b", b"EMPTY=")) -> None:
        self.lines: list[bytes] = []
        self.granted: Granted | None = None
        stderr = LineOutput(self.lines.append, 1 << 20, 1 << 16)
        self.wasi = WasiContext((), env, EmptyInput(), DiscardedOutput(), stderr, None, 0, SystemClock())

    def config(self, name: str, *args: str) -> Any:
        return config.FUNCTIONS[STORE][name].call(self, *args)

    def log(self, level: str, context: str, message: str) -> None:
        assert logging.FUNCTIONS[LOGGING]["log"].call(self, level, context, message) is None


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


def test_the_registries_have_the_functions_of_their_packages() -> None:
    registered = {**config.FUNCTIONS, **logging.FUNCTIONS}
    for interface, functions in registered.items():
        wanted = wit.interfaces()[interface].functions
        assert set(functions) == set(wanted)
        for name, function in functions.items():
            assert len(inspect.signature(function.call).parameters) == 1 + len(wanted[name].params)


def test_a_key_has_its_value_or_none(guest: FakeGuest) -> None:
    assert guest.config("get", "MODE") == "dark"
    assert guest.config("get", "URL") == "http://x/?a=b"
    assert guest.config("get", "EMPTY") == ""
    assert guest.config("get", "mode") is None
    assert guest.config("get", "") is None


def test_all_keys_come_once(guest: FakeGuest) -> None:
    assert guest.config("get-all") == [("MODE", "dark"), ("URL", "http://x/?a=b"), ("EMPTY", "")]
    assert FakeGuest(()).config("get-all") == []


def test_a_granted_secret_is_found_by_its_name_and_not_among_all(guest: FakeGuest) -> None:
    secrets = {("f", "TOKEN"): "geheim", ("f", "MODE"): "hidden", ("f", "OTHER"): "not granted"}
    guest.granted = Granted("f", (), ("TOKEN", "MODE", "UNSET"), None, lambda *of: secrets.get(of))
    assert guest.config("get", "TOKEN") == "geheim"
    assert guest.config("get", "OTHER") is None
    assert guest.config("get", "UNSET") is None
    assert guest.config("get", "MODE") == "dark"  # a variable of that name comes first
    assert [name for name, _ in guest.config("get-all")] == ["MODE", "URL", "EMPTY"]


def test_a_message_is_a_line_with_its_level_and_context(guest: FakeGuest) -> None:
    guest.log("warn", "db", "slow quéry")
    guest.log("critical", "", "down\n")
    assert guest.lines == ["warn db: slow quéry".encode(), b"critical: down"]


def test_a_context_stays_on_its_line(guest: FakeGuest) -> None:
    guest.log("info", "a\nerror b", "x")
    assert guest.lines == [b"info a error b: x"]


def test_a_message_of_several_lines_keeps_them(guest: FakeGuest) -> None:
    guest.log("error", "py", "Traceback\n  boom\n\n")
    assert guest.lines == [b"error py: Traceback", b"  boom"]


def test_what_is_too_long_is_cut(guest: FakeGuest) -> None:
    guest.log("info", "c" * 2 * MAX_CONTEXT_CHARS, "m" * 2 * MAX_MESSAGE_CHARS)
    assert guest.lines == [b"info " + b"c" * MAX_CONTEXT_CHARS + b": " + b"m" * MAX_MESSAGE_CHARS]


def test_a_message_of_more_lines_than_one_write_takes_is_whole(guest: FakeGuest) -> None:
    guest.log("info", "", "x\n" * 1000)
    assert len(guest.lines) == 1000


def test_a_warning_is_given_once_by_each_instance() -> None:
    first, second = FakeGuest(), FakeGuest()
    for guest in (first, first, second):
        guest.wasi.warn_once("mind the gap")
    first.wasi.warn_once("and the step")
    assert first.lines == [b"mind the gap", b"and the step"]
    assert second.lines == [b"mind the gap"]
