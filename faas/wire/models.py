"""
What a client of the model server (a gateway worker, or `faas run`) and the model server say to each other.

One conversation: the client connects and sends ``ClientHello``; the server answers ``ServerHello``, which is also its
ready message. Then the client sends requests, each with an ``id`` of its own choosing, unique on this connection:
``Generate``, ``Embed``, ``Tokenize``, ``Describe``. Every request ends in exactly one ``Final`` with its id, whatever
happens; a ``Generate`` is answered by any number of ``Piece`` before it. ``Cancel`` makes the ``Final`` come soon.

Back-pressure: a generation runs at most ``credit`` tokens ahead of what its client has taken (``More`` adds credit;
0 at the start means no limit); a connection whose peer does not read is not decoded for.
Deadlines are absolute ``CLOCK_MONOTONIC`` seconds, comparable between processes of one machine; 0 means none.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

MODEL_PROTOCOL_VERSION = 2


class Finish(str, Enum):
    """Why a generation ended."""

    EOG = "eog"  # the model ended it
    STOP = "stop"  # a stop string came
    LENGTH = "length"  # max_tokens reached
    CONTEXT_FULL = "context_full"  # no room for another token; what was generated is valid
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FAILED = "failed"  # ``problem`` says why
    DONE = "done"  # the request was no generation


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    How tokens are chosen; names and defaults as in llama.cpp's ``common_params_sampling``.

    ``temperature`` 0 is greedy. ``seed`` None: a random one. ``grammar`` is GBNF with the root rule ``root``,
    ``json_schema`` a JSON document as text; at most one of them. ``logit_bias`` maps token ids to a bias.
    ``last_n_penalty`` 0 switches penalties off, -1 is the context size.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    last_n_penalty: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    min_keep: int = 0
    ignore_eos: bool = False
    seed: int | None = None
    grammar: str = ""
    json_schema: str = ""
    logit_bias: dict[int, float] = {}


class ModelCard(msgspec.Struct, frozen=True):
    """What is known of one model; ``n_ctx`` is what one sequence may use, 0 while the model is not loaded."""

    name: str
    path: str
    digest: str
    bytes: int
    loaded: bool
    n_ctx: int = 0
    n_ctx_train: int = 0
    n_embd: int = 0
    n_vocab: int = 0
    architecture: str = ""
    description: str = ""
    chat_template: str = ""
    bos: str = ""
    eos: str = ""
    pooling: str = ""


class ClientHello(msgspec.Struct, frozen=True, tag="client_hello"):
    """Client → server, first message; ``token`` is the secret the control process gave both."""

    protocol: int
    client: str
    token: str


class ServerHello(msgspec.Struct, frozen=True, tag="server_hello"):
    """
    Server → client: ready. ``build`` and ``commit`` are what WASI-NN guests may ask for.

    ``build`` is llama.cpp's build number, 0 where the library does not tell; ``commit`` says which library it is.
    """

    protocol: int
    pid: int
    backend: str
    build: int
    commit: str
    models: tuple[ModelCard, ...]


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """
    Client → server: continue *prompt* (UTF-8 text, tokenised with ``add_special`` and ``parse_special``).

    ``function`` is who is served (fairness and metering go by it). ``max_tokens`` -1: until the context is full.
    ``stop`` strings end the generation and stay out of the pieces if ``hide_stop``. ``render_special``: special
    tokens, the end-of-generation token among them, appear as text in the pieces (WASI-NN); without it they are b"".
    ``n_ctx`` bounds prompt and answer together, 0: what the model has. ``n_probs`` asks for that many alternatives
    with log-probabilities per token.
    """

    id: int
    model: str
    function: str
    prompt: bytes
    max_tokens: int = -1
    sampling: Sampling = Sampling()
    stop: tuple[bytes, ...] = ()
    hide_stop: bool = True
    add_special: bool = True
    parse_special: bool = True
    render_special: bool = False
    n_ctx: int = 0
    n_probs: int = 0
    credit: int = 0
    deadline: float = 0.0


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Client → server: the L2-normalised embedding of each input (UTF-8 text); answered in ``Final.vectors``."""

    id: int
    model: str
    function: str
    inputs: tuple[bytes, ...]
    max_tokens_each: int = 0
    deadline: float = 0.0


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize"):
    """Client → server: answered in ``Final.tokens``."""

    id: int
    model: str
    text: bytes
    add_special: bool = True
    parse_special: bool = True


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Client → server: answered by the card of *model* ('': of all) in ``Final.cards``; ``load``: load it first."""

    id: int
    model: str = ""
    load: bool = False


class Register(msgspec.Struct, frozen=True, tag="register"):
    """
    Control process → server: offer the GGUF at *path* as *name* from now on; answered by its card in ``Final.cards``.

    It is loaded when it is first asked for, as the others are. A *name* that is offered already is replaced as if by
    ``Unregister``. Only the client named ``control`` may send it; a failed ``Final`` means that nothing changed.
    """

    id: int
    name: str
    path: str


class Unregister(msgspec.Struct, frozen=True, tag="unregister"):
    """
    Control process → server: stop offering *name*; answered by an empty ``Final``, at once.

    What uses the model at that moment ends as it would, then its weights are let go; new requests are refused with
    ``model-not-found``. Only the client named ``control`` may send it; an unknown name is fine.
    """

    id: int
    name: str


class More(msgspec.Struct, frozen=True, tag="more"):
    """Client → server: the client took *n* tokens of generation *id*, so it may run *n* further ahead."""

    id: int
    n: int


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Client → server: end request *id*; unknown ids are ignored, its ``Final`` may be on its way."""

    id: int


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Client → server: answered at once by ``Pong``, also while models compute."""

    id: int


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """Server → client."""

    id: int


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """
    Server → client: tokens of generation *id*, in order, each with its bytes (may be part of a UTF-8 sequence).

    ``n_prompt_tokens`` and ``n_cached_tokens`` (of those, taken from the prefix cache) are repeated in each.
    ``probs`` has, per token, [(token, bytes, log-probability), …], the sampled one first; empty unless asked for.
    ``finish`` is set if the last of these tokens ends the generation: the model's own end token (``EOG``), the one for
    which the context has no room (``CONTEXT_FULL``), …; the ``Final`` that follows says the same.
    """

    id: int
    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]
    n_prompt_tokens: int
    n_cached_tokens: int
    probs: tuple[tuple[tuple[int, bytes, float], ...], ...] = ()
    finish: Finish | None = None


class Final(msgspec.Struct, frozen=True, tag="final"):
    """Server → client: the one end of request *id*; *problem* is a problem document when ``finish`` is failed."""

    id: int
    finish: Finish
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_generated_tokens: int = 0
    queued_ms: float = 0.0
    prompt_ms: float = 0.0
    generate_ms: float = 0.0
    problem: dict[str, Any] | None = None
    vectors: tuple[tuple[float, ...], ...] = ()
    tokens: tuple[int, ...] = ()
    cards: tuple[ModelCard, ...] = ()


class ModelStats(msgspec.Struct, frozen=True, tag="model_stats"):
    """
    Server → the control process's connection, about once a second: cumulative counters since the server began.

    ``models``: per model {"loads", "prompt_tokens", "cached_tokens", "generated_tokens", "requests", "decode_steps",
    "active", "waiting", "cells_used", "resident_bytes"}; ``functions``: per function {"prompt_tokens",
    "generated_tokens", "requests"}.
    """

    models: dict[str, dict[str, float]]
    functions: dict[str, dict[str, float]]


FromModelClient = ClientHello | Generate | Embed | Tokenize | Describe | Register | Unregister | More | Cancel | Ping
FromModelServer = ServerHello | Piece | Final | Pong | ModelStats
