"""Stop strings: found across token boundaries, and no byte lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from faas.modelserver.stops import StopWatch, Token

BYTES = st.binary(max_size=4).map(lambda raw: bytes(b"ab"[byte % 2] for byte in raw))


def run(pieces: list[bytes], stops: tuple[bytes, ...], *, hide: bool) -> tuple[bytes, int, bool]:
    """Return the text that goes out, how many tokens carried it, and whether it was stopped."""
    watch = StopWatch(stops, hide=hide)
    text, n = b"", 0
    for number, piece in enumerate(pieces):
        released, stopped = watch.feed(Token(number, piece))
        text += b"".join(token.piece for token in released)
        n += len(released)
        if stopped:
            return text, n, True
    rest = watch.flush()
    return text + b"".join(token.piece for token in rest), n + len(rest), False


def test_a_stop_string_over_three_tokens_is_found_and_cut() -> None:
    assert run([b"Hi us", b"er", b": x"], (b"user:",), hide=True) == (b"Hi ", 3, True)


def test_the_earliest_of_several_wins() -> None:
    assert run([b"abcdef"], (b"ef", b"cd"), hide=True) == (b"ab", 1, True)


def test_tokens_flow_while_nothing_is_suspect() -> None:
    watch = StopWatch((b"\n\n",), hide=True)
    assert [len(watch.feed(Token(0, piece))[0]) for piece in (b"a", b"b\n", b"c")] == [1, 0, 2]


@given(st.lists(BYTES), st.lists(st.sampled_from([b"ab", b"aab", b"bb", b"abab"]), min_size=1, max_size=3))
def test_what_goes_out_is_the_text_before_the_first_stop(pieces: list[bytes], stops: list[bytes]) -> None:
    text, n, stopped = run(pieces, tuple(stops), hide=True)
    whole = b"".join(pieces)
    places = [whole.find(stop) for stop in stops if stop in whole]
    assert stopped == bool(places)
    if not places:
        assert (text, n) == (whole, len(pieces))
    else:
        assert whole.startswith(text)
        assert not any(stop in text for stop in stops)


@given(st.lists(BYTES), st.sampled_from([b"ab", b"bba"]))
def test_shown_stops_hold_nothing_back(pieces: list[bytes], stop: bytes) -> None:
    watch = StopWatch((stop,), hide=False)
    text = b""
    for piece in pieces:
        released, stopped = watch.feed(Token(0, piece))
        text += released[0].piece
        assert stopped == (stop in text)
        if stopped:
            break
