//! Policies uploaded to the running server: admitted or refused, put in force, contained, taken back, deleted.

use std::time::Duration;

use quipu_tests::components::{HOSTILE_WAYS, builtin, guest, push, variant};
use quipu_tests::{Launch, Server, encode, until, within};
use serde_json::{Value, json};

fn revision(answer: &Value) -> String {
    answer["revision"].as_str().expect("a revision").to_owned()
}

fn faults(server: &Server, plugin: &str) -> f64 {
    server.metrics().sum("quipu_policy_faults_total", &[("plugin", plugin)])
}

#[test]
fn an_uploaded_policy_counts_survives_a_crash_and_is_deleted() {
    let server = Server::start();
    let first = push(&server, "mine", &builtin("round-robin")).expect(201).json();
    assert_eq!(first["world"], "selection", "{first}");
    assert!(first["admission"]["checks"].as_array().is_some_and(|checks| checks.len() > 5), "{first}");
    let again = push(&server, "mine", &builtin("round-robin")).expect(200).json();
    assert_eq!(revision(&again), revision(&first));

    server.set_rule(json!({ "match": "mine/", "spread": 4, "selection": { "plugin": "mine" } }));
    (0..40).for_each(|_| drop(server.add("mine/c", 1).expect(200)));
    assert_eq!(server.partials("mine/c").len(), 4);

    let server = server.crash_and_restart();
    let added = server.add("mine/c", 1).expect(200).json();
    assert_eq!(added["policy"], json!({ "selection": revision(&first), "fallback": false }));
    assert_eq!(server.total("mine/c"), 41);

    let target = format!("/v1/plugins/mine/{}", encode(&revision(&first)));
    server.delete(&target).problem(409, "plugin_in_use");
    server.delete("/v1/rules?match=mine%2F").expect(204);
    server.delete(&target).expect(204);
    server.delete(&target).problem(404, "plugin_not_found");
    assert_eq!(server.total("mine/c"), 41);
}

#[test]
fn what_is_no_policy_is_refused_with_the_reason() {
    let server = Server::start();
    for name in [
        "core-module",
        "truncated",
        "empty",
        "another-world",
        "future-version",
        "wrong-types",
        "unknown-import",
        "thousands-of-imports",
        "nested-components",
        "memory-of-4-gib",
        "huge-table",
        "loop-in-start",
        "trap-in-start",
        "data-out-of-bounds",
    ] {
        let problem = push(&server, "hostile", &guest(name)).problem(422, "plugin_rejected");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.len() > 40 && detail.len() < 2_000, "{name}: {detail}");
        println!("{name}: {detail}");
    }
    push(&server, "hostile", b"").problem(422, "plugin_rejected");
    push(&server, "least-cpu", &builtin("round-robin")).problem(409, "plugin_name_taken");
    for name in ["../../etc/passwd", "Upper", "", &"x".repeat(65), "a/b"] {
        let status = push(&server, name, &builtin("round-robin")).status;
        assert!(matches!(status, 404 | 405 | 422), "{name}: {status}");
    }
    let listed = server.get("/v1/plugins").expect(200).json();
    assert!(
        listed["plugins"].as_array().is_some_and(|plugins| plugins.iter().all(|p| p["builtin"] == true)),
        "{listed}"
    );
    server.add("c", 1).expect(200);
}

#[test]
fn an_upload_that_stops_half_way_leaves_nothing() {
    let server = Server::start();
    let bytes = builtin("round-robin");
    let mut client = server.client();
    let headers = [("content-type", "application/wasm"), ("content-length", &*bytes.len().to_string())];
    let head = format!(
        "PUT /v1/plugins/half HTTP/1.1\r\nhost: {}\r\n{}: {}\r\n{}: {}\r\n\r\n",
        "localhost", headers[0].0, headers[0].1, headers[1].0, headers[1].1
    );
    use std::io::Write;
    client
        .socket()
        .write_all(head.as_bytes())
        .and_then(|()| client.socket().write_all(&bytes[..bytes.len() / 2]))
        .expect("sent");
    drop(client);
    server.get("/v1/plugins/half").problem(404, "plugin_not_found");
    push(&server, "half", &bytes).expect(201);
}

