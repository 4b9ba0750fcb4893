"""Writes a GGUF of an encoder (BERT, mean pooling) with random weights: small enough to be made for each test."""

from __future__ import annotations

import random
import struct
from pathlib import Path

N_EMBD, N_FF, N_CTX, N_HEAD = 64, 128, 64, 2
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in ("red", "green", "sky")))
_CONTROL, _NORMAL = 3, 1


def write_encoder(path: Path) -> Path:
    """Write the model to *path*, and return that."""
    rng = random.Random(1)
    shapes = {"token_embd.weight": (N_EMBD, len(WORDS)), "token_types.weight": (N_EMBD, 2)}
    shapes["position_embd.weight"] = (N_EMBD, N_CTX)
    layers = {"attn_q": N_EMBD, "attn_k": N_EMBD, "attn_v": N_EMBD, "attn_output": N_EMBD, "ffn_up": N_FF}
    for name, n_out in layers.items():
        shapes |= {f"blk.0.{name}.weight": (N_EMBD, n_out), f"blk.0.{name}.bias": (n_out,)}
    shapes |= {"blk.0.ffn_down.weight": (N_FF, N_EMBD), "blk.0.ffn_down.bias": (N_EMBD,)}
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        shapes |= {f"{name}.weight": (N_EMBD,), f"{name}.bias": (N_EMBD,)}
    keys = [
        _text("general.architecture", "bert"),
        *(
            _number(f"bert.{key}", value)
            for key, value in {
                "context_length": N_CTX,
                "embedding_length": N_EMBD,
                "feed_forward_length": N_FF,
                "block_count": 1,
                "attention.head_count": N_HEAD,
                "pooling_type": 1,
            }.items()
        ),
        _key("bert.attention.layer_norm_epsilon", 6, struct.pack("<f", 1e-12)),
        _key("bert.attention.causal", 7, b"\0"),
        _number("tokenizer.ggml.token_type_count", 2),
        _text("tokenizer.ggml.model", "bert"),
        _text("tokenizer.ggml.pre", "jina-v2-en"),
        _key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, len(WORDS)) + b"".join(map(_string, WORDS))),
        _key(
            "tokenizer.ggml.token_type",
            9,
            struct.pack("<IQ", 5, len(WORDS)) + struct.pack("<7i", *[_CONTROL] * 4, *[_NORMAL] * 3),
        ),
        *(
            _number(f"tokenizer.ggml.{name}_token_id", id)
            for name, id in {
                "padding": 0,
                "unknown": 1,
                "cls": 2,
                "bos": 2,
                "seperator": 3,  # as GGUF spells it
                "eos": 3,
            }.items()
        ),
    ]
    infos, data = b"", b""
    for name, shape in shapes.items():
        infos += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        data += struct.pack(f"<{n}f", *(rng.gauss(0, 0.3) for _ in range(n)))  # a multiple of the alignment
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(keys) + infos
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _key(name: str, kind: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + value


def _text(name: str, value: str) -> bytes:
    return _key(name, 8, _string(value))


def _number(name: str, value: int) -> bytes:
    return _key(name, 4, struct.pack("<I", value))
