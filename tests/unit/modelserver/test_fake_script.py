"""What the fake model of ``faas.testing`` answers by its script, and under JSON schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from faas.modelserver.backends.base import DEAD_END, LoadOptions
from faas.testing.fake_backend import EOG, FakeFile, FakeModel, Scripted, open_backend
from faas.wire.models import Sampling

SCHEMA = {
    "type": "object",
    "properties": {
        "list": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1, "maxItems": 2},
        "kind": {"enum": ["a", "b"]},
        "any": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 2}]},
    },
    "required": ["list"],
    "$defs": {"item": {"type": "integer", "minimum": 4}},
}


def say(model: FakeModel, prompt: str, schema: dict[str, Any] | None = None) -> str | None:
    """Return what *model* says to *prompt* before EOG; None if its grammar leaves it nothing."""
    sampler = model.new_sampler(Sampling(temperature=0.0, json_schema=json.dumps(schema) if schema else ""))
    tokens = model.tokenize(prompt.encode(), add_special=True, parse_special=True)
    said: list[int] = []
    while not said or said[-1] != EOG:
        model.begin_batch()
        row = model.add_prompt(tokens, len(model._sequences.get(0, [])), 0, output=True)
        model.decode()
        tokens = model.sample([row], [sampler])
        if tokens == [DEAD_END]:
            return None
        said += tokens
    model.trim(0, 0)
    return b"".join(model.piece(token, special=False) for token in said).decode()


def scripted(*script: Scripted, **options: Any) -> FakeModel:
    return FakeModel(FakeFile(script=script, **options), LoadOptions())


def test_the_first_entry_that_the_prompt_has_all_words_of_is_the_answer() -> None:
    model = scripted(Scripted("both", ("one", "two")), Scripted("first", ("one",)), Scripted("else"))
    assert [say(model, prompt) for prompt in ("two, one", "one", "three")] == ["both", "first", "else"]


def test_words_of_the_answer_itself_change_nothing() -> None:
    model = scripted(Scripted("wrong", ("secret",)), Scripted("a secret and more", ("tell",)))
    assert say(model, "tell") == "a secret and more"


def test_a_scripted_answer_that_the_schema_does_not_admit_fails() -> None:
    good, bad = json.dumps({"list": [4], "any": "xy"}), json.dumps({"list": []})
    model = scripted(Scripted(good, ("good",)), Scripted(bad, ("bad",)), Scripted("text", ("text",)))
    assert say(model, "good", SCHEMA) == good
    assert say(model, "bad", SCHEMA) is None
    assert say(model, "text", SCHEMA) is None


@pytest.mark.parametrize(
    "value",
    [
        {"list": [4, 5, 6]},
        {"list": [True]},
        {"list": ["4"]},
        {"list": [4], "kind": "c"},
        {"list": [4], "any": "x"},
        {"list": [4], "more": 1},
        {"kind": "a"},
        [],
    ],
)
def test_what_does_not_conform_is_not_admitted(value: Any) -> None:
    assert say(scripted(Scripted(json.dumps(value))), "x", SCHEMA) is None


def test_without_a_script_the_answer_to_a_schema_conforms_to_it() -> None:
    said = say(scripted(), "x", SCHEMA)
    assert said is not None
    assert json.loads(said) == {"list": [4], "kind": "a", "any": None}


def test_the_text_of_the_end_can_be_chosen() -> None:
    model = scripted(eog="<|im_end|>")
    assert model.tokenize(b"a<|im_end|>b", add_special=False, parse_special=True) == [97, EOG, 98]
    assert model.piece(EOG, special=True) == b"<|im_end|>"


def test_a_script_is_part_of_the_models_file(tmp_path: Path) -> None:
    path = tmp_path / "m.fake"
    path.write_bytes(msgspec.json.encode({"script": [{"when": ["a"], "answer": "b"}]}))
    assert say(open_backend().load(path, LoadOptions()), "a") == "b"


def test_cells_are_counted_once_however_many_share_them() -> None:
    model = scripted()
    model.begin_batch()
    model.add_prompt([1, 2, 3], 0, 0, output=False)
    model.decode()
    model.share(0, 1, 2)
    assert model.cells_used == 3
    model.trim(0, 1)
    assert model.cells_used == 2
    model.trim(1, 0)
    model.trim(0, 0)
    assert model.cells_used == 0
