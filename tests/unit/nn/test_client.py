"""Promises of the model client, over a real socket: one outcome each, at once if the server is away, back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from faas.errors import (
    DeadlineExceededError,
    GenerationFailedError,
    ModelNotFoundError,
    ModelUnavailableError,
    PeerGoneError,
    PromptTooLongError,
)
from faas.nn.client import ModelClient
from faas.problems import to_problem
from faas.wire import framing
from faas.wire.framing import Channel
from faas.wire.models import (
    MODEL_PROTOCOL_VERSION,
    Cancel,
    ClientHello,
    Describe,
    Embed,
    Final,
    Finish,
    FromModelClient,
    Generate,
    ModelCard,
    ModelStats,
    More,
    Piece,
    Ping,
    Pong,
    ServerHello,
    Tokenize,
)

HELLO = ServerHello(MODEL_PROTOCOL_VERSION, 17, "test", 8757, "c0ffee", ())
CARD = ModelCard("default", "/m.gguf", "d", 1, True, n_ctx=512)

Serve = Callable[[Channel[Any]], Awaitable[None]]


class Server:
    """A model server that does what the test says, a connection at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hello: msgspec.Struct = HELLO
        self.connections: asyncio.Queue[Channel[Any]] = asyncio.Queue()
        self.greetings: list[ClientHello] = []
        self._listening: asyncio.Server | None = None
        self._open: list[Channel[Any]] = []

    async def start(self) -> None:
        self._listening = await asyncio.start_unix_server(self._accept, self.path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel: Channel[Any] = Channel(reader, writer, FromModelClient)
        self._open.append(channel)
        with suppress(PeerGoneError):
            self.greetings.append(await channel.receive())
            await channel.send(self.hello)
            await self.connections.put(channel)

    async def stop(self) -> None:
        """Die: every connection breaks, and nobody listens any more."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            self.path.unlink()
        for channel in self._open:
            await channel.aclose()
        self._open.clear()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path / "models.sock")
    await server.start()
    yield server
    await server.stop()


def client_of(server: Server, **options: Any) -> ModelClient:
    return ModelClient(str(server.path), "secret", "test", first_retry_s=0.001, last_retry_s=0.002, **options)


@asynccontextmanager
async def connected(server: Server, **options: Any) -> AsyncIterator[tuple[ModelClient, Channel[Any]]]:
    """Lend a client, and the server's end of its connection."""
    async with client_of(server, **options) as client:
        await client.wait_ready()
        yield client, await server.connections.get()


def request(credit: int = 0) -> Generate:
    return Generate(0, "default", "f", b"prompt", credit=credit)


def piece(id: int, *pieces: bytes) -> Piece:
    return Piece(id, tuple(range(len(pieces))), pieces, 4, 1)


# Connecting


async def test_the_client_says_who_it_is_and_keeps_the_greeting(server: Server) -> None:
    async with connected(server) as (client, _channel):
        assert server.greetings == [ClientHello(MODEL_PROTOCOL_VERSION, "test", "secret")]
        assert client.hello == HELLO
    assert client.hello is None


async def test_every_call_fails_at_once_while_the_server_is_away(tmp_path: Path) -> None:
    async with ModelClient(str(tmp_path / "nothing.sock"), "t", "c") as client:
        assert client.hello is None
        for call in (
            lambda: client.embed(Embed(0, "m", "f", (b"x",))),
            lambda: client.tokenize(Tokenize(0, "m", b"x")),
            client.describe,
            client.ping,
        ):
            with pytest.raises(ModelUnavailableError) as caught:
                await call()
            assert caught.value.retry_after_s >= 1.0
        with pytest.raises(ModelUnavailableError):
            client.generate(request())


async def test_a_client_that_was_never_started_fails_and_closes(tmp_path: Path) -> None:
    client = ModelClient(str(tmp_path / "nothing.sock"), "t", "c")
    with pytest.raises(ModelUnavailableError):
        client.generate(request())
    await client.aclose()


async def test_the_client_is_back_by_itself_after_the_server_is(server: Server) -> None:
    async with connected(server) as (client, _channel):
        await server.stop()
        while client.hello is not None:
            await asyncio.sleep(0)
        await server.start()
        await client.wait_ready()
        channel = await server.connections.get()
        generation = client.generate(request())
        assert isinstance(await channel.receive(), Generate)
        generation.close()


@pytest.mark.parametrize(
    "hello", [ServerHello(MODEL_PROTOCOL_VERSION + 1, 1, "t", 1, "c", ()), Pong(1), Final(1, Finish.DONE)]
)
async def test_a_server_that_does_not_greet_as_it_should_is_not_used(server: Server, hello: msgspec.Struct) -> None:
    server.hello = hello
    async with client_of(server) as client:
        for _ in range(2):  # it is tried again, and refused again
            await server.connections.get()
        assert client.hello is None
        server.hello = HELLO
        assert await client.wait_ready() == HELLO


# Generations


async def test_a_generation_gives_its_pieces_and_then_its_final(server: Server) -> None:
    async with connected(server) as (client, channel):
        generation = client.generate(request())
        asked = await channel.receive()
        assert asked == msgspec.structs.replace(request(), id=generation.id)
        await channel.send(piece(asked.id, b"a", b"b"))
        await channel.send(piece(asked.id, b"c"))
        await channel.send(Final(asked.id, Finish.EOG, 4, 1, 3))
        assert [p.pieces async for p in generation] == [(b"a", b"b"), (b"c",)]
        assert generation.final is not None
        assert generation.final.finish is Finish.EOG
        assert (generation.n_prompt_tokens, generation.n_cached_tokens, generation.n_tokens) == (4, 1, 3)
        with pytest.raises(StopAsyncIteration):
            await anext(generation)


async def test_generations_side_by_side_get_what_is_theirs(server: Server) -> None:
    async with connected(server) as (client, channel):
        one, two = client.generate(request()), client.generate(request())
        assert one.id != two.id
        await channel.send(piece(two.id, b"2"))
        await channel.send(piece(999, b"nobody's"))
        await channel.send(piece(one.id, b"1"))
        assert (await anext(one)).pieces == (b"1",)
        assert (await anext(two)).pieces == (b"2",)


async def test_a_failed_generation_raises_the_servers_error_after_its_pieces(server: Server) -> None:
    async with connected(server) as (client, channel):
        generation = client.generate(request())
        await channel.send(piece(generation.id, b"a"))
        problem = to_problem(ModelNotFoundError("no such model"))
        await channel.send(Final(generation.id, Finish.FAILED, problem=problem))
        assert (await anext(generation)).pieces == (b"a",)
        for _ in range(2):
            with pytest.raises(ModelNotFoundError, match="no such model"):
                await anext(generation)


async def test_a_failure_without_a_reason_is_a_failed_generation(server: Server) -> None:
    async with connected(server) as (client, channel):
        generation = client.generate(request())
        await channel.send(Final(generation.id, Finish.FAILED))
        with pytest.raises(GenerationFailedError):
            await anext(generation)


async def test_a_lost_connection_ends_what_is_in_flight_with_a_retryable_error(server: Server) -> None:
    async with connected(server) as (client, channel):
        generation = client.generate(request())
        embedding = asyncio.create_task(client.embed(Embed(0, "m", "f", (b"x",))))
        await channel.receive()
        await channel.receive()
        await channel.send(piece(generation.id, b"a"))
        await server.stop()
        assert (await anext(generation)).pieces == (b"a",)
        with pytest.raises(ModelUnavailableError) as caught:
            await anext(generation)
        assert caught.value.retry_after_s > 0
        with pytest.raises(ModelUnavailableError):
            await embedding
        assert generation.final is None
        assert await generation.cancel() is None


async def test_credit_is_given_in_batches_of_what_was_taken(server: Server) -> None:
    async with connected(server) as (client, channel):
        generation = client.generate(request(credit=4))
        asked = await channel.receive()
        for token in (b"a", b"b", b"c"):
            await channel.send(piece(asked.id, token))
        for _ in range(3):
            await anext(generation)
        await channel.send(piece(asked.id, b"d", b"e", b"f"))
        await anext(generation)
        assert await channel.receive() == More(asked.id, 2)
        assert await channel.receive() == More(asked.id, 4)


async def test_cancel_drops_what_was_not_taken_and_returns_the_final(server: Server) -> None:
    async with connected(server) as (client, channel):
        generation = client.generate(request())
        asked = await channel.receive()
        await channel.send(piece(asked.id, b"a"))
        await anext(generation)
        cancelling = asyncio.create_task(generation.cancel())
        assert await channel.receive() == Cancel(asked.id)
        await channel.send(piece(asked.id, b"late"))
        await channel.send(Final(asked.id, Finish.CANCELLED, n_generated_tokens=2))
        final = await cancelling
        assert final is not None
        assert (final.finish, final.n_generated_tokens) == (Finish.CANCELLED, 2)
        with pytest.raises(StopAsyncIteration):
            await anext(generation)
        assert await generation.cancel() is final


async def test_close_tells_the_server_once_and_drops_what_is_late(server: Server) -> None:
    async with connected(server) as (client, channel):
        async with client.generate(request()) as generation:
            pass
        generation.close()
        await generation.aclose()
        assert isinstance(await channel.receive(), Generate)
        assert await channel.receive() == Cancel(generation.id)
        await channel.send(piece(generation.id, b"late"))
        await channel.send(Final(generation.id, Finish.CANCELLED))
        asyncio.get_running_loop().call_soon(client.generate, request())
        assert isinstance(await channel.receive(), Generate)  # and no second Cancel before it
        assert generation.final is None


async def test_closing_wakes_whoever_iterates(server: Server) -> None:
    async with connected(server) as (client, _channel):
        generation = client.generate(request())
        taking = asyncio.create_task(anext(generation, None))
        await asyncio.sleep(0)
        generation.close()
        assert await taking is None


async def test_closing_after_the_end_says_nothing(server: Server) -> None:
    async with connected(server) as (client, channel):
        generation = client.generate(request())
        asked = await channel.receive()
        await channel.send(Final(asked.id, Finish.EOG))
        assert [p async for p in generation] == []
        generation.close()
        other = client.generate(request())
        assert (await channel.receive()).id == other.id


async def test_closing_the_client_ends_generations(server: Server) -> None:
    async with connected(server) as (client, _channel):
        generation = client.generate(request())
    with pytest.raises(ModelUnavailableError):
        await anext(generation)
    with pytest.raises(ModelUnavailableError):
        client.generate(request())


async def test_a_prompt_over_the_frame_cap_is_too_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(server) as (client, channel):
        monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 1000)
        with pytest.raises(PromptTooLongError):
            client.generate(msgspec.structs.replace(request(), prompt=b"x" * 1000))
        with pytest.raises(PromptTooLongError):
            await client.embed(Embed(0, "m", "f", (b"x" * 1000,)))
        client.generate(request())
        assert isinstance(await channel.receive(), Generate)


