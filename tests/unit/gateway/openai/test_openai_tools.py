"""Tool calls: offered by the template, forced by a grammar, found in what the model writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_fakes import FakeModels, Site

from faas.gateway.openai.requests import Tool, decode
from faas.gateway.openai.tools import ToolFinder, call_schema
from faas.wire.models import Finish

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


async def ask(api: Site, **body: Any) -> Any:
    return (await api.chat(model="tooled", tools=[WEATHER, CLOCK], **body)).json()


async def test_the_template_gets_the_tools(api: Site, models: FakeModels) -> None:
    await ask(api)
    (request,) = models.requests
    offered = request.prompt.partition(b"<tools>\n")[2].partition(b"\n</tools>")[0].splitlines()
    assert [json.loads(line) for line in offered] == [WEATHER, CLOCK]
    assert request.sampling.json_schema == ""


async def test_a_tagged_call_becomes_a_tool_call(api: Site, models: FakeModels) -> None:
    models.says(*(CALL[i : i + 3].encode() for i in range(0, len(CALL), 3)))
    choice = (await ask(api))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


async def test_text_before_calls_stays_text(api: Site, models: FakeModels) -> None:
    models.says(b"Let me see.\n", CALL.encode(), b"\n", b'<tool_call>{"name": "clock"}</tool_call>', b"\n")
    message = (await ask(api))["choices"][0]["message"]
    assert message["content"] == "Let me see."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Köln"}'},
        {"name": "clock", "arguments": "{}"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "weather", "parameters": {"city": "Köln"}}',
        ' [{"name": "weather", "arguments": {"city": "Köln"}}]',
        '{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}',
        '{"type": "function", "function": "weather", "parameters": {"city": "Köln"}}',
        '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}',
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Köln\\"}"}</tool_call>',
    ],
)
async def test_other_ways_to_write_a_call(api: Site, models: FakeModels, text: str) -> None:
    models.says(text.encode())
    (choice,) = (await ask(api))["choices"]
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Köln"}
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "unknown", "arguments": {}}',
        '{"city": "Köln"}',
        "[]",
        "{not json",
        "<tool_call>not json</tool_call> and more",
        "a < b, and <tool_cal",
        '<tool_call>{"name": "weather", "arguments": {"ci',
        '<tool_call>{"name": "weather", "arguments": 5}</tool_call>',
    ],
)
async def test_what_is_no_call_is_text(api: Site, models: FakeModels, text: str) -> None:
    models.says(text.encode(), finish=Finish.LENGTH)
    (choice,) = (await ask(api))["choices"]
    assert choice["message"]["content"] == text
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "length"


async def test_a_streamed_call_comes_whole_and_its_tags_never_show(api: Site, models: FakeModels) -> None:
    text = f"Well {CALL}"
    models.says(*(text[i : i + 4].encode() for i in range(0, len(text), 4)))
    events = (await api.chat(model="tooled", tools=[WEATHER], stream=True)).events()[:-1]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == "Well "
    (calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert calls[0].pop("id")
    assert calls == [{"index": 0, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_parallel_calls_can_be_switched_off(api: Site, models: FakeModels) -> None:
    models.says(CALL.encode(), CALL.encode())
    (choice,) = (await ask(api, parallel_tool_calls=False))["choices"]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["message"]["content"] is None


async def test_required_forces_a_call_of_any_tool(api: Site, models: FakeModels) -> None:
    models.says(b'{"name": "clock", "arguments": {}}')
    (choice,) = (await ask(api, tool_choice="required"))["choices"]
    (request,) = models.requests
    assert request.prompt.endswith(b"<|im_start|>assistant\n<tool_call>\n")
    forms = json.loads(request.sampling.json_schema)["anyOf"]
    assert [form["properties"]["name"] for form in forms] == [{"const": "weather"}, {"const": "clock"}]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "clock"


async def test_a_named_tool_is_the_only_one(api: Site, models: FakeModels) -> None:
    models.says(b'{"name": "clock", "arguments": {}}')
    await ask(api, tool_choice={"type": "function", "function": {"name": "clock"}})
    (request,) = models.requests
    assert json.loads(request.sampling.json_schema)["properties"]["name"] == {"const": "clock"}
    assert b"weather" not in request.prompt


async def test_none_offers_no_tools_and_finds_none(api: Site, models: FakeModels) -> None:
    models.says(CALL.encode())
    (choice,) = (await ask(api, tool_choice="none"))["choices"]
    assert b"<tools>" not in models.requests[0].prompt
    assert choice["message"]["content"] == CALL


async def test_none_works_without_tools_in_the_template(api: Site) -> None:
    assert (await api.chat(tools=[WEATHER], tool_choice="none")).status == 200


async def test_the_history_of_calls_is_rendered_with_arguments_as_objects(api: Site, models: FakeModels) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    answer = await api.post("/v1/chat/completions", {"model": "tooled", "messages": messages, "tools": [WEATHER]})
    assert answer.status == 200
    prompt = models.requests[0].prompt.decode()
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>' in prompt
    assert "<|im_start|>tool\nrain<|im_end|>" in prompt


def test_definitions_of_several_tools_do_not_collide() -> None:
    def tool(name: str, kind: str) -> Tool:
        parameters = {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/T"}},
            "$defs": {"T": {"type": kind}, "U": {"items": [{"$ref": "#/definitions/T"}]}},
        }
        return decode(
            json.dumps({"type": "function", "function": {"name": name, "parameters": parameters}}).encode(), Tool
        )

    schema = call_schema([tool("a", "string"), tool("b", "integer")])
    refs = [form["properties"]["arguments"]["properties"]["x"]["$ref"] for form in schema["anyOf"]]
    assert refs == ["#/$defs/t0_T", "#/$defs/t1_T"]
    assert schema["$defs"]["t0_T"] == {"type": "string"}
    assert schema["$defs"]["t1_T"] == {"type": "integer"}
    assert schema["$defs"]["t1_U"] == {"items": [{"$ref": "#/$defs/t1_T"}]}


@given(st.text(alphabet='<tol_ca>/{}[]": x\n', max_size=60), st.integers(1, 7))
def test_without_calls_no_character_is_lost(text: str, step: int) -> None:
    finder = ToolFinder(["f"])
    shown = "".join(finder.feed(text[i : i + step])[0] for i in range(0, len(text), step))
    assert shown + finder.finish()[0] == text


@given(st.lists(st.sampled_from(["text", "\n", "<", "<tool_call>{}</tool_call>", '{"name":']), max_size=6), st.data())
def test_calls_are_found_however_the_text_is_cut(parts: list[str], data: st.DataObject) -> None:
    call = '<tool_call>{"name":"f","arguments":{}}</tool_call>'
    text = "see " + "".join(parts) + call
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    finder = ToolFinder(["f"])
    calls = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        calls += finder.feed(text[start:end])[1]
    assert len(calls + finder.finish()[1]) == 1
