"""What the scheduler asks of a model and of its prefixes, and how often: over the fake model, step by step."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faas.modelserver.backends.base import LoadOptions
from faas.modelserver.counters import Counters, FunctionCounters
from faas.modelserver.generation import Generation, Key
from faas.modelserver.prefix import Holding, PrefixCache
from faas.modelserver.scheduler import Scheduler
from faas.testing.fake_backend import FakeFile, FakeModel
from faas.wire.models import Final, Finish, Generate, Piece, Sampling

TOKEN_BYTES = 4  # of a saved one, with the fake model


class StillClock:
    """Time stands still."""

    def monotonic(self) -> float:
        return 0.0


class Bench:
    """A scheduler over one fake model, and the books of what it asked for."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        n_slots: int = 8,
        n_cells: int = 2048,
        saved: int = 10**6,
        moves: bool = True,
    ) -> None:
        """Args: *moves* is whether live cells are moved to the bottom, which saves idle ones a few at a time."""
        self.patch = monkeypatch
        self.model = FakeModel(FakeFile(n_ctx=n_cells), LoadOptions(n_ctx=n_cells, n_slots=n_slots, n_cells=n_cells))
        self.ended: dict[int, Final] = {}
        counters = Counters(FunctionCounters())
        self.scheduler = Scheduler(self.model, n_slots, counters, StillClock(), self._hear, saved_bytes=saved)
        self.n_copies = 0
        self.n_matches = 0
        copy, match = self.model.save, PrefixCache.match

        def save(sequence: int) -> memoryview:
            self.n_copies += 1
            return copy(sequence)

        def look(cache: PrefixCache, tokens: array[int], *, but: Holding | None = None) -> tuple[Holding | None, int]:
            self.n_matches += 1
            return match(cache, tokens, but=but)

        if not moves:
            monkeypatch.setattr(self.scheduler, "_compact", lambda: None)
        monkeypatch.setattr(self.model, "save", save)
        monkeypatch.setattr(PrefixCache, "match", look)

    def _hear(self, _connection: object, message: Piece | Final) -> None:
        if isinstance(message, Final):
            self.ended[message.id] = message

    def submit(self, prompt: bytes, number: int = 1, max_tokens: int = 1) -> Generation:
        sampling = Sampling(temperature=0.0, ignore_eos=True)
        request = Generate(number, "m", "f", prompt, add_special=False, max_tokens=max_tokens, sampling=sampling)
        generation = Generation(Key("c", number), request, float(number))
        self.scheduler.submit(generation)
        return generation

    def submit_and_run(self, prompt: bytes, max_tokens: int) -> Generation:
        generation = self.submit(prompt, max_tokens=max_tokens)
        while not self.scheduler.is_idle:
            self.scheduler.step()
        return generation

    def run(self, prompts: Sequence[bytes]) -> list[Final]:
        """Serve *prompts* side by side, until nothing is left to do."""
        first = len(self.ended)
        for number, prompt in enumerate(prompts, first):
            self.submit(prompt, number)
        while not self.scheduler.is_idle:
            self.scheduler.step()
        return [self.ended[number] for number in range(first, first + len(prompts))]

    @property
    def saved_bytes(self) -> float:
        return self.scheduler.gauges()["saved_bytes"]


def test_what_is_over_the_maximum_is_not_even_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, saved=500 * TOKEN_BYTES, moves=False)
    bench.run([b"a" * 600])
    assert bench.scheduler.gauges()["cells_used"] == 0
    assert (bench.n_copies, bench.saved_bytes) == (0, 0)
    bench.run([b"b" * 400, b"c" * 400])
    assert (bench.n_copies, bench.saved_bytes) == (1, 400 * TOKEN_BYTES)


def test_of_what_leaves_together_the_longest_stay_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, saved=1000 * TOKEN_BYTES, moves=False)
    bench.run([b"a" * 300, b"b" * 500, b"c" * 100])
    assert bench.saved_bytes == 900 * TOKEN_BYTES
    bench.run([b"d" * 520])  # in the place of the two short ones
    assert bench.saved_bytes == 520 * TOKEN_BYTES
    bench = Bench(monkeypatch, saved=1000 * TOKEN_BYTES, moves=False)
    bench.run([b"a" * 300, b"b" * 500, b"c" * 100])
    bench.run([b"d" * 515, b"e" * 5])
    assert [final.n_cached_tokens for final in bench.run([b"b" * 480, b"a" * 280])] == [0, 0]


def test_what_leaves_together_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, n_cells=1000)
    bench.run([b"a" * 600, b"a" * 560, b"b" * 40])
    assert bench.n_copies == 2
    assert bench.saved_bytes == (600 + 40) * TOKEN_BYTES


