//! Rules in force: looked up on every request, changed as a whole.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::plugins::missing;
use super::rollout::{ActiveCanary, ActiveShadow};
use super::{Node, bounds};
use crate::counter::rule::PolicyRef;
use crate::counter::{Rule, Rules};
use crate::error::{Error, Kind};
use crate::limits;
use crate::policy::limits::KEPT_BUSY;
use crate::policy::{Binding, Grants, Revision, World, admission, builtin};
use crate::registry::{History, Precondition, Versioned};

/// The one counter of the second compatible system.
pub const MODULO_COUNTER: &str = "default";

/// A rule with its policies bound.
pub struct ActiveRule {
    pub rule: Rule,
    pub version: u64,
    /// Why the rule's canary was taken back, once it was.
    pub canary_ended: Option<String>,
    /// Why default policies stand in for those of the rule, when they do.
    pub degraded: Option<String>,
    pub selection: Arc<Binding>,
    pub aggregation: Arc<Binding>,
    pub canary: Option<ActiveCanary>,
    pub shadow: Option<ActiveShadow>,
}

impl ActiveRule {
    /// The shadow, if it stands beside the policy of this world.
    pub fn shadow_of(&self, world: World) -> Option<&ActiveShadow> {
        self.shadow.as_ref().filter(|shadow| shadow.binding.revision.world == world)
    }

    /// Whether a revision takes part in this rule.
    pub fn uses(&self, digest: &str) -> bool {
        self.bindings().any(|binding| binding.revision.digest() == digest)
    }

    /// Every policy that takes part in it.
    pub fn bindings(&self) -> impl Iterator<Item = &Arc<Binding>> {
        let canary = self.canary.as_ref().map(|canary| &canary.binding);
        let shadow = self.shadow.as_ref().map(|shadow| &shadow.binding);
        [Some(&self.selection), Some(&self.aggregation), canary, shadow].into_iter().flatten()
    }
}

/// Whether a policy's dry run comes before it is bound. At a start it does not: it passed when the rule was set, and
/// where it put the policy is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// Whether the rule's spread is every shard: some policies answer right only then.
    Run {
        all_shards: bool,
    },
    Skip,
}

/// A rule as one serving thread has it: cloning it touches no memory that other threads write.
pub type LocalRule = Rc<Arc<ActiveRule>>;

/// One of a rule's policies, as it answered a request.
#[derive(Clone)]
pub struct Answering {
    rule: LocalRule,
    world: World,
    canary: bool,
}

impl Answering {
    /// The policy that selects the counter's shard: the stable one or the canary.
    pub fn selection(rule: &LocalRule, hash: u64) -> Self {
        Self::new(rule, World::Selection, hash)
    }

    pub fn aggregation(rule: &LocalRule, hash: u64) -> Self {
        Self::new(rule, World::Aggregation, hash)
    }

    fn new(rule: &LocalRule, world: World, hash: u64) -> Self {
        let takes = |canary: &ActiveCanary| canary.binding.revision.world == world && canary.takes(hash);
        Self { canary: rule.canary.as_ref().is_some_and(takes), rule: rule.clone(), world }
    }

    pub fn rule(&self) -> &LocalRule {
        &self.rule
    }

    pub fn binding(&self) -> &Arc<Binding> {
        match (&self.rule.canary, self.world) {
            (Some(canary), _) if self.canary => &canary.binding,
            (_, World::Selection) => &self.rule.selection,
            (_, World::Aggregation) => &self.rule.aggregation,
        }
    }
}

/// An immutable picture of everything that governs requests.
#[derive(Default)]
pub struct RuleTable {
    rules: Rules<Arc<ActiveRule>>,
    spread_max: Rules<u32>,
    in_use: Arc<()>,
}

impl RuleTable {
    /// The rule of a counter. There is always one: the rule for `""` cannot be deleted.
    pub fn governing(&self, id: &str) -> &Arc<ActiveRule> {
        self.rules.longest(id).expect("the rule for the empty prefix always exists")
    }

    /// The rule set for exactly this prefix.
    pub fn get(&self, prefix: &str) -> Option<Arc<ActiveRule>> {
        self.rules.get(prefix).cloned()
    }

    /// Over how many shards a counter may have been written, under any rule it ever had.
    pub fn spread_of_reads(&self, id: &str) -> u32 {
        self.spread_max.matching(id).copied().max().unwrap_or(1)
    }

