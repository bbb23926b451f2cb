//! Rules: bounds, durability, spread, the longest prefix, versions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use quipu_tests::{Server, encode};
use serde_json::{Value, json};

/// The rules as they are listed, by their prefix.
fn rules(server: &Server) -> BTreeMap<String, Value> {
    let listed = server.get("/v1/rules").expect(200).json();
    let rules = listed["rules"].as_array().expect("a list").iter();
    rules.map(|rule| (rule["match"].as_str().expect("a prefix").to_owned(), rule.clone())).collect()
}

#[test]
fn a_node_begins_with_a_rule_for_every_counter_and_one_for_the_second_system() {
    let server = Server::start();
    let rules = rules(&server);
    assert_eq!(rules.keys().collect::<Vec<_>>(), ["", "default"]);
    let modulo = &rules["default"];
    assert_eq!((&modulo["selection"]["plugin"], &modulo["spread"]), (&json!("value-modulo"), &json!(12)));
    let rule = &rules[""];
    assert_eq!((&rule["selection"]["plugin"], &rule["aggregation"]["plugin"]), (&json!("least-cpu"), &json!("sum")));
    assert_eq!((&rule["spread"], &rule["durability"]), (&json!(3), &json!("durable")));
    assert!(rule["version"].is_u64() && rule["selection"]["revision"].is_string(), "{rule}");
}

