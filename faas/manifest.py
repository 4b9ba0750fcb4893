"""The manifest: what a function asks for and may use, as ``function.toml`` writes it down."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from faas.destinations import parse_destination
from faas.errors import ManifestError
from faas.routes import parse_route

MIB = 1024 * 1024

MAX_MANIFEST_BYTES = 64 * 1024
"""As JSON, defaults left out: every worker is sent every manifest that is served."""

# Patterns end in \Z: a `$` would let a newline through.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?\Z", description="lower-case DNS label")]
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


class Capabilities(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a function may reach beyond its own request; nothing by default."""

    models: tuple[str, ...] = ()
    outbound: tuple[str, ...] = ()


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
    warm = manifest.warm
    if warm.min > warm.max:
        raise ManifestError(f"{origin}: warm.min is {warm.min} and warm.max {warm.max}; raise warm.max")
    if warm.reuse > 1 and not warm.max:
        raise ManifestError(f"{origin}: warm.reuse needs a place where instances wait; set warm.max to 1 or more")
    return manifest


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
