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
    holding.tokens.extend(tokens[n:])
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
        holding.tokens.extend(tokens[len(holding.tokens) :])
        cells[holding.sequence] = mine
        assert not cache.retire(holding)
        assert cache.cells_used == len({cell for held in cells.values() for cell in held})
