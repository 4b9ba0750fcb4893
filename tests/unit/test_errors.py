"""The error tree keeps its own promises: unique codes, an outline that is true, messages that travel."""

from __future__ import annotations

import re

import pytest

from faas import errors
from faas.errors import FaasError, leaves

LEAVES = leaves()
OUTLINE = re.compile(r"^[│ ├└─]*(\w+Error)(?: +([a-z][a-z-]+)(?: |$))?", re.MULTILINE)


def tree(cls: type[FaasError] = FaasError) -> set[type[FaasError]]:
    return {cls}.union(*(tree(sub) for sub in cls.__subclasses__()))


def outline() -> dict[str, str]:
    """Return the drawn classes and their codes."""
    assert errors.__doc__
    return {found[1]: found[2] or "" for found in OUTLINE.finditer(errors.__doc__)}


def test_no_two_leaves_share_a_code() -> None:
    codes = [leaf.code for leaf in LEAVES]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_a_leaf_has_a_slug_of_its_own_as_code(leaf: type[FaasError]) -> None:
    assert "code" in vars(leaf)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", leaf.code)


def test_the_outline_draws_every_class_and_no_other() -> None:
    assert set(outline()) == {cls.__name__ for cls in tree()}


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_the_outline_tells_the_code_of_every_leaf(leaf: type[FaasError]) -> None:
    assert outline()[leaf.__name__] == leaf.code


@pytest.mark.parametrize("cls", sorted(tree(), key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_every_class_says_what_happened(cls: type[FaasError]) -> None:
    assert cls.__doc__
    assert cls.__doc__ != FaasError.__doc__ or cls is FaasError


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_a_code_leads_back_to_its_class(leaf: type[FaasError]) -> None:
    assert errors.by_code(leaf.code) is leaf


def test_an_unknown_code_is_an_internal_error() -> None:
    assert errors.by_code("from-the-future") is errors.InternalError


def test_the_message_is_what_str_shows_and_facts_are_kept() -> None:
    error = errors.GuestExitError("it exited", exit_code=3)
    assert str(error) == error.message == "it exited"
    assert error.facts == {"exit_code": 3}
