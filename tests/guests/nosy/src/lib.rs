//! A selection policy that tries what it was not given: files, network, environment, streams, exit, sleep.
//!
//! The `config` names what to try. What can be tried in `configure` is tried there, and the error of `configure` says
//! how the host answered: `denied: …` or `GRANTED: …`. It uses the standard library, so it imports WASI.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

#[allow(unsafe_code)]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "selection" });
}

use bindings::exports::quipu::policy::selector::{Guest, Request};
use bindings::quipu::policy::types::View;

static HOW: std::sync::OnceLock<String> = std::sync::OnceLock::new();

struct Nosy;

#[allow(unsafe_code)]
mod exported {
    use super::*;
    bindings::export!(Nosy with_types_in bindings);
}

impl Guest for Nosy {
    fn configure(config: String) -> Result<(), String> {
        match config.as_str() {
            "read-file" => tell(std::fs::read("/etc/passwd")),
            "write-file" => tell(std::fs::write("/tmp/quipu-nosy", b"was here")),
            "list-files" => tell(std::fs::read_dir("/").map(|entries| entries.count())),
            "network" => tell(TcpStream::connect(("127.0.0.1", 80))),
            "listen" => tell(std::net::TcpListener::bind(("127.0.0.1", 0))),
            "resolve" => tell(std::net::ToSocketAddrs::to_socket_addrs(&("localhost", 80)).map(Iterator::count)),
            "environment" => tell(some(std::env::vars().count())),
            "arguments" => tell(some(std::env::args().count())),
            "stdin" => tell(std::io::read_to_string(std::io::stdin()).and_then(|text| some(text.len()))),
            "exit-in-configure" => std::process::exit(0),
            "" | "stdout" | "stderr" | "exit-in-select" | "panic-in-select" | "sleep" | "clocks-and-random"
            | "draws" => HOW.set(config).map_err(|_| "configured twice".into()),
            _ => Err(format!("unknown misbehaviour {config:?}")),
        }
    }

    fn refresh(_view: View) {}

    fn select(request: Request) -> u32 {
        match HOW.get().map_or("", String::as_str) {
            "stdout" => (0..1_000).for_each(|n| println!("line {n} {}", "x".repeat(1_000))),
            "stderr" => (0..1_000).for_each(|n| eprintln!("line {n} {}", "x".repeat(1_000))),
            "exit-in-select" => std::process::exit(0),
            "panic-in-select" => panic!("a panic with a text"),
            "sleep" => std::thread::sleep(Duration::from_secs(60)),
            "clocks-and-random" => {
                // A hash set seeds itself from the random interface; both clocks answer something sane.
                assert!(HashSet::from([1, 2]).contains(&2) && SystemTime::now() > SystemTime::UNIX_EPOCH);
                let begun = Instant::now();
                assert!(Instant::now() >= begun);
            }
            "draws" => {
                // Both the random interface and the clock have a say.
                let drawn = RandomState::new().build_hasher().finish();
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let sum = drawn.wrapping_add(u64::from(since.subsec_nanos()));
                return request.candidates[(sum % request.candidates.len() as u64) as usize];
            }
            _ => {}
        }
        request.candidates[0]
    }
}

/// Nothing to see is how the host says no where there is no error to return.
fn some(count: usize) -> std::io::Result<usize> {
    if count > 0 { Ok(count) } else { Err(std::io::Error::other("nothing is there")) }
}

fn tell<T>(answer: std::io::Result<T>) -> Result<(), String> {
    Err(match answer {
        Ok(_) => "GRANTED: the host let it happen".into(),
        Err(why) => format!("denied: {why}"),
    })
}
