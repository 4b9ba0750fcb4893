"""The admin API is what its document says, and nothing of it answers without the token."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from faas.control.api import AdminApi
from faas.control.openapi import ENDPOINTS
from faas.errors import CompileFailedError
from faas.problems import CONTENT_TYPE
from faas.wire.messages import Stats
from faas.wire.models import ModelStats

TOKEN = "the-token"
NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
def api(bench, tmp_path):
    (tmp_path / "tmp").mkdir()
    return AdminApi(
        config=bench.config,
        tokens=bench.tokens(TOKEN),
        on_removed=(bench.invoke_keys.forget_function,),
        public_url="http://127.0.0.1:8080",
        admin_url="http://127.0.0.1:8081",
        state=bench.state,
        deployer=bench.deployer,
        supervisor=bench.supervisor,
        models=bench.models,
        model_server=bench.model_server,
        keys=bench.keys,
        logs=bench.logs,
        counts=bench.counts,
        clock=bench.clock,
        upload_dir=tmp_path / "tmp",
        groups=bench.groups(TOKEN),
    )


@pytest.fixture
async def client(api, tmp_path):
    server = TestServer(api.app())
    async with TestClient(server, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.fixture
async def served(api):
    """A server as the host runs it; aiohttp's test server cancels handlers whose caller hung up, too."""
    server = TestServer(api.app())
    await server.start_server()
    yield server
    await server.close()


def form(manifest=None, module=b"\0asm hello", **more):
    data = aiohttp.FormData()
    if manifest is not None:
        data.add_field("manifest", json.dumps(manifest), content_type="application/json")
    if module is not None:
        data.add_field("module", module, filename="m.wasm", content_type="application/wasm")
    for name, value in more.items():
        data.add_field(name, value, filename=name)
    return data


async def problem_of(response):
    assert response.content_type == CONTENT_TYPE
    problem = await response.json()
    assert problem["status"] == response.status
    return problem


def routes_of(app):
    return {(route.method.lower(), route.resource.canonical) for route in app.router.routes()}


async def test_document_and_routes_are_the_same(api, client):
    document = await (await client.get("/api/openapi.json")).json()
    documented = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert documented == routes_of(api.app())
    assert document["openapi"].startswith("3.1")


async def test_document_refers_only_to_schemas_it_has(client):
    text = await (await client.get("/api/openapi.json")).text()
    schemas = json.loads(text)["components"]["schemas"]
    referred = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert referred <= set(schemas)
    assert {"Manifest", "Limits", "Status", "DeploymentView", "Problem"} <= set(schemas)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.operation)
async def test_token_is_asked_for_everywhere_but_where_the_document_says(api, endpoint):
    async with TestClient(TestServer(api.app())) as stranger:
        for authorization in (None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN):
            headers = {} if authorization is None else {"Authorization": authorization}
            path = re.sub(r"\{\w+\}", "hello", endpoint.path)
            response = await stranger.request(endpoint.method, path, headers=headers)
            if endpoint.public:
                assert response.status == 200
            else:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                assert (await problem_of(response))["code"] == "unauthorized"


async def test_deploy_answers_with_the_deployment(client):
    response = await client.put("/api/functions/hello", data=form({"name": "hello", "routes": ["GET /hi/{id}"]}))
    assert response.status == 201
    view = await response.json()
    assert (view["function"], view["version"], view["kind"]) == ("hello", 1, "command")
    assert view["urls"] == ["http://127.0.0.1:8080/hi/{id}"]


async def test_deploy_without_a_manifest_takes_the_name_of_the_path(client):
    view = await (await client.put("/api/functions/hello", data=form())).json()
    assert view["routes"] == ["/hello"]


async def test_deploy_takes_a_manifest_in_toml(client):
    data = form()
    data.add_field("manifest", 'name = "hello"\nroutes = ["/toml"]\n', content_type="application/toml")
    view = await (await client.put("/api/functions/hello", data=data)).json()
    assert view["routes"] == ["/toml"]


async def test_deploy_tells_its_stages_line_by_line(client):
    response = await client.put("/api/functions/hello", data=form(), headers=NDJSON)
    assert response.status == 200
    events = [json.loads(line) for line in (await response.text()).splitlines()]
    assert [event.get("stage") for event in events[:-1]] == ["upload", "compile", "prepare", "activate"]
    assert events[-1]["event"] == "done"
    assert events[-1]["deployment"]["version"] == 1


