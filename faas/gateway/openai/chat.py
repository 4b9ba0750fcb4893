"""``POST /v1/chat/completions``: messages through the model's own template, the answer whole or as a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web
from msgspec import UNSET

from faas.gateway.openai.exchange import EventStream, Exchange
from faas.gateway.openai.generating import Ended, Sink, TokenProbs, run_choice, side_by_side
from faas.gateway.openai.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Delta,
    DeltaCall,
    Usage,
    chat_logprobs,
    usage_of,
)
from faas.gateway.openai.requests import (
    ChatRequest,
    Message,
    NamedTool,
    Tool,
    max_tokens_of,
    sampling_of,
    schema_of,
    seed_of,
    stops_of,
    text_of,
)
from faas.gateway.openai.shape import refusal
from faas.gateway.openai.template import CHATML_END, ChatTemplate
from faas.gateway.openai.tools import OPEN, ToolCall, ToolFinder, call_schema
from faas.wire.models import Generate


async def serve_chat(exchange: Exchange, request: ChatRequest) -> web.StreamResponse:
    """Answer a chat request."""
    _refuse_what_we_lack(request)
    stops = stops_of(request.stop)
    tools, must_call = _tools_of(request)
    schema = schema_of(request.response_format)
    if tools and schema is not None:
        raise refusal(
            "'response_format' can't be combined with tools; set 'tool_choice' to 'none'", param="response_format"
        )
    sampling = sampling_of(request, call_schema(tools) if must_call else schema)
    max_tokens = max_tokens_of(
        next((n for n in (request.max_completion_tokens, request.max_tokens, request.n_predict) if n is not None), None)
    )

    card = await exchange.card(request.model, load=True)
    template = exchange.templates.of(card)
    prompt = _prompt_of(request, template, tools, must_call=must_call)
    generate = Generate(
        id=0,
        model=card.name,
        function=exchange.caller.payer,
        prompt=prompt.encode(),
        max_tokens=max_tokens,
        sampling=sampling,
        stop=(*stops, CHATML_END) if template.is_fallback else stops,
        add_special=not template.adds_bos(prompt),
        n_probs=(request.top_logprobs or 0) + 1 if request.logprobs else 0,
    )
    n = request.n or 1
    generations = [
        msgspec.structs.replace(generate, sampling=msgspec.structs.replace(sampling, seed=seed_of(request.seed, i)))
        for i in range(n)
    ]
    names = {tool.function.name for tool in tools}

    def finder() -> ToolFinder | None:
        if not tools:
            return None
        return ToolFinder(names, only_calls=must_call, at_most_one=request.parallel_tool_calls is False)

    if not request.stream:
        answer = _Answer(exchange, request, n)
        return exchange.reply(answer.completion(await _run(exchange, generations, answer, finder)))

    stream = EventStream(exchange)
    events = _Events(exchange, request, stream)

    async def send_all() -> None:
        ended = await _run(exchange, generations, events, finder)
        await events.usage(usage_of(ended, n))

    return await stream.run(send_all())


async def _run(
    exchange: Exchange, generations: Sequence[Generate], sink: Sink, finder: Callable[[], ToolFinder | None]
) -> list[Ended]:
    with exchange.begin(len(generations[0].prompt)) as charge:
        return await side_by_side(
            run_choice(exchange.client, generate, i, sink, charge, first_of_prompt=i == 0, finder=finder())
            for i, generate in enumerate(generations)
        )


# --- what is asked --------------------------------------------------------------------------------------------------


def _refuse_what_we_lack(request: ChatRequest) -> None:
    if not request.messages:
        raise refusal("'messages' must have at least one message", param="messages")
    for name in ("functions", "function_call"):
        if getattr(request, name):
            raise refusal(f"'{name}' is no longer supported; use 'tools'", param=name, code="unsupported_parameter")
    if request.top_logprobs is not None and not request.logprobs:
        raise refusal("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")


def _tools_of(request: ChatRequest) -> tuple[list[Tool], bool]:
    """Return the tools the model may use, and whether it must call one of them."""
    tools = request.tools or []
    choice = request.tool_choice
    if choice == "none":
        return [], False
    if isinstance(choice, NamedTool):
        name = choice.function.name
        chosen = [tool for tool in tools if tool.function.name == name]
        if not chosen:
            raise refusal(f"'tool_choice' names '{name}', which is not among the tools", param="tool_choice")
        return chosen[:1], True
    if choice == "required" and not tools:
        raise refusal("'tool_choice' is 'required' but there are no tools", param="tool_choice")
    return tools, choice == "required"


def _prompt_of(request: ChatRequest, template: ChatTemplate, tools: Sequence[Tool], *, must_call: bool) -> str:
    if tools and not template.has_tools:
        raise refusal(
            "this model's chat template has no tools; use another model, or set 'tool_choice' to 'none'",
            param="tools",
            code="unsupported_parameter",
        )
    messages = [_template_message(message, i, template) for i, message in enumerate(request.messages)]
    prompt = template.render(
        messages,
        tools=[msgspec.to_builtins(tool) for tool in tools],
        extra=request.chat_template_kwargs,
    )
    # The grammar forces the call itself; its opening mark is what the model would have written before it.
    return f"{prompt}{OPEN}\n" if must_call and template.has_tool_tags else prompt


def _template_message(message: Message, i: int, template: ChatTemplate) -> dict[str, Any]:
    """Return *message* as templates know it: text as one string, arguments of calls as objects."""
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    written: dict[str, Any] = {"role": role, "content": text_of(message.content, f"messages[{i}].content")}
    if message.content is None and role != "assistant":
        raise refusal(
            f"missing required parameter: 'messages[{i}].content'",
            param=f"messages[{i}].content",
            code="missing_required_parameter",
        )
    if message.tool_calls or role == "tool":
        if not template.has_tools:
            raise refusal(
                "this model's chat template has no tools, so it can't read tool calls or their results",
                param=f"messages[{i}]",
                code="unsupported_parameter",
            )
        if message.tool_calls:
            written["tool_calls"] = [
                {
                    "id": call.id or "",
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _as_object(call.function.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            written["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        written["name"] = message.name
    if message.reasoning_content is not None:
        written["reasoning_content"] = message.reasoning_content
    return written


def _as_object(arguments: str | dict[str, Any] | None) -> Any:
    """Templates write arguments with ``tojson``: of a string they would make a string within a string."""
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


# --- what is answered -----------------------------------------------------------------------------------------------


class _Answer:
    """Gathers the choices of a chat that is not streamed."""

    def __init__(self, exchange: Exchange, request: ChatRequest, n: int) -> None:
        self._exchange = exchange
        self._n_top = (request.top_logprobs or 0) if request.logprobs else -1
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._calls: list[list[ToolCall]] = [[] for _ in range(n)]
        self._probs: list[list[TokenProbs]] = [[] for _ in range(n)]
        self._finish_reasons = [""] * n

    async def delta(self, index: int, text: str, calls: list[ToolCall], probs: list[TokenProbs]) -> None:
        self._texts[index].append(text)
        self._calls[index] += calls
        self._probs[index] += probs

    async def end(self, index: int, finish_reason: str) -> None:
        self._finish_reasons[index] = finish_reason

    def completion(self, ended: list[Ended]) -> ChatCompletion:
        """Return the whole reply."""
        return ChatCompletion(
            self._exchange.new_id("chatcmpl"),
            self._exchange.created,
            self._exchange.model,
            [self._choice(i) for i in range(len(ended))],
            usage_of(ended, len(ended)),
            system_fingerprint=self._exchange.fingerprint(),
        )

    def _choice(self, index: int) -> ChatChoice:
        text, calls = "".join(self._texts[index]), self._calls[index]
        return ChatChoice(
            index,
            AssistantMessage((text.rstrip() or None) if calls else text, tool_calls=calls or UNSET),
            self._finish_reasons[index],
            chat_logprobs(self._probs[index], self._n_top) if self._n_top >= 0 else None,
        )


class _Events:
    """Sends the choices of a chat as they come: the role first, then the deltas, then why it ended."""

    def __init__(self, exchange: Exchange, request: ChatRequest, stream: EventStream) -> None:
        self._stream = stream
        self._id = exchange.new_id("chatcmpl")
        self._created = exchange.created
        self._model = exchange.model
        self._fingerprint = exchange.fingerprint()
        self._n_top = (request.top_logprobs or 0) if request.logprobs else -1
        self._with_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._n_calls: dict[int, int] = {}

    async def delta(self, index: int, text: str, calls: list[ToolCall], probs: list[TokenProbs]) -> None:
        await self._begin(index)
        logprobs = chat_logprobs(probs, self._n_top) if probs and self._n_top >= 0 else None
        if text or logprobs is not None:
            await self._send(ChunkChoice(index, Delta(content=text), logprobs))
        for call in calls:
            number = self._n_calls[index]
            self._n_calls[index] += 1
            delta = Delta(tool_calls=[DeltaCall(number, call.id, call.type, call.function)])
            await self._send(ChunkChoice(index, delta))

    async def end(self, index: int, finish_reason: str) -> None:
        await self._begin(index)
        await self._send(ChunkChoice(index, Delta(), None, finish_reason))

    async def usage(self, usage: Usage) -> None:
        """Send the last chunk, if it was asked for."""
        if self._with_usage:
            await self._stream.send(self._chunk([], usage))

    async def _begin(self, index: int) -> None:
        if index not in self._n_calls:
            self._n_calls[index] = 0
            await self._send(ChunkChoice(index, Delta(role="assistant", content="")))

    async def _send(self, choice: ChunkChoice) -> None:
        await self._stream.send(self._chunk([choice], None if self._with_usage else UNSET))

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | msgspec.UnsetType | None) -> ChatChunk:
        return ChatChunk(
            self._id, self._created, self._model, choices, system_fingerprint=self._fingerprint, usage=usage
        )
