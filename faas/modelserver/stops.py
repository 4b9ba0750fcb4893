"""Stop strings across token boundaries: holds back what may become one, and loses no byte of what does not."""

from __future__ import annotations

from typing import NamedTuple


class Token(NamedTuple):
    """One generated token on its way to the client."""

    id: int
    piece: bytes
    probs: tuple[tuple[int, bytes, float], ...] = ()


class StopWatch:
    """
    Watches one generation's text for its stop strings.

    With *hide* a token is held back while the text that ends in it may still become a stop string; without, every
    token is released at once, the stop string's own included.
    """

    __slots__ = ("_held", "_hide", "_longest", "_stops", "_text")

    def __init__(self, stops: tuple[bytes, ...], *, hide: bool) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._hide = hide
        self._longest = max(map(len, self._stops), default=0)
        self._held: list[Token] = []
        self._text = b""  # of the held tokens; without hiding, the last few bytes

    def feed(self, token: Token) -> tuple[list[Token], bool]:
        """Take the next token; return those that may go out now, and whether a stop string came."""
        if not self._stops:
            return [token], False
        self._text += token.piece
        found = min((at for stop in self._stops if (at := self._text.find(stop)) >= 0), default=-1)
        if not self._hide:
            self._text = self._text[-(self._longest - 1) :] if self._longest > 1 else b""
            return [token], found >= 0
        self._held.append(token)
        if found >= 0:
            return self._cut(found), True
        return self._release(len(self._text) - self._suspect()), False

    def flush(self) -> list[Token]:
        """Return what is still held back: the generation ended without a stop string."""
        held, self._held, self._text = self._held, [], b""
        return held

    def _suspect(self) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        for n in range(min(self._longest - 1, len(self._text)), 0, -1):
            tail = self._text[-n:]
            if any(stop.startswith(tail) for stop in self._stops):
                return n
        return 0

    def _release(self, n_safe: int) -> list[Token]:
        """Release the tokens that lie wholly in the first *n_safe* bytes."""
        n_tokens = n_bytes = 0
        for token in self._held:
            if n_bytes + len(token.piece) > n_safe:
                break
            n_bytes += len(token.piece)
            n_tokens += 1
        released, self._held = self._held[:n_tokens], self._held[n_tokens:]
        self._text = self._text[n_bytes:]
        return released

    def _cut(self, n_kept: int) -> list[Token]:
        """Release every held token, with the bytes from *n_kept* on taken away."""
        released = []
        for token in self._held:
            released.append(token._replace(piece=token.piece[:n_kept]))
            n_kept = max(0, n_kept - len(token.piece))
        self._held, self._text = [], b""
        return released
