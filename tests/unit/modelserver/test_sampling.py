"""Sampling options are refused before a library sees them."""

from __future__ import annotations

import pytest

from faas.errors import GrammarInvalidError, OptionsInvalidError
from faas.modelserver.sampling import check_sampling
from faas.wire.models import Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=float("nan")),
        Sampling(top_p=-0.1),
        Sampling(repeat_penalty=0.0),
        Sampling(last_n_penalty=-2),
        Sampling(mirostat=3),
        Sampling(seed=-1),
        Sampling(seed=2**32),
        Sampling(logit_bias={100: 1.0}),
        Sampling(logit_bias={1: float("nan")}),
        Sampling(grammar="root ::= x", json_schema="{}"),
    ],
)
def test_an_option_out_of_its_range_is_refused(sampling: Sampling) -> None:
    with pytest.raises(OptionsInvalidError):
        check_sampling(sampling, 100)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(grammar="(" * 101),
        Sampling(grammar="a\0b"),
        Sampling(grammar="x" * 300_000),
        Sampling(json_schema="nonsense"),
        Sampling(json_schema="[1]"),
        Sampling(json_schema='{"a":' * 150 + "1" + "}" * 150),
        Sampling(json_schema="[" * 100_000),
    ],
)
def test_a_grammar_that_could_hurt_the_parser_is_refused(sampling: Sampling) -> None:
    with pytest.raises(GrammarInvalidError):
        check_sampling(sampling, 100)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=-1.0, top_k=-5, min_p=2.0),
        Sampling(grammar='root ::= "' + "(" * 500 + '" [(()] # ((('),
        Sampling(json_schema='{"type": "object"}'),
        Sampling(logit_bias={99: float("-inf")}, seed=2**32 - 1),
    ],
)
def test_what_llama_cpp_takes_is_taken(sampling: Sampling) -> None:
    check_sampling(sampling, 100)
