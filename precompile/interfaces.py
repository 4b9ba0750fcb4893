"""Decides whether this host can run a component, from its declarations alone, and says what to do when it can't."""

from __future__ import annotations

import re
from collections.abc import Callable

from faas.errors import InvalidModuleError, ManifestError, MemoryTooLargeError, UnknownImportsError, UnknownKindError
from faas.invocation import Kind
from faas.manifest import Manifest
from faas.wasi import wit
from faas.wasm.engine import BYTES_EXPORTS, TABLES_PER_COMPONENT, EngineProfile
from precompile.binary import shown
from precompile.component import Component, InstanceImport, interface_key, read_component
from precompile.validate import (
    GRANT_MODELS,
    MAX_SHOWN,
    NO_HINT,
    ModuleFacts,
    check_memory,
    check_table,
)

HANDLER, _RUN = "wasi:http/incoming-handler", "wasi:cli/run"
_MAX_MEMORIES = 1
_RELEASED = "io|clocks|random|cli|filesystem|sockets|http"
_GRANT_KV = 'grant a store with `kv = ["default"]` under [capabilities] of function.toml'
# What to do about a package that we know but don't offer, or not in that version; the first that matches counts.
_HINTS = (
    (r"wasi:http/incoming-handler(@.*)?", "one function can't call another's handler; send a request instead"),
    (r"wasi:nn/.*", "this host has wasi:nn@0.2.0-rc-2024-10-28 and @0.2.0-rc-2024-08-19; rebuild with one of them"),
    (r"wasi:config/.*", "this host has wasi:config/store@0.2.0-rc.1; rebuild with it"),
    (r"wasi:keyvalue/.*", "this host has wasi:keyvalue@0.2.0-draft2 and @0.2.0-draft; rebuild with one of them"),
    (r"wasi:logging/.*", "this host has wasi:logging/logging@0.1.0-draft; rebuild with it"),
    (rf"wasi:({_RELEASED})/[^@]*@0\.2\..*-.*", "a preview of WASI 0.2; rebuild with a released one"),
    (rf"wasi:({_RELEASED})/.*", "this host has WASI 0.2; rebuild for it"),
)


def validate_component(wasm: bytes, manifest: Manifest, profile: EngineProfile) -> tuple[ModuleFacts, Component]:
    """
    Return what the component in *wasm* is, and what was read; its core code is not looked at (the compiler does that).

    Raises: InvalidModuleError, UnknownImportsError, UnknownKindError, ManifestError, MemoryTooLargeError; each message
    names what to do next.
    """
    component = read_component(wasm)
    _check_kind(component, manifest)
    _check_manifest(manifest)
    _check_imports(component, manifest)
    memory_min_bytes, table_min_elements = _check_sizes(component, manifest, profile)
    facts = ModuleFacts(
        kind=Kind.HTTP,
        imports=tuple(_import_names(component)[:MAX_SHOWN]),
        exports=tuple(shown(export.name) for export in component.exports[:MAX_SHOWN]),
        memory_min_bytes=memory_min_bytes,
        table_min_elements=table_min_elements,
        preinit="",
        has_initialize=False,
        has_start=False,
        n_core_modules=len(component.all_modules),
        core_bytes=sum(module.span.end - module.span.start for module in component.all_modules),
    )
    return facts, component


def _check_kind(component: Component, manifest: Manifest) -> None:
    for export in component.exports:
        if export.name.startswith(BYTES_EXPORTS.partition(":")[0] + ":"):
            raise InvalidModuleError(
                f"the component exports {shown(export.name)!r}, and names that begin with 'faas:' are this host's own;"
                " rename it"
            )
    if manifest.kind not in {"", Kind.HTTP.value}:
        raise UnknownKindError(
            f'function.toml says kind = "{manifest.kind}" but the file is a component; leave `kind` out, or build a'
            " core module for wasm32-wasip1"
        )
    exported = {interface_key(export.name) for export in component.exports if export.sort == "instance"}
    if HANDLER in exported:
        return
    names = {export.name.partition("@")[0] for export in component.exports}
    if _RUN in exported:
        raise UnknownKindError(
            f"the component is a program: it exports {_RUN} and no {HANDLER}; run it with `faas run`, or build it for"
            " the world wasi:http/proxy to have it answer requests"
        )
    if HANDLER in names or "wasi:http/handler" in names:
        raise UnknownKindError(
            f"the component exports a handler of another WASI than 0.2; rebuild it for {HANDLER}@0.2.x (the world"
            " wasi:http/proxy)"
        )
    raise UnknownKindError(
        f"the component exports no {HANDLER}@0.2.x, so no request can reach it; build it for the world wasi:http/proxy"
    )


