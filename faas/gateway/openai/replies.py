"""What the OpenAI API answers, typed; the order and the nulls are those its clients expect."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from faas.gateway.openai.generating import Ended, TokenProbs
from faas.gateway.openai.tools import CallText, ToolCall

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a token that could not have come; JSON has no infinity."""


class PromptDetails(msgspec.Struct, frozen=True):
    """``cached_tokens`` of the prompt were taken from the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request; a prompt with several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def usage_of(ended: list[Ended], n_per_prompt: int) -> Usage:
    """Return the usage of choices that lie in groups of *n_per_prompt*."""
    firsts = ended[::n_per_prompt]
    n_prompt = sum(one.n_prompt_tokens for one in firsts)
    n_generated = sum(one.n_generated_tokens for one in ended)
    return Usage(
        n_prompt, n_generated, n_prompt + n_generated, PromptDetails(sum(one.n_cached_tokens for one in firsts))
    )


# --- chat -----------------------------------------------------------------------------------------------------------


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """The token that came, and its alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a stretch of the answer."""

    content: list[TokenLogprob]
    refusal: None = None


class DeltaCall(msgspec.Struct, frozen=True):
    """A call on a stream; it comes whole, in one delta."""

    index: int
    id: str
    type: str
    function: CallText


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a choice."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: list[DeltaCall] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """A choice in a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """One event of a streamed chat."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: str = "chat.completion.chunk"
    system_fingerprint: str | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET


class AssistantMessage(msgspec.Struct, frozen=True):
    """The answer."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One of the answers."""

    index: int
    message: AssistantMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """The reply of a chat that is not streamed."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"
    system_fingerprint: str | UnsetType = UNSET


def chat_logprobs(probs: Iterable[TokenProbs], n_top: int) -> ChatLogprobs:
    """Return log-probabilities with the *n_top* likeliest alternatives of each token."""
    return ChatLogprobs(
        [
            TokenLogprob(
                _text(token[0][1]),
                _finite(token[0][2]),
                list(token[0][1]),
                [TopLogprob(_text(raw), _finite(logprob), list(raw)) for _, raw, logprob in likeliest(token, n_top)],
            )
            for token in probs
            if token
        ]
    )


# --- completions ----------------------------------------------------------------------------------------------------


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities as the older API writes them; ``text_offset`` counts characters from the choice's begin."""

    tokens: list[str] = []
    token_logprobs: list[float] = []
    top_logprobs: list[dict[str, float]] = []
    text_offset: list[int] = []

    def add(self, probs: Iterable[TokenProbs], n_top: int, offset: int) -> int:
        """Append tokens whose text begins at *offset*, and return where it ends."""
        for token in probs:
            if token:
                text = _text(token[0][1])
                self.tokens.append(text)
                self.token_logprobs.append(_finite(token[0][2]))
                self.top_logprobs.append(
                    {_text(raw): _finite(logprob) for _, raw, logprob in reversed(likeliest(token, n_top))}
                )
                self.text_offset.append(offset)
                offset += len(text)
        return offset


class TextChoice(msgspec.Struct, frozen=True):
    """A completion, or more of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class TextCompletion(msgspec.Struct, frozen=True):
    """The reply of ``/v1/completions``, and each event of it when it is streamed."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    object: str = "text_completion"
    system_fingerprint: str | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET


# --- embeddings and models ------------------------------------------------------------------------------------------


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Tokens of the inputs."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True):
    """One vector: numbers, or base64 of little-endian float32."""

    index: int
    embedding: tuple[float, ...] | str
    object: str = "embedding"


class EmbeddingList(msgspec.Struct, frozen=True):
    """The reply of ``/v1/embeddings``."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


class Model(msgspec.Struct, frozen=True):
    """One model; ``meta`` has what llama.cpp's server tells."""

    id: str
    created: int
    meta: dict[str, Any]
    object: str = "model"
    owned_by: str = "faas"


class ModelList(msgspec.Struct, frozen=True):
    """The reply of ``/v1/models``."""

    data: list[Model]
    object: str = "list"


def likeliest(token: TokenProbs, n: int) -> list[tuple[int, bytes, float]]:
    """Return the *n* likeliest alternatives, best first, each token once."""
    if n <= 0:
        return []
    distinct = {alternative[0]: alternative for alternative in token}
    return sorted(distinct.values(), key=lambda alternative: -alternative[2])[:n]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB
