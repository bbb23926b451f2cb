//! The run: start everything, measure in turn for some rounds, check that nothing was lost, write the report.
//!
//! Within one cell the servers are measured one after the other, and the cells repeat in each round: what disturbs the
//! machine for a while disturbs neighbours alike, and a ratio is taken only between neighbours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::bare::{Answer, Layout};
use crate::load::{Answers, Generator};
use crate::machine::{self, Machine};
use crate::plan::{self, Cell, Load, Server};
use crate::report::{Calibration, Check, Measurement, Results, Run, Settings, median};
use crate::servers::{Places, Process};
use crate::{languages, policy, profile, report};

/// Profiles recorded at most; each takes some seconds.
const PROFILES_MAX: usize = 4;
const WARM_UP_SECONDS: u32 = 1;
/// A server that uses less than this share of a core for this long is done.
const QUIET: Duration = Duration::from_millis(100);
const QUIET_SHARE_MAX: f64 = 0.15;
const QUIET_DEADLINE: Duration = Duration::from_secs(5);
const CALIBRATION_ROUNDS: usize = 5;
const CALIBRATION_CONNECTIONS: u32 = 64;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Seconds per measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Measurements of every cell
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// A rough look: 2 seconds, 3 rounds
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    quick: bool,
    /// Only these loads
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// The program to measure [default: quipu beside this program]
    #[arg(long)]
    quipu: Option<PathBuf>,
    /// Directory below which the data live while measuring; on a disk [default: the build directory]
    #[arg(long)]
    data_parent: Option<PathBuf>,
    /// Where results.md, results.json and results.svg go [default: bench/results]
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Additions, to one counter and to many
    Adds,
    Reads,
    Batches,
    /// Additions under policies of other languages, with state, and with an open breaker
    Languages,
    /// The policy call alone
    Policy,
}

impl Options {
    fn wants(&self, kind: Kind) -> bool {
        self.only.is_empty() || self.only.contains(&kind)
    }

    fn cells(&self) -> Vec<Cell> {
        let wanted = |cell: &Cell| match cell.load {
            Load::Add | Load::AddMany | Load::Increment => self.wants(Kind::Adds),
            Load::Read => self.wants(Kind::Reads),
            Load::Batch { .. } => self.wants(Kind::Batches),
        };
        plan::cells().into_iter().filter(wanted).collect()
    }
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let (seconds, rounds) = if options.quick { (2, 3) } else { (options.seconds, options.rounds) };
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let release = program.parent().context("this program's file has no directory")?.to_owned();
    let quipu = options.quipu.clone().unwrap_or_else(|| release.join("quipu"));
    if !quipu.is_file() {
        bail!("there is no {}: build it with make build, or name it with --quipu", quipu.display());
    }
    let workspace = workspace();
    let out = options.out.clone().unwrap_or_else(|| workspace.join("bench/results"));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let data_parent = options.data_parent.as_deref().unwrap_or(&release);
    let file_system = machine::real_disk(data_parent)?;
    let scratch = tempfile::Builder::new()
        .prefix("quipu-bench-")
        .tempdir_in(data_parent)
        .with_context(|| format!("cannot make a directory in {}", data_parent.display()))?;
    let places = Places { quipu, scratch: scratch.path().to_owned(), logs: out.clone() };
    let machine = Machine::look()?;
    let threads = u32::try_from(machine.cores).unwrap_or(1);
    let generator = Generator::new(scratch.path(), threads)?;

    let cells = options.cells();
    let mut results = Results {
        date: output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        version: output("git", &["-C", &workspace.to_string_lossy(), "describe", "--always", "--dirty"]),
        machine,
        file_system,
        settings: Settings { seconds, rounds, wrk_threads: threads, quick: options.quick },
        calibration: None,
        measurements: Vec::new(),
        languages: Vec::new(),
        policy: Vec::new(),
        profiles: Vec::new(),
        notes: Vec::new(),
    };
    if !cells.is_empty() {
        let mut bench = Bench::start(&places, &generator, &mut results)?;
        bench.measure(&cells, seconds, rounds)?;
        bench.check_totals()?;
        results.measurements = std::mem::take(&mut bench.measurements);
        bench.profile_shortfalls(&places, &mut results)?;
    }
    if options.wants(Kind::Languages) {
        let notes = &mut results.notes;
        results.languages = languages::measure(&workspace, &places, &generator, (seconds, rounds), notes)?;
    }
    if options.wants(Kind::Policy) {
        println!("the policy call alone");
        results.policy = policy::measure(&workspace, release.parent().unwrap_or(&release), options.quick)?;
    }
    let checks = results.checks();
    report::write(&results, &out)?;
    conclude(&checks, &results.notes, &out, started);
    Ok(())
}

