"""``POST /v1/completions``: text goes on as the model would, without a template."""

from __future__ import annotations

import msgspec
from aiohttp import web
from msgspec import UNSET

from faas.gateway.openai.exchange import EventStream, Exchange
from faas.gateway.openai.generating import Ended, Sink, TokenProbs, run_choice, side_by_side
from faas.gateway.openai.replies import CompletionLogprobs, TextChoice, TextCompletion, Usage, usage_of
from faas.gateway.openai.requests import (
    MAX_CHOICES,
    CompletionRequest,
    max_tokens_of,
    sampling_of,
    schema_of,
    seed_of,
    stops_of,
)
from faas.gateway.openai.shape import refusal
from faas.gateway.openai.tools import ToolCall
from faas.wire.models import Generate

DEFAULT_MAX_TOKENS = 16
"""As in OpenAI's API: text that goes on by itself rarely ends by itself."""


async def serve_completions(exchange: Exchange, request: CompletionRequest) -> web.StreamResponse:
    """Answer a completion request."""
    prompts = _prompts_of(request.prompt)
    n = request.n or 1
    n_runs = _runs_per_prompt(request, n)
    if len(prompts) * n_runs > MAX_CHOICES:
        raise refusal(f"{len(prompts) * n_runs} choices were asked for, at most {MAX_CHOICES} are possible", param="n")
    if request.suffix:
        raise refusal("'suffix' is not supported", param="suffix", code="unsupported_parameter")
    if request.echo and request.logprobs is not None:
        raise refusal("'echo' can't be combined with 'logprobs': prompts are not scored", param="echo")
    given = request.max_tokens if request.max_tokens is not None else request.n_predict
    generate = Generate(
        id=0,
        model="",
        function=exchange.caller.payer,
        prompt=b"",
        max_tokens=max_tokens_of(given, DEFAULT_MAX_TOKENS),
        sampling=sampling_of(request, schema_of(request.response_format)),
        stop=stops_of(request.stop),
        n_probs=_n_probs(request, best_of=n_runs > n),
    )
    card = await exchange.card(request.model, load=False)
    generations = [
        msgspec.structs.replace(
            generate,
            model=card.name,
            prompt=prompt.encode(),
            sampling=msgspec.structs.replace(generate.sampling, seed=seed_of(request.seed, i)),
        )
        for prompt in prompts
        for i in range(n_runs)
    ]

    if not request.stream:
        answer = _Answer(exchange, request, prompts, n, n_runs)
        return exchange.reply(answer.completion(await _run(exchange, generations, answer, n_runs)))

    stream = EventStream(exchange)
    events = _Events(exchange, request, prompts, n, stream)

    async def send_all() -> None:
        ended = await _run(exchange, generations, events, n)
        await events.usage(usage_of(ended, n))

    return await stream.run(send_all())


async def _run(exchange: Exchange, generations: list[Generate], sink: Sink, n_per_prompt: int) -> list[Ended]:
    n_bytes = sum(len(generate.prompt) for generate in generations[::n_per_prompt])
    with exchange.begin(n_bytes) as charge:
        return await side_by_side(
            run_choice(exchange.client, generate, i, sink, charge, first_of_prompt=i % n_per_prompt == 0)
            for i, generate in enumerate(generations)
        )


def _prompts_of(prompt: str | list[object]) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise refusal("'prompt' must not be an empty list", param="prompt")
    texts: list[str] = []
    for i, one in enumerate(prompt):
        if not isinstance(one, str):
            raise refusal(
                "'prompt' must be a string or a list of strings; token ids are not supported",
                param=f"prompt[{i}]",
                code="invalid_type",
            )
        texts.append(one)
    return texts


def _runs_per_prompt(request: CompletionRequest, n: int) -> int:
    best_of = request.best_of or n
    if best_of < n:
        raise refusal("'best_of' must not be smaller than 'n'", param="best_of")
    if best_of > n and request.stream:
        raise refusal("'best_of' can't be streamed: which is best is known at the end", param="best_of")
    return best_of


def _n_probs(request: CompletionRequest, *, best_of: bool) -> int:
    if request.logprobs is not None:
        return request.logprobs + 1
    return 1 if best_of else 0


