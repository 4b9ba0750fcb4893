"""
The gateway's request funnel, one method per concern, each calling the next:
``serve`` (ids, errors → responses) → ``_serve`` (route, redirects) → ``_admit`` (permits) → ``_run`` (deadline, kind).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time

from aiohttp import hdrs, web
from multidict import istr

from faas.clock import Clock
from faas.config import HostConfig
from faas.errors import (
    BusyError,
    ClientGoneError,
    DeadlineExceededError,
    FaasError,
    InternalError,
    MalformedRequestError,
    OverloadedError,
    RedirectLoopError,
    RequestTimeoutError,
    SignatureInvalidError,
)
from faas.gateway.admission import Admission
from faas.gateway.call import (
    MAX_LOCAL_REDIRECTS,
    TRACEPARENT,
    Call,
    LocalRedirect,
    break_off,
    is_gone,
    script_name,
)
from faas.gateway.calls import FunctionCalls
from faas.gateway.command import serve_command
from faas.gateway.component import serve_component
from faas.gateway.http import ask_if_closed, awaited_body_until
from faas.gateway.inmemory import MemoryLane
from faas.gateway.internal import Internal
from faas.gateway.invoke_keys import NOTHING_HIDDEN, InvokeKeyRing
from faas.gateway.jobs import PREFIX as JOBS_PREFIX
from faas.gateway.jobs import JobGate, prefers_async
from faas.gateway.journal import Journal
from faas.gateway.lane import MAX_BODY_BYTES, RESERVED, SOFTWARE, Answer, Lane, Reply
from faas.gateway.live import LiveTable, Served
from faas.gateway.metering import Meter
from faas.gateway.middleware import outcome_of, problem_reply
from faas.gateway.models import ModelGate
from faas.gateway.openai.api import PREFIX as OPENAI_PREFIX
from faas.gateway.openai.api import OpenAiApi
from faas.gateway.outbound import Outbound
from faas.gateway.reactor import serve_reactor
from faas.gateway.services import ServiceGate
from faas.gateway.warm import WarmPools
from faas.gateway.webhook_paths import hook_at
from faas.gateway.webhooks import WebhookGate
from faas.invocation import Kind, Outcome
from faas.log import event
from faas.wasm.runtime import Runtime

WATCH_S = 1.0

_log = logging.getLogger(__name__)
# Made once: a header is looked up by its folded name, and by its name in lower case in the lane.
_X_REQUEST_ID = istr("x-request-id")
_TRACEPARENT_NAME = istr("traceparent")
_PREFER = istr("prefer")
# What hardly any request has is looked for at once, in the lane.
_RARE = RESERVED.union((_PREFER,))
_OWN_PATHS = ("/_faas/", OPENAI_PREFIX)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._\-+/=:]{1,128}")

_DEFAULTS = HostConfig(workers=1)
# Python 3.11 takes longer to find a member of an Enum than for all that is done with it here.
_COMMAND, _HTTP, _OK = Kind.COMMAND, Kind.HTTP, Outcome.OK


class Gateway:
    """Serves HTTP requests from the live table; lives as long as its worker."""

    def __init__(
        self,
        runtime: Runtime,
        table: LiveTable,
        admission: Admission,
        *,
        journal: Journal,
        models: ModelGate,
        openai: OpenAiApi,
        clock: Clock,
        server_port: int,
        warm: WarmPools,
        outbound: Outbound,
        services: ServiceGate | None = None,
        invoke_keys: InvokeKeyRing | None = None,
        config: HostConfig = _DEFAULTS,
        jobs: JobGate | None = None,
        webhooks: WebhookGate | None = None,
    ) -> None:
        """
        Args: *config* bounds what is invoked in memory. Without *jobs* no request becomes one, without *webhooks* none
        of those paths is served.
        """
        self._runtime = runtime
        self._table = table
        self._admission = admission
        self._journal = journal
        self._models = models
        self._openai = openai
        self._clock = clock
        self._server_port = server_port
        self._warm = warm
        self._jobs = jobs
        self._webhooks = webhooks
        self._services = ServiceGate(outbound) if services is None else services
        self._invoke_keys = InvokeKeyRing(Meter(clock)) if invoke_keys is None else invoke_keys
        self.internal = Internal(self, table, journal, clock, config)
        """Invocations that no client asks for over HTTP."""
        if self._services.calls is None:
            self._services.calls = lambda call, deadline: FunctionCalls.of(call, self.internal, deadline)
        # Unique without asking the kernel for random bytes at each request.
        self._id_prefix = secrets.token_hex(6)
        self._ids = itertools.count(1)
        self._with_bodies: set[Call] = set()
        self.draining = False

    async def watch_clients(self) -> None:
        """
        Notice clients that closed their end while their body was not being read, until cancelled.

        Reading is paused while a guest does not take its body, and a paused transport does not see the end.
        """
        while True:
            await asyncio.sleep(WATCH_S)
            for call in tuple(self._with_bodies):
                ask_if_closed(call.request)

    async def serve(self, lane: Lane) -> Answer:
        """Answer one request, by a Reply if it never left the lane; the only failure to leave here is cancellation."""
        received = time.perf_counter()
        request_id = lane.request.headers.get(_X_REQUEST_ID)
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = f"{self._id_prefix}{next(self._ids):08x}"
        answer: Answer
        try:
            if self.draining:
                await lane.leave()
            answer = await self._serve(lane, request_id, received)
        except FaasError as exc:
            answer = problem_reply(exc, request_id)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            _log.exception("request failed")
            event(_log, "request.failed", request_id=request_id, error=repr(exc))
            answer = problem_reply(
                InternalError("the host failed to serve this request; its log has the reason"), request_id
            )
        return answer if lane.inside else self._response(answer)

    def _response(self, answer: Answer) -> web.StreamResponse:
        response = answer.response() if isinstance(answer, Reply) else answer
        assert isinstance(response, web.StreamResponse)
        if not response.prepared:
            response.headers["Server"] = SOFTWARE
            if self.draining:
                response.force_close()
        return response

    async def _serve(self, lane: Lane, request_id: str, received: float) -> Answer:
        request = lane.request
        raw_path, _, query = request.raw_path.partition("?")
        if not raw_path.startswith("/"):
            # absolute-form (a proxy's) or OPTIONS *
            request = await lane.leave()
            raw_path, query = request.rel_url.raw_path, request.rel_url.raw_query_string
            if not raw_path.startswith("/"):
                raise MalformedRequestError(f"the request target {request.raw_path[:80]!r} is no path")
        if raw_path.startswith(_OWN_PATHS):
            if raw_path == "/_faas/health":
                await lane.leave()
                return self._health(request_id)
            if raw_path.startswith(OPENAI_PREFIX):
                return await self._openai.handle(await lane.leave(), request_id)
            if self._jobs is not None and raw_path.startswith(JOBS_PREFIX):
                return await self._jobs.show(await lane.leave(), raw_path, request_id)
        method, headers = request.method, request.headers
        with_body = True
        traceparent = headers.get(_TRACEPARENT_NAME, "")
        if traceparent and not TRACEPARENT.fullmatch(traceparent):
            traceparent = ""
        keyed, hidden, has_preferences = "", NOTHING_HIDDEN, False
        if type(headers) is not dict or not _RARE.isdisjoint(headers):
            has_preferences = _PREFER in headers
            if any(name in headers for name in RESERVED):
                hidden = RESERVED
        for _ in range(MAX_LOCAL_REDIRECTS):
            served, params, route = self._table.match(method, raw_path, headers)
            name = served.name
            hook = hook_at(served.webhooks, raw_path) if served.webhooks else None
            if hook is not None and not with_body:
                raise SignatureInvalidError("a function redirected to a webhook's path, and that is not signed")
            # A webhook's signature is its key: who signs deliveries has no other.
            if (served.needs_key or name in self._invoke_keys.by_function) and hook is None and name != keyed:
                hidden |= self._invoke_keys.admit(name, headers, needed=served.needs_key)
                keyed = name
            if (
                has_preferences
                and with_body
                and self._jobs is not None
                and hook is None
                and served.deployment.manifest.jobs.enabled
            ):
                request = await lane.leave()
                if prefers_async(request.headers.getall(_PREFER)):
                    target = f"{raw_path}?{query}" if query else raw_path
                    return await self._jobs.submit(
                        lane, served, method=method, target=target, hidden=hidden, request_id=request_id
                    )
            call = Call(
                lane,
                served,
                method=method,
                raw_path=raw_path,
                query=query,
                params=params,
                route=route.path,
                script_name=script_name(route, raw_path),
                request_id=request_id,
                traceparent=traceparent,
                clock=self._clock,
                journal=self._journal,
                received=received,
                with_body=with_body,
            )
            if hidden:
                call.hidden = hidden
            try:
                if hook is None:
                    return await self._admit(call)
                if self._webhooks is None:
                    raise InternalError("this worker has nothing to check a webhook's signature with")
                return await self._webhooks.serve(call, hook, self._admit)
            except LocalRedirect as redirect:
                raw_path, _, query = redirect.location.partition("?")
                method, with_body = hdrs.METH_GET, False
                received = time.perf_counter()
        raise RedirectLoopError(
            f"local redirects went round more than {MAX_LOCAL_REDIRECTS} times, last to {raw_path[:200]!r}"
        )

    def _health(self, request_id: str) -> web.Response:
        if self.draining:
            raise OverloadedError("this worker is draining", retry_after_s=1)
        return web.json_response(
            {"status": "ok", "generation": self._table.generation}, headers={"X-Request-Id": request_id}
        )

    async def _admit(self, call: Call) -> Answer:
        permits = call.served.permits
        try:
            if not self._admission.try_acquire(permits):
                self._admission.shed(permits)  # in the lane: under overload this is what most requests meet
                await call.lane.leave()
                await self._admission.acquire(permits)
        except BusyError as exc:
            return self.failed(call, exc)
        if self._warm.n_held:
            self._warm.make_room()
        if call.with_body and call.lane.request.body_exists:
            self._with_bodies.add(call)
        try:
            call.admitted = time.perf_counter()
            return await self.run(call)
        finally:
            self._admission.release(permits, time.perf_counter() - call.admitted)
            self._with_bodies.discard(call)

    async def run(self, call: Call) -> Answer:
        """
        Run a call that has its permit, and see its answer off unless it is for the lane; a failure's is returned.

        Raises: CancelledError also where a reply had to be broken off; LocalRedirect.
        """
        served, lane = call.served, call.lane
        timeout_s = served.deployment.manifest.limits.timeout_s
        deadline = time.monotonic() + timeout_s  # the loop's clock, without asking which loop
        if call.deadline is not None and call.deadline < deadline:
            deadline = call.deadline
        answer: Answer | None = None
        try:
            async with lane.until(deadline):
                code = self._table.try_acquire(served)
                if code is None:
                    await lane.leave()
                    code = await self._table.acquire(served)
                try:
                    if served.deployment.kind is _COMMAND:
                        answer = await serve_command(
                            call,
                            self._runtime,
                            code,
                            self._models,
                            self._server_port,
                            services=self._services,
                            deadline=deadline,
                        )
                    elif served.deployment.kind is _HTTP:
                        answer = await serve_component(
                            call, self._runtime, code, self._models, self._services, deadline=deadline
                        )
                    else:
                        answer = await serve_reactor(
                            call, self._runtime, code, self._models, deadline, services=self._services
                        )
                finally:
                    self._table.release(code)
                if lane.inside and isinstance(answer, Reply) and len(answer.body) > MAX_BODY_BYTES:
                    await lane.leave()
                if not lane.inside:
                    # Sent here, so that a slow client holds its own function's permit, and not for ever.
                    answer = await self._sent(lane, answer)
        except TimeoutError:
            if answer is not None:
                break_off(call)
            if awaited_body_until(call.request, deadline):
                late: FaasError = RequestTimeoutError(
                    f"the request body did not come within {timeout_s:g} s; send it faster"
                )
            elif deadline == call.deadline:
                late = DeadlineExceededError("the caller's time was over before the guest answered; give it more")
            else:
                late = DeadlineExceededError(
                    f"the guest did not answer within {timeout_s:g} s; "
                    "make it answer sooner, or raise limits.timeout_s in function.toml"
                )
            return self.failed(call, late)
        except FaasError as exc:
            return self.failed(call, exc)
        except ConnectionError:
            return self.failed(call, ClientGoneError("the client went away in the middle of the reply"))
        except LocalRedirect:
            self._finished(call, Outcome.OK, 302)
            raise
        except asyncio.CancelledError:
            who = "caller" if isinstance(lane, MemoryLane) else "client"
            self._finished(call, Outcome.CANCELLED, 499, reason=f"the {who} went away")
            raise
        except Exception as exc:
            self._finished(call, Outcome.FAILED, 500, reason=f"internal-error: {exc!r}")
            raise
        self._finished(call, _OK, answer.status)
        return answer

    async def _sent(self, lane: Lane | MemoryLane, answer: Answer) -> Answer:
        """Send an answer, or what lacks of it, where its lane wants it; return what was sent."""
        if isinstance(lane, MemoryLane):
            if isinstance(answer, Reply):
                await lane.exchange.answer(answer, lane.request.method)
            else:
                await answer.write_eof()
            return answer
        request = await lane.leave()
        response = self._response(answer)
        await response.prepare(request)
        await response.write_eof()
        return response

    def failed(self, call: Call, error: FaasError) -> Reply:
        """
        Return what is answered to a call that failed; the journal has it then.

        Raises: CancelledError if nothing can be answered any more.
        """
        trace = error.facts.get("trace")
        if trace:
            for line in trace.splitlines():
                self._journal.line(call.served.name, call.served.version, call.request_id, line, "trap")
        reply = problem_reply(error, call.request_id, call.response_headers())
        outcome = outcome_of(error)
        self._finished(call, outcome, reply.status, reason=f"{error.code}: {error.message}")
        call.failed(outcome, error)
        if is_gone(call):
            # The reply had begun and was cut off, or nobody is left: aiohttp must not write a second one.
            raise asyncio.CancelledError
        return reply

    def _finished(self, call: Call, outcome: Outcome, status: int, reason: str = "") -> None:
        served: Served = call.served
        self._journal.finished(
            served.name,
            served.version,
            call.request_id,
            outcome,
            status=status,
            duration_ms=(time.perf_counter() - call.received) * 1000,
            start_ms=call.start_ms,
            cpu_ms=call.cpu_ns / 1e6,
            reason=reason,
            traceparent=call.traceparent,
            caller=call.caller,
        )
