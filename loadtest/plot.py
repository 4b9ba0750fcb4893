"""Plots of what a benchmark measured, as SVG or PNG by the file's name."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE_INCHES = (8.0, 4.5)
PANEL_INCHES = 1.8
MAX_LEVEL_LABELS = 12
"""With more bars than these the numbers over them stand upright: side by side they would overlap."""
MARK_COLORS = ("tab:red", "tab:purple", "tab:brown")
_METADATA = re.compile(r"\n *<metadata>.*?</metadata>", re.DOTALL)
_GAP = 0.25  # of the room of one group of bars


@dataclass(frozen=True)
class Panel:
    """One of several plots above each other: lines over the same x."""

    y_label: str
    series: Mapping[str, Sequence[float]]


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
    many = len(groups) * len(series) > MAX_LEVEL_LABELS
    for name, offset, width in bar_places(series):
        values = [0.0 if math.isnan(value) else value for value in series[name]]
        places = [i + offset for i in range(len(groups))]
        spans = (ranges or {}).get(name) or [(value, value) for value in values]
        below = [max(0.0, value - low) for value, (low, _) in zip(values, spans, strict=True)]
        above = [max(0.0, high - value) for value, (_, high) in zip(values, spans, strict=True)]
        drawn = axes.bar(places, values, width, yerr=[below, above] if name in (ranges or {}) else None, label=name)
        # Above the bar: next to a tall one, the number is all that is to be seen of a small one.
        axes.bar_label(
            drawn, labels=[_shown(v) if v else "" for v in values], padding=2, fontsize=8, rotation=90 if many else 0
        )
    axes.margins(y=0.2 if many else 0.08)
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


def panels(
    path: Path,
    title: str,
    xs: Sequence[float],
    plots: Sequence[Panel],
    *,
    x_label: str,
    marks: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """
    Write *plots* above each other over the same *xs*, and return *path*.

    Args: *marks* gives the x of what happened, by its name: vertical lines through all plots. NaN makes a gap.
    Raises: PlotMissingError, OSError, ValueError if a series is not as long as *xs*.
    """
    for plot in plots:
        _check(xs, plot.series)
    figure = _figure((SIZE_INCHES[0] * 1.25, 1.0 + PANEL_INCHES * len(plots)))
    all_axes = [axes for (axes,) in figure.subplots(len(plots), sharex=True, squeeze=False)]
    all_axes[0].set_title(title)
    all_axes[-1].set_xlabel(x_label)
    for axes, plot in zip(all_axes, plots, strict=True):
        for name, values in plot.series.items():
            axes.plot(xs, values, marker="o", markersize=2, linewidth=1, label=name)
        for number, (name, places) in enumerate((marks or {}).items()):
            for place in places:
                first = place == places[0] and axes is all_axes[0]
                color = MARK_COLORS[number % len(MARK_COLORS)]
                axes.axvline(place, color=color, linestyle="--", linewidth=0.8, label=name if first else None)
        axes.set_ylabel(plot.y_label)
        axes.grid(alpha=0.3)
        _finish(axes)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return _save(figure, path)


def publish(path: Path, folder: Path) -> Path:
    """
    Copy an SVG that this module wrote into *folder*, without what differs between equal plots; return the copy.

    The name and version of the program that drew it go; its white ground stays, so that it is legible on dark pages.
    Raises: OSError.
    """
    text = _METADATA.sub("", path.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    copy.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    return copy


def bar_places(series: Mapping[str, object]) -> list[tuple[str, float, float]]:
    """Return each name with its bar's distance from the group's middle and its width; groups are 1 apart."""
    width = (1.0 - _GAP) / max(1, len(series))
    first = -(len(series) - 1) / 2 * width
    return [(name, first + i * width, width) for i, name in enumerate(series)]


def _shown(value: float) -> str:
    """Return three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _check(points: Sequence[object], series: Mapping[str, Sequence[float]]) -> None:
    for name, values in series.items():
        if len(values) != len(points):
            raise ValueError(f"{name!r} has {len(values)} values for {len(points)} points")


def _open(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    figure = _figure(SIZE_INCHES)
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def _figure(size_inches: tuple[float, float]) -> Any:
    try:
        figures = importlib.import_module("matplotlib.figure")
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as exc:
        raise PlotMissingError(f"matplotlib can't be loaded ({exc}); pip install 'faas[bench]'") from exc
    # Equal numbers make equal files; text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "faas", "svg.fonttype": "none"})
    return figures.Figure(figsize=size_inches, layout="constrained")


def _close(figure: Any, axes: Any, path: Path) -> Path:
    _finish(axes)
    # Below all: nowhere over the bars or lines is there always room.
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    return _save(figure, path)


def _finish(axes: Any) -> None:
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
