"""``faas run``: a program once, with a model server of its own if it uses models."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import msgspec
import typer

from faas.cli.options import pairs
from faas.cli.output import visible
from faas.config import HostConfig, load_config
from faas.control.models import examine
from faas.control.modelserver import EXIT_GRACE_S, START_TIMEOUT_S, spawn_model_server, why_no_models
from faas.control.process import ChildProcess
from faas.errors import FaasError, ModelFileError, ModelNotGrantedError, ModelsMissingError, ModelUnavailableError
from faas.modelserver.main import EXIT_NO_BACKEND, ServerSettings
from faas.nn.client import ModelClient
from faas.nn.session import NnContext
from faas.wasm.oneshot import GuestModels, run_once

CONNECT_POLL_S = 0.02


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE.wasm", help="A WASI command.", show_default=False)],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]", help="Passed to the program.", show_default=False)
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="An environment variable.")] = None,
    dir: Annotated[
        list[str] | None, typer.Option(metavar="HOST::GUEST", help="Show the folder HOST to the program as GUEST.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Let the program use this GGUF file as NAME.")
    ] = None,
) -> None:
    """Run a WASI program once, with this terminal's stdio; its exit code becomes ours."""
    given = dict(pairs(model or [], "--model"))
    models = _model_session(_checked(given), file.name) if given else None
    folders = []
    for pair in dir or []:
        host, mark, guest = pair.partition("::")
        folders.append((host, guest if mark else host))
    raise typer.Exit(run_once(file, arguments or [], dict(pairs(env or [], "--env")), folders, models))


# --- models ----------------------------------------------------------------------------------------------------------


class _Stdout:
    """Our stdout as wasmtime's WASI writes to it: at once, so that both keep their order."""

    def write(self, data: bytes) -> int:
        """Write *data* or a prefix of it."""
        return os.write(sys.__stdout__.fileno() if sys.__stdout__ else 1, data)


def _log_line(line: bytes) -> None:
    print(visible(line.decode("utf-8", "replace")), file=sys.stderr)


def _not_given(name: str) -> FaasError:
    return ModelNotGrantedError(f"the program was given no model {name!r}; give it one with --model {name}=PATH.gguf")


def _checked(given: dict[str, str]) -> HostConfig:
    """
    Return the settings for models, after a look at each file.

    Raises: ConfigError, ModelsMissingError, ModelFileError.
    """
    config = load_config({"models": given}, os.environ)
    config = msgspec.structs.replace(config, models={name: config.models[name] for name in given})
    if why_no_models(config):
        raise ModelsMissingError("--model needs the models extra: pip install 'faas[models]'")
    for path in map(Path, config.models.values()):
        if config.model_backend != "fake":
            examine(path)
        elif not path.is_file():
            raise ModelFileError(f"can't read {path}; check the path")
    return config


@contextmanager
def _model_session(config: HostConfig, program: str) -> Iterator[GuestModels]:
    """
    Start a model server, and give a program its models while the context is open; at its end nothing is left.

    A loop of its own runs in a thread of its own: the program blocks the main thread.
    Raises: ModelsMissingError, ModelUnavailableError.
    """
    # Whoever runs a program reads what it says; what went wrong with a model is told to it, and by _log_line.
    logging.getLogger("faas").addHandler(logging.NullHandler())
    loop = asyncio.new_event_loop()
    opened: Future[NnContext] = Future()
    serving = loop.create_task(_serve(config, program, opened))

    def live() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)

    def wait(work: Awaitable[int]) -> int:
        return asyncio.run_coroutine_threadsafe(_result(work), loop).result()

    thread = threading.Thread(target=live, name="models")
    try:
        with _orderly_end():
            thread.start()
            nn = opened.result()
        yield GuestModels(nn, wait)
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join()
        loop.close()


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Have SIGTERM and SIGHUP unwind as ^C does; only until the server knows us, afterwards it sees by itself."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _result(work: Awaitable[int]) -> int:
    return await work


async def _serve(config: HostConfig, program: str, opened: Future[NnContext]) -> None:
    """Put a context into *opened*, or why there is none; it lives until this task is cancelled."""
    try:
        async with _model_server(config) as client:
            nn = NnContext(
                client,
                config.models.keys(),
                program,
                stdout=_Stdout(),
                log_line=_log_line,
                not_granted=_not_given,
            )
            opened.set_result(nn)
            try:
                await asyncio.Event().wait()
            finally:
                nn.close()
    except Exception as exc:
        if opened.done():
            raise
        opened.set_exception(exc)


@asynccontextmanager
async def _model_server(config: HostConfig) -> AsyncIterator[ModelClient]:
    """
    Run a model server that only we can talk to.

    We are its ``control``: it ends when our connection does, so also when we are killed. Its socket has no name any
    more once we are connected, so that nothing stays behind then.
    """
    token = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory(prefix="faas-run-") as folder:
        settings = ServerSettings(
            socket=os.path.join(folder, "models.sock"),
            token=token,
            models=dict(config.models),
            budget_bytes=config.model_budget,
            threads=config.model_threads,
            n_ctx=config.model_ctx,
            n_slots=config.model_slots,
            saved_bytes=config.model_saved_bytes,
            gpu_layers=config.model_gpu_layers,
            backend=config.model_backend,
            log_level="warning",
        )
        process = await spawn_model_server(msgspec.json.encode(settings))
        exited = asyncio.ensure_future(process.wait())
        grace_s = 0.0  # a server that never had its control does not miss it
        try:
            async with ModelClient(
                settings.socket, token, "control", first_retry_s=CONNECT_POLL_S, last_retry_s=CONNECT_POLL_S
            ) as client:
                await _ready(client, exited)
                grace_s = EXIT_GRACE_S
                shutil.rmtree(folder)
                yield client
        finally:
            await _end(process, exited, grace_s)


async def _ready(client: ModelClient, exited: asyncio.Future[int]) -> None:
    """Wait until the server answers. Raises: ModelsMissingError, ModelUnavailableError."""
    greeted = asyncio.ensure_future(client.wait_ready())
    try:
        await asyncio.wait((greeted, exited), timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        greeted.cancel()
    if greeted.done() and not greeted.cancelled():
        return
    if not exited.done():
        raise ModelUnavailableError(f"the model server did not answer within {START_TIMEOUT_S:g} s; try again")
    if exited.result() == EXIT_NO_BACKEND:
        raise ModelsMissingError("the model library can't be loaded: pip install 'faas[models]'")
    raise ModelUnavailableError(f"the model server ended with code {exited.result()}; what it said is above")


async def _end(process: ChildProcess, exited: asyncio.Future[int], grace_s: float) -> None:
    """Give the server *grace_s* to end by itself, as our connection to it is closed, and kill it if it does not."""
    await asyncio.wait((exited,), timeout=grace_s)
    if not exited.done():
        with suppress(ProcessLookupError):
            process.kill()
    await exited
