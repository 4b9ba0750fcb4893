"""The prefix cache: longest match, eviction order, and exact books of shared cells."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from faas.modelserver.prefix import Holding, PrefixCache


def hold(cache: PrefixCache, tokens: list[int]) -> Holding:
    """Open a holding that shares what it can, as the scheduler does."""
    source, n = cache.match(array("i", tokens))
    if not cache.has_free:
        coldest = cache.coldest()
        assert coldest is not None
        if coldest is source:
            source, n = None, 0
        cache.forget(coldest)
    holding = cache.open()
    if source is not None and n:
        cache.adopt(holding, source, n)
    cache.fill(holding, array("i", tokens[n:]))
    return holding


def test_the_longest_prefix_is_found() -> None:
    cache = PrefixCache(8)
    hold(cache, [1, 2, 9])
    longest = hold(cache, [1, 2, 3, 4])
    assert cache.match(array("i", [1, 2, 3, 5])) == (longest, 3)
    assert cache.match(array("i", [7])) == (None, 0)


def test_shared_cells_are_counted_once() -> None:
    cache = PrefixCache(8)
    first = hold(cache, [1, 2, 3])
    hold(cache, [1, 2, 3, 4])
    assert cache.cells_used == 4
    first.live = False
    cache.forget(first)
    assert cache.cells_used == 4


def test_the_coldest_idle_one_goes_first() -> None:
    cache = PrefixCache(3)
    one, two, live = hold(cache, [1]), hold(cache, [2]), hold(cache, [3])
    cache.retire(one)
    cache.retire(two)
    cache.touch(one)
    assert cache.coldest() is two
    assert live.live


def test_what_another_repeats_keeps_its_cells_and_goes_first() -> None:
    cache = PrefixCache(4)
    other, short = hold(cache, [7]), hold(cache, [1, 2])
    cache.retire(other)
    cache.retire(short)
    long = hold(cache, [1, 2, 3])
    assert not cache.retire(long)
    assert cache.cells_used == 4
    assert cache.coldest() is short


def test_what_holds_nothing_is_forgotten_at_once() -> None:
    cache = PrefixCache(1)
    assert cache.retire(cache.open())
    assert cache.has_free


def test_tidying_frees_from_the_top() -> None:
    cache = PrefixCache(8)
    low, middle, high = hold(cache, [1] * 4), hold(cache, [2] * 4), hold(cache, [3] * 4)
    for holding in (low, middle, high):
        cache.retire(holding)
    assert cache.tidy(8) == [high]
    assert cache.filled == 8


def test_what_nobody_wants_any_more_is_tidied_away_with_all_above_it() -> None:
    cache = PrefixCache(8)
    low, middle = hold(cache, [1] * 4), hold(cache, [2] * 4)
    cache.retire(low)
    cache.retire(middle)
    assert cache.tidy(100) == []
    cache.touch(low)
    assert cache.tidy(100) == [middle]
    assert cache.tidy(100) == [low]
    assert cache.filled == 0


def test_tidying_does_not_cut_between_those_that_ran_side_by_side() -> None:
    cache = PrefixCache(8)
    early = hold(cache, [1] * 2)
    late = hold(cache, [2] * 2)
    cache.fill(early, array("i", [1] * 2))
    cache.retire(early)
    cache.retire(late)
    assert cache.tidy(3) == [early, late]


def test_after_an_eviction_tidying_clears_all() -> None:
    cache = PrefixCache(8)
    low, high = hold(cache, [1] * 4), hold(cache, [2] * 4)
    cache.retire(low)
    cache.retire(high)
    cache.forget(low)
    assert cache.tidy(100) == [high]


def test_tidying_leaves_half_of_the_sequences_free() -> None:
    cache = PrefixCache(4)
    for n in range(4):
        cache.retire(hold(cache, [n]))
    cache.tidy(100)
    assert cache.n_free == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=60))
def test_cells_stay_in_the_order_of_tokens_between_quiet_moments(steps: list[tuple[int, int]]) -> None:
    """A model of the library, which fills the lowest free cells upwards from where it last freed or filled."""
    cache, cells, live, head = PrefixCache(100), {}, [], 0
    for kind, n in steps:
        if kind == 0 or not live:  # a prompt joins
            tokens = array("i", [n] * 3 + [n * 7 + len(cells)] * n)
            source, n_shared = cache.match(tokens)
            holding = cache.open()
            if source is not None and n_shared:
                cache.adopt(holding, source, n_shared)
                cache.touch(source)
                cells[holding.sequence] = cells[source.sequence][:n_shared]
            else:
                n_shared, cells[holding.sequence] = 0, []
            fresh = len(tokens) - n_shared
            cache.fill(holding, tokens[n_shared:])
            cells[holding.sequence] = cells[holding.sequence] + list(range(head, head + fresh))
            head += fresh
            live.append(holding)
        elif kind < 3:  # one goes on
            holding = live[n % len(live)]
            cache.fill(holding, array("i", [100 + n]))
            cells[holding.sequence] = [*cells[holding.sequence], head]
            head += 1
        else:  # one ends; at a quiet moment there is tidying
            holding = live.pop(n % len(live))
            cache.retire(holding)
            if not live and n % 2:
                for gone in cache.tidy(head * 0.6):
                    cells.pop(gone.sequence)
                in_use = {cell for held in cells.values() for cell in held}
                head = max(in_use, default=-1) + 1
                assert in_use == set(range(head))  # no holes
                assert head <= cache.filled
        assert all(held == sorted(held) for held in cells.values())


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=25), st.randoms(use_true_random=False))
def test_cells_equal_a_model_that_tracks_each_one(prompts: list[list[int]], random: object) -> None:
    cache, cells, fresh = PrefixCache(5), {}, iter(range(10**6))
    for tokens in prompts:
        source, n = cache.match(array("i", tokens))
        if not cache.has_free:
            coldest = cache.coldest()
            assert coldest is not None
            if coldest is source:
                source, n = None, 0
            cells.pop(coldest.sequence)
            cache.forget(coldest)
        holding = cache.open()
        mine = list(cells[source.sequence][:n]) if source is not None and n else []
        if mine:
            assert source is not None
            cache.adopt(holding, source, n)
        mine += [next(fresh) for _ in tokens[n:]] if mine else [next(fresh) for _ in tokens]
        cache.fill(holding, array("i", tokens[len(holding.tokens) :]))
        cells[holding.sequence] = mine
        assert not cache.retire(holding)
        assert cache.cells_used == len({cell for held in cells.values() for cell in held})
