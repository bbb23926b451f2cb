//! Policies and rules of a cluster: in force on every live node or on none, on nodes that come later, and never at the
//! price of a count.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use quipu_tests::cluster::{LEASE, SHARDS};
use quipu_tests::components::{builtin, guest, uploaded, variant};
use quipu_tests::{Client, Cluster, PATIENCE, Plan, Server, Traffic, encode, until, within};
use serde_json::{Value, json};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Any key that signed nothing: the generator's own public key of RFC 8032's first test.
const SOME_KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

/// A rule of spread 4 whose shards this revision chooses.
fn chosen_by(prefix: &str, plugin: &str, revision: &str) -> Value {
    json!({ "match": prefix, "spread": 4, "selection": { "plugin": plugin, "revision": revision } })
}

/// The revision that chose the shard of an addition to this counter now.
fn chooser(server: &Server, id: &str) -> String {
    let added = server.add(id, 1).expect(200).json();
    added["policy"]["selection"].as_str().unwrap_or_else(|| panic!("nobody chose: {added}")).to_owned()
}

fn rule(server: &Server, prefix: &str) -> Option<Value> {
    let listed = server.get("/v1/rules").expect(200).json();
    listed["rules"].as_array().expect("a list").iter().find(|rule| rule["match"] == prefix).cloned()
}

/// Adds on every node until it is told to stop, and keeps when each addition began and who chose its shard.
struct Choices {
    stop: AtomicBool,
    counted: AtomicU64,
    fallbacks: AtomicU64,
    /// By node: when the addition was sent, and the revision.
    seen: Mutex<Vec<(Instant, String)>>,
}

impl Choices {
    fn add_until_stopped(&self, mut client: Client, id: &str) {
        let target = format!("/v1/counters/{}/add", encode(id));
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let added = client.call("POST", &target, &[], b"{}").expect("an answer").expect(200).json();
            self.counted.fetch_add(1, Ordering::Relaxed);
            if added["policy"]["fallback"] == true {
                self.fallbacks.fetch_add(1, Ordering::Relaxed);
            }
            let revision = added["policy"]["selection"].as_str().expect("a revision").to_owned();
            self.seen.lock().expect("no client panics").push((began, revision));
        }
    }
}

#[test]
fn an_activated_policy_is_in_force_everywhere_when_that_is_answered() {
    const SWAPS: usize = 30;
    let Some(mut cluster) = Cluster::start(3) else { return };
    let base = builtin("round-robin");
    let revisions = [0, 1].map(|n| uploaded(cluster.node("n1"), "mine", &variant(&base, n)));
    let choices = Choices {
        stop: AtomicBool::new(false),
        counted: AtomicU64::new(0),
        fallbacks: AtomicU64::new(0),
        seen: Mutex::default(),
    };
    cluster.node("n1").set_rule(chosen_by("live/", "mine", &revisions[0]));
    let mut longest = std::time::Duration::ZERO;
    std::thread::scope(|scope| {
        for n in 0..12 {
            let (choices, client) = (&choices, cluster.node(NODES[n % 3]).client());
            scope.spawn(move || choices.add_until_stopped(client, &format!("live/{}", n % 4)));
        }
        for swap in 1..=SWAPS {
            let (now, asked) = (&revisions[swap % 2], cluster.node(NODES[swap % 3]));
            let began = Instant::now();
            asked.set_rule(chosen_by("live/", "mine", now));
            let answered = Instant::now();
            longest = longest.max(answered - began);
            for node in NODES {
                assert_eq!(&chooser(cluster.node(node), "live/probe"), now, "swap {swap} on {node}");
            }
            let seen = std::mem::take(&mut *choices.seen.lock().expect("no client panics"));
            let late = seen.iter().filter(|(sent, revision)| *sent > answered && revision != now).count();
            assert_eq!(late, 0, "additions that were sent after swap {swap} was answered and not chosen by it");
        }
        choices.stop.store(true, Ordering::Relaxed);
    });
    let total: i128 = (0..4).map(|n| cluster.node("n2").total(&format!("live/{n}"))).sum();
    assert_eq!(total, i128::from(choices.counted.load(Ordering::Relaxed)));
    println!("{SWAPS} swaps, the longest took {longest:?}; {total} additions, {:?} by fallback", choices.fallbacks);
    // A rollback on another node than the one that set the rule.
    let (now, before) = (&revisions[SWAPS % 2], &revisions[(SWAPS + 1) % 2]);
    assert_eq!(&chooser(cluster.node("n1"), "live/probe"), now);
    cluster.node("n3").call("POST", "/v1/rules/rollback?match=live%2F", &[], b"").expect(200);
    for node in NODES {
        assert_eq!(&chooser(cluster.node(node), "live/probe"), before, "rolled back on {node}");
    }
    // A node that never saw the upload, and one that was dead during the change before.
    cluster.kill("n2");
    until("a change goes on without the dead node", || {
        cluster.node("n1").put("/v1/rules", chosen_by("live/", "mine", now)).status == 200
    });
    cluster.add_node("n4");
    assert_eq!(&chooser(cluster.node("n4"), "live/probe"), now, "a node that joins has the policy");
    cluster.start_again("n2");
    assert_eq!(&chooser(cluster.node("n2"), "live/probe"), now, "a node that comes back has the policy");
    let target = format!("/v1/plugins/mine/{}", encode(now));
    cluster.node("n4").delete(&target).problem(409, "plugin_in_use");
}

