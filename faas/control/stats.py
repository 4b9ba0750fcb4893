"""Counters of all workers, and of the model server, added up, and what limits have left; who counted may die."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from faas.bucket import TokenBucket
from faas.clock import Clock
from faas.invocation import Outcome
from faas.wire.messages import Spending, Spent, Stats
from faas.wire.models import ModelStats

Counters = dict[str, float]
KEY_PREFIX = "key:"
"""No function's name has a colon, so workers report what an API key used under ``key:NAME``."""
INVOKE_PREFIX = "invoke:"
"""An invoke key's name comes as ``invoke:FUNCTION:NAME``."""
VERSION_MARK = "@"
"""Versions that share an alias' requests are reported as ``FUNCTION@VERSION`` too; no function's name has one."""
TOKEN_KINDS = ("prompt", "generated")
_MODEL_COUNTERS = ("loads", "prompt_tokens", "cached_tokens", "generated_tokens", "requests", "decode_steps")
_MODEL_GAUGES = ("active", "waiting", "cells_used", "saved_bytes", "resident_bytes")


class Counts:
    """Sums of what workers report; lives as long as the host, so counters only grow."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._base: dict[str, Counters] = {}
        self._live: dict[int, Stats] = {}

    def report(self, worker: int, stats: Stats) -> None:
        """Take *worker*'s newest cumulative numbers in place of its last ones."""
        self._live[worker] = stats
        # A version whose alias is not split any more is not counted, and would stay in here for ever.
        over = [name for name in self._base if VERSION_MARK in name and ":" not in name]
        for name in over:
            if not any(name in live.functions for live in self._live.values()):
                del self._base[name]

    def retire(self, worker: int) -> None:
        """Keep what *worker* counted: it is gone, and its replacement begins at zero."""
        stats = self._live.pop(worker, None)
        if stats is not None:
            _add(self._base, stats.functions)

    def totals(self) -> dict[str, Counters]:
        """Return the counters of each function, over workers alive and dead."""
        return {
            name: counters for name, counters in self._sums().items() if ":" not in name and VERSION_MARK not in name
        }

    def version_totals(self, function: str) -> dict[int, Counters]:
        """Return the counters of the versions of *function* that share an alias' requests, over all workers."""
        prefix = function + VERSION_MARK
        totals: dict[str, Counters] = {}
        for part in (self._base, *(stats.functions for stats in self._live.values())):
            _add(totals, {name: counters for name, counters in part.items() if name.startswith(prefix)})
        return {int(name.removeprefix(prefix)): counters for name, counters in totals.items()}

    def key_totals(self) -> dict[str, Counters]:
        """Return the counters of each API key, over workers alive and dead."""
        return {
            name.removeprefix(KEY_PREFIX): counters
            for name, counters in self._sums().items()
            if name.startswith(KEY_PREFIX)
        }

    def invoke_key_totals(self) -> dict[tuple[str, str], Counters]:
        """Return the counters of each invoke key by function and name, over workers alive and dead."""
        totals: dict[tuple[str, str], Counters] = {}
        for name, counters in self._sums().items():
            if name.startswith(INVOKE_PREFIX):
                function, _, key = name.removeprefix(INVOKE_PREFIX).partition(":")
                totals[function, key] = counters
        return totals

    def _sums(self) -> dict[str, Counters]:
        totals = {name: dict(counters) for name, counters in self._base.items()}
        for stats in self._live.values():
            _add(totals, stats.functions)
        return totals

    def gauges(self) -> dict[int, dict[str, float]]:
        """Return the gauges of each living worker."""
        return {worker: dict(stats.gauges) for worker, stats in sorted(self._live.items())}


class Ledger:
    """
    The token buckets of the whole host, by function or ``key:NAME``; lives as long as it.

    Workers keep copies and admit by them; this one is for workers that start later.
    """

    def __init__(self, clock: Clock) -> None:
        """Begin with every bucket full."""
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}
        self._held: dict[int, dict[str, int]] = {}

    def report(self, worker: int, spent: Spent) -> Spent:
        """Take what *worker* spent; return what all others must hear."""
        held = self._held.setdefault(worker, {})
        for name, spending in spent.names.items():
            held[name] = spending.n_held
            if not spending.n_held:
                del held[name]
        return self._take({name: (s.n_tokens, s.tokens_per_minute) for name, s in spent.names.items()})

    def retire(self, worker: int) -> Spent:
        """Give back what *worker* held: it is gone, and its prompts with it; return what all others must hear."""
        held = self._held.pop(worker, {})
        return self._take({name: (-n_held, self._buckets[name].per_minute) for name, n_held in held.items()})

    def snapshot(self) -> Spent:
        """Return what is missing in each bucket that is not full, for a worker whose buckets all are."""
        now = self._clock.monotonic()
        missing = {name: math.ceil(bucket.per_minute - bucket.level(now)) for name, bucket in self._buckets.items()}
        return Spent({name: Spending(n, self._buckets[name].per_minute) for name, n in missing.items() if n > 0})

    def _take(self, changes: Mapping[str, tuple[int, int]]) -> Spent:
        now = self._clock.monotonic()
        for name, (n_tokens, per_minute) in changes.items():
            bucket = self._buckets.get(name)
            if bucket is None:
                bucket = self._buckets[name] = TokenBucket(per_minute, now)
            bucket.limit(per_minute, now)
            bucket.take(n_tokens, now)
        return Spent({name: Spending(*change) for name, change in changes.items() if change[0]})


