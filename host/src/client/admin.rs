//! `quipu cluster`, `quipu plugin …` and `quipu rule …`

use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::Method;

use super::api::{Api, Call, encode};
use super::error::Error;
use super::output::{Colour, Output, items, left, printable, right, text};
use crate::cli::{RuleCommand, RuleSet};

pub fn cluster(api: &Api, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = api.call(Call::new(Method::GET, "/v1/cluster"))?;
    if output.style.json {
        return output.json(&answer.text);
    }
    let health = text(&answer.json, "health");
    let colour = if health == "ok" { Colour::Green } else { Colour::Red };
    output.line(&format!("health  {}", output.paint(colour, &printable(&health))))?;
    output.line(&format!("format  {}", text(&answer.json, "format")))?;
    output.line(&format!("rules   {}", items(&answer.json, "rules").len()))?;
    output.line("")?;
    let node = |n: &Value| {
        let cpu = n["cpu"].as_f64().map(|share| format!("{:.0} %", share * 100.0)).unwrap_or_default();
        let queued = output.number(&text(n, "queued"));
        vec![text(n, "node"), text(n, "address"), text(n, "version"), cpu, queued, yes_no(&n["ready"])]
    };
    let nodes: Vec<_> = items(&answer.json, "nodes").iter().map(node).collect();
    let columns = [left("NODE"), left("ADDRESS"), left("VERSION"), right("CPU"), right("QUEUED"), left("READY")];
    output.table(&columns, &nodes)?;
    for node in items(&answer.json, "nodes") {
        if let Some(line) = stepped(node) {
            output.line(&output.paint(Colour::Red, &line))?;
        }
    }
    output.line("")?;
    let shard = |s: &Value| {
        let (counters, journal) = (output.number(&text(s, "counters")), output.number(&text(s, "journal_position")));
        vec![text(s, "shard"), text(s, "owner"), text(s, "epoch"), counters, journal]
    };
    let shards: Vec<_> = items(&answer.json, "shards").iter().map(shard).collect();
    output.table(&[right("SHARD"), left("OWNER"), right("EPOCH"), right("COUNTERS"), right("JOURNAL")], &shards)
}

/// What became of a node's wall clock, when somebody set it.
fn stepped(node: &Value) -> Option<String> {
    let clock = &node["clock"];
    let steps = clock["steps"].as_u64().filter(|&steps| steps > 0)?;
    let times = if steps == 1 { "once".to_owned() } else { format!("{steps} times") };
    let offset_ms = clock["offset_ms"].as_i64().unwrap_or_default();
    let by = humantime::format_duration(Duration::from_secs(offset_ms.unsigned_abs() / 1_000));
    let direction = if offset_ms < 0 { "behind" } else { "ahead" };
    Some(format!("The wall clock of {} was set {times} and is {by} {direction} now", text(node, "node")))
}

/// Fails when something is not served as it was recounted.
pub fn verify(api: &Api, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = api.call_patiently(Call::new(Method::POST, "/v1/cluster/verify"))?;
    let different = answer.json["different"].as_u64().unwrap_or_default();
    if output.style.json {
        output.json(&answer.text)?;
    } else {
        let number = |name| output.number(&text(&answer.json, name));
        let recounted = format!("{} partials on {} shards recounted", number("partials"), number("shards"));
        output.line(&recounted)?;
        let row = |d: &Value| {
            let value = |name| d[name].as_i64().map_or("none".into(), |value| value.to_string());
            vec![text(d, "id"), text(d, "shard"), value("recounted"), value("served")]
        };
        let rows: Vec<_> = items(&answer.json, "differences").iter().map(row).collect();
        if !rows.is_empty() {
            output.table(&[left("COUNTER"), right("SHARD"), right("RECOUNTED"), right("SERVED")], &rows)?;
        }
    }
    match different {
        0 => Ok(()),
        _ => Err(Error::Failed(format!("{different} partials are not served as they were recounted"))),
    }
}