#[test]
fn a_policy_that_one_node_refuses_is_in_force_on_none() {
    let Some(mut cluster) = Cluster::start(2) else { return };
    cluster.add_launched("n3", cluster.launch("n3").flag("--plugin-keys", SOME_KEY));
    cluster.await_balance();
    let first = json!({ "match": "r/", "spread": 4, "selection": { "plugin": "round-robin" } });
    cluster.node("n1").set_rule(first);
    let before: Vec<String> = NODES.map(|node| chooser(cluster.node(node), "r/c")).into();
    let mine = uploaded(cluster.node("n1"), "mine", &variant(&builtin("round-robin"), 9));

    let refused = cluster.node("n1").put("/v1/rules", chosen_by("r/", "mine", &mine)).problem(409, "not_ready");
    let detail = refused["detail"].as_str().expect("a sentence");
    assert!(detail.contains("n3") && detail.contains("sign"), "it names the node and its reason: {detail}");
    assert_eq!(refused["outcome"], "not_applied");
    for (node, before) in NODES.iter().zip(&before) {
        assert_eq!(&chooser(cluster.node(node), "r/c"), before, "the old rule stays on {node}");
        assert_eq!(rule(cluster.node(node), "r/").expect("the rule")["selection"]["plugin"], "round-robin", "{node}");
    }
    // Not where all must agree.
    let wider = json!({ "match": "r/", "spread": 5, "selection": { "plugin": "mine", "revision": mine } });
    cluster.node("n2").put("/v1/rules?allow_missing=1", wider).problem(409, "not_ready");

    cluster.node("n2").put("/v1/rules?allow_missing=1", chosen_by("r/", "mine", &mine)).expect(200);
    for node in ["n1", "n2"] {
        assert_eq!(chooser(cluster.node(node), "r/c"), mine, "{node}");
    }
    // The node without the policy counts by the default one.
    let before = cluster.node("n3").total("r/c");
    for _ in 0..20 {
        assert_ne!(chooser(cluster.node("n3"), "r/c"), mine);
    }
    NODES.iter().for_each(|node| assert_eq!(cluster.node(node).total("r/c"), before + 20));
}

#[test]
fn a_node_that_comes_back_at_once_counts_under_the_rules() {
    let Some(mut cluster) = Cluster::start(3) else { return };
    cluster.node("n1").set_rule(json!({ "match": "bounded/", "spread": 1, "min": 0 }));
    cluster
        .node("n1")
        .set_rule(json!({ "match": "wide/", "spread": SHARDS, "selection": { "plugin": "value-modulo" } }));
    for amount in 0..i64::from(SHARDS) {
        cluster.node("n1").add("wide/c", amount).expect(200);
    }
    let total = cluster.node("n1").total("wide/c");
    for node in ["n2", "n3", "n2"] {
        cluster.kill(node);
        cluster.start_again(node);
        // Its predecessor's lease has not ended.
        for n in 0..6 {
            cluster.node(node).add(&format!("bounded/{node}/{n}"), -1).problem(409, "bound");
        }
        assert_eq!(cluster.node(node).total("wide/c"), total, "{node}");
    }
}

