//! Admission: what a component must pass before it becomes a revision that rules can use.
//!
//! Loading checks what it is; a dry run (`trial`) then checks what it answers, with the vectors of `vectors`, and
//! measures what a call costs, which decides where its calls run. A rule with a config of its own is checked the same
//! way when it is bound. Who may upload is decided in `trust` and by the admin token; where admitted bytes are kept, by
//! the node.
//!
//! Both functions block for as long as compiling and the dry run take: seconds, at most the limits. Call them on a
//! thread that may wait.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::binding::Binding;
use super::engine::Engine;
use super::fault::{Fault, Kind};
use super::imports::Grants;
use super::limits;
use super::revision::{Options, Placement, Rejected, Revision, World};
use super::state::Stop;
use super::trial::{self, Effort, Failed, Found, Setup};
use super::vectors::Reach;

/// What was checked, in the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The name that it is uploaded under.
    Name,
    /// It is a valid component, of a size and structure that can be compiled.
    Component,
    /// It compiles in time.
    Compile,
    /// It exports one of our worlds, at a version that this host knows.
    World,
    /// It imports only what policies are given.
    Imports,
    /// Its functions have the types of the world.
    Interface,
    /// It can be instantiated, and its `configure` answers.
    Configure,
    Refresh,
    /// Answers are candidates.
    Select,
    /// Plans name shards of the counter, each once.
    Plan,
    /// A total and no error.
    Combine,
    /// The same question many times.
    Cost,
    /// The dry run as a whole ends in time.
    Time,
    /// None of the component: this node had no room to check it now.
    Room,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Component => "component",
            Self::Compile => "compile",
            Self::World => "world",
            Self::Imports => "imports",
            Self::Interface => "interface",
            Self::Configure => "configure",
            Self::Refresh => "refresh",
            Self::Select => "select",
            Self::Plan => "plan",
            Self::Combine => "combine",
            Self::Cost => "cost",
            Self::Time => "time",
            Self::Room => "room",
        })
    }
}

/// A check that was passed, so often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    pub check: Check,
    pub count: u64,
}

/// Wall time of one `select`, or of one `plan` and its `combine`, with three candidates (or all, see
/// [`Report::all_shards_only`]) of 64 shards; without the way to the pool and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    pub median_ns: u64,
    pub p99_ns: u64,
}

impl Cost {
    pub(super) fn of(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let at = |percent: usize| {
            let rank = (took.len() * percent).div_ceil(100).max(1);
            took.get(rank - 1).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        };
        Self { median_ns: at(50), p99_ns: at(99) }
    }
}

/// What admission found; kept with the revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub world: World,
    pub checks: Vec<Passed>,
    /// Every question that was asked again, of the same instance and of another, had the same answer. Policies need not
    /// be: a random choice is a good one.
    pub deterministic: bool,
    /// Of an aggregation: every total was the exact sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact_sum: Option<bool>,
    /// Its choices are candidates only where every shard is one: its rules need a spread of all shards.
    #[serde(default)]
    pub all_shards_only: bool,
    /// The guest's own words why it takes no empty config. It was asked nothing then: what it answers is checked when a
    /// rule gives it a config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_config: Option<String>,
    /// None: it needs a config, and was not timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    pub placement: Placement,
    /// The most linear memory that an instance had in the dry run.
    pub memory_peak_bytes: usize,
}

impl Report {
    /// How to load it again so that its calls run where admission put them.
    pub fn options(&self) -> Options {
        let pooled_because = match &self.placement {
            Placement::Inline => None,
            Placement::Pooled(because) => Some(because.clone()),
        };
        Options { limits: None, pooled_because }
    }
}

/// Why a component or a rule's config is not admitted. `Display` is the sentence for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{}{reason}", At(check, vector))]
pub struct Refusal {
    pub check: Check,
    /// The question that it failed at, in words. None: it was not asked anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<String>,
    /// With the guest's own error, where it has one.
    pub reason: String,
}

struct At<'a>(&'a Check, &'a Option<String>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(vector) => write!(f, "the dry run failed at the check {:?} with {vector}: ", self.0.to_string()),
            None => Ok(()),
        }
    }
}

