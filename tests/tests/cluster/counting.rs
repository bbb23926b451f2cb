//! Counting on several nodes as on one: every node answers every request the same, whoever owns the shards.
//!
//! The tests of this file that harm nothing share a cluster, since it takes seconds to make one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use quipu_tests::cluster::SHARDS;
use quipu_tests::{Answer, Cluster, Server, encode, until};
use serde_json::{Value, json};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn replayed(answer: &Answer) -> bool {
    answer.header("idempotency-replayed") == Some("true")
}

/// The pages of a list, together.
fn listed(server: &Server, prefix: &str, limit: usize) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let target = format!("/v1/counters?prefix={}&limit={limit}{cursor}", encode(prefix));
        let page = server.get(&target).expect(200).json();
        let counters = page["counters"].as_array().expect("a list");
        assert!(counters.len() <= limit, "{page}");
        ids.extend(counters.iter().map(|counter| counter["id"].as_str().expect("an id").to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encode(next)),
            None => return ids,
        }
    }
}

#[test]
fn every_node_answers_for_the_cluster() {
    let Some(cluster) = Cluster::start(3) else { return };
    type Part = (&'static str, fn(&Cluster));
    let parts: [Part; 14] = [
        ("additions on every node read the same on all", additions_on_every_node_read_the_same_on_all),
        ("a read sees what was acknowledged anywhere before it", a_read_sees_what_was_acknowledged_anywhere_before_it),
        ("keys are known on every node", keys_are_known_on_every_node),
        ("one key sent everywhere at once counts once", one_key_sent_everywhere_at_once_counts_once),
        ("stock never goes below zero", stock_never_goes_below_zero),
        ("a bound waits until one shard has it all", a_bound_waits_until_one_shard_has_it_all),
        ("counters are made and removed anywhere", counters_are_made_and_removed_anywhere),
        ("one of many creations wins", one_of_many_creations_wins),
        ("lists are the same on every node", lists_are_the_same_on_every_node),
        ("batches reach every shard", batches_reach_every_shard),
        ("partials name their owners", partials_name_their_owners),
        ("a watch sees what others add", a_watch_sees_what_others_add),
        ("cached reads are not older than they say", cached_reads_are_not_older_than_they_say),
        ("compatible routes work on every node", compatible_routes_work_on_every_node),
    ];
    for (what, part) in parts {
        let began = Instant::now();
        part(&cluster);
        println!("{what}: {:?}", began.elapsed());
    }
    cluster.verify();
    let finalized = cluster.node("n2").post("/v1/cluster/finalize", Value::Null).expect(200).json();
    assert_eq!(finalized["held_back_by"], json!([]), "all nodes are of one version: {finalized}");
    assert_eq!(cluster.seen_by("n3")["format"], finalized["newest"]);
}

fn additions_on_every_node_read_the_same_on_all(cluster: &Cluster) {
    let mut expected = [0i128; 10];
    for n in 0..120usize {
        let (id, amount) = (n % 10, n as i64 * 37 - 1_000);
        let added = cluster.node(NODES[n % 3]).add(&format!("same/{id}"), amount).expect(200).json();
        assert_eq!((&added["amount"], &added["outcome"]), (&json!(amount), &json!("applied")), "{added}");
        expected[id] += i128::from(amount);
    }
    for node in NODES {
        for (id, expected) in expected.iter().enumerate() {
            let read = cluster.node(node).get(&format!("/v1/counters/same%2F{id}")).expect(200);
            assert_eq!((read.total(), &read.json()["exact"]), (*expected, &json!(true)), "same/{id} on {node}");
        }
    }
}

fn a_read_sees_what_was_acknowledged_anywhere_before_it(cluster: &Cluster) {
    for n in 1..=150usize {
        cluster.node(NODES[n % 3]).add("fresh", 1).expect(200);
        assert_eq!(cluster.node(NODES[(n / 3) % 3]).total("fresh"), n as i128);
    }
}

fn keys_are_known_on_every_node(cluster: &Cluster) {
    for n in 0..12 {
        let (id, key) = (format!("keyed/{n}"), format!("k{n}"));
        let first = cluster.node(NODES[n % 3]).add_with_key(&id, 5, &key).expect(200);
        assert!(!replayed(&first));
        for node in NODES {
            let server = cluster.node(node);
            let again = server.add_with_key(&id, 5, &key).expect(200);
            assert!(replayed(&again), "{id} on {node}");
            assert_eq!(again.json(), first.json(), "{id} on {node}");
            server.add_with_key(&id, 6, &key).problem(422, "key_reused");
            let asked = server.get(&format!("/v1/operations/{key}?counter_id={}", encode(&id))).expect(200).json();
            assert_eq!(asked["outcome"], "applied", "{id} on {node}: {asked}");
            let unknown = server.get(&format!("/v1/operations/no-{key}?counter_id={}", encode(&id))).expect(200);
            assert_eq!(unknown.json()["outcome"], "not_found", "{id} on {node}");
            assert_eq!(server.total(&id), 5, "{id} on {node}");
        }
    }
}

fn one_key_sent_everywhere_at_once_counts_once(cluster: &Cluster) {
    for n in 0..20 {
        let (id, key) = (format!("race/{n}"), format!("race-{n}"));
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let sent: Vec<_> =
                NODES.map(|node| scope.spawn(|| cluster.node(node).add_with_key(&id, 7, &key))).into_iter().collect();
            sent.into_iter().map(|sent| sent.join().expect("an answer").expect(200)).collect()
        });
        assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1, "{answers:?}");
        assert_eq!(cluster.node(NODES[n % 3]).total(&id), 7);
    }
}

