"""The token bucket behind tokens-per-minute limits, as workers and the control process keep it alike."""

from __future__ import annotations


class TokenBucket:
    """
    The tokens that one name may still spend: at most one minute's worth; negative is debt.

    It is full when it is made. Every *now* is in seconds of one clock that never goes back.
    """

    __slots__ = ("_at", "_level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        """Args: *per_minute* is the limit, over 0."""
        self.per_minute = per_minute
        self._at = now
        self._level = float(per_minute)

    def limit(self, per_minute: int, now: float) -> None:
        """Go by another limit from *now* on; what was spent stays spent."""
        self.level(now)
        self._level += per_minute - self.per_minute
        self.per_minute = per_minute

    def level(self, now: float) -> float:
        """Return the tokens that are left, after adding what the time since the last call brought."""
        self._level = min(self._level + (now - self._at) * self.per_minute / 60, float(self.per_minute))
        self._at = now
        return self._level

    def take(self, n_tokens: int, now: float) -> None:
        """Spend *n_tokens*, whether or not they are there; a negative number gives back."""
        # Refilled first: a bucket that was full must not earn, later on, for the time in which it could not.
        self.level(now)
        self._level -= n_tokens

    def wait_s(self, now: float) -> float:
        """Return the seconds until there is a whole token; 0 if there is one."""
        return max(0.0, (1 - self.level(now)) * 60 / self.per_minute)
