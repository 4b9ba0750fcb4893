"""API keys: who may call, and what is counted and limited by key."""

from __future__ import annotations

import hashlib

import pytest
from openai_fakes import FakeModels, site

from faas.errors import InvalidApiKeyError
from faas.gateway.openai.keys import ANONYMOUS, Caller, KeyRing
from faas.wire.messages import ApiKey


def key(name: str, secret: str, tokens_per_minute: int = 0) -> ApiKey:
    return ApiKey(name, hashlib.sha256(secret.encode()).hexdigest(), tokens_per_minute)


RING = KeyRing([key("ci", "sk-ci"), key("bot", "sk-bot", 60)])


@pytest.mark.parametrize("header", ["Bearer sk-bot", "bearer  sk-bot "])
def test_a_key_names_its_caller(header: str) -> None:
    assert RING.identify(header, "10.0.0.1") == Caller("bot", 60)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer sk-other", "Basic sk-bot", "sk-bot", "Bearer \udcff"]
)
def test_anything_else_is_refused_even_from_this_machine(header: str) -> None:
    with pytest.raises(InvalidApiKeyError):
        RING.identify(header, "127.0.0.1")


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "", None])
def test_without_keys_this_machine_may_call(peer: str | None) -> None:
    assert KeyRing().identify("Bearer whatever", peer) == Caller(ANONYMOUS)


@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "somewhere"])
def test_without_keys_other_machines_may_not_unless_told_so(peer: str) -> None:
    with pytest.raises(InvalidApiKeyError, match="no API keys"):
        KeyRing().identify("", peer)
    assert KeyRing(open_to_all=True).identify("", peer) == Caller(ANONYMOUS)


def test_keys_are_replaced_all_at_once() -> None:
    ring = KeyRing([key("a", "sk-a")])
    ring.replace([key("b", "sk-b")])
    assert ring.identify("Bearer sk-b", None).name == "b"
    with pytest.raises(InvalidApiKeyError):
        ring.identify("Bearer sk-a", None)


async def test_a_missing_or_wrong_key_is_401_on_every_path() -> None:
    async with site(FakeModels(), RING) as api:
        for answer in (await api.chat(), await api.get("/v1/models"), await api.get("/v1/nowhere")):
            assert answer.status == 401
            assert answer.error["code"] == "invalid_api_key"
            assert answer.error["type"] == "invalid_request_error"
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert answer.headers["X-Request-Id"] == "req-1"


async def test_tokens_are_counted_and_served_under_the_keys_name() -> None:
    models = FakeModels()
    async with site(models, RING) as api:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "n": 2}
        await api.post("/v1/chat/completions", body, Authorization="Bearer sk-ci")
        assert models.requests[0].function == "key:ci"
        assert api.meter.stats() == {"key:ci": {"prompt_tokens": 7, "generated_tokens": 4, "model_requests": 1}}


async def test_a_key_over_its_limit_is_429_until_time_has_passed() -> None:
    models = FakeModels()
    async with site(models, RING) as api:

        async def ask() -> tuple[int, str | None, str | None]:
            body = {"model": "tiny", "prompt": "x"}
            answer = await api.post("/v1/completions", body, Authorization="Bearer sk-bot")
            code = answer.error["code"] if answer.status != 200 else None
            return answer.status, answer.headers.get("Retry-After"), code

        models.says(*([b"x"] * 73))  # 7 prompt tokens and 73 more: 20 beyond the limit of 60
        assert (await ask())[0] == 200
        assert await ask() == (429, "21", "rate_limit_exceeded")
        api.clock.now += 21
        assert (await ask())[0] == 200
        # The other key is not touched.
        assert (await api.post("/v1/completions", {"prompt": "x"}, Authorization="Bearer sk-ci")).status == 200
