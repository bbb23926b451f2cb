//! The machine that the figures belong to, and the file system below the data. Linux only.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

/// File systems in memory: a sync costs nothing there, so what they show is no durability.
const IN_MEMORY: [&str; 3] = ["tmpfs", "ramfs", "devtmpfs"];
/// Clock ticks per second in /proc; the kernel's interface fixes it.
const TICKS_PER_SECOND: f64 = 100.0;
/// Processes that use less than this share of a core for this long have nothing left to do.
const QUIET: Duration = Duration::from_millis(200);
const QUIET_SHARE_MAX: f64 = 0.25;

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_mib: u64,
    pub kernel: String,
    /// Share of the machine's CPU time that others used in the second before the start, from 0 to 1.
    pub busy_before: f64,
}

/// What lies below a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    pub device: String,
    pub kind: String,
}

impl Machine {
    /// Takes a second, to see how busy the machine is.
    pub fn look() -> anyhow::Result<Self> {
        let proc = |name: &str| std::fs::read_to_string(name).with_context(|| format!("cannot read {name}"));
        let (cpus, memory) = (proc("/proc/cpuinfo")?, proc("/proc/meminfo")?);
        let before = busy_ticks(&proc("/proc/stat")?)?;
        std::thread::sleep(Duration::from_secs(1));
        let after = busy_ticks(&proc("/proc/stat")?)?;
        let all = after.1 - before.1;
        Ok(Self {
            cpu: after_colon(&cpus, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: after_colon(&memory, "MemTotal")
                .and_then(|value| value.trim_end_matches(" kB").parse::<u64>().ok())
                .unwrap_or(0)
                / 1024,
            kernel: proc("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            busy_before: if all > 0.0 { (after.0 - before.0) / all } else { 0.0 },
        })
    }
}

fn after_colon<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.split_once(':')?.1.trim()))
}

/// (busy, all) ticks of all cores since the start; time stolen by other machines counts as busy.
fn busy_ticks(stat: &str) -> anyhow::Result<(f64, f64)> {
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat has no cpu line")?;
    let ticks: Vec<f64> = line.split_whitespace().filter_map(|tick| tick.parse().ok()).take(8).collect();
    let all: f64 = ticks.iter().sum();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    Ok((all - idle, all))
}

/// CPU time that a process used so far, in seconds.
pub fn cpu_seconds(process: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_cpu_seconds(&stat).with_context(|| format!("{path} reads unlike expected: {stat}"))
}

/// Waits until processes have nothing left to do, but not longer than `most`. `used` is their CPU time so far, in seconds; answers
/// it, and whether they were quiet.
pub fn quiet(used: impl Fn() -> anyhow::Result<f64>, most: Duration) -> anyhow::Result<(f64, bool)> {
    let deadline = Instant::now() + most;
    let mut before = used()?;
    loop {
        std::thread::sleep(QUIET);
        let after = used()?;
        let quiet = after - before <= QUIET.as_secs_f64() * QUIET_SHARE_MAX;
        if quiet || Instant::now() > deadline {
            return Ok((after, quiet));
        }
        before = after;
    }
}

fn parse_cpu_seconds(stat: &str) -> Option<f64> {
    // The name in parentheses may hold anything; user and system time are the 12th and 13th field behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}

/// The file system of an existing directory, refused when it is memory.
pub fn real_disk(dir: &Path) -> anyhow::Result<FileSystem> {
    let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let found = file_system(&mounts, &dir).with_context(|| format!("no mount holds {}", dir.display()))?;
    if IN_MEMORY.contains(&found.kind.as_str()) {
        bail!(
            "{} is on {}, where a sync costs nothing: name a directory on a disk with --data-parent",
            dir.display(),
            found.kind
        );
    }
    Ok(found)
}

/// The mount with the longest path above `dir`; of equal ones the last, which hides the others.
fn file_system(mounts: &str, dir: &Path) -> Option<FileSystem> {
    let mut best: Option<(usize, FileSystem)> = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(point), Some(kind)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let point = point.replace("\\040", " ");
        if dir.starts_with(&point) && best.as_ref().is_none_or(|(length, _)| point.len() >= *length) {
            best = Some((point.len(), FileSystem { device: device.into(), kind: kind.into() }));
        }
    }
    best.map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmp/my\\040disk xfs rw 0 0\n";

    #[test]
    fn the_deepest_mount_counts() {
        let kind = |dir: &str| file_system(MOUNTS, Path::new(dir)).expect("a mount").kind;
        assert_eq!(kind("/var/lib"), "ext4");
        assert_eq!(kind("/tmp/x"), "tmpfs");
        assert_eq!(kind("/tmp/my disk/x"), "xfs");
        assert_eq!(kind("/tmpx"), "ext4");
    }

    #[test]
    fn memory_is_refused() {
        let shm = Path::new("/dev/shm");
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("linux");
        if file_system(&mounts, shm).is_none_or(|found| found.kind != "tmpfs") {
            println!("skipped: /dev/shm is no tmpfs here");
            return;
        }
        let why = real_disk(shm).expect_err("memory").to_string();
        assert!(why.contains("tmpfs") && why.contains("--data-parent"), "{why}");
    }

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 100 1000 10";
        assert_eq!(parse_cpu_seconds(stat), Some(2.0));
        assert!(cpu_seconds(std::process::id()).is_ok());
    }

    #[test]
    fn busy_is_what_is_not_idle() {
        assert_eq!(busy_ticks("cpu  10 0 5 70 10 0 3 2 99 99\n").expect("a cpu line"), (20.0, 100.0));
    }
}
