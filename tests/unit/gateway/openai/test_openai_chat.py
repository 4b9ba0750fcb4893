"""``/v1/chat/completions``: parameters reach the model, answers have OpenAI's shape, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from openai_fakes import FakeModels, Site

from faas.errors import GenerationFailedError, PromptTooLongError
from faas.gateway.openai import exchange
from faas.wire.models import Finish, Sampling

SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}, "required": ["z"]}


async def test_an_answer_has_openais_shape(api: Site) -> None:
    answer = await api.chat()
    body = answer.json()
    assert answer.status == 200
    assert answer.headers["X-Request-Id"] == "req-1"
    assert body.pop("id").startswith("chatcmpl-")
    assert body == {
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "system_fingerprint": "b42-abc",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 2,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


async def test_the_prompt_is_the_models_template(api: Site, models: FakeModels) -> None:
    await api.chat("Why?")
    (request,) = models.requests
    assert request.prompt == b"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert request.model == "tiny"
    assert request.function == "key:anonymous"


async def test_parameters_reach_the_sampler(api: Site, models: FakeModels) -> None:
    await api.chat(
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        seed=5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": -100, "9": 1.5},
        repeat_last_n=8,
        dry_penalty_last_n=9,
        grammar='root ::= "x"',
        stop=["a", "", "b"],
        max_completion_tokens=11,
        max_tokens=12,
        user="somebody",
        a_parameter_of_the_future={"x": 1},
    )
    (request,) = models.requests
    assert request.max_tokens == 11
    assert request.stop == (b"a", b"b")
    assert request.hide_stop
    assert request.sampling == Sampling(
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        seed=5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={7: -100, 9: 1.5},
        last_n_penalty=8,
        dry_last_n=9,
        grammar='root ::= "x"',
    )


async def test_what_is_not_given_is_llama_cpps_default(api: Site, models: FakeModels) -> None:
    await api.chat(temperature=None, stop=None, seed=-1)
    (request,) = models.requests
    assert request.sampling == Sampling()
    assert request.max_tokens == -1


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (Finish.EOG, "stop"),
        (Finish.STOP, "stop"),
        (Finish.LENGTH, "length"),
        (Finish.CONTEXT_FULL, "length"),
    ],
)
async def test_finish_reasons(api: Site, models: FakeModels, finish: Finish, reason: str) -> None:
    models.says(b"x", finish=finish)
    assert (await api.chat()).json()["choices"][0]["finish_reason"] == reason


async def test_text_parts_are_joined(api: Site, models: FakeModels) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    await api.post("/v1/chat/completions", {"messages": [{"role": "developer", "content": parts}], "model": "tiny"})
    assert models.requests[0].prompt.startswith(b"<|im_start|>system\na\nb<|im_end|>")


async def test_choices_run_side_by_side_each_with_its_own_seed(api: Site, models: FakeModels) -> None:
    models.says(b"one")
    models.says(b"two", b"!", finish=Finish.LENGTH)
    body = (await api.chat(n=2, seed=40)).json()
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in body["choices"]] == [
        (0, "one", "stop"),
        (1, "two!", "length"),
    ]
    assert [request.sampling.seed for request in models.requests] == [40, 41]
    assert body["usage"]["prompt_tokens"] == 7
    assert body["usage"]["completion_tokens"] == 3


async def test_a_character_that_is_cut_in_two_comes_whole(api: Site, models: FakeModels) -> None:
    raw = "né🙂".encode()
    models.says(*(raw[i : i + 1] for i in range(len(raw))))
    events = (await api.chat(stream=True)).events()
    texts = [event["choices"][0]["delta"].get("content") for event in events[:-1]]
    assert [text for text in texts if text] == ["n", "é", "🙂"]


async def test_a_character_that_never_ends_becomes_a_replacement_character(api: Site, models: FakeModels) -> None:
    models.says(b"a", b"\xf0\x9f", finish=Finish.LENGTH)
    assert (await api.chat()).json()["choices"][0]["message"]["content"] == "a\ufffd"


# --- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_begins_with_the_role_and_ends_with_done(api: Site) -> None:
    answer = await api.chat(stream=True)
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["X-Request-Id"] == "req-1"
    events = answer.events()
    assert events[-1] is None
    chunks = events[:-1]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Hello"}, None),
        ({"content": " there"}, None),
        ({}, "stop"),
    ]


async def test_each_token_leaves_when_it_comes(api: Site, models: FakeModels) -> None:
    models.holds()
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "model": "tiny"}
    posted = asyncio.create_task(_collect(api, body))
    held = await models.started.get()
    held.say(b"first")
    events = await posted
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": ""},
        {"content": "first"},
    ]


async def _collect(api: Site, body: Any) -> list[Any]:
    """Read the first two events of a stream that has not ended."""
    async with api.streaming("/v1/chat/completions", body) as next_event:
        return [await next_event(), await next_event()]


async def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(api: Site) -> None:
    events = (await api.chat(stream=True, stream_options={"include_usage": True})).events()
    assert all(event["usage"] is None for event in events[:-2])
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


async def test_streamed_choices_are_interleaved(api: Site, models: FakeModels) -> None:
    models.holds(2)
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "n": 2, "model": "tiny"}

    async def read() -> list[tuple[int, str]]:
        seen: list[tuple[int, str]] = []
        async with api.streaming("/v1/chat/completions", body) as next_event:
            while (event := await next_event()) is not None:
                choice = event["choices"][0]
                if choice["delta"].get("content"):
                    seen.append((choice["index"], choice["delta"]["content"]))
                    turns.put_nowait(None)
        return seen

    turns: asyncio.Queue[None] = asyncio.Queue()
    reading = asyncio.create_task(read())
    first, second = await models.started.get(), await models.started.get()
    for held, text in ((second, b"a"), (first, b"b"), (second, b"c"), (first, b"d")):
        held.say(text)
        await turns.get()
    first.end()
    second.end()
    assert await reading == [(1, "a"), (0, "b"), (1, "c"), (0, "d")]


async def test_an_error_before_the_first_token_has_its_status(api: Site, models: FakeModels) -> None:
    models.says(error=PromptTooLongError("the prompt has 999 tokens"))
    answer = await api.chat(stream=True)
    assert answer.status == 400
    assert answer.error["code"] == "context_length_exceeded"


async def test_an_error_in_mid_stream_is_an_event_and_the_end(api: Site, models: FakeModels) -> None:
    models.says(b"Hel", error=GenerationFailedError("decoding failed"))
    answer = await api.chat(stream=True)
    assert answer.status == 200
    last = answer.events()[-1]
    assert last == {
        "error": {"message": "decoding failed", "type": "server_error", "param": None, "code": "generation_failed"}
    }


async def test_one_failing_choice_ends_the_others(api: Site, models: FakeModels) -> None:
    models.holds()
    models.says(error=GenerationFailedError("decoding failed"))
    answer = await api.chat(n=2)
    assert answer.status == 500
    assert models.cancelled.get_nowait() == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_cancels_its_generations(api: Site, models: FakeModels, stream: bool) -> None:
    models.holds(2)
    asking = asyncio.create_task(api.chat(stream=stream, n=2))
    (await models.started.get()).say(b"tok")
    await models.started.get()
    asking.cancel()
    assert {await models.cancelled.get(), await models.cancelled.get()} == {1, 2}
    await api.api.wait_idle()


async def test_a_client_that_does_not_read_is_dropped(
    api: Site, models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "STALL_S", 0.05)
    models.holds()
    body = json.dumps({"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    _, port = api.url.rsplit(":", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port), limit=1024)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )
    held = await models.started.get()
    held.say(*[b"x" * 100_000] * 200)
    assert await models.cancelled.get() == held.generation.id
    await api.api.wait_idle()
    assert not (await reader.read()).endswith(b"0\r\n\r\n")
    writer.close()


# --- formats --------------------------------------------------------------------------------------------------------


async def test_a_json_schema_constrains_and_keeps_its_order(api: Site, models: FakeModels) -> None:
    await api.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}})
    assert models.requests[0].sampling.json_schema == json.dumps(SCHEMA, separators=(",", ":"))


async def test_json_object_allows_any_object(api: Site, models: FakeModels) -> None:
    await api.chat(response_format={"type": "json_object"})
    assert json.loads(models.requests[0].sampling.json_schema) == {"type": "object"}


async def test_the_text_format_constrains_nothing(api: Site, models: FakeModels) -> None:
    await api.chat(response_format={"type": "text"})
    assert models.requests[0].sampling == Sampling()


# --- logprobs -------------------------------------------------------------------------------------------------------

PROBS = [
    ((3, b"Hi", -0.1), (4, b"Yo", -3.0), (3, b"Hi", -0.1), (5, b"He", -2.0)),
    ((6, b"\xf0\x9f", -math.inf), (7, b"!", -0.2)),
]


async def test_logprobs(api: Site, models: FakeModels) -> None:
    models.says(b"Hi", b"\xf0\x9f", probs=PROBS)
    body = (await api.chat(logprobs=True, top_logprobs=2)).json()
    assert models.requests[0].n_probs == 3
    assert body["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "Hi",
                "logprob": -0.1,
                "bytes": [72, 105],
                "top_logprobs": [
                    {"token": "Hi", "logprob": -0.1, "bytes": [72, 105]},
                    {"token": "He", "logprob": -2.0, "bytes": [72, 101]},
                ],
            },
            {
                "token": "\ufffd",
                "logprob": -9999.0,
                "bytes": [240, 159],
                "top_logprobs": [
                    {"token": "!", "logprob": -0.2, "bytes": [33]},
                    {"token": "\ufffd", "logprob": -9999.0, "bytes": [240, 159]},
                ],
            },
        ],
        "refusal": None,
    }


async def test_streamed_logprobs_come_with_their_token(api: Site, models: FakeModels) -> None:
    models.says(b"Hi", b"\xf0\x9f", probs=PROBS)
    events = (await api.chat(logprobs=True, stream=True)).events()
    got = [event["choices"][0]["logprobs"] for event in events[:-1]]
    assert [len(one["content"]) for one in got if one] == [1, 1]
    assert all(token["top_logprobs"] == [] for one in got if one for token in one["content"])
