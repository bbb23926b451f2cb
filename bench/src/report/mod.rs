//! From measurements to the report: medians of paired ratios, targets, and the three files.

pub mod markdown;
mod plot;

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::bare::Layout;
use crate::languages::Language;
use crate::load::Answers;
use crate::machine::{FileSystem, Machine};
use crate::plan::{self, BATCH_TARGET_PER_SECOND, Load, Server};
use crate::policy::Estimate;
use crate::profile::Profile;
use crate::servers::Journal;

/// Everything that one run of the bench found.
#[derive(Debug, Serialize)]
pub struct Results {
    /// UTC, ISO 8601.
    pub date: String,
    /// The commit, as git describes it.
    pub version: String,
    pub machine: Machine,
    /// Below the data directories.
    pub file_system: FileSystem,
    pub settings: Settings,
    pub calibration: Option<Calibration>,
    pub measurements: Vec<Measurement>,
    /// The native choice first; empty when they were not asked for.
    pub languages: Vec<Language>,
    pub policy: Vec<Estimate>,
    pub profiles: Vec<Profile>,
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    pub seconds: u32,
    pub rounds: u32,
    pub wrk_threads: u32,
    pub quick: bool,
}

/// Which layout of the bare server was kept, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Calibration {
    pub kept: Layout,
    pub per_core_per_second: f64,
    pub multi_thread_per_second: f64,
}

/// One server under one load at one number of connections, in all rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    pub load: Load,
    pub connections: u32,
    pub server: Server,
    pub runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Run {
    pub answers: Answers,
    /// CPU time of the server, with what it still did after the last answer.
    pub cpu_seconds: f64,
    /// Of Quipu, when the load writes.
    pub journal: Option<Journal>,
}

impl Run {
    pub fn cpu_us_per_request(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.answers.good as f64
    }
}

/// Middle and ends of the values of the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// One server beside another: the quotients of neighbouring runs.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    pub load: Load,
    pub connections: u32,
    pub of: Server,
    pub over: Server,
    /// Of requests per second.
    pub found: Spread,
    /// Of CPU time per request.
    pub cpu: Spread,
    pub target: Option<f64>,
}

/// A target and what was found.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub what: String,
    pub needed: String,
    pub found: String,
    pub met: bool,
}

impl Check {
    pub fn sentence(&self) -> String {
        let verdict = if self.met { "met  " } else { "SHORT" };
        format!("{verdict} {}: {}, needed {}", self.what, self.found, self.needed)
    }
}

impl Measurement {
    pub fn spread_of(&self, value: impl Fn(&Run) -> f64) -> Spread {
        spread(&self.runs.iter().map(value).collect::<Vec<_>>())
    }

    /// Operations per second: additions, or reads.
    pub fn operations_per_second(&self) -> Spread {
        self.spread_of(|run| run.answers.per_second() * f64::from(self.load.operations()))
    }
}

impl Results {
    fn measurement(&self, load: Load, connections: u32, server: Server) -> Option<&Measurement> {
        self.measurements.iter().find(|m| (m.load, m.connections, m.server) == (load, connections, server))
    }

    /// Every ratio of the plan that was measured.
    pub fn ratios(&self) -> Vec<Ratio> {
        let mut ratios = Vec::new();
        for cell in plan::cells() {
            let (load, connections) = (cell.load, cell.connections);
            for (of, over, target) in cell.ratios() {
                let upper = self.measurement(load, connections, of);
                let Some((upper, lower)) = upper.zip(self.measurement(load, connections, over)) else { continue };
                let quotients = |value: fn(&Run) -> f64| {
                    let pairs = upper.runs.iter().zip(&lower.runs);
                    spread(&pairs.map(|(upper, lower)| value(upper) / value(lower)).collect::<Vec<_>>())
                };
                let found = quotients(|run| run.answers.per_second());
                let cpu = quotients(Run::cpu_us_per_request);
                ratios.push(Ratio { load, connections, of, over, found, cpu, target });
            }
        }
        ratios
    }

    pub fn batches(&self) -> impl Iterator<Item = &Measurement> {
        self.measurements.iter().filter(|m| matches!(m.load, Load::Batch { .. }))
    }

