//! `quipu-bench cluster`: Quipu on etcd and Cassandra beside Cassandra's own counter columns, and beside the system that it
//! replaces, side by side in one run.
//!
//! Quipu with 1, 2 and 3 nodes comes one after the other, and each is started for itself, since idle nodes would cost whoever
//! is measured. Beside each, the load goes from the yardstick to Quipu and back: all cells in each round. Each measurement
//! begins when nothing is left to do of those before it, a checkpoint say. A ratio is taken within one round. Then nodes
//! are killed. Everything that was made in etcd and Cassandra is removed at the end.
//!
//! Next: `plan` (what is measured and what it must reach), `nodes`, `columns`, `first`, `takeover`, `report`.

mod columns;
mod first;
mod nodes;
mod plan;
mod report;
mod takeover;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use self::columns::Columns;
use self::first::FirstSystem;
use self::nodes::{Cluster, Services};
use self::plan::{Cell, Pair, Subject, Wire};
use self::report::{Measurement, Results, Run, Settings};
use crate::load::Generator;
use crate::machine::{self, Machine};
use crate::plan::Load;
use crate::report::thousands;
use crate::resp::Resp;
use crate::run::{complete, output, workspace};
use crate::servers::Places;
use crate::shared::Shared;

/// A measurement with errors is no measurement; another may be.
const TRIES: u32 = 2;
/// For what an earlier measurement left to do, rows of a checkpoint, flushes and compactions, not longer is waited.
const CALM_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// etcd to use: URL[,URL]
    #[arg(long, env = "QUIPU_TEST_ETCD")]
    etcd: String,
    /// Cassandra to use: HOST:PORT[,…]
    #[arg(long, env = "QUIPU_TEST_CASSANDRA")]
    cassandra: String,
    /// Copies of everything, of Quipu's rows and of the counter columns alike
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=9))]
    replication: u32,
    /// Shards of every cluster; as few as it will ever have nodes carry most
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=4096))]
    shards: u32,
    /// Sizes of the clusters to measure
    #[arg(long, value_delimiter = ',', default_values_t = plan::NODES)]
    nodes: Vec<usize>,
    /// Seconds per measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Measurements of every cell
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=50))]
    rounds: u32,
    /// Nodes killed for every length of the journal
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=50))]
    kills: u32,
    /// Seconds between rounds, for a machine that others need too
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=600))]
    pause: u32,
    /// Process id of Cassandra when it runs on this machine, to count its CPU time and to wait until it is calm
    #[arg(long)]
    cassandra_process: Option<u32>,
    /// The first system's program, built of its source, to measure it too; needs root and `ip`
    #[arg(long, env = "FIRST_SYSTEM")]
    first_system: Option<PathBuf>,
    /// The program to measure [default: quipu beside this program]
    #[arg(long)]
    quipu: Option<PathBuf>,
    /// Where cluster.md and cluster.json go [default: bench/results]
    #[arg(long)]
    out: Option<PathBuf>,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let release = program.parent().context("this program's file has no directory")?;
    let quipu = options.quipu.clone().unwrap_or_else(|| release.join("quipu"));
    if !quipu.is_file() {
        bail!("there is no {}: build it with make build, or name it with --quipu", quipu.display());
    }
    let workspace = workspace();
    let out = options.out.clone().unwrap_or_else(|| workspace.join("bench/results"));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let scratch = tempfile::Builder::new().prefix("quipu-bench-").tempdir().context("cannot make a directory")?;
    let places = Places { quipu, scratch: scratch.path().to_owned(), logs: out.clone() };
    let machine = Machine::look()?;
    let threads = u32::try_from(machine.cores).unwrap_or(1);
    let generator = Generator::new(scratch.path(), threads)?;
    let mut results = Results {
        date: output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        version: output("git", &["-C", &workspace.to_string_lossy(), "describe", "--always", "--dirty"]),
        machine,
        settings: Settings {
            seconds: options.seconds,
            rounds: options.rounds,
            replication: options.replication,
            shards: options.shards,
            wrk_threads: threads,
        },
        measurements: Vec::new(),
        takeovers: Vec::new(),
        notes: Vec::new(),
    };
    let mut bench = Bench::start(places, options)?;
    let measured = plan::pairs().into_iter().try_for_each(|pair| bench.measure(pair, &generator, &mut results));
    // Also after an error: what was made is removed.
    let removed = bench.remove();
    measured?;
    report::write(&results, &out)?;
    println!();
    for check in results.checks() {
        println!("{}", check.sentence());
    }
    println!("\nsee {}", out.join("cluster.md").display());
    removed
}

