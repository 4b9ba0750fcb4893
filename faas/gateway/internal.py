"""
Invocation without a socket: calls between functions, jobs and schedules go the way of an HTTP request, in memory.

``Internal.begin`` (who, depth) → ``_serve`` (errors → replies) → ``_follow`` (routes, redirects) → ``_admit`` (permits
of their own) → the gateway's ``run`` (deadline, kind, journal), which HTTP requests take as well.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from multidict import CIMultiDict

from faas.clock import Clock
from faas.config import HostConfig
from faas.errors import (
    BusyError,
    CallDeniedError,
    CallDepthError,
    DeadlineExceededError,
    FaasError,
    InternalError,
    MalformedRequestError,
    NotServedError,
    OverloadedError,
    RedirectLoopError,
)
from faas.gateway.admission import Admission, Permits
from faas.gateway.call import MAX_LOCAL_REDIRECTS, TRACEPARENT, Call, LocalRedirect, script_name
from faas.gateway.inmemory import Exchange, Head, MemoryLane, MemoryRequest
from faas.gateway.journal import Journal
from faas.gateway.lane import RESERVED, Answer, Reply
from faas.gateway.live import LiveTable, Served
from faas.gateway.middleware import outcome_of, problem_reply
from faas.gateway.webhook_paths import hook_at
from faas.invocation import Outcome
from faas.log import event
from faas.manifest import Limits
from faas.outbound.exchange import HOP_BY_HOP, Body
from faas.routes import Route, parse_route

DOMAIN: Final = "faas.internal"
"""Under this, every function has a host name."""

_DROPPED = HOP_BY_HOP.union(RESERVED, ("expect",))
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
_TARGET = re.compile(r"[/?][^\x00-\x20#\x7f]*|")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# What a function that is reached by none of its routes is matched by.
_NO_ROUTE = Route(path="", segments=())

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InternalRequest:
    """
    A request to one function.

    ``target`` is a path and maybe a query, as in a request line; empty, or a query alone, means the path of the
    function's first route. Header values keep bytes beyond UTF-8 as surrogates. ``remote`` is whose address the
    function sees. ``own`` are the headers of ``lane.RESERVED`` that the host sets; among the others they are dropped.
    """

    method: str = "GET"
    target: str = ""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | Body = b""
    remote: str = ""
    own: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class InternalReply:
    """
    What an invocation came to: the function's answer, or a problem document where it had none.

    ``code`` and ``detail`` are those of the problem, empty with outcome ``ok``.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    outcome: Outcome
    code: str
    detail: str
    version: int


class Runner(Protocol):
    """Who runs a call that has its permit: the gateway."""

    async def run(self, call: Call) -> Answer:
        """Run *call* and give its answer to its lane; a Reply that comes back from a failure is yet to be given."""

    def failed(self, call: Call, error: FaasError) -> Reply:
        """Return what a call that failed is answered, once its journal has it."""


class InternalCall(Call):
    """A call in memory: it may have a caller, with a deadline of its own."""

    __slots__ = ("caller", "deadline", "depth", "exchange")

    def __init__(
        self, *given: Any, caller: str, deadline: float | None, depth: int, exchange: Exchange, **others: Any
    ) -> None:
        """Args: as ``Call``, and what is in its class there."""
        super().__init__(*given, **others)
        self.caller = caller
        self.deadline = deadline
        self.depth = depth
        self.exchange = exchange

    def failed(self, outcome: Outcome, error: FaasError) -> None:
        """Tell who waits for the reply."""
        self.exchange.failed(outcome, error)


