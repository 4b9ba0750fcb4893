"""API keys of the OpenAI-compatible endpoints: who is calling, and what they may spend."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

import msgspec

from faas.errors import InvalidApiKeyError
from faas.wire.messages import ApiKey

ANONYMOUS = "anonymous"


class Caller(msgspec.Struct, frozen=True):
    """Who a request is counted and limited as; ``tokens_per_minute`` 0 means no limit."""

    name: str
    tokens_per_minute: int = 0

    @property
    def payer(self) -> str:
        """The name under which the meter and the model server know the caller."""
        return f"key:{self.name}"


class KeyRing:
    """
    The keys that open the endpoints; lives as long as its worker, and ``replace`` changes all of them at once.

    Without any key the endpoints are open, but only to this machine unless ``open_to_all``: a host that listens on
    a network needs keys. Only hashes are kept, and every one is compared, each in constant time.
    """

    def __init__(self, keys: Iterable[ApiKey] = (), *, open_to_all: bool = False) -> None:
        self._open_to_all = open_to_all
        self._keys: tuple[tuple[bytes, Caller], ...] = ()
        self.replace(keys)

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Let exactly *keys* open the endpoints from now on."""
        self._keys = tuple((key.sha256.lower().encode(), Caller(key.name, key.tokens_per_minute)) for key in keys)

    def identify(self, authorization: str, peer: str | None) -> Caller:
        """
        Return who sends a request with that ``Authorization`` header from the address *peer*.

        Raises: InvalidApiKeyError.
        """
        if not self._keys:
            if self._open_to_all or _is_loopback(peer):
                return Caller(ANONYMOUS)
            raise InvalidApiKeyError(
                "this host has no API keys, so its models answer only to the machine itself; add a key first"
            )
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise InvalidApiKeyError(
                "no API key was given; send it in a header: 'Authorization: Bearer YOUR_KEY'",
            )
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest().encode()
        found: Caller | None = None
        for known, caller in self._keys:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise InvalidApiKeyError("the API key is not one of this host's; check it, or ask for a new one")
        return found


def _is_loopback(peer: str | None) -> bool:
    if not peer:
        return True  # a unix socket
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
