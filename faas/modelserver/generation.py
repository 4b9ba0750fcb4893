"""One request for text on its way through the scheduler, and what comes back from the owner thread."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from enum import Enum

import msgspec

from faas.modelserver.backends.base import SamplerHandle
from faas.modelserver.prefix import TOKEN_TYPE, Holding
from faas.modelserver.stops import StopWatch, Token
from faas.wire.models import Final, Finish, Generate, Piece


class Key(msgspec.Struct, frozen=True):
    """Which request: the connection it came on, and its id there."""

    connection: Hashable
    id: int


class Phase(Enum):
    """
    Where a generation is.

    WAITING ──admit──▶ PREFILL ──last prompt token decoded──▶ DECODE ──▶ ENDED
       ▲                  │                                     │
       └──────preempted (no cells left)─────────────────────────┘
    """

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    ENDED = "ended"


class Generation:
    """
    One ``Generate`` and its state; lives from its arrival until its ``Final``.

    ``context`` is the prompt and every token sampled so far; the first ``n_past`` of them have their cells.
    """

    def __init__(self, key: Key, request: Generate, arrived_at: float) -> None:
        self.key = key
        self.request = request
        self.phase = Phase.WAITING
        self.cancelled = False
        self.context = array(TOKEN_TYPE)
        self.n_prompt = 0
        self.n_cached = 0
        self.n_past = 0
        self.n_generated = 0
        self.limit = 0
        self.holding: Holding | None = None
        self.waits_for: tuple[Generation, int] | None = None
        """While it waits: whose cells it will share, and how many of them must still be missing for it to wait."""
        self.sampler: SamplerHandle | None = None
        self.stops = StopWatch(request.stop, hide=request.hide_stop)
        self.credit = request.credit
        self.is_limited = request.credit > 0
        self.row = -1
        self.arrived_at = arrived_at
        self.admitted_at = 0.0
        self.first_token_at = 0.0

    @property
    def is_out_of_credit(self) -> bool:
        """Tell whether the client must take tokens before there may be more."""
        return self.is_limited and self.credit <= 0

    def piece_of(self, tokens: Sequence[Token], finish: Finish | None = None) -> Piece:
        """Return the message that carries *tokens*; *finish* says why the last of them ends the generation."""
        return Piece(
            self.request.id,
            tuple(token.id for token in tokens),
            tuple(token.piece for token in tokens),
            self.n_prompt,
            self.n_cached,
            tuple(token.probs for token in tokens) if self.request.n_probs else (),
            finish,
        )

    def final(self, finish: Finish, now: float, problem: dict[str, object] | None = None) -> Final:
        """Return the one end of this generation."""
        admitted_at = self.admitted_at or now
        first_at = self.first_token_at or now
        return Final(
            self.request.id,
            finish,
            n_prompt_tokens=self.n_prompt,
            n_cached_tokens=self.n_cached,
            n_generated_tokens=self.n_generated,
            queued_ms=(admitted_at - self.arrived_at) * 1000,
            prompt_ms=(first_at - admitted_at) * 1000,
            generate_ms=(now - first_at) * 1000,
            problem=problem,
        )