#[test]
fn a_node_that_stood_still_during_an_activation_follows_it() {
    let Some(cluster) = Cluster::start(3) else { return };
    let base = builtin("round-robin");
    let revisions = [0, 1].map(|n| uploaded(cluster.node("n1"), "mine", &variant(&base, n)));
    cluster.node("n1").set_rule(chosen_by("p/", "mine", &revisions[0]));
    let traffic = Traffic::start(&cluster, Plan::singles(6, 4));
    cluster.node("n3").pause();
    let began = Instant::now();
    let answered = within(2 * PATIENCE, "the change goes on without the node", || {
        let answer = cluster.node("n1").put("/v1/rules", chosen_by("p/", "mine", &revisions[1]));
        if answer.status == 200 {
            return Some(began.elapsed());
        }
        let refused = answer.problem(409, "not_ready");
        assert!(refused["detail"].as_str().expect("a sentence").contains("n3"), "{refused}");
        // Not in force anywhere, then.
        assert_eq!(chooser(cluster.node("n2"), "p/probe"), revisions[0]);
        None
    });
    println!("a change while a node stands still is in force after {answered:?}, with a lease of {LEASE:?}");
    for node in ["n1", "n2"] {
        assert_eq!(chooser(cluster.node(node), "p/probe"), revisions[1], "{node}");
    }
    cluster.node("n3").resume();
    until("the node follows", || chooser(cluster.node("n3"), "p/probe") == revisions[1]);
    traffic.await_each(&cluster.running(), 100);
    traffic.finish(&cluster);
}

#[test]
fn a_spread_that_grows_under_load_hides_no_partial() {
    let Some(cluster) = Cluster::start(3) else { return };
    cluster.node("n1").set_rule(json!({ "match": "unkeyed-", "spread": 1 }));
    let traffic = Traffic::start(&cluster, Plan::singles(16, 4));
    for (turn, spread) in [2, 5, 3, SHARDS].into_iter().enumerate() {
        traffic.await_each(&cluster.running(), 150);
        let rule = json!({ "match": "unkeyed-", "spread": spread, "selection": { "plugin": "random" } });
        cluster.node(NODES[turn % 3]).set_rule(rule);
    }
    traffic.await_each(&cluster.running(), 300);
    assert_eq!(cluster.node("n2").partials("unkeyed-0").len(), SHARDS as usize);
    for (node, outcomes) in traffic.finish(&cluster) {
        outcomes.expect_no_failure(&node);
    }
    cluster.node("n3").delete("/v1/rules?match=unkeyed-").expect(204);
    let read = cluster.node("n1").get("/v1/counters/unkeyed-0").expect(200).json();
    assert_eq!(read["shards"], SHARDS, "the widest spread outlives the rule: {read}");
    cluster.verify();
}

/// Exact reads of a node that was away while counters were spread wider must find the partials that it never heard of.
#[test]
fn a_node_that_stood_still_while_a_spread_grew_hides_no_partial() {
    let Some(cluster) = Cluster::start(3) else { return };
    cluster.node("n1").set_rule(json!({ "match": "w/", "spread": 1 }));
    let ids: Vec<String> = (0..8).map(|n| format!("w/{n}")).collect();
    for id in &ids {
        cluster.node("n3").add(id, 1).expect(200);
        assert_eq!(cluster.node("n3").total(id), 1);
    }
    cluster.node("n3").pause();
    let wide = json!({ "match": "w/", "spread": SHARDS, "selection": { "plugin": "round-robin" } });
    within(2 * PATIENCE, "the spread grows without the node", || {
        (cluster.node("n1").put("/v1/rules", wide.clone()).status == 200).then_some(())
    });
    cluster.await_served("n1", "n3");
    for id in &ids {
        let mut client = cluster.node("n1").client();
        let target = format!("/v1/counters/{}/add", encode(id));
        for _ in 0..SHARDS {
            client.call("POST", &target, &[], b"").expect("an answer").expect(200);
        }
    }
    // The questions wait in the node's sockets when it wakes, before it can hear of anything.
    let mut waiting: Vec<Client> = ids.iter().map(|_| cluster.node("n3").client()).collect();
    for (id, client) in ids.iter().zip(&mut waiting) {
        client.send("GET", &format!("/v1/counters/{}", encode(id)), &[], b"").expect("it is taken by the kernel");
    }
    cluster.node("n3").resume();
    for (id, client) in ids.iter().zip(&mut waiting) {
        let read = client.receive().expect("an answer");
        // It may say that it cannot tell; it may not tell less.
        if read.status != 503 {
            assert_eq!(read.expect(200).total(), 1 + i128::from(SHARDS), "{id} on the node that stood still");
        }
    }
    until("the node answers", || cluster.node("n3").get("/v1/counters/w%2F0").status == 200);
    NODES.iter().for_each(|node| assert_eq!(cluster.node(node).total("w/0"), 1 + i128::from(SHARDS), "on {node}"));
}