    /// For one serving thread.
    pub fn local(&self) -> LocalRules {
        let rules = self.rules.iter().map(|(prefix, rule)| (prefix.to_owned(), Rc::new(rule.clone()))).collect();
        LocalRules { rules, spread_max: self.spread_max.clone(), _in_use: self.in_use.clone() }
    }

    /// In the order of their prefixes.
    pub fn list(&self) -> Vec<Arc<ActiveRule>> {
        let mut rules: Vec<_> = self.rules.iter().map(|(_, rule)| rule.clone()).collect();
        rules.sort_by(|a, b| a.rule.prefix.cmp(&b.rule.prefix));
        rules
    }
}

/// The rules in force, as one serving thread has them.
#[derive(Default)]
pub struct LocalRules {
    rules: Rules<LocalRule>,
    spread_max: Rules<u32>,
    /// Lets [`Node::await_older_rules`] see that a request still goes by these.
    _in_use: Arc<()>,
}

impl LocalRules {
    /// As [`RuleTable::governing`].
    pub fn governing(&self, id: &str) -> &LocalRule {
        self.rules.longest(id).expect("the rule for the empty prefix always exists")
    }

    /// As [`RuleTable::spread_of_reads`].
    pub fn spread_of_reads(&self, id: &str) -> u32 {
        self.spread_max.matching(id).copied().max().unwrap_or(1)
    }
}

impl Node {
    pub(super) async fn load_rules(&self) -> Result<(), Error> {
        let mut registry = self.registry.lock().await;
        if !registry.histories.contains_key("") {
            for (version, rule) in (1..).zip(initial_rules(self.shards)) {
                let history = History::default().set(self.resolved(rule)?, version);
                registry.begin_with(history).await?;
            }
        }
        let mut rules = BTreeMap::new();
        for (prefix, history) in &registry.histories {
            if let Some(current) = &history.current {
                rules.insert(prefix.clone(), self.bind_or_stand_in(&self.renewed(current.clone())).await?);
            }
        }
        self.publish(rules, &registry.histories);
        Ok(())
    }

    /// Sets a rule; it governs every request that begins after this answers.
    ///
    /// In a cluster every live node must be ready for it; with `allow_missing` those that are not go without, unless the
    /// rule changes what all must agree on: spread, durability or bounds.
    pub async fn set_rule(
        &self,
        rule: Rule,
        precondition: Precondition,
        allow_missing: bool,
    ) -> Result<Arc<ActiveRule>, Error> {
        rule.check(self.shards).map_err(Error::invalid)?;
        let rule = self.resolved(rule)?;
        let prefix = rule.prefix.clone();
        // Not kept: a change may wait until nothing goes by the rules before it.
        let is_full = {
            let rules = self.rules.load();
            rules.rules.len() >= limits::RULES_MAX && rules.rules.get(&prefix).is_none()
        };
        if is_full {
            return Err(Error::invalid(format!(
                "there are {} rules already, the most a cluster has",
                limits::RULES_MAX
            )));
        }
        let change = |history: &History, version| Ok(history.set(rule, version));
        let active = self.change_rule(&prefix, precondition, allow_missing, change).await?;
        active.ok_or_else(|| Error::internal("a rule that was set is not there"))
    }

    pub async fn delete_rule(&self, prefix: &str, precondition: Precondition) -> Result<(), Error> {
        self.change_rule(prefix, precondition, false, |history, _| history.delete()).await.map(|_| ())
    }

    /// Returns to the rule before; None when the rollback undid the rule's creation.
    pub async fn roll_back_rule(&self, prefix: &str) -> Result<Option<Arc<ActiveRule>>, Error> {
        self.change_rule(prefix, Precondition::None, false, |history, version| history.roll_back(version)).await
    }

    /// What a rule was before its last change.
    pub async fn previous_rule(&self, prefix: &str) -> Option<Versioned> {
        self.registry.lock().await.histories.get(prefix).and_then(|history| history.previous.clone())
    }

