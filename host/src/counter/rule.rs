//! Rules: which policies, spread and durability govern the counters below an id prefix. The longest prefix wins.

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use super::{Bounds, key_hash};
use crate::limits;

/// When an addition is answered. The journal entry is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// After the store made the entry durable.
    #[default]
    Durable,
    /// As soon as the operation is checked and queued; lost if the node dies before its entry is written.
    Relaxed,
}

/// A policy as a rule names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRef {
    pub plugin: String,
    /// `sha256:…`; the plugin's newest revision when absent. Stored rules always carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Handed to the policy's `configure` once per instance.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub config: String,
    /// Interfaces of `wit/` that the policy may use besides those that every policy may: "registry", "storage". The others
    /// answer it `denied`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
}

/// Another revision of one of the rule's plugins that answers for a part of the counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// `sha256:…` of the rule's selection or aggregation plugin.
    pub revision: String,
    /// 1 to 99 of a hundred counters, by the hash of their ids.
    pub percent: u8,
}

impl PolicyRef {
    pub fn named(plugin: &str) -> Self {
        Self { plugin: plugin.into(), revision: None, config: String::new(), grants: Vec::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Id prefix; `""` governs what no other rule does.
    #[serde(rename = "match")]
    pub prefix: String,
    #[serde(default = "default_selection")]
    pub selection: PolicyRef,
    #[serde(default = "default_aggregation")]
    pub aggregation: PolicyRef,
    /// Over how many shards a counter may be written; clamped to the number of shards.
    #[serde(default = "default_spread")]
    pub spread: u32,
    /// Over how many while all of a counter's usual shards are saturated; absent: never more than `spread`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_limit: Option<u32>,
    #[serde(default)]
    pub durability: Durability,
    /// Smallest and largest total that an addition may reach; they need spread 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// A revision of one of the rule's plugins that is asked too and whose answers are only compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<String>,
}

fn default_selection() -> PolicyRef {
    PolicyRef::named("least-cpu")
}
fn default_aggregation() -> PolicyRef {
    PolicyRef::named("sum")
}
fn default_spread() -> u32 {
    limits::SPREAD_DEFAULT
}

/// Why a rule is not accepted, before its policies are looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("match: {0}")]
    Match(super::id::Invalid),
    #[error("spread: must be from 1 to {shards}, the number of shards; it is {spread}")]
    Spread { spread: u32, shards: u32 },
    #[error("spread_limit: must be from the spread, {spread}, to {shards}, the number of shards; it is {limit}")]
    SpreadLimit { limit: u32, spread: u32, shards: u32 },
    #[error("min and max need \"spread\": 1, since only one writer can check them; spread is {0}")]
    BoundsNeedSpreadOne(u32),
    #[error("min and max need \"durability\": \"durable\": a relaxed answer leaves before they are checked")]
    BoundsNeedDurable,
    #[error("min ({min}) is above max ({max})")]
    EmptyBounds { min: i64, max: i64 },
    #[error("canary: percent must be from 1 to 99; it is {0}")]
    CanaryPercent(u8),
}

impl Rule {
    /// The rule a new cluster starts with.
    pub fn fallback() -> Self {
        Self {
            prefix: String::new(),
            selection: default_selection(),
            aggregation: default_aggregation(),
            spread: default_spread(),
            spread_limit: None,
            durability: Durability::Durable,
            min: None,
            max: None,
            canary: None,
            shadow: None,
        }
    }

    /// The most shards that a counter may be written on.
    pub fn spread_max(&self) -> u32 {
        self.spread_limit.unwrap_or(self.spread).max(self.spread)
    }

    pub fn bounds(&self) -> Bounds {
        Bounds { min: self.min, max: self.max }
    }

