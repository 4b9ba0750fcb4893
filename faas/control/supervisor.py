"""
Worker processes: started, spoken to, replaced when they die, drained at the end.

A worker's life:  STARTING ──Ready──▶ SERVING ──Drain──▶ DRAINING ──exit──▶ STOPPED
                     ▲  └────────died──────┴──▶ BACKING_OFF ─┐
                     └───────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import msgspec

from faas.clock import Clock
from faas.config import HostConfig
from faas.control.process import BACK_OFF_S, HEALTHY_S, ChildProcess, Spawn, first, spawn_module
from faas.control.shares import ShareLedger
from faas.control.stats import Ledger
from faas.errors import FaasError, InternalError, PeerGoneError, ProtocolError, WireError, WorkerLostError
from faas.invocation import Alias, Deployment, leading
from faas.log import event, exception
from faas.problems import from_problem, to_problem
from faas.wire.framing import Channel
from faas.wire.messages import (
    PROTOCOL_VERSION,
    Activated,
    ApiKey,
    ArtifactNeeded,
    ArtifactReady,
    Drain,
    FromWorker,
    FunctionSettings,
    Hello,
    InvokeKey,
    InvokeKeys,
    Keys,
    Lines,
    Models,
    Prepare,
    Prepared,
    Ready,
    Shares,
    Spending,
    Spent,
    Stats,
    Table,
)
from faas.wire.peer import Answer, Ask, Cancel, Handler, Peer

MAX_FAILED_STARTS = 5
"""This many deaths in a row before the first ``Ready`` and the host gives up starting."""
HELLO_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 30.0
"""From hello to serving; nothing is loaded on that way, so beyond this a worker hangs, and is killed."""
ANSWER_TIMEOUT_S = 30.0
"""On top of the trial instance's own limit: beyond this a worker hangs, and is killed."""
DRAIN_GRACE_S = 3.0

_logger = logging.getLogger(__name__)


class WorkerState(str, Enum):
    """Where in its life a worker is."""

    STARTING = "starting"
    SERVING = "serving"
    BACKING_OFF = "backing-off"
    DRAINING = "draining"
    STOPPED = "stopped"


async def spawn_worker(settings: bytes) -> ChildProcess:
    """Start one gateway worker."""
    return await spawn_module("faas.gateway.worker", settings)


class ArtifactMaker(Protocol):
    """Who makes native code again when a worker misses it."""

    async def remake(self, deployment: Deployment) -> None:
        """Put *deployment*'s artifact back into the store; raises FaasError."""


class _Worker:
    """One slot: the process in it changes, the index stays."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.state = WorkerState.STARTING
        self.pid = 0
        self.restarts = 0
        self.failed_starts = 0
        self.generation = 0
        self.token = ""
        self.process: ChildProcess | None = None
        self.channel: Channel[FromWorker] | None = None
        self.greeted = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.pending: dict[int, asyncio.Future[Prepared]] = {}
        self.peer: Peer | None = None
        self.settings: FunctionSettings | None = None
        self.untold: dict[str, Spending] = {}
        self.teller: asyncio.Task[None] | None = None


class ModelAccess(msgspec.Struct, frozen=True):
    """How workers reach the model server; an empty ``socket`` means that they can't."""

    socket: str = ""
    token: str = ""


NO_ACCESS = ModelAccess()
NO_SERVICES: Mapping[str, Handler] = {}
NO_MODELS = Models(names=())
NO_SETTINGS = FunctionSettings(config={}, secrets=())


class WorkerView(msgspec.Struct, frozen=True):
    """What the admin API shows of a worker."""

    worker: int
    pid: int
    state: str
    restarts: int
    generation: int
    gauges: dict[str, float] = {}


