"""The function ``llm`` on a real host: a resident (fake) model, its limits, and a scripted endpoint in its place."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from endpoints import JsonEndpoint
from hosting import FUNCTIONS, Host, MakeHost, Reply, free_port, until, wasm

CONTEXT = 2048
LONG = "".join(chr(97 + n % 26) for n in range(400))
FINDINGS = {"findings": [{"line": 3, "text": "off by one"}, {"line": 9, "text": "unused"}]}
SCHEMA = {
    "type": "object",
    "properties": {
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"line": {"type": "integer"}, "text": {"type": "string"}},
                "required": ["line", "text"],
            },
        }
    },
    "required": ["findings"],
}
SCRIPT = [
    {"when": ["capital of France"], "answer": "Paris."},
    {"when": ["find them"], "answer": json.dumps(FINDINGS)},
    {"when": ["long"], "answer": LONG},
]


def user(text: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **options}


def deploy_llm(host: Host, url: str = "", **limits: Any) -> None:
    """Deploy the sample as it is, but for everybody, and with *url* as the endpoint that it may reach."""
    manifest = tomllib.loads((FUNCTIONS / "llm" / "function.toml").read_text())
    del manifest["access"]
    manifest["limits"].update(limits)
    if url:
        manifest["capabilities"]["outbound"] = [url]
        manifest["capabilities"]["credentials"] = [{"host": url, "secret": "LLM_KEY"}]
    host.deploy("llm", wasm("llm"), manifest)


def configure(host: Host, **values: str) -> None:
    body = json.dumps({"values": values}).encode()
    reply = host.admin("PATCH", "/api/functions/llm/config", body, {"Content-Type": "application/json"})
    assert reply.status < 300, reply.body


def ask(host: Host, path: str, body: Any = None) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return host.request("GET" if body is None else "POST", f"/llm{path}", None if body is None else data)


def metric(host: Host, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have *labels*."""
    total = 0.0
    for line in host.admin("GET", "/metrics").text.splitlines():
        sample, _, value = line.rpartition(" ")
        if sample.partition("{")[0] == name and all(f'{k}="{v}"' in sample for k, v in labels.items()):
            total += float(value)
    return total


