"""The trial instance that a deploy makes of a component, before there is a request."""

from __future__ import annotations

from typing import Any

import pytest
import wasmtime
import wasmtime.component

from faas.config import HostConfig, PoolConfig
from faas.errors import StartFailedError
from faas.gateway.admission import Admission
from faas.gateway.code import Code, code_key
from faas.gateway.live import LiveTable
from faas.invocation import Deployment, Kind
from faas.manifest import manifest_from_builtins
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.runtime import Runtime

CONFIG = HostConfig(pool=PoolConfig(slots=2), guest_threads=1)
# Its start function makes a request with a body, and traps if TRAP.
STARTS = """(component
  (import "wasi:http/types@0.2.0" (instance $http
    (export "fields" (type $fields (sub resource)))
    (export "outgoing-request" (type $request (sub resource)))
    (export "outgoing-body" (type $body (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[constructor]outgoing-request" (func (param "headers" (own $fields)) (result (own $request))))
    (export "[method]outgoing-request.body" (func (param "self" (borrow $request)) (result (result (own $body)))))))
  (alias export $http "[constructor]fields" (func $fields))
  (alias export $http "[constructor]outgoing-request" (func $request))
  (alias export $http "[method]outgoing-request.body" (func $body))
  (core module $libc (memory (export "memory") 1))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (core func $fields (canon lower (func $fields)))
  (core func $request (canon lower (func $request)))
  (core func $body (canon lower (func $body) (memory $memory)))
  (core module $main
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "request" (func $request (param i32) (result i32)))
    (import "host" "body" (func $body (param i32 i32)))
    (func $start
      (call $body (call $request (call $fields)) (i32.const 0))
      (if (i32.const TRAP) (then unreachable)))
    (start $start))
  (core instance (instantiate $main (with "host" (instance
    (export "fields" (func $fields)) (export "request" (func $request)) (export "body" (func $body)))))))
"""


class _Codes:
    """The one function's code, always loaded."""

    def __init__(self, code: Code) -> None:
        self._code = code

    async def acquire(self, _deployment: Deployment) -> Code:
        return self._code

    def release(self, _code: Code) -> None: ...


async def prepare(*, trap: bool) -> None:
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
    text = STARTS.replace("TRAP", str(int(trap)))
    native = bytes(wasmtime.component.Component(engine, bytes(wasmtime.wat2wasm(text))).serialize())
    runtime = Runtime(CONFIG)
    template = runtime.load_component(native)
    deployment = Deployment("f", 1, Kind.HTTP, "0" * 64, "0" * 64, "", manifest_from_builtins({"name": "f"}))
    codes: Any = _Codes(Code(code_key(deployment), template, None, 1))
    admission = Admission(2, max_queue=2, queue_timeout_s=1)
    warm: Any = None  # nothing is served yet
    table = LiveTable(runtime, codes, admission, warm, n_workers=1, start_timeout_s=1)
    try:
        await table.prepare(deployment)
    finally:
        assert runtime.alive == 0
        template.close()
        runtime.close()


async def test_a_start_function_may_make_what_it_will_send_later() -> None:
    await prepare(trap=False)


async def test_a_start_function_that_traps_is_refused() -> None:
    with pytest.raises(StartFailedError, match="the module's start function trapped"):
        await prepare(trap=True)