class _Answer:
    """Gathers the choices of completions that are not streamed; keeps the best where more were run than asked for."""

    def __init__(self, exchange: Exchange, request: CompletionRequest, prompts: list[str], n: int, n_runs: int) -> None:
        self._exchange = exchange
        self._request = request
        self._prompts = prompts
        self._n = n
        self._n_runs = n_runs
        n_all = len(prompts) * n_runs
        self._texts: list[list[str]] = [[] for _ in range(n_all)]
        self._probs: list[list[TokenProbs]] = [[] for _ in range(n_all)]
        self._finish_reasons = [""] * n_all

    async def delta(self, index: int, text: str, calls: list[ToolCall], probs: list[TokenProbs]) -> None:
        self._texts[index].append(text)
        self._probs[index] += probs

    async def end(self, index: int, finish_reason: str) -> None:
        self._finish_reasons[index] = finish_reason

    def completion(self, ended: list[Ended]) -> TextCompletion:
        """Return the whole reply."""
        choices: list[TextChoice] = []
        for i, prompt in enumerate(self._prompts):
            runs = list(range(i * self._n_runs, (i + 1) * self._n_runs))
            if self._n_runs > self._n:
                runs = sorted(runs, key=self._score, reverse=True)[: self._n]
            choices += [self._choice(len(choices) + j, run, prompt) for j, run in enumerate(runs)]
        return TextCompletion(
            self._exchange.new_id("cmpl"),
            self._exchange.created,
            self._exchange.model,
            choices,
            system_fingerprint=self._exchange.fingerprint(),
            usage=usage_of(ended, self._n_runs),
        )

    def _score(self, run: int) -> float:
        """Return the mean log-probability per token, which is what OpenAI calls best."""
        logprobs = [token[0][2] for token in self._probs[run] if token]
        return sum(logprobs) / len(logprobs) if logprobs else float("-inf")

    def _choice(self, index: int, run: int, prompt: str) -> TextChoice:
        logprobs: CompletionLogprobs | None = None
        if self._request.logprobs is not None:
            logprobs = CompletionLogprobs()
            logprobs.add(self._probs[run], self._request.logprobs, 0)
        text = "".join(self._texts[run])
        return TextChoice(index, prompt + text if self._request.echo else text, logprobs, self._finish_reasons[run])


class _Events:
    """Sends the choices of completions as they come."""

    def __init__(
        self, exchange: Exchange, request: CompletionRequest, prompts: list[str], n: int, stream: EventStream
    ) -> None:
        self._stream = stream
        self._id = exchange.new_id("cmpl")
        self._created = exchange.created
        self._model = exchange.model
        self._fingerprint = exchange.fingerprint()
        self._n_top = request.logprobs
        self._with_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._offsets = [0] * (len(prompts) * n)
        self._echoes = {i * n + j: prompt for i, prompt in enumerate(prompts) for j in range(n)} if request.echo else {}

    async def delta(self, index: int, text: str, calls: list[ToolCall], probs: list[TokenProbs]) -> None:
        logprobs: CompletionLogprobs | None = None
        if self._n_top is not None and probs:
            logprobs = CompletionLogprobs()
            self._offsets[index] = logprobs.add(probs, self._n_top, self._offsets[index])
        await self._send(TextChoice(index, self._echoes.pop(index, "") + text, logprobs))

    async def end(self, index: int, finish_reason: str) -> None:
        await self._send(TextChoice(index, self._echoes.pop(index, ""), None, finish_reason))

    async def usage(self, usage: Usage) -> None:
        """Send the last chunk, if it was asked for."""
        if self._with_usage:
            await self._stream.send(self._chunk([], usage))

    async def _send(self, choice: TextChoice) -> None:
        await self._stream.send(self._chunk([choice], None if self._with_usage else UNSET))

    def _chunk(self, choices: list[TextChoice], usage: Usage | msgspec.UnsetType | None) -> TextCompletion:
        return TextCompletion(
            self._id, self._created, self._model, choices, system_fingerprint=self._fingerprint, usage=usage
        )
