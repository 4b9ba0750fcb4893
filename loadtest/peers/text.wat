;; Where the answer lies in a fresh instance's memory: address in the high half, length in the low one.
(module
  (memory (export "memory") 2)
  (data (i32.const 1024) "hello world\n")
  (func (export "run") (result i64)
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 12))))
