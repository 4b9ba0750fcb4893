"""Promises of the GGML configuration: known keys are typed, unknown ones ignored, no path of the host is ever taken."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.nn.errno import NnErrno, NnError
from faas.nn.options import MAX_CONFIG_BYTES, batch_size, context_size, parse_config, sampling_of
from faas.wire.models import Sampling


def parse(**document: Any) -> dict[str, Any]:
    return parse_config(json.dumps({key.replace("_", "-"): value for key, value in document.items()}).encode())


def errno_of(raw: bytes | dict[str, Any]) -> NnErrno:
    with pytest.raises(NnError) as caught:
        parse_config(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    return caught.value.errno


@pytest.mark.parametrize("raw", [b"", b"{", b"nope", b"\xff", b'{"temp": NaN}', b"[" * 5000, b"{} {}"])
def test_what_is_not_json_is_an_invalid_encoding(raw: bytes) -> None:
    assert errno_of(raw) == NnErrno.INVALID_ENCODING


@pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b'"x"'])
def test_json_that_is_no_object_is_an_invalid_argument(raw: bytes) -> None:
    assert errno_of(raw) == NnErrno.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "document",
    [
        {"n-predict": True},
        {"n-predict": 1.5},
        {"n-predict": "1"},
        {"n-predict": None},
        {"n-predict": 2**31},
        {"temp": "0"},
        {"temp": True},
        {"temp": 10**400},
        {"top-k": 1.0},
        {"embedding": 1},
        {"stream-stdout": "true"},
        {"reverse-prompt": 1},
        {"grammar": {}},
        {"json-schema": {"type": "object"}},
        {"json-schema": "{"},
        {"split-mode": "diagonal"},
        {"flash-attn": True},
        {"tts": 1},
        {"mmproj": False},
        {"enable-log": 0},
        {"threads": "4"},
    ],
)
def test_a_known_key_of_a_wrong_type_is_an_invalid_argument(document: dict[str, Any]) -> None:
    assert errno_of(document) == NnErrno.INVALID_ARGUMENT


def test_half_of_a_surrogate_pair_is_an_invalid_argument() -> None:
    assert errno_of(b'{"grammar": "\\ud800"}') == NnErrno.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "key",
    ["mmproj", "image", "model-vocoder", "tts-output-file", "tts-speaker-file", "prompt-cache", "grammar-file"],
)
def test_a_path_of_the_host_is_an_unsupported_operation(key: str) -> None:
    assert errno_of({key: "/etc/passwd"}) == NnErrno.UNSUPPORTED_OPERATION
    assert parse_config(json.dumps({key: ""}).encode()) == {key: ""}


def test_speech_and_ranking_are_unsupported_operations() -> None:
    assert errno_of({"tts": True}) == NnErrno.UNSUPPORTED_OPERATION
    assert errno_of({"reranking": False}) == NnErrno.UNSUPPORTED_OPERATION


def test_a_configuration_over_the_limit_is_too_large() -> None:
    assert errno_of(b" " * (MAX_CONFIG_BYTES + 1)) == NnErrno.TOO_LARGE


def test_unknown_keys_are_ignored_whatever_they_hold() -> None:
    assert parse_config(b'{"llama3": true, "json_schema": {}, "include_usage": 1, "numa": [], "cache-type-k": 1}') == {}


def test_what_llamaedge_always_sends_is_taken() -> None:
    options = parse_config(
        b'{"enable-log":false,"enable-debug-log":false,"embedding":false,"n-predict":-1,"n-gpu-layers":100,'
        b'"split-mode":"layer","ctx-size":4096,"batch-size":2048,"ubatch-size":512,"threads":2,"temp":0.8,"top-p":0.9,'
        b'"repeat-penalty":1.0,"presence-penalty":0,"frequency-penalty":0,"grammar":"","use-mmap":true}'
    )
    assert options["presence-penalty"] == 0.0
    assert sampling_of(options) == Sampling(temperature=0.8, top_p=0.9, dry_last_n=64)


def test_temperature_and_top_p_are_clamped() -> None:
    sampling = sampling_of(parse(temp=-1, top_p=-0.5))
    assert (sampling.temperature, sampling.top_p) == (0.0, 0.0)


@pytest.mark.parametrize(("seed", "expected"), [(7, 7), (-1, None), (0xFFFFFFFF, None), (2**32 + 5, 5)])
def test_a_seed_is_an_unsigned_32_bit_number_and_its_largest_value_random(seed: int, expected: int | None) -> None:
    assert sampling_of(parse(seed=seed)).seed == expected


def test_a_schema_goes_before_a_grammar() -> None:
    sampling = sampling_of(parse(grammar='root ::= "a"', json_schema="{}"))
    assert (sampling.grammar, sampling.json_schema) == ("", "{}")


def test_every_sampling_key_arrives() -> None:
    options = parse(
        temp=0.1, top_p=0.2, top_k=3, min_p=0.4, typ_p=0.5, repeat_penalty=1.6, presence_penalty=0.7,
        frequency_penalty=0.8, last_n_penalty=9, seed=10, ignore_eos=True, mirostat=2, mirostat_eta=0.3,
        dynatemp_range=0.4, dynatemp_exponent=1.5, xtc_probability=0.6, xtc_threshold=0.7, dry_multipier=0.8,
        dry_base=1.9, dry_allowed_length=3, dry_last_n_penalty=11, min_keep=2, grammar="g",
    )  # fmt: skip
    assert sampling_of(options) == Sampling(
        temperature=0.1, top_p=0.2, top_k=3, min_p=0.4, typical_p=0.5, repeat_penalty=1.6, presence_penalty=0.7,
        frequency_penalty=0.8, last_n_penalty=9, seed=10, ignore_eos=True, mirostat=2, mirostat_eta=0.3,
        dynatemp_range=0.4, dynatemp_exponent=1.5, xtc_probability=0.6, xtc_threshold=0.7, dry_multiplier=0.8,
        dry_base=1.9, dry_allowed_length=3, dry_last_n=11, min_keep=2, grammar="g",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "model", "expected"),
    [(0, 2048, 2048), (-5, 2048, 2048), (64, 2048, 256), (1000, 2048, 1024), (1024, 2048, 1024), (9000, 2048, 2048),
     (1000, 0, 1024)],
)  # fmt: skip
def test_a_context_size_is_rounded_up_to_256_and_never_over_the_models(wanted: int, model: int, expected: int) -> None:
    assert context_size({"ctx-size": wanted}, model) == expected


def test_a_batch_size_is_at_least_one() -> None:
    assert [batch_size({}), batch_size({"batch-size": 5}), batch_size({"batch-size": -1})] == [2048, 5, 1]


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["temp", "seed", "n-predict", "grammar", "mmproj", "tts", "x"]), inner
                )
            ),
            max_leaves=8,
        ).map(lambda document: json.dumps(document).encode()),
    )
)
def test_any_bytes_are_options_or_an_errno(raw: bytes) -> None:
    with suppress(NnError):
        sampling_of(parse_config(raw))
