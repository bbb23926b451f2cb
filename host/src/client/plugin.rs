//! `quipu plugin push|test|activate|rollback|release|delete|logs|switch`: the way of a policy into production and back.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Value, json};
use ureq::http::Method;

use super::api::{Api, Call, encode};
use super::error::Error;
use super::output::{Colour, Output, items, printable, text};
use super::{admin, author, recording};
use crate::cli::{PluginCommand, PushArgs, RuleCommand, TestArgs};
use crate::limits;
use crate::policy::{self, admission};

/// `api` is asked for by the commands that need a server.
pub fn run(
    api: impl Fn() -> Result<Api, Error>,
    command: &PluginCommand,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    match command {
        PluginCommand::New(new) => author::new_project(new, output),
        PluginCommand::Test(args) => test(args, output),
        PluginCommand::List => admin::plugin_list(&api()?, output),
        PluginCommand::Show { name } => admin::plugin_show(&api()?, name, output),
        PluginCommand::Push(args) => push(&api()?, args, output),
        PluginCommand::Activate { plugin, prefix, canary } => activate(&api()?, plugin, prefix, *canary, output),
        PluginCommand::Rollback { prefix } => {
            admin::rule(&api()?, &RuleCommand::Rollback { prefix: prefix.clone() }, output)
        }
        PluginCommand::Delete { name, revision } => delete(&api()?, name, revision, output),
        PluginCommand::Release { plugin } => release(&api()?, plugin, output),
        PluginCommand::Record(args) => recording::record(&api()?, args, output),
        PluginCommand::Replay(args) => recording::replay(args, output),
        PluginCommand::Logs { name, follow } => logs(&api()?, name, *follow, output),
        PluginCommand::Switch { to } => switch(&api()?, to.as_deref().map(|to| to == "on"), output),
    }
}

/// Reads a component. The largest that a server may be set to take is the limit here.
pub(super) fn read_component(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |why: std::io::Error| Error::Usage(format!("{}: {why}", path.display()));
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > limits::PLUGIN_MIB_RANGE.end() << 20 {
        let max = limits::PLUGIN_MIB_RANGE.end() << 20;
        return Err(Error::Usage(format!("{}: {bytes} bytes; a component has at most {max}", path.display())));
    }
    std::fs::read(path).map_err(unreadable)
}

/// Reports how much of the body has gone out.
struct Progress<'a, 'o> {
    bytes: &'a [u8],
    sent: usize,
    shown_percent: usize,
    output: &'a mut Output<'o>,
}

impl Read for Progress<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = (&self.bytes[self.sent..]).read(into)?;
        self.sent += read;
        let percent = (self.sent * 100).checked_div(self.bytes.len()).unwrap_or(100);
        if percent >= self.shown_percent + 10 || (percent == 100 && self.shown_percent < 100) {
            self.shown_percent = percent;
            self.output.progress(&format!("sending {percent} %"));
        }
        Ok(read)
    }
}

fn push(api: &Api, args: &PushArgs, output: &mut Output<'_>) -> Result<(), Error> {
    let bytes = read_component(&args.file)?;
    let call = Call::new(Method::PUT, &format!("/v1/plugins/{}", encode(&args.name)))
        .header("content-type", Some("application/wasm".into()))
        .header("quipu-signature", args.signature.clone());
    let mut progress = Progress { bytes: &bytes, sent: 0, shown_percent: 0, output };
    let answer = api.upload(call, &mut progress, bytes.len());
    output.progress("");
    let answer = answer?;
    if output.style.json {
        return output.json(&answer.text);
    }
    let (name, revision) = (text(&answer.json, "name"), text(&answer.json, "revision"));
    output.line(&output.paint(Colour::Bold, &printable(&format!("{name} {revision}"))))?;
    report(&answer.json["admission"], output)?;
    output.line("")?;
    output.line(&format!("Put it in force:  quipu plugin activate {name} --match PREFIX"))
}

/// What admission found, for people.
fn report(report: &Value, output: &mut Output<'_>) -> Result<(), Error> {
    let checks = items(report, "checks");
    let count: u64 = checks.iter().filter_map(|check| check["count"].as_u64()).sum();
    output.line(&format!("  world       {}", text(report, "world")))?;
    output.line(&format!("  checks      {} kinds, {} passed", checks.len(), output.number(&count.to_string())))?;
    if let Some(cost) = report["cost"].as_object() {
        let micros = |name: &str| cost.get(name).and_then(Value::as_f64).unwrap_or_default() / 1e3;
        output.line(&format!(
            "  cost        {:.2} µs a call (median), {:.2} µs (p99)",
            micros("median_ns"),
            micros("p99_ns")
        ))?;
    }
    let runs = &report["placement"];
    let because = text(runs, "because");
    let because = if because.is_empty() { because } else { format!(": {because}") };
    output.line(&format!("  runs        {}{}", text(runs, "runs"), printable(&because)))?;
    let needs = text(report, "needs_config");
    if !needs.is_empty() {
        output.line(&format!("  config      it needs one: {}", printable(&needs)))?;
    }
    Ok(())
}

/// The checks of admission on this machine, without a server; then the author's own vectors.
fn test(args: &TestArgs, output: &mut Output<'_>) -> Result<(), Error> {
    let bytes = read_component(&args.file)?;
    let failed = |why: String| Error::Failed(why);
    let engine = policy::Engine::new(policy::Settings::default()).map_err(|why| failed(why.to_string()))?;
    let (revision, found) =
        admission::admit(&engine, "under-test", &bytes).map_err(|why| failed(format!("not admitted: {why}")))?;
    let found = serde_json::to_value(&found).map_err(|why| failed(why.to_string()))?;
    let vectors = args.vectors.as_deref().map(|path| super::vectors::run(&engine, &revision, path)).transpose()?;
    if output.style.json {
        return output.json(&json!({ "admission": found, "vectors": vectors }).to_string());
    }
    output.line(&output.paint(Colour::Green, "It would be admitted."))?;
    report(&found, output)?;
    if let Some(passed) = vectors {
        output.line(&format!("  vectors     {passed} passed"))?;
    }
    Ok(())
}

