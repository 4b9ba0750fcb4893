"""The deploy funnel: validate → compile → store, side by side; try on every worker → commit → serve, one at a time."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from faas.artifacts.bundle import check_bundle
from faas.artifacts.store import ArtifactStore
from faas.clock import Clock
from faas.control.compiler import Compiled, Compiler
from faas.errors import ArtifactError, ArtifactMissingError, FaasError, FrameTooLargeError, ManifestError, StateError
from faas.invocation import Deployment, Kind
from faas.log import event, exception
from faas.manifest import Manifest
from faas.routes import refuse_conflicts
from faas.state.base import NewVersion, State
from faas.wire.framing import encode_frame
from faas.wire.messages import Table

MAX_TABLE_BYTES = 32 * 1024 * 1024
"""What all that is served may take as one message; half of what a frame may, so no deploy can make one too large."""
REMEMBER_FAILURE_S = 10.0
"""How long a failed remake is the answer to whoever asks again: each try is a whole job."""

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class Upload(msgspec.Struct, frozen=True):
    """What a deploy brings; the files are the caller's and are only read."""

    manifest: Manifest
    module: Path
    bundle: Path | None = None


class Sizes(msgspec.Struct, frozen=True):
    """What one version takes on the disk; 0 for what is missing."""

    wasm_bytes: int
    artifact_bytes: int
    bundle_bytes: int


class Fleet(Protocol):
    """The workers, as far as a deploy looks; ``faas.control.supervisor.Supervisor`` is the real one."""

    async def prepare(self, deployment: Deployment) -> None:
        """Have every worker try *deployment*; raises what it met."""

    async def activate(self, deployments: tuple[Deployment, ...]) -> int:
        """Have every worker serve exactly *deployments*; never fails."""


