"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hosting import Host, MakeHost

from faas.testing.postgres import find_postgres, postgres_server

_schemas = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run also what takes minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason="takes minutes: make test-slow"))


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a real PostgreSQL, started once."""
    if find_postgres() is None:
        pytest.skip("there is no PostgreSQL on this machine: apt-get install postgresql")
    with postgres_server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """A database with nothing in it: a schema of its own."""
    schema = f"test_{next(_schemas)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{postgres}&options=-csearch_path%3D{schema}"
