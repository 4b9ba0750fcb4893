;; SPDX-License-Identifier: Apache-2.0
;; big-memory: asks for 2 GiB (32768 pages of 64 KiB) before it runs, so a
;; memory limit must refuse it at instantiation. Answers if it is let in.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 32768)
  (data (i32.const 16) "Content-Type: text/plain\n\ngot 2 GiB\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 36))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
