//! Clients of a whole cluster that remember every outcome, so that totals can be checked to the last count.
//!
//! Half of the connections of each node add with keys, each key sent once: what became of those with an unknown outcome
//! is settled by their keys at the end, and from there on totals are exact. The other half adds without keys, where an
//! unknown outcome remains one. More connections may send batches: the first with a key each, the others, larger ones,
//! without. A reader on each node reads exact totals all the while: none may miss an addition that was acknowledged before
//! the read began, hold one that was never sent, or be less than a total that was read before.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::Cluster;
use crate::http::{Answer, Client};
use crate::server::Server;
use crate::{PATIENCE, within};

/// Wait of a client whose node refuses connections, and of a reader between two reads.
const PAUSE: Duration = Duration::from_millis(5);
/// Failures of a node that are kept word by word.
const EXAMPLES_MAX: usize = 5;
/// A batch with a key has so many times fewer additions: each leaves a record of its own.
const KEYED_BATCH_SHARE: usize = 10;
/// After this no first attempt can be on its way any more: the operations' deadline is 10 s.
const SETTLED_AFTER: Duration = Duration::from_secs(15);

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// To each node.
    pub connections: usize,
    /// With keys, and as many without.
    pub counters: usize,
    /// More connections to each node that send batches, one after the other; the first sends smaller ones with keys.
    pub batchers: usize,
    /// Additions of each batch without a key.
    pub batch: usize,
}

impl Plan {
    /// No batches.
    pub const fn singles(connections: usize, counters: usize) -> Self {
        Self { connections, counters, batchers: 0, batch: 0 }
    }
}

/// Load on a cluster until it is told to finish.
pub struct Traffic {
    plan: Plan,
    ledger: Arc<Ledger>,
    threads: Vec<JoinHandle<()>>,
}

/// What all clients together know.
struct Ledger {
    began: Instant,
    stop: AtomicBool,
    next: AtomicU64,
    keyed: Vec<Account>,
    unkeyed: Vec<Account>,
    batched: Vec<Account>,
    /// Keyed additions whose outcome is not known yet.
    pending: Mutex<Vec<Pending>>,
    pending_batches: Mutex<Vec<PendingBatch>>,
    contradictions: Mutex<Vec<String>>,
    nodes: Mutex<BTreeMap<String, Arc<Seen>>>,
}

/// One counter, in amounts.
#[derive(Default)]
struct Account {
    id: String,
    sent: AtomicI64,
    acknowledged: AtomicI64,
    /// Of additions without a key.
    unknown: AtomicI64,
    /// The largest total that anybody has read.
    read: AtomicI64,
}

struct Pending {
    counter: usize,
    key: String,
    amount: i64,
    sent_at: Instant,
}

/// A batch with a key of which not every addition was applied for certain.
struct PendingBatch {
    key: String,
    applied: Vec<bool>,
}

/// What the clients of one node have seen.
#[derive(Default)]
struct Seen {
    succeeded: AtomicU64,
    /// Additions of batches, which are not among the others.
    batched: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    connects_refused: AtomicU64,
    reads: AtomicU64,
    reads_failed: AtomicU64,
    /// Microseconds since the beginning: the last success without a key, and the longest wait between two.
    last_us: AtomicU64,
    node_gap_us: AtomicU64,
    connection_gap_us: AtomicU64,
    examples: Mutex<Vec<String>>,
}

/// What became of the load on one node.
#[derive(Debug, Clone, Default)]
pub struct Outcomes {
    pub succeeded: u64,
    /// Additions of batches that were acknowledged, which are not among the others.
    pub batched: u64,
    /// Answered that nothing was applied.
    pub refused: u64,
    /// Not answered, or with an outcome that is not known.
    pub unknown: u64,
    /// Connections that nobody accepted; nothing was sent.
    pub connects_refused: u64,
    pub reads: u64,
    pub reads_failed: u64,
    /// The longest time in which no addition without a key succeeded: of all connections together, and of one.
    pub node_gap: Duration,
    pub connection_gap: Duration,
    pub examples: Vec<String>,
}

impl Outcomes {
    #[track_caller]
    pub fn expect_no_failure(&self, node: &str) {
        let failed = (self.refused, self.unknown, self.reads_failed);
        assert_eq!(failed, (0, 0, 0), "refused, unknown and failed reads of clients of {node}: {self:?}");
    }
}

