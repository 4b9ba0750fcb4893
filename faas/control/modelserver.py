"""
The model server process: started when there is a model, spoken to as the client ``control``, replaced when it dies.

Its life:  ABSENT ──a model──▶ STARTING ──ServerHello──▶ SERVING ──aclose──▶ STOPPED
             ▲                    ▲  └──────died────────────┴──▶ BACKING_OFF ─┐
             └──no model left     └───────────────────────────────────────────┘

A change of the set of models is told to the running server, so that generations of the other models go on. A server
that does not understand hangs up, and its replacement is started with the new set.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from pathlib import Path

import msgspec

from faas.clock import Clock
from faas.config import HostConfig
from faas.control.process import BACK_OFF_S, HEALTHY_S, ChildProcess, Spawn, rss_bytes, spawn_module
from faas.control.stats import ModelCounts
from faas.control.supervisor import ModelAccess
from faas.errors import FaasError, PeerGoneError, ProtocolError, WireError
from faas.log import event
from faas.problems import from_problem
from faas.wire.framing import Channel
from faas.wire.models import (
    MODEL_PROTOCOL_VERSION,
    ClientHello,
    Describe,
    Final,
    Finish,
    FromModelServer,
    ModelCard,
    ModelStats,
    Ping,
    Pong,
    Register,
    ServerHello,
    Unregister,
)

CONNECT_POLL_S = 0.02
START_TIMEOUT_S = 60.0
"""From the start of the process to its hello; models are loaded later, when they are first asked for."""
ANSWER_TIMEOUT_S = 30.0
"""For what the server does at once, on a machine that may be busy; beyond this it hangs, and is killed."""
DESCRIBE_TIMEOUT_S = 2.0
QUIET_S = 10.0
"""After this long without a word the server is pinged."""
EXIT_GRACE_S = 3.0
"""How long the server may take to end by itself after our connection to it closed."""

_logger = logging.getLogger(__name__)


class ModelServerState(str, Enum):
    """Where in its life the model server is."""

    ABSENT = "absent"  # no model to serve, or nothing here that could serve one
    STARTING = "starting"
    SERVING = "serving"
    BACKING_OFF = "backing-off"
    STOPPED = "stopped"


class ModelServerView(msgspec.Struct, frozen=True):
    """What the admin API shows of the model server; ``reason`` says why it does not serve."""

    state: str
    pid: int = 0
    restarts: int = 0
    reason: str = ""
    backend: str = ""
    models_loaded: int = 0
    rss_bytes: int = 0


async def spawn_model_server(settings: bytes) -> ChildProcess:
    """Start the model server."""
    return await spawn_module("faas.modelserver.main", settings)


def why_no_models(config: HostConfig) -> str:
    """Return why this host can't run models at all; '' if it can. Nothing is imported to find out."""
    if config.model_backend == "llama" and importlib.util.find_spec("llama_cpp") is None:
        return "this host runs without the models extra: pip install 'faas[models]', then restart it"
    return ""


