//! The command line: what can be typed, and the help that teaches it. Nothing is done here.
//!
//! The flags of `quipu serve` are the settings of a node and live in `settings`; `client` carries out the other commands.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::settings::{EXIT_USAGE, Knobs};

pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";

const FIRST_COUNT: &str = "\
Count something:
  quipu serve --data-dir ./data                                  # in one terminal
  curl -X POST localhost:8080/v1/counters/likes/add              # in another: add 1
  curl -X POST localhost:8080/v1/counters/likes/add \\
       -H 'content-type: application/json' -d '{\"amount\": 5}'    # add 5
  curl localhost:8080/v1/counters/likes                          # read the total
  quipu counter get likes                                        # or with this program

Dashboard: http://localhost:8080/   API: http://localhost:8080/openapi.json

Exit codes: 0 done, 1 refused or failed, 64 wrong usage or settings,
69 the server cannot be reached.";

const SERVE_EXAMPLES: &str = "\
Examples:
  quipu serve --data-dir ./data
  quipu serve --listen 127.0.0.1:0 --data-dir /var/lib/quipu --shards 64
  QUIPU_DATA_DIR=/var/lib/quipu QUIPU_ADMIN_TOKEN=… quipu serve
  quipu serve --config quipu.toml       # lines like: data-dir = \"/var/lib/quipu\"
  quipu serve --etcd http://10.0.0.5:2379 --cassandra 10.0.0.6:9042   # a node of a cluster

Each setting is a flag (--data-dir), a variable (QUIPU_DATA_DIR) and a key of
the file (data-dir). Flags win over variables, variables over the file.
Times are whole numbers with a unit: 500ms, 30s, 10m, 24h, 7d.
The first line on stdout, `quipu ready http=ADDR …`, says that requests are
served, and where. SIGTERM stops accepting, finishes what is open, and exits 0.
Wrong settings: all of them are named, exit code 64. A mistake of the program in what owns the counts ends it with \
exit code 70; the next start has everything that was acknowledged.";

const COUNTER_EXAMPLES: &str = "\
Examples:
  quipu counter add likes                       add 1
  quipu counter add stock/1 -3                  subtract 3
  quipu counter add stock/1 -3 --key order-77   at most once, however often it is sent
  quipu counter get likes stock/1 --json
  quipu counter list --prefix stock/ --all
  quipu counter watch likes                     print the total whenever it changes";

const NEW_EXAMPLES: &str = "\
Examples:
  quipu plugin new even-share                         a selection policy in Rust, in ./even-share
  quipu plugin new even-share --lang python
  quipu plugin new biggest --lang js --world aggregation --dir policies/biggest

The project builds as it is; its README.md has the commands to build, test and
push it. Files that are there already are never touched.";

const STORE_EXAMPLES: &str = "\
Examples:
  quipu store init --cassandra 10.0.0.6:9042
  quipu store init --cassandra a:9042,b:9042 --cluster shop --shards 24 --replication 3";

const RECORD_EXAMPLES: &str = "\
Examples:
  quipu plugin record even-share -o decisions.ndjson
  quipu plugin record even-share --rule likes/ --count 10000 --seconds 120 -o decisions.ndjson

A decision is a select, a plan or a combine. The policy's instances are made
anew when the recording begins, so that it holds all that they ever saw; the
file has their random seeds, their config, and what the registry and the
storage answered them. With --json: how many there are, and why it ended.";

const REPLAY_EXAMPLES: &str = "\
Examples:
  quipu plugin replay decisions.ndjson policy.wasm            does it decide as it did?
  quipu plugin replay decisions.ndjson new.wasm               what would another decide?
  quipu plugin replay decisions.ndjson old.wasm new.wasm      where do the two differ?

Clocks, random numbers, the registry and the storage answer as they did. A call
that missed its deadline is not compared. Exit code 0 when all answers are
equal, 1 when some differ, 64 when the file is no recording.";

const RULE_EXAMPLES: &str = "\
Examples:
  quipu rule set likes/ --selection two-choices --spread 6
  quipu rule set stock/ --spread 1 --min 0      never below zero
  quipu rule set '' --selection least-cpu       what no other rule governs
  quipu rule rollback likes/                    the rule before the last change
  quipu rule delete likes/";

/// Quipu: durable counters whose routing and aggregation policies are WebAssembly components.
#[derive(Parser)]
#[command(name = "quipu", version, after_help = FIRST_COUNT, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a node: the counter service
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// Prepare the store of a cluster
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    #[command(flatten)]
    Client(ClientCommand),
}

