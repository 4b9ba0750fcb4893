"""A model service in the test's own process: it answers what the test wrote down, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from faas.errors import FaasError
from faas.nn.client import Generation
from faas.problems import to_problem
from faas.wire.models import (
    MODEL_PROTOCOL_VERSION,
    Embed,
    Final,
    Finish,
    Generate,
    ModelCard,
    Piece,
    ServerHello,
    Tokenize,
)

N_CTX = 512


def card(name: str = "default", n_ctx: int = N_CTX) -> ModelCard:
    return ModelCard(name, f"/models/{name}.gguf", "d" * 64, 1000, True, n_ctx=n_ctx, n_embd=3)


def n_tokens(text: bytes) -> int:
    return len(text.split()) + 1


class ScriptedModels:
    """A ``ModelService``: a token is a word, and there is one more at the beginning."""

    def __init__(
        self, pieces: Sequence[bytes] = (b"a", b"b", b"<|im_end|>"), finish: Finish = Finish.EOG, *, n_ctx: int = N_CTX
    ) -> None:
        self.hello: ServerHello | None = ServerHello(MODEL_PROTOCOL_VERSION, 1, "scripted", 8757, "c0ffee", ())
        self.pieces = list(pieces)
        self.finish = finish
        self.cards = (card(n_ctx=n_ctx),)
        self.error: FaasError | None = None
        self.failure: FaasError | None = None
        self.by_hand = False  # the test calls arrive and finish of ``running`` itself
        self.batch = 1
        self.requests: list[Any] = []
        self.sent: list[Any] = []
        self.running: list[Generation] = []

    def generate(self, request: Generate) -> Generation:
        self._take(request)
        generation = Generation(len(self.requests), request.credit, self.sent.append)
        self.running.append(generation)
        if self.by_hand:
            return generation
        n_prompt = n_tokens(request.prompt)
        if self.failure is not None:
            generation.finish(Final(generation.id, Finish.FAILED, n_prompt, problem=to_problem(self.failure)))
            return generation
        pieces = self.pieces if request.max_tokens < 0 else self.pieces[: request.max_tokens]
        finish = self.finish if len(pieces) == len(self.pieces) else Finish.LENGTH
        for start in range(0, len(pieces), self.batch):
            some = tuple(pieces[start : start + self.batch])
            ends = finish if start + self.batch >= len(pieces) else None
            generation.arrive(Piece(generation.id, tuple(range(len(some))), some, n_prompt, 0, finish=ends))
        generation.finish(Final(generation.id, finish, n_prompt, 0, len(pieces)))
        return generation

    async def embed(self, request: Embed) -> Final:
        self._take(request)
        return Final(0, Finish.DONE, n_tokens(request.inputs[0]), vectors=((0.6, -0.8, 1e-05),))

    async def tokenize(self, request: Tokenize) -> tuple[int, ...]:
        self._take(request)
        return tuple(range(n_tokens(request.text)))

    async def describe(self, model: str = "", *, load: bool = False) -> tuple[ModelCard, ...]:
        self._take(("describe", model, load))
        return self.cards

    def _take(self, request: Any) -> None:
        self.requests.append(request)
        if self.error is not None:
            raise self.error


class HandClock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 0
