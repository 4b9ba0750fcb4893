"""Components as text, for what the tests of this folder need of them."""

from __future__ import annotations

from wasmtime import wat2wasm

STREAMS = """
  (import "wasi:io/error@0.2.3" (instance $errors (export "error" (type (sub resource)))))
  (alias export $errors "error" (type $error))
  (import "wasi:io/streams@0.2.3" (instance $streams
    (export "input-stream" (type $in (sub resource)))
    (export "output-stream" (type $out (sub resource)))
    (alias outer 1 $error (type $e))
    (export "error" (type $e2 (eq $e)))
    (type $cases (variant (case "last-operation-failed" (own $e2)) (case "closed")))
    (export "stream-error" (type $failed (eq $cases)))
    (type $bytes (list u8))
    (type $some (result $bytes (error $failed)))
    (export "[method]input-stream.read" (func (param "self" (borrow $in)) (param "len" u64) (result $some)))
    (type $done (result (error $failed)))
    (export "[method]output-stream.write" (func (param "self" (borrow $out)) (param "contents" $bytes) (result $done)))
  ))
  (alias export $streams "input-stream" (type $in))
  (alias export $streams "output-stream" (type $out))
  (alias export $streams "[method]input-stream.read" (func $read))
  (alias export $streams "[method]output-stream.write" (func $write))
"""
LIBC = """
  (core module $libc
    (memory (export "memory") 2)
    (global $next (mut i32) (i32.const 65536))
    (func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32)
        (result i32)
      (if (local.get $old) (then (return (local.get $old))))
      (global.get $next)
      (global.set $next
        (i32.add (global.get $next) (i32.and (i32.const -8) (i32.add (local.get $size) (i32.const 7))))))
  )
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "cabi_realloc" (core func $realloc))
  (core func $in_read (canon lower (func $read) (memory $memory) (realloc $realloc)))
  (core func $out_write (canon lower (func $write) (memory $memory)))
"""
# Copies what it reads to an odd address and writes it from there.
MAIN = """
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "host" "read" (func $read (param i32 i64 i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (func (export "run") (param $in i32) (param $out i32) (result i32)
      (call $read (local.get $in) (i64.const 10000) (i32.const 16))
      (if (i32.load8_u (i32.const 16)) (then (return (i32.const -1))))
      (memory.copy (i32.const 1001) (i32.load (i32.const 20)) (i32.load (i32.const 24)))
      (call $write (local.get $out) (i32.const 1001) (i32.load (i32.const 24)) (i32.const 32))
      (i32.load (i32.const 24)))
    (func (export "write-at") (param $out i32) (param $at i32) (param $size i32)
      (call $write (local.get $out) (local.get $at) (local.get $size) (i32.const 32)))
  )
  (core instance $main (instantiate $main
    (with "libc" (instance $libc))
    (with "host" (instance (export "read" (func $in_read)) (export "write" (func $out_write))))))
  (alias core export $main "run" (core func $run))
  (alias core export $main "write-at" (core func $write_at))
  (func (export "run") (param "in" (own $in)) (param "out" (own $out)) (result u32)
    (canon lift (core func $run)))
  (func (export "write-at") (param "out" (own $out)) (param "at" u32) (param "size" u32)
    (canon lift (core func $write_at)))
"""


def component(*parts: str) -> bytes:
    """Return the component that *parts* make up."""
    return bytes(wat2wasm(f"(component {''.join(parts)})"))


COPY = component(STREAMS, LIBC, MAIN)
"""Reads up to 10,000 bytes from a stream and writes them to another one, from an odd address."""

_HANDLER = """
  (import "wasi:http/types@VERSION" (instance $http
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $http "incoming-request" (type $request))
  (alias export $http "response-outparam" (type $outparam))
  (core module $handler CORE (func (export "handle") (param i32 i32)))
  (core instance $handler (instantiate $handler))
  (alias core export $handler "handle" (core func $core_handle))
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $core_handle)))
  (component $shim
    (import "request" (type $request (sub resource)))
    (import "outparam" (type $outparam (sub resource)))
    (import "handle" (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))))
    (export $r "incoming-request" (type $request))
    (export $o "response-outparam" (type $outparam))
    (export "handle" (func $handle) (func (param "request" (own $r)) (param "response-out" (own $o)))))
  (instance $exported (instantiate $shim
    (with "request" (type $request)) (with "outparam" (type $outparam)) (with "handle" (func $handle))))
  (export "wasi:http/incoming-handler@VERSION" (instance $exported))
"""


def handler(*before: str, core: str = "", version: str = "0.2.7") -> bytes:
    """Return a component that exports an HTTP handler, with *before* in front of it and *core* in its core module."""
    return component(*before, _HANDLER.replace("VERSION", version).replace("CORE", core))
