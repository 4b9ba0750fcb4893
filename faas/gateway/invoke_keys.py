"""Invoke keys: who may call a function that asks for one, how often, and what its guest is not shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from multidict import istr

from faas.errors import InvokeKeyError
from faas.gateway.metering import Meter
from faas.wire.messages import InvokeKey

HEADER: Final = istr("x-faas-key")
AUTHORIZATION: Final = istr("authorization")
NOTHING_HIDDEN: Final[frozenset[str]] = frozenset()
_KEY_HIDDEN: Final = frozenset(("x-faas-key",))
_BOTH_HIDDEN: Final = frozenset(("x-faas-key", "authorization"))


class _Key:
    """One key of one function; ``account`` is its name for the meter."""

    __slots__ = ("account", "per_minute")

    def __init__(self, key: InvokeKey) -> None:
        self.account = f"invoke:{key.function}:{key.name}"
        self.per_minute = key.requests_per_minute


class InvokeKeyRing:
    """
    The invoke keys that this worker goes by; lives as long as it, and ``replace`` changes all of them at once.

    Only hashes are kept. A key is looked up by its SHA-256 among those of its function, so how long that takes says
    nothing about any key.
    """

    def __init__(self, meter: Meter, keys: Iterable[InvokeKey] = ()) -> None:
        self._meter = meter
        self.by_function: dict[str, dict[bytes, _Key]] = {}
        """Only functions that have a key: whoever calls another one that asks for none is not looked at at all."""
        self._n_refused: dict[str, int] = {}
        self.replace(keys)

    def replace(self, keys: Iterable[InvokeKey]) -> None:
        """Go by exactly *keys* from now on."""
        by_function: dict[str, dict[bytes, _Key]] = {}
        for key in keys:
            by_function.setdefault(key.function, {})[bytes.fromhex(key.sha256)] = _Key(key)
        self.by_function = by_function

    def admit(self, function: str, headers: Mapping[str, str], *, needed: bool) -> frozenset[str]:
        """
        Count a request to *function* by the key that it carries; return the headers that its guest must not see.

        ``X-Faas-Key`` goes before ``Authorization``. Where no key is *needed*, one that is unknown counts as none.
        Raises: InvokeKeyError if a key is needed; RateLimitedError if it has used up its requests per minute.
        """
        given = headers.get(HEADER)
        hidden = _KEY_HIDDEN
        if given is None:
            scheme, _, given = headers.get(AUTHORIZATION, "").partition(" ")
            if scheme.lower() != "bearer":
                given = ""
            hidden = _BOTH_HIDDEN
        given = given.strip()
        key: _Key | None = None
        if given:
            # Bytes that are no UTF-8 are kept as surrogates.
            digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
            key = self.by_function.get(function, {}).get(digest)
        if key is None:
            if not needed:
                return _KEY_HIDDEN
            self._n_refused[function] = self._n_refused.get(function, 0) + 1
            raise InvokeKeyError(
                f"{function!r} asks for an invoke key, and "
                + ("this one is not one of its keys; check it" if given else "none was given")
                + "; send 'Authorization: Bearer KEY' or 'X-Faas-Key: KEY'"
            )
        self._meter.count_request(key.account, requests_per_minute=key.per_minute)
        return hidden

    def stats(self) -> dict[str, dict[str, float]]:
        """Return how many requests were refused for want of a key, by function."""
        return {function: {"key_refused": n} for function, n in self._n_refused.items()}
