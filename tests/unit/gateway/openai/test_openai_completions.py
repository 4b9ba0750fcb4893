"""``/v1/completions``, ``/v1/embeddings`` and ``/v1/models``."""

from __future__ import annotations

import base64
import struct

import pytest
from openai_fakes import FakeModels, Site

from faas.wire.models import Finish

COMPLETE = "/v1/completions"
PROBS = [((1, b"a", -1.0), (2, b"b", -2.0)), ((3, "é".encode(), -0.5),)]


async def test_a_completion_has_openais_shape(api: Site, models: FakeModels) -> None:
    models.says(b"b", b"c", finish=Finish.LENGTH)
    body = (await api.post(COMPLETE, {"model": "tiny", "prompt": "a"})).json()
    assert body.pop("id").startswith("cmpl-")
    assert body == {
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "system_fingerprint": "b42-abc",
        "choices": [{"index": 0, "text": "bc", "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 2,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }
    (request,) = models.requests
    assert request.prompt == b"a"
    assert request.add_special
    assert request.max_tokens == 16


@pytest.mark.parametrize(
    ("given", "limit"), [({"max_tokens": 5}, 5), ({"n_predict": -1}, -1), ({"max_tokens": None}, 16)]
)
async def test_max_tokens(api: Site, models: FakeModels, given: dict[str, int], limit: int) -> None:
    await api.post(COMPLETE, {"model": "tiny", "prompt": "a", **given})
    assert models.requests[0].max_tokens == limit


async def test_choices_of_several_prompts_are_numbered_through(api: Site, models: FakeModels) -> None:
    for text in (b"1", b"2", b"3", b"4"):
        models.says(text)
    body = (await api.post(COMPLETE, {"model": "tiny", "prompt": ["a", "b"], "n": 2, "echo": True})).json()
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "a1"), (1, "a2"), (2, "b3"), (3, "b4")]
    assert body["usage"]["prompt_tokens"] == 14
    assert api.meter.stats() == {"key:anonymous": {"prompt_tokens": 14, "generated_tokens": 4, "model_requests": 1}}


async def test_best_of_keeps_the_likeliest(api: Site, models: FakeModels) -> None:
    for text, logprob in ((b"bad", -3.0), (b"best", -0.1), (b"good", -1.0)):
        models.says(text, probs=[((1, text, logprob),)])
    body = (await api.post(COMPLETE, {"model": "tiny", "prompt": "a", "n": 2, "best_of": 3})).json()
    assert [(c["index"], c["text"], c["logprobs"]) for c in body["choices"]] == [(0, "best", None), (1, "good", None)]
    assert body["usage"]["completion_tokens"] == 3
    assert body["usage"]["prompt_tokens"] == 7


async def test_logprobs_have_the_older_shape(api: Site, models: FakeModels) -> None:
    models.says(b"a", "é".encode(), probs=PROBS)
    body = (await api.post(COMPLETE, {"model": "tiny", "prompt": "a", "logprobs": 2})).json()
    assert models.requests[0].n_probs == 3
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["a", "é"],
        "token_logprobs": [-1.0, -0.5],
        "top_logprobs": [{"b": -2.0, "a": -1.0}, {"é": -0.5}],
        "text_offset": [0, 1],
    }


async def test_a_stream_of_completions(api: Site, models: FakeModels) -> None:
    models.says(b"a", "é".encode(), probs=PROBS)
    asked = {
        "model": "tiny", "prompt": "P", "stream": True, "logprobs": 1, "stream_options": {"include_usage": True}
    }  # fmt: skip
    events = (await api.post(COMPLETE, asked)).events()
    assert events.pop() is None
    assert events.pop()["usage"]["total_tokens"] == 9
    choices = [event["choices"][0] for event in events]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("a", None), ("é", None), ("", "stop")]
    assert [choice["logprobs"]["text_offset"] for choice in choices[:2]] == [[0], [1]]


async def test_an_echo_leads_the_stream(api: Site) -> None:
    asked = {"model": "tiny", "prompt": "P", "stream": True, "echo": True}
    events = (await api.post(COMPLETE, asked)).events()[:-1]
    assert "".join(event["choices"][0]["text"] for event in events) == "PHello there"


async def test_a_stop_string_across_pieces_is_the_model_servers_to_hide(api: Site, models: FakeModels) -> None:
    models.says(b"one", finish=Finish.STOP)
    body = (await api.post(COMPLETE, {"model": "tiny", "prompt": "a", "stop": "two"})).json()
    assert models.requests[0].stop == (b"two",)
    assert models.requests[0].hide_stop
    assert body["choices"][0]["finish_reason"] == "stop"


async def test_embeddings(api: Site, models: FakeModels) -> None:
    body = (await api.post("/v1/embeddings", {"model": "tiny", "input": ["a", "b"], "dimensions": 3})).json()
    assert body == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.5, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.5, 1.0]},
        ],
        "model": "tiny",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    assert models.embeds[0].inputs == (b"a", b"b")
    assert api.meter.stats()["key:anonymous"]["prompt_tokens"] == 8


async def test_embeddings_as_base64(api: Site) -> None:
    asked = {"model": "tiny", "input": "a", "encoding_format": "base64"}
    body = (await api.post("/v1/embeddings", asked)).json()
    assert struct.unpack("<3f", base64.b64decode(body["data"][0]["embedding"])) == (1.0, 0.5, 0.0)


async def test_models_are_listed_without_their_paths(api: Site) -> None:
    answer = await api.get("/v1/models")
    assert [model["id"] for model in answer.json()["data"]] == ["tiny", "tooled"]
    assert b"secret" not in answer.body
    one = (await api.get("/v1/models/tiny")).json()
    assert one == answer.json()["data"][0]
    assert one["object"] == "model"
    assert one["meta"]["n_ctx"] == 256
    assert (await api.get("/v1/models/none")).error["code"] == "model_not_found"
