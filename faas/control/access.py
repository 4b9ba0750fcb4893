"""Who may use the admin API and who may invoke functions: tokens with roles, and invoke keys of functions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Iterator
from enum import Enum
from typing import Protocol

import msgspec

from faas.control.deployer import see_through
from faas.errors import ForbiddenError, TokenTakenError, UnauthorizedError
from faas.log import event
from faas.state.access import AccessStore
from faas.state.base import InvokeKeyEntry, TokenEntry
from faas.wire.messages import InvokeKey

HOME_TOKEN = "home"
"""As whom the token in the home acts; it is always an admin, and no other token may have that name."""
SECRET_BYTES = 32
"""Of randomness: a plain SHA-256 of it can't be searched, so no slow hash is needed."""

_logger = logging.getLogger(__name__)


class Role(str, Enum):
    """What a token may do; each role may do all that the one before it may."""

    READ = "read"
    DEPLOY = "deploy"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Whether who has this role may do what wants *needed*."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class Fleet(Protocol):
    """The workers, as far as invoke keys look."""

    async def set_invoke_keys(self, keys: tuple[InvokeKey, ...]) -> None:
        """Have every worker go by exactly *keys*; never fails."""


class Actor(msgspec.Struct, frozen=True):
    """Who sends a request to the admin API."""

    name: str
    role: Role