/// Additions of a node that was away while a minimum came into force are held to it by the owners that they reach.
#[test]
fn a_node_that_stood_still_while_a_minimum_came_takes_nothing_below_it() {
    let Some(cluster) = Cluster::start(3) else { return };
    let rule = |min: Option<i64>| json!({ "match": "stock/", "spread": 1, "min": min });
    cluster.node("n1").set_rule(rule(None));
    let ids: Vec<String> = (0..16).map(|n| format!("stock/{n}")).collect();
    for id in &ids {
        cluster.node("n3").add(id, 1).expect(200);
    }
    cluster.node("n3").pause();
    within(2 * PATIENCE, "the rule changes without the node", || {
        (cluster.node("n1").put("/v1/rules", rule(Some(0))).status == 200).then_some(())
    });
    cluster.await_served("n1", "n3");
    let mut waiting: Vec<Client> = ids.iter().map(|_| cluster.node("n3").client()).collect();
    for (id, client) in ids.iter().zip(&mut waiting) {
        let target = format!("/v1/counters/{}/add", encode(id));
        client.send("POST", &target, &[], br#"{"amount":-2}"#).expect("it is taken by the kernel");
    }
    cluster.node("n3").resume();
    let statuses: Vec<u16> = waiting.iter_mut().map(|client| client.receive().expect("an answer").status).collect();
    assert!(statuses.iter().all(|status| [409, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&409), "nobody had to hold it to the minimum: {statuses:?}");
    for id in &ids {
        assert_eq!(cluster.node("n1").total(id), 1, "{id}");
    }
}

/// Puts a key into etcd by its gateway for JSON, as an operator would by `etcdctl put`.
fn etcd_put(cluster: &Cluster, key: &str, value: &str) {
    let address = cluster.services.etcd.trim_start_matches("http://").parse().expect("an address of loopback");
    let encoded = |text: &str| base64(text.as_bytes());
    let body = json!({ "key": encoded(key), "value": encoded(value) }).to_string();
    let mut client = Client::connect(address).expect("etcd listens");
    client.call("POST", "/v3/kv/put", &[], body.as_bytes()).expect("an answer").expect(200);
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |bytes: &[u8]| {
        let number = (0..3).fold(0usize, |number, n| number << 8 | usize::from(*bytes.get(n).unwrap_or(&0)));
        let digits = (0..4).map(move |n| DIGITS[number >> (18 - 6 * n) & 63] as char);
        digits.take(bytes.len() + 1).chain(std::iter::repeat_n('=', 3 - bytes.len())).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[test]
fn policies_read_etcd_and_keep_tables_in_cassandra() {
    let Some(cluster) = Cluster::start(3) else { return };
    uploaded(cluster.node("n1"), "reads", &guest("reads-registry"));
    uploaded(cluster.node("n2"), "table", &guest("keeps-table"));
    let reads = json!({ "match": "e/", "spread": SHARDS, "selection": { "plugin": "reads", "grants": ["registry"] } });
    cluster.node("n2").set_rule(reads);
    let table = json!({ "match": "t/", "spread": 4, "selection": { "plugin": "table", "grants": ["storage"] } });
    cluster.node("n3").set_rule(table);
    for preferred in [7u32, 2, 11] {
        etcd_put(&cluster, &format!("/{}/kv/reads/preferred", cluster.name), &preferred.to_string());
        for node in NODES {
            until("the key in etcd chooses the shard on every node", || {
                cluster.node(node).add("e/c", 1).expect(200).json()["shard"] == preferred
            });
        }
    }
    let (mut additions, mut served) = (0, 0);
    until("the policy with a table in Cassandra placed 50 additions", || {
        let added = cluster.node(NODES[additions % 3]).add("t/c", 1).expect(200).json();
        additions += 1;
        served += u32::from(added["policy"]["fallback"] == false);
        served == 50
    });
    assert_eq!(cluster.node("n1").partials("t/c").len(), 4, "the rarest candidate is chosen each time");
    NODES.iter().for_each(|node| assert_eq!(cluster.node(node).total("t/c"), additions as i128));
}
