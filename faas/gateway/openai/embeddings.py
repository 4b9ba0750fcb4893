"""``POST /v1/embeddings``: vectors for texts."""

from __future__ import annotations

import array
import base64
import sys

from aiohttp import web

from faas.gateway.openai.exchange import Exchange
from faas.gateway.openai.replies import Embedding, EmbeddingList, EmbeddingUsage
from faas.gateway.openai.requests import MAX_INPUTS, EmbeddingRequest
from faas.gateway.openai.shape import refusal
from faas.wire.models import Embed


async def serve_embeddings(exchange: Exchange, request: EmbeddingRequest) -> web.StreamResponse:
    """Answer an embedding request."""
    inputs = _inputs_of(request.input)
    card = await exchange.card(request.model, load=request.dimensions is not None)
    if request.dimensions is not None and card.n_embd and request.dimensions != card.n_embd:
        raise refusal(
            f"'dimensions' can't be {request.dimensions}: vectors of '{card.name}' have {card.n_embd}",
            param="dimensions",
        )
    with exchange.begin(sum(map(len, inputs))) as charge:
        final = await exchange.client.embed(Embed(0, card.name, exchange.caller.payer, inputs))
        charge.prompt(final.n_prompt_tokens)
    encode = _base64 if request.encoding_format == "base64" else _numbers
    return exchange.reply(
        EmbeddingList(
            [Embedding(i, encode(vector)) for i, vector in enumerate(final.vectors)],
            card.name,
            EmbeddingUsage(final.n_prompt_tokens, final.n_prompt_tokens),
        )
    )


def _inputs_of(given: str | list[object]) -> tuple[bytes, ...]:
    listed = [given] if isinstance(given, str) else given
    if not listed or len(listed) > MAX_INPUTS:
        raise refusal(f"'input' must have 1 to {MAX_INPUTS} texts, not {len(listed)}", param="input")
    inputs: list[bytes] = []
    for i, text in enumerate(listed):
        at = "input" if isinstance(given, str) else f"input[{i}]"
        if not isinstance(text, str):
            raise refusal(
                "'input' must be a string or a list of strings; token ids are not supported",
                param=at,
                code="invalid_type",
            )
        if not text:
            raise refusal("'input' must not be an empty string", param=at)
        inputs.append(text.encode())
    return tuple(inputs)


def _numbers(vector: tuple[float, ...]) -> tuple[float, ...]:
    return vector


def _base64(vector: tuple[float, ...]) -> str:
    floats = array.array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()