# The other requests


async def answering(channel: Channel[Any], answer: Callable[[Any], msgspec.Struct]) -> Any:
    asked = await channel.receive()
    await channel.send(answer(asked))
    return asked


async def test_embeddings_tokens_and_cards_are_answered(server: Server) -> None:
    async with connected(server) as (client, channel):
        served = asyncio.create_task(
            answering(channel, lambda asked: Final(asked.id, Finish.DONE, vectors=((1.0, 0.0),)))
        )
        assert (await client.embed(Embed(0, "m", "f", (b"x",)))).vectors == ((1.0, 0.0),)
        assert isinstance(await served, Embed)

        served = asyncio.create_task(answering(channel, lambda asked: Final(asked.id, Finish.DONE, tokens=(1, 2))))
        assert await client.tokenize(Tokenize(0, "m", b"x")) == (1, 2)
        assert isinstance(await served, Tokenize)

        served = asyncio.create_task(answering(channel, lambda asked: Final(asked.id, Finish.DONE, cards=(CARD,))))
        assert await client.describe("default", load=True) == (CARD,)
        asked = await served
        assert (type(asked), asked.model, asked.load) == (Describe, "default", True)

        served = asyncio.create_task(answering(channel, lambda asked: Pong(asked.id)))
        assert await client.ping() >= 0
        assert isinstance(await served, Ping)


