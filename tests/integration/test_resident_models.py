"""Functions and the OpenAI endpoints on one resident (fake) model: WASI-NN call by call, streaming, crashes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hosting import Host, until

JSON = {"Content-Type": "application/json"}
FUNCTIONS = Path(__file__).parents[2] / "functions"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose models are fakes: deterministic, and there without any extra."""
    folder = tmp_path_factory.mktemp("models")
    files = {}
    for name, options in {"default": {"answers": {"hi": "hello there"}}, "other": {"eog_every": 9}, "lost": {}}.items():
        files[name] = folder / f"{name}.fake"
        files[name].write_text(json.dumps(options))
    host = Host(
        folder / "home", model_backend="fake", model_ctx=512, models={name: str(path) for name, path in files.items()}
    )
    try:
        host.start()
        for name in ("nn-test", "chat"):
            manifest = {"routes": [f"/{name}"], "capabilities": {"models": ["default", "gone", "lost"]}}
            host.deploy(name, (FUNCTIONS / name / f"{name}.wasm").read_bytes(), manifest)
        files["lost"].unlink()
        until(lambda: host.get("/v1/models").json()["data"], what="the model server")
        yield host
        host.stop()
    finally:
        host.dispose()


def calls(host: Host, *steps: str) -> list[str]:
    """Return what the guest says of each of the calls in *steps*."""
    reply = host.get("/nn-test?" + ";".join(quote(step, safe=":!#|%") for step in steps))
    assert reply.status == 200, reply.body
    return reply.text.splitlines()


READY = ("load_by_name:default", "init_execution_context:0")


def test_a_prompt_is_computed_and_its_output_read(models: Host) -> None:
    *_, compute, output = calls(models, *READY, "set_input:0:0:hi", "compute:0", "get_output:0:0:1000")
    assert compute == "compute 0"
    assert output.startswith("get_output 0 ")
    assert "hello there" in output


def test_tokens_come_one_by_one_until_the_end_of_the_sequence(models: Host) -> None:
    *_, stream, over, fini = calls(models, *READY, "set_input:0:0:hi", "stream:0", "compute_single:0", "fini_single:0")
    assert "100" in stream
    assert over.startswith("compute_single 100")
    assert fini == "fini_single 0"


def test_metadata_counts_tokens_and_is_readable_before_any_input(models: Host) -> None:
    first, *_, second = calls(
        models, *READY, "get_output:0:1:500", "set_input:0:0:hi", "compute:0", "get_output:0:1:500"
    )[2:]
    assert '"input_tokens": 0' in first.replace("\\", "")
    assert '"input_tokens": 3' in second.replace("\\", "")


@pytest.mark.parametrize(
    ("steps", "errno"),
    [
        (("load_by_name:other",), 8),  # there, but not granted
        (("load_by_name:gone",), 8),  # granted, but not there
        (("load_by_name:lost",), 103),  # granted and there, but its file is not
        (("load:99:0:default",), 2),
        (("load:5:9:default",), 1),
        (("load:5:0:preload:/etc/passwd",), 6),
        (("load:5:0:GGUFxxxx",), 6),
        (("load_by_name_with_config:default:{",), 2),
        (('load_by_name_with_config:default:{"n-predict": true}',), 1),
        (("!load_by_name:default",), 1),
        (("init_execution_context:7",), 1),
        (("compute:7",), 1),
        ((*READY, "compute:0"), 1),
        ((*READY, "set_input:7:0:hi"), 1),
        ((*READY, "!set_input:0:0:hi"), 1),
        ((*READY, "set_input:0:0:%FF", "compute:0"), 1),
        ((*READY, "set_input:0:0:" + "x" * 600, "compute:0"), 102),
        ((*READY, 'set_input:0:1:{"grammar": "root ::= ("}', "set_input:0:0:hi", "compute:0"), 1),
        ((*READY, "set_input:0:0:hi", "compute:0", "get_output:0:0:3"), 7),
        ((*READY, "unload:0", "unload:0"), 1),
        ((*READY, "finalize_execution_context:0", "finalize_execution_context:0"), 1),
        ((*READY, 'set_input:0:1:{"temp": 0, "ignore-eos": true}', "set_input:0:0:long", "compute:0"), 101),
    ],
    ids=lambda value: ";".join(value)[:60] if isinstance(value, tuple) else str(value),
)
def test_what_is_wrong_is_answered_by_the_errno_of_the_spec(models: Host, steps: tuple[str, ...], errno: int) -> None:
    assert calls(models, *steps)[-1].split()[1] == str(errno)


@pytest.mark.parametrize(
    ("model", "reason"),
    [("other", "is not granted it; add it to [capabilities] models"), ("nobody", "none of that name")],
)
def test_the_log_tells_a_model_that_is_not_granted_from_one_that_is_not_there(
    models: Host, model: str, reason: str
) -> None:
    reply = models.get(f"/nn-test?load_by_name:{model}")
    assert "load_by_name 8 " in reply.text
    lines = models.log_of("nn-test", reply.headers["X-Request-Id"])
    assert [reason in line["text"] for line in lines[:-1]] == [True]


def test_the_chat_function_streams_the_answer_as_events(models: Host) -> None:
    reply = models.request("POST", "/chat", b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}')
    assert reply.status == 200
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert len(events) >= 4


def test_tokens_are_counted_for_the_function_that_spent_them(models: Host) -> None:
    def spent() -> float:
        counters = models.admin("GET", "/api/functions/nn-test").json()["counters"]
        return float(counters.get("prompt_tokens", 0) + counters.get("generated_tokens", 0))

    before = spent()
    calls(models, *READY, "set_input:0:0:hi", "compute:0")
    until(lambda: spent() > before, what="the counters")


def test_a_killed_model_server_comes_back_and_harms_no_plain_function(models: Host) -> None:
    plain = models.serves("hello-c")
    server = models.status()["model_server"]
    os.kill(server["pid"], signal.SIGKILL)
    statuses = {models.get(f"/{plain}").status for _ in range(20)}
    assert statuses == {200}
    answer = models.request("POST", "/v1/completions", b'{"model": "default", "prompt": "hi"}', JSON)
    assert answer.status in (200, 503)
    until(lambda: models.status()["model_server"]["pid"] not in (0, server["pid"]), what="a new model server")
    until(lambda: calls(models, *READY)[0] == "load_by_name 0 graph=0", what="the model to be served again")


def test_a_host_without_models_lists_none_and_says_so(host: Host) -> None:
    assert host.get("/v1/models").json()["data"] == []
    refused = host.request("POST", "/v1/completions", b'{"model": "m", "prompt": "x"}', JSON)
    assert refused.status in (404, 501)
    module = (FUNCTIONS / "nn-test" / "nn-test.wasm").read_bytes()
    host.deploy("nn-none", module, {"routes": ["/nn-none"], "capabilities": {"models": ["default"]}})
    assert host.get("/nn-none?load_by_name:default").text.split()[1] == "8"
