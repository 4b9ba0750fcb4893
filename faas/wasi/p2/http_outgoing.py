"""What a guest sends, of ``wasi:http/types``: responses and where they are set, requests and their options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from faas.errors import GuestTrapError
from faas.wasi.p2.fields import Fields, content_length, take
from faas.wasi.p2.http_bodies import OutgoingBody, PipedBody, ResponseBody
from faas.wasi.p2.io import OutputStreamResource
from faas.wasi.p2.outbound_types import HeaderList, ResponseHead
from faas.wasi.p2.resources import ComponentFunction, Resource, WitError

MAX_PATH_BYTES: Final = 65534
MAX_REQUEST_BODIES: Final = 200
"""Of requests that one guest has not sent yet, or whose exchange is open."""
MAX_NAME_BYTES: Final = 1024
"""Of a method, a scheme or an authority."""

_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_scheme = re.compile(r"[A-Za-z][A-Za-z0-9+\-.]*").fullmatch
_is_path = re.compile(r"(?:[/?][!-~]*|\*)?").fullmatch
_bad_in_path = re.compile(r"[#<>`]").search
_is_authority = re.compile(
    r"(?:[\w\-.~!$&'()*+,;=:%]*@)?"  # who; none of our senders takes one, but it is valid
    r"(?:\[[0-9A-Fa-f:.]+\]|[\w\-.~!$&'()*+,;=%]+)"  # an address or a name
    r"(?::([0-9]{1,5}))?",
    re.ASCII,
).fullmatch

Method = tuple[str, str | None]
Scheme = tuple[str, str | None]


class OutgoingResponse(Resource):
    """An ``outgoing-response``; once it is given away or dropped, its headers and its body may still be alive."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, headers: HeaderList) -> None:
        # Not super().__init__: this is made for each request, and never has a parent.
        self.children = 0
        self.parent = None
        self.headers = headers
        self.status = 200
        self.body: ResponseBody | None = None

    def drop(self) -> None:
        """Let what the guest writes to the body fail as ``closed``."""
        super().drop()
        if self.body is not None:
            self.body.abandon()


class ResponseOutparam(Resource):
    """
    A ``response-outparam``, which the host makes for each request.

    A guest that drops it unset has not answered: that is for the gateway to tell, when the guest has returned.
    """

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.children = 0
        self.parent = None
        self.used = False


class OutgoingRequest(Resource):
    """An ``outgoing-request``: GET, and nothing else said yet."""

    __slots__ = ("authority", "body", "headers", "method", "path_with_query", "scheme")

    def __init__(self, headers: HeaderList) -> None:
        super().__init__()
        self.headers = headers
        self.method: Method = ("get", None)
        self.scheme: Scheme | None = None
        self.authority: str | None = None
        self.path_with_query: str | None = None
        self.body: PipedBody | None = None

    def drop(self) -> None:
        """Let what the guest writes to the body fail as ``closed``: it will not be sent."""
        super().drop()
        if self.body is not None:
            self.body.pipe.close()


class RequestOptions(Resource):
    """``request-options``: timeouts in nanoseconds, None for the host's own."""

    __slots__ = ("between_bytes_ns", "connect_ns", "first_byte_ns")

    def __init__(self) -> None:
        super().__init__()
        self.connect_ns: int | None = None
        self.first_byte_ns: int | None = None
        self.between_bytes_ns: int | None = None


# outgoing-response


def outgoing_response_new(_guest: Any, headers: Fields) -> OutgoingResponse:
    """Return a response of status 200 with *headers*, which can't be changed any more."""
    return OutgoingResponse(take(headers))


def outgoing_response_status_code(_guest: Any, self: OutgoingResponse) -> int:
    """Return the status."""
    return self.status


def outgoing_response_set_status_code(_guest: Any, self: OutgoingResponse, status: int) -> None:
    """Set the status; an error unless it has three digits."""
    if not 100 <= status <= 999:
        raise WitError
    self.status = status


def outgoing_response_headers(_guest: Any, self: OutgoingResponse) -> Fields:
    """Return the headers, immutable."""
    return Fields(self.headers, mutable=False)


def outgoing_response_body(_guest: Any, self: OutgoingResponse) -> ResponseBody:
    """Return the body the first time; an error later, and for a ``content-length`` that is no number."""
    if self.body is not None:
        raise WitError
    headers = self.headers
    body = self.body = ResponseBody(_announced(headers) if headers else None)
    return body


# response-outparam


