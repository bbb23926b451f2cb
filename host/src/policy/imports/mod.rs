//! What a policy may call: one file per interface of `wit/`, and WASI with nothing granted.
//!
//! Two linkers exist. The inline one has what never waits, reads of the registry among it; the pooled one has everything.

pub mod backend;
mod grants;
pub mod log;
pub mod metrics;
pub mod mirror;
pub mod registry;
pub(super) mod scratch;
pub mod storage;
pub(super) mod wasi;

use wasmtime::component::{HasSelf, Linker};

use super::state::State;

pub use backend::{Backend, StoreBackend, Unavailable};
pub use grants::{Grants, UnknownGrant};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "quipu:policy/selection",
        imports: {
            default: trappable,
            "quipu:policy/registry": async | trappable,
            "quipu:policy/storage": async | trappable,
        },
    });
}

pub(super) use bindings::quipu::policy as generated;

/// Interfaces of ours that can be called without waiting.
pub(super) const NEVER_WAIT: [&str; 3] = ["quipu:policy/types", "quipu:policy/metrics", "quipu:policy/log"];
/// Of ours: never waits either, for a policy that only reads it, where the backend has a mirror.
pub(super) const REGISTRY: &str = "quipu:policy/registry";
/// The function of it that writes.
pub(super) const REGISTRY_WRITE: &str = "put";
/// Interfaces of ours that wait.
pub(super) const WAIT: [&str; 2] = ["quipu:policy/registry", "quipu:policy/storage"];

pub(super) fn link_inline(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    generated::metrics::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    generated::log::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    registry::link_inline(linker)?;
    wasi::link_inline(linker)
}

pub(super) fn link_pooled(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    generated::metrics::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    generated::log::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    generated::registry::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    generated::storage::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    wasmtime_wasi::p2::add_to_linker_async(linker)
}