    async fn change_rule(
        &self,
        prefix: &str,
        precondition: Precondition,
        allow_missing: bool,
        change: impl FnOnce(&History, u64) -> Result<History, Error>,
    ) -> Result<Option<Arc<ActiveRule>>, Error> {
        let _one = self.changing.lock().await;
        let (before, mut after, first) = {
            let registry = self.registry.lock().await;
            let before = registry.histories.get(prefix).cloned().unwrap_or_default();
            before.check(precondition)?;
            let version = registry.newest_version() + 1;
            let after = change(&before, version)?;
            let first = bounds::narrowed_first(prefix, &before, &after, &registry.histories, version);
            (before, after, first)
        };
        if let (Some(_), Some(current)) = (&first, &mut after.current) {
            current.version += 1;
        }
        // Bound before it is stored: a rule that no node could serve must not be found at the next start.
        let bound = match &after.current {
            Some(current) => Some(self.bind_on_trial(current).await?),
            None => None,
        };
        self.prepare_elsewhere(&before, &after, allow_missing).await?;
        self.placements.save(&*self.store).await?;
        if let Some(first) = first {
            self.settle_and_bound(prefix, before, first, (after, bound.clone())).await?;
            self.forget_placements().await;
            return Ok(bound);
        }
        self.widen_reads_first(prefix, &before, &after).await?;
        let revision = self.put_in_force(prefix, after, bound.clone()).await?;
        self.forget_placements().await;
        self.await_elsewhere(revision).await?;
        Ok(bound)
    }

    /// Where policies ran under rules that are gone need not be kept.
    async fn forget_placements(&self) {
        let in_force = self.rules.load().list();
        let bindings = in_force.iter().flat_map(|active| active.bindings());
        if let Err(why) = self.placements.keep(&*self.store, bindings).await {
            // The rule is in force; the next change or start tries again.
            tracing::warn!("where policies ran under rules that are gone is still kept: {why}");
        }
    }

    pub(super) async fn bind_on_trial(&self, current: &Versioned) -> Result<Arc<ActiveRule>, Error> {
        let _awake = self.wake_plugins_of(&current.rule).await?;
        self.bind(current, Trial::Run { all_shards: current.rule.spread >= self.shards })
    }

    /// Stores a history and lets its rule govern this node. Answers the revision in a shared registry.
    pub(super) async fn put_in_force(
        &self,
        prefix: &str,
        history: History,
        bound: Option<Arc<ActiveRule>>,
    ) -> Result<i64, Error> {
        let mut registry = self.registry.lock().await;
        let revision = registry.save(prefix, history).await?;
        self.publish_one(prefix, bound, &registry.histories);
        Ok(revision)
    }

    /// Exchanges the rule of one prefix.
    pub(super) fn publish_one(
        &self,
        prefix: &str,
        bound: Option<Arc<ActiveRule>>,
        histories: &BTreeMap<String, History>,
    ) {
        let mut rules: BTreeMap<String, Arc<ActiveRule>> =
            self.rules.load().rules.iter().map(|(prefix, rule)| (prefix.to_owned(), rule.clone())).collect();
        match bound {
            Some(rule) => rules.insert(prefix.to_owned(), rule),
            None => rules.remove(prefix),
        };
        self.publish(rules, histories);
    }

    fn publish(&self, rules: BTreeMap<String, Arc<ActiveRule>>, histories: &BTreeMap<String, History>) {
        let spread_max = histories.iter().map(|(prefix, history)| (prefix.clone(), history.spread_max)).collect();
        let in_use = Arc::new(());
        let mut tables = self.tables_in_use.lock();
        tables.retain(|table| table.strong_count() > 0);
        tables.push(Arc::downgrade(&in_use));
        self.rules.store(Arc::new(RuleTable { rules: rules.into_iter().collect(), spread_max, in_use }));
        drop(tables);
        self.rules_generation.fetch_add(1, Ordering::Release);
    }

    /// The rule with the revisions that its policies have now.
    fn resolved(&self, mut rule: Rule) -> Result<Rule, Error> {
        for (policy, world) in [(&mut rule.selection, World::Selection), (&mut rule.aggregation, World::Aggregation)] {
            let revision = self.catalog.get(&policy.plugin, policy.revision.as_deref()).map_err(missing)?;
            if revision.world != world {
                let (is, not) = (revision.world.name(), world.name());
                let why = format!("plugin {:?} is of the world {is}, not {not}", policy.plugin);
                return Err(Error::invalid(why));
            }
            policy.revision = Some(revision.digest().to_owned());
        }
        Ok(rule)
    }