def test_those_that_wait_for_a_prefix_cost_no_search_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    waiting = [bench.submit(b"x" * 1000 + b"%d" % number, number) for number in range(1, 51)]
    bench.scheduler.step()
    bench.n_matches = 0
    while waiting[0].n_past < 800:
        bench.scheduler.step()
    assert bench.n_matches == 0
    assert all(generation.holding is None for generation in waiting[1:])
    while not bench.scheduler.is_idle:
        bench.scheduler.step()
    assert bench.n_matches <= 10 * len(waiting)
    assert {final.n_cached_tokens for number, final in bench.ended.items() if number > 1} <= {1000, 1001}


def test_those_that_wait_for_a_prefix_go_on_when_its_request_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    first, second = bench.submit(b"x" * 1000, 1), bench.submit(b"x" * 1000, 2)
    bench.scheduler.step()
    assert second.holding is None
    first.cancelled = True
    bench.scheduler.step()
    assert second.n_past > 0
    while not bench.scheduler.is_idle:
        bench.scheduler.step()
    assert bench.ended[2].finish is Finish.LENGTH


def test_those_that_wait_for_a_prefix_go_on_when_its_request_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    first, second = bench.submit(b"x" * 1000, 1), bench.submit(b"x" * 1000, 2)
    bench.scheduler.step()
    first.is_limited, first.credit = True, 0
    while 2 not in bench.ended:
        bench.scheduler.step()
    assert first.n_past < 1000
    assert bench.ended[2].finish is Finish.LENGTH
    assert second.n_cached > 0


def test_quiet_steps_do_not_drop_what_the_last_tidying_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    bench.run([b"s" * 600])
    bench.run([b"s" * 600 + b"one", b"s" * 600 + b"two"])
    kept = bench.scheduler.gauges()["cells_used"]
    assert kept >= 600
    for _ in range(3):
        bench.scheduler.step()
    assert bench.scheduler.gauges()["cells_used"] == kept


def served_without_pause(bench: Bench, n_requests: int) -> int:
    """Serve two at a time, of unequal lengths, the next joining as one ends; return up to where cells were filled."""
    numbers = iter(range(n_requests))
    n_open = top = 0
    while len(bench.ended) < n_requests:
        while n_open - len(bench.ended) < 2 and (number := next(numbers, None)) is not None:
            bench.submit(b"%03d" % number * 33, number, max_tokens=10 + 7 * (number % 3))
            n_open += 1
        bench.scheduler.step()
        top = max(top, bench.scheduler._cache.filled)
    return top


def test_idle_cells_do_not_pile_up_below_those_who_always_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    assert served_without_pause(bench, 60) < 1000  # of some 7,000
    assert {final.finish for final in bench.ended.values()} == {Finish.LENGTH}
    (again,) = bench.run([b"007" * 33])
    assert again.n_cached_tokens == 98  # it was saved


def test_cells_are_not_moved_where_the_copy_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, n_cells=8192, saved=TOKEN_BYTES)
    assert served_without_pause(bench, 60) > 1000
    assert bench.n_copies == 0


def test_a_generation_goes_on_as_before_when_its_cells_were_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Bench(monkeypatch).submit_and_run(b"hello", 100)
    bench = Bench(monkeypatch)
    mine = bench.submit(b"hello", 999, max_tokens=100)
    bench.scheduler.step()
    held = mine.holding
    for number in range(10):
        bench.submit(b"%03d" % number * 60, number)
        while number not in bench.ended:
            bench.scheduler.step()
    assert held is not None
    assert held.ended_at - held.began_at < 1000
    assert bench.saved_bytes > 0
    while 999 not in bench.ended:
        bench.scheduler.step()
    assert mine.context == alone.context


def moved(bench: Bench) -> list[tuple[int, int]]:
    """Return a list that will have the cells in use before and after each time that live ones are moved."""
    noted: list[tuple[int, int]] = []
    compact = bench.scheduler._compact

    def note() -> None:
        before, start = bench.model.cells_used, bench.model._next_cell
        compact()
        if bench.model._next_cell > start:
            noted.append((before, bench.model.cells_used))

    bench.patch.setattr(bench.scheduler, "_compact", note)
    return noted


def refuse(bench: Bench, refused: set[int]) -> None:
    """Let the model restore nothing at the calls whose numbers are in *refused*."""
    restore, calls = bench.model.restore, iter(range(10**6))

    def restore_or_not(sequence: int, saved: memoryview) -> bool:
        return next(calls) not in refused and restore(sequence, saved)

    bench.patch.setattr(bench.model, "restore", restore_or_not)


def check_books(bench: Bench) -> None:
    """Compare what the scheduler holds with what the model has, token by token."""
    cache, model = bench.scheduler._cache, bench.model
    assert model.cells_used == cache.cells_used <= model.n_cells
    held = {sequence: list(holding.tokens) for sequence, holding in cache._holdings.items() if holding.tokens}
    assert held == {s: [token for token, _ in cells] for s, cells in model._sequences.items() if cells}


