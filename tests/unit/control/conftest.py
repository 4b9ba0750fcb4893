"""Workers that live in this very process and speak the real protocol over a real unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import tempfile
from pathlib import Path

import msgspec
import pytest

from faas.artifacts.store import ArtifactStore
from faas.clock import SystemClock
from faas.config import HostConfig
from faas.control.access import InvokeKeys, Tokens
from faas.control.canary import CanaryController
from faas.control.compiler import Compiled
from faas.control.deployer import Deployer, Upload
from faas.control.endpoints.access import AccessEndpoints
from faas.control.endpoints.jobs import JobEndpoints
from faas.control.endpoints.kv import KvEndpoints
from faas.control.endpoints.settings import SettingsEndpoints
from faas.control.endpoints.traffic import TrafficEndpoints
from faas.control.jobs import JobDesk
from faas.control.keys import KeyRing
from faas.control.kv import KvService
from faas.control.logs import FunctionLogs
from faas.control.models import ModelRegistry
from faas.control.modelserver import ModelSupervisor
from faas.control.schedules import Scheduler
from faas.control.settings import SettingsKeeper
from faas.control.stats import Counts
from faas.control.supervisor import Supervisor
from faas.control.vault import open_vault
from faas.errors import PeerGoneError
from faas.invocation import Kind
from faas.manifest import manifest_from_builtins
from faas.problems import to_problem
from faas.state.state import open_state
from faas.wire.framing import Channel
from faas.wire.messages import (
    PROTOCOL_VERSION,
    Activated,
    ArtifactReady,
    Drain,
    FromControl,
    FunctionSettings,
    Hello,
    Keys,
    Models,
    Prepare,
    Prepared,
    Ready,
    Spent,
    Table,
)
from faas.wire.messages import (
    InvokeKeys as ToldInvokeKeys,
)
from faas.wire.models import (
    MODEL_PROTOCOL_VERSION,
    ClientHello,
    Describe,
    Final,
    Finish,
    FromModelClient,
    ModelCard,
    Ping,
    Pong,
    Register,
    ServerHello,
    Unregister,
)


class FakeWorker:
    """One worker process: ``on_prepare`` decides what it answers, and may ``die``."""

    def __init__(self, fleet, pid, settings):
        self.fleet = fleet
        self.pid = pid
        self.settings = json.loads(settings)
        self.index = self.settings["worker"]
        self.tables = []
        self.models = self.keys = self.invokekeys = self.functionsettings = None
        self.spent = []
        self.prepared = []
        self.answers = {}
        self.exit_code = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._live())
        self.task.add_done_callback(self._ended)

    async def wait(self):
        return await asyncio.shield(self.exit_code)

    def kill(self):
        if self.exit_code.done():
            raise ProcessLookupError
        self.fleet.log.append(("killed", self.index))
        self.die(-9)

    def die(self, code=1):
        self.final = code
        self.task.cancel()

    def _ended(self, task):
        code = getattr(self, "final", 0)
        if not task.cancelled() and task.exception() is not None:
            code = 1
        if not self.exit_code.done():
            self.exit_code.set_result(code)

    async def send(self, message):
        await self.channel.send(message)

    async def _live(self):
        if self.fleet.die_at_start:
            raise ConnectionError("died at start")
        reader, writer = await asyncio.open_unix_connection(self.settings["socket"])
        self.channel = Channel(reader, writer, FromControl)
        try:
            token = self.fleet.token or self.settings["token"]
            await self.channel.send(Hello(self.fleet.protocol, self.index, self.pid, token))
            table = await self.channel.receive()
            self.tables.append(table)
            await self.fleet.may_be_ready.wait()
            await self.channel.send(Ready(table.generation))
            while True:
                message = await self.channel.receive()
                if isinstance(message, Models | Keys | ToldInvokeKeys | FunctionSettings):
                    setattr(self, type(message).__name__.lower(), message)
                    continue
                if isinstance(message, Spent):
                    self.spent.append(message.names)
                    continue
                self.fleet.log.append((type(message).__name__.lower(), self.index))
                if isinstance(message, Prepare):
                    self.prepared.append(message.deployment)
                    answer = await self.fleet.on_prepare(self, message.deployment)
                    await self.channel.send(Prepared(message.id, None if answer is None else to_problem(answer)))
                elif isinstance(message, Table):
                    self.tables.append(message)
                    if await self.fleet.on_table(self, message):
                        await self.channel.send(Activated(message.generation))
                elif isinstance(message, ArtifactReady):
                    self.answers[message.id] = message.problem
                    self.fleet.answered.set()
                elif isinstance(message, Drain) and not self.fleet.ignores_drain:
                    return
        except PeerGoneError:
            return
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class FakeFleet:
    """All the fake workers that a supervisor started, in order."""

    def __init__(self):
        self.workers = []
        self.log = []
        self.token = ""
        self.protocol = PROTOCOL_VERSION
        self.die_at_start = False
        self.ignores_drain = False
        self.may_be_ready = asyncio.Event()
        self.may_be_ready.set()
        self.answered = asyncio.Event()
        self.spawned = asyncio.Event()

    async def spawn(self, settings):
        worker = FakeWorker(self, 1000 + len(self.workers), settings)
        self.workers.append(worker)
        self.spawned.set()
        return worker

    async def on_prepare(self, worker, deployment):
        return None

    async def on_table(self, worker, table):
        return True


class FakeModelServer:
    """One model server process, in this very process; ``fleet`` decides how it behaves."""

    def __init__(self, fleet, pid, settings):
        self.fleet = fleet
        self.pid = pid
        self.settings = json.loads(settings)
        self.models = dict(self.settings["models"])
        self.heard = []
        self.channel = None
        self.final = 0
        self.exit_code = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._live())
        self.task.add_done_callback(lambda task: self.exit_code.done() or self.exit_code.set_result(self._code(task)))

    def _code(self, task):
        return self.final if task.cancelled() or task.exception() is None else 1

    async def wait(self):
        return await asyncio.shield(self.exit_code)

    def kill(self):
        if self.exit_code.done():
            raise ProcessLookupError
        self.fleet.log.append(("killed", self.pid))
        self.die(-9)

    def die(self, code=1):
        self.final = code
        self.task.cancel()

    def card(self, name):
        return ModelCard(name, self.models[name], "", 10, name in self.fleet.loaded, n_ctx=512, architecture="tiny")

    def cards(self):
        return tuple(map(self.card, self.models))

    async def _live(self):
        if self.fleet.die_at_start:
            raise ConnectionError("died at start")
        ended = asyncio.Event()
        conversations = []

        async def accept(reader, writer):
            conversations.append(asyncio.current_task())
            try:
                await self._converse(Channel(reader, writer, FromModelClient))
            except PeerGoneError:
                pass
            finally:
                writer.close()
                if not self.fleet.lingers:
                    ended.set()

        server = await asyncio.start_unix_server(accept, self.settings["socket"])
        try:
            await ended.wait()
        finally:
            server.close()
            for conversation in conversations:
                conversation.cancel()
            await asyncio.gather(*conversations, return_exceptions=True)

    async def _converse(self, channel):
        hello = await channel.receive()
        assert isinstance(hello, ClientHello)
        assert (hello.client, hello.token) == ("control", self.settings["token"])
        await self.fleet.may_be_ready.wait()
        await channel.send(ServerHello(self.fleet.protocol, self.pid, "fake", 1, "abc", self.cards()))
        self.channel = channel
        while True:
            message = await channel.receive()
            self.heard.append(message)
            if isinstance(message, Ping):
                if self.fleet.answers:
                    await channel.send(Pong(message.id))
            elif isinstance(message, Describe) and self.fleet.answers:
                await channel.send(Final(message.id, Finish.DONE, cards=self.cards()))
            elif isinstance(message, Register | Unregister) and self.fleet.answers:
                if not self.fleet.learns:
                    return
                await channel.send(self._changed(message))

    def _changed(self, message):
        if isinstance(message, Unregister):
            self.models.pop(message.name, None)
            return Final(message.id, Finish.DONE)
        if self.fleet.refuse is not None:
            return Final(message.id, Finish.FAILED, problem=to_problem(self.fleet.refuse))
        self.models[message.name] = message.path
        return Final(message.id, Finish.DONE, cards=(self.card(message.name),))


class FakeModelFleet:
    """All the fake model servers that a supervisor started, in order."""

    def __init__(self):
        self.servers = []
        self.log = []
        self.loaded = set()
        self.protocol = MODEL_PROTOCOL_VERSION
        self.die_at_start = False
        self.lingers = False
        self.answers = True
        self.learns = True
        self.refuse = None
        self.may_be_ready = asyncio.Event()
        self.may_be_ready.set()

    async def spawn(self, settings):
        server = FakeModelServer(self, 2000 + len(self.servers), settings)
        self.servers.append(server)
        return server


class FakeCompiler:
    """Compiles by prefixing; ``refuse`` is raised instead when set."""

    def __init__(self, store):
        self.store = store
        self.refuse = None
        self.entered = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.recompiled = []
        self.current = True

    def key(self, wasm):
        return msgspec.json.encode(len(wasm)).hex().rjust(64, "0")

    async def precompile(self, wasm, manifest, on_progress):
        on_progress("compile")
        self.entered.set()
        await self.may_go_on.wait()
        if self.refuse is not None:
            raise self.refuse
        native = self.store.scratch / "native"
        native.write_bytes(b"native " + wasm)
        self.store.put_native(self.key(wasm), native)
        return Compiled(Kind.COMMAND, self.store.put_wasm(wasm), self.key(wasm))

    async def recompile(self, deployment):
        self.recompiled.append(deployment.function)
        wasm = self.store.wasm_path(deployment.wasm_digest).read_bytes()
        return await self.precompile(wasm, deployment.manifest, lambda stage: None)

    def is_current(self, deployment):
        return self.current and self.store.has_native(deployment.artifact_key)


class Bench:
    """A control process in pieces, with fake workers."""

    def __init__(self, home, run_dir, n_workers=2, missing="", demo=None, **settings):
        self.home = home
        self.config = HostConfig(
            home=str(home), workers=n_workers, drain_timeout_s=0.05, max_upload_bytes=64 * 1024, **settings
        )
        self.fleet = FakeFleet()
        self.counts = Counts()
        self.lines = []
        self.clock = SystemClock()
        self.logs = FunctionLogs(home / "logs", 4096, self.clock)
        self.pauses = []
        self._tokens = None
        self.missing = missing
        self.demo = demo
        self.model_fleet = FakeModelFleet()
        self.model_server = ModelSupervisor(
            self.config,
            run_dir=run_dir,
            clock=self.clock,
            missing=missing,
            spawn=self.model_fleet.spawn,
            sleep=self._sleep,
        )
        self.supervisor = Supervisor(
            self.config,
            run_dir=run_dir,
            public_host="127.0.0.1",
            public_port=8080,
            clock=self.clock,
            model_access=self.model_server.access,
            on_lines=lambda by_function: [self.logs.append(*item) for item in by_function.items()],
            on_stats=self.counts.report,
            on_gone=self.counts.retire,
            settings_of=self._settings_of,
            spawn=self.fleet.spawn,
            sleep=self._sleep,
        )
        self.store = ArtifactStore(home)
        self.compiler = FakeCompiler(self.store)

    def _settings_of(self, deployments):
        return self.settings.of(deployments)

    async def _sleep(self, pause_s):
        self.pauses.append(pause_s)
        await asyncio.sleep(0)

    async def start(self):
        self.state = await open_state("", self.home / "state.db", self.clock)
        self.deployer = Deployer(
            state=self.state,
            store=self.store,
            compiler=self.compiler,
            fleet=self.supervisor,
            clock=self.clock,
            max_reserved=50,
            n_workers=2,
        )
        self.canaries = CanaryController(self.deployer, self.counts, self.clock)
        self.keys = KeyRing(self.state, self.supervisor)
        self.invoke_keys = InvokeKeys(self.state.access, self.supervisor)
        self.settings = SettingsKeeper(self.state.settings, open_vault(self.home, ""))
        await self.settings.load()
        self.settings.serve(self.supervisor)
        self.kv = KvService(
            self.state.kv,
            max_value_bytes=self.config.kv_max_value_bytes,
            max_store_bytes=self.config.kv_max_store_bytes,
        )
        await self.kv.start()
        self.models = ModelRegistry(
            self.config,
            state=self.state,
            server=self.model_server,
            fleet=self.supervisor,
            missing=self.missing,
            demo=lambda: self.demo,
        )
        await self.models.restore()
        self.model_server.start(self.models.offered(), self.models.digests())
        await self.supervisor.start(
            await self.deployer.restore(),
            self.deployer,
            models=self.models.names(),
            keys=await self.keys.keys(),
            invoke_keys=await self.invoke_keys.keys(),
        )

    async def stop(self):
        await self.supervisor.drain()
        await self.model_server.aclose()
        await self.models.aclose()
        await self.deployer.aclose()
        self.logs.close()
        await self.kv.aclose()
        await self.state.aclose()

    def tokens(self, home_token):
        """Return the tokens of this host, the same ones each time."""
        if self._tokens is None:
            self._tokens = Tokens(self.state.access, home_token)
        return self._tokens

    def groups(self, home_token):
        """Return what answers the endpoints that the API itself does not."""
        return (
            AccessEndpoints(self.tokens(home_token), self.invoke_keys, self.state, self.counts),
            KvEndpoints(self.kv, max_value_bytes=self.config.kv_max_value_bytes),
            SettingsEndpoints(self.settings),
            TrafficEndpoints(self.state, self.deployer, self.canaries, self.supervisor, self.settings.secrets_for),
            JobEndpoints(
                JobDesk(self.state.jobs, self.state.functions, max_job_bytes=self.config.max_job_bytes),
                self.state.jobs,
                Scheduler(self.state.schedules, self.state.database),
            ),
        )

    def upload(self, name="hello", wasm=b"\0asm hello", bundle=None, **manifest):
        module = self.home / f"{name}.upload"
        module.write_bytes(wasm)
        return Upload(manifest=manifest_from_builtins({"name": name, **manifest}), module=module, bundle=bundle)

    def stored(self):
        return sorted(path.name for path in (self.home / "artifacts").rglob("*") if path.is_file())


@pytest.fixture
def gguf(tmp_path):
    """Make a model's file: a whole GGUF of nothing but metadata and one small tensor."""
    return lambda name="m.gguf", architecture="tiny": write_gguf(tmp_path / name, architecture)


def write_gguf(path, architecture="tiny"):
    """
    Write a minimal GGUF, version 3.

    Source: ggml docs/gguf.md.
    """

    def text(value):
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    def pair(key, kind, value):
        return text(key) + struct.pack("<I", kind) + value

    pairs = [
        pair("general.architecture", 8, text(architecture)),
        pair(f"{architecture}.context_length", 4, struct.pack("<I", 2048)),
        pair("general.name", 8, text(path.stem)),
    ]
    tensor = text("token_embd.weight") + struct.pack("<IQIQ", 1, 32, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + tensor
    head += bytes(-len(head) % 32)
    path.write_bytes(head + bytes(32 * 4))
    return path


@pytest.fixture
def run_dir():
    with tempfile.TemporaryDirectory(prefix="f") as folder:  # tmp_path is too long for a socket
        yield Path(folder)


@pytest.fixture
async def bench(tmp_path, run_dir):
    bench = Bench(tmp_path, run_dir)
    await bench.start()
    yield bench
    await bench.stop()


@pytest.fixture
def new_bench(tmp_path, run_dir):
    return lambda **more: Bench(tmp_path, run_dir, **more)
