//! The built-in policies, each bound by a rule and counted with.

use std::collections::BTreeSet;

use quipu_tests::{Launch, Server, encode};
use serde_json::{Value, json};

const SELECTION: [&str; 7] =
    ["least-cpu", "value-modulo", "round-robin", "random", "two-choices", "rendezvous", "local-first"];
const AGGREGATION: [&str; 4] = ["sum", "cached-sum", "available-sum", "max"];

fn plugin(server: &Server, name: &str) -> Value {
    let shown = server.get(&format!("/v1/plugins/{name}")).expect(200).json();
    let revisions = shown["plugins"].as_array().expect("a list");
    assert_eq!(revisions.len(), 1, "{shown}");
    revisions[0].clone()
}

fn calls(server: &Server, name: &str) -> f64 {
    server.metrics().sum("quipu_policy_calls_total", &[("plugin", name)])
}

fn faults(server: &Server, name: &str) -> f64 {
    server.metrics().sum("quipu_policy_faults_total", &[("plugin", name)])
}

#[test]
fn the_built_in_policies_are_listed() {
    let server = Server::start();
    let listed = server.get("/v1/plugins").expect(200).json();
    let plugins = listed["plugins"].as_array().expect("a list");
    let names: BTreeSet<_> = plugins.iter().filter_map(|plugin| plugin["name"].as_str()).collect();
    assert_eq!(names, SELECTION.iter().chain(&AGGREGATION).copied().collect());
    for plugin in plugins {
        let name = plugin["name"].as_str().expect("a name");
        let world = if SELECTION.contains(&name) { "selection" } else { "aggregation" };
        assert_eq!(plugin["world"], world, "{plugin}");
        let digest = plugin["revision"].as_str().and_then(|revision| revision.strip_prefix("sha256:"));
        assert!(digest.is_some_and(|digest| digest.len() == 64), "{plugin}");
        assert!(plugin["size_bytes"].as_u64() > Some(0), "{plugin}");
        assert!(plugin["imports"].is_array() && plugin["used_by"].is_array(), "{plugin}");
    }
    let users = |name: &str| plugin(&server, name)["used_by"].clone();
    assert_eq!((users("least-cpu"), users("sum"), users("random")), (json!([""]), json!(["", "default"]), json!([])));
    server.get("/v1/plugins/nobody").problem(404, "plugin_not_found");
}

#[test]
fn every_selection_policy_counts_right() {
    let server = Server::start();
    for name in SELECTION {
        let spread = if name == "value-modulo" { 12 } else { 3 };
        let id = format!("{name}/c");
        server.set_rule(json!({ "match": id, "spread": spread, "selection": { "plugin": name } }));
        let mut sum = 0;
        for amount in (-5..=40).map(|n| n * 7) {
            let added = server.add(&id, amount).expect(200).json();
            assert_eq!(added["policy"]["fallback"], false, "{name}: {added}");
            assert_eq!(added["policy"]["selection"], plugin(&server, name)["revision"], "{name}");
            sum += amount;
        }
        assert_eq!(server.total(&id), sum.into(), "{name}");
        let partials = server.partials(&id);
        assert!(partials.len() <= spread, "{name} stays among the candidates: {partials:?}");
        assert_eq!(partials.iter().map(|&(_, value)| value).sum::<i64>(), sum, "{name}");
        assert!(calls(&server, name) >= 46.0, "{name}: {}", calls(&server, name));
        assert_eq!(faults(&server, name), 0.0, "{name}");
        assert_eq!(plugin(&server, name)["used_by"].as_array().map(|used| used.contains(&json!(id))), Some(true));
    }
}

#[test]
fn round_robin_uses_every_candidate() {
    let server = Server::start();
    server.set_rule(json!({ "match": "c", "spread": 4, "selection": { "plugin": "round-robin" } }));
    (0..80).for_each(|_| drop(server.add("c", 1).expect(200)));
    assert_eq!(server.partials("c").len(), 4);
}