PROMPT = bytes(33 + (i * i * 7 + i) % 90 for i in range(1000))


def test_what_two_idle_sequences_share_is_saved_when_both_go(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, n_cells=4096)
    moves = moved(bench)
    bench.submit(b"unrelated", 999, max_tokens=300)
    bench.scheduler.step()
    for number, question in enumerate((b"first question", b"second one, longer than the first", b"third")):
        bench.submit(PROMPT[:480] + question, number)
        while number not in bench.ended:
            bench.scheduler.step()
    assert moves
    assert [bench.ended[number].n_cached_tokens for number in range(3)] == [0, 480, 480]


@pytest.mark.parametrize(("n_shared", "n_cells"), [(140, 1024), (300, 4096), (600, 4096)])
def test_those_who_share_are_not_moved_where_they_would_need_more_cells(
    monkeypatch: pytest.MonkeyPatch, n_shared: int, n_cells: int
) -> None:
    bench = Bench(monkeypatch, n_cells=n_cells)
    moves = moved(bench)
    n_sent = 0
    while len(bench.ended) < 150:
        while n_sent - len(bench.ended) < 8:
            bench.submit(PROMPT[:n_shared] + b"user %05d asks" % n_sent, n_sent, max_tokens=20 + n_sent * 7 % 40)
            n_sent += 1
        bench.scheduler.step()
        check_books(bench)
    assert moves == []
    assert {final.finish for final in bench.ended.values()} == {Finish.LENGTH}


def test_one_whose_cells_do_not_come_back_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {text: Bench(monkeypatch).submit_and_run(text, 400).context for text in (b"hello", b"world")}
    bench = Bench(monkeypatch)
    moves = moved(bench)
    refuse(bench, {0})
    mine = {text: bench.submit(text, number, max_tokens=400) for number, text in enumerate(alone, 900)}
    preempted = set()
    for number in range(100):
        bench.submit(b"%03d" % number * 60, number)
        while number not in bench.ended:
            bench.scheduler.step()
            check_books(bench)
            preempted |= {text for text, one in mine.items() if one.n_generated and one.holding is None}
            if moves:
                break
        if moves:
            break
    assert preempted == {b"hello"}
    while not bench.scheduler.is_idle:
        bench.scheduler.step()
        check_books(bench)
    assert {text: one.context for text, one in mine.items()} == alone
    assert {final.finish for final in bench.ended.values()} == {Finish.LENGTH}


def test_moving_that_can_not_be_done_is_not_tried_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, n_cells=8192, saved=TOKEN_BYTES)
    copies, asked = bench.scheduler._copies, []

    def copies_of(sequences: list[int]) -> dict[int, memoryview] | None:
        asked.append(sequences)
        return copies(sequences)

    monkeypatch.setattr(bench.scheduler, "_copies", copies_of)
    n_requests, n_tokens = 60, 99 + 10 + 7 * 2
    served_without_pause(bench, n_requests)
    assert 0 < len(asked) <= n_requests * n_tokens // 512


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([0, 20, 60, 100]),  # tokens of the beginning that all share
        st.integers(0, 5),  # which text follows
        st.integers(1, 80),  # its length
        st.integers(1, 70),  # tokens to generate
    ),
    min_size=8,
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(
    REQUESTS,
    st.integers(2, 10),
    st.sampled_from([256, 320, 640]),
    st.sampled_from([0, 200, 10**5]),
    st.sets(st.integers(0, 12), max_size=4),
)
def test_every_generation_ends_as_it_does_alone_however_short_cells_are(
    requests: list[tuple[int, int, int, int]], n_slots: int, n_cells: int, saved: int, refused: set[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        bench = Bench(patch, n_slots=n_slots, n_cells=n_cells, saved=saved * TOKEN_BYTES)
        moves = moved(bench)
        refuse(bench, refused)
        running: list[tuple[Generation, bytes, int]] = []
        texts = [(PROMPT[:n] + bytes([65 + which]) * length, wanted) for n, which, length, wanted in requests]
        while len(bench.ended) < len(texts):
            while len(running) < len(texts) and len(running) - len(bench.ended) <= n_slots:
                text, wanted = texts[len(running)]
                running.append((bench.submit(text, len(running), wanted), text, wanted))
            bench.scheduler.step()
            check_books(bench)
        assert {final.finish for final in bench.ended.values()} == {Finish.LENGTH}
        assert all(2 * after < before for before, after in moves)
        for generation, text, wanted in running:
            assert generation.context == Bench(patch, n_cells=n_cells).submit_and_run(text, wanted).context
