"""Plots of what a benchmark measured, as SVG or PNG by the file's name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SIZE_INCHES = (8.0, 4.5)
_GAP = 0.25  # of the room of one group of bars


class PlotMissingError(Exception):
    """matplotlib is not installed; the message tells the next step."""


def bars(
    path: Path,
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    ranges: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Path:
    """
    Write groups of bars side by side, one of each of *series* in a group, and return *path*.

    Args: *ranges* gives the (lowest, highest) of what a bar stands for, drawn as a line over it. NaN leaves a bar out.
    Raises: PlotMissingError, OSError, ValueError if a series is not as long as *groups*.
    """
    _check(groups, series)
    figure, axes = _open(title, x_label, y_label)
    for name, offset, width in bar_places(series):
        values = [0.0 if math.isnan(value) else value for value in series[name]]
        places = [i + offset for i in range(len(groups))]
        drawn = axes.bar(places, values, width, label=name)
        axes.bar_label(
            drawn, labels=[f"{v:.3g}" if v else "" for v in values], label_type="center", color="white", fontsize=8
        )
        for place, value, (low, high) in zip(places, values, (ranges or {}).get(name, ()), strict=False):
            axes.errorbar(place, value, yerr=[[max(0.0, value - low)], [max(0.0, high - value)]], color="black")
    axes.set_xticks(range(len(groups)), groups)
    return _close(figure, axes, path)


def lines(
    path: Path, title: str, xs: Sequence[float], series: Mapping[str, Sequence[float]], *, x_label: str, y_label: str
) -> Path:
    """
    Write one line for each of *series* over *xs*, and return *path*.

    Raises: PlotMissingError, OSError, ValueError if a series is not as long as *xs*.
    """
    _check(xs, series)
    figure, axes = _open(title, x_label, y_label)
    for name, values in series.items():
        axes.plot(xs, values, marker="o", markersize=3, label=name)
    axes.grid(alpha=0.3)
    return _close(figure, axes, path)


def bar_places(series: Mapping[str, object]) -> list[tuple[str, float, float]]:
    """Return each name with its bar's distance from the group's middle and its width; groups are 1 apart."""
    width = (1.0 - _GAP) / max(1, len(series))
    first = -(len(series) - 1) / 2 * width
    return [(name, first + i * width, width) for i, name in enumerate(series)]


def _check(points: Sequence[object], series: Mapping[str, Sequence[float]]) -> None:
    for name, values in series.items():
        if len(values) != len(points):
            raise ValueError(f"{name!r} has {len(values)} values for {len(points)} points")


def _open(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    try:
        figures = importlib.import_module("matplotlib.figure")
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as exc:
        raise PlotMissingError(f"matplotlib can't be loaded ({exc}); pip install 'faas[bench]'") from exc
    # Equal numbers make equal files; text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "faas", "svg.fonttype": "none"})
    figure = figures.Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def _close(figure: Any, axes: Any, path: Path) -> Path:
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
