"""Which of two versions answers a request: by weight, and the same one for the same client where that is asked for."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final

from multidict import istr

from faas.invocation import LIVE, STICKY_COOKIE, STICKY_HEADER, Alias
from faas.routes import Route

_COOKIE_HEADER = istr("cookie")
_STRIDE: Final = 61.8033988749895
"""100 / φ: multiples of it, modulo 100, spread evenly, also every second or every seventh of them."""


class Choice:
    """
    One alias' weights as a worker goes by them; lives as long as they do. Thread: the loop.

    Every request has a point from 0 up to 100, and the second version answers if that is below its weight. A client
    that is known by a header or by a cookie keeps its point, on all workers and hosts: it changes sides at most once
    while a weight only grows, or only shrinks. Other requests take their points in turns, so that shares are exact
    already for few of them.
    """

    __slots__ = ("_at", "_cookie", "_cookie_rest", "_header", "_salt", "alias")

    def __init__(self, alias: Alias, routes: Iterable[Route] = ()) -> None:
        """Args: *routes* are those of both versions, for the cookie's path."""
        self.alias = alias
        # Of this very pair: the clients that try one version first need not be those that try the next one first.
        self._salt = f"{alias.function}\0{alias.alias}\0{alias.other}\0"
        self._at = random.random() * 100  # workers don't take turns in step
        self._header: istr | None = None
        self._cookie = self._cookie_rest = ""
        if alias.sticky == STICKY_COOKIE:
            self._header = _COOKIE_HEADER
            self._cookie = cookie_name(alias)
            self._cookie_rest = f"; Path={common_path(routes)}; HttpOnly; SameSite=Lax"
        elif alias.sticky.startswith(STICKY_HEADER):
            self._header = istr(alias.sticky.removeprefix(STICKY_HEADER).lower())

    def pick(self, headers: Mapping[str, str] | None) -> tuple[bool, str]:
        """
        Return whether the second version answers a request, and a cookie that its reply is to set, '' for none.

        Args: *headers* of None: a request that is nobody's, such as a job.
        """
        header = self._header
        if header is None or headers is None:
            return self._next() < self.alias.weight, ""
        text = headers.get(header, "")
        if not self._cookie:
            point = self.point_of(text) if text else self._next()
            return point < self.alias.weight, ""
        client = _cookie_of(text, self._cookie)
        if client:
            return self.point_of(client) < self.alias.weight, ""
        client = f"{random.getrandbits(64):016x}"
        return self.point_of(client) < self.alias.weight, f"{self._cookie}={client}{self._cookie_rest}"

    def point_of(self, client: str) -> float:
        """Return the point of who is known as *client*."""
        digest = blake2b((self._salt + client).encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") * (100 / 2**64)

    def _next(self) -> float:
        at = self._at = (self._at + _STRIDE) % 100.0
        return at


def cookie_name(alias: Alias) -> str:
    """Return the name of the cookie that keeps clients of *alias* on their side."""
    return f"faas-split.{alias.function}" + ("" if alias.alias == LIVE else f".{alias.alias}")


def common_path(routes: Iterable[Route]) -> str:
    """Return the longest path that all *routes* are below, parameters and trailing ``*`` left out."""
    common: list[str] | None = None
    for route in routes:
        literal: list[str] = []
        for segment in route.segments:
            if segment.startswith("{"):
                break
            literal.append(segment)
        if common is None:
            common = literal
        else:
            n = next(
                (i for i, (a, b) in enumerate(zip(common, literal, strict=False)) if a != b),
                min(len(common), len(literal)),
            )
            common = common[:n]
    # A semicolon ends an attribute, and a browser would cut it off there: the part before it has to do.
    whole = "/" + "/".join(common or [])
    return whole.partition(";")[0] or "/"


def _cookie_of(text: str, name: str) -> str:
    for part in text.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""
