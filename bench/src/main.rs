//! `quipu-bench`: Quipu beside a bare hyper server: the same machine, the same run, the same load.
//!
//! `make bench` runs it; `make bench-cluster` runs `cluster`, which has a beginning of its own. Start reading at `run` (what happens in which order), then `plan` (what is measured and what it
//! must reach), `load` (wrk), `shared` (h2load), `resp`, `servers` (the processes) and `report`. README.md says how to read the results.

mod bare;
mod cluster;
mod languages;
mod load;
mod machine;
mod plan;
mod policy;
mod profile;
mod report;
mod resp;
mod run;
mod servers;
mod shared;

use clap::{Parser, Subcommand};

/// Quipu's own allocator, so that the bare server does not lose by another one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Quipu beside a bare hyper server and writes bench/results/.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: run::Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bare server alone; the runner starts it like this
    Bare(bare::Options),
    /// Measure a cluster beside Cassandra's own counter columns
    Cluster(cluster::Options),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Bare(options)) => bare::run(&options),
        Some(Command::Cluster(options)) => cluster::run(&options),
        None => run::run(&cli.options),
    }
}