async def test_refused_deploy_ends_its_lines_with_the_problem(bench, client):
    bench.compiler.refuse = CompileFailedError("the compiler said no")
    response = await client.put("/api/functions/hello", data=form(), headers=NDJSON)
    last = json.loads((await response.text()).splitlines()[-1])
    assert last["event"] == "failed"
    assert last["problem"]["code"] == "compile-failed"
    assert last["problem"]["detail"] == "the compiler said no"


async def test_refused_deploy_without_lines_is_a_problem_document(bench, client):
    bench.compiler.refuse = CompileFailedError("the compiler said no")
    response = await client.put("/api/functions/hello", data=form())
    assert response.status == 422
    assert (await problem_of(response))["code"] == "compile-failed"


async def test_bug_is_an_internal_error_and_says_nothing_of_its_inside(bench, client):
    bench.compiler.refuse = RuntimeError("secret detail")
    for headers in ({}, NDJSON):
        response = await client.put("/api/functions/hello", data=form(), headers=headers)
        text = await response.text()
        assert "internal-error" in text
        assert "secret" not in text


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (form(module=None, manifest={"name": "hello"}), 400, "bad-request"),
        (form(surprise=b"x"), 400, "bad-request"),
        (form({"name": "other"}), 400, "bad-request"),
        (form({"nmae": "hello"}), 422, "manifest-invalid"),
        (form([1, 2]), 422, "manifest-invalid"),
        (form({"limits": {"timeout_s": -1}}), 422, "manifest-invalid"),
        (form(module=b"\0asm" + b"x" * 70_000), 413, "upload-too-large"),
        (form(bundle=b"x" * 70_000), 413, "upload-too-large"),
        (b"no form at all", 400, "bad-request"),
    ],
    ids=[
        "no-module",
        "unknown-part",
        "other-name",
        "unknown-key",
        "list",
        "limit",
        "module-size",
        "bundle-size",
        "raw",
    ],
)
async def test_malformed_deploy_is_refused(client, data, status, code):
    response = await client.put("/api/functions/hello", data=data)
    assert response.status == status
    assert (await problem_of(response))["code"] == code


@pytest.mark.parametrize(
    "body",
    [b"", b"--x", b"--x\r\n", b"--x\r\nContent-Disposition: form-data; name=module\r\n\r\nabc", b"\r\n--x--\r\n"],
)
async def test_broken_multipart_is_a_bad_request(client, body):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = await client.put("/api/functions/hello", data=body, headers=headers)
    assert response.status in {400, 201}  # a last part without its end mark is whole for all one can tell
    if body != b"--x\r\nContent-Disposition: form-data; name=module\r\n\r\nabc":
        assert (await problem_of(response))["code"] == "bad-request"


async def test_multipart_without_a_boundary_is_a_bad_request(client):
    response = await client.put("/api/functions/hello", data=b"x", headers={"Content-Type": "multipart/form-data"})
    assert (await problem_of(response))["code"] == "bad-request"


async def test_taken_route_is_a_conflict(client):
    await client.put("/api/functions/a", data=form({"routes": ["/x"]}))
    response = await client.put("/api/functions/b", data=form({"routes": ["/x"]}))
    assert response.status == 409
    assert (await problem_of(response))["owner"] == "a"


async def test_caller_that_hangs_up_cancels_its_deploy(bench, served):
    bench.compiler.may_go_on.clear()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}", **NDJSON}) as session:
        response = await session.put(served.make_url("/api/functions/hello"), data=form())
        await bench.compiler.entered.wait()
        response.close()
    async with bench.deployer._lock:  # free again once the cancelled deploy has cleaned up
        bench.compiler.may_go_on.set()
    assert bench.stored() == []
    assert await bench.state.functions.active_deployments() == ()


async def test_functions_are_listed_with_their_counters(bench, client):
    await client.put("/api/functions/hello", data=form())
    bench.counts.report(0, Stats({"hello": {"invocations": 3, "ok": 3}}, {}))
    (function,) = (await (await client.get("/api/functions")).json())["functions"]
    assert (function["name"], function["version"], function["counters"]["invocations"]) == ("hello", 1, 3)


