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
from faas.control.sharing import SharedFiles
from faas.errors import ArtifactError, ArtifactMissingError, FaasError, FrameTooLargeError, ManifestError, StateError
from faas.invocation import LIVE, Alias, Deployment, Kind, leading
from faas.log import event, exception
from faas.manifest import Manifest
from faas.routes import refuse_conflicts
from faas.state.base import Canary, CanaryPhase, CanaryPlan, NewVersion, Serving
from faas.state.state import State
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


class Placement(msgspec.Struct, frozen=True):
    """
    Which requests a new version gets: those of ``alias`` ("": none), or with a ``canary`` step by step ``live``'s.

    ``actor`` is who deploys, for the audit log.
    """

    alias: str = LIVE
    canary: CanaryPlan | None = None
    sticky: str = ""
    actor: str = ""

    @property
    def leaving(self) -> str:
        """The alias that does not name what it named before any more."""
        return "" if self.canary is not None else self.alias


ALL_REQUESTS = Placement()


class Sizes(msgspec.Struct, frozen=True):
    """What one version takes on the disk; 0 for what is missing."""

    wasm_bytes: int
    artifact_bytes: int
    bundle_bytes: int


class Fleet(Protocol):
    """The workers, as far as a deploy looks; ``faas.control.supervisor.Supervisor`` is the real one."""

    async def prepare(self, deployment: Deployment) -> None:
        """Have every worker try *deployment*; raises what it met."""

    async def activate(self, deployments: tuple[Deployment, ...], aliases: tuple[Alias, ...] = ()) -> int:
        """Have every worker serve exactly *deployments*, by *aliases*; never fails."""


