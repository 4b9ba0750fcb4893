"""Running generations for a request: metered, several side by side, their bytes made into text."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Coroutine, Iterable
from typing import Protocol, TypeVar

import msgspec

from faas.errors import DeadlineExceededError, ModelUnavailableError
from faas.gateway.metering import Charge
from faas.gateway.openai.tools import ToolCall, ToolFinder
from faas.nn.client import ModelService
from faas.wire.models import Finish, Generate

T = TypeVar("T")

TokenProbs = tuple[tuple[int, bytes, float], ...]
"""The alternatives of one token: (token, bytes, log-probability), the sampled one first."""

_FINISH_REASONS = {
    Finish.EOG: "stop",
    Finish.STOP: "stop",
    Finish.LENGTH: "length",
    Finish.CONTEXT_FULL: "length",
}


class Ended(msgspec.Struct, frozen=True):
    """How one generation ended, and what it took."""

    finish_reason: str
    n_prompt_tokens: int
    n_cached_tokens: int
    n_generated_tokens: int


class Sink(Protocol):
    """Where the choices of a request go: into one reply at the end, or onto a stream as they come."""

    async def delta(self, index: int, text: str, calls: list[ToolCall], probs: list[TokenProbs]) -> None:
        """Take more of choice *index*; *probs* may be of tokens whose text is still incomplete."""

    async def end(self, index: int, finish_reason: str) -> None:
        """Take the end of choice *index*."""


async def run_choice(
    client: ModelService,
    request: Generate,
    index: int,
    sink: Sink,
    charge: Charge,
    *,
    first_of_prompt: bool = True,
    finder: ToolFinder | None = None,
) -> Ended:
    """
    Run one generation to its end, handing *sink* its text; leaving early, by cancellation or error, frees its slot.

    ``first_of_prompt``: of several choices for one prompt only the first pays for it.
    Raises: ModelError, DeadlineExceededError.
    """
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    n_counted = 0
    prompt_due = first_of_prompt
    async with client.generate(request) as generation:
        async for piece in generation:
            if prompt_due:
                prompt_due = False
                charge.prompt(piece.n_prompt_tokens)
            n_tokens = len(piece.tokens)
            n_counted += n_tokens
            charge.generated(n_tokens)
            pieces = piece.pieces
            text = decode(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            calls: list[ToolCall] = []
            if finder is not None:
                text, calls = finder.feed(text)
            if text or calls or piece.probs:
                await sink.delta(index, text, calls, list(piece.probs))
        final = generation.final
    if final is None:
        raise ModelUnavailableError("the generation was closed before its end; try again")
    if prompt_due:
        charge.prompt(final.n_prompt_tokens)
    if final.n_generated_tokens > n_counted:
        charge.generated(final.n_generated_tokens - n_counted)
    if final.finish is Finish.DEADLINE:
        raise DeadlineExceededError("the deadline passed while the model worked; ask for less")
    finish_reason = _FINISH_REASONS.get(final.finish)
    if finish_reason is None:
        raise ModelUnavailableError("the model server gave the generation up; try again")
    rest = decode(b"", True)
    calls = []
    if finder is not None:
        shown, calls = finder.feed(rest)
        late, more = finder.finish()
        rest, calls = shown + late, calls + more
        if finder.n_calls and finish_reason == "stop":
            finish_reason = "tool_calls"
    if rest or calls:
        await sink.delta(index, rest, calls, [])
    await sink.end(index, finish_reason)
    return Ended(
        finish_reason,
        final.n_prompt_tokens,
        final.n_cached_tokens,
        max(final.n_generated_tokens, n_counted),
    )


async def side_by_side(runs: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """
    Return the results of *runs*, in order; the first that fails cancels the others and its error is raised.

    A single one runs in the caller's own task.
    """
    coroutines = list(runs)
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks: list[asyncio.Task[T]] = [asyncio.ensure_future(one) for one in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        # They end in this very loop iteration or the next: closing a generation waits for nobody.
        await asyncio.gather(*tasks, return_exceptions=True)
