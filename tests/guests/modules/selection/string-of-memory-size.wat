;; The text of its error is its whole memory, which it grew as far as the host allows.
(module
  (memory (export "memory") 1)
  ;; An error; its text begins at 0.
  (data (i32.const 16) "\01\00\00\00" "\00\00\00\00")
  ;; Every string and list goes to one place; the last one written is the list that the call is about.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func (export "quipu:policy/selector@1.0.0#configure") (param i32 i32) (result i32)
    ;; As much memory as the host allows, and all of it is the text.
    (loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (i32.store (i32.const 24) (i32.mul (memory.size) (i32.const 65536)))
    i32.const 16)
  (func (export "quipu:policy/selector@1.0.0#refresh") (param i64 i32 i32))
  (func (export "quipu:policy/selector@1.0.0#select") (param i32 i32 i64 i64 i32 i32) (result i32)
    (i32.load (local.get 4)))
)
