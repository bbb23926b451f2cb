;; A component of another world: it exports a function `run`.
(component
  (core module $code (func (export "run")))
  (core instance $core (instantiate $code))
  (func (export "run") (canon lift (core func $core "run"))))
