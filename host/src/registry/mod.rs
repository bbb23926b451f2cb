//! The registry: which rules are in force, what they were before, and how far counters may be spread.
//!
//! In a single node it lives in the store (`local`), in a cluster in etcd (`etcd`), of which every node has a `picture`;
//! [`Shared`] is what the rest of the program sees of it. What a change of rules means is here as pure code.

pub mod etcd;
pub mod formats;
pub mod local;
pub mod picture;
pub mod standing;

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::counter::Rule;
use crate::error::{Error, Kind};
pub use picture::Picture;
pub use standing::Standing;

/// One rule as it was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    pub rule: Rule,
    /// Rises with every change of any rule of the cluster.
    pub version: u64,
    /// Why the rule's canary was taken back, once it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_ended: Option<String>,
}

/// What is known of one prefix. Kept after a deletion, so that it can be rolled back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Versioned>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Versioned>,
    /// The widest spread that a rule for this prefix ever had. Never lowered: reads must find every partial.
    #[serde(default)]
    pub spread_max: u32,
}

/// What a shared registry holds of rules and plugins at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Rises with every change of anything.
    pub revision: i64,
    /// By prefix: the history, and the revision of its last change.
    pub rules: BTreeMap<String, (History, i64)>,
    /// Digests of uploaded plugins, with their names.
    pub plugins: BTreeMap<String, String>,
}

/// A registry that the nodes of a cluster share. Every change is durable when it answers, and comes to every node as a
/// later [`Snapshot`]; so does one whose answer was lost.
#[async_trait]
pub trait Shared: Send + Sync + 'static {
    /// Replaces a prefix's history if its last change still is the one at `expected` (None: it has no history yet).
    /// Answers the revision of this change; `PreconditionFailed` when another change came first.
    async fn save_rule(&self, prefix: &str, history: &History, expected: Option<i64>) -> Result<i64, Error>;

    /// Tells the other nodes of an uploaded plugin. Its bytes are in the store.
    async fn announce_plugin(&self, name: &str, digest: &str) -> Result<(), Error>;

    /// The plugin is no more.
    async fn withdraw_plugin(&self, digest: &str) -> Result<(), Error>;

    /// Raises the written format to the newest that every live node reads.
    async fn finalize(&self) -> Result<formats::Finalized, Error>;
}

/// What a caller demands of the rule that it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precondition {
    #[default]
    None,
    /// `If-Match: "7"`.
    Version(u64),
    /// `If-Match: *`: there is one.
    Exists,
    /// `If-None-Match: *`: there is none.
    Absent,
}

impl History {
    pub fn check(&self, precondition: Precondition) -> Result<(), Error> {
        let current = self.current.as_ref().map(|current| current.version);
        let holds = match precondition {
            Precondition::None => true,
            Precondition::Version(version) => current == Some(version),
            Precondition::Exists => current.is_some(),
            Precondition::Absent => current.is_none(),
        };
        if holds {
            return Ok(());
        }
        let now = current.map_or("there is no such rule".into(), |version| format!("its version is {version}"));
        Err(Error::new(
            Kind::PreconditionFailed,
            format!("The rule is not as the request expects: {now}. Read it again."),
        ))
    }

    /// `rule` becomes the current one, and today's the previous one.
    pub fn set(&self, rule: Rule, version: u64) -> Self {
        Self {
            spread_max: self.spread_max.max(rule.spread_max()),
            current: Some(Versioned { rule, version, canary_ended: None }),
            previous: self.current.clone().or_else(|| self.previous.clone()),
        }
    }

    /// Takes the canary of the current rule back and keeps the reason. The previous rule stays what it was.
    pub fn end_canary(&self, version: u64, reason: String) -> Result<Self, Error> {
        let current = self.current.clone().ok_or_else(not_found)?;
        let rule = Rule { canary: None, ..current.rule };
        Ok(Self { current: Some(Versioned { rule, version, canary_ended: Some(reason) }), ..self.clone() })
    }

    pub fn delete(&self) -> Result<Self, Error> {
        let current = self.current.clone().ok_or_else(not_found)?;
        if current.rule.prefix.is_empty() {
            let why = "The rule for \"\" governs every counter that no other rule does; replace it with PUT instead.";
            return Err(Error::new(Kind::RuleProtected, why));
        }
        Ok(Self { current: None, previous: Some(current), spread_max: self.spread_max })
    }

    /// Exchanges current and previous, so that rolling back twice is as if nothing happened.
    pub fn roll_back(&self, version: u64) -> Result<Self, Error> {
        let previous = self
            .previous
            .clone()
            .ok_or_else(|| Error::new(Kind::RuleNotFound, "There is no earlier rule with this match to go back to."))?;
        Ok(Self {
            current: Some(Versioned { version, ..previous }),
            previous: self.current.clone(),
            spread_max: self.spread_max,
        })
    }
}

fn not_found() -> Error {
    Error::new(Kind::RuleNotFound, "There is no rule with this match; GET /v1/rules lists them.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(prefix: &str, spread: u32) -> Rule {
        Rule { prefix: prefix.into(), spread, ..Rule::fallback() }
    }

    #[test]
    fn a_rollback_restores_and_can_be_undone() {
        let history = History::default().set(rule("a/", 2), 1).set(rule("a/", 5), 2);
        let back = history.roll_back(3).expect("there is an earlier rule");
        assert_eq!(back.current.as_ref().map(|current| (current.rule.spread, current.version)), Some((2, 3)));
        let forth = back.roll_back(4).expect("there is an earlier rule");
        assert_eq!(forth.current.map(|current| current.rule.spread), Some(5));
    }

    #[test]
    fn the_spread_of_reads_is_never_lowered() {
        let history = History::default().set(rule("a/", 5), 1).set(rule("a/", 2), 2);
        assert_eq!(history.spread_max, 5);
        let deleted = history.delete().expect("it exists");
        assert_eq!(deleted.spread_max, 5);
        assert_eq!(deleted.roll_back(3).expect("a deletion can be undone").current.map(|c| c.rule.spread), Some(2));
    }

    #[test]
    fn the_rule_for_everything_stays() {
        let history = History::default().set(rule("", 3), 1);
        assert_eq!(history.delete().map_err(|why| why.kind), Err(Kind::RuleProtected));
    }

    #[test]
    fn preconditions_protect_from_lost_updates() {
        let none = History::default();
        let some = none.set(rule("a/", 3), 7);
        assert!(none.check(Precondition::Absent).is_ok() && some.check(Precondition::Absent).is_err());
        assert!(some.check(Precondition::Version(7)).is_ok() && some.check(Precondition::Version(6)).is_err());
        assert!(some.check(Precondition::Exists).is_ok() && none.check(Precondition::Exists).is_err());
    }
}
