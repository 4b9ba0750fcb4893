"""Counters of all workers added up; they survive the death of a worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from faas.invocation import Outcome
from faas.wire.messages import Stats

Counters = dict[str, float]


class Counts:
    """Sums of what workers report; lives as long as the host, so counters only grow."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._base: dict[str, Counters] = {}
        self._live: dict[int, Stats] = {}

    def report(self, worker: int, stats: Stats) -> None:
        """Take *worker*'s newest cumulative numbers in place of its last ones."""
        self._live[worker] = stats

    def retire(self, worker: int) -> None:
        """Keep what *worker* counted: it is gone, and its replacement begins at zero."""
        stats = self._live.pop(worker, None)
        if stats is not None:
            _add(self._base, stats.functions)

    def totals(self) -> dict[str, Counters]:
        """Return the counters of each function, over workers alive and dead."""
        totals = {name: dict(counters) for name, counters in self._base.items()}
        for stats in self._live.values():
            _add(totals, stats.functions)
        return totals

    def gauges(self) -> dict[int, dict[str, float]]:
        """Return the gauges of each living worker."""
        return {worker: dict(stats.gauges) for worker, stats in sorted(self._live.items())}


def prometheus_text(
    totals: Mapping[str, Mapping[str, float]],
    gauges: Mapping[int, Mapping[str, float]],
    host: Mapping[str, float],
    restarts: Mapping[int, int],
) -> str:
    """
    Return the numbers in Prometheus' text format.

    Args: *host* maps a metric without labels to its value; *gauges* and *restarts* are per worker.
    Source: Prometheus text exposition format 0.0.4.
    """
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: Iterable[tuple[dict[str, str], float]]) -> None:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        for labels, value in samples:
            lines.append(f"{name}{_labels(labels)} {value:.17g}")

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


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = {
        key: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}"
