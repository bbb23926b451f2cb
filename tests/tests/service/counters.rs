//! The `/v1` routes of counters: create, add, read, list, shards, delete, operations, batch.

use std::collections::BTreeSet;

use quipu_tests::{Answer, Server, encode};
use serde_json::{Value, json};

/// Ids that are hard on paths, queries and JSON.
const HARD_IDS: [&str; 9] =
    ["a/b/c", "two words", "ünïcødé", "日本/カウンター", "a?b=c&d#e", "100%", "a+b", "..", "\"quoted\\\u{1f600}"];

#[test]
fn a_counter_is_created_once() {
    let server = Server::start();
    let created = server.post("/v1/counters", json!({ "id": "c", "name": "a name" })).expect(201).json();
    assert_eq!((&created["id"], &created["name"]), (&json!("c"), &json!("a name")));
    assert!(created["created_at"].is_string(), "{created}");
    let problem = server.post("/v1/counters", json!({ "id": "c" })).problem(409, "counter_exists");
    assert_eq!(problem["outcome"], "not_applied");
    assert_eq!(server.total("c"), 0);
}

#[test]
fn the_server_draws_an_id_when_none_is_given() {
    let server = Server::start();
    let mut drawn = BTreeSet::new();
    for body in [json!({}), json!({ "name": "n" })] {
        let created = server.post("/v1/counters", body).expect(201).json();
        drawn.insert(created["id"].as_str().expect("an id").to_owned());
    }
    let created = server.call("POST", "/v1/counters", &[], b"").expect(201).json();
    drawn.insert(created["id"].as_str().expect("an id").to_owned());
    assert_eq!(drawn.len(), 3);
    assert!(drawn.iter().all(|id| server.total(id) == 0));
}

#[test]
fn a_counter_that_was_added_to_exists() {
    let server = Server::start();
    server.add("by-add", 2).expect(200);
    server.post("/v1/counters", json!({ "id": "by-add" })).problem(409, "counter_exists");
    assert_eq!(server.total("by-add"), 2);
}

#[test]
fn an_add_says_what_it_did() {
    let server = Server::start();
    let added = server.add("c", 5).expect(200).json();
    assert_eq!((&added["id"], &added["amount"], &added["outcome"]), (&json!("c"), &json!(5), &json!("applied")));
    assert_eq!(added["shard_value"], 5);
    assert!(added["shard"].as_u64().is_some_and(|shard| shard < 12), "{added}");
    assert!(added["policy"]["selection"].as_str().is_some_and(|revision| revision.starts_with("sha256:")), "{added}");
    assert_eq!(added["policy"]["fallback"], false, "{added}");
    assert!(added.get("value").is_none(), "the total was not asked for: {added}");
    server.add("c", -8).expect(200);
    assert_eq!(server.total("c"), -3);
}

#[test]
fn an_add_without_an_amount_adds_one() {
    let server = Server::start();
    for body in ["", "{}", " \n"] {
        let added = server.call("POST", "/v1/counters/c/add", &[], body.as_bytes()).expect(200).json();
        assert_eq!(added["amount"], 1, "{body:?}");
    }
    assert_eq!(server.total("c"), 3);
}

#[test]
fn an_add_of_nothing_creates() {
    let server = Server::start();
    server.add("zero", 0).expect(200);
    assert_eq!(server.total("zero"), 0);
}

#[test]
fn an_add_answers_the_total_when_asked() {
    let server = Server::start();
    for (amount, expected) in [(5, 5i64), (-2, 3), (10, 13)] {
        let added = server.post("/v1/counters/c/add?return=value", json!({ "amount": amount })).expect(200);
        assert_eq!(added.total(), expected.into());
        assert_eq!(added.json()["value"], expected);
    }
    server.post("/v1/counters/c/add?return=everything", json!({})).problem(422, "invalid_argument");
    assert_eq!(server.total("c"), 13);
}

#[test]
fn a_read_says_what_it_is_worth() {
    let server = Server::start();
    server.add("c", 41).expect(200);
    let read = server.get("/v1/counters/c").expect(200).json();
    assert_eq!((&read["id"], &read["value"], &read["value_str"]), (&json!("c"), &json!(41), &json!("41")));
    assert_eq!((&read["exact"], &read["age_ms"]), (&json!(true), &json!(0)));
    assert_eq!(read["shards"], 3, "the spread of the rule for every id");
    assert!(read["as_of"].as_str().is_some_and(|at| at.ends_with('Z')), "{read}");
    assert!(read["policy"]["aggregation"].as_str().is_some_and(|revision| revision.starts_with("sha256:")), "{read}");
    assert_eq!(read["policy"]["fallback"], false);
    server.get("/v1/counters/other").problem(404, "counter_not_found");
    server.get("/v1/counters/c?read=sometimes").problem(422, "invalid_argument");
}

