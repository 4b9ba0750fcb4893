;; SPDX-License-Identifier: Apache-2.0
;; start-loop: the start function never ends, so the time goes into
;; instantiation, before any export is called.
(module
  (memory (export "memory") 1)
  (func $spin (loop $again (br $again)))
  (func (export "_start"))
  (start $spin))