class Invocation:
    """
    One invocation under way: its head first, then its body, piece by piece; the function is held back meanwhile.

    Lives until its receiver closes it, whether or not it read the body. Thread: the loop, but for ``body.read_nowait``.
    """

    __slots__ = ("_task", "body", "version")

    def __init__(self, version: int, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self.version = version
        self.body = exchange
        self._task = task

    async def head(self) -> Head:
        """Return status and headers once they are there; an invocation that fails before has a problem document's."""
        return await self.body.wait_head()

    async def reply(self) -> InternalReply:
        """
        Return all of the reply once it is whole; a failure after the head makes it a problem document.

        The function's ``max_output_bytes`` bounds what is kept.
        """
        exchange = self.body
        status, headers = await self.head()
        body = b""
        try:
            body = await exchange.read_all()
        except FaasError as exc:
            problem = problem_reply(exc, "")
            status, body = problem.status, problem.body
            headers = [*(header for header in headers if _is_hosts(header[0])), *problem.own.items()]
        failure = exchange.failure
        code, detail = ("", "") if failure is None else (failure.code, failure.message)
        return InternalReply(status, headers, body, exchange.outcome, code, detail, self.version)

    def close(self) -> None:
        """End it, unless its reply is whole: then it may run on within its limits. Safe to call more than once."""
        self.body.close()
        if not self.body.ended:
            self._task.cancel()


class Internal:
    """
    A worker's invocations in memory; lives as long as it. Thread: the loop's only.

    Their permits are apart from those of HTTP requests, and each depth of calls has its own: who waits for a callee
    holds nothing that a callee, or one of its own callees, waits for. So no chain of calls can block itself.
    """

    def __init__(self, runner: Runner, table: LiveTable, journal: Journal, clock: Clock, config: HostConfig) -> None:
        self._runner = runner
        self._table = table
        self._journal = journal
        self._clock = clock
        self._max_depth = config.max_call_depth
        self._levels = [_Level(slots, config) for slots in config.level_slots]
        self._generation = 0
        self._id_prefix = secrets.token_hex(6)
        self._ids = itertools.count(1)
        self._running: set[asyncio.Task[None]] = set()
        self.draining = False
        """Whether nothing new is taken but what functions in flight call."""

    @property
    def active(self) -> int:
        """How many invocations run or wait for a permit."""
        return len(self._running)

    async def wait_idle(self) -> None:
        """Return when there is no invocation."""
        while self._running:
            await asyncio.wait(self._running)

    async def aclose(self) -> None:
        """End what is left. Safe to call more than once."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def begin(
        self,
        function: str,
        qualifier: str,
        request: InternalRequest,
        *,
        deadline: float | None = None,
        depth: int = 0,
        request_id: str = "",
        caller: str = "",
        traceparent: str = "",
        hooks: bool = False,
    ) -> Invocation:
        """
        Begin to invoke *function*; what it answers, also that it failed or was refused, is the returned one's reply.

        Args: *qualifier* is "" for what routes serve, an alias, or a version number as text. *deadline*, on the loop's
        clock in seconds, is when the caller's time is over; the function's own ``timeout_s`` counts as well. *depth* is
        0 for what no function called. Log lines carry *request_id*, a new one by default, and name *caller*. *hooks* is
        whether webhooks' paths may be reached: not by what was never signed, since that is what their guests rely on.
        Raises: FunctionNotFoundError and its kin, CallDeniedError, CallDepthError, MalformedRequestError;
        OverloadedError while the worker drains.
        """
        if depth > self._max_depth:
            raise CallDepthError(
                f"functions called each other {depth} deep, and max_call_depth is {self._max_depth}; look for a circle "
                "in who calls whom, or raise the setting"
            )
        if self.draining and not depth:
            raise OverloadedError("this worker is draining", retry_after_s=1)
        if self._generation != self._table.generation:
            self._generation = self._table.generation
            for level in self._levels:
                level.forget_removed(self._table)
        served = self._table.resolve(function, qualifier)
        lane, path, query = _received(request, served, traceparent)
        if not hooks and hook_at(served.webhooks, path) is not None:
            raise CallDeniedError(f"that path of {function} is a webhook, and takes signed deliveries only")
        traceparent = lane.request.headers.get("traceparent", "")
        if not request_id:
            request_id = f"{self._id_prefix}{next(self._ids):08x}"
        facts = {
            "request_id": request_id,
            "traceparent": traceparent if TRACEPARENT.fullmatch(traceparent) else "",
            "clock": self._clock,
            "journal": self._journal,
            "caller": caller,
            "deadline": deadline,
            "depth": depth,
            "exchange": lane.exchange,
        }
        task = asyncio.create_task(self._serve(lane, served, path, query, facts))
        self._running.add(task)
        task.add_done_callback(functools.partial(self._ended, lane))
        return Invocation(served.version, lane.exchange, task)

    async def invoke(self, function: str, qualifier: str, request: InternalRequest, **facts: Any) -> InternalReply:
        """
        Invoke *function* and return its whole reply. Cancelling ends it.

        Args and Raises: as ``begin``.
        """
        invocation = self.begin(function, qualifier, request, **facts)
        try:
            return await invocation.reply()
        finally:
            invocation.close()

    def _ended(self, lane: MemoryLane, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        lane.exchange.finish()
        body = lane.request.body
        if not isinstance(body, bytes):
            body.close()  # nobody reads it any more, and who writes it must not wait
        if not task.cancelled():
            task.exception()  # all of them were logged

    async def _serve(self, lane: MemoryLane, served: Served, path: str, query: str, facts: dict[str, Any]) -> None:
        """Run it and give the reply; the only failure to leave here is cancellation."""
        exchange, request_id = lane.exchange, facts["request_id"]
        try:
            answer = await self._follow(lane, served, path, query, facts)
        except FaasError as exc:
            exchange.failed(outcome_of(exc), exc)
            answer = problem_reply(exc, request_id)
        except Exception as exc:
            _log.exception("invocation failed")
            event(_log, "request.failed", request_id=request_id, error=repr(exc))
            error = InternalError("the host failed to serve this invocation; its log has the reason")
            exchange.failed(Outcome.FAILED, error)
            answer = problem_reply(error, request_id)
        if exchange.head is None:
            assert isinstance(answer, Reply)
            await exchange.answer(answer, lane.request.method)

    async def _follow(self, lane: MemoryLane, served: Served, path: str, query: str, facts: dict[str, Any]) -> Answer:
        """Match the path and run the function; go where a command's answer leads, as HTTP does."""
        asked, method, received = served, lane.request.method, time.perf_counter()
        with_body = True
        params, route = _own_match(served, method, path)
        for _ in range(MAX_LOCAL_REDIRECTS):
            call = InternalCall(
                lane,
                served,
                method=method,
                raw_path=path,
                query=query,
                params=params,
                route=route.path,
                script_name=script_name(route, path) if route.path else "",
                received=received,
                with_body=with_body,
                **facts,
            )
            try:
                return await self._admit(call)
            except LocalRedirect as redirect:
                path, _, query = redirect.location.partition("?")
                method, with_body, received = "GET", False, time.perf_counter()
            served, params, route = self._redirected(asked, path)
        raise RedirectLoopError(
            f"local redirects went round more than {MAX_LOCAL_REDIRECTS} times, last to {path[:200]!r}"
        )

    def _redirected(self, asked: Served, path: str) -> tuple[Served, dict[str, str], Route]:
        """Return who answers where a command's answer leads: the function itself, or what HTTP would reach there."""
        served = asked
        try:
            params, route = asked.match("GET", path)
        except NotServedError:
            served, params, route = self._table.match("GET", path)
        if hook_at(served.webhooks, path) is not None:
            raise CallDeniedError(f"{asked.name} redirects to {path[:200]}, a webhook, and that is not signed")
        if served is not asked and served.needs_key:
            raise CallDeniedError(
                f"{asked.name} redirects to {path[:200]}, whose function asks for an invoke key; have it call "
                "that function instead"
            )
        return served, params, route

    async def _admit(self, call: InternalCall) -> Answer:
        level = self._levels[call.depth]
        permits = level.permits(call.served)
        try:
            if call.deadline is None:
                await level.admission.acquire(permits)
            else:
                async with asyncio.timeout_at(call.deadline):
                    await level.admission.acquire(permits)
        except BusyError as exc:
            return self._runner.failed(call, exc)
        except TimeoutError:
            error = DeadlineExceededError("the caller's time was over before an instance became free; try again later")
            return self._runner.failed(call, error)
        try:
            call.admitted = time.perf_counter()
            return await self._runner.run(call)
        finally:
            level.admission.release(permits, time.perf_counter() - call.admitted)


class _Level:
    """The permits of one depth, in slots that nobody else takes."""

    def __init__(self, slots: int, config: HostConfig) -> None:
        self.admission = Admission(slots, max_queue=config.max_queue, queue_timeout_s=config.queue_timeout_s)
        self._n_workers = config.n_workers
        self._known: dict[str, tuple[Limits, Permits]] = {}

    def permits(self, served: Served) -> Permits:
        """Return the permits of a function, made at its first invocation here."""
        limits = served.deployment.manifest.limits
        known = self._known.get(served.name)
        if known is not None and (known[0] is limits or known[0] == limits):
            return known[1]
        permits = self.admission.configure(
            served.name,
            limit=math.ceil(limits.max_concurrency / self._n_workers),
            weight=limits.weight,
            max_queue=None if limits.max_queue is None else math.ceil(limits.max_queue / self._n_workers),
            queue_timeout_s=limits.queue_timeout_s,
        )
        self._known[served.name] = limits, permits
        return permits

    def forget_removed(self, table: LiveTable) -> None:
        """Keep nothing for functions that are not served any more."""
        for name in [name for name in self._known if not table.serves(name)]:
            del self._known[name]
            self.admission.forget(name)


def _received(request: InternalRequest, served: Served, traceparent: str) -> tuple[MemoryLane, str, str]:
    """
    Return *request* as the gateway reads it, its path and its query; the caller's *traceparent* goes on with it.

    Raises: MalformedRequestError.
    """
    method, target = request.method.upper(), request.target
    if not _TOKEN.fullmatch(method) or method == "CONNECT":
        raise MalformedRequestError(f"{request.method[:64]!a} is no method that functions answer; use e.g. GET or POST")
    if not _TARGET.fullmatch(target):
        raise MalformedRequestError(
            f"the target {target[:80]!a} is no path; begin it with '/', and write spaces, '#' and controls as %20"
        )
    path, _, query = target.partition("?")
    headers: CIMultiDict[str] = CIMultiDict()
    host = ""
    n_announced: int | None = None
    for name, value in request.headers:
        if not _TOKEN.fullmatch(name) or _BAD_VALUE.search(value):
            raise MalformedRequestError(f"the header {name[:64]!a} is no token, or its value has a control character")
        lower = name.lower()
        if lower == "host":
            host = value
        elif lower == "content-length":
            n_announced = int(value) if value.isascii() and value.isdigit() else None
        elif lower not in _DROPPED:
            headers.add(name, value)
    headers.extend(request.own)
    host = headers["Host"] = host or f"{served.name}.{DOMAIN}"
    if traceparent:
        headers.setdefault("traceparent", traceparent)
    n_bytes = len(request.body) if isinstance(request.body, bytes) else n_announced
    if n_bytes:
        headers["Content-Length"] = str(n_bytes)
    received = MemoryRequest(method, headers, request.body, n_bytes, host=host, remote=request.remote or None)
    return MemoryLane(received, Exchange()), path or _first_path(served.deployment.manifest.routes), query


def _own_match(served: Served, method: str, path: str) -> tuple[dict[str, str], Route]:
    """Return the parameters and which of the function's own routes matches; routes keep nobody out here."""
    try:
        return served.match(method, path)
    except NotServedError:
        return {}, _NO_ROUTE


@functools.lru_cache(maxsize=1024)
def _first_path(routes: tuple[str, ...]) -> str:
    """Return the path of the first route that says one; a trailing ``*`` stands for nothing."""
    for text in routes:
        path = parse_route(text).path
        if "{" not in path:
            return path.removesuffix("/*") or "/"
    return "/"


def _is_hosts(name: str) -> bool:
    return name.lower() in ("x-request-id", "x-faas-function", "x-faas-version", "server-timing")
