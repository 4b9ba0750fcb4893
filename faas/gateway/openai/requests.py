"""
What clients of the OpenAI API send, typed; wrong types are refused with the name of the parameter.

Parameters that are not here are ignored, as other servers do, and null means "not given" everywhere.
Beside OpenAI's own there are those of llama.cpp's server, under its names. What is not given is sampled with
llama.cpp's defaults (``Sampling``), which suit small models better than OpenAI's temperature of 1.

Source: OpenAI API reference; llama.cpp `tools/server/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from faas.gateway.openai.shape import from_validation, refusal
from faas.wire.models import Sampling

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_CHOICES = 128
MAX_STOPS = 32
"""OpenAI allows 4; clients of local models send more."""
MAX_INPUTS = 2048
MAX_TOP_LOGPROBS = 20
MAX_LOGPROBS = 20
"""For completions; OpenAI allows 5."""

T = TypeVar("T", bound=msgspec.Struct)

Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
NotNegative = Annotated[float, Meta(ge=0)]
INT_MAX = 2**31 - 1  # llama.cpp counts in C ints
Int = Annotated[int, Meta(ge=-INT_MAX, le=INT_MAX)]
Count = Annotated[int, Meta(ge=0, le=INT_MAX)]
CountOrAll = Annotated[int, Meta(ge=-1, le=INT_MAX)]


class StreamOptions(msgspec.Struct, frozen=True):
    """``include_usage``: one more chunk, without choices, has the usage."""

    include_usage: bool | None = None


class SamplingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    max_tokens: CountOrAll | None = None
    temperature: NotNegative | None = None
    top_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[Count, float] | None = None
    user: str | None = None
    # llama.cpp's
    n_predict: CountOrAll | None = None
    top_k: Int | None = None
    min_p: Fraction | None = None
    typical_p: Fraction | None = None
    top_n_sigma: float | None = None
    xtc_probability: Fraction | None = None
    xtc_threshold: Fraction | None = None
    dynatemp_range: NotNegative | None = None
    dynatemp_exponent: float | None = None
    repeat_penalty: NotNegative | None = None
    repeat_last_n: CountOrAll | None = None
    dry_multiplier: NotNegative | None = None
    dry_base: float | None = None
    dry_allowed_length: Count | None = None
    dry_penalty_last_n: CountOrAll | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    min_keep: Count | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message; only text is understood."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """What the assistant called, in a message of the history; arguments are JSON text, objects are taken too."""

    name: str
    arguments: str | dict[str, Any] | None = None


class PastCall(msgspec.Struct, frozen=True):
    """A call in a message of the history."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[PastCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class FunctionSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function the model may call."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """A tool; only functions are understood."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(msgspec.Struct, frozen=True):
    """The function that must be called."""

    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class SchemaFormat(msgspec.Struct, frozen=True):
    """The inner part of a ``json_schema`` format."""

    schema: dict[str, Any] | None = None
    name: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """What the answer must look like; ``schema`` beside ``json_object`` is llama.cpp's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema: dict[str, Any] | None = None


class ChatRequest(SamplingRequest, frozen=True, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: CountOrAll | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: Any = None


class CompletionRequest(SamplingRequest, frozen=True, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[Any]
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    response_format: ResponseFormat | None = None


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/embeddings``."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


def decode(body: bytes, kind: type[T]) -> T:
    """
    Return the request that *body* is.

    Raises: MalformedRequestError.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise from_validation(exc) from exc


_SAME_NAME = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold",
    "dynatemp_range", "dynatemp_exponent", "repeat_penalty", "frequency_penalty", "presence_penalty",
    "dry_multiplier", "dry_base", "dry_allowed_length", "mirostat", "mirostat_tau", "mirostat_eta", "min_keep",
    "ignore_eos", "logit_bias", "grammar",
)  # fmt: skip


def sampling_of(request: SamplingRequest, json_schema: Mapping[str, Any] | None = None) -> Sampling:
    """
    Return how to sample for *request*; *json_schema* is what its format or its tools ask for.

    Raises: MalformedRequestError when there is more than one constraint on the text.
    """
    given = {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    if request.repeat_last_n is not None:
        given["last_n_penalty"] = request.repeat_last_n
    if request.dry_penalty_last_n is not None:
        given["dry_last_n"] = request.dry_penalty_last_n
    if request.json_schema is not None:
        if json_schema is not None:
            raise refusal("'json_schema' can't be combined with response_format or tools", param="json_schema")
        json_schema = request.json_schema
    if json_schema is not None:
        if request.grammar:
            raise refusal("'grammar' can't be combined with a JSON schema, response_format or tools", param="grammar")
        given["json_schema"] = msgspec.json.encode(json_schema).decode()
    given["seed"] = seed_of(request.seed, 0)
    return Sampling(**given)


def seed_of(seed: int | None, index: int) -> int | None:
    """Return the seed of choice *index*: each its own, or all would be the same; -1 is llama.cpp's word for random."""
    if seed is None or seed == -1:
        return None
    return (seed + index) % 0xFFFFFFFF  # 2**32 - 1 itself means random to llama.cpp


def stops_of(stop: str | list[str] | None) -> tuple[bytes, ...]:
    """
    Return the stop strings; empty ones are dropped.

    Raises: MalformedRequestError.
    """
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS:
        raise refusal(f"'stop' has {len(stops)} strings, at most {MAX_STOPS} are possible", param="stop")
    return tuple(text.encode() for text in stops if text)


def max_tokens_of(given: int | None, default: int = -1) -> int:
    """
    Return the limit of generated tokens, -1 for none.

    Raises: MalformedRequestError for 0.
    """
    if given == 0:
        raise refusal("at least one token must be asked for; leave 'max_tokens' away for no limit", param="max_tokens")
    return default if given is None else given


def schema_of(response_format: ResponseFormat | None) -> dict[str, Any] | None:
    """
    Return the JSON schema that a format asks for, None for plain text.

    Raises: MalformedRequestError.
    """
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return response_format.schema or {"type": "object"}
    inner = response_format.json_schema
    schema = inner.schema if inner is not None else None
    if schema is None:
        raise refusal(
            "missing required parameter: 'response_format.json_schema.schema'",
            param="response_format.json_schema.schema",
            code="missing_required_parameter",
        )
    return schema


def text_of(content: str | list[ContentPart] | None, at: str) -> str:
    """
    Return the text of a message's content; parts are joined by newlines, as llama.cpp's server does.

    Raises: MalformedRequestError for images and the like.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for i, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text if part.type == "text" else None
        if text is None:
            raise refusal(
                f"content of type '{part.type}' is not supported; this host's models read text",
                param=f"{at}[{i}]",
                code="unsupported_content",
            )
        texts.append(text)
    return "\n".join(texts)
