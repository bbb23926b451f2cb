;; A component of no world: it imports nothing and exports nothing.
(component)
