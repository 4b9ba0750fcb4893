;; SPDX-License-Identifier: Apache-2.0
;; deep-recursion: calls itself until the host's call stack limit is reached.
;; The addition after the call keeps it from being a tail call.
(module
  (memory (export "memory") 1)
  (func $down (param $n i64) (result i64)
    (i64.add (call $down (i64.add (local.get $n) (i64.const 1))) (local.get $n)))
  (func (export "_start") (drop (call $down (i64.const 0)))))
