"""Where our errors become HTTP responses, once for the whole data plane."""

from __future__ import annotations

import json

from aiohttp import web

from faas import problems
from faas.errors import (
    BusyError,
    ClientGoneError,
    CpuLimitError,
    DeadlineExceededError,
    FaasError,
    MemoryLimitError,
    NotServedError,
    OutputLimitError,
    RequestError,
)
from faas.gateway.lane import Reply
from faas.invocation import Outcome


def problem_response(error: FaasError, request_id: str) -> web.Response:
    """Return *error* as problem+json, as aiohttp sends it."""
    return problem_reply(error, request_id).response()


def problem_reply(error: FaasError, request_id: str, headers: dict[str, str] | None = None) -> Reply:
    """Return *error* as problem+json; backtraces stay in the log."""
    problem = problems.to_problem(error, request_id)
    problem.pop("trace", None)
    return Reply(
        problem["status"],
        json.dumps(problem).encode(),
        {
            "Content-Type": problems.CONTENT_TYPE,
            **problems.headers_of(error),
            **(headers or ({"X-Request-Id": request_id} if request_id else {})),
        },
    )


def outcome_of(error: FaasError) -> Outcome:
    """Return the outcome under which *error* is counted."""
    if isinstance(error, ClientGoneError):
        return Outcome.CANCELLED
    if isinstance(error, (DeadlineExceededError, CpuLimitError, MemoryLimitError, OutputLimitError)):
        return Outcome.LIMITED
    if isinstance(error, (BusyError, RequestError, NotServedError)):
        return Outcome.REFUSED
    return Outcome.FAILED