class Supervisor:
    """
    The worker processes of one host; lives from ``start`` to ``drain``.

    Thread: the control loop only.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        run_dir: Path,
        public_host: str,
        public_port: int,
        clock: Clock,
        model_access: ModelAccess = NO_ACCESS,
        on_lines: Callable[[dict[str, bytes]], None],
        on_stats: Callable[[int, Stats], None],
        on_gone: Callable[[int], None],
        services: Mapping[str, Handler] = NO_SERVICES,
        settings_of: Callable[[tuple[Deployment, ...]], FunctionSettings] = lambda _deployments: NO_SETTINGS,
        spawn: Spawn = spawn_worker,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Args: *run_dir* holds the socket. *on_lines*, *on_stats* and *on_gone* take what workers send up, and the
        index of one that is gone; *services* answer what workers ask, with ``_worker`` among the arguments;
        *settings_of* says what a worker has to know that serves so much, the same object while that is the same;
        *spawn* and *sleep* are there for tests.
        """
        self._config = config
        self._socket_path = run_dir / "control.sock"
        self._public = (public_host, public_port)
        self._clock = clock
        self._model_access = model_access
        self._on_lines = on_lines
        self._on_stats = on_stats
        self._on_gone = on_gone
        self._services = services
        self._settings_of = settings_of
        self._spawn = spawn
        self._sleep = sleep
        self._maker: ArtifactMaker | None = None
        self._table = Table(generation=0, deployments=())
        self._models = Models(names=())
        self._keys = Keys(keys=())
        self._invoke_keys = InvokeKeys(keys=())
        self._ledger = Ledger(clock)
        self._shares = ShareLedger(config.n_workers)
        self._workers = [_Worker(index) for index in range(config.n_workers)]
        self._keepers: list[asyncio.Task[None]] = []
        self._chores: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self._ids = itertools.count(1)
        self._draining = False
        self._channels: set[Channel[FromWorker]] = set()

    @property
    def generation(self) -> int:
        """The table that workers are told to serve."""
        return self._table.generation

    def workers(self) -> list[WorkerView]:
        """Return what is known of each worker, by index."""
        return [WorkerView(w.index, w.pid, w.state.value, w.restarts, w.generation) for w in self._workers]

    async def start(
        self,
        deployments: tuple[Deployment, ...],
        maker: ArtifactMaker,
        *,
        aliases: tuple[Alias, ...] = (),
        models: Models = NO_MODELS,
        keys: tuple[ApiKey, ...] = (),
        invoke_keys: tuple[InvokeKey, ...] = (),
    ) -> None:
        """
        Start every worker on *deployments* by *aliases*; all of them serve when this returns.

        Args: *models* are those that exist, *keys* open the OpenAI-compatible endpoints, *invoke_keys* functions.
        Raises: WorkerLostError if one of them keeps dying before it serves; ``drain`` is needed even then.
        """
        self._maker = maker
        self._models = models
        self._keys = Keys(keys=keys)
        self._invoke_keys = InvokeKeys(keys=invoke_keys)
        self._table = Table(generation=1, deployments=deployments, aliases=aliases)
        self._shares.serve(leading(deployments, aliases).values())
        self._socket_path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, self._socket_path)
        self._socket_path.chmod(0o600)
        self._keepers = [
            asyncio.create_task(self._keep(worker), name=f"worker-{worker.index}") for worker in self._workers
        ]
        await self._until(
            lambda: (
                all(w.state is WorkerState.SERVING for w in self._workers)
                or any(w.failed_starts >= MAX_FAILED_STARTS for w in self._workers)
            )
        )
        lost = next((w for w in self._workers if w.failed_starts >= MAX_FAILED_STARTS), None)
        if lost is not None:
            raise WorkerLostError(
                f"worker {lost.index} died {lost.failed_starts} times before it served; its last words are above, "
                "and 'faas doctor' checks what it needs",
                worker=lost.index,
            )

    async def prepare(self, deployment: Deployment) -> None:
        """
        Have every serving worker load *deployment* and try it; nothing of it is served yet.

        A worker that dies meanwhile doesn't count, one that doesn't answer in time is killed.
        Raises: the problem that a worker reported; WorkerLostError if none of them answered.
        """
        budget_s = self._config.precompile.start_timeout_s + ANSWER_TIMEOUT_S
        try:
            async with asyncio.timeout(budget_s):
                await self._until(lambda: any(w.state is WorkerState.SERVING for w in self._workers))
        except TimeoutError as exc:
            raise WorkerLostError(
                "no worker serves, so the new version can't be tried; 'faas status' shows the workers"
            ) from exc
        asked = [w for w in self._workers if w.state is WorkerState.SERVING]
        answers = await asyncio.gather(*(self._ask(worker, deployment, budget_s) for worker in asked))
        problem = next(
            (answer.problem for answer in answers if answer is not None and answer.problem is not None), None
        )
        if problem is not None:
            raise from_problem(problem)
        if all(answer is None for answer in answers):
            raise WorkerLostError(
                f"every worker died or hung while it tried {deployment.function!r}; the host's log has their last words"
            )

    async def activate(self, deployments: tuple[Deployment, ...], aliases: tuple[Alias, ...] = ()) -> int:
        """
        Have every worker serve exactly *deployments*, by *aliases*; return the generation, once all of them do.

        A worker that dies meanwhile doesn't count (its replacement begins with this table), one that doesn't answer
        in time is killed. So this always succeeds.
        """
        # Requests in flight still run what was served so far, and may need what that was given.
        settings = self._settings_of((*self._table.deployments, *deployments))
        self._table = Table(generation=self._table.generation + 1, deployments=deployments, aliases=aliases)
        self._shares.serve(leading(deployments, aliases).values())
        told: list[tuple[_Worker, Channel[FromWorker]]] = []
        for worker in self._workers:
            if worker.settings is not settings and self._tell(worker, settings):
                worker.settings = settings
            if worker.channel is not None and self._tell(worker, self._table):
                told.append((worker, worker.channel))
        wanted = self._table.generation

        def behind() -> list[_Worker]:
            return [w for w, channel in told if w.channel is channel and w.generation < wanted]

        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._until(lambda: not behind())
        except TimeoutError:
            for worker in behind():
                self._kill(worker, "did not activate a table in time")
            await self._until(lambda: not behind())
        return wanted

    async def ask(self, index: int, operation: str, /, **arguments: Any) -> Any:
        """
        Return what worker *index* answers.

        Raises: the FaasError that it answered with; PeerGoneError if it does not serve, or is gone before it answered.
        """
        worker = self._workers[index]
        if worker.peer is None or worker.state is not WorkerState.SERVING:
            raise PeerGoneError(f"worker {index} does not serve")
        return await worker.peer.ask(operation, **arguments)

    async def set_models(self, models: Models) -> None:
        """Have every worker go by *models*; all of them do when this returns. Never fails, as ``activate``."""
        self._models = models
        await self._spread(models)

    async def set_keys(self, keys: tuple[ApiKey, ...]) -> None:
        """Have every worker go by *keys*; all of them do when this returns. Never fails, as ``activate``."""
        self._keys = Keys(keys=keys)
        await self._spread(self._keys)

    async def set_invoke_keys(self, keys: tuple[InvokeKey, ...]) -> None:
        """Have every worker go by *keys*; all of them do when this returns. Never fails, as ``activate``."""
        self._invoke_keys = InvokeKeys(keys=keys)
        await self._spread(self._invoke_keys)

    async def spread_settings(self) -> None:
        """Have every worker go by what *settings_of* says now; all of them do when this returns. Never fails."""
        await self.activate(self._table.deployments, self._table.aliases)

    async def _spread(self, message: Models | Keys | InvokeKeys) -> None:
        """Tell every worker, then have the table that they already serve answered once more: the order is kept."""
        for worker in self._workers:
            self._tell(worker, message)
        await self.activate(self._table.deployments, self._table.aliases)

    async def drain(self) -> None:
        """Let every worker finish its requests, within the drain budget; then end them all."""
        self._draining = True
        loop = asyncio.get_running_loop()
        for worker, keeper in zip(self._workers, self._keepers, strict=False):
            if worker.channel is not None and self._tell(worker, Drain(timeout_s=self._config.drain_timeout_s)):
                worker.state = WorkerState.DRAINING
            elif worker.process is not None:
                self._kill(worker, "host stops and it does not serve yet")
            else:
                keeper.cancel()
        if self._keepers:
            until = loop.time() + self._config.drain_timeout_s + DRAIN_GRACE_S
            _, late = await asyncio.wait(self._keepers, timeout=max(0.0, until - loop.time()))
            if late:
                for worker in self._workers:
                    self._kill(worker, "did not drain in time")
                await asyncio.wait(late)
        for keeper in self._keepers:
            if not keeper.cancelled() and (exc := keeper.exception()) is not None:
                exception(_logger, "worker.keeper_failed", exc)
        for chore in tuple(self._chores):
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            for channel in tuple(self._channels):
                await channel.aclose()
            await self._server.wait_closed()
        self._socket_path.unlink(missing_ok=True)

    # ---- one worker -------------------------------------------------------------------------------------------------

    async def _keep(self, worker: _Worker) -> None:
        """Start a process in *worker*'s slot, and another one whenever it is gone."""
        pause_s = BACK_OFF_S[0]
        try:
            while not self._draining:
                began = self._clock.monotonic()
                served = await self._survived(worker)
                if self._draining:
                    break
                worker.restarts += 1
                worker.failed_starts = 0 if served else worker.failed_starts + 1
                worker.state = WorkerState.BACKING_OFF
                self._notify()
                if self._clock.monotonic() - began >= HEALTHY_S:
                    pause_s = BACK_OFF_S[0]
                await self._sleep(pause_s)
                pause_s = min(pause_s * 2, BACK_OFF_S[1])
        finally:
            worker.state = WorkerState.STOPPED
            self._notify()

    async def _survived(self, worker: _Worker) -> bool:
        """See one process through, whatever goes wrong on our side; return whether it ever served."""
        try:
            return await self._run_one(worker)
        except Exception as exc:
            exception(_logger, "worker.keeper_failed", exc, worker=worker.index)
            return False

    async def _run_one(self, worker: _Worker) -> bool:
        """See one process through from start to exit; return whether it ever served."""
        worker.state = WorkerState.STARTING
        worker.generation = 0
        worker.token = secrets.token_urlsafe(32)
        worker.greeted.clear()
        worker.hung_up.clear()
        try:
            process = await self._spawn(self._settings(worker))
        except OSError as exc:
            event(_logger, "worker.spawn_failed", level=logging.ERROR, worker=worker.index, reason=exc.strerror)
            return False
        worker.process = process
        worker.pid = process.pid
        event(_logger, "worker.started", worker=worker.index, pid=process.pid)
        exited = asyncio.ensure_future(process.wait())
        try:
            if self._draining:
                self._kill(worker, "host stops")
            elif not await first(exited, worker.greeted.wait(), HELLO_TIMEOUT_S):
                self._kill(worker, "did not say hello")
            elif not await first(exited, self._until(lambda: _answered(worker)), READY_TIMEOUT_S):
                self._kill(worker, "did not serve in time")
            elif not exited.done():
                await first(exited, worker.hung_up.wait(), None)
                await asyncio.wait((exited,), timeout=self._config.drain_timeout_s + DRAIN_GRACE_S)
                if not exited.done():
                    self._kill(worker, "closed its connection and did not exit")
            code = await exited
        finally:
            if not exited.done():
                self._kill(worker, "is not watched any more")
            exited.cancel()
            worker.process = None
            worker.token = ""
        served = worker.generation > 0
        if worker.channel is not None:
            # It is gone, what it sent last may still be in the socket: its log lines and counters are wanted.
            await first(asyncio.get_running_loop().create_future(), worker.hung_up.wait(), DRAIN_GRACE_S)
        event(
            _logger,
            "worker.exited",
            level=logging.INFO if self._draining else logging.WARNING,
            worker=worker.index,
            pid=worker.pid,
            exit_code=code,
        )
        worker.pid = 0
        self._on_gone(worker.index)
        self._share(worker, self._ledger.retire(worker.index))
        self._tell_shares(self._shares.retire(worker.index))
        self._notify()
        return served

    def _settings(self, worker: _Worker) -> bytes:
        host, port = self._public
        # Workers have no business with the database, and its URL may have a password in it.
        config = msgspec.structs.replace(self._config, state="")
        return json.dumps(
            {
                "config": msgspec.to_builtins(config),
                "worker": worker.index,
                "socket": str(self._socket_path),
                "token": worker.token,
                "public_host": host,
                "public_port": port,
                "models_socket": self._model_access.socket,
                "models_token": self._model_access.token,
                "models": list(self._models.names),
                "models_missing": self._models.missing,
                "keys": msgspec.to_builtins(self._keys.keys),
                "invoke_keys": msgspec.to_builtins(self._invoke_keys.keys),
            }
        ).encode()

    def _kill(self, worker: _Worker, reason: str) -> None:
        if worker.process is None:
            return
        event(_logger, "worker.killed", level=logging.WARNING, worker=worker.index, pid=worker.pid, reason=reason)
        try:
            worker.process.kill()
        except ProcessLookupError:
            return  # gone already: the same end

    # ---- the conversation -------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold one connection; whoever does not prove to be one of our workers is hung up on."""
        channel: Channel[FromWorker] = Channel(reader, writer, FromWorker)
        self._channels.add(channel)
        worker: _Worker | None = None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                worker = self._recognise(await channel.receive())
            worker.channel = channel
            worker.peer = Peer(channel.send_nowait, _of_worker(self._services, worker.index))
            worker.greeted.set()
            channel.send_nowait(msgspec.structs.replace(self._table, shares=self._shares.connect(worker.index)))
            worker.untold, worker.teller = {}, None  # all of it is in the snapshot
            channel.send_nowait(self._ledger.snapshot())
            worker.settings = self._settings_of(self._table.deployments)
            channel.send_nowait(worker.settings)
            channel.send_nowait(self._models)
            channel.send_nowait(self._keys)
            channel.send_nowait(self._invoke_keys)
            if self._draining:
                channel.send_nowait(Drain(timeout_s=self._config.drain_timeout_s))
            while True:
                self._take(worker, await channel.receive())
        except PeerGoneError:
            if worker is None:
                event(_logger, "control.stranger_left", level=logging.WARNING)
        except (WireError, TimeoutError) as exc:
            index = "unknown" if worker is None else worker.index
            event(_logger, "control.hung_up", level=logging.ERROR, worker=index, reason=exc)
        finally:
            if worker is not None and worker.channel is channel:
                self._hang_up(worker)
            self._channels.discard(channel)
            await channel.aclose()

    def _recognise(self, hello: FromWorker) -> _Worker:
        if not isinstance(hello, Hello):
            raise ProtocolError("the first message of a worker must be hello")
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError(f"the worker speaks protocol {hello.protocol}, this host {PROTOCOL_VERSION}")
        if not 0 <= hello.worker < len(self._workers):
            raise ProtocolError(f"there is no worker {hello.worker}")
        worker = self._workers[hello.worker]
        if not worker.token or not hmac.compare_digest(worker.token.encode(), hello.token.encode()):
            raise ProtocolError("a worker's token is wrong")
        if worker.channel is not None:
            raise ProtocolError(f"worker {hello.worker} is connected already")
        return worker

    def _take(self, worker: _Worker, message: FromWorker) -> None:
        match message:
            case Ready(generation=generation) | Activated(generation=generation):
                worker.generation = max(worker.generation, generation)
                if worker.state is WorkerState.STARTING:
                    worker.state = WorkerState.SERVING
                self._notify()
            case Prepared(id=id):
                future = worker.pending.pop(id, None)
                if future is not None and not future.done():
                    future.set_result(message)
            case ArtifactNeeded():
                chore = asyncio.create_task(self._supply(worker, message))
                self._chores.add(chore)
                chore.add_done_callback(self._chores.discard)
            case Lines(by_function=by_function):
                self._on_lines(by_function)
            case Stats():
                self._on_stats(worker.index, message)
            case Spent():
                self._share(worker, self._ledger.report(worker.index, message))
            case Shares():
                self._tell_shares(self._shares.report(worker.index, message))
            case Ask() | Answer() | Cancel():
                if worker.peer is not None:
                    worker.peer.take(message)
            case Hello():
                raise ProtocolError("a worker says hello once")

    async def _supply(self, worker: _Worker, message: ArtifactNeeded) -> None:
        """Answer one ``ArtifactNeeded``."""
        channel = worker.channel
        assert self._maker is not None
        problem: dict[str, Any] | None = None
        try:
            await self._maker.remake(message.deployment)
        except FaasError as exc:
            problem = to_problem(exc)
        except Exception as exc:
            exception(_logger, "artifact.remake_failed", exc, function=message.deployment.function)
            problem = to_problem(InternalError("making the artifact again failed; the host's log has the traceback"))
        if channel is not None and worker.channel is channel:
            self._tell(worker, ArtifactReady(id=message.id, problem=problem))

    def _share(self, spender: _Worker, spent: Spent) -> None:
        """Have every other worker know of *spent*, soon."""
        for worker in self._workers:
            if worker is spender or worker.channel is None or not spent.names:
                continue
            for name, spending in spent.names.items():
                before = worker.untold.get(name)
                n_before = before.n_tokens if before is not None else 0
                worker.untold[name] = Spending(n_before + spending.n_tokens, spending.tokens_per_minute)
            if worker.teller is None or worker.teller.done():
                worker.teller = asyncio.create_task(self._tell_spent(worker, worker.channel))
                self._chores.add(worker.teller)
                worker.teller.add_done_callback(self._chores.discard)

    def _tell_shares(self, told: dict[int, Shares]) -> None:
        for index, shares in told.items():
            self._tell(self._workers[index], shares)  # what a worker does not hear any more is taken back when it ends

    async def _tell_spent(self, worker: _Worker, channel: Channel[FromWorker]) -> None:
        """Tell *worker* what it has not heard yet; what comes while it is slow to read is added up, not queued."""
        try:
            while worker.channel is channel and worker.untold:
                untold, worker.untold = worker.untold, {}
                await channel.send(Spent(untold))
        except PeerGoneError:
            return  # its replacement begins with the ledger's snapshot

    async def _ask(self, worker: _Worker, deployment: Deployment, timeout_s: float) -> Prepared | None:
        """Return *worker*'s answer; None if it died, or hung and was killed."""
        id = next(self._ids)
        answer: asyncio.Future[Prepared] = asyncio.get_running_loop().create_future()
        worker.pending[id] = answer
        try:
            if not self._tell(worker, Prepare(id=id, deployment=deployment)):
                return None
            async with asyncio.timeout(timeout_s):
                return await answer
        except PeerGoneError:
            return None
        except TimeoutError:
            self._kill(worker, f"did not answer whether {deployment.function} can be served")
            return None
        finally:
            worker.pending.pop(id, None)

    def _tell(self, worker: _Worker, message: msgspec.Struct) -> bool:
        try:
            if worker.channel is None:
                return False
            worker.channel.send_nowait(message)
        except PeerGoneError:
            return False
        return True

    def _hang_up(self, worker: _Worker) -> None:
        worker.channel = None
        if worker.peer is not None:
            worker.peer.close()
            worker.peer = None
        for answer in worker.pending.values():
            if not answer.done():
                answer.set_exception(PeerGoneError("the worker closed the connection"))
        worker.pending.clear()
        if worker.state is WorkerState.SERVING:
            worker.state = WorkerState.BACKING_OFF
        worker.hung_up.set()
        self._notify()

    # ---- waiting ----------------------------------------------------------------------------------------------------

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            await self._changed.wait()


def _of_worker(services: Mapping[str, Handler], index: int) -> dict[str, Handler]:
    """Return *services* as worker *index* asks for them."""

    def told(handler: Handler) -> Handler:
        return lambda arguments: handler({**arguments, "_worker": index})

    return {operation: told(handler) for operation, handler in services.items()}


def _answered(worker: _Worker) -> bool:
    """Return whether *worker* serves, or gave up on it."""
    return worker.generation > 0 or worker.hung_up.is_set()
