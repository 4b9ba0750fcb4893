"""Admin tokens and their roles, invoke keys and whom they open: over the admin API, and as workers hear of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from faas.control.access import Role, Tokens
from faas.control.api import AdminApi
from faas.control.endpoints.base import ACTOR, Endpoint
from faas.control.openapi import ENDPOINTS
from faas.errors import ForbiddenError, TokenTakenError, UnauthorizedError
from faas.state.base import InvokeKeyEntry
from faas.wire.messages import Stats

HOME = "the-home-token"


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def api_of(bench, tmp_path, groups=()):
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return AdminApi(
        config=bench.config,
        tokens=bench.tokens(HOME),
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
        groups=(*bench.groups(HOME), *groups),
    )


@pytest.fixture
async def client(bench, tmp_path):
    async with TestClient(TestServer(api_of(bench, tmp_path).app()), headers=bearer(HOME)) as client:
        yield client


async def made(client, name, role):
    response = await client.post("/api/tokens", json={"name": name, "role": role})
    assert response.status == 201
    return (await response.json())["token"]


async def code_of(response):
    return (await response.json())["code"]


def keys_told(bench):
    """Return what each worker goes by, as (function, name, requests per minute)."""
    return [
        [(key.function, key.name, key.requests_per_minute) for key in worker.invokekeys.keys]
        for worker in bench.fleet.workers
    ]


# --- roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "allowed"), [("read", ["read"]), ("deploy", ["read", "deploy"]), ("admin", ["read", "deploy", "admin"])]
)
def test_each_role_may_do_what_the_one_before_it_may(role, allowed):
    assert [needed.value for needed in Role if Role(role).allows(needed)] == allowed


def test_reading_wants_read_and_everything_else_deploy_unless_the_endpoint_says_more():
    assert Endpoint("GET", "/", "x", "x").needed_role is Role.READ
    assert {Endpoint(method, "/", "x", "x").needed_role for method in ("PUT", "POST", "DELETE")} == {Role.DEPLOY}
    assert Endpoint("GET", "/", "x", "x", role=Role.ADMIN).needed_role is Role.ADMIN


def test_what_opens_things_or_reads_the_machines_files_is_for_admins():
    wanted = {
        "tokens": Role.ADMIN,
        "add_token": Role.ADMIN,
        "remove_token": Role.ADMIN,
        "add_key": Role.ADMIN,
        "remove_key": Role.ADMIN,
        "add_model": Role.ADMIN,
        "remove_model": Role.ADMIN,
        "deploy": Role.DEPLOY,
        "remove": Role.DEPLOY,
        "add_invoke_key": Role.DEPLOY,
        "remove_invoke_key": Role.DEPLOY,
        "functions": Role.READ,
        "logs": Role.READ,
        "invoke_keys": Role.READ,
    }
    assert {e.operation: e.needed_role for e in ENDPOINTS if e.operation in wanted} == wanted


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if not e.public], ids=lambda endpoint: endpoint.operation)
async def test_a_role_that_is_too_low_is_told_which_one_is_needed(bench, client, endpoint):
    lower = [role for role in Role if not role.allows(endpoint.needed_role)]
    for role in lower:
        token = await made(client, role.value, role.value)
        path = re.sub(r"\{\w+\}", "hello", endpoint.path)
        response = await client.request(endpoint.method, path, headers=bearer(token))
        assert response.status == 403
        problem = await response.json()
        assert (problem["code"], problem["role"]) == ("forbidden", endpoint.needed_role.value)
        assert endpoint.needed_role.value in problem["detail"]


async def test_the_document_names_the_role_of_each_operation(client):
    document = await (await client.get("/api/openapi.json")).json()
    told = {
        operation["operationId"]: operation.get("security", [{"token": None}])[0]["token"]
        for methods in document["paths"].values()
        for operation in methods.values()
    }
    assert told == {e.operation: None if e.public else [e.needed_role.value] for e in ENDPOINTS}


async def test_handlers_know_who_asks(bench, tmp_path, monkeypatch):
    seen = []

    async def functions(_self, request):
        seen.append(request[ACTOR])
        return web.Response()

    monkeypatch.setattr(AdminApi, "functions", functions)
    async with TestClient(TestServer(api_of(bench, tmp_path).app())) as client:
        await bench.tokens(HOME).add("ci", Role.READ)
        _, text = await bench.tokens(HOME).add("watch", Role.DEPLOY)
        for token in (HOME, text):
            assert (await client.get("/api/functions", headers=bearer(token))).status == 200
    assert [(actor.name, actor.role) for actor in seen] == [("home", Role.ADMIN), ("watch", Role.DEPLOY)]


# --- tokens ----------------------------------------------------------------------------------------------------------


async def test_a_token_is_shown_once_and_kept_as_its_hash(bench, client):
    response = await client.post("/api/tokens", json={"name": "ci", "role": "deploy"})
    assert response.headers["Cache-Control"] == "no-store"
    text = (await response.json())["token"]
    listed = await (await client.get("/api/tokens")).json()
    assert [(token["name"], token["role"]) for token in listed["tokens"]] == [("ci", "deploy")]
    assert text not in json.dumps(listed)
    (entry,) = await bench.state.access.tokens()
    assert entry.sha256 == hashlib.sha256(text.encode()).hexdigest()


async def test_a_removed_token_opens_nothing_any_more_and_the_one_in_the_home_always_does(client):
    token = await made(client, "ci", "admin")
    assert (await client.get("/api/status", headers=bearer(token))).status == 200
    assert (await client.delete("/api/tokens/ci", headers=bearer(token))).status == 204  # its own last act
    assert await code_of(await client.get("/api/status", headers=bearer(token))) == "unauthorized"
    assert (await client.get("/api/status")).status == 200


async def test_a_log_follower_is_cut_off_when_its_token_is_removed(bench, client):
    bench.logs.append("hello", b'{"n": 1}\n')
    token, other = await made(client, "ci", "read"), await made(client, "other", "read")
    path = "/api/functions/hello/logs?follow=1"
    async with client.get(path, headers=bearer(token)) as cut, client.get(path, headers=bearer(other)) as kept:
        assert await cut.content.readline() == await kept.content.readline() == b'{"n": 1}\n'
        assert (await client.delete("/api/tokens/ci")).status == 204
        with pytest.raises(aiohttp.ClientPayloadError):
            await cut.content.read()
        bench.logs.append("hello", b'{"n": 2}\n')
        assert await kept.content.readline() == b'{"n": 2}\n'


async def test_names_of_tokens_are_taken_once_and_the_homes_never(client):
    await made(client, "ci", "read")
    for name in ("ci", "home"):
        response = await client.post("/api/tokens", json={"name": name, "role": "read"})
        assert (response.status, await code_of(response)) == (409, "token-taken")
    response = await client.delete("/api/tokens/home")
    assert (response.status, await code_of(response)) == (404, "token-not-found")


@pytest.mark.parametrize(
    "wanted",
    [{"name": "x"}, {"name": "x", "role": "root"}, {"name": "", "role": "read"}, {"name": "a b", "role": "read"}],
)
async def test_a_token_without_a_name_or_a_role_is_refused(client, wanted):
    response = await client.post("/api/tokens", json=wanted)
    assert (response.status, await code_of(response)) == (400, "bad-request")


async def test_tokens_are_good_again_after_a_restart(bench):
    _, text = await bench.tokens(HOME).add("ci", Role.DEPLOY)
    again = Tokens(bench.state.access, HOME)
    with pytest.raises(UnauthorizedError):
        again.identify(f"Bearer {text}", Role.READ)
    await again.load()
    assert again.identify(f"Bearer {text}", Role.DEPLOY)[0].name == "ci"
    with pytest.raises(ForbiddenError):
        again.identify(f"Bearer {text}", Role.ADMIN)
    with pytest.raises(TokenTakenError):
        await again.add("ci", Role.READ)


# --- invoke keys -----------------------------------------------------------------------------------------------------


async def test_an_invoke_key_is_shown_once_and_every_worker_takes_it_when_it_is(bench, client):
    await bench.deployer.deploy(bench.upload(), lambda _stage: None)
    response = await client.post("/api/functions/hello/keys", json={"name": "bot", "requests_per_minute": 5})
    assert response.status == 201
    text = (await response.json())["key"]
    assert keys_told(bench) == [[("hello", "bot", 5)]] * 2
    assert bench.fleet.workers[0].invokekeys.keys[0].sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert text not in await (await client.get("/api/invoke-keys")).text()
    assert (await client.delete("/api/functions/hello/keys/bot")).status == 204
    assert keys_told(bench) == [[], []]


async def test_a_worker_that_starts_later_is_told_the_keys_twice_over(bench):
    await bench.invoke_keys.add("hello", "bot", 5)
    bench.fleet.spawned.clear()
    bench.fleet.workers[0].die()
    await bench.fleet.spawned.wait()
    late = bench.fleet.workers[-1]
    assert late.settings["invoke_keys"][0]["name"] == "bot"
    while late.invokekeys is None:
        await asyncio.sleep(0)
    assert [key.name for key in late.invokekeys.keys] == ["bot"]


async def test_keys_are_listed_with_what_they_were_used_for(bench, client):
    await bench.invoke_keys.add("hello", "bot", 5)
    await bench.invoke_keys.add("other", "bot", 0)
    bench.counts.report(
        0, Stats({"invoke:hello:bot": {"requests": 3, "rate_limited": 1}, "hello": {"key_refused": 2}}, {})
    )
    listed = await (await client.get("/api/invoke-keys?function=hello")).json()
    (key,) = listed["keys"]
    assert (key["function"], key["name"], key["requests_per_minute"]) == ("hello", "bot", 5)
    assert key["counters"] == {"requests": 3, "rate_limited": 1}
    everywhere = await (await client.get("/api/invoke-keys")).json()
    assert [(key["function"], key["counters"]) for key in everywhere["keys"]][1] == ("other", {})
    metrics = await (await client.get("/metrics")).text()
    assert 'faas_invoke_key_requests_total{function="hello",key="bot"} 3' in metrics
    assert 'faas_invoke_key_rate_limited_total{function="hello",key="bot"} 1' in metrics
    assert 'faas_invoke_key_refused_total{function="hello"} 2' in metrics
    assert 'function="invoke:' not in metrics


async def test_a_key_is_of_a_function_that_is_there(bench, client):
    response = await client.post("/api/functions/nobody/keys", json={"name": "bot"})
    assert (response.status, await code_of(response)) == (404, "function-not-found")
    response = await client.delete("/api/functions/nobody/keys/bot")
    assert (response.status, await code_of(response)) == (404, "key-not-found")


async def test_a_functions_keys_go_with_it(bench, client):
    await bench.deployer.deploy(bench.upload(), lambda _stage: None)
    await bench.invoke_keys.add("hello", "bot", 0)
    await bench.invoke_keys.add("other", "bot", 0)
    assert (await client.delete("/api/functions/hello")).status == 204
    assert keys_told(bench) == [[("other", "bot", 0)]] * 2


# --- state that hosts share ------------------------------------------------------------------------------------------


async def test_what_another_host_changed_is_gone_by_after_another_look(bench):
    tokens = bench.tokens(HOME)
    other = Tokens(bench.state.access, "another home")  # as on another host with the same database
    _, text = await other.add("ci", Role.READ)
    await bench.state.access.add_invoke_key(InvokeKeyEntry("hello", "bot", "0" * 64))
    await tokens.load()
    await bench.invoke_keys.spread()
    assert tokens.identify(f"Bearer {text}", Role.READ)[0].name == "ci"
    assert keys_told(bench) == [[("hello", "bot", 0)]] * 2
    await other.remove("ci")
    await tokens.load()
    with pytest.raises(UnauthorizedError):
        tokens.identify(f"Bearer {text}", Role.READ)
