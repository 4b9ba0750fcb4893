"""The function ``qa`` on a real host: its bundle, its store, and ``llm`` called in memory, with a fake model."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import FUNCTIONS, Host, Reply, until, wasm

from faas.artifacts.bundle import pack_bundle

QUESTION = "Where is the key of the secrets?"
SCRIPT = [{"when": ["secrets.key in the home", QUESTION], "answer": "In secrets.key [1]."}]
JSON = {"Content-Type": "application/json"}


def sample(name: str) -> dict[str, Any]:
    """Return the sample's manifest, but for everybody."""
    manifest = tomllib.loads((FUNCTIONS / name / "function.toml").read_text())
    del manifest["access"]
    return manifest


def deploy_qa(host: Host, docs: Path = FUNCTIONS / "qa" / "docs") -> None:
    host.deploy("qa", wasm("qa"), sample("qa"), pack_bundle(docs))


def configure(host: Host, function: str, **values: str) -> None:
    reply = host.admin("PATCH", f"/api/functions/{function}/config", json.dumps({"values": values}).encode(), JSON)
    assert reply.status < 300, reply.body


def ask(host: Host, question: str, **options: Any) -> Reply:
    return host.request("POST", "/qa", json.dumps({"question": question, **options}), JSON)


def documents(host: Host) -> dict[str, Any]:
    return {row["name"]: row for row in host.get("/qa/docs").json()["documents"]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("qa")
    (folder / "model.fake").write_text(json.dumps({"n_ctx": 4096, "eog": "<|im_end|>", "script": SCRIPT}))
    models = {"default": str(folder / "model.fake")}
    host = Host(folder / "home", workers=2, model_backend="fake", model_ctx=4096, models=models)
    try:
        host.start()
        until(lambda: host.get("/v1/models").json().get("data"), what="the model server")
        host.deploy("llm", wasm("llm"), sample("llm"))
        yield host
        host.stop()
    finally:
        host.dispose()


@pytest.fixture
def qa(shared: Host) -> Iterator[Host]:
    """The function with the documents that it is deployed with, and none in its store yet."""
    deploy_qa(shared)
    yield shared
    assert shared.admin("DELETE", "/api/functions/qa?purge=1").status < 300


def test_documents_of_the_bundle_answer_a_question_by_their_words(qa: Host) -> None:
    configure(qa, "qa", QA_RANKING="words")
    reply = ask(qa, QUESTION)
    assert reply.status == 200, reply.body
    answer = reply.json()
    assert (answer["answer"], answer["ranking"], answer["model"]) == ("In secrets.key [1].", "words", "default")
    first = answer["sources"][0]
    assert first["document"] == "storage.md"
    assert "secrets.key" in first["text"]
    lines = (FUNCTIONS / "qa" / "docs" / "storage.md").read_text().splitlines()
    assert first["text"] == "\n".join(lines[first["from"] - 1 : first["to"]])
    assert answer["prompt_tokens"] > len(first["text"])


def test_documents_are_embedded_once_and_ranked_by_their_vectors(qa: Host) -> None:
    # The fake model's vectors mean nothing, but equal texts have equal ones.
    text = "The one sentence of this document."
    assert qa.request("PUT", "/qa/docs/own.txt", text).status == 201
    answer = ask(qa, text, top=1).json()
    (source,) = answer["sources"]
    assert (answer["ranking"], source["document"], source["text"]) == ("embeddings", "own.txt", text)
    assert source["score"] == pytest.approx(1.0, abs=1e-5)
    assert all(row["embedded"] for row in documents(qa).values())
    stored = qa.admin("GET", "/api/kv/qa/keys?prefix=part:").json()
    ask(qa, "something else")
    assert qa.admin("GET", "/api/kv/qa/keys?prefix=part:").json() == stored


def test_without_an_embedding_model_words_decide_and_vectors_come_when_there_is_one(qa: Host) -> None:
    configure(qa, "llm", LLM_EMBED_MODEL="none")
    answer = ask(qa, QUESTION).json()
    assert (answer["ranking"], answer["answer"]) == ("words", "In secrets.key [1].")
    assert not any(row["embedded"] for row in documents(qa).values())
    configure(qa, "llm", LLM_EMBED_MODEL="")
    assert ask(qa, QUESTION).json()["ranking"] == "embeddings"
    assert all(row["embedded"] for row in documents(qa).values())


def test_a_question_that_no_document_has_a_word_of_costs_no_tokens(qa: Host) -> None:
    configure(qa, "qa", QA_RANKING="words")
    answer = ask(qa, "Xylophone?").json()
    assert (answer["sources"], "do not tell" in answer["answer"], "model" in answer) == ([], True, False)


def test_documents_are_replaced_and_deleted_with_their_parts(qa: Host) -> None:
    assert [qa.request("PUT", "/qa/docs/a/b.txt", text).status for text in ("first", "second " * 500)] == [201, 200]
    assert documents(qa)["a/b.txt"]["pieces"] == 4
    assert qa.request("DELETE", "/qa/docs/a/b.txt").status == 204
    assert qa.request("DELETE", "/qa/docs/a/b.txt").status == 404
    assert qa.admin("GET", "/api/kv/qa/keys?prefix=part:a/b.txt").json()["keys"] == []


def test_a_deploy_with_other_documents_changes_what_is_known(qa: Host, tmp_path: Path) -> None:
    assert set(documents(qa)) == {"functions.md", "models.md", "storage.md"}
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "new.md").write_text("The zebra grazes.\n")
    deploy_qa(qa, tmp_path)
    assert set(documents(qa)) == {"sub/new.md"}
    (tmp_path / "sub" / "new.md").write_text("The gnu grazes.\n")
    deploy_qa(qa, tmp_path)
    configure(qa, "qa", QA_RANKING="words")
    assert [source["text"] for source in ask(qa, "Does the gnu graze?").json()["sources"]] == ["The gnu grazes."]


