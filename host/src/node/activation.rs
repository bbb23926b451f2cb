//! Changes of rules and plugins in a cluster: every live node is ready before a rule is stored, and has it in force before
//! the change is answered.
//!
//! 1. The node that was asked binds the rule, and asks every other live node to try the same ([`Node::prepare_rule`]).
//! 2. If counters may be spread wider than before, all nodes first read that wide.
//! 3. The rule is stored, which is the moment of the change; a change that came first wins.
//! 4. Every live node says that it has it in force ([`Node::await_revision`]).
//!
//! A change that brings a bound into effect comes after another one, which brings spread 1 ([`super::bounds`]).
//!
//! No lock is held while other nodes are asked, so that two nodes never wait for each other.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;

use super::{Keeper, Node, Registry};
use crate::error::{Error, Kind};
use crate::limits;
use crate::peer::wire::message;
use crate::registry::formats::{self, Finalized};
use crate::registry::{History, Snapshot, Versioned};

impl Registry {
    /// The newest version of any rule.
    pub(super) fn newest_version(&self) -> u64 {
        let newest = self.histories.values().flat_map(|history| [&history.current, &history.previous]);
        newest.flatten().map(|versioned| versioned.version).max().unwrap_or(0).max(self.newest)
    }

    /// Stores the history of a prefix; answers its revision in a shared registry.
    pub(super) async fn save(&mut self, prefix: &str, history: History) -> Result<i64, Error> {
        let revision = match &self.keeper {
            Keeper::Local(local) => {
                local.save(prefix, &history).await?;
                0
            }
            Keeper::Shared(shared) => shared.save_rule(prefix, &history, self.revisions.get(prefix).copied()).await?,
        };
        self.newest = self.newest_version();
        self.revisions.insert(prefix.to_owned(), revision);
        self.histories.insert(prefix.to_owned(), history);
        Ok(revision)
    }

    /// One of the rules that every cluster begins with. Another node may store it at the same time.
    pub(super) async fn begin_with(&mut self, history: History) -> Result<(), Error> {
        let prefix = history.current.as_ref().map(|current| current.rule.prefix.clone()).unwrap_or_default();
        match self.save(&prefix, history.clone()).await {
            Err(why) if why.kind == Kind::PreconditionFailed => {
                self.histories.insert(prefix, history);
                Ok(())
            }
            saved => saved.map(drop),
        }
    }
}

impl Node {
    /// Asks every other live node whether it could put the rule in force.
    pub(super) async fn prepare_elsewhere(
        &self,
        before: &History,
        after: &History,
        allow_missing: bool,
    ) -> Result<(), Error> {
        let (Some(peers), Some(versioned)) = (&self.peers, &after.current) else { return Ok(()) };
        let request =
            message::PrepareRuleRequest { versioned: serde_json::to_vec(versioned).map_err(Error::internal)? };
        let map = peers.questions.map();
        let asked = map.nodes.keys().map(|name| {
            let request = request.clone();
            async move {
                let not_there = || format!("{name}: does not answer");
                let mut client = peers.questions.patient_client(name).ok_or_else(not_there)?;
                let mut request = tonic::Request::new(request);
                request.set_timeout(limits::PREPARE_TIMEOUT);
                let reply = client.prepare_rule(request).await.map_err(|_| not_there())?;
                reply.into_inner().why_not.map_or(Ok(()), |why| Err(format!("{name}: {why}")))
            }
        });
        let reasons: Vec<String> = join_all(asked).await.into_iter().filter_map(Result::err).collect();
        if reasons.is_empty() || (allow_missing && !changes_what_all_agree_on(before, after)) {
            return Ok(());
        }
        let why = format!("The old rule stays everywhere, since not every live node is ready: {}.", reasons.join("; "));
        Err(Error::new(Kind::NotReady, why))
    }

    /// Reads must find every partial, so all nodes read as wide as the rule will be before anybody writes so wide.
    pub(super) async fn widen_reads_first(&self, prefix: &str, before: &History, after: &History) -> Result<(), Error> {
        if self.peers.is_none() || after.spread_max <= before.spread_max {
            return Ok(());
        }
        let wider = History { spread_max: after.spread_max, ..before.clone() };
        let bound = self.rules.load().get(prefix);
        let revision = self.put_in_force(prefix, wider, bound).await?;
        self.await_elsewhere(revision).await
    }

