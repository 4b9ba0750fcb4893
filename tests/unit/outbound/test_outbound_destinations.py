"""Entries of ``capabilities.outbound``: what each covers, and which are refused at deploy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.destinations import AllowList, parse_address, parse_destination, parse_host, split_authority
from faas.errors import ManifestError
from faas.manifest import manifest_from_builtins, manifest_from_toml, manifest_to_builtins

Place = tuple[str, str, int]


@pytest.mark.parametrize(
    ("entry", "covered", "not_covered"),
    [
        (
            "api.github.com",
            [("https", "api.github.com", 443), ("http", "api.github.com", 80)],
            [("https", "github.com", 443), ("https", "x.api.github.com", 443), ("https", "api.github.com", 80)],
        ),
        ("API.GitHub.com.", [("https", "api.github.com", 443)], []),
        ("https://a.org", [("https", "a.org", 443)], [("http", "a.org", 80), ("http", "a.org", 443)]),
        ("http://a.org", [("http", "a.org", 80)], [("https", "a.org", 443)]),
        ("a.org:8443", [("https", "a.org", 8443), ("http", "a.org", 8443)], [("https", "a.org", 443)]),
        ("https://a.org:8443", [("https", "a.org", 8443)], [("http", "a.org", 8443)]),
        (
            "*.example.org",
            [("https", "a.example.org", 443), ("http", "a.b.example.org", 80)],
            [("https", "example.org", 443), ("https", "badexample.org", 443), ("https", "a.example.org.evil", 443)],
        ),
        ("https://*.example.org:81", [("https", "a.example.org", 81)], [("https", "a.example.org", 443)]),
        ("http://127.0.0.1:9000", [("http", "127.0.0.1", 9000)], [("http", "127.0.0.1", 80)]),
        ("[::1]:8080", [("http", "::1", 8080), ("https", "::1", 8080)], [("http", "::1", 80)]),
        ("[0:0::1]", [("http", "::1", 80)], []),
        ("localhost:8080", [("http", "localhost", 8080)], [("http", "127.0.0.1", 8080)]),
        ("*", [("http", "a.org", 1), ("https", "10.0.0.1", 65535), ("https", "::1", 443)], []),
        ("https://*", [("https", "a.org", 443)], [("https", "a.org", 444), ("http", "a.org", 80)]),
        ("*:8443", [("https", "a.org", 8443), ("http", "a.org", 8443)], [("https", "a.org", 443)]),
    ],
)
def test_an_entry_covers_what_it_says_and_nothing_else(
    entry: str, covered: list[Place], not_covered: list[Place]
) -> None:
    allowed = AllowList([entry])
    assert all(allowed.allows(*place) for place in covered)
    assert not any(allowed.allows(*place) for place in not_covered)


def test_without_entries_nothing_is_allowed() -> None:
    assert not AllowList(()).allows("https", "api.github.com", 443)


@pytest.mark.parametrize(
    ("entry", "place", "named"),
    [
        ("localhost:81", ("http", "localhost", 81), True),
        ("localhost:81", ("http", "localhost", 80), False),
        ("10.0.0.5", ("https", "10.0.0.5", 443), True),
        ("*", ("http", "localhost", 80), False),
        ("https://*", ("https", "localhost", 443), False),
        ("*.local", ("http", "a.local", 80), False),
    ],
)
def test_only_an_entry_without_wildcard_names_a_host(entry: str, place: Place, named: bool) -> None:
    assert AllowList([entry]).names(*place) is named


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "ftp://a.org",
        "://a.org",
        "https://",
        "a.org/path",
        "https://a.org/",
        "user@a.org",
        "a.org:0",
        "a.org:65536",
        "a.org:https",
        "a.org:",
        "a..org",
        "-a.org",
        "a.*.org",
        "*a.org",
        "**",
        "*.",
        "*.*",
        "*.10.0.0.1",
        "10.0.0.0/8",
        "10.0.0",
        "010.0.0.1",
        "0x7f.1",
        "2130706433",
        "256.0.0.1",
        "::1",
        "[::1",
        "[::g]",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "bücher.example",
        "a b.org",
        "a.org\n",
        "x" * 64 + ".org",
    ],
)
def test_a_wrong_entry_refuses_the_deploy_and_is_named(entry: str) -> None:
    raw = {"name": "f", "capabilities": {"outbound": [entry]}}
    if entry == "a.org\n":  # blanks around it are nobody's mistake
        manifest_from_builtins(raw)
        return
    with pytest.raises(ManifestError) as caught:
        manifest_from_builtins(raw)
    assert caught.value.message.startswith(f"capabilities.outbound: {entry[:200]!r}: ")
    assert "write [scheme://]host[:port]" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_manifest_keeps_its_entries() -> None:
    manifest = manifest_from_toml('name = "f"\n[capabilities]\noutbound = ["*.example.org", "localhost:8080"]')
    assert manifest.capabilities.outbound == ("*.example.org", "localhost:8080")
    assert manifest_from_builtins(manifest_to_builtins(manifest)) == manifest
    assert manifest_from_toml('name = "f"').capabilities.outbound == ()


@given(st.text(max_size=80))
def test_any_text_is_an_entry_or_refused(text: str) -> None:
    try:
        entry = parse_destination(text)
    except ManifestError:
        return
    assert entry.host == "" or parse_host(_written(entry.host.removeprefix("."))) == entry.host.removeprefix(".")


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_can_be_named(address: object, port: int) -> None:
    host = str(parse_address(str(address)))
    assert AllowList([f"http://{_written(host)}:{port}"]).names("http", host, port)


@given(st.text(alphabet="0123456789abcdefx.[]:@/*%", max_size=40))
def test_what_looks_like_an_authority_is_split_or_refused(text: str) -> None:
    try:
        host, port = split_authority(text)
    except ValueError:
        return
    assert text == (host if port is None else f"{host}:{text.rpartition(':')[2]}")
    assert port is None or 1 <= port <= 65535


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host
