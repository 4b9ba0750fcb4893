"""Errors as RFC 9457 documents: every leaf has a status, and a document leads back to its error."""

from __future__ import annotations

import json

import pytest

from faas import errors, problems
from faas.errors import FaasError, leaves

LEAVES = leaves()


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_every_leaf_has_a_status(leaf: type[FaasError]) -> None:
    assert 400 <= problems.STATUS[leaf] <= 599


def test_only_leaves_have_a_status() -> None:
    assert set(problems.STATUS) == set(LEAVES)


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_a_problem_leads_back_to_its_error(leaf: type[FaasError]) -> None:
    there = problems.to_problem(leaf("what happened", fact=[1, 2]), "req-1")
    back = problems.from_problem(json.loads(json.dumps(there)))
    assert type(back) is leaf
    assert back.message == "what happened"
    assert back.facts == {"fact": [1, 2]}


def test_a_problem_has_the_members_of_rfc_9457_and_the_code() -> None:
    problem = problems.to_problem(errors.GuestTrapError("it trapped", reason="unreachable"), "req-1")
    assert problem == {
        "type": "urn:faas:problem:guest-trap",
        "title": "guest trap",
        "status": 502,
        "code": "guest-trap",
        "detail": "it trapped",
        "request_id": "req-1",
        "reason": "unreachable",
    }


def test_facts_never_hide_a_standard_member() -> None:
    problem = problems.to_problem(errors.GuestTrapError("it trapped", status=200, detail="fine"))
    assert problem["status"] == 502
    assert problem["detail"] == "it trapped"


def test_a_foreign_problem_document_becomes_an_internal_error() -> None:
    error = problems.from_problem({"title": "Bad Gateway"})
    assert type(error) is errors.InternalError
    assert error.message


@pytest.mark.parametrize(("wait_s", "header"), [(0.2, "1"), (1.0, "1"), (4.2, "5")])
def test_overload_says_when_to_try_again_in_whole_seconds(wait_s: float, header: str) -> None:
    assert problems.headers_of(errors.OverloadedError("full", retry_after_s=wait_s)) == {"Retry-After": header}


def test_a_wrong_method_names_the_right_ones() -> None:
    assert problems.headers_of(errors.MethodNotAllowedError("no", allow=["GET", "HEAD"])) == {"Allow": "GET, HEAD"}


@pytest.mark.parametrize("error", [errors.UnauthorizedError, errors.InvalidApiKeyError])
def test_a_wrong_token_says_which_scheme_is_wanted(error: type[FaasError]) -> None:
    assert problems.headers_of(error("no"))["WWW-Authenticate"].startswith("Bearer ")
