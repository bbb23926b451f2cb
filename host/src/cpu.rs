//! CPU use of this node: 0.0 to 1.0 of what its container may use.
//!
//! With a CPU quota (cgroup v2 `cpu.max`, v1 `cpu.cfs_quota_us`) it is the cgroup's use over the quota; without one it is
//! the machine's, because the load of others takes from us too. The caller decides when to sample; nothing here waits.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where a cgroup says how much CPU it may use and has used.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Group {
    V2 { directory: PathBuf },
    V1 { quota: PathBuf, usage: PathBuf },
}

/// Takes samples; one per process, called once a second or so.
#[derive(Debug)]
pub struct Sampler {
    /// None on a platform that sysinfo does not know.
    system: Option<sysinfo::System>,
    group: Option<Group>,
    last: Option<(Instant, Duration)>,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

impl Sampler {
    pub fn new() -> Self {
        Self::at(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
    }

    fn at(root: &Path, own: &str) -> Self {
        let mut system = sysinfo::System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_cpu_usage();
        }
        let group = find_group(root, own);
        let last = group.as_ref().and_then(Group::used).map(|used| (Instant::now(), used));
        Self { system, group, last }
    }

    /// CPU use since the last sample, 0.0 to 1.0. The first one may be 0.0.
    pub fn sample(&mut self) -> f64 {
        // The quota is read each time: it can be changed while the process runs.
        if let Some((quota, used)) = self.group.as_ref().and_then(|group| Some((group.quota_cpus()?, group.used()?))) {
            let now = Instant::now();
            let use_of_quota = match self.last {
                Some((then, before)) => share(used.saturating_sub(before), now - then, quota),
                None => 0.0,
            };
            self.last = Some((now, used));
            return use_of_quota;
        }
        let Some(system) = &mut self.system else { return 0.0 };
        system.refresh_cpu_usage();
        f64::from(system.global_cpu_usage() / 100.0).clamp(0.0, 1.0)
    }
}

impl Group {
    /// How many CPUs the group may use; None without a quota. The smallest quota on the way to the root holds.
    fn quota_cpus(&self) -> Option<f64> {
        match self {
            Self::V2 { directory } => ancestors_with(directory, "cpu.max")
                .filter_map(|file| parse_cpu_max(&fs::read_to_string(file).ok()?))
                .min_by(f64::total_cmp),
            Self::V1 { quota, .. } => {
                let read = |name: &str| fs::read_to_string(quota.join(name)).ok();
                parse_cfs(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
            }
        }
    }

    /// CPU time that the group used since it was made.
    fn used(&self) -> Option<Duration> {
        match self {
            Self::V2 { directory } => parse_cpu_stat(&fs::read_to_string(directory.join("cpu.stat")).ok()?),
            Self::V1 { usage, .. } => parse_nanos(&fs::read_to_string(usage.join("cpuacct.usage")).ok()?),
        }
    }
}

/// The directories from `directory` upwards that have this file.
fn ancestors_with(directory: &Path, name: &'static str) -> impl Iterator<Item = PathBuf> {
    directory.ancestors().map(move |ancestor| ancestor.join(name)).take_while(|file| file.exists())
}

/// Finds this process's group. Inside a container its own group is often mounted as the root, so a path that is not
/// there means the root.
fn find_group(root: &Path, own: &str) -> Option<Group> {
    let place = |base: &Path, path: &str| {
        let inside = base.join(path.trim_start_matches('/'));
        if inside.is_dir() { inside } else { base.to_path_buf() }
    };
    for line in own.lines() {
        let (controllers, path) = parse_membership(line)?;
        if controllers.is_empty() {
            let directory = place(root, path);
            if directory.join("cpu.stat").exists() && directory.join("cpu.max").exists() {
                return Some(Group::V2 { directory });
            }
        }
    }
    let find = |controller: &str| {
        let line =
            own.lines().filter_map(parse_membership).find(|(all, _)| all.split(',').any(|one| one == controller));
        let (controllers, path) = line?;
        let base = [root.join(controller), root.join(controllers)].into_iter().find(|base| base.is_dir())?;
        Some(place(&base, path))
    };
    Some(Group::V1 { quota: find("cpu")?, usage: find("cpuacct")? })
}

/// A line of `/proc/self/cgroup`, `hierarchy:controllers:path`; version 2 names no controllers.
fn parse_membership(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(':')?;
    rest.split_once(':')
}

/// `cpu.max`: quota and period in microseconds, or `max`. Answers in CPUs.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    let (quota, period) = (words.next()?, words.next()?);
    parse_cfs(quota, period)
}

/// Version 1 has the two in files of their own; -1 is no quota.
fn parse_cfs(quota: &str, period: &str) -> Option<f64> {
    let quota: f64 = quota.trim().parse().ok()?;
    let period: f64 = period.trim().parse().ok()?;
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn parse_cpu_stat(text: &str) -> Option<Duration> {
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    usage.trim().parse().ok().map(Duration::from_micros)
}

fn parse_nanos(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_nanos)
}

/// CPU time over what `cpus` give in this wall time, 0.0 to 1.0.
fn share(used: Duration, elapsed: Duration, cpus: f64) -> f64 {
    let available = elapsed.as_secs_f64() * cpus;
    if available > 0.0 { (used.as_secs_f64() / available).clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read_in_cpus() {
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(1.5));
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max(""), None);
        assert_eq!(parse_cpu_max("x y"), None);
        assert_eq!(parse_cfs("50000\n", "100000\n"), Some(0.5));
        assert_eq!(parse_cfs("-1\n", "100000\n"), None);
        assert_eq!(parse_cfs("50000", "0"), None);
    }