/// Fails when older nodes hold the newest format back and nothing was raised.
pub fn finalize(api: &Api, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = api.call(Call::new(Method::POST, "/v1/cluster/finalize"))?;
    let [format, before] = ["format", "before"].map(|name| text(&answer.json, name));
    let held_back_by = items(&answer.json, "held_back_by");
    if output.style.json {
        output.json(&answer.text)?;
    } else {
        output.line(&match (format == before, held_back_by.is_empty()) {
            (false, _) => format!("format {format} is written from now on, instead of {before}"),
            (true, true) => format!("format {format} is written already, the newest that any node reads"),
            (true, false) => format!("format {format} stays"),
        })?;
        let row = |node: &Value| vec![text(node, "node"), text(node, "version"), text(node, "reads_up_to")];
        let rows: Vec<_> = held_back_by.iter().map(row).collect();
        if !rows.is_empty() {
            output.line("nodes that do not read a newer one:")?;
            output.table(&[left("NODE"), left("VERSION"), right("READS UP TO")], &rows)?;
        }
    }
    match format == before && !held_back_by.is_empty() {
        true => Err(Error::Failed("older nodes hold the newest format back; upgrade them first".into())),
        false => Ok(()),
    }
}

fn yes_no(value: &Value) -> String {
    value.as_bool().map_or("", |yes| if yes { "yes" } else { "no" }).to_owned()
}

pub fn plugin_list(api: &Api, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = api.call(Call::new(Method::GET, "/v1/plugins"))?;
    if output.style.json {
        return output.json(&answer.text);
    }
    let row = |plugin: &Value| {
        let status = &plugin["status"];
        vec![
            text(plugin, "name"),
            text(plugin, "world"),
            short_revision(&text(plugin, "revision")),
            output.number(&text(plugin, "size_bytes")),
            output.number(&text(status, "calls")),
            output.number(&faults(status).iter().map(|(_, count)| count).sum::<u64>().to_string()),
            text(status, "breaker"),
            used_by(plugin),
        ]
    };
    let rows: Vec<_> = items(&answer.json, "plugins").iter().map(row).collect();
    let columns = [
        left("PLUGIN"),
        left("WORLD"),
        left("REVISION"),
        right("BYTES"),
        right("CALLS"),
        right("FAULTS"),
        left("BREAKER"),
        left("RULES"),
    ];
    output.table(&columns, &rows)
}

pub fn plugin_show(api: &Api, name: &str, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = api.call(Call::new(Method::GET, &format!("/v1/plugins/{}", encode(name))))?;
    if output.style.json {
        return output.json(&answer.text);
    }
    for plugin in items(&answer.json, "plugins") {
        let title = format!("{} {}", text(plugin, "name"), text(plugin, "revision"));
        output.line(&output.paint(Colour::Bold, &printable(&title)))?;
        for (label, value) in plugin_facts(plugin, output) {
            if !value.is_empty() {
                output.line(&format!("  {label:<13}{}", printable(&value)))?;
            }
        }
    }
    Ok(())
}

fn plugin_facts(plugin: &Value, output: &Output<'_>) -> Vec<(&'static str, String)> {
    let status = &plugin["status"];
    let imports: Vec<_> = items(plugin, "imports").iter().filter_map(Value::as_str).collect();
    let faults: Vec<_> = faults(status).iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let latency = ["p50", "p90", "p99", "max"].iter().filter_map(|name| {
        let nanos = status["latency"][format!("{name}_ns")].as_f64()?;
        Some(format!("{name} {:.2} µs", nanos / 1e3))
    });
    vec![
        ("world", text(plugin, "world")),
        ("bytes", output.number(&text(plugin, "size_bytes"))),
        ("runs", text(plugin, "runs")),
        ("imports", imports.join(", ")),
        ("rules", used_by(plugin)),
        ("calls", output.number(&text(status, "calls"))),
        ("faults", if faults.is_empty() { "none".into() } else { faults.join(", ") }),
        ("last fault", text(status, "last_fault")),
        ("latency", latency.collect::<Vec<_>>().join(", ")),
        ("memory peak", output.number(&text(status, "memory_peak_bytes"))),
        ("breaker", text(status, "breaker")),
    ]
}

/// Kinds of faults that came, with their counts.
fn faults(status: &Value) -> Vec<(&str, u64)> {
    let kinds = status["faults"].as_object().into_iter().flatten();
    kinds.filter_map(|(kind, count)| Some((kind.as_str(), count.as_u64()?))).filter(|(_, count)| *count > 0).collect()
}

