"""Commands do what they say, print what they found, and end with 0, 1 or 2."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from faas.cli.commands.logs import readable
from faas.errors import CompileFailedError
from faas.wire.messages import Stats

COMMANDS = (
    "serve", "deploy", "invoke", "list", "inspect", "remove", "versions", "logs", "status", "run", "new", "doctor",
    "models", "keys", "alias", "traffic", "rollback", "canary", "audit",
)  # fmt: skip


def test_version_is_printed(faas):
    assert faas("--version").out.startswith("faas ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(faas, command):
    ended = faas(command, "--help")
    assert ended.code == 0
    assert "Usage: faas" in ended.out


def test_help_lists_every_command(faas):
    out = faas("--help").out
    assert all(f"\n  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("deploy",),
        ("list", "--bogus"),
        ("logs", "hello", "--tail", "-1"),
        ("new", "hello", "--lang", "cobol"),
        ("deploy", "x.wasm", "--env", "NOVALUE"),
        ("invoke", "hello", "--path", "no-slash"),
        ("invoke", "hello", "--data", "a", "--data-file", "b"),
        ("invoke", "hello", "-H", "no colon"),
        ("models", "add", "a"),
        ("keys", "add", "a", "--tokens-per-minute", "-1"),
        ("serve", "--model", "no-equals-sign"),
        ("run", "x.wasm", "--model", "no-equals-sign"),
    ],
)
def test_wrong_usage_is_exit_code_two(faas, arguments):
    ended = faas(*arguments)
    assert ended.code == 2
    assert "Usage" in ended.err or "Error" in ended.err


def test_no_token_says_what_to_do(faas):
    ended = faas("list")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: no admin token")
    assert ended.err.count("\n") == 1


def test_no_host_says_what_to_do(faas, monkeypatch):
    monkeypatch.setenv("FAAS_TOKEN", "t")
    ended = faas("list", "--admin-url", "http://127.0.0.1:1")
    assert ended.code == 1
    assert "faas serve" in ended.err


def test_admin_url_that_is_none_is_an_error_line(faas, monkeypatch):
    monkeypatch.setenv("FAAS_TOKEN", "t")
    ended = faas("list", "--admin-url", "not a url")
    assert ended.code == 1
    assert ended.err.startswith("error: ")


def test_running_host_is_found_where_it_wrote_itself_down(faas, tmp_path):
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    (home / "token").write_text("t\n")
    (home / "run" / "host.json").write_text(json.dumps({"admin_url": "http://127.0.0.1:2"}))
    assert "http://127.0.0.1:2" in faas("list").err


def test_wrong_setting_is_an_error_line(faas, monkeypatch):
    monkeypatch.setenv("FAAS_TOKEN", "t")
    monkeypatch.setenv("FAAS_PORT", "99999")
    ended = faas("serve")
    assert ended.code == 1
    assert ended.err.startswith("error: ")


async def test_another_server_is_told_from_a_host(host, faas):
    ended = await host("list", "--admin-url", str(host.public.make_url("")))
    assert ended.code == 1
    assert "no host of ours" in ended.err


async def test_wrong_token_is_an_error_line(host, monkeypatch):
    monkeypatch.setenv("FAAS_TOKEN", "wrong")
    ended = await host("list")
    assert ended.code == 1
    assert ended.err.startswith("error: the admin token is missing or wrong")


async def test_deploy_prints_where_the_function_answers(host, wasm):
    ended = await host("deploy", wasm)
    assert ended.code == 0
    assert "my-func version 1 (command) serves:" in ended.out
    assert f"curl {host.public.make_url('/my-func')}" in ended.out
    assert "compile" in ended.err


async def test_deploy_prints_json_for_scripts(host, wasm):
    ended = await host("deploy", wasm, "--name", "a", "--route", "POST /x/{id}", "--env", "K=v=w", "--json")
    assert ended.err == ""
    assert ended.json["function"] == "a"
    assert ended.json["routes"] == ["POST /x/{id}"]
    assert ended.json["manifest"]["env"] == {"K": "v=w"}


async def test_deploy_of_a_folder_sends_what_function_toml_says(host, wasm, tmp_path):
    folder = tmp_path / "fn"
    (folder / "static").mkdir(parents=True)
    (folder / "static" / "page.html").write_text("<p>")
    wasm.rename(folder / "m.wasm")
    (folder / "function.toml").write_text('name = "fn"\nfiles = "static"\n[limits]\ntimeout_s = 3\n')
    ended = await host("deploy", folder, "--json")
    assert ended.code == 0
    assert ended.json["manifest"]["limits"] == {"timeout_s": 3.0}
    assert ended.json["bundle_digest"]


async def test_refused_deploy_is_one_line_and_exit_code_one(host, wasm):
    host.bench.compiler.refuse = CompileFailedError("the compiler\nsaid no")
    ended = await host("deploy", wasm)
    assert ended.code == 1
    assert ended.out == ""
    assert ended.err.splitlines()[-1] == "error: the compiler said no"


async def test_upload_over_the_limit_is_an_error_line(host, wasm):
    wasm.write_bytes(b"\0asm\1\0\0\0" + b"\0\xff\xff\x03" + b"\1a" + b"x" * 65_533)
    ended = await host("deploy", wasm)
    assert ended.code == 1
    assert "max_upload_bytes" in ended.err


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"(module)", b"\0asm\1\0"])
async def test_file_that_is_no_module_fails_before_it_is_sent(faas, wasm, content):
    wasm.write_bytes(content)
    ended = faas("deploy", wasm)
    assert ended.code == 1
    assert ended.err.startswith(f"error: {wasm}: ")


async def test_functions_are_listed_inspected_and_removed(host, wasm):
    await host("deploy", wasm)
    await host("deploy", wasm)
    listed = await host("list")
    assert listed.out.splitlines()[1].split()[:3] == ["my-func", "2", "command"]
    assert (await host("list", "--json")).json[0]["name"] == "my-func"
    inspected = (await host("inspect", "my-func")).out
    assert "limit timeout_s" in inspected
    assert "sha256:" in inspected
    assert (await host("inspect", "my-func", "--json")).json["active"]["version"] == 2
    assert [version["version"] for version in (await host("versions", "my-func", "--json")).json] == [2, 1]
    assert "live 100 %" in (await host("versions", "my-func")).out
    assert (await host("remove", "my-func")).code == 0
    gone = await host("inspect", "my-func")
    assert gone.code == 1
    assert gone.err.startswith("error: no function 'my-func'")
    assert "faas deploy" in (await host("list")).out


async def test_status_shows_the_workers(host):
    assert "serving" in (await host("status")).out
    assert len((await host("status", "--json")).json["workers"]) == 2


async def test_models_are_added_listed_and_removed(host, gguf, monkeypatch):
    assert "faas models add" in (await host("models", "list")).out
    assert (await host("models")).out == (await host("models", "list")).out
    path = gguf()
    monkeypatch.chdir(path.parent)
    added = await host("models", "add", "a", path.name)
    assert added.code == 0
    assert "a is registered: tiny" in added.out
    listed = (await host("models", "list")).out
    assert listed.splitlines()[1].split()[:3] == ["a", "320", "B"]
    assert "serving" in listed
    (model,) = (await host("models", "list", "--json")).json["models"]
    assert model["path"] == str(path)
    assert (await host("models", "remove", "a")).code == 0
    gone = await host("models", "remove", "a")
    assert (gone.code, gone.err.count("\n")) == (1, 1)


async def test_hashing_shows_a_bar_on_a_terminal_and_nothing_elsewhere(host, gguf, monkeypatch):
    assert (await host("models", "add", "a", gguf("one.gguf"))).err == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    shown = (await host("models", "add", "b", gguf("two.gguf", "other"))).err
    assert "hash two.gguf" in shown
    assert "320/320 bytes" in shown
    assert (await host("models", "add", "c", gguf("three.gguf", "third"), "--json")).err == ""


async def test_model_that_is_none_is_an_error_line(host, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"this is no model at all, whatever its name")
    ended = await host("models", "add", "a", tmp_path / "x.gguf")
    assert ended.code == 1
    assert ended.err.startswith(f"error: {tmp_path / 'x.gguf'}: no GGUF file")


async def test_model_whose_name_needs_quoting_is_an_error_line(host, gguf):
    for name in ("a/b", "..", "ü", ""):
        ended = await host("models", "add", name, gguf())
        assert (ended.code, ended.err.count("\n")) == (1, 1)


async def test_deploy_warns_on_stderr_of_a_model_that_is_not_there(host, wasm):
    ended = await host("deploy", wasm, "--model", "a")
    assert ended.code == 0
    assert "warning: my-func may use the model 'a', but there is none: 'faas models add a PATH.gguf'" in ended.err
    assert "warning" not in (await host("deploy", wasm, "--model", "a", "--json")).err
    assert "faas models add" in (await host("inspect", "my-func")).out


async def test_key_goes_to_stdout_alone_and_is_never_listed(host):
    assert "answer to this machine" in (await host("keys", "list")).out
    assert (await host("keys", "--json")).json == []
    made = await host("keys", "add", "bot", "--tokens-per-minute", "100")
    assert made.code == 0
    assert made.out.startswith("faas-")
    assert made.out.count("\n") == 1
    host.bench.counts.report(0, Stats({"key:anonymous": {"prompt_tokens": 42}}, {}))
    listed = (await host("keys", "list")).out
    assert "bot" in listed
    assert "(without a key)" in listed
    assert made.out.strip() not in listed
    assert (await host("keys", "list", "--json")).json[0]["tokens_per_minute"] == 100
    assert "answer to this machine" in (await host("keys", "remove", "bot")).err
    assert (await host("keys", "remove", "bot")).code == 1


async def test_status_shows_why_there_is_no_model_server(host):
    out = (await host("status")).out
    assert "absent: no model is registered" in out


async def test_logs_are_printed_for_people_and_for_scripts(host, wasm):
    await host("deploy", wasm)
    host.bench.logs.append(
        "my-func", b'{"ts":1.5,"version":1,"request_id":"r1","stream":"stderr","text":"hi\\u001b[2J"}\n'
    )
    shown = (await host("logs", "my-func")).out
    assert "v1 r1 hi" in shown
    assert "\x1b" not in shown
    assert (await host("logs", "my-func", "--json")).json["text"] == "hi\x1b[2J"


def test_event_line_shows_its_fields():
    line = b'{"ts":0,"version":2,"request_id":"r","stream":"event","event":"invocation.finished","outcome":"ok"}'
    assert readable(line).endswith("v2 r invocation.finished outcome=ok")


@pytest.mark.parametrize("line", [b"not json", b"[]", b'{"ts":"x"}', b'{"ts":1e300}', b"\xff"])
def test_line_that_is_none_of_ours_is_shown_as_it_is(line):
    assert readable(line)


async def test_invoke_sends_a_real_request_and_prints_the_bytes(host, wasm):
    await host("deploy", wasm, "--route", "/x/{id}")
    result = await _invoke(host, "my-func", "--data", "body", "-H", "X-A: b:c")
    assert (result.returncode, result.stdout) == (0, b"\xff answer")
    method, path, headers, body = host.requests[-1]
    assert (method, path, body) == ("POST", "/x/1", b"body")
    assert headers["X-A"] == "b:c"


async def test_invoke_of_a_status_from_400_is_exit_code_one(host, wasm):
    await host("deploy", wasm)
    result = await _invoke(host, "my-func", "--path", "/my-func?status=502", "-i")
    assert (result.returncode, result.stdout) == (1, b"\xff answer")
    assert result.stderr.startswith(b"HTTP/1.1 502")
    assert host.requests[-1][:2] == ("GET", "/my-func?status=502")


async def _invoke(host, *arguments):
    """In a process of its own: the body goes to stdout as bytes."""
    import asyncio

    command = [sys.executable, "-c", "from faas.cli import main; main()", "invoke", *arguments]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)


def test_run_ends_with_the_exit_code_of_the_program(faas, tmp_path, monkeypatch):
    seen = {}

    def run_once(path, args, env, dirs, models):
        seen.update(path=path, args=args, env=env, dirs=dirs, models=models)
        return 7

    monkeypatch.setattr("faas.cli.commands.run.run_once", run_once)
    ended = faas(
        "run", tmp_path / "x.wasm", "--env", "A=b", "--dir", "/src::/data", "--dir", "/same", "--", "-v", "arg"
    )
    assert ended.code == 7
    assert seen["path"] == tmp_path / "x.wasm"
    assert seen["args"] == ["-v", "arg"]
    assert seen["env"] == {"A": "b"}
    assert seen["dirs"] == [("/src", "/data"), ("/same", "/same")]
    assert seen["models"] is None


def test_run_with_a_model_needs_the_models_extra(faas, monkeypatch, tmp_path):
    monkeypatch.setattr("faas.control.modelserver.importlib.util.find_spec", lambda name: None)
    ended = faas("run", tmp_path / "x.wasm", "--model", "a=/x.gguf")
    assert (ended.code, ended.err) == (1, "error: --model needs the models extra: pip install 'faas[models]'\n")


def test_run_looks_at_a_model_before_it_starts_anything(faas, monkeypatch, tmp_path):
    monkeypatch.setattr("faas.cli.commands.run.why_no_models", lambda config: "")
    (tmp_path / "x.gguf").write_bytes(b"no model at all, but long enough")
    ended = faas("run", tmp_path / "x.wasm", "--model", f"a={tmp_path / 'x.gguf'}")
    assert ended.code == 1
    assert "no GGUF file" in ended.err


def test_serve_passes_models_on_as_settings(faas, monkeypatch, tmp_path):
    seen = {}

    async def serve_host(settings, ready):
        seen["settings"] = settings

    monkeypatch.setattr("faas.cli.commands.serve.serve_host", serve_host)
    monkeypatch.setattr("faas.cli.commands.serve.log.configure", lambda stream: None)
    monkeypatch.setenv("FAAS_MODELS", "a=/env.gguf,b=/env.gguf")
    monkeypatch.chdir(tmp_path)
    assert faas("serve", "--model", "a=flag.gguf").code == 0
    assert seen["settings"].models == {"a": str(tmp_path / "flag.gguf"), "b": "/env.gguf"}


def test_doctor_is_content_with_this_machine_or_says_what_to_do(faas, monkeypatch):
    monkeypatch.setenv("FAAS_PORT", "0")
    monkeypatch.setenv("FAAS_ADMIN_PORT", "0")
    monkeypatch.setenv("FAAS_POOL_SLOTS", "10")
    monkeypatch.setenv("FAAS_MAX_QUEUE", "10")
    ended = faas("doctor", "--json")
    findings = {finding["what"]: finding for finding in ended.json}
    assert findings["wasmtime C API"]["ok"]
    assert findings["home"]["ok"]
    assert ended.code == (0 if all(finding["ok"] or finding["optional"] for finding in ended.json) else 1)


def test_doctor_finds_a_taken_port_and_an_open_home(faas, monkeypatch, tmp_path):
    import socket

    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("FAAS_PORT", str(port))
        ended = faas("doctor")
    assert ended.code == 1
    assert f"✗ port {port}: another program listens there" in ended.out
    assert "✗ home permissions: 0755" in ended.out
    assert "chmod 700" in ended.out
