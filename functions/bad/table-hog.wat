;; SPDX-License-Identifier: Apache-2.0
;; table-hog: grows a table, whose elements cost the host some 8 bytes each but
;; count in no memory limit. Answers "refused" once table.grow fails, or "not
;; refused" at the declared maximum of 64 Mi elements (some 512 MiB).
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (table $t 0 67108864 funcref)
  (data (i32.const 16) "Content-Type: text/plain\n\nrefused\n")
  (data (i32.const 64) "Content-Type: text/plain\n\nnot refused\n")
  (func $say (param $ptr i32) (param $len i32)
    (i32.store (i32.const 0) (local.get $ptr))
    (i32.store (i32.const 4) (local.get $len))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    (loop $more
      (if (i32.eq (table.size $t) (i32.const 67108864))
        (then (call $say (i32.const 64) (i32.const 38)) (return)))
      (br_if $more
        (i32.ne (table.grow $t (ref.null func) (i32.const 65536)) (i32.const -1))))
    (call $say (i32.const 16) (i32.const 34))))
