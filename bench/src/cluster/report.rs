//! `cluster.md` and `cluster.json`: targets and ratios first, then absolute numbers, appends and takeovers.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::nodes::Carried;
use super::plan::{self, Cell, Comparison, GAP_TARGET_MS, Subject, TAKEOVER_SLACK_SECONDS};
use super::takeover::{CONNECTIONS, PACE, Takeover};
use crate::load::Answers;
use crate::machine::Machine;
use crate::plan::{COUNTERS, Load};
use crate::report::markdown::targets;
use crate::report::{Check, Spread, spread, thousands};
use crate::shared;

/// Quipu's default, which the bench leaves alone.
const LEASE_SECONDS: f64 = 5.0;

#[derive(Debug, Serialize)]
pub struct Results {
    /// UTC, ISO 8601.
    pub date: String,
    /// The commit, as git describes it.
    pub version: String,
    pub machine: Machine,
    pub settings: Settings,
    pub measurements: Vec<Measurement>,
    pub takeovers: Vec<Takeover>,
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Settings {
    pub seconds: u32,
    pub rounds: u32,
    pub replication: u32,
    pub shards: u32,
    pub wrk_threads: u32,
}

/// One subject under one load, in all rounds of a pair.
#[derive(Debug, Serialize)]
pub struct Measurement {
    #[serde(flatten)]
    pub cell: Cell,
    pub subject: Subject,
    /// Which subject of Quipu ran at the same time; its own for Quipu.
    pub beside: Subject,
    pub runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Run {
    pub answers: Answers,
    /// CPU time of Quipu's nodes, with what they still did after the last answer.
    pub nodes_cpu_seconds: f64,
    /// CPU time of Cassandra, when its process was named.
    pub cassandra_cpu_seconds: Option<f64>,
    /// Of Quipu's journals.
    pub carried: Option<Carried>,
}

/// Quipu beside what it is compared with: the quotients of the rounds.
#[derive(Debug, Serialize)]
pub struct Ratio {
    #[serde(flatten)]
    pub cell: Cell,
    pub yardstick: Subject,
    /// The yardstick's load.
    pub beside: Load,
    pub quipu: Subject,
    pub found: Spread,
    pub target: Option<f64>,
}

impl Measurement {
    pub fn note(all: &mut Vec<Self>, cell: Cell, subject: Subject, beside: Subject, run: Run) {
        match all.iter_mut().find(|m| (m.cell, m.subject, m.beside) == (cell, subject, beside)) {
            Some(measurement) => measurement.runs.push(run),
            None => all.push(Self { cell, subject, beside, runs: vec![run] }),
        }
    }

    fn who(&self) -> String {
        match self.subject == self.beside {
            true => self.subject.name(),
            false => format!("{}, beside {}", self.subject.name(), self.beside.name()),
        }
    }

    fn operations(&self, run: &Run) -> f64 {
        run.answers.good as f64 * f64::from(self.cell.load.operations())
    }

    fn per_second(&self, run: &Run) -> f64 {
        run.answers.per_second() * f64::from(self.cell.load.operations())
    }

    fn spread_of(&self, value: impl Fn(&Run) -> f64) -> Spread {
        spread(&self.runs.iter().map(value).collect::<Vec<_>>())
    }

    /// The median of what every run has, or a dash.
    fn median_of(&self, digits: usize, value: impl Fn(&Run) -> Option<f64>) -> String {
        let values: Vec<f64> = self.runs.iter().filter_map(value).collect();
        match values.is_empty() {
            true => "–".into(),
            false => format!("{:.digits$}", spread(&values).median),
        }
    }
}

impl Results {
    fn find(&self, cell: Cell, subject: Subject, beside: Subject) -> Option<&Measurement> {
        self.measurements.iter().find(|m| (m.cell, m.subject, m.beside) == (cell, subject, beside))
    }