#[test]
fn a_misbehaving_policy_costs_no_addition() {
    let server = Server::start();
    push(&server, "hostile", &guest("misbehaves-selection")).expect(201);
    server.set_rule(json!({
        "match": "bad/", "spread": 4, "selection": { "plugin": "hostile", "config": "as-the-counter-says" },
    }));
    // Instances and the first faults are made; what comes after must not grow.
    let mut before = 0;
    for round in 0..20 {
        for how in HOSTILE_WAYS {
            for _ in 0..5 {
                server.add(&format!("bad/{how}"), 1).expect(200);
            }
        }
        if round == 4 {
            before = server.resident_bytes();
        }
    }
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more after 15 further rounds");
    for how in HOSTILE_WAYS {
        assert_eq!(server.total(&format!("bad/{how}")), 100, "{how}");
    }
    assert!(faults(&server, "hostile") > 100.0, "{}", faults(&server, "hostile"));
    let shown = server.get("/v1/plugins/hostile").expect(200).json();
    assert!(shown["plugins"][0]["status"]["last_fault"].is_string(), "{shown}");
    // Others are untouched.
    let added = server.add("good/c", 1).expect(200).json();
    assert_eq!(added["policy"]["fallback"], false, "{added}");
}

#[test]
fn a_canary_that_misbehaves_is_taken_back_with_the_reason() {
    let server = Server::start();
    let good = push(&server, "mine", &variant(&guest("misbehaves-selection"), 1)).expect(201).json();
    let bad = push(&server, "mine", &guest("misbehaves-selection")).expect(201).json();
    let rule = |canary: Value| {
        let mut rule = json!({
            "match": "c/", "spread": 3,
            "selection": { "plugin": "mine", "revision": revision(&good), "config": "as-the-counter-says" },
        });
        if !canary.is_null() {
            rule["canary"] = canary;
        }
        rule
    };
    server
        .put("/v1/rules", rule(json!({ "revision": revision(&bad), "percent": 100 })))
        .problem(422, "invalid_argument");
    server.put("/v1/rules", rule(json!({ "revision": "sha256:00", "percent": 50 }))).problem(404, "plugin_not_found");
    server.set_rule(rule(json!({ "revision": revision(&bad), "percent": 50 })));
    let ended = within(Duration::from_secs(20), "the canary is taken back", || {
        for n in 0..40 {
            let id = if n % 4 == 0 { format!("c/{n}/trap-in-select") } else { format!("c/{n}/fine") };
            server.add(&id, 1).expect(200);
        }
        let rules = server.get("/v1/rules").expect(200).json();
        let rule = rules["rules"].as_array()?.iter().find(|rule| rule["match"] == "c/")?.clone();
        rule["canary_ended"].as_str().map(str::to_owned).filter(|_| rule["canary"].is_null())
    });
    assert!(ended.contains("trap"), "{ended}");
}

#[test]
fn a_shadow_is_compared_and_changes_nothing() {
    let server = Server::start();
    let one = push(&server, "mine", &builtin("rendezvous")).expect(201).json();
    let other = push(&server, "mine", &builtin("round-robin")).expect(201).json();
    server.set_rule(json!({
        "match": "s/", "spread": 4, "selection": { "plugin": "mine", "revision": revision(&one) }, "shadow": revision(&other),
    }));
    (0..40).for_each(|_| drop(server.add("s/c", 1).expect(200)));
    assert_eq!(server.partials("s/c").len(), 1, "rendezvous alone chose");
    let rules = server.get("/v1/rules").expect(200).json();
    let rule = rules["rules"].as_array().and_then(|rules| rules.iter().find(|rule| rule["match"] == "s/")).cloned();
    let shadowed = &rule.expect("the rule")["shadowed"];
    assert_eq!(shadowed["compared"], 40, "{shadowed}");
    assert!(shadowed["different"].as_u64() >= Some(20), "{shadowed}");
}

#[test]
fn policies_are_switched_off_in_an_emergency() {
    let server = Server::start();
    server.put("/v1/policies", json!({ "enabled": false })).expect(200);
    assert_eq!(server.add("c", 1).expect(200).json()["policy"]["fallback"], true);
    let server = server.crash_and_restart();
    assert_eq!(server.get("/v1/policies").expect(200).json(), json!({ "enabled": false }));
    assert_eq!(server.add("c", 1).expect(200).json()["policy"]["fallback"], true);
    server.put("/v1/policies", json!({ "enabled": true })).expect(200);
    assert_eq!(server.add("c", 1).expect(200).json()["policy"]["fallback"], false);
    assert_eq!(server.total("c"), 3);
}

#[test]
fn a_policy_keeps_a_table_in_storage() {
    let server = Server::start();
    push(&server, "table", &guest("keeps-table")).expect(201);
    server.set_rule(json!({ "match": "t/", "spread": 4, "selection": { "plugin": "table", "grants": ["storage"] } }));
    let (mut added, mut served) = (0, 0);
    until("the policy chose for 40 additions", || {
        added += 1;
        served += usize::from(server.add("t/c", 1).expect(200).json()["policy"]["fallback"] == false);
        served == 40
    });
    assert_eq!(server.partials("t/c").len(), 4, "the rarest candidate is chosen each time");
    let server = server.crash_and_restart();
    server.add("t/c", 1).expect(200);
    assert_eq!(server.total("t/c"), added + 1);
}

