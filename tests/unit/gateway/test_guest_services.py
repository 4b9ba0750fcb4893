"""Guests reach the outside through the gateway: credentials stay the host's, and nothing outlives an invocation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import wasmtime
import wasmtime.component
from aiohttp import web
from aiohttp.test_utils import TestServer
from whole_gateways import whole_gateway
from wires import Served

from faas.clock import SystemClock
from faas.config import HostConfig, PoolConfig
from faas.errors import InternalError
from faas.gateway.code import Code, code_key
from faas.gateway.instance import Instance, NotPreparableError
from faas.gateway.journal import Journal
from faas.gateway.outbound import Outbound
from faas.gateway.services import ServiceGate
from faas.invocation import Deployment, Kind
from faas.manifest import manifest_from_builtins
from faas.testing.services import MemoryConfig, MemoryKv, MemorySecrets
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.runtime import Runtime

ROOT = Path(__file__).parents[3]
CONFIG = HostConfig(pool=PoolConfig(slots=4), guest_threads=1)
SECRET = "hunter2-in-no-log"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    made = Runtime(CONFIG)
    yield made
    assert made.alive == 0
    made.close()


def native(name: str) -> bytes:
    wasm = (ROOT / "functions" / name).read_bytes()
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
    if name.startswith("http/"):
        return bytes(wasmtime.component.Component(engine, wasm).serialize())
    return bytes(wasmtime.Module(engine, wasm).serialize())


class NoSessions(ServiceGate):
    """Fails whoever asks for a session."""

    def session(self, *_: Any) -> Any:
        pytest.fail("nobody asked for anything")


@pytest.mark.parametrize(
    ("name", "kind"), [("hello-reactor/hello-reactor", Kind.REACTOR), ("hello-command/hello-command", Kind.COMMAND)]
)
async def test_a_guest_that_asks_for_nothing_costs_no_session(runtime: Runtime, name: str, kind: Kind) -> None:
    template = runtime.load(native(f"{name}.wasm"))
    async with whole_gateway(runtime, template, kind, services=NoSessions(Outbound())) as one:
        assert b" 200 " in await one.send(b"GET /f HTTP/1.1\r\nHost: h\r\n\r\n")
    template.close()


class Origin:
    """A server on loopback that keeps the headers it got."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.n_open = 0
        self.gone = asyncio.Event()
        self.asked = asyncio.Event()
        self.answer: Any = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append({name.lower(): value for name, value in request.headers.items()})
        self.asked.set()
        if self.answer is not None:
            try:
                return await self.answer(request)
            finally:
                self.gone.set()
        return web.Response(text="hello from the origin\n")

    async def start(self) -> TestServer:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        server = TestServer(app)
        await server.start_server()
        return server


class World:
    """A gateway with one function, an origin that it may reach, and what was logged."""

    def __init__(self, one: Served, origin: Origin, url: str, journal: Journal) -> None:
        self.one = one
        self.origin = origin
        self.url = url
        self._journal = journal

    async def get(self, query: str) -> bytes:
        return await self.one.send(f"GET /f?{query} HTTP/1.1\r\nHost: h\r\n\r\n".encode())

    @property
    def log(self) -> str:
        return "\n".join(line.decode() for lines in self._journal._lines.values() for line in lines)


@asynccontextmanager
async def world(
    runtime: Runtime,
    name: str = "services/services-c.wasm",
    kind: Kind = Kind.COMMAND,
    *,
    credential: dict[str, str] | None = None,
    secrets: dict[tuple[str, str], str] | None = None,
    other: str = "",
    **limits: float,
) -> AsyncIterator[World]:
    origin = Origin()
    server = await origin.start()
    url = f"http://127.0.0.1:{server.port}"
    capabilities: dict[str, Any] = {"outbound": [url, *([other] if other else [])]}
    if credential is not None:
        capabilities["credentials"] = [{"host": url, **credential}]
    outbound = Outbound()
    services = ServiceGate(outbound)
    services.secrets = MemorySecrets(secrets or {})
    journal = Journal(dict)
    load = runtime.load_component if kind is Kind.HTTP else runtime.load
    template = load(native(name))
    try:
        async with whole_gateway(
            runtime,
            template,  # type: ignore[arg-type]
            kind,
            manifest={"capabilities": capabilities},
            services=services,
            outbound=outbound,
            journal=journal,
            **limits,
        ) as one:
            yield World(one, origin, url, journal)
            await one.idle()
            while outbound._client.n_running:
                await asyncio.sleep(0)
    finally:
        template.close()
        await server.close()


async def test_a_core_module_fetches_and_passes_the_body_on(runtime: Runtime) -> None:
    async with world(runtime) as here:
        reply = await here.get(f"fetch={here.url}/x")
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert b"hello from the origin\n" in reply
        assert here.origin.seen[0]["authorization"] == "mine"


async def test_a_core_module_reaches_only_what_its_manifest_names(runtime: Runtime) -> None:
    async with world(runtime) as here:
        for url in ("http://169.254.169.254/", "http://localhost:1/", f"{here.url[:-1]}0/"):
            assert b"not granted" in await here.get(f"fetch={url}")
        assert here.origin.seen == []
        assert "169.254.169.254" in here.log


# Credentials


CREDENTIAL = {"secret": "API_KEY", "format": "Token {}"}