def response_outparam_set(guest: Any, param: ResponseOutparam, response: tuple[str, Any]) -> None:
    """
    Answer the request: with a response, whose body may follow, or with an error-code.

    A second call can't happen, since this one takes *param* away from the guest: it traps for want of a handle.
    Raises: GuestTrapError for a ``content-length`` that is no number, which ``body`` refuses where it is called.
    """
    if param.used:
        raise GuestTrapError("the guest set a response-outparam twice; answer each request once")
    param.used = True
    http = guest.http
    kind, answer = response
    if kind != "ok":
        http.on_error(answer)
        return
    body, headers = answer.body, answer.headers
    if body is None and headers:
        _check_length(headers)
    sink = http.on_response(ResponseHead(answer.status, headers, body is not None))
    if body is None:
        http.on_finish()
    else:
        body.attach(http, sink)


def response_outparam_send_informational(_guest: Any, _self: ResponseOutparam, status: int, _headers: Fields) -> None:
    """Answer as the WIT has it for a host that sends no 1xx responses, with an error-code."""
    if not 100 <= status <= 199:
        raise WitError(("HTTP-protocol-error", None))
    raise WitError(("internal-error", "this host sends no informational responses; go on without"))


# outgoing-body


def outgoing_body_write(guest: Any, self: OutgoingBody) -> OutputStreamResource:
    """Return the stream to write to the first time; later an error."""
    return self.write(guest)


def outgoing_body_finish(_guest: Any, this: OutgoingBody, trailers: Fields | None) -> None:
    """
    End the body, with *trailers* behind it.

    Raises: GuestTrapError while the stream has not been dropped; WitError, ``HTTP-response-body-size`` or
    ``HTTP-request-body-size``, if the length is not what ``content-length`` announced.
    """
    this.finish(None if trailers is None else take(trailers))


# outgoing-request


def outgoing_request_new(_guest: Any, headers: Fields) -> OutgoingRequest:
    """Return a GET request with *headers*, which can't be changed any more."""
    return OutgoingRequest(take(headers))


def outgoing_request_body(guest: Any, self: OutgoingRequest) -> PipedBody:
    """
    Return the body the first time; an error later, and for a ``content-length`` that is no number.

    Raises: GuestTrapError if MAX_REQUEST_BODIES are open, since each keeps what is written to it.
    """
    if self.body is not None:
        raise WitError
    pipes = guest.http.pipes
    if len(pipes) >= MAX_REQUEST_BODIES:
        raise GuestTrapError(
            f"the guest has {len(pipes)} requests with bodies open at once, which is the most; send or drop those"
            " requests, and drop their responses, before it makes more"
        )
    body = self.body = PipedBody(_announced(self.headers), pipes)
    return body


def outgoing_request_method(_guest: Any, self: OutgoingRequest) -> Method:
    """Return the method."""
    return self.method


def outgoing_request_set_method(_guest: Any, self: OutgoingRequest, method: Method) -> None:
    """Set the method; an error if it is another one and no token."""
    case, name = method
    if case == "other" and (name is None or len(name) > MAX_NAME_BYTES or not _is_token(name)):
        raise WitError
    self.method = method


def outgoing_request_path_with_query(_guest: Any, self: OutgoingRequest) -> str | None:
    """Return the path and the query."""
    return self.path_with_query


def outgoing_request_set_path_with_query(_guest: Any, self: OutgoingRequest, path: str | None) -> None:
    """Set the path and the query; an error if they could not stand in a request line."""
    if path is not None and (len(path) > MAX_PATH_BYTES or not _is_path(path) or _bad_in_path(path)):
        raise WitError
    self.path_with_query = path


def outgoing_request_scheme(_guest: Any, self: OutgoingRequest) -> Scheme | None:
    """Return the scheme."""
    return self.scheme


def outgoing_request_set_scheme(_guest: Any, self: OutgoingRequest, scheme: Scheme | None) -> None:
    """Set the scheme; an error if it is another one and no scheme."""
    if scheme is not None:
        case, name = scheme
        if case == "other" and (name is None or len(name) > MAX_NAME_BYTES or not _is_scheme(name)):
            raise WitError
    self.scheme = scheme


def outgoing_request_authority(_guest: Any, self: OutgoingRequest) -> str | None:
    """Return the authority."""
    return self.authority


def outgoing_request_set_authority(_guest: Any, self: OutgoingRequest, authority: str | None) -> None:
    """Set the authority, a host and maybe a port of 0 to 65535; an error if it is none."""
    if authority is not None:
        match = _is_authority(authority) if len(authority) <= MAX_NAME_BYTES else None
        if match is None or int(match[1] or 0) > 65535:
            raise WitError
    self.authority = authority