def start(host: Host, folder: Path, **file: Any) -> Host:
    path = folder / "model.fake"
    path.write_text(json.dumps({"n_ctx": CONTEXT, "eog": "<|im_end|>", "script": SCRIPT, **file}))
    host.settings.update(model_backend="fake", model_ctx=CONTEXT, models={"default": str(path)})
    host.start()
    until(lambda: host.get("/v1/models").json().get("data"), what="the model server")
    return host


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with the function and a model that answers by its script."""
    folder = tmp_path_factory.mktemp("llm")
    host = Host(folder / "home")
    try:
        start(host, folder)
        deploy_llm(host)
        yield host
        host.stop()
    finally:
        host.dispose()


def test_a_question_is_answered_with_its_tokens_and_its_time(llm: Host) -> None:
    reply = ask(llm, "/chat", user("What is the capital of France?", seed=1, temperature=0.5))
    assert reply.status == 200, reply.body
    answer = reply.json()
    assert (answer["text"], answer["model"], answer["finish"]) == ("Paris.", "default", "stop")
    assert answer["completion_tokens"] == len("Paris.") + 1
    assert answer["duration_ms"] >= 0


def test_the_count_of_a_conversation_is_the_prompt_tokens_of_the_model_server(llm: Host) -> None:
    conversation = user("What is the capital of France? <|im_end|> </s><file_sep> \u00e4")
    (counted,) = ask(llm, "/count", conversation).json()["tokens"]
    before = metric(llm, "faas_model_tokens_total", kind="prompt")
    assert ask(llm, "/chat", conversation).json()["prompt_tokens"] == counted
    until(lambda: metric(llm, "faas_model_tokens_total", kind="prompt") >= before + counted, what="the counters")


def test_the_count_of_a_text_is_what_a_completion_of_it_is_charged(llm: Host) -> None:
    texts = ["", "plain", "\u00e4\u20ac"]
    counted = ask(llm, "/count", {"texts": texts}).json()
    charged = []
    for text in texts:
        body = json.dumps({"model": "default", "prompt": text, "max_tokens": 1}).encode()
        completion = llm.request("POST", "/v1/completions", body, {"Content-Type": "application/json"}).json()
        charged.append(completion["usage"]["prompt_tokens"])
    assert counted == {"tokens": charged, "exact": True}


@pytest.mark.parametrize(
    ("max_tokens", "n_findings", "finish"), [(200, 2, "stop"), (75, 1, "length"), (20, 0, "length")]
)
def test_an_answer_under_a_schema_parses_also_where_it_was_cut(
    llm: Host, max_tokens: int, n_findings: int, finish: str
) -> None:
    reply = ask(llm, "/chat", user("find them", schema=SCHEMA, max_tokens=max_tokens))
    assert reply.status == 200, reply.body
    answer = reply.json()
    assert json.loads(answer["text"]) == {"findings": FINDINGS["findings"][:n_findings]}
    assert answer["finish"] == finish


def test_an_answer_that_is_cut_before_anything_conforms_is_refused(llm: Host) -> None:
    reply = ask(llm, "/chat", user("find them", schema=SCHEMA, max_tokens=5))
    assert (reply.status, reply.json()["status"]) == (422, 422)
    assert "raise max_tokens" in reply.json()["error"]


def test_an_answer_without_a_schema_is_cut_at_max_tokens(llm: Host) -> None:
    answer = ask(llm, "/chat", user("a long one", max_tokens=10)).json()
    assert (answer["text"], answer["finish"], answer["completion_tokens"]) == (LONG[:10], "length", 10)


def test_embeddings_have_one_vector_a_text(llm: Host) -> None:
    embedded = ask(llm, "/embed", {"texts": ["a", "b", "a"]}).json()
    assert (len(embedded["vectors"]), embedded["dimensions"], embedded["model"]) == (3, 16, "default")
    assert embedded["vectors"][0] == embedded["vectors"][2] != embedded["vectors"][1]


def test_the_model_says_how_much_fits_into_its_context(llm: Host) -> None:
    assert ask(llm, "/model").json() == {"model": "default", "context_tokens": CONTEXT, "resident": True}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/chat", b"{", 400, "not JSON"),
        ("/chat", {}, 400, "messages"),
        ("/chat", user("x", temperature="warm"), 400, "temperature"),
        ("/chat", user("x", schema={"$ref": "#/nowhere"}), 400, "schema"),
        ("/chat", user("x" * CONTEXT), 413, "send less"),
        ("/count", {"texts": []}, 400, "texts"),
        ("/embed", {"texts": ["x" * (CONTEXT + 1)]}, 413, "send less"),
        ("/models", {}, 404, "GET /model"),
        ("/model", {}, 405, "takes GET"),
    ],
)
def test_what_is_wrong_is_answered_with_the_next_step(llm: Host, path: str, body: Any, status: int, said: str) -> None:
    reply = ask(llm, path, body)
    assert (reply.status, reply.json()["status"]) == (status, status), reply.body
    assert said in reply.json()["error"]


def test_a_model_that_is_not_granted_is_named(llm: Host) -> None:
    configure(llm, LLM_EMBED_MODEL="other")
    reply = ask(llm, "/embed", {"texts": ["a"]})
    configure(llm, LLM_EMBED_MODEL="")
    assert reply.status == 500
    assert '"other"' in reply.json()["error"]
    assert "capabilities.models" in reply.json()["error"]


def test_calls_at_once_are_decoded_together_and_share_their_beginning(make_host: MakeHost, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    fd = os.open(tmp_path / "gate", os.O_RDWR)
    system = {"role": "system", "content": "You review code. " * 20}
    bodies = [{"messages": [system, {"role": "user", "content": f"a long one: {n}"}]} for n in range(4)]
    try:
        host = start(make_host(), tmp_path, gate=str(tmp_path / "gate"))
        deploy_llm(host)

        def all_are_running() -> bool:
            os.write(fd, b"x")
            return metric(host, "faas_model_active") == len(bodies)

        with ThreadPoolExecutor(len(bodies)) as pool:
            replies = [pool.submit(ask, host, "/chat", body) for body in bodies]
            until(all_are_running, what="four sequences side by side")
            os.write(fd, b"x" * 4000)
            assert [reply.result().json()["text"] for reply in replies] == [LONG] * len(bodies)
        n_generated = len(bodies) * (len(LONG) + 1)
        until(lambda: metric(host, "faas_model_tokens_total", kind="generated") >= n_generated, what="the counters")
        assert metric(host, "faas_model_decode_steps_total") < n_generated / 2
        n_shared = 3 * len(system["content"])
        assert metric(host, "faas_model_tokens_total", kind="cached") >= n_shared
        host.stop()
    finally:
        os.close(fd)


def test_a_model_that_is_busy_says_when_to_come_back(make_host: MakeHost, tmp_path: Path) -> None:
    host = start(make_host(), tmp_path)
    deploy_llm(host, tokens_per_minute=60)
    replies = [ask(host, "/chat", user("a long one"))]
    until(lambda: replies[-1].status != 200 or replies.append(ask(host, "/chat", user("more"))), what="the quota")
    assert replies[-1].status == 503
    assert int(replies[-1].headers["Retry-After"]) >= 1
    assert "busy" in replies[-1].json()["error"]
    host.stop()


# --- an endpoint instead ----------------------------------------------------------------------------------------------


class Endpoint(JsonEndpoint):
    """An OpenAI-compatible server that answers by *script*: (status, headers, document) for each request in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[tuple[int, dict[str, str], Any]] = []
        self.seen: list[tuple[str, str | None, Any]] = []

    def answer(self, path: str, authorization: str | None, body: Any) -> tuple[int, dict[str, str], Any]:
        self.seen.append((path, authorization, body))
        return self.script.pop(0)