fn stock_never_goes_below_zero(cluster: &Cluster) {
    const STOCK: i64 = 300;
    cluster.node("n1").set_rule(json!({ "match": "stock/", "spread": 1, "min": 0 }));
    for counter in ["stock/a", "stock/b", "stock/c"] {
        cluster.node("n2").add(counter, STOCK).expect(200);
        let (sold, refused) = (AtomicI64::new(0), AtomicI64::new(0));
        std::thread::scope(|scope| {
            for client in 0..24i64 {
                let (sold, refused) = (&sold, &refused);
                let mut connected = cluster.node(NODES[client as usize % 3]).client();
                scope.spawn(move || {
                    for n in 0..20 {
                        let amount = -(1 + (client + n) % 3);
                        let target = format!("/v1/counters/{}/add", encode(counter));
                        let body = json!({ "amount": amount }).to_string();
                        let answer = connected.call("POST", &target, &[], body.as_bytes()).expect("an answer");
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
        assert!(refused.into_inner() > 0, "24 clients asked for far more than there was");
        let left = i128::from(STOCK - sold.into_inner());
        assert!((0..3).contains(&left), "{left}");
        NODES.iter().for_each(|node| assert_eq!(cluster.node(node).total(counter), left, "{counter} on {node}"));
    }
}

fn a_bound_waits_until_one_shard_has_it_all(cluster: &Cluster) {
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    let shown = |node: &str| {
        let listed = cluster.node(node).get("/v1/rules").expect(200).json();
        let rules = listed["rules"].as_array().expect("a list").iter();
        rules
            .filter(|rule| rule["match"] == "bound/")
            .map(|rule| (rule["version"].clone(), rule["spread"].clone()))
            .next()
    };
    let bound = json!({ "match": "bound/", "spread": 1, "min": 0 });
    first.set_rule(json!({ "match": "bound/", "spread": SHARDS, "selection": { "plugin": "round-robin" } }));
    while second.get("/v1/counters/bound%2Fa").status == 404 || first.partials("bound/a").len() < 2 {
        NODES.iter().for_each(|node| drop(cluster.node(node).add("bound/a", 5).expect(200)));
    }
    let (before, total) = (shown("n2"), first.total("bound/a"));
    let problem = second.put("/v1/rules", bound.clone()).problem(409, "bound_unsettled");
    assert!(problem["detail"].as_str().expect("a sentence").contains("bound/a"), "{problem}");
    for node in NODES {
        assert_eq!(shown(node), before, "the rule before is in force on {node}");
        cluster.node(node).add("bound/a", -1).expect(200);
    }
    assert_eq!(second.total("bound/a"), total - 3);
    first.delete("/v1/counters/bound%2Fa").expect(204);
    second.put("/v1/rules", bound).expect(200);
    NODES.iter().for_each(|node| drop(cluster.node(node).add("bound/a", -1).problem(409, "bound")));
    NODES.iter().for_each(|node| drop(cluster.node(node).add("bound/a", 1).expect(200)));
    assert_eq!((first.partials("bound/a").len(), first.total("bound/a")), (1, 3));
}

fn counters_are_made_and_removed_anywhere(cluster: &Cluster) {
    for n in 0..9usize {
        let id = format!("made/{n}");
        let on = |step: usize| cluster.node(NODES[(n + step) % 3]);
        let target = format!("/v1/counters/{}", encode(&id));
        on(0).get(&target).problem(404, "counter_not_found");
        on(0).post("/v1/counters", json!({ "id": id, "name": "a name" })).expect(201);
        for node in NODES {
            assert_eq!(cluster.node(node).total(&id), 0, "{id} on {node}");
            cluster.node(node).post("/v1/counters", json!({ "id": id })).problem(409, "counter_exists");
        }
        (0..12).for_each(|step| drop(on(step).add(&id, 3).expect(200)));
        on(1).delete(&target).expect(204);
        NODES.iter().for_each(|node| drop(cluster.node(node).get(&target).problem(404, "counter_not_found")));
        on(2).add(&id, 2).expect(200);
        NODES.iter().for_each(|node| assert_eq!(cluster.node(node).total(&id), 2, "{id} on {node}"));
        on(0).post("/v1/counters", json!({ "id": id })).problem(409, "counter_exists");
    }
}

fn one_of_many_creations_wins(cluster: &Cluster) {
    for n in 0..10 {
        let id = format!("one/{n}");
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let made: Vec<_> = (0..6)
                .map(|n| cluster.node(NODES[n % 3]))
                .map(|server| scope.spawn(|| server.post("/v1/counters", json!({ "id": id })).status))
                .collect();
            made.into_iter().map(|made| made.join().expect("an answer")).collect()
        });
        let count = |wanted: u16| statuses.iter().filter(|&&status| status == wanted).count();
        assert_eq!((count(201), count(409)), (1, 5), "{statuses:?}");
    }
}

fn lists_are_the_same_on_every_node(cluster: &Cluster) {
    let mut expected = BTreeSet::new();
    for n in 0..60usize {
        let id = format!("list/{n}");
        cluster.node(NODES[n % 3]).add(&id, 1).expect(200);
        expected.insert(id);
    }
    for node in NODES {
        for limit in [7, 1_000] {
            let seen = listed(cluster.node(node), "list/", limit);
            assert_eq!(seen.len(), expected.len(), "each once, on {node}: {seen:?}");
            assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected, "on {node}");
        }
    }
    cluster.node("n2").delete("/v1/counters/list%2F7").expect(204);
    expected.remove("list/7");
    for node in NODES {
        assert_eq!(listed(cluster.node(node), "list/", 100).into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

fn batches_reach_every_shard(cluster: &Cluster) {
    const OPS: usize = 2_000;
    for (turn, node) in NODES.into_iter().enumerate() {
        let ops: Vec<Value> = (0..OPS).map(|n| json!({ "id": format!("b{}", n % 100), "amount": n })).collect();
        let body = json!({ "ops": ops }).to_string();
        // Sent twice with a key: the second counts nothing.
        let header = format!("batch-{node}");
        for again in [false, true] {
            let headers = [("idempotency-key", header.as_str())];
            let answer = cluster.node(node).call("POST", "/v1/batch", &headers, body.as_bytes()).expect(200).json();
            let results = answer["results"].as_array().expect("a list");
            assert_eq!(results.len(), OPS);
            for (n, result) in results.iter().enumerate() {
                assert_eq!((&result["id"], &result["amount"]), (&ops[n]["id"], &ops[n]["amount"]), "{result}");
                assert_eq!(result["outcome"], "applied", "{result}");
                assert_eq!(result["replayed"] == true, again, "{result}");
            }
        }
        let expected = (turn as i128 + 1) * (OPS as i128 - 1) * OPS as i128 / 2;
        for reader in NODES {
            assert_eq!(quipu_tests::load::sum(cluster.node(reader), "b", 100), expected, "on {reader}");
        }
    }
}

fn partials_name_their_owners(cluster: &Cluster) {
    cluster
        .node("n1")
        .set_rule(json!({ "match": "wide", "spread": SHARDS, "selection": { "plugin": "value-modulo" } }));
    for amount in 0..i64::from(SHARDS) {
        let added = cluster.node(NODES[amount as usize % 3]).add("wide", amount).expect(200).json();
        assert_eq!(added["shard"], amount, "{added}");
    }
    let owners = cluster.owners("n2");
    for node in NODES {
        let shards = cluster.node(node).get("/v1/counters/wide/shards").expect(200).json();
        let partials = shards["partials"].as_array().expect("a list");
        assert_eq!(partials.len(), SHARDS as usize, "{shards}");
        for partial in partials {
            let shard = partial["shard"].as_u64().expect("a shard") as usize;
            assert_eq!(partial["value"], shard, "{partial}");
            assert_eq!(partial["owner"].as_str(), owners[shard].as_deref(), "{partial} on {node}");
        }
    }
}

fn a_watch_sees_what_others_add(cluster: &Cluster) {
    cluster.node("n1").add("watched", 1).expect(200);
    for (watching, adding) in [("n2", "n3"), ("n3", "n1"), ("n1", "n2")] {
        let before = i64::try_from(cluster.node(adding).total("watched")).expect("small");
        let mut events = cluster.node(watching).client().events("/v1/counters/watched/watch").expect("a stream");
        let mut next =
            || events.read().expect("an event").expect("the stream goes on")["value"].as_i64().expect("a total");
        assert_eq!(next(), before);
        cluster.node(adding).add("watched", 10).expect(200);
        while next() < before + 10 {}
    }
}

fn cached_reads_are_not_older_than_they_say(cluster: &Cluster) {
    const MAX_AGE: Duration = Duration::from_millis(300);
    let target = format!("/v1/counters/cached?read=cached&max_age_ms={}", MAX_AGE.as_millis());
    // What was acknowledged, and when.
    let mut history = vec![(Instant::now(), 0)];
    let end = Instant::now() + Duration::from_secs(2);
    let mut total = 0;
    while Instant::now() < end {
        cluster.node(NODES[total as usize % 3]).add("cached", 1).expect(200);
        total += 1;
        history.push((Instant::now(), total));
        let began = Instant::now();
        let read = cluster.node(NODES[total as usize / 2 % 3]).get(&target).expect(200);
        let age = Duration::from_millis(read.json()["age_ms"].as_u64().expect("an age"));
        assert!(age <= MAX_AGE, "{}", read.text());
        // Milliseconds are rounded down.
        let age = age + Duration::from_millis(1);
        let known = history.iter().rev().find(|(at, _)| *at + age < began).map_or(0, |(_, total)| *total);
        assert!(read.total() >= known, "{} of {known} that were acknowledged {age:?} before", read.text());
        assert!(read.total() <= total);
    }
    let settled = Instant::now();
    for node in NODES {
        until("a cached read catches up", || cluster.node(node).get(&target).expect(200).total() == total);
    }
    println!("{total} additions; cached reads caught up on every node within {:?}", settled.elapsed());
}

fn compatible_routes_work_on_every_node(cluster: &Cluster) {
    let made = cluster.node("n1").post("/counter", json!({ "name": "likes" })).expect(200).json();
    let id = made["data"]["counter_id"].as_str().expect("an id").to_owned();
    assert_eq!(made["data"]["shards"].as_array().map(Vec::len), Some(3), "the live nodes: {made}");
    for n in 0..30 {
        let server = cluster.node(NODES[n % 3]);
        let route = if n % 5 == 4 { "/counter/decrement" } else { "/counter/increment" };
        assert_eq!(server.put(route, json!({ "counter_id": id })).expect(200).json()["success"], true);
    }
    for node in NODES {
        let read = cluster.node(node).get(&format!("/counter?counter_id={id}")).expect(200).json();
        assert_eq!(read["data"], json!({ "counter_id": id, "value": 18 }), "on {node}");
        cluster.node(node).put("/counter/decrement", json!({ "counter_id": "nobody" })).expect(400);
        let shard = cluster.node(node).put("/counter/shard/increment", json!({ "counter_id": "by-shard" })).expect(200);
        assert!(shard.json()["data"]["value"].as_i64() >= Some(1), "{}", shard.text());
    }
    assert_eq!(cluster.node("n2").total("by-shard"), 3);
    let (mut total, mut counts) = (0, vec![0i64; SHARDS as usize]);
    for value in -10i64..26 {
        let added = cluster.node(NODES[value.rem_euclid(3) as usize]).post("/increment", json!({ "value": value }));
        let shard = value.rem_euclid(i64::from(SHARDS)) as usize;
        (total, counts[shard]) = (total + value, counts[shard] + value);
        let expected = json!({ "success": true, "shardId": shard, "count": counts[shard] });
        assert_eq!(added.expect(200).json(), expected, "{value}");
    }
    NODES
        .iter()
        .for_each(|node| assert_eq!(cluster.node(node).get("/total").expect(200).json(), json!({ "total": total })));
}

#[test]
fn a_gateway_owns_nothing_and_counts() {
    let Some(mut cluster) = Cluster::start(2) else { return };
    cluster.add_launched("g1", cluster.launch("g1").flag("--role", "gateway"));
    for n in 1..=60 {
        cluster.node("g1").add("c", 1).expect(200);
        assert_eq!((cluster.node("g1").total("c"), cluster.node("n1").total("c")), (n, n));
    }
    assert!(replayed(&{
        cluster.node("g1").add_with_key("k", 1, "k").expect(200);
        cluster.node("n2").add_with_key("k", 1, "k").expect(200)
    }));
    let seen = cluster.seen_by("g1");
    assert_eq!(seen["health"], "ok", "{seen}");
    let nodes = seen["nodes"].as_array().expect("a list");
    let gateway = nodes.iter().find(|node| node["node"] == "g1").expect("it is listed");
    assert_eq!((&gateway["role"], &gateway["shards"]), (&json!("gateway"), &json!(0)), "{gateway}");
    cluster.kill("g1");
    assert_eq!(cluster.node("n1").total("c"), 60);
}

#[test]
fn another_number_of_shards_is_refused() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    cluster.node("n1").add("c", 1).expect(200);
    let Err(ended) = cluster.launch("n2").flag("--shards", "24").try_start() else { panic!("it has started") };
    assert_ne!(ended.code(), 0);
    assert!(ended.output.contains("12") && ended.output.contains("24"), "both numbers are named: {}", ended.output);
    cluster.stop("n1");
    cluster.start_again("n1");
    assert_eq!(cluster.node("n1").total("c"), 1);
}