impl Traffic {
    /// On every node that runs.
    pub fn start(cluster: &Cluster, plan: Plan) -> Self {
        let accounts = |kind: &str| {
            let account = |n| Account { id: format!("{kind}{n}"), ..Account::default() };
            (0..plan.counters).map(account).collect()
        };
        let ledger = Ledger {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            next: AtomicU64::new(0),
            keyed: accounts("keyed-"),
            unkeyed: accounts("unkeyed-"),
            batched: accounts("batched-"),
            pending: Mutex::default(),
            pending_batches: Mutex::default(),
            contradictions: Mutex::default(),
            nodes: Mutex::default(),
        };
        let mut traffic = Self { plan, ledger: Arc::new(ledger), threads: Vec::new() };
        for node in cluster.running() {
            traffic.extend_to(&node, cluster.node(&node).addr);
        }
        traffic
    }

    /// Also on a node that came later.
    pub fn extend_to(&mut self, node: &str, addr: SocketAddr) {
        let seen = Arc::new(Seen::default());
        seen.last_us.store(self.ledger.now_us(), SeqCst);
        self.ledger.nodes.lock().expect("no client panics").insert(node.to_owned(), seen.clone());
        for n in 0..self.plan.connections {
            let (ledger, seen) = (self.ledger.clone(), seen.clone());
            self.threads.push(std::thread::spawn(move || ledger.add_until_stopped(addr, &seen, n)));
        }
        for n in 0..self.plan.batchers {
            let (ledger, seen, keyed) = (self.ledger.clone(), seen.clone(), n == 0);
            let size = if keyed { self.plan.batch / KEYED_BATCH_SHARE } else { self.plan.batch };
            self.threads.push(std::thread::spawn(move || ledger.add_batches_until_stopped(addr, &seen, size, keyed)));
        }
        let ledger = self.ledger.clone();
        self.threads.push(std::thread::spawn(move || ledger.read_until_stopped(addr, &seen)));
    }

    /// Waits until clients of this node were answered so many additions more.
    pub fn await_successes(&self, node: &str, more: u64) {
        let seen = self.seen(node);
        let goal = seen.succeeded.load(SeqCst) + more;
        let what = format!("{more} additions through {node}");
        let done = || (seen.succeeded.load(SeqCst) >= goal).then_some(());
        let end = Instant::now() + 2 * PATIENCE;
        while done().is_none() {
            assert!(Instant::now() < end, "not within {:?}: {what}: {:?}", 2 * PATIENCE, self.outcomes(node));
            std::thread::park_timeout(PAUSE);
        }
    }

    /// As [`Traffic::await_successes`], on each of these nodes.
    pub fn await_each(&self, nodes: &[String], more: u64) {
        nodes.iter().for_each(|node| self.await_successes(node, more));
    }

    fn seen(&self, node: &str) -> Arc<Seen> {
        let nodes = self.ledger.nodes.lock().expect("no client panics");
        nodes.get(node).unwrap_or_else(|| panic!("no load on {node}")).clone()
    }

    /// Forgets the longest waits until now.
    pub fn reset_gaps(&self) {
        for seen in self.ledger.nodes.lock().expect("no client panics").values() {
            seen.node_gap_us.store(0, SeqCst);
            seen.connection_gap_us.store(0, SeqCst);
        }
    }

    /// What became of the load on a node until now.
    pub fn outcomes(&self, node: &str) -> Outcomes {
        let seen = self.seen(node);
        let micros = |us: &AtomicU64| Duration::from_micros(us.load(SeqCst));
        Outcomes {
            succeeded: seen.succeeded.load(SeqCst),
            batched: seen.batched.load(SeqCst),
            refused: seen.refused.load(SeqCst),
            unknown: seen.unknown.load(SeqCst),
            connects_refused: seen.connects_refused.load(SeqCst),
            reads: seen.reads.load(SeqCst),
            reads_failed: seen.reads_failed.load(SeqCst),
            node_gap: micros(&seen.node_gap_us),
            connection_gap: micros(&seen.connection_gap_us),
            examples: seen.examples.lock().expect("no client panics").clone(),
        }
    }

    /// Fails if a read has contradicted what was acknowledged until now.
    pub fn expect_no_contradiction(&self) {
        let contradictions = self.ledger.contradictions.lock().expect("no client panics");
        assert!(contradictions.is_empty(), "reads that contradict what was acknowledged: {contradictions:#?}");
    }