    pub fn ratios(&self) -> Vec<Ratio> {
        let mut ratios = Vec::new();
        for compared in plan::comparisons() {
            let Comparison { cell, beside, target } = compared;
            let yardstick = beside.yardstick();
            for quipu in cell.quipus() {
                let Some(other) = self.find(beside, yardstick, quipu) else { continue };
                let Some(measured) = self.find(cell, quipu, quipu) else { continue };
                let pairs = measured.runs.iter().zip(&other.runs);
                let quotients: Vec<f64> = pairs.map(|(q, o)| measured.per_second(q) / other.per_second(o)).collect();
                let target = target.filter(|_| matches!(quipu, Subject::Nodes(1) | Subject::Alone));
                ratios.push(Ratio { cell, yardstick, beside: beside.load, quipu, found: spread(&quotients), target });
            }
        }
        ratios
    }

    pub fn checks(&self) -> Vec<Check> {
        let ratios = self.ratios().into_iter().filter_map(|ratio| {
            let target = ratio.target?;
            let Spread { median, low, high } = ratio.found;
            Some(Check {
                what: format!(
                    "{}, {} clients, {}, {}, over {} ({})",
                    ratio.cell.load.name(),
                    ratio.cell.clients,
                    ratio.cell.wire.name(),
                    ratio.quipu.name(),
                    ratio.yardstick.name(),
                    ratio.beside.name()
                ),
                needed: format!("{target:.1} or more"),
                found: format!("{median:.2} ({low:.2} to {high:.2})"),
                met: median >= target,
            })
        });
        let takeover = |what: &str, most: f64, unit: &str, value: fn(&Takeover) -> f64| {
            let Spread { median, low, high } = spread(&self.takeovers.iter().map(value).collect::<Vec<_>>());
            Check {
                what: format!("{what}, the longest of {}", self.takeovers.len()),
                needed: format!("{most:.1} {unit} or less"),
                found: format!("{high:.1} {unit} (median {median:.1}, shortest {low:.1})"),
                met: high <= most,
            }
        };
        let takeovers = [
            takeover("takeover after kill -9", LEASE_SECONDS + TAKEOVER_SLACK_SECONDS, "s", |t| t.seconds),
            takeover("time without an addition, a client of a surviving node", GAP_TARGET_MS, "ms", |t| t.gap_ms),
        ];
        ratios.chain(takeovers.into_iter().filter(|_| !self.takeovers.is_empty())).collect()
    }
}

/// Writes `cluster.md` and `cluster.json`.
pub fn write(results: &Results, out: &Path) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Whole<'a> {
        ratios: Vec<Ratio>,
        checks: Vec<Check>,
        #[serde(flatten)]
        results: &'a Results,
    }
    let whole = Whole { ratios: results.ratios(), checks: results.checks(), results };
    let files = [("cluster.md", render(results)), ("cluster.json", serde_json::to_string_pretty(&whole)? + "\n")];
    for (name, text) in files {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn render(results: &Results) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = sections(results, &mut text);
    text
}

fn sections(results: &Results, out: &mut String) -> std::fmt::Result {
    let checks = results.checks();
    let met = checks.iter().filter(|check| check.met).count();
    writeln!(out, "# A cluster beside Cassandra's counter columns and the first system\n")?;
    writeln!(out, "{} · commit {} · {met} of {} targets met\n", results.date, results.version, checks.len())?;
    for note in &results.notes {
        writeln!(out, "> {note}\n")?;
    }
    targets(&checks, out)?;
    ratios(results, out)?;
    rates(results, out)?;
    appends(results, out)?;
    takeovers(results, out)?;
    conditions(results, out)
}

fn ratios(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n## Ratios\n")?;
    writeln!(
        out,
        "Additions per second of Quipu over those of another in the same round; nothing else runs then. The nodes, Cassandra \
         and the load share the cores of one machine, so more nodes do not bring more here. The first system, an app before three shards and \
         etcd, keeps its counters in memory; Quipu's are journaled.\n"
    )?;
    writeln!(out, "| load | over | clients | Quipu | ratio | target |\n|---|---|---|---|---|---|")?;
    for ratio in results.ratios() {
        let Spread { median, low, high } = ratio.found;
        let target = ratio.target.map_or_else(|| "–".into(), |target| format!("{target:.1}"));
        let (load, yardstick, beside) = (ratio.cell.load.name(), ratio.yardstick.name(), ratio.beside.name());
        writeln!(
            out,
            "| {load} | {yardstick}: {beside} | {} | {} | **{median:.2}** ({low:.2} to {high:.2}) | {target} |",
            ratio.cell.clients_by_wire(),
            ratio.quipu.name()
        )?;
    }
    Ok(())
}

fn rates(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n## Additions per second\n")?;
    writeln!(
        out,
        "Latencies are those of whole requests; with several nodes the slowest node's. CPU is microseconds per addition: of \
         Quipu's nodes, and of Cassandra.\n"
    )?;
    writeln!(out, "| load | clients | subject | per second | p50 ms | p99 ms | CPU Quipu | CPU Cassandra |")?;
    writeln!(out, "|---|---|---|---|---|---|---|---|")?;
    for m in &results.measurements {
        let Spread { median, low, high } = m.spread_of(|run| m.per_second(run));
        writeln!(
            out,
            "| {} | {} | {} | **{}** ({} to {}) | {} | {} | {} | {} |",
            m.cell.load.name(),
            m.cell.clients_by_wire(),
            m.who(),
            thousands(median),
            thousands(low),
            thousands(high),
            m.median_of(2, |run| Some(run.answers.p50_us / 1e3)),
            m.median_of(2, |run| Some(run.answers.p99_us / 1e3)),
            m.median_of(1, |run| run.carried.map(|_| run.nodes_cpu_seconds * 1e6 / m.operations(run))),
            m.median_of(1, |run| run.cassandra_cpu_seconds.map(|cpu| cpu * 1e6 / m.operations(run))),
        )?;
    }
    Ok(())
}

fn appends(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n## Appends\n")?;
    writeln!(out, "Each is one conditional write to Cassandra; what arrives meanwhile shares the next one.\n")?;
    writeln!(out, "| load | clients | nodes | appends per second | ms of an append | additions per append |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for m in &results.measurements {
        let Subject::Nodes(nodes) = m.subject else { continue };
        writeln!(
            out,
            "| {} | {} | {nodes} | {} | {} | {} |",
            m.cell.load.name(),
            m.cell.clients_by_wire(),
            m.median_of(0, |run| Some(run.carried?.entries / run.answers.seconds)),
            m.median_of(2, |run| run.carried.map(|c| c.append_seconds * 1e3 / c.entries)),
            m.median_of(1, |run| run.carried.map(|c| c.operations / c.entries)),
        )?;
    }
    Ok(())
}

fn takeovers(results: &Results, out: &mut String) -> std::fmt::Result {
    if results.takeovers.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n## Takeover after kill -9\n")?;
    writeln!(
        out,
        "One of three nodes is killed; the lease is {LEASE_SECONDS:.0} s. *Served* is the time until an exact read over all \
         shards, sent after the kill, was answered. A client of a surviving node sends an addition every {PACE:?}, answered or \
         not those before it, on {CONNECTIONS} connections: the *gap* is the longest time in which none of them succeeded, \
         *from* so long after the kill. \
         One that was sent to the killed node waits for the takeover: *longest answer*.\n"
    )?;
    writeln!(
        out,
        "| journal to replay, MiB | served after, s | gap, ms | from, ms | longest answer, ms | not acknowledged |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    let mut sorted = results.takeovers.clone();
    sorted.sort_by(|a, b| a.journal_bytes.total_cmp(&b.journal_bytes));
    for t in sorted {
        let mib = t.journal_bytes / f64::from(1 << 20);
        writeln!(
            out,
            "| {mib:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {} |",
            t.seconds, t.gap_ms, t.gap_from_ms, t.longest_ms, t.failed
        )?;
    }
    Ok(())
}

fn conditions(results: &Results, out: &mut String) -> std::fmt::Result {
    let (machine, settings) = (&results.machine, &results.settings);
    writeln!(out, "\n## Conditions\n")?;
    writeln!(
        out,
        "{} · {} cores · {} MiB · Linux {} · others used {:.0} % of the CPU before the start",
        machine.cpu,
        machine.cores,
        machine.memory_mib,
        machine.kernel,
        machine.busy_before * 100.0
    )?;
    writeln!(
        out,
        "\n{} rounds of {} s; replication {}; clusters of {} shards; HTTP/1.1 by wrk with {} threads per node, a connection for each client, HTTP/2 by h2load and RESP by a client \
         library, {} connections per node for all clients; batches over {} counters of {}. Etcd, Cassandra, all nodes and the load ran on this machine.",
        settings.rounds,
        settings.seconds,
        settings.replication,
        settings.shards,
        settings.wrk_threads,
        shared::CONNECTIONS,
        thousands(1_000.0),
        thousands(f64::from(COUNTERS)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Results {
        let mut measurements = Vec::new();
        for cell in plan::cells() {
            let pairs = [1, 3].map(Subject::Nodes).map(|quipu| [(cell.yardstick(), quipu), (quipu, quipu)]);
            for (subject, beside) in pairs.into_iter().flatten() {
                for round in 1..=3_u64 {
                    let times = if subject == beside { 1 + round } else { 1 };
                    let answers = Answers {
                        good: 1_000 * times,
                        refused: 0,
                        broken: 0,
                        seconds: 1.0,
                        mean_us: 700.0,
                        p50_us: 600.0,
                        p99_us: 2_000.0,
                    };
                    let carried = Carried { operations: 1_000.0, entries: 100.0, append_seconds: 0.25 };
                    let carried = Some(carried).filter(|_| subject == beside);
                    let run = Run { answers, nodes_cpu_seconds: 0.02, cassandra_cpu_seconds: None, carried };
                    Measurement::note(&mut measurements, cell, subject, beside, run);
                }
            }
        }
        let takeover = |seconds, gap_ms| Takeover {
            journal_bytes: seconds * 1e6,
            seconds,
            gap_ms,
            gap_from_ms: 3.0,
            longest_ms: 5_000.0,
            failed: 2,
        };
        Results {
            date: "2026-01-02T03:04:05Z".into(),
            version: "abc1234".into(),
            machine: Machine {
                cpu: "Some CPU".into(),
                cores: 2,
                memory_mib: 8_192,
                kernel: "6.1".into(),
                busy_before: 0.02,
            },
            settings: Settings { seconds: 3, rounds: 3, replication: 1, shards: 3, wrk_threads: 2 },
            measurements,
            takeovers: vec![takeover(5.5, 20.0), takeover(5.2, 130.0)],
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn targets_are_for_one_node_and_medians_of_rounds() {
        let checks = sample().checks();
        let find = |text: &str| checks.iter().find(|check| check.what.contains(text)).expect("checked");
        // 2, 3 and 4 times: the median is 3.
        assert!(find("one hot counter, 64 clients, HTTP/1.1, 1 node").met);
        assert!(find("one hot counter, 256 clients, HTTP/2, 1 node").met);
        assert!(find("batches of 100 adds, 64 clients").met, "300 times as many additions");
        assert!(!find("over first system").met, "three times as many, of twenty");
        assert!(!checks.iter().any(|check| check.what.contains("3 nodes")));
    }

    #[test]
    fn the_longest_takeover_counts() {
        let checks = sample().checks();
        let find = |text: &str| checks.iter().find(|check| check.what.contains(text)).expect("checked");
        assert!(find("takeover after kill").met);
        assert!(!find("time without an addition").met);
    }

    #[test]
    fn the_report_holds_every_table() {
        let dir = tempfile::tempdir().expect("a directory");
        write(&sample(), dir.path()).expect("written");
        let text = std::fs::read_to_string(dir.path().join("cluster.md")).expect("written");
        for heading in ["Targets", "Ratios", "Additions per second", "Appends", "Takeover after kill -9", "Conditions"]
        {
            assert!(text.contains(&format!("## {heading}\n")), "{heading}");
        }
        assert!(text.contains("| adds, one hot counter | 64, HTTP/1.1 | 1 | 100 | 2.50 | 10.0 |"), "{text}");
        let json = std::fs::read_to_string(dir.path().join("cluster.json")).expect("written");
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["ratios"][0]["found"]["median"], 3.0);
    }
}
