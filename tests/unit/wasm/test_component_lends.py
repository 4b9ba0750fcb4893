"""A component may lend several handles to one call: what engines get wrong first when they optimise host calls."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import wasmtime
import wasmtime.component

from faas.clock import SystemClock
from faas.config import HostConfig, PoolConfig
from faas.wasi.context import WasiContext
from faas.wasi.streams import DiscardedOutput, EmptyInput
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.runtime import Runtime

CONFIG = HostConfig(pool=PoolConfig(slots=2), guest_threads=1)

# Answers ok if its two directories are not the same object, and the first one is the same as itself.
GUEST = """(component
  (import "wasi:filesystem/types@0.2.0" (instance $types
    (export "descriptor" (type $d (sub resource)))
    (export "[method]descriptor.is-same-object"
      (func (param "self" (borrow $d)) (param "other" (borrow $d)) (result bool)))))
  (alias export $types "descriptor" (type $descriptor))
  (import "wasi:filesystem/preopens@0.2.0" (instance $preopens
    (alias outer 1 $descriptor (type $outer))
    (export "descriptor" (type $d (eq $outer)))
    (export "get-directories" (func (result (list (tuple (own $d) string)))))))
  (core module $library
    (memory (export "memory") 1)
    (global $at (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.get $at)
      (global.set $at (i32.add (global.get $at) (i32.const 64)))))
  (core instance $l (instantiate $library))
  (alias core export $l "memory" (core memory $memory))
  (alias core export $l "realloc" (core func $realloc))
  (alias export $preopens "get-directories" (func $get-directories))
  (alias export $types "[method]descriptor.is-same-object" (func $is-same-object))
  (core func $directories (canon lower (func $get-directories) (memory $memory) (realloc $realloc)))
  (core func $same (canon lower (func $is-same-object)))
  (core module $main
    (import "l" "memory" (memory 1))
    (import "f" "directories" (func $directories (param i32)))
    (import "f" "same" (func $same (param i32 i32) (result i32)))
    (func (export "run") (result i32) (local $list i32)
      (call $directories (i32.const 0))
      (local.set $list (i32.load (i32.const 0)))
      (i32.or
        (call $same (i32.load (local.get $list)) (i32.load offset=12 (local.get $list)))
        (i32.eqz (call $same (i32.load (local.get $list)) (i32.load (local.get $list)))))))
  (core instance $m (instantiate $main
    (with "l" (instance $l))
    (with "f" (instance (export "directories" (func $directories)) (export "same" (func $same))))))
  (alias core export $m "run" (core func $lifted))
  (func $run (result (result)) (canon lift (core func $lifted)))
  (instance $exported (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exported)))
"""


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    runtime = Runtime(CONFIG)
    yield runtime
    runtime.close()


async def test_a_call_may_be_lent_two_handles(runtime: Runtime) -> None:
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
    native = wasmtime.component.Component(engine, bytes(wasmtime.wat2wasm(GUEST))).serialize()
    template = runtime.load_component(bytes(native))
    wasi = WasiContext((), (), EmptyInput(), DiscardedOutput(), DiscardedOutput(), None, 1 << 20, SystemClock())
    fiber = runtime.component_fiber(wasi, memory_limit_bytes=1 << 20, cpu_limit_s=5.0)
    await fiber.instantiate(template)
    result = template.linker.node(("result", None, None))
    assert await fiber.call_export(template.run, b"run", (), result) == ("ok", None)
    fiber.close()
    template.close()