class Deployer:
    """
    Changes what is served; lives as long as the host. Modules are compiled side by side, all changes are serial.

    Every change has the same three parts: every worker loads what it does not serve yet, one transaction, one table to
    every worker. A canary's steps need no first part, so they don't wait for one that is under way.
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
        keep_versions: int = 10,
    ) -> None:
        """
        Call ``restore`` before anything else.

        Args: *max_reserved* is how many slots of each of the *n_workers* all functions together may reserve;
        *keep_versions* how many versions of a function stay that nothing names.
        """
        self._keep_versions = keep_versions
        self._n_workers = n_workers
        self._max_reserved = max_reserved
        self._state = state
        self._store = store
        self._files = SharedFiles(state, store)
        # Where another host deployed a version for another engine: its native code's key here.
        self._own_keys: dict[tuple[str, int], str] = {}
        self._compiler = compiler
        self._fleet = fleet
        self._clock = clock
        self._lock = asyncio.Lock()
        # From a commit until what it changed is in ``_serving``: tables go out in the order of the commits.
        self._committing = asyncio.Lock()
        # Files that are stored and in no version yet: those of so many deploys; no sweep may run meanwhile.
        self._n_uncommitted = 0
        self._sweeping = asyncio.Lock()
        self._sweep_is_due = False
        self._serving: dict[str, Serving] = {}
        self._remaking: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[float, Exception]] = {}  # key → (when to try again, what it met)

    async def restore(self) -> tuple[Deployment, ...]:
        """
        Return what is to be served from the start, compiled for the engine of today where that is possible.

        A version that can't be compiled any more is logged and stays in the table: its function answers an error,
        the others serve.
        """
        async with self._lock:
            await self._compiled(await self._state.functions.serving())
            self._serving = _by_function(self._ours(await self._state.functions.serving()))
            await self._state.functions.collect(self._keep_versions)
            await self._sweep()
            return self.deployments

    async def refresh(self) -> None:
        """
        Have every worker serve what the state says now: another host may have changed it.

        Other shares of versions that are served already wait for nothing: somebody may be rolling back.
        Raises: StateError.
        """
        if await self._follow(known_only=True):
            return
        async with self._lock:
            before = self._versions_of(self._serving)
            for deployment in await self._compiled(await self._state.functions.serving()):
                if (deployment.function, deployment.version) not in before:
                    await self._warm_up(deployment)
            await self._follow()

    async def _warm_up(self, deployment: Deployment) -> None:
        """Have workers load what they are about to serve: it is committed, whatever comes of that here."""
        try:
            await self._fleet.prepare(deployment)
        except FaasError as exc:
            _log_unusable("refresh.not_prepared", deployment, exc)

    async def _follow(self, *, known_only: bool = False) -> bool:
        """Have workers serve what the state says; return False if, with *known_only*, that is a version they don't."""
        async with self._committing:
            serving = _by_function(self._ours(await self._state.functions.serving()))
            if known_only and self._versions_of(serving) - self._versions_of(self._serving):
                return False
            changed = serving != self._serving
            self._serving = serving
        if changed:
            await self._fleet.activate(self.deployments, self.aliases)
        return True

    @staticmethod
    def _versions_of(serving: dict[str, Serving]) -> set[tuple[str, int]]:
        return {(d.function, d.version) for part in serving.values() for d in part.deployments}

    async def _compiled(self, serving: Serving) -> tuple[Deployment, ...]:
        """Return the versions in *serving* with native code of ours, made where it can be."""
        await asyncio.gather(*map(self._fetch, serving.deployments))
        deployments = self._ours(serving).deployments
        stale = await asyncio.to_thread(lambda: [d for d in deployments if not self._compiler.is_current(d)])
        await asyncio.gather(*map(self._renew, stale))
        return self._ours(serving).deployments

    def _ours(self, serving: Serving) -> Serving:
        """Return *serving* with this host's keys of native code."""
        if not self._own_keys:
            return serving
        return msgspec.structs.replace(serving, deployments=tuple(map(self._our, serving.deployments)))

    def _our(self, deployment: Deployment) -> Deployment:
        key = self._own_keys.get((deployment.function, deployment.version))
        return deployment if key is None else msgspec.structs.replace(deployment, artifact_key=key)

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """Every version that is served."""
        return tuple(d for name in sorted(self._serving) for d in self._serving[name].deployments)

    @property
    def aliases(self) -> tuple[Alias, ...]:
        """The aliases that workers have to be told of."""
        return _told(self._serving)

    @property
    def canaries(self) -> tuple[Canary, ...]:
        """The canaries that run."""
        return tuple(canary for serving in self._serving.values() for canary in serving.canaries)

    async def deploy(
        self, upload: Upload, on_progress: Callable[[str], None], placement: Placement = ALL_REQUESTS
    ) -> Deployment:
        """
        Make *upload* the newest version of its function; every worker serves it, as *placement* says, on return.

        Args: *on_progress* hears of each stage as it begins.
        Raises: DeployError and whatever else stood in the way; what served before still does then.
        """
        name = upload.manifest.name
        began = self._clock.monotonic()
        event(_logger, "deploy.began", function=name)
        async with self._sweeping:
            self._n_uncommitted += 1
        try:
            with self._refusable(name):
                await self._state.functions.check_placement(name, placement.alias)
                new = await self._build(upload, on_progress, placement)
                await self._lock.acquire()
            try:
                with self._refusable(name):
                    await self._try(new, on_progress, placement)
                deployment = await see_through(self._serve(new, on_progress, placement))
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

    async def remove(self, name: str, *, purge: bool = False, actor: str = "") -> None:
        """
        Remove *name* with all its versions, with *purge* for good; no worker serves it when this returns.

        Raises: FunctionNotFoundError, StateError.
        """
        async with self._lock:
            await see_through(self._remove(name, purge, actor))

    async def remove_version(self, name: str, version: int, *, actor: str = "") -> None:
        """
        Remove one version of *name*, which no alias names.

        Raises: FunctionNotFoundError, VersionNotFoundError, VersionInUseError, StateError.
        """

        async def remove() -> None:
            await self._state.functions.remove_version(name, version, actor=actor)
            await self._sweep()

        async with self._lock:
            await see_through(remove())
        event(_logger, "version.removed", function=name, version=version)

    # ---- traffic ----------------------------------------------------------------------------------------------------

    async def set_alias(self, alias: Alias, *, actor: str = "") -> None:
        """
        Have an alias, made if it is not there, share its requests out as *alias* says; every worker does on return.

        Raises: as ``FunctionStore.set_alias``; what a worker met when it tried a version that it did not serve.
        """
        async with self._lock:
            for version in alias.shares:
                await self._prepare(alias.function, version)
            change = self._state.functions.set_alias(alias, actor=actor)
            await see_through(self._change(alias.function, change))
        event(
            _logger,
            "alias.set",
            function=alias.function,
            alias=alias.alias,
            version=alias.version,
            other=alias.other,
            weight=alias.weight,
        )

    async def remove_alias(self, name: str, alias: str, *, actor: str = "") -> None:
        """
        Remove an alias; its versions stay until there are too many. Nobody reaches it on return.

        Raises: as ``FunctionStore.remove_alias``.
        """
        async with self._lock:
            await see_through(self._change(name, self._state.functions.remove_alias(name, alias, actor=actor)))
        event(_logger, "alias.removed", function=name, alias=alias)

    async def rollback(self, name: str, to: int = 0, *, actor: str = "") -> tuple[int, float]:
        """
        Have ``live`` go back to the version before it, or to *to*; all requests go there on return.

        Returns: which version, and when that was committed (Unix time).

        Raises: as ``FunctionStore.rollback``; what a worker met when it tried that version.
        """
        async with self._lock:
            version = (await self._state.functions.rollback_target(name, to)).version
            await self._prepare(name, version)
            change = self._state.functions.rollback(name, to, expected=version, actor=actor)
            committed_at = await see_through(self._change(name, change))
        event(
            _logger,
            "rollback.done",
            function=name,
            version=version,
            activate_ms=(self._clock.time_ns() / 1e9 - committed_at) * 1000,
        )
        return version, committed_at

    async def start_canary(
        self, name: str, version: int, plan: CanaryPlan, *, alias: str = LIVE, sticky: str = "", actor: str = ""
    ) -> None:
        """
        Send the first step's percents of *alias*' requests to *version*; every worker does on return.

        Raises: as ``FunctionStore.start_canary``; what a worker met when it tried the version.
        """
        async with self._lock:
            await self._prepare(name, version)
            change = self._state.functions.start_canary(name, version, plan, alias=alias, sticky=sticky, actor=actor)
            await see_through(self._change(name, change))
        event(_logger, "canary.started", function=name, version=version, weight=plan.steps[0])

    async def advance_canary(self, canary: Canary, *, actor: str = "") -> None:
        """
        Have *canary* go on to its next step.

        Raises: CanaryNotFoundError if it is not what it was any more, StateError.
        """
        change = self._state.functions.advance_canary(canary, actor=actor)
        await see_through(self._change(canary.function, change))

    async def end_canary(self, canary: Canary, phase: CanaryPhase, reason: str, *, actor: str = "") -> None:
        """
        Have *canary* end, and its alias name one version alone: the new one if it is promoted, else the old one.

        Raises: CanaryNotFoundError if it is not what it was any more, StateError.
        """
        change = self._state.functions.end_canary(canary, phase, reason, actor=actor)
        await see_through(self._change(canary.function, change))

    async def _prepare(self, name: str, version: int) -> None:
        """
        Have every worker load a version that is not served yet, compiled for the engine of today.

        Raises: FunctionNotFoundError, VersionNotFoundError, ManifestError, ArtifactError, DeployError.
        """
        if any(d.version == version for d in self._serving.get(name, _NOTHING).deployments):
            return
        deployment = await self._state.functions.version(name, version)
        self._check_reserved(deployment.manifest)
        await self._check_size(deployment.manifest)
        await self._fleet.prepare(await self._at_hand(deployment))

    async def version(self, name: str, version: int) -> Deployment:
        """
        Return a version of *name* as workers can load it, whether or not an alias names it.

        Raises: FunctionNotFoundError, VersionNotFoundError, ArtifactError, DeployError.
        """
        return await self._at_hand(await self._state.functions.version(name, version))

    async def _at_hand(self, kept: Deployment) -> Deployment:
        """Have a version's files here, and its native code for the engine of today."""
        deployment = self._our(kept)
        await self._files.fetch(deployment)
        if not await asyncio.to_thread(self._compiler.is_current, deployment):
            deployment = await self._recompile(deployment)
        return deployment

    async def _change(self, name: str, commit: Coroutine[Any, Any, Serving]) -> float:
        """One commit that changes how *name* is served, and the table that follows from it; return when it was."""
        async with self._committing:
            self._take(name, await commit)
            committed_at = self._clock.time_ns() / 1e9
        await self._fleet.activate(self.deployments, self.aliases)
        return committed_at

    def _take(self, name: str, serving: Serving) -> None:
        if serving.deployments:
            self._serving[name] = self._ours(serving)
        else:
            self._serving.pop(name, None)

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

    async def _build(self, upload: Upload, on_progress: Callable[[str], None], placement: Placement) -> NewVersion:
        """Everything that needs no worker: routes, compile, store."""
        manifest = upload.manifest
        await self._check_size(manifest, placement.leaving)
        self._check_reserved(manifest)
        refuse_conflicts(manifest.name, manifest.routes, await self._state.functions.routes())
        bundle = b"" if upload.bundle is None else await asyncio.to_thread(upload.bundle.read_bytes)
        if bundle:
            await asyncio.to_thread(check_bundle, bundle)
        wasm = await asyncio.to_thread(upload.module.read_bytes)
        made: Compiled = await self._compiler.precompile(wasm, manifest, on_progress)
        self._failed.pop(made.artifact_key, None)
        bundle_digest = await asyncio.to_thread(self._store.put_bundle, bundle) if bundle else ""
        await self._files.publish(made.wasm_digest, bundle_digest)
        return NewVersion(
            manifest=manifest,
            kind=made.kind,
            wasm_digest=made.wasm_digest,
            artifact_key=made.artifact_key,
            bundle_digest=bundle_digest,
        )

    async def _check_size(self, manifest: Manifest, leaving: str = "") -> None:
        """Args: *leaving* is the alias that names another version from then on."""
        known = self._serving.get(manifest.name, _NOTHING)
        staying = {version for alias in known.aliases if alias.alias != leaving for version in alias.shares}
        deployments = (d for d in known.deployments if d.version in staying)
        one_more = Serving((*deployments, _sized_like(manifest)), known.aliases)
        await asyncio.to_thread(_refuse_large_table, {**self._serving, manifest.name: one_more})

    def _check_reserved(self, manifest: Manifest) -> None:
        reserved = self._reserved_slots(manifest)
        by_others = sum(
            self._reserved_slots(deployment.manifest)
            for name, deployment in leading(self.deployments, self.aliases).items()
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

    async def _try(self, new: NewVersion, on_progress: Callable[[str], None], placement: Placement) -> None:
        """Let every worker load it and make a trial instance."""
        self._check_reserved(new.manifest)
        await self._check_size(
            new.manifest, placement.leaving
        )  # again: others were deployed since, and from here on it is our turn
        on_progress("prepare")
        await self._fleet.prepare(
            Deployment(
                function=new.manifest.name,
                version=await self._state.functions.next_version(new.manifest.name),
                kind=new.kind,
                wasm_digest=new.wasm_digest,
                artifact_key=new.artifact_key,
                bundle_digest=new.bundle_digest,
                manifest=new.manifest,
            )
        )

    async def _serve(self, new: NewVersion, on_progress: Callable[[str], None], placement: Placement) -> Deployment:
        """The commit, and what follows from it: nothing after the commit can be refused."""
        name = new.manifest.name
        async with self._committing:
            with self._refusable(name):
                deployment, serving = await self._state.functions.add_version(
                    new,
                    alias=placement.alias,
                    canary=placement.canary,
                    sticky=placement.sticky,
                    actor=placement.actor,
                )
            on_progress("activate")
            self._take(name, serving)
        await self._fleet.activate(self.deployments, self.aliases)
        await self._collect(name)
        return deployment

    async def _collect(self, name: str) -> None:
        """Forget versions of *name* that there are too many of; their files go with the sweep that ends the deploy."""
        try:
            gone = await self._state.functions.collect(self._keep_versions, name)
        except StateError as exc:
            exception(_logger, "versions.not_collected", exc, function=name)  # the next deploy tries again
            return
        if gone:
            self._sweep_is_due = True
            event(_logger, "versions.collected", function=name, versions=[version for _, version in gone])

    async def _remove(self, name: str, purge: bool, actor: str) -> None:
        async with self._committing:
            gone = await self._state.functions.remove_function(name, purge=purge, actor=actor)
            self._serving.pop(name, None)
        await self._fleet.activate(self.deployments, self.aliases)
        await self._sweep()
        event(_logger, "function.removed", function=name, versions=len(gone))

    # ---- artifacts --------------------------------------------------------------------------------------------------

    async def _fetch(self, deployment: Deployment) -> None:
        """Have the module and the bundle here, or log why that is not possible."""
        try:
            await self._files.fetch(deployment)
        except ArtifactError as exc:
            _log_unusable("restore.failed", deployment, exc)

    async def _renew(self, deployment: Deployment) -> None:
        """Compile a kept module for the engine of today, or log why that is not possible."""
        try:
            await self._recompile(deployment)
        except FaasError as exc:
            _log_unusable("restore.failed", deployment, exc)

    async def _recompile(self, deployment: Deployment) -> Deployment:
        """Compile a kept module for the engine of today, and remember the new key."""
        made = await self._compiler.recompile(deployment)
        if made.artifact_key != deployment.artifact_key:
            function, version = deployment.function, deployment.version
            if self._state.shared:  # the state says what the host has that deployed it
                self._own_keys[function, version] = made.artifact_key
            else:
                await self._state.functions.update_artifact_key(function, version, made.artifact_key)
        event(_logger, "restore.recompiled", function=deployment.function, version=deployment.version)
        return msgspec.structs.replace(deployment, artifact_key=made.artifact_key)

    async def _remake(self, deployment: Deployment) -> None:
        try:
            await self._files.fetch(deployment)
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
                keep = await self._state.functions.references()
                keys = keep.artifact_keys | frozenset(self._own_keys.values())
                await asyncio.to_thread(self._store.remove_unreferenced, keep.wasm_digests, keys, keep.bundle_digests)
                await self._files.sweep()
            except (OSError, StateError) as exc:
                exception(_logger, "store.sweep_failed", exc)


def _log_unusable(what: str, deployment: Deployment, exc: FaasError) -> None:
    event(
        _logger,
        what,
        level=logging.ERROR,
        function=deployment.function,
        version=deployment.version,
        code=exc.code,
        reason=exc.message,
    )


def _sized_like(manifest: Manifest) -> Deployment:
    """Return a deployment that takes as many bytes as *manifest*'s can."""
    digest = "0" * 64
    return Deployment(manifest.name, 2**32, Kind.REACTOR, digest, digest, digest, manifest, created_at=1.5)


_NOTHING = Serving()


def _by_function(serving: Serving) -> dict[str, Serving]:
    """Return the parts of *serving* that are each function's."""
    parts: dict[str, tuple[list[Deployment], list[Alias], list[Canary]]] = {}
    for deployment in serving.deployments:
        parts.setdefault(deployment.function, ([], [], []))[0].append(deployment)
    for alias in serving.aliases:
        parts[alias.function][1].append(alias)
    for canary in serving.canaries:
        parts[canary.function][2].append(canary)
    return {name: Serving(tuple(a), tuple(b), tuple(c)) for name, (a, b, c) in parts.items()}


def _told(serving: dict[str, Serving]) -> tuple[Alias, ...]:
    """Return the aliases that say more than that a function's only version is live."""
    return tuple(
        alias
        for name in sorted(serving)
        if len(serving[name].aliases) > 1 or serving[name].aliases[0].other
        for alias in serving[name].aliases
    )


def _refuse_large_table(serving: dict[str, Serving]) -> None:
    """Raises ManifestError if the workers could not be told of *serving* in one message."""
    deployments = tuple(deployment for part in serving.values() for deployment in part.deployments)
    aliases = tuple(alias for part in serving.values() for alias in part.aliases)
    try:
        n_bytes = len(encode_frame(Table(generation=2**32, deployments=deployments, aliases=aliases)))
    except FrameTooLargeError:
        n_bytes = MAX_TABLE_BYTES + 1
    if n_bytes > MAX_TABLE_BYTES:
        raise ManifestError(
            f"with this function the manifests of all {len(serving)} would take more than {MAX_TABLE_BYTES} bytes"
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
