//! Runs the checker and says what it found.

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::system::{Bounds, Journal};
use crate::variants::Variant;

/// What a check found.
#[derive(Debug)]
pub struct Report {
    pub bounds: Bounds,
    /// Distinct states that were visited: all that there are, unless something was broken.
    pub states: usize,
    pub took: Duration,
    /// The properties that do not always hold, and for each the steps that lead to a state in which it does not.
    pub broken: Vec<(&'static str, Vec<String>)>,
    /// The situations that no state shows.
    pub not_reached: Vec<&'static str>,
}

/// Visits every state within the bounds, or stops at the first in which something is broken. With one thread the
/// history that leads there is one of the shortest, and the same each time.
pub fn check(variant: Variant, bounds: Bounds, threads: usize) -> Report {
    let begun = Instant::now();
    let model = Journal { variant, bounds };
    let properties = model.properties();
    let checker = model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let discoveries = checker.discoveries();
    let (must_hold, must_show): (Vec<_>, Vec<_>) =
        properties.into_iter().partition(|property| property.expectation.discovery_is_failure());
    let broken = must_hold.iter().filter_map(|property| {
        let history = discoveries.get(property.name)?.clone().into_actions();
        Some((property.name, history.iter().map(|action| format!("{action:?}")).collect()))
    });
    let broken = broken.collect();
    let not_reached = must_show.iter().map(|property| property.name).filter(|name| !discoveries.contains_key(name));
    Report {
        bounds,
        states: checker.unique_state_count(),
        took: begun.elapsed(),
        broken,
        not_reached: not_reached.collect(),
    }
}
