//! What every policy component needs beside the contract: a heap, a panic handler, and a place for its state.
//!
//! On the wasm target the built-in policies do without the standard library, so that a component imports nothing but
//! the `quipu:policy` interfaces that it calls: no files, clocks, environment or streams. On the host target, where
//! their unit tests run, this crate leaves heap and panics to the standard library.
//!
//! A policy of your own may use the standard library and `wit-bindgen` directly; then it needs nothing from here.

#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

pub mod heap;
mod state;

use alloc::format;
use alloc::string::String;

pub use state::State;

/// Refuses a `config` that is not empty, for policies that have no settings.
pub fn no_config(config: &str) -> Result<(), String> {
    match config {
        "" => Ok(()),
        _ => Err(format!("this policy has no settings: leave `config` empty (it has {} bytes)", config.len())),
    }
}

// The compiler expects `memcmp` and its kin of the C library. Nothing else of it is called, so nothing else is linked.
#[cfg(target_family = "wasm")]
#[allow(unsafe_code)]
#[link(name = "c")]
unsafe extern "C" {}

/// A panic becomes a trap: the host drops the instance, counts the fault and answers by its built-in choice.
#[cfg(target_family = "wasm")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_that_would_be_ignored_is_refused() {
        assert_eq!(no_config(""), Ok(()));
        let refused = no_config("fast=1").expect_err("not empty");
        assert_eq!(refused, "this policy has no settings: leave `config` empty (it has 6 bytes)");
    }
}
