;; Every call grows a table by 10,000 elements, and traps when that is refused.
(module
  (memory (export "memory") 2)
  (table $table 0 funcref)
  ;; Every string and list goes to one place; the last one written is the list that the call is about.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func (export "quipu:policy/selector@1.0.0#configure") (param i32 i32) (result i32) i32.const 0)
  (func (export "quipu:policy/selector@1.0.0#refresh") (param i64 i32 i32))
  (func (export "quipu:policy/selector@1.0.0#select") (param i32 i32 i64 i64 i32 i32) (result i32)
    (if (i32.eq (table.grow $table (ref.null func) (i32.const 10000)) (i32.const -1)) (then unreachable))
    (i32.load (local.get 4)))
)
