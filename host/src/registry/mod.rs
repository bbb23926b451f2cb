//! The registry: which rules are in force, what they were before, and how far counters may be spread.
//!
//! In a single node it lives in the store (`local`), in a cluster in etcd (`etcd`), of which every node has a `picture`;
//! [`Shared`] is what the rest of the program sees of it. What a change of rules means is here as pure code.