#[test]
fn without_the_token_nothing_is_uploaded() {
    let server = Launch::new().flag("--admin-token", "secret").start();
    push(&server, "mine", &builtin("round-robin")).problem(401, "unauthorized");
    let wrong = [("authorization", "Bearer wrong"), ("content-type", "application/wasm")];
    server.call("PUT", "/v1/plugins/mine", &wrong, &builtin("round-robin")).problem(403, "forbidden");
    server.put("/v1/policies", json!({ "enabled": false })).problem(401, "unauthorized");
    let right = [("authorization", "Bearer secret"), ("content-type", "application/wasm")];
    server.call("PUT", "/v1/plugins/mine", &right, &builtin("round-robin")).expect(201);
}

#[test]
fn a_policy_is_asked_again_when_an_operator_releases_it() {
    let server = Server::start();
    let pushed = push(&server, "mine", &guest("misbehaves-selection")).expect(201).json();
    for (prefix, config) in [("bad/", "as-the-counter-says"), ("good/", "")] {
        server.set_rule(json!({ "match": prefix, "spread": 3, "selection": { "plugin": "mine", "config": config } }));
    }
    let breaker = || server.get("/v1/plugins/mine").expect(200).json()["plugins"][0]["status"]["breaker"].clone();
    let fallback = |id: &str| server.add(id, 1).expect(200).json()["policy"]["fallback"] == true;
    until("the breaker opens", || {
        fallback("bad/trap-in-select");
        breaker() == "open"
    });
    assert!(!fallback("good/c"), "the same revision answers under a rule where nothing is wrong");
    // Each failed probe doubles the pause; three of them are longer than what follows takes.
    until("the pause is long", || {
        fallback("bad/trap-in-select");
        faults(&server, "mine") > 50.0 && breaker() == "open"
    });
    let ran = server.quipu(&["plugin", "release", "mine"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("is closed"), "{ran:?}");
    assert!(!fallback("bad/fine"));
    let target = format!("/v1/plugins/mine/{}/release", encode(&revision(&pushed)));
    let shown = server.call("POST", &target, &[], b"").expect(200).json();
    assert_eq!(shown["status"]["breaker"], "closed", "{shown}");
    server.call("POST", "/v1/plugins/mine/sha256:00/release", &[], b"").problem(404, "plugin_not_found");
    server.call("POST", "/v1/plugins/nobody/sha256:00/release", &[], b"").problem(404, "plugin_not_found");
    assert_eq!(server.quipu(&["plugin", "release", "nobody"]).code, 1);
}

#[test]
fn a_config_that_belongs_on_the_pool_is_there_after_a_restart() {
    let server = Server::start();
    push(&server, "mine", &guest("misbehaves-selection")).expect(201);
    server.set_rule(json!({ "match": "slow/", "spread": 3, "selection": { "plugin": "mine", "config": "busy-3-ms" } }));
    // Inline it would miss the deadline of 1 ms each time.
    let served = |server: &Server| {
        let answers = (0..20).map(|_| server.add("slow/c", 1).expect(200).json());
        answers.filter(|added| added["policy"]["fallback"] == false).count()
    };
    let before = served(&server);
    assert!(before >= 15, "{before} of 20 before");
    let server = server.crash_and_restart();
    let after = served(&server);
    assert!(after >= 15, "{after} of 20 after");
}

#[test]
fn cached_revisions_are_ready_at_once_after_a_restart() {
    let server = Server::start();
    let base = guest("misbehaves-selection");
    for n in 0..10 {
        push(&server, "mine", &variant(&base, n)).expect(201);
    }
    let server = server.crash_and_restart();
    let said = server.output();
    let ready: Vec<f64> = said
        .lines()
        .filter_map(|line| line.split("is ready after ").nth(1)?.split(" ms").next()?.parse().ok())
        .collect();
    println!("ten cached revisions of {} bytes are ready after {ready:?} ms", base.len());
    assert_eq!(ready.len(), 10, "{said}");
    assert_eq!(server.get("/v1/plugins/mine").expect(200).json()["plugins"].as_array().map(Vec::len), Some(10));
}

#[test]
fn the_largest_component_is_a_setting() {
    let server = Launch::new().flag("--plugin-size-mib", "1").start();
    push(&server, "mine", &builtin("round-robin")).expect(201);
    push(&server, "mine", &vec![0; (1 << 20) + 1]).problem(413, "body_too_large");
}