/// What is done to a cluster's store without a node.
#[derive(Subcommand)]
pub enum StoreCommand {
    /// Make keyspace and tables in Cassandra, or bring them to this version; may be run again
    ///
    /// Takes the settings of `quipu serve`, of which --cassandra, --cluster, --shards and --replication matter here.
    #[command(after_help = STORE_EXAMPLES)]
    Init(ServeArgs),
}

#[derive(Args, Clone, Default)]
pub struct ServeArgs {
    /// TOML file of settings (also QUIPU_CONFIG); unknown keys are refused
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub knobs: Knobs,
}

/// The commands that talk to a running server.
#[derive(Subcommand)]
pub enum ClientCommand {
    /// Add to, read and manage counters
    #[command(after_help = COUNTER_EXAMPLES)]
    Counter {
        #[command(flatten)]
        server: ServerArgs,
        #[command(subcommand)]
        command: CounterCommand,
    },
    /// Show nodes, shards and health
    Cluster {
        #[command(flatten)]
        server: ServerArgs,
        #[command(subcommand)]
        command: Option<ClusterCommand>,
    },
    /// Write, test, upload, activate and watch policies
    Plugin {
        #[command(flatten)]
        server: ServerArgs,
        #[command(subcommand)]
        command: PluginCommand,
    },
    /// Say which policies, spread and bounds govern which counters
    #[command(after_help = RULE_EXAMPLES)]
    Rule {
        #[command(flatten)]
        server: ServerArgs,
        #[command(subcommand)]
        command: RuleCommand,
    },
}

impl ClientCommand {
    pub fn server(&self) -> &ServerArgs {
        match self {
            Self::Counter { server, .. }
            | Self::Cluster { server, .. }
            | Self::Plugin { server, .. }
            | Self::Rule { server, .. } => server,
        }
    }
}

#[derive(Args, Clone)]
#[command(next_help_heading = "Server and output")]
pub struct ServerArgs {
    /// Base address of the server; an empty one means the default
    #[arg(long, global = true, env = "QUIPU_URL", default_value = DEFAULT_URL)]
    pub url: String,
    /// Admin token, if the server has one
    #[arg(long, global = true, env = "QUIPU_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Print the server's JSON, one object a line for streams
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand, Clone, Copy)]
pub enum ClusterCommand {
    /// Recount every counter from checkpoints and journal, and compare with what is served
    ///
    /// Reads the whole store and pauses nothing. Exit code 1 when something differs.
    Verify,
    /// After an upgrade of every node: write the newest format that all of them read
    ///
    /// Nodes that do not read it cannot join any more, so a return to the older program ends here. Exit code 1 when an older
    /// node holds it back and nothing was raised.
    Finalize,
}

#[derive(Subcommand)]
pub enum CounterCommand {
    /// Add an amount; the counter is made if it is new
    Add {
        /// 1 to 512 bytes of UTF-8; one that starts with - goes after --
        id: String,
        /// From -9223372036854775808 to 9223372036854775807
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        amount: i64,
        /// Idempotency key (1-128 bytes): the addition counts once, and is retried while its outcome is not known
        #[arg(long)]
        key: Option<String>,
    },
    /// Read totals
    Get {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// Accept a cached total of at most this age, in milliseconds; exact totals otherwise
        #[arg(long, value_name = "MS")]
        cached: Option<u64>,
    },
    /// List counters, in no promised order
    List {
        /// Only ids that start with this
        #[arg(long, default_value = "")]
        prefix: String,
        /// Counters on a page, 1-1000
        #[arg(long, default_value_t = crate::limits::LIST_LIMIT_DEFAULT as u32,
              value_parser = clap::value_parser!(u32).range(1..=crate::limits::LIST_LIMIT_MAX as i64))]
        limit: u32,
        /// Go on to the last page
        #[arg(long)]
        all: bool,
    },
    /// Print the total whenever it changes, until interrupted
    Watch {
        id: String,
        /// Stop after this many totals
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Make a counter of total 0; the server draws an id if none is given
    Create {
        id: Option<String>,
        /// A name for people
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove a counter; a later add starts from 0
    Delete { id: String },
    /// Show the partial value on each shard
    Shards { id: String },
}

#[derive(Subcommand)]
pub enum PluginCommand {
    /// List policies with their calls and faults
    List,
    /// Show one policy and each of its revisions
    Show { name: String },
    /// Write the project of a new policy, without a server
    #[command(after_help = NEW_EXAMPLES)]
    New(PluginNew),
    /// Upload a component; the server checks it and makes it the newest revision of its name
    Push(PushArgs),
    /// Run the server's checks on a component here, and vectors of your own; no server is needed
    Test(TestArgs),
    /// Make a revision the one that a rule uses; `quipu rule rollback` takes it back
    Activate {
        /// NAME, for the newest revision, or NAME@sha256:…
        #[arg(value_name = "PLUGIN")]
        plugin: String,
        /// The rule's prefix; a rule is made if there is none
        #[arg(long = "match", value_name = "PREFIX")]
        prefix: String,
        /// Only for so many of a hundred counters; taken back by itself if it misbehaves
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=99))]
        canary: Option<u8>,
    },
    /// Return a rule to what it was before its last change
    Rollback {
        #[arg(long = "match", value_name = "PREFIX")]
        prefix: String,
    },
    /// Ask a policy again that is in quarantine, or whose breaker is open
    Release {
        /// NAME, for the newest revision, or NAME@sha256:…
        #[arg(value_name = "PLUGIN")]
        plugin: String,
    },
    /// Write real decisions of a plugin's policies on the server to a file
    #[command(after_help = RECORD_EXAMPLES)]
    Record(RecordArgs),
    /// Run recorded decisions again, with the same component or another; no server is needed
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(ReplayArgs),
    /// Delete a revision that no rule uses
    Delete {
        name: String,
        #[arg(value_name = "sha256:…")]
        revision: String,
    },
    /// Print what a policy logs
    Logs {
        name: String,
        /// Go on printing as lines come
        #[arg(long)]
        follow: bool,
    },
    /// Turn all policies off in an emergency, or on again; without an argument, tell
    Switch {
        #[arg(value_parser = ["on", "off"])]
        to: Option<String>,
    },
}

