//! The world `selection` as a Rust trait: write a struct, implement [`Selection`], name it in [`selection!`].
//!
//! The contract is `wit/selection.wit`. The policy stays plain Rust, so its unit tests run on the host target.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;
// The generated bindings name their runtime by a path that other crates can follow, too.
extern crate self as quipu_selection;

mod random;

#[allow(unsafe_code)]
#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit",
        world: "selection",
        pub_export_macro: true,
        default_bindings_module: "quipu_selection::bindings",
        runtime_path: "quipu_selection::wit_bindgen::rt",
    });
}

use alloc::string::String;

pub use bindings::exports::quipu::policy::selector::Request;
pub use bindings::quipu::policy::types::{ShardInfo, View};
pub use bindings::quipu::policy::{log, metrics, registry, storage};
pub use quipu_guest::{State, no_config};
pub use random::Random;
#[doc(hidden)]
pub use wit_bindgen;

/// A selection policy. One value serves all calls of one instance.
pub trait Selection: Sized {
    /// Makes the policy from the rule's `config`. The text of an error is shown to whoever sets the rule.
    fn configure(config: &str) -> Result<Self, String>;

    /// Takes a new view: before the first `select`, then at most once a second.
    fn refresh(&mut self, _view: &View) {}

    /// Returns one of the request's candidates.
    fn select(&mut self, request: &Request) -> u32;
}

impl Request {
    /// The first candidate in rendezvous order: the home shard, unless nobody serves it.
    pub fn first(&self) -> u32 {
        // The contract promises at least one candidate; without any the host would refuse whichever number comes.
        self.candidates.first().copied().unwrap_or(0)
    }
}

/// Exports a type that implements [`Selection`] as this component's policy.
#[macro_export]
macro_rules! selection {
    ($policy:ty) => {
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code)]
        const _: () = {
            extern crate alloc;
            use $crate::bindings::export;
            use $crate::bindings::exports::quipu::policy::selector::Guest;

            static POLICY: $crate::State<$policy> = $crate::State::empty();

            struct Component;

            impl Guest for Component {
                fn configure(config: alloc::string::String) -> Result<(), alloc::string::String> {
                    POLICY.set(<$policy as $crate::Selection>::configure(&config)?);
                    Ok(())
                }

                fn refresh(view: $crate::View) {
                    POLICY.with(|policy| $crate::Selection::refresh(policy, &view));
                }

                fn select(request: $crate::Request) -> u32 {
                    POLICY.with(|policy| $crate::Selection::select(policy, &request))
                }
            }

            export! { Component with_types_in $crate::bindings }
        };
    };
}

/// Requests and views for unit tests.
#[cfg(not(target_family = "wasm"))]
pub mod testing {
    use super::*;

    pub fn request(key_hash: u64, candidates: &[u32]) -> Request {
        Request { counter: "counter".into(), amount: 1, key_hash, candidates: candidates.to_vec() }
    }

    /// A view of one available, remote, idle shard for each queue length.
    pub fn view(queued: &[u32]) -> View {
        let shard = |(shard, &queued)| ShardInfo { shard, available: true, local: false, owner_cpu: 0.0, queued };
        View { version: 1, shards: (0..).zip(queued).map(shard).collect() }
    }
}