    /// A rule whose built-in policy came in another revision with this binary follows it.
    pub(super) fn renewed(&self, mut current: Versioned) -> Versioned {
        for policy in [&mut current.rule.selection, &mut current.rule.aggregation] {
            if self.catalog.get(&policy.plugin, policy.revision.as_deref()).is_err()
                && builtin::find(&policy.plugin).is_some()
                && let Ok(builtin) = self.catalog.get(&policy.plugin, None)
            {
                tracing::info!(
                    "the rule {:?} goes on with {} {}, which this version of Quipu brings",
                    current.rule.prefix,
                    policy.plugin,
                    builtin.digest()
                );
                policy.revision = Some(builtin.digest().to_owned());
            }
        }
        current
    }

    fn bind(&self, current: &Versioned, trial: Trial) -> Result<Arc<ActiveRule>, Error> {
        let rule = &current.rule;
        let (selection, aggregation) = (
            self.bind_policy(&rule.selection, "selection", trial)?,
            self.bind_policy(&rule.aggregation, "aggregation", trial)?,
        );
        let canary = rule.canary.as_ref().map(|canary| {
            let (stable, binding) =
                self.bind_beside(rule, [&selection, &aggregation], &canary.revision, "canary", trial)?;
            Ok::<_, Error>(ActiveCanary::new(binding, stable, canary.percent))
        });
        let shadow = rule.shadow.as_ref().map(|revision| {
            let (_, binding) = self.bind_beside(rule, [&selection, &aggregation], revision, "shadow", trial)?;
            Ok::<_, Error>(ActiveShadow::new(binding))
        });
        Ok(Arc::new(ActiveRule {
            canary: canary.transpose()?,
            shadow: shadow.transpose()?,
            selection,
            aggregation,
            rule: rule.clone(),
            version: current.version,
            canary_ended: current.canary_ended.clone(),
            degraded: None,
        }))
    }

    /// At a start: a rule whose policies cannot be bound any more goes on with the default ones, so that counting does.
    pub(super) async fn bind_or_stand_in(&self, current: &Versioned) -> Result<Arc<ActiveRule>, Error> {
        let bound = match self.wake_plugins_of(&current.rule).await {
            Ok(_awake) => self.bind(current, Trial::Skip),
            Err(why) => Err(why),
        };
        let why = match bound {
            Ok(active) => return Ok(active),
            Err(why) => why.detail,
        };
        let prefix = &current.rule.prefix;
        tracing::error!("the rule {prefix:?} goes on with the default policies, since its own cannot be used: {why}");
        let Rule { selection, aggregation, .. } = self.resolved(Rule::fallback())?;
        let rule = Rule { selection, aggregation, canary: None, shadow: None, ..current.rule.clone() };
        let stand_in = self.bind(&Versioned { rule, ..current.clone() }, Trial::Skip)?;
        let active = ActiveRule {
            rule: current.rule.clone(),
            degraded: Some(why),
            ..Arc::into_inner(stand_in).ok_or_else(|| Error::internal("a rule is shared before it is in force"))?
        };
        Ok(Arc::new(active))
    }

    fn bind_policy(&self, policy: &PolicyRef, field: &str, trial: Trial) -> Result<Arc<Binding>, Error> {
        let revision = self.catalog.get(&policy.plugin, policy.revision.as_deref()).map_err(missing)?;
        self.bind_revision(&revision, policy, field, trial)
    }

    /// Binds with a policy's config and grants; with a trial, only if the dry run with them passes.
    fn bind_revision(
        &self,
        revision: &Arc<Revision>,
        policy: &PolicyRef,
        field: &str,
        trial: Trial,
    ) -> Result<Arc<Binding>, Error> {
        let invalid = |why: String| Error::invalid(format!("{field}: {why}"));
        let grants = Grants::named(&policy.grants).map_err(|why| invalid(why.to_string()))?;
        match trial {
            Trial::Run { all_shards } if builtin::find(revision.name()).is_none() => {
                let bound = admission::bind(&self.policies, revision, &policy.config, grants, all_shards);
                let bound = bound.map_err(|why| invalid(why.to_string()))?;
                self.placements.note(revision, &bound);
                Ok(bound)
            }
            _ => {
                let placement = self.placements.get(revision, &policy.config, grants);
                let placement = placement.unwrap_or_else(|| revision.placement.clone());
                let bound = admission::bind_placed(&self.policies, revision, &policy.config, grants, &placement);
                bound.map_err(|why| invalid(why.to_string()))
            }
        }
    }

