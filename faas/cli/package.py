"""What a deploy sends, gathered from a .wasm file or a folder with function.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from faas.artifacts.bundle import pack_bundle
from faas.errors import FaasError, ManifestError
from faas.manifest import Manifest, manifest_from_builtins, manifest_from_toml, manifest_to_builtins
from faas.routes import parse_route
from precompile.binary import read_layout
from precompile.component import is_component, read_component


class Package(msgspec.Struct, frozen=True):
    """A function ready to be sent."""

    manifest: Manifest
    module: Path
    bundle: bytes


def load_package(
    path: Path,
    *,
    name: str | None = None,
    routes: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    models: Sequence[str] = (),
) -> Package:
    """
    Return the function at *path*, with what was given on the command line in place of what function.toml says.

    Args: *routes* replace all routes; *env* and *models* are added.
    Raises: ManifestError; NotWasmError and its kin when the host would refuse the file at first sight.
    """
    if path.is_dir():
        toml = path / "function.toml"
        try:
            manifest = manifest_from_toml(toml.read_text(), origin=str(toml))
        except (OSError, UnicodeDecodeError) as exc:
            said = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise ManifestError(f"can't read {toml}: {said}; deploy a .wasm, or a folder with function.toml") from exc
        module = _module_of(path, manifest)
    else:
        manifest = manifest_from_builtins({"name": name or name_of(path)}, origin=str(path))
        module = path
    manifest = _overridden(manifest, name, routes, env or {}, models)
    try:
        wasm = module.read_bytes()
        if is_component(wasm):
            read_component(wasm)
        else:
            read_layout(wasm)
    except OSError as exc:
        raise ManifestError(f"can't read {module}: {exc.strerror}; is it built and the path right?") from exc
    except FaasError as exc:
        raise type(exc)(f"{module}: {exc.message}", **exc.facts) from exc
    bundle = pack_bundle(path / manifest.files) if manifest.files and path.is_dir() else b""
    return Package(manifest=manifest, module=module, bundle=bundle)


def name_of(path: Path) -> str:
    """Return the file's stem made a DNS label: ``My_Func.wasm`` → ``my-func``."""
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower())[:63].strip("-")
    if not name:
        raise ManifestError(f"no name can be made of {path.name!r}; give one with --name")
    return name


def example_path(route: str) -> tuple[str, str]:
    """Return a method and a path that the route answers: parameters are 1, the rest is left out."""
    parsed = parse_route(route)
    segments = ["1" if segment.startswith("{") else segment for segment in parsed.segments]
    methods = parsed.methods
    method = "GET" if not methods or "GET" in methods else min(methods)
    return method, "/" + "/".join(segments)


def _module_of(folder: Path, manifest: Manifest) -> Path:
    if manifest.module:
        return folder / manifest.module
    found = sorted(folder.glob("*.wasm"))
    if len(found) != 1:
        count = "no .wasm" if not found else f"{len(found)} .wasm files"
        raise ManifestError(f'{folder} holds {count}; name one in function.toml: module = "FILE.wasm"')
    return found[0]


def _overridden(
    manifest: Manifest, name: str | None, routes: Sequence[str], env: Mapping[str, str], models: Sequence[str]
) -> Manifest:
    raw = manifest_to_builtins(manifest)
    if name:
        if manifest.routes == (f"/{manifest.name}",):
            del raw["routes"]  # they followed the name, so they still do
        raw["name"] = name
    if routes:
        raw["routes"] = list(routes)
    if env:
        raw["env"] = {**manifest.env, **env}
    if models:
        raw["capabilities"] = {
            **raw.get("capabilities", {}),
            "models": list(dict.fromkeys([*manifest.capabilities.models, *models])),
        }
    return manifest_from_builtins(raw, origin="command line")
