"""The manifest: what a function asks for and may use, as ``function.toml`` writes it down."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError
from msgspec import Meta

from faas.destinations import DEFAULT_PORTS, AllowList, Destination, parse_destination
from faas.errors import ManifestError, NotServedError
from faas.routes import RouteTable, parse_route

MIB = 1024 * 1024

MAX_MANIFEST_BYTES = 64 * 1024
"""As JSON, defaults left out: every worker is sent every manifest that is served."""

# Patterns end in \Z: a `$` would let a newline through.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?\Z", description="lower-case DNS label")]
SecretName = Annotated[
    str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}\Z", description="name of a secret or a config value")
]
_HOST_HEADERS = frozenset(
    (
        "connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate",
        "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    )
)  # fmt: skip
"""Of an outbound request: what frames it, or concerns one connection."""
_PATH = re.compile(r"/[^\x00-\x20#\x7f]*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_GENERAL_FORM = frozenset(
    (
        "header", "algorithm", "encoding", "prefix", "signed", "timestamp_header", "tolerance_s", "delivery_header",
    )
)  # fmt: skip
"""Keys of a webhook that say how it is signed, where no scheme does."""
HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,100}\Z"
_HEADER = re.compile(HEADER_NAME)
Bytes = Annotated[int, Meta(ge=0)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    What one invocation may use; units ride on the names. The defaults suit a small web function.

    Those from ``max_concurrency`` on are of the function, over all its invocations and the whole host.
    """

    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    cpu_s: Annotated[float, Meta(gt=0, le=3600)] = 10.0
    memory_bytes: Annotated[int, Meta(ge=65536, le=4096 * MIB)] = 128 * MIB
    max_body_bytes: Bytes = 16 * MIB
    max_output_bytes: Bytes = 64 * MIB
    max_log_bytes: Bytes = 1 * MIB
    tmp_bytes: Bytes = 16 * MIB
    max_concurrency: Annotated[int, Meta(ge=1, le=100_000)] = 500
    reserved_concurrency: Annotated[int, Meta(ge=0, le=100_000)] = 0
    weight: Annotated[int, Meta(ge=1, le=100)] = 1
    max_queue: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    queue_timeout_s: Annotated[float, Meta(ge=0, le=3600)] | None = None
    tokens_per_minute: Annotated[int, Meta(ge=0, description="prompt and generated tokens; 0: no limit")] = 0


class Warm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    Instances that are made before their requests come, over the whole host; none by default.

    ``reuse`` is how many requests one instance serves, one after another; only a reactor's can serve more than one.
    """

    max: Annotated[int, Meta(ge=0, le=1000)] = 0
    min: Annotated[int, Meta(ge=0, le=1000)] = 0
    reuse: Annotated[int, Meta(ge=1, le=1_000_000)] = 1


class Credential(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    A secret that the host adds to the function's requests for ``host``; the guest never holds it.

    ``host`` is written as an entry of ``capabilities.outbound``, without wildcards. ``format`` has ``{}`` where the
    secret goes.
    """

    host: str
    secret: SecretName
    header: Annotated[str, Meta(pattern=HEADER_NAME)] = "authorization"
    format: str = "Bearer {}"


