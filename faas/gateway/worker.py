"""
The worker process: the composition root of the data plane, and its conversation with the control process.

Started by the control process as ``python -m faas.gateway.worker`` with its settings as one JSON document on stdin.
Exits 0 when told to drain, or when the control process goes away: then nobody would tell it what to serve.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from faas import problems
from faas.artifacts.store import ArtifactStore
from faas.clock import SystemClock
from faas.config import HostConfig
from faas.errors import ConfigError, FaasError, InternalError, PeerGoneError
from faas.gateway.admission import Admission
from faas.gateway.app import Gateway
from faas.gateway.call import BodyPace
from faas.gateway.code import CodeCache
from faas.gateway.ending import Patience
from faas.gateway.http import Server, connections_possible
from faas.gateway.invoke_keys import InvokeKeyRing
from faas.gateway.jobs import GuestJobs, JobGate, JobRunner
from faas.gateway.journal import Journal
from faas.gateway.kv import WorkerKv
from faas.gateway.live import LiveTable
from faas.gateway.metering import Meter
from faas.gateway.models import KnownModels, ModelGate
from faas.gateway.openai.api import OpenAiApi
from faas.gateway.openai.keys import KeyRing
from faas.gateway.outbound import Outbound
from faas.gateway.services import ServiceGate
from faas.gateway.settings import ConfigValues, Secrets
from faas.gateway.visits import Visits
from faas.gateway.warm import WarmPools
from faas.gateway.webhooks import WebhookGate
from faas.invocation import Deployment
from faas.log import configure, event
from faas.machine import forbid_dumps, memory_bytes
from faas.nn.client import ModelClient
from faas.tls import ServerCertificate
from faas.tls_site import TlsSite
from faas.wasm.runtime import Runtime
from faas.wire.framing import Channel
from faas.wire.messages import (
    PROTOCOL_VERSION,
    Activated,
    ApiKey,
    ArtifactNeeded,
    ArtifactReady,
    Drain,
    FromControl,
    FunctionSettings,
    Hello,
    InvokeKey,
    InvokeKeys,
    Keys,
    Models,
    Prepare,
    Prepared,
    Ready,
    Shares,
    Spent,
    Table,
)
from faas.wire.peer import Answer, Ask, Cancel, Handler, Peer

_log = logging.getLogger("faas.gateway.worker")  # __name__ is __main__ here, and nobody listens to that
BACKLOG = 4096
CUT_OFF_S = 0.5
"""How long requests that outlast the drain budget have between being cancelled and the end."""
WARM_MEMORY_SHARE = 8
"""The memories of instances that wait for requests may take this part (1/N) of the machine's, over all workers."""


class WorkerSettings(msgspec.Struct, frozen=True):
    """What the control process tells a worker at its start."""

    config: HostConfig
    worker: int
    socket: str
    token: str
    public_host: str
    public_port: int
    models_socket: str = ""
    models_token: str = ""
    models: tuple[str, ...] = ()
    models_missing: str = ""
    keys: tuple[ApiKey, ...] = ()
    invoke_keys: tuple[InvokeKey, ...] = ()


