"""
What the scheduler needs of a model library: one backend per process, one ``LoadedModel`` per resident model.

The words are llama.cpp's. A *sequence* is a numbered row of the KV cache; its *cells* hold the attention state of its
tokens and may be shared with other sequences (``share``). A *batch* is filled row by row, decoded as a whole, and the
rows that asked for an *output* are then sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Protocol

import msgspec

from faas.wire.models import Sampling


class LoadOptions(msgspec.Struct, frozen=True):
    """
    How models are loaded.

    ``n_ctx`` is what one sequence may use (0: what the model was trained with), ``n_cells`` the KV cells of all
    sequences together (0: the backend's choice), ``n_slots`` how many generations decode at once, ``saved_bytes`` how
    much memory besides may hold the cells of ended ones.
    """

    n_ctx: int = 4096
    n_slots: int = 16
    n_cells: int = 0
    threads: int = 0
    gpu_layers: int = -1
    saved_bytes: int = 256 * 1024 * 1024


class Inspected(msgspec.Struct, frozen=True):
    """A model file's own words, and how much memory it will need with the given options."""

    file_bytes: int
    needs_bytes: int
    architecture: str = ""
    chat_template: str = ""
    n_ctx_train: int = 0
    n_embd: int = 0


class Decoded(Enum):
    """What became of a batch."""

    OK = "ok"
    NO_ROOM = "no_room"  # not enough free cells; nothing was changed
    FAILED = "failed"  # the sequences of the batch are in an unknown state


class SamplerHandle(Protocol):
    """The sampling state of one generation (penalties, random numbers, grammar); lives until ``close``."""

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Let penalties see the prompt; the grammar does not."""

    def close(self) -> None:
        """Free it; further calls do nothing."""


class LoadedModel(Protocol):
    """
    Weights, vocabulary and KV cache of one resident model; lives until ``close``.

    Thread: made by any thread, afterwards used by the owner thread only.
    """

    n_ctx: int
    n_ctx_train: int
    n_cells: int
    n_seqs: int  # sequences there are: 0 .. n_seqs - 1
    n_batch: int  # rows a batch may have
    prefill_budget: int  # prompt tokens per step that don't hold up running generations too long
    n_vocab: int
    n_embd: int
    n_embed_tokens: int  # longest text that can be embedded
    n_embed_batch: int  # texts that can be embedded at once
    can_generate: bool
    architecture: str
    description: str
    chat_template: str
    bos: str
    eos: str
    bos_token: int  # -1: none
    pooling: str
    resident_bytes: int
    eog: frozenset[int]

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of *text*, which is UTF-8."""

    def piece(self, token: int, *, special: bool) -> bytes:
        """Return the bytes of *token*; a special token has none unless *special*."""

    def new_sampler(self, sampling: Sampling) -> SamplerHandle:
        """
        Return the state for one generation; *sampling* is within its ranges.

        Raises: GrammarInvalidError.
        """

    def begin_batch(self) -> None:
        """Empty the batch."""

    def add_token(self, token: int, position: int, sequence: int) -> int:
        """Add one row with an output; return its row number."""

    def add_prompt(self, tokens: Sequence[int], position: int, sequence: int, *, output: bool) -> int:
        """Add consecutive rows; the last one has an output if *output*. Return the last one's row number."""

    def decode(self) -> Decoded:
        """Run the batch; the GIL is released meanwhile."""

    def sample(self, rows: Sequence[int], samplers: Sequence[SamplerHandle]) -> list[int]:
        """
        Return one token for each of *rows* (which have outputs, in ascending order) and let its sampler accept it.

        DEAD_END where the grammar admits no token any more.
        """

    def alternatives(self, row: int, token: int, n: int) -> list[tuple[int, float]]:
        """Return *token* and its log-probability, then the *n* likeliest tokens with theirs."""

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Let *target* (empty) share the cells of the first *n_tokens* of *source*."""

    def trim(self, sequence: int, n_tokens: int) -> None:
        """Keep the first *n_tokens* of *sequence*; cells that no sequence has any more are free."""

    def saved_size(self, sequence: int) -> int:
        """Return how many bytes ``save`` would copy; 0 if that can't be had."""

    def save(self, sequence: int) -> memoryview:
        """Return a copy of the cells of *sequence*; empty if that can't be had."""

    def restore(self, sequence: int, saved: memoryview) -> bool:
        """Fill *sequence* (empty) with cells of its own from what ``save`` returned; False if there is no room."""

    def can_trim(self) -> bool:
        """Tell whether a sequence can be cut in its middle (a recurrent state can not)."""

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """
        Return the L2-normalised embedding of each input, in one go.

        Raises: GenerationFailedError.
        """

    def close(self) -> None:
        """Free everything."""


DEAD_END = -1


class Backend(Protocol):
    """One model library, initialised; lives as long as the process."""

    name: str
    build: int  # 0: the library has no such number
    commit: str  # which library exactly, in its own words

    def inspect(self, path: Path, options: LoadOptions) -> Inspected:
        """
        Return what can be known of the model at *path* without loading it.

        Raises: ModelFileError.
        """

    def load(self, path: Path, options: LoadOptions) -> LoadedModel:
        """
        Load the model at *path*; takes long, and may run in any thread.

        Raises: ModelFileError.
        """


OpenBackend = Callable[[], Backend]
