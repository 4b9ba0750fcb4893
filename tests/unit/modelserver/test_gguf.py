"""The GGUF reader: whole files are described, everything else is refused with one error."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import ModelFileError
from faas.modelserver.gguf import digest_of, parse_gguf, read_gguf


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def make_gguf() -> bytes:
    """Return a small whole file: five keys and two tensors."""
    keys = [
        _string("general.architecture") + struct.pack("<I", 8) + _string("llama"),
        _string("llama.context_length") + struct.pack("<II", 4, 2048),
        _string("llama.rope.freq_base") + struct.pack("<If", 6, 10000.0),
        _string("tokens") + struct.pack("<IIQ", 9, 8, 2) + _string("a") + _string("b"),
        _string("scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12),
    ]
    tensors = [
        _string("one") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0),
        _string("two") + struct.pack("<IQIQ", 1, 4, 0, 96),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(96 + 16)


WHOLE = make_gguf()


def test_a_whole_file_is_described() -> None:
    summary = parse_gguf(WHOLE)
    assert summary.architecture == "llama"
    assert summary.number("context_length") == 2048
    assert summary.number("block_count", 7) == 7
    assert (summary.version, summary.n_tensors) == (3, 2)


@pytest.mark.parametrize("n_missing", [1, 16, 17, 100])
def test_a_file_cut_in_its_tensors_is_refused(n_missing: int) -> None:
    with pytest.raises(ModelFileError, match="truncated"):
        parse_gguf(WHOLE[:-n_missing])


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>" * 100, WHOLE[:3]])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m\.gguf"):
        read_gguf(path)
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    assert "missing" not in caught.value.facts


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for read in (read_gguf, digest_of):
        with pytest.raises(ModelFileError, match="No such file") as caught:
            read(tmp_path / "none")
        assert caught.value.facts["missing"]


@given(st.integers(0, len(WHOLE)))
def test_any_truncation_is_refused(n: int) -> None:
    if n == len(WHOLE):
        parse_gguf(WHOLE[:n])
    else:
        with pytest.raises(ModelFileError):
            parse_gguf(WHOLE[:n])


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)))
def test_overwritten_bytes_never_raise_anything_else(noise: bytes, at: int) -> None:
    with contextlib.suppress(ModelFileError):
        parse_gguf(WHOLE[:at] + noise + WHOLE[at + len(noise) :])


@given(st.binary(max_size=300))
def test_noise_after_the_magic_never_raises_anything_else(noise: bytes) -> None:
    for version in (2, 3):
        with contextlib.suppress(ModelFileError):
            parse_gguf(b"GGUF" + struct.pack("<I", version) + noise)


def test_hashing_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faas.modelserver.gguf._HASH_STEP_BYTES", 4)
    (tmp_path / "m").write_bytes(b"ten bytes.")
    told: list[int] = []
    assert digest_of(tmp_path / "m", on_read=told.append) == hashlib.sha256(b"ten bytes.").hexdigest()
    assert told == [4, 8, 10]


def test_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path, remembered = tmp_path / "m", tmp_path / "digests.json"
    path.write_bytes(b"one")
    first = digest_of(path, remembered)
    assert first == digest_of(path)
    assert digest_of(path, remembered) == first
    path.write_bytes(b"other")
    assert digest_of(path, remembered) != first
    remembered.write_text("torn {")
    assert digest_of(path, remembered) == digest_of(path)
