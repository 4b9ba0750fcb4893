"""A model service that says what the test scripted, and a server around the endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from faas.errors import FaasError, ModelNotFoundError, ModelUnavailableError
from faas.gateway.metering import Meter
from faas.gateway.openai.api import OpenAiApi
from faas.gateway.openai.generating import TokenProbs
from faas.gateway.openai.keys import KeyRing
from faas.nn.client import Generation
from faas.problems import to_problem
from faas.wire.models import Cancel, Embed, Final, Finish, Generate, ModelCard, More, Piece, ServerHello

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HERMES = (
    "{%- if tools %}{{ '<|im_start|>system\n<tools>' }}{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}"
    "{% endfor %}{{ '\n</tools> answer with <tool_call>' }}{{ '<|im_end|>\n' }}{% endif %}"
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{ '<tool_call>' }}{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}"
    "{{ '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def card(name: str = "tiny", template: str = CHATML, **fields: Any) -> ModelCard:
    return ModelCard(
        name, f"/secret/{name}.gguf", "sha256:00", 1000, True, n_ctx=256, n_embd=3, chat_template=template, **fields
    )


@dataclass
class Script:
    """What one generation says; ``held``: nothing by itself, the test drives it."""

    pieces: list[bytes] = field(default_factory=lambda: [b"Hello", b" there"])
    finish: Finish = Finish.EOG
    n_prompt: int = 7
    n_cached: int = 2
    probs: list[TokenProbs] = field(default_factory=list)
    error: FaasError | None = None
    held: bool = False


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 1_700_000_000 * 1_000_000_000


class Held:
    """A generation that a test drives."""

    def __init__(self, request: Generate, generation: Generation) -> None:
        self.request = request
        self.generation = generation
        self.n_tokens = 0

    def say(self, *pieces: bytes) -> None:
        for raw in pieces:
            self.n_tokens += 1
            self.generation.arrive(Piece(self.generation.id, (self.n_tokens,), (raw,), 7, 0))

    def end(self, finish: Finish = Finish.EOG, error: FaasError | None = None) -> None:
        problem = to_problem(error) if error is not None else None
        finish = Finish.FAILED if error is not None else finish
        self.generation.finish(Final(self.generation.id, finish, 7, 0, self.n_tokens, problem=problem))


class FakeModels:
    """A scripted ``ModelService``; what reached it is kept."""

    def __init__(self, *cards: ModelCard) -> None:
        self.cards = {one.name: one for one in cards or (card(),)}
        self.hello: ServerHello | None = ServerHello(1, 1, "fake", 42, "abc", ())
        self.scripts: deque[Script] = deque()
        self.requests: list[Generate] = []
        self.embeds: list[Embed] = []
        self.cancelled: asyncio.Queue[int] = asyncio.Queue()
        self.started: asyncio.Queue[Held] = asyncio.Queue()
        self.away = False

    def says(self, *pieces: bytes, **fields: Any) -> None:
        """Script the next generation."""
        self.scripts.append(Script(list(pieces), **fields))

    def holds(self, n: int = 1) -> None:
        self.scripts.extend(Script(held=True) for _ in range(n))

    def generate(self, request: Generate) -> Generation:
        self._check()
        self.requests.append(request)
        generation = Generation(len(self.requests), request.credit, self._sent)
        script = self.scripts.popleft() if self.scripts else Script()
        if script.held:
            self.started.put_nowait(Held(request, generation))
            return generation
        for i, raw in enumerate(script.pieces):
            probs = (script.probs[i],) if script.probs else ()
            generation.arrive(Piece(generation.id, (i,), (raw,), script.n_prompt, script.n_cached, probs))
        generation.finish(
            Final(
                generation.id,
                Finish.FAILED if script.error else script.finish,
                script.n_prompt,
                script.n_cached,
                len(script.pieces),
                problem=to_problem(script.error) if script.error else None,
            )
        )
        return generation

    async def embed(self, request: Embed) -> Final:
        self._check()
        self.embeds.append(request)
        vectors = tuple((1.0, 0.5, float(i)) for i in range(len(request.inputs)))
        return Final(0, Finish.DONE, n_prompt_tokens=4 * len(vectors), vectors=vectors)

    async def tokenize(self, request: Any) -> tuple[int, ...]:
        raise NotImplementedError

    async def describe(self, model: str = "", *, load: bool = False) -> tuple[ModelCard, ...]:
        self._check()
        if not model:
            return tuple(self.cards.values())
        if model not in self.cards:
            raise ModelNotFoundError(f"no model '{model}'")
        return (self.cards[model],)

    def _check(self) -> None:
        if self.away:
            raise ModelUnavailableError("the model server is away", retry_after_s=2.5)

    def _sent(self, message: More | Cancel) -> None:
        if isinstance(message, Cancel):
            self.cancelled.put_nowait(message.id)


class Answer:
    """A reply, read to its end."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json()["error"]
        return error

    def events(self) -> list[Any]:
        """Return the decoded events of a stream; ``[DONE]`` as None."""
        return [parse_event(raw) for raw in self.body.split(b"\n\n") if raw]


def parse_event(raw: bytes) -> Any:
    assert raw.startswith(b"data: "), raw
    text = raw.removeprefix(b"data: ").strip()
    return None if text == b"[DONE]" else json.loads(text)


class Site:
    """The endpoints behind a real socket."""

    def __init__(self, models: FakeModels, keys: KeyRing | None = None, **options: Any) -> None:
        self.clock = FakeClock()
        self.models = models
        self.meter = Meter(self.clock)
        self.keys = keys or KeyRing()
        self.api = OpenAiApi(models, self.meter, self.keys, self.clock, **options)
        self.url = ""
        self.http: aiohttp.ClientSession

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        async with self.http.post(self.url + path, data=io.BytesIO(raw), headers=named) as reply:
            return Answer(reply.status, reply.headers, await reply.read())

    async def get(self, path: str, **headers: str) -> Answer:
        async with self.http.get(self.url + path, headers=headers) as reply:
            return Answer(reply.status, reply.headers, await reply.read())

    async def chat(self, text: str = "hi", **body: Any) -> Answer:
        messages = [{"role": "user", "content": text}]
        return await self.post("/v1/chat/completions", {"model": "tiny", "messages": messages, **body})

    @contextlib.asynccontextmanager
    async def streaming(self, path: str, body: Any) -> AsyncIterator[Callable[[], Any]]:
        """Lend a function that reads the next event."""
        async with self.http.post(self.url + path, json=body) as reply:

            async def next_event() -> Any:
                return parse_event(await reply.content.readuntil(b"\n\n"))

            yield next_event


@contextlib.asynccontextmanager
async def site(models: FakeModels, keys: KeyRing | None = None, **options: Any) -> AsyncIterator[Site]:
    """Serve the endpoints as a worker does."""
    one = Site(models, keys, **options)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await one.api.handle(request, "req-1")

    server = web.Server(handle, handler_cancellation=True, auto_decompress=False, access_log=None)
    runner = web.ServerRunner(server)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    one.http = aiohttp.ClientSession()
    try:
        yield one
    finally:
        await one.http.close()
        await runner.cleanup()
