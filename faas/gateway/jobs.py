"""Jobs in a worker: requests that become one, what clients may ask about one, those of guests, and running them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import web
from multidict import istr

from faas.errors import BodyTooLargeError, JobNotFoundError, MalformedRequestError, MethodNotAllowedError
from faas.gateway.call import RequestBody
from faas.gateway.internal import Internal, InternalRequest
from faas.gateway.lane import Lane, Reply
from faas.gateway.live import X_FAAS_ALIAS, Served
from faas.guest.ports import GuestRequest, JobOptions
from faas.wire.peer import Peer

PREFIX: Final = "/_faas/jobs/"
PREFER: Final = istr("prefer")
IDEMPOTENCY_KEY: Final = istr("idempotency-key")
CALLBACK: Final = istr("x-faas-callback")
MAX_KEY_CHARS: Final = 255
SCHEDULE_HEADERS: Final = frozenset(("x-faas-schedule", "x-faas-scheduled-for"))
"""What the host tells a function of the schedule that runs it."""

_KEPT_HEADERS = frozenset(("content-type", "content-encoding", "content-language", "content-disposition"))
"""Of an answer: what its body is."""


def prefers_async(values: Iterable[str]) -> bool:
    """
    Return whether the ``Prefer`` headers ask for an answer at once.

    Source: RFC 7240, 2 and 4.1.
    """
    return any(
        preference.partition(";")[0].partition("=")[0].strip().lower() == "respond-async"
        for value in values
        for preference in value.split(",")
    )


def encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[str, bytes]]:
    """Return headers as they are kept: values as the bytes that were sent."""
    # A name may be aiohttp's kind of text, which no message carries.
    return [(str(name), value.encode("utf-8", "surrogateescape")) for name, value in headers]


class JobGate:
    """A worker's way to the queue for its HTTP clients; lives as long as it. Thread: the loop's only."""

    def __init__(self, peer: Peer, *, max_job_bytes: int) -> None:
        """Args: *peer* is the control process, which has the queue."""
        self._peer = peer
        self._max_job_bytes = max_job_bytes

    async def read(self, lane: Lane, served: Served) -> bytes:
        """
        Return the whole body of a request that is to be kept.

        Raises: BodyTooLargeError, MalformedRequestError, RequestTimeoutError.
        """
        of_function = served.deployment.manifest.limits.max_body_bytes
        if of_function <= self._max_job_bytes:
            return await RequestBody(await lane.leave(), of_function).read_all()
        try:
            return await RequestBody(await lane.leave(), self._max_job_bytes).read_all()
        except BodyTooLargeError as exc:
            raise BodyTooLargeError(
                f"the request body is over {self._max_job_bytes} bytes, the host's limit for jobs; send less, or raise "
                "its setting max_job_bytes",
                max_body_bytes=self._max_job_bytes,
            ) from exc

    async def submit(
        self, lane: Lane, served: Served, *, method: str, target: str, hidden: frozenset[str], request_id: str
    ) -> Reply:
        """
        Queue the request as a job and answer 202, once it is durable.

        Args: *hidden* are the headers that the guest must not see, in lower case.
        Raises: as ``read``; JobError, FunctionNotFoundError, StateError, PeerGoneError.
        """
        request = await lane.leave()
        key = request.headers.get(IDEMPOTENCY_KEY, "").strip()
        if len(key) > MAX_KEY_CHARS or not key.isprintable():
            raise MalformedRequestError(f"Idempotency-Key is over {MAX_KEY_CHARS} characters, or not printable")
        body = await self.read(lane, served)
        queued = await self.queue(
            served.name,
            request.headers.get(X_FAAS_ALIAS, ""),  # whose manifest was asked whether a key is needed
            {
                "method": method,
                "target": target,
                "headers": encoded(item for item in request.headers.items() if item[0].lower() not in hidden),
                "body": body,
                "remote": request.remote or "",
            },
            source="http",
            key=f"http:{key}" if key else "",
            callback=request.headers.get(CALLBACK, "").strip(),
        )
        return accepted(queued, request_id, {"Preference-Applied": "respond-async"})

    async def queue(self, function: str, qualifier: str, request: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Return what the control process says of a job that is durable from here on; raises what it raised."""
        queued: dict[str, Any] = await self._peer.ask(
            "jobs.submit", function=function, qualifier=qualifier, request=dict(request), **options
        )
        return queued

    async def show(self, request: web.BaseRequest, raw_path: str, request_id: str) -> Reply:
        """
        Answer what is asked about a job, to whoever knows its id.

        Raises: MethodNotAllowedError, JobNotFoundError, JobUnfinishedError, JobFinishedError, ResultNotKeptError.
        """
        id, _, rest = raw_path.removeprefix(PREFIX).partition("/")
        allowed = {"": ("GET", "HEAD", "DELETE"), "result": ("GET", "HEAD")}.get(rest)
        if allowed is None or not id.isalnum() or not id.isascii():
            raise JobNotFoundError("there is nothing there; a job is at /_faas/jobs/ID, its result at …/ID/result")
        if request.method not in allowed:
            raise MethodNotAllowedError(f"a job takes {', '.join(allowed)}", allow=list(allowed))
        own = {"X-Request-Id": request_id, "Cache-Control": "no-store"}
        if rest:
            result = await self._peer.ask("jobs.result", id=id)
            kept = [(name, value.decode("utf-8", "surrogateescape")) for name, value in result["headers"]]
            headers = [item for item in kept if item[0].lower() in _KEPT_HEADERS]
            return Reply(200, result["body"], {**own, "X-Faas-Status": str(result["status"])}, headers)
        operation = "jobs.cancel" if request.method == "DELETE" else "jobs.status"
        return _json(200, await self._peer.ask(operation, id=id), own)