    pub fn checks(&self) -> Vec<Check> {
        let ratios = self.ratios().into_iter().filter_map(|ratio| {
            let target = ratio.target?;
            Some(Check {
                what: format!(
                    "{}, {} connections: {} over {}",
                    ratio.load.name(),
                    ratio.connections,
                    ratio.of.name(),
                    ratio.over.name()
                ),
                needed: format!("{target:.2} or more"),
                found: format!("{:.2} ({:.2} to {:.2})", ratio.found.median, ratio.found.low, ratio.found.high),
                met: ratio.found.median >= target,
            })
        });
        let batches = self.batches().filter(|m| m.server == Server::Durable).map(|m| {
            let found = m.operations_per_second();
            Check {
                what: format!("{}, durable, {} connections: adds per second", m.load.name(), m.connections),
                needed: format!("{} or more", thousands(BATCH_TARGET_PER_SECOND)),
                found: format!("{} ({} to {})", thousands(found.median), thousands(found.low), thousands(found.high)),
                met: found.median >= BATCH_TARGET_PER_SECOND,
            }
        });
        let policy = self.policy.iter().filter_map(|estimate| {
            let target = estimate.target_ns?;
            Some(Check {
                what: format!("policy call {}: median", estimate.name),
                needed: format!("{target:.0} ns or less"),
                found: format!("{:.0} ns ({:.0} to {:.0})", estimate.median_ns, estimate.low_ns, estimate.high_ns),
                met: estimate.median_ns <= target,
            })
        });
        ratios.chain(batches).chain(policy).collect()
    }

    /// What missed a target and would profit from a profile: each (server, load) once, at its worst connections.
    pub fn shortfalls(&self) -> Vec<(Server, Load, u32)> {
        let mut short: Vec<(f64, Server, Load, u32)> = Vec::new();
        let missed = self.ratios().into_iter().filter_map(|ratio| {
            let part = ratio.found.median / ratio.target?;
            Some((part, ratio.of, ratio.load, ratio.connections))
        });
        let batches = self
            .batches()
            .filter(|m| m.server == Server::Durable)
            .map(|m| (m.operations_per_second().median / BATCH_TARGET_PER_SECOND, m.server, m.load, m.connections));
        short.extend(missed.chain(batches).filter(|(part, ..)| *part < 1.0));
        short.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut seen = Vec::new();
        short.retain(|(_, server, load, _)| {
            let new = !seen.contains(&(*server, *load));
            seen.push((*server, *load));
            new
        });
        short.into_iter().map(|(_, server, load, connections)| (server, load, connections)).collect()
    }
}

/// Writes `results.md`, `results.json` and `results.svg`.
pub fn write(results: &Results, out: &Path) -> anyhow::Result<()> {
    /// The results, and what follows from them for readers that do not want to compute it.
    #[derive(Serialize)]
    struct Whole<'a> {
        ratios: Vec<Ratio>,
        checks: Vec<Check>,
        #[serde(flatten)]
        results: &'a Results,
    }
    let whole = Whole { ratios: results.ratios(), checks: results.checks(), results };
    let files = [
        ("results.md", markdown::render(results)),
        ("results.json", serde_json::to_string_pretty(&whole)? + "\n"),
        ("results.svg", plot::render(results)),
    ];
    for (name, text) in files {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Middle and ends; 0 of nothing.
pub fn spread(values: &[f64]) -> Spread {
    let low = values.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0);
    let high = values.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0);
    Spread { median: median(values), low, high }
}