    /// Waits until every other live node has everything up to the revision in force.
    pub(super) async fn await_elsewhere(&self, revision: i64) -> Result<(), Error> {
        let Some(peers) = &self.peers else { return Ok(()) };
        let deadline = Instant::now() + limits::ACTIVATION_TIMEOUT;
        let map = peers.questions.map();
        let asked = map.nodes.keys().map(|name| async move {
            // One that is gone meanwhile serves nobody; when it comes back it begins with what is stored.
            while peers.questions.map().nodes.contains_key(name) {
                if let Some(mut client) = peers.questions.client(name)
                    && client.await_revision(message::AwaitRevisionRequest { revision }).await.is_ok()
                {
                    return Ok(());
                }
                if Instant::now() >= deadline {
                    return Err(name.clone());
                }
                tokio::time::sleep(limits::OWNER_RETRY).await;
            }
            Ok(())
        });
        let late: Vec<String> = join_all(asked).await.into_iter().filter_map(Result::err).collect();
        if late.is_empty() {
            return Ok(());
        }
        let why = format!(
            "The rule is stored and governs, but not everywhere yet: {} did not say in time that it does. It will as soon \
             as it sees the registry; GET /v1/rules shows the rule.",
            late.join(", ")
        );
        Err(Error::new(Kind::UnknownOutcome, why))
    }

    /// Raises the format that the cluster writes to the newest that every live node reads. A single node always writes its own.
    pub async fn finalize(&self) -> Result<Finalized, Error> {
        let shared = match &self.registry.lock().await.keeper {
            Keeper::Local(_) => None,
            Keeper::Shared(shared) => Some(shared.clone()),
        };
        match shared {
            Some(shared) => shared.finalize().await,
            None => Ok(formats::finalized(limits::FORMAT, std::iter::empty())),
        }
    }

    /// The format that the cluster writes, as far as this node knows it.
    pub fn written_format(&self) -> u32 {
        let config = self.peers.as_ref().and_then(|peers| peers.pictures.borrow().config.clone());
        config.map_or(limits::FORMAT, |config| config.value.format)
    }

    /// Whether this node could put a rule in force: its plugins are here, compile, and pass the dry run with its config.
    pub async fn prepare_rule(self: &Arc<Self>, versioned: &[u8]) -> Result<(), Error> {
        let versioned: Versioned = serde_json::from_slice(versioned)
            .map_err(|_| Error::invalid("the rule is of a newer version than this node understands"))?;
        let work = |node: Arc<Self>| async move {
            node.load_plugins_of(&versioned).await?;
            node.bind_on_trial(&versioned).await.map(drop)
        };
        self.off_thread(work).await
    }

    /// Answers when everything up to the revision is in force here. The asker has a deadline of its own.
    pub async fn await_revision(&self, revision: i64) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.followed.subscribe().wait_for(|followed| *followed >= revision).await;
    }

    /// The revision up to which everything is in force here.
    pub fn followed(&self) -> i64 {
        *self.followed.borrow()
    }

    /// Puts in force what the shared registry holds.
    pub async fn follow(self: &Arc<Self>, snapshot: Snapshot) -> Result<(), Error> {
        let revision = snapshot.revision;
        self.off_thread(move |node| async move {
            node.follow_plugins(&snapshot).await;
            node.follow_rules(snapshot).await
        })
        .await?;
        self.followed.send_if_modified(|followed| {
            let newer = revision > *followed;
            *followed = revision.max(*followed);
            newer
        });
        Ok(())
    }

    async fn follow_rules(self: &Arc<Self>, snapshot: Snapshot) -> Result<(), Error> {
        let mut registry = self.registry.lock().await;
        for (prefix, (history, revision)) in snapshot.rules {
            if registry.revisions.get(&prefix).is_some_and(|known| *known >= revision) {
                continue;
            }
            let bound = match &history.current {
                Some(current) => {
                    let current = self.renewed(current.clone());
                    if let Err(why) = self.load_plugins_of(&current).await {
                        tracing::warn!("a plugin of the rule {prefix:?} is not loaded yet: {why}");
                    }
                    Some(self.bind_or_stand_in(&current).await?)
                }
                None => None,
            };
            registry.newest = registry.newest_version();
            registry.revisions.insert(prefix.clone(), revision);
            registry.histories.insert(prefix.clone(), history);
            self.publish_one(&prefix, bound, &registry.histories);
        }
        Ok(())
    }
}

fn changes_what_all_agree_on(before: &History, after: &History) -> bool {
    match (&before.current, &after.current) {
        (Some(before), Some(after)) => {
            before.rule.spread_max() != after.rule.spread_max()
                || before.rule.spread != after.rule.spread
                || before.rule.durability != after.rule.durability
                || before.rule.bounds() != after.rule.bounds()
        }
        _ => true,
    }
}
