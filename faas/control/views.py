"""What the admin API shows: the shapes of its JSON, and nothing that computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from faas.config import ModelName
from faas.control.models import Source
from faas.control.modelserver import ModelServerView
from faas.control.supervisor import WorkerView
from faas.invocation import Alias, Deployment, Kind
from faas.manifest import Manifest
from faas.routes import parse_route

STAGES = ("upload", "validate", "preinit", "compile", "store", "prepare", "activate")
"""What a deploy goes through, in this order; a stage that has nothing to do is not reported."""


class DeploymentView(msgspec.Struct, frozen=True):
    """One version that serves; ``warnings`` say what it names and this host has not."""

    function: str
    version: int
    kind: Kind
    routes: tuple[str, ...]
    urls: tuple[str, ...]
    wasm_digest: str
    bundle_digest: str
    created_at: float
    manifest: Manifest
    warnings: tuple[str, ...] = ()


class FunctionSummary(msgspec.Struct, frozen=True):
    """One line of the list of functions."""

    name: str
    version: int
    kind: Kind
    routes: tuple[str, ...]
    urls: tuple[str, ...]
    created_at: float
    counters: dict[str, float]


class Functions(msgspec.Struct, frozen=True):
    """Every function that serves, ordered by name."""

    functions: list[FunctionSummary]


class FunctionView(msgspec.Struct, frozen=True):
    """A function: its serving version, what that takes on the disk, and what it did since the host started."""

    name: str
    active: DeploymentView
    wasm_bytes: int
    artifact_bytes: int
    bundle_bytes: int
    counters: dict[str, float]


class VersionView(msgspec.Struct, frozen=True):
    """One version, serving or not; ``aliases`` has the percent of their requests that it gets, where it gets any."""

    version: int
    active: bool
    kind: Kind
    wasm_digest: str
    bundle_digest: str
    created_at: float
    manifest: Manifest
    aliases: dict[str, float] = {}


class Versions(msgspec.Struct, frozen=True):
    """Every version of a function, newest first."""

    name: str
    versions: list[VersionView]


class Status(msgspec.Struct, frozen=True):
    """The host itself."""

    version: str
    pid: int
    uptime_s: float
    home: str
    public_url: str
    admin_url: str
    generation: int
    functions: int
    max_upload_bytes: int
    workers: list[WorkerView]
    model_server: ModelServerView


class ModelView(msgspec.Struct, frozen=True):
    """
    One model. ``problem`` says why it can't be used, '' if it can; ``digest`` '' is still being computed.

    ``n_ctx`` is what one sequence may use now, 0 while the model is not loaded. ``counters`` are since the host
    started, ``gauges`` of now.
    """

    name: str
    path: str
    source: Source
    digest: str
    bytes: int
    architecture: str
    n_ctx_train: int
    n_ctx: int
    loaded: bool
    added_at: float
    problem: str
    counters: dict[str, float]
    gauges: dict[str, float]


class Models(msgspec.Struct, frozen=True):
    """Every model, ordered by name, and the process that serves them."""

    models: list[ModelView]
    server: ModelServerView


class HashingEvent(msgspec.Struct, frozen=True, tag_field="event", tag="hashing"):
    """So many bytes of a model's file are hashed."""

    done_bytes: int


class ModelAddedEvent(msgspec.Struct, frozen=True, tag_field="event", tag="added"):
    """The last line of an addition: the model can be used."""

    model: ModelView


class AddModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Register the GGUF at this absolute path of the host's machine; it is referred to, not copied."""

    path: str


class KeyView(msgspec.Struct, frozen=True):
    """One API key, without its text; ``counters`` are since the host started."""

    name: str
    tokens_per_minute: int
    added_at: float
    counters: dict[str, float]


class Keys(msgspec.Struct, frozen=True):
    """Every API key, ordered by name; ``anonymous`` is what was used without one, while there was none."""

    keys: list[KeyView]
    anonymous: dict[str, float]


class AddKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Make an API key; ``tokens_per_minute`` 0 means no limit."""

    name: ModelName
    tokens_per_minute: Annotated[int, msgspec.Meta(ge=0)] = 0


class NewKey(msgspec.Struct, frozen=True):
    """An API key with its text, which is shown this once."""

    name: str
    key: str
    tokens_per_minute: int
    added_at: float


class ProgressEvent(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """A deploy has entered *stage*."""

    stage: str


class DoneEvent(msgspec.Struct, frozen=True, tag_field="event", tag="done"):
    """The last line of a deploy that serves."""

    deployment: DeploymentView


class FailedEvent(msgspec.Struct, frozen=True, tag_field="event", tag="failed"):
    """The last line of what was refused; ``problem`` is an RFC 9457 document."""

    problem: dict[str, Any]


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457, with our stable ``code``; an error's facts are further members."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str = ""


def base_url(host: str, port: int, *, tls: bool = False) -> str:
    """Return the URL at which a host that listens on *host* can be tried from this machine."""
    if host in {"", "0.0.0.0", "::"}:
        host = "127.0.0.1"
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def urls_of(manifest: Manifest, public_url: str) -> tuple[str, ...]:
    """Return the URL of each route, parameters and trailing ``*`` as the route writes them."""
    return tuple(dict.fromkeys(public_url + parse_route(route).path for route in manifest.routes))


def shares_of(version: int, aliases: Iterable[Alias]) -> dict[str, float]:
    """Return the percent of their requests that *version* gets, by the aliases that name it."""
    return {alias.alias: alias.shares[version] for alias in aliases if version in alias.shares}


def deployment_view(deployment: Deployment, public_url: str, warnings: tuple[str, ...] = ()) -> DeploymentView:
    """Return *deployment* as the API shows it."""
    return DeploymentView(
        function=deployment.function,
        version=deployment.version,
        kind=deployment.kind,
        routes=deployment.manifest.routes,
        urls=urls_of(deployment.manifest, public_url),
        wasm_digest=deployment.wasm_digest,
        bundle_digest=deployment.bundle_digest,
        created_at=deployment.created_at,
        manifest=deployment.manifest,
        warnings=warnings,
    )
