"""What one invocation may call: other functions, by ``faas_v1`` or by HTTP requests to ``NAME.faas.internal``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from faas.destinations import split_authority
from faas.errors import CallDeniedError, CallDepthError, ConcurrencyLimitError, FaasError, NotServedError, RequestError
from faas.gateway.call import Call
from faas.gateway.inmemory import Exchange, Head
from faas.gateway.internal import DOMAIN, Internal, InternalRequest, Invocation
from faas.guest.ports import GuestRequest
from faas.invocation import Deployment
from faas.outbound.client import MAX_LOG_LINES
from faas.outbound.exchange import Request, check
from faas.outbound.failures import Failure, OutboundError

MAX_CALLS: Final = 100
"""Calls of one invocation that are open at once."""

_SUFFIX = "." + DOMAIN


class FunctionCalls:
    """
    One invocation's way to other functions, which it closes; as ``CallsPort`` wants it.

    Only to those that ``capabilities.calls`` names, in the invocation's own time, under its request id.
    Thread: the loop's only.
    """

    __slots__ = (
        "_closed", "_deadline", "_deployment", "_depth", "_internal", "_log_line", "_n_log_lines", "_open", "_remote",
        "_request_id", "_traceparent",
    )  # fmt: skip

    def __init__(
        self,
        internal: Internal,
        deployment: Deployment,
        *,
        deadline: float,
        depth: int,
        request_id: str,
        log_line: Callable[[bytes], None],
        traceparent: str = "",
        remote: str = "",
    ) -> None:
        """
        Args: *deployment*, *depth* and *request_id* are the caller's; *deadline* is on the loop's clock, in seconds;
        *log_line* gets a line for each call that is not made; *remote* is whose address callees see.
        """
        self._internal = internal
        self._deployment = deployment
        self._deadline = deadline
        self._depth = depth
        self._request_id = request_id
        self._log_line = log_line
        self._traceparent = traceparent
        self._remote = remote
        self._n_log_lines = 0
        self._open: set[Invocation] = set()
        self._closed = False

    @classmethod
    def of(cls, call: Call, internal: Internal, deadline: float) -> FunctionCalls:
        """Return what *call*'s invocation may call until its *deadline*."""
        return cls(
            internal,
            call.served.deployment,
            deadline=deadline,
            depth=call.depth,
            request_id=call.request_id,
            log_line=call.log_line,
            traceparent=call.traceparent,
            remote=call.request.remote or "",
        )

    async def begin(self, function: str, qualifier: str, request: GuestRequest) -> CallResponse:
        """
        Call *function* and return once its response's head is there, also that of a problem. Cancelling ends it.

        Args: *qualifier* is "" for what routes serve, an alias, or a version number as text.
        Raises: CallDeniedError, CallDepthError, ConcurrencyLimitError, FunctionNotFoundError and its kin,
        MalformedRequestError: then nothing was called.
        """
        deadline = self._deadline
        if request.timeout_s is not None:
            deadline = min(deadline, asyncio.get_running_loop().time() + request.timeout_s)
        headers = [
            (name, value.decode("utf-8", "surrogateescape"))
            for name, value in request.headers
            if not name.lower().startswith("x-faas-")
        ]
        wanted = InternalRequest(request.method, request.target, headers, request.body, self._remote)
        invocation = self._begin(function, qualifier, wanted, deadline)
        return CallResponse(self, invocation, await self._head(invocation))

    async def fetch(self, function: str, qualifier: str, request: Request) -> FetchedResponse:
        """
        Call *function* for an HTTP request to its name, and return once its response's head is there.

        Raises: OutboundError.
        """
        invocation: Invocation | None = None
        try:
            outgoing = check(request)
            headers = outgoing.headers
            if outgoing.content_length is not None:
                headers.append(("Content-Length", str(outgoing.content_length)))
            headers.append(("Host", outgoing.host))
            body = b"" if request.body is None else request.body
            wanted = InternalRequest(outgoing.method, request.target or "", headers, body, self._remote)
            invocation = self._begin(function, qualifier, wanted, self._deadline)
            async with asyncio.timeout(request.first_byte_timeout_s):
                head = await self._head(invocation)
        except FaasError as exc:
            raise OutboundError(_failure_of(exc), exc.message) from exc
        except TimeoutError as exc:
            raise OutboundError(Failure.RESPONSE_TIMEOUT, f"{function} did not answer in time") from exc
        finally:
            if request.body is not None and invocation is None:
                request.body.close()
        return FetchedResponse(CallResponse(self, invocation, head), request.between_bytes_timeout_s)

    def close(self) -> None:
        """End the calls that are still in progress. Safe to call more than once."""
        self._closed = True
        for invocation in self._open:
            invocation.close()
        self._open.clear()

    def ended(self, invocation: Invocation) -> None:
        """Let go of *invocation*, and end it if it has not ended."""
        self._open.discard(invocation)
        invocation.close()

    def _begin(self, function: str, qualifier: str, request: InternalRequest, deadline: float) -> Invocation:
        try:
            if self._closed or function not in self._deployment.manifest.capabilities.calls:
                raise CallDeniedError(
                    f"{self._deployment.function} may not call {function[:64]!r}; name it in [capabilities] calls of "
                    "its function.toml and deploy again"
                )
            if len(self._open) >= MAX_CALLS:
                raise ConcurrencyLimitError(
                    f"{len(self._open)} calls of this invocation are open, which is the most; read or close responses"
                )
            invocation = self._internal.begin(
                function,
                qualifier,
                request,
                deadline=deadline,
                depth=self._depth + 1,
                request_id=self._request_id,
                caller=self._deployment.function,
                traceparent=self._traceparent,
                hooks=False,
            )
        except FaasError as exc:
            self._report(request.method, function, exc)
            raise
        self._open.add(invocation)
        return invocation

    async def _head(self, invocation: Invocation) -> Head:
        try:
            return await invocation.head()
        except BaseException:
            self.ended(invocation)
            raise

    def _report(self, method: str, function: str, error: FaasError) -> None:
        """Log why a call was not made, without its path: that may be secret."""
        self._n_log_lines += 1
        if self._n_log_lines > MAX_LOG_LINES + 1:
            return
        line = f"call: {method[:64]} {function[:64]}: {error.code}: {error.message}"
        if self._n_log_lines > MAX_LOG_LINES:
            line = "call: further failures are not logged"
        printable = "".join(char if char.isprintable() else " " for char in line)
        self._log_line(printable.encode("utf-8", "replace"))