class ModelSupervisor:
    """
    The model server of one host; lives from ``start`` to ``aclose``.

    Thread: the control loop only.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        run_dir: Path,
        clock: Clock,
        missing: str = "",
        spawn: Spawn = spawn_model_server,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Args: *run_dir* holds the socket; *missing* says why no server can run; *spawn*, *sleep* are for tests."""
        self._config = config
        self._socket_path = run_dir / "models.sock"
        self._token = secrets.token_urlsafe(32)
        self._clock = clock
        self._missing = missing
        self._spawn = spawn
        self._sleep = sleep
        self._state = ModelServerState.ABSENT
        self._reason = missing or "no model is registered; 'faas models add' registers one"
        self._pid = 0
        self._backend = ""
        self._restarts = 0
        self._failed_starts = 0
        self._wanted: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self._offered: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._cards: dict[str, ModelCard] = {}
        self._process: ChildProcess | None = None
        self._channel: Channel[FromModelServer] | None = None
        self._pending: dict[int, asyncio.Future[Final]] = {}
        self._ids = itertools.count(1)
        self._changed = asyncio.Event()
        self._change_lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False
        self.counts = ModelCounts()

    @property
    def access(self) -> ModelAccess:
        """How workers reach the server."""
        return ModelAccess(socket=str(self._socket_path), token=self._token)

    @property
    def restarts(self) -> int:
        """How often the process was replaced after it died."""
        return self._restarts

    @property
    def refused(self) -> Mapping[str, str]:
        """The models that the running server would not take, and why."""
        return self._refused

    def view(self) -> ModelServerView:
        """Return what is known of the process now."""
        return ModelServerView(
            state=self._state.value,
            pid=self._pid,
            restarts=self._restarts,
            reason="" if self._state is ModelServerState.SERVING else self._reason,
            backend=self._backend if self._pid else "",
            models_loaded=sum(numbers["resident_bytes"] > 0 for numbers in self.counts.gauges().values()),
            rss_bytes=rss_bytes(self._pid) if self._pid else 0,
        )

    async def cards(self) -> dict[str, ModelCard]:
        """Return what the server says of its models; the last it said, not loaded, while it is away."""
        if self._channel is not None:
            try:
                answer = await self._ask(Describe(id=next(self._ids)), DESCRIBE_TIMEOUT_S)
                self._cards = {card.name: card for card in answer.cards}
            except (PeerGoneError, TimeoutError):
                event(_logger, "modelserver.no_answer", level=logging.WARNING, pid=self._pid)
        return dict(self._cards)

    def start(self, models: Mapping[str, str], digests: Mapping[str, str]) -> None:
        """
        Begin to keep a server that offers *models* (name → path), as long as there are any.

        Args: *digests* (name → SHA-256) are those that are known, so that the server need not compute them.
        """
        self._wanted = dict(models)
        self._digests = dict(digests)
        self._keeper = asyncio.create_task(self._keep(), name="model-server")

    async def settled(self, timeout_s: float) -> None:
        """Wait until the server offers what it should, can't be there, or has failed to start; *timeout_s* at most."""

        def is_settled() -> bool:
            match self._state:
                case ModelServerState.SERVING:
                    return self._offered == self._wanted
                case ModelServerState.ABSENT:
                    return bool(self._missing) or not self._wanted
                case ModelServerState.BACKING_OFF:
                    return self._failed_starts > 0
                case _:
                    return self._state is ModelServerState.STOPPED

        try:
            async with asyncio.timeout(timeout_s):
                await self._until(is_settled)
        except TimeoutError:
            event(_logger, "modelserver.slow", level=logging.WARNING, state=self._state.value, waited_s=timeout_s)

    async def set_models(self, models: Mapping[str, str], digests: Mapping[str, str]) -> None:
        """
        Have the server offer exactly *models*; generations of those that stay go on.

        Returns when it does, or when it is clear that it won't soon: a server that is away offers them once it is back.
        """
        self._wanted = dict(models)
        self._digests = dict(digests)
        self._notify()
        if not self._wanted:
            if self._channel is None:
                self._kill("no model is left and it does not serve yet")
            await self._hang_up()
        await self._reconcile()
        await self.settled(START_TIMEOUT_S)

    async def aclose(self) -> None:
        """End the server: it ends by itself once our connection to it is closed, and is killed if it does not."""
        self._closing = True
        self._notify()
        if self._channel is None:
            self._kill("host stops and it does not serve yet")
        await self._hang_up()
        if self._keeper is not None:
            if self._state is ModelServerState.BACKING_OFF:
                self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._socket_path.unlink(missing_ok=True)

    # ---- one process ------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Start a process when there is something to serve, and another one whenever it is gone."""
        pause_s = BACK_OFF_S[0]
        try:
            while not self._closing:
                if self._missing or not self._wanted:
                    self._enter(ModelServerState.ABSENT, self._missing or "no model is registered")
                    await self._until(lambda: self._closing or bool(self._wanted and not self._missing))
                    continue
                began = self._clock.monotonic()
                served = await self._run_one()
                if self._closing or not self._wanted:
                    continue
                self._restarts += 1
                self._failed_starts = 0 if served else self._failed_starts + 1
                self._enter(ModelServerState.BACKING_OFF, self._reason)
                if self._clock.monotonic() - began >= HEALTHY_S:
                    pause_s = BACK_OFF_S[0]
                await self._sleep(pause_s)
                pause_s = min(pause_s * 2, BACK_OFF_S[1])
        finally:
            self._enter(ModelServerState.STOPPED, "the host stops")

    async def _run_one(self) -> bool:
        """See one process through from start to exit; return whether it ever served."""
        self._enter(ModelServerState.STARTING, "it is starting")
        self._offered = dict(self._wanted)
        self._refused = {}
        self._socket_path.unlink(missing_ok=True)
        try:
            process = self._process = await self._spawn(self._settings())
        except OSError as exc:
            self._reason = f"it can't be started: {exc.strerror}"
            event(_logger, "modelserver.spawn_failed", level=logging.ERROR, reason=exc.strerror)
            return False
        self._pid = process.pid
        event(_logger, "modelserver.started", pid=process.pid, models=len(self._offered))
        exited = asyncio.ensure_future(process.wait())
        served = asyncio.Event()
        conversation = asyncio.create_task(self._converse(served))
        try:
            if self._closing:
                self._kill("host stops")
            await asyncio.wait((exited, conversation), return_when=asyncio.FIRST_COMPLETED)
            if conversation.done() and (why := conversation.result()):
                self._kill(why)
            await asyncio.wait((exited,), timeout=EXIT_GRACE_S)
            if not exited.done():
                self._kill("closed its connection and did not exit")
            code = await exited
        finally:
            if not exited.done():
                self._kill("nobody looks after it any more")
            # What it sent last may still be in the socket: its counters are wanted.
            await asyncio.wait((conversation,), timeout=EXIT_GRACE_S if served.is_set() else 0)
            conversation.cancel()
            exited.cancel()
            await asyncio.gather(conversation, exited, return_exceptions=True)
            self._process = None
            self._pid = 0
            self.counts.retire()
            self._cards = {
                name: msgspec.structs.replace(card, loaded=False, n_ctx=0) for name, card in self._cards.items()
            }
        self._reason = f"it exited with code {code}; the host's log has its last words"
        level = logging.INFO if self._closing or not self._wanted else logging.WARNING
        event(_logger, "modelserver.exited", level=level, pid=process.pid, exit_code=code)
        return served.is_set()

    def _settings(self) -> bytes:
        config = self._config
        return json.dumps(
            {
                "socket": str(self._socket_path),
                "token": self._token,
                "models": self._offered,
                "digests": self._digests,
                "budget_bytes": config.model_budget,
                "threads": config.model_threads,
                "n_ctx": config.model_ctx,
                "n_slots": config.model_slots,
                "saved_bytes": config.model_saved_bytes,
                "gpu_layers": config.model_gpu_layers,
                "backend": config.model_backend,
            }
        ).encode()

    def _kill(self, reason: str) -> None:
        if self._process is None:
            return
        event(_logger, "modelserver.killed", level=logging.WARNING, pid=self._pid, reason=reason)
        try:
            self._process.kill()
        except ProcessLookupError:
            return  # gone already: the same end

    # ---- the conversation -------------------------------------------------------------------------------------------

    async def _converse(self, served: asyncio.Event) -> str:
        """Hold the conversation to its end; return why the process is to be killed, '' if it ends by itself."""
        channel: Channel[FromModelServer] | None = None
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                channel = await self._connected()
                await channel.send(ClientHello(MODEL_PROTOCOL_VERSION, "control", self._token))
                hello = await channel.receive()
            if not isinstance(hello, ServerHello) or hello.protocol != MODEL_PROTOCOL_VERSION:
                raise ProtocolError("the model server did not begin with a hello of our protocol")
            self._channel = channel
            self._backend = hello.backend
            self._cards = {card.name: card for card in hello.models}
            served.set()
            self._failed_starts = 0
            self._enter(ModelServerState.SERVING, "")
            event(_logger, "modelserver.ready", pid=self._pid, backend=hello.backend, models=len(hello.models))
            tasks.append(asyncio.create_task(self._reconcile()))
            if self._closing or not self._wanted:
                await self._hang_up()
            while (message := await self._heard(channel)) is not None:
                self._take(message)
            return "does not answer a ping"
        except PeerGoneError:
            return ""
        except TimeoutError:
            return "did not say hello"
        except OSError as exc:
            return f"can't be reached: {exc.strerror}"
        except WireError as exc:
            return exc.message
        finally:
            if self._channel is channel:
                self._channel = None
            for task in tasks:
                task.cancel()
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(PeerGoneError("the model server closed the connection"))
            if channel is not None:
                await channel.aclose()
            self._notify()

    async def _connected(self) -> Channel[FromModelServer]:
        """Return a connection; the server listens as soon as it can answer."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._socket_path, limit=1 << 20)
            except (FileNotFoundError, ConnectionRefusedError):
                await self._sleep(CONNECT_POLL_S)
            else:
                return Channel(reader, writer, FromModelServer)

    async def _heard(self, channel: Channel[FromModelServer]) -> FromModelServer | None:
        """Return the next message; None if the server is silent and does not even answer a ping."""
        # One task for both waits: a receive that is given up in the middle of a frame would lose its place.
        receiving: asyncio.Task[FromModelServer] = asyncio.create_task(channel.receive())
        try:
            await asyncio.wait((receiving,), timeout=QUIET_S)
            if not receiving.done():
                channel.send_nowait(Ping(id=next(self._ids)))
                await asyncio.wait((receiving,), timeout=ANSWER_TIMEOUT_S)
            return receiving.result() if receiving.done() else None
        finally:
            receiving.cancel()

    def _take(self, message: FromModelServer) -> None:
        match message:
            case Final(id=id):
                answer = self._pending.pop(id, None)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case ModelStats():
                self.counts.report(message)
            case Pong():
                return
            case _:
                raise ProtocolError(f"the model server sent control a {type(message).__name__}")

    async def _ask(self, message: Describe | Register | Unregister, timeout_s: float) -> Final:
        """Return the answer; raises PeerGoneError, TimeoutError."""
        channel = self._channel
        if channel is None:
            raise PeerGoneError("the model server is away")
        answer: asyncio.Future[Final] = asyncio.get_running_loop().create_future()
        self._pending[message.id] = answer
        try:
            channel.send_nowait(message)
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            self._pending.pop(message.id, None)

    async def _reconcile(self) -> None:
        """Tell the server one by one what is new and what is gone, as long as it is there."""
        async with self._change_lock:
            while self._channel is not None and self._wanted and (name := self._difference()):
                path = self._wanted.get(name)
                id = next(self._ids)
                try:
                    answer = await self._ask(
                        Unregister(id=id, name=name) if path is None else Register(id=id, name=name, path=path),
                        ANSWER_TIMEOUT_S,
                    )
                except PeerGoneError:
                    break  # its replacement begins with the new set
                except TimeoutError:
                    self._kill(f"did not answer a change of the model {name}")
                    break
                self._note(name, path, answer)
            self._notify()

    def _difference(self) -> str:
        """Return a model that the server should be told about, '' if there is none; those that go come first."""
        gone = self._offered.keys() - self._wanted.keys()
        other = {name for name, path in self._wanted.items() if self._offered.get(name) != path}
        return min(gone or other, default="")

    def _note(self, name: str, path: str | None, answer: Final) -> None:
        """Take the server's answer to one change; one that it refused is not tried again with this server."""
        self._refused.pop(name, None)
        self._cards.pop(name, None)
        if path is None:
            del self._offered[name]
        else:
            self._offered[name] = path
            self._cards.update({card.name: card for card in answer.cards})
        if answer.finish is Finish.FAILED:
            problem: FaasError = from_problem(answer.problem or {})
            self._refused[name] = problem.message
            event(_logger, "modelserver.refused", level=logging.ERROR, model=name, reason=problem.message)

    async def _hang_up(self) -> None:
        """Close our connection: the server ends then."""
        if self._channel is not None:
            await self._channel.aclose()

    # ---- waiting ----------------------------------------------------------------------------------------------------

    def _enter(self, state: ModelServerState, reason: str) -> None:
        self._state = state
        self._reason = reason
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            await self._changed.wait()
