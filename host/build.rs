//! Generates the messages between nodes from `proto/peer.proto`, and finds the built-in policies, which `policy::builtin` embeds. They are guests of another target and workspace, so
//! they are built before (`make plugins`); `QUIPU_PLUGINS_DIR` names another directory than the usual one.

use std::path::PathBuf;
use std::process::ExitCode;

const NAMES: [&str; 11] = [
    "available_sum",
    "cached_sum",
    "least_cpu",
    "local_first",
    "max",
    "random",
    "rendezvous",
    "round_robin",
    "sum",
    "two_choices",
    "value_modulo",
];

fn main() -> ExitCode {
    if let Err(why) = generate_messages() {
        eprintln!("proto/peer.proto: {why}");
        return ExitCode::FAILURE;
    }
    println!("cargo:rerun-if-env-changed=QUIPU_PLUGINS_DIR");
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let usual = manifest.join("../plugins/target/wasm32-wasip2/release");
    let directory = std::env::var_os("QUIPU_PLUGINS_DIR").map_or(usual, |named| manifest.join(named));
    let mut missing = Vec::new();
    for name in NAMES {
        let file = directory.join(name).with_extension("wasm");
        println!("cargo:rerun-if-changed={}", file.display());
        if !file.is_file() {
            missing.push(name);
        }
    }
    if !missing.is_empty() {
        eprintln!("the built-in policies {missing:?} are not in {}; run `make plugins` first", directory.display());
        return ExitCode::FAILURE;
    }
    println!("cargo:rustc-env=QUIPU_BUILTIN_POLICIES={}", directory.display());
    ExitCode::SUCCESS
}

/// In Rust alone: no compiler of protocol buffers has to be installed for our own messages.
fn generate_messages() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/peer.proto");
    let descriptors = protox::compile(["proto/peer.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
