;; SPDX-License-Identifier: Apache-2.0
;; reactor-bad: a reactor whose answers are wrong; each must become a 502. The
;; first character of the request's query picks how:
;;   (default)  pointer and length lie outside the memory
;;   e          pointer inside, length reaches one byte past the end
;;   w          pointer + length wraps around 2^32
;;   z          length 0: no msgpack value at all
;;   g          0xc1, the one byte msgpack never uses
;;   t          a map cut off in the middle
;;   x          a correct response followed by stray bytes
;;   a          an array where the map should be
;;   s          status is a string
;;   r          status is 99999
;;   n          headers is a number
;;   c          a header value with CR LF in it
;;   d          arrays nested 60000 deep (bytes 0x91), for a recursive decoder
;;   o          a correct response: {"status": 200, "body": "ok"}
;; It finds the query by looking for the encoded key, which is enough here.
(module
  (memory (export "memory") 4)
  (data (i32.const 1024) "\c1\c1\c1\c1")                          ;; g
  (data (i32.const 1040) "\82\a6status\cc\c8\a4body\c4\20abc")     ;; t
  (data (i32.const 1072) "\81\a4body\a2okstray")                   ;; x
  (data (i32.const 1104) "\92\cc\c8\a2ok")                         ;; a
  (data (i32.const 1136) "\81\a6status\a3two")                     ;; s
  (data (i32.const 1168) "\81\a6status\ce\00\01\86\9f")            ;; r
  (data (i32.const 1200) "\81\a7headers\07")                       ;; n
  (data (i32.const 1232) "\81\a7headers\91\92\a3x-a\afb\0d\0ax-evil: yes!")   ;; c
  (data (i32.const 1280) "\82\a6status\cc\c8\a4body\a2ok")         ;; o

  (func (export "faas_alloc") (param $size i32) (result i32)
    ;; One request for each instance, at the second page. A request too big for
    ;; it is the host's to notice.
    (i32.const 65536))

  ;; (pointer << 32) | length
  (func $pack (param $ptr i32) (param $len i32) (result i64)
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $ptr)) (i64.const 32))
      (i64.extend_i32_u (local.get $len))))

  ;; First character of the query, or 0.
  (func $mode (param $ptr i32) (param $len i32) (result i32)
    (local $end i32)
    (local.set $end (i32.add (local.get $ptr) (local.get $len)))
    (block $none
      (loop $next
        ;; key (6 bytes), string header (1), first character (1)
        (br_if $none (i32.gt_u (i32.add (local.get $ptr) (i32.const 8)) (local.get $end)))
        (if (i32.and
              (i32.eq (i32.load (local.get $ptr)) (i32.const 0x657571a5))                    ;; "\a5que"
              (i32.eq (i32.load16_u offset=4 (local.get $ptr)) (i32.const 0x7972)))          ;; "ry"
          (then
            ;; 0xa0 is the empty string
            (br_if $none (i32.eq (i32.load8_u offset=6 (local.get $ptr)) (i32.const 0xa0)))
            (return (i32.load8_u offset=7 (local.get $ptr)))))
        (local.set $ptr (i32.add (local.get $ptr) (i32.const 1)))
        (br $next)))
    (i32.const 0))

  (func (export "faas_handle") (param $ptr i32) (param $len i32) (result i64)
    (local $mode i32)
    (local.set $mode (call $mode (local.get $ptr) (local.get $len)))
    (if (i32.eq (local.get $mode) (i32.const 0x65)) ;; e
      (then (return (call $pack (i32.const 262134) (i32.const 11)))))
    (if (i32.eq (local.get $mode) (i32.const 0x77)) ;; w
      (then (return (call $pack (i32.const 1280) (i32.const 0xffffff00)))))
    (if (i32.eq (local.get $mode) (i32.const 0x7a)) ;; z
      (then (return (call $pack (i32.const 1024) (i32.const 0)))))
    (if (i32.eq (local.get $mode) (i32.const 0x67)) ;; g
      (then (return (call $pack (i32.const 1024) (i32.const 4)))))
    (if (i32.eq (local.get $mode) (i32.const 0x74)) ;; t
      (then (return (call $pack (i32.const 1040) (i32.const 20)))))
    (if (i32.eq (local.get $mode) (i32.const 0x78)) ;; x
      (then (return (call $pack (i32.const 1072) (i32.const 14)))))
    (if (i32.eq (local.get $mode) (i32.const 0x61)) ;; a
      (then (return (call $pack (i32.const 1104) (i32.const 6)))))
    (if (i32.eq (local.get $mode) (i32.const 0x73)) ;; s
      (then (return (call $pack (i32.const 1136) (i32.const 12)))))
    (if (i32.eq (local.get $mode) (i32.const 0x72)) ;; r
      (then (return (call $pack (i32.const 1168) (i32.const 13)))))
    (if (i32.eq (local.get $mode) (i32.const 0x6e)) ;; n
      (then (return (call $pack (i32.const 1200) (i32.const 10)))))
    (if (i32.eq (local.get $mode) (i32.const 0x63)) ;; c
      (then (return (call $pack (i32.const 1232) (i32.const 31)))))
    (if (i32.eq (local.get $mode) (i32.const 0x64)) ;; d
      (then
        (memory.fill (i32.const 131072) (i32.const 0x91) (i32.const 60000))
        (return (call $pack (i32.const 131072) (i32.const 60000)))))
    (if (i32.eq (local.get $mode) (i32.const 0x6f)) ;; o
      (then (return (call $pack (i32.const 1280) (i32.const 18)))))
    (call $pack (i32.const 0xffff0000) (i32.const 4096))))
