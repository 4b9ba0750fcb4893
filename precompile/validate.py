"""Decides whether this host can run a module, from its declarations alone, and says what to do when it can't."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from faas.errors import (
    InvalidModuleError,
    ManifestError,
    MemoryTooLargeError,
    PreinitError,
    UnknownImportsError,
    UnknownKindError,
)
from faas.guest import signatures as service_signatures
from faas.invocation import Kind
from faas.manifest import Manifest
from faas.nn import signatures as nn_signatures
from faas.wasi import signatures
from faas.wasm.engine import GROW_FAILED_EXPORT, EngineProfile
from precompile.binary import (
    PAGE_BYTES,
    FuncType,
    Import,
    ItemKind,
    Layout,
    MemoryType,
    TableType,
    read_layout,
    shown,
)

WIZER_EXPORT = "wizer-initialize"

_MIB = 1024 * 1024
_MAX_TABLES = 2
# Of a hostile module's million names, a person and a line of JSON get this many.
MAX_SHOWN = 1000
_CORE_KINDS = (Kind.COMMAND, Kind.REACTOR)
_START = FuncType("", "")
_ALLOC = FuncType("i", "i")
_HANDLE = FuncType("ii", "I")

# What this host offers to guests: module -> name -> type.
_OFFERED: dict[str, dict[str, FuncType]] = {
    signatures.MODULE: {name: FuncType(*signature) for name, signature in signatures.SIGNATURES.items()},
    nn_signatures.MODULE: {name: FuncType(*signature) for name, signature in nn_signatures.SIGNATURES.items()},
    service_signatures.MODULE: {
        name: FuncType(*signature) for name, signature in service_signatures.SIGNATURES.items()
    },
}

GRANT_MODELS = 'grant it with `models = ["NAME"]` under [capabilities], or `faas deploy --model NAME`'
# What to do about a module name that we know but don't offer; prefixes end in '*'.
_HINTS: dict[str, str] = {
    signatures.MODULE: "WASI preview 1 has no such function; check the toolchain's version",
    nn_signatures.MODULE: GRANT_MODELS,
    service_signatures.MODULE: "docs/abi.md lists what faas_v1 offers; use the SDK of this host's release",
    "wasi_unstable": "built for an old WASI snapshot; rebuild for wasm32-wasip1",
    "wasi": "WASI threads are not offered; build without threads (wasm32-wasip1)",
    "env": "symbols the linker left undefined; link in the library or object file that defines them",
    "wasi:*": "the core of a component; make a component of it with `wasm-tools component new`",
    "wasix_*": "WASIX is not offered; build for wasm32-wasip1",
    "wbg": "built for a browser by wasm-bindgen; build for wasm32-wasip1",
    "__wbindgen*": "built for a browser by wasm-bindgen; build for wasm32-wasip1",
    "./*": "built for a JavaScript bundler; build for wasm32-wasip1",
    "go": "built with GOOS=js; build with GOOS=wasip1",
    "gojs": "built with GOOS=js; build with GOOS=wasip1",
    "GOT.*": "dynamic linking is not offered; link statically",
}
NO_HINT = "nothing on this host offers them; remove the import or link in a definition"


class ModuleFacts(msgspec.Struct, frozen=True):
    """
    What is known about a module that this host can run.

    ``imports`` are ``module.name`` texts and ``exports`` plain names, at most a thousand each; ``preinit`` names the
    export that makes the snapshot ('' for none); ``has_initialize``: a reactor's ``_initialize`` is to be called once
    before anything else.
    """

    kind: Kind
    imports: tuple[str, ...]
    exports: tuple[str, ...]
    memory_min_bytes: int
    table_min_elements: int
    preinit: str
    has_initialize: bool
    has_start: bool
    n_core_modules: int = 1
    core_bytes: int = 0


def validate(wasm: bytes, manifest: Manifest, profile: EngineProfile) -> ModuleFacts:
    """
    Return what *wasm* is; function bodies are not looked at (the compiler does that).

    Raises: NotWasmError, InvalidModuleError, UnknownImportsError, UnknownKindError,
    ManifestError, MemoryTooLargeError, PreinitError; each message names what to do next.
    """
    layout = read_layout(wasm)
    _check_imports(layout.imports, manifest)
    _check_reserved(layout)
    kind = _kind_of(layout, manifest)
    _check_reuse(kind, manifest)
    memory_min_bytes = _check_memories(layout, manifest, profile)
    table_min_elements = _check_tables(layout, profile)
    return ModuleFacts(
        kind=kind,
        imports=tuple(_import_name(item) for item in layout.imports[:MAX_SHOWN]),
        exports=tuple(shown(export.name) for export in layout.exports[:MAX_SHOWN]),
        memory_min_bytes=memory_min_bytes,
        table_min_elements=table_min_elements,
        preinit=_preinit_of(layout, manifest),
        has_initialize=_is_func(layout, "_initialize", _START),
        has_start=layout.has_start,
    )


def _check_imports(imports: Iterable[Import], manifest: Manifest) -> None:
    """Refuse what this host does not offer, all of it in one message, each with what would help."""
    unknown: dict[str, list[str]] = {}
    names: list[str] = []
    n_unknown = 0
    for item in imports:
        offered = _OFFERED.get(item.module, {}).get(item.name)
        lacking = _lacking(item, manifest)
        granted = not lacking
        if item.kind is ItemKind.FUNC and item.type == offered and granted:
            continue
        n_unknown += 1
        if n_unknown > MAX_SHOWN:
            continue
        name = _import_name(item)
        names.append(name)
        hint = (offered and lacking) or _hint(item.module)
        if item.kind is not ItemKind.FUNC:
            name += f" ({item.kind.value})"
        elif offered is not None and granted:
            name += f" {item.type}"
            hint = f"the signature is wrong, it should be {offered}; rebuild with a current toolchain"
        unknown.setdefault(hint, []).append(name)
    if unknown:
        listed = "; ".join(f"{', '.join(dict.fromkeys(group))} ({hint})" for hint, group in unknown.items())
        if n_unknown > MAX_SHOWN:
            listed += f"; and {n_unknown - MAX_SHOWN} more"
        raise UnknownImportsError(
            f"the module imports what this host does not offer: {listed}",
            imports=list(dict.fromkeys(names)),
        )


def _lacking(item: Import, manifest: Manifest) -> str:
    """Return what has to be done before the manifest grants *item*; "" if it does."""
    if item.module == nn_signatures.MODULE:
        return "" if manifest.capabilities.models else GRANT_MODELS
    if item.module == service_signatures.MODULE:
        lacking = service_signatures.lacking(item.name, manifest.capabilities)
        return f"grant it with `{lacking}` under [capabilities] of function.toml" if lacking else ""
    return ""


def _check_reserved(layout: Layout) -> None:
    """Refuse exports under names that mean something to this host and are not that."""
    own = GROW_FAILED_EXPORT.decode()
    for export in layout.exports:
        if export.name.startswith(own):
            raise InvalidModuleError(
                f"the module exports {shown(export.name)!r}, and names that begin with {own!r} are this host's own;"
                " rename it"
            )
        if export.name == "_initialize" and export.type != _START:
            found = export.type or f"a {export.kind.value}"
            raise UnknownKindError(
                f"the module exports _initialize as {found}, and it is called as {_START} before the first request;"
                " give it that type or another name"
            )
        if export.name == "memory" and export.kind is not ItemKind.MEMORY:
            raise UnknownKindError(
                f"the module exports a {export.kind.value} as `memory`; export the memory under that name, or rename it"
            )


def _import_name(item: Import) -> str:
    return shown(f"{item.module}.{item.name}")


def _hint(module: str) -> str:
    for known, hint in _HINTS.items():
        if module == known or (known.endswith("*") and module.startswith(known[:-1])):
            return hint
    return NO_HINT


def _kind_of(layout: Layout, manifest: Manifest) -> Kind:
    """Return the kind that the exports make, or that the manifest chose among them."""
    fits = [kind for kind, missing in ((k, _missing(layout, k)) for k in _CORE_KINDS) if not missing]
    if manifest.kind:
        if manifest.kind == Kind.HTTP.value:
            raise UnknownKindError(
                'function.toml says kind = "http", which is for components, and this is a core module; make a component'
                " of it with `wasm-tools component new`, or leave `kind` out"
            )
        wanted = Kind(manifest.kind)
        if wanted not in fits:
            raise UnknownKindError(
                f'function.toml says kind = "{wanted.value}" but the module lacks'
                f" {' and '.join(_missing(layout, wanted))}; export it or change `kind`"
            )
        return _with_memory(layout, wanted)
    if len(fits) > 1:
        raise UnknownKindError(
            'the module fits two kinds, command (_start) and reactor (faas_handle); set kind = "command" or'
            ' kind = "reactor" in function.toml'
        )
    if not fits:
        nearest = min(_CORE_KINDS, key=lambda kind: len(_missing(layout, kind)))
        lacks = " and ".join(_missing(layout, nearest))
        raise UnknownKindError(
            f"the module is neither a command nor a reactor: for a {nearest.value} it lacks {lacks}; export `_start`"
            " (a program with main) or `memory`, `faas_alloc` and `faas_handle` (the SDKs in functions/sdk do)"
        )
    return _with_memory(layout, fits[0])


def _check_reuse(kind: Kind, manifest: Manifest) -> None:
    if manifest.warm.reuse > 1 and kind is Kind.COMMAND:
        raise ManifestError(
            f"warm.reuse is {manifest.warm.reuse}, but a command's instance ends with its request, since main returns;"
            " leave warm.reuse out, or build a reactor (the SDKs in functions/sdk do)"
        )


def _with_memory(layout: Layout, kind: Kind) -> Kind:
    if layout.imports and layout.export("memory", ItemKind.MEMORY) is None:
        raise UnknownKindError(
            "the module imports WASI functions but exports no memory for them to use; export it as `memory`"
        )
    return kind


def _missing(layout: Layout, kind: Kind) -> list[str]:
    """Return what a module lacks to be of *kind*, as words for a message."""
    wanted = {"_start": _START} if kind is Kind.COMMAND else {"faas_alloc": _ALLOC, "faas_handle": _HANDLE}
    missing = [f"{name} {wants}" for name, wants in wanted.items() if not _is_func(layout, name, wants)]
    if kind is Kind.REACTOR and layout.export("memory", ItemKind.MEMORY) is None:
        missing.append("memory")
    return missing


def _is_func(layout: Layout, name: str, wanted: FuncType) -> bool:
    export = layout.export(name)
    return export is not None and export.type == wanted


def _check_memories(layout: Layout, manifest: Manifest, profile: EngineProfile) -> int:
    """Return the memory's first size in bytes, once it is known to fit into a slot and the manifest's limit."""
    if len(layout.memories) > 1:
        raise InvalidModuleError(
            f"the module has {len(layout.memories)} memories and this host gives each instance one; build without"
            " multi-memory"
        )
    return check_memory(layout.memories[0], manifest, profile, "module") if layout.memories else 0


def check_memory(memory: MemoryType, manifest: Manifest, profile: EngineProfile, what: str) -> int:
    """
    Return the first size in bytes of a memory of *what* ("module", "component"), once it is known to fit.

    Raises: InvalidModuleError, MemoryTooLargeError.
    """
    if memory.is_64:
        raise InvalidModuleError(f"the {what} has a 64-bit memory and this host runs 32-bit ones; build for wasm32")
    if memory.is_shared:
        raise InvalidModuleError(f"the {what} has a shared memory and this host has no threads; build without them")
    wanted = memory.min_pages * PAGE_BYTES
    if wanted > profile.max_memory_bytes:
        raise MemoryTooLargeError(
            f"the {what}'s memory starts at {_mib(wanted)} MiB, over this host's pool.max_memory_bytes"
            f" ({_mib(profile.max_memory_bytes)} MiB); build it with a smaller initial memory, or ask the operator"
            " to raise that setting",
            wanted_bytes=wanted,
            limit_bytes=profile.max_memory_bytes,
            limit="pool.max_memory_bytes",
        )
    if wanted > manifest.limits.memory_bytes:
        raise MemoryTooLargeError(
            f"the {what}'s memory starts at {_mib(wanted)} MiB, over its limits.memory_bytes"
            f" ({_mib(manifest.limits.memory_bytes)} MiB); raise memory_bytes under [limits] in function.toml, or"
            " build with a smaller initial memory",
            wanted_bytes=wanted,
            limit_bytes=manifest.limits.memory_bytes,
            limit="limits.memory_bytes",
        )
    return wanted


def _check_tables(layout: Layout, profile: EngineProfile) -> int:
    """Return the largest table's first size, once all are known to fit into a slot."""
    if len(layout.tables) > _MAX_TABLES:
        raise MemoryTooLargeError(
            f"the module has {len(layout.tables)} tables and a slot holds {_MAX_TABLES}; merge them",
            limit="tables per module",
        )
    return max((check_table(table, profile, "module") for table in layout.tables), default=0)


