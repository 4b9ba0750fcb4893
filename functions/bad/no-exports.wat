;; SPDX-License-Identifier: Apache-2.0
;; no-exports: a valid module that is neither a command nor a reactor.
(module
  (memory 1)
  (func $unused (result i32) (i32.const 1)))