    /// Binds another revision of one of the rule's plugins with that plugin's config and grants. Answers the binding it
    /// stands beside, too.
    fn bind_beside(
        &self,
        rule: &Rule,
        [selection, aggregation]: [&Arc<Binding>; 2],
        digest: &str,
        field: &str,
        trial: Trial,
    ) -> Result<(Arc<Binding>, Arc<Binding>), Error> {
        let beside = [(&rule.selection, selection), (&rule.aggregation, aggregation)].into_iter().find_map(
            |(policy, stable)| {
                let revision = self.catalog.get(&policy.plugin, Some(digest)).ok()?;
                (revision.world == stable.revision.world).then_some((policy, stable, revision))
            },
        );
        let (policy, stable, revision) = beside.ok_or_else(|| {
            let (a, b) = (&rule.selection.plugin, &rule.aggregation.plugin);
            let why =
                format!("{field}: neither {a:?} nor {b:?} has the revision {digest}; GET /v1/plugins lists them.");
            Error::new(Kind::PluginNotFound, why)
        })?;
        Ok((stable.clone(), self.bind_revision(&revision, policy, field, trial)?))
    }

    /// Moves policies whose slow calls keep serving threads busy to the pool, under the rules where they do. They answer all the
    /// while. Called about once a second.
    pub async fn move_busy_policies(self: &Arc<Self>) {
        for active in self.rules.load().list() {
            let is_busy =
                |binding: &Arc<Binding>| binding.is_busy() && builtin::find(binding.revision.name()).is_none();
            let busy: Vec<Arc<Binding>> = active.bindings().filter(|&binding| is_busy(binding)).cloned().collect();
            if busy.is_empty() {
                continue;
            }
            let prefix = active.rule.prefix.clone();
            for binding in busy {
                let name = binding.revision.name();
                tracing::warn!("{name} under the rule {prefix:?} goes on on the pool: {KEPT_BUSY}");
                self.placements.move_to_pool(&binding, KEPT_BUSY);
            }
            if let Err(why) = self.off_thread(move |node| async move { node.bind_again(&active).await }).await {
                tracing::warn!("the rule {prefix:?} keeps a policy on the serving threads for now: {why}");
            }
        }
    }

    /// Binds a rule that is in force where its policies are placed now.
    async fn bind_again(&self, active: &ActiveRule) -> Result<(), Error> {
        if let Err(why) = self.placements.save(&*self.store).await {
            // The next change of a rule tries again.
            tracing::warn!("where policies run is not kept for the next start: {why}");
        }
        let (rule, version, canary_ended) = (active.rule.clone(), active.version, active.canary_ended.clone());
        let _awake = self.wake_plugins_of(&rule).await?;
        let bound = self.bind(&Versioned { rule, version, canary_ended }, Trial::Skip)?;
        let registry = self.registry.lock().await;
        let prefix = &active.rule.prefix;
        // A change that came meanwhile has bound it anew.
        if self.rules.load().get(prefix).is_some_and(|now| now.version == version) {
            self.publish_one(prefix, Some(bound), &registry.histories);
        }
        Ok(())
    }

    /// Looks at every canary, and takes back those that misbehave. Called about once a second.
    pub async fn judge_canaries(&self) {
        for active in self.rules.load().list() {
            let Some(reason) = active.canary.as_ref().and_then(ActiveCanary::judge) else { continue };
            let prefix = &active.rule.prefix;
            tracing::warn!("the canary of the rule {prefix:?} is taken back: {reason}");
            let ended = self
                .change_rule(prefix, Precondition::Version(active.version), true, |history, version| {
                    history.end_canary(version, reason)
                })
                .await;
            if let Err(why) = ended {
                // Its counters are with the stable revision already; the next look tries again.
                tracing::warn!("the rule {prefix:?} still names its canary: {why}");
            }
        }
    }
}

/// What a new cluster begins with: the rule for everything, last, since its presence says that all are there; and before it
/// that of the one counter of the second compatible system.
fn initial_rules(shards: u32) -> [Rule; 2] {
    let fallback = Rule { spread: limits::SPREAD_DEFAULT.min(shards), ..Rule::fallback() };
    let modulo = Rule {
        prefix: MODULO_COUNTER.into(),
        selection: PolicyRef::named("value-modulo"),
        spread: shards,
        ..Rule::fallback()
    };
    [modulo, fallback]
}
