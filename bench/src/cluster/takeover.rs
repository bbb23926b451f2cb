//! Takeover: a node is killed while a client of another goes on, for journals of several lengths.
//!
//! The takeover ends with the first answer to an exact read over all shards that was sent after the kill: it needs every
//! shard's owner to prove its epoch, so nothing short of a served takeover answers it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;
use serde_json::json;

use super::nodes::{Cluster, Services};
use super::plan::{BATCH, BATCH_CLIENTS, LOADED_SECONDS};
use crate::load::Generator;
use crate::plan::HOT;
use crate::servers::{Places, Process};

/// A client of the surviving node sends an addition so often, answered or not those before it.
pub const PACE: Duration = Duration::from_millis(2);
/// It has so many connections, each with one addition under way. One that waits for the killed node keeps its own.
pub const CONNECTIONS: usize = 64;
/// Spread over all shards, by a rule.
const EVERYWHERE: &str = "bench-everywhere";
/// The client runs for so long before the kill, and after the takeover.
const MARGIN: Duration = Duration::from_millis(500);
const TAKEOVER_DEADLINE: Duration = Duration::from_secs(60);

/// One killed node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Takeover {
    /// Of the node that was killed, and not covered by a checkpoint.
    pub journal_bytes: f64,
    /// From the kill until all shards served.
    pub seconds: f64,
    /// Longest time in which no addition of the client of the surviving node succeeded, and how long after the kill it began.
    pub gap_ms: f64,
    pub gap_from_ms: f64,
    /// The longest that one addition took to be answered. One that was sent to the killed node waits for the takeover.
    pub longest_ms: f64,
    /// Additions that were not acknowledged.
    pub failed: u64,
}

/// What one connection saw.
#[derive(Debug, Default)]
struct Seen {
    /// When additions were acknowledged, since a common beginning.
    good: Vec<Duration>,
    longest: Duration,
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
                generator.run_over(BATCH, &cluster.addrs(), BATCH_CLIENTS, seconds)?;
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

/// Kills the last node under the eyes of a client of the first; answers also how many additions were acknowledged.
fn one(cluster: &mut Cluster) -> anyhow::Result<(Takeover, u64)> {
    let Some(victim) = cluster.nodes.pop() else { bail!("no node to kill") };
    let survivor = &cluster.nodes[0];
    let [journal_bytes] = victim.metrics(["quipu_journal_uncovered_bytes"])?;
    let (stop, turn, began) = (AtomicBool::new(false), AtomicU32::new(0), Instant::now());
    let (killed, end, seconds, seen) = std::thread::scope(|scope| {
        let run = || connection(survivor, began, &turn, &stop);
        let connections: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(run)).collect();
        std::thread::sleep(MARGIN);
        let killed = began.elapsed();
        let served = victim.kill().and_then(|()| all_served(survivor));
        let seconds = (began.elapsed() - killed).as_secs_f64();
        std::thread::sleep(MARGIN);
        // Not when the last connection has noticed: until then fewer and fewer of them send.
        let end = began.elapsed();
        // Also when it failed: the scope ends with its threads only.
        stop.store(true, Ordering::Relaxed);
        let seen: Vec<Seen> = connections.into_iter().map(|it| it.join().expect("no connection panics")).collect();
        served.map(|()| (killed, end, seconds, seen))
    })?;
    let mut together: Vec<Duration> = seen.iter().flat_map(|seen| seen.good.iter().copied()).collect();
    together.sort_unstable();
    let (gap_ms, gap_from_ms) = gap(&together, killed, end);
    let takeover = Takeover {
        journal_bytes,
        seconds,
        gap_ms,
        gap_from_ms,
        longest_ms: seen.iter().map(|seen| seen.longest).max().unwrap_or_default().as_secs_f64() * 1e3,
        failed: seen.iter().map(|seen| seen.failed).sum(),
    };
    Ok((takeover, together.len() as u64))
}

fn add(counter: &str) -> String {
    format!("/v1/counters/{counter}/add")
}

/// Sends the client's next addition when it is due and this connection is free; what is refused or unknown is not
/// repeated.
fn connection(node: &Process, began: Instant, turn: &AtomicU32, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    loop {
        let due = PACE * turn.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        if stop.load(Ordering::Relaxed) {
            return seen;
        }
        let sent = began.elapsed();
        match node.ask_well("POST", &add(HOT), Some("{}".into())) {
            Ok(_) => seen.good.push(began.elapsed()),
            Err(_) => seen.failed += 1,
        }
        seen.longest = seen.longest.max(began.elapsed() - sent);
    }
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

/// The longest time without an acknowledgement that ends between `killed` and `end`, and from when after `killed` it was.
/// `end` ends the last.
fn gap(good: &[Duration], killed: Duration, end: Duration) -> (f64, f64) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let good: Vec<Duration> = good.iter().copied().filter(|at| *at <= end).chain([end]).collect();
    let gaps = good.windows(2).filter(|pair| pair[1] >= killed).map(|pair| (pair[1] - pair[0], pair[0]));
    gaps.max().map_or((ms(end), 0.0), |(length, from)| (ms(length), ms(from) - ms(killed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_ends_after_the_kill() {
        let good = [0, 300, 310, 410, 430].map(Duration::from_millis);
        let gap_of = |killed, end| gap(&good, Duration::from_millis(killed), Duration::from_millis(end));
        assert_eq!(gap_of(305, 440), (100.0, 5.0));
        assert_eq!(gap_of(305, 420), (100.0, 5.0), "what comes after the end does not count");
        assert_eq!(gap_of(415, 440), (20.0, -5.0));
        assert_eq!(gap_of(305, 630), (200.0, 125.0), "the time after the last acknowledgement counts");
        assert_eq!(gap(&[], Duration::ZERO, Duration::from_millis(7)), (7.0, 0.0));
    }
}