impl From<Rejected> for Refusal {
    fn from(rejected: Rejected) -> Self {
        let check = match &rejected {
            Rejected::Name(_) => Check::Name,
            Rejected::TooLarge { .. } | Rejected::NotAComponent(_) | Rejected::Structure(_) | Rejected::Invalid(_) => {
                Check::Component
            }
            Rejected::CompileTime(_) => Check::Compile,
            Rejected::World(_) => Check::World,
            Rejected::Import(_) | Rejected::TooManyImports { .. } => Check::Imports,
            Rejected::Interface(_) => Check::Interface,
            Rejected::ConfigTooLong { .. } | Rejected::Config(_) | Rejected::Fault(_) => Check::Configure,
            Rejected::Busy | Rejected::TooManyBindings | Rejected::Rests => Check::Room,
        };
        Self { check, vector: None, reason: rejected.to_string() }
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Config(text) => Rejected::Config(text).into(),
            Failed::Vector { check, vector, fault, .. } => {
                Self { check, vector: Some(vector), reason: fault.to_string() }
            }
            Failed::Time { vector } => {
                let reason = format!("it had {:?} for everything, and they are over", limits::DRY_RUN_TIME);
                Self { check: Check::Time, vector: Some(vector), reason }
            }
            Failed::Rejected(rejected) => rejected.into(),
        }
    }
}

/// Checks a component, and loads it where its calls are to run. Nothing is kept if it is refused.
pub fn admit(engine: &Arc<Engine>, name: &str, bytes: &[u8]) -> Result<(Arc<Revision>, Report), Refusal> {
    let loaded = engine.load(name, bytes)?;
    let static_checks = [Check::Name, Check::Component, Check::Compile, Check::World, Check::Interface];
    let mut checks: Vec<Passed> = static_checks.map(|check| Passed { check, count: 1 }).into();
    checks.push(Passed { check: Check::Imports, count: loaded.imports.len() as u64 });
    let mut report = Report {
        world: loaded.world,
        checks,
        deterministic: false,
        exact_sum: None,
        all_shards_only: false,
        needs_config: None,
        cost: None,
        placement: loaded.placement.clone(),
        memory_peak_bytes: 0,
    };
    let setup = |reach| Setup {
        config: "",
        grants: Grants::ALL,
        reach,
        effort: Effort::ADMISSION,
        until: Instant::now() + limits::DRY_RUN_TIME,
    };
    let mut tried = settle(engine, &loaded, setup(Reach::Any));
    if let Err(Failed::Vector { check: Check::Select, fault, .. }) = &tried
        && fault.kind == Kind::NotACandidate
        && let Ok(settled) = settle(engine, &loaded, setup(Reach::AllShards))
    {
        report.all_shards_only = true;
        tried = Ok(settled);
    }
    match tried {
        Ok((placement, found)) => {
            report.checks.extend(found.passed.into_iter().map(|(check, count)| Passed { check, count }));
            report.deterministic = found.deterministic;
            report.exact_sum = found.exact_sum;
            report.cost = Some(found.cost);
            report.memory_peak_bytes = found.memory_peak_bytes;
            report.placement = placement;
        }
        Err(Failed::Config(text)) => report.needs_config = Some(text),
        Err(failed) => return Err(failed.into()),
    }
    report.checks.sort_by_key(|passed| passed.check);
    Ok((moved(engine, &loaded, &report.placement)?, report))
}

/// Binds a revision to a rule's config when its dry run with that config and these grants passes. `all_shards` says that
/// the rule's spread is every shard of the cluster. A policy that turns out to be too slow with this config, or too
/// large, to run on the serving thread runs on the pool for this binding.
pub fn bind(
    engine: &Arc<Engine>,
    revision: &Arc<Revision>,
    config: &str,
    grants: Grants,
    all_shards: bool,
) -> Result<Arc<Binding>, Refusal> {
    if config.len() > limits::CONFIG_BYTES_MAX {
        return Err(Rejected::ConfigTooLong { bytes: config.len() }.into());
    }
    let reach = if all_shards { Reach::AllShards } else { Reach::Any };
    let until = Instant::now() + limits::DRY_RUN_TIME;
    let (placement, _) = settle(engine, revision, Setup { config, grants, reach, effort: Effort::BINDING, until })?;
    Ok(engine.bind_with(&moved(engine, revision, &placement)?, config, grants)?)
}

/// Binds a revision without a dry run, to run where an earlier one put it.
pub fn bind_placed(
    engine: &Arc<Engine>,
    revision: &Arc<Revision>,
    config: &str,
    grants: Grants,
    placement: &Placement,
) -> Result<Arc<Binding>, Rejected> {
    engine.bind_with(&moved(engine, revision, placement)?, config, grants)
}

fn moved(engine: &Engine, revision: &Arc<Revision>, placement: &Placement) -> Result<Arc<Revision>, Rejected> {
    if revision.placement == *placement { Ok(revision.clone()) } else { engine.placed(revision, placement.clone()) }
}

