"""Promises of credentials: for the very host, in the place of what the guest sent, and shown to nobody."""

from __future__ import annotations

from typing import Any

import pytest

from faas.errors import ManifestError
from faas.manifest import Credential, manifest_from_builtins
from faas.outbound.credentials import Credentials
from faas.outbound.failures import Failure, OutboundError

SECRET = "hunter2"


def credentials(*entries: Credential, secret: str | None = SECRET) -> Credentials:
    def lookup(function: str, name: str) -> str | None:
        return secret if (function, name) == ("f", "K") else None

    return Credentials("f", entries, lookup)


@pytest.mark.parametrize(
    ("host", "place", "applies"),
    [
        ("api.test", ("https", "api.test", 443), True),
        ("api.test", ("http", "api.test", 80), False),  # not in the clear unless it says so
        ("http://api.test", ("http", "api.test", 80), True),
        ("http://api.test", ("https", "api.test", 443), False),
        ("api.test", ("https", "api.test", 8443), False),
        ("api.test:8443", ("https", "api.test", 8443), True),
        ("API.test.", ("https", "api.test", 443), True),
        ("api.test", ("https", "sub.api.test", 443), False),
        ("api.test", ("https", "api.test.evil.test", 443), False),
        ("[::1]:80", ("https", "::1", 80), True),
    ],
)
def test_a_credential_is_for_one_scheme_host_and_port(host: str, place: tuple[str, str, int], applies: bool) -> None:
    added = credentials(Credential(host, "K")).added(*place)
    assert [(one.name, one.value) for one in added] == ([("authorization", f"Bearer {SECRET}")] if applies else [])


def test_several_headers_may_be_added_each_in_its_format() -> None:
    both = credentials(Credential("a.test", "K", "X-Key", "{}"), Credential("a.test", "K", format="Basic {}=="))
    added = both.added("https", "a.test", 443)
    assert [(one.name, one.value) for one in added] == [("x-key", SECRET), ("authorization", f"Basic {SECRET}==")]


def test_no_repr_shows_a_value() -> None:
    some = credentials(Credential("a.test", "K"))
    assert SECRET not in repr(some) + repr(some.added("https", "a.test", 443))


@pytest.mark.parametrize("secret", [None, "a\nb", "a\x00b", "a\r"])
def test_what_can_not_be_sent_is_denied_without_being_shown(secret: str | None) -> None:
    with pytest.raises(OutboundError, match="faas secrets set f K") as caught:
        credentials(Credential("a.test", "K"), secret=secret).added("https", "a.test", 443)
    assert caught.value.failure is Failure.DENIED
    assert secret is None or secret not in str(caught.value)


def manifest(*entries: dict[str, Any], outbound: tuple[str, ...] = ("a.test",)) -> Any:
    return manifest_from_builtins({"name": "f", "capabilities": {"outbound": outbound, "credentials": list(entries)}})


@pytest.mark.parametrize(
    ("entry", "outbound"),
    [
        ({"host": "a.test"}, ("a.test",)),
        ({"host": "a.test"}, ("*.test", "b.test")),
        ({"host": "http://a.test:81"}, ("http://a.test:81",)),
        ({"host": "https://a.test"}, ("*",)),
        ({"host": "a.test", "header": "X-Api-Key", "format": "{}"}, ("https://a.test",)),
    ],
)
def test_a_credential_for_a_host_that_may_be_reached_is_taken(entry: dict[str, Any], outbound: tuple[str, ...]) -> None:
    assert manifest({"secret": "K", **entry}, outbound=outbound).capabilities.credentials[0].secret == "K"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"host": "b.test", "secret": "K"}], "not covered by capabilities.outbound"),
        ([{"host": "http://a.test:81", "secret": "K"}], "not covered by capabilities.outbound"),
        ([{"host": "*.test", "secret": "K"}], "not one host"),
        ([{"host": "*", "secret": "K"}], "not one host"),
        ([{"host": "a b", "secret": "K"}], "not a host name"),
        ([{"host": "a.test", "secret": "K", "format": "Bearer"}], "needs {} once"),
        ([{"host": "a.test", "secret": "K", "format": "{} {}"}], "needs {} once"),
        ([{"host": "a.test", "secret": "K", "format": "{}\n"}], "printable ASCII"),
        ([{"host": "a.test", "secret": "K", "header": "Host"}], "the host's own"),
        ([{"host": "a.test", "secret": "K", "header": "a b"}], "header"),
        ([{"host": "a.test", "secret": "no name"}], "secret"),
        ([{"host": "a.test", "secret": "K"}, {"host": "https://a.test:443", "secret": "L"}], "two credentials"),
    ],
)
def test_a_credential_that_could_not_be_sent_is_refused_at_deploy(entries: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ManifestError, match=said.replace("{", r"\{").replace("}", r"\}")):
        manifest(*entries)
