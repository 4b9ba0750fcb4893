"""Promises of wasi:cli, wasi:clocks and wasi:random."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from faas.errors import GuestTrapError
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.p2 import cli, clocks, io, random
from faas.wasi.p2.random import MAX_RANDOM_BYTES
from faas.wasi.streams import BytesInput, CollectingOutput, InputStream


class StoppedClock:
    """A clock that does not move."""

    def monotonic(self) -> float:
        return 12.5

    def time_ns(self) -> int:
        return 1_700_000_000_123_456_789


def make_guest(args: tuple[bytes, ...] = (), env: tuple[bytes, ...] = (), stdin: InputStream | None = None) -> Any:
    out, err = CollectingOutput(), CollectingOutput()
    return SimpleNamespace(wasi=WasiContext(args, env, stdin or BytesInput(b""), out, err, None, 0, StoppedClock()))


def run(functions: Any, interface: str, name: str, guest: Any, *args: Any) -> Any:
    return functions.FUNCTIONS[interface][name].call(guest, *args)


# wasi:cli


def test_the_environment_is_names_and_values() -> None:
    guest = make_guest(env=(b"A=1", b"EMPTY=", b"TWO=a=b", b"BARE", "Ü=é".encode(), b"BAD=\xff"))
    environment = run(cli, "wasi:cli/environment", "get-environment", guest)
    assert environment == [("A", "1"), ("EMPTY", ""), ("TWO", "a=b"), ("BARE", ""), ("Ü", "é"), ("BAD", "�")]


def test_no_environment_and_no_arguments_are_empty_lists() -> None:
    assert run(cli, "wasi:cli/environment", "get-environment", make_guest()) == []
    assert run(cli, "wasi:cli/environment", "get-arguments", make_guest()) == []


def test_the_arguments_are_texts() -> None:
    guest = make_guest(args=(b"hello", b"", b"x y"))
    assert run(cli, "wasi:cli/environment", "get-arguments", guest) == ["hello", "", "x y"]


def test_a_guest_begins_in_its_root() -> None:
    assert run(cli, "wasi:cli/environment", "initial-cwd", make_guest()) == "/"


@pytest.mark.parametrize(("status", "code"), [(("ok", None), 0), (("err", None), 1)])
def test_exit_ends_the_guest(status: tuple[str, None], code: int) -> None:
    with pytest.raises(GuestExit) as caught:
        run(cli, "wasi:cli/exit", "exit", make_guest(), status)
    assert caught.value.code == code


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exit_with_code_keeps_the_code(code: int) -> None:
    with pytest.raises(GuestExit) as caught:
        run(cli, "wasi:cli/exit", "exit-with-code", make_guest(), code)
    assert caught.value.code == code


def test_all_handles_on_stdin_read_one_stream() -> None:
    guest = make_guest(stdin=BytesInput(b"abcdef"))
    first = run(cli, "wasi:cli/stdin", "get-stdin", guest)
    second = run(cli, "wasi:cli/stdin", "get-stdin", guest)
    assert first.ready()  # a look that must not lose bytes
    read = io.FUNCTIONS["wasi:io/streams"]["[method]input-stream.read"].call
    assert read(guest, second, 2) == b"ab"
    assert read(guest, first, 2) == b"cd"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_an_output_goes_where_the_context_says(name: str) -> None:
    guest = make_guest()
    stream = run(cli, f"wasi:cli/{name}", f"get-{name}", guest)
    io.FUNCTIONS["wasi:io/streams"]["[method]output-stream.write"].call(guest, stream, b"hi")
    assert getattr(guest.wasi, name).getvalue() == b"hi"


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_nothing_is_a_terminal(name: str) -> None:
    assert run(cli, f"wasi:cli/terminal-{name}", f"get-terminal-{name}", make_guest()) is None


# wasi:clocks


def test_the_wall_clock_is_seconds_and_nanoseconds() -> None:
    assert run(clocks, "wasi:clocks/wall-clock", "now", make_guest()) == (1_700_000_000, 123_456_789)
    assert run(clocks, "wasi:clocks/wall-clock", "resolution", make_guest()) == (0, 1000)


def test_the_monotonic_clock_is_nanoseconds() -> None:
    assert run(clocks, "wasi:clocks/monotonic-clock", "now", make_guest()) == 12_500_000_000
    assert run(clocks, "wasi:clocks/monotonic-clock", "resolution", make_guest()) == 1000


def test_the_timezone_is_utc() -> None:
    assert run(clocks, "wasi:clocks/timezone", "display", make_guest(), (0, 0)) == (0, "UTC", False)
    assert run(clocks, "wasi:clocks/timezone", "utc-offset", make_guest(), (0, 0)) == 0


# wasi:random


@pytest.mark.parametrize(
    ("interface", "name"), [("random", "get-random-bytes"), ("insecure", "get-insecure-random-bytes")]
)
def test_random_bytes_are_as_many_as_asked_for_and_fresh(interface: str, name: str) -> None:
    guest = make_guest()
    assert run(random, f"wasi:random/{interface}", name, guest, 0) == b""
    drawn = {run(random, f"wasi:random/{interface}", name, guest, 32) for _ in range(10)}
    assert len(drawn) == 10
    assert {len(content) for content in drawn} == {32}


def test_random_bytes_are_bounded() -> None:
    assert len(run(random, "wasi:random/random", "get-random-bytes", make_guest(), MAX_RANDOM_BYTES)) == 1 << 20
    with pytest.raises(GuestTrapError, match="ask for fewer"):
        run(random, "wasi:random/random", "get-random-bytes", make_guest(), 2**64 - 1)


def test_random_numbers_use_all_64_bits() -> None:
    guest = make_guest()
    for interface, name in (("random", "get-random-u64"), ("insecure", "get-insecure-random-u64")):
        drawn = [run(random, f"wasi:random/{interface}", name, guest) for _ in range(200)]
        assert all(0 <= number < 2**64 for number in drawn)
        union = 0
        for number in drawn:
            union |= number
        assert union == 2**64 - 1


def test_the_seed_is_two_numbers() -> None:
    guest = make_guest()
    seeds = {run(random, "wasi:random/insecure-seed", "insecure-seed", guest) for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= part < 2**64 for seed in seeds for part in seed)
