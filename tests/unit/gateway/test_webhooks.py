"""What is forged is refused whatever form it takes, and what is signed as agreed is not."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from faas.errors import SignatureInvalidError
from faas.gateway.admission import Permits
from faas.gateway.live import Served
from faas.gateway.webhook_paths import hook_at, webhooks_of
from faas.gateway.webhooks import delivery_of, verify
from faas.invocation import Deployment, Kind
from faas.manifest import Webhook, WebhookScheme, manifest_from_builtins

SECRET = "It's a Secret to Everybody"
BODY = b"Hello, World!"
NOW = 1_700_000_000.0
GITHUB = Webhook("/hook", "S")


def headers(**values):
    return CIMultiDict({name.replace("_", "-"): value for name, value in values.items()})


def general(**more):
    return Webhook("/hook", "S", scheme=WebhookScheme.HMAC, **more)


def test_githubs_own_example_is_verified():
    """The values are those of GitHub's documentation."""
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert verify(GITHUB, SECRET, headers(x_hub_signature_256=signature), BODY, NOW) == signature


@pytest.mark.parametrize(
    "signature",
    [
        None,
        "",
        "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e18",
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e1",
        "sha256=",
        "sha1=01",
        "sha256=\udcff",
        "sha256=7571 07ea",
        "sha256=ｆｆ",
    ],
)
def test_missing_and_wrong_signatures_are_refused(signature):
    given_headers = headers() if signature is None else headers(x_hub_signature_256=signature)
    with pytest.raises(SignatureInvalidError):
        verify(GITHUB, SECRET, given_headers, BODY, NOW)


@given(st.text(max_size=200), st.binary(max_size=50))
def test_no_text_at_all_passes_for_a_signature(text, body):
    with pytest.raises(SignatureInvalidError):
        verify(GITHUB, SECRET, headers(x_hub_signature_256=text), body, NOW)


def test_a_signature_of_another_body_or_secret_is_refused():
    signature = "sha256=" + hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()
    for secret, body in ((SECRET, BODY + b"\n"), ("another", BODY)):
        with pytest.raises(SignatureInvalidError):
            verify(GITHUB, secret, headers(x_hub_signature_256=signature), body, NOW)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_general_form_has_algorithms_and_encodings(algorithm, encoding):
    mac = hmac.new(SECRET.encode(), BODY, algorithm).digest()
    text = mac.hex() if encoding == "hex" else base64.b64encode(mac).decode()
    hook = general(header="X-Own", algorithm=algorithm, encoding=encoding)
    assert verify(hook, SECRET, headers(x_own=text), BODY, NOW) == text


def stamped(at, template="v0:{timestamp}:{body}"):
    signed = template.replace("{timestamp}", at).encode().replace(b"{body}", BODY)
    mac = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    return headers(x_signature=f"v0={mac}", x_timestamp=at)


STAMPED = general(prefix="v0=", signed="v0:{timestamp}:{body}", timestamp_header="x-timestamp", tolerance_s=300)


@pytest.mark.parametrize("offset", [-300, 0, 300])
def test_signed_timestamp_within_tolerance_is_taken(offset):
    verify(STAMPED, SECRET, stamped(str(int(NOW) + offset)), BODY, NOW)


@pytest.mark.parametrize("at", [str(int(NOW) - 301), str(int(NOW) + 301), "soon", "", "-1", "1e9", "9" * 30])
def test_timestamp_that_is_old_or_none_is_refused_though_it_is_signed(at):
    with pytest.raises(SignatureInvalidError):
        verify(STAMPED, SECRET, stamped(at), BODY, NOW)


def test_timestamp_that_was_changed_is_refused():
    replayed = stamped(str(int(NOW) - 1000))
    replayed["x-timestamp"] = str(int(NOW))
    with pytest.raises(SignatureInvalidError):
        verify(STAMPED, SECRET, replayed, BODY, NOW)


def test_one_of_several_signatures_is_enough_while_a_secret_is_changed():
    mac = hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()
    given_headers = headers(x_signature=f"v1={'0' * 64}, v1={mac}")
    verify(general(prefix="v1="), SECRET, given_headers, BODY, NOW)


def test_body_that_looks_like_a_template_is_signed_as_it_is():
    body = b"{timestamp}{body}"
    mac = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    verify(general(), SECRET, headers(x_signature=mac), body, NOW)


def test_delivery_is_told_by_its_id_or_else_by_its_signature():
    assert delivery_of(GITHUB, headers(x_github_delivery="guid-1"), "sig") == "id:guid-1"
    without = delivery_of(GITHUB, headers(), "sig")
    assert without.startswith("signature:")
    assert without == delivery_of(GITHUB, headers(x_github_delivery="x" * 1000), "sig")
    assert without != delivery_of(GITHUB, headers(), "other")
    assert delivery_of(general(delivery_header="x-id"), headers(x_id="7"), "sig") == "id:7"


@pytest.mark.parametrize(
    "path",
    ["/gh/hook", "/gh/%68ook", "//gh/hook", "/gh//hook", "/gh/./hook", "/gh/x/../hook", "/gh/hook/", "/gh%2Fhook"],
)
def test_no_spelling_of_a_path_gets_around_the_check(path):
    hooks = webhooks_of(
        manifest_from_builtins({"name": "f", "routes": ["/gh/*"], "webhooks": [{"path": "/gh/hook", "secret": "S"}]})
    )
    assert hook_at(hooks, path) is not None
    assert hook_at(hooks, "/gh/other") is None


def test_older_version_is_guarded_as_the_one_that_routes_serve_also_where_a_split_sets_a_cookie():
    hooks = [{"path": "/hook", "secret": "S"}]
    manifests = [{"name": "f", "routes": ["/hook"], **more} for more in ({}, {"webhooks": hooks})]
    old, new = (
        Served(Deployment("f", version, Kind.COMMAND, "d", "k", "", manifest_from_builtins(manifest)))
        for version, manifest in enumerate(manifests, start=1)
    )
    old.permits = Permits("f")
    assert hook_at(old.webhooks, "/hook") is None
    old.guard_as(new)
    assert hook_at(old.webhooks, "/hook") is not None
    assert hook_at(old.with_cookie("a=b").webhooks, "/hook") is not None
    old.guard_as(old)
    assert hook_at(old.webhooks, "/hook") is None
