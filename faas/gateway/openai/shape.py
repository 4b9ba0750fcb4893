"""Where our errors become OpenAI's: the one gate between ``FaasError`` and ``{"error": {...}}``."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from aiohttp import web

from faas import problems
from faas.errors import (
    FaasError,
    GrammarInvalidError,
    InternalError,
    MalformedRequestError,
    ModelNotFoundError,
    OptionsInvalidError,
    PromptTooLongError,
    QuotaExceededError,
    RouteNotFoundError,
)

_CODES: dict[type[FaasError], str | None] = {
    MalformedRequestError: None,  # ``facts["api_code"]`` may know better
    OptionsInvalidError: "invalid_value",
    GrammarInvalidError: "invalid_grammar",
    PromptTooLongError: "context_length_exceeded",
    ModelNotFoundError: "model_not_found",
    RouteNotFoundError: "unknown_url",
    QuotaExceededError: "rate_limit_exceeded",
}
_PARAMS: dict[type[FaasError], str] = {ModelNotFoundError: "model"}

_AT = re.compile(r" - at (`key` in )?`\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")


def refusal(message: str, *, param: str | None = None, code: str | None = "invalid_value") -> MalformedRequestError:
    """Return the error of a request that is not as the API wants it; *param* is the parameter to blame."""
    return MalformedRequestError(message, param=param, api_code=code)


def from_validation(exc: Exception) -> MalformedRequestError:
    """Return the error for a body that is no JSON, or JSON of another form, naming the parameter."""
    if not isinstance(exc, msgspec.ValidationError):
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        return refusal(f"the request body is not valid JSON: {reason}", code="invalid_json")
    text = str(exc)
    at = _AT.search(text)
    path = at.group("path") if at else ""
    said = text[: at.start()] if at else text
    missing = _MISSING.match(said)
    if missing:
        param = f"{path}.{missing.group('field')}" if path else missing.group("field")
        return refusal(f"missing required parameter: '{param}'", param=param, code="missing_required_parameter")
    code = "invalid_type" if ", got " in said else "invalid_value"
    if not path:
        return refusal(f"the request body is not as expected: {said}", code=code)
    return refusal(f"invalid value for '{path}': {said[0].lower()}{said[1:]}", param=path, code=code)


def error_object(error: FaasError) -> dict[str, Any]:
    """Return *error* as ``{"error": {"message", "type", "param", "code"}}``."""
    code = _CODES.get(type(error), error.code.replace("-", "_"))
    return {
        "error": {
            "message": error.message,
            "type": _type_of(error),
            "param": error.facts.get("param", _PARAMS.get(type(error))),
            "code": error.facts.get("api_code", code),
        }
    }


def error_response(error: FaasError, request_id: str) -> web.Response:
    """Return *error* as a whole reply, with ``Retry-After`` where trying again helps."""
    return web.Response(
        status=problems.status_of(error),
        body=msgspec.json.encode(error_object(error)),
        headers={"Content-Type": "application/json", "X-Request-Id": request_id, **problems.headers_of(error)},
    )


def _type_of(error: FaasError) -> str:
    if isinstance(error, QuotaExceededError):
        return "tokens"
    if isinstance(error, InternalError) or problems.status_of(error) >= 500:
        return "server_error"
    return "invalid_request_error"
