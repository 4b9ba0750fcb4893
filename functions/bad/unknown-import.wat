;; SPDX-License-Identifier: Apache-2.0
;; unknown-import: needs a host function that no host provides.
(module
  (import "env" "mystery" (func $mystery (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (drop (call $mystery (i32.const 7)))))
