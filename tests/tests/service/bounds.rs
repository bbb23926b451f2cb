//! Bounds come into effect only on counters that are on their home shards alone, where one shard sees the whole total.

use quipu_tests::{Answer, Launch, Server, encode};
use serde_json::{Value, json};

fn rule(server: &Server, prefix: &str) -> Option<Value> {
    let listed = server.get("/v1/rules").expect(200).json();
    listed["rules"].as_array().expect("a list").iter().find(|rule| rule["match"] == prefix).cloned()
}

fn bound(server: &Server, prefix: &str) -> Answer {
    server.put("/v1/rules", json!({ "match": prefix, "spread": 1, "min": 0 }))
}

fn roll_back(server: &Server, prefix: &str) -> Answer {
    server.call("POST", &format!("/v1/rules/rollback?match={}", encode(prefix)), &[], b"")
}

/// Adds until the counter has a partial on more than one shard.
fn spread_out(server: &Server, id: &str) -> i128 {
    let mut total = 0;
    while total == 0 || server.partials(id).len() < 2 {
        server.add(id, 5).expect(200);
        total += 5;
        assert!(total < 1_000, "so many additions, and all on one shard");
    }
    total
}

/// `spread` for new counters under the prefix, one shard after the other.
fn round_robin(server: &Server, prefix: &str) {
    server.set_rule(json!({ "match": prefix, "spread": 12, "selection": { "plugin": "round-robin" } }));
}

#[test]
fn a_bound_over_partials_elsewhere_is_refused_and_the_rule_before_stands() {
    let server = Server::start();
    round_robin(&server, "bnd/");
    let total = spread_out(&server, "bnd/a");
    let before = rule(&server, "bnd/");
    let problem = bound(&server, "bnd/").problem(409, "bound_unsettled");
    assert_eq!(problem["outcome"], "not_applied");
    assert!(problem["detail"].as_str().expect("a sentence").contains("bnd/a"), "it names the counter: {problem}");
    assert_eq!(rule(&server, "bnd/"), before, "with its version");
    server.add("bnd/a", -1).expect(200);
    assert_eq!(server.total("bnd/a"), total - 1);
    let server = server.crash_and_restart();
    assert_eq!(rule(&server, "bnd/"), before);
}

#[test]
fn a_bound_on_a_counter_of_the_rule_for_everything_is_never_wrong() {
    let server = Server::start();
    // One counter each, on whatever shard the policy chose: 5 on another than the home shard is refused.
    for n in 0..20 {
        let (prefix, id) = (format!("one{n}/"), format!("one{n}/a"));
        server.add(&id, 5).expect(200);
        let set = bound(&server, &prefix);
        if set.status != 200 {
            set.problem(409, "bound_unsettled");
            assert_eq!(rule(&server, &prefix), None, "there was no rule of this prefix before");
        }
        server.add(&id, -1).expect(200);
        assert_eq!(server.total(&id), 4, "{id}");
    }
}

#[test]
fn a_total_of_zero_that_is_spread_as_more_and_less_is_refused() {
    let server = Server::start();
    round_robin(&server, "zero/");
    // One connection, so one serving thread, whose turns go from shard to shard.
    let (mut connection, id) = (server.client(), "zero/a".to_owned());
    let mut add = |amount: i64| {
        let body = json!({ "amount": amount }).to_string();
        let added = connection.call("POST", "/v1/counter/add?id=zero%2Fa", &[], body.as_bytes()).expect("an answer");
        added.expect(200).json()["shard"].clone()
    };
    assert_ne!(add(6), add(-6));
    assert_eq!(server.total(&id), 0);
    bound(&server, "zero/").problem(409, "bound_unsettled");
    // What the answer says helps: the counter is removed, counted anew on one shard, and bounded.
    server.set_rule(json!({ "match": "zero/", "spread": 1 }));
    server.delete(&format!("/v1/counters/{}", encode(&id))).expect(204);
    server.add(&id, 3).expect(200);
    bound(&server, "zero/").expect(200);
    server.add(&id, -4).problem(409, "bound");
    server.add(&id, -3).expect(200);
    assert_eq!(server.total(&id), 0);
}

#[test]
fn the_example_of_the_readme_is_accepted() {
    let server = Server::start();
    round_robin(&server, "likes/");
    spread_out(&server, "likes/1");
    let set = bound(&server, "stock/").expect(200).json();
    assert_eq!((&set["spread"], &set["min"]), (&json!(1), &json!(0)), "{set}");
    server.add("stock/apples", -1).problem(409, "bound");
    server.get("/v1/counters/stock%2Fapples").problem(404, "counter_not_found");
    roll_back(&server, "stock/").problem(404, "rule_not_found");
}

#[test]
fn keyed_additions_are_at_home_and_can_be_bounded() {
    let server = Server::start();
    round_robin(&server, "keyed/");
    for n in 0..10 {
        server.add_with_key("keyed/a", 1, &format!("k{n}")).expect(200);
    }
    bound(&server, "keyed/").expect(200);
    server.add("keyed/a", -11).problem(409, "bound");
    server.add("keyed/a", -10).expect(200);
}