#[test]
fn totals_are_exact_beyond_64_bits() {
    let server = Server::start();
    server.set_rule(json!({ "match": "wide", "spread": 3, "selection": { "plugin": "round-robin" } }));
    // On one connection, whose thread has its own turns: each of three shards gets the largest value.
    let mut client = server.client();
    let body = json!({ "amount": i64::MAX }).to_string();
    let mut add = || client.call("POST", "/v1/counters/wide/add", &[], body.as_bytes()).expect("an answer");
    (0..3).for_each(|_| drop(add().expect(200)));
    add().problem(409, "overflow");
    let read = server.get("/v1/counters/wide").expect(200);
    assert_eq!(read.total(), 3 * i128::from(i64::MAX));
    assert!(read.text().contains(&format!("\"value\":{},", 3 * i128::from(i64::MAX))), "{}", read.text());
}

#[test]
fn cached_reads_tell_their_age() {
    let server = Server::start();
    server.set_rule(json!({ "match": "cached/", "aggregation": { "plugin": "cached-sum" } }));
    let target = format!("/v1/counters/{}", encode("cached/a"));
    server.add("cached/a", 1).expect(200);
    let first = server.get(&format!("{target}?read=cached&max_age_ms=60000")).expect(200).json();
    assert_eq!(first["value"], 1);
    server.add("cached/a", 1).expect(200);
    let again = server.get(&format!("{target}?read=cached&max_age_ms=60000")).expect(200).json();
    assert_eq!((&again["value"], &again["exact"]), (&json!(1), &json!(false)), "an older total is good enough");
    assert!(again["age_ms"].as_u64().is_some_and(|age| age <= 60_000), "{again}");
    let exact = server.get(&target).expect(200).json();
    assert_eq!((&exact["value"], &exact["exact"]), (&json!(2), &json!(true)));
    server.get(&format!("{target}?max_age_ms=5")).problem(422, "invalid_argument");
    server.get(&format!("{target}?stale=allow")).problem(422, "invalid_argument");
    server.get(&format!("{target}?read=cached&stale=yes")).problem(422, "invalid_argument");
    server.get(&format!("{target}?read=cached&stale=allow")).expect(200);
    server.get(&format!("{target}?read=cached&max_age_ms=-5")).problem(422, "invalid_argument");
}

#[test]
fn a_cached_read_is_no_older_than_asked() {
    let server = Server::start();
    server.set_rule(json!({ "match": "", "aggregation": { "plugin": "cached-sum" } }));
    server.add("c", 1).expect(200);
    server.get("/v1/counters/c?read=cached").expect(200);
    server.add("c", 1).expect(200);
    quipu_tests::until("a cached total is renewed after its age", || {
        let read = server.get("/v1/counters/c?read=cached&max_age_ms=50").expect(200).json();
        assert!(read["age_ms"].as_u64().is_some_and(|age| age <= 50), "{read}");
        read["value"] == 2
    });
}

#[test]
fn hard_ids_work_in_paths_and_queries() {
    let server = Server::start();
    for id in HARD_IDS {
        let (path, query) = (format!("/v1/counters/{}", encode(id)), format!("?id={}", encode(id)));
        server.post("/v1/counters", json!({ "id": id })).expect(201);
        assert_eq!(server.post(&format!("{path}/add"), json!({ "amount": 2 })).expect(200).json()["id"], id);
        assert_eq!(
            server.post(&format!("/v1/counter/add{query}"), json!({ "amount": 3 })).expect(200).json()["id"],
            id
        );
        assert_eq!(server.get(&path).expect(200).total(), 5, "{id}");
        assert_eq!(server.get(&format!("/v1/counter{query}")).expect(200).total(), 5, "{id}");
        let shards = |answer: Answer| answer.expect(200).json();
        let by_path = shards(server.get(&format!("{path}/shards")));
        assert_eq!(by_path, shards(server.get(&format!("/v1/counter/shards{query}"))), "{id}");
        let mut events = server.client().events(&format!("/v1/counter/watch{query}")).expect("a stream");
        assert_eq!(events.read().expect("a first event").expect("the stream goes on")["value"], 5);
        server.delete(&format!("/v1/counter{query}")).expect(204);
        server.get(&path).problem(404, "counter_not_found");
    }
}

