//! The routes of operators: policies, rules, the cluster. They need the admin token when one is set.

pub mod auth;
pub mod cluster;
pub mod plugins;
pub mod policies;
pub mod recordings;
pub mod rules;