def outgoing_request_headers(_guest: Any, self: OutgoingRequest) -> Fields:
    """Return the headers, immutable."""
    return Fields(self.headers, mutable=False)


# request-options


def request_options_new(_guest: Any) -> RequestOptions:
    """Return options that say nothing."""
    return RequestOptions()


def request_options_connect_timeout(_guest: Any, self: RequestOptions) -> int | None:
    """Return how long connecting may take, in nanoseconds."""
    return self.connect_ns


def request_options_set_connect_timeout(_guest: Any, self: RequestOptions, duration_ns: int | None) -> None:
    """Set how long connecting may take."""
    self.connect_ns = duration_ns


def request_options_first_byte_timeout(_guest: Any, self: RequestOptions) -> int | None:
    """Return how long the response's first byte may take, in nanoseconds."""
    return self.first_byte_ns


def request_options_set_first_byte_timeout(_guest: Any, self: RequestOptions, duration_ns: int | None) -> None:
    """Set how long the response's first byte may take."""
    self.first_byte_ns = duration_ns


def request_options_between_bytes_timeout(_guest: Any, self: RequestOptions) -> int | None:
    """Return how long nothing may come, in nanoseconds."""
    return self.between_bytes_ns


def request_options_set_between_bytes_timeout(_guest: Any, self: RequestOptions, duration_ns: int | None) -> None:
    """Set how long nothing may come."""
    self.between_bytes_ns = duration_ns


def _check_length(headers: HeaderList) -> None:
    try:
        content_length(headers)
    except ValueError as exc:
        raise GuestTrapError(f"the guest answered with {exc}, which is no length; set a number, or none") from exc


def _announced(headers: HeaderList) -> int | None:
    try:
        return content_length(headers)
    except ValueError as exc:
        raise WitError from exc


TYPES: Final[Mapping[str, ComponentFunction]] = {
    "[constructor]outgoing-response": ComponentFunction(outgoing_response_new),
    "[method]outgoing-response.status-code": ComponentFunction(outgoing_response_status_code),
    "[method]outgoing-response.set-status-code": ComponentFunction(outgoing_response_set_status_code),
    "[method]outgoing-response.headers": ComponentFunction(outgoing_response_headers),
    "[method]outgoing-response.body": ComponentFunction(outgoing_response_body),
    "[static]response-outparam.set": ComponentFunction(response_outparam_set),
    "[method]response-outparam.send-informational": ComponentFunction(response_outparam_send_informational),
    "[method]outgoing-body.write": ComponentFunction(outgoing_body_write),
    "[static]outgoing-body.finish": ComponentFunction(outgoing_body_finish),
    "[constructor]outgoing-request": ComponentFunction(outgoing_request_new),
    "[method]outgoing-request.body": ComponentFunction(outgoing_request_body),
    "[method]outgoing-request.method": ComponentFunction(outgoing_request_method),
    "[method]outgoing-request.set-method": ComponentFunction(outgoing_request_set_method),
    "[method]outgoing-request.path-with-query": ComponentFunction(outgoing_request_path_with_query),
    "[method]outgoing-request.set-path-with-query": ComponentFunction(outgoing_request_set_path_with_query),
    "[method]outgoing-request.scheme": ComponentFunction(outgoing_request_scheme),
    "[method]outgoing-request.set-scheme": ComponentFunction(outgoing_request_set_scheme),
    "[method]outgoing-request.authority": ComponentFunction(outgoing_request_authority),
    "[method]outgoing-request.set-authority": ComponentFunction(outgoing_request_set_authority),
    "[method]outgoing-request.headers": ComponentFunction(outgoing_request_headers),
    "[constructor]request-options": ComponentFunction(request_options_new),
    "[method]request-options.connect-timeout": ComponentFunction(request_options_connect_timeout),
    "[method]request-options.set-connect-timeout": ComponentFunction(request_options_set_connect_timeout),
    "[method]request-options.first-byte-timeout": ComponentFunction(request_options_first_byte_timeout),
    "[method]request-options.set-first-byte-timeout": ComponentFunction(request_options_set_first_byte_timeout),
    "[method]request-options.between-bytes-timeout": ComponentFunction(request_options_between_bytes_timeout),
    "[method]request-options.set-between-bytes-timeout": ComponentFunction(request_options_set_between_bytes_timeout),
}