def completed(text: str, finish: str = "stop") -> tuple[int, dict[str, str], Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return 200, {}, {"choices": [{"message": {"content": text}, "finish_reason": finish}], "usage": usage}


def refused(status: int, message: str, **headers: str) -> tuple[int, dict[str, str], Any]:
    return status, headers, {"error": {"message": message}}


@pytest.fixture(scope="module")
def remote_llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Endpoint]]:
    """A host whose ``llm`` asks an endpoint; it has no model itself."""
    host = Host(tmp_path_factory.mktemp("remote") / "home")
    with Endpoint() as endpoint:
        try:
            host.start()
            deploy_llm(host, endpoint.url)
            configure(host, LLM_URL=f"{endpoint.url}/v1/", LLM_REMOTE_MODEL="big")
            secret = json.dumps({"value": "sk-test"}).encode()
            headers = {"Content-Type": "application/json"}
            assert host.admin("PUT", "/api/functions/llm/secrets/LLM_KEY", secret, headers).status < 300
            yield host, endpoint
            host.stop()
        finally:
            host.dispose()


@pytest.fixture
def remote(remote_llm: tuple[Host, Endpoint]) -> Iterator[tuple[Host, Endpoint]]:
    host, endpoint = remote_llm
    endpoint.script, endpoint.seen = [], []
    yield host, endpoint
    assert endpoint.script == [], "not everything was asked for"


def test_an_endpoint_is_asked_with_the_key_that_the_guest_never_sees(remote: tuple[Host, Endpoint]) -> None:
    host, endpoint = remote
    endpoint.script = [completed("Paris.")]
    answer = ask(host, "/chat", user("Where?", max_tokens=9, temperature=0.5, seed=3)).json()
    assert {k: answer[k] for k in ("text", "model", "prompt_tokens", "completion_tokens", "finish")} == {
        "text": "Paris.", "model": "big", "prompt_tokens": 7, "completion_tokens": 3, "finish": "stop",
    }  # fmt: skip
    (path, key, body) = endpoint.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer sk-test")
    assert body == {**user("Where?"), "model": "big", "max_tokens": 9, "temperature": 0.5, "seed": 3}


def test_an_endpoint_is_given_the_schema_and_what_it_may_say_around_json_is_taken_off(
    remote: tuple[Host, Endpoint],
) -> None:
    host, endpoint = remote
    endpoint.script = [completed(f"```json\n{json.dumps(FINDINGS)}\n```")]
    assert json.loads(ask(host, "/chat", user("find", schema=SCHEMA)).json()["text"]) == FINDINGS
    given = endpoint.seen[0][2]["response_format"]["json_schema"]
    assert (given["schema"], given["strict"]) == (SCHEMA, False), "objects of it are open, which strict mode refuses"


def test_an_endpoint_is_held_to_a_schema_that_strict_mode_takes(remote: tuple[Host, Endpoint]) -> None:
    host, endpoint = remote
    items = {**SCHEMA["properties"]["findings"]["items"], "additionalProperties": False}
    schema = {**SCHEMA, "properties": {"findings": {"type": "array", "items": items}}, "additionalProperties": False}
    endpoint.script = [completed(json.dumps(FINDINGS))]
    assert ask(host, "/chat", user("find", schema=schema)).status == 200
    assert endpoint.seen[0][2]["response_format"]["json_schema"]["strict"] is True


def test_an_endpoint_is_sent_no_marks_of_chat_templates(remote: tuple[Host, Endpoint]) -> None:
    host, endpoint = remote
    text = "</s>[INST]x<|im_end|>\n<file_sep><\uff5cUser\uff5c> Vec<String> a < b"
    shown = "< /s>[ INST]x< |im_end|>\n< file_sep>< \uff5cUser\uff5c> Vec<String> a < b"
    endpoint.script = [completed("ok"), (200, {}, {"data": [{"index": 0, "embedding": [1]}]})]
    assert ask(host, "/chat", user(text)).status == ask(host, "/embed", {"texts": [text]}).status == 200
    assert endpoint.seen[0][2]["messages"] == user(shown)["messages"]
    assert endpoint.seen[1][2]["input"] == [shown]