/// What is there all the time.
struct Bench<'a> {
    options: &'a Options,
    places: Places,
    services: Services,
    /// Names of this run begin with it.
    name: String,
    columns: Columns,
    first: Option<FirstSystem>,
    /// The load over HTTP/2.
    shared: Shared,
    /// The load over RESP.
    resp: Resp,
}

/// A cluster, or a process by itself, while it is measured.
struct Measured {
    cluster: Cluster,
    /// Additions to its hot counter that were acknowledged, and that may have been applied.
    hot: (u64, u64),
}

impl<'a> Bench<'a> {
    fn start(places: Places, options: &'a Options) -> anyhow::Result<Self> {
        let services = Services {
            etcd: options.etcd.clone(),
            cassandra: options.cassandra.clone(),
            replication: options.replication,
            shards: options.shards,
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("the clock is wrong")?;
        let name = format!("bench_{}", now.as_millis());
        let contact_points: Vec<String> = services.cassandra.split(',').map(str::to_owned).collect();
        let columns = Columns::create(&contact_points, format!("{name}_columns"), services.replication)?;
        let (shared, resp) = (Shared::new(&places.scratch)?, Resp::new()?);
        Ok(Self { options, places, services, name, columns, first: None, shared, resp })
    }

    /// Starts a pair, measures all rounds, kills nodes if they are this pair's, and removes its cluster.
    fn measure(&mut self, pair: Pair, generator: &Generator, results: &mut Results) -> anyhow::Result<()> {
        let unwanted = matches!(pair.quipu, Subject::Nodes(count) if !self.options.nodes.contains(&count));
        if unwanted || self.options.rounds == 0 && !pair.is_killed() {
            return Ok(());
        }
        if pair.yardstick == Subject::First && self.first.is_none() {
            let Some(program) = &self.options.first_system else {
                let why = "the first system was not measured: `--first-system` names its program";
                if !results.notes.iter().any(|note| note == why) {
                    results.notes.push(why.into());
                }
                return Ok(());
            };
            println!("starting: {}", Subject::First.name());
            self.first = Some(FirstSystem::start(program, &self.services)?);
        }
        let (quipu, yardstick) = (pair.quipu.name(), pair.yardstick.name());
        println!("starting and filling: {quipu}, to be measured beside {yardstick}");
        let Subject::Nodes(count) = pair.quipu else {
            return self.measure_started(pair, Cluster::alone(&self.places)?, generator, results);
        };
        let name = format!("{}_{count}", self.name);
        let started = Cluster::start(&self.places, &self.services, name.clone(), count);
        let measured = started.and_then(|cluster| self.measure_started(pair, cluster, generator, results));
        // Also after an error: what was made is removed.
        self.columns.drop_keyspace(&name)?;
        nodes::forget(&self.services, &name)?;
        measured
    }

    fn measure_started(
        &mut self,
        pair: Pair,
        cluster: Cluster,
        generator: &Generator,
        results: &mut Results,
    ) -> anyhow::Result<()> {
        cluster.fill()?;
        // One addition of each pass of the filling went to the hot counter.
        let mut measured = Measured { cluster, hot: (nodes::FILLS.into(), 0) };
        for round in 1..=self.options.rounds {
            println!("round {round} beside {} begins", pair.yardstick.name());
            for cell in pair.cells() {
                let mut line = Vec::new();
                for subject in [pair.yardstick, pair.quipu] {
                    let run = self.tried(generator, cell, subject, &mut measured, &mut results.notes)?;
                    let per_second = run.answers.per_second() * f64::from(cell.load.operations());
                    line.push(format!("{} {}", subject.name(), thousands(per_second)));
                    Measurement::note(&mut results.measurements, cell, subject, pair.quipu, run);
                }
                println!("round {round}: {} of {}: {}", cell.load.name(), cell.clients_by_wire(), line.join(", "));
            }
            println!("round {round} beside {} ends", pair.yardstick.name());
            if round < self.options.rounds {
                std::thread::sleep(Duration::from_secs(self.options.pause.into()));
            }
        }
        measured.cluster.check_hot(measured.hot.0, measured.hot.1)?;
        if pair.is_killed() {
            let (places, services, kills) = (&self.places, &self.services, self.options.kills);
            results.takeovers = takeover::measure(places, services, generator, &mut measured.cluster, kills)?;
        }
        self.first.as_ref().map_or(Ok(()), FirstSystem::check)
    }

    /// Measures again, and says so, when some requests were not answered well.
    fn tried(
        &mut self,
        generator: &Generator,
        cell: Cell,
        subject: Subject,
        measured: &mut Measured,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Run> {
        let what = format!("{}, {} of {} clients", subject.name(), cell.load.name(), cell.clients_by_wire());
        let mut tries = 1;
        loop {
            let used = || Ok(measured.cluster.cpu_seconds()? + self.cassandra_cpu_seconds()?.unwrap_or(0.0));
            if !machine::quiet(used, CALM_DEADLINE)?.1 {
                notes.push(format!("begun while an earlier measurement still made work: {what}"));
            }
            let run = self.one(generator, cell, subject, measured)?;
            match complete(&run.answers) {
                Ok(()) => return Ok(run),
                Err(why) if tries < TRIES => notes.push(format!("measured again: {what}: {why}")),
                Err(why) => return Err(why.context(what)),
            }
            tries += 1;
        }
    }

    fn one(
        &mut self,
        generator: &Generator,
        cell: Cell,
        subject: Subject,
        measured: &mut Measured,
    ) -> anyhow::Result<Run> {
        let seconds = self.options.seconds;
        match subject {
            Subject::Nodes(_) | Subject::Alone => {}
            Subject::Columns => {
                let before = self.cassandra_cpu_seconds()?;
                let answers = self.columns.run(cell.load, cell.clients, seconds)?;
                let cassandra_cpu_seconds = self.cassandra_cpu_seconds()?.zip(before).map(|(now, was)| now - was);
                return Ok(Run { answers, nodes_cpu_seconds: 0.0, cassandra_cpu_seconds, carried: None });
            }
            Subject::First => {
                let first = self.first.as_mut().context("the first system is not there")?;
                let answers = first.run(generator, cell.load, cell.clients, seconds)?;
                return Ok(Run { answers, nodes_cpu_seconds: 0.0, cassandra_cpu_seconds: None, carried: None });
            }
        }
        let Measured { cluster, hot } = measured;
        let (before, nodes_before) = (cluster.carried()?, cluster.cpu_seconds()?);
        let cassandra_before = self.cassandra_cpu_seconds()?;
        let answers = match cell.wire {
            Wire::Http1 => generator.run_over(cell.load, &cluster.addrs(), cell.clients, seconds)?,
            Wire::Http2 => self.shared.run_over(cell.load, &cluster.addrs(), cell.clients, seconds)?,
            Wire::Resp => self.resp.run_over(cell.load, &cluster.resp_addrs()?, cell.clients, seconds)?,
        };
        let cassandra_cpu_seconds = self.cassandra_cpu_seconds()?.zip(cassandra_before).map(|(now, was)| now - was);
        let nodes_cpu_seconds = cluster.quiet()? - nodes_before;
        let carried = Some(cluster.carried()?.since(before));
        if matches!(cell.load, Load::Add | Load::Increment) {
            hot.0 += answers.good;
            hot.1 += u64::from(cell.clients) + answers.refused + answers.broken;
        }
        Ok(Run { answers, nodes_cpu_seconds, cassandra_cpu_seconds, carried })
    }

    fn cassandra_cpu_seconds(&self) -> anyhow::Result<Option<f64>> {
        self.options.cassandra_process.map(machine::cpu_seconds).transpose()
    }

    /// Removes what was there all the time.
    fn remove(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        self.columns.drop_keyspace(self.columns.keyspace())?;
        self.first.take().map_or(Ok(()), FirstSystem::remove)?;
        println!("removed what was made, in {:.1} s", began.elapsed().as_secs_f64());
        Ok(())
    }
}
