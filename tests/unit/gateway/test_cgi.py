"""CGI without I/O: whatever a guest writes is a response or one error, and requests arrive as RFC 3875 says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import MalformedResponseError
from faas.gateway.cgi import MAX_HEAD_BYTES, MAX_HEADERS, arguments, meta_variables, parse_head, split_head

# Bytes that look like a head more often than not.
headish = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\r", b":", b" ", b"Status", b"200", b"Location", b"/x", b"X-A", b"\0", b"\xff"])
    | st.binary(max_size=4)
).map(b"".join)


# --- where the head ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "block", "body"),
    [
        (b"A: b\n\nbody", b"A: b", b"body"),
        (b"A: b\r\n\r\nbody", b"A: b", b"body"),
        (b"A: b\n\r\nbody", b"A: b", b"body"),
        (b"A: b\nC: d\n\n\nbody", b"A: b\nC: d", b"\nbody"),
        (b"\nbody", b"", b"body"),
        (b"A: b\n\n", b"A: b", b""),
    ],
)
def test_the_head_ends_at_the_first_empty_line(written: bytes, block: bytes, body: bytes) -> None:
    split = split_head(written)
    assert split is not None
    assert split[0] == block
    assert written[split[1] :] == body


@pytest.mark.parametrize("written", [b"", b"A: b", b"A: b\n", b"A: b\r\n", b"A: b\r\n\r", b"A: b\r\r"])
def test_a_head_without_its_empty_line_is_not_there_yet(written: bytes) -> None:
    assert split_head(written) is None


def test_a_head_that_does_not_end_is_refused() -> None:
    assert split_head(b"x" * (MAX_HEAD_BYTES - 1)) is None
    with pytest.raises(MalformedResponseError):
        split_head(b"x" * MAX_HEAD_BYTES)


@given(headish)
def test_it_does_not_matter_in_how_many_pieces_a_head_arrives(written: bytes) -> None:
    splits = [split_head(written[:end]) for end in range(len(written) + 1)]
    first = next((split for split in splits if split is not None), None)
    assert first == splits[-1]


# --- what the head says ----------------------------------------------------------------------------------------------


@given(headish | st.binary())
def test_any_bytes_are_a_safe_head_or_a_malformed_response(block: bytes) -> None:
    """Nothing that comes out can end a header line early: that would be response splitting."""
    try:
        head = parse_head(block)
    except MalformedResponseError:
        return
    assert 200 <= head.status <= 599
    for name, value in (*head.headers, ("Reason", head.reason or ""), ("Location", head.local_redirect)):
        assert re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name)
        assert not re.search(r"[\0\r\n]", value)


def test_status_gives_code_and_reason() -> None:
    head = parse_head(b"Status: 404 Not Here")
    assert (head.status, head.reason) == (404, "Not Here")


@pytest.mark.parametrize(
    "status", ["", "abc", "99", "100", "199", "600", "0200", "200OK", "-200", "2 00", "\u0662\u0660\u0660"]
)
def test_a_status_that_is_none_is_refused(status: str) -> None:
    with pytest.raises(MalformedResponseError):
        parse_head(f"Status: {status}".encode())


def test_a_second_status_is_refused() -> None:
    with pytest.raises(MalformedResponseError):
        parse_head(b"Status: 200\nStatus: 404")


@pytest.mark.parametrize(
    ("block", "status", "location"),
    [
        (b"Location: https://e.org/", 302, "https://e.org/"),
        (b"Location: //e.org/x", 302, "//e.org/x"),
        (b"Status: 301\nLocation: /x", 301, "/x"),
        (b"Location: /x\nContent-Type: text/plain", 302, "/x"),
    ],
)
def test_a_client_redirect_keeps_its_location(block: bytes, status: int, location: str) -> None:
    head = parse_head(block)
    assert (head.status, dict(head.headers)["Location"], head.local_redirect) == (status, location, "")


def test_a_path_alone_is_a_local_redirect() -> None:
    head = parse_head(b"Location: /other?x=1")
    assert (head.local_redirect, head.headers) == ("/other?x=1", ())


@pytest.mark.parametrize("block", [b"Location:", b"Location: /a\nLocation: /b"])
def test_a_location_must_be_one(block: bytes) -> None:
    with pytest.raises(MalformedResponseError):
        parse_head(block)


def test_headers_of_one_name_stay_apart_and_in_order() -> None:
    head = parse_head(b"Set-Cookie: a=1\nX: y\nset-cookie: b=2")
    assert head.headers == (("Set-Cookie", "a=1"), ("X", "y"), ("set-cookie", "b=2"))


@pytest.mark.parametrize("name", ["Connection", "Transfer-Encoding", "Keep-Alive", "TE", "Trailer", "Upgrade"])
def test_headers_of_the_connection_are_the_hosts_to_say(name: str) -> None:
    assert parse_head(f"{name}: x\nX: y".encode()).headers == (("X", "y"),)


@pytest.mark.parametrize("length", ["-1", "1.5", "x", "", "\u0663"])
def test_a_content_length_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(MalformedResponseError):
        parse_head(f"Content-Length: {length}".encode())


def test_two_content_lengths_must_agree() -> None:
    assert parse_head(b"Content-Length: 3\nContent-Length: 3").content_length == 3
    with pytest.raises(MalformedResponseError):
        parse_head(b"Content-Length: 3\nContent-Length: 4")


def test_too_many_headers_are_refused() -> None:
    parse_head(b"\n".join([b"A: b"] * MAX_HEADERS))
    with pytest.raises(MalformedResponseError):
        parse_head(b"\n".join([b"A: b"] * (MAX_HEADERS + 1)))


def test_no_header_at_all_is_refused() -> None:
    with pytest.raises(MalformedResponseError):
        parse_head(b"")


# --- what a request becomes ------------------------------------------------------------------------------------------


def variables(**changes: Any) -> dict[str, str]:
    request: dict[str, Any] = {
        "method": "GET",
        "raw_path": "/f/x",
        "query": "",
        "script_name": "/f",
        "route": "/f/*",
        "params": {},
        "headers": [],
        "remote_addr": "10.0.0.1",
        "scheme": "http",
        "host": "example.org:8080",
        "server_port": 8080,
        "protocol": "HTTP/1.1",
        "server_software": "faas/1",
        "content_length": None,
        "request_id": "id-1",
        "function": "f",
        "version": 3,
        "env": {},
    }
    entries = meta_variables(**{**request, **changes})
    names = [entry.partition(b"=")[0] for entry in entries]
    assert len(names) == len(set(names))
    return {
        name.decode(): value.decode("utf-8", "surrogateescape")
        for name, _, value in (entry.partition(b"=") for entry in entries)
    }


def test_the_path_is_split_where_the_route_ends_and_decoded() -> None:
    seen = variables(raw_path="/f/a%20b%2Fc")
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"], seen["X_RAW_PATH_INFO"]) == ("/f", "/a b/c", "/a%20b%2Fc")


def test_the_query_is_given_as_it_came() -> None:
    assert variables(query="a=%20&b")["QUERY_STRING"] == "a=%20&b"


def test_content_length_is_there_only_with_a_body() -> None:
    assert "CONTENT_LENGTH" not in variables()
    assert variables(content_length=0)["CONTENT_LENGTH"] == "0"


def test_headers_become_variables() -> None:
    seen = variables(headers=[("X-Some-Thing", "y"), ("Content-Type", "text/x"), ("Content-Length", "7")])
    assert seen["HTTP_X_SOME_THING"] == "y"
    assert seen["CONTENT_TYPE"] == "text/x"
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & seen.keys()


def test_headers_of_one_name_are_joined() -> None:
    seen = variables(headers=[("Accept", "a"), ("Cookie", "x=1"), ("accept", "b"), ("Cookie", "y=2")])
    assert (seen["HTTP_ACCEPT"], seen["HTTP_COOKIE"]) == ("a, b", "x=1; y=2")


@pytest.mark.parametrize("name", ["Proxy", "proxy", "PROXY"])
def test_proxy_never_becomes_http_proxy(name: str) -> None:
    assert "HTTP_PROXY" not in variables(headers=[(name, "http://evil")])


def test_a_header_with_an_underscore_cannot_pose_as_one_with_a_hyphen() -> None:
    seen = variables(headers=[("X_Real_IP", "evil"), ("X-Real-IP", "good")])
    assert seen["HTTP_X_REAL_IP"] == "good"


def test_the_manifests_env_wins_over_headers() -> None:
    assert variables(headers=[("X-Role", "guest")], env={"HTTP_X_ROLE": "admin"})["HTTP_X_ROLE"] == "admin"


def test_path_parameters_are_decoded_variables() -> None:
    assert variables(params={"id": "a%20b"})["FAAS_PARAM_ID"] == "a b"


@pytest.mark.parametrize(
    ("host", "name"),
    [("example.org:99", "example.org"), ("example.org", "example.org"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]")],
)
def test_the_server_name_is_the_host_without_its_port(host: str, name: str) -> None:
    assert variables(host=host)["SERVER_NAME"] == name


@given(
    st.text(max_size=20),
    st.text(max_size=20),
    st.lists(st.tuples(st.from_regex(r"[A-Za-z\-]{1,9}", fullmatch=True), st.text(max_size=9)), max_size=6),
)
def test_no_request_puts_a_nul_or_a_second_entry_into_the_environment(path: str, query: str, headers: Any) -> None:
    seen = variables(raw_path="/f/" + path, query=query, headers=headers)
    assert not any("\0" in value for value in seen.values())


def test_bytes_that_are_no_text_survive() -> None:
    raw = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert variables(headers=[("X-Raw", raw)])["HTTP_X_RAW"] == raw


@pytest.mark.parametrize(
    ("query", "argv"),
    [("", [b"f"]), ("a=b", [b"f"]), ("one+two", [b"f", b"one", b"two"]), ("a%20b+c%00d", [b"f", b"a b", b"cd"])],
)
def test_a_query_without_equals_sign_is_arguments(query: str, argv: list[bytes]) -> None:
    assert arguments("f", query) == argv
