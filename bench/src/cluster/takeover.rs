//! Takeover: a node is killed while clients of another go on, for journals of several lengths.
//!
//! The takeover ends with the first answer to an exact read over all shards that was sent after the kill: it needs every
//! shard's owner to prove its epoch, so nothing short of a served takeover answers it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;
use serde_json::json;

use super::nodes::{Cluster, Services};
use super::plan::{BATCH, BATCH_CONNECTIONS, LOADED_SECONDS};
use crate::load::Generator;
use crate::plan::HOT;
use crate::servers::{Places, Process};

/// Clients of the surviving node, each with one addition under way.
pub const CLIENTS: usize = 8;
/// Spread over all shards, by a rule.
const EVERYWHERE: &str = "bench-everywhere";
/// Clients run for so long before the kill, and after the takeover.
const MARGIN: Duration = Duration::from_millis(500);
const TAKEOVER_DEADLINE: Duration = Duration::from_secs(60);

/// One killed node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Takeover {
    /// Of the node that was killed, and not covered by a checkpoint.
    pub journal_bytes: f64,
    /// From the kill until all shards served.
    pub seconds: f64,
    /// Longest time without a successful addition, of all clients of the surviving node together.
    pub gap_ms: f64,
    /// The same of the client that waited longest. One whose addition was sent to the killed node waits for the takeover.
    pub client_gap_ms: f64,
    /// Additions that were not acknowledged.
    pub failed: u64,
}

/// What one client saw: when additions were acknowledged, since a common beginning.
#[derive(Debug, Default)]
struct Seen {
    good: Vec<Duration>,
    failed: u64,
}

/// Kills `repetitions` nodes for every length of the journal, and checks that no acknowledged addition is lost.
pub fn measure(
    places: &Places,
    services: &Services,
    generator: &Generator,
    cluster: &mut Cluster,
    repetitions: u32,
) -> anyhow::Result<Vec<Takeover>> {
    let first = &cluster.nodes[0];
    first.ask_well("PUT", "/v1/rules", Some(json!({ "match": EVERYWHERE, "spread": services.shards }).to_string()))?;
    first.ask_well("POST", &add(EVERYWHERE), Some("{}".into()))?;
    let before = first.settled_value(0)?;
    let (mut takeovers, mut acknowledged, mut open) = (Vec::new(), u64::try_from(before)?, 0);
    for repetition in 1..=repetitions {
        for seconds in LOADED_SECONDS {
            println!("kill {repetition} after {seconds} s of load begins");
            if seconds > 0 {
                generator.run_over(BATCH, &cluster.addrs(), BATCH_CONNECTIONS, seconds)?;
            }
            let (takeover, good) = one(cluster)?;
            println!("kill {repetition} after {seconds} s of load ends: {takeover:?}");
            acknowledged += good;
            open += takeover.failed;
            takeovers.push(takeover);
            cluster.add_node(places, services)?;
            cluster.balanced()?;
        }
    }
    cluster.check_hot(acknowledged, open)?;
    Ok(takeovers)
}

/// Kills the last node under the eyes of the first one's clients; answers also how many additions were acknowledged.
fn one(cluster: &mut Cluster) -> anyhow::Result<(Takeover, u64)> {
    let Some(victim) = cluster.nodes.pop() else { bail!("no node to kill") };
    let survivor = &cluster.nodes[0];
    let [journal_bytes] = victim.metrics(["quipu_journal_uncovered_bytes"])?;
    let (stop, began) = (AtomicBool::new(false), Instant::now());
    let (killed, end, seconds, seen) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| client(survivor, began, &stop))).collect();
        std::thread::sleep(MARGIN);
        let killed = began.elapsed();
        let served = victim.kill().and_then(|()| all_served(survivor));
        let seconds = (began.elapsed() - killed).as_secs_f64();
        std::thread::sleep(MARGIN);
        // Also when it failed: the scope ends with its threads only.
        stop.store(true, Ordering::Relaxed);
        let seen: Vec<Seen> =
            clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect();
        served.map(|()| (killed, began.elapsed(), seconds, seen))
    })?;
    let mut together: Vec<Duration> = seen.iter().flat_map(|seen| seen.good.iter().copied()).collect();
    together.sort_unstable();
    let takeover = Takeover {
        journal_bytes,
        seconds,
        gap_ms: gap_ms(&together, killed, end),
        client_gap_ms: seen.iter().map(|seen| gap_ms(&seen.good, killed, end)).fold(0.0, f64::max),
        failed: seen.iter().map(|seen| seen.failed).sum(),
    };
    Ok((takeover, together.len() as u64))
}

fn add(counter: &str) -> String {
    format!("/v1/counters/{counter}/add")
}

/// Adds one after the other; what is refused or unknown is not repeated.
fn client(node: &Process, began: Instant, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        match node.ask_well("POST", &add(HOT), Some("{}".into())) {
            Ok(_) => seen.good.push(began.elapsed()),
            Err(_) => seen.failed += 1,
        }
    }
    seen
}

/// Waits until an exact read over all shards is answered.
fn all_served(node: &Process) -> anyhow::Result<()> {
    let deadline = Instant::now() + TAKEOVER_DEADLINE;
    let mut why = String::new();
    while Instant::now() < deadline {
        let answer = node.ask("GET", &format!("/v1/counters/{EVERYWHERE}"), None)?;
        if answer.status == 200 {
            return Ok(());
        }
        why = answer.body;
    }
    bail!("not every shard served {TAKEOVER_DEADLINE:?} after its owner was killed: {why}")
}

/// The longest time without an acknowledgement that ends after `killed`; `end` ends the last.
fn gap_ms(good: &[Duration], killed: Duration, end: Duration) -> f64 {
    let ends = good.iter().skip(1).chain([&end]);
    let gaps = good.iter().zip(ends).filter(|(_, end)| **end >= killed).map(|(from, to)| to.saturating_sub(*from));
    gaps.max().unwrap_or(end).as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_ends_after_the_kill() {
        let good = [0, 300, 310, 410, 430].map(Duration::from_millis);
        let gap = |killed, end| gap_ms(&good, Duration::from_millis(killed), Duration::from_millis(end));
        assert_eq!(gap(305, 440), 100.0);
        assert_eq!(gap(415, 440), 20.0);
        assert_eq!(gap(305, 630), 200.0, "the time after the last acknowledgement counts");
        assert_eq!(gap_ms(&[], Duration::ZERO, Duration::from_millis(7)), 7.0);
    }
}
