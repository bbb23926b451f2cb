//! What a policy costs a whole request, by what it is made of: none, Rust, Rust with a read of the registry or a table in
//! the storage, JavaScript, Python; and one that always fails, so that its breaker is open, beside itself where it does not.
//!
//! All but the first are uploaded to one Quipu, each under a rule of its own; the first is a second Quipu without
//! policies. Each has one hot counter. One subject is under load at a time and all of them in each round, so a ratio is
//! taken between neighbours. What a call costs alone is in `policy`.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Value, json};

use crate::load::{Generator, Requests};
use crate::machine;
use crate::report::{Run, Spread, spread, thousands};
use crate::run::{complete, quiet};
use crate::servers::{Places, Process};

pub const CONNECTIONS: u32 = 64;
/// Shards that take each counter's additions.
const SPREAD: u32 = 3;
/// Enough for the breaker of a policy that always fails to open, and for every instance to be made.
const WARM_UP_SECONDS: u32 = 1;
/// A policy that the native choice stands in for more often than this was not measured.
const FALLBACK_SHARE_MAX: f64 = 0.01;

/// One policy to measure.
struct Subject {
    name: &'static str,
    /// Its name on the server, and the prefix of its rule.
    plugin: &'static str,
    /// Below the workspace, and what builds it.
    file: &'static str,
    made_by: &'static str,
    config: &'static str,
    grants: &'static [&'static str],
    /// Behind the prefix; tells the last policy what to do.
    counter: &'static str,
}

impl Subject {
    const fn new(name: &'static str, plugin: &'static str, file: &'static str, made_by: &'static str) -> Self {
        Self { name, plugin, file, made_by, config: "", grants: &[], counter: "hot" }
    }

    fn id(&self) -> String {
        format!("{}/{}", self.plugin, self.counter)
    }

    fn fails(&self) -> bool {
        self.counter == FAILS
    }
}

/// What the guest that does as its counter says takes for "trap in every call".
const FAILS: &str = "trap-in-select";
const OBEDIENT: &str = "tests/guests/target/guests/misbehaves-selection.wasm";

const SUBJECTS: [Subject; 7] = [
    Subject::new("Rust", "rust", "plugins/target/wasm32-wasip2/release/round_robin.wasm", "make plugins"),
    Subject {
        grants: &["registry"],
        ..Subject::new(
            "Rust, a read of the registry",
            "rust-registry",
            "tests/guests/target/guests/reads-registry.wasm",
            "make guests",
        )
    },
    Subject {
        grants: &["storage"],
        ..Subject::new(
            "Rust, a table in the storage",
            "rust-storage",
            "tests/guests/target/guests/keeps-table.wasm",
            "make guests",
        )
    },
    Subject::new("JavaScript", "javascript", "plugins/target/examples/queues-js.wasm", "make plugin-js"),
    Subject {
        config: r#"{"default": 2}"#,
        ..Subject::new("Python", "python", "plugins/target/examples/weekday-python.wasm", "make plugin-python")
    },
    Subject {
        config: "as-the-counter-says",
        counter: "fine",
        ..Subject::new("breaker closed", "breaker-closed", OBEDIENT, "make guests")
    },
    Subject {
        config: "as-the-counter-says",
        counter: FAILS,
        ..Subject::new("breaker open", "breaker-open", OBEDIENT, "make guests")
    },
];

/// The native choice, under a rule like the others'.
const NATIVE: &str = "native/hot";

/// One policy, or none, in all rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Language {
    pub name: &'static str,
    /// `inline`, on the thread that serves the request, or `pooled`; "" without a policy.
    pub place: String,
    pub runs: Vec<Run>,
    /// Of the requests of each run, the share that the policy itself answered.
    pub answered: Vec<f64>,
}

impl Language {
    fn new(name: &'static str, place: String) -> Self {
        Self { name, place, runs: Vec::new(), answered: Vec::new() }
    }

    /// Requests per second over those of another, neighbours in each round.
    pub fn over(&self, other: &Self) -> Spread {
        let pairs = self.runs.iter().zip(&other.runs);
        spread(&pairs.map(|(a, b)| a.answers.per_second() / b.answers.per_second()).collect::<Vec<_>>())
    }
}