async def test_function_shows_what_it_takes_on_the_disk(client):
    await client.put("/api/functions/hello", data=form())
    function = await (await client.get("/api/functions/hello")).json()
    assert function["wasm_bytes"] == len(b"\0asm hello")
    assert function["artifact_bytes"] == len(b"native \0asm hello")
    assert function["active"]["version"] == 1


async def test_versions_are_listed_newest_first(client):
    await client.put("/api/functions/hello", data=form())
    await client.put("/api/functions/hello", data=form(module=b"\0asm second"))
    versions = (await (await client.get("/api/functions/hello/versions")).json())["versions"]
    assert [(version["version"], version["active"]) for version in versions] == [(2, True), (1, False)]


async def test_removed_function_is_gone(client):
    await client.put("/api/functions/hello", data=form())
    assert (await client.delete("/api/functions/hello")).status == 204
    for path in ("/api/functions/hello", "/api/functions/hello/versions", "/api/functions/hello/logs"):
        response = await client.get(path)
        assert (await problem_of(response))["code"] == "function-not-found"
    assert (await client.delete("/api/functions/hello")).status == 404


async def test_logs_begin_with_the_tail(bench, client):
    await client.put("/api/functions/hello", data=form())
    for i in range(5):
        bench.logs.append("hello", b'{"i":%d}\n' % i)
    response = await client.get("/api/functions/hello/logs?tail=2")
    assert await response.read() == b'{"i":3}\n{"i":4}\n'


async def test_followed_logs_go_on_with_new_lines(bench, client):
    await client.put("/api/functions/hello", data=form())
    bench.logs.append("hello", b'{"i":0}\n')
    response = await client.get("/api/functions/hello/logs?tail=1&follow=1")
    assert await response.content.readline() == b'{"i":0}\n'
    bench.logs.append("hello", b'{"i":1}\n')
    assert await response.content.readline() == b'{"i":1}\n'
    bench.logs.end_followers()
    assert await response.content.read() == b""


async def test_caller_that_hangs_up_stops_following(bench, served):
    await bench.deployer.deploy(bench.upload(), lambda stage: None)
    bench.logs.append("hello", b"{}\n")
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        response = await session.get(served.make_url("/api/functions/hello/logs?follow=1"))
        assert await response.content.readline() == b"{}\n"
        assert len(bench.logs._followers) == 1
        response.close()
        async with asyncio.timeout(5):
            while bench.logs._followers:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("query", ["tail=-1", "tail=x", "tail=100001", "follow=2", "follow=yes", "tail=²"])
async def test_log_parameter_out_of_its_range_is_a_bad_request(client, query):
    response = await client.get(f"/api/functions/hello/logs?{query}")
    assert (await problem_of(response))["code"] == "bad-request"


async def test_status_shows_workers(client, bench):
    status = await (await client.get("/api/status")).json()
    assert [worker["state"] for worker in status["workers"]] == ["serving", "serving"]
    assert status["home"] == bench.config.home
    assert status["model_server"]["state"] == "absent"
    assert status["model_server"]["reason"]
    assert status["public_url"] == "http://127.0.0.1:8080"


async def test_metrics_are_prometheus_text(bench, client):
    await client.put("/api/functions/hello", data=form())
    counters = {"invocations": 2, "ok": 1, "failed": 1, "duration_ms": 1500, "start_ms": 1, "cpu_ms": 2}
    bench.counts.report(0, Stats({"hello": counters}, {"active": 1}))
    response = await client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = (await response.text()).splitlines()
    assert 'faas_invocations_total{function="hello"} 2' in lines
    assert 'faas_invocation_outcomes_total{function="hello",outcome="failed"} 1' in lines
    assert 'faas_invocation_duration_seconds_total{function="hello"} 1.5' in lines
    assert 'faas_worker_active{worker="0"} 1' in lines
    assert "faas_workers_serving 2" in lines


