;; A wasi:http handler that answers 200 with "hello world\n" and no headers of its own.
;; It is written by hand so that nothing but the runtime is measured.
(module
  (import "wasi:http/types@0.2.12" "[constructor]fields" (func $new_fields (result i32)))
  (import "wasi:http/types@0.2.12" "[constructor]outgoing-response" (func $new_response (param i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-response.body" (func $response_body (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-body.write" (func $body_write (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[static]outgoing-body.finish" (func $body_finish (param i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.12" "[static]response-outparam.set"
    (func $outparam_set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.12" "[resource-drop]incoming-request" (func $drop_request (param i32)))
  (import "wasi:io/streams@0.2.12" "[method]output-stream.blocking-write-and-flush"
    (func $stream_write (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.12" "[resource-drop]output-stream" (func $drop_stream (param i32)))

  (memory (export "memory") 2)
  (data (i32.const 1024) "hello world\n")

  ;; Nothing is ever returned that needs room, so one fixed place is enough.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))

  ;; Results of calls are written at 16, 32, 48 and 64: a discriminant, then the handle 4 bytes further on.
  (func (export "wasi:http/incoming-handler@0.2.12#handle") (param $request i32) (param $outparam i32)
    (local $response i32) (local $body i32) (local $stream i32)
    (call $drop_request (local.get $request))
    (local.set $response (call $new_response (call $new_fields)))
    (call $response_body (local.get $response) (i32.const 16))
    (local.set $body (i32.load (i32.const 20)))
    (call $outparam_set (local.get $outparam) (i32.const 0) (local.get $response)
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (call $body_write (local.get $body) (i32.const 32))
    (local.set $stream (i32.load (i32.const 36)))
    (call $stream_write (local.get $stream) (i32.const 1024) (i32.const 12) (i32.const 48))
    (call $drop_stream (local.get $stream))
    (call $body_finish (local.get $body) (i32.const 0) (i32.const 0) (i32.const 64))))