#[test]
fn raw_utf_8_in_json_is_the_same_id_as_encoded_in_a_path() {
    let server = Server::start();
    let batch = json!({ "ops": HARD_IDS.iter().map(|id| json!({ "id": id, "amount": 7 })).collect::<Vec<_>>() });
    server.post("/v1/batch", batch).expect(200);
    for id in HARD_IDS {
        assert_eq!(server.total(id), 7, "{id}");
    }
}

#[test]
fn the_list_has_every_counter_once() {
    let server = Server::start();
    let ids: BTreeSet<String> = (0..2_500).map(|n| format!("list/{}/{n}", n % 3)).collect();
    let ops: Vec<Value> = ids.iter().map(|id| json!({ "id": id, "amount": 2 })).collect();
    server.post("/v1/batch", json!({ "ops": ops })).expect(200);
    server.add("other", 1).expect(200);
    for limit in ["", "&limit=1000", "&limit=7"] {
        let prefix = if limit == "&limit=7" { "list/1/1" } else { "list/" };
        let expected: BTreeSet<String> = ids.iter().filter(|id| id.starts_with(prefix)).cloned().collect();
        assert_eq!(listed(&server, prefix, limit), expected, "{limit}");
    }
    assert_eq!(listed(&server, "", "").len(), 2_501);
    assert_eq!(listed(&server, "nothing", ""), BTreeSet::new());
}

#[test]
fn the_list_is_whole_after_a_restart() {
    let server = Server::start();
    let ids: BTreeSet<String> = (0..2_500).map(|n| format!("é/{n}")).collect();
    let ops: Vec<Value> = ids.iter().map(|id| json!({ "id": id, "amount": 2 })).collect();
    server.post("/v1/batch", json!({ "ops": ops })).expect(200);
    server.delete(&format!("/v1/counters/{}", encode("é/77"))).expect(204);
    let (ended, launch) = server.stop();
    assert_eq!(ended.code(), 0, "{}", ended.output);
    let server = launch.start();
    server.add("é/new", 2).expect(200);
    let mut expected = ids;
    expected.remove("é/77");
    expected.insert("é/new".into());
    assert_eq!(listed(&server, "é/", "&limit=100"), expected);
}

/// Reads all pages. Each counter must have the total 2 (or 1 for "other").
fn listed(server: &Server, prefix: &str, limit: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/v1/counters?prefix={}{limit}{cursor}", encode(prefix))).expect(200).json();
        for counter in page["counters"].as_array().expect("a list") {
            let id = counter["id"].as_str().expect("an id").to_owned();
            assert_eq!(counter["value_str"], if id == "other" { "1" } else { "2" }, "{counter}");
            assert!(found.insert(id), "twice: {counter}");
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encode(next)),
            None => return found,
        }
    }
}

#[test]
fn limits_of_the_list_are_checked() {
    let server = Server::start();
    for limit in ["0", "1001", "-1", "x", ""] {
        server.get(&format!("/v1/counters?limit={limit}")).problem(422, "invalid_argument");
    }
    assert_eq!(server.get("/v1/counters").expect(200).json(), json!({ "counters": [], "next_cursor": null }));
}

#[test]
fn names_are_in_the_list() {
    let server = Server::start();
    server.post("/v1/counters", json!({ "id": "named", "name": "Likes & <more>" })).expect(201);
    server.add("named", 4).expect(200);
    let page = server.get("/v1/counters").expect(200).json();
    let counter = &page["counters"][0];
    assert_eq!(
        (&counter["id"], &counter["name"], &counter["value"]),
        (&json!("named"), &json!("Likes & <more>"), &json!(4))
    );
    assert!(counter["created_at"].is_string(), "{counter}");
}

#[test]
fn shards_show_the_partials() {
    let server = Server::start();
    for _ in 0..30 {
        server.add("c", 2).expect(200);
    }
    let partials = server.partials("c");
    assert!((1..=3).contains(&partials.len()), "{partials:?}");
    assert_eq!(partials.iter().map(|&(_, value)| value).sum::<i64>(), 60);
    let shards = server.get("/v1/counters/c/shards").expect(200).json();
    assert_eq!(shards["id"], "c");
    assert!(shards["partials"][0]["owner"].as_str().is_some_and(|owner| !owner.is_empty()), "{shards}");
    server.get("/v1/counters/other/shards").problem(404, "counter_not_found");
}

