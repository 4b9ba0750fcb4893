"""
Every error this product raises: the class is its fate, its fields are the facts, ``code`` is its stable slug.

FaasError
├── ConfigError                     config-invalid          a setting is out of range, unknown or unreadable
├── HostError                       the host itself can't do what was asked
│   ├── HomeLockedError             home-locked             another host already uses this home
│   ├── PortTakenError              port-taken              another program listens there
│   ├── HostUnreachableError        host-unreachable        no host answers on the admin port
│   ├── WorkerLostError             worker-lost             a worker went away in the middle of an operation
│   └── StateError                  state-failed            the state database refused
├── AdminError                      the admin API refuses the caller
│   ├── UnauthorizedError           unauthorized
│   ├── ForbiddenError              forbidden               the token's role is too low
│   ├── TokenNotFoundError          token-not-found         no admin token has that name
│   ├── TokenTakenError             token-taken             an admin token has that name
│   ├── BadRequestError             bad-request
│   ├── VersionInUseError           version-in-use          an alias names the version
│   ├── CanaryRunningError          canary-running          the alias' traffic is the canary's
│   ├── CanaryNotFoundError         canary-not-found        no canary runs there
│   ├── KeyNotFoundError            key-not-found           no API key has that name
│   └── KeyTakenError               key-taken               an API key has that name
├── StoreError                      a key-value store refuses an operation
│   ├── KvDeniedError               kv-denied               not granted, or to read only
│   ├── KvKeyInvalidError           kv-key-invalid          empty, too long, or with a NUL
│   ├── KvConflictError             kv-conflict             what is there is no number to add to
│   ├── KvTooLargeError             kv-too-large            a value, or several at once
│   ├── KvFullError                 kv-full                 the store's size
│   ├── KvNotFoundError             kv-not-found            nothing is under that key
│   └── KvGrantNotFoundError        kv-grant-not-found
├── SettingError                    config values and secrets
│   ├── SettingNotFoundError        setting-not-found
│   ├── SettingsTooLargeError       settings-too-large
│   └── SecretsKeyError             secrets-key             the key does not open what is kept
├── JobError                        a job, a schedule, or a webhook's delivery
│   ├── JobNotFoundError            job-not-found
│   ├── JobFinishedError            job-finished            too late for that
│   ├── JobUnfinishedError          job-unfinished          too early for that
│   ├── ResultNotKeptError          result-not-kept         it was over the function's max_result_bytes
│   ├── IdempotencyConflictError    idempotency-conflict    another request had that key
│   ├── CallbackRefusedError        callback-refused        capabilities.outbound does not allow the URL
│   ├── ScheduleNotFoundError       schedule-not-found
│   ├── SignatureInvalidError       signature-invalid       a webhook's request that is not signed as it has to be
│   ├── WebhookSecretMissingError   webhook-secret-missing  nothing to check a signature with
│   └── DeliveryUnderWayError       delivery-under-way      the same delivery is being served just now
├── DeployError                     nothing was deployed; the old version still serves
│   ├── ManifestError               manifest-invalid
│   ├── NotWasmError                not-wasm
│   ├── InvalidModuleError          module-invalid
│   ├── UnknownImportsError         unknown-imports
│   ├── UnknownKindError            kind-unknown
│   ├── MemoryTooLargeError         memory-too-large
│   ├── CompileLimitError           compile-limit
│   ├── CompileFailedError          compile-failed
│   ├── PreinitError                preinit-failed
│   ├── StartFailedError            start-failed
│   ├── RouteTakenError             route-taken
│   └── UploadTooLargeError         upload-too-large
├── ArtifactError                   a stored artifact can't be used
│   ├── ArtifactMissingError        artifact-missing
│   └── ArtifactTamperedError       artifact-tampered
├── NotServedError                  the request reached nothing
│   ├── FunctionNotFoundError       function-not-found
│   ├── VersionNotFoundError        version-not-found       the function has no such version
│   ├── AliasNotFoundError          alias-not-found         the function has no such alias
│   ├── RouteNotFoundError          route-not-found
│   ├── CallDeniedError             call-denied             the caller's manifest does not name the function
│   ├── CallDepthError              call-depth              functions called each other too deep
│   └── MethodNotAllowedError       method-not-allowed
├── RequestError                    the request itself can't be served
│   ├── BodyTooLargeError           body-too-large
│   ├── HeadTooLargeError           head-too-large          a header, or all of them together
│   ├── TargetTooLongError          target-too-long
│   ├── HttpVersionError            http-version            neither HTTP/1.1 nor HTTP/1.0
│   ├── RequestTimeoutError         request-timeout         the client was too slow to send it
│   ├── InvokeKeyError              invalid-invoke-key      no invoke key, or none of this function's
│   └── MalformedRequestError       malformed-request
├── BusyError                       try again after ``retry_after_s``
│   ├── OverloadedError             overloaded
│   ├── RateLimitedError            rate-limited            an invoke key's requests per minute
│   └── ConcurrencyLimitError       concurrency-limit       the function's own limit
├── InvocationError                 the guest ran and did not answer
│   ├── GuestTrapError              guest-trap
│   ├── GuestExitError              guest-exit
│   ├── MalformedResponseError      malformed-response
│   ├── RedirectLoopError           redirect-loop
│   ├── DeadlineExceededError       deadline-exceeded
│   ├── CpuLimitError               cpu-limit
│   ├── MemoryLimitError            memory-limit
│   ├── OutputLimitError            output-limit
│   └── ClientGoneError             client-gone
├── ModelError                      a model request can't be served
│   ├── InvalidApiKeyError          invalid-api-key         no API key, or none of this host's
│   ├── ModelsMissingError          models-missing          the models extra is not installed
│   ├── ModelNotFoundError          model-not-found
│   ├── ModelNotGrantedError        model-not-granted       the manifest does not name it
│   ├── ModelFileError              model-file-invalid      no GGUF, truncated, or refused by the library
│   ├── ModelOverBudgetError        model-over-budget       larger than the memory budget
│   ├── ModelUnavailableError       model-unavailable       the model server is away; try again
│   ├── PromptTooLongError          prompt-too-long
│   ├── PromptInvalidError          prompt-invalid          not UTF-8
│   ├── GrammarInvalidError         grammar-invalid         neither GBNF nor a JSON schema we can follow
│   ├── OptionsInvalidError         options-invalid         a sampling option out of its range or of a wrong type
│   ├── GenerationFailedError       generation-failed       the library failed while it decoded
│   └── QuotaExceededError          quota-exceeded          tokens per minute; try again after ``retry_after_s``
├── WireError                       bytes between processes
│   ├── ProtocolError               wire-protocol
│   ├── FrameTooLargeError          wire-frame-too-large
│   └── PeerGoneError               wire-peer-gone
└── InternalError                   internal-error          a bug of ours; the log has the traceback

A message says what is wrong and what to do next, in one line.
HTTP statuses are not here: ``faas.problems`` has one row for each leaf, and a test keeps it so.
"""

