"""``wasi:config/store``: the function's environment variables as its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from faas.wasi.p2.cli import get_environment
from faas.wasi.p2.resources import ComponentFunction


def get(guest: Any, key: str) -> str | None:
    """Return the value of *key*, None if there is none; never an error."""
    return dict(get_environment(guest)).get(key)


def get_all(guest: Any) -> list[tuple[str, str]]:
    """Return all keys, each once, and their values."""
    return list(dict(get_environment(guest)).items())


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:config/store@0.2.0-rc.1": {"get": ComponentFunction(get), "get-all": ComponentFunction(get_all)},
}
