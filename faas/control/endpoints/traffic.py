"""Versions, aliases, rollbacks, canaries and the audit log, over the admin API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from aiohttp import web

from faas.control import views
from faas.control.canary import CanaryController, CanaryView
from faas.control.deployer import Deployer, Placement
from faas.control.endpoints.base import ACTOR, JSON, Endpoint, Query, int_of, json_body, json_response
from faas.control.supervisor import Supervisor, WorkerState
from faas.control.traffic import alias_name, checked, split_of, sticky_by
from faas.errors import BadRequestError, CanaryNotFoundError, WorkerLostError
from faas.invocation import LIVE, Alias, Deployment, Kind
from faas.manifest import Manifest
from faas.state.base import AuditEntry, Canary, CanaryPhase, CanaryPlan
from faas.state.state import State

MAX_AUDIT_ENTRIES = 10_000

_MAX_VERSION = 10**18 - 1
Version = Annotated[int, msgspec.Meta(ge=1, le=_MAX_VERSION)]


class AliasView(msgspec.Struct, frozen=True):
    """One alias: the percent of its requests that each version gets, by version."""

    alias: str
    weights: dict[str, float]
    sticky: str


class Aliases(msgspec.Struct, frozen=True):
    """Every alias of a function, ``live`` first."""

    name: str
    aliases: list[AliasView]


class SetAlias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Share an alias' requests out: percents by version, 100 together. ``sticky``: '', 'cookie' or 'header:NAME'."""

    weights: dict[str, float]
    sticky: str = ""


class VersionDetail(msgspec.Struct, frozen=True):
    """One version, what it takes on the disk, and the percent of each alias' requests that it gets."""

    function: str
    version: int
    kind: Kind
    wasm_digest: str
    bundle_digest: str
    created_at: float
    manifest: Manifest
    aliases: dict[str, float]
    wasm_bytes: int
    artifact_bytes: int
    bundle_bytes: int


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Go back to version ``to``, or where that is 0 to what was live before."""

    to: Annotated[int, msgspec.Meta(ge=0, le=_MAX_VERSION)] = 0


class RolledBack(msgspec.Struct, frozen=True):
    """What is live now, alone, and when that was committed (Unix time)."""

    name: str
    version: int
    committed_at: float


class StartCanary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Try ``version`` on a growing part of an alias' requests."""

    version: Version
    alias: str = LIVE
    sticky: str = ""
    plan: CanaryPlan = CanaryPlan()


class CanaryEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which alias' canary is to end."""

    alias: str = LIVE


class AuditLog(msgspec.Struct, frozen=True):
    """Who changed what, newest first."""

    entries: list[AuditEntry]


