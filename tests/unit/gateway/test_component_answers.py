"""Components whose answers no client could read: their replies are ones it can."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import wasmtime
import wasmtime.component
from whole_gateways import whole_gateway
from wires import Served

from faas.config import HostConfig, PoolConfig
from faas.invocation import Kind
from faas.wasm.components import ComponentTemplate
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.runtime import Runtime

CONFIG = HostConfig(pool=PoolConfig(slots=2), guest_threads=1)
# Asks for the authority; answers with STATUS and a content-length of 5, and never asks for the body; then COUNTs on
# and WAITs a millisecond.
GUEST = """(component
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $p (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $p))))))
  (alias export $poll "pollable" (type $pollable))
  (alias export $poll "[method]pollable.block" (func $block))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $outer))
    (export "pollable" (type $p (eq $outer)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
  (alias export $clock "subscribe-duration" (func $subscribe))
  (import "wasi:http/types@0.2.0" (instance $http
    (export "fields" (type $fields (sub resource)))
    (export "incoming-request" (type $request (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "response-outparam" (type $outparam (sub resource)))
    (type $h (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
    (export "header-error" (type $header-error (eq $h)))
    (type $e (variant (case "DNS-timeout")))
    (export "error-code" (type $error-code (eq $e)))
    (export "[method]incoming-request.authority" (func (param "self" (borrow $request)) (result (option string))))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[method]fields.append" (func (param "self" (borrow $fields)) (param "name" string)
      (param "value" (list u8)) (result (result (error $header-error)))))
    (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $response))))
    (export "[method]outgoing-response.set-status-code"
      (func (param "self" (borrow $response)) (param "status-code" u16) (result (result))))
    (export "[static]response-outparam.set" (func (param "param" (own $outparam))
      (param "response" (result (own $response) (error $error-code)))))))
  (alias export $http "incoming-request" (type $request))
  (alias export $http "response-outparam" (type $outparam))
  (alias export $http "[method]incoming-request.authority" (func $authority))
  (alias export $http "[constructor]fields" (func $fields))
  (alias export $http "[method]fields.append" (func $append))
  (alias export $http "[constructor]outgoing-response" (func $response))
  (alias export $http "[method]outgoing-response.set-status-code" (func $status))
  (alias export $http "[static]response-outparam.set" (func $set))
  (core module $libc (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))
  (core func $authority (canon lower (func $authority) (memory $memory) (realloc $realloc)))
  (core func $block (canon lower (func $block)))
  (core func $subscribe (canon lower (func $subscribe)))
  (core func $fields (canon lower (func $fields)))
  (core func $append (canon lower (func $append) (memory $memory)))
  (core func $response (canon lower (func $response)))
  (core func $status (canon lower (func $status)))
  (core func $set (canon lower (func $set)))
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "authority" (func $authority (param i32 i32)))
    (import "host" "block" (func $block (param i32)))
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "append" (func $append (param i32 i32 i32 i32 i32 i32)))
    (import "host" "response" (func $response (param i32) (result i32)))
    (import "host" "status" (func $status (param i32 i32) (result i32)))
    (import "host" "set" (func $set (param i32 i32 i32)))
    (data (i32.const 0) "content-length5")
    (func (export "handle") (param $request i32) (param $outparam i32)
      (local $fields i32) (local $response i32) (local $i i32)
      (call $authority (local.get $request) (i32.const 64))
      (local.set $fields (call $fields))
      (call $append (local.get $fields) (i32.const 0) (i32.const 14) (i32.const 14) (i32.const 1) (i32.const 32))
      (local.set $response (call $response (local.get $fields)))
      (drop (call $status (local.get $response) (i32.const STATUS)))
      (call $set (local.get $outparam) (i32.const 0) (local.get $response))
      (loop $more
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $i) (i32.const COUNT))))
      (if (i32.const WAIT) (then (call $block (call $subscribe (i64.const 1000000)))))))
  (core instance $main (instantiate $main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "authority" (func $authority))
      (export "block" (func $block)) (export "subscribe" (func $subscribe)) (export "fields" (func $fields))
      (export "append" (func $append)) (export "response" (func $response)) (export "status" (func $status))
      (export "set" (func $set))))))
  (alias core export $main "handle" (core func $handle))
  (func $lifted (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $handle)))
  (instance $exported (export "handle" (func $lifted)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $exported)))
"""


@asynccontextmanager
async def gateway(*, status: int = 200, count: int = 0, wait: bool = False) -> AsyncIterator[tuple[Served, Any]]:
    """A connection to a gateway with the guest at ``/f``, and its template."""
    text = GUEST.replace("STATUS", str(status)).replace("COUNT", str(count)).replace("WAIT", str(int(wait)))
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
    native = bytes(wasmtime.component.Component(engine, bytes(wasmtime.wat2wasm(text))).serialize())
    runtime = Runtime(CONFIG)
    template = runtime.load_component(native)
    try:
        async with whole_gateway(runtime, template, Kind.HTTP, permits=2) as one:
            yield one, template
        assert runtime.alive == 0
    finally:
        template.close()
        runtime.close()


async def ask(one: Served, method: str = "GET") -> tuple[int, list[bytes], bytes]:
    """Return the status, what is said of the length, and the body."""
    reply = await one.send(f"{method} /f HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    head, _, body = reply.partition(b"\r\n\r\n")
    said = re.findall(rb"\r\n(?:content-length|transfer-encoding): ([^\r]*)", head, re.IGNORECASE)
    return int(head.split()[1]), said, body


@pytest.mark.parametrize("wait", [False, True])
async def test_a_body_that_was_announced_and_never_asked_for_is_empty(wait: bool) -> None:
    async with gateway(wait=wait) as (one, _):
        for _ in range(2):
            assert await ask(one) == (200, [b"0"], b"")


@pytest.mark.parametrize("wait", [False, True])
async def test_an_announced_length_stays_where_there_is_no_body(wait: bool) -> None:
    async with gateway(wait=wait) as (one, _):
        assert await ask(one, "HEAD") == (200, [b"5"], b"")


@pytest.mark.parametrize("wait", [False, True])
async def test_no_content_has_no_length(wait: bool) -> None:
    async with gateway(status=204, wait=wait) as (one, _):
        assert await ask(one) == (204, [], b"")


@pytest.mark.parametrize("status", [100, 101, 199])
async def test_an_interim_status_is_no_answer(status: int) -> None:
    async with gateway(status=status) as (one, _):
        answered, _, body = await ask(one)
        assert answered == 502
        assert b"says that its response is still to come; set 200 or more" in body


async def test_a_host_that_is_no_text_is_shown_as_well_as_can_be() -> None:
    async with gateway() as (one, _):
        assert (await one.send(b"GET /f HTTP/1.1\r\nHost: \xff\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_handler_that_computes_begins_in_the_pool_next_time() -> None:
    async with gateway(count=100_000_000) as (one, template):
        assert isinstance(template, ComponentTemplate)
        assert (await ask(one))[0] == 200
        assert list(template.slow) == [b"handle"]
