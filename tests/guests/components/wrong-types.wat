;; Exports the selector with other types: select takes and returns a string, refresh is missing.
(component
  (core module $code
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
    ;; Both answers are at 16, all zeros: ok, or an empty string.
    (func (export "configure") (param i32 i32) (result i32) i32.const 16)
    (func (export "select") (param i32 i32) (result i32) i32.const 16))
  (core instance $core (instantiate $code))
  (alias core export $core "memory" (core memory $memory))
  (alias core export $core "realloc" (core func $realloc))
  (func $configure (param "config" string) (result (result (error string)))
    (canon lift (core func $core "configure") (memory $memory) (realloc $realloc)))
  (func $select (param "request" string) (result string)
    (canon lift (core func $core "select") (memory $memory) (realloc $realloc)))
  (instance $selector
    (export "configure" (func $configure))
    (export "select" (func $select)))
  (export "quipu:policy/selector@1.0.0" (instance $selector)))
