"""Tokens as they are spent: counters per function and per API key, and the tokens-per-minute limits they run into."""

from __future__ import annotations

from types import TracebackType

from faas.clock import Clock
from faas.errors import QuotaExceededError

BYTES_PER_TOKEN = 4
"""A rough guess, used only until the model server says how many tokens a prompt really has."""


class Meter:
    """
    Counts tokens by name and keeps names within their limits; lives as long as its worker.

    A name is a function's, or ``key:NAME`` for an API key. A limit is a token bucket that holds one minute's worth:
    who has any left may begin, and what a request takes beyond it is a debt that the next one waits for. So a
    generation that has begun is never cut off, and a prompt larger than the limit is served from a full bucket.
    Thread: the loop's only.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counters: dict[str, dict[str, float]] = {}
        self._buckets: dict[str, _Bucket] = {}

    def begin(self, name: str, *, tokens_per_minute: int = 0, n_prompt_bytes: int = 0) -> Charge:
        """
        Admit one model request of *name*; the caller closes the charge (``with``) when the request ends.

        Until the prompt's tokens are known, an estimate by *n_prompt_bytes* is held back, so that requests which come
        together don't all pass on the same last token. ``tokens_per_minute`` 0 means no limit.
        Raises: QuotaExceededError with the time after which the bucket has something in it again.
        """
        bucket: _Bucket | None = None
        if tokens_per_minute > 0:
            now = self._clock.monotonic()
            bucket = self._buckets.get(name)
            if bucket is None:
                bucket = self._buckets[name] = _Bucket(tokens_per_minute, now)
            bucket.refill(tokens_per_minute, now)
            if bucket.level < 1:
                raise QuotaExceededError(
                    f"{name} has used its {tokens_per_minute} tokens per minute; try again later",
                    retry_after_s=bucket.wait_s(),
                    tokens_per_minute=tokens_per_minute,
                )
        counters = self._counters.get(name)
        if counters is None:
            counters = self._counters[name] = {"prompt_tokens": 0, "generated_tokens": 0, "model_requests": 0}
        counters["model_requests"] += 1
        return Charge(counters, bucket, max(1, n_prompt_bytes // BYTES_PER_TOKEN))

    def spent_elsewhere(self, name: str, n_tokens: int) -> None:
        """Take from the bucket of *name* what other workers spent on it; the counters stay this worker's own."""
        bucket = self._buckets.get(name)
        if bucket is not None:
            bucket.level -= n_tokens

    def stats(self) -> dict[str, dict[str, float]]:
        """Return the counters of each name as they are now, cumulative: what ``Stats.functions`` wants added."""
        return {name: dict(counters) for name, counters in self._counters.items()}


class Charge:
    """What one admitted request spends; lives from ``Meter.begin`` to ``close``, its sums stay readable."""

    __slots__ = ("_bucket", "_counters", "_held", "n_generated_tokens", "n_prompt_tokens")

    def __init__(self, counters: dict[str, float], bucket: _Bucket | None, n_held: int) -> None:
        self._counters = counters
        self._bucket = bucket
        self.n_prompt_tokens = 0
        self.n_generated_tokens = 0
        self._held = n_held if bucket is not None else 0
        if bucket is not None:
            bucket.level -= n_held

    def prompt(self, n_tokens: int) -> None:
        """Spend the tokens of a prompt; the estimate held for it goes back."""
        self.n_prompt_tokens += n_tokens
        self._counters["prompt_tokens"] += n_tokens
        if self._bucket is not None:
            returned = min(self._held, n_tokens)
            self._held -= returned
            self._bucket.level -= n_tokens - returned

    def generated(self, n_tokens: int) -> None:
        """Spend tokens as they come."""
        self.n_generated_tokens += n_tokens
        self._counters["generated_tokens"] += n_tokens
        if self._bucket is not None:
            self._bucket.level -= n_tokens

    def close(self) -> None:
        """Give back what was held and not spent. Safe to call more than once."""
        if self._bucket is not None:
            self._bucket.level += self._held
            self._held = 0

    def __enter__(self) -> Charge:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Bucket:
    """The tokens that one name may still spend; negative is debt."""

    __slots__ = ("_at", "_per_minute", "level")

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._at = now
        self.level = float(per_minute)

    def refill(self, per_minute: int, now: float) -> None:
        """Add what the time since the last refill brought, by the limit as it is now; never above one minute's."""
        self.level += (now - self._at) * self._per_minute / 60 + (per_minute - self._per_minute)
        self.level = min(self.level, float(per_minute))
        self._per_minute, self._at = per_minute, now

    def wait_s(self) -> float:
        """Return the seconds until there is a whole token."""
        return (1 - self.level) * 60 / self._per_minute