    /// Ends the load, settles every unknown outcome by its key, and compares every total on every node with what was
    /// applied. Prints what became of the load; returns it by node.
    pub fn finish(mut self, cluster: &Cluster) -> BTreeMap<String, Outcomes> {
        self.ledger.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("no client panics");
        }
        let unsettled = self.ledger.pending.lock().expect("no client panics").len();
        let unsettled_batches = self.ledger.pending_batches.lock().expect("no client panics").len();
        self.ledger.settle(cluster);
        self.ledger.settle_batches(cluster);
        let names: Vec<String> = self.ledger.nodes.lock().expect("no client panics").keys().cloned().collect();
        let outcomes: BTreeMap<_, _> = names.into_iter().map(|node| (node.clone(), self.outcomes(&node))).collect();
        for (node, outcomes) in &outcomes {
            println!("{node}: {outcomes:?}");
        }
        for server in cluster.servers() {
            self.ledger.compare(server);
        }
        self.expect_no_contradiction();
        let unknown =
            |accounts: &[Account]| -> i64 { accounts.iter().map(|account| account.unknown.load(SeqCst)).sum() };
        let (unkeyed, in_batches) = (unknown(&self.ledger.unkeyed), unknown(&self.ledger.batched));
        let batched: u64 = outcomes.values().map(|outcomes| outcomes.batched).sum();
        let acknowledged = batched + outcomes.values().map(|outcomes| outcomes.succeeded).sum::<u64>();
        println!(
            "{acknowledged} additions acknowledged, {batched} of them in batches; {unsettled} keyed ones and \
             {unsettled_batches} keyed batches settled by key; without a key {unkeyed} counts unknown, {in_batches} in \
             batches; totals are right on every node, after {:?}",
            self.ledger.began.elapsed()
        );
        outcomes
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // A client of a node that stands still would keep a join waiting; all end with the test program.
        self.ledger.stop.store(true, SeqCst);
    }
}

/// What an answer, or none, says of an addition.
enum Verdict {
    Applied,
    NotApplied(String),
    Unknown(String),
}

fn verdict(answer: &std::io::Result<Answer>) -> Verdict {
    match answer {
        Ok(answer) if answer.status == 200 => Verdict::Applied,
        Ok(answer) if answer.json()["outcome"] == "not_applied" => Verdict::NotApplied(answer.text()),
        Ok(answer) => Verdict::Unknown(answer.text()),
        Err(why) => Verdict::Unknown(why.to_string()),
    }
}

