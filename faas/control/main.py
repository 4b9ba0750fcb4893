"""The control process: its composition root, and its life from the lock on the home to the last drained worker."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
from aiohttp import web

from faas.artifacts.store import ArtifactStore
from faas.clock import SystemClock
from faas.config import HostConfig
from faas.control import exposure
from faas.control.access import InvokeKeys, Tokens
from faas.control.api import AdminApi
from faas.control.canary import CanaryController
from faas.control.compiler import JobCompiler
from faas.control.deployer import Deployer
from faas.control.endpoints.access import AccessEndpoints
from faas.control.endpoints.jobs import JobEndpoints
from faas.control.endpoints.kv import KvEndpoints
from faas.control.endpoints.settings import SettingsEndpoints
from faas.control.endpoints.traffic import TrafficEndpoints
from faas.control.jobs import CallbackSender, Dispatcher, JobDesk, host_name
from faas.control.keys import KeyRing
from faas.control.kv import KvService
from faas.control.logs import FunctionLogs
from faas.control.models import ModelRegistry
from faas.control.modelserver import ModelSupervisor, why_no_models
from faas.control.schedules import Scheduler
from faas.control.settings import SettingsKeeper
from faas.control.sharing import Follower
from faas.control.stats import Counts
from faas.control.supervisor import Supervisor
from faas.control.vault import open_vault
from faas.control.views import base_url
from faas.errors import ConfigError, HomeLockedError, PortTakenError
from faas.log import event
from faas.machine import forbid_dumps
from faas.outbound.client import Client
from faas.state.access import CHANGED as ACCESS_CHANGED
from faas.state.database import ANYTHING, Database
from faas.state.functions import CHANGED as FUNCTIONS_CHANGED
from faas.state.kv import CHANGED as KV_CHANGED
from faas.state.settings import CHANGED as SETTINGS_CHANGED
from faas.state.state import open_state
from faas.tls import ServerCertificate
from faas.tls_site import TlsSite

MODEL_SERVER_PATIENCE_S = 10.0
"""How long a start waits for the model server; a host without it is useful too, and it may come later."""
HANDSHAKE_TIMEOUT_S = 60.0
TLS_END_TIMEOUT_S = 30.0
"""As asyncio has them."""
PORT_PATIENCE_S = 5.0
"""Workers of a host that was killed need a moment until they notice and let go of the port."""
_PORT_POLL_S = 0.1
_MAX_SOCKET_PATH_BYTES = 100  # sun_path has 108

_logger = logging.getLogger(__name__)


class RunningHost(msgspec.Struct, frozen=True):
    """Where a host that serves can be reached; also kept in ``home/run/host.json`` while it runs."""

    pid: int
    public_url: str
    admin_url: str
    home: str
    token_path: str
    workers: int
    public_cert: str = ""
    """The certificate that the public port presents, a path; '' without TLS."""
    admin_cert: str = ""
    """As ``public_cert``, of the admin port: so that commands on this machine know whom to believe."""
    models: tuple[str, ...] = ()
    """Those that are offered."""
    models_problem: str = ""
    """Why none of the host's models can be used just now, '' if they can or there are none."""


async def serve(config: HostConfig, on_ready: Callable[[RunningHost], Awaitable[None] | None] | None = None) -> None:
    """
    Run the host until SIGTERM or SIGINT, then drain it; a second signal ends it at once.

    Args: *on_ready* is called, or awaited, once every worker serves; it may deploy over the admin API.
    Raises: ConfigError, HomeLockedError, PortTakenError, StateError, WorkerLostError.
    """
    forbid_dumps()
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(_signals())
        host = await _started(stack, config, stop)
        if host is None:
            return
        if on_ready is not None:
            told = asyncio.ensure_future(_tell(on_ready, host))
            stopped = asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait((told, stopped), return_when=asyncio.FIRST_COMPLETED)
                if told.done():
                    told.result()
            finally:
                for task in (told, stopped):
                    task.cancel()
                await asyncio.gather(told, stopped, return_exceptions=True)
        await stop.wait()
        event(_logger, "host.stopping", drain_timeout_s=config.drain_timeout_s)