#[derive(Args)]
pub struct PushArgs {
    /// 1 to 64 of the characters a-z, 0-9, '.', '_' and '-'
    pub name: String,
    #[arg(value_name = "FILE.wasm")]
    pub file: PathBuf,
    /// Detached Ed25519 signature of the file, in hexadecimal, for servers with --plugin-keys
    #[arg(long, value_name = "HEX")]
    pub signature: Option<String>,
}

#[derive(Args)]
pub struct RecordArgs {
    pub name: String,
    /// Only under the rule of this prefix; under every rule otherwise
    #[arg(long = "rule", value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Stop after so many decisions, 1-100000
    #[arg(long, value_name = "N", default_value_t = crate::limits::RECORDING_COUNT_DEFAULT,
          value_parser = clap::value_parser!(u64).range(1..=crate::limits::RECORDING_COUNT_MAX))]
    pub count: u64,
    /// Stop after so many seconds, 1-600
    #[arg(long, value_name = "S", default_value_t = crate::limits::RECORDING_SECONDS_DEFAULT,
          value_parser = clap::value_parser!(u64).range(1..=crate::limits::RECORDING_SECONDS_MAX))]
    pub seconds: u64,
    /// Where to write it; one that is there is replaced
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct ReplayArgs {
    /// What `quipu plugin record` wrote
    pub file: PathBuf,
    /// One is compared with what was recorded, two with each other; none is needed for a built-in policy
    #[arg(value_name = "COMPONENT.wasm", num_args = 0..=2)]
    pub components: Vec<PathBuf>,
}

#[derive(Args)]
pub struct TestArgs {
    #[arg(value_name = "FILE.wasm")]
    pub file: PathBuf,
    /// TOML file of questions and right answers; docs/authors.md has an example
    #[arg(long, value_name = "FILE.toml")]
    pub vectors: Option<PathBuf>,
}

#[derive(Args)]
pub struct PluginNew {
    /// 1 to 64 of the characters a-z, 0-9 and '-', a letter first
    pub name: String,
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    pub lang: Language,
    /// selection: which shard takes an addition; aggregation: how partials become a total
    #[arg(long, value_enum, default_value_t = World::Selection)]
    pub world: World,
    /// Where to write it; must be missing or empty [default: ./NAME]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// What a policy is written in.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Rust,
    Python,
    Js,
}

/// What a policy decides.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    Selection,
    Aggregation,
}

impl World {
    pub fn name(self) -> &'static str {
        match self {
            Self::Selection => "selection",
            Self::Aggregation => "aggregation",
        }
    }
}

