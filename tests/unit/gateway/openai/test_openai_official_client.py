"""The official Python client understands what the endpoints answer; the model is scripted."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai_fakes import FakeModels, Site

from faas.errors import GenerationFailedError, QuotaExceededError

openai = pytest.importorskip("openai")

HI: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
async def client(api: Site) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


async def test_chat(client: Any) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HI, seed=1, temperature=0)
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer._request_id == "req-1"


async def test_stream(client: Any) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello there"
    assert chunks[-1].usage.total_tokens == 9


async def test_stream_helper_gathers_a_tool_call(client: Any, models: FakeModels) -> None:
    models.says(b"<tool_call>", b'{"name": "clock", "arguments": {}}', b"</tool_call>")
    async with client.chat.completions.stream(model="tooled", messages=HI, tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("clock", "{}")
    assert final.choices[0].finish_reason == "tool_calls"


async def test_json_schema(client: Any, models: FakeModels) -> None:
    models.says(b'{"z": 1}')
    schema = {"type": "object", "properties": {"z": {"type": "integer"}}}
    answer = await client.chat.completions.create(
        model="tiny",
        messages=HI,
        response_format={"type": "json_schema", "json_schema": {"name": "z", "schema": schema, "strict": True}},
    )
    assert json.loads(answer.choices[0].message.content) == {"z": 1}
    assert json.loads(models.requests[0].sampling.json_schema) == schema


async def test_llama_cpps_parameters_as_extra_body(client: Any, models: FakeModels) -> None:
    await client.chat.completions.create(model="tiny", messages=HI, extra_body={"top_k": 7, "min_p": 0.2})
    assert models.requests[0].sampling.top_k == 7
    assert models.requests[0].sampling.min_p == 0.2


async def test_completions(client: Any) -> None:
    answer = await client.completions.create(model="tiny", prompt="a", echo=True)
    assert answer.choices[0].text == "aHello there"
    stream = await client.completions.create(model="tiny", prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello there"


async def test_embeddings_are_asked_for_as_base64_and_come_as_numbers(client: Any) -> None:
    answer = await client.embeddings.create(model="tiny", input=["a"])
    assert list(answer.data[0].embedding) == [1.0, 0.5, 0.0]
    raw = await client.embeddings.create(model="tiny", input="a", encoding_format="base64")
    assert len(base64.b64decode(raw.data[0].embedding)) == 12


async def test_models(client: Any) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny", "tooled"]
    assert (await client.models.retrieve("tiny")).owned_by == "faas"


async def test_errors_become_the_clients_own(client: Any, models: FakeModels) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        await client.chat.completions.create(model="none", messages=HI)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="tiny", messages=HI, top_p=7)
    assert bad.value.param == "top_p"
    models.says(error=QuotaExceededError("enough", retry_after_s=3))
    with pytest.raises(openai.RateLimitError):
        await client.chat.completions.create(model="tiny", messages=HI)
    models.away = True
    with pytest.raises(openai.InternalServerError) as away:
        await client.chat.completions.create(model="tiny", messages=HI)
    assert away.value.status_code == 503


async def test_an_error_in_mid_stream_is_raised_by_the_client(client: Any, models: FakeModels) -> None:
    models.says(b"Hel", error=GenerationFailedError("decoding failed"))
    stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
    seen = []
    with pytest.raises(openai.APIError, match="decoding failed"):  # noqa: PT012 - it ends within the loop
        async for chunk in stream:
            seen.append(chunk.choices[0].delta.content)
    assert seen == ["", "Hel"]