from __future__ import annotations

from typing import Any, ClassVar


class FaasError(Exception):
    """Base of everything we raise on purpose; lives as long as it is being reported."""

    code: ClassVar[str] = "faas-error"

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts: dict[str, Any] = facts


class ConfigError(FaasError):
    """A setting is unknown, unreadable or out of its range."""

    code = "config-invalid"


class HostError(FaasError):
    """The host itself can't do what was asked."""


class HomeLockedError(HostError):
    """Another host already serves from this home."""

    code = "home-locked"


class PortTakenError(HostError):
    """Another program already listens on that address."""

    code = "port-taken"


class HostUnreachableError(HostError):
    """No host answers on the admin port."""

    code = "host-unreachable"


class WorkerLostError(HostError):
    """A worker process went away in the middle of an operation."""

    code = "worker-lost"


class StateError(HostError):
    """The state database refused an operation."""

    code = "state-failed"


class AdminError(FaasError):
    """The admin API refuses the caller."""


class UnauthorizedError(AdminError):
    """The bearer token is missing or wrong."""

    code = "unauthorized"


class ForbiddenError(AdminError):
    """The token is one of this host's, but its role does not allow that (``facts['role']`` would)."""

    code = "forbidden"


class TokenNotFoundError(AdminError):
    """No admin token has that name."""

    code = "token-not-found"


