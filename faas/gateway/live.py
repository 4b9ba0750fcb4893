"""The live table: which deployment answers on which route, and the code that it runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable

from faas.clock import SystemClock
from faas.errors import (
    DeadlineExceededError,
    FaasError,
    GuestTrapError,
    InvocationError,
    StartFailedError,
)
from faas.gateway.admission import Admission, Permits
from faas.gateway.code import Code, CodeCache, code_key
from faas.gateway.warm import WarmPool, WarmPools
from faas.invocation import Deployment, Kind
from faas.routes import Route, RouteTable, parse_route
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.p2.http import HttpContext
from faas.wasi.streams import DiscardedOutput, EmptyInput
from faas.wasm.components import ComponentFiber
from faas.wasm.runtime import Runtime


class Served:
    """
    One deployment as this worker serves it; its code comes and goes (``CodeCache``).

    Lives as long as the live table or a request in flight refers to it.
    """

    __slots__ = ("code_key", "deployment", "headers", "name", "permits", "version", "warm")
    permits: Permits  # from the moment it is served

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.name = deployment.function
        self.version = deployment.version
        self.warm: WarmPool | None = None
        self.code_key = code_key(deployment)
        self.headers = {"X-Faas-Function": deployment.function, "X-Faas-Version": str(deployment.version)}


class LiveTable:
    """
    What this worker serves right now; ``replace`` changes all of it between two requests.

    Requests in flight keep the ``Served`` they began with.
    """

    def __init__(
        self,
        runtime: Runtime,
        code: CodeCache,
        admission: Admission,
        warm: WarmPools,
        *,
        n_workers: int,
        start_timeout_s: float,
    ) -> None:
        """
        Args: *n_workers* share what a manifest gives its function; *start_timeout_s* is what a trial instance's start
        function may take.
        """
        self._runtime = runtime
        self._code = code
        self._admission = admission
        self._warm = warm
        self._n_workers = n_workers
        self._start_timeout_s = start_timeout_s
        self.generation = 0
        self._by_version: dict[tuple[str, int], Served] = {}
        self._prepared: dict[tuple[str, int], Served] = {}
        self._routes: RouteTable[Served] = RouteTable()

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
        # What stays is not touched: with thousands of functions, one deploy must not hold up everybody's requests.
        fresh = [served for key, served in by_version.items() if self._by_version.get(key) is not served]
        pools = {served.name: served.warm for served in self._by_version.values()}
        for served in fresh:
            served.permits = self._permits_of(served.deployment)
            served.warm = self._warm.open(served.deployment, after=pools.get(served.name))
        for name in {name for name, _ in self._by_version} - {name for name, _ in by_version}:
            self._admission.forget(name)
        gone = _routes_of(served for key, served in self._by_version.items() if by_version.get(key) is not served)
        for route, served in gone:
            self._routes.remove(route, served)
        for route, served in _routes_of(fresh):
            self._routes.add(route, served)
        for served in [served for key, served in self._by_version.items() if by_version.get(key) is not served]:
            if served.warm is not None:
                self._warm.retire(served.warm)
        self._prepared.clear()  # deploys come one at a time: whatever else was prepared has failed
        self._code.keep_only({served.code_key for served in by_version.values()})
        self.generation, self._by_version = generation, by_version

    def _permits_of(self, deployment: Deployment) -> Permits:
        limits = deployment.manifest.limits
        return self._admission.configure(
            deployment.function,
            limit=limits.max_concurrency,
            reserved=math.ceil(limits.reserved_concurrency / self._n_workers),
            weight=limits.weight,
            max_queue=None if limits.max_queue is None else math.ceil(limits.max_queue / self._n_workers),
            queue_timeout_s=limits.queue_timeout_s,
        )

    def try_acquire(self, served: Served) -> Code | None:
        """Return *served*'s code, in use until ``release``; None if it has to be loaded first."""
        return self._code.try_acquire(served.code_key)

    async def acquire(self, served: Served) -> Code:
        """
        Return *served*'s code, loaded if need be, in use until ``release``.

        Raises: ArtifactError, or what the control process said when it could not compile it again.
        """
        return await self._code.acquire(served.deployment)

    def release(self, code: Code) -> None:
        """End one use of *code*; who still runs it keeps a reference."""
        self._code.release(code)

    async def prepare(self, deployment: Deployment) -> None:
        """
        Load a version and make one trial instance, so that nothing about it can fail once it is served.

        Raises: StartFailedError, ArtifactError, UnknownImportsError.
        """
        code = await self._code.acquire(deployment)
        try:
            await self._try(deployment, code)
        finally:
            self._code.release(code)
        self._prepared[deployment.function, deployment.version] = Served(deployment)

    async def _try(self, deployment: Deployment, code: Code) -> None:
        limits = deployment.manifest.limits
        wasi = WasiContext(
            args=[],
            env=[],
            stdin=EmptyInput(),
            stdout=DiscardedOutput(),
            stderr=DiscardedOutput(),
            bundle=code.bundle,
            tmp_bytes=limits.tmp_bytes,
            clock=SystemClock(),
        )
        make = self._runtime.component_fiber if deployment.kind is Kind.HTTP else self._runtime.fiber
        fiber = make(wasi, memory_limit_bytes=limits.memory_bytes, cpu_limit_s=self._start_timeout_s)
        if isinstance(fiber, ComponentFiber):
            fiber.http = HttpContext(limits.max_output_bytes)  # there is no request, and no way out
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await fiber.instantiate(code.template)
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


def _routes_of(several: Iterable[Served]) -> list[tuple[Route, Served]]:
    return [(parse_route(text), served) for served in several for text in served.deployment.manifest.routes]


def _reason(exc: FaasError) -> str:
    if isinstance(exc, GuestTrapError):
        return "the module's start function " + exc.message.removeprefix("the guest ").split(";")[0]
    return exc.message