class CallResponse:
    """A callee's response, as ``faas.guest`` wants it: its head is there, its body comes while it runs."""

    __slots__ = ("_calls", "_invocation", "body", "headers", "status", "version")

    def __init__(self, calls: FunctionCalls, invocation: Invocation, head: Head) -> None:
        self._calls = calls
        self._invocation = invocation
        self.status = head.status
        self.headers = [(name, value.encode("utf-8", "surrogateescape")) for name, value in head.headers]
        self.body: Exchange = invocation.body
        """Raises FaasError, as the callee's invocation ended, where it failed after its head."""
        self.version = invocation.version

    def close(self) -> None:
        """End the callee, if it is still running. Safe to call more than once."""
        self._calls.ended(self._invocation)


class FetchedResponse:
    """A callee's response to a request by HTTP; itself the body, whose errors are those of outbound HTTP."""

    __slots__ = ("_between_s", "_response", "headers", "status")

    def __init__(self, response: CallResponse, between_s: float | None) -> None:
        """Args: *between_s* is how long the body may pause while it is waited for, in seconds."""
        self._response = response
        self._between_s = between_s
        self.status = response.status
        self.headers = response.headers

    @property
    def body(self) -> FetchedResponse:
        """The body."""
        return self

    def trailers(self) -> list[tuple[str, bytes]] | None:
        """Return what a component sent behind its body; valid at its end."""
        return self._response.body.trailers

    def read_nowait(self, n: int) -> bytes | None:
        """Raises: OutboundError. Thread: any."""
        try:
            return self._response.body.read_nowait(n)
        except FaasError as exc:
            raise OutboundError(Failure.RESPONSE_INCOMPLETE, exc.message) from exc

    async def wait_readable(self) -> None:
        """Raises: OutboundError."""
        try:
            async with asyncio.timeout(self._between_s):
                await self._response.body.wait_readable()
        except TimeoutError as exc:
            raise OutboundError(Failure.READ_TIMEOUT, "the body came too slowly") from exc

    def close(self) -> None:
        """End the callee, if it is still running. Safe to call more than once."""
        self._response.close()


def function_at(authority: str | None) -> tuple[str, str] | None:
    """
    Return function and qualifier of the authority ``[QUALIFIER.]NAME.faas.internal``, None for any other.

    Raises: OutboundError for what is under that domain and names no function.
    """
    if authority is None or DOMAIN not in authority.lower():
        return None
    try:
        host, port = split_authority(authority)
    except ValueError:
        return None  # whoever checks authorities says what is wrong
    host = host.lower().removesuffix(".")
    if host != DOMAIN and not host.endswith(_SUFFIX):
        return None
    labels = host.removesuffix(DOMAIN).split(".")[:-1]
    if not 1 <= len(labels) <= 2 or not all(labels) or port not in (None, 80):
        raise OutboundError(
            Failure.URL_INVALID, f"functions are called at http://NAME{_SUFFIX} or http://ALIAS.NAME{_SUFFIX}"
        )
    return labels[-1], labels[0] if len(labels) == 2 else ""


def _failure_of(error: FaasError) -> Failure:
    if isinstance(error, CallDeniedError):
        return Failure.DENIED
    if isinstance(error, CallDepthError):
        return Failure.LOOP
    if isinstance(error, NotServedError):
        return Failure.NO_ADDRESS
    if isinstance(error, ConcurrencyLimitError):
        return Failure.LIMIT_REACHED
    return Failure.URL_INVALID if isinstance(error, RequestError) else Failure.UNAVAILABLE
