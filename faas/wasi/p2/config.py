"""``wasi:config/store``: the environment variables, config values among them, and by name the granted secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from faas.wasi.p2.cli import get_environment
from faas.wasi.p2.keyvalue import Granted
from faas.wasi.p2.resources import ComponentFunction


def get(guest: Any, key: str) -> str | None:
    """Return the variable *key*, or else the secret of that name if the manifest grants it; None if there is none."""
    found = dict(get_environment(guest)).get(key)
    granted: Granted | None = guest.granted
    if found is None and granted is not None and key in granted.secrets:
        return granted.secret(granted.function, key)
    return found


def get_all(guest: Any) -> list[tuple[str, str]]:
    """Return all variables, each once, and their values; no secrets, since who asks for all tends to print it."""
    return list(dict(get_environment(guest)).items())


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:config/store@0.2.0-rc.1": {"get": ComponentFunction(get), "get-all": ComponentFunction(get_all)},
}