class Tokens:
    """
    The admin tokens of one host; lives as long as it. Changes are serial, and survive whoever asked for them.

    They are looked up by their SHA-256, so how long that takes says nothing about any of them.
    Thread: the control loop only.
    """

    def __init__(self, store: AccessStore, home_token: str) -> None:
        """Know the token in the home; ``load`` reads the others."""
        self._store = store
        self._home_sha256 = _sha256(home_token.encode())
        self._actors: dict[str, Actor] = {self._home_sha256: Actor(HOME_TOKEN, Role.ADMIN)}
        self._in_use: dict[str, set[asyncio.Task[object]]] = {}
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Go by what is kept now; log followers of tokens that are gone, or whose role changed, are cut off."""
        async with self._lock:
            await self._load()

    async def _load(self) -> None:
        before = self._actors
        found = {entry.sha256: Actor(entry.name, Role(entry.role)) for entry in await self._store.tokens()}
        self._actors = {**found, self._home_sha256: Actor(HOME_TOKEN, Role.ADMIN)}
        for sha256, actor in before.items():
            if self._actors.get(sha256) != actor:
                for task in self._in_use.get(sha256, ()):
                    task.cancel()

    def identify(self, authorization: str, needed: Role) -> tuple[Actor, str]:
        """
        Return who sends a request with that ``Authorization`` header, and the digest that ``using`` wants.

        Raises: UnauthorizedError; ForbiddenError if the role is below *needed*.
        """
        scheme, _, given = authorization.partition(" ")
        # aiohttp keeps bytes that are not UTF-8 as surrogates.
        sha256 = _sha256(given.strip().encode("utf-8", "surrogateescape"))
        actor = self._actors.get(sha256) if scheme.lower() == "bearer" else None
        if actor is None:
            raise UnauthorizedError(
                "the admin token is missing or wrong; send 'Authorization: Bearer TOKEN' with the content of "
                "the file 'token' in the host's home, or with a token that 'faas tokens add' printed"
            )
        if not actor.role.allows(needed):
            raise ForbiddenError(
                f"the token {actor.name!r} has the role {actor.role.value}, and this wants {needed.value}; use a token "
                "of that role",
                role=needed.value,
            )
        return actor, sha256

    @contextlib.contextmanager
    def using(self, sha256: str) -> Iterator[None]:
        """Have the current task cancelled if the token is removed within the block."""
        task = asyncio.current_task()
        assert task is not None
        tasks = self._in_use.setdefault(sha256, set())
        tasks.add(task)
        try:
            yield
        finally:
            tasks.discard(task)
            if not tasks and self._in_use.get(sha256) is tasks:
                del self._in_use[sha256]

    async def entries(self) -> tuple[TokenEntry, ...]:
        """Return every token but the one in the home, ordered by name."""
        return await self._store.tokens()

    async def add(self, name: str, role: Role) -> tuple[TokenEntry, str]:
        """
        Make a token, which is good when this returns; its text is returned and kept nowhere.

        Raises: TokenTakenError if a token has that name, or none may have it.
        """
        if name == HOME_TOKEN:
            raise TokenTakenError(f"{name!r} is the token in the host's home; choose another name")
        text = "faas-admin-" + secrets.token_urlsafe(SECRET_BYTES)
        entry = TokenEntry(name=name, sha256=_sha256(text.encode()), role=role.value)
        async with self._lock:
            return await see_through(self._add(entry)), text

    async def remove(self, name: str) -> None:
        """
        Forget the token *name*: it opens nothing when this returns, and what follows logs with it is cut off.

        Raises: TokenNotFoundError if there is none.
        """
        async with self._lock:
            await see_through(self._remove(name))

    async def _add(self, entry: TokenEntry) -> TokenEntry:
        kept = await self._store.add_token(entry)
        event(_logger, "token.added", token=entry.name, role=entry.role)
        await self._load()
        return kept

    async def _remove(self, name: str) -> None:
        await self._store.remove_token(name)
        event(_logger, "token.removed", token=name)
        await self._load()


class InvokeKeys:
    """The invoke keys of one host's functions; lives as long as it. Changes are serial, as those of ``Tokens``."""

    def __init__(self, store: AccessStore, fleet: Fleet) -> None:
        """Read nothing yet."""
        self._store = store
        self._fleet = fleet
        self._lock = asyncio.Lock()

    async def entries(self, function: str | None = None) -> tuple[InvokeKeyEntry, ...]:
        """Return every key, or those of *function*, ordered by function and name."""
        entries = await self._store.invoke_keys()
        return entries if function is None else tuple(entry for entry in entries if entry.function == function)

    async def keys(self) -> tuple[InvokeKey, ...]:
        """Return what workers are told."""
        return tuple(
            InvokeKey(entry.function, entry.name, entry.sha256, entry.requests_per_minute)
            for entry in await self._store.invoke_keys()
        )

    async def spread(self) -> None:
        """Have every worker go by what is kept now."""
        async with self._lock:
            await self._spread()

    async def _spread(self) -> None:
        await self._fleet.set_invoke_keys(await self.keys())

    async def add(self, function: str, name: str, requests_per_minute: int) -> tuple[InvokeKeyEntry, str]:
        """
        Make a key of *function*, which every worker takes when this returns; its text is returned and kept nowhere.

        Raises: KeyTakenError if the function has a key of that name.
        """
        text = "faas-fn-" + secrets.token_urlsafe(SECRET_BYTES)
        entry = InvokeKeyEntry(
            function=function, name=name, sha256=_sha256(text.encode()), requests_per_minute=requests_per_minute
        )
        async with self._lock:
            return await see_through(self._add(entry)), text

    async def remove(self, function: str, name: str) -> None:
        """
        Forget the key *name* of *function*; no worker takes it when this returns.

        Raises: KeyNotFoundError if there is none.
        """
        async with self._lock:
            await see_through(self._remove(function, name))

    async def forget_function(self, function: str, *, purge: bool, actor: str) -> None:
        """Have every worker go by the keys that are left: the state has forgotten those of a removed function."""
        del function, purge, actor
        await self.spread()

    async def _add(self, entry: InvokeKeyEntry) -> InvokeKeyEntry:
        kept = await self._store.add_invoke_key(entry)
        event(
            _logger,
            "invoke_key.added",
            function=entry.function,
            key=entry.name,
            requests_per_minute=entry.requests_per_minute,
        )
        await self._spread()
        return kept

    async def _remove(self, function: str, name: str) -> None:
        await self._store.remove_invoke_key(function, name)
        event(_logger, "invoke_key.removed", function=function, key=name)
        await self._spread()


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