    pub fn check(&self, shards: u32) -> Result<(), Invalid> {
        if !self.prefix.is_empty() {
            super::Id::new(&self.prefix).map_err(Invalid::Match)?;
        }
        if self.spread == 0 || self.spread > shards {
            return Err(Invalid::Spread { spread: self.spread, shards });
        }
        if let Some(limit) = self.spread_limit.filter(|limit| !(self.spread..=shards).contains(limit)) {
            return Err(Invalid::SpreadLimit { limit, spread: self.spread, shards });
        }
        if self.bounds() != Bounds::NONE {
            if self.spread_max() != 1 {
                return Err(Invalid::BoundsNeedSpreadOne(self.spread_max()));
            }
            if self.durability == Durability::Relaxed {
                return Err(Invalid::BoundsNeedDurable);
            }
        }
        if let Some(percent) =
            self.canary.as_ref().map(|canary| canary.percent).filter(|percent| !(1..=99).contains(percent))
        {
            return Err(Invalid::CanaryPercent(percent));
        }
        match self.bounds() {
            Bounds { min: Some(min), max: Some(max) } if min > max => Err(Invalid::EmptyBounds { min, max }),
            _ => Ok(()),
        }
    }
}

/// Values by id prefix. A look-up costs one hash per distinct prefix length, not per rule.
#[derive(Debug, Clone)]
pub struct Rules<T> {
    by_prefix: HashTable<(Box<str>, T)>,
    /// Distinct prefix lengths, longest first.
    lengths: Vec<usize>,
}

impl<T> Default for Rules<T> {
    fn default() -> Self {
        Self { by_prefix: HashTable::new(), lengths: Vec::new() }
    }
}

impl<T> FromIterator<(String, T)> for Rules<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(iter: I) -> Self {
        let mut rules = Self::default();
        for (prefix, rule) in iter {
            match rules.by_prefix.find_mut(key_hash(&prefix), |(known, _)| **known == *prefix) {
                Some(known) => known.1 = rule,
                None => {
                    rules.lengths.push(prefix.len());
                    let entry = (prefix.into_boxed_str(), rule);
                    rules.by_prefix.insert_unique(key_hash(&entry.0), entry, |(prefix, _)| key_hash(prefix));
                }
            }
        }
        rules.lengths.sort_unstable_by(|a, b| b.cmp(a));
        rules.lengths.dedup();
        rules
    }
}

impl<T> Rules<T> {
    /// Everything whose prefix matches `id`, the longest prefix first.
    pub fn matching<'a>(&'a self, id: &str) -> impl Iterator<Item = &'a T> {
        self.lengths.iter().filter_map(move |&length| self.get(id.get(..length)?))
    }

    /// What governs `id`: the longest prefix.
    pub fn longest(&self, id: &str) -> Option<&T> {
        self.matching(id).next()
    }

    pub fn get(&self, prefix: &str) -> Option<&T> {
        self.by_prefix.find(key_hash(prefix), |(known, _)| **known == *prefix).map(|(_, rule)| rule)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.by_prefix.iter().map(|(prefix, rule)| (&**prefix, rule))
    }

    pub fn len(&self) -> usize {
        self.by_prefix.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_longest_prefix_wins(prefixes in prop::collection::hash_set("[aé/]{0,4}", 0..8), id in "[aé/]{1,6}") {
            let rules: Rules<String> = prefixes.iter().map(|p| (p.clone(), p.clone())).collect();
            let expected = prefixes.iter().filter(|p| id.starts_with(p.as_str())).max_by_key(|p| p.len());
            prop_assert_eq!(rules.longest(&id), expected);
            prop_assert_eq!(rules.matching(&id).count(), prefixes.iter().filter(|p| id.starts_with(p.as_str())).count());
        }
    }

    #[test]
    fn bounds_need_one_durable_writer() {
        let mut rule = Rule { min: Some(0), ..Rule::fallback() };
        assert_eq!(rule.check(12), Err(Invalid::BoundsNeedSpreadOne(3)));
        rule.spread = 1;
        assert_eq!(rule.check(12), Ok(()));
        rule.durability = Durability::Relaxed;
        assert_eq!(rule.check(12), Err(Invalid::BoundsNeedDurable));
    }

    #[test]
    fn the_limit_of_the_spread_is_above_it_and_within_the_shards() {
        let rule = |limit| Rule { spread_limit: Some(limit), ..Rule::fallback() };
        assert_eq!((rule(3).check(12), rule(12).check(12)), (Ok(()), Ok(())));
        assert_eq!(rule(12).spread_max(), 12);
        for limit in [2, 13] {
            assert_eq!(rule(limit).check(12), Err(Invalid::SpreadLimit { limit, spread: 3, shards: 12 }));
        }
        let bounded = Rule { spread: 1, min: Some(0), ..rule(2) };
        assert_eq!(bounded.check(12), Err(Invalid::BoundsNeedSpreadOne(2)));
    }

    #[test]
    fn spread_is_checked_against_the_shards() {
        let rule = Rule { spread: 13, ..Rule::fallback() };
        assert_eq!(rule.check(12), Err(Invalid::Spread { spread: 13, shards: 12 }));
    }

    #[test]
    fn a_rule_reads_as_the_contract_says() {
        let rule: Rule = serde_json::from_str(r#"{"match":"stock/","spread":1,"min":0}"#).expect("a rule");
        assert_eq!(rule.min, Some(0));
        assert_eq!(rule.selection.plugin, "least-cpu");
        let text = serde_json::to_string(&rule).expect("serialises");
        assert!(text.contains(r#""min":0"#) && !text.contains("max"), "{text}");
    }
}
