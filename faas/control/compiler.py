"""Where the control process meets ``precompile``: the only file of it that knows how native code is made."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

import msgspec

from faas.artifacts.store import ArtifactStore, native_key
from faas.config import HostConfig
from faas.invocation import Deployment, Kind
from faas.manifest import Manifest
from faas.wasm.engine import EngineProfile, fingerprint
from precompile.run import Precompiled, precompile, recompile
from precompile.validate import WIZER_EXPORT


class Compiled(msgspec.Struct, frozen=True):
    """A module that is validated, compiled and in the store."""

    kind: Kind
    wasm_digest: str
    artifact_key: str


class Compiler(Protocol):
    """Makes native code and puts it into the store; both raise DeployError, recompile also ArtifactError."""

    async def precompile(self, wasm: bytes, manifest: Manifest, on_progress: Callable[[str], None]) -> Compiled:
        """Return *wasm* compiled; on failure or cancellation nothing of it stays behind."""

    async def recompile(self, deployment: Deployment) -> Compiled:
        """Return *deployment*'s kept module compiled for the engine of today."""

    def is_current(self, deployment: Deployment) -> bool:
        """Return whether *deployment*'s native code is there, for the engine of today; who loads it will prove it."""


class JobCompiler:
    """``Compiler`` by precompile jobs, a bounded number at once; lives as long as the host."""

    def __init__(self, config: HostConfig, store: ArtifactStore) -> None:
        """Args: *config* limits the jobs and shapes the engine."""
        self._config = config
        self._store = store
        self._jobs = asyncio.Semaphore(config.precompile.jobs or os.cpu_count() or 1)
        self._mark = fingerprint(EngineProfile.from_config(config))

    async def precompile(self, wasm: bytes, manifest: Manifest, on_progress: Callable[[str], None]) -> Compiled:
        async with self._jobs:
            return _compiled(await precompile(wasm, manifest, self._config, self._store, on_progress=on_progress))

    async def recompile(self, deployment: Deployment) -> Compiled:
        async with self._jobs:
            return _compiled(await recompile(deployment.wasm_digest, deployment.manifest, self._config, self._store))

    def is_current(self, deployment: Deployment) -> bool:
        exports = {"", WIZER_EXPORT, deployment.manifest.preinit}
        keys = {native_key(deployment.wasm_digest, export, self._mark) for export in exports}
        return deployment.artifact_key in keys and self._store.keeps_native(deployment.artifact_key)


def _compiled(made: Precompiled) -> Compiled:
    return Compiled(kind=made.facts.kind, wasm_digest=made.wasm_digest, artifact_key=made.artifact_key)
