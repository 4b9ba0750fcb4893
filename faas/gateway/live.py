"""The live table: which deployment answers on which route, and the loaded code of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from faas.artifacts.bundle import read_bundle
from faas.artifacts.store import ArtifactStore
from faas.clock import SystemClock
from faas.errors import (
    ArtifactError,
    DeadlineExceededError,
    FaasError,
    GuestTrapError,
    InvocationError,
    StartFailedError,
)
from faas.gateway.admission import Permits
from faas.invocation import Deployment
from faas.routes import Route, RouteTable
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.files import BundleTree
from faas.wasi.streams import DiscardedOutput, EmptyInput
from faas.wasm.runtime import Runtime
from faas.wasm.template import Template


class Served:
    """
    One deployment as this worker serves it; its code is loaded at the first use.

    Lives as long as the live table or a request in flight refers to it.
    """

    __slots__ = ("bundle", "deployment", "headers", "loading", "name", "permits", "template", "version")

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.name = deployment.function
        self.version = deployment.version
        self.permits = Permits(deployment.manifest.limits.max_concurrency)
        self.template: Template | None = None
        self.bundle: BundleTree | None = None
        self.loading: asyncio.Task[None] | None = None
        self.headers = {"X-Faas-Function": deployment.function, "X-Faas-Version": str(deployment.version)}


class LiveTable:
    """
    What this worker serves right now; ``replace`` changes all of it by one assignment.

    Requests in flight keep the ``Served`` they began with.
    """

    def __init__(
        self,
        runtime: Runtime,
        artifacts: ArtifactStore,
        repair: Callable[[Deployment], Awaitable[None]],
        *,
        start_timeout_s: float,
    ) -> None:
        """Args: *repair* asks the control process to compile a deployment's artifact again; it raises FaasError."""
        self._runtime = runtime
        self._artifacts = artifacts
        self._repair = repair
        self._start_timeout_s = start_timeout_s
        self.generation = 0
        self._by_version: dict[tuple[str, int], Served] = {}
        self._prepared: dict[tuple[str, int], Served] = {}
        self._routes: RouteTable[Served] = RouteTable([])

    @property
    def n_loaded(self) -> int:
        """How many served deployments have their code in memory."""
        return sum(served.template is not None for served in self._by_version.values())

    def match(self, method: str, path: str) -> tuple[Served, dict[str, str], Route]:
        """
        Return who answers, the path parameters and the route.

        Raises: RouteNotFoundError, MethodNotAllowedError.
        """
        return self._routes.match(method, path)

    def replace(self, generation: int, deployments: tuple[Deployment, ...]) -> None:
        """Serve exactly *deployments* from now on; versions served before keep their loaded code."""
        if generation < self.generation:
            return  # an older table that was overtaken
        by_version: dict[tuple[str, int], Served] = {}
        for deployment in deployments:
            key = (deployment.function, deployment.version)
            known = self._by_version.get(key) or self._prepared.pop(key, None)
            if known is None or known.deployment.artifact_key != deployment.artifact_key:
                known = Served(deployment)
            by_version[key] = known
        routes = RouteTable(
            [(route, served) for served in by_version.values() for route in served.deployment.manifest.routes]
        )
        self._prepared.clear()  # deploys come one at a time: whatever else was prepared has failed
        self.generation, self._by_version, self._routes = generation, by_version, routes

    async def load(self, served: Served) -> Template:
        """
        Return the deployment's code, loading it if this is its first use.

        Raises: ArtifactError, or what the control process said when it could not compile it again.
        """
        if served.template is None:
            if served.loading is None:
                served.loading = asyncio.create_task(self._load(served))
            # Shielded: the first request may be cancelled, those that wait with it must not be.
            await asyncio.shield(served.loading)
        assert served.template is not None
        return served.template

    async def _load(self, served: Served) -> None:
        try:
            try:
                await asyncio.to_thread(self._load_now, served)
            except ArtifactError:
                await self._repair(served.deployment)
                await asyncio.to_thread(self._load_now, served)
        finally:
            served.loading = None

    def _load_now(self, served: Served) -> None:
        deployment = served.deployment
        with self._artifacts.sealed_native(deployment.artifact_key) as native:
            template = self._runtime.load(native)
        if deployment.bundle_digest:
            served.bundle = BundleTree(read_bundle(self._artifacts.bundle_path(deployment.bundle_digest)))
        served.template = template

    async def prepare(self, deployment: Deployment) -> None:
        """
        Load a version and make one trial instance, so that nothing about it can fail once it is served.

        Raises: StartFailedError, ArtifactError, UnknownImportsError.
        """
        served = Served(deployment)
        template = await self.load(served)
        limits = deployment.manifest.limits
        wasi = WasiContext(
            args=[],
            env=[],
            stdin=EmptyInput(),
            stdout=DiscardedOutput(),
            stderr=DiscardedOutput(),
            bundle=served.bundle,
            tmp_bytes=limits.tmp_bytes,
            clock=SystemClock(),
        )
        fiber = self._runtime.fiber(wasi, memory_limit_bytes=limits.memory_bytes, cpu_limit_s=self._start_timeout_s)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await fiber.instantiate(template)
        except (TimeoutError, DeadlineExceededError) as exc:
            raise StartFailedError(
                f"the module's start function did not end within {self._start_timeout_s:g} s; "
                "do long work in the handler, or before deploy with preinit"
            ) from exc
        except GuestExit as exc:
            raise StartFailedError(f"the module's start function exited with code {exc.code}") from exc
        except InvocationError as exc:
            raise StartFailedError(f"no instance could be made: {_reason(exc)}") from exc
        finally:
            fiber.close()
        self._prepared[deployment.function, deployment.version] = served


def _reason(exc: FaasError) -> str:
    if isinstance(exc, GuestTrapError):
        return "the module's start function " + exc.message.removeprefix("the guest ").split(";")[0]
    return exc.message
