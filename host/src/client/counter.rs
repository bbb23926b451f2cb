//! `quipu counter …`

use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::Method;

use super::api::{Answer, Api, Call};
use super::error::Error;
use super::output::{Output, items, left, printable, right, text, total};
use super::pace::{Limits, Pace};
use super::watch;
use crate::cli::CounterCommand;
use crate::limits;

pub fn run(api: &Api, command: &CounterCommand, output: &mut Output<'_>, limits: Limits) -> Result<(), Error> {
    match command {
        CounterCommand::Add { id, amount, key } => add(api, id, *amount, key.as_deref(), output, limits),
        CounterCommand::Get { ids, cached } => match ids.as_slice() {
            [id] => get_one(api, id, *cached, output),
            ids => get_many(api, ids, *cached, output),
        },
        CounterCommand::List { prefix, limit, all } => list(api, prefix, *limit, *all, output),
        CounterCommand::Watch { id, count } => watch::run(api, checked(id)?, *count, output, limits),
        CounterCommand::Create { id, name } => create(api, id.as_deref(), name.as_deref(), output),
        CounterCommand::Delete { id } => delete(api, id, output),
        CounterCommand::Shards { id } => shards(api, id, output),
    }
}

/// An id that a counter can have; the server is not bothered with others.
fn checked(id: &str) -> Result<&str, Error> {
    crate::counter::Id::new(id).map_err(|e| Error::Usage(format!("ID: {e}")))?;
    Ok(id)
}

fn add(api: &Api, id: &str, amount: i64, key: Option<&str>, out: &mut Output<'_>, limits: Limits) -> Result<(), Error> {
    let id = checked(id)?;
    let call = || {
        Call::counter(Method::POST, "/add", id)
            .header("idempotency-key", key.map(str::to_owned))
            .body(json!({ "amount": amount }))
    };
    let answer = match key {
        None => api.call(call()).map_err(unknown_without_key)?,
        Some(key) => add_with_key(api, call, checked_key(key)?, out, limits)?,
    };
    if out.style.json {
        return out.json(&answer.text);
    }
    let amount = out.number(&amount.to_string());
    let shown = printable(id);
    out.line(&match (text(&answer.json, "outcome").as_str(), answer.replayed) {
        (_, true) => format!("{shown}: {amount} was added before under this key; nothing was added now"),
        ("accepted", _) => format!("{shown}: {amount} accepted, readable when it is on disk"),
        _ => {
            let (shard, value) = (text(&answer.json, "shard"), text(&answer.json, "shard_value"));
            format!("{shown}: {amount} added (shard {shard} holds {} of it)", out.number(&value))
        }
    })
}

fn checked_key(key: &str) -> Result<&str, Error> {
    let max = limits::IDEMPOTENCY_KEY_BYTES_MAX;
    if !(1..=max).contains(&key.len()) || key.contains(char::is_control) || key.trim_ascii() != key {
        return Err(Error::Usage(format!(
            "--key: must be 1 to {max} bytes without control characters and without spaces around them"
        )));
    }
    Ok(key)
}

/// Sends the addition until its outcome is known: the key makes every copy after the first harmless.
fn add_with_key(
    api: &Api,
    call: impl Fn() -> Call,
    key: &str,
    output: &mut Output<'_>,
    limits: Limits,
) -> Result<Answer, Error> {
    let mut pace = Pace::new(limits, limits.retry_for);
    let mut unknown = false;
    for attempt in 1.. {
        let error = match api.call(call()) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        unknown |= error.outcome_unknown();
        // A server that was never reached is told at once; one that fell silent on the way may come back.
        let again = unknown || matches!(&error, Error::Refused(problem) if problem.status == 503);
        let asked = match &error {
            Error::Refused(problem) => problem.retry_after_s.map(Duration::from_secs),
            _ => None,
        };
        // Other refusals are the server's last word, except that they say nothing of an earlier attempt's outcome.
        let final_word = matches!(&error, Error::Refused(p) if p.status != 503 && !error.outcome_unknown());
        if !again || final_word || !pace.wait(asked) {
            return Err(match unknown && !final_word {
                true => Error::Unknown {
                    cause: Box::new(error),
                    advice: format!(
                        "after {attempt} attempts it is not known whether it was counted: send the same command with \
                         --key {} again, which counts at most once",
                        printable(key)
                    ),
                },
                false => error,
            });
        }
        output.note(&format!("{error}; trying again with the same key"));
    }
    unreachable!("the pace ends the attempts")
}

fn unknown_without_key(cause: Error) -> Error {
    if !cause.outcome_unknown() {
        return cause;
    }
    Error::Unknown {
        cause: Box::new(cause),
        advice:
            "it may or may not have been counted, and was not sent again, since that could count twice; with --key \
                 a repetition is safe"
                .into(),
    }
}

fn read_options(call: Call, cached: Option<u64>) -> Call {
    match cached {
        Some(max_age_ms) => call.query("read", "cached").query("max_age_ms", &max_age_ms.to_string()),
        None => call,
    }
}

fn get_one(api: &Api, id: &str, cached: Option<u64>, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = api.call(read_options(Call::counter(Method::GET, "", checked(id)?), cached))?;
    if output.style.json {
        return output.json(&answer.text);
    }
    output.line(&output.number(&total(&answer.json)))?;
    if let Some(remark) = inexact(&answer.json) {
        output.note(&remark);
    }
    Ok(())
}