def test_excerpts_that_do_not_fit_into_the_context_are_left_out(qa: Host) -> None:
    configure(qa, "qa", QA_RANKING="words")
    qa.request("PUT", "/qa/docs/long.txt", "\n\n".join(f"whale {n} " + "blubber " * 100 for n in range(12)))
    answer = ask(qa, "whale", top=12).json()
    assert 1 <= len(answer["sources"]) < 12
    assert answer["prompt_tokens"] < 4096


@pytest.mark.parametrize(
    ("request_line", "body", "status", "said"),
    [
        ("POST /qa", "{", 400, "not JSON"),
        ("POST /qa", "{}", 400, "question"),
        ("PUT /qa/docs/x%20y", "text", 400, "name"),
        ("PUT /qa/docs/empty", " ", 400, "empty"),
        ("PUT /qa/docs/latin", b"\xff", 400, "UTF-8"),
        ("PUT /qa/docs/storage.md", "mine", 409, "another name"),
        ("DELETE /qa/docs/storage.md", None, 409, "another name"),
        ("GET /qa", None, 404, "POST /qa"),
    ],
)
def test_what_is_wrong_is_answered_with_a_next_step(
    qa: Host, request_line: str, body: Any, status: int, said: str
) -> None:
    reply = qa.request(*request_line.split(), body)
    assert (reply.status, reply.json()["status"]) == (status, status), reply.body
    assert said in reply.json()["error"]


def test_a_model_that_is_busy_is_passed_on_with_when_to_come_back(qa: Host) -> None:
    manifest = sample("llm")
    manifest["limits"]["tokens_per_minute"] = 30
    qa.deploy("llm", wasm("llm"), manifest)
    replies = [ask(qa, QUESTION)]
    until(lambda: replies[-1].status != 200 or replies.append(ask(qa, QUESTION)), what="the quota")
    qa.deploy("llm", wasm("llm"), sample("llm"))
    assert (replies[-1].status, replies[-1].headers["Retry-After"]) == (503, "5"), replies[-1].body
    assert "busy" in replies[-1].json()["error"]


def test_without_the_function_llm_it_says_what_to_deploy(qa: Host) -> None:
    qa.admin("DELETE", "/api/functions/llm")
    reply = ask(qa, QUESTION)
    qa.deploy("llm", wasm("llm"), sample("llm"))
    assert (reply.status, "deploy it" in reply.json()["error"]) == (500, True)
