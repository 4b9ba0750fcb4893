"""One request and its reply: what every endpoint needs to answer, and the event stream it may answer with."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable
from typing import Any

import msgspec
from aiohttp import web

from faas import __version__, log
from faas.clock import Clock
from faas.errors import FaasError, InternalError, ModelNotFoundError
from faas.gateway.call import break_connection
from faas.gateway.metering import Charge, Meter
from faas.gateway.openai.keys import Caller
from faas.gateway.openai.shape import error_object, refusal
from faas.gateway.openai.template import TemplateCache
from faas.nn.client import ModelService
from faas.wire.models import ModelCard

DONE = b"data: [DONE]\n\n"
SMALL_EVENT_BYTES = 16 * 1024
"""An event up to this size does not fill the transport's buffer, so writing it does not wait."""
STALL_S = 60.0
"""How long a client may leave its stream unread; the answer is complete by then, and nobody is coming for it."""
SOFTWARE = f"faas/{__version__}"

_log = logging.getLogger(__name__)
_encode = msgspec.json.encode


class Exchange:
    """A request, who sent it and what serves it; lives until the reply is finished."""

    def __init__(
        self,
        request: web.BaseRequest,
        request_id: str,
        *,
        client: ModelService,
        meter: Meter,
        templates: TemplateCache,
        clock: Clock,
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.caller = Caller("")
        self.client = client
        self.templates = templates
        self.began = clock.monotonic()
        self.created = clock.time_ns() // 1_000_000_000
        self.model = ""
        self.charge: Charge | None = None
        self.failure: FaasError | None = None
        """Why it was not served, or why its stream was cut off after it had begun with status 200."""
        self._meter = meter

    async def card(self, model: str | None, *, load: bool) -> ModelCard:
        """
        Return the card of the model that is asked for; the only one, if none is named.

        Raises: ModelNotFoundError, ModelError, MalformedRequestError (which of them?).
        """
        if model is None:
            names = [card.name for card in await self.client.describe()]
            if len(names) != 1:
                known = f"one of {', '.join(names)}" if names else "but this host has no models"
                raise refusal(f"you must name a model: {known}", param="model", code="missing_required_parameter")
            model = names[0]
        self.model = model
        cards = await self.client.describe(model, load=load)
        if not cards:
            raise ModelNotFoundError(f"there is no model '{model}' on this host; GET /v1/models lists them")
        return cards[0]

    def begin(self, n_prompt_bytes: int) -> Charge:
        """
        Admit the request; the caller closes the charge.

        Raises: QuotaExceededError.
        """
        self.charge = self._meter.begin(
            self.caller.payer, tokens_per_minute=self.caller.tokens_per_minute, n_prompt_bytes=n_prompt_bytes
        )
        return self.charge

    def fingerprint(self) -> str | msgspec.UnsetType:
        """Return what made the answer, as ``system_fingerprint``."""
        hello = self.client.hello
        if hello is None:
            return msgspec.UNSET
        return f"b{hello.build}-{hello.commit}" if hello.build else hello.commit

    def new_id(self, prefix: str) -> str:
        """Return an id for the answer."""
        return f"{prefix}-{secrets.token_hex(12)}"

    def reply(self, answer: Any) -> web.Response:
        """Return *answer* as a whole reply."""
        return web.Response(
            body=_encode(answer), headers={"Content-Type": "application/json", "X-Request-Id": self.request_id}
        )


class EventStream:
    """
    The reply as server-sent events; its headers leave with the first event.

    Until then nothing is sent, so that a request that is refused by the model server gets a status that says so.
    Several tasks may send: an event is never torn apart.
    Source: WHATWG HTML "Server-sent events"; OpenAI API reference "Streaming".
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._opening = asyncio.Lock()
        self._response: web.StreamResponse | None = None

    async def send(self, event: Any) -> None:
        """Send one event at once."""
        await self._write(b"data: " + _encode(event) + b"\n\n")

    async def run(self, work: Awaitable[None]) -> web.StreamResponse:
        """
        Return the finished reply after *work* has sent its events.

        Raises: what *work* raises, as long as nothing was sent; afterwards the error is the last event.
        """
        try:
            await work
            await self._write(DONE)
        except FaasError as exc:
            if self._response is None:
                raise
            await self._fail(exc)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as exc:
            if self._response is None:
                raise
            log.exception(_log, "openai.failed", exc, request_id=self._exchange.request_id)
            await self._fail(InternalError("the host failed to serve this request; its log has the reason"))
        assert self._response is not None
        await self._response.write_eof()
        return self._response

    async def _fail(self, error: FaasError) -> None:
        self._exchange.failure = error
        await self.send(error_object(error))

    async def _write(self, data: bytes) -> None:
        response = self._response or await self._open()
        transport = self._exchange.request.transport
        if transport is not None and transport.get_write_buffer_size() == 0 and len(data) <= SMALL_EVENT_BYTES:
            await response.write(data)  # the client keeps up: there is nothing to wait for
            return
        try:
            async with asyncio.timeout(STALL_S):
                await response.write(data)
        except TimeoutError as exc:
            break_connection(self._exchange.request)
            raise ConnectionResetError("the client does not read its stream") from exc

    async def _open(self) -> web.StreamResponse:
        async with self._opening:
            if self._response is None:
                exchange = self._exchange
                response = web.StreamResponse(
                    headers={
                        "Content-Type": "text/event-stream; charset=utf-8",
                        "Cache-Control": "no-cache",
                        "X-Accel-Buffering": "no",  # nginx would gather the events
                        "X-Request-Id": exchange.request_id,
                        "Server": SOFTWARE,
                    }
                )
                await response.prepare(exchange.request)
                self._response = response
            return self._response
