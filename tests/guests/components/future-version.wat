;; Exports the selector of a later, incompatible version of the contract.
(component
  (core module $code (func (export "select") (result i32) i32.const 0))
  (core instance $core (instantiate $code))
  (func $select (result u32) (canon lift (core func $core "select")))
  (instance $selector (export "select" (func $select)))
  (export "quipu:policy/selector@2.0.0" (instance $selector)))