#[test]
fn stock_never_goes_below_zero() {
    const STOCK: i64 = 500;
    let server = Server::start();
    server.set_rule(json!({ "match": "stock/", "spread": 1, "min": 0 }));
    server.add("stock/1", STOCK).expect(200);
    let (sold, refused) = (AtomicI64::new(0), AtomicI64::new(0));
    std::thread::scope(|scope| {
        for client in 0..32i64 {
            let (server, sold, refused) = (&server, &sold, &refused);
            scope.spawn(move || {
                let mut client_connection = server.client();
                for n in 0..30 {
                    let amount = -(1 + (client + n) % 3);
                    let body = json!({ "amount": amount }).to_string();
                    let answer = client_connection
                        .call("POST", "/v1/counters/stock%2F1/add", &[], body.as_bytes())
                        .expect("an answer");
                    if answer.status == 200 {
                        let left = answer.json()["shard_value"].as_i64().expect("a value");
                        assert!((0..STOCK).contains(&left), "{left}");
                        sold.fetch_add(-amount, Ordering::Relaxed);
                    } else {
                        assert_eq!(answer.problem(409, "bound")["outcome"], "not_applied");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let left = server.total("stock/1");
    assert_eq!(left, i128::from(STOCK - sold.into_inner()));
    assert!((0..3).contains(&left), "32 clients asked for far more than there was: {left}");
    assert!(refused.into_inner() > 0);
    let server = server.crash_and_restart();
    assert_eq!(server.total("stock/1"), left);
    server.add("stock/1", -3).problem(409, "bound");
}

#[test]
fn both_bounds_are_kept() {
    let server = Server::start();
    server.set_rule(json!({ "match": "quota", "spread": 1, "min": -5, "max": 10 }));
    server.add("quota", 10).expect(200);
    let problem = server.add("quota", 1).problem(409, "bound");
    assert!(problem["detail"].as_str().expect("a sentence").contains("10"), "names the bound: {problem}");
    server.add("quota", -15).expect(200);
    server.add("quota", -1).problem(409, "bound");
    assert_eq!(server.total("quota"), -5);
    server.add("quota-new", 11).problem(409, "bound");
    server.get("/v1/counters/quota-new").problem(404, "counter_not_found");
}

#[test]
fn relaxed_additions_are_accepted_and_soon_readable() {
    let server = Server::start();
    server.set_rule(json!({ "match": "views/", "durability": "relaxed" }));
    for _ in 0..100 {
        let added = server.add("views/1", 2).expect(200).json();
        assert_eq!(added["outcome"], "accepted", "{added}");
        assert!(added["shard_value"].is_null(), "it is not known yet: {added}");
    }
    quipu_tests::until("all are readable", || {
        let read = server.get("/v1/counters/views%2F1");
        read.status == 200 && read.total() == 200
    });
    assert_eq!(server.add("durable", 1).expect(200).json()["outcome"], "applied");
    let ops = json!({ "ops": [{ "id": "views/2" }, { "id": "durable" }] });
    let batch = server.post("/v1/batch", ops).expect(200).json();
    assert_eq!(batch["results"][0]["outcome"], "accepted", "{batch}");
    assert_eq!(batch["results"][1]["outcome"], "applied", "{batch}");
}

#[test]
fn relaxed_additions_survive_an_orderly_stop() {
    let server = Server::start();
    server.set_rule(json!({ "match": "", "durability": "relaxed" }));
    (0..200).for_each(|_| drop(server.add("c", 1).expect(200)));
    let (ended, launch) = server.stop();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    assert_eq!(launch.start().total("c"), 200);
}

#[test]
fn changes_of_the_spread_keep_totals() {
    let server = Server::start();
    let mut expected = 0i128;
    // The rule for every id counts, too.
    let mut widest = 3;
    for spread in [1, 12, 3, 1, 5] {
        server.set_rule(json!({ "match": "s", "spread": spread, "selection": { "plugin": "round-robin" } }));
        widest = widest.max(spread);
        for _ in 0..24 {
            server.add("s", 1).expect(200);
            expected += 1;
        }
        let read = server.get("/v1/counters/s").expect(200);
        assert_eq!(read.total(), expected, "spread {spread}");
        assert_eq!(read.json()["shards"], widest, "reads go as far as any write ever went");
    }
    assert_eq!(server.partials("s").len(), 12);
    let server = server.crash_and_restart();
    assert_eq!(server.total("s"), expected);
    server.delete("/v1/rules?match=s").expect(204);
    assert_eq!(server.total("s"), expected, "the widest spread outlives the rule");
    let server = server.crash_and_restart();
    assert_eq!(server.total("s"), expected);
}

#[test]
fn a_saturated_counter_is_spread_wider_up_to_its_limit_and_nothing_is_missed() {
    const CLIENTS: usize = 8;
    const BATCHES: usize = 6;
    const OPS: usize = 4_000;
    let server = Server::start();
    server.set_rule(json!({ "match": "hot/", "spread": 1, "spread_limit": 4 }));
    let one = json!({ "id": "hot/1" });
    let batch = json!({ "ops": vec![one; OPS] }).to_string();
    let key = [("idempotency-key", "once")];
    let first = server.call("POST", "/v1/counter/add?id=hot%2F1", &key, b"{}").expect(200).json();
    let widened = || server.metrics().value("quipu_spread_widened_total");
    let mut rounds = 0;
    while rounds == 0 || widened() == 0.0 {
        assert!(rounds < 20, "so many operations wait for one shard, and it is never saturated");
        rounds += 1;
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let mut client = server.client();
                    for _ in 0..BATCHES {
                        client.call("POST", "/v1/batch", &[], batch.as_bytes()).expect("an answer").expect(200);
                    }
                });
            }
        });
    }
    let shards = server.get("/v1/counter/shards?id=hot%2F1").expect(200).json();
    let partials = shards["partials"].as_array().expect("a list");
    assert!((2..=4).contains(&partials.len()), "{shards}");
    assert_eq!(server.total("hot/1"), (1 + rounds * CLIENTS * BATCHES * OPS) as i128);
    let again = server.call("POST", "/v1/counter/add?id=hot%2F1", &key, b"{}").expect(200).json();
    assert_eq!(again["shard_value"], first["shard_value"], "a retry meets its first attempt");
}

#[test]
fn counters_below_a_shorter_prefix_keep_its_spread() {
    let server = Server::start();
    server.set_rule(json!({ "match": "a", "spread": 12, "selection": { "plugin": "round-robin" } }));
    (0..24).for_each(|_| drop(server.add("ab", 1).expect(200)));
    server.set_rule(json!({ "match": "ab", "spread": 1 }));
    assert_eq!(server.total("ab"), 24);
    server.delete("/v1/rules?match=a").expect(204);
    assert_eq!(server.total("ab"), 24);
    server.delete("/v1/counters/ab").expect(204);
    server.get("/v1/counters/ab").problem(404, "counter_not_found");
}

#[test]
fn the_longest_prefix_governs() {
    let server = Server::start();
    server.set_rule(json!({ "match": "x", "spread": 1, "max": 10 }));
    server.set_rule(json!({ "match": "x/y", "spread": 1, "max": 20 }));
    server.set_rule(json!({ "match": "x/yé", "spread": 1, "max": 30 }));
    for (id, max) in [("x", 10), ("x/", 10), ("x/x", 10), ("x/y", 20), ("x/ye", 20), ("x/yé", 30), ("x/yé/z", 30)] {
        server.add(id, max).expect(200);
        server.add(id, 1).problem(409, "bound");
    }
    server.add("y", 1_000).expect(200);
    server.delete("/v1/rules?match=x%2Fy").expect(204);
    server.add("x/yy", 11).problem(409, "bound");
}

#[test]
fn versions_guard_changes() {
    let server = Server::start();
    let put = |condition: (&str, &str), spread: u32| {
        let rule = json!({ "match": "v", "spread": spread }).to_string();
        server.call("PUT", "/v1/rules", &[condition], rule.as_bytes())
    };
    put(("if-match", "*"), 1).problem(412, "precondition_failed");
    let first = put(("if-none-match", "*"), 1).expect(200);
    let version = first.json()["version"].as_u64().expect("a version");
    assert_eq!(first.header("etag"), Some(format!("\"{version}\"").as_str()));
    put(("if-none-match", "*"), 2).problem(412, "precondition_failed");
    put(("if-match", &format!("\"{}\"", version + 1)), 2).problem(412, "precondition_failed");
    let second = put(("if-match", &format!("\"{version}\"")), 2).expect(200).json();
    assert!(second["version"].as_u64() > Some(version), "{second}");
    put(("if-match", &format!("\"{version}\"")), 3).problem(412, "precondition_failed");
    put(("if-match", "soon"), 3).problem(422, "invalid_argument");
    assert_eq!(rules(&server)["v"]["spread"], 2);
    let delete = |version: u64| server.call("DELETE", "/v1/rules?match=v", &[("if-match", &version.to_string())], b"");
    delete(version).problem(412, "precondition_failed");
    delete(second["version"].as_u64().expect("a version")).expect(204);
}

#[test]
fn one_of_two_concurrent_changes_wins() {
    let server = Server::start();
    let version = server.set_rule(json!({ "match": "v", "spread": 1 }))["version"].to_string();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let changes: Vec<_> = (1..=8)
            .map(|spread| {
                let (server, version) = (&server, &version);
                scope.spawn(move || {
                    let rule = json!({ "match": "v", "spread": spread }).to_string();
                    server.call("PUT", "/v1/rules", &[("if-match", version)], rule.as_bytes()).status
                })
            })
            .collect();
        changes.into_iter().map(|change| change.join().expect("an answer")).collect()
    });
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|&&status| status == 412).count(), 7, "{statuses:?}");
}