/// A revision as the server shows it: NAME, for the newest, or NAME@sha256:….
fn find(api: &Api, plugin: &str) -> Result<Value, Error> {
    let (name, revision) = plugin.split_once('@').map_or((plugin, None), |(name, revision)| (name, Some(revision)));
    let plugins = api.call(Call::new(Method::GET, &format!("/v1/plugins/{}", encode(name))))?;
    let revisions = items(&plugins.json, "plugins");
    let wanted = match revision {
        Some(revision) => revisions.iter().find(|known| text(known, "revision") == revision),
        None => revisions.last(),
    };
    let missing = || Error::Failed(format!("{name} has no revision {}", revision.unwrap_or_default()));
    wanted.cloned().ok_or_else(missing)
}

/// Ends a quarantine.
fn release(api: &Api, plugin: &str, output: &mut Output<'_>) -> Result<(), Error> {
    let wanted = find(api, plugin)?;
    let (name, revision) = (text(&wanted, "name"), text(&wanted, "revision"));
    let path = format!("/v1/plugins/{}/{}/release", encode(&name), encode(&revision));
    let answer = api.call(Call::new(Method::POST, &path))?;
    if output.style.json {
        return output.json(&answer.text);
    }
    let (was, is) = (text(&wanted["status"], "breaker"), text(&answer.json["status"], "breaker"));
    output.line(&printable(&format!("{name} {revision}: the breaker was {was} and is {is}")))
}

/// Makes a revision the one that a rule uses, whichever of its two policies it is.
fn activate(
    api: &Api,
    plugin: &str,
    prefix: &str,
    canary_percent: Option<u8>,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let wanted = find(api, plugin)?;
    let name = text(&wanted, "name");
    let rules = api.call(Call::new(Method::GET, "/v1/rules"))?;
    let rule = items(&rules.json, "rules").iter().find(|rule| text(rule, "match") == prefix);
    let mut body = rule.cloned().unwrap_or_else(|| json!({ "match": prefix }));
    let version = body["version"].as_u64();
    for told in ["version", "canary_ended", "degraded", "shadowed", "on_pool"] {
        if let Some(body) = body.as_object_mut() {
            body.remove(told);
        }
    }
    let (world, digest) = (text(&wanted, "world"), text(&wanted, "revision"));
    if let Some(percent) = canary_percent {
        body["canary"] = json!({ "revision": digest, "percent": percent });
    } else {
        let same = text(&body[&world], "plugin") == name;
        let config = if same { body[&world]["config"].clone() } else { Value::Null };
        body[&world] = json!({ "plugin": name, "revision": digest });
        if !config.is_null() {
            body[&world]["config"] = config;
        }
        if let Some(body) = body.as_object_mut() {
            body.remove("canary");
        }
    }
    let precondition = match version {
        Some(version) => ("if-match", format!("\"{version}\"")),
        None => ("if-none-match", "*".to_owned()),
    };
    let answer =
        api.call(Call::new(Method::PUT, "/v1/rules").body(body).header(precondition.0, Some(precondition.1)))?;
    if output.style.json {
        return output.json(&answer.text);
    }
    let share = canary_percent.map_or_else(String::new, |percent| format!(" for {percent} of a hundred counters"));
    let version = text(&answer.json, "version");
    output.line(&printable(&format!("rule {prefix:?}: {world} is {name} {digest}{share} (version {version})")))
}

fn delete(api: &Api, name: &str, revision: &str, output: &mut Output<'_>) -> Result<(), Error> {
    api.call(Call::new(Method::DELETE, &format!("/v1/plugins/{}/{}", encode(name), encode(revision))))?;
    if output.style.json { Ok(()) } else { output.line(&printable(&format!("{name} {revision}: deleted"))) }
}

fn logs(api: &Api, name: &str, follow: bool, output: &mut Output<'_>) -> Result<(), Error> {
    let call = Call::new(Method::GET, &format!("/v1/plugins/{}/logs", encode(name)));
    let response = api.lines(call.query("follow", if follow { "true" } else { "false" }), follow)?;
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        // A server that stops ends the stream; what came was printed.
        let Ok(line) = line else { break };
        if output.style.json {
            output.json(&line)?;
            continue;
        }
        let line: Value = serde_json::from_str(&line).map_err(|why| Error::foreign(format!("no JSON: {why}")))?;
        let revision: String = text(&line, "revision").trim_start_matches("sha256:").chars().take(12).collect();
        let (at, level) = (text(&line, "at"), text(&line, "level"));
        output.line(&printable(&format!("{at} {level:<5} {revision} {}", text(&line, "text"))))?;
    }
    Ok(())
}

/// Turns all policies off, or on again.
fn switch(api: &Api, enabled: Option<bool>, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = match enabled {
        Some(enabled) => api.call(Call::new(Method::PUT, "/v1/policies").body(json!({ "enabled": enabled })))?,
        None => api.call(Call::new(Method::GET, "/v1/policies"))?,
    };
    if output.style.json {
        return output.json(&answer.text);
    }
    let on = answer.json["enabled"].as_bool().unwrap_or_default();
    output.line(if on { "policies are on" } else { "policies are off: native choices answer" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let why = read_component(Path::new("/nowhere/policy.wasm")).map(|_| ()).map_err(|why| why.to_string());
        assert!(why.is_err_and(|why| why.contains("/nowhere/policy.wasm")));
    }
}
