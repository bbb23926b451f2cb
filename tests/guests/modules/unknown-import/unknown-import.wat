;; Imports an interface that the host does not know, and calls it in select.
(module
  (import "guests:hostile/exfiltrate" "send" (func $send (param i32 i32)))
  (memory (export "memory") 2)
  ;; Every string and list goes to one place; the last one written is the list that the call is about.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func (export "quipu:policy/selector@1.0.0#configure") (param i32 i32) (result i32) i32.const 0)
  (func (export "quipu:policy/selector@1.0.0#refresh") (param i64 i32 i32))
  (func (export "quipu:policy/selector@1.0.0#select") (param i32 i32 i64 i64 i32 i32) (result i32)
    (call $send (local.get 4) (local.get 5))
    (i32.load (local.get 4)))
)
