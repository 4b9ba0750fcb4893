"""Checks that come before any library sees a request's sampling options."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from faas.errors import GrammarInvalidError, OptionsInvalidError
from faas.wire.models import Sampling

MAX_GRAMMAR_BYTES = 256 * 1024
MAX_NESTING = 100
"""Grammars and schemas are parsed by recursion in the libraries: deeper ones could overflow their stack."""
MAX_LAST_N = 1_000_000
MAX_PROBS = 100
_UINT32 = 0xFFFFFFFF
_LITERALS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*')

# name -> (least, most); the ends are allowed
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (-math.inf, 1e6),
    "top_k": (-(2**31), 2**31 - 1),
    "top_p": (0.0, math.inf),
    "min_p": (0.0, math.inf),
    "typical_p": (0.0, math.inf),
    "top_n_sigma": (-math.inf, 1e6),
    "xtc_probability": (0.0, math.inf),
    "xtc_threshold": (0.0, math.inf),
    "dynatemp_range": (0.0, 1e6),
    "dynatemp_exponent": (-1e6, 1e6),
    "repeat_penalty": (1e-6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
    "presence_penalty": (-1e6, 1e6),
    "last_n_penalty": (-1, MAX_LAST_N),
    "dry_multiplier": (0.0, 1e6),
    "dry_base": (0.0, 1e6),
    "dry_allowed_length": (0, MAX_LAST_N),
    "dry_last_n": (-1, MAX_LAST_N),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, 1e6),
    "mirostat_eta": (0.0, 1e6),
    "min_keep": (0, MAX_LAST_N),
}


def check_sampling(sampling: Sampling, n_vocab: int) -> None:
    """
    Refuse options that no sampler can follow.

    Raises: OptionsInvalidError, GrammarInvalidError.
    """
    for name, (least, most) in _RANGES.items():
        value = getattr(sampling, name)
        if math.isnan(value) or not least <= value <= most:
            raise OptionsInvalidError(f"{name} is {value}, it must lie in [{least}, {most}]", option=name)
    if sampling.seed is not None and not 0 <= sampling.seed <= _UINT32:
        raise OptionsInvalidError(f"seed is {sampling.seed}, it must lie in [0, {_UINT32}]", option="seed")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < n_vocab or math.isnan(bias):
            raise OptionsInvalidError(
                f"logit_bias names token {token} with bias {bias}; tokens are 0 to {n_vocab - 1}", option="logit_bias"
            )
    if sampling.grammar and sampling.json_schema:
        raise OptionsInvalidError("give a grammar or a json_schema, not both", option="grammar")
    _check_grammar(sampling.grammar)
    _check_schema(sampling.json_schema)


def _check_grammar(grammar: str) -> None:
    if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
        raise GrammarInvalidError(f"the grammar is larger than {MAX_GRAMMAR_BYTES} bytes; make it smaller")
    if "\0" in grammar:
        raise GrammarInvalidError("the grammar contains a NUL character; take it out")
    depth = 0
    for character in _LITERALS.sub("", grammar):
        depth = depth + 1 if character == "(" else max(0, depth - 1) if character == ")" else depth
        if depth > MAX_NESTING:
            raise GrammarInvalidError(f"the grammar nests groups deeper than {MAX_NESTING}; use rules instead")


def _check_schema(schema: str) -> None:
    if not schema:
        return
    if len(schema.encode()) > MAX_GRAMMAR_BYTES:
        raise GrammarInvalidError(f"the JSON schema is larger than {MAX_GRAMMAR_BYTES} bytes; make it smaller")
    try:
        document = msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise GrammarInvalidError(f"the JSON schema is no JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise GrammarInvalidError("a JSON schema is an object")
    level = 0
    nodes: list[Any] = [document]
    while nodes:
        level += 1
        if level > MAX_NESTING:
            raise GrammarInvalidError(f"the JSON schema nests deeper than {MAX_NESTING}; use $ref instead")
        nodes = [child for node in nodes for child in _children(node) if isinstance(child, (dict, list))]


def _children(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node