/// cargo tells where the sources are; without it, where they were when this was built.
pub fn workspace() -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or(package.clone(), Path::to_owned)
}

/// What a command prints, or "unknown": only for the heading of the report.
pub fn output(program: &str, arguments: &[&str]) -> String {
    let printed = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    printed.map_or_else(|| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn conclude(checks: &[Check], notes: &[String], out: &Path, started: Instant) {
    println!();
    for check in checks {
        println!("{}", check.sentence());
    }
    for note in notes {
        println!("note: {note}");
    }
    let met = checks.iter().filter(|check| check.met).count();
    println!(
        "\n{met} of {} targets met in {:.1} minutes; see {}",
        checks.len(),
        started.elapsed().as_secs_f64() / 60.0,
        out.join("results.md").display()
    );
}

/// The running servers and what was measured of them.
struct Bench<'a> {
    generator: &'a Generator,
    processes: BTreeMap<Server, Process>,
    measurements: Vec<Measurement>,
    /// Additions to the hot counter that each server acknowledged, since `hot_before`.
    hot_acknowledged: BTreeMap<Server, u64>,
    /// Additions that may have been applied though the load ended before their answer came.
    hot_open: BTreeMap<Server, u64>,
    hot_before: BTreeMap<Server, i64>,
}

impl<'a> Bench<'a> {
    /// Starts and fills every Quipu, then the bare server with Quipu's own answers.
    fn start(places: &Places, generator: &'a Generator, results: &mut Results) -> anyhow::Result<Self> {
        let mut processes = BTreeMap::new();
        let mut hot_before = BTreeMap::new();
        for server in Server::QUIPU {
            println!("starting and filling: {}", server.name());
            let process = places.start_quipu(server)?;
            if server == Server::Relaxed {
                process.relax()?;
            }
            process.fill()?;
            let warm = generator.run(Load::Add, process.addr(), CALIBRATION_CONNECTIONS, WARM_UP_SECONDS)?;
            complete(&warm).with_context(|| format!("{}, warming up", server.name()))?;
            // Whatever is still queued is settled by the time the value stands.
            let least = i64::try_from(warm.good).unwrap_or(i64::MAX);
            process.settled_value(least)?;
            processes.insert(server, process);
        }
        let durable = &processes[&Server::Durable];
        let (bare, calibration) = fastest_bare(places, generator, &durable.answers()?)?;
        results.calibration = Some(calibration);
        processes.insert(Server::Bare, bare);
        for server in Server::QUIPU {
            hot_before.insert(server, processes[&server].settled_value(0)?);
        }
        let (measurements, hot_acknowledged, hot_open) = Default::default();
        Ok(Self { generator, processes, measurements, hot_acknowledged, hot_open, hot_before })
    }

    fn measure(&mut self, cells: &[Cell], seconds: u32, rounds: u32) -> anyhow::Result<()> {
        let all: usize = cells.iter().map(|cell| cell.servers.len()).sum();
        let minutes = (all as u32 * rounds * seconds) as f64 / 60.0;
        println!("{rounds} rounds of {all} measurements of {seconds} s: about {minutes:.0} minutes");
        for round in 1..=rounds {
            for cell in cells {
                let mut line = Vec::new();
                for &server in cell.servers {
                    let run = self.one(cell, server, seconds)?;
                    let per_second = run.answers.per_second() * f64::from(cell.load.operations());
                    line.push(format!("{} {}", server.name(), report::thousands(per_second)));
                }
                println!("round {round}: {} at {}: {}", cell.load.name(), cell.connections, line.join(", "));
            }
        }
        Ok(())
    }

    fn one(&mut self, cell: &Cell, server: Server, seconds: u32) -> anyhow::Result<Run> {
        let process = &self.processes[&server];
        let journaled = server != Server::Bare && cell.load != Load::Read;
        let journal = || if journaled { process.journal().map(Some) } else { Ok(None) };
        let journal_before = journal()?;
        let cpu_before = machine::cpu_seconds(process.id())?;
        let answers = self.generator.run(cell.load, process.addr(), cell.connections, seconds)?;
        let cpu_seconds = quiet(process)? - cpu_before;
        let journal = journal()?.zip(journal_before).map(|(after, before)| after.since(before));
        let what = || format!("{}, {} at {} connections", server.name(), cell.load.name(), cell.connections);
        complete(&answers).with_context(what)?;
        if cell.load == Load::Add {
            *self.hot_acknowledged.entry(server).or_default() += answers.good;
            *self.hot_open.entry(server).or_default() += u64::from(cell.connections);
        }
        let run = Run { answers, cpu_seconds, journal };
        let same = |m: &&mut Measurement| (m.load, m.connections, m.server) == (cell.load, cell.connections, server);
        match self.measurements.iter_mut().find(same) {
            Some(measurement) => measurement.runs.push(run),
            None => self.measurements.push(Measurement {
                load: cell.load,
                connections: cell.connections,
                server,
                runs: vec![run],
            }),
        }
        Ok(run)
    }

    /// What was acknowledged must be in the counter, and no more than was sent.
    fn check_totals(&self) -> anyhow::Result<()> {
        for server in Server::QUIPU {
            let acknowledged = self.hot_acknowledged.get(&server).copied().unwrap_or(0);
            let least = self.hot_before[&server] + i64::try_from(acknowledged)?;
            let most = least + i64::try_from(self.hot_open.get(&server).copied().unwrap_or(0))?;
            let value = self.processes[&server].settled_value(least)?;
            if !(least..=most).contains(&value) {
                bail!("{}: {HOT} is {value} and must be from {least} to {most}", server.name(), HOT = plan::HOT);
            }
        }
        Ok(())
    }

    fn profile_shortfalls(&self, places: &Places, results: &mut Results) -> anyhow::Result<()> {
        let short = results.shortfalls();
        if short.is_empty() {
            return Ok(());
        }
        if !profile::is_available() {
            results.notes.push("no profiles of what fell short: perf is not installed".into());
            return Ok(());
        }
        for (server, load, connections) in short.into_iter().take(PROFILES_MAX) {
            println!("profiling {}: {} at {connections}", server.name(), load.name());
            let process = &self.processes[&server];
            match profile::record(self.generator, process, server, (load, connections), &places.scratch) {
                Ok(profile) => results.profiles.push(profile),
                Err(why) => results.notes.push(format!("no profile of {}, {}: {why:#}", server.name(), load.name())),
            }
        }
        Ok(())
    }
}

/// Waits until the server does nothing more, so that what it left for later (a checkpoint, say) is counted as its
/// own CPU time and does not slow the next one down. Answers its CPU time so far.
pub fn quiet(process: &Process) -> anyhow::Result<f64> {
    let deadline = Instant::now() + QUIET_DEADLINE;
    let mut before = machine::cpu_seconds(process.id())?;
    loop {
        std::thread::sleep(QUIET);
        let after = machine::cpu_seconds(process.id())?;
        if after - before <= QUIET.as_secs_f64() * QUIET_SHARE_MAX || Instant::now() > deadline {
            return Ok(after);
        }
        before = after;
    }
}

/// A measurement with errors is none: its requests did not do the work.
pub fn complete(answers: &Answers) -> anyhow::Result<()> {
    if answers.good == 0 || answers.refused + answers.broken > 0 {
        let Answers { good, refused, broken, .. } = answers;
        bail!("{good} requests were answered well, {refused} refused and {broken} not answered");
    }
    Ok(())
}

/// Runs both layouts side by side and keeps the one with the higher median.
fn fastest_bare(places: &Places, generator: &Generator, answers: &[Answer]) -> anyhow::Result<(Process, Calibration)> {
    println!("choosing the layout of the bare server");
    let per_core = places.start_bare(Layout::PerCore, answers)?;
    let multi_thread = places.start_bare(Layout::MultiThread, answers)?;
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..CALIBRATION_ROUNDS {
        for (process, rates) in [&per_core, &multi_thread].into_iter().zip(&mut rates) {
            let seen = generator.run(Load::Add, process.addr(), CALIBRATION_CONNECTIONS, WARM_UP_SECONDS)?;
            complete(&seen).context("the bare server")?;
            rates.push(seen.per_second());
        }
    }
    let [per_core_per_second, multi_thread_per_second] = rates.map(|rates| median(&rates));
    let (process, kept) = if per_core_per_second >= multi_thread_per_second {
        (per_core, Layout::PerCore)
    } else {
        (multi_thread, Layout::MultiThread)
    };
    Ok((process, Calibration { kept, per_core_per_second, multi_thread_per_second }))
}
