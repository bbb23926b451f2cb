;; Refuses an empty config. A config that begins with `x` it takes, and then answers no candidate.
(module
  (memory (export "memory") 2)
  ;; An error; its text begins at 64 and has 24 bytes.
  (data (i32.const 16) "\01\00\00\00" "\40\00\00\00" "\18\00\00\00")
  (data (i32.const 64) "say which shard you like")
  (global $first (mut i32) (i32.const 0))
  ;; Every string and list goes to one place; the last one written is the list that the call is about.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func (export "quipu:policy/selector@1.0.0#configure") (param i32 i32) (result i32)
    (if (i32.eqz (local.get 1)) (then (return (i32.const 16))))
    (global.set $first (i32.load8_u (local.get 0)))
    i32.const 0)
  (func (export "quipu:policy/selector@1.0.0#refresh") (param i64 i32 i32))
  (func (export "quipu:policy/selector@1.0.0#select") (param i32 i32 i64 i64 i32 i32) (result i32)
    (if (i32.eq (global.get $first) (i32.const 120)) (then (return (i32.const -1))))
    (i32.load (local.get 4)))
)