/// Why the total is not the exact one, if it is not.
fn inexact(counter: &Value) -> Option<String> {
    match (&counter["exact"], &counter["age_ms"]) {
        (Value::Bool(false), Value::Number(age)) => Some(format!("not exact: {age} ms old")),
        (Value::Bool(false), _) => Some("not exact".into()),
        _ => None,
    }
}

/// Exact totals come in one answer, cached ones in one answer each.
fn get_many(api: &Api, ids: &[String], cached: Option<u64>, output: &mut Output<'_>) -> Result<(), Error> {
    ids.iter().try_for_each(|id| checked(id).map(drop))?;
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    let mut row = |output: &Output<'_>, read: &Value| {
        rows.push(vec![text(read, "id"), output.number(&total(read)), inexact(read).unwrap_or_default()]);
    };
    if cached.is_some() {
        for id in ids {
            match api.call(read_options(Call::counter(Method::GET, "", id), cached)) {
                Ok(answer) if output.style.json => output.json(&answer.text)?,
                Ok(answer) => row(output, &answer.json),
                Err(Error::Refused(problem)) => failed.push((id.clone(), *problem)),
                Err(error) => return Err(error),
            }
        }
    } else {
        for ids in ids.chunks(limits::READ_IDS_MAX) {
            let answer = api.call(Call::new(Method::POST, "/v1/read").body(json!({ "ids": ids })))?;
            if output.style.json {
                output.json(&answer.text)?;
            }
            for result in items(&answer.json, "results") {
                match result.get("error") {
                    None => row(output, result),
                    Some(why) => {
                        failed.push((text(result, "id"), serde_json::from_value(why.clone()).unwrap_or_default()));
                    }
                }
            }
        }
    }
    if !output.style.json && !rows.is_empty() {
        output.table(&[left("COUNTER"), right("TOTAL"), left("REMARK")], &rows)?;
    }
    for (id, problem) in &failed {
        output.note(&format!("{}: {problem}", printable(id)));
    }
    match failed.len() {
        0 => Ok(()),
        failed => Err(Error::Partly { failed, asked: ids.len() }),
    }
}

fn list(api: &Api, prefix: &str, limit: u32, all: bool, output: &mut Output<'_>) -> Result<(), Error> {
    let mut cursor: Option<String> = None;
    loop {
        let mut call = Call::new(Method::GET, "/v1/counters").query("limit", &limit.to_string());
        if !prefix.is_empty() {
            call = call.query("prefix", prefix);
        }
        if let Some(cursor) = &cursor {
            call = call.query("cursor", cursor);
        }
        let answer = api.call(call)?;
        let next = Some(text(&answer.json, "next_cursor")).filter(|next| !next.is_empty());
        if output.style.json {
            output.json(&answer.text)?;
        } else {
            print_page(items(&answer.json, "counters"), cursor.is_none(), output)?;
        }
        if all && next.is_some() && next == cursor {
            return Err(Error::foreign("the list does not advance"));
        }
        match next {
            Some(next) if all => cursor = Some(next),
            Some(_) => {
                output.note("there are more: --all shows them");
                return Ok(());
            }
            None => return Ok(()),
        }
    }
}

fn print_page(counters: &[Value], first: bool, output: &mut Output<'_>) -> Result<(), Error> {
    if counters.is_empty() {
        if first {
            output.note("no counters");
        }
        return Ok(());
    }
    let row = |c: &Value| vec![text(c, "id"), text(c, "name"), output.number(&total(c)), text(c, "created_at")];
    let rows: Vec<_> = counters.iter().map(row).collect();
    output.rows(&[left("COUNTER"), left("NAME"), right("TOTAL"), left("CREATED")], &rows, first)
}

fn create(api: &Api, id: Option<&str>, name: Option<&str>, output: &mut Output<'_>) -> Result<(), Error> {
    let mut body = json!({});
    if let Some(id) = id {
        body["id"] = checked(id)?.into();
    }
    if let Some(name) = name {
        body["name"] = name.into();
    }
    let answer = api.call(Call::new(Method::POST, "/v1/counters").body(body))?;
    match output.style.json {
        true => output.json(&answer.text),
        false => output.line(&printable(&text(&answer.json, "id"))),
    }
}

fn delete(api: &Api, id: &str, output: &mut Output<'_>) -> Result<(), Error> {
    api.call(Call::counter(Method::DELETE, "", checked(id)?))?;
    if !output.style.json {
        output.line(&format!("{}: deleted", printable(id)))?;
    }
    Ok(())
}

fn shards(api: &Api, id: &str, output: &mut Output<'_>) -> Result<(), Error> {
    let answer = api.call(Call::counter(Method::GET, "/shards", checked(id)?))?;
    if output.style.json {
        return output.json(&answer.text);
    }
    let row = |p: &Value| vec![text(p, "shard"), output.number(&text(p, "value")), text(p, "owner")];
    let rows: Vec<_> = items(&answer.json, "partials").iter().map(row).collect();
    output.table(&[right("SHARD"), right("VALUE"), left("OWNER")], &rows)
}
