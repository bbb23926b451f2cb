;; Grows its memory by one page until that is refused, then answers well: a refusal is no fault.
(module
  (memory (export "memory") 2)
  ;; Every string and list goes to one place; the last one written is the list that the call is about.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func (export "quipu:policy/selector@1.0.0#configure") (param i32 i32) (result i32) i32.const 0)
  (func (export "quipu:policy/selector@1.0.0#refresh") (param i64 i32 i32))
  (func (export "quipu:policy/selector@1.0.0#select") (param i32 i32 i64 i64 i32 i32) (result i32)
    (loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (i32.load (local.get 4)))
)
