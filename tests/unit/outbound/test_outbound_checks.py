"""What of a guest's request is sent, and what is refused before any name is looked up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outbound_origins import Chunks

from faas.outbound.exchange import HOP_BY_HOP, MAX_HEADERS_BYTES, MAX_TARGET_BYTES, Outgoing, Request, check, end_to_end
from faas.outbound.failures import Failure, OutboundError


def checked(**changes: Any) -> Outgoing:
    return check(Request(**{**_PLAIN, **changes}))


def refused(**changes: Any) -> Failure:
    with pytest.raises(OutboundError) as caught:
        checked(**changes)
    return caught.value.failure


_PLAIN: dict[str, Any] = {
    "method": "GET",
    "scheme": "https",
    "authority": "api.example.org",
    "target": "/a?b=c",
    "headers": [],
}


def test_a_plain_request_goes_where_it_says() -> None:
    outgoing = checked()
    assert outgoing.url == "https://api.example.org/a?b=c"
    assert outgoing.origin == "https://api.example.org:443"
    assert (outgoing.host, outgoing.port) == ("api.example.org", 443)


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({"scheme": None}, "https://api.example.org/a?b=c"),
        ({"scheme": "HTTP"}, "http://api.example.org/a?b=c"),
        ({"authority": "API.example.org.:8443"}, "https://api.example.org:8443/a?b=c"),
        ({"authority": "api.example.org:443"}, "https://api.example.org/a?b=c"),
        ({"authority": "[0::1]:81"}, "https://[::1]:81/a?b=c"),
        ({"target": None}, "https://api.example.org/"),
        ({"target": ""}, "https://api.example.org/"),
        ({"target": "?q"}, "https://api.example.org/?q"),
        ({"target": "/a/../%2e?x=%20'\"{}"}, "https://api.example.org/a/../%2e?x=%20'\"{}"),
    ],
)
def test_urls_are_sent_as_they_are(changes: dict[str, Any], url: str) -> None:
    assert checked(**changes).url == url


@pytest.mark.parametrize(
    "authority",
    [
        None,
        "",
        ":80",
        "user@api.example.org",
        "user:password@api.example.org",
        "api.example.org@evil.org",
        "a.org/x",
        "a.org?x",
        "a.org#x",
        "a.org\\evil.org",
        "a.org:0",
        "a.org:99999",
        "a.org:8 0",
        "a b.org",
        "a\r\nHost: b",
        "bücher.example",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "127.1",
        "127.0.0.01",
        "0177.0.0.1",
        "017700000001",
        "1.2.3.4.5",
        "[fe80::1%25eth0]",
        "[::ffff:1.2.3.4.5]",
        "①②⑦.0.0.1",
        "a" * 254,
    ],
)
def test_a_host_that_could_be_read_in_two_ways_is_refused(authority: str | None) -> None:
    assert refused(authority=authority) is Failure.URL_INVALID


@pytest.mark.parametrize("scheme", ["ftp", "file", "ws", "http:", ""])
def test_only_http_and_https_are_spoken(scheme: str) -> None:
    if scheme:
        assert refused(scheme=scheme) is Failure.URL_INVALID
    else:
        assert checked(scheme=scheme).scheme == "https"


@pytest.mark.parametrize("target", ["a", "*", "/a b", "/a#b", "/a\r\nX: y", "/ü", "/\x7f", "http://evil.org/"])
def test_a_target_that_is_no_path_is_refused(target: str) -> None:
    assert refused(target=target) is Failure.URL_INVALID


def test_a_target_has_a_limit() -> None:
    assert checked(target="/" * MAX_TARGET_BYTES)
    assert refused(target="/" * (MAX_TARGET_BYTES + 1)) is Failure.URL_TOO_LONG


@pytest.mark.parametrize("method", ["CONNECT", "connect", "", "GE T", "GET\r\n", "G" * 65, "é"])
def test_methods_that_are_none_or_make_tunnels_are_refused(method: str) -> None:
    assert refused(method=method) is Failure.METHOD_INVALID


def test_headers_of_one_connection_are_not_sent() -> None:
    theirs = [(name.title(), b"x") for name in sorted(HOP_BY_HOP - {"connection"})]
    headers = [*theirs, ("Connection", b"keep-alive, X-Secret"), ("X-Secret", b"1"), ("X-Kept", b"2")]
    assert checked(headers=headers).headers == [("X-Kept", "2")]
    assert end_to_end(headers) == [("X-Kept", b"2")]


def test_headers_that_are_ours_are_not_taken_from_the_guest() -> None:
    headers = [("Host", b"evil"), ("Expect", b"100-continue"), ("X-Faas-Function", b"f"), ("Accept", b"*/*")]
    assert checked(headers=headers).headers == [("Accept", "*/*")]


def test_header_values_keep_their_bytes() -> None:
    headers = [("X-Name", "Jürgen\t1".encode()), ("X-Empty", b""), ("x-name", b"2")]
    assert checked(headers=headers).headers == [("X-Name", "Jürgen\t1"), ("X-Empty", ""), ("X-Name", "2")]


@pytest.mark.parametrize(
    "header",
    [
        ("X", b"a\r\nY: b"),
        ("X", b"a\nb"),
        ("X", b"a\0"),
        ("X", b"\xff\xfe"),
        ("X Y", b"1"),
        ("X:", b"1"),
        ("", b"1"),
        ("Ü", b"1"),
        ("Content-Length", b"+1"),
        ("Content-Length", b"1, 1"),
        ("Content-Length", b"0x1"),
        ("Content-Length", b""),
    ],
)
def test_headers_that_could_end_elsewhere_are_refused(header: tuple[str, bytes]) -> None:
    assert refused(headers=[header]) is Failure.REQUEST_HEADERS_INVALID


def test_two_lengths_are_refused_and_one_said_twice_is_not() -> None:
    lengths = [("Content-Length", b"5"), ("content-length", b"6")]
    assert refused(headers=lengths, body=Chunks()) is Failure.REQUEST_HEADERS_INVALID
    assert checked(headers=[lengths[0]] * 2, body=Chunks()).content_length == 5


def test_a_length_without_a_body_is_refused() -> None:
    assert refused(headers=[("Content-Length", b"5")]) is Failure.REQUEST_BODY_SIZE
    assert checked(headers=[("Content-Length", b"0")]).content_length == 0


def test_headers_have_a_limit_in_all() -> None:
    assert checked(headers=[("X", b"y" * (MAX_HEADERS_BYTES - 1))])
    assert refused(headers=[("X", b"y" * MAX_HEADERS_BYTES)]) is Failure.REQUEST_HEADERS_TOO_LARGE


@given(
    st.text(max_size=20),
    st.none() | st.text(max_size=10),
    st.none() | st.text(max_size=40),
    st.none() | st.text(max_size=40),
    st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=20)), max_size=4),
)
def test_whatever_a_guest_asks_is_sent_on_one_line_each_or_refused(
    method: str, scheme: str | None, authority: str | None, target: str | None, headers: list[tuple[str, bytes]]
) -> None:
    try:
        outgoing = check(Request(method, scheme, authority, target, headers))
    except OutboundError:
        return
    for text in (outgoing.method, outgoing.url, *(part for header in outgoing.headers for part in header)):
        assert not set(text) & set("\r\n\0")
    assert " " not in outgoing.method + outgoing.url