class Invoke(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    A request to one version, or to what an alias names; ``target`` '' is the path of its first route.

    ``body`` is base64.
    """

    qualifier: str = ""
    method: str = "GET"
    target: str = ""
    headers: list[tuple[str, str]] = []
    body: bytes = b""


class Invoked(msgspec.Struct, frozen=True):
    """What the version answered; ``body`` is base64."""

    version: int
    status: int
    headers: list[tuple[str, str]]
    body: bytes


_BAD = "The request does not have the documented form."
_NONE = "No such function, version or alias."
_ALIAS = Query("alias", {"type": "string", "default": LIVE}, "Which alias' canary.")

ENDPOINTS = (
    Endpoint(
        "GET",
        "/api/functions/{name}/versions/{version}",
        "version",
        "One version of a function.",
        content={JSON: VersionDetail},
        refusals={400: _BAD, 404: _NONE},
    ),
    Endpoint(
        "DELETE",
        "/api/functions/{name}/versions/{version}",
        "remove_version",
        "Remove a version that no alias names.",
        status=204,
        refusals={400: _BAD, 404: _NONE, 409: "An alias names it."},
    ),
    Endpoint(
        "GET",
        "/api/functions/{name}/aliases",
        "aliases",
        "Every alias of a function, and how it shares its requests out.",
        content={JSON: Aliases},
        refusals={404: "No such function."},
    ),
    Endpoint(
        "PUT",
        "/api/functions/{name}/aliases/{alias}",
        "set_alias",
        "Have an alias, made if it is not there, name a version or share its requests out between two; "
        "the answer comes when every worker does.",
        content={JSON: AliasView},
        body=SetAlias,
        refusals={
            400: _BAD,
            404: _NONE,
            409: "A canary runs on it, or another function answers on one of the version's routes.",
            422: "The version can't be started any more.",
        },
    ),
    Endpoint(
        "DELETE",
        "/api/functions/{name}/aliases/{alias}",
        "remove_alias",
        "Remove an alias; its versions stay. The answer comes when nobody reaches it.",
        status=204,
        refusals={400: "The alias is live.", 404: _NONE, 409: "A canary runs on it."},
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/rollback",
        "rollback",
        "Have live go back to what it named before; the answer comes when all requests go there.",
        content={JSON: RolledBack},
        body=Rollback,
        refusals={
            400: "That version is live already, alone.",
            404: "No such function or version, or none was live before.",
            409: "Another function answers on one of its routes by now.",
        },
    ),
    Endpoint(
        "GET",
        "/api/functions/{name}/canary",
        "canary",
        "The last canary of an alias, and what its new version did since the present step began.",
        content={JSON: CanaryView},
        query=(_ALIAS,),
        refusals={404: "No such function, or there was no canary."},
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/canary",
        "start_canary",
        "Try a version on a growing part of an alias' requests; it goes back to none by itself if the version fails.",
        status=201,
        content={JSON: CanaryView},
        body=StartCanary,
        refusals={400: _BAD, 404: _NONE, 409: "A canary runs already, or a route is another function's."},
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/canary/promote",
        "promote_canary",
        "End the canary: its alias names the new version alone.",
        content={JSON: CanaryView},
        body=CanaryEnd,
        refusals={404: "No such function, or no canary runs."},
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/canary/abort",
        "abort_canary",
        "End the canary: its alias names the old version alone.",
        content={JSON: CanaryView},
        body=CanaryEnd,
        refusals={404: "No such function, or no canary runs."},
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/invoke",
        "invoke_version",
        "Send a request to one version or to an alias, in memory.",
        content={JSON: Invoked},
        body=Invoke,
        refusals={400: _BAD, 404: _NONE, 503: "No worker serves."},
    ),
    Endpoint(
        "GET",
        "/api/audit",
        "audit",
        "Who changed what, when; newest first.",
        content={JSON: AuditLog},
        query=(
            Query("function", {"type": "string"}, "Only what is about this function."),
            Query(
                "limit",
                {"type": "integer", "minimum": 0, "maximum": MAX_AUDIT_ENTRIES, "default": 100},
                "How many entries.",
            ),
        ),
        refusals={400: "A parameter is out of its range."},
    ),
)

DEPLOY_QUERY = (
    Query("alias", {"type": "string", "default": LIVE}, "The alias that names the new version."),
    Query("traffic", {"type": "string", "enum": ["none"]}, "none: no alias names it, so it gets no requests yet."),
    Query("canary", {"type": "string"}, "A plan (JSON, CanaryPlan): it gets the requests of live step by step."),
    Query("sticky", {"type": "string"}, "With a canary: 'cookie' or 'header:NAME'."),
)
"""What a deploy may say of who gets the new version."""


class TrafficEndpoints:
    """
    The handlers of ``ENDPOINTS``; lives as long as the host.

    Thread: the control loop only.
    """

    def __init__(
        self,
        state: State,
        deployer: Deployer,
        canaries: CanaryController,
        supervisor: Supervisor,
        secrets_for: Callable[[Deployment], dict[str, str]],
    ) -> None:
        """Args: *secrets_for* returns what a version that workers don't serve needs to be invoked all the same."""
        self._secrets_for = secrets_for
        self._state = state
        self._deployer = deployer
        self._canaries = canaries
        self._supervisor = supervisor

    async def version(self, request: web.Request) -> web.StreamResponse:
        """GET /api/functions/{name}/versions/{version}"""
        name = request.match_info["name"]
        version = await self._state.functions.version(name, _version_in(request))
        sizes = await self._deployer.sizes(version)
        return json_response(
            VersionDetail(
                function=name,
                version=version.version,
                kind=version.kind,
                wasm_digest=version.wasm_digest,
                bundle_digest=version.bundle_digest,
                created_at=version.created_at,
                manifest=version.manifest,
                aliases=views.shares_of(version.version, await self._state.functions.aliases(name)),
                wasm_bytes=sizes.wasm_bytes,
                artifact_bytes=sizes.artifact_bytes,
                bundle_bytes=sizes.bundle_bytes,
            )
        )

    async def remove_version(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/functions/{name}/versions/{version}"""
        name = request.match_info["name"]
        await self._deployer.remove_version(name, _version_in(request), actor=request[ACTOR].name)
        return web.Response(status=204)

    async def aliases(self, request: web.Request) -> web.StreamResponse:
        """GET /api/functions/{name}/aliases"""
        name = request.match_info["name"]
        return json_response(Aliases(name, [_view(alias) for alias in await self._state.functions.aliases(name)]))

    async def set_alias(self, request: web.Request) -> web.StreamResponse:
        """PUT /api/functions/{name}/aliases/{alias}"""
        name, alias = request.match_info["name"], alias_name(request.match_info["alias"])
        wanted = await json_body(request, SetAlias)
        try:
            weights = {msgspec.convert(text, Version, strict=False): part for text, part in wanted.weights.items()}
        except msgspec.ValidationError as exc:
            raise BadRequestError("weights: give version numbers and percents, such as {'3': 90, '4': 10}") from exc
        before = next((a for a in await self._state.functions.aliases(name) if a.alias == alias), None)
        split = split_of(before, name, alias, weights, wanted.sticky)
        await self._deployer.set_alias(split, actor=request[ACTOR].name)
        return json_response(_view(split))

    async def remove_alias(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/functions/{name}/aliases/{alias}"""
        name, alias = request.match_info["name"], request.match_info["alias"]
        await self._deployer.remove_alias(name, alias, actor=request[ACTOR].name)
        return web.Response(status=204)

    async def rollback(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/rollback"""
        name = request.match_info["name"]
        wanted = await json_body(request, Rollback)
        version, committed_at = await self._deployer.rollback(name, wanted.to, actor=request[ACTOR].name)
        return json_response(RolledBack(name, version, committed_at))

    async def canary(self, request: web.Request) -> web.StreamResponse:
        """GET /api/functions/{name}/canary"""
        name, alias = request.match_info["name"], request.query.get("alias", LIVE)
        return json_response(self._canaries.view(await self._found(name, alias)))

    async def start_canary(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/canary"""
        name = request.match_info["name"]
        wanted = await json_body(request, StartCanary)
        await self._deployer.start_canary(
            name,
            wanted.version,
            checked(wanted.plan),
            alias=wanted.alias,
            sticky=sticky_by(wanted.sticky),
            actor=request[ACTOR].name,
        )
        return json_response(self._canaries.view(await self._found(name, wanted.alias)), status=201)

    async def promote_canary(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/canary/promote"""
        return await self._ended(request, CanaryPhase.PROMOTED, "promoted by hand")

    async def abort_canary(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/canary/abort"""
        return await self._ended(request, CanaryPhase.ABORTED, "aborted by hand")

    async def _ended(self, request: web.Request, phase: CanaryPhase, reason: str) -> web.StreamResponse:
        name = request.match_info["name"]
        alias = (await json_body(request, CanaryEnd)).alias
        canary = await self._found(name, alias)
        if not canary.runs:
            raise CanaryNotFoundError(
                f"no canary runs on {alias!r} of {name!r}; the last one, of version {canary.other}, has ended: "
                f"{canary.phase.value}"
            )
        await self._deployer.end_canary(canary, phase, reason, actor=request[ACTOR].name)
        return json_response(self._canaries.view(await self._found(name, alias)))

    async def _found(self, name: str, alias: str) -> Canary:
        canary = await self._state.functions.canary(name, alias)
        if canary is None:
            raise CanaryNotFoundError(
                f"there was no canary on {alias[:64]!r} of {name!r}; 'faas canary start {name} V' begins one"
            )
        return canary

    async def invoke_version(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/invoke"""
        name = request.match_info["name"]
        wanted = await json_body(request, Invoke)
        deployment = None
        if wanted.qualifier.isascii() and wanted.qualifier.isdigit():
            deployment = await self._deployer.version(name, int(wanted.qualifier[:18]))
        serving = [w.worker for w in self._supervisor.workers() if w.state == WorkerState.SERVING.value]
        if not serving:
            raise WorkerLostError("no worker serves, so nothing can be invoked; 'faas status' shows the workers")
        reply = await self._supervisor.ask(
            serving[0],
            "invoke-version",
            function=name,
            qualifier=wanted.qualifier,
            deployment=None if deployment is None else msgspec.to_builtins(deployment),
            method=wanted.method,
            target=wanted.target,
            headers=wanted.headers,
            body=wanted.body,
            secrets={} if deployment is None else self._secrets_for(deployment),
        )
        return json_response(msgspec.convert(reply, Invoked, builtin_types=(bytes,)))

    async def audit(self, request: web.Request) -> web.StreamResponse:
        """GET /api/audit"""
        limit = int_of(request, "limit", 100, MAX_AUDIT_ENTRIES)
        entries = await self._state.audit.entries(request.query.get("function", ""), limit=limit)
        return json_response(AuditLog(list(entries)))


def placement_of(request: web.Request) -> Placement:
    """Return which requests the version that *request* deploys is to get; raises BadRequestError."""
    query, actor = request.query, request[ACTOR].name
    if "canary" in query:
        if "alias" in query or "traffic" in query:
            raise BadRequestError("a canary gets the requests of live step by step: leave alias and traffic out")
        try:
            plan = msgspec.json.decode(query["canary"], type=CanaryPlan)
        except (msgspec.DecodeError, msgspec.ValidationError) as exc:
            raise BadRequestError(f"canary: {exc}; /api/openapi.json has the schema CanaryPlan") from exc
        return Placement(canary=checked(plan), sticky=sticky_by(query.get("sticky", "")), actor=actor)
    if query.get("traffic", "none") != "none" or ("traffic" in query and "alias" in query):
        raise BadRequestError("traffic may be 'none', without an alias; leave it out to have live name the version")
    if "traffic" in query:
        return Placement(alias="", actor=actor)
    return Placement(alias=alias_name(query.get("alias", LIVE)), actor=actor)


def _version_in(request: web.Request) -> int:
    text = request.match_info["version"]
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 18):
        raise BadRequestError(f"{text[:80]!r} is no version number")
    return int(text)


def _view(alias: Alias) -> AliasView:
    return AliasView(alias.alias, {str(version): weight for version, weight in alias.shares.items()}, alias.sticky)
