"""API keys for the OpenAI-compatible endpoints: made here, shown once, kept as hashes, known to every worker."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from typing import Protocol

from faas.control.deployer import see_through
from faas.errors import KeyTakenError
from faas.log import event
from faas.state.base import KeyEntry
from faas.state.state import State
from faas.wire.messages import ApiKey

ANONYMOUS = "anonymous"
"""Who those are counted as that need no key, because there is none; no key may have that name."""
KEY_BYTES = 32
"""Of randomness: a plain SHA-256 of it can't be searched, so no slow hash is needed."""

_logger = logging.getLogger(__name__)


class Fleet(Protocol):
    """The workers, as far as keys look."""

    async def set_keys(self, keys: tuple[ApiKey, ...]) -> None:
        """Have every worker go by exactly *keys*; never fails."""


class KeyRing:
    """The keys of one host; lives as long as it. Changes are serial, and survive whoever asked for them."""

    def __init__(self, state: State, fleet: Fleet) -> None:
        """Read nothing yet."""
        self._state = state
        self._fleet = fleet
        self._lock = asyncio.Lock()

    async def entries(self) -> tuple[KeyEntry, ...]:
        """Return every key, ordered by name."""
        return await self._state.access.keys()

    async def keys(self) -> tuple[ApiKey, ...]:
        """Return what workers are told."""
        return tuple(
            ApiKey(name=entry.name, sha256=entry.sha256, tokens_per_minute=entry.tokens_per_minute)
            for entry in await self._state.access.keys()
        )

    async def spread(self) -> None:
        """Have every worker go by what is kept now."""
        async with self._lock:
            await self._fleet.set_keys(await self.keys())

    async def add(self, name: str, tokens_per_minute: int) -> tuple[KeyEntry, str]:
        """
        Make a key, which every worker takes when this returns; its text is returned and kept nowhere.

        Raises: KeyTakenError if a key has that name, or none may have it.
        """
        if name == ANONYMOUS:
            raise KeyTakenError(f"{name!r} is how requests without a key are counted; choose another name")
        text = "faas-" + secrets.token_urlsafe(KEY_BYTES)
        entry = KeyEntry(
            name=name, sha256=hashlib.sha256(text.encode()).hexdigest(), tokens_per_minute=tokens_per_minute
        )
        async with self._lock:
            return await see_through(self._add(entry)), text

    async def remove(self, name: str) -> None:
        """
        Forget the key *name*; no worker takes it when this returns.

        Raises: KeyNotFoundError if there is none.
        """
        async with self._lock:
            await see_through(self._remove(name))

    async def _add(self, entry: KeyEntry) -> KeyEntry:
        kept = await self._state.access.add_key(entry)
        event(_logger, "key.added", key=entry.name, tokens_per_minute=entry.tokens_per_minute)
        await self._fleet.set_keys(await self.keys())
        return kept

    async def _remove(self, name: str) -> None:
        await self._state.access.remove_key(name)
        event(_logger, "key.removed", key=name)
        await self._fleet.set_keys(await self.keys())
