//! Bounds come into effect only where they can be kept.
//!
//! One shard judges a bound: a counter's home, by its own partial. That is right while nothing of the counter is elsewhere.
//! So a change that brings a counter without bounds under a bounded rule has steps of its own:
//!
//! 1. Spread 1 comes in force on all nodes: the new rule without its bounds or, where a rule is removed, that one narrowed.
//! 2. Additions that were routed by earlier rules end, on every node.
//! 3. Every counter that the change concerns is looked at. One with a partial other than 0 outside its home shard, or a
//!    shard that cannot be looked at, ends the change, and the rule that stood before is put in force again.
//! 4. The change itself.
//!
//! A node that dies in between leaves the rule of step 1, which refuses nothing and loses nothing; the rule before is its
//! previous one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;

use super::list::Place;
use super::{ActiveRule, Node};
use crate::counter::rule::Durability;
use crate::counter::{Bounds, Id, Rule, candidates, key_hash};
use crate::error::{Error, Kind};
use crate::limits;
use crate::peer::wire::message;
use crate::registry::{History, Versioned};

/// The rule that comes in force before a change that brings a bound into effect.
pub(super) struct Narrowed {
    history: History,
    /// Additions may be under way that were answered before they were written.
    relaxed: bool,
}

/// A partial that no bound would see.
struct Unsettled {
    id: Id,
    shard: u32,
    home: u32,
    value: i64,
}

/// The rule to put in force first; None when the change brings no bound into effect that was not before.
pub(super) fn narrowed_first(
    prefix: &str,
    before: &History,
    after: &History,
    histories: &BTreeMap<String, History>,
    version: u64,
) -> Option<Narrowed> {
    let shorter = histories.iter().rev().find_map(|(other, history)| {
        let shorter = other.len() < prefix.len() && prefix.starts_with(other.as_str());
        history.current.as_ref().filter(|_| shorter)
    });
    let bounded = |versioned: &Versioned| versioned.rule.bounds() != Bounds::NONE;
    let (was, will) = (before.current.as_ref().or(shorter), after.current.as_ref().or(shorter));
    if !will.is_some_and(bounded) || was.is_some_and(bounded) {
        return None;
    }
    let rule = &after.current.as_ref().or(before.current.as_ref())?.rule;
    let rule = Rule { spread: 1, spread_limit: None, min: None, max: None, ..rule.clone() };
    let relaxed = was.is_some_and(|was| was.rule.durability == Durability::Relaxed);
    Some(Narrowed { history: before.set(rule, version), relaxed })
}

impl Node {
    /// Puts a change in force that brings a bound into effect, or leaves the rule that stood before.
    pub(super) async fn settle_and_bound(
        &self,
        prefix: &str,
        before: History,
        first: Narrowed,
        (after, bound): (History, Option<Arc<ActiveRule>>),
    ) -> Result<(), Error> {
        let active_before = self.rules.load().get(prefix);
        let narrowed = match &first.history.current {
            Some(current) => Some(self.bind_on_trial(current).await?),
            None => None,
        };
        self.prepare_elsewhere(&before, &first.history, false).await?;
        // Removing the rule stores its history last, and reads go on as wide as they did.
        let before = History { spread_max: before.spread_max.max(1), ..before };
        let revision = self.put_in_force(prefix, first.history, narrowed).await?;
        crate::panics::point("bound");
        let settled = async {
            self.await_elsewhere(revision).await.map_err(|why| {
                tracing::warn!("a bound of the rule {prefix:?} is not set: {}", why.detail);
                let why = "Not every node said in time that it has spread 1 in force. The rule before is in force; try again \
                           in a moment.";
                Error::new(Kind::Unavailable, why)
            })?;
            self.await_older_rules(first.relaxed).await?;
            self.await_older_rules_elsewhere(first.relaxed).await?;
            self.look_for_unsettled(prefix).await
        };
        let why = match settled.await {
            Ok(None) => match self.put_in_force(prefix, after, bound).await {
                Ok(revision) => return self.await_elsewhere(revision).await,
                // Another node has changed this rule since, and its change stands.
                Err(why) if why.kind == Kind::PreconditionFailed => return Err(why),
                Err(why) => why,
            },
            Ok(Some(found)) => found.refusal(),
            Err(why) => why,
        };
        let restored = match self.put_in_force(prefix, before, active_before).await {
            Ok(revision) => self.await_elsewhere(revision).await,
            Err(why) => Err(why),
        };
        restored.map_err(|not_restored| {
            Error::new(
                Kind::UnknownOutcome,
                format!(
                    "The bound could not be set ({}), and it is not known whether the rule before is in force again on \
                     every node ({}). If it is not, a rule with spread 1 and without the bound is: GET /v1/rules shows it. \
                     Send the same request again, or roll back.",
                    why.detail, not_restored.detail
                ),
            )
        })?;
        Err(why)
    }

