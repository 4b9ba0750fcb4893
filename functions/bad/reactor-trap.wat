;; SPDX-License-Identifier: Apache-2.0
;; reactor-trap: faas_handle executes unreachable.
(module
  (memory (export "memory") 16)
  (func (export "faas_alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "faas_handle") (param i32 i32) (result i64) unreachable))
