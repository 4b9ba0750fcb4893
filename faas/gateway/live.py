"""The live table: which deployment answers on which route or by which alias, and the code that it runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from multidict import istr

from faas.clock import SystemClock
from faas.errors import (
    AliasNotFoundError,
    DeadlineExceededError,
    FaasError,
    FunctionNotFoundError,
    GuestTrapError,
    InvocationError,
    NotServedError,
    StartFailedError,
    VersionNotFoundError,
)
from faas.gateway.admission import Admission, Permits
from faas.gateway.code import Code, CodeCache, code_key
from faas.gateway.split import Choice
from faas.gateway.warm import WarmPool, WarmPools
from faas.gateway.webhook_paths import webhooks_of
from faas.invocation import LIVE, Alias, Deployment, Kind, leading
from faas.routes import Route, RouteTable, parse_route
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.p2.http import HttpContext
from faas.wasi.streams import DiscardedOutput, EmptyInput
from faas.wasm.components import ComponentFiber
from faas.wasm.runtime import Runtime

X_FAAS_ALIAS: Final = istr("x-faas-alias")
"""The header by which a client asks for another alias than ``live``."""
MAX_VISITORS: Final = 16
"""How many versions that no alias names are kept at hand for who invokes them by their number."""


class Served:
    """
    One deployment as this worker serves it; its code comes and goes (``CodeCache``).

    Lives as long as the live table or a request in flight refers to it.
    """

    __slots__ = (
        "_own_routes", "code_key", "deployment", "headers", "name", "needs_key", "permits", "version", "warm",
        "webhooks",
    )  # fmt: skip
    permits: Permits  # from the moment it is served
    split: ClassVar[None] = None
    """It answers by itself, as what is behind a route; ``Split`` has something else here."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.name = deployment.function
        self.version = deployment.version
        self.needs_key = deployment.manifest.access.invoke == "key"
        self.warm: WarmPool | None = None
        self.code_key = code_key(deployment)
        self.headers = {"X-Faas-Function": deployment.function, "X-Faas-Version": str(deployment.version)}
        self._own_routes: RouteTable[None] | None = None
        self.webhooks = webhooks_of(deployment.manifest)
        """By path; empty for nearly all functions. With those of the version that routes serve, see ``guard_as``."""

    def guard_as(self, lead: Served) -> None:
        """Check webhooks' paths of *lead*, too, or who asks for an older version by its alias would get around them."""
        own = webhooks_of(self.deployment.manifest)
        self.webhooks = own if lead is self else {**webhooks_of(lead.deployment.manifest), **own}

    def match(self, method: str, path: str) -> tuple[dict[str, str], Route]:
        """
        Return the path parameters and the route by which this very version answers.

        Raises: RouteNotFoundError, MethodNotAllowedError.
        """
        if self._own_routes is None:
            self._own_routes = RouteTable((text, None) for text in self.deployment.manifest.routes)
        _, params, route = self._own_routes.match(method, path)
        return params, route

    def with_cookie(self, cookie: str) -> Served:
        """Return the same for one request whose reply sets *cookie*."""
        served = Served(self.deployment)
        served.permits, served.warm, served.webhooks = self.permits, self.warm, self.webhooks
        served.headers["Set-Cookie"] = cookie
        return served

    def is_of(self, deployment: Deployment) -> bool:
        """Whether it serves *deployment*, of the same version, as it is: same native code, same environment."""
        known = self.deployment
        return known.artifact_key == deployment.artifact_key and known.manifest.env == deployment.manifest.env