@pytest.mark.parametrize(
    ("name", "kind", "query"),
    [("services/services-c.wasm", Kind.COMMAND, "fetch={}/x"), ("http/outbound.wasm", Kind.HTTP, "{}/x")],
)
async def test_a_credential_is_added_by_the_host_and_seen_by_nobody_else(
    runtime: Runtime, name: str, kind: Kind, query: str
) -> None:
    async with world(runtime, name, kind, credential=CREDENTIAL, secrets={("f", "API_KEY"): SECRET}) as here:
        reply = await here.get(query.format(here.url))
        assert b"hello from the origin\n" in reply
        assert here.origin.seen[0]["authorization"] == f"Token {SECRET}"
        assert SECRET.encode() not in reply
        assert SECRET not in here.log


async def test_a_credential_goes_to_no_other_host_nor_after_a_redirect(runtime: Runtime) -> None:
    elsewhere = Origin()
    server = await elsewhere.start()
    other = f"http://127.0.0.1:{server.port}"

    async def redirect(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"{other}/stolen")

    try:
        async with world(runtime, credential=CREDENTIAL, secrets={("f", "API_KEY"): SECRET}, other=other) as here:
            here.origin.answer = redirect
            assert b"302" in (await here.get(f"fetch={here.url}/x")).partition(b"\r\n")[0]
            assert elsewhere.seen == []
            await here.get(f"fetch={other}/x")
            assert elsewhere.seen[0]["authorization"] == "mine"
    finally:
        await server.close()


async def test_a_credential_whose_secret_is_not_set_says_how_to_set_it(runtime: Runtime) -> None:
    async with world(runtime, credential=CREDENTIAL) as here:
        assert b"not granted" in await here.get(f"fetch={here.url}/x")
        assert "faas secrets set f API_KEY" in here.log
        assert here.origin.seen == []


async def test_a_secret_that_is_no_header_is_refused_without_being_shown(runtime: Runtime) -> None:
    async with world(runtime, credential=CREDENTIAL, secrets={("f", "API_KEY"): f"{SECRET}\r\nx: y"}) as here:
        reply = await here.get(f"fetch={here.url}/x")
        assert b"not granted" in reply
        assert "control characters" in here.log
        assert SECRET not in here.log + reply.decode()
        assert here.origin.seen == []


# Endings


@pytest.mark.parametrize("end", ["return", "exit", "trap"])
async def test_a_request_under_way_ends_with_its_invocation(runtime: Runtime, end: str) -> None:
    async with world(runtime) as here:
        await here.get(f"begin={here.url}/&end={end}")


async def test_the_deadline_ends_a_request_under_way(runtime: Runtime) -> None:
    async def never(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with world(runtime, timeout_s=0.2) as here:
        here.origin.answer = never
        await here.get(f"begin={here.url}/&end=wait")
        await here.origin.gone.wait()
        assert here.one.wire.closed  # the reply had begun
        assert "deadline-exceeded" in here.log


async def test_a_client_that_goes_away_ends_what_its_guest_waits_for(runtime: Runtime) -> None:
    async def never(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with world(runtime) as here:
        here.origin.answer = never
        here.one.connection.data_received(f"GET /f?begin={here.url}/&end=wait HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        await here.origin.asked.wait()
        here.one.lose()
        await here.origin.gone.wait()


# Before there is a request


ASKS_EARLY = """(module
  (import "faas_v1" "config_get" (func $get (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_initialize") (drop (call $get (i32.const 0) (i32.const 1) (i32.const 4))))
  (func (export "faas_alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "faas_handle") (param i32 i32) (result i64) (i64.const 0)))"""


async def test_a_reactor_that_asks_before_its_request_is_not_made_ahead(runtime: Runtime) -> None:
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
    template = runtime.load(bytes(wasmtime.Module(engine, wasmtime.wat2wasm(ASKS_EARLY)).serialize()))
    manifest = manifest_from_builtins({"name": "f", "warm": {"max": 1}})
    deployment = Deployment("f", 1, Kind.REACTOR, "0" * 64, "0" * 64, "", manifest)
    code = Code(code_key(deployment), template, None, 1)
    instance = Instance(runtime, deployment, code, SystemClock(), lambda _: None)
    try:
        with pytest.raises(InternalError) as caught:
            await instance.prepare(background=False)
        assert isinstance(caught.value.__cause__, NotPreparableError)
        assert "faas_v1" in str(caught.value.__cause__)
    finally:
        instance.close()
        template.close()


# The sample


async def test_kv_counter_counts_and_takes_its_greeting_from_the_config(runtime: Runtime) -> None:
    outbound = Outbound()
    services = ServiceGate(outbound)
    services.kv = MemoryKv()
    services.config = MemoryConfig({("f", "GREETING"): "so far:"})
    template = runtime.load(native("kv-counter/kv-counter.wasm"))
    try:
        async with whole_gateway(
            runtime,
            template,
            Kind.REACTOR,
            manifest={
                "routes": ["/kv-counter", "/kv-counter/*"],
                "capabilities": {"kv": ["default"]},
                "warm": {"max": 1, "reuse": 100},
            },
            services=services,
            outbound=outbound,
        ) as one:

            async def ask(method: str, path: str) -> bytes:
                return await one.send(f"{method} /kv-counter{path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())

            assert (await ask("GET", "/a")).endswith(b"so far: 1\n")
            assert (await ask("GET", "/a")).endswith(b"so far: 2\n")
            assert (await ask("GET", "/b")).endswith(b"so far: 1\n")
            assert (await ask("GET", "")).endswith(b"a 2\nb 1\n")
            assert b" 204 " in await ask("DELETE", "/a")
            assert b" 404 " in await ask("DELETE", "/a")
    finally:
        template.close()