/// Measures everything that is built, the native choice first. What is not built is named in `notes`.
pub fn measure(
    workspace: &Path,
    places: &Places,
    generator: &Generator,
    (seconds, rounds): (u32, u32),
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<Language>> {
    println!("policies by language: uploading");
    let (without, with) = (places.start_named("no-policies", false)?, places.start_named("languages", true)?);
    without.ask_well("PUT", "/v1/rules", Some(json!({ "match": "native/", "spread": SPREAD }).to_string()))?;
    let mut contenders = vec![Contender::new(&without, None, NATIVE.into(), Language::new("native", String::new()))];
    for subject in &SUBJECTS {
        let Ok(component) = std::fs::read(workspace.join(subject.file)) else {
            let note = format!("skipped: {}: {} is not built ({})", subject.name, subject.file, subject.made_by);
            println!("{note}");
            notes.push(note);
            continue;
        };
        let place = prepare(&with, subject, component).with_context(|| format!("the policy {}", subject.name))?;
        contenders.push(Contender::new(&with, Some(subject), subject.id(), Language::new(subject.name, place)));
    }
    for contender in &mut contenders {
        contender
            .run(generator, WARM_UP_SECONDS)
            .with_context(|| format!("{}, warming up", contender.language.name))?;
    }
    for contender in &mut contenders {
        contender.begin()?;
    }
    for round in 1..=rounds {
        let mut line = Vec::new();
        for contender in &mut contenders {
            let name = contender.language.name;
            let (run, answered) = contender.run(generator, seconds).context(name)?;
            line.push(format!("{name} {}", thousands(run.answers.per_second())));
            contender.language.runs.push(run);
            contender.language.answered.push(answered);
        }
        println!("round {round}: adds by policy at {CONNECTIONS}: {}", line.join(", "));
    }
    notes.extend(contenders.iter().filter_map(Contender::doubt));
    contenders.into_iter().map(Contender::end).collect()
}

/// Uploads a policy and lets it choose for its counters. Answers where its calls run.
fn prepare(server: &Process, subject: &Subject, component: Vec<u8>) -> anyhow::Result<String> {
    let plugin = subject.plugin;
    server.upload(plugin, component)?;
    let selection = json!({ "plugin": plugin, "config": subject.config, "grants": subject.grants });
    let rule = json!({ "match": format!("{plugin}/"), "spread": SPREAD, "selection": selection });
    server.ask_well("PUT", "/v1/rules", Some(rule.to_string()))?;
    let shown = server.ask_well("GET", &format!("/v1/plugins/{plugin}"), None)?;
    let shown: Value = serde_json::from_str(&shown.body)?;
    Ok(shown["plugins"][0]["runs"].as_str().context("the server does not say where it runs")?.to_owned())
}

/// A policy under measurement.
struct Contender<'a> {
    server: &'a Process,
    /// None: the native choice.
    subject: Option<&'a Subject>,
    id: String,
    language: Language,
    /// The counter's value at the beginning, what was acknowledged since, and what may have been applied besides.
    before: i64,
    acknowledged: u64,
    open: u64,
}

impl<'a> Contender<'a> {
    fn new(server: &'a Process, subject: Option<&'a Subject>, id: String, language: Language) -> Self {
        Self { server, subject, id, language, before: 0, acknowledged: 0, open: 0 }
    }

    /// Everything from now on is counted.
    fn begin(&mut self) -> anyhow::Result<()> {
        self.before = self.server.settled_value_of(&self.id, 0)?;
        (self.acknowledged, self.open) = (0, 0);
        Ok(())
    }

    /// Loads its counter; answers the share of requests that the policy itself answered, too.
    fn run(&mut self, generator: &Generator, seconds: u32) -> anyhow::Result<(Run, f64)> {
        let server = self.server;
        let fallbacks = || self.subject.map_or(Ok(0.0), |subject| server.fallbacks(subject.plugin));
        let (fallbacks_before, cpu_before) = (fallbacks()?, machine::cpu_seconds(server.id())?);
        let journal_before = server.journal()?;
        let answers = generator.run(Requests::adds_to(&self.id), server.addr(), CONNECTIONS, seconds)?;
        complete(&answers)?;
        let cpu_seconds = quiet(server)? - cpu_before;
        let journal = Some(server.journal()?.since(journal_before));
        let failed = (fallbacks()? - fallbacks_before) / answers.good as f64;
        self.acknowledged += answers.good;
        self.open += u64::from(CONNECTIONS);
        let answered = if self.subject.is_some() { (1.0 - failed).clamp(0.0, 1.0) } else { 0.0 };
        Ok((Run { answers, cpu_seconds, journal }, answered))
    }

    /// Why its numbers are not what they are called, if they are not.
    fn doubt(&self) -> Option<String> {
        let subject = self.subject.filter(|subject| !subject.fails())?;
        let least = self.language.answered.iter().copied().min_by(f64::total_cmp)?;
        (1.0 - least > FALLBACK_SHARE_MAX).then(|| {
            let share = least * 100.0;
            format!("{}: in one round the policy itself answered only {share:.1} % of the requests", subject.name)
        })
    }

    /// What was acknowledged must be in the counter, and no more than was sent.
    fn end(self) -> anyhow::Result<Language> {
        let least = self.before + i64::try_from(self.acknowledged)?;
        let most = least + i64::try_from(self.open)?;
        let value = self.server.settled_value_of(&self.id, least)?;
        if !(least..=most).contains(&value) {
            bail!("{}: the counter is {value} and must be from {least} to {most}", self.id);
        }
        Ok(self.language)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_a_name_and_a_rule_of_its_own() {
        for (n, one) in SUBJECTS.iter().enumerate() {
            for other in &SUBJECTS[n + 1..] {
                assert!(one.name != other.name && !other.id().starts_with(&format!("{}/", one.plugin)));
            }
            assert!(one.plugin.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", one.plugin);
        }
        assert_eq!(SUBJECTS.iter().filter(|subject| subject.fails()).count(), 1);
    }
}