/// Prefixes of the rules; the empty one needs quotes to be seen.
fn used_by(plugin: &Value) -> String {
    let rules = items(plugin, "used_by").iter().filter_map(Value::as_str);
    rules.map(quoted_if_empty).collect::<Vec<_>>().join(", ")
}

fn quoted_if_empty(prefix: &str) -> String {
    if prefix.is_empty() { "\"\"".into() } else { prefix.into() }
}

/// Enough of a digest to tell revisions apart.
fn short_revision(revision: &str) -> String {
    revision.strip_prefix("sha256:").unwrap_or(revision).chars().take(12).collect()
}

pub fn rule(api: &Api, command: &RuleCommand, output: &mut Output<'_>) -> Result<(), Error> {
    match command {
        RuleCommand::List => rule_list(api, output),
        RuleCommand::Set(set) => {
            let call = Call::new(Method::PUT, "/v1/rules").body(rule_body(set));
            rule_changed(api, if_match(call, set.if_version), "set", &set.prefix, output)
        }
        RuleCommand::Delete { prefix, if_version } => {
            let call = Call::new(Method::DELETE, "/v1/rules").query("match", prefix);
            rule_changed(api, if_match(call, *if_version), "deleted", prefix, output)
        }
        RuleCommand::Rollback { prefix } => {
            let call = Call::new(Method::POST, "/v1/rules/rollback").query("match", prefix);
            rule_changed(api, call, "rolled back", prefix, output)
        }
    }
}

fn if_match(call: Call, version: Option<u64>) -> Call {
    call.header("if-match", version.map(|version| format!("\"{version}\"")))
}

/// What is not given is left to the server's defaults.
fn rule_body(set: &RuleSet) -> Value {
    let mut body = json!({ "match": set.prefix });
    for (member, policy, config) in [
        ("selection", &set.selection, &set.selection_config),
        ("aggregation", &set.aggregation, &set.aggregation_config),
    ] {
        let Some(policy) = policy else { continue };
        body[member] = match policy.split_once('@') {
            Some((plugin, revision)) => json!({ "plugin": plugin, "revision": revision }),
            None => json!({ "plugin": policy }),
        };
        if let Some(config) = config {
            body[member]["config"] = config.as_str().into();
        }
    }
    for (member, value) in [
        ("spread", set.spread.map(Value::from)),
        ("spread_limit", set.spread_limit.map(Value::from)),
        ("durability", set.durability.as_deref().map(Value::from)),
        ("min", set.min.map(Value::from)),
        ("max", set.max.map(Value::from)),
    ] {
        if let Some(value) = value {
            body[member] = value;
        }
    }
    body
}

fn rule_changed(api: &Api, call: Call, done: &str, prefix: &str, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = api.call(call)?;
    if output.style.json {
        return if answer.text.is_empty() { Ok(()) } else { output.json(&answer.text) };
    }
    let version = text(&answer.json, "version");
    let version = if version.is_empty() { version } else { format!(" (version {version})") };
    output.line(&format!("rule {}: {done}{version}", printable(&quoted_if_empty(prefix))))
}

fn rule_list(api: &Api, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = api.call(Call::new(Method::GET, "/v1/rules"))?;
    if output.style.json {
        return output.json(&answer.text);
    }
    let policy = |rule: &Value, member: &str| {
        let revision = short_revision(&text(&rule[member], "revision"));
        format!("{}@{revision}", text(&rule[member], "plugin")).trim_end_matches('@').to_owned()
    };
    let row = |rule: &Value| {
        vec![
            quoted_if_empty(&text(rule, "match")),
            policy(rule, "selection"),
            policy(rule, "aggregation"),
            text(rule, "spread"),
            text(rule, "durability"),
            output.number(&text(rule, "min")),
            output.number(&text(rule, "max")),
            text(rule, "version"),
        ]
    };
    let rows: Vec<_> = items(&answer.json, "rules").iter().map(row).collect();
    let columns = [
        left("MATCH"),
        left("SELECTION"),
        left("AGGREGATION"),
        right("SPREAD"),
        left("DURABILITY"),
        right("MIN"),
        right("MAX"),
        right("VERSION"),
    ];
    output.table(&columns, &rows)
}
