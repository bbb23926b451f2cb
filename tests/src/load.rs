//! Many clients at once, each on a kept-alive connection of its own, adding one by one and remembering what was answered.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;

use crate::http::Client;
use crate::server::{Launch, Server};
use crate::{PATIENCE, within};

/// What became of the additions of all clients together. The counters are `{prefix}{n}`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Answered with 200.
    pub acknowledged: u64,
    /// Sent, and no answer came, or one that says `unknown`.
    pub unknown: u64,
    /// Answered with an error whose outcome is `not_applied`.
    pub refused: u64,
}

impl Tally {
    /// Whether what was counted is what was acknowledged, plus at most what was never answered.
    pub fn allows(&self, counted: i128) -> bool {
        let acknowledged = i128::from(self.acknowledged);
        (acknowledged..=acknowledged + i128::from(self.unknown)).contains(&counted)
    }
}

impl std::ops::Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            unknown: self.unknown + other.unknown,
            refused: self.refused + other.refused,
        }
    }
}

/// How a load is driven. Each addition is of 1.
pub struct Load<'a> {
    pub clients: usize,
    /// Additions of all clients together; each takes the next number.
    pub additions: u64,
    pub prefix: &'a str,
    pub counters: u64,
    /// Counts the answers as they come, for whoever wants to strike in the middle.
    pub answered: &'a AtomicU64,
    /// Ends the load early.
    pub stop: &'a AtomicBool,
}

impl Load<'_> {
    /// Runs to the end, or until every client has lost its connection. An addition is never sent twice.
    pub fn run(&self, addr: SocketAddr) -> Tally {
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..self.clients).map(|_| scope.spawn(|| self.client(addr, &next))).collect();
            clients
                .into_iter()
                .map(|client| client.join().expect("a client does not panic"))
                .fold(Tally::default(), |a, b| a + b)
        })
    }

    fn client(&self, addr: SocketAddr, next: &AtomicU64) -> Tally {
        let mut tally = Tally::default();
        let Ok(mut client) = Client::connect(addr) else { return tally };
        while !self.stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.additions {
                break;
            }
            let target = format!("/v1/counters/{}{}/add", self.prefix, number % self.counters);
            if client.send("POST", &target, &[], b"{\"amount\":1}").is_err() {
                // Part of it may have reached the server.
                tally.unknown += 1;
                break;
            }
            match client.receive() {
                Ok(answer) if answer.status == 200 => {
                    tally.acknowledged += 1;
                    // The server's last answer on this connection: it is stopping.
                    if answer.header("connection") == Some("close") {
                        break;
                    }
                }
                Ok(answer) if answer.json()["outcome"] == "not_applied" => tally.refused += 1,
                Ok(_) => tally.unknown += 1,
                Err(_) => {
                    tally.unknown += 1;
                    break;
                }
            }
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        tally
    }
}

/// The exact totals of `{prefix}0` to `{prefix}{counters - 1}` together; counters that do not exist count as 0.
pub fn sum(server: &Server, prefix: &str, counters: u64) -> i128 {
    let ids: Vec<String> = (0..counters).map(|n| format!("{prefix}{n}")).collect();
    let answer = server.post("/v1/read", serde_json::json!({ "ids": ids })).expect(200).json();
    let results = answer["results"].as_array().expect("one result per id");
    assert_eq!(results.len() as u64, counters);
    let total = |result: &serde_json::Value| -> i128 {
        match result["value_str"].as_str() {
            Some(digits) => digits.parse().expect("digits"),
            None => {
                assert_eq!(result["error"]["code"], "counter_not_found", "{result}");
                0
            }
        }
    };
    results.iter().map(total).sum()
}

/// Clients of a load that ends with the server.
pub const CLIENTS: usize = 64;
/// Counters that such a load spreads over.
pub const COUNTERS: u64 = 16;

/// Drives additions to `c0`, `c1`, …, kills the server when `strike` of them were answered, and returns what the clients
/// know.
pub fn until_killed(server: Server, additions: u64, strike: u64) -> (Tally, Launch) {
    let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let load = Load { clients: CLIENTS, additions, prefix: "c", counters: COUNTERS, answered: &answered, stop: &stop };
    let addr = server.addr;
    std::thread::scope(|scope| {
        let running = scope.spawn(|| load.run(addr));
        within(4 * PATIENCE, "the strike", || {
            (answered.load(Ordering::Relaxed) >= strike || running.is_finished()).then_some(())
        });
        let launch = server.kill();
        (running.join().expect("the load does not panic"), launch)
    })
}

/// Adds 1 to `k0`, `k1`, … `additions` times, each with a key of its own and sent until it is answered, while the server is
/// killed `kills` times and started again at the same address. `after_kill` runs while it is down. Returns the last
/// server.
pub fn keyed_over_kills(launch: Launch, additions: u64, kills: u64, after_kill: impl Fn(&Launch)) -> Server {
    let mut server = launch.start();
    let addr = server.addr;
    let launch = launch.listen(addr.to_string());
    let (next, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = None;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= additions {
                        return;
                    }
                    add_until_answered(&mut client, addr, number);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for kill in 0..kills {
            let part = additions / kills;
            let strike = kill * part + rand::rng().random_range(1..part);
            within(4 * PATIENCE, "the strike", || (answered.load(Ordering::Relaxed) >= strike).then_some(()));
            drop(server.kill());
            after_kill(&launch);
            server = launch.start();
        }
        server
    })
}

/// One keyed addition, over as many connections and server processes as it takes.
fn add_until_answered(client: &mut Option<Client>, addr: SocketAddr, number: u64) {
    const PAUSE: Duration = Duration::from_millis(10);
    let (target, key) = (format!("/v1/counters/k{}/add", number % COUNTERS), format!("key-{number}"));
    let deadline = Instant::now() + 2 * PATIENCE;
    while Instant::now() < deadline {
        let Some(connected) = client.as_mut() else {
            match Client::connect(addr) {
                Ok(connected) => *client = Some(connected),
                // The next server is not there yet.
                Err(_) => std::thread::park_timeout(PAUSE),
            }
            continue;
        };
        match connected.call("POST", &target, &[("idempotency-key", &key)], b"{\"amount\":1}") {
            Ok(answer) if answer.status == 200 => return,
            Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
            Err(_) => *client = None,
        }
    }
    panic!("{key} was never answered");
}