impl Ledger {
    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a test ends within the age of the earth")
    }

    fn add_until_stopped(&self, addr: SocketAddr, seen: &Seen, connection: usize) {
        let keyed = connection.is_multiple_of(2);
        let mut client: Option<Client> = None;
        let mut last_us = self.now_us();
        while !self.stop.load(SeqCst) {
            let Some(connected) = &mut client else {
                match Client::connect(addr) {
                    Ok(connected) => client = Some(connected),
                    Err(_) => {
                        seen.connects_refused.fetch_add(1, SeqCst);
                        std::thread::park_timeout(PAUSE);
                    }
                }
                continue;
            };
            let number = self.next.fetch_add(1, SeqCst);
            let amount = 1 + i64::from(number.is_multiple_of(7));
            // Without a key a connection stays with one counter: one whose shards are all on a dead node keeps only its
            // own connections waiting.
            let counter = if keyed { number as usize } else { connection / 2 } % self.keyed.len();
            let account = if keyed { &self.keyed[counter] } else { &self.unkeyed[counter] };
            account.sent.fetch_add(amount, SeqCst);
            let (sent_at, key) = (Instant::now(), format!("key-{number}"));
            let headers = [("idempotency-key", key.as_str())];
            let headers = if keyed { &headers[..] } else { &[] };
            let target = format!("/v1/counters/{}/add", account.id);
            let answer = connected.call("POST", &target, headers, json!({ "amount": amount }).to_string().as_bytes());
            match verdict(&answer) {
                Verdict::Applied => {
                    account.acknowledged.fetch_add(amount, SeqCst);
                    seen.succeeded.fetch_add(1, SeqCst);
                    if !keyed {
                        self.note_gap(seen, &mut last_us);
                    }
                }
                Verdict::NotApplied(why) => {
                    seen.refused.fetch_add(1, SeqCst);
                    seen.keep_example(sent_at, why);
                }
                Verdict::Unknown(why) => {
                    seen.unknown.fetch_add(1, SeqCst);
                    seen.keep_example(sent_at, why);
                    if keyed {
                        self.pending.lock().expect("no client panics").push(Pending { counter, key, amount, sent_at });
                    } else {
                        account.unknown.fetch_add(amount, SeqCst);
                    }
                }
            }
            if answer.is_err() || answer.is_ok_and(|answer| answer.header("connection") == Some("close")) {
                client = None;
            }
        }
    }

    /// Additions of 1 to all counters in turn.
    fn batch(&self, size: usize) -> String {
        let ops: Vec<_> = (0..size).map(|n| json!({ "id": self.batched(n).id, "amount": 1 })).collect();
        json!({ "ops": ops }).to_string()
    }

    /// The counter of a batch's addition of this number.
    fn batched(&self, n: usize) -> &Account {
        &self.batched[n % self.batched.len()]
    }

    fn add_batches_until_stopped(&self, addr: SocketAddr, seen: &Seen, size: usize, keyed: bool) {
        let body = self.batch(size);
        let mut client: Option<Client> = None;
        while !self.stop.load(SeqCst) {
            let Some(connected) = &mut client else {
                client = Client::connect(addr).ok();
                std::thread::park_timeout(PAUSE);
                continue;
            };
            (0..size).for_each(|n| _ = self.batched(n).sent.fetch_add(1, SeqCst));
            let key = format!("batch-{}", self.next.fetch_add(1, SeqCst));
            let headers = [("idempotency-key", key.as_str())];
            let began = Instant::now();
            let answer = connected.call("POST", "/v1/batch", if keyed { &headers } else { &[] }, body.as_bytes());
            let whole = verdict(&answer);
            let results = answer.as_ref().ok().filter(|answer| answer.status == 200).map(Answer::json);
            let outcome = |n: usize| results.as_ref().map(|results| results["results"][n]["outcome"].clone());
            let applied: Vec<bool> = (0..size).map(|n| outcome(n).is_some_and(|it| it == "applied")).collect();
            for (n, &applied) in applied.iter().enumerate() {
                let refused = match outcome(n) {
                    Some(outcome) => outcome == "not_applied",
                    None => matches!(whole, Verdict::NotApplied(_)),
                };
                if applied {
                    self.batched(n).acknowledged.fetch_add(1, SeqCst);
                    seen.batched.fetch_add(1, SeqCst);
                } else if !refused && !keyed {
                    self.batched(n).unknown.fetch_add(1, SeqCst);
                }
            }
            if keyed && applied.contains(&false) {
                self.pending_batches.lock().expect("no client panics").push(PendingBatch { key, applied });
            }
            if let Verdict::NotApplied(why) | Verdict::Unknown(why) = whole {
                seen.keep_example(began, why);
            }
            if answer.is_err() || answer.is_ok_and(|answer| answer.header("connection") == Some("close")) {
                client = None;
            }
        }
    }

    fn note_gap(&self, seen: &Seen, last_us: &mut u64) {
        let now_us = self.now_us();
        seen.connection_gap_us.fetch_max(now_us - *last_us, SeqCst);
        *last_us = now_us;
        // Another client may have been later.
        let before = seen.last_us.fetch_max(now_us, SeqCst);
        seen.node_gap_us.fetch_max(now_us.saturating_sub(before), SeqCst);
    }

    fn read_until_stopped(&self, addr: SocketAddr, seen: &Seen) {
        let mut client: Option<Client> = None;
        let mut turn = 0;
        while !self.stop.load(SeqCst) {
            let Some(connected) = &mut client else {
                client = Client::connect(addr).ok();
                std::thread::park_timeout(PAUSE);
                continue;
            };
            turn += 1;
            let accounts = [&self.keyed, &self.unkeyed, &self.batched][turn % 3];
            let account = &accounts[turn / 3 % accounts.len()];
            let began = Instant::now();
            let (acknowledged, read) = (account.acknowledged.load(SeqCst), account.read.load(SeqCst));
            let answer = connected.call("GET", &format!("/v1/counters/{}", account.id), &[], b"");
            let total = match &answer {
                Ok(answer) if answer.status == 200 => Some(answer.total()),
                Ok(answer) if answer.status == 404 => Some(0),
                Ok(answer) => {
                    seen.keep_example(began, format!("read: {}", answer.text()));
                    None
                }
                Err(why) => {
                    seen.keep_example(began, format!("read: {why}"));
                    None
                }
            };
            let sent = account.sent.load(SeqCst);
            if let Some(total) = total {
                seen.reads.fetch_add(1, SeqCst);
                if !(i128::from(acknowledged.max(read))..=i128::from(sent)).contains(&total) {
                    let text = format!(
                        "{} on {addr}: {total}, with {acknowledged} acknowledged and {read} read before it, {sent} sent \
                         after it; it took {:?}",
                        account.id,
                        began.elapsed()
                    );
                    self.contradictions.lock().expect("no client panics").push(text);
                }
                account.read.fetch_max(i64::try_from(total).unwrap_or(i64::MAX), SeqCst);
            } else {
                seen.reads_failed.fetch_add(1, SeqCst);
            }
            if answer.is_err() || answer.is_ok_and(|answer| answer.header("connection") == Some("close")) {
                client = None;
            }
            std::thread::park_timeout(PAUSE);
        }
    }

    /// Finds out what became of each keyed addition of unknown outcome: by asking, when no attempt can be on its way any
    /// more, for every other of those, and by sending it again.
    fn settle(&self, cluster: &Cluster) {
        let servers = cluster.servers();
        let mut pending = self.pending.lock().expect("no client panics");
        for (n, Pending { counter, key, amount, sent_at }) in pending.drain(..).enumerate() {
            let account = &self.keyed[counter];
            let server = servers[n % servers.len()];
            if n % 2 == 0 && sent_at.elapsed() > SETTLED_AFTER {
                let asked = server.get(&format!("/v1/operations/{key}?counter_id={}", account.id)).expect(200).json();
                match asked["outcome"].as_str() {
                    Some("applied") => _ = account.acknowledged.fetch_add(amount, SeqCst),
                    Some("not_found") => {}
                    _ => panic!("neither applied nor not: {asked}"),
                }
                continue;
            }
            within(2 * PATIENCE, "an addition that is sent again is answered", || {
                let answer = server.add_with_key(&account.id, amount, &key);
                assert!(matches!(answer.status, 200 | 503), "{key}: {}", answer.text());
                (answer.status == 200).then_some(())
            });
            account.acknowledged.fetch_add(amount, SeqCst);
        }
    }

    /// Sends each batch with a key again that was not wholly applied for certain: afterwards it is, and once.
    fn settle_batches(&self, cluster: &Cluster) {
        let servers = cluster.servers();
        let mut pending = self.pending_batches.lock().expect("no client panics");
        for (n, PendingBatch { key, applied }) in pending.drain(..).enumerate() {
            let (server, body) = (servers[n % servers.len()], self.batch(applied.len()));
            within(2 * PATIENCE, "a batch that is sent again is applied", || {
                let mut client = Client::connect(server.addr).ok()?;
                let answer = client.call("POST", "/v1/batch", &[("idempotency-key", &key)], body.as_bytes()).ok()?;
                assert!(matches!(answer.status, 200 | 503), "{key}: {}", answer.text());
                let results = (answer.status == 200).then(|| answer.json())?;
                (0..applied.len()).all(|n| results["results"][n]["outcome"] == "applied").then_some(())
            });
            let open = applied.iter().enumerate().filter(|(_, applied)| !**applied);
            open.for_each(|(n, _)| _ = self.batched(n).acknowledged.fetch_add(1, SeqCst));
        }
    }

    /// Every total on this node with what was applied.
    fn compare(&self, server: &Server) {
        for account in self.keyed.iter().chain(&self.unkeyed).chain(&self.batched) {
            let answer = server.get(&format!("/v1/counters/{}", account.id));
            let total = if answer.status == 404 { 0 } else { answer.expect(200).total() };
            let acknowledged = i128::from(account.acknowledged.load(SeqCst));
            let unknown = i128::from(account.unknown.load(SeqCst));
            assert!(
                (acknowledged..=acknowledged + unknown).contains(&total),
                "{} on {}: {total}, but {acknowledged} are applied and {unknown} unknown",
                account.id,
                server.addr
            );
        }
    }
}

impl Seen {
    fn keep_example(&self, began: Instant, text: String) {
        let mut examples = self.examples.lock().expect("no client panics");
        if examples.len() < EXAMPLES_MAX {
            examples.push(format!("after {:?}: {text}", began.elapsed()));
        }
    }
}
