//! A wall clock of its own for a server, set while it runs: libfaketime (Debian: `libfaketime`) answers in the kernel's place.
//!
//! The boot clock and the clock of `Instant` stay the machine's.

use std::path::PathBuf;

use crate::Launch;

pub struct WallClock {
    file: PathBuf,
}

impl WallClock {
    /// A launch whose servers have a clock that is right until it is [set](Self::set); None, said in plain sight, where
    /// the library is not installed. `$QUIPU_FAKETIME` names it elsewhere.
    pub fn of(launch: Launch) -> Option<(Launch, Self)> {
        let Some(library) = library() else {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            println!(
                "skipped: {test}: libfaketimeMT.so.1 is not installed (.ci/setup tests does it), so no clock is set"
            );
            return None;
        };
        let clock = Self { file: launch.scratch().join("wall-clock") };
        clock.set("+0");
        let launch = launch
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", &clock.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Some((launch, clock))
    }

    /// By so much ahead or back of the right time, as in `+25h`, `-3d`; or to a time at which it stands still.
    pub fn set(&self, to: &str) {
        // In one step: a server may read it at any time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{to}\n")).expect("writes");
        std::fs::rename(&new, &self.file).expect("renames");
    }
}

fn library() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("QUIPU_FAKETIME") {
        return Some(path.into());
    }
    let found = std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    found.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}
