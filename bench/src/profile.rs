//! Where a server's time goes when it falls short of a target: perf, as text.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::load::Generator;
use crate::plan::{Load, Server};
use crate::servers::Process;

/// Recorded time; the load lasts longer, so that all of it is load.
const SECONDS: u32 = 4;
/// Samples per second and core; no round number, so as not to beat with timers.
const FREQUENCY_HZ: u32 = 499;
const THREADS_MAX: usize = 10;
const FUNCTIONS_MAX: usize = 30;

#[derive(Debug, Clone, Serialize)]
pub struct Profile {
    pub server: Server,
    pub load: Load,
    pub connections: u32,
    /// Share and thread, largest first.
    pub threads: String,
    /// Share and function over all threads, largest first.
    pub functions: String,
}

pub fn is_available() -> bool {
    let version = Command::new("perf").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Loads `process` and records what it does.
pub fn record(
    generator: &Generator,
    process: &Process,
    server: Server,
    (load, connections): (Load, u32),
    scratch: &Path,
) -> anyhow::Result<Profile> {
    let mut wrk = generator
        .command(load, process.addr(), connections, SECONDS + 2)
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run wrk")?;
    let data = scratch.join("perf.data");
    let recorded = Command::new("perf")
        .args(["record", "--quiet", "-F", &FREQUENCY_HZ.to_string(), "-p", &process.id().to_string(), "-o"])
        .arg(&data)
        .args(["--", "sleep", &SECONDS.to_string()])
        .output();
    wrk.wait().context("cannot wait for wrk")?;
    let recorded = recorded.context("cannot run perf record")?;
    if !recorded.status.success() {
        bail!("perf record ended with {}: {}", recorded.status, String::from_utf8_lossy(&recorded.stderr));
    }
    let threads = report(&data, "comm", THREADS_MAX)?;
    let functions = report(&data, "symbol", FUNCTIONS_MAX)?;
    Ok(Profile { server, load, connections, threads, functions })
}

fn report(data: &Path, by: &str, lines_max: usize) -> anyhow::Result<String> {
    let report = Command::new("perf")
        .args(["report", "--stdio", "--quiet", "--no-children", "--sort", by, "-i"])
        .arg(data)
        .output()
        .context("cannot run perf report")?;
    if !report.status.success() {
        bail!("perf report ended with {}: {}", report.status, String::from_utf8_lossy(&report.stderr));
    }
    Ok(top(&String::from_utf8_lossy(&report.stdout), lines_max))
}

fn top(report: &str, lines_max: usize) -> String {
    // Behind the function come two columns of dashes, for what was not recorded.
    let lines = report.lines().map(|line| line.trim_end_matches([' ', '-']));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.take(lines_max).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_lines_are_kept() {
        let lines: Vec<String> = (0..40).map(|n| format!("    {n}.00%  quipu  f{n}   -    - ")).collect();
        let text = top(&format!("# Samples\n\n{}\n", lines.join("\n")), 25);
        assert_eq!(text.lines().count(), 25);
        assert!(text.starts_with("    0.00%  quipu  f0\n"), "{text}");
    }
}