class Worker:
    """One worker's parts and its end of the conversation; lives until ``run`` returns."""

    def __init__(self, settings: WorkerSettings, channel: Channel[FromControl]) -> None:
        config = settings.config
        self._settings = settings
        self._channel = channel
        self.handlers: dict[str, Handler] = {}
        """What control may ask of this worker, by operation."""
        self.peer = Peer(channel.send_nowait, self.handlers)
        self._ids = itertools.count(1)
        self._repairs: dict[int, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._drain_timeout_s = config.drain_timeout_s
        self.runtime = Runtime(config.with_whole_pool)
        self.code = CodeCache(
            self.runtime,
            ArtifactStore(config.home_path),
            self._repair,
            budget_bytes=config.code_budget_bytes,
        )
        self.admission = Admission(
            config.admission_slots,
            max_queue=config.max_queue,
            queue_timeout_s=config.queue_timeout_s,
            worker=settings.worker,
            n_workers=config.n_workers,
        )
        clock = SystemClock()
        self.warm = WarmPools(
            self.runtime,
            self.code,
            self.admission,
            clock,
            n_workers=config.n_workers,
            at_once=max(1, config.n_guest_threads // 2),
            budget_bytes=memory_bytes() // WARM_MEMORY_SHARE // config.n_workers,
            prepare_timeout_s=config.precompile.start_timeout_s,
            on_line=lambda name, version, line: self.journal.line(name, version, "", line.decode("utf-8", "replace")),
        )
        self.table = LiveTable(
            self.runtime,
            self.code,
            self.admission,
            self.warm,
            n_workers=config.n_workers,
            start_timeout_s=config.precompile.start_timeout_s,
        )
        self.model_client = ModelClient(
            settings.models_socket, settings.models_token, f"worker-{settings.worker}", clock=clock
        )
        self.meter = Meter(clock)
        self.invoke_keys = InvokeKeyRing(self.meter, settings.invoke_keys)
        self.keys = KeyRing(settings.keys, open_to_all=config.openai_open_to_all)
        self.known_models = KnownModels(self.model_client)
        self.openai = OpenAiApi(self.known_models, self.meter, self.keys, clock)
        self.openai.missing = settings.models_missing
        self.journal = Journal(self._gauges, self._function_counters)
        self.outbound = Outbound()
        self.services = ServiceGate(self.outbound)
        self.config_values = ConfigValues()
        self.secrets = Secrets()
        self.services.kv = self.services.stores = WorkerKv(self.peer)
        self.services.config = self.config_values
        self.services.secrets = self.secrets
        jobs = JobGate(self.peer, max_job_bytes=config.max_job_bytes)
        self.gateway = Gateway(
            self.runtime,
            self.table,
            self.admission,
            journal=self.journal,
            models=ModelGate(self.known_models if settings.models_socket else None, self.meter, clock),
            openai=self.openai,
            clock=clock,
            server_port=settings.public_port,
            warm=self.warm,
            outbound=self.outbound,
            invoke_keys=self.invoke_keys,
            services=self.services,
            config=config,
            jobs=jobs,
            webhooks=WebhookGate(
                self.peer, jobs, clock, lambda: self.services.secrets, queue_timeout_s=config.queue_timeout_s
            ),
        )
        self.internal = self.gateway.internal
        self.handlers["invoke-version"] = Visits(
            self.table, self.internal, self.config_values.applied, self.secrets
        ).invoke
        self.services.jobs = GuestJobs(jobs)
        self.handlers["invoke"] = JobRunner(self.internal).invoke

    def _gauges(self) -> dict[str, float]:
        return {
            "active": self.admission.active,
            "queued": self.admission.queued,
            "internal_active": self.internal.active,
            "modules": len(self.code),
            "code_bytes": self.code.n_bytes,
            "code_loads": self.code.n_loads,
            "code_evictions": self.code.n_evictions,
            "instances": self.runtime.alive,
            "warm_instances": self.warm.n_held,
            "warm_bytes": self.warm.n_bytes,
            "openai_active": self.openai.active,
        }

    def _function_counters(self) -> dict[str, dict[str, float]]:
        counters = {name: dict(counted) for name, counted in self.meter.stats().items()}
        for more in (self.warm.stats(), self.invoke_keys.stats()):
            for name, counted in more.items():
                counters.setdefault(name, {}).update(counted)
        return counters

    def _offer(self, models: tuple[str, ...]) -> None:
        """Keep a connection to the model server from the first model on; without one there is no server to reach."""
        self.known_models.names = frozenset(models)
        if models and self._settings.models_socket:
            self.model_client.start()

    async def _repair(self, deployment: Deployment) -> None:
        """Have the control process compile a deployment again; raises what it said when it could not."""
        request_id = next(self._ids)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._repairs[request_id] = done
        event(_log, "artifact.needed", function=deployment.function, version=deployment.version)
        try:
            await self._channel.send(ArtifactNeeded(request_id, deployment))
            await done
        finally:
            del self._repairs[request_id]

    async def _prepare(self, message: Prepare) -> None:
        problem: dict[str, Any] | None = None
        try:
            await self.table.prepare(message.deployment)
        except FaasError as exc:
            problem = problems.to_problem(exc)
            problem.pop("trace", None)
        except Exception as exc:
            _log.exception("prepare failed")
            problem = problems.to_problem(InternalError(f"a worker failed to load the module: {exc!r}"))
        await self._channel.send(Prepared(message.id, problem))

    def _go_by(self, settings: FunctionSettings) -> None:
        """Take other secrets at once, other config values with the table that follows."""
        self.secrets.replace(settings)
        self.config_values.replace(settings.config)

    def _serve(self, table: Table) -> None:
        self.table.replace(table.generation, self.config_values.applied(table.deployments), table.aliases)
        self.journal.watch(self.table.split_versions())

    async def _converse(self, stop: asyncio.Future[float]) -> None:
        """
        Do what the control process says until it goes away: requests that are in flight while the worker drains may
        still need what it keeps.

        Args: *stop* gets the drain budget in seconds, when control says drain or is gone.
        """
        while True:
            try:
                message = await self._channel.receive()
            except PeerGoneError:
                self.peer.close()
                if not stop.done():
                    event(_log, "control.gone", worker=self._settings.worker)
                    stop.set_result(self._drain_timeout_s)
                return
            if isinstance(message, Prepare):
                # A task: loading may need an answer that comes on this very channel.
                task = asyncio.create_task(self._prepare(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif isinstance(message, FunctionSettings):
                self._go_by(message)
            elif isinstance(message, Table):
                self._serve(message)
                await self._channel.send(Activated(message.generation))
            elif isinstance(message, Spent):
                self.meter.spent_elsewhere(message)
            elif isinstance(message, Shares):
                self.admission.lent(message.names)
            elif isinstance(message, Keys):
                self.keys.replace(message.keys)
            elif isinstance(message, InvokeKeys):
                self.invoke_keys.replace(message.keys)
            elif isinstance(message, Models):
                self.openai.missing = message.missing
                self._offer(message.names)
            elif isinstance(message, ArtifactReady):
                waiting = self._repairs.get(message.id)
                if waiting is not None and not waiting.done():
                    if message.problem is None:
                        waiting.set_result(None)
                    else:
                        waiting.set_exception(problems.from_problem(message.problem))
            elif isinstance(message, (Ask, Answer, Cancel)):
                self.peer.take(message)
            elif isinstance(message, Drain) and not stop.done():
                stop.set_result(message.timeout_s)

    def _certificate_told(self, problem: ConfigError | None) -> None:
        worker = self._settings.worker
        if problem is None:
            event(_log, "certificate.taken", port="public", worker=worker)
        else:
            event(_log, "certificate.refused", level=logging.WARNING, port="public", worker=worker, reason=problem)

    async def run(self) -> None:
        """Serve until told to stop; then finish what is in flight within the drain budget."""
        settings, config = self._settings, self._settings.config
        await self._channel.send(Hello(PROTOCOL_VERSION, settings.worker, os.getpid(), settings.token))
        first = await self._channel.receive()
        if not isinstance(first, Table):
            raise InternalError(f"control began with {type(first).__name__}, not with a table")
        spent = await self._channel.receive()
        if not isinstance(spent, Spent):
            raise InternalError(f"control went on with {type(spent).__name__}, not with what is spent")
        function_settings = await self._channel.receive()
        if not isinstance(function_settings, FunctionSettings):
            raise InternalError(f"control went on with {type(function_settings).__name__}, not with settings")
        self._go_by(function_settings)
        self._serve(first)
        self.admission.begin_with(first.shares)
        self.meter.spent_elsewhere(spent)

        self._offer(settings.models)
        server = Server(
            self.gateway.serve,
            head_timeout_s=config.header_timeout_s,
            body_pace=BodyPace(config.body_timeout_s, config.body_min_bytes_per_s),
            patience=Patience(send_timeout_s=config.send_timeout_s),
            keepalive_requests=config.keepalive_requests,
            max_connections=connections_possible(config.max_connections),
            handler_cancellation=True,
            auto_decompress=False,  # a guest gets the body that was sent, as CONTENT_LENGTH counts it
            access_log=None,
            keepalive_timeout=config.keepalive_timeout_s,
            lingering_time=2.0,
        )
        runner = web.ServerRunner(server, shutdown_timeout=CUT_OFF_S)
        await runner.setup()
        listening = _listen(settings.public_host, settings.public_port)
        certificate: ServerCertificate | None = None
        if config.tls_cert:
            certificate = ServerCertificate(config.tls_cert, config.tls_key, setting="tls_cert")
            self._tasks.add(asyncio.create_task(certificate.watch(self._certificate_told)))
            site: web.SockSite = TlsSite(
                runner,
                listening,
                context=certificate.context,
                handshake_timeout_s=config.header_timeout_s,
                backlog=BACKLOG,
            )
        else:
            site = web.SockSite(runner, listening, backlog=BACKLOG)
        await site.start()
        sender = asyncio.create_task(self.journal.run(self._channel.send))
        watcher = asyncio.create_task(self.gateway.watch_clients())
        reporter = asyncio.create_task(self.meter.report(self._channel.send))
        lender = asyncio.create_task(self.admission.exchange(self._channel.send))
        await self._channel.send(Ready(first.generation))
        event(_log, "worker.ready", worker=settings.worker, pid=os.getpid(), port=settings.public_port)

        stop: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        conversation = asyncio.create_task(self._converse(stop))
        endings: tuple[asyncio.Future[Any], ...] = (stop, conversation, sender)
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        budget_s = self._drain_timeout_s
        if stop.done():
            budget_s = stop.result()
        elif conversation.done():  # we can't be told anything any more: as if control were gone
            event(_log, "control.lost", worker=settings.worker, reason=conversation.exception())
            self.peer.close()

        self.gateway.draining = self.internal.draining = True
        self.warm.close()
        await site.stop()
        server.pre_shutdown()
        try:
            async with asyncio.timeout(budget_s):
                # A kept connection may bring one of either kind; jobs in flight may call functions.
                while self.admission.active or self.openai.active or self.internal.active:
                    await self.admission.wait_idle()
                    await self.internal.wait_idle()
                    await self.openai.wait_idle()
        except TimeoutError:
            event(
                _log,
                "drain.cut_off",
                worker=settings.worker,
                active=self.admission.active,
                openai_active=self.openai.active,
                internal_active=self.internal.active,
            )
        await runner.cleanup()
        await self.internal.aclose()
        await self.model_client.aclose()
        await self.outbound.aclose()
        tasks = (conversation, sender, watcher, reporter, lender, *self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self.journal.flush(self._channel.send)
            await self._channel.send(self.journal.stats())
        except PeerGoneError:
            event(_log, "journal.lost", worker=settings.worker)
        await self._channel.aclose()
        event(_log, "worker.stopped", worker=settings.worker)


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket that shares its port with the other workers; the kernel spreads connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setblocking(False)
    sock.bind((host, port))
    return sock


async def _main(settings: WorkerSettings) -> None:
    loop = asyncio.get_running_loop()
    # A terminal's ^C reaches the whole process group; the control process decides what it means.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: None)
    reader, writer = await asyncio.open_unix_connection(settings.socket, limit=1 << 20)
    channel: Channel[FromControl] = Channel(reader, writer, FromControl)
    await Worker(settings, channel).run()


def main() -> None:
    """Read the settings from stdin and serve."""
    configure(sys.stderr)
    forbid_dumps()
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerSettings)
    uvloop.run(_main(settings))
    # Guest threads may still be inside a slice of a cancelled guest; nothing of it is worth waiting for.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