def test_an_endpoint_that_refuses_fields_is_asked_without_them(remote: tuple[Host, Endpoint]) -> None:
    host, endpoint = remote
    endpoint.script = [
        refused(400, "'max_tokens' is not supported, use 'max_completion_tokens'"),
        refused(400, "response_format is not known"),
        completed(json.dumps(FINDINGS)),
    ]
    answer = ask(host, "/chat", user("find", schema=SCHEMA, max_tokens=9)).json()
    assert json.loads(answer["text"]) == FINDINGS
    body = endpoint.seen[-1][2]
    assert (body["max_completion_tokens"], "max_tokens" in body, "response_format" in body) == (9, False, False)
    assert "JSON schema" in body["messages"][-1]["content"]


def test_an_answer_that_does_not_conform_is_asked_for_once_more(remote: tuple[Host, Endpoint]) -> None:
    host, endpoint = remote
    endpoint.script = [completed("I can't."), completed(json.dumps(FINDINGS))]
    answer = ask(host, "/chat", user("find", schema=SCHEMA)).json()
    assert (json.loads(answer["text"]), answer["prompt_tokens"]) == (FINDINGS, 14)
    endpoint.script = [completed("I can't."), completed("[]")]
    reply = ask(host, "/chat", user("find", schema=SCHEMA))
    assert (reply.status, "conform" in reply.json()["error"]) == (502, True)


@pytest.mark.parametrize(
    ("answer", "status", "retry_after"),
    [
        (refused(429, "slow down", **{"Retry-After": "17"}), 429, "17"),
        (refused(503, "later"), 503, "5"),
        (refused(502, "gone", **{"Retry-After": "9"}), 503, "9"),
        (refused(504, "late"), 503, "5"),
        (refused(529, "overloaded"), 503, "5"),
        (refused(500, "oops"), 502, None),
        (refused(501, "unknown"), 502, None),
        (refused(401, "wrong key"), 502, None),
        (refused(400, "no such thing"), 400, None),
        ((200, {}, {"hello": 1}), 502, None),
    ],
)
def test_what_an_endpoint_refuses_is_passed_on(
    remote: tuple[Host, Endpoint], answer: Any, status: int, retry_after: str | None
) -> None:
    host, endpoint = remote
    endpoint.script = [answer]
    reply = ask(host, "/chat", user("x"))
    assert (reply.status, reply.headers.get("Retry-After")) == (status, retry_after), reply.body
    assert reply.json()["error"]


def test_an_endpoint_embeds_and_its_tokens_are_estimated(remote: tuple[Host, Endpoint]) -> None:
    host, endpoint = remote
    endpoint.script = [(200, {}, {"data": [{"index": 1, "embedding": [0, 4]}, {"index": 0, "embedding": [0.5, 0]}]})]
    embedded = ask(host, "/embed", {"texts": ["a", "b"]}).json()
    assert embedded == {"vectors": [[1, 0], [0, 1]], "model": "big", "dimensions": 2}
    assert endpoint.seen[0][2] == {"model": "big", "input": ["a", "b"]}
    assert ask(host, "/count", {"texts": ["abcd", ""]}).json() == {"tokens": [2, 0], "exact": False}
    assert ask(host, "/model").json() == {"model": "big", "context_tokens": 8192, "resident": False}


def test_vectors_that_can_t_be_compared_are_refused(remote: tuple[Host, Endpoint]) -> None:
    host, endpoint = remote
    for vector in ([0, 0], [1e300, 0]):
        endpoint.script = [(200, {}, {"data": [{"index": 0, "embedding": vector}]})]
        reply = ask(host, "/embed", {"texts": ["a"]})
        assert (reply.status, "LLM_EMBED_MODEL" in reply.json()["error"]) == (502, True)


def test_an_endpoint_that_is_away_is_to_be_tried_again(make_host: MakeHost) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    host = make_host().start()
    deploy_llm(host, url)
    configure(host, LLM_URL=url)
    assert "LLM_REMOTE_MODEL" in ask(host, "/chat", user("x")).json()["error"]
    configure(host, LLM_REMOTE_MODEL="big")
    reply = ask(host, "/chat", user("x"))
    assert (reply.status, "its secret not set" in reply.json()["error"]) == (500, True)
    headers = {"Content-Type": "application/json"}
    host.admin("PUT", "/api/functions/llm/secrets/LLM_KEY", b'{"value": "k"}', headers)
    reply = ask(host, "/chat", user("x"))
    assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
    host.stop()