async def _started(stack: AsyncExitStack, config: HostConfig, stop: asyncio.Event) -> RunningHost | None:
    """Start the host on *stack*; None if a signal came first, with everything taken apart again."""
    starting = asyncio.ensure_future(stack.enter_async_context(_running(config)))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        if not starting.done():
            starting.cancel()
        await asyncio.gather(starting, stopped, return_exceptions=True)
    return None if starting.cancelled() else starting.result()


async def _tell(on_ready: Callable[[RunningHost], Awaitable[None] | None], host: RunningHost) -> None:
    heard = on_ready(host)
    if heard is not None:
        await heard


@asynccontextmanager
async def _running(config: HostConfig) -> AsyncIterator[RunningHost]:
    """Everything that a host is, put together in order; taken apart in reverse."""
    clock = SystemClock()
    home = config.home_path
    async with AsyncExitStack() as stack:
        certificates = _certificates(config)
        _make_home(home)
        stack.enter_context(_locked(home))
        token = _admin_token(home)
        upload_dir = _fresh_folder(home / "tmp")
        run_dir = stack.enter_context(_run_folder(home))
        store = await asyncio.to_thread(ArtifactStore, home)
        await asyncio.to_thread(store.clear_scratch)
        state = await open_state(config.state, home / "state.db", clock)
        stack.push_async_callback(state.aclose)
        logs = FunctionLogs(home / "logs" / "functions", config.log_rotate_bytes, clock)
        stack.callback(logs.close)
        counts = Counts()

        public_port = stack.enter_context(await _held_port(config.host, config.port, "--port"))
        admin_socket = await _listening(config.admin_host, config.admin_port, "--admin-port")
        stack.callback(admin_socket.close)
        admin_address, admin_port = admin_socket.getsockname()[:2]
        public_url = base_url(config.host, public_port, tls=bool(config.tls_cert))
        admin_url = base_url(config.admin_host, admin_port, tls=bool(config.admin_tls_cert))
        for reason in exposure.warnings(config, admin_address):
            event(_logger, "host.exposed", level=logging.WARNING, reason=reason)

        settings = SettingsKeeper(
            state.settings,
            await asyncio.to_thread(open_vault, home, config.secrets_key_file),
            shared=state.shared,
            own_key=not config.secrets_key_file,
        )
        await settings.load()
        kv = KvService(state.kv, max_value_bytes=config.kv_max_value_bytes, max_store_bytes=config.kv_max_store_bytes)
        stack.push_async_callback(kv.aclose)
        await kv.start()

        desk = JobDesk(state.jobs, state.functions, max_job_bytes=config.max_job_bytes)

        def take_lines(by_function: dict[str, bytes]) -> None:
            for function, blob in by_function.items():
                logs.append(function, blob)

        missing = why_no_models(config)
        model_server = ModelSupervisor(config, run_dir=run_dir, clock=clock, missing=missing)
        supervisor = Supervisor(
            config,
            run_dir=run_dir,
            public_host=config.host,
            public_port=public_port,
            clock=clock,
            model_access=model_server.access,
            on_lines=take_lines,
            on_stats=counts.report,
            on_gone=counts.retire,
            services={**kv.handlers(), **desk.handlers()},
            settings_of=settings.of,
        )
        settings.serve(supervisor)
        deployer = Deployer(
            state=state,
            store=store,
            compiler=JobCompiler(config, store),
            fleet=supervisor,
            clock=clock,
            max_reserved=config.max_reserved_slots,
            n_workers=config.n_workers,
            keep_versions=config.keep_versions,
        )
        keys = KeyRing(state, supervisor)
        tokens = Tokens(state.access, token)
        await tokens.load()
        invoke_keys = InvokeKeys(state.access, supervisor)
        models = ModelRegistry(config, state=state, server=model_server, fleet=supervisor, missing=missing)
        await models.restore()
        stack.push_async_callback(models.aclose)
        deployments = await deployer.restore()
        # It ends after the workers: what they finish while they drain may need it.
        stack.push_async_callback(model_server.aclose)
        model_server.start(models.offered(), models.digests())
        holder = await asyncio.to_thread(host_name, home)
        dispatcher = Dispatcher(
            state.jobs,
            state.database,
            supervisor,
            holder=holder,
            slots=config.async_concurrency,
        )
        stack.push_async_callback(dispatcher.aclose)
        stack.push_async_callback(supervisor.drain)
        await supervisor.start(
            deployments,
            deployer,
            aliases=deployer.aliases,
            models=models.names(),
            keys=await keys.keys(),
            invoke_keys=await invoke_keys.keys(),
        )
        stack.push_async_callback(deployer.aclose)
        canaries = CanaryController(deployer, counts, clock)
        stack.push_async_callback(canaries.aclose)
        canaries.start()

        if state.shared:

            async def reload_access() -> None:
                await tokens.load()
                await keys.spread()
                await invoke_keys.spread()

            followed = {
                FUNCTIONS_CHANGED: deployer.refresh,
                KV_CHANGED: kv.load,
                SETTINGS_CHANGED: settings.follow,
                ACCESS_CHANGED: reload_access,
            }
            _follow_others(stack, state.database, followed)

        callbacks = CallbackSender(
            desk,
            state.jobs,
            state.functions,
            state.database,
            Client(),
            secret=settings.get,
            log=lambda function, line: event(
                _logger, "job.callback_failed", level=logging.WARNING, function=function, reason=line.decode()
            ),
            now=lambda: clock.time_ns() / 1e9,
        )
        stack.push_async_callback(callbacks.aclose)
        callbacks.start()
        scheduler = Scheduler(state.schedules, state.database)
        stack.push_async_callback(scheduler.aclose)
        scheduler.start()
        stack.push_async_callback(dispatcher.stop)
        await dispatcher.start()

        api = AdminApi(
            config=config,
            tokens=tokens,
            public_url=public_url,
            admin_url=admin_url,
            state=state,
            deployer=deployer,
            supervisor=supervisor,
            models=models,
            model_server=model_server,
            keys=keys,
            logs=logs,
            counts=counts,
            clock=clock,
            upload_dir=upload_dir,
            groups=(
                AccessEndpoints(tokens, invoke_keys, state, counts),
                KvEndpoints(kv, max_value_bytes=config.kv_max_value_bytes),
                SettingsEndpoints(settings),
                TrafficEndpoints(state, deployer, canaries, supervisor, settings.secrets_for),
                JobEndpoints(desk, state.jobs, scheduler),
            ),
            on_removed=(
                invoke_keys.forget_function,
                kv.forget_function,
                settings.forget_function,
                desk.forget_function,
            ),
        )
        await _serve_admin(stack, api, admin_socket, certificates.get("admin_tls_cert"))
        await model_server.settled(MODEL_SERVER_PATIENCE_S)
        models.start()

        host = RunningHost(
            pid=os.getpid(),
            public_url=public_url,
            admin_url=admin_url,
            home=str(home),
            token_path=str(home / "token"),
            workers=config.n_workers,
            public_cert=config.tls_cert,
            admin_cert=config.admin_tls_cert,
            models=models.names().names,
            models_problem=model_server.view().reason if models.offered() else "",
        )
        stack.enter_context(_announced(home, host))
        event(
            _logger,
            "host.ready",
            public_url=public_url,
            admin_url=admin_url,
            home=home,
            workers=config.n_workers,
            functions=len(deployments),
            models=len(models.names().names),
        )
        yield host
    event(_logger, "host.stopped")


