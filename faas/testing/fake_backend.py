"""
A model library made of arithmetic: deterministic, instant, and with the same contract as llama.cpp.

Tokens are bytes (0 to 255) plus BOS and EOG. The next token is a hash of the last few tokens, so equal contexts go on
equally. It keeps books of its KV cells as the real one does, and refuses a batch that does not fit.
The "file" of a model is JSON (``FakeFile``); an empty file stands for the defaults.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec

from faas.errors import GenerationFailedError, GrammarInvalidError, ModelFileError
from faas.modelserver.backends.base import DEAD_END, Decoded, Inspected, LoadOptions
from faas.modelserver.gguf import unreadable
from faas.wire.models import Sampling

BOS, EOG = 256, 257
N_VOCAB = 258
N_EMBD = 16
WINDOW = 8
"""How many tokens back the next one depends on."""
LETTERS = b"abcdefghijklmnopqrstuvwxyz .,"


class FakeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    What a fake model is like.

    ``answers`` maps a prompt to the text that follows it, then EOG. ``eog_every``: about one token in so many is EOG.
    With ``ignore_eos`` there is no EOG, unless a grammar admits nothing else any more, as with llama.cpp.
    ``gate`` names a file: each decode waits until it exists, so that a test owns the time. ``fail_after``: the batch
    after so many fails, once.
    """

    needs_bytes: int = 1000
    n_ctx: int = 512
    answers: dict[str, str] = {}
    eog_every: int = 0
    gate: str = ""
    fail_after: int = 0


class FakeSampler:
    """Random numbers and, as its grammar, the list of texts that are admitted; lives until ``close``."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.random = random.Random(sampling.seed)
        self.allowed = _alternatives(sampling)
        self.written = b""

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """There are no penalties here."""

    def close(self) -> None:
        """There is nothing to free."""


class FakeModel:
    """One fake model; lives until ``close``."""

    def __init__(self, file: FakeFile, options: LoadOptions) -> None:
        self._file = file
        self.n_ctx_train = file.n_ctx
        self.n_ctx = min(options.n_ctx or file.n_ctx, file.n_ctx)
        self.n_cells = max(self.n_ctx, options.n_cells or 512 * options.n_slots)
        self.n_seqs = options.n_slots * 4
        self.n_batch = 128
        self.prefill_budget = 16
        self.n_vocab = N_VOCAB
        self.n_embd = N_EMBD
        self.n_embed_tokens = file.n_ctx
        self.n_embed_batch = 4
        self.can_generate = True
        self.architecture = "fake"
        self.description = "a fake model"
        self.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
        self.bos, self.eos = "<bos>", "<eog>"
        self.bos_token = BOS
        self.pooling = "none"
        self.resident_bytes = file.needs_bytes
        self.eog = frozenset({EOG})
        self._answers = {prompt.encode(): text.encode() for prompt, text in file.answers.items()}
        self._sequences: dict[int, list[tuple[int, int]]] = {}  # sequence -> its (token, cell), by position
        self._next_cell = 0
        self._rows: list[tuple[int, int, int]] = []
        self._contexts: dict[int, list[int]] = {}  # row -> tokens up to and with it
        self._n_decodes = 0

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return one token a byte; ``<eog>`` is special."""
        tokens: list[int] = [BOS] if add_special else []
        while text:
            if parse_special and text.startswith(b"<eog>"):
                tokens.append(EOG)
                text = text[5:]
            else:
                tokens.append(text[0])
                text = text[1:]
        return tokens

    def piece(self, token: int, *, special: bool) -> bytes:
        """Return the byte."""
        if token >= BOS:
            return {BOS: b"<bos>", EOG: b"<eog>"}[token] if special else b""
        return bytes([token])

    def new_sampler(self, sampling: Sampling) -> FakeSampler:
        """Return a sampler. Raises: GrammarInvalidError."""
        return FakeSampler(sampling)

    def begin_batch(self) -> None:
        """Empty the batch."""
        self._rows = []

    def add_token(self, token: int, position: int, sequence: int) -> int:
        """Add one row."""
        self._rows.append((token, position, sequence))
        return len(self._rows) - 1

    def add_prompt(self, tokens: Sequence[int], position: int, sequence: int, *, output: bool) -> int:
        """Add consecutive rows."""
        for offset, token in enumerate(tokens):
            self.add_token(token, position + offset, sequence)
        return len(self._rows) - 1

    def decode(self) -> Decoded:
        """Take cells for the rows, and remember each row's context."""
        _wait_for(self._file.gate)
        self._n_decodes += 1
        if self._file.fail_after and self._n_decodes == self._file.fail_after:
            return Decoded.FAILED
        assert len(self._rows) <= self.n_batch
        if self.cells_used + len(self._rows) > self.n_cells:
            return Decoded.NO_ROOM
        self._contexts = {}
        for row, (token, position, sequence) in enumerate(self._rows):
            held = self._sequences.setdefault(sequence, [])
            assert len(held) == position, f"sequence {sequence} is at {len(held)}, not at {position}"
            held.append((token, self._next_cell))
            self._next_cell += 1
            self._contexts[row] = [one for one, _ in held]
        return Decoded.OK

    @property
    def cells_used(self) -> int:
        """How many cells some sequence has."""
        return len({cell for held in self._sequences.values() for _, cell in held})

    def sample(self, rows: Sequence[int], samplers: Sequence[FakeSampler]) -> list[int]:
        """Return the tokens that follow."""
        return [self._sample(self._contexts[row], sampler) for row, sampler in zip(rows, samplers, strict=True)]

    def _sample(self, context: list[int], sampler: FakeSampler) -> int:
        token = self._next(context, sampler)
        if sampler.allowed is not None:
            wanted = [text for text in sampler.allowed if text.startswith(sampler.written)]
            if not wanted:
                return DEAD_END
            rest = wanted[0][len(sampler.written) :]
            token = rest[0] if rest else EOG
        if token < BOS:
            sampler.written += bytes([token])
        return token

    def _next(self, context: list[int], sampler: FakeSampler) -> int:
        text = bytes(token for token in context if token < BOS)
        for prompt, answer in self._answers.items():
            at = text.rfind(prompt)
            if at >= 0 and answer.startswith(written := text[at + len(prompt) :]):
                if len(written) < len(answer):
                    return answer[len(written)]
                if not sampler.sampling.ignore_eos:
                    return EOG
        salt = b"" if sampler.sampling.temperature <= 0 else sampler.random.randbytes(4)
        number = _hash(context[-WINDOW:], salt)
        if self._file.eog_every and number % self._file.eog_every == 0 and not sampler.sampling.ignore_eos:
            return EOG
        return LETTERS[number % len(LETTERS)]

    def alternatives(self, row: int, token: int, n: int) -> list[tuple[int, float]]:
        """Return a made-up distribution over the first letters."""
        weights = [1.0 / (rank + 2) for rank in range(len(LETTERS))]
        total = math.log(sum(weights))
        return [(token, -0.5), *((LETTERS[r], math.log(weights[r]) - total) for r in range(min(n, len(LETTERS))))]

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Let *target* have the same cells."""
        assert not self._sequences.get(target)
        assert len(self._sequences[source]) >= n_tokens
        self._sequences[target] = self._sequences[source][:n_tokens]

    def trim(self, sequence: int, n_tokens: int) -> None:
        """Give cells back."""
        self._sequences[sequence] = self._sequences.get(sequence, [])[:n_tokens]

    def saved_size(self, sequence: int) -> int:
        """Return four bytes a token."""
        return array("i").itemsize * len(self._sequences.get(sequence, []))

    def save(self, sequence: int) -> memoryview:
        """Return the tokens."""
        return memoryview(array("i", [token for token, _ in self._sequences.get(sequence, [])]).tobytes())

    def restore(self, sequence: int, saved: memoryview) -> bool:
        """Take new cells for the tokens."""
        assert not self._sequences.get(sequence)
        tokens = array("i", saved.tobytes())
        if self.cells_used + len(tokens) > self.n_cells:
            return False
        self._sequences[sequence] = [(token, self._next_cell + n) for n, token in enumerate(tokens)]
        self._next_cell += len(tokens)
        return True

    def can_trim(self) -> bool:
        """A sequence can be cut anywhere."""
        return True

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return a unit vector made of hashes."""
        vectors = []
        for tokens in inputs:
            if not tokens:
                raise GenerationFailedError("nothing to embed")
            raw = [_hash(tokens, bytes([index])) / 2**32 - 0.5 for index in range(N_EMBD)]
            norm = math.sqrt(sum(x * x for x in raw))
            vectors.append([x / norm for x in raw])
        return vectors

    def close(self) -> None:
        """There is nothing to free."""


