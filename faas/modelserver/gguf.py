"""
Reads the head of a GGUF file: enough to refuse a wrong or truncated one, and to describe a model before it is loaded.

Source: the GGUF specification (ggml/docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from faas.errors import ModelFileError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_MAX_DIMS = 4
_MAX_NESTING = 4
_MAX_TENSORS = 1_000_000
_MAX_KEYS = 1_000_000
_DEFAULT_ALIGNMENT = 32
_HASH_STEP_BYTES = 4 * 1024 * 1024

# ggml type -> (elements in a block, bytes of a block); ggml.c `type_traits`
_BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


class GgufSummary(msgspec.Struct, frozen=True):
    """What the head of a model file says; ``metadata`` has its scalar and string values."""

    version: int
    n_tensors: int
    file_bytes: int
    metadata: dict[str, Any]

    @property
    def architecture(self) -> str:
        """The kind of model, as ``llama``."""
        return str(self.metadata.get("general.architecture", ""))

    def number(self, key: str, default: int = 0) -> int:
        """Return the whole number ``<architecture>.<key>``, *default* if there is none."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def kv_bytes_per_cell(self, bytes_per_pair: int) -> int:
        """Return what one token takes in the KV cache, *bytes_per_pair* being one key plus one value element."""
        if self.metadata.get(f"{self.architecture}.attention.causal") is False:
            return 0  # an encoder looks at a text as a whole, and keeps nothing of it
        n_head = max(1, self.number("attention.head_count", 1))
        n_head_kv = self.number("attention.head_count_kv", n_head)
        head = self.number("attention.key_length", self.number("embedding_length") // n_head)
        return self.number("block_count") * n_head_kv * head * bytes_per_pair


class _Cursor:
    """A place in the file's bytes; every read is checked against their end."""

    __slots__ = ("_bytes", "at")

    def __init__(self, content: mmap.mmap | bytes) -> None:
        self._bytes = content
        self.at = 0

    def take(self, n: int) -> bytes:
        if n > len(self._bytes) - self.at:
            raise _cut_off()
        taken = self._bytes[self.at : self.at + n]
        self.at += n
        return taken

    def skip(self, n: int) -> None:
        if n > len(self._bytes) - self.at:
            raise _cut_off()
        self.at += n

    def scalar(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def string(self) -> str:
        return self.take(self.scalar(_U64)).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """Read one value; arrays are only walked over, and read as None."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, count = self.scalar(_U32), self.scalar(_U64)
            if element in _SCALARS:
                self.skip(_SCALARS[element].size * count)
                return None
            if depth >= _MAX_NESTING:
                raise ModelFileError("the GGUF file nests arrays too deeply; download the model again")
            for _ in range(count):
                if element == _STRING:
                    self.skip(self.scalar(_U64))
                else:
                    self.value(element, depth + 1)
            return None
        if kind not in _SCALARS:
            raise ModelFileError(f"the GGUF file has a metadata value of unknown type {kind}; download the model again")
        return self.scalar(_SCALARS[kind])


def read_gguf(path: Path) -> GgufSummary:
    """
    Return what the head of the model file *path* says, once every tensor is known to lie within the file.

    Raises: ModelFileError with a one-line reason.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                raise ModelFileError(f"{path} is too short for a GGUF file; give a model in GGUF form")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return parse_gguf(content)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except ModelFileError as exc:
        raise ModelFileError(f"{path}: {exc.message}") from exc


def parse_gguf(content: mmap.mmap | bytes) -> GgufSummary:
    """
    Return what a whole model file's bytes say; never reads beyond them.

    Raises: ModelFileError.
    """
    cursor = _Cursor(content)
    if cursor.take(4) != _MAGIC:
        raise ModelFileError("no GGUF file (it does not begin with GGUF); give a model in GGUF form")
    version = cursor.scalar(_U32)
    if version not in _VERSIONS:
        raise ModelFileError(f"GGUF version {version} is not supported; convert the model to version 3")
    n_tensors, n_keys = cursor.scalar(_U64), cursor.scalar(_U64)
    if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
        raise ModelFileError("the GGUF file announces absurdly many tensors or keys; download the model again")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.string()
        value = cursor.value(cursor.scalar(_U32))
        if value is not None:
            metadata[key] = value
    tensors = [_tensor(cursor) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ModelFileError("the GGUF file has no valid alignment; download the model again")
    start = -(-cursor.at // alignment) * alignment
    end = max((offset + n_bytes for offset, n_bytes in tensors), default=0)
    if start + end > len(content) and tensors:
        missing = start + end - len(content)
        raise ModelFileError(f"the GGUF file is truncated: {missing} bytes are missing; download the model again")
    return GgufSummary(version, n_tensors, len(content), metadata)


def digest_of(path: Path, remembered: Path | None = None, *, on_read: Callable[[int], None] | None = None) -> str:
    """
    Return the SHA-256 of the file *path*, in hex.

    Args: *remembered* is a file this function keeps digests in, by path, size and time of change. *on_read* hears how
    many bytes are done, every few megabytes; not at all for a digest that is remembered. What it raises ends the work.
    Raises: ModelFileError.
    """
    try:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = _read_remembered(remembered)
        entry = known.get(str(path))
        if isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("sha256"), str):
            return str(entry["sha256"])
        digest = _hashed(path, on_read or _unheard)
        if remembered is not None:
            known[str(path)] = {"stamp": stamp, "sha256": digest}
            fresh = remembered.with_suffix(".new")
            fresh.write_text(json.dumps(known))
            fresh.replace(remembered)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    return digest


def _hashed(path: Path, on_read: Callable[[int], None]) -> str:
    digest, n_done = hashlib.sha256(), 0
    room = memoryview(bytearray(_HASH_STEP_BYTES))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(room):
            digest.update(room[:n])
            n_done += n
            on_read(n_done)
    return digest.hexdigest()


def _unheard(_n_bytes: int) -> None:
    return


def unreadable(path: Path, exc: OSError) -> ModelFileError:
    """Return the error for a model's file that is gone or can't be read: ``facts["missing"]`` tells it from others."""
    return ModelFileError(f"can't read {path}: {exc.strerror or exc}; check the path", missing=True)


def _tensor(cursor: _Cursor) -> tuple[int, int]:
    """Read one tensor's entry; return its offset in the data and its size."""
    name = cursor.string()
    n_dims = cursor.scalar(_U32)
    if n_dims > _MAX_DIMS:
        raise ModelFileError(f"tensor {name[:64]!r} has {n_dims} dimensions; download the model again")
    n_elements = 1
    for _ in range(n_dims):
        n_elements *= cursor.scalar(_U64)
    kind, offset = cursor.scalar(_U32), cursor.scalar(_U64)
    # Types newer than this table are left to the library; their offset is still checked.
    per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
    return offset, n_elements // per_block * block_bytes


def _cut_off() -> ModelFileError:
    return ModelFileError("the GGUF file is truncated inside its head; download the model again")


def _read_remembered(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    try:
        known = json.loads(path.read_text())
    except ValueError:
        return {}  # a torn file costs one more hashing
    return known if isinstance(known, dict) else {}
