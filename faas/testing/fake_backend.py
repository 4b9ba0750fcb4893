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
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

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


class Scripted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An ``answer``, then EOG, to every prompt in which all of ``when`` occur."""

    answer: str
    when: tuple[str, ...] = ()


class FakeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    What a fake model is like.

    ``answers`` maps a prompt to the text that follows it, then EOG. ``script``: the first entry that the prompt has all
    words of is the answer; under a JSON schema that it does not conform to, the generation fails.
    ``eog`` is the text of the token that ends answers; ``eog_every``: about one token in so many is EOG.
    With ``ignore_eos`` there is no EOG, unless a grammar admits nothing else any more, as with llama.cpp.
    ``gate`` names a file: each decode waits until it exists, so that a test owns the time. ``fail_after``: the batch
    after so many fails, once.
    """

    needs_bytes: int = 1000
    n_ctx: int = 512
    answers: dict[str, str] = {}
    script: tuple[Scripted, ...] = ()
    eog: str = "<eog>"
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
        self.scripted: bytes | None = None
        self.is_looked_up = False  # in the script

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """There are no penalties here."""

    def admits(self, answer: bytes) -> bool:
        """Return whether the grammar, if there is one, lets the model say *answer*."""
        if self.sampling.json_schema:
            schema = json.loads(self.sampling.json_schema)
            try:
                return _conforms(json.loads(answer), schema, schema)
            except ValueError:
                return False
        return self.allowed is None or answer in self.allowed

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
        self.bos, self.eos = "<bos>", file.eog
        self.bos_token = BOS
        self.pooling = "none"
        self.resident_bytes = file.needs_bytes
        self.eog = frozenset({EOG})
        self._answers = {prompt.encode(): text.encode() for prompt, text in file.answers.items()}
        self._script = [(tuple(w.encode() for w in one.when), one.answer.encode()) for one in file.script]
        self._eog_text = file.eog.encode()
        self._sequences: dict[int, list[tuple[int, int]]] = {}  # sequence -> its (token, cell), by position
        self._users: Counter[int] = Counter()  # cell -> how many sequences have it
        self._next_cell = 0
        self._rows: list[tuple[int, int, int]] = []
        self._ends: list[tuple[int, int]] = []  # row -> its sequence, and that one's length with it
        self._n_decodes = 0

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return one token a byte; the text of EOG is special."""
        tokens: list[int] = [BOS] if add_special else []
        while text:
            plain, special, text = text.partition(self._eog_text) if parse_special else (text, b"", b"")
            tokens += plain
            if special:
                tokens.append(EOG)
        return tokens

    def piece(self, token: int, *, special: bool) -> bytes:
        """Return the byte."""
        if token >= BOS:
            return {BOS: b"<bos>", EOG: self._eog_text}[token] if special else b""
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
        self._ends = []
        for token, position, sequence in self._rows:
            held = self._sequences.setdefault(sequence, [])
            assert len(held) == position, f"sequence {sequence} is at {len(held)}, not at {position}"
            held.append((token, self._take_cell()))
            self._ends.append((sequence, len(held)))
        return Decoded.OK

    def _take_cell(self) -> int:
        cell = self._next_cell
        self._next_cell += 1
        self._users[cell] = 1
        return cell

    @property
    def cells_used(self) -> int:
        """How many cells some sequence has."""
        return len(self._users)

    def sample(self, rows: Sequence[int], samplers: Sequence[FakeSampler]) -> list[int]:
        """Return the tokens that follow."""
        return [self._sample(self._ends[row], sampler) for row, sampler in zip(rows, samplers, strict=True)]

    def _sample(self, end: tuple[int, int], sampler: FakeSampler) -> int:
        scripted = self._scripted(end, sampler)
        if scripted is not None:
            if not sampler.admits(scripted):
                return DEAD_END
            n_written = len(sampler.written)
            token = scripted[n_written] if n_written < len(scripted) else EOG
        else:
            token = self._next(self._context(end), sampler)
        if sampler.allowed is not None and scripted is None:
            wanted = [text for text in sampler.allowed if text.startswith(sampler.written)]
            if not wanted:
                return DEAD_END
            rest = wanted[0][len(sampler.written) :]
            token = rest[0] if rest else EOG
        if token < BOS:
            sampler.written += bytes([token])
        return token

    def _context(self, end: tuple[int, int]) -> list[int]:
        sequence, length = end
        return [token for token, _ in self._sequences[sequence][:length]]

    def _scripted(self, end: tuple[int, int], sampler: FakeSampler) -> bytes | None:
        if self._script and not sampler.is_looked_up:
            sampler.is_looked_up = True
            prompt = b"".join(self.piece(token, special=True) for token in self._context(end))
            found = (answer for when, answer in self._script if all(word in prompt for word in when))
            sampler.scripted = next(found, None)
        return sampler.scripted

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
        self._users.update(cell for _, cell in self._sequences[target])

    def trim(self, sequence: int, n_tokens: int) -> None:
        """Give cells back."""
        held = self._sequences.get(sequence, [])
        for _, cell in held[n_tokens:]:
            self._users[cell] -= 1
            if not self._users[cell]:
                del self._users[cell]
        self._sequences[sequence] = held[:n_tokens]

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
        self._sequences[sequence] = [(token, self._take_cell()) for token in tokens]
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
            return [json.dumps(_value(schema, schema)).encode()]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as exc:
            raise GrammarInvalidError(f"the JSON schema can't be followed: {exc}; simplify it") from exc
    if not sampling.grammar:
        return None
    head, _, body = sampling.grammar.partition("::=")
    options = [part.strip() for part in body.strip().strip("()").split("|")]
    if head.strip() != "root" or not all(len(o) > 1 and o[0] == o[-1] == '"' for o in options):
        raise GrammarInvalidError("the grammar is not accepted; write root ::= and quoted alternatives")
    return [option[1:-1].encode() for option in options]


_CHECKS: Final[dict[str, Callable[[Any], bool]]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _value(schema: dict[str, Any], root: dict[str, Any]) -> object:
    """Return the one value that the fake model knows to conform to *schema*."""
    schema = _resolved(schema, root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if options := schema.get("anyOf", schema.get("oneOf")):
        return _value(options[0], root)
    kind = schema.get("type", "object")
    kind = kind if isinstance(kind, str) else kind[0]
    if kind == "object":
        return {name: _value(one, root) for name, one in schema.get("properties", {}).items()}
    if kind == "array":
        return [_value(schema["items"], root) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return "x" * max(1, schema.get("minLength", 1))
    return {"integer": max(1, schema.get("minimum", 1)), "number": 0.5, "boolean": True, "null": None}[kind]


def _conforms(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Return whether *value* could have been written under a grammar made of *schema*."""
    schema = _resolved(schema, root)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    options = schema.get("anyOf", schema.get("oneOf", []))
    if kinds and not any(_CHECKS[kind](value) for kind in kinds):
        return False
    if options and not any(_conforms(value, option, root) for option in options):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, list):
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return bool(fits) and all(_conforms(one, schema.get("items", {}), root) for one in value)
    if isinstance(value, str):
        return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)))
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        if not set(schema.get("required", ())) <= set(value) or (properties and not set(value) <= set(properties)):
            return False
        return all(_conforms(one, properties.get(name, {}), root) for name, one in value.items())
    return True


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Follow ``$ref``, within the document."""
    while "$ref" in schema:
        target: Any = root
        for name in schema["$ref"].split("/")[1:]:
            target = target[name]
        schema = target
    return schema


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
