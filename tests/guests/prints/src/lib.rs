//! A selection policy that uses the standard library but no network, so it imports WASI and yet runs inline.
//!
//! The `config` names what it does in `select` before it answers the first candidate.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

#[allow(unsafe_code)]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "selection" });
}

use bindings::exports::quipu::policy::selector::{Guest, Request};
use bindings::quipu::policy::types::View;

static HOW: std::sync::OnceLock<String> = std::sync::OnceLock::new();

struct Prints;

#[allow(unsafe_code)]
mod exported {
    use super::*;
    bindings::export!(Prints with_types_in bindings);
}

impl Guest for Prints {
    fn configure(config: String) -> Result<(), String> {
        match config.as_str() {
            "" | "stdout" | "stderr" | "exit" | "panic" | "sleep" | "clocks-and-random" => {
                HOW.set(config).map_err(|_| "configured twice".into())
            }
            _ => Err(format!("unknown config {config:?}")),
        }
    }

    fn refresh(_view: View) {}

    fn select(request: Request) -> u32 {
        match HOW.get().map_or("", String::as_str) {
            "stdout" => println!("a line of {}", request.counter),
            "stderr" => eprintln!("a line of {}", request.counter),
            "exit" => std::process::exit(0),
            "panic" => panic!("a panic with a text"),
            "sleep" => std::thread::sleep(Duration::from_secs(60)),
            "clocks-and-random" => {
                assert!(HashSet::from([1, 2]).contains(&2) && SystemTime::now() > SystemTime::UNIX_EPOCH);
                let begun = Instant::now();
                assert!(Instant::now() >= begun);
            }
            _ => {}
        }
        request.candidates[0]
    }
}
