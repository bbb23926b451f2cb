//! Tests whose subject is memory or time: they run one after the other, and nothing runs beside them.

mod memory;
mod policies_under_load;
