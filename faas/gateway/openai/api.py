"""
The funnel of the OpenAI-compatible endpoints, one method per concern, each calling the next:
``handle`` (errors → replies, the log line) → ``_admit`` (key, permits) → ``_serve`` (path, body) → an endpoint.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TypeVar

import msgspec
from aiohttp import web

from faas import log
from faas.clock import Clock
from faas.errors import (
    BodyTooLargeError,
    ClientGoneError,
    FaasError,
    InternalError,
    MethodNotAllowedError,
    ModelNotFoundError,
    ModelsMissingError,
    OverloadedError,
    RouteNotFoundError,
)
from faas.gateway.call import RequestBody
from faas.gateway.metering import Meter
from faas.gateway.openai.chat import serve_chat
from faas.gateway.openai.completions import serve_completions
from faas.gateway.openai.embeddings import serve_embeddings
from faas.gateway.openai.exchange import SOFTWARE, Exchange
from faas.gateway.openai.keys import KeyRing
from faas.gateway.openai.replies import Model, ModelList
from faas.gateway.openai.requests import MAX_BODY_BYTES, ChatRequest, CompletionRequest, EmbeddingRequest, decode
from faas.gateway.openai.shape import error_response, refusal
from faas.gateway.openai.template import TemplateCache
from faas.nn.client import ModelService
from faas.wire.models import ModelCard

PREFIX = "/v1/"
MODELS = "/v1/models"
MAX_ACTIVE = 1024
RETRY_AFTER_S = 1.0

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


class OpenAiApi:
    """
    Serves every path under ``/v1/``; lives as long as its worker.

    At most ``max_active`` requests are in progress at once, the rest are told to come back: the model server has its
    own queue, and what waits there costs memory here.
    Thread: the loop's only.
    """

    def __init__(
        self, client: ModelService, meter: Meter, keys: KeyRing, clock: Clock, *, max_active: int = MAX_ACTIVE
    ) -> None:
        self._client = client
        self._meter = meter
        self._keys = keys
        self._clock = clock
        self._max_active = max_active
        self._templates = TemplateCache()
        self._started = clock.time_ns() // 1_000_000_000
        self._idle = asyncio.Event()
        self._idle.set()
        self.active = 0
        """Requests in progress."""
        self.missing = ""
        """Why this host can't run any model (``Models.missing``); empty when it can."""

    async def wait_idle(self) -> None:
        """Return when no request is in progress."""
        await self._idle.wait()

    async def handle(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        """Answer one request, errors in that API's own shape; the only failure that leaves here is cancellation."""
        exchange = Exchange(
            request,
            request_id,
            client=self._client,
            meter=self._meter,
            templates=self._templates,
            clock=self._clock,
        )
        try:
            response = await self._admit(exchange)
        except FaasError as exc:
            exchange.failure = exc
            response = error_response(exc, request_id)
        except ConnectionError as exc:
            exchange.failure = ClientGoneError("the client went away in the middle of the reply")
            self._finished(exchange, 499)
            raise asyncio.CancelledError from exc
        except asyncio.CancelledError:
            exchange.failure = ClientGoneError("the client went away")
            self._finished(exchange, 499)
            raise
        except Exception as exc:
            log.exception(_log, "openai.failed", exc, request_id=request_id)
            exchange.failure = InternalError("the host failed to serve this request; its log has the reason")
            response = error_response(exchange.failure, request_id)
        if not response.prepared:
            response.headers["Server"] = SOFTWARE
        self._finished(exchange, response.status)
        return response

    async def _admit(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        exchange.caller = self._keys.identify(request.headers.get("Authorization", ""), request.remote)
        if self.active >= self._max_active:
            raise OverloadedError(
                f"{self.active} model requests are in progress; try again later", retry_after_s=RETRY_AFTER_S
            )
        self.active += 1
        self._idle.clear()
        try:
            return await self._serve(exchange)
        except RecursionError as exc:
            raise refusal("the request is nested too deeply") from exc
        finally:
            self._leave()

    def _leave(self) -> None:
        self.active -= 1
        if self.active == 0:
            self._idle.set()

    async def _serve(self, exchange: Exchange) -> web.StreamResponse:
        path = exchange.request.path
        if path == MODELS:
            self._only(exchange, "GET")
            return await self._list_models(exchange)
        if path.startswith(f"{MODELS}/"):
            self._only(exchange, "GET")
            return await self._one_model(exchange, path.removeprefix(f"{MODELS}/"))
        if path == "/v1/chat/completions":
            return await serve_chat(exchange, await self._body(exchange, ChatRequest))
        if path == "/v1/completions":
            return await serve_completions(exchange, await self._body(exchange, CompletionRequest))
        if path == "/v1/embeddings":
            return await serve_embeddings(exchange, await self._body(exchange, EmbeddingRequest))
        raise RouteNotFoundError(
            f"unknown URL {path[:200]}; there are /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models"
        )

    def _only(self, exchange: Exchange, method: str) -> None:
        if exchange.request.method != method:
            raise MethodNotAllowedError(
                f"{exchange.request.method} is not possible here, only {method}", allow=[method]
            )

    async def _body(self, exchange: Exchange, kind: type[T]) -> T:
        """
        Return the request's JSON body.

        A page in a browser can send any other content type across origins without asking, so JSON must say so.
        Raises: MalformedRequestError, BodyTooLargeError, MethodNotAllowedError, ModelsMissingError.
        """
        self._only(exchange, "POST")
        if self.missing:
            raise ModelsMissingError(self.missing)
        request = exchange.request
        content_type = request.content_type if "Content-Type" in request.headers else "none"
        if content_type != "application/json":
            raise refusal(
                f"the content type must be application/json, not {content_type}", code="unsupported_content_type"
            )
        coding = request.headers.get("Content-Encoding", "identity")
        if coding.lower() != "identity":
            raise refusal(f"the body must not be encoded, not even as {coding}", code="unsupported_content_encoding")
        try:
            body = await RequestBody(request, MAX_BODY_BYTES).read_all()
        except BodyTooLargeError as exc:
            raise BodyTooLargeError(
                f"the request body is over {MAX_BODY_BYTES} bytes; send less", max_body_bytes=MAX_BODY_BYTES
            ) from exc
        return decode(body, kind)

    # --- models -----------------------------------------------------------------------------------------------------

    async def _list_models(self, exchange: Exchange) -> web.StreamResponse:
        cards = () if self.missing else await self._client.describe()
        return exchange.reply(ModelList([self._model(card) for card in cards]))

    async def _one_model(self, exchange: Exchange, name: str) -> web.StreamResponse:
        if self.missing:
            raise ModelNotFoundError(f"there is no model '{name}': {self.missing}")
        return exchange.reply(self._model(await exchange.card(name, load=False)))

    def _model(self, card: ModelCard) -> Model:
        """Return what clients learn of a model: never where its file is."""
        return Model(
            card.name,
            self._started,
            {
                "loaded": card.loaded,
                "size": card.bytes,
                "n_ctx": card.n_ctx,
                "n_ctx_train": card.n_ctx_train,
                "n_embd": card.n_embd,
                "n_vocab": card.n_vocab,
                "architecture": card.architecture,
                "description": card.description,
            },
        )

    # --- the log ----------------------------------------------------------------------------------------------------

    def _finished(self, exchange: Exchange, status: int) -> None:
        charge, error = exchange.charge, exchange.failure
        log.event(
            _log,
            "openai.finished",
            method=exchange.request.method,
            path=exchange.request.path[:200],
            model=exchange.model[:200],
            caller=exchange.caller.payer if exchange.caller.name else "",
            status=status,
            outcome=error.code if error is not None else "ok",
            duration_ms=(self._clock.monotonic() - exchange.began) * 1000,
            prompt_tokens=charge.n_prompt_tokens if charge is not None else 0,
            generated_tokens=charge.n_generated_tokens if charge is not None else 0,
            request_id=exchange.request_id,
        )
