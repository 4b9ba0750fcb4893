"""A precompile job of a component: stored like a module's, loadable in a pool, refused with nothing left behind."""

from __future__ import annotations

import ctypes
from pathlib import Path

import component_wat as wat
import pytest
from wasm_bytes import FUNCTIONS, compile_bomb, section
from wasmtime import Engine
from wasmtime import _bindings as ffi
from wasmtime.component import Component

from faas.artifacts.store import ArtifactStore
from faas.config import HostConfig, PoolConfig, PrecompileConfig
from faas.errors import CompileLimitError, FaasError, InvalidModuleError, UnknownImportsError, UnknownKindError
from faas.invocation import Kind
from faas.manifest import Manifest
from faas.wasm.engine import MEMORY_EXPORT, ROOM_EXPORT, EngineProfile, new_engine
from precompile.run import precompile, recompile

FUNCTION = Manifest(name="f")
CONFIG = HostConfig(pool=PoolConfig(slots=2))
HELLO = (FUNCTIONS / "http" / "hello.wasm").read_bytes()
ECHO = (FUNCTIONS / "http" / "echo.wasm").read_bytes()
HANDED_ON = wat.handler(
    f"(component $inside {wat.STREAMS})",
    wat.STREAMS.replace("@0.2.3", "@0.2.4"),
    wat.LIBC,
    '(instance (instantiate $inside (with "wasi:io/error@0.2.3" (instance $errors))'
    ' (with "wasi:io/streams@0.2.3" (instance $streams))))',
)
"""Hands its streams on to a component inside, so its byte lists have to stay lists."""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def load(store: ArtifactStore, key: str) -> tuple[Engine, Component]:
    """Load stored native code as a worker does."""
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=True)
    return engine, Component.deserialize_file(engine, str(store.open_native(key)))


def exports(store: ArtifactStore, key: str) -> list[str]:
    engine, component = load(store, key)
    return list(component.type.exports(engine))


def has_export(component: Component, name: str) -> bool:
    raw = name.encode()
    text = ctypes.create_string_buffer(raw)
    index = ffi.wasmtime_component_get_export_index(component.ptr(), None, text, len(raw))
    if index:
        ffi.wasmtime_component_export_index_delete(index)
    return bool(index)


async def test_a_component_is_stored_and_loads_in_a_pool(store) -> None:
    stages: list[str] = []

    made = await precompile(HELLO, FUNCTION, CONFIG, store, on_progress=stages.append)

    assert stages == ["validate", "compile", "store"]
    assert made.facts.kind is Kind.HTTP
    assert store.wasm_path(made.wasm_digest).read_bytes() == HELLO
    _, component = load(store, made.artifact_key)
    # The engine matches names by release.
    assert has_export(component, "wasi:http/incoming-handler@0.2.12")
    assert has_export(component, "wasi:http/incoming-handler@0.2.0")


async def test_the_exports_of_the_native_code_say_how_bytes_are_handed_over(store) -> None:
    made = await precompile(ECHO, FUNCTION, CONFIG, store)

    handler, memory, room = exports(store, made.artifact_key)
    assert handler.startswith("wasi:http/incoming-handler@0.2.")
    number = memory.removeprefix(MEMORY_EXPORT)
    assert number.isdecimal()
    assert room == f"{ROOM_EXPORT}1-cabi-realloc{number}"


async def test_byte_lists_stay_lists_where_the_changed_component_is_not_valid(store) -> None:
    made = await precompile(HANDED_ON, FUNCTION, CONFIG, store)

    assert exports(store, made.artifact_key) == ["wasi:http/incoming-handler@0.2.7"]


async def test_a_component_that_is_stored_is_not_compiled_again(store) -> None:
    first = await precompile(HELLO, FUNCTION, CONFIG, store)
    stages: list[str] = []

    again = await recompile(first.wasm_digest, FUNCTION, CONFIG, store, on_progress=stages.append)

    assert again.reused
    assert again.artifact_key == first.artifact_key
    assert stages == ["validate", "store"]


BODY = "(func (param i32) (result i32) local.get 0)"
OTHER_HANDLER = """
  (core module $m (func (export "handle") (param i32)))
  (core instance $m (instantiate $m))
  (alias core export $m "handle" (core func $core))
  (func $handle (param "request" u32) (canon lift (core func $core)))
  (instance $i (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $i))
"""


@pytest.mark.parametrize(
    ("wasm", "error", "why"),
    [
        (
            wat.handler(core=BODY).replace(b"\x20\x00\x0b", b"\x01\x01\x0b"),
            InvalidModuleError,
            r"the component is not valid: .* at offset ",
        ),
        (wat.component(OTHER_HANDLER), UnknownKindError, r"no function `handle` that takes the incoming-request"),
        (
            wat.component('(instance $i) (export "wasi:http/incoming-handler@0.2.0" (instance $i))'),
            UnknownKindError,
            "no function `handle`",
        ),
        (wat.handler('(import "a:b/c@1.0.0" (instance))'), UnknownImportsError, r"a:b/c@1\.0\.0"),
        ((FUNCTIONS / "http" / "program.wasm").read_bytes(), UnknownKindError, "`faas run`"),
        (HELLO[:-200], InvalidModuleError, "not valid at offset"),
    ],
    ids=["body", "other-handler", "no-handler", "import", "program", "cut"],
)
async def test_a_refused_component_gets_its_own_error_and_leaves_nothing(
    store, wasm: bytes, error: type[FaasError], why: str
) -> None:
    with pytest.raises(error, match=why):
        await precompile(wasm, FUNCTION, CONFIG, store)

    base = store.scratch.parent
    assert [path for path in base.rglob("*") if path.is_file()] == []


async def test_a_component_that_takes_too_long_to_compile_names_the_limit(store) -> None:
    limited = HostConfig(pool=CONFIG.pool, precompile=PrecompileConfig(cpu_s=1))
    with pytest.raises(CompileLimitError, match=r"precompile\.cpu_s"):
        await precompile(HELLO + section(1, compile_bomb(1, 500_000)), FUNCTION, limited, store)