class Deployer:
    """
    Changes what is served; lives as long as the host. Modules are compiled side by side, all changes are serial.

    Before the commit a failure or a cancellation leaves nothing behind. After it the rest runs to its end, even if
    whoever asked is gone.
    """

    def __init__(
        self,
        *,
        state: State,
        store: ArtifactStore,
        compiler: Compiler,
        fleet: Fleet,
        clock: Clock,
        max_reserved: int,
        n_workers: int,
    ) -> None:
        """
        Call ``restore`` before anything else.

        Args: *max_reserved* is how many slots of each of the *n_workers* all functions together may reserve.
        """
        self._n_workers = n_workers
        self._max_reserved = max_reserved
        self._state = state
        self._store = store
        self._compiler = compiler
        self._fleet = fleet
        self._clock = clock
        self._lock = asyncio.Lock()
        # Files that are stored and in no version yet: those of so many deploys; no sweep may run meanwhile.
        self._n_uncommitted = 0
        self._sweeping = asyncio.Lock()
        self._sweep_is_due = False
        self._active: dict[str, Deployment] = {}
        self._remaking: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[float, Exception]] = {}  # key → (when to try again, what it met)

    async def restore(self) -> tuple[Deployment, ...]:
        """
        Return what is to be served from the start, compiled for the engine of today where that is possible.

        A version that can't be compiled any more is logged and stays in the table: its function answers an error,
        the others serve.
        """
        async with self._lock:
            self._active = {d.function: d for d in await self._state.active_deployments()}
            stale = await asyncio.to_thread(
                lambda: [d for d in self._active.values() if not self._compiler.is_current(d)]
            )
            await asyncio.gather(*map(self._renew, stale))
            await self._sweep()
            return self._table()

    async def deploy(self, upload: Upload, on_progress: Callable[[str], None]) -> Deployment:
        """
        Make *upload* the serving version of its function; every worker serves it when this returns.

        Args: *on_progress* hears of each stage as it begins.
        Raises: DeployError and whatever else stood in the way; the old version still serves then.
        """
        name = upload.manifest.name
        began = self._clock.monotonic()
        event(_logger, "deploy.began", function=name)
        async with self._sweeping:
            self._n_uncommitted += 1
        try:
            with self._refusable(name):
                new = await self._build(upload, on_progress)
                await self._lock.acquire()
            try:
                with self._refusable(name):
                    await self._try(new, on_progress)
                deployment = await see_through(self._serve(new, on_progress))
            finally:
                self._lock.release()
        finally:
            self._n_uncommitted -= 1
            if self._sweep_is_due:
                await see_through(self._sweep())
        event(
            _logger,
            "deploy.done",
            function=name,
            version=deployment.version,
            kind=deployment.kind.value,
            wasm_digest=deployment.wasm_digest,
            duration_ms=(self._clock.monotonic() - began) * 1000,
        )
        return deployment

    @contextmanager
    def _refusable(self, name: str) -> Iterator[None]:
        """Log what stands in the way of a deploy of *name*, and have what it stored removed."""
        try:
            yield
        except BaseException as exc:
            reason = exc.message if isinstance(exc, FaasError) else type(exc).__name__
            event(_logger, "deploy.refused", level=logging.WARNING, function=name, reason=reason)
            self._sweep_is_due = True
            raise

    async def remove(self, name: str) -> None:
        """
        Remove *name* with all its versions; no worker serves it when this returns.

        Raises: FunctionNotFoundError, StateError.
        """
        async with self._lock:
            await see_through(self._remove(name))

    async def remake(self, deployment: Deployment) -> None:
        """
        Put the missing or damaged native code of *deployment* back; those who ask for one key share one job.

        A failure is answered for the next ``REMEMBER_FAILURE_S`` without another job.
        Raises: ArtifactError, DeployError.
        """
        key = deployment.artifact_key
        if key in self._failed:
            until, failure = self._failed[key]
            if self._clock.monotonic() < until:
                raise failure.with_traceback(None)
            del self._failed[key]
        if key not in self._remaking:
            task = asyncio.create_task(self._remake(deployment))
            self._remaking[key] = task
            task.add_done_callback(lambda _task: self._remaking.pop(key, None))
        await asyncio.shield(self._remaking[key])

    async def aclose(self) -> None:
        """Wait until the change that is under way has ended, and give up jobs for workers."""
        async with self._lock:
            for task in tuple(self._remaking.values()):
                task.cancel()
            await asyncio.gather(*self._remaking.values(), return_exceptions=True)

    async def sizes(self, deployment: Deployment) -> Sizes:
        """Return what *deployment* takes on the disk."""

        def size(find: Callable[[str], Path], name: str) -> int:
            try:
                return find(name).stat().st_size if name else 0
            except (ArtifactError, FileNotFoundError):
                return 0

        def measure() -> Sizes:
            return Sizes(
                wasm_bytes=size(self._store.wasm_path, deployment.wasm_digest),
                artifact_bytes=size(self._store.open_native, deployment.artifact_key),
                bundle_bytes=size(self._store.bundle_path, deployment.bundle_digest),
            )

        return await asyncio.to_thread(measure)

    # ---- the funnel, in order ---------------------------------------------------------------------------------------

    async def _build(self, upload: Upload, on_progress: Callable[[str], None]) -> NewVersion:
        """Everything that needs no worker: routes, compile, store."""
        manifest = upload.manifest
        await self._check_size(manifest)
        self._check_reserved(manifest)
        refuse_conflicts(manifest.name, manifest.routes, await self._state.routes())
        bundle = b"" if upload.bundle is None else await asyncio.to_thread(upload.bundle.read_bytes)
        if bundle:
            await asyncio.to_thread(check_bundle, bundle)
        wasm = await asyncio.to_thread(upload.module.read_bytes)
        made: Compiled = await self._compiler.precompile(wasm, manifest, on_progress)
        self._failed.pop(made.artifact_key, None)
        return NewVersion(
            manifest=manifest,
            kind=made.kind,
            wasm_digest=made.wasm_digest,
            artifact_key=made.artifact_key,
            bundle_digest=await asyncio.to_thread(self._store.put_bundle, bundle) if bundle else "",
        )

    async def _check_size(self, manifest: Manifest) -> None:
        await asyncio.to_thread(_refuse_large_table, {**self._active, manifest.name: _sized_like(manifest)})

    def _check_reserved(self, manifest: Manifest) -> None:
        reserved = self._reserved_slots(manifest)
        by_others = sum(
            self._reserved_slots(deployment.manifest)
            for name, deployment in self._active.items()
            if name != manifest.name
        )
        if reserved and by_others + reserved > self._max_reserved:
            most = max(0, self._max_reserved - by_others) * self._n_workers
            raise ManifestError(
                f"limits.reserved_concurrency is {manifest.limits.reserved_concurrency}, which takes {reserved} slots "
                f"of each worker, but of the {self._max_reserved} that may be reserved there other functions have "
                f"{by_others}; lower it to {most}, or raise pool.slots"
            )

    def _reserved_slots(self, manifest: Manifest) -> int:
        """Return how many slots each worker keeps free for a function: its part of what is reserved, rounded up."""
        return math.ceil(manifest.limits.reserved_concurrency / self._n_workers)

    async def _try(self, new: NewVersion, on_progress: Callable[[str], None]) -> None:
        """Let every worker load it and make a trial instance."""
        self._check_reserved(new.manifest)
        await self._check_size(new.manifest)  # again: others were deployed since, and from here on it is our turn
        on_progress("prepare")
        await self._fleet.prepare(
            Deployment(
                function=new.manifest.name,
                version=await self._state.next_version(new.manifest.name),
                kind=new.kind,
                wasm_digest=new.wasm_digest,
                artifact_key=new.artifact_key,
                bundle_digest=new.bundle_digest,
                manifest=new.manifest,
            )
        )

    async def _serve(self, new: NewVersion, on_progress: Callable[[str], None]) -> Deployment:
        """The commit, and what follows from it: nothing after the first line can be refused."""
        with self._refusable(new.manifest.name):
            deployment = await self._state.add_version_and_activate(new)
        on_progress("activate")
        self._active[deployment.function] = deployment
        await self._fleet.activate(self._table())
        return deployment

    async def _remove(self, name: str) -> None:
        gone = await self._state.remove_function(name)
        self._active.pop(name, None)
        await self._fleet.activate(self._table())
        await self._sweep()
        event(_logger, "function.removed", function=name, versions=len(gone))

    def _table(self) -> tuple[Deployment, ...]:
        return tuple(self._active[name] for name in sorted(self._active))

    # ---- artifacts --------------------------------------------------------------------------------------------------

    async def _renew(self, deployment: Deployment) -> None:
        """Compile a kept module for the engine of today, and remember the new key."""
        try:
            made = await self._compiler.recompile(deployment)
            if made.artifact_key != deployment.artifact_key:
                await self._state.update_artifact_key(deployment.function, deployment.version, made.artifact_key)
        except FaasError as exc:
            event(
                _logger,
                "restore.failed",
                level=logging.ERROR,
                function=deployment.function,
                version=deployment.version,
                code=exc.code,
                reason=exc.message,
            )
            return
        self._active[deployment.function] = msgspec.structs.replace(deployment, artifact_key=made.artifact_key)
        event(_logger, "restore.recompiled", function=deployment.function, version=deployment.version)

    async def _remake(self, deployment: Deployment) -> None:
        try:
            made = await self._compiler.recompile(deployment)
            if made.artifact_key != deployment.artifact_key:
                raise ArtifactMissingError(
                    f"the engine is another one than when {deployment.function!r} was loaded; restart the host"
                )
        except Exception as exc:
            now = self._clock.monotonic()
            self._failed = {key: failed for key, failed in self._failed.items() if now < failed[0]}
            self._failed[deployment.artifact_key] = (now + REMEMBER_FAILURE_S, exc)
            raise
        event(_logger, "artifact.remade", function=deployment.function, version=deployment.version)

    async def _sweep(self) -> None:
        """
        Remove files that no version needs; what can't be removed now goes with the next sweep.

        While a deploy has files in no version yet, nothing is removed: the last such deploy sweeps when it ends.
        """
        async with self._sweeping:
            self._sweep_is_due = self._n_uncommitted > 0
            if self._sweep_is_due:
                return
            try:
                keep = await self._state.references()
                await asyncio.to_thread(
                    self._store.remove_unreferenced, keep.wasm_digests, keep.artifact_keys, keep.bundle_digests
                )
            except (OSError, StateError) as exc:
                exception(_logger, "store.sweep_failed", exc)


def _sized_like(manifest: Manifest) -> Deployment:
    """Return a deployment that takes as many bytes as *manifest*'s can."""
    digest = "0" * 64
    return Deployment(manifest.name, 2**32, Kind.REACTOR, digest, digest, digest, manifest, created_at=1.5)


def _refuse_large_table(active: dict[str, Deployment]) -> None:
    """Raises ManifestError if the workers could not be told of *active* in one message."""
    try:
        n_bytes = len(encode_frame(Table(generation=2**32, deployments=tuple(active.values()))))
    except FrameTooLargeError:
        n_bytes = MAX_TABLE_BYTES + 1
    if n_bytes > MAX_TABLE_BYTES:
        raise ManifestError(
            f"with this function the manifests of all {len(active)} would take more than {MAX_TABLE_BYTES} bytes"
            " together; shorten env, routes or models in function.toml, or remove functions that are not needed"
        )


async def see_through(work: Coroutine[Any, Any, T]) -> T:
    """Return what *work* returns; a cancellation waits until it is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            exception(_logger, "change.failed_unheard", failure)
        raise cancelled
    return task.result()
