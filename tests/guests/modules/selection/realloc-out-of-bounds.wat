;; Tells the host to put the arguments outside its memory.
(module
  (memory (export "memory") 2)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 0xfffffff0)
  (func (export "quipu:policy/selector@1.0.0#configure") (param i32 i32) (result i32) i32.const 0)
  (func (export "quipu:policy/selector@1.0.0#refresh") (param i64 i32 i32))
  (func (export "quipu:policy/selector@1.0.0#select") (param i32 i32 i64 i64 i32 i32) (result i32)
    (i32.load (local.get 4)))
)
