"""The function ``qa`` on a real host: its bundle, its store, and ``llm`` called in memory, with a fake model."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from endpoints import JsonEndpoint
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


def deploy_qa(host: Host, docs: Path = FUNCTIONS / "qa" / "docs") -> int:
    version: int = host.deploy("qa", wasm("qa"), sample("qa"), pack_bundle(docs))["version"]
    return version


def configure(host: Host, function: str, **values: str) -> None:
    reply = host.admin("PATCH", f"/api/functions/{function}/config", json.dumps({"values": values}).encode(), JSON)
    assert reply.status < 300, reply.body


def ask(host: Host, question: str, **options: Any) -> Reply:
    return host.request("POST", "/qa", json.dumps({"question": question, **options}), JSON)


def documents(host: Host) -> dict[str, Any]:
    return {row["name"]: row for row in host.get("/qa/docs").json()["documents"]}


def stored(host: Host, prefix: str = "") -> list[str]:
    """Return the keys of the function's store."""
    keys: list[str] = host.admin("GET", f"/api/kv/qa/keys?prefix={prefix}").json()["keys"]
    return keys


def folder(path: Path, **texts: str) -> Path:
    """Return a folder with documents, each of a name and a text."""
    path.mkdir()
    for name, text in texts.items():
        (path / f"{name}.md").write_text(text)
    return path


WIDE = [0.0] * 20_000
"""More than a value of the store may have."""