#[test]
fn a_removed_counter_starts_from_zero() {
    let server = Server::start();
    for _ in 0..20 {
        server.add("c", 3).expect(200);
    }
    assert_eq!(server.delete("/v1/counters/c").expect(204).body, b"");
    server.get("/v1/counters/c").problem(404, "counter_not_found");
    server.get("/v1/counters/c/shards").problem(404, "counter_not_found");
    server.delete("/v1/counters/c").expect(204);
    let server = server.crash_and_restart();
    server.get("/v1/counters/c").problem(404, "counter_not_found");
    server.add("c", 5).expect(200);
    assert_eq!(server.total("c"), 5);
    server.delete("/v1/counters/c").expect(204);
    server.post("/v1/counters", json!({ "id": "c", "name": "again" })).expect(201);
    assert_eq!(server.total("c"), 0);
}

#[test]
fn a_removal_beside_adds_loses_none_that_came_after() {
    let server = Server::start();
    for round in 0..20 {
        std::thread::scope(|scope| {
            scope.spawn(|| (0..20).for_each(|_| drop(server.add("c", 1).expect(200))));
            server.delete("/v1/counters/c").expect(204);
        });
        let before = server.get("/v1/counters/c");
        let before = if before.status == 404 { 0 } else { before.expect(200).total() };
        assert!((0..=20).contains(&before), "round {round}: {before}");
        server.add("c", 100).expect(200);
        assert_eq!(server.total("c"), before + 100, "round {round}");
        server.delete("/v1/counters/c").expect(204);
        server.get("/v1/counters/c").problem(404, "counter_not_found");
    }
}

#[test]
fn many_counters_are_read_at_once() {
    let server = Server::start();
    let ids: Vec<String> = (0..1_000).map(|n| format!("r{n}")).collect();
    let ops: Vec<Value> = ids.iter().zip(0..).map(|(id, n): (_, i64)| json!({ "id": id, "amount": n - 500 })).collect();
    server.post("/v1/batch", json!({ "ops": ops })).expect(200);
    let answer = server.post("/v1/read", json!({ "ids": ids })).expect(200).json();
    let results = answer["results"].as_array().expect("one result per id");
    assert_eq!(results.len(), 1_000);
    for (n, (result, id)) in (0i64..).zip(results.iter().zip(&ids)) {
        assert_eq!((&result["id"], &result["value"]), (&json!(id), &json!(n - 500)));
        assert_eq!(result["exact"], true);
    }
    let mixed = server.post("/v1/read", json!({ "ids": ["r7", "nobody", "", "r7"] })).expect(200).json();
    assert_eq!(mixed["results"][0]["value"], -493);
    assert_eq!(mixed["results"][1]["error"]["code"], "counter_not_found");
    assert_eq!(mixed["results"][2]["error"]["code"], "invalid_argument");
    assert_eq!(mixed["results"][3]["value"], -493);
    let many: Vec<&str> = vec!["r1"; 1_001];
    server.post("/v1/read", json!({ "ids": many })).problem(422, "invalid_argument");
    assert_eq!(server.post("/v1/read", json!({ "ids": [] })).expect(200).json(), json!({ "results": [] }));
}

#[test]
fn operations_can_be_asked_for() {
    let server = Server::start();
    let ask = |key: &str, id: &str| server.get(&format!("/v1/operations/{}?counter_id={}", encode(key), encode(id)));
    assert_eq!(ask("k/1 é", "a/b").expect(200).json()["outcome"], "not_found");
    server.add_with_key("a/b", -4, "k/1 é").expect(200);
    let found = ask("k/1 é", "a/b").expect(200).json();
    assert_eq!((&found["outcome"], &found["amount"]), (&json!("applied"), &json!(-4)), "{found}");
    assert_eq!(ask("k/1 é", "a").expect(200).json()["outcome"], "not_found", "keys belong to one counter");
    assert_eq!(ask("k", "a/b").expect(200).json()["outcome"], "not_found");
    server.get("/v1/operations/k").problem(400, "missing_parameter");
    let server = server.crash_and_restart();
    let found = server.get(&format!("/v1/operations/{}?counter_id=a%2Fb", encode("k/1 é"))).expect(200).json();
    assert_eq!(found["outcome"], "applied");
}