class Split:
    """Two versions that share an alias' requests, as what is behind its routes. Lives as long as their shares."""

    __slots__ = ("choice", "name", "other", "routes", "served", "split")

    def __init__(self, alias: Alias, served: Served, other: Served) -> None:
        """Args: *other* gets the alias' weight, *served* the rest."""
        self.name = alias.function
        self.served = served
        self.other = other
        self.routes = list(dict.fromkeys((*_own(served), *_own(other))))
        self.choice = Choice(alias, self.routes)
        self.split = self

    def match(self, method: str, path: str, headers: Mapping[str, str] | None) -> tuple[Served, dict[str, str], Route]:
        """
        Return who answers, the path parameters and the route: what only one of the two answers, that one does.

        Raises: RouteNotFoundError, MethodNotAllowedError.
        """
        is_other, cookie = self.choice.pick(headers)
        served, second = (self.other, self.served) if is_other else (self.served, self.other)
        try:
            params, route = served.match(method, path)
        except NotServedError:
            served, cookie = second, ""
            params, route = served.match(method, path)
        return (served.with_cookie(cookie) if cookie else served), params, route


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
        self._leading: dict[str, Served] = {}
        self._prepared: dict[tuple[str, int], Served] = {}
        self._visitors: dict[tuple[str, int], Served] = {}
        # By function and alias; behind each one's routes are either what serves it, or two of them.
        self._targets: dict[tuple[str, str], Served | Split] = {}
        self._routes: RouteTable[Any] = RouteTable()
        self._routes_by_alias: dict[str, RouteTable[Any]] = {}  # but for ``live``

    def match(
        self, method: str, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[Served, dict[str, str], Route]:
        """
        Return who answers, the path parameters and the route.

        Args: *headers* may ask for an alias, and tell clients apart.
        Raises: RouteNotFoundError, MethodNotAllowedError, AliasNotFoundError.
        """
        if headers is not None and X_FAAS_ALIAS in headers:
            return self._match_alias(headers[X_FAAS_ALIAS], method, path, headers)
        found = self._routes.match(method, path)
        split: Split | None = found[0].split
        return found if split is None else split.match(method, path, headers)

    def _match_alias(
        self, alias: str, method: str, path: str, headers: Mapping[str, str]
    ) -> tuple[Served, dict[str, str], Route]:
        routes = self._routes if alias == LIVE else self._routes_by_alias.get(alias)
        try:
            if routes is None:
                raise AliasNotFoundError("")
            found = routes.match(method, path)
        except NotServedError:
            name = self._routes.match(method, path)[0].name
            if (name, alias) in self._targets:
                raise  # it has the alias, whose version has no such route
            raise AliasNotFoundError(
                f"{name} has no alias {alias[:64]!r}; leave X-Faas-Alias out to reach what is live"
            ) from None
        split: Split | None = found[0].split
        return found if split is None else split.match(method, path, headers)

    def resolve(self, function: str, qualifier: str) -> Served:
        """
        Return what serves *function* for who names it: by "" what routes serve, by an alias, or by a version number.

        Versions that no alias names are there if they were ``visit``-ed lately.
        Raises: FunctionNotFoundError, AliasNotFoundError, VersionNotFoundError.
        """
        target = self._targets.get((function, qualifier or LIVE))
        if target is not None:
            if target.split is None:
                return target
            is_other, _ = target.choice.pick(None)
            return target.other if is_other else target.served
        if function not in self._leading:
            raise FunctionNotFoundError(f"no function {function[:64]} is served; 'faas list' shows those that are")
        if not (qualifier.isascii() and qualifier.isdigit()):
            raise AliasNotFoundError(
                f"{function} has no alias {qualifier[:64]!r}; 'faas alias list {function}' shows those it has"
            )
        key = (function, int(qualifier[:18]))
        served = self._by_version.get(key) or self._visitors.get(key)
        if served is None:
            raise VersionNotFoundError(
                f"{function} has no version {qualifier[:18]} that an alias names; 'faas versions {function}' shows them"
            )
        return served

    def visit(self, deployment: Deployment) -> None:
        """
        Have a version that no alias names be at hand for ``resolve``, until others took its place.

        Raises: FunctionNotFoundError if its function is not served at all.
        """
        key = (deployment.function, deployment.version)
        lead = self._leading.get(deployment.function)
        if lead is None:
            raise FunctionNotFoundError(
                f"no function {deployment.function} is served; 'faas list' shows those that are"
            )
        if key in self._by_version:
            return
        known = self._visitors.pop(key, None)
        if known is None or not known.is_of(deployment):
            known = Served(deployment)
        known.permits = lead.permits
        known.guard_as(lead)
        self._visitors[key] = known
        while len(self._visitors) > MAX_VISITORS:
            del self._visitors[next(iter(self._visitors))]

    def serves(self, function: str) -> bool:
        """Return whether any version of *function* is served."""
        return function in self._leading

    def split_versions(self) -> frozenset[tuple[str, int]]:
        """Return the functions and versions that share an alias' requests with another version."""
        splits = [target for target in self._targets.values() if isinstance(target, Split)]
        return frozenset((split.name, served.version) for split in splits for served in (split.served, split.other))

    def replace(self, generation: int, deployments: tuple[Deployment, ...], aliases: tuple[Alias, ...] = ()) -> None:
        """
        Serve exactly *deployments* from now on, by *aliases*; versions served before keep their loaded code.

        Args: *aliases* may leave out ``live`` of a function that has one version only.
        """
        if generation < self.generation:
            return  # an older table that was overtaken
        by_version: dict[tuple[str, int], Served] = {}
        for deployment in deployments:
            key = (deployment.function, deployment.version)
            known = self._by_version.get(key)
            if known is None or not known.is_of(deployment):
                known = Served(deployment)
            by_version[key] = known
        # What stays is not touched: with thousands of functions, one deploy must not hold up everybody's requests.
        fresh = [served for key, served in by_version.items() if self._by_version.get(key) is not served]
        gone = [served for key, served in self._by_version.items() if by_version.get(key) is not served]
        leads = {
            name: by_version[name, deployment.version] for name, deployment in leading(deployments, aliases).items()
        }
        for name, lead in leads.items():
            if self._leading.get(name) is not lead:
                lead.permits = self._permits_of(lead.deployment)
        for served in by_version.values():
            served.guard_as(leads[served.name])
        pools = {served.name: served.warm for served in gone}
        for served in fresh:
            served.permits = leads[served.name].permits
            served.warm = self._warm.open(served.deployment, after=pools.get(served.name))
        for name in self._leading.keys() - leads.keys():
            self._admission.forget(name)
        self._route(self._targets_of(by_version, leads, aliases))
        for served in gone:
            if served.warm is not None:
                self._warm.retire(served.warm)
        if fresh:
            self._prepared.clear()  # deploys come one at a time: whatever else was prepared has failed
        self._visitors = {
            key: served for key, served in self._visitors.items() if key[0] in leads and key not in by_version
        }
        kept = (*by_version.values(), *self._prepared.values(), *self._visitors.values())
        self._code.keep_only({served.code_key for served in kept})
        self.generation, self._by_version, self._leading = generation, by_version, leads

    def _targets_of(
        self, by_version: dict[tuple[str, int], Served], leads: dict[str, Served], aliases: tuple[Alias, ...]
    ) -> dict[tuple[str, str], Served | Split]:
        """Return what is behind each alias; a split that goes on is the one that it was."""
        targets: dict[tuple[str, str], Served | Split] = {(name, LIVE): served for name, served in leads.items()}
        for alias in aliases:
            key, name = (alias.function, alias.alias), alias.function
            served = by_version[name, alias.version]
            if not alias.other:
                targets[key] = served
                continue
            other = by_version[name, alias.other]
            before = self._targets.get(key)
            goes_on = (
                isinstance(before, Split)
                and (before.served, before.other) == (served, other)
                and before.choice.alias == alias
            )
            targets[key] = before if before is not None and goes_on else Split(alias, served, other)
        return targets

    def _route(self, targets: dict[tuple[str, str], Served | Split]) -> None:
        """Have *targets* answer, and nothing else; what is the same as before is not touched."""
        before, self._targets = self._targets, targets
        for key, target in before.items():
            if targets.get(key) is not target:
                for route in _routes_of(target):
                    self._table_of(key[1]).remove(route, target)
        for key, target in targets.items():
            if before.get(key) is not target:
                for route in _routes_of(target):
                    self._table_of(key[1]).add(route, target)
        if self._routes_by_alias:
            for alias in self._routes_by_alias.keys() - {alias for _, alias in targets}:
                del self._routes_by_alias[alias]

    def _table_of(self, alias: str) -> RouteTable[Any]:
        if alias == LIVE:
            return self._routes
        routes = self._routes_by_alias.get(alias)
        if routes is None:
            routes = self._routes_by_alias[alias] = RouteTable()
        return routes

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


def _routes_of(target: Served | Split) -> Iterable[Route]:
    return target.routes if isinstance(target, Split) else _own(target)


def _own(served: Served) -> list[Route]:
    return [parse_route(text) for text in served.deployment.manifest.routes]


def _reason(exc: FaasError) -> str:
    if isinstance(exc, GuestTrapError):
        return "the module's start function " + exc.message.removeprefix("the guest ").split(";")[0]
    return exc.message
