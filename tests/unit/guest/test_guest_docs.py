"""The page that others implement faas_v1 by names every function, errno and limit of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from faas.guest.errno import Errno
from faas.guest.signatures import SIGNATURES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/abi.md").read_text().partition("\n## faas_v1\n")[2]
SDKS = [ROOT / "functions/sdk/c/faas_v1.h", ROOT / "functions/sdk/rust/faas/src/v1.rs"]


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_every_function_is_documented_with_its_parameters(name: str) -> None:
    found = re.search(rf"^\| `{name}\(([^)]*)\)` \|", PAGE, re.MULTILINE)
    assert found is not None
    letters = ["I" if ": i64" in parameter else "i" for parameter in found[1].split(", ")]
    assert "".join(letters) == SIGNATURES[name][0]


@pytest.mark.parametrize("errno", list(Errno))
def test_every_errno_is_documented_with_its_number(errno: Errno) -> None:
    assert f"| {errno.value} | {errno.name.lower().replace('_', '-')} |" in PAGE


@pytest.mark.parametrize("sdk", SDKS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_both_sdks_know_every_function(sdk: Path, name: str) -> None:
    assert re.search(rf"(IMPORT\({name}\)|pub fn {name}\()", sdk.read_text())


@pytest.mark.parametrize("errno", [errno for errno in Errno if errno])
def test_both_sdks_have_the_numbers_of_the_errnos(errno: Errno) -> None:
    header, crate = (sdk.read_text() for sdk in SDKS)
    assert re.search(rf"\bFAAS_{errno.name} = {errno.value}\b", header)
    assert f"pub const {errno.name}: Error = Error({errno.value});" in crate