#[test]
fn a_rollback_restores_the_rule_before() {
    let server = Server::start();
    let roll_back =
        |prefix: &str| server.call("POST", &format!("/v1/rules/rollback?match={}", encode(prefix)), &[], b"");
    server.set_rule(json!({ "match": "r", "spread": 1, "max": 5 }));
    server.set_rule(json!({ "match": "r", "spread": 2 }));
    let restored = roll_back("r").expect(200).json();
    assert_eq!((&restored["spread"], &restored["max"]), (&json!(1), &json!(5)), "{restored}");
    server.add("r", 6).problem(409, "bound");
    let server = server.crash_and_restart();
    server.add("r", 6).problem(409, "bound");
    let again = server.call("POST", "/v1/rules/rollback?match=r", &[], b"").expect(200).json();
    assert_eq!(again["spread"], 2);
    server.call("POST", "/v1/rules/rollback?match=none", &[], b"").problem(404, "rule_not_found");
    server.call("POST", "/v1/rules/rollback", &[], b"").problem(400, "missing_parameter");
}

#[test]
fn a_deleted_rule_comes_back_by_rollback() {
    let server = Server::start();
    server.set_rule(json!({ "match": "r", "spread": 1, "max": 5 }));
    server.delete("/v1/rules?match=r").expect(204);
    // At the home shard, where the bound that comes back is judged.
    server.add_with_key("r", 6, "once").expect(200);
    assert!(!rules(&server).contains_key("r"));
    server.call("POST", "/v1/rules/rollback?match=r", &[], b"").expect(200);
    assert_eq!(rules(&server)["r"]["max"], 5);
    server.delete("/v1/rules?match=never").problem(404, "rule_not_found");
    server.delete("/v1/rules").problem(400, "missing_parameter");
}