async def test_tokens_are_in_the_metrics_per_function_key_and_model(bench, client, gguf):
    await bench.models.add("m", gguf())
    used = {"prompt_tokens": 7, "generated_tokens": 3, "model_requests": 1}
    bench.counts.report(0, Stats({"chat": {"invocations": 1, **used}, "key:bot": used}, {}))
    counted = {"loads": 1, "cached_tokens": 5, "cells_used": 9, "saved_bytes": 4096}
    bench.model_server.counts.report(ModelStats({"m": counted}, {}))
    lines = (await (await client.get("/metrics")).text()).splitlines()
    assert 'faas_tokens_total{function="chat",kind="prompt"} 7' in lines
    assert 'faas_function_model_requests_total{function="chat"} 1' in lines
    assert 'faas_key_tokens_total{key="bot",kind="generated"} 3' in lines
    assert 'faas_model_loads_total{model="m"} 1' in lines
    assert 'faas_model_tokens_total{model="m",kind="cached"} 5' in lines
    assert 'faas_model_cells_used{model="m"} 9' in lines
    assert 'faas_model_saved_bytes{model="m"} 4096' in lines
    assert "faas_model_server_serving 1" in lines
    assert not any("key:bot" in line for line in lines)
    assert len({line for line in lines if line.startswith("# TYPE")}) == sum("# TYPE" in line for line in lines)


async def test_model_is_added_listed_shown_and_removed(bench, client, gguf):
    bench.model_fleet.loaded = {"a"}
    response = await client.put("/api/models/a", json={"path": str(gguf())})
    assert response.status == 201
    added = await response.json()
    assert (added["source"], added["loaded"], added["n_ctx"]) == ("registered", True, 512)
    listed = await (await client.get("/api/models")).json()
    assert listed["models"] == [added]
    assert listed["server"]["state"] == "serving"
    assert await (await client.get("/api/models/a")).json() == added
    assert (await client.delete("/api/models/a")).status == 204
    for method in ("GET", "DELETE"):
        gone = await client.request(method, "/api/models/a")
        assert (await problem_of(gone))["code"] == "model-not-found"


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("a", b"", "bad-request"),
        ("a", b"[]", "bad-request"),
        ("a", b'{"path": 1}', "bad-request"),
        ("a", b'{"path": "/x", "more": 1}', "bad-request"),
        ("a", b'{"path": "relative.gguf"}', "bad-request"),
        ("a", b'{"path": "/a\\u0000b"}', "bad-request"),
        ("a", b'{"path": "' + b"x" * 2_000_000 + b'"}', "bad-request"),
        ("-a", b'{"path": "/x"}', "bad-request"),
        ("%20", b'{"path": "/x"}', "bad-request"),
        ("a", b'{"path": "/no/such/file.gguf"}', "model-file-invalid"),
    ],
)
async def test_malformed_model_is_refused(bench, client, name, body, code):
    response = await client.put(URL(f"/api/models/{name}", encoded=True), data=io.BytesIO(body))
    assert (await problem_of(response))["code"] == code
    assert bench.models.known() == []


async def test_addition_of_a_model_can_be_followed_line_by_line(bench, client, gguf):
    path = gguf()
    response = await client.put("/api/models/a", json={"path": str(path)}, headers=NDJSON)
    *hashing, last = [json.loads(line) for line in (await response.text()).splitlines()]
    assert hashing == [{"event": "hashing", "done_bytes": path.stat().st_size}]
    assert last == {"event": "added", "model": await (await client.get("/api/models/a")).json()}


@pytest.mark.parametrize("headers", [{}, NDJSON])
async def test_caller_that_hangs_up_ends_the_hashing_of_a_model(bench, served, gguf, monkeypatch, headers):
    entered, ended, went_on = asyncio.Event(), asyncio.Event(), []
    loop, hung_up = asyncio.get_running_loop(), threading.Event()

    def slow(_path, *, on_read):
        try:
            on_read(1)
            loop.call_soon_threadsafe(entered.set)
            hung_up.wait(5)
            on_read(2)
            went_on.append(True)
        finally:
            loop.call_soon_threadsafe(ended.set)

    monkeypatch.setattr("faas.control.models.digest_of", slow)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}", **headers}) as session:
        asking = asyncio.create_task(session.put(served.make_url("/api/models/a"), json={"path": str(gguf())}))
        await entered.wait()
        asking.cancel()  # before its answer; one that comes in lines has begun
        for answer in await asyncio.gather(asking, return_exceptions=True):
            if isinstance(answer, aiohttp.ClientResponse):
                answer.close()
    async with bench.models._lock:  # free again once the handler is cancelled
        hung_up.set()
    await ended.wait()
    assert not went_on
    assert bench.models.known() == []


