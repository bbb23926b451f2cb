//! `quipu plugin record` and `replay`: real decisions from a node, and what a component makes of them here.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ureq::http::Method;

use super::api::{Api, Call, encode};
use super::error::Error;
use super::output::{Colour, Output, printable, text};
use super::plugin::read_component;
use crate::cli::{RecordArgs, ReplayArgs};
use crate::limits;
use crate::policy::recording::replay::{self, Difference, Recorded, Replayed};
use crate::policy::{self, Engine, Limits, Options, Revision, builtin};

/// Streams a recording to a file, line by line: what was written before an interruption is good.
pub fn record(api: &Api, args: &RecordArgs, output: &mut Output<'_>) -> Result<(), Error> {
    let unwritable = |why: std::io::Error| Error::File { path: args.output.clone(), reason: why.to_string() };
    let mut call = Call::new(Method::POST, &format!("/v1/plugins/{}/record", encode(&args.name)))
        .query("count", &args.count.to_string())
        .query("seconds", &args.seconds.to_string());
    if let Some(prefix) = &args.prefix {
        call = call.query("match", prefix);
    }
    let response = api.lines(call, true)?;
    // Made only now, so that a refusal leaves no empty file.
    let mut file = std::io::LineWriter::new(std::fs::File::create(&args.output).map_err(unwritable)?);
    let (mut decisions, mut end) = (0u64, Value::Null);
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let Ok(line) = line else { break };
        writeln!(file, "{line}").map_err(unwritable)?;
        let parsed: Value = serde_json::from_str(&line).map_err(|why| Error::foreign(format!("no JSON: {why}")))?;
        match text(&parsed, "line").as_str() {
            "selected" | "planned" | "combined" => {
                decisions += 1;
                if decisions.is_multiple_of(100) {
                    output.progress(&format!("{decisions} decisions"));
                }
            }
            "end" => end = parsed,
            _ => {}
        }
    }
    output.progress("");
    file.flush().map_err(unwritable)?;
    let because = text(&end, "because");
    if output.style.json {
        let told = json!({ "file": args.output.display().to_string(), "decisions": decisions, "because": because });
        return output.json(&told.to_string());
    }
    let why = match because.as_str() {
        "count" => "as many as were asked for".to_owned(),
        "seconds" => format!("in {} seconds", args.seconds),
        "bytes" => "then the recording was as long as one may be".into(),
        "host_calls" => "then one call asked the host more than a recording keeps".into(),
        "stopped" => "then the server stopped".into(),
        _ => "then the server ended it, or went away".into(),
    };
    let shown = args.output.display().to_string();
    output.line(&printable(&format!("{shown}: {decisions} decisions, {why}")))?;
    output.line(&printable(&format!("Run them again:  quipu plugin replay {shown} COMPONENT.wasm")))
}

/// A component, and what it made of the recording.
struct Run {
    /// What to call it.
    name: String,
    revision: String,
    replayed: Replayed,
}

/// Runs a recording again and tells where the answers differ: from the recorded ones, or those of two components from
/// each other.
pub fn replay(args: &ReplayArgs, output: &mut Output<'_>) -> Result<(), Error> {
    let recorded = read(&args.file)?;
    let engine = engine()?;
    let runs = components(args, &recorded)?
        .into_iter()
        .map(|(name, bytes)| run(&engine, &recorded, name, &bytes))
        .collect::<Result<Vec<_>, _>>()?;
    let (first, second) = match runs.as_slice() {
        [one, other] => (Some(one), other),
        [one] => (None, one),
        _ => return Err(Error::Usage("give one component, or two to compare them".into())),
    };
    let answers = first.map_or_else(|| recorded.answers(), |first| first.replayed.answers.clone());
    let differences = replay::differences(&recorded, &answers, &second.replayed.answers);
    let left = first.map_or("recorded", |first| &first.name);
    report(&recorded, &runs, left, &second.name, &differences, output)?;
    match differences.len() {
        0 => Ok(()),
        count => Err(Error::Failed(format!("{count} answers differ"))),
    }
}