/// 1234567.8 as 1,234,568.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0
            && digit.is_ascii_digit()
            && text.ends_with(|c: char| c.is_ascii_digit())
            && (digits.len() - at) % 3 == 0
        {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn run(per_second: u64) -> Run {
        let answers = Answers {
            good: per_second,
            refused: 0,
            broken: 0,
            seconds: 1.0,
            mean_us: 700.0,
            p50_us: 600.0,
            p99_us: 2_000.0,
        };
        let journal = Some(Journal { write_seconds: 0.4, groups: 2_000.0 });
        Run { answers, cpu_seconds: 0.9, journal }
    }

    /// A whole run, in which durable additions reach 0.7, 0.7 and 0.8 of the bare server in three rounds.
    pub fn sample() -> Results {
        let mut measurements = Vec::new();
        for cell in plan::cells() {
            for &server in cell.servers {
                let share = match server {
                    Server::Bare => [100, 100, 100],
                    Server::Native => [76, 72, 80],
                    Server::Relaxed => [92, 91, 95],
                    Server::Durable => [70, 70, 80],
                };
                let scale = if cell.load.operations() == 1 { 1_000 } else { 1 };
                let runs = share.map(|percent| run(percent * scale)).to_vec();
                measurements.push(Measurement { load: cell.load, connections: cell.connections, server, runs });
            }
        }
        let estimate = |name: &str, median_ns, target_ns| Estimate {
            name: name.into(),
            median_ns,
            low_ns: median_ns - 5.0,
            high_ns: median_ns + 9.0,
            target_ns,
        };
        Results {
            date: "2026-01-02T03:04:05Z".into(),
            version: "abc1234".into(),
            machine: Machine {
                cpu: "Some CPU <fast>".into(),
                cores: 2,
                memory_mib: 8_192,
                kernel: "6.1".into(),
                busy_before: 0.02,
            },
            file_system: FileSystem { device: "/dev/vda".into(), kind: "ext4".into() },
            settings: Settings { seconds: 3, rounds: 3, wrk_threads: 2, quick: false },
            calibration: Some(Calibration {
                kept: Layout::PerCore,
                per_core_per_second: 100_000.0,
                multi_thread_per_second: 90_000.0,
            }),
            measurements,
            languages: [("native", "", 80), ("Rust", "inline", 79), ("Python", "pooled", 20)]
                .map(|(name, place, rate)| Language {
                    name,
                    place: place.into(),
                    runs: vec![run(rate * 1_000), run(rate * 1_001), run(rate * 1_002)],
                    answered: vec![1.0; 3],
                })
                .into(),
            policy: vec![
                estimate("select/3 shards", 270.0, Some(1_000.0)),
                estimate("select/64 shards", 275.0, Some(1_000.0)),
                estimate("select/native", 4.0, None),
                estimate("read/sum", 700.0, None),
            ],
            profiles: Vec::new(),
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn ratios_pair_neighbouring_rounds() {
        let ratios = sample().ratios();
        let find = |of, over| {
            let same = |r: &&Ratio| (r.load, r.connections, r.of, r.over) == (Load::Add, 16, of, over);
            ratios.iter().find(same).expect("measured").found
        };
        assert_eq!(find(Server::Durable, Server::Bare), Spread { median: 0.7, low: 0.7, high: 0.8 });
        // 70/76, 70/72 and 80/80: no quotient of medians.
        assert_eq!(find(Server::Durable, Server::Native).median, 70.0 / 72.0);
    }

    #[test]
    fn what_is_short_is_profiled_once_and_worst_first() {
        let short = sample().shortfalls();
        assert_eq!(short[0], (Server::Durable, Load::Batch { ops: 1_000 }, plan::BATCH_CONNECTIONS));
        let adds: Vec<_> =
            short.iter().filter(|(server, load, _)| (*server, *load) == (Server::Durable, Load::Add)).collect();
        assert_eq!(adds, [&(Server::Durable, Load::Add, 256)]);
    }

    #[test]
    fn checks_name_target_and_verdict() {
        let checks = sample().checks();
        let find = |text: &str| checks.iter().find(|check| check.what.contains(text)).expect("checked");
        assert!(find("one hot counter, 16 connections: durable over bare").met);
        assert!(!find("one hot counter, 256 connections: durable over bare").met);
        assert!(find("select/64").met);
        assert!(!checks.iter().any(|check| check.what.contains("64 connections: durable over bare hyper, adds")));
    }

    #[test]
    fn medians_and_digits() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(["0", "999", "1,000", "1,234,568", "-1,000"], [0.0, 999.0, 1e3, 1_234_567.8, -1e3].map(thousands));
    }

    #[test]
    fn three_files_are_written() {
        let dir = tempfile::tempdir().expect("a directory");
        write(&sample(), dir.path()).expect("written");
        let json = std::fs::read_to_string(dir.path().join("results.json")).expect("written");
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["ratios"][0]["found"]["median"], 0.7);
        assert_eq!(json["measurements"][0]["server"], "bare");
        for name in ["results.md", "results.svg"] {
            assert!(dir.path().join(name).metadata().expect("written").len() > 1_000);
        }
    }
}
