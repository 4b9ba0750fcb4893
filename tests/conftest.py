"""Fixtures that several kinds of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import Host, MakeHost


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host with two workers for every test that leaves it as it was; it must drain cleanly at the end."""
    shared = Host(tmp_path_factory.mktemp("host") / "home", workers=2)
    try:
        shared.start()
        yield shared
        shared.stop()
    finally:
        shared.dispose()


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Make hosts that a test may harm; each has a fresh home unless one is named. What still runs is killed."""
    made: list[Host] = []

    def make(home: str = "", **settings: Any) -> Host:
        made.append(Host(tmp_path / (home or f"home{len(made)}"), **settings))
        return made[-1]

    yield make
    for one in made:
        one.dispose()