def accepted(queued: Mapping[str, Any], request_id: str, headers: Mapping[str, str] | None = None) -> Reply:
    """Return the answer to a request that has become a job, or was one already."""
    own = {"X-Request-Id": request_id, "Location": str(queued["status_url"]), **(headers or {})}
    if queued["duplicate"]:
        own["X-Faas-Duplicate"] = "true"
    return _json(202, {"job": queued["id"], "status_url": queued["status_url"]}, own)


def _json(status: int, document: Any, own: dict[str, str]) -> Reply:
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/json", **own})


class GuestJobs:
    """``faas.guest.ports.JobsPort`` over the control process; lives as long as its worker."""

    def __init__(self, gate: JobGate) -> None:
        self._gate = gate

    async def enqueue(
        self, caller: str, function: str, qualifier: str, request: GuestRequest, options: JobOptions
    ) -> str:
        """As ``JobsPort.enqueue``."""
        key = options.idempotency_key
        queued = await self._gate.queue(
            function,
            qualifier,
            {
                "method": request.method,
                "target": request.target,
                "headers": list(request.headers),
                "body": request.body,
                "remote": "",
            },
            source=f"function:{caller}",
            key=f"function:{caller}:{key}" if key else "",
            delay_s=options.delay_s,
            max_attempts=options.max_attempts,
            max_age_s=options.max_age_s,
        )
        return str(queued["id"])


class JobRunner:
    """Runs jobs that the control process hands to this worker; lives as long as it."""

    def __init__(self, internal: Internal) -> None:
        self._internal = internal

    async def invoke(self, asked: dict[str, Any]) -> dict[str, Any]:
        """
        Run one job and return what came of it, without a body that is over what is kept. Cancelling ends it.

        Raises: as ``Internal.invoke``.
        """
        job, attempt, request = asked["job"], asked["attempt"], asked["request"]
        source = asked["source"]
        scheduled = source.startswith("schedule:")
        headers = [(name, value.decode("utf-8", "surrogateescape")) for name, value in request["headers"]]
        own = [header for header in headers if scheduled and header[0].lower() in SCHEDULE_HEADERS]
        own += [("X-Faas-Job", job), ("X-Faas-Attempt", str(attempt))]
        reply = await self._internal.invoke(
            asked["function"],
            asked["qualifier"],
            InternalRequest(request["method"], request["target"], headers, request["body"], request["remote"], own),
            request_id=f"{job}-{attempt}",
            caller=f"job:{source}",
            hooks=scheduled or source == "webhook",  # nobody else is the host itself, or was checked
        )
        n_bytes = len(reply.body)
        return {
            "status": reply.status,
            "headers": encoded(reply.headers),
            "body": reply.body if n_bytes <= asked["max_result_bytes"] else b"",
            "n_bytes": n_bytes,
            "outcome": reply.outcome.value,
            "code": reply.code,
            "detail": reply.detail,
            "version": reply.version,
        }
