"""
The JSON configuration of WASI-NN's GGML backend: which keys there are, of which types, and what they become.

One flat object, given to ``load_by_name_with_config``, as second builder of ``load``, or as input 1; later wins.
Unknown keys are ignored, as guests send what other hosts know. A known key of a wrong type is refused as a whole:
nothing of that object is applied.

Source: WasmEdge ``plugins/wasi_nn`` (GGML).
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

from faas.nn.errno import NnErrno, NnError
from faas.wire.models import Sampling

MAX_CONFIG_BYTES: Final = 1 << 18

Config = dict[str, Any]
"""Checked keys and values; what a graph was given so far, or a context."""

CONTEXT_KEYS: Final = frozenset({"stream-stdout", "n-predict", "reverse-prompt", "image"})
"""Keys that belong to an execution context; all others are the graph's, and so its sibling contexts' too."""

_BOOL: Final = "b"
_INT: Final = "i"
_NUMBER: Final = "f"
_TEXT: Final = "s"
_TYPE_NAMES: Final = {_BOOL: "a boolean", _INT: "an integer", _NUMBER: "a number", _TEXT: "a string"}

# What the host decides itself is typed all the same: guests learn of their mistakes here as elsewhere.
_TYPES: Final[dict[str, str]] = {
    # reaches the model
    "embedding": _BOOL,
    "n-predict": _INT,
    "reverse-prompt": _TEXT,
    "stream-stdout": _BOOL,
    "ctx-size": _INT,
    "batch-size": _INT,
    "temp": _NUMBER,
    "top-p": _NUMBER,
    "top-k": _INT,
    "min-p": _NUMBER,
    "typ-p": _NUMBER,
    "repeat-penalty": _NUMBER,
    "presence-penalty": _NUMBER,
    "frequency-penalty": _NUMBER,
    "last-n-penalty": _INT,
    "seed": _INT,
    "grammar": _TEXT,
    "json-schema": _TEXT,
    "ignore-eos": _BOOL,
    "mirostat": _INT,
    "mirostat-eta": _NUMBER,
    "mirostat-tau": _NUMBER,
    "dynatemp-range": _NUMBER,
    "dynatemp-exponent": _NUMBER,
    "xtc-probability": _NUMBER,
    "xtc-threshold": _NUMBER,
    "dry-multipier": _NUMBER,  # so spelled on WasmEdge
    "dry-multiplier": _NUMBER,
    "dry-base": _NUMBER,
    "dry-allowed-length": _INT,
    "dry-last-n-penalty": _INT,
    "min-keep": _INT,
    # for the log
    "enable-log": _BOOL,
    "enable-debug-log": _BOOL,
    # decided by the host
    "ubatch-size": _INT,
    "n-gpu-layers": _INT,
    "main-gpu": _INT,
    "tensor-split": _TEXT,
    "split-mode": _TEXT,
    "threads": _INT,
    "threads-batch": _INT,
    "use-mmap": _BOOL,
    "use-mlock": _BOOL,
    "no-kv-offload": _BOOL,
    "flash-attn": _TEXT,
    "embd-normalize": _INT,
    "n-prev": _INT,
    "n-probs": _INT,
    "n-keep": _INT,
    "n-chunks": _INT,
    "n-parallel": _INT,
    "n-sequences": _INT,
    "grp-attn-n": _INT,
    "grp-attn-w": _INT,
    "n-print": _INT,
    "always-regenerate-image-embd": _BOOL,
    # refused when they ask for anything
    "mmproj": _TEXT,
    "image": _TEXT,
    "tts": _BOOL,
    "model-vocoder": _TEXT,
    "tts-output-file": _TEXT,
    "tts-speaker-file": _TEXT,
    "prompt-cache": _TEXT,
    "lookup-cache-static": _TEXT,
    "lookup-cache-dynamic": _TEXT,
    "logits-file": _TEXT,
    "grammar-file": _TEXT,
    "reranking": _BOOL,
}

_CHOICES: Final[dict[str, frozenset[str]]] = {
    "split-mode": frozenset({"none", "layer", "row"}),
    "flash-attn": frozenset({"on", "enabled", "off", "disabled", "auto"}),
}

# On WasmEdge these are paths of the host, read outside of every sandbox. Here a guest has no path of the host.
_REFUSED: Final = (
    "mmproj",
    "image",
    "tts",
    "model-vocoder",
    "tts-output-file",
    "tts-speaker-file",
    "prompt-cache",
    "lookup-cache-static",
    "lookup-cache-dynamic",
    "logits-file",
    "grammar-file",
)

_SAMPLING: Final[dict[str, str]] = {
    "temp": "temperature",
    "top-p": "top_p",
    "top-k": "top_k",
    "min-p": "min_p",
    "typ-p": "typical_p",
    "repeat-penalty": "repeat_penalty",
    "presence-penalty": "presence_penalty",
    "frequency-penalty": "frequency_penalty",
    "last-n-penalty": "last_n_penalty",
    "grammar": "grammar",
    "json-schema": "json_schema",
    "ignore-eos": "ignore_eos",
    "mirostat": "mirostat",
    "mirostat-eta": "mirostat_eta",
    "mirostat-tau": "mirostat_tau",
    "dynatemp-range": "dynatemp_range",
    "dynatemp-exponent": "dynatemp_exponent",
    "xtc-probability": "xtc_probability",
    "xtc-threshold": "xtc_threshold",
    "dry-multipier": "dry_multiplier",
    "dry-multiplier": "dry_multiplier",
    "dry-base": "dry_base",
    "dry-allowed-length": "dry_allowed_length",
    "dry-last-n-penalty": "dry_last_n",
    "min-keep": "min_keep",
}

_DRY_LAST_N: Final = 64  # WasmEdge's default, where llama.cpp has the whole context
_RANDOM_SEED: Final = 0xFFFFFFFF
_CONTEXT_STEP: Final = 256
_INT32: Final = range(-(2**31), 2**31)
_DEFAULT_BATCH_SIZE: Final = 2048


def parse_config(raw: bytes) -> Config:
    """
    Return the known keys of *raw*, checked and clamped.

    Raises: NnError: 2 if it is not JSON, 1 for no object, or a known key of a wrong type or out of its range,
    6 for what this host does not do, 7 if it is over MAX_CONFIG_BYTES.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise NnError(NnErrno.TOO_LARGE, f"the configuration has {len(raw)} bytes, more than {MAX_CONFIG_BYTES}")
    try:
        document = json.loads(raw.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise NnError(NnErrno.INVALID_ENCODING, f"the configuration is not JSON: {exc}"[:200]) from exc
    if not isinstance(document, dict):
        raise NnError(NnErrno.INVALID_ARGUMENT, f"the configuration is a JSON {type(document).__name__}, not an object")
    config = {key: _checked(key, value) for key, value in document.items() if key in _TYPES}
    for key in _REFUSED:
        if config.get(key):
            raise NnError(NnErrno.UNSUPPORTED_OPERATION, f"{key!r} is not offered: it would name files of the host")
    if "reranking" in config:
        raise NnError(NnErrno.UNSUPPORTED_OPERATION, "'reranking' is not offered by this host")
    return config


def sampling_of(config: Config) -> Sampling:
    """Return how *config* wants tokens to be chosen; a JSON schema goes before a grammar."""
    chosen: dict[str, Any] = {_SAMPLING[key]: value for key, value in config.items() if key in _SAMPLING}
    if chosen.get("json_schema"):
        chosen["grammar"] = ""
    seed = config.get("seed", _RANDOM_SEED) & 0xFFFFFFFF
    chosen.setdefault("dry_last_n", _DRY_LAST_N)
    return Sampling(seed=None if seed == _RANDOM_SEED else seed, **chosen)


def context_size(config: Config, n_ctx_model: int) -> int:
    """
    Return how many tokens prompt and answer may have together; 0 means what the model has.

    Rounded up to a multiple of 256, as llama.cpp does; *n_ctx_model* (0: not known) is the most there is.
    """
    wanted: int = config.get("ctx-size", 0)
    if wanted <= 0:
        return n_ctx_model
    rounded = -(-wanted // _CONTEXT_STEP) * _CONTEXT_STEP
    return min(rounded, n_ctx_model) if n_ctx_model else rounded


def batch_size(config: Config) -> int:
    """Return how many tokens a prompt to embed may have."""
    wanted: int = config.get("batch-size", _DEFAULT_BATCH_SIZE)
    return max(1, wanted)


def _checked(key: str, value: Any) -> Any:
    wanted = _TYPES[key]
    if wanted == _NUMBER and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if value in _INT32 else math.inf
    fits = {
        _BOOL: isinstance(value, bool),
        _INT: isinstance(value, int) and not isinstance(value, bool),
        _NUMBER: isinstance(value, float),
        _TEXT: isinstance(value, str),
    }[wanted]
    if not fits:
        raise NnError(NnErrno.INVALID_ARGUMENT, f"{key!r} has to be {_TYPE_NAMES[wanted]}")
    if wanted == _NUMBER and not math.isfinite(value):
        raise NnError(NnErrno.INVALID_ARGUMENT, f"{key!r} is out of range")
    if wanted == _INT and key != "seed" and value not in _INT32:
        raise NnError(NnErrno.INVALID_ARGUMENT, f"{key!r} is out of range")
    if wanted == _TEXT:
        _check_text(key, value)
    if key in ("temp", "top-p"):
        return max(0.0, value)
    return value


def _check_text(key: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise NnError(NnErrno.INVALID_ARGUMENT, f"{key!r} has half of a surrogate pair") from exc
    if key in _CHOICES and value not in _CHOICES[key]:
        raise NnError(NnErrno.INVALID_ARGUMENT, f"{key!r} is one of {', '.join(sorted(_CHOICES[key]))}")
    if key == "json-schema" and value:
        try:
            json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise NnError(NnErrno.INVALID_ARGUMENT, "'json-schema' is not JSON text") from exc


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