#[derive(Subcommand)]
pub enum RuleCommand {
    /// List the rules
    List,
    /// Make or replace the rule of an id prefix; effective on every node when it returns
    Set(RuleSet),
    /// Delete the rule of an id prefix
    Delete {
        #[arg(value_name = "PREFIX")]
        prefix: String,
        /// Only if the rule has this version
        #[arg(long, value_name = "N")]
        if_version: Option<u64>,
    },
    /// Put the previous rule of an id prefix back
    Rollback {
        #[arg(value_name = "PREFIX")]
        prefix: String,
    },
}

#[derive(Args)]
pub struct RuleSet {
    /// Governs the ids that start with this, unless a longer prefix does; '' for all others
    #[arg(value_name = "PREFIX")]
    pub prefix: String,
    /// Policy that chooses the shard: NAME or NAME@sha256:… [server's default: least-cpu]
    #[arg(long, value_name = "PLUGIN")]
    pub selection: Option<String>,
    /// Text handed to the selection policy
    #[arg(long, value_name = "TEXT", requires = "selection")]
    pub selection_config: Option<String>,
    /// Policy that computes totals: NAME or NAME@sha256:… [server's default: sum]
    #[arg(long, value_name = "PLUGIN")]
    pub aggregation: Option<String>,
    /// Text handed to the aggregation policy
    #[arg(long, value_name = "TEXT", requires = "aggregation")]
    pub aggregation_config: Option<String>,
    /// Over how many shards a counter may be written [server's default: 3]
    #[arg(long, value_name = "N")]
    pub spread: Option<u32>,
    /// Spread counters so wide while all of their usual shards are saturated
    #[arg(long, value_name = "N")]
    pub spread_limit: Option<u32>,
    /// durable: answered when on disk; relaxed: answered when queued [server's default: durable]
    #[arg(long, value_parser = ["durable", "relaxed"])]
    pub durability: Option<String>,
    /// Refuse additions that would leave the total below this; needs --spread 1
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub min: Option<i64>,
    /// Refuse additions that would leave the total above this; needs --spread 1
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max: Option<i64>,
    /// Only if the present rule has this version
    #[arg(long, value_name = "N")]
    pub if_version: Option<u64>,
}

impl Cli {
    /// Reads the arguments of this process. When there is nothing to run, because help was asked for or the arguments
    /// make no sense, prints what there is to say and returns the exit code.
    pub fn from_process() -> Result<Self, u8> {
        Self::try_parse().map_err(|error| {
            // A closed pipe, as in `quipu --help | head -1`, is no failure.
            let _ = error.print();
            if error.use_stderr() { EXIT_USAGE } else { 0 }
        })
    }

    /// The whole command tree, for completions and tests.
    pub fn tree() -> clap::Command {
        Self::command()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(args: &[&str]) -> CounterCommand {
        let cli = Cli::try_parse_from(["quipu", "counter"].iter().chain(args)).unwrap_or_else(|e| panic!("{e}"));
        match cli.command {
            Command::Client(ClientCommand::Counter { command, .. }) => command,
            _ => panic!("not a counter command"),
        }
    }

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::tree().debug_assert();
    }

    #[test]
    fn negative_amounts_can_be_typed() {
        for args in [
            ["add", "stock/1", "-3"].as_slice(),
            &["add", "stock/1", "--", "-3"],
            &["add", "--key", "k", "stock/1", "-3"],
            &["add", "stock/1", "-3", "--json"],
        ] {
            match counter(args) {
                CounterCommand::Add { id, amount, .. } => {
                    assert_eq!((id.as_str(), amount), ("stock/1", -3), "{args:?}")
                }
                _ => panic!("{args:?}"),
            }
        }
        let lowest = counter(&["add", "c", "-9223372036854775808"]);
        assert!(matches!(lowest, CounterCommand::Add { amount: i64::MIN, .. }));
    }

    #[test]
    fn client_flags_stand_before_and_after_the_subcommand() {
        for args in [["quipu", "counter", "--json", "get", "c"], ["quipu", "counter", "get", "c", "--json"]] {
            let cli = Cli::try_parse_from(args).unwrap_or_else(|e| panic!("{e}"));
            assert!(matches!(cli.command, Command::Client(c) if c.server().json), "{args:?}");
        }
    }

    #[test]
    fn help_shows_the_first_count() {
        let help = Cli::tree().render_long_help().to_string();
        assert!(help.contains("quipu serve --data-dir ./data") && help.contains("/v1/counters/likes/add"), "{help}");
    }

    #[test]
    fn an_amount_that_is_no_integer_is_refused() {
        for amount in ["1.5", "9223372036854775808", "x", ""] {
            assert!(Cli::try_parse_from(["quipu", "counter", "add", "c", amount]).is_err(), "{amount:?}");
        }
    }
}