#[test]
fn a_rollback_to_bounds_is_held_to_the_same() {
    let server = Server::start();
    bound(&server, "back/").expect(200);
    round_robin(&server, "back/");
    spread_out(&server, "back/a");
    let before = rule(&server, "back/");
    roll_back(&server, "back/").problem(409, "bound_unsettled");
    assert_eq!(rule(&server, "back/"), before);
    server.delete("/v1/counters/back%2Fa").expect(204);
    assert_eq!(roll_back(&server, "back/").expect(200).json()["min"], 0);
    assert_eq!(roll_back(&server, "back/").expect(200).json()["spread"], 12, "the rule before is the one that stood");
}

#[test]
fn a_rule_does_not_give_way_to_a_bounded_one_over_partials_elsewhere() {
    let server = Server::start();
    round_robin(&server, "deep/er/");
    let total = spread_out(&server, "deep/er/a");
    // What the longer prefix governs is not the bound's.
    bound(&server, "deep/").expect(200);
    let before = rule(&server, "deep/er/");
    server.delete("/v1/rules?match=deep%2Fer%2F").problem(409, "bound_unsettled");
    assert_eq!(rule(&server, "deep/er/"), before);
    server.add("deep/er/a", -1).expect(200);
    assert_eq!(server.total("deep/er/a"), total - 1);
    server.delete("/v1/counters/deep%2Fer%2Fa").expect(204);
    server.delete("/v1/rules?match=deep%2Fer%2F").expect(204);
    server.add("deep/er/a", -1).problem(409, "bound");
}

#[test]
fn a_bounded_rule_is_not_spread() {
    let server = Server::start();
    bound(&server, "wide/").expect(200);
    for rule in [json!({ "match": "wide/", "spread": 2, "min": 0 }), json!({ "match": "wide/", "min": 0 })] {
        server.put("/v1/rules", rule).problem(422, "invalid_argument");
    }
    assert_eq!(rule(&server, "wide/").expect("the rule")["spread"], 1);
}

#[test]
fn many_pages_of_counters_are_looked_at() {
    let server = Server::start();
    let ops: Vec<Value> = (0..2_500).map(|n| json!({ "id": format!("many/{n:05}") })).collect();
    server.set_rule(json!({ "match": "many/", "spread": 1 }));
    server.post("/v1/batch", json!({ "ops": ops })).expect(200);
    round_robin(&server, "many/");
    spread_out(&server, "many/99999");
    bound(&server, "many/").problem(409, "bound_unsettled");
    server.delete("/v1/counters/many%2F99999").expect(204);
    bound(&server, "many/").expect(200);
}

#[test]
fn no_addition_of_an_earlier_rule_comes_after_the_look() {
    const ROUNDS: usize = 20;
    const CLIENTS: usize = 4;
    const IDS: usize = 8;
    for durability in ["durable", "relaxed"] {
        let server = Server::start();
        server.set_rule(json!({ "match": "race/", "spread": 12, "durability": durability,
                                "selection": { "plugin": "round-robin" } }));
        for round in 0..ROUNDS {
            // Additions that the earlier rule spreads are under way while the bound is set.
            let prefix = format!("race/{round}/");
            let set = std::thread::scope(|scope| {
                for client in 0..CLIENTS {
                    let (server, prefix) = (&server, &prefix);
                    scope.spawn(move || {
                        (0..IDS).for_each(|n| drop(server.add(&format!("{prefix}{client}-{n}"), 1).expect(200)));
                    });
                }
                bound(&server, &prefix)
            });
            if set.status != 200 {
                set.problem(409, "bound_unsettled");
                continue;
            }
            for id in (0..CLIENTS).flat_map(|client| (0..IDS).map(move |n| format!("{client}-{n}"))) {
                let id = format!("{prefix}{id}");
                server.add(&id, -2).problem(409, "bound");
                server.add(&id, -1).expect(200);
                assert_eq!(server.total(&id), 0, "{id}");
            }
        }
    }
}

#[test]
fn a_change_that_ends_halfway_leaves_spread_one_without_the_bound() {
    let launch = Launch::new().env("QUIPU_TEST_PANIC_AT", "bound");
    let server = launch.start();
    server.set_rule(json!({ "match": "half/", "spread": 3 }));
    let problem = bound(&server, "half/").problem(500, "internal");
    assert_eq!(problem["outcome"], "unknown");
    let server = server.kill().without_env("QUIPU_TEST_PANIC_AT").start();
    let half = rule(&server, "half/").expect("a rule");
    assert_eq!((&half["spread"], half.get("min")), (&json!(1), None), "{half}");
    bound(&server, "half/").expect(200);
    server.add("half/a", -1).problem(409, "bound");
}