def _certificates(config: HostConfig) -> dict[str, ServerCertificate]:
    """
    Return the certificates that the settings name, by setting: before anything is started, as they may be no good.

    Raises: ConfigError.
    """
    return {
        setting: ServerCertificate(cert, key, setting=setting)
        for setting, cert, key in (
            ("tls_cert", config.tls_cert, config.tls_key),
            ("admin_tls_cert", config.admin_tls_cert, config.admin_tls_key),
        )
        if cert
    }


async def _serve_admin(
    stack: AsyncExitStack, api: AdminApi, listening: socket.socket, certificate: ServerCertificate | None
) -> None:
    """Answer the admin API's requests for as long as *stack* lives."""
    # Cancelled handlers are what tells a deploy or a log follower that its caller hung up.
    runner = web.AppRunner(api.app(), handler_cancellation=True, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    if certificate is None:
        await web.SockSite(runner, listening).start()
    else:
        context = certificate.context
        await TlsSite(
            runner,
            listening,
            context=context,
            handshake_timeout_s=HANDSHAKE_TIMEOUT_S,
            shutdown_timeout_s=TLS_END_TIMEOUT_S,
        ).start()
        stack.push_async_callback(_cancelled, asyncio.create_task(certificate.watch(_certificate_told)))


def _follow_others(
    stack: AsyncExitStack, database: Database, refreshers: Mapping[str, Callable[[], Awaitable[object]]]
) -> None:
    """Go by what other hosts change from now on, and by what they have changed since each of it was read."""
    changes = Follower(refreshers)
    stack.push_async_callback(changes.aclose)
    database.listen(changes.heard)
    changes.heard(ANYTHING)


def _certificate_told(problem: ConfigError | None) -> None:
    if problem is None:
        event(_logger, "certificate.taken", port="admin")
    else:
        event(_logger, "certificate.refused", level=logging.WARNING, port="admin", reason=problem)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """SIGTERM and SIGINT set the event; the second one has its usual effect."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def heard() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _make_home(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
    except OSError as exc:
        raise ConfigError(f"can't use {home} as home: {exc.strerror}; check --home") from exc


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the home for this process alone; the kernel lets go of it whatever way we end."""
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise HomeLockedError(
                f"another host (pid {owner}) already uses {home}; stop it, or choose another --home", home=str(home)
            ) from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _admin_token(home: Path) -> str:
    """Return the token in ``home/token``, made at the first start."""
    path = home / "token"
    with contextlib.suppress(FileNotFoundError):
        token = path.read_text().strip()
        if token:
            path.chmod(0o600)
            return token
    token = secrets.token_urlsafe(32)
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return token


def _fresh_folder(path: Path) -> Path:
    """Return *path*, empty: what a killed host left there is of no use."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@contextmanager
def _run_folder(home: Path) -> Iterator[Path]:
    """Where the workers' socket is: ``home/run``, or a temporary folder if that name is too long for a socket."""
    folder = home / "run"
    folder.mkdir(mode=0o700, exist_ok=True)
    if len(os.fsencode(folder / "control.sock")) <= _MAX_SOCKET_PATH_BYTES:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="faas-") as short:
        yield Path(short)


