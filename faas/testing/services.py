"""The ports of ``faas.guest`` in memory, for tests of functions and of the host: no process, no socket, no file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from faas.guest.errno import Errno, GuestError
from faas.guest.ports import GuestRequest, Headers, JobOptions, KeyPage, Ports

_LARGEST = 2**63 - 1


class MemoryKv:
    """A KvPort: stores of functions, each open to its function alone unless ``grants`` has (caller, store)."""

    def __init__(self, now: Callable[[], float] = lambda: 0.0) -> None:
        """Args: *now* in seconds."""
        self._now = now
        self._stores: dict[str, dict[str, tuple[bytes, float | None]]] = {}
        self.grants: set[tuple[str, str]] = set()

    def _store(self, caller: str, store: str) -> dict[str, tuple[bytes, float | None]]:
        if caller != store and (caller, store) not in self.grants:
            raise GuestError(Errno.DENIED, f"{store} grants {caller} nothing")
        return self._stores.setdefault(store, {})

    async def get(self, caller: str, store: str, key: str) -> bytes | None:
        """Return the value."""
        await asyncio.sleep(0)
        found = self._store(caller, store).get(key)
        if found is None or (found[1] is not None and found[1] <= self._now()):
            return None
        return found[0]

    async def set(self, caller: str, store: str, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Store *value*."""
        await asyncio.sleep(0)
        self._store(caller, store)[key] = value, None if ttl_s is None else self._now() + ttl_s

    async def delete(self, caller: str, store: str, key: str) -> bool:
        """Remove the key."""
        there = await self.get(caller, store, key) is not None
        self._store(caller, store).pop(key, None)
        return there

    async def list(self, caller: str, store: str, prefix: str, *, cursor: str = "", limit: int = 100) -> KeyPage:
        """Return a page; its cursor is the last key."""
        names = sorted((key for key in self._store(caller, store) if key.startswith(prefix)), key=str.encode)
        there = [key for key in names if await self.get(caller, store, key) is not None]
        rest = [key for key in there if key.encode() > cursor.encode()]
        return KeyPage(rest[:limit], rest[limit - 1] if len(rest) > limit else "")

    async def increment(self, caller: str, store: str, key: str, delta: int) -> int:
        """Add *delta*."""
        await asyncio.sleep(0)
        entries = self._store(caller, store)
        old, until = entries.get(key, (b"0", None))
        if until is not None and until <= self._now():
            old, until = b"0", None
        try:
            total = int(old) + delta
        except ValueError:
            raise GuestError(Errno.CONFLICT, f"{key!r} is no integer") from None
        if not -_LARGEST - 1 <= total <= _LARGEST:
            raise GuestError(Errno.CONFLICT, f"{key!r} would not fit into 64 bits")
        entries[key] = str(total).encode(), until
        return total

    async def compare_and_set(
        self, caller: str, store: str, key: str, expected: bytes | None, value: bytes, *, ttl_s: float | None = None
    ) -> bool:
        """Store *value* if *expected* is there."""
        if await self.get(caller, store, key) != expected:
            return False
        await self.set(caller, store, key, value, ttl_s=ttl_s)
        return True


class MemoryConfig:
    """A ConfigPort over a mapping of (function, name)."""

    def __init__(self, values: Mapping[tuple[str, str], str]) -> None:
        self._values = values

    def get(self, function: str, name: str) -> str | None:
        """Return the value."""
        return self._values.get((function, name))


class MemorySecrets(MemoryConfig):
    """A SecretsPort over a mapping of (function, name), which its repr does not show."""


class MemoryBody:
    """A response's body of pieces; those after a ``None`` come when ``go_on`` was called."""

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self._pieces = list(pieces)
        self._more = asyncio.Event()

    def go_on(self) -> None:
        """Let the next pieces come."""
        if None in self._pieces:
            self._pieces.remove(None)
        self._more.set()

    def read_nowait(self, n: int) -> bytes | None:
        """Return a piece, or part of it."""
        if not self._pieces:
            return b""
        piece = self._pieces[0]
        if piece is None:
            return None
        self._pieces[0:1] = [piece[n:]] if piece[n:] else []
        return piece[:n]

    async def wait_readable(self) -> None:
        """Wait for ``go_on`` where that is what is missing."""
        while self._pieces and self._pieces[0] is None:
            self._more.clear()
            await self._more.wait()


@dataclass
class MemoryResponse:
    """A GuestResponse."""

    status: int = 200
    headers: Headers = ()
    body: MemoryBody = field(default_factory=lambda: MemoryBody(()))
    closed: bool = False

    def close(self) -> None:
        """Say so in ``closed``."""
        self.closed = True


Answering = Callable[[GuestRequest], MemoryResponse]


def echo(request: GuestRequest) -> MemoryResponse:
    """Answer with the request's method and target as headers, and its body."""
    headers = [("x-method", request.method.encode()), ("x-target", request.target.encode()), *request.headers]
    return MemoryResponse(200, headers, MemoryBody([request.body] if request.body else []))


class MemoryHttp:
    """An HttpPort, and a CallsPort, that answer by a function; a target under ``held`` waits until it is let go."""

    def __init__(self, answer: Answering = echo) -> None:
        self._answer = answer
        self._held: dict[str, asyncio.Event] = {}
        self.sent: list[tuple[str, str, GuestRequest]] = []
        """Function, qualifier (both empty for HTTP) and request of all that was begun."""
        self.responses: list[MemoryResponse] = []
        self.n_running = 0
        self.closed = False

    def hold(self, target: str) -> asyncio.Event:
        """Return an event; requests for *target* are answered once it is set."""
        return self._held.setdefault(target, asyncio.Event())

    async def send(self, request: GuestRequest) -> MemoryResponse:
        """Answer an HTTP request."""
        return await self.begin("", "", request)

    async def begin(self, function: str, qualifier: str, request: GuestRequest) -> MemoryResponse:
        """Answer a call."""
        self.sent.append((function, qualifier, request))
        self.n_running += 1
        try:
            if request.target in self._held:
                await self._held[request.target].wait()
            await asyncio.sleep(0)
            response = self._answer(request)
        finally:
            self.n_running -= 1
        self.responses.append(response)
        return response

    def close(self) -> None:
        """Say so in ``closed``."""
        self.closed = True


class MemoryJobs:
    """A JobsPort that keeps what it gets; one idempotency key is one job."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[str, str, str, GuestRequest, JobOptions]] = {}

    async def enqueue(
        self, caller: str, function: str, qualifier: str, request: GuestRequest, options: JobOptions
    ) -> str:
        """Return the job's id."""
        await asyncio.sleep(0)
        for job, (*_, kept) in self.jobs.items():
            if options.idempotency_key and kept.idempotency_key == options.idempotency_key:
                return job
        job = f"job-{len(self.jobs) + 1}"
        self.jobs[job] = caller, function, qualifier, request, options
        return job


class MemoryServices:
    """All ports in memory, for one invocation or for many."""

    def __init__(
        self,
        *,
        config: Mapping[tuple[str, str], str] | None = None,
        secrets: Mapping[tuple[str, str], str] | None = None,
        answer: Answering = echo,
    ) -> None:
        self.kv = MemoryKv()
        self.config = MemoryConfig(config or {})
        self.secrets = MemorySecrets(secrets or {})
        self.http = MemoryHttp(answer)
        self.calls = MemoryHttp(answer)
        self.jobs = MemoryJobs()

    def ports(self) -> Ports:
        """Return them as a session wants them."""
        return Ports(self.kv, self.config, self.secrets, self.http, self.calls, self.jobs)
