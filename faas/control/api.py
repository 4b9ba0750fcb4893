"""The admin API: what ``faas.control.openapi`` lists, answered over HTTP on the admin port."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import msgspec
from aiohttp import BodyPartReader, web

from faas import __version__
from faas.artifacts.store import disk_watched
from faas.clock import Clock
from faas.config import HostConfig, ModelName
from faas.control import views
from faas.control.access import Tokens
from faas.control.deployer import Deployer, Placement, Upload, see_through
from faas.control.endpoints.base import ACTOR, NDJSON, TOML, Endpoint, int_of, json_body, json_response
from faas.control.endpoints.traffic import placement_of
from faas.control.keys import ANONYMOUS, KeyRing
from faas.control.logs import FunctionLogs
from faas.control.models import KnownModel, ModelRegistry
from faas.control.modelserver import ModelServerState, ModelSupervisor
from faas.control.openapi import ENDPOINTS, openapi_document
from faas.control.stats import Counts, prometheus_text
from faas.control.supervisor import Supervisor, WorkerState
from faas.errors import (
    BadRequestError,
    FaasError,
    InternalError,
    MethodNotAllowedError,
    ModelNotFoundError,
    RouteNotFoundError,
    UploadTooLargeError,
)
from faas.invocation import LIVE, Deployment
from faas.log import event, exception
from faas.manifest import Manifest, manifest_from_builtins, manifest_from_toml
from faas.problems import CONTENT_TYPE, headers_of, status_of, to_problem
from faas.state.state import State
from faas.wire.models import ModelCard

MAX_MANIFEST_BYTES = 1024 * 1024
MAX_TAIL_LINES = 100_000
_CHUNK_BYTES = 1024 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OnRemoved(Protocol):
    """Forgets what was kept here for a function that the state has forgotten, with *purge* for good."""

    async def __call__(self, function: str, *, purge: bool, actor: str) -> None: ...


_logger = logging.getLogger(__name__)


class AdminApi:
    """
    The handlers of every endpoint; lives as long as the host.

    Thread: the control loop only.
    """

    def __init__(
        self,
        *,
        config: HostConfig,
        tokens: Tokens,
        public_url: str,
        admin_url: str,
        state: State,
        deployer: Deployer,
        supervisor: Supervisor,
        models: ModelRegistry,
        model_server: ModelSupervisor,
        keys: KeyRing,
        logs: FunctionLogs,
        counts: Counts,
        clock: Clock,
        upload_dir: Path,
        groups: Sequence[object] = (),
        on_removed: Sequence[OnRemoved] = (),
    ) -> None:
        """
        Args: *upload_dir* takes uploads until they are deployed or refused; *groups* are the objects of
        ``faas.control.endpoints`` whose methods answer what this class does not; *on_removed* forget what belongs to
        a function that was removed.
        """
        self._groups = groups
        self._on_removed = on_removed
        self._config = config
        self._tokens = tokens
        self._public_url = public_url
        self._admin_url = admin_url
        self._state = state
        self._deployer = deployer
        self._supervisor = supervisor
        self._models = models
        self._model_server = model_server
        self._keys = keys
        self._logs = logs
        self._counts = counts
        self._clock = clock
        self._upload_dir = upload_dir
        self._began = clock.monotonic()

    def app(self) -> web.Application:
        """Return a new application with every endpoint."""
        app = web.Application(middlewares=[_answer_problems])
        for endpoint in ENDPOINTS:
            handler: Handler = next(
                getattr(group, endpoint.operation)
                for group in (self, *self._groups)
                if hasattr(group, endpoint.operation)
            )
            app.router.add_route(endpoint.method, endpoint.path, self._guarded(endpoint, handler))
        app.on_shutdown.append(self._end_followers)
        return app

    def _guarded(self, endpoint: Endpoint, handler: Handler) -> Handler:
        """Ask for the token before anything else is looked at; what only reads ends when its token is removed."""
        if endpoint.public:
            return handler
        needed = endpoint.needed_role

        async def guarded(request: web.Request) -> web.StreamResponse:
            request[ACTOR], digest = self._tokens.identify(request.headers.get("Authorization", ""), needed)
            if endpoint.method != "GET":
                return await handler(request)
            with self._tokens.using(digest):
                return await handler(request)

        return guarded

    async def _end_followers(self, _app: web.Application) -> None:
        self._logs.end_followers()

    # ---- reading ----------------------------------------------------------------------------------------------------

    async def document(self, _request: web.Request) -> web.StreamResponse:
        """GET /api/openapi.json"""
        return json_response(openapi_document())

    async def status(self, _request: web.Request) -> web.StreamResponse:
        """GET /api/status"""
        gauges = self._counts.gauges()
        return json_response(
            views.Status(
                version=__version__,
                pid=os.getpid(),
                uptime_s=self._clock.monotonic() - self._began,
                home=self._config.home,
                public_url=self._public_url,
                admin_url=self._admin_url,
                generation=self._supervisor.generation,
                functions=len(await self._state.functions.active_deployments()),
                max_upload_bytes=self._config.max_upload_bytes,
                workers=[
                    msgspec.structs.replace(worker, gauges=gauges.get(worker.worker, {}))
                    for worker in self._supervisor.workers()
                ],
                model_server=self._model_server.view(),
            )
        )

    async def functions(self, _request: web.Request) -> web.StreamResponse:
        """GET /api/functions"""
        totals = self._counts.totals()
        return json_response(
            views.Functions(
                [
                    views.FunctionSummary(
                        name=deployment.function,
                        version=deployment.version,
                        kind=deployment.kind,
                        routes=deployment.manifest.routes,
                        urls=views.urls_of(deployment.manifest, self._public_url),
                        created_at=deployment.created_at,
                        counters=totals.get(deployment.function, {}),
                    )
                    for deployment in await self._state.functions.active_deployments()
                ]
            )
        )

    async def function(self, request: web.Request) -> web.StreamResponse:
        """GET /api/functions/{name}"""
        deployment = await self._state.functions.active(request.match_info["name"])
        sizes = await self._deployer.sizes(deployment)
        return json_response(
            views.FunctionView(
                name=deployment.function,
                active=self._view(deployment),
                wasm_bytes=sizes.wasm_bytes,
                artifact_bytes=sizes.artifact_bytes,
                bundle_bytes=sizes.bundle_bytes,
                counters=self._counts.totals().get(deployment.function, {}),
            )
        )

    async def versions(self, request: web.Request) -> web.StreamResponse:
        """GET /api/functions/{name}/versions"""
        name = request.match_info["name"]
        aliases = await self._state.functions.aliases(name)
        return json_response(
            views.Versions(
                name=name,
                versions=[
                    views.VersionView(
                        version=version.version,
                        active=LIVE in views.shares_of(version.version, aliases),
                        kind=version.kind,
                        wasm_digest=version.wasm_digest,
                        bundle_digest=version.bundle_digest,
                        created_at=version.created_at,
                        manifest=version.manifest,
                        aliases=views.shares_of(version.version, aliases),
                    )
                    for version in await self._state.functions.versions(name)
                ],
            )
        )

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """GET /api/functions/{name}/logs"""
        name = request.match_info["name"]
        n_lines = int_of(request, "tail", 100, MAX_TAIL_LINES)
        follow = int_of(request, "follow", 0, 1) == 1
        if not self._logs.known(name):
            await self._state.functions.active(name)
        # Nothing is awaited between these two, so no line is shown twice and none is missed.
        follower = self._logs.follow(name) if follow else None
        tail = self._logs.snapshot(name)
        try:
            lines = await tail.last_lines(n_lines)
            response = web.StreamResponse(headers={"Content-Type": NDJSON, "Cache-Control": "no-store"})
            await response.prepare(request)
            if lines:
                await response.write(b"".join(lines))
            if follower is not None:
                async for blob in follower:
                    await response.write(blob)
                if follower.too_slow:
                    await response.write(self._logs.dropped_note(name))
            await response.write_eof()
        finally:
            if follower is not None:
                self._logs.unfollow(follower)
        return response

    async def metrics(self, _request: web.Request) -> web.StreamResponse:
        """GET /metrics"""
        workers = self._supervisor.workers()
        model_server = self._model_server.view()
        jobs = await self._state.jobs.counts()
        text = prometheus_text(
            self._counts.totals(),
            self._counts.gauges(),
            {
                "faas_functions": len(await self._state.functions.active_deployments()),
                "faas_generation": self._supervisor.generation,
                "faas_uptime_seconds": self._clock.monotonic() - self._began,
                "faas_model_server_restarts": self._model_server.restarts,
                "faas_model_server_rss_bytes": model_server.rss_bytes,
                "faas_model_server_serving": model_server.state == ModelServerState.SERVING.value,
                "faas_models": len(self._models.offered()),
                "faas_workers": len(workers),
                "faas_workers_serving": sum(worker.state == WorkerState.SERVING.value for worker in workers),
            },
            {worker.worker: worker.restarts for worker in workers},
            keys=self._counts.key_totals(),
            invoke_keys=self._counts.invoke_key_totals(),
            models=self._model_server.counts.totals(),
            model_gauges=self._model_server.counts.gauges(),
            jobs=jobs,
        )
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    # ---- models and keys ---------------------------------------------------------------------------------------------

    async def models(self, _request: web.Request) -> web.StreamResponse:
        """GET /api/models"""
        cards = await self._model_server.cards()
        known = [self._model_view(model, cards.get(model.name)) for model in self._models.known()]
        return json_response(views.Models(models=known, server=self._model_server.view()))

    async def model(self, request: web.Request) -> web.StreamResponse:
        """GET /api/models/{name}"""
        name = request.match_info["name"]
        model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError(f"no model {name!r} is registered; 'faas models list' shows those that are")
        return json_response(self._model_view(model, (await self._model_server.cards()).get(name)))

    async def add_model(self, request: web.Request) -> web.StreamResponse:
        """PUT /api/models/{name}"""
        name = _name_of(request)
        path = Path((await json_body(request, views.AddModel)).path)
        if not path.is_absolute() or "\0" in str(path):
            raise BadRequestError("path: give the absolute path of a GGUF file on the host's machine")
        if NDJSON in request.headers.get("Accept", ""):
            return await self._add_model_told(request, name, path)
        return json_response(await self._added(await self._models.add(name, path)), status=201)

    async def _added(self, model: KnownModel) -> views.ModelView:
        return self._model_view(model, (await self._model_server.cards()).get(model.name))

    async def _add_model_told(self, request: web.Request, name: str, path: Path) -> web.StreamResponse:
        """Add a model with NDJSON lines that tell how much of its file is hashed."""
        response = web.StreamResponse(headers={"Content-Type": NDJSON, "Cache-Control": "no-store"})
        await response.prepare(request)
        hashed: asyncio.Queue[int | None] = asyncio.Queue()
        task = asyncio.create_task(self._models.add(name, path, hashed.put_nowait))
        task.add_done_callback(lambda _task: hashed.put_nowait(None))
        try:
            while (n_bytes := await hashed.get()) is not None:
                await response.write(_line(views.HashingEvent(n_bytes)))
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        last: views.ModelAddedEvent | views.FailedEvent
        try:
            last = views.ModelAddedEvent(await self._added(task.result()))
        except FaasError as exc:
            last = views.FailedEvent(to_problem(exc, request[REQUEST_ID]))
        except Exception as exc:
            last = views.FailedEvent(to_problem(_bug(exc, request), request[REQUEST_ID]))
        await response.write(_line(last))
        await response.write_eof()
        return response

    async def remove_model(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/models/{name}"""
        await self._models.remove(request.match_info["name"])
        return web.Response(status=204)

    async def keys(self, _request: web.Request) -> web.StreamResponse:
        """GET /api/keys"""
        totals = self._counts.key_totals()
        return json_response(
            views.Keys(
                [
                    views.KeyView(
                        name=entry.name,
                        tokens_per_minute=entry.tokens_per_minute,
                        added_at=entry.added_at,
                        counters=totals.get(entry.name, {}),
                    )
                    for entry in await self._keys.entries()
                ],
                anonymous=totals.get(ANONYMOUS, {}),
            )
        )

    async def add_key(self, request: web.Request) -> web.StreamResponse:
        """POST /api/keys"""
        wanted = await json_body(request, views.AddKey)
        entry, text = await self._keys.add(wanted.name, wanted.tokens_per_minute)
        view = views.NewKey(
            name=entry.name, key=text, tokens_per_minute=entry.tokens_per_minute, added_at=entry.added_at
        )
        response = json_response(view, status=201)
        response.headers["Cache-Control"] = "no-store"
        return response

    async def remove_key(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/keys/{name}"""
        await self._keys.remove(request.match_info["name"])
        return web.Response(status=204)

    def _model_view(self, model: KnownModel, card: ModelCard | None) -> views.ModelView:
        counts = self._model_server.counts
        return views.ModelView(
            name=model.name,
            path=model.path,
            source=model.source,
            digest=model.digest,
            bytes=model.bytes,
            architecture=model.architecture or (card.architecture if card is not None else ""),
            n_ctx_train=model.n_ctx_train or (card.n_ctx_train if card is not None else 0),
            n_ctx=card.n_ctx if card is not None else 0,
            loaded=card is not None and card.loaded,
            added_at=model.added_at,
            problem=model.problem or self._model_server.refused.get(model.name, ""),
            counters=counts.totals().get(model.name, {}),
            gauges=counts.gauges().get(model.name, {}),
        )

    # ---- changing ---------------------------------------------------------------------------------------------------

    async def deploy(self, request: web.Request) -> web.StreamResponse:
        """PUT /api/functions/{name}"""
        placement = placement_of(request)
        async with self._received(request) as upload:
            if NDJSON in request.headers.get("Accept", ""):
                return await self._deploy_told(request, upload, placement)
            deployment = await self._deployer.deploy(upload, _untold, placement)
        return json_response(self._view(deployment), status=201)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/functions/{name}"""
        name = request.match_info["name"]
        purge = int_of(request, "purge", 0, 1) == 1
        await see_through(self._remove(name, purge, request[ACTOR].name))
        return web.Response(status=204)

    async def _remove(self, name: str, purge: bool, actor: str) -> None:
        await self._deployer.remove(name, purge=purge, actor=actor)
        for removed in self._on_removed:
            await removed(name, purge=purge, actor=actor)

    def _view(self, deployment: Deployment) -> views.DeploymentView:
        return views.deployment_view(deployment, self._public_url, self._models.warnings(deployment.manifest))

    async def _deploy_told(self, request: web.Request, upload: Upload, placement: Placement) -> web.StreamResponse:
        """Deploy with one NDJSON line per stage; a caller that hangs up cancels what is not committed yet."""
        response = web.StreamResponse(headers={"Content-Type": NDJSON, "Cache-Control": "no-store"})
        await response.prepare(request)
        stages: asyncio.Queue[str | None] = asyncio.Queue()
        stages.put_nowait("upload")
        task = asyncio.create_task(self._deployer.deploy(upload, stages.put_nowait, placement))
        task.add_done_callback(lambda _task: stages.put_nowait(None))
        try:
            while (stage := await stages.get()) is not None:
                await response.write(_line(views.ProgressEvent(stage)))
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        last: views.DoneEvent | views.FailedEvent
        try:
            last = views.DoneEvent(self._view(task.result()))
        except FaasError as exc:
            last = views.FailedEvent(to_problem(exc, request[REQUEST_ID]))
        except Exception as exc:
            last = views.FailedEvent(to_problem(_bug(exc, request), request[REQUEST_ID]))
        await response.write(_line(last))
        await response.write_eof()
        return response

    @asynccontextmanager
    async def _received(self, request: web.Request) -> AsyncIterator[Upload]:
        """
        Take the multipart body into temporary files, which are gone when the block is left.

        Raises: BadRequestError, UploadTooLargeError, ManifestError.
        """
        name = request.match_info["name"]
        if request.content_type != "multipart/form-data":
            raise BadRequestError("a deploy is multipart/form-data with the parts 'manifest', 'module' and 'bundle'")
        with tempfile.TemporaryDirectory(prefix="upload-", dir=self._upload_dir) as folder:
            parts: dict[str, Path] = {}
            manifest: Manifest | None = None
            try:
                reader = await request.multipart()
                while (part := await reader.next()) is not None:
                    if not isinstance(part, BodyPartReader) or part.name not in {"manifest", "module", "bundle"}:
                        raise BadRequestError("a part is none of 'manifest', 'module' and 'bundle'")
                    if part.name in parts:
                        raise BadRequestError(f"the part {part.name!r} is there twice")
                    path = parts[part.name] = Path(folder) / part.name
                    limit = MAX_MANIFEST_BYTES if part.name == "manifest" else self._config.max_upload_bytes
                    await _save(part, path, limit)
                    if part.name == "manifest":
                        manifest = _manifest_of(path.read_bytes(), part.headers.get("Content-Type", ""), name)
            except (ValueError, AssertionError, UnicodeDecodeError) as exc:
                raise BadRequestError(f"the multipart body is malformed: {exc}") from exc
            if "module" not in parts:
                raise BadRequestError("the part 'module' (the .wasm) is missing")
            if manifest is None:
                manifest = manifest_from_builtins({"name": name})
            yield Upload(manifest=manifest, module=parts["module"], bundle=parts.get("bundle"))


REQUEST_ID = web.RequestKey("request_id", str)


@web.middleware
async def _answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The gate from our errors to HTTP, for the admin port."""
    request[REQUEST_ID] = request_id = secrets.token_hex(8)
    error: FaasError
    try:
        response = await handler(request)
    except FaasError as exc:
        error = exc
    except web.HTTPMethodNotAllowed as exc:
        error = MethodNotAllowedError(
            f"{request.path} does not answer {request.method}; /api/openapi.json lists what there is",
            allow=sorted(exc.allowed_methods),
        )
    except web.HTTPException:
        error = RouteNotFoundError(f"the admin API has no {request.path}; /api/openapi.json lists what there is")
    except ConnectionError:
        raise  # the caller hung up: nobody is left to answer
    except Exception as exc:
        error = _bug(exc, request)
    else:
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
        return response
    event(
        _logger,
        "admin.refused",
        method=request.method,
        path=request.path,
        code=error.code,
        reason=error.message,
        request_id=request_id,
    )
    return web.json_response(
        to_problem(error, request_id),
        status=status_of(error),
        content_type=CONTENT_TYPE,
        headers={**headers_of(error), "X-Request-Id": request_id},
    )


def _bug(exc: Exception, request: web.Request) -> InternalError:
    exception(_logger, "admin.failed", exc, method=request.method, path=request.path, request_id=request[REQUEST_ID])
    return InternalError("something of ours failed; the host's log has the traceback under this request id")


async def _save(part: BodyPartReader, path: Path, limit_bytes: int) -> None:
    """Stream *part* to *path*; raises UploadTooLargeError, StateError when the disk is full."""
    n_bytes = 0
    with disk_watched(), path.open("wb") as file:
        while chunk := await part.read_chunk(_CHUNK_BYTES):
            n_bytes += len(chunk)
            if n_bytes > limit_bytes:
                raise UploadTooLargeError(
                    f"the part {part.name!r} is over {limit_bytes} bytes; shrink it (strip debug info), or raise "
                    "max_upload_bytes of the host",
                    limit_bytes=limit_bytes,
                )
            await asyncio.to_thread(file.write, bytes(chunk))


def _manifest_of(blob: bytes, content_type: str, name: str) -> Manifest:
    """
    Return the manifest in *blob*; a missing name is the path's.

    Raises: ManifestError, BadRequestError if it is not JSON or names another function.
    """
    try:
        text = blob.decode()
        if content_type.partition(";")[0].strip().lower() == TOML:
            manifest = manifest_from_toml(text)
        else:
            raw = json.loads(text)
            manifest = manifest_from_builtins({"name": name, **raw} if isinstance(raw, dict) else raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as exc:
        raise BadRequestError(f"the part 'manifest' is not JSON: {exc}; TOML needs the content type {TOML}") from exc
    if manifest.name != name:
        raise BadRequestError(f"the manifest is of {manifest.name!r} and the path of {name!r}; make them the same")
    return manifest


def _name_of(request: web.Request) -> str:
    """Return the name in the path; raises BadRequestError if no model can have it."""
    try:
        return msgspec.convert(request.match_info["name"], ModelName)
    except msgspec.ValidationError as exc:
        raise BadRequestError(
            "a name is 1 to 64 letters, digits, '.', '_' and '-', and begins with a letter or a digit"
        ) from exc


def _untold(_stage: str) -> None:
    """Take a stage that nobody wants to hear of."""


def _line(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message) + b"\n"
