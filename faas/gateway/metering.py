"""Tokens and requests as they are spent: counters per function and per key, and the limits per minute they run into."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from faas.bucket import TokenBucket
from faas.clock import Clock
from faas.errors import PeerGoneError, QuotaExceededError, RateLimitedError
from faas.wire.messages import Spending, Spent

BYTES_PER_TOKEN = 4
"""A rough guess, used only until the model server says how many tokens a prompt really has."""
REPORT_S = 0.1
"""Between two reports of what was spent: so long the other workers may go on spending what is gone already."""


class Meter:
    """
    Counts tokens by name and keeps names within their limits; lives as long as its worker.

    A name is a function's, ``key:NAME`` for an API key, or ``invoke:FUNCTION:NAME`` for an invoke key, whose bucket
    holds requests instead of tokens. A limit is a token bucket that holds one minute's worth:
    who has any left may begin, and what a request takes beyond it is a debt that the next one waits for. So a
    generation that has begun is never cut off, and a prompt larger than the limit is served from a full bucket.
    Limits hold for all workers together: each keeps a copy of every bucket, and they tell each other what they take
    (``report``, ``spent_elsewhere``).
    Thread: the loop's only.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counters: dict[str, dict[str, float]] = {}
        self._accounts: dict[str, _Account] = {}
        self._changed: dict[str, _Account] = {}
        self._spent = asyncio.Event()

    def begin(self, name: str, *, tokens_per_minute: int = 0, n_prompt_bytes: int = 0) -> Charge:
        """
        Admit one model request of *name*; the caller closes the charge (``with``) when the request ends.

        Until the prompt's tokens are known, an estimate by *n_prompt_bytes* is held back, so that requests which come
        together don't all pass on the same last token. ``tokens_per_minute`` 0 means no limit.
        Raises: QuotaExceededError with the time after which the bucket has something in it again.
        """
        account: _Account | None = None
        if tokens_per_minute > 0:
            now = self._clock.monotonic()
            account = self._account(name, tokens_per_minute, now)
            bucket = account.bucket
            if bucket.per_minute != tokens_per_minute:
                bucket.limit(tokens_per_minute, now)
            if bucket.level(now) < 1:
                raise QuotaExceededError(
                    f"{name} has used its {tokens_per_minute} tokens per minute; try again later",
                    retry_after_s=bucket.wait_s(now),
                    tokens_per_minute=tokens_per_minute,
                )
        counters = self._counters.get(name)
        if counters is None:
            counters = self._counters[name] = {"prompt_tokens": 0, "generated_tokens": 0, "model_requests": 0}
        counters["model_requests"] += 1
        return Charge(counters, account, max(1, n_prompt_bytes // BYTES_PER_TOKEN))

    def count_request(self, name: str, *, requests_per_minute: int = 0) -> None:
        """
        Count one request of *name*, and take it from a bucket of requests; 0 means no limit.

        Raises: RateLimitedError with the time after which there is another one; that is counted, too.
        """
        counters = self._counters.get(name)
        if counters is None:
            counters = self._counters[name] = {"requests": 0, "rate_limited": 0}
        if requests_per_minute > 0:
            now = self._clock.monotonic()
            account = self._account(name, requests_per_minute, now)
            bucket = account.bucket
            if bucket.per_minute != requests_per_minute:
                bucket.limit(requests_per_minute, now)
            if bucket.level(now) < 1:
                counters["rate_limited"] += 1
                raise RateLimitedError(
                    f"this key has used its {requests_per_minute} requests per minute; try again later",
                    retry_after_s=bucket.wait_s(now),
                    requests_per_minute=requests_per_minute,
                )
            account.take(1)
        counters["requests"] += 1

    def spent_elsewhere(self, spent: Spent) -> None:
        """
        Take from the buckets what other workers took; the counters stay this worker's own.

        A name that was never used here gets its bucket now, so that its first request here finds the level it has
        everywhere.
        """
        now = self._clock.monotonic()
        for name, spending in spent.names.items():
            self._account(name, spending.tokens_per_minute, now).bucket.take(spending.n_tokens, now)

    def take_unreported(self) -> Spent:
        """Return what this worker took from the buckets since the last call."""
        self._spent.clear()
        changed, self._changed = self._changed, {}
        return Spent({name: account.take_unreported() for name, account in changed.items()})

    async def report(
        self, send: Callable[[Spent], Awaitable[None]], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """
        Send what is taken: at once after a pause, then every ``REPORT_S`` for as long as something is taken.

        Ends when the control process is gone: then there is nobody to tell, and this worker is about to end.
        Args: *sleep* is there for tests.
        """
        while True:
            await self._spent.wait()
            try:
                await send(self.take_unreported())
            except PeerGoneError:
                return
            await sleep(REPORT_S)

    def stats(self) -> dict[str, dict[str, float]]:
        """Return the counters of each name as they are now, cumulative: what ``Stats.functions`` wants added."""
        return {name: dict(counters) for name, counters in self._counters.items()}

    def _account(self, name: str, tokens_per_minute: int, now: float) -> _Account:
        account = self._accounts.get(name)
        if account is None:
            account = _Account(TokenBucket(tokens_per_minute, now), self._clock, lambda: self._note(name))
            self._accounts[name] = account
        return account

    def _note(self, name: str) -> None:
        self._changed[name] = self._accounts[name]
        self._spent.set()


class Charge:
    """What one admitted request spends; lives from ``Meter.begin`` to ``close``, its sums stay readable."""

    __slots__ = ("_account", "_counters", "_held", "n_generated_tokens", "n_prompt_tokens")

    def __init__(self, counters: dict[str, float], account: _Account | None, n_held: int) -> None:
        self._counters = counters
        self._account = account
        self.n_prompt_tokens = 0
        self.n_generated_tokens = 0
        self._held = 0
        if account is not None:
            self._held = n_held
            account.take(n_held, n_held=n_held)

    def prompt(self, n_tokens: int) -> None:
        """Spend the tokens of a prompt; the estimate held for it goes back."""
        self.n_prompt_tokens += n_tokens
        self._counters["prompt_tokens"] += n_tokens
        if self._account is not None:
            returned = min(self._held, n_tokens)
            self._held -= returned
            self._account.take(n_tokens - returned, n_held=-returned)

    def generated(self, n_tokens: int) -> None:
        """Spend tokens as they come."""
        self.n_generated_tokens += n_tokens
        self._counters["generated_tokens"] += n_tokens
        if self._account is not None:
            self._account.take(n_tokens)

    def close(self) -> None:
        """Give back what was held and not spent. Safe to call more than once."""
        if self._account is not None and self._held:
            returned, self._held = self._held, 0
            self._account.take(-returned, n_held=-returned)

    def __enter__(self) -> Charge:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Account:
    """A name with a limit: its bucket, and what this worker did to it that the others have not heard yet."""

    __slots__ = ("_clock", "_n_held", "_n_unreported", "_note", "_noted", "bucket")

    def __init__(self, bucket: TokenBucket, clock: Clock, note: Callable[[], None]) -> None:
        """Args: *note* is called when there is something to report, and not again until that was taken."""
        self.bucket = bucket
        self._clock = clock
        self._note = note
        self._noted = False
        self._n_unreported = 0
        self._n_held = 0

    def take(self, n_tokens: int, *, n_held: int = 0) -> None:
        """Take *n_tokens* from the bucket; *n_held* of them are only held, fewer of all if it is negative."""
        self.bucket.take(n_tokens, self._clock.monotonic())
        self._n_unreported += n_tokens
        self._n_held += n_held
        if not self._noted:
            self._noted = True
            self._note()

    def take_unreported(self) -> Spending:
        """Return what was taken since the last call, and what is held now."""
        n_tokens, self._n_unreported = self._n_unreported, 0
        self._noted = False
        return Spending(n_tokens, self.bucket.per_minute, self._n_held)
