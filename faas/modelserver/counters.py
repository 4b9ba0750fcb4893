"""Cumulative numbers of one model and of the functions it serves."""

from __future__ import annotations


class FunctionCounters:
    """Tokens by function, over all models; lives as long as the server."""

    def __init__(self) -> None:
        self.by_function: dict[str, dict[str, float]] = {}

    def add(self, function: str, name: str, n: float) -> None:
        """Count *n* of *name* for *function*."""
        row = self.by_function.setdefault(function, {"prompt_tokens": 0, "generated_tokens": 0, "requests": 0})
        row[name] += n


class Counters:
    """What one model did since the server began, kept when it is unloaded. Thread: the owner's."""

    def __init__(self, functions: FunctionCounters) -> None:
        self._functions = functions
        self.totals: dict[str, float] = dict.fromkeys(
            ("loads", "requests", "prompt_tokens", "cached_tokens", "generated_tokens", "decode_steps"), 0.0
        )

    def add(self, name: str, n: float) -> None:
        """Count *n* of *name*."""
        self.totals[name] += n

    def took_prompt(self, function: str, n_tokens: int) -> None:
        """Count one request and its prompt."""
        self.totals["requests"] += 1
        self.totals["prompt_tokens"] += n_tokens
        self._functions.add(function, "requests", 1)
        self._functions.add(function, "prompt_tokens", n_tokens)

    def generated(self, function: str) -> None:
        """Count one token for *function*; the model's own total is counted a batch at a time."""
        self._functions.add(function, "generated_tokens", 1)