fn read(path: &Path) -> Result<Recorded, Error> {
    let unreadable = |why: String| Error::Usage(format!("{}: {why}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|why| unreadable(why.to_string()))?.len();
    let max = 2 * limits::RECORDING_BYTES_MAX as u64;
    if bytes > max {
        return Err(unreadable(format!("{bytes} bytes; a recording has at most {max}")));
    }
    let text = std::fs::read(path).map_err(|why| unreadable(why.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| unreadable("this is no recording: it is not UTF-8".into()))?;
    Recorded::read(&text).map_err(|why| unreadable(why.to_string()))
}

/// The walls of a server, with time enough for any machine.
fn engine() -> Result<std::sync::Arc<Engine>, Error> {
    let long = std::time::Duration::from_secs(30);
    let limits = Limits {
        deadline_inline: long,
        deadline_pooled: long,
        deadline_configure_inline: long,
        deadline_configure_pooled: long,
        deadline_refresh: long,
        deadline_host_call: long,
        ..Limits::default()
    };
    Engine::new(policy::Settings { limits, ..policy::Settings::default() })
        .map_err(|why| Error::Failed(why.to_string()))
}

/// Those that are named, or the built-in policy that was recorded.
fn components(args: &ReplayArgs, recorded: &Recorded) -> Result<Vec<(String, Vec<u8>)>, Error> {
    if !args.components.is_empty() {
        let named = |path: &PathBuf| Ok((path.display().to_string(), read_component(path)?));
        return args.components.iter().map(named).collect();
    }
    let plugin = &recorded.head.plugin;
    match builtin::find(plugin) {
        Some(builtin) => Ok(vec![(plugin.clone(), builtin.bytes.to_vec())]),
        None => {
            let (file, revisions) = (args.file.display(), recorded.revisions().join(", "));
            let why = format!("{file} has decisions of {plugin} {revisions}; name its component, or another");
            Err(Error::Usage(why))
        }
    }
}

fn run(engine: &std::sync::Arc<Engine>, recorded: &Recorded, name: String, bytes: &[u8]) -> Result<Run, Error> {
    let because = recorded.pooled().then(|| "it did when it was recorded".to_owned());
    let options = Options { limits: None, pooled_because: because };
    let failed = |why: policy::Rejected| Error::Failed(format!("{name}: {why}"));
    let revision: std::sync::Arc<Revision> = engine.load_with("replayed", bytes, options).map_err(failed)?;
    if revision.world != recorded.head.world {
        let (is, was) = (revision.world.name(), recorded.head.world.name());
        return Err(Error::Failed(format!("{name}: it is of the world {is}; {was} was recorded")));
    }
    let replayed = replay::run(engine, &revision, recorded).map_err(failed)?;
    Ok(Run { revision: revision.digest().to_owned(), replayed, name })
}

/// Differences shown to people; `--json` has all.
const SHOWN_MAX: usize = 20;

fn report(
    recorded: &Recorded,
    runs: &[Run],
    left: &str,
    right: &str,
    differences: &[Difference],
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let decisions = recorded.decisions();
    if output.style.json {
        let run = |run: &Run| {
            let known = recorded.revisions().contains(&run.revision.as_str());
            let unanswered = run.replayed.unanswered;
            json!({ "component": run.name, "revision": run.revision, "recorded": known, "unanswered": unanswered })
        };
        let told = json!({
            "plugin": recorded.head.plugin, "decisions": decisions, "cut": recorded.cut,
            "components": runs.iter().map(run).collect::<Vec<_>>(), "differences": differences,
        });
        return output.json(&told.to_string());
    }
    let cut = if recorded.cut { "; the recording was cut off" } else { "" };
    output.line(&printable(&format!("{decisions} decisions of {}{cut}", recorded.head.plugin)))?;
    for run in runs {
        let known = recorded.revisions().contains(&run.revision.as_str());
        let known = if known { "the recorded revision" } else { "another revision" };
        let unanswered = match run.replayed.unanswered {
            0 => String::new(),
            count => format!("; {count} questions to the host have no answer in the recording"),
        };
        output.line(&printable(&format!("  {}: {}, {known}{unanswered}", run.name, run.revision)))?;
    }
    for difference in differences.iter().take(SHOWN_MAX) {
        let Difference { line, instance, question, first, second } = difference;
        output.line(&printable(&format!("  line {line}, instance {instance}, {question}")))?;
        output.line(&printable(&format!("    {left}: {}", words(first))))?;
        output.line(&printable(&format!("    {right}: {}", words(second))))?;
    }
    match differences.len() {
        0 => output.line(&output.paint(Colour::Green, "All answers are equal.")),
        count if count > SHOWN_MAX => {
            let more = count - SHOWN_MAX;
            output.line(&format!("  and {more} more; --json has all"))
        }
        _ => Ok(()),
    }
}

/// An answer, for people.
fn words(answer: &Value) -> String {
    match answer.as_object().and_then(|members| members.iter().next()) {
        None if answer.is_null() => "not asked: the instance was gone".into(),
        Some((kind, answer)) if kind == "ok" => match answer {
            Value::Null => "done".into(),
            Value::String(text) => text.clone(),
            answer => answer.to_string(),
        },
        Some((kind, answer)) if kind == "fault" => {
            format!("fault: {}: {}", text(answer, "kind"), text(answer, "detail"))
        }
        Some((kind, answer)) => format!("{kind}: {answer}"),
        None => answer.to_string(),
    }
}