    /// Waits until no addition is under way that was routed by rules before those now in force; with `relaxed`, until
    /// those are written, too, that nobody waits for.
    pub async fn await_older_rules(&self, relaxed: bool) -> Result<(), Error> {
        // An addition is answered within its deadline, and a thread lets go of old rules soon after.
        let deadline = Instant::now() + limits::OPERATION_DEADLINE + limits::RULES_LET_GO;
        let older: Vec<_> = {
            let mut tables = self.tables_in_use.lock();
            tables.retain(|table| table.strong_count() > 0);
            let newest = tables.len().saturating_sub(1);
            tables[..newest].to_vec()
        };
        let under_way = || older.iter().any(|table| table.strong_count() > 0);
        let waiting = || self.commits.queued() + self.peers.as_ref().map_or(0, |peers| peers.links.waiting()) > 0;
        while under_way() || (relaxed && waiting()) {
            if Instant::now() >= deadline {
                let why = "Additions that began under an earlier rule are still under way, so it cannot be told whether \
                           the bound could be kept. Nothing was changed; try again in a moment.";
                return Err(Error::new(Kind::Unavailable, why));
            }
            tokio::time::sleep(limits::MOVED_RETRY).await;
        }
        Ok(())
    }

    async fn await_older_rules_elsewhere(&self, relaxed: bool) -> Result<(), Error> {
        let Some(peers) = &self.peers else { return Ok(()) };
        let map = peers.questions.map();
        let question =
            message::ListChangedRequest { limit: 1, settled: true, relaxed_settled: relaxed, ..Default::default() };
        let asked = map.nodes.keys().map(|name| {
            let question = question.clone();
            async move {
                let mut request = tonic::Request::new(question);
                request.set_timeout(limits::PREPARE_TIMEOUT);
                let mut client = peers.questions.patient_client(name).ok_or_else(|| super::cluster::away(name))?;
                client.list_changed(request).await.map(drop).map_err(|_| super::cluster::away(name))
            }
        });
        join_all(asked).await.into_iter().collect()
    }

    /// The first counter that the rule of this prefix governs and that has a partial other than 0 outside its home shard.
    async fn look_for_unsettled(&self, prefix: &str) -> Result<Option<Unsettled>, Error> {
        let owners = self.every_owner()?;
        let mut after: Option<Id> = None;
        loop {
            let (found, end) = self.next_found(prefix, after.as_ref(), limits::LIST_LIMIT_MAX).await?;
            let rules = self.rules.load();
            for (Place(id), partials) in found {
                if rules.governing(id.as_str()).rule.prefix != prefix {
                    continue;
                }
                let home = candidates(key_hash(id.as_str()), self.shards, 1)[0];
                let elsewhere =
                    partials.iter().find(|(shard, partial)| **shard != home && !partial.removed && partial.value != 0);
                if let Some((&shard, partial)) = elsewhere {
                    return Ok(Some(Unsettled { id, shard, home, value: partial.value }));
                }
            }
            match end {
                Some(end) => after = Some(end),
                None if self.every_owner()? == owners => return Ok(None),
                None => {
                    let why = "A shard moved to another node while its counters were looked at. Nothing was changed; try \
                               again in a moment.";
                    return Err(Error::new(Kind::Unavailable, why));
                }
            }
        }
    }