class TokenTakenError(AdminError):
    """An admin token has that name already, or none may have it."""

    code = "token-taken"


class BadRequestError(AdminError):
    """The admin request does not have the documented form."""

    code = "bad-request"


class VersionInUseError(AdminError):
    """The version can't be removed, since something names it."""

    code = "version-in-use"


class CanaryRunningError(AdminError):
    """The alias' traffic is a canary's, which has to end first."""

    code = "canary-running"


class CanaryNotFoundError(AdminError):
    """No canary runs for that alias."""

    code = "canary-not-found"


class KeyNotFoundError(AdminError):
    """No API key has that name."""

    code = "key-not-found"


class KeyTakenError(AdminError):
    """An API key has that name already, or none may have it."""

    code = "key-taken"


class StoreError(FaasError):
    """A key-value store refuses an operation."""


class KvDeniedError(StoreError):
    """The store is not granted to the function, or to read only."""

    code = "kv-denied"


class KvKeyInvalidError(StoreError):
    """A key is empty, too long or has a NUL in it; or a time to live is out of its range."""

    code = "kv-key-invalid"


class KvConflictError(StoreError):
    """What is under the key is no number, or would leave the range of one."""

    code = "kv-conflict"


class KvTooLargeError(StoreError):
    """A value is over the host's limit, or several at once are."""

    code = "kv-too-large"


class KvFullError(StoreError):
    """The store would hold more than the host's limit (``facts['limit_bytes']``)."""

    code = "kv-full"


class KvNotFoundError(StoreError):
    """Nothing is under that key."""

    code = "kv-not-found"


class KvGrantNotFoundError(StoreError):
    """The store is not granted to that function."""

    code = "kv-grant-not-found"


class SettingError(FaasError):
    """A config value or a secret can't be set, unset or opened."""


class SettingNotFoundError(SettingError):
    """The function has no config value, or no secret, of that name."""

    code = "setting-not-found"


class SettingsTooLargeError(SettingError):
    """Config values and secrets would take more than they may."""

    code = "settings-too-large"


class SecretsKeyError(SettingError):
    """The key of the secrets is missing, malformed, or not the one that sealed what is kept."""

    code = "secrets-key"


class JobError(FaasError):
    """A job, a schedule or a webhook's delivery is not as the request takes it to be."""


class JobNotFoundError(JobError):
    """No job has that id, or it was kept long enough."""

    code = "job-not-found"


class JobFinishedError(JobError):
    """The job is finished, so that can't be done with it any more."""

    code = "job-finished"


class JobUnfinishedError(JobError):
    """The job is not finished yet."""

    code = "job-unfinished"


class ResultNotKeptError(JobError):
    """The function answered more than its ``max_result_bytes``, so the body was not kept."""

    code = "result-not-kept"


class IdempotencyConflictError(JobError):
    """Another request had the same idempotency key."""

    code = "idempotency-conflict"


class CallbackRefusedError(JobError):
    """The URL for word of the finished job is none that the function may reach."""

    code = "callback-refused"


class ScheduleNotFoundError(JobError):
    """The function has no such schedule that is enabled."""

    code = "schedule-not-found"


class SignatureInvalidError(JobError):
    """The request to a webhook is not signed, wrongly signed, or too old."""

    code = "signature-invalid"


class WebhookSecretMissingError(JobError):
    """The secret that a webhook's signatures are checked with is not set, so nothing is accepted."""

    code = "webhook-secret-missing"


class DeliveryUnderWayError(JobError):
    """The same delivery of a webhook is being served just now."""

    code = "delivery-under-way"