def check_table(table: TableType, profile: EngineProfile, what: str) -> int:
    """
    Return the first size in elements of a table of *what*, once it is known to fit.

    Raises: MemoryTooLargeError.
    """
    if table.min_elements > profile.max_table_elements:
        raise MemoryTooLargeError(
            f"the {what}'s table starts at {table.min_elements} elements, over this host's pool.max_table_elements"
            f" ({profile.max_table_elements}); ask the operator to raise that setting",
            wanted_elements=table.min_elements,
            limit_elements=profile.max_table_elements,
            limit="pool.max_table_elements",
        )
    return table.min_elements


def _preinit_of(layout: Layout, manifest: Manifest) -> str:
    """Return the export that initialises the snapshot: the manifest's, else wizer's usual one if there, else ''."""
    if not manifest.preinit:
        return WIZER_EXPORT if _is_func(layout, WIZER_EXPORT, _START) else ""
    if _is_func(layout, manifest.preinit, _START):
        return manifest.preinit
    export = layout.export(manifest.preinit)
    found = f"is {export.type}" if export else "is not exported"
    raise PreinitError(
        f"preinit = {manifest.preinit!r}: that function {found}, and it must be an export of type {_START}; fix the"
        " name in function.toml or export it"
    )


def _mib(size: int) -> str:
    return f"{size / _MIB:g}"