async def test_a_request_that_fails_raises_the_servers_error(server: Server) -> None:
    async with connected(server) as (client, channel):
        problem = to_problem(ModelNotFoundError("no such model"))
        served = asyncio.create_task(answering(channel, lambda asked: Final(asked.id, Finish.FAILED, problem=problem)))
        with pytest.raises(ModelNotFoundError, match="no such model"):
            await client.describe("nope")
        await served


async def test_a_request_past_its_deadline_raises_so(server: Server) -> None:
    async with connected(server) as (client, channel):
        served = asyncio.create_task(answering(channel, lambda asked: Final(asked.id, Finish.DEADLINE)))
        with pytest.raises(DeadlineExceededError):
            await client.embed(Embed(0, "m", "f", (b"x",), deadline=1.0))
        await served


async def test_a_request_whose_caller_goes_away_is_cancelled(server: Server) -> None:
    async with connected(server) as (client, channel):
        asking = asyncio.create_task(client.embed(Embed(0, "m", "f", (b"x",))))
        asked = await channel.receive()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await channel.receive() == Cancel(asked.id)


async def test_stats_are_handed_on(server: Server) -> None:
    stats: asyncio.Queue[ModelStats] = asyncio.Queue()
    async with connected(server, on_stats=stats.put_nowait) as (_client, channel):
        sent = ModelStats({"m": {"loads": 1.0}}, {"f": {"requests": 2.0}})
        await channel.send(sent)
        assert await stats.get() == sent


async def test_a_server_that_talks_nonsense_is_left_and_tried_again(server: Server) -> None:
    async with connected(server) as (client, channel):
        generation = client.generate(request())
        await channel.send(ClientHello(MODEL_PROTOCOL_VERSION, "not", "yours"))
        with pytest.raises(ModelUnavailableError):
            await anext(generation)
        await client.wait_ready()
        await server.connections.get()


async def test_opening_and_closing_leaves_no_task_behind(server: Server) -> None:
    before = asyncio.all_tasks()
    for _ in range(20):
        async with connected(server) as (client, _channel):
            client.generate(request())
    for _ in range(3):
        await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() - before if "_stay_connected" in repr(task)} == set()
