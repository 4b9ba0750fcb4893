"""Plots: where bars stand, what is refused, and that a file comes of it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtest.plot import bar_places, bars, lines, publish


def test_bars_of_a_group_stand_side_by_side_around_its_middle():
    places = bar_places({"a": (), "b": (), "c": ()})
    assert [name for name, _, _ in places] == ["a", "b", "c"]
    offsets = [offset for _, offset, _ in places]
    assert offsets == pytest.approx([-0.25, 0.0, 0.25])
    assert all(width == pytest.approx(0.25) for _, _, width in places)


def test_a_lone_bar_stands_in_the_middle():
    assert bar_places({"a": ()})[0][1] == 0.0


def test_a_series_of_another_length_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="'a' has 1 values for 2 points"):
        bars(tmp_path / "x.svg", "t", ["1", "2"], {"a": [1.0]}, x_label="x", y_label="y")
    with pytest.raises(ValueError, match="'a' has 3 values for 2 points"):
        lines(tmp_path / "x.svg", "t", [1, 2], {"a": [1.0, 2.0, 3.0]}, x_label="x", y_label="y")


def test_bars_write_the_same_svg_twice(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="in the extra `bench` only")
    made = [
        bars(
            tmp_path / name,
            "the title",
            ["1", "4"],
            {"faas": [1.0, 2.0], "peer": [float("nan"), 3.0]},
            x_label="callers",
            y_label="tokens/s",
            ranges={"faas": [(0.5, 1.5), (2.0, 2.0)]},
        ).read_bytes()
        for name in ("one.svg", "two.svg")
    ]
    assert made[0] == made[1]
    texts = {element.text for element in ElementTree.fromstring(made[0]).iter() if element.tag.endswith("text")}
    assert {"the title", "faas", "peer", "callers", "tokens/s"} <= texts


def test_numbers_over_bars_are_written_out(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="in the extra `bench` only")
    path = bars(tmp_path / "x.svg", "t", ["1", "2", "3"], {"a": [14_812.3, 62.94, 0.0]}, x_label="x", y_label="y")
    texts = {element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("text")}
    assert {"14,812", "62.9", "14,000"} <= texts
    assert not any("e+" in (text or "") for text in texts)


def test_a_published_plot_is_the_same_picture_without_who_drew_it(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="in the extra `bench` only")
    made = lines(tmp_path / "x.svg", "the title", [1, 2], {"a": [1.0, 2.0]}, x_label="x", y_label="y")
    copy = publish(made, tmp_path / "images")
    assert copy == tmp_path / "images" / "x.svg"
    tags = [element.tag for element in ElementTree.parse(made).getroot() if not element.tag.endswith("metadata")]
    assert [element.tag for element in ElementTree.parse(copy).getroot()] == tags
    assert "Matplotlib" not in copy.read_text()
    assert "the title" in copy.read_text()


def test_lines_write_a_png_in_a_folder_that_they_make(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="in the extra `bench` only")
    path = lines(tmp_path / "new" / "x.png", "t", [1, 2], {"a": [1.0, 2.0]}, x_label="x", y_label="y")
    assert path.read_bytes().startswith(b"\x89PNG")
