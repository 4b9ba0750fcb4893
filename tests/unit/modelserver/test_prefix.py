"""The prefix cache: longest match, eviction order, and exact books of shared cells."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from faas.modelserver.prefix import Holding, PrefixCache, SavedPrefixes, longer_beginning


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


def ended(cache: PrefixCache, tokens: list[int]) -> Holding:
    """Hold *tokens* and retire at once."""
    holding = hold(cache, tokens)
    cache.retire(holding)
    return holding


def test_tidying_frees_from_the_top_what_nobody_shares() -> None:
    cache = PrefixCache(8)
    low, high = ended(cache, [1] * 40), ended(cache, [2] * 40)
    sharer = ended(cache, [1] * 40 + [3])
    assert cache.tidy(100) == [high, sharer]
    assert cache.filled == 40
    assert cache.match(low.tokens) == (low, 40)


def test_tidying_keeps_no_more_than_it_was_told_to() -> None:
    cache = PrefixCache(8)
    low, high = ended(cache, [1] * 40), ended(cache, [2] * 40)
    sharers = [ended(cache, [1] * 40 + [3]), ended(cache, [2] * 40 + [3])]
    assert cache.tidy(60) == [high, *sharers]
    assert cache.filled == 40
    assert cache.match(low.tokens)[0] is low


def test_what_nobody_shared_since_the_last_time_goes_with_all_above_it() -> None:
    cache = PrefixCache(8)
    low = ended(cache, [1] * 40)
    ended(cache, [1] * 40 + [3])
    cache.tidy(100)
    other = ended(cache, [2] * 40)
    assert cache.tidy(100) == [low, other]
    assert cache.filled == 0


def test_tidying_again_with_nothing_between_drops_nothing() -> None:
    cache = PrefixCache(8)
    low = ended(cache, [1] * 40)
    ended(cache, [1] * 40 + [3])
    cache.tidy(100)
    assert cache.tidy(100) == []
    assert cache.match(low.tokens) == (low, 40)
    assert cache.filled == 40


def test_what_nobody_shares_stays_below_something_that_is_shared() -> None:
    cache = PrefixCache(8)
    ended(cache, [1] * 40)
    ended(cache, [2] * 40)
    sharer = ended(cache, [2] * 40 + [3])
    assert cache.tidy(100) == [sharer]


def test_tidying_does_not_cut_between_those_that_ran_side_by_side() -> None:
    cache = PrefixCache(8)
    early, late = hold(cache, [1] * 40), hold(cache, [2] * 40)
    cache.fill(early, array("i", [1] * 2))
    for holding in (early, late, hold(cache, [1] * 42 + [3])):
        cache.retire(holding)
    assert len(cache.tidy(81)) == 3


def test_after_an_eviction_tidying_clears_all() -> None:
    cache = PrefixCache(8)
    low, high = ended(cache, [1] * 40), ended(cache, [2] * 40)
    sharer = ended(cache, [2] * 40 + [3])
    cache.forget(low)
    assert cache.tidy(1000) == [high, sharer]


def test_what_is_moved_lies_in_order_without_holes_and_shares_nothing() -> None:
    cache = PrefixCache(8)
    gone = ended(cache, [9] * 40)
    low = hold(cache, [1] * 40)
    high = hold(cache, [1] * 40 + [3])
    cache.forget(gone)
    assert cache.idle == []
    assert cache.restack() == [low, high]
    assert [(h.began_at, h.ended_at, h.n_shared) for h in (low, high)] == [(0, 40, 0), (40, 81, 0)]
    assert cache.filled == cache.cells_used == 81
    cache.retire(low)
    cache.retire(high)
    assert cache.tidy(1000) == [high]


def test_tidying_leaves_half_of_the_sequences_free() -> None:
    cache = PrefixCache(4)
    for n in range(3):
        ended(cache, [n] * 40)
    ended(cache, [2] * 40 + [9])
    cache.tidy(1000)
    assert cache.n_free >= 2


def test_a_cut_gives_back_what_was_filled_last() -> None:
    cache = PrefixCache(2)
    holding = hold(cache, [1, 2, 3])
    cache.cut(holding, 1)
    assert (list(holding.tokens), cache.filled, holding.ended_at) == ([1], 1, 1)


def saved(tokens: list[int], n_bytes: int = 10) -> tuple[array[int], memoryview]:
    return array("i", tokens), memoryview(bytes(n_bytes))


def test_the_longest_saved_beginning_is_found() -> None:
    store = SavedPrefixes(100)
    store.put(*saved([1, 2, 3]))
    store.put(*saved([1, 2, 9, 9]))
    state, tokens, n = store.match(array("i", [1, 2, 9, 4]))
    assert state is not None
    assert (list(tokens), n) == ([1, 2, 9, 9], 3)
    assert store.match(array("i", [7]))[2] == 0


def test_saved_ones_stay_within_their_memory_and_the_longest_unused_goes() -> None:
    store = SavedPrefixes(25)
    store.put(*saved([1]))
    store.put(*saved([2]))
    store.match(array("i", [1]))
    store.put(*saved([3]))
    assert store.n_bytes == 20
    assert [store.match(array("i", [n]))[2] for n in (1, 2, 3)] == [1, 0, 1]
    store.put(*saved([4], 26))
    assert len(store) == 2


def test_a_longer_one_takes_the_place_of_what_it_repeats() -> None:
    store = SavedPrefixes(100)
    store.put(*saved([1, 2]))
    store.put(*saved([1, 2, 3]))
    assert (len(store), store.n_bytes) == (1, 10)


def test_room_is_made_before_a_copy_by_dropping_what_it_repeats_and_the_longest_unused() -> None:
    store = SavedPrefixes(30)
    for tokens in ([1], [2], [3]):
        store.put(*saved(tokens))
    store.make_room(array("i", [2, 2]), 10)
    assert [store.match(array("i", [n]))[2] for n in (1, 2, 3)] == [1, 0, 1]
    store.make_room(array("i", [4]), 15)
    assert [store.match(array("i", [n]))[2] for n in (1, 2, 3)] == [0, 0, 1]
    assert store.n_bytes == 10


@given(st.lists(st.integers(0, 1), max_size=8), st.lists(st.integers(0, 1), max_size=8), st.integers(0, 9))
def test_a_longer_beginning_is_found_if_there_is_one(one: list[int], other: list[int], n: int) -> None:
    n_same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    n_known = min(n, n_same)
    assert longer_beginning(array("i", one), array("i", other), n_known) == n_same
    assert longer_beginning(array("i", one), array("i", other), n_same + n) == n_same + n


def test_only_what_adds_a_good_part_is_worth_saving() -> None:
    store = SavedPrefixes(100)
    long = array("i", range(400))
    assert store.adds(long, 0)
    assert not store.adds(long, 350)
    store.put(long, memoryview(bytes(10)))
    assert not store.adds(array("i", [*range(399), 7]), 0)
    assert not store.adds(array("i", range(20)), 0)
    assert not SavedPrefixes(0).adds(long, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=60))
def test_cells_stay_in_the_order_of_tokens_between_quiet_moments(steps: list[tuple[int, int]]) -> None:
    """A model of the library, which fills the lowest free cells upwards from where it last freed or filled."""
    cache, cells, live, head = PrefixCache(100), {}, [], 0
    for kind, n in steps:
        if kind == 0 or not live:  # a prompt joins
            tokens = array("i", [n] * 40 + [n * 7 + len(cells)] * n)
            source, n_shared = cache.match(tokens)
            holding = cache.open()
            if source is not None and n_shared:
                cache.adopt(holding, source, n_shared)
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