    #[test]
    fn use_is_read_from_both_versions() {
        assert_eq!(parse_cpu_stat("usage_usec 2500000\nuser_usec 1\n"), Some(Duration::from_millis(2_500)));
        assert_eq!(parse_cpu_stat("nr_periods 0\n"), None);
        assert_eq!(parse_nanos("1500\n"), Some(Duration::from_nanos(1_500)));
    }

    #[test]
    fn memberships_name_controllers_and_path() {
        assert_eq!(parse_membership("0::/kubepods/pod1"), Some(("", "/kubepods/pod1")));
        assert_eq!(parse_membership("4:cpu,cpuacct:/a:b"), Some(("cpu,cpuacct", "/a:b")));
        assert_eq!(parse_membership("nonsense"), None);
    }

    #[test]
    fn the_share_stays_between_nothing_and_all() {
        let s = Duration::from_secs;
        assert_eq!(share(s(1), s(2), 1.0), 0.5);
        assert_eq!(share(s(3), s(2), 1.0), 1.0);
        assert_eq!(share(s(1), s(0), 1.0), 0.0);
        assert_eq!(share(s(1), s(1), 4.0), 0.25);
    }

    fn write(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().expect("it has one")).expect("a directory");
        fs::write(file, text).expect("a file");
    }

    #[test]
    fn version_2_takes_the_smallest_quota_up_to_the_root() {
        let root = tempfile::tempdir().expect("a directory");
        write(root.path(), "pod/cpu.max", "50000 100000");
        write(root.path(), "pod/me/cpu.max", "max 100000");
        write(root.path(), "pod/me/cpu.stat", "usage_usec 7");
        let group = find_group(root.path(), "0::/pod/me\n").expect("a group");
        assert_eq!(group, Group::V2 { directory: root.path().join("pod/me") });
        assert_eq!(group.quota_cpus(), Some(0.5));
        assert_eq!(group.used(), Some(Duration::from_micros(7)));
    }

    #[test]
    fn a_container_that_sees_its_group_as_the_root_is_found() {
        let root = tempfile::tempdir().expect("a directory");
        write(root.path(), "cpu.max", "200000 100000");
        write(root.path(), "cpu.stat", "usage_usec 1000000");
        let mut sampler = Sampler::at(root.path(), "0::/not/visible/here\n");
        assert_eq!(sampler.group.as_ref().and_then(Group::quota_cpus), Some(2.0));
        // Ten CPU seconds within moments: all of it.
        write(root.path(), "cpu.stat", "usage_usec 11000000");
        assert_eq!(sampler.sample(), 1.0);
        assert_eq!(sampler.sample(), 0.0);
    }

    #[test]
    fn version_1_is_read_from_its_two_controllers() {
        let root = tempfile::tempdir().expect("a directory");
        write(root.path(), "cpu,cpuacct/docker/x/cpu.cfs_quota_us", "25000");
        write(root.path(), "cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000");
        write(root.path(), "cpu,cpuacct/docker/x/cpuacct.usage", "3000");
        let group = find_group(root.path(), "12:memory:/x\n4:cpu,cpuacct:/docker/x\n").expect("a group");
        assert_eq!((group.quota_cpus(), group.used()), (Some(0.25), Some(Duration::from_micros(3))));
    }

    #[test]
    fn without_a_group_the_machine_is_sampled() {
        let root = tempfile::tempdir().expect("a directory");
        let mut sampler = Sampler::at(root.path(), "");
        assert!(sampler.group.is_none());
        assert!((0.0..=1.0).contains(&sampler.sample()));
    }
}