@contextmanager
def _announced(home: Path, host: RunningHost) -> Iterator[None]:
    """Keep ``home/run/host.json`` while the host serves, so that the command line finds it on any port."""
    path = home / "run" / "host.json"
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(msgspec.to_builtins(host)) + "\n")
    aside.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


async def _held_port(host: str, port: int, flag: str) -> contextlib.AbstractContextManager[int]:
    """
    Return a context that holds *port* (0: any free one) for our workers, without listening on it.

    Workers bind with SO_REUSEPORT, and that alone would let two hosts share a port unnoticed: so first a plain bind
    has to succeed, then a SO_REUSEPORT socket keeps the port ours.
    """
    if port:
        probe = await _bound(host, port, flag, reuse_port=False)
        probe.close()
    held = await _bound(host, port, flag, reuse_port=True)

    @contextmanager
    def holding() -> Iterator[int]:
        with held:
            yield held.getsockname()[1]

    return holding()


async def _listening(host: str, port: int, flag: str) -> socket.socket:
    bound = await _bound(host, port, flag, reuse_port=False)
    bound.listen(128)
    bound.setblocking(False)
    return bound


async def _bound(host: str, port: int, flag: str, *, reuse_port: bool) -> socket.socket:
    """Return a bound socket; raises PortTakenError when the port is still taken after a moment, ConfigError."""
    loop = asyncio.get_running_loop()
    try:
        family, kind, protocol, _, address = (
            await loop.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        )[0]
    except socket.gaierror as exc:
        raise ConfigError(
            f"host {host!r} has no address: {exc.strerror}; check {flag.replace('port', 'host')}"
        ) from exc
    until = loop.time() + PORT_PATIENCE_S
    while True:
        candidate = socket.socket(family, kind, protocol)
        try:
            # Without it, connections in TIME_WAIT keep a restarted host from its port; a listener still refuses us.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            candidate.bind(address)
        except OSError as exc:
            candidate.close()
            if isinstance(exc, PermissionError) or loop.time() >= until:
                raise PortTakenError(
                    f"can't listen on {host}:{port}: {exc.strerror}; stop what uses it, or choose another {flag}",
                    port=port,
                ) from exc
            await asyncio.sleep(_PORT_POLL_S)
        else:
            return candidate
