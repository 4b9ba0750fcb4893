"""
The client of the model server: one connection per process, shared by every invocation of it.

A ``ModelClient`` keeps its connection by itself. While the server is away every call fails at once with
ModelUnavailableError, which says when to try again; nobody waits for a server that may not come back.
What was in flight when the connection broke ends with the same error, whole pieces that arrived before it first.

Thread: the loop's only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final as Constant
from typing import Protocol

import msgspec

from faas import log
from faas.clock import Clock, SystemClock
from faas.errors import (
    DeadlineExceededError,
    FaasError,
    FrameTooLargeError,
    GenerationFailedError,
    ModelUnavailableError,
    PeerGoneError,
    PromptTooLongError,
    ProtocolError,
    WireError,
)
from faas.problems import from_problem
from faas.wire.framing import Channel
from faas.wire.models import (
    MODEL_PROTOCOL_VERSION,
    Cancel,
    ClientHello,
    Describe,
    Embed,
    Final,
    Finish,
    FromModelServer,
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

FIRST_RETRY_S: Constant = 0.05
LAST_RETRY_S: Constant = 2.0
HELLO_TIMEOUT_S: Constant = 10.0
LEAST_RETRY_AFTER_S: Constant = 1.0  # Retry-After counts in whole seconds

_log = logging.getLogger(__name__)

ServerChannel = Channel[FromModelServer]
Request = Generate | Embed | Tokenize | Describe | Ping


class ModelService(Protocol):
    """What WASI-NN and the HTTP endpoints need of a model server; ``ModelClient`` is the real one."""

    @property
    def hello(self) -> ServerHello | None:
        """What the server said when it was ready; None while it is away."""

    def generate(self, request: Generate) -> Generation:
        """Start a generation."""

    async def embed(self, request: Embed) -> Final:
        """Return the embeddings."""

    async def tokenize(self, request: Tokenize) -> tuple[int, ...]:
        """Return the tokens of a text."""

    async def describe(self, model: str = "", *, load: bool = False) -> tuple[ModelCard, ...]:
        """Return the cards of one model, or of all."""


class Generation:
    """
    One running generation: iterate it for its pieces; lives until its end, ``close`` or the loss of the connection.

    ``async for piece in generation`` ends when the generation does, and ``final`` says how. Leave it early with
    ``close`` (or ``async with``), which frees the model's slot; the counters stay valid then.
    Raises (iterating): the mapped error of a generation that failed, ModelUnavailableError.
    """

    __slots__ = (
        "_credit",
        "_ended",
        "_error",
        "_news",
        "_pieces",
        "_send",
        "_taken",
        "final",
        "id",
        "n_cached_tokens",
        "n_prompt_tokens",
        "n_tokens",
    )  # fmt: skip

    def __init__(self, id: int, credit: int, send: Callable[[More | Cancel], None]) -> None:
        """Args: *send* never raises: a connection that is gone ends the generation by ``lose``."""
        self.id = id
        self.final: Final | None = None
        self.n_prompt_tokens = 0
        self.n_cached_tokens = 0
        self.n_tokens = 0
        """Tokens that arrived so far, taken or not; after the end ``final.n_generated_tokens`` is the exact count."""
        self._credit = credit
        self._taken = 0
        self._send = send
        self._pieces: deque[Piece] = deque()
        self._news = asyncio.Event()
        self._error: FaasError | None = None
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will arrive."""
        return self._ended

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece:
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        piece = self._pieces.popleft()
        self._give_credit(len(piece.tokens))
        return piece

    async def cancel(self) -> Final | None:
        """Stop generating, drop what was not taken, and return the final; None if the connection broke first."""
        self._pieces.clear()
        if not self._ended:
            self._send(Cancel(self.id))
        while not self._ended:
            self._pieces.clear()
            self._news.clear()
            await self._news.wait()
        self._pieces.clear()
        return self.final

    def close(self) -> None:
        """Stop generating and forget it: what is still on its way will be dropped. Safe to call more than once."""
        self._pieces.clear()
        if not self._ended:
            self._ended = True
            self._news.set()
            self._send(Cancel(self.id))

    async def aclose(self) -> None:
        """Do what ``close`` does."""
        self.close()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _give_credit(self, n_tokens: int) -> None:
        """Let the server run further ahead, in batches of half the credit: a message per token would double traffic."""
        if not self._credit or self._ended:
            return
        self._taken += n_tokens
        if self._taken >= max(1, self._credit // 2):
            taken, self._taken = self._taken, 0
            self._send(More(self.id, taken))

    # --- what the connection says -----------------------------------------------------------------------------------

    def arrive(self, piece: Piece) -> None:
        """Keep a piece for the iteration."""
        self.n_prompt_tokens = piece.n_prompt_tokens
        self.n_cached_tokens = piece.n_cached_tokens
        self.n_tokens += len(piece.tokens)
        self._pieces.append(piece)
        self._news.set()

    def finish(self, final: Final) -> None:
        """End it as the server says."""
        self.final = final
        self.n_prompt_tokens = final.n_prompt_tokens or self.n_prompt_tokens
        self.n_cached_tokens = final.n_cached_tokens or self.n_cached_tokens
        self._error = _error_of(final)
        self._ended = True
        self._news.set()

    def lose(self, error: FaasError) -> None:
        """End it because the connection did."""
        self._error = error
        self._ended = True
        self._news.set()


class _Answer:
    """The outcome of a request that is no generation; an error is a value here, as nobody may be left to take it."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        self.outcome: asyncio.Future[Final | FaasError] = asyncio.get_running_loop().create_future()

    def arrive(self, piece: Piece) -> None:
        """Ignore it: only generations have pieces."""

    def finish(self, final: Final) -> None:
        self.lose(_error_of(final) or final)

    def lose(self, outcome: Final | FaasError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class ModelClient:
    """
    The process's way to its model server; make it once, ``start`` it (or ``async with``) and ``aclose`` it at the end.

    ``hello`` is the server's greeting, None while it is away. It is not refreshed: models that were added since are
    in ``describe``.
    """

    def __init__(
        self,
        socket_path: str,
        token: str,
        client: str,
        *,
        on_stats: Callable[[ModelStats], None] | None = None,
        clock: Clock | None = None,
        first_retry_s: float = FIRST_RETRY_S,
        last_retry_s: float = LAST_RETRY_S,
    ) -> None:
        """Args: *client* names this process in the server's log; *on_stats* runs on the loop and must not raise."""
        self._socket_path = socket_path
        self._greeting = ClientHello(MODEL_PROTOCOL_VERSION, client, token)
        self._on_stats = on_stats
        self._clock = clock or SystemClock()
        self._first_retry_s = first_retry_s
        self._last_retry_s = last_retry_s
        self._retry_at = 0.0
        self._ids = itertools.count(1)
        self._pending: dict[int, Generation | _Answer] = {}
        self._channel: ServerChannel | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.hello: ServerHello | None = None

    def start(self) -> None:
        """Begin to connect, in the background; safe to call more than once."""
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._stay_connected())

    async def aclose(self) -> None:
        """Close the connection; what is in flight ends with ModelUnavailableError."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper], timeout=1.0)  # a server that reads nothing more must not hold us up
        self._lose("this process closed its connection to the model server")

    async def __aenter__(self) -> ModelClient:
        self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def wait_ready(self) -> ServerHello:
        """Return the server's greeting once it is there, however long that takes; calls never wait like this."""
        while self.hello is None:
            await self._ready.wait()
        return self.hello

    # --- requests ---------------------------------------------------------------------------------------------------

    def generate(self, request: Generate) -> Generation:
        """
        Start a generation; ``request.id`` is assigned here. It takes a slot of the model until it ends or is closed.

        Raises: ModelUnavailableError, PromptTooLongError (it does not even fit into a message).
        """
        channel = self._connected()
        id = next(self._ids)
        with _sending(self._retry_after_s):
            channel.send_nowait(msgspec.structs.replace(request, id=id))
        generation = Generation(id, request.credit, self._send_quietly)
        self._pending[id] = generation
        return generation

    async def embed(self, request: Embed) -> Final:
        """
        Return the final that carries an embedding for each of ``request.inputs``.

        Raises: ModelError, DeadlineExceededError.
        """
        return await self._ask(request)

    async def tokenize(self, request: Tokenize) -> tuple[int, ...]:
        """
        Return the tokens of a text; the model is loaded for it.

        Raises: ModelError.
        """
        return (await self._ask(request)).tokens

    async def describe(self, model: str = "", *, load: bool = False) -> tuple[ModelCard, ...]:
        """
        Return the card of *model*, or of every model; with *load* it is loaded first, so that ``n_ctx`` is known.

        Raises: ModelError.
        """
        return (await self._ask(Describe(0, model, load))).cards

    async def ping(self) -> float:
        """
        Return how many seconds the server took to answer; it answers also while models compute.

        Raises: ModelUnavailableError.
        """
        began = self._clock.monotonic()
        await self._ask(Ping(0))
        return self._clock.monotonic() - began

    async def _ask(self, request: Request) -> Final:
        channel = self._connected()
        id = next(self._ids)
        # Not waiting for a slow reader here: what piles up is bounded by the requests that this process admits.
        with _sending(self._retry_after_s):
            channel.send_nowait(msgspec.structs.replace(request, id=id))
        answer = self._pending[id] = _Answer()
        try:
            outcome = await answer.outcome
        finally:
            if self._pending.pop(id, None) is not None and not isinstance(request, Ping):
                self._send_quietly(Cancel(id))  # whoever asked does not wait for the answer any more
        if isinstance(outcome, FaasError):
            raise outcome
        if outcome.finish is Finish.DEADLINE:
            raise DeadlineExceededError("the deadline passed while the model worked; ask for less, or allow more time")
        return outcome

    def _connected(self) -> ServerChannel:
        if self._channel is None:
            raise _away(self._retry_after_s())
        return self._channel

    def _retry_after_s(self) -> float:
        return max(LEAST_RETRY_AFTER_S, self._retry_at - self._clock.monotonic())

    def _send_quietly(self, message: More | Cancel) -> None:
        if isinstance(message, Cancel):
            generation = self._pending.get(message.id)
            if isinstance(generation, Generation) and generation.ended:
                del self._pending[message.id]  # closed, not cancelled: nobody waits for its final
        if self._channel is None:
            return
        try:
            self._channel.send_nowait(message)
        except PeerGoneError:
            return  # the keeper finds the same end and tells everyone who waits

    # --- the connection ---------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        delay_s = self._first_retry_s
        reported = ""
        while True:
            try:
                async with asyncio.timeout(HELLO_TIMEOUT_S):
                    channel, hello = await self._connect()
            except (OSError, WireError) as exc:  # TimeoutError is an OSError
                reason = str(exc) or type(exc).__name__
                if reason != reported:
                    log.event(_log, "models.unreachable", level=logging.WARNING, reason=reason)
                    reported = reason
            else:
                log.event(_log, "models.connected", server_pid=hello.pid, backend=hello.backend)
                reported, delay_s = "", self._first_retry_s
                self._channel, self.hello = channel, hello
                self._ready.set()
                try:
                    reason = await self._receive(channel)
                finally:
                    self._channel, self.hello = None, None
                    self._ready.clear()
                    await channel.aclose()
                log.event(_log, "models.lost", level=logging.WARNING, reason=reason, in_flight=len(self._pending))
                self._retry_at = self._clock.monotonic() + delay_s
                self._lose("the model server went away in the middle of the request")
            self._retry_at = self._clock.monotonic() + delay_s
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self._last_retry_s)

    async def _connect(self) -> tuple[ServerChannel, ServerHello]:
        channel: ServerChannel = Channel(*await asyncio.open_unix_connection(self._socket_path), FromModelServer)
        try:
            await channel.send(self._greeting)
            hello = await channel.receive()
            if not isinstance(hello, ServerHello):
                raise ProtocolError("the model server began with something else than its hello")
            if hello.protocol != MODEL_PROTOCOL_VERSION:
                raise ProtocolError(
                    f"the model server speaks protocol {hello.protocol}, this process {MODEL_PROTOCOL_VERSION}; "
                    "restart the host"
                )
        except BaseException:
            await channel.aclose()
            raise
        return channel, hello

    async def _receive(self, channel: ServerChannel) -> str:
        """Hand on what arrives until the connection ends, and return why it did."""
        pending = self._pending
        try:
            while True:
                message = await channel.receive()
                if isinstance(message, Piece):
                    waiting = pending.get(message.id)
                    if waiting is not None:
                        waiting.arrive(message)
                elif isinstance(message, Final):
                    waiting = pending.pop(message.id, None)
                    if waiting is not None:
                        waiting.finish(message)
                elif isinstance(message, Pong):
                    answer = pending.pop(message.id, None)
                    if isinstance(answer, _Answer):
                        answer.finish(Final(message.id, Finish.DONE))
                elif isinstance(message, ModelStats) and self._on_stats is not None:
                    self._on_stats(message)
        except WireError as exc:
            return exc.message

    def _lose(self, reason: str) -> None:
        pending, self._pending = self._pending, {}
        for waiting in pending.values():
            waiting.lose(_away(self._retry_after_s(), reason))


def _error_of(final: Final) -> FaasError | None:
    """Return the error that a failed final stands for."""
    if final.finish is not Finish.FAILED:
        return None
    if final.problem is None:
        return GenerationFailedError("the model server gave no reason; its log may have one")
    return from_problem(final.problem)


def _away(retry_after_s: float, reason: str = "the model server is away") -> ModelUnavailableError:
    return ModelUnavailableError(f"{reason}; it is restarted by itself, try again", retry_after_s=retry_after_s)


@contextmanager
def _sending(retry_after_s: Callable[[], float]) -> Iterator[None]:
    """Turn what can go wrong with a message into what that means for a model request."""
    try:
        yield
    except FrameTooLargeError as exc:
        raise PromptTooLongError("the prompt does not fit into a message to the model server; send less") from exc
    except PeerGoneError as exc:
        raise _away(retry_after_s()) from exc