class ModelCounts:
    """What the model server reports, per model; lives as long as the host, so counters only grow."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._base: dict[str, Counters] = {}
        self._live: dict[str, dict[str, float]] = {}

    def report(self, stats: ModelStats) -> None:
        """Take the newest cumulative numbers in place of the last ones."""
        for name, counted in _only(self._live, _MODEL_COUNTERS).items():
            newest = stats.models.get(name, {})
            if any(newest.get(key, 0) < value for key, value in counted.items()):
                _add(self._base, {name: counted})  # the model was taken away, and perhaps came back
        self._live = stats.models

    def retire(self) -> None:
        """Keep what the server counted: it is gone, and its replacement begins at zero."""
        _add(self._base, _only(self._live, _MODEL_COUNTERS))
        self._live = {}

    def totals(self) -> dict[str, Counters]:
        """Return the counters of each model, over servers alive and dead."""
        totals = {name: dict(counters) for name, counters in self._base.items()}
        _add(totals, _only(self._live, _MODEL_COUNTERS))
        return totals

    def gauges(self) -> dict[str, Counters]:
        """Return the numbers of now of each model of the living server."""
        return _only(self._live, _MODEL_GAUGES)


NO_JOBS: Mapping[tuple[str, str], int] = {}


def prometheus_text(
    totals: Mapping[str, Mapping[str, float]],
    gauges: Mapping[int, Mapping[str, float]],
    host: Mapping[str, float],
    restarts: Mapping[int, int],
    *,
    keys: Mapping[str, Mapping[str, float]],
    invoke_keys: Mapping[tuple[str, str], Mapping[str, float]],
    models: Mapping[str, Mapping[str, float]],
    model_gauges: Mapping[str, Mapping[str, float]],
    jobs: Mapping[tuple[str, str], int] = NO_JOBS,
) -> str:
    """
    Return the numbers in Prometheus' text format.

    Args: *host* maps a metric without labels to its value; *gauges* and *restarts* are per worker; *totals* are per
    function, *keys* per API key, *invoke_keys* per function and key, *models* and *model_gauges* per model,
    *jobs* per function and state.
    Source: Prometheus text exposition format 0.0.4.
    """
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: Iterable[tuple[dict[str, str], float]]) -> None:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        for labels, value in samples:
            lines.append(f"{name}{_labels(labels)} {value:.17g}")

    family(
        "faas_jobs",
        "gauge",
        "Jobs that are kept, by where they are.",
        (({"function": name, "state": state}, n) for (name, state), n in sorted(jobs.items())),
    )
    named = sorted(totals.items())
    family(
        "faas_invocations_total",
        "counter",
        "Requests that reached a function.",
        (({"function": name}, counters.get("invocations", 0)) for name, counters in named),
    )
    family(
        "faas_invocation_outcomes_total",
        "counter",
        "How invocations ended.",
        (
            ({"function": name, "outcome": outcome.value}, counters.get(outcome.value, 0))
            for name, counters in named
            for outcome in Outcome
        ),
    )
    family(
        "faas_invocation_answered_5xx_total",
        "counter",
        "Invocations whose guest answered with a status of 500 or more.",
        (({"function": name}, counters.get("answered_5xx", 0)) for name, counters in named),
    )
    for key, metric, text in (
        ("duration_ms", "faas_invocation_duration_seconds_total", "Wall time of invocations, added up."),
        ("start_ms", "faas_invocation_start_seconds_total", "Time to make fresh instances, added up."),
        ("cpu_ms", "faas_invocation_cpu_seconds_total", "CPU time of guests, added up."),
    ):
        family(
            metric,
            "counter",
            text,
            (({"function": name}, counters.get(key, 0) / 1000) for name, counters in named),
        )
    family(
        "faas_tokens_total",
        "counter",
        "Tokens that a function's model requests took.",
        (
            ({"function": name, "kind": kind}, counters[f"{kind}_tokens"])
            for name, counters in named
            for kind in TOKEN_KINDS
            if f"{kind}_tokens" in counters
        ),
    )
    family(
        "faas_function_model_requests_total",
        "counter",
        "Model requests of a function.",
        (({"function": name}, counters["model_requests"]) for name, counters in named if "model_requests" in counters),
    )
    family(
        "faas_warm_starts_total",
        "counter",
        "Requests of a function with a warm pool, by whether an instance was ready.",
        (
            ({"function": name, "result": result}, counters[key])
            for name, counters in named
            for result, key in (("hit", "warm_hits"), ("miss", "warm_misses"))
            if key in counters
        ),
    )
    family(
        "faas_warm_prepared_total",
        "counter",
        "Instances that were made ahead of requests.",
        (({"function": name}, counters["warm_prepared"]) for name, counters in named if "warm_prepared" in counters),
    )
    family(
        "faas_key_tokens_total",
        "counter",
        "Tokens that requests with an API key took.",
        (
            ({"key": name, "kind": kind}, counters.get(f"{kind}_tokens", 0))
            for name, counters in sorted(keys.items())
            for kind in TOKEN_KINDS
        ),
    )
    family(
        "faas_key_model_requests_total",
        "counter",
        "Model requests with an API key.",
        (({"key": name}, counters.get("model_requests", 0)) for name, counters in sorted(keys.items())),
    )
    for key, metric, text in (
        ("requests", "faas_invoke_key_requests_total", "Requests with an invoke key that it opened."),
        ("rate_limited", "faas_invoke_key_rate_limited_total", "Requests over an invoke key's requests per minute."),
    ):
        family(
            metric,
            "counter",
            text,
            (
                ({"function": function, "key": name}, counters.get(key, 0))
                for (function, name), counters in sorted(invoke_keys.items())
            ),
        )
    family(
        "faas_invoke_key_refused_total",
        "counter",
        "Requests without the invoke key that their function asks for.",
        (({"function": name}, counters["key_refused"]) for name, counters in named if "key_refused" in counters),
    )
    family(
        "faas_model_tokens_total",
        "counter",
        "Tokens of a model; cached ones are those of prompts that were not computed again.",
        (
            ({"model": name, "kind": kind}, counters.get(f"{kind}_tokens", 0))
            for name, counters in sorted(models.items())
            for kind in ("prompt", "cached", "generated")
        ),
    )
    for key, text in (
        ("loads", "Times a model's weights were loaded."),
        ("requests", "Requests to a model."),
        ("decode_steps", "Steps in which a model decoded a batch."),
    ):
        family(
            f"faas_model_{key}_total",
            "counter",
            text,
            (({"model": name}, counters.get(key, 0)) for name, counters in sorted(models.items())),
        )
    for key, text in (
        ("active", "Sequences that a model decodes now."),
        ("waiting", "Requests that wait for a model's slot."),
        ("cells_used", "KV cells in use, cached prefixes among them."),
        ("saved_bytes", "Memory of prefixes that had to leave the KV cells."),
        ("resident_bytes", "Memory of a model's weights and context; 0 while it is not loaded."),
    ):
        family(
            f"faas_model_{key}",
            "gauge",
            text,
            (({"model": name}, numbers.get(key, 0)) for name, numbers in sorted(model_gauges.items())),
        )
    family(
        "faas_worker_restarts_total",
        "counter",
        "Times a worker process was replaced.",
        (({"worker": str(worker)}, count) for worker, count in sorted(restarts.items())),
    )
    for gauge in sorted({name for numbers in gauges.values() for name in numbers}):
        family(
            f"faas_worker_{gauge}",
            "gauge",
            f"{gauge} of a worker process.",
            (({"worker": str(worker)}, numbers[gauge]) for worker, numbers in gauges.items() if gauge in numbers),
        )
    for metric, value in sorted(host.items()):
        family(metric, "gauge", "One number for the whole host.", [({}, value)])
    return "\n".join(lines) + "\n"


def _add(into: dict[str, Counters], more: Mapping[str, Mapping[str, float]]) -> None:
    for function, counters in more.items():
        sums = into.setdefault(function, {})
        for key, value in counters.items():
            sums[key] = sums.get(key, 0) + value


def _only(numbers: Mapping[str, Mapping[str, float]], names: Iterable[str]) -> dict[str, Counters]:
    wanted = tuple(names)
    return {model: {name: values.get(name, 0) for name in wanted} for model, values in numbers.items()}


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = {
        key: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}"
