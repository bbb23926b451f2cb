//! Recordings of what a plugin's policies decide on this node: which rules are recorded, and how many at once.

use tokio::sync::OwnedSemaphorePermit;

use super::Node;
use super::plugins::missing;
use crate::error::{Error, Kind};
use crate::limits;
use crate::policy::recording::{Bounds, Recording};

/// A recording, and its place among those that are under way.
pub struct Started {
    pub recording: Recording,
    _place: OwnedSemaphorePermit,
}

impl Node {
    /// Records what a plugin's policies decide from now on: under the rule of this prefix, or under every rule. A rule
    /// that is changed meanwhile is recorded no more.
    pub fn record_decisions(&self, plugin: &str, prefix: Option<&str>, decisions: u64) -> Result<Started, Error> {
        self.catalog.get(plugin, None).map_err(missing)?;
        let rules = self.rules().list();
        let mut used = Vec::new();
        for active in rules.iter().filter(|active| prefix.is_none_or(|prefix| active.rule.prefix == prefix)) {
            let bindings = active.bindings().filter(|binding| binding.revision.name() == plugin);
            used.extend(bindings.map(|binding| (active.rule.prefix.clone(), binding.clone())));
        }
        let Some(world) = used.first().map(|(_, binding)| binding.revision.world) else {
            let which = prefix.map_or_else(|| "No rule".into(), |prefix| format!("No rule for {prefix:?}"));
            let why = format!("{which} uses the plugin {plugin:?}, so there is nothing to record; see GET /v1/rules.");
            return Err(Error::new(Kind::RuleNotFound, why));
        };
        used.retain(|(_, binding)| binding.revision.world == world);
        let place = self.recordings.clone().try_acquire_owned().map_err(|_| {
            Error::new(Kind::QueueFull, "Several recordings are under way already. Try again when they have ended.")
        })?;
        let bounds = Bounds { decisions, bytes: limits::RECORDING_BYTES_MAX };
        let recording = Recording::begin(plugin, world, &used, bounds)
            .map_err(|busy| Error::new(Kind::PluginInUse, format!("{busy}.").replacen("the", "The", 1)))?;
        Ok(Started { recording, _place: place })
    }
}
