"""Panels: lines above each other, with marks through all of them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtest.plot import Panel, panels


def test_a_series_of_another_length_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="'a' has 1 values for 2 points"):
        panels(tmp_path / "x.svg", "t", [1, 2], [Panel("y", {"a": [1.0]})], x_label="x")


def test_panels_name_their_lines_and_each_kind_of_mark_once(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="in the extra `bench` only")
    path = panels(
        tmp_path / "new" / "x.svg",
        "the title",
        [1, 2, 3],
        [Panel("MB", {"one": [1.0, float("nan"), 3.0]}), Panel("files", {"two": [4.0, 5.0, 6.0]})],
        x_label="seconds",
        marks={"a kill": [1.5, 2.5], "no kill": []},
    )
    texts = [element.text for element in ElementTree.fromstring(path.read_bytes()).iter() if "text" in element.tag]
    assert {"the title", "one", "two", "MB", "files", "seconds"} <= set(texts)
    assert texts.count("a kill") == 1
    assert "no kill" not in texts
