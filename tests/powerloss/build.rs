//! Builds the preloaded library and tells the crate where it is.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=src/shim.c");
    println!("cargo:rerun-if-env-changed=CC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("libpowerloss.so");
    let compiler = std::env::var("CC").unwrap_or("cc".into());
    let flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"];
    let status = Command::new(&compiler).args(flags).arg(&out).arg("src/shim.c").status();
    assert!(status.is_ok_and(|status| status.success()), "building src/shim.c with `{compiler}` failed");
    println!("cargo:rustc-env=POWERLOSS_SHIM={}", out.display());
}
