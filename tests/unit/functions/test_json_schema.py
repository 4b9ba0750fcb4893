"""The validator of the sample json-schema: verdicts, places, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

SOURCE = Path(__file__).parents[3] / "functions" / "json-schema" / "src"
_spec = importlib.util.spec_from_file_location("json_schema_sample", SOURCE / "schema.py")
schema = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schema)

ORDER = (SOURCE / "schemas" / "order.json").read_text()


def parsed(text):
    return json.loads(text, parse_float=schema.parse_number)


def problems(document, instance):
    """Both are Python values here, JSON there: numbers are made as the function makes them."""
    return schema.Schema(parsed(json.dumps(document))).problems(parsed(json.dumps(instance)))


VERDICTS = [
    (True, 1, True),
    (False, 1, False),
    ({}, None, True),
    ({"type": "integer"}, 1.0, True),
    ({"type": "integer"}, 1.5, False),
    ({"type": "integer"}, True, False),
    ({"type": ["string", "null"]}, None, True),
    ({"const": 1}, 1.0, True),
    ({"const": 1}, True, False),
    ({"const": {"a": [1]}}, {"a": [1.0]}, True),
    ({"enum": ["a", 0]}, False, False),
    ({"multipleOf": 0.01}, 19.99, True),
    ({"multipleOf": 0.01}, 19.999, False),
    ({"exclusiveMinimum": 0}, 0, False),
    ({"minimum": 0}, "text", True),
    ({"maxLength": 1}, "ü", True),
    ({"pattern": "^a$"}, "a\n", False),
    ({"pattern": "b"}, "abc", True),
    ({"items": {"type": "string"}}, ["a", 1], False),
    ({"prefixItems": [True], "items": False}, [1], True),
    ({"prefixItems": [True], "items": False}, [1, 2], False),
    ({"contains": {"type": "string"}}, [1], False),
    ({"contains": {"type": "string"}, "minContains": 0}, [1], True),
    ({"contains": {"type": "string"}, "maxContains": 1}, ["a", "b"], False),
    ({"uniqueItems": True}, [1, True], True),
    ({"uniqueItems": True}, [{"a": 1}, {"a": 1.0}], False),
    ({"properties": {"a": False}}, {"b": 1}, True),
    ({"patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False}, {"x-a": "b"}, True),
    ({"additionalProperties": {"type": "string"}}, {"a": 1}, False),
    ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, False),
    ({"required": ["a"]}, {}, False),
    ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, False),
    ({"dependentSchemas": {"a": {"required": ["b"]}}}, {"c": 1}, True),
    ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, 3, False),
    ({"anyOf": [{"minimum": 5}, {"maximum": 2}]}, 3, False),
    ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 3, False),
    ({"not": {"type": "string"}}, "a", False),
    ({"if": {"type": "string"}, "then": {"minLength": 1}, "else": {"minimum": 1}}, 0, False),
    ({"if": {"type": "string"}, "then": {"minLength": 1}}, 0, True),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "string"}}}, 1, False),
    ({"$ref": "#here", "$defs": {"x": {"$anchor": "here", "type": "string"}}}, 1, False),
    ({"format": "email", "unknown": 1}, "no email", True),
]


@pytest.mark.parametrize(("document", "instance", "valid"), VERDICTS)
def test_verdict_is_that_of_the_standard(document, instance, valid):
    assert (problems(document, instance) == []) is valid


def test_each_problem_says_where_it_is_in_both():
    order = {
        "id": "x",
        "customer": {"name": "A", "newsletter": True},
        "items": [{"sku": "a", "quantity": 1, "price": 1}, {"sku": "a", "quantity": 0, "price": 1, "a/b": 1}],
    }
    found = schema.Schema(parsed(ORDER)).problems(order)
    assert [(problem.instance, problem.schema) for problem in found] == [
        ("/id", "/properties/id/pattern"),
        ("/customer", "/properties/customer/$ref/then/required"),
        ("/items/1/quantity", "/properties/items/items/properties/quantity/minimum"),
        ("/items/1/a~1b", "/properties/items/items/additionalProperties"),
    ]


def test_a_right_order_is_valid():
    order = {"id": "AB-123456", "customer": {"name": "A"}, "items": [{"sku": "a", "quantity": 1, "price": 0.1}]}
    assert schema.Schema(parsed(ORDER)).problems(parsed(json.dumps(order))) == []


def test_problems_are_bounded():
    assert len(problems({"items": False}, list(range(1000)))) == schema.MAX_ERRORS


@pytest.mark.parametrize(
    ("document", "where"),
    [
        (1, "needed, not number"),
        ({"type": "sting"}, "/type"),
        ({"minLength": -1}, "/minLength"),
        ({"properties": {"a": {"pattern": "("}}}, "/properties/a/pattern"),
        ({"multipleOf": 0}, "/multipleOf"),
        ({"allOf": []}, "/allOf"),
        ({"required": "a"}, "/required"),
        ({"$ref": "#/$defs/none"}, "/$ref"),
        ({"$ref": "#none"}, "/$ref"),
        ({"$ref": "https://example.com/schema"}, "/$ref"),
        ({"items": {"unevaluatedProperties": False}}, "/items/unevaluatedProperties"),
    ],
)
def test_a_wrong_schema_is_refused_with_its_place(document, where):
    with pytest.raises(schema.SchemaError, match=where.replace("$", r"\$")):
        schema.Schema(document)


def test_references_in_circles_are_refused():
    with pytest.raises(schema.SchemaError, match="circles"):
        problems({"$ref": "#"}, 1)


@pytest.mark.parametrize("text", ["1e500", "1e999999999999999999999", "0." + "1" * 1000])
def test_numbers_out_of_range_are_no_numbers(text):
    with pytest.raises(ValueError, match="out of range"):
        parsed(text)


def test_depth_counts_brackets_outside_of_texts():
    deep = schema.MAX_DEPTH
    assert not schema.too_deep(b"[" * deep)
    assert schema.too_deep(b"[" * (deep + 1))
    assert schema.too_deep(b'{"a":' * (deep + 1))
    assert not schema.too_deep(b"[]" * deep * 2)
    assert not schema.too_deep(b'"' + rb"\"[" * deep * 2 + b'"')


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 1.5]) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON)
def test_a_document_is_what_it_is(document):
    assert problems({"const": document, "enum": [document]}, document) == []


@given(_JSON, _JSON)
def test_not_turns_every_verdict_round(document, other):
    assert bool(problems({"const": other}, document)) is not bool(problems({"not": {"const": other}}, document))
