"""Questions and answers between two processes that are in conversation already: either end asks, the other answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from faas.errors import FaasError, InternalError, OverloadedError, PeerGoneError
from faas.log import exception
from faas.problems import from_problem, to_problem

MAX_UNDER_WAY = 10_000
"""Questions of the other end that are being answered at once; more are refused."""

_logger = logging.getLogger(__name__)


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """
    Answered by exactly one ``Answer`` with the same ``id``, unless it is cancelled; each end counts its own ids.

    Neither shows what it carries: that may be a secret, or somebody's data.
    """

    id: int
    operation: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        return f"Ask(id={self.id}, operation={self.operation!r}, arguments={sorted(self.arguments)})"


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """``problem`` None means that ``value`` is what came of it."""

    id: int
    value: Any = None
    problem: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Answer(id={self.id}, problem={self.problem and self.problem.get('code')!r})"


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Nobody waits for the answer to ``id`` any more; it may come all the same."""

    id: int


Message = Ask | Answer | Cancel
Handler = Callable[[dict[str, Any]], Awaitable[Any]]
"""Gets an ``Ask``'s arguments; what it returns, of msgpack's types, is the answer. FaasErrors are answers too."""


class Peer:
    """One end's questions and its answers to the other's; lives as long as the connection. Thread: the loop."""

    def __init__(self, send: Callable[[msgspec.Struct], None], handlers: Mapping[str, Handler]) -> None:
        """
        Args: *send* queues a message and raises PeerGoneError if nobody is there; *handlers* by operation.
        """
        self._send = send
        self._handlers = handlers
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._closed = False

    async def ask(self, operation: str, /, **arguments: Any) -> Any:
        """
        Return what the other end's handler of *operation* returned; cancelling cancels it there.

        Raises: the FaasError that it raised; PeerGoneError if the other end goes away first, or is gone.
        """
        if self._closed:
            raise PeerGoneError("the connection is closed")
        id = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[id] = answer
        try:
            self._send(Ask(id, operation, arguments))
            return await answer
        except asyncio.CancelledError:
            if not self._closed:
                with contextlib.suppress(PeerGoneError):  # then it is cancelled there, too
                    self._send(Cancel(id))
            raise
        finally:
            self._waiting.pop(id, None)

    def take(self, message: Message) -> None:
        """Go by a message that the other end sent."""
        if isinstance(message, Answer):
            waiting = self._waiting.pop(message.id, None)
            if waiting is None or waiting.done():
                return
            if message.problem is None:
                waiting.set_result(message.value)
            else:
                waiting.set_exception(from_problem(message.problem))
        elif isinstance(message, Cancel):
            task = self._answering.get(message.id)
            if task is not None:
                task.cancel()
        elif len(self._answering) >= MAX_UNDER_WAY:
            error = OverloadedError(f"{MAX_UNDER_WAY} questions are being answered already; try again later")
            self._answer(Answer(message.id, problem=to_problem(error)))
        else:
            self._answering[message.id] = asyncio.create_task(self._handle(message))

    def close(self) -> None:
        """The connection is gone: nobody is answered, and nobody gets an answer any more. Safe to call again."""
        self._closed = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(PeerGoneError("the peer closed the connection"))
        self._waiting.clear()
        for task in tuple(self._answering.values()):
            task.cancel()

    async def _handle(self, question: Ask) -> None:
        try:
            handler = self._handlers.get(question.operation)
            if handler is None:
                raise InternalError(f"nobody answers {question.operation!r} here")
            answer = Answer(question.id, value=await handler(question.arguments))
        except FaasError as exc:
            answer = Answer(question.id, problem=to_problem(exc))
        except Exception as exc:
            exception(_logger, "peer.handler_failed", exc, operation=question.operation)
            answer = Answer(
                question.id, problem=to_problem(InternalError("a part of the host failed; its log has the traceback"))
            )
        finally:
            self._answering.pop(question.id, None)
        self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        try:
            self._send(answer)
        except PeerGoneError:
            return  # nobody waits
        except FaasError as exc:  # it does not fit into a frame
            self._send(Answer(answer.id, problem=to_problem(exc)))
