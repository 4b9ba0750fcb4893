"""Guest threads take the guest that has computed least; who waits long enough gets his turn all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest

from faas.wasm import turns
from faas.wasm.turns import HEAD_START_S, Turns

MS = 1_000_000


class Busy:
    """One guest thread that is kept busy until ``release``, so that what is submitted meanwhile has to wait."""

    def __init__(self) -> None:
        self.turns = Turns(1)
        self._go_on = threading.Event()
        started = threading.Event()

        def hold(_rank: float) -> bool:
            started.set()
            return self._go_on.wait(30)

        self._first = self.turns.submit(0, hold)
        assert started.wait(30)

    def release(self) -> None:
        self._go_on.set()
        assert self._first.result(30)


@pytest.fixture
def busy() -> Iterator[Busy]:
    made = Busy()
    yield made
    made.release()
    made.turns.close()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stop the clock at a time, in seconds."""

    def set_to(now_s: float) -> None:
        monkeypatch.setattr(turns.time, "monotonic", lambda: now_s)

    set_to(1000.0)
    return set_to


def test_who_has_computed_least_comes_first(busy: Busy, at: Callable[[float], None]) -> None:
    order: list[int] = []
    futures = [
        busy.turns.submit(used_ms * MS, lambda _rank, used_ms=used_ms: order.append(used_ms) is None)
        for used_ms in (300, 2, 40, 0, 40)
    ]
    busy.release()
    assert [future.result(30) for future in futures] == [True] * 5
    assert order == [0, 2, 40, 40, 300]


def test_who_waits_for_long_comes_before_newer_ones_that_used_a_little_less(
    busy: Busy, at: Callable[[float], None]
) -> None:
    order: list[str] = []
    old = busy.turns.submit(20 * MS, lambda _rank: order.append("old") is None)
    at(1010.0)
    new = busy.turns.submit(2 * MS, lambda _rank: order.append("new") is None)
    busy.release()
    assert old.result(30)
    assert new.result(30)
    assert order == ["old", "new"]


def test_a_turn_ends_early_for_one_that_comes_well_before_it(busy: Busy, at: Callable[[float], None]) -> None:
    rank = 1000.0 * turns.AGING
    assert not busy.turns.should_end(rank, 60.0)  # nobody waits
    busy.turns.submit(0, lambda _rank: True)
    assert not busy.turns.should_end(rank, 0.9 * HEAD_START_S)
    assert busy.turns.should_end(rank, 1.1 * HEAD_START_S)


def test_what_was_cancelled_before_its_turn_never_runs(busy: Busy) -> None:
    ran: list[str] = []
    cancelled = busy.turns.submit(0, lambda _rank: ran.append("cancelled") is None)
    other = busy.turns.submit(0, lambda _rank: ran.append("other") is None)
    assert cancelled.cancel()
    busy.release()
    assert other.result(30)
    assert ran == ["other"]
    with pytest.raises(CancelledError):
        cancelled.result(30)


def test_what_a_turn_raises_is_its_futures(busy: Busy) -> None:
    def fail(_rank: float) -> bool:
        raise ValueError("no")

    failed = busy.turns.submit(0, fail)
    other = busy.turns.submit(0, lambda _rank: False)
    busy.release()
    with pytest.raises(ValueError, match="no"):
        failed.result(30)
    assert other.result(30) is False