class Capabilities(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    What a function may reach beyond its own request; nothing by default.

    ``kv`` names stores: ``default`` is the function's own, any other is that function's, which has to grant it.
    ``calls`` names functions that it may call, or enqueue jobs for; ``secrets`` those that its guest may read.
    """

    models: tuple[str, ...] = ()
    outbound: tuple[str, ...] = ()
    kv: tuple[Name, ...] = ()
    calls: tuple[Name, ...] = ()
    secrets: tuple[SecretName, ...] = ()
    credentials: tuple[Credential, ...] = ()


class Async(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How jobs of the function are run: at least once, tried again with growing pauses, then kept as dead letters."""

    enabled: bool = True
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    backoff_s: Annotated[float, Meta(ge=0, le=3600)] = 1.0
    max_backoff_s: Annotated[float, Meta(ge=0, le=86400)] = 300.0
    max_age_s: Annotated[float, Meta(gt=0, le=30 * 86400)] = 6 * 3600.0
    keep_s: Annotated[float, Meta(ge=0, le=30 * 86400)] = 86400.0
    max_result_bytes: Annotated[int, Meta(ge=0, le=16 * MIB)] = 1 * MIB
    callback_secret: SecretName | Literal[""] = ""


class Missed(str, Enum):
    """What becomes of the times of a schedule at which no host ran."""

    SKIP = "skip"
    LAST = "last"  # one run makes up for all of them
    ALL = "all"


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When the host enqueues a job by itself: a cron expression of five fields, or six with seconds first."""

    name: Name
    cron: str
    timezone: str = "UTC"
    method: Annotated[str, Meta(pattern=r"^[A-Z]{1,32}\Z")] = "POST"
    path: str = ""
    body: str = ""
    headers: dict[str, str] = {}
    overlap: bool = False
    missed: Missed = Missed.SKIP
    enabled: bool = True


class WebhookScheme(str, Enum):
    """Whose way of signing it is."""

    GITHUB = "github"
    HMAC = "hmac"  # the general form, see the fields of Webhook


class Webhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    A path whose requests the host verifies and tells from repetitions before any guest sees them.

    ``signed`` has ``{body}`` and, where a timestamp is signed too, ``{timestamp}``; with ``async`` the delivery becomes
    a job and is answered 202 at once. The fields from ``header`` on are for the scheme ``hmac``.
    """

    path: str
    secret: SecretName
    scheme: WebhookScheme = WebhookScheme.GITHUB
    run_async: bool = msgspec.field(default=False, name="async")
    dedup_s: Annotated[float, Meta(ge=0, le=30 * 86400)] = 3 * 86400.0
    header: Annotated[str, Meta(pattern=HEADER_NAME)] = "x-signature"
    algorithm: Literal["sha256", "sha512", "sha1"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    signed: str = "{body}"
    timestamp_header: str = ""
    tolerance_s: Annotated[float, Meta(gt=0, le=86400)] = 300.0
    delivery_header: str = ""


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who may invoke the function over HTTP: everybody, or who has one of its invoke keys."""

    invoke: Literal["public", "key"] = "public"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    One version's settings; immutable once deployed.

    ``module`` and ``files`` are paths relative to the folder of function.toml and matter only until the upload.
    ``kind`` empty means: found from the exports.
    """

    name: Name
    module: str = ""
    kind: Annotated[str, Meta(pattern=r"^(|command|reactor|http)\Z")] = ""
    routes: tuple[str, ...] = ()
    preinit: str = ""
    files: str = ""
    env: dict[str, str] = {}
    limits: Limits = Limits()
    warm: Warm = Warm()
    capabilities: Capabilities = Capabilities()
    jobs: Async = msgspec.field(default=Async(), name="async")
    schedules: tuple[Schedule, ...] = ()
    webhooks: tuple[Webhook, ...] = ()
    access: Access = Access()


def manifest_from_toml(text: str, *, origin: str = "function.toml") -> Manifest:
    """
    Return the manifest that *text* holds.

    Raises: ManifestError with the key that is unknown or wrong.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ManifestError(f"{origin} is not TOML: {exc}") from exc
    return manifest_from_builtins(raw, origin=origin)


def manifest_from_builtins(raw: Any, *, origin: str = "manifest") -> Manifest:
    """
    Return the manifest in *raw* (dicts, lists, scalars), fully validated; a function without routes gets ``/NAME``.

    Raises: ManifestError with the key that is unknown or wrong.
    """
    try:
        manifest = msgspec.convert(raw, Manifest)
        n_bytes = len(msgspec.json.encode(manifest))
    except msgspec.ValidationError as exc:
        raise ManifestError(f"{origin}: {_plain(str(exc))}; see docs/manifest.md for the keys") from exc
    except UnicodeEncodeError as exc:
        raise ManifestError(f"{origin}: a text in it is not Unicode (half of a surrogate pair); rewrite it") from exc
    if n_bytes > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{origin}: it takes {n_bytes} bytes and may take {MAX_MANIFEST_BYTES}; put what is large into a file under"
            " `files`"
        )
    if not manifest.routes:
        manifest = msgspec.structs.replace(manifest, routes=(f"/{manifest.name}",))
    for route in manifest.routes:
        parse_route(route)
    for key, value in manifest.env.items():
        if not key or "=" in key or "\0" in key + value:
            raise ManifestError(f"{origin}: env {key!r} can't be an environment variable; rename it")
    for entry in manifest.capabilities.outbound:
        parse_destination(entry)
    _check_credentials(manifest.capabilities, origin)
    _check_jobs(manifest, origin)
    _check_schedules(manifest, origin)
    _check_webhooks(manifest, origin)
    warm = manifest.warm
    if warm.min > warm.max:
        raise ManifestError(f"{origin}: warm.min is {warm.min} and warm.max {warm.max}; raise warm.max")
    if warm.reuse > 1 and not warm.max:
        raise ManifestError(f"{origin}: warm.reuse needs a place where instances wait; set warm.max to 1 or more")
    return manifest


def _check_credentials(capabilities: Capabilities, origin: str) -> None:
    """Raises: ManifestError for a credential that could never be sent, or for a place that is not one host."""
    seen: set[tuple[Destination, str]] = set()
    for credential in capabilities.credentials:
        what = f"{origin}: capabilities.credentials: {credential.host!r}"
        destination = parse_destination(credential.host)
        if not destination.literal:
            raise ManifestError(f"{what} is not one host; write its name, without a wildcard")
        scheme = destination.scheme or "https"
        port = destination.port or DEFAULT_PORTS[scheme]
        if not AllowList(capabilities.outbound).allows(scheme, destination.host, port):
            raise ManifestError(
                f"{what} ({scheme}, port {port}) is not covered by capabilities.outbound; add it there, or write the "
                "scheme and port that the function asks for"
            )
        header = credential.header.lower()
        if header in _HOST_HEADERS:
            raise ManifestError(f"{what}: the header {credential.header!r} is the host's own; name another")
        if credential.format.count("{}") != 1:
            raise ManifestError(f"{what}: format {credential.format!r} needs {{}} once, where the secret goes")
        if not credential.format.isascii() or not credential.format.isprintable():
            raise ManifestError(f"{what}: format {credential.format!r} can't be sent as a header; use printable ASCII")
        if (destination._replace(scheme=scheme, port=port), header) in seen:
            raise ManifestError(f"{what}: two credentials set {credential.header!r}; keep one")
        seen.add((destination._replace(scheme=scheme, port=port), header))


def _check_jobs(manifest: Manifest, origin: str) -> None:
    jobs = manifest.jobs
    if jobs.backoff_s > jobs.max_backoff_s:
        raise ManifestError(
            f"{origin}: async.backoff_s is {jobs.backoff_s:g} and async.max_backoff_s {jobs.max_backoff_s:g}; raise "
            "async.max_backoff_s"
        )
    if jobs.enabled:
        return
    if manifest.schedules or any(webhook.run_async for webhook in manifest.webhooks):
        raise ManifestError(
            f"{origin}: schedules, and webhooks with async = true, are run as jobs; set async.enabled to true"
        )


def _check_schedules(manifest: Manifest, origin: str) -> None:
    """Raises: ManifestError for a schedule that is never due, or whose request can't be sent."""
    names: set[str] = set()
    for schedule in manifest.schedules:
        what = f"{origin}: schedule {schedule.name!r}"
        if schedule.name in names:
            raise ManifestError(f"{what} is there twice; rename one")
        names.add(schedule.name)
        try:
            zone = ZoneInfo(schedule.timezone)
        except (KeyError, ValueError, OSError) as exc:
            raise ManifestError(
                f"{what}: there is no time zone {schedule.timezone!r}; write one as 'Europe/Berlin' or 'UTC'"
            ) from exc
        try:
            never = next(CronSim(schedule.cron, datetime.now(UTC).astimezone(zone)), None) is None
        except CronSimError as exc:
            raise ManifestError(
                f"{what}: {schedule.cron!r} is no cron expression ({exc}); write five fields, as '0 3 * * *' for 3 "
                "o'clock, or six with seconds first"
            ) from exc
        if never:
            raise ManifestError(f"{what}: {schedule.cron!r} is never due within decades; correct its day and month")
        if schedule.path and not _PATH.fullmatch(schedule.path):
            raise ManifestError(f"{what}: path {schedule.path!r} is none; begin it with '/', spaces as %20")
        if schedule.missed is Missed.ALL and not schedule.overlap:
            raise ManifestError(
                f"{what}: missed = 'all' queues several runs at once, and without overlap only one of them is run; set "
                "overlap to true, or missed to 'last'"
            )
        for name, value in schedule.headers.items():
            if not _HEADER.fullmatch(name) or name.lower() in _HOST_HEADERS or _CONTROL.search(value):
                raise ManifestError(f"{what}: the header {name!r} can't be sent; rename it, or leave it out")


def _check_webhooks(manifest: Manifest, origin: str) -> None:
    """Raises: ManifestError for a webhook that no request reaches, or whose form makes no sense."""
    routes: RouteTable[None] = RouteTable((route, None) for route in manifest.routes)
    paths: set[str] = set()
    for webhook in manifest.webhooks:
        what = f"{origin}: webhook {webhook.path!r}"
        if not _PATH.fullmatch(webhook.path) or any(char in webhook.path for char in "?*{%"):
            raise ManifestError(f"{what}: path is none; write one as '/hooks/github', without parameters")
        if webhook.path in paths:
            raise ManifestError(f"{what} is there twice; keep one")
        paths.add(webhook.path)
        try:
            routes.match("POST", webhook.path)
        except NotServedError as exc:
            raise ManifestError(
                f"{what}: none of the function's routes takes POST requests there; add it to routes"
            ) from exc
        if webhook.scheme is WebhookScheme.GITHUB:
            changed = sorted(_GENERAL_FORM.intersection(msgspec.to_builtins(webhook)))
            if changed:
                raise ManifestError(f"{what}: {changed[0]} is for scheme = 'hmac'; remove it, or set the scheme")
            continue
        if webhook.signed.count("{body}") != 1:
            raise ManifestError(f"{what}: signed is {webhook.signed!r} and needs {{body}} once")
        if ("{timestamp}" in webhook.signed) != bool(webhook.timestamp_header):
            raise ManifestError(
                f"{what}: {{timestamp}} in signed and timestamp_header go together: a time that is not signed proves "
                "nothing"
            )
        for key in ("timestamp_header", "delivery_header"):
            name = getattr(webhook, key)
            if name and not _HEADER.fullmatch(name):
                raise ManifestError(f"{what}: {key} {name!r} is no header; correct it")


def manifest_to_builtins(manifest: Manifest) -> dict[str, Any]:
    """Return *manifest* as plain dicts and lists, for JSON and the wire."""
    raw: dict[str, Any] = msgspec.to_builtins(manifest)
    return raw


def _plain(message: str) -> str:
    """Say 'unknown key' where msgspec says 'unknown field', as people who write TOML would."""
    return (
        message.replace("Object contains unknown field", "unknown key")
        .replace("$.", "")
        .replace(" - at `$`", "")
        .replace("\n", "\\n")
    )
