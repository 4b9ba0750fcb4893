"""The WIT interfaces that components get, gathered: ``faas.wasi.p2`` has what each function means."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from faas.wasi.p2 import cli, clocks, config, filesystem, http, io, keyvalue, logging, poll, random, sockets
from faas.wasi.p2.resources import ComponentFunction
from faas.wasm.host import wasi_nn_p2


def _gathered(*modules: ModuleType) -> dict[str, Mapping[str, ComponentFunction]]:
    found: dict[str, Mapping[str, ComponentFunction]] = {}
    for module in modules:
        for interface, functions in module.FUNCTIONS.items():
            found[interface] = {**found.get(interface, {}), **functions}
    return found


FUNCTIONS: Mapping[str, Mapping[str, ComponentFunction]] = _gathered(
    cli, clocks, config, filesystem, http, io, keyvalue, logging, poll, random, sockets, wasi_nn_p2
)
"""Every function of every interface that this host has, by the interface's name in ``faas.wasi.wit``."""
