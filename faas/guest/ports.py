"""
What ``faas_v1`` asks of the host that it runs in: Protocols, which the gateway fills and ``faas.testing`` imitates.

Ports raise FaasError, of which ``faas.guest.errno`` makes what the guest is told (one without a row there is "failed"),
or GuestError with an errno of their own choice. They may be asked for anything: a session has checked
that the manifest grants it, sizes and names, but not what only the host knows (grants between functions, quotas).

Thread: the loop's only, except where a method says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Headers = Sequence[tuple[str, bytes]]
"""Names as they were sent, values as bytes; several of one name stay several."""


@dataclass(frozen=True, slots=True)
class GuestRequest:
    """
    A request that a guest makes, decoded and within its limits, not checked otherwise.

    ``target`` is a URL for HTTP, path and query (or empty) for calls and jobs; ``timeout_s`` None: the deadline alone.
    """

    method: str
    target: str
    headers: Headers = ()
    body: bytes = field(default=b"", repr=False)
    timeout_s: float | None = None


class ResponseBody(Protocol):
    """A response's body as it comes; whoever makes it is held back while nobody reads."""

    def read_nowait(self, n: int) -> bytes | None:
        """
        Return up to *n* bytes that are here, ``b""`` at the end, None if there are none yet.

        Thread: any. Raises: FaasError or GuestError, once what came before the failure is read.
        """

    async def wait_readable(self) -> None:
        """
        Return when ``read_nowait`` has something to say; one waits at a time, and may be cancelled.

        Raises: as ``read_nowait``.
        """


class GuestResponse(Protocol):
    """A response whose head is there; closed by whoever got it, whether or not the body was read."""

    @property
    def status(self) -> int:
        """100 to 599."""

    @property
    def headers(self) -> Headers:
        """What the guest is to see of them."""

    @property
    def body(self) -> ResponseBody:
        """The body."""

    def close(self) -> None:
        """End whatever is still in progress. Safe to call more than once."""


class HttpPort(Protocol):
    """One invocation's way out; closed with it."""

    async def send(self, request: GuestRequest) -> GuestResponse:
        """
        Send *request* and return once the response's head is there. Cancelling ends the request.

        Raises: FaasError, GuestError.
        """

    def close(self) -> None:
        """End whatever is still in progress. Safe to call more than once."""


class CallsPort(Protocol):
    """One invocation's way to other functions; closed with it."""

    async def begin(self, function: str, qualifier: str, request: GuestRequest) -> GuestResponse:
        """
        Invoke *function* and return once the response's head is there. Cancelling ends the callee.

        Args: *qualifier* is "" for what routes serve, an alias, or a version number as text.
        Raises: FaasError, GuestError.
        """

    def close(self) -> None:
        """End whatever is still in progress. Safe to call more than once."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job is run; None is the function's own setting."""

    delay_s: float = 0.0
    max_attempts: int | None = None
    max_age_s: float | None = None
    idempotency_key: str = ""


class JobsPort(Protocol):
    """The worker's way to the job queue; lives as long as it."""

    async def enqueue(
        self, caller: str, function: str, qualifier: str, request: GuestRequest, options: JobOptions
    ) -> str:
        """
        Return the id of a job that is durable from here on; *caller* is the function that asks.

        Raises: FaasError.
        """


class KeyPage(NamedTuple):
    """Some keys in the order of their UTF-8 bytes; ``cursor`` "" says that these were the last."""

    keys: Sequence[str]
    cursor: str


class KvPort(Protocol):
    """
    The worker's way to the stores; lives as long as it.

    *caller* is the function that asks, *store* the function whose store it is: the caller's own name for its own.
    Keys are text of 1 to 512 bytes of UTF-8. Each method raises FaasError: no grant, read-only, too large, full.
    """

    async def get(self, caller: str, store: str, key: str) -> bytes | None:
        """Return the value, None if there is none (any more)."""

    async def set(self, caller: str, store: str, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Store *value*; without *ttl_s* it stays until it is deleted, whatever its time was before."""

    async def delete(self, caller: str, store: str, key: str) -> bool:
        """Remove the key; return whether it was there."""

    async def list(self, caller: str, store: str, prefix: str, *, cursor: str = "", limit: int = 100) -> KeyPage:
        """Return up to *limit* keys that begin with *prefix*, from where *cursor* of the page before says."""

    async def increment(self, caller: str, store: str, key: str, delta: int) -> int:
        """
        Add *delta* to a decimal integer of 64 bits and return the sum; a missing key counts as 0, a TTL stays.

        The value reads as ASCII decimal text. Raises also for a value that is no integer, and for an overflow.
        """

    async def compare_and_set(
        self, caller: str, store: str, key: str, expected: bytes | None, value: bytes, *, ttl_s: float | None = None
    ) -> bool:
        """Store *value* if what is there is *expected* (None: nothing); return whether it was."""


class ConfigPort(Protocol):
    """The config values that were set for functions, as this worker has them in memory. Thread: any."""

    def get(self, function: str, name: str) -> str | None:
        """Return the value, None if it is not set."""


class SecretsPort(Protocol):
    """The secrets that were set for functions, as this worker has them in memory. Thread: any."""

    def get(self, function: str, name: str) -> str | None:
        """Return the secret, None if it is not set."""


@dataclass(slots=True)
class Ports:
    """What one invocation may ask of its host; what is None is not there on this host, and answers unavailable."""

    kv: KvPort | None = None
    config: ConfigPort | None = None
    secrets: SecretsPort | None = None
    http: HttpPort | None = None
    calls: CallsPort | None = None
    jobs: JobsPort | None = None