#[test]
fn rendezvous_stays_on_one_shard() {
    let server = Server::start();
    server.set_rule(json!({ "match": "c", "spread": 12, "selection": { "plugin": "rendezvous" } }));
    (0..40).for_each(|_| drop(server.add("c", 1).expect(200)));
    let partials = server.partials("c");
    assert_eq!(partials.len(), 1, "{partials:?}");
}

#[test]
fn value_modulo_follows_the_amount() {
    let server = Server::start();
    server.set_rule(json!({ "match": "c", "spread": 12, "selection": { "plugin": "value-modulo" } }));
    for amount in [0i64, 1, 11, 12, 25, -1, -12, i64::MIN, 7] {
        let added = server.add("c", amount).expect(200).json();
        assert_eq!(added["shard"], amount.rem_euclid(12), "{amount}");
    }
}

#[test]
fn every_policy_of_sums_sums() {
    let server = Server::start();
    for name in ["sum", "cached-sum", "available-sum"] {
        let id = format!("{name}/c");
        server.set_rule(json!({
            "match": id, "spread": 6, "selection": { "plugin": "round-robin" }, "aggregation": { "plugin": name },
        }));
        let amounts = [i64::MAX, i64::MAX, 5, -7, i64::MIN, i64::MAX];
        // On one connection, whose thread has its own turns: six shards get one amount each.
        let mut client = server.client();
        for amount in amounts {
            let (target, body) = (format!("/v1/counters/{}/add", encode(&id)), json!({ "amount": amount }).to_string());
            client.call("POST", &target, &[], body.as_bytes()).expect("an answer").expect(200);
        }
        let read = server.get(&format!("/v1/counters/{}", encode(&id))).expect(200);
        assert_eq!(read.total(), amounts.iter().map(|&amount| i128::from(amount)).sum::<i128>(), "{name}");
        assert_eq!(read.json()["policy"]["aggregation"], plugin(&server, name)["revision"], "{name}");
        assert_eq!(read.json()["policy"]["fallback"], false, "{name}");
        assert!(calls(&server, name) > 0.0, "{name}");
        assert_eq!(faults(&server, name), 0.0, "{name}");
    }
}

#[test]
fn max_answers_the_largest_partial() {
    let server = Server::start();
    server.set_rule(json!({
        "match": "m", "spread": 12, "selection": { "plugin": "value-modulo" }, "aggregation": { "plugin": "max" },
    }));
    for amount in [12, 25, -11, 14] {
        server.add("m", amount).expect(200);
    }
    // Shard 0 has 12, shard 1 has 25 - 11 = 14, shard 2 has 14.
    assert_eq!(server.total("m"), 14);
    server.add("m", 36).expect(200);
    assert_eq!(server.total("m"), 48);
    assert_eq!(server.partials("m").iter().map(|&(_, value)| value).max(), Some(48));
}

#[test]
fn policies_can_be_off() {
    let server = Launch::new().flag("--policies", "off").start();
    server.set_rule(json!({ "match": "m/", "spread": 12, "selection": { "plugin": "value-modulo" } }));
    for n in 0..60 {
        server.add("c", n).expect(200);
        server.add("m/c", n).expect(200);
    }
    assert_eq!((server.total("c"), server.total("m/c")), (1_770, 1_770));
    let read = server.post("/increment", json!({ "value": 23 })).expect(200).json();
    assert_eq!((&read["success"], server.total("default")), (&json!(true), 23));
    assert_eq!(server.metrics().sum("quipu_policy_calls_total", &[]), 0.0);
}

#[test]
fn counters_outlive_a_change_of_policies() {
    let launch = Launch::new();
    let server = launch.start();
    (0..50).for_each(|_| drop(server.add("c", 2).expect(200)));
    let off = server.kill().flag("--policies", "off").start();
    assert_eq!(off.total("c"), 100);
    (0..50).for_each(|_| drop(off.add("c", 2).expect(200)));
    off.kill();
    let server = launch.start();
    assert_eq!(server.total("c"), 200);
    assert_eq!(server.add("c", 1).expect(200).json()["policy"]["fallback"], false);
}
