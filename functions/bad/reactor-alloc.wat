;; SPDX-License-Identifier: Apache-2.0
;; reactor-alloc: faas_alloc returns an address far outside the memory, where
;; the host must not write.
(module
  (memory (export "memory") 1)
  (func (export "faas_alloc") (param i32) (result i32) (i32.const 0xfffffff0))
  (func (export "faas_handle") (param i32 i32) (result i64) (i64.const 0)))
