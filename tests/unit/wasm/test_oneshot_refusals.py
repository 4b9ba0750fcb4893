"""What a one-shot run refuses, and what it says to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from faas.errors import UnknownImportsError
from faas.wasm.oneshot import run_once

SERVICES = Path(__file__).parents[3] / "functions/services"


@pytest.mark.parametrize("name", ["services-c.wasm", "services-rust.wasm"])
def test_a_program_that_needs_a_host_is_refused_with_the_way_to_one(name: str) -> None:
    with pytest.raises(UnknownImportsError, match=r"faas_v1: .*faas serve, then faas deploy"):
        run_once(SERVICES / name, (), {}, ())
