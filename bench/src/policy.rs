//! The cost of a policy call alone: criterion's benchmark of the host, run and read.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;

use crate::plan::POLICY_TARGET_NS;

/// One benchmark of `host/benches/policy.rs`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    pub name: String,
    pub median_ns: f64,
    /// Ends of criterion's 95 % interval of the median.
    pub low_ns: f64,
    pub high_ns: f64,
    /// Only the selection of a shard has a target.
    pub target_ns: Option<f64>,
}

/// Runs the benchmark (compiling it first when needed) and reads what it wrote below `target`.
pub fn measure(workspace: &Path, target: &Path, quick: bool) -> anyhow::Result<Vec<Estimate>> {
    let cargo = || {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace).args(["bench", "--locked", "-p", "quipu", "--bench", "policy"]);
        cargo
    };
    // By itself, since only the compiler's progress is worth showing.
    let status = cargo().arg("--no-run").stdout(Stdio::null()).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo bench -p quipu --bench policy --no-run ended with {status}");
    }
    let started = SystemTime::now();
    let seconds = if quick { "1" } else { "3" };
    let output = cargo()
        .args(["--", "--warm-up-time", "1", "--measurement-time", seconds, "--noplot"])
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("cargo bench -p quipu --bench policy ended with {}: {complaint}", output.status);
    }
    let estimates = read(&target.join("criterion"), started)?;
    if estimates.is_empty() {
        bail!("cargo bench -p quipu --bench policy wrote no estimates below {}", target.join("criterion").display());
    }
    Ok(estimates)
}

/// Estimates below `root` that are not older than `since`, by name.
fn read(root: &Path, since: SystemTime) -> anyhow::Result<Vec<Estimate>> {
    let mut estimates = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.ends_with("new/estimates.json") && path.metadata()?.modified()? >= since {
                estimates.push(estimate(&path)?);
            }
        }
    }
    estimates.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(estimates)
}

fn estimate(path: &Path) -> anyhow::Result<Estimate> {
    let json = |path: &Path| -> anyhow::Result<Value> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
    };
    let (estimates, benchmark) = (json(path)?, json(&path.with_file_name("benchmark.json"))?);
    let name = benchmark["full_id"].as_str().with_context(|| format!("{} names nothing", path.display()))?;
    let median = &estimates["median"];
    let number = |value: &Value| value.as_f64().with_context(|| format!("{} has no median", path.display()));
    Ok(Estimate {
        target_ns: (name.starts_with("select/") && !name.contains("native")).then_some(POLICY_TARGET_NS),
        name: name.to_owned(),
        median_ns: number(&median["point_estimate"])?,
        low_ns: number(&median["confidence_interval"]["lower_bound"])?,
        high_ns: number(&median["confidence_interval"]["upper_bound"])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_just_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let new = dir.path().join("select/3/new");
        std::fs::create_dir_all(&new).expect("made");
        let median =
            r#"{"median":{"point_estimate":250.5,"confidence_interval":{"lower_bound":250,"upper_bound":260}}}"#;
        std::fs::write(new.join("estimates.json"), median).expect("written");
        std::fs::write(new.join("benchmark.json"), r#"{"full_id":"select/3"}"#).expect("written");

        let found = read(dir.path(), SystemTime::UNIX_EPOCH).expect("read");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].median_ns, found[0].target_ns), (250.5, Some(1_000.0)));
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        assert_eq!(read(dir.path(), later).expect("read"), []);
    }
}
