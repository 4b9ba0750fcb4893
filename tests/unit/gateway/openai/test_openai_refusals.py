"""What the endpoints refuse, in OpenAI's error shape."""

from __future__ import annotations

from typing import Any

import pytest
from openai_fakes import FakeModels, Site, card, site

from faas.errors import GrammarInvalidError, ModelOverBudgetError, OptionsInvalidError
from faas.gateway.openai.requests import MAX_BODY_BYTES

USER = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"
EMBED = "/v1/embeddings"
TOOL = {"type": "function", "function": {"name": "f"}}

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {}, "messages", "missing_required_parameter"),
    (CHAT, {"messages": []}, "messages", "invalid_value"),
    (CHAT, {"messages": "hi"}, "messages", "invalid_type"),
    (CHAT, {"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "invalid_value"),
    (CHAT, {"messages": [{"role": "tool", "content": ""}]}, "messages[0]", "unsupported_parameter"),
    (CHAT, {"messages": USER, "temperature": "hot"}, "temperature", "invalid_type"),
    (CHAT, {"messages": USER, "temperature": True}, "temperature", "invalid_type"),
    (CHAT, {"messages": USER, "temperature": -1}, "temperature", "invalid_value"),
    (CHAT, {"messages": USER, "top_p": 2}, "top_p", "invalid_value"),
    (CHAT, {"messages": USER, "presence_penalty": 3}, "presence_penalty", "invalid_value"),
    (CHAT, {"messages": USER, "n": 0}, "n", "invalid_value"),
    (CHAT, {"messages": USER, "n": 129}, "n", "invalid_value"),
    (CHAT, {"messages": USER, "max_tokens": 0}, "max_tokens", "invalid_value"),
    (CHAT, {"messages": USER, "stop": 5}, "stop", "invalid_type"),
    (CHAT, {"messages": USER, "stop": ["x"] * 33}, "stop", "invalid_value"),
    (CHAT, {"messages": USER, "logit_bias": {"hello": 1}}, "logit_bias", "invalid_type"),
    (CHAT, {"messages": USER, "logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    (CHAT, {"messages": USER, "logit_bias": {"99999999999": 1}}, "logit_bias", "invalid_value"),
    (CHAT, {"messages": USER, "top_k": 2**31}, "top_k", "invalid_value"),
    (CHAT, {"messages": USER, "max_tokens": 10**30}, "max_tokens", "invalid_value"),
    (CHAT, {"messages": USER, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
    (CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    (CHAT, {"messages": USER, "functions": [{}]}, "functions", "unsupported_parameter"),
    (CHAT, {"messages": USER, "response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    (
        CHAT,
        {"messages": USER, "response_format": {"type": "json_schema"}},
        "response_format.json_schema.schema",
        "missing_required_parameter",
    ),
    (CHAT, {"messages": USER, "response_format": {"type": "json_object"}, "grammar": "x"}, "grammar", "invalid_value"),
    (CHAT, {"messages": USER, "grammar": "x", "json_schema": {}}, "grammar", "invalid_value"),
    (CHAT, {"messages": USER, "tools": [TOOL]}, "tools", "unsupported_parameter"),
    (CHAT, {"messages": USER, "tool_choice": "required"}, "tool_choice", "invalid_value"),
    (
        CHAT,
        {"messages": USER, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "invalid_value",
    ),
    (
        CHAT,
        {"messages": USER, "tools": [TOOL], "response_format": {"type": "json_object"}},
        "response_format",
        "invalid_value",
    ),
    (CHAT, {"messages": USER, "tools": [{"type": "retrieval"}]}, "tools[0].type", "invalid_value"),
    (COMPLETE, {}, "prompt", "missing_required_parameter"),
    (COMPLETE, {"prompt": []}, "prompt", "invalid_value"),
    (COMPLETE, {"prompt": [1, 2]}, "prompt[0]", "invalid_type"),
    (COMPLETE, {"prompt": [[1, 2]]}, "prompt[0]", "invalid_type"),
    (COMPLETE, {"prompt": "x", "suffix": "y"}, "suffix", "unsupported_parameter"),
    (COMPLETE, {"prompt": "x", "n": 3, "best_of": 2}, "best_of", "invalid_value"),
    (COMPLETE, {"prompt": "x", "best_of": 2, "stream": True}, "best_of", "invalid_value"),
    (COMPLETE, {"prompt": "x", "echo": True, "logprobs": 1}, "echo", "invalid_value"),
    (COMPLETE, {"prompt": ["x"] * 65, "n": 2}, "n", "invalid_value"),
    (EMBED, {}, "input", "missing_required_parameter"),
    (EMBED, {"input": []}, "input", "invalid_value"),
    (EMBED, {"input": ""}, "input", "invalid_value"),
    (EMBED, {"input": ["a", 1]}, "input[1]", "invalid_type"),
    (EMBED, {"input": [[1]]}, "input[0]", "invalid_type"),
    (EMBED, {"input": "a", "dimensions": 2}, "dimensions", "invalid_value"),
    (EMBED, {"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
]


@pytest.mark.parametrize(("path", "body", "blamed"), [(path, body, blamed) for path, body, *blamed in REFUSED])
async def test_a_bad_parameter_is_named(
    api: Site, models: FakeModels, path: str, body: dict[str, Any], blamed: list[str]
) -> None:
    answer = await api.post(path, {"model": "tiny", **body})
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert [answer.error["param"], answer.error["code"]] == blamed
    assert answer.error["message"]
    assert not models.requests


async def test_an_image_is_refused_by_its_place(api: Site) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "http://x/"}}]
    answer = await api.post(CHAT, {"model": "tiny", "messages": [{"role": "user", "content": parts}]})
    assert answer.status == 400
    assert answer.error["param"] == "messages[0].content[1]"
    assert answer.error["code"] == "unsupported_content"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 50_000, b'{"messages": "\\ud800"}'])
@pytest.mark.parametrize("path", [CHAT, COMPLETE, EMBED])
async def test_a_body_that_is_no_json_object_is_refused(api: Site, path: str, body: bytes) -> None:
    answer = await api.post(path, body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
async def test_another_content_type_is_refused(api: Site, content_type: str) -> None:
    answer = await api.post(CHAT, b"{}", Content_Type=content_type)
    assert answer.status == 400
    assert answer.error["code"] == "unsupported_content_type"


async def test_a_compressed_body_is_refused(api: Site) -> None:
    answer = await api.post(CHAT, b"{}", Content_Encoding="gzip")
    assert answer.status == 400
    assert answer.error["code"] == "unsupported_content_encoding"


async def test_a_body_over_the_limit_is_refused(api: Site) -> None:
    answer = await api.post(CHAT, b" " * (MAX_BODY_BYTES + 1))
    assert answer.status == 413
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("depth", [300, 900, 3000])
async def test_deep_nesting_is_served_or_refused_never_a_bug(api: Site, depth: int) -> None:
    schema = b'{"a":' * depth + b"1" + b"}" * depth
    tool = b'{"type":"function","function":{"name":"f","parameters":' + schema + b"}}"
    messages = b'"model":"tooled","messages":[{"role":"user","content":"hi"}]'
    for body in (
        b'{"tools":[' + tool + b'],"tool_choice":"required",' + messages + b"}",
        b'{"json_schema":' + schema + b"," + messages + b"}",
        b'{"chat_template_kwargs":' + schema + b"," + messages + b"}",
    ):
        assert (await api.post(CHAT, body)).status in {200, 400}


async def test_an_unknown_model_is_not_found(api: Site) -> None:
    for path, body in ((CHAT, {"messages": USER}), (COMPLETE, {"prompt": "x"}), (EMBED, {"input": "x"})):
        answer = await api.post(path, {"model": "gpt-4o", **body})
        assert answer.status == 404
        assert answer.error["code"] == "model_not_found"
        assert answer.error["param"] == "model"


async def test_the_model_must_be_named_if_there_are_several(api: Site) -> None:
    answer = await api.post(CHAT, {"messages": USER})
    assert answer.status == 400
    assert answer.error["param"] == "model"
    assert "tiny, tooled" in answer.error["message"]


async def test_the_only_model_need_not_be_named() -> None:
    async with site(FakeModels(card("lonely"))) as api:
        assert (await api.post(CHAT, {"messages": USER})).json()["model"] == "lonely"


async def test_a_model_server_that_is_away_is_503_with_retry_after(api: Site, models: FakeModels) -> None:
    models.away = True
    for answer in (await api.chat(), await api.chat(stream=True), await api.get("/v1/models")):
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "3"
        assert answer.error["type"] == "server_error"
        assert answer.error["code"] == "model_unavailable"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (GrammarInvalidError("no root"), 400, "invalid_request_error"),
        (OptionsInvalidError("top_k"), 400, "invalid_request_error"),
        (ModelOverBudgetError("too large"), 507, "server_error"),
    ],
)
async def test_what_the_model_server_refuses(api: Site, models: FakeModels, error: Any, status: int, kind: str) -> None:
    models.says(error=error)
    answer = await api.chat()
    assert answer.status == status
    assert answer.error["type"] == kind
    assert answer.error["message"] == error.message


async def test_a_host_without_the_models_extra_says_so(api: Site) -> None:
    api.api.missing = "install the models extra"
    answer = await api.chat()
    assert answer.status == 501
    assert answer.error["message"] == "install the models extra"
    assert (await api.get("/v1/models")).json() == {"object": "list", "data": []}
    assert (await api.get("/v1/models/tiny")).status == 404


async def test_too_many_at_once_are_told_to_come_back(models: FakeModels) -> None:
    async with site(models, max_active=0) as api:
        answer = await api.chat()
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert answer.error["code"] == "overloaded"


async def test_a_wrong_method_is_405_and_an_unknown_path_404(api: Site) -> None:
    answer = await api.get(CHAT)
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert (await api.post("/v1/models", {})).headers["Allow"] == "GET"
    answer = await api.get("/v1/assistants")
    assert answer.status == 404
    assert answer.error["code"] == "unknown_url"


async def test_a_bug_of_ours_is_a_500_without_details(api: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(api.models, "generate", broken)
    answer = await api.chat()
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    assert "secret" not in answer.body.decode()
