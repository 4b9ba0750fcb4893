# SPDX-License-Identifier: Apache-2.0
"""
JSON Schema 2020-12, as much of it as is said in KEYWORDS; all errors at once, each with the places it is about.

A keyword that is unknown is an annotation, as the standard says; one that is known but not done here, such as
`unevaluatedProperties`, is refused, since leaving it out would let wrong documents pass. `$ref` stays within the
schema. `format` asserts nothing, which is its default.
"""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, NamedTuple

MAX_ERRORS = 100
MAX_EXPONENT = 400  # more than a double has; an exact 1e999999999 would fill the memory
MAX_DEPTH = 200

NOT_DONE = frozenset({"unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"})


class SchemaError(Exception):
    """The schema itself is wrong, at a JSON pointer."""

    def __init__(self, at: str, what: str) -> None:
        super().__init__(f"schema{at and ' at ' + at}: {what}")


class Problem(NamedTuple):
    """Why a document is not valid: JSON pointers into the document and the schema, and the reason in words."""

    instance: str
    schema: str
    message: str


def parse_number(text: str) -> Decimal:
    """For json.loads(parse_float=…): exact, and within bounds. Raises ValueError."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = None
    if number is None or abs(number.adjusted()) > MAX_EXPONENT or len(text) > 2 * MAX_EXPONENT:
        raise ValueError(f"a number is out of range: {text[:20]}")
    return number


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


def too_deep(document: bytes) -> bool:
    """Whether arrays and objects are nested so deep that no parser should be tried."""
    depth = 0
    for bracket in _BRACKETS.findall(_STRING.sub(b"", document)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


class Schema:
    """A checked schema. Every part of it is looked at when it is made, so `problems` never raises SchemaError."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._anchors: dict[str, Any] = {}
        self._patterns: dict[str, re.Pattern[str]] = {}
        self._targets: dict[str, Any] = {}
        references: list[tuple[str, str]] = []
        self._look(document, "", references)
        for at, reference in references:
            self._targets[reference] = self._resolve(at, reference)

    def problems(self, instance: Any) -> list[Problem]:
        """All that is wrong with *instance*, the first MAX_ERRORS; raises SchemaError where `$ref`s go in circles."""
        found: list[Problem] = []
        try:
            for problem in self._apply(self._document, instance, "", ""):
                found.append(problem)
                if len(found) == MAX_ERRORS:
                    break
        except RecursionError:
            raise SchemaError("", "references go in circles, or too deep") from None
        return found

    # -- the schema itself

    def _look(self, schema: Any, at: str, references: list[tuple[str, str]]) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise SchemaError(at, f"an object or a boolean is needed, not {_type(schema)}")
        for keyword, value in schema.items():
            here = f"{at}/{_escaped(keyword)}"
            if keyword in NOT_DONE:
                raise SchemaError(here, "this keyword is not supported here; write the schema without it")
            if keyword in _WELL_FORMED:
                kind, right = _WELL_FORMED[keyword]
                if not right(value):
                    raise SchemaError(here, f"{kind} is needed")
            if keyword == "$ref":
                references.append((here, value))
            elif keyword == "$anchor":
                self._anchors[value] = schema
            elif keyword == "pattern":
                self._compile(value, here)
            elif keyword == "patternProperties":
                for pattern in value:
                    self._compile(pattern, here)
            if keyword in _ONE:
                self._look(value, here, references)
            elif keyword in _LIST:
                for index, part in enumerate(value):
                    self._look(part, f"{here}/{index}", references)
            elif keyword in _MAP:
                for name, part in value.items():
                    self._look(part, f"{here}/{_escaped(name)}", references)

    def _compile(self, pattern: str, at: str) -> None:
        # JSON Schema's patterns are JavaScript's; what differs from Python's is rare, but for the meaning of $.
        try:
            self._patterns[pattern] = re.compile(re.sub(r"(?<!\\)\$$", r"\\Z", pattern))
        except (re.error, RecursionError, OverflowError) as exc:
            raise SchemaError(at, f"not a regular expression: {exc}") from None

    def _resolve(self, at: str, reference: str) -> Any:
        if not reference.startswith("#"):
            raise SchemaError(at, "only references within the schema are followed: #/$defs/name or #anchor")
        if not reference.startswith("#/") and reference != "#":
            if reference[1:] not in self._anchors:
                raise SchemaError(at, f"there is no anchor {reference[1:]}")
            return self._anchors[reference[1:]]
        target = self._document
        for part in reference.split("/")[1:]:
            key = re.sub("%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), part)
            key = key.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(key)] if isinstance(target, list) else target[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise SchemaError(at, f"{reference} is not there") from None
        self._look(target, reference[1:], [])  # it may be where no schema is expected
        return target

    # -- documents

    def _apply(self, schema: Any, value: Any, at: str, where: str) -> Iterator[Problem]:
        if isinstance(schema, bool):
            if not schema:
                yield Problem(at, where, "nothing is allowed here")
            return
        for keyword, wanted in schema.items():
            check = KEYWORDS.get(keyword)
            if check is not None:
                yield from check(self, schema, wanted, value, at, f"{where}/{_escaped(keyword)}")

    def _fine(self, schema: Any, value: Any) -> bool:
        return next(self._apply(schema, value, "", ""), None) is None


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _type(value: Any) -> str:
    for kind, names in ((bool, "boolean"), (str, "string"), (dict, "object"), (list, "array")):
        if isinstance(value, kind):
            return names
    return "null" if value is None else "number"


def _canonical(value: Any) -> Any:
    """Equal for what JSON Schema calls equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, list):
        return ("array", tuple(_canonical(part) for part in value))
    if isinstance(value, dict):
        return ("object", frozenset((name, _canonical(part)) for name, part in value.items()))
    return (_type(value), value)


def _count(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "number": _is_number,
    "integer": _is_integer,
    "string": lambda value: isinstance(value, str),
}

_ONE = frozenset({
    "not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"
})
_LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAP = frozenset({"$defs", "definitions", "properties", "patternProperties", "dependentSchemas"})

_WELL_FORMED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(_LIST, ("a list with at least one schema", lambda value: isinstance(value, list) and bool(value))),
    **dict.fromkeys(_MAP, ("an object of schemas", lambda value: isinstance(value, dict))),
    **dict.fromkeys(
        ("maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties", "maxContains",
         "minContains"),
        ("a whole number from 0 on", _count),
    ),
    **dict.fromkeys(("maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"), ("a number", _is_number)),
    **dict.fromkeys(("$ref", "$anchor", "pattern"), ("a text", lambda value: isinstance(value, str))),
    "multipleOf": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "required": ("a list of texts", _texts),
    "enum": ("a list", lambda value: isinstance(value, list)),
    "uniqueItems": ("a boolean", lambda value: isinstance(value, bool)),
    "dependentRequired": (
        "an object of lists of texts",
        lambda value: isinstance(value, dict) and all(_texts(names) for names in value.values()),
    ),
    "type": (
        f"one or more of {', '.join(_TYPES)}",
        lambda value: all(
            isinstance(name, str) and name in _TYPES for name in (value if isinstance(value, list) else [value])
        ),
    ),
}

# Each keyword: (schema object, its neighbours, the keyword's value, the instance, where both are) -> problems.


def _check_ref(self, schema, wanted, value, at, where):
    yield from self._apply(self._targets[wanted], value, at, where)


def _check_type(self, schema, wanted, value, at, where):
    names = wanted if isinstance(wanted, list) else [wanted]
    if not any(_TYPES[name](value) for name in names):
        yield Problem(at, where, f"{' or '.join(names)} is needed, not {_type(value)}")


def _check_enum(self, schema, wanted, value, at, where):
    if all(_canonical(value) != _canonical(allowed) for allowed in wanted):
        yield Problem(at, where, "not one of the allowed values")


def _check_const(self, schema, wanted, value, at, where):
    if _canonical(value) != _canonical(wanted):
        yield Problem(at, where, "not the value that is needed")


def _check_multiple(self, schema, wanted, value, at, where):
    if _is_number(value) and Fraction(value) % Fraction(wanted) != 0:
        yield Problem(at, where, f"not a multiple of {wanted}")


def _limit(right, words, applies, measure):
    def check(self, schema, wanted, value, at, where):
        if applies(value) and not right(measure(value), wanted):
            yield Problem(at, where, f"{words} {wanted}")

    return check


def _same(value):
    return value


def _at_most(value, limit):
    return value <= limit


def _at_least(value, limit):
    return value >= limit


def _check_pattern(self, schema, wanted, value, at, where):
    if isinstance(value, str) and not self._patterns[wanted].search(value):
        yield Problem(at, where, f"does not match {wanted}")


def _check_items(self, schema, wanted, value, at, where):
    if isinstance(value, list):
        for index in range(len(schema.get("prefixItems", ())), len(value)):
            yield from self._apply(wanted, value[index], f"{at}/{index}", where)


def _check_prefix_items(self, schema, wanted, value, at, where):
    if isinstance(value, list):
        for index, (part, item) in enumerate(zip(wanted, value)):
            yield from self._apply(part, item, f"{at}/{index}", f"{where}/{index}")


def _check_contains(self, schema, wanted, value, at, where):
    if isinstance(value, list):
        count = sum(self._fine(wanted, item) for item in value)
        least, most = schema.get("minContains", 1), schema.get("maxContains")
        if count < least:
            yield Problem(at, where, f"{count} items match, at least {least} are needed")
        if most is not None and count > most:
            yield Problem(at, where, f"{count} items match, at most {most} are allowed")


def _check_unique(self, schema, wanted, value, at, where):
    if wanted and isinstance(value, list):
        seen: dict[Any, int] = {}
        for index, item in enumerate(value):
            first = seen.setdefault(_canonical(item), index)
            if first != index:
                yield Problem(f"{at}/{index}", where, f"the same as item {first}")


def _check_properties(self, schema, wanted, value, at, where):
    if isinstance(value, dict):
        for name, part in wanted.items():
            if name in value:
                yield from self._apply(part, value[name], f"{at}/{_escaped(name)}", f"{where}/{_escaped(name)}")


def _check_pattern_properties(self, schema, wanted, value, at, where):
    if isinstance(value, dict):
        for pattern, part in wanted.items():
            for name, item in value.items():
                if self._patterns[pattern].search(name):
                    yield from self._apply(part, item, f"{at}/{_escaped(name)}", f"{where}/{_escaped(pattern)}")


def _check_additional(self, schema, wanted, value, at, where):
    if isinstance(value, dict):
        named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, item in value.items():
            if name in named or any(self._patterns[pattern].search(name) for pattern in patterns):
                continue
            if wanted is False:
                yield Problem(f"{at}/{_escaped(name)}", where, "no such property is allowed")
            else:
                yield from self._apply(wanted, item, f"{at}/{_escaped(name)}", where)


def _check_names(self, schema, wanted, value, at, where):
    if isinstance(value, dict):
        for name in value:
            yield from self._apply(wanted, name, f"{at}/{_escaped(name)}", where)


def _check_required(self, schema, wanted, value, at, where):
    if isinstance(value, dict):
        for name in wanted:
            if name not in value:
                yield Problem(at, where, f"{name} is missing")


def _check_dependent_required(self, schema, wanted, value, at, where):
    if isinstance(value, dict):
        for name, others in wanted.items():
            if name in value:
                for other in others:
                    if other not in value:
                        yield Problem(at, f"{where}/{_escaped(name)}", f"{other} is missing, which {name} needs")


def _check_dependent_schemas(self, schema, wanted, value, at, where):
    if isinstance(value, dict):
        for name, part in wanted.items():
            if name in value:
                yield from self._apply(part, value, at, f"{where}/{_escaped(name)}")


def _check_all(self, schema, wanted, value, at, where):
    for index, part in enumerate(wanted):
        yield from self._apply(part, value, at, f"{where}/{index}")


def _check_any(self, schema, wanted, value, at, where):
    if not any(self._fine(part, value) for part in wanted):
        yield Problem(at, where, "none of the alternatives fits")


def _check_one(self, schema, wanted, value, at, where):
    fitting = [index for index, part in enumerate(wanted) if self._fine(part, value)]
    if len(fitting) != 1:
        yield Problem(at, where, f"{len(fitting)} of the alternatives fit, 1 is needed")


def _check_not(self, schema, wanted, value, at, where):
    if self._fine(wanted, value):
        yield Problem(at, where, "is what it must not be")


def _check_if(self, schema, wanted, value, at, where):
    branch = "then" if self._fine(wanted, value) else "else"
    if branch in schema:
        yield from self._apply(schema[branch], value, at, f"{where.removesuffix('if')}{branch}")


def _is_text(value):
    return isinstance(value, str)


def _is_list(value):
    return isinstance(value, list)


def _is_object(value):
    return isinstance(value, dict)


KEYWORDS: dict[str, Callable[..., Iterator[Problem]]] = {
    "$ref": _check_ref,
    "type": _check_type,
    "enum": _check_enum,
    "const": _check_const,
    "multipleOf": _check_multiple,
    "maximum": _limit(_at_most, "more than", _is_number, _same),
    "minimum": _limit(_at_least, "less than", _is_number, _same),
    "exclusiveMaximum": _limit(lambda value, limit: value < limit, "not less than", _is_number, _same),
    "exclusiveMinimum": _limit(lambda value, limit: value > limit, "not more than", _is_number, _same),
    "maxLength": _limit(_at_most, "longer than", _is_text, len),
    "minLength": _limit(_at_least, "shorter than", _is_text, len),
    "pattern": _check_pattern,
    "maxItems": _limit(_at_most, "more items than", _is_list, len),
    "minItems": _limit(_at_least, "fewer items than", _is_list, len),
    "uniqueItems": _check_unique,
    "prefixItems": _check_prefix_items,
    "items": _check_items,
    "contains": _check_contains,
    "maxProperties": _limit(_at_most, "more properties than", _is_object, len),
    "minProperties": _limit(_at_least, "fewer properties than", _is_object, len),
    "properties": _check_properties,
    "patternProperties": _check_pattern_properties,
    "additionalProperties": _check_additional,
    "propertyNames": _check_names,
    "required": _check_required,
    "dependentRequired": _check_dependent_required,
    "dependentSchemas": _check_dependent_schemas,
    "allOf": _check_all,
    "anyOf": _check_any,
    "oneOf": _check_one,
    "not": _check_not,
    "if": _check_if,
}