class DeployError(FaasError):
    """A deploy was refused: nothing of it stays behind, the old version still serves."""


class ManifestError(DeployError):
    """The manifest has an unknown key, or a value out of its range."""

    code = "manifest-invalid"


class NotWasmError(DeployError):
    """The file does not begin like WebAssembly."""

    code = "not-wasm"


class InvalidModuleError(DeployError):
    """The file begins like WebAssembly but is truncated or does not validate."""

    code = "module-invalid"


class UnknownImportsError(DeployError):
    """The module imports what this host does not offer, or was not granted."""

    code = "unknown-imports"


class UnknownKindError(DeployError):
    """The exports match none of the kinds of function."""

    code = "kind-unknown"


class MemoryTooLargeError(DeployError):
    """The module's memory or table does not fit into a slot of the pool."""

    code = "memory-too-large"


class CompileLimitError(DeployError):
    """Compiling took more time or memory than a compile job may."""

    code = "compile-limit"


class CompileFailedError(DeployError):
    """The compiler refused a module that validates."""

    code = "compile-failed"


class PreinitError(DeployError):
    """The snapshot step failed."""

    code = "preinit-failed"


class StartFailedError(DeployError):
    """A trial instance could not be made: the start function loops or traps."""

    code = "start-failed"


class RouteTakenError(DeployError):
    """Another function already answers on that route."""

    code = "route-taken"


class UploadTooLargeError(DeployError):
    """The upload is over the host's size limit."""

    code = "upload-too-large"


class ArtifactError(FaasError):
    """A stored artifact can't be used."""


class ArtifactMissingError(ArtifactError):
    """The artifact is not in the store."""

    code = "artifact-missing"


class ArtifactTamperedError(ArtifactError):
    """The artifact's bytes are not the ones that were stored under its key."""

    code = "artifact-tampered"


class NotServedError(FaasError):
    """The request reached nothing."""


class FunctionNotFoundError(NotServedError):
    """No function of that name is deployed."""

    code = "function-not-found"


class VersionNotFoundError(NotServedError):
    """The function has no version of that number, any more or yet."""

    code = "version-not-found"


class AliasNotFoundError(NotServedError):
    """The function has no alias of that name."""

    code = "alias-not-found"


class RouteNotFoundError(NotServedError):
    """No function answers on that path."""

    code = "route-not-found"


class CallDeniedError(NotServedError):
    """A function called another one that its manifest does not name."""

    code = "call-denied"


class CallDepthError(NotServedError):
    """Functions called each other deeper than the host allows."""

    code = "call-depth"


class MethodNotAllowedError(NotServedError):
    """The path is served, but not for that method (``facts['allow']`` names those that are)."""

    code = "method-not-allowed"


class RequestError(FaasError):
    """The request itself can't be served."""


class BodyTooLargeError(RequestError):
    """The request body is over the function's ``max_body_bytes``."""

    code = "body-too-large"


class HeadTooLargeError(RequestError):
    """A header of the request is too long, or there are too many."""

    code = "head-too-large"


class TargetTooLongError(RequestError):
    """The request's target, its path and query, is too long."""

    code = "target-too-long"


class HttpVersionError(RequestError):
    """The request is of a version of HTTP that is not spoken here."""

    code = "http-version"


class RequestTimeoutError(RequestError):
    """The client did not send its request, or went on with its body, in time."""

    code = "request-timeout"


class InvokeKeyError(RequestError):
    """The request to a function that asks for an invoke key has none, or one that is not of this function."""

    code = "invalid-invoke-key"


class MalformedRequestError(RequestError):
    """The request can't be given to a guest as it is."""

    code = "malformed-request"