    /// The nodes that serve the shards, or which shard nobody does.
    fn every_owner(&self) -> Result<Vec<String>, Error> {
        let owner = |shard| {
            self.owner(shard).ok_or_else(|| {
                let why = format!(
                    "Shard {shard} is not served now, so its counters cannot be looked at, and a bound comes into effect \
                     only when they were. Nothing was changed; try again when every shard is served."
                );
                Error::new(Kind::NoOwner, why)
            })
        };
        (0..self.shards).map(owner).collect()
    }
}

impl Unsettled {
    fn refusal(&self) -> Error {
        let Self { id, shard, home, value } = self;
        let id = super::read::shortened(id.as_str());
        Error::new(
            Kind::BoundUnsettled,
            format!(
                "The counter {id:?} has {value} on shard {shard}, and its bound would be judged on shard {home} alone. The \
                 rule before is in force. Set the rule with spread 1 and without min and max, delete this counter, add its \
                 total anew, and then set the bound; or bound a prefix of new counters."
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(prefix: &str, spread: u32, min: Option<i64>) -> Rule {
        Rule { prefix: prefix.into(), spread, min, ..Rule::fallback() }
    }

    fn first(
        prefix: &str,
        rules: &[Rule],
        change: impl Fn(&History) -> Result<History, Error>,
    ) -> Option<(u32, Option<i64>, String)> {
        let histories: BTreeMap<_, _> = (1..)
            .zip(rules)
            .map(|(version, rule)| (rule.prefix.clone(), History::default().set(rule.clone(), version)))
            .collect();
        let before = histories.get(prefix).cloned().unwrap_or_default();
        let after = change(&before).expect("a change that is possible");
        let current = narrowed_first(prefix, &before, &after, &histories, 9)?.history.current.expect("a rule");
        assert_eq!(current.version, 9);
        Some((current.rule.spread_max(), current.rule.min, current.rule.prefix))
    }

    #[test]
    fn the_first_bound_is_narrowed_first_and_a_second_is_not() {
        let set = |min| move |before: &History| Ok(before.set(rule("a/", 1, min), 5));
        let narrow = Some((1, None, "a/".to_owned()));
        assert_eq!(first("a/", &[rule("", 3, None)], set(Some(0))), narrow);
        assert_eq!(first("a/", &[rule("", 3, None), rule("a/", 1, None)], set(Some(0))), narrow);
        assert_eq!(first("a/", &[rule("", 3, None), rule("a/", 1, Some(5))], set(Some(0))), None);
        assert_eq!(first("a/", &[rule("", 1, Some(5))], set(Some(0))), None, "they were bounded by the shorter prefix");
        assert_eq!(first("a/", &[rule("", 3, None)], set(None)), None);
    }

    #[test]
    fn a_rule_that_gives_way_to_a_bounded_one_is_narrowed_first() {
        let delete = |before: &History| before.delete();
        let rules = [rule("", 3, None), rule("a", 1, Some(0)), rule("a/b", 6, None), rule("a0", 1, None)];
        assert_eq!(first("a/b", &rules, delete), Some((1, None, "a/b".to_owned())));
        assert_eq!(first("a", &rules, delete), None, "what follows has no bounds");
        let between = [rule("", 1, Some(0)), rule("a", 3, None), rule("a/b", 6, None)];
        assert_eq!(first("a/b", &between, delete), None, "the next shorter prefix has none");
    }

    #[test]
    fn a_rollback_to_bounds_is_narrowed_first() {
        let back = |before: &History| before.set(rule("a/", 1, Some(0)), 5).set(rule("a/", 3, None), 6).roll_back(7);
        assert_eq!(first("a/", &[rule("", 3, None), rule("a/", 3, None)], back), Some((1, None, "a/".to_owned())));
    }
}
