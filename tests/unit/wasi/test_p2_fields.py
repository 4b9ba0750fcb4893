"""Promises of the fields of wasi:http/types: order, spelling, what is invalid, forbidden, immutable, too much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import GuestTrapError
from faas.wasi.p2 import http
from faas.wasi.p2.fields import FORBIDDEN, MAX_FIELDS, MAX_FIELDS_BYTES, Fields, content_length, visible
from faas.wasi.p2.resources import WitError

TYPES = http.FUNCTIONS["wasi:http/types"]
INVALID = ("invalid-syntax", None)
IMMUTABLE = ("immutable", None)

BAD_NAMES = ["", " ", "a b", "a:", "a\r\nb", "ü", "a\0", "a(", "a,b", "a/b", "a\x7f"]
BAD_VALUES = [b"a\nb", b"a\rb", b"\0", b"\x1f", b"\x7f", b"a\r\n b"]
GOOD_VALUES = [b"", b" ", b"a b", b"\ta", b"\x80\xff", "ü".encode(), b"!\"#$%&'()*+,-./"]


def call(name: str, *args: Any) -> Any:
    prefix = "static" if name == "fields.from-list" else "method"
    return TYPES[f"[{prefix}]{name}"].call(None, *args)


def error(name: str, *args: Any) -> Any:
    with pytest.raises(WitError) as caught:
        call(name, *args)
    return caught.value.value


def new(*entries: tuple[str, bytes]) -> Fields:
    return call("fields.from-list", list(entries))


def entries(fields: Fields) -> list[tuple[str, bytes]]:
    return list(call("fields.entries", fields))


def test_new_fields_are_empty() -> None:
    fields = TYPES["[constructor]fields"].call(None)
    assert entries(fields) == []
    assert call("fields.get", fields, "a") == []
    assert call("fields.has", fields, "a") is False


def test_order_and_spelling_are_kept() -> None:
    given_entries = [("B", b"1"), ("a", b"2"), ("b", b"3"), ("A-b", b"")]
    assert entries(new(*given_entries)) == given_entries


def test_names_are_compared_without_regard_to_case() -> None:
    fields = new(("Set-Cookie", b"1"), ("x", b"y"), ("set-cookie", b"2"))
    assert call("fields.get", fields, "SET-COOKIE") == [b"1", b"2"]
    assert call("fields.has", fields, "sET-cookie") is True
    call("fields.delete", fields, "SEt-cookie")
    assert entries(fields) == [("x", b"y")]


def test_append_adds_behind_all() -> None:
    fields = new(("a", b"1"), ("b", b"2"))
    call("fields.append", fields, "A", b"3")
    assert entries(fields) == [("a", b"1"), ("b", b"2"), ("A", b"3")]


def test_set_replaces_all_values_where_the_first_was() -> None:
    fields = new(("x", b"0"), ("a", b"1"), ("y", b"2"), ("A", b"3"))
    call("fields.set", fields, "a", [b"4", b"5"])
    assert entries(fields) == [("x", b"0"), ("a", b"4"), ("a", b"5"), ("y", b"2")]
    call("fields.set", fields, "new", [b"6"])
    assert entries(fields)[-1] == ("new", b"6")
    call("fields.set", fields, "a", [])
    assert not call("fields.has", fields, "a")


def test_deleting_what_is_not_there_does_nothing() -> None:
    fields = new(("a", b"1"))
    call("fields.delete", fields, "b")
    assert entries(fields) == [("a", b"1")]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    fields = new()
    assert error("fields.from-list", [("a", b""), (name, b"")]) == INVALID
    assert error("fields.set", fields, name, [b""]) == INVALID
    assert error("fields.append", fields, name, b"") == INVALID
    assert error("fields.delete", fields, name) == INVALID
    assert call("fields.get", fields, name) == []
    assert call("fields.has", fields, name) is False
    assert entries(fields) == []


@pytest.mark.parametrize("value", BAD_VALUES)
def test_a_value_with_a_control_character_is_refused(value: bytes) -> None:
    fields = new(("a", b"1"))
    assert error("fields.from-list", [("a", value)]) == INVALID
    assert error("fields.set", fields, "a", [b"ok", value]) == INVALID
    assert error("fields.append", fields, "a", value) == INVALID
    assert entries(fields) == [("a", b"1")]


@pytest.mark.parametrize("value", GOOD_VALUES)
def test_every_other_value_is_kept_as_it_is(value: bytes) -> None:
    assert call("fields.get", new(("a", value)), "a") == [value]


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
@pytest.mark.parametrize("spell", [str.lower, str.title])
def test_what_belongs_to_the_connection_is_forbidden(name: str, spell: Any) -> None:
    fields = new()
    forbidden = ("forbidden", None)
    assert error("fields.from-list", [(spell(name), b"x")]) == forbidden
    assert error("fields.set", fields, spell(name), [b"x"]) == forbidden
    assert error("fields.append", fields, spell(name), b"x") == forbidden
    assert error("fields.delete", fields, spell(name)) == forbidden


def test_the_forbidden_names_are_those_of_wasmtime() -> None:
    assert sorted(FORBIDDEN) == [
        "connection",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    ]


def test_a_guest_does_not_see_forbidden_headers() -> None:
    assert visible([("Host", b"x"), ("A", b"1"), ("Connection", b"close"), ("te", b"trailers")]) == [
        ("A", b"1"),
        ("te", b"trailers"),
    ]


def test_immutable_fields_refuse_every_change() -> None:
    fields = Fields([("a", b"1")], mutable=False)
    assert error("fields.set", fields, "a", [b"2"]) == IMMUTABLE
    assert error("fields.append", fields, "b", b"2") == IMMUTABLE
    assert error("fields.delete", fields, "a") == IMMUTABLE
    assert error("fields.append", fields, "b b", b"2") == INVALID
    assert entries(fields) == [("a", b"1")]


def test_a_clone_is_mutable_and_its_own() -> None:
    fields = Fields([("a", b"1")], mutable=False)
    clone = call("fields.clone", fields)
    call("fields.append", clone, "b", b"2")
    call("fields.delete", clone, "a")
    assert entries(clone) == [("b", b"2")]
    assert entries(fields) == [("a", b"1")]


def test_fields_are_bounded_in_number() -> None:
    full = [("a", b"")] * MAX_FIELDS
    fields = new(*full)
    with pytest.raises(GuestTrapError, match="fewer or shorter"):
        call("fields.append", fields, "b", b"")
    with pytest.raises(GuestTrapError, match="fewer or shorter"):
        call("fields.set", fields, "b", [b""])
    with pytest.raises(GuestTrapError, match="fewer or shorter"):
        new(*full, ("b", b""))


def test_fields_are_bounded_in_bytes() -> None:
    fields = new(("a", bytes(MAX_FIELDS_BYTES - 1).replace(b"\0", b"x")))
    with pytest.raises(GuestTrapError, match="131073 bytes"):
        call("fields.append", fields, "b", b"")
    call("fields.set", fields, "a", [b"y"])
    call("fields.append", fields, "b", b"x" * (MAX_FIELDS_BYTES - 3))
    with pytest.raises(GuestTrapError, match="fewer or shorter"):
        call("fields.set", fields, "a", [b"yy"])
    call("fields.delete", call("fields.clone", fields), "b")


def test_deleting_makes_room_again() -> None:
    fields = new()
    for _ in range(3):
        call("fields.append", fields, "a", b"x" * (MAX_FIELDS_BYTES - 1))
        call("fields.delete", fields, "A")
    assert entries(fields) == []


@pytest.mark.parametrize(
    ("values", "length"), [([], None), ([b"0"], 0), ([b"12"], 12), ([b"12", b"12"], 12), ([b"012"], 12)]
)
def test_a_content_length_is_read(values: list[bytes], length: int | None) -> None:
    assert content_length([("Content-Length", value) for value in values]) == length


@pytest.mark.parametrize("values", [[b""], [b"-1"], [b"+1"], [b"1_0"], [b" 1"], [b"1", b"2"], [b"x"], [b"9" * 30]])
def test_a_content_length_that_makes_no_sense_is_none(values: list[bytes]) -> None:
    with pytest.raises(ValueError, match="content-length"):
        content_length([("content-length", value) for value in values])


@given(st.lists(st.tuples(st.sampled_from(["a", "A", "b", "x-y"]), st.binary(max_size=5)), max_size=8))
def test_fields_made_one_by_one_are_those_made_at_once(pairs: list[tuple[str, bytes]]) -> None:
    one_by_one = new()
    kept = []
    for name, value in pairs:
        try:
            call("fields.append", one_by_one, name, value)
        except WitError:
            continue
        kept.append((name, value))
    assert entries(one_by_one) == entries(new(*kept))
    assert one_by_one.n_bytes == sum(len(name) + len(value) for name, value in kept)