/// Finds out where it can run: on the serving thread, if it is fast and small enough there.
fn settle(engine: &Engine, revision: &Revision, setup: Setup<'_>) -> Result<(Placement, Found), Failed> {
    let wait = setup.until.saturating_duration_since(Instant::now());
    let _place = engine.dry_runs.enter(wait).ok_or(Rejected::Busy)?;
    let tried = |placement: &Placement| {
        let once = || trial::run(engine, &engine.on_trial(revision, placement.clone())?, setup);
        let mut attempts = (1..limits::DRY_RUN_ATTEMPTS).map(|_| once());
        let decided = |outcome: &Result<Found, Failed>| !matches!(outcome, Err(Failed::Vector { starved: true, .. }));
        attempts.find(decided).unwrap_or_else(once)
    };
    let mut placement = revision.placement.clone();
    if placement == Placement::Inline {
        let because = match tried(&placement) {
            Ok(found) => match slow(&found.cost).or_else(|| found.memory_refused.then(refused_memory)) {
                Some(because) => because,
                None => return Ok((placement, found)),
            },
            Err(Failed::Vector { fault, .. }) if may_pass_on_the_pool(&fault) => {
                format!("on the serving thread it failed its dry run: {fault}")
            }
            Err(failed) => return Err(failed),
        };
        placement = Placement::Pooled(because);
    }
    Ok((placement.clone(), tried(&placement)?))
}

fn slow(cost: &Cost) -> Option<String> {
    let (median, max) = (Duration::from_nanos(cost.median_ns), limits::INLINE_MEDIAN_MAX);
    (median > max).then(|| format!("a call takes {median:?} in the median; on the serving thread it may take {max:?}"))
}

/// It answered all the same, as a garbage collector does that is refused memory. Sooner or later one does not.
fn refused_memory() -> String {
    "on the serving thread it was refused memory during its dry run".into()
}

/// Limits that are wider there, and waiting, which is allowed there.
fn may_pass_on_the_pool(fault: &Fault) -> bool {
    matches!(fault.kind, Kind::Deadline | Kind::Memory) || fault.detail == Stop::Waits.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_ranks() {
        let took = |n: u64| Cost::of((1..=n).rev().map(Duration::from_nanos).collect());
        assert_eq!(took(100), Cost { median_ns: 50, p99_ns: 99 });
        assert_eq!(took(1), Cost { median_ns: 1, p99_ns: 1 });
        assert_eq!(took(0), Cost { median_ns: 0, p99_ns: 0 });
        assert!(slow(&Cost { median_ns: 5_000, p99_ns: 9_000 }).is_none());
        let because = slow(&Cost { median_ns: 12_345, p99_ns: 0 }).expect("it is slow");
        assert_eq!(because, "a call takes 12.345µs in the median; on the serving thread it may take 5µs");
    }

    #[test]
    fn a_refusal_is_one_sentence_and_three_fields() {
        let fault = Fault::new(Kind::Trap, "it stopped");
        let refused: Refusal =
            Failed::Vector { check: Check::Select, vector: "an addition".into(), fault, starved: false }.into();
        assert_eq!(
            refused.to_string(),
            r#"the dry run failed at the check "select" with an addition: trap: it stopped"#
        );
        let json = serde_json::to_value(&refused).expect("it is plain data");
        assert_eq!(json, serde_json::json!({"check": "select", "vector": "an addition", "reason": "trap: it stopped"}));
        let refused = Refusal::from(Rejected::TooLarge { bytes: 2, max: 1 });
        assert_eq!(refused.to_string(), "the component has 2 bytes; the limit is 1");
        assert_eq!((refused.check, refused.vector), (Check::Component, None));
    }

    #[test]
    fn a_report_survives_the_store() {
        let report = Report {
            world: World::Aggregation,
            checks: vec![Passed { check: Check::Combine, count: 3 }],
            deterministic: true,
            exact_sum: Some(false),
            all_shards_only: true,
            needs_config: None,
            cost: Some(Cost { median_ns: 1, p99_ns: 2 }),
            placement: Placement::Pooled("it is slow".into()),
            memory_peak_bytes: 65_536,
        };
        let text = serde_json::to_string(&report).expect("it is plain data");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("it is a report"), report);
        assert_eq!(report.options().pooled_because.as_deref(), Some("it is slow"));
        let inline = Report { placement: Placement::Inline, ..report };
        let text = serde_json::to_string(&inline).expect("it is plain data");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("it is a report"), inline);
        assert_eq!(inline.options().pooled_because, None);
    }
}