def _check_manifest(manifest: Manifest) -> None:
    if manifest.preinit:
        raise ManifestError(
            f"preinit = {shown(manifest.preinit)!r} is of core modules, and this is a component; leave it out (the"
            " tools that make components of Python and JavaScript take such a snapshot themselves)"
        )
    if manifest.warm.max:
        raise ManifestError(
            f"warm.max is {manifest.warm.max}, but a component's instance is made for its request, in microseconds;"
            " leave [warm] out"
        )


def _check_imports(component: Component, manifest: Manifest) -> None:
    """Refuse what this host does not offer, all of it in one message, each with what would help."""
    unknown: dict[str, list[str]] = {}

    def refuse(name: str, hint: str) -> None:
        unknown.setdefault(hint, []).append(shown(name))

    for item in component.imports:
        refuse(f"{item.name} ({item.sort})", "only functions of interfaces are offered; import it as part of one")
    for instance in component.instances:
        if instance is not None:
            _check_interface(instance, manifest, refuse)
    if unknown:
        names = list(dict.fromkeys(name for group in unknown.values() for name in group))
        shown_names = set(names[:MAX_SHOWN])
        listed = "; ".join(
            f"{', '.join(kept)} ({hint})"
            for hint, group in unknown.items()
            if (kept := [name for name in dict.fromkeys(group) if name in shown_names])
        )
        if len(names) > MAX_SHOWN:
            listed += f"; and {len(names) - MAX_SHOWN} more"
        raise UnknownImportsError(
            f"the component imports what this host does not offer: {listed}", imports=names[:MAX_SHOWN]
        )


def _check_interface(instance: InstanceImport, manifest: Manifest, refuse: Callable[[str, str], None]) -> None:
    key = interface_key(instance.name)
    known = None if key in wit.EXPORTED else wit.interfaces().get(key)
    if known is None:
        refuse(instance.name, next((hint for form, hint in _HINTS if re.fullmatch(form, instance.name)), NO_HINT))
        return
    if key.startswith("wasi:nn/") and not manifest.capabilities.models:
        refuse(instance.name, GRANT_MODELS)
        return
    if key.startswith("wasi:keyvalue/") and not manifest.capabilities.kv:
        refuse(instance.name, _GRANT_KV)
        return
    package = f"{key.partition('/')[0]}@{known.version}"
    for name, function in instance.functions.items():
        declared = known.functions.get(name)
        if declared is None:
            refuse(f"{instance.name} {name}", f"{package} has no such function; rebuild with that version")
        # The values of calls are taken for what the WIT says they are, so their types are compared here, once.
        elif (function.params, function.result) != (declared.params, declared.result):
            refuse(f"{instance.name} {name}", f"in {package} it has another type; rebuild with its WIT files")
    for name in (*set(instance.resources).difference(known.resources), *instance.others):
        refuse(f"{instance.name} {name}", f"{package} has nothing of that name; rebuild with its WIT files")


def _check_sizes(component: Component, manifest: Manifest, profile: EngineProfile) -> tuple[int, int]:
    """Return the memory's first size in bytes and the largest table's in elements, once they are known to fit."""
    memories = [memory for module in component.all_modules for memory in module.memories]
    tables = [table for module in component.all_modules for table in module.tables]
    for number, limit, what in (
        (len(memories), _MAX_MEMORIES, "memories"),
        (len(tables), TABLES_PER_COMPONENT, "tables"),
    ):
        if number > limit:
            raise MemoryTooLargeError(
                f"the component has {number} {what} in its core modules, and a slot holds {limit}; build it in one"
                " piece (composed components keep a memory each)",
                limit=f"{what} per component",
            )
    return (
        max((check_memory(memory, manifest, profile, "component") for memory in memories), default=0),
        max((check_table(table, profile, "component") for table in tables), default=0),
    )


def _import_names(component: Component) -> list[str]:
    names = [shown(f"{item.name} ({item.sort})") for item in component.imports]
    for instance in component.instances:
        if instance is not None:
            names += [shown(f"{instance.name} {function}") for function in instance.functions or ("",)]
    return [name.rstrip() for name in names]