#[test]
fn the_rule_for_every_id_can_be_replaced_only() {
    let server = Server::start();
    server.delete("/v1/rules?match=").problem(409, "rule_protected");
    server.set_rule(json!({ "match": "", "spread": 5 }));
    assert_eq!(rules(&server)[""]["spread"], 5);
    server.call("POST", "/v1/rules/rollback?match=", &[], b"").expect(200);
    assert_eq!(rules(&server)[""]["spread"], 3);
}

#[test]
fn rules_survive_a_crash() {
    let server = Server::start();
    server.set_rule(json!({ "match": "a/", "spread": 1, "min": 0, "selection": { "plugin": "random" } }));
    server.set_rule(json!({ "match": "b/", "durability": "relaxed", "aggregation": { "plugin": "max" } }));
    let before = rules(&server);
    let server = server.crash_and_restart();
    assert_eq!(rules(&server), before);
    server.add("a/x", -1).problem(409, "bound");
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let server = Server::start();
    let refused = [
        json!({ "match": "x", "spread": 0 }),
        json!({ "match": "x", "spread": 13 }),
        json!({ "match": "x", "spread": -1 }),
        json!({ "match": "x", "spread": 2, "min": 0 }),
        json!({ "match": "x", "max": 0 }),
        json!({ "match": "x", "spread": 1, "min": 5, "max": 4 }),
        json!({ "match": "x", "spread": 1, "min": 0, "durability": "relaxed" }),
        json!({ "match": "x", "durability": "forever" }),
        json!({ "match": "x".repeat(513) }),
        json!({ "match": 5 }),
        json!({ "match": "x", "selection": { "plugin": "sum" } }),
        json!({ "match": "x", "aggregation": { "plugin": "random" } }),
        json!({ "match": "x", "selection": { "plugin": "random", "config": "nonsense" } }),
        json!({ "match": "x", "selection": { "plugin": "random", "colour": "red" } }),
        json!({ "match": "x", "sprea": 3 }),
    ];
    for rule in refused {
        let answer = server.put("/v1/rules", rule.clone());
        assert_eq!(answer.status, 422, "{rule}: {}", answer.text());
        answer.problem(422, "invalid_argument");
    }
    let answer = server.put("/v1/rules", json!({ "match": "x", "selection": { "plugin": "nobody" } }));
    assert!(answer.status == 404 || answer.status == 422, "{}", answer.text());
    let revision = format!("sha256:{}", "0".repeat(64));
    let answer =
        server.put("/v1/rules", json!({ "match": "x", "selection": { "plugin": "random", "revision": revision } }));
    assert!(answer.status == 404 || answer.status == 422, "{}", answer.text());
    server.call("PUT", "/v1/rules", &[], b"{").problem(400, "malformed_json");
    assert_eq!(rules(&server).keys().collect::<Vec<_>>(), ["", "default"], "nothing was set");
    server.add("x", 1).expect(200);
}

#[test]
fn a_rule_needs_a_match() {
    let server = Server::start();
    let answer = server.put("/v1/rules", json!({ "spread": 1 })).expect(400);
    assert!(answer.json()["detail"].as_str().expect("a sentence").contains("match"), "{}", answer.text());
}