async def test_refused_addition_of_a_model_ends_with_the_problem(bench, client, tmp_path):
    response = await client.put("/api/models/a", json={"path": str(tmp_path / "none")}, headers=NDJSON)
    (line,) = (await response.text()).splitlines()
    failed = json.loads(line)
    assert (failed["event"], failed["problem"]["code"]) == ("failed", "model-file-invalid")
    assert failed["problem"]["missing"]
    assert bench.models.known() == []


async def test_deploy_warns_of_a_model_that_is_not_there(client, gguf):
    manifest = {"capabilities": {"models": ["a"]}}
    view = await (await client.put("/api/functions/hello", data=form(manifest))).json()
    assert "faas models add a" in view["warnings"][0]
    response = await client.put("/api/functions/hello", data=form(manifest), headers=NDJSON)
    assert json.loads((await response.text()).splitlines()[-1])["deployment"]["warnings"]
    await client.put("/api/models/a", json={"path": str(gguf())})
    assert (await (await client.get("/api/functions/hello")).json())["active"]["warnings"] == []


async def test_key_is_shown_once_then_only_its_numbers(bench, client):
    response = await client.post("/api/keys", json={"name": "bot", "tokens_per_minute": 100})
    assert (response.status, response.headers["Cache-Control"]) == (201, "no-store")
    made = await response.json()
    assert made["key"].startswith("faas-")
    bench.counts.report(0, Stats({"key:bot": {"prompt_tokens": 2}}, {}))
    text = await (await client.get("/api/keys")).text()
    assert made["key"] not in text
    (key,) = json.loads(text)["keys"]
    assert (key["name"], key["tokens_per_minute"], key["counters"]) == ("bot", 100, {"prompt_tokens": 2})
    assert (await (await client.get("/api/functions")).json())["functions"] == []
    assert (await client.delete("/api/keys/bot")).status == 204
    gone = await problem_of(await client.delete("/api/keys/bot"))
    assert (gone["status"], gone["code"]) == (404, "key-not-found")


@pytest.mark.parametrize("name", ["bot", "anonymous"])
async def test_name_of_a_key_that_is_taken_is_refused(client, name):
    await client.post("/api/keys", json={"name": "bot"})
    problem = await problem_of(await client.post("/api/keys", json={"name": name}))
    assert (problem["status"], problem["code"]) == (409, "key-taken")


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": "a b"}, {"name": "a", "tokens_per_minute": -1}, {"name": "a", "key": "x"}]
)
async def test_malformed_key_is_refused(client, body):
    assert (await problem_of(await client.post("/api/keys", json=body)))["code"] == "bad-request"


async def test_unknown_path_and_method_are_problems(client):
    response = await client.get("/api/nothing")
    assert (await problem_of(response))["code"] == "route-not-found"
    response = await client.post("/api/status")
    assert response.headers["Allow"] == "GET"
    assert (await problem_of(response))["code"] == "method-not-allowed"


async def test_every_answer_carries_a_request_id(client):
    ok = await client.get("/api/status")
    refused = await client.get("/api/functions/nobody")
    assert ok.headers["X-Request-Id"]
    assert refused.headers["X-Request-Id"] == (await refused.json())["request_id"]


@pytest.mark.parametrize("token", [TOKEN.encode() + b"\xff", b"\xff\xfe", "tökén".encode(), "tökén".encode("latin-1")])
async def test_token_that_is_not_ascii_is_wrong_and_no_bug(api, token):
    async with TestServer(api.app()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + token + b"\r\n\r\n"
        )
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_manifest_with_half_a_surrogate_pair_is_refused_by_name(client):
    response = await client.put("/api/functions/hello", data=form({"env": {"A": "\ud800"}}))
    assert (await problem_of(response))["code"] == "manifest-invalid"


async def test_upload_onto_a_full_disk_says_so(client, monkeypatch):
    def full(function, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("faas.control.api.asyncio.to_thread", full)
    response = await client.put("/api/functions/hello", data=form())
    problem = await problem_of(response)
    assert (problem["code"], "disk full" in problem["detail"]) == ("state-failed", True)


async def test_document_writes_patterns_as_json_schema_does(client):
    schemas = (await (await client.get("/api/openapi.json")).json())["components"]["schemas"]
    pattern = schemas["Manifest"]["properties"]["name"]["pattern"]
    assert pattern.startswith("^")
    assert pattern.endswith("$")
    assert r"\Z" not in json.dumps(schemas)