class Endpoint(JsonEndpoint):
    """Makes embeddings of how often a text names which animal, of many lengths, but none of what is UNFIT."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded: list[list[str]] = []

    def news(self) -> list[list[str]]:
        """Return the inputs of the requests since the last time."""
        embedded, self.embedded = self.embedded, []
        return embedded

    def answer(self, path: str, authorization: str | None, body: Any) -> tuple[int, dict[str, str], Any]:
        if path.endswith("/chat/completions"):
            return 200, {}, {"choices": [{"message": {"content": "That one [1]."}, "finish_reason": "stop"}]}
        self.embedded.append(body["input"])
        if any("UNFIT" in text or not text.strip() for text in body["input"]):
            return 400, {}, {"error": {"message": "the input is too long"}}
        vectors = [[9.0 * text.count("gnu"), 2.0 * text.count("zebra"), 0.5] for text in body["input"]]
        vectors = [vector + WIDE * text.count("WIDE") for vector, text in zip(vectors, body["input"], strict=True)]
        return 200, {}, {"data": [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("qa")
    (folder / "model.fake").write_text(json.dumps({"n_ctx": 4096, "eog": "<|im_end|>", "script": SCRIPT}))
    models = {"default": str(folder / "model.fake")}
    settings = {"workers": 2, "model_backend": "fake", "model_ctx": 4096, "kv_max_value_bytes": 64 * 1024}
    host = Host(folder / "home", models=models, **settings)
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


@pytest.fixture
def endpoint(qa: Host) -> Iterator[Endpoint]:
    """Where ``llm`` gets its embeddings and answers, as long as the test runs."""
    with Endpoint() as endpoint:
        manifest = sample("llm")
        manifest["capabilities"]["outbound"].append(endpoint.url)
        qa.deploy("llm", wasm("llm"), manifest)
        configure(qa, "llm", LLM_URL=f"{endpoint.url}/v1", LLM_REMOTE_MODEL="animals")
        yield endpoint
        configure(qa, "llm", LLM_URL="", LLM_REMOTE_MODEL="")
        qa.deploy("llm", wasm("llm"), sample("llm"))


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
    assert sum(row["embedded"] for row in documents(qa).values()) == 4


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


def test_documents_are_replaced_and_deleted_with_their_vectors(qa: Host, tmp_path: Path) -> None:
    deploy_qa(qa, folder(tmp_path / "none", nothing=" "))
    texts = ("first", "second " * 500)
    assert [qa.request("PUT", "/qa/docs/a/b.txt", text).status for text in texts] == [201, 200]
    assert documents(qa)["a/b.txt"] == {"name": "a/b.txt", "pieces": 4, "embedded": True, "bundled": False}
    assert [key.partition(":")[0] for key in stored(qa)] == ["text", "vectors"]
    assert qa.request("DELETE", "/qa/docs/a/b.txt").status == 204
    assert qa.request("DELETE", "/qa/docs/a/b.txt").status == 404
    assert stored(qa) == []


ANIMALS = {"gnus": "# The gnu\n\nA gnu grazes.\n", "zebras": "A zebra, a zebra and a gnu graze.\n"}


def test_vectors_are_compared_whatever_their_length_and_made_once(qa: Host, endpoint: Endpoint, tmp_path: Path) -> None:
    deploy_qa(qa, folder(tmp_path / "docs", **ANIMALS))
    answer = ask(qa, "zebra zebra zebra").json()
    assert answer["ranking"] == "embeddings"
    assert [source["document"] for source in answer["sources"]] == ["zebras.md", "gnus.md"]
    assert all(0 < source["score"] < 1 for source in answer["sources"])
    assert len(endpoint.news()) == 3
    ask(qa, "gnu")
    assert endpoint.news() == [["gnu"]]


def test_a_piece_that_is_refused_costs_no_other_its_vector_and_is_not_tried_again(
    qa: Host, endpoint: Endpoint, tmp_path: Path
) -> None:
    parts = [f"# Part {n}\n\n{'UNFIT giraffe' if n == 2 else 'gnu'} {'word ' * 150}" for n in range(5)]
    deploy_qa(qa, folder(tmp_path / "docs", **ANIMALS, long="\n\n".join(parts)))
    question = "giraffe or gnu?"
    for _ in range(2):
        answer = ask(qa, question, top=20).json()
        assert answer["ranking"] == "embeddings"
        assert len(answer["sources"]) == 7
        *others, last = answer["sources"]
        assert ("UNFIT" in last["text"], last["score"]) == (True, 0)
        assert all(source["score"] > 0 for source in others)
        made = endpoint.news()
    assert made == [[question]]
    assert all(row["embedded"] for row in documents(qa).values())


def test_a_line_with_a_gap_makes_no_empty_piece(qa: Host, endpoint: Endpoint) -> None:
    assert qa.request("PUT", "/qa/docs/gap.txt", f"gnu{' ' * 2000}zebra").json() == {"name": "gap.txt", "pieces": 2}
    assert [[text.strip() for text in texts] for texts in endpoint.news()] == [["gnu", "zebra"]]


def test_vectors_for_which_the_store_has_no_room_are_used_all_the_same(
    qa: Host, endpoint: Endpoint, tmp_path: Path
) -> None:
    deploy_qa(qa, folder(tmp_path / "docs", zebras="WIDE zebra", gnus="WIDE gnu"))
    for _ in range(2):
        answer = ask(qa, "WIDE zebra")
        assert answer.status == 200, answer.body
        assert answer.json()["ranking"] == "embeddings"
        assert len(endpoint.news()) == 3


def test_a_document_of_which_everything_is_refused_is_not_tried_piece_by_piece(qa: Host, endpoint: Endpoint) -> None:
    text = "\n\n".join(f"# Part {n}\n\nUNFIT {'word ' * 150}" for n in range(70))
    assert qa.request("PUT", "/qa/docs/unfit.txt", text).json() == {"name": "unfit.txt", "pieces": 70}
    assert len({text for texts in endpoint.news() for text in texts}) == 32


def test_a_question_that_is_refused_is_answered_by_words(qa: Host, endpoint: Endpoint, tmp_path: Path) -> None:
    deploy_qa(qa, folder(tmp_path / "docs", **ANIMALS))
    assert ask(qa, "UNFIT zebra").json()["ranking"] == "words"
    assert endpoint.news() == [["UNFIT zebra"]]


def test_vectors_that_are_asked_for_are_kept_and_others_are_gone_after_a_week(qa: Host, endpoint: Endpoint) -> None:
    texts = ("The zebra grazes.", "UNFIT")
    for text in texts:
        assert qa.request("PUT", "/qa/docs/own.txt", text).status < 300
        ask(qa, "zebra")
    assert len(endpoint.news()) > 0
    keys = stored(qa, "vectors:")
    old = {}
    for key in keys:
        value = qa.admin("GET", f"/api/kv/qa/value?key={key}")
        written_ms, *vectors = msgspec.msgpack.decode(value.body)
        assert float(value.headers["X-Faas-Expires-At"]) == pytest.approx(written_ms / 1000 + 7 * 86400, abs=60)
        old[key] = msgspec.msgpack.encode([written_ms - 2 * 86_400_000, *vectors])
        assert qa.admin("PUT", f"/api/kv/qa/value?key={key}&ttl_s=3600", old[key]).status < 300
    ask(qa, "zebra")
    left = [key for key in keys if qa.admin("GET", f"/api/kv/qa/value?key={key}").body == old[key]]
    # What was refused may be taken another time.
    assert [b"" in msgspec.msgpack.decode(old[key]) for key in left] == [True]


def test_versions_with_other_documents_leave_each_other_alone(qa: Host, endpoint: Endpoint, tmp_path: Path) -> None:
    old = deploy_qa(qa, folder(tmp_path / "old", shared="A gnu grazes.", other="The old zebra."))
    new = deploy_qa(qa, folder(tmp_path / "new", shared="A gnu grazes.", other="The new zebra."))
    assert qa.request("PUT", "/qa/docs/own.txt", "My own gnu.").status == 201
    made = []
    for version, known in ((new, "new"), (old, "old"), (new, "new"), (old, "old")):
        live = json.dumps({"weights": {version: 100}}).encode()
        assert qa.admin("PUT", "/api/functions/qa/aliases/live", live, JSON).status < 300
        endpoint.news()
        answer = ask(qa, "zebra").json()
        assert answer["ranking"] == "embeddings"
        assert {source["text"] for source in answer["sources"]} == {
            "A gnu grazes.",
            f"The {known} zebra.",
            "My own gnu.",
        }
        made.append(sorted(endpoint.news()))
    assert made == [
        [["A gnu grazes."], ["The new zebra."], ["zebra"]],
        [["The old zebra."], ["zebra"]],
        [["zebra"]],
        [["zebra"]],
    ]


def test_a_put_document_is_there_again_when_the_bundle_has_none_of_its_name_any_more(qa: Host, tmp_path: Path) -> None:
    configure(qa, "qa", QA_RANKING="words")
    assert qa.request("PUT", "/qa/docs/notes.md", "My zebra.").status == 201
    deploy_qa(qa, folder(tmp_path / "with", notes="The zebra of the bundle."))
    assert documents(qa) == {"notes.md": {"name": "notes.md", "pieces": 1, "embedded": False, "bundled": True}}
    assert [source["text"] for source in ask(qa, "zebra").json()["sources"]] == ["The zebra of the bundle."]
    deploy_qa(qa, folder(tmp_path / "without", other="A gnu."))
    assert documents(qa)["notes.md"]["bundled"] is False
    assert [source["text"] for source in ask(qa, "zebra").json()["sources"]] == ["My zebra."]


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
        ("PUT /qa/docs/large", "gnu " * 20_000, 413, "kv_max_value_bytes"),
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
