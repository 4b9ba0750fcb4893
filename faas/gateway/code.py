"""The code cache: native code and bundles that are loaded in this worker, the least recently used out first."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Set

from faas.artifacts.bundle import read_bundle
from faas.artifacts.store import ArtifactStore
from faas.errors import ArtifactError
from faas.invocation import Deployment, Kind
from faas.wasi.files import BundleTree
from faas.wasm.runtime import Runtime
from faas.wasm.template import Template

MODULE_OVERHEAD_BYTES = 32 * 1024
"""What a loaded module takes beside its native code: the engine's tables (12 KB for a small one) and page tables."""
MAX_MODULES = 8000
"""Each takes about six mappings, the pool two per slot, and Linux gives a process 65,530 (vm.max_map_count)."""
EVICTIONS_PER_TURN = 8
"""Each takes about 30 µs of the event loop, in which no request is served."""

CodeKey = tuple[str, str]
"""Artifact key and bundle digest: deployments that agree in both run the same code, and load it once."""


def code_key(deployment: Deployment) -> CodeKey:
    """Return what *deployment*'s code is cached under."""
    return deployment.artifact_key, deployment.bundle_digest


class Code:
    """
    One module ready to be instantiated, with its bundle; lives until it is evicted and its last user has let go.

    Who holds a reference may use it; who also counts as a user (``CodeCache.acquire``) keeps it from being evicted.
    """

    __slots__ = ("bundle", "key", "n_bytes", "n_users", "template")

    def __init__(self, key: CodeKey, template: Template, bundle: BundleTree | None, n_bytes: int) -> None:
        """Args: *n_bytes* is what it counts against the budget."""
        self.key = key
        self.template = template
        self.bundle = bundle
        self.n_bytes = n_bytes
        self.n_users = 0


class CodeCache:
    """
    Loads code at its first use, and forgets the least recently used when all of it takes more than the budget.

    Code in use is never forgotten, so what runs at one moment may take more than the budget. Room is made after a use,
    not before one: nobody waits for it. Lives as long as its worker.
    Thread: the loop only; files are read and mapped in threads.
    """

    def __init__(
        self,
        runtime: Runtime,
        artifacts: ArtifactStore,
        repair: Callable[[Deployment], Awaitable[None]],
        *,
        budget_bytes: int,
    ) -> None:
        """Args: *repair* asks the control process to compile a deployment's artifact again; it raises FaasError."""
        self._runtime = runtime
        self._artifacts = artifacts
        self._repair = repair
        self._budget_bytes = budget_bytes
        self._loaded: OrderedDict[CodeKey, Code] = OrderedDict()  # in the order of their last use
        self._loading: dict[CodeKey, asyncio.Task[Code]] = {}
        self._shrinking = False
        self._wanted: Counter[CodeKey] = Counter()  # who waits for code: else two loads could evict each other for ever
        self.on_drop: Callable[[CodeKey], None] = _nothing
        """Called when code leaves the cache: who holds it without using it lets go."""
        self.n_bytes = 0
        """What all loaded code counts against the budget, also what is out of the cache and still in use."""
        self.n_loads = 0
        self.n_evictions = 0

    def __contains__(self, key: CodeKey) -> bool:
        return key in self._loaded

    def __len__(self) -> int:
        return len(self._loaded)

    def try_acquire(self, key: CodeKey) -> Code | None:
        """Return loaded code, now in use until ``release``; None if it has to be loaded first."""
        code = self._loaded.get(key)
        if code is not None:
            self._loaded.move_to_end(key)
            code.n_users += 1
        return code

    async def acquire(self, deployment: Deployment) -> Code:
        """
        Return *deployment*'s code, loaded if need be, in use until ``release``.

        Raises: ArtifactError, or what the control process said when it could not compile it again.
        """
        key = code_key(deployment)
        code = self.try_acquire(key)
        while code is None:
            loading = self._loading.get(key)
            if loading is None:
                loading = asyncio.create_task(self._load(key, deployment))
                self._loading[key] = loading
            self._wanted[key] += 1
            try:
                # Shielded: the first request may be cancelled, those that wait with it must not be.
                await asyncio.shield(loading)
                code = self.try_acquire(key)  # None only if ``keep_only`` came between its loading and our turn
            finally:
                self._wanted[key] -= 1
                if not self._wanted[key]:
                    del self._wanted[key]
                if code is None:
                    self._shrink_soon()  # we leave without what was loaded for us
        return code

    def release(self, code: Code) -> None:
        """End one use of *code*."""
        code.n_users -= 1
        if not code.n_users:
            if self._loaded.get(code.key) is not code:
                self.n_bytes -= code.n_bytes  # dropped meanwhile, and we were its last user
            self._shrink_soon()

    def keep_only(self, keys: Set[CodeKey]) -> None:
        """Drop all code but that of *keys*; what is in use goes when its last user releases it."""
        for key in [key for key in self._loaded if key not in keys]:
            self._drop(key)

    async def _load(self, key: CodeKey, deployment: Deployment) -> Code:
        try:
            try:
                code = await asyncio.to_thread(self._load_now, key, deployment.kind)
            except ArtifactError:
                await self._repair(deployment)
                code = await asyncio.to_thread(self._load_now, key, deployment.kind)
        finally:
            del self._loading[key]
        self._loaded[key] = code
        self.n_bytes += code.n_bytes
        self.n_loads += 1
        return code

    def _load_now(self, key: CodeKey, kind: Kind) -> Code:
        artifact_key, bundle_digest = key
        with self._artifacts.sealed_native(artifact_key) as native:
            n_bytes = MODULE_OVERHEAD_BYTES + os.stat(native).st_size
            load = self._runtime.load_component if kind is Kind.HTTP else self._runtime.load
            template = load(native)
        bundle: BundleTree | None = None
        if bundle_digest:
            path = self._artifacts.bundle_path(bundle_digest)
            n_bytes += path.stat().st_size
            bundle = BundleTree(read_bundle(path))
        return Code(key, template, bundle, n_bytes)

    def _shrink_soon(self) -> None:
        if not self._shrinking and self._is_over():
            self._shrinking = True
            asyncio.get_running_loop().call_soon(self._shrink)

    def _shrink(self) -> None:
        """Forget what nobody uses or waits for, longest unused first, until the rest fits; a few in each turn."""
        self._shrinking = False
        if not self._is_over():
            return
        idle = (key for key, code in self._loaded.items() if not code.n_users and key not in self._wanted)
        evicted = tuple(itertools.islice(idle, EVICTIONS_PER_TURN))
        for key in evicted:
            if self._is_over():
                self._drop(key)
                self.n_evictions += 1
        if evicted:
            self._shrink_soon()

    def _is_over(self) -> bool:
        return self.n_bytes > self._budget_bytes or len(self._loaded) > MAX_MODULES

    def _drop(self, key: CodeKey) -> None:
        code = self._loaded.pop(key)
        if not code.n_users:
            self.n_bytes -= code.n_bytes
        self.on_drop(key)
        # The last reference frees it: ours here, or that of a fiber whose slice outlives its request.


def _nothing(_key: CodeKey) -> None:
    """Do nothing."""
