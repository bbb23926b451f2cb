;; Loops for ever when the host gives the text of its error back.
(module
  (memory (export "memory") 2)
  ;; An error; its text begins at 64 and has 4 bytes.
  (data (i32.const 16) "\01\00\00\00" "\40\00\00\00" "\04\00\00\00")
  (data (i32.const 64) "fine")
  ;; Every string and list goes to one place; the last one written is the list that the call is about.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func (export "quipu:policy/selector@1.0.0#configure") (param i32 i32) (result i32) i32.const 16)
  (func (export "cabi_post_quipu:policy/selector@1.0.0#configure") (param i32) (loop $again (br $again)))
  (func (export "quipu:policy/selector@1.0.0#refresh") (param i64 i32 i32))
  (func (export "quipu:policy/selector@1.0.0#select") (param i32 i32 i64 i64 i32 i32) (result i32)
    (i32.load (local.get 4)))
)
