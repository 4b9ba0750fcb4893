"""Core modules that get a second number: the engine counts them, so a component that has them is refused."""

from __future__ import annotations

import component_wat as wat
import pytest

from faas.errors import InvalidModuleError
from precompile.component import read_component

MODULE = "(core module $m)"


@pytest.mark.parametrize(
    "again",
    [
        '(instance $bag (export "m" (core module $m))) (alias export $bag "m" (core module $again))',
        '(component $c (core module (export "m"))) (instance $i (instantiate $c))'
        ' (alias export $i "m" (core module $again))',
        '(export "m" (core module $m))',
    ],
    ids=["bag", "component", "export"],
)
def test_a_module_with_two_numbers_is_refused(again: str) -> None:
    wasm = wat.component(MODULE, again, wat.STREAMS, wat.LIBC)
    with pytest.raises(InvalidModuleError, match="shared between components are not read; build it in one piece"):
        read_component(wasm)


def test_a_module_with_one_number_is_read() -> None:
    bag = '(instance $bag (export "m" (core module $m)))'
    assert len(read_component(wat.component(MODULE, bag, wat.STREAMS, wat.LIBC)).modules) == 2