class BusyError(FaasError):
    """Nothing is wrong but the moment; the caller may try again after ``retry_after_s``."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class OverloadedError(BusyError):
    """No slot of the host became free in time, or the worker is draining."""

    code = "overloaded"


class RateLimitedError(BusyError):
    """The invoke key has used up its requests per minute."""

    code = "rate-limited"


class ConcurrencyLimitError(BusyError):
    """All instances that the function may have at once are busy, and its queue is too long."""

    code = "concurrency-limit"


class InvocationError(FaasError):
    """The guest ran and did not answer as it should."""


class GuestTrapError(InvocationError):
    """The guest trapped."""

    code = "guest-trap"


class GuestExitError(InvocationError):
    """The guest exited with a non-zero code (``facts['exit_code']``)."""

    code = "guest-exit"


class MalformedResponseError(InvocationError):
    """What the guest wrote is not a response of its kind."""

    code = "malformed-response"


class RedirectLoopError(InvocationError):
    """Local redirects went round more often than allowed."""

    code = "redirect-loop"


class DeadlineExceededError(InvocationError):
    """The invocation's wall deadline passed."""

    code = "deadline-exceeded"


class CpuLimitError(InvocationError):
    """The guest used up its CPU budget."""

    code = "cpu-limit"


class MemoryLimitError(InvocationError):
    """The guest failed after it asked for more memory than it may have."""

    code = "memory-limit"


class OutputLimitError(InvocationError):
    """The guest wrote more output than it may."""

    code = "output-limit"


class ClientGoneError(InvocationError):
    """The client went away, so the guest was cancelled."""

    code = "client-gone"


class ModelError(FaasError):
    """A model request can't be served."""


class InvalidApiKeyError(ModelError):
    """The request to an OpenAI-compatible endpoint has no API key, or one that is not of this host."""

    code = "invalid-api-key"


class ModelsMissingError(ModelError):
    """This host runs without the models extra."""

    code = "models-missing"


class ModelNotFoundError(ModelError):
    """No model of that name is registered."""

    code = "model-not-found"


class ModelNotGrantedError(ModelError):
    """The function's manifest does not name the model."""

    code = "model-not-granted"


class ModelFileError(ModelError):
    """The model's file is no GGUF, is truncated, or the library refuses it."""

    code = "model-file-invalid"


class ModelOverBudgetError(ModelError):
    """The model does not fit into the memory budget, even alone."""

    code = "model-over-budget"


class ModelUnavailableError(ModelError):
    """The model server is away or restarting; the caller may try again after ``retry_after_s``."""

    code = "model-unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class PromptTooLongError(ModelError):
    """The prompt's tokens don't fit into the context."""

    code = "prompt-too-long"


class PromptInvalidError(ModelError):
    """The prompt is not UTF-8."""

    code = "prompt-invalid"


class GrammarInvalidError(ModelError):
    """The grammar is no GBNF, or the JSON schema can't be turned into one."""

    code = "grammar-invalid"


class OptionsInvalidError(ModelError):
    """A sampling option is out of its range or of the wrong type."""

    code = "options-invalid"


class GenerationFailedError(ModelError):
    """The model library failed while it decoded."""

    code = "generation-failed"


class QuotaExceededError(ModelError):
    """The tokens-per-minute limit is reached; the caller may try again after ``retry_after_s``."""

    code = "quota-exceeded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class WireError(FaasError):
    """Something went wrong with the bytes between two of our processes."""


class ProtocolError(WireError):
    """The peer sent what the protocol does not allow."""

    code = "wire-protocol"


class FrameTooLargeError(WireError):
    """A frame is over the cap."""

    code = "wire-frame-too-large"


class PeerGoneError(WireError):
    """The peer closed the connection."""

    code = "wire-peer-gone"


class InternalError(FaasError):
    """A bug of ours."""

    code = "internal-error"


def leaves(cls: type[FaasError] = FaasError) -> list[type[FaasError]]:
    """Return every error class without subclasses below *cls*, depth first."""
    subclasses = cls.__subclasses__()
    if not subclasses:
        return [cls]
    return [leaf for sub in subclasses for leaf in leaves(sub)]


def by_code(code: str) -> type[FaasError]:
    """Return the leaf class with that ``code``; InternalError for a code we don't know."""
    return next((leaf for leaf in leaves() if leaf.code == code), InternalError)