class FakeBackend:
    """The fake library; ``loads`` counts, so that tests see what was loaded how often."""

    name = "fake"
    build = 1
    commit = "fake"

    def __init__(self) -> None:
        self.loads = 0
        self._lock = threading.Lock()

    def inspect(self, path: Path, options: LoadOptions) -> Inspected:
        """Return what the file says. Raises: ModelFileError."""
        file = _read(path)
        return Inspected(path.stat().st_size, file.needs_bytes, "fake", "", file.n_ctx, N_EMBD)

    def load(self, path: Path, options: LoadOptions) -> FakeModel:
        """Return the model. Raises: ModelFileError."""
        with self._lock:
            self.loads += 1
        return FakeModel(_read(path), options)


def open_backend() -> FakeBackend:
    """Return the fake library."""
    return FakeBackend()


def _read(path: Path) -> FakeFile:
    try:
        content = path.read_bytes()
        return msgspec.json.decode(content or b"{}", type=FakeFile)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ModelFileError(f"{path} is no fake model: {exc}; write JSON") from exc


def _alternatives(sampling: Sampling) -> list[bytes] | None:
    """Return the texts that are admitted: a grammar here is ``root ::= "a" | "b"``, a schema has one answer."""
    if sampling.json_schema:
        try:
            schema = json.loads(sampling.json_schema)
            properties = schema.get("properties", {})
            return [json.dumps({name: _value(kind) for name, kind in properties.items()}).encode()]
        except (ValueError, KeyError, AttributeError) as exc:
            raise GrammarInvalidError(f"the JSON schema can't be followed: {exc}; simplify it") from exc
    if not sampling.grammar:
        return None
    head, _, body = sampling.grammar.partition("::=")
    options = [part.strip() for part in body.strip().strip("()").split("|")]
    if head.strip() != "root" or not all(len(o) > 1 and o[0] == o[-1] == '"' for o in options):
        raise GrammarInvalidError("the grammar is not accepted; write root ::= and quoted alternatives")
    return [option[1:-1].encode() for option in options]


def _value(kind: dict[str, str]) -> object:
    return {"string": "x", "integer": 1, "number": 0.5, "boolean": True}[kind["type"]]


def _hash(tokens: Sequence[int], salt: bytes) -> int:
    content = b",".join(str(token).encode() for token in tokens)
    return int.from_bytes(hashlib.blake2s(content, digest_size=4, salt=salt).digest(), "big")


def _wait_for(gate: str) -> None:
    """Block until the fifo *gate* gives a byte: a test lets one decode through by writing it."""
    if gate:
        fd = os.open(gate, os.O_RDONLY)
        try:
            os.read(fd, 1)
        finally:
            os.close(fd)
