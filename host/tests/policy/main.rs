//! Policies in their host, without a server: what is admitted, what is contained, and what authors are promised.
//!
//! `policy_memory` is a program of its own, because it measures the memory of its whole process.

mod admission;
mod authors;
mod hostile_policies;
mod policies;
mod pooled_policies;
mod support;
