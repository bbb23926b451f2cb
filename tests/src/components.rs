//! Components to upload: the built-in policies, the guests of `tests/guests`, and further revisions of both.

use std::path::PathBuf;

use crate::http::Answer;
use crate::server::Server;

fn component(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}; run `make plugins guests` first", path.display()))
}

pub fn builtin(name: &str) -> Vec<u8> {
    component(&format!("plugins/target/wasm32-wasip2/release/{}.wasm", name.replace('-', "_")))
}

pub fn guest(name: &str) -> Vec<u8> {
    component(&format!("tests/guests/target/guests/{name}.wasm"))
}

pub fn push(server: &Server, name: &str, bytes: &[u8]) -> Answer {
    let target = format!("/v1/plugins/{}", crate::encode(name));
    server.call("PUT", &target, &[("content-type", "application/wasm")], bytes)
}

/// Uploads a component for the first time. Returns the name of its revision.
pub fn uploaded(server: &Server, name: &str, bytes: &[u8]) -> String {
    push(server, name, bytes).expect(201).json()["revision"].as_str().expect("a revision").to_owned()
}

/// Another revision of the same behaviour: a custom section with a number behind the component.
pub fn variant(bytes: &[u8], number: u8) -> Vec<u8> {
    let name = b"variant";
    let mut section = vec![0, name.len() as u8 + 2, name.len() as u8];
    section.extend_from_slice(name);
    section.push(number);
    [bytes, &section].concat()
}

/// Ways in which the guest `misbehaves-selection` does, which its dry run does not see.
pub const HOSTILE_WAYS: [&str; 12] = [
    "trap-in-select",
    "loop-in-select",
    "recurse",
    "no-candidate",
    "no-shard",
    "grow-without-end",
    "grow-a-little-each-call",
    "flood-log",
    "huge-log-line",
    "metrics-without-end",
    "busy-3-ms",
    "busy-40-us",
];
