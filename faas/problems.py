"""
The one place that knows HTTP statuses: turns our errors into RFC 9457 problem documents and back.

Source: RFC 9457 (Problem Details for HTTP APIs).
"""

from __future__ import annotations

import math
from typing import Any

from faas import errors

CONTENT_TYPE = "application/problem+json"

STATUS: dict[type[errors.FaasError], int] = {
    errors.ConfigError: 400,
    errors.HomeLockedError: 409,
    errors.PortTakenError: 409,
    errors.HostUnreachableError: 503,
    errors.WorkerLostError: 503,
    errors.StateError: 500,
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.TokenNotFoundError: 404,
    errors.TokenTakenError: 409,
    errors.BadRequestError: 400,
    errors.VersionInUseError: 409,
    errors.CanaryRunningError: 409,
    errors.CanaryNotFoundError: 404,
    errors.KeyNotFoundError: 404,
    errors.KeyTakenError: 409,
    errors.KvDeniedError: 403,
    errors.KvKeyInvalidError: 400,
    errors.KvConflictError: 409,
    errors.KvTooLargeError: 413,
    errors.KvFullError: 507,
    errors.KvNotFoundError: 404,
    errors.KvGrantNotFoundError: 404,
    errors.SettingNotFoundError: 404,
    errors.SettingsTooLargeError: 413,
    errors.SecretsKeyError: 500,
    errors.JobNotFoundError: 404,
    errors.JobFinishedError: 409,
    errors.JobUnfinishedError: 409,
    errors.ResultNotKeptError: 410,
    errors.IdempotencyConflictError: 422,
    errors.CallbackRefusedError: 403,
    errors.ScheduleNotFoundError: 404,
    errors.SignatureInvalidError: 401,
    errors.WebhookSecretMissingError: 503,
    errors.DeliveryUnderWayError: 409,
    errors.ManifestError: 422,
    errors.NotWasmError: 422,
    errors.InvalidModuleError: 422,
    errors.UnknownImportsError: 422,
    errors.UnknownKindError: 422,
    errors.MemoryTooLargeError: 422,
    errors.CompileLimitError: 422,
    errors.CompileFailedError: 422,
    errors.PreinitError: 422,
    errors.StartFailedError: 422,
    errors.RouteTakenError: 409,
    errors.UploadTooLargeError: 413,
    errors.ArtifactMissingError: 500,
    errors.ArtifactTamperedError: 500,
    errors.FunctionNotFoundError: 404,
    errors.VersionNotFoundError: 404,
    errors.AliasNotFoundError: 404,
    errors.RouteNotFoundError: 404,
    errors.CallDeniedError: 403,
    errors.CallDepthError: 508,
    errors.MethodNotAllowedError: 405,
    errors.BodyTooLargeError: 413,
    errors.HeadTooLargeError: 431,
    errors.TargetTooLongError: 414,
    errors.HttpVersionError: 505,
    errors.RequestTimeoutError: 408,
    errors.InvokeKeyError: 401,
    errors.MalformedRequestError: 400,
    errors.OverloadedError: 503,
    errors.RateLimitedError: 429,
    errors.ConcurrencyLimitError: 429,
    errors.GuestTrapError: 502,
    errors.GuestExitError: 502,
    errors.MalformedResponseError: 502,
    errors.RedirectLoopError: 502,
    errors.DeadlineExceededError: 504,
    errors.CpuLimitError: 504,
    errors.MemoryLimitError: 507,
    errors.OutputLimitError: 507,
    errors.ClientGoneError: 499,  # nginx's number; nobody is left to read it, but the log shows it
    errors.InvalidApiKeyError: 401,
    errors.ModelsMissingError: 501,
    errors.ModelNotFoundError: 404,
    errors.ModelNotGrantedError: 403,
    errors.ModelFileError: 422,
    errors.ModelOverBudgetError: 507,
    errors.ModelUnavailableError: 503,
    errors.PromptTooLongError: 400,
    errors.PromptInvalidError: 400,
    errors.GrammarInvalidError: 400,
    errors.OptionsInvalidError: 400,
    errors.GenerationFailedError: 500,
    errors.QuotaExceededError: 429,
    errors.ProtocolError: 500,
    errors.FrameTooLargeError: 500,
    errors.PeerGoneError: 503,
    errors.InternalError: 500,
}


def status_of(error: errors.FaasError) -> int:
    """Return the HTTP status of *error*; 500 for a class without a row."""
    return STATUS.get(type(error), 500)


def to_problem(error: errors.FaasError, request_id: str = "") -> dict[str, Any]:
    """Return the problem document of *error*; its ``code`` is stable, ``detail`` is for people."""
    problem: dict[str, Any] = {
        "type": f"urn:faas:problem:{error.code}",
        "title": error.code.replace("-", " "),
        "status": status_of(error),
        "code": error.code,
        "detail": error.message,
    }
    if request_id:
        problem["request_id"] = request_id
    for key, value in error.facts.items():
        problem.setdefault(key, value)
    return problem


def from_problem(problem: dict[str, Any]) -> errors.FaasError:
    """Return the error that *problem* describes, for clients of our own APIs."""
    standard = {"type", "title", "status", "code", "detail", "request_id"}
    facts = {key: value for key, value in problem.items() if key not in standard}
    cls = errors.by_code(str(problem.get("code", "")))
    return cls(str(problem.get("detail", "the host gave no reason")), **facts)


def headers_of(error: errors.FaasError) -> dict[str, str]:
    """Return the headers that go with *error*: ``Retry-After``, ``Allow``, ``WWW-Authenticate``."""
    if isinstance(error, (errors.BusyError, errors.ModelUnavailableError, errors.QuotaExceededError)):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, errors.MethodNotAllowedError):
        return {"Allow": ", ".join(error.facts.get("allow", []))}
    if isinstance(error, errors.UnauthorizedError):
        return {"WWW-Authenticate": 'Bearer realm="faas admin"'}
    if isinstance(error, errors.InvokeKeyError):
        return {"WWW-Authenticate": 'Bearer realm="faas functions"'}
    if isinstance(error, errors.InvalidApiKeyError):
        return {"WWW-Authenticate": 'Bearer realm="faas models"'}
    return {}
