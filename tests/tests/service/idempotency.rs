//! Idempotency keys: a retry counts once, whatever happened in between.

use quipu_tests::{Answer, Launch, Server, encode};
use serde_json::json;

const REPLAYED: &str = "idempotency-replayed";

fn replayed(answer: &Answer) -> bool {
    answer.header(REPLAYED) == Some("true")
}

#[test]
fn a_replay_answers_the_same_and_counts_once() {
    let server = Server::start();
    let first = server.add_with_key("c", 5, "k").expect(200);
    assert!(!replayed(&first));
    server.add("c", 100).expect(200);
    for _ in 0..3 {
        let again = server.add_with_key("c", 5, "k").expect(200);
        assert!(replayed(&again));
        assert_eq!(again.json(), first.json());
    }
    assert_eq!(server.total("c"), 105);
}

#[test]
fn keyed_answers_say_that_no_policy_chose() {
    let server = Server::start();
    let policy = server.add_with_key("c", 5, "k").expect(200).json()["policy"].clone();
    assert_eq!(policy, json!({ "selection": null, "reason": "idempotency_key" }));
}

#[test]
fn a_key_stands_for_one_operation() {
    let server = Server::start();
    server.add_with_key("c", 5, "k").expect(200);
    for answer in [
        server.add_with_key("c", 6, "k"),
        server.add_with_key("c", -5, "k"),
        server.call("DELETE", "/v1/counters/c", &[("idempotency-key", "k")], b""),
        server.call("POST", "/v1/counters", &[("idempotency-key", "k")], br#"{"id":"c"}"#),
    ] {
        assert_eq!(answer.problem(422, "key_reused")["outcome"], "not_applied");
    }
    assert_eq!(server.total("c"), 5);
}

#[test]
fn keys_belong_to_one_counter() {
    let server = Server::start();
    for (id, amount) in [("a", 1), ("b", 2), ("a/b", 3), ("A", 4)] {
        let answer = server.add_with_key(id, amount, "k").expect(200);
        assert!(!replayed(&answer), "{id}");
    }
    for (id, amount) in [("a", 1), ("b", 2), ("a/b", 3), ("A", 4)] {
        assert!(replayed(&server.add_with_key(id, amount, "k").expect(200)), "{id}");
        assert_eq!(server.total(id), amount.into(), "{id}");
    }
}

#[test]
fn keys_survive_crashes_and_restarts() {
    let mut server = Server::start();
    let first = server.add_with_key("c", 7, "k").expect(200).json();
    for round in 0..3 {
        server = server.crash_and_restart();
        let again = server.add_with_key("c", 7, "k").expect(200);
        assert!(replayed(&again), "crash {round}");
        assert_eq!(again.json(), first);
        let (ended, launch) = server.stop();
        assert_eq!(ended.code(), 0, "{}", ended.output);
        server = launch.start();
        assert!(replayed(&server.add_with_key("c", 7, "k").expect(200)), "restart {round}");
        server.add_with_key("c", 8, "k").problem(422, "key_reused");
    }
    assert_eq!(server.total("c"), 7);
}

#[test]
fn keys_hold_under_every_rule() {
    let server = Server::start();
    server.add_with_key("c", 7, "k").expect(200);
    for rule in [
        json!({ "match": "c", "spread": 12, "selection": { "plugin": "random" } }),
        json!({ "match": "c", "spread": 1 }),
        json!({ "match": "", "durability": "relaxed" }),
    ] {
        server.set_rule(rule);
        assert!(replayed(&server.add_with_key("c", 7, "k").expect(200)));
    }
    server.delete("/v1/rules?match=c").expect(204);
    let keyed = server.add_with_key("c", 1, "relaxed").expect(200).json();
    assert_eq!(keyed["outcome"], "applied", "keyed additions are durable under a relaxed rule");
    assert_eq!(server.total("c"), 8);
}

#[test]
fn a_removed_counter_keeps_its_keys() {
    let server = Server::start();
    server.add_with_key("c", 7, "k").expect(200);
    server.delete("/v1/counters/c").expect(204);
    assert!(replayed(&server.add_with_key("c", 7, "k").expect(200)));
    server.get("/v1/counters/c").problem(404, "counter_not_found");
}

#[test]
fn operations_of_a_batch_have_keys_of_their_own() {
    let server = Server::start();
    let body = json!({ "ops": [{ "id": "a", "amount": 1 }, { "id": "a", "amount": 2 }, { "id": "b", "amount": 4, "key": "own" }] });
    let send = || {
        server.call("POST", "/v1/batch", &[("idempotency-key", "K")], body.to_string().as_bytes()).expect(200).json()
    };
    let first = send();
    assert!(
        first["results"].as_array().expect("a list").iter().all(|result| result.get("replayed").is_none()),
        "{first}"
    );
    let again = send();
    assert!(again["results"].as_array().expect("a list").iter().all(|result| result["replayed"] == true), "{again}");
    assert_eq!((server.total("a"), server.total("b")), (3, 4));
    assert!(replayed(&server.add_with_key("a", 2, "K/1").expect(200)), "K/i is the key of operation i");
    assert!(replayed(&server.add_with_key("b", 4, "own").expect(200)), "a key of its own comes before the header's");
    let asked = server.get(&format!("/v1/operations/{}?counter_id=a", encode("K/0"))).expect(200).json();
    assert_eq!((&asked["outcome"], &asked["amount"]), (&json!("applied"), &json!(1)));
}

#[test]
fn two_operations_of_a_batch_with_one_key_count_once() {
    let server = Server::start();
    let op = json!({ "id": "c", "amount": 3, "key": "k" });
    let other = json!({ "id": "c", "amount": 4, "key": "k" });
    let answer = server.post("/v1/batch", json!({ "ops": [op, op, other, op] })).expect(200).json();
    let results = answer["results"].as_array().expect("a list");
    assert_eq!(results[2]["error"]["code"], "key_reused", "{answer}");
    assert!([0, 1, 3].iter().all(|&at: &usize| results[at]["outcome"] == "applied"), "{answer}");
    assert_eq!(server.total("c"), 3);
}

#[test]
fn creating_and_removing_can_be_repeated() {
    let server = Server::start();
    let create =
        |key: &str| server.call("POST", "/v1/counters", &[("idempotency-key", key)], br#"{"id":"c","name":"n"}"#);
    let remove = |key: &str| server.call("DELETE", "/v1/counters/c", &[("idempotency-key", key)], b"");
    create("create-1").expect(201);
    create("create-1").expect(201);
    create("create-2").problem(409, "counter_exists");
    server.add("c", 5).expect(200);
    create("create-1").expect(201);
    assert_eq!(server.total("c"), 5, "a repeated creation changes nothing");
    remove("remove-1").expect(204);
    server.add("c", 9).expect(200);
    assert!(replayed(&remove("remove-1").expect(204)));
    assert_eq!(server.total("c"), 9, "a repeated removal removes nothing that was counted since");
    remove("remove-2").expect(204);
    server.get("/v1/counters/c").problem(404, "counter_not_found");
}

#[test]
fn refusals_are_not_remembered() {
    let server = Server::start();
    server.set_rule(json!({ "match": "stock", "spread": 1, "min": 0 }));
    server.add_with_key("stock", -1, "k").problem(409, "bound");
    server.add("stock", 1).expect(200);
    assert!(!replayed(&server.add_with_key("stock", -1, "k").expect(200)));
    assert!(replayed(&server.add_with_key("stock", -1, "k").expect(200)));
    assert_eq!(server.total("stock"), 0);
}

#[test]
fn a_key_is_forgotten_after_its_window() {
    let server = Launch::new().flag("--idempotency-window", "1s").start();
    let mut counted = 0i128;
    server.add_with_key("c", 1, "k").expect(200);
    counted += 1;
    quipu_tests::until("the key counts again", || {
        let again = !replayed(&server.add_with_key("c", 1, "k").expect(200));
        counted += i128::from(again);
        again
    });
    assert_eq!(server.total("c"), counted);
    let server = server.crash_and_restart();
    assert_eq!(server.total("c"), counted);
}

#[test]
fn many_clients_with_one_key_count_once() {
    let server = Server::start();
    for round in 0..10 {
        let key = format!("k{round}");
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..64).map(|_| scope.spawn(|| server.add_with_key("c", 1, &key).expect(200))).collect();
            clients.into_iter().map(|client| client.join().expect("an answer")).collect()
        });
        assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1, "round {round}");
        assert!(answers.iter().all(|answer| answer.json() == answers[0].json()), "round {round}");
    }
    assert_eq!(server.total("c"), 10);
}

#[test]
fn keys_are_checked() {
    let server = Server::start();
    server.add_with_key("c", 1, &"k".repeat(128)).expect(200);
    for key in ["", &"k".repeat(129)] {
        server.add_with_key("c", 1, key).problem(422, "invalid_argument");
    }
    let problem =
        server.call("POST", "/v1/counters", &[("idempotency-key", "k")], b"{}").problem(422, "invalid_argument");
    assert!(problem["detail"].as_str().expect("a sentence").contains("id"), "{problem}");
    assert_eq!(server.total("c"), 1);
}
