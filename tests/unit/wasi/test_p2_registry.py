"""Promises of the registries of wasi:io, wasi:clocks, wasi:random, wasi:cli and wasi:http."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import pytest

from faas.wasi import wit
from faas.wasi.p2 import cli, clocks, http, io, random
from faas.wasi.p2.resources import ComponentFunction

FUNCTIONS: dict[str, Mapping[str, ComponentFunction]] = {
    **io.FUNCTIONS,
    **clocks.FUNCTIONS,
    **random.FUNCTIONS,
    **cli.FUNCTIONS,
    **http.FUNCTIONS,
}
PACKAGES = ("wasi:io", "wasi:clocks", "wasi:random", "wasi:cli", "wasi:http")
IMPORTED = {
    name: interface
    for name, interface in wit.interfaces().items()
    if name.startswith(tuple(f"{package}/" for package in PACKAGES)) and name not in wit.EXPORTED
}
CASES = [(name, function) for name, interface in IMPORTED.items() for function in interface.functions.values()]


def test_the_packages_are_all_there() -> None:
    assert {name.split("/")[0] for name in IMPORTED} == set(PACKAGES)
    assert len(CASES) > 90


@pytest.mark.parametrize("name", IMPORTED)
def test_every_function_of_an_interface_is_there_and_no_other(name: str) -> None:
    assert set(FUNCTIONS[name]) == set(IMPORTED[name].functions)


def test_no_interface_is_there_that_wit_does_not_have() -> None:
    assert set(FUNCTIONS) == set(IMPORTED)


@pytest.mark.parametrize(("interface", "function"), CASES, ids=lambda case: getattr(case, "name", case))
def test_a_function_takes_the_guest_and_its_parameters(interface: str, function: wit.Function) -> None:
    call = FUNCTIONS[interface][function.name].call
    assert len(inspect.signature(call).parameters) == 1 + len(function.params)


@pytest.mark.parametrize(("interface", "function"), CASES, ids=lambda case: getattr(case, "name", case))
def test_what_may_wait_says_so(interface: str, function: wit.Function) -> None:
    registered = FUNCTIONS[interface][function.name]
    assert ("Awaitable" in str(inspect.signature(registered.call).return_annotation)) is registered.may_suspend
