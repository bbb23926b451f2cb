;; A core module that exports a function `select`, but is no component.
(module
  (func (export "select") (param i32) (result i32) (local.get 0)))
