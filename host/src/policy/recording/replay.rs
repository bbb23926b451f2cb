//! Runs a recording again on this machine, with the component that was recorded or another, and compares the answers.
//!
//! The walls around memory and host calls are those of a server; the deadlines are not, since this machine is another.
//! A call that missed its deadline then is therefore not compared.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::format::{Answer, Combined, FORMAT, Head, Line, Made, Planned, Refreshed, Selected};
use super::tape::Tape;
use crate::policy::engine::Engine;
use crate::policy::fault::{Fault, Kind};
use crate::policy::instance::Unready;
use crate::policy::limits;
use crate::policy::revision::{Placement, Rejected, Revision};
use crate::policy::trial::Subject;
use crate::policy::view::{Partial, Read, Select};

/// A recording as it was read: its lines between the head and the end.
#[derive(Debug)]
pub struct Recorded {
    pub head: Head,
    pub lines: Vec<Line>,
    /// The last line is missing: it was cut off.
    pub cut: bool,
}

/// Why a file is no recording. The number is that of the line, from 1.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it is empty")]
    Empty,
    #[error("line {0}: {1}")]
    Line(usize, String),
    #[error("line 1 is no head of a recording; `quipu plugin record` writes them")]
    NoHead,
    #[error("it has the format {0}; this program reads {FORMAT}")]
    Format(u32),
    #[error("line {0} speaks of instance {1}, which was not made before it")]
    Instance(usize, u64),
}

impl Recorded {
    pub fn read(text: &str) -> Result<Self, Unreadable> {
        let mut lines = (1..).zip(text.lines()).map(|(number, line)| {
            let read = serde_json::from_str::<Line>(line).map_err(|why| Unreadable::Line(number, why.to_string()));
            read.map(|line| (number, line))
        });
        let head = match lines.next().ok_or(Unreadable::Empty)? {
            Ok((_, Line::Recording(head))) if head.format == FORMAT => head,
            Ok((_, Line::Recording(head))) => return Err(Unreadable::Format(head.format)),
            Ok(_) => return Err(Unreadable::NoHead),
            Err(_) if !text.starts_with(r#"{"line":"recording""#) => return Err(Unreadable::NoHead),
            Err(why) => return Err(why),
        };
        let (mut read, mut made, mut cut) = (Vec::new(), std::collections::HashSet::new(), true);
        for line in lines {
            let (number, line) = match line {
                Ok(line) => line,
                // The writer may have been stopped in the middle of a line.
                Err(Unreadable::Line(number, _)) if number == text.lines().count() && !text.ends_with('\n') => break,
                Err(why) => return Err(why),
            };
            match &line {
                Line::Recording(_) => return Err(Unreadable::Line(number, "a second head".into())),
                Line::End(_) => {
                    cut = false;
                    break;
                }
                Line::Made(line) => drop(made.insert(line.instance)),
                Line::Refreshed(Refreshed { instance, .. })
                | Line::Selected(Selected { instance, .. })
                | Line::Planned(Planned { instance, .. })
                | Line::Combined(Combined { instance, .. })
                    if !made.contains(instance) =>
                {
                    return Err(Unreadable::Instance(number, *instance));
                }
                _ => {}
            }
            read.push(line);
        }
        Ok(Self { head, lines: read, cut })
    }

    /// Whether any instance ran on the pool.
    pub fn pooled(&self) -> bool {
        self.lines.iter().any(|line| matches!(line, Line::Made(made) if made.pooled))
    }

    /// The revisions that were recorded, each once.
    pub fn revisions(&self) -> Vec<&str> {
        let mut revisions: Vec<&str> = self.lines.iter().filter_map(revision).collect();
        revisions.sort_unstable();
        revisions.dedup();
        revisions
    }

    /// What each line says the policy answered, in their order.
    pub fn answers(&self) -> Vec<Value> {
        self.lines.iter().map(answer).collect()
    }

    /// Decisions in it: lines that are no `made` and no `refreshed`.
    pub fn decisions(&self) -> usize {
        self.lines.iter().filter(|line| !matches!(line, Line::Made(_) | Line::Refreshed(_))).count()
    }
}

fn revision(line: &Line) -> Option<&str> {
    match line {
        Line::Made(made) => Some(&made.revision),
        _ => None,
    }
}

fn answer(line: &Line) -> Value {
    match line {
        Line::Made(line) => json(&line.answer),
        Line::Refreshed(line) => json(&line.answer),
        Line::Selected(line) => json(&line.answer),
        Line::Planned(line) => json(&line.answer),
        Line::Combined(line) => json(&line.answer),
        Line::Recording(_) | Line::End(_) => Value::Null,
    }
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// What a component answered to a whole recording.
#[derive(Debug)]
pub struct Replayed {
    /// One for each line; null where it was not asked, because its instance was gone.
    pub answers: Vec<Value>,
    /// Questions to the host that nothing in the recording answers.
    pub unanswered: u64,
}

/// One line whose answers differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// In the file, from 1.
    pub line: usize,
    pub instance: u64,
    /// The question, in words.
    pub question: String,
    pub first: Value,
    pub second: Value,
}

/// Compares two lists of answers to the same recording.
pub fn differences(recorded: &Recorded, first: &[Value], second: &[Value]) -> Vec<Difference> {
    let pairs = recorded.lines.iter().zip(first.iter().zip(second)).enumerate();
    let differ = |a: &Value, b: &Value| !timing(a) && !timing(b) && comparable(a) != comparable(b);
    pairs
        .filter(|(_, (_, (a, b)))| differ(a, b))
        .map(|(at, (line, (a, b)))| {
            let (instance, question) = question(line);
            Difference { line: at + 2, instance, question, first: a.clone(), second: b.clone() }
        })
        .collect()
}

/// Of a fault, its kind; its words may name times and addresses.
fn comparable(answer: &Value) -> Value {
    if answer["fault"].is_object() { answer["fault"]["kind"].clone() } else { answer.clone() }
}

fn timing(answer: &Value) -> bool {
    answer["fault"]["kind"] == Kind::Deadline.name()
}

fn question(line: &Line) -> (u64, String) {
    match line {
        Line::Made(line) => (line.instance, format!("configure {:?}", line.config)),
        Line::Refreshed(line) => (line.instance, format!("refresh with view {}", line.version)),
        Line::Selected(line) => {
            let Selected { counter, amount, candidates, .. } = line;
            (line.instance, format!("select for {counter:?}, amount {amount}, candidates {candidates:?}"))
        }
        Line::Planned(line) => (line.instance, format!("plan for {:?}, shards {:?}", line.counter, line.shards)),
        Line::Combined(line) => (line.instance, format!("combine {:?}", line.partials)),
        Line::Recording(_) | Line::End(_) => (0, String::new()),
    }
}

/// Asks a component everything that was asked while it was recorded. Blocks; not to be called inside a runtime.
pub fn run(engine: &Engine, revision: &Arc<Revision>, recorded: &Recorded) -> Result<Replayed, Rejected> {
    let runtime = match revision.placement {
        Placement::Inline => None,
        Placement::Pooled(_) => {
            Some(Rc::new(Builder::new_current_thread().enable_time().build().map_err(|_| Rejected::Busy)?))
        }
    };
    let mut replay = Replay { engine, revision, runtime, instances: HashMap::new(), unanswered: 0 };
    let answers = recorded.lines.iter().map(|line| replay.line(line)).collect::<Result<_, _>>()?;
    let left: u64 = replay.instances.values().map(|(tape, _)| tape.unanswered()).sum();
    Ok(Replayed { answers, unanswered: replay.unanswered + left })
}

struct Replay<'a> {
    engine: &'a Engine,
    revision: &'a Arc<Revision>,
    runtime: Option<Rc<Runtime>>,
    /// By number. One that failed is dropped, as on the node.
    instances: HashMap<u64, (Arc<Tape>, Subject)>,
    unanswered: u64,
}

impl Replay<'_> {
    fn line(&mut self, line: &Line) -> Result<Value, Rejected> {
        Ok(match line {
            Line::Made(made) => json(&self.make(made)?),
            Line::Refreshed(asked) => {
                let view = Arc::new(asked.view());
                self.ask(asked.instance, &asked.heard, |subject| subject.refresh(&view))
            }
            Line::Selected(asked) => {
                let Selected { counter, amount, key_hash, candidates, .. } = asked;
                let request = Select { counter, amount: *amount, key_hash: *key_hash, candidates };
                self.ask(asked.instance, &asked.heard, |subject| subject.select(&request))
            }
            Line::Planned(asked) => {
                let Planned { counter, key_hash, shards, max_age_ms, .. } = asked;
                let request = Read { counter, key_hash: *key_hash, shards, max_age_ms: *max_age_ms };
                self.ask(asked.instance, &asked.heard, |subject| subject.plan(&request))
            }
            Line::Combined(asked) => {
                let partials: Vec<_> = asked.partials.iter().map(|&(shard, value)| Partial { shard, value }).collect();
                let total = |subject: &mut Subject| subject.combine(&partials).map(|total| total.to_string());
                self.ask(asked.instance, &asked.heard, total)
            }
            Line::Recording(_) | Line::End(_) => Value::Null,
        })
    }

    fn make(&mut self, made: &Made) -> Result<Answer<()>, Rejected> {
        if made.config.len() > limits::CONFIG_BYTES_MAX {
            return Err(Rejected::ConfigTooLong { bytes: made.config.len() });
        }
        let tape = Arc::new(Tape::playing(made.seed));
        tape.load(&made.heard);
        let binding = self.engine.bind_aside(self.revision, &made.config, made.grants)?;
        binding.taping.play(&tape);
        Ok(match Subject::new(&binding, self.runtime.clone()) {
            Ok(subject) => {
                self.instances.insert(made.instance, (tape, subject));
                Answer::Ok(())
            }
            Err(Unready::Config(text)) => Answer::Refused(text),
            Err(Unready::Fault(fault)) => Answer::of(Err(&fault)),
        })
    }

    fn ask<T: Serialize>(
        &mut self,
        instance: u64,
        heard: &[super::format::Heard],
        question: impl FnOnce(&mut Subject) -> Result<T, Fault>,
    ) -> Value {
        let Some((tape, subject)) = self.instances.get_mut(&instance) else { return Value::Null };
        tape.load(heard);
        let answer = question(subject);
        let gone = answer.as_ref().is_err_and(|fault| fault.kind.is_the_guests());
        let answer = json(&Answer::of(answer.as_ref()));
        if gone && let Some((tape, _)) = self.instances.remove(&instance) {
            self.unanswered += tape.unanswered();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"{"line":"recording","format":1,"version":"0","plugin":"p","world":"selection"}"#;

    fn why(text: &str) -> String {
        Recorded::read(text).map(|_| ()).expect_err("it is no recording").to_string()
    }

    #[test]
    fn what_is_no_recording_is_named() {
        assert_eq!(why(""), "it is empty");
        assert!(why("hello").contains("`quipu plugin record`"));
        assert!(why(r#"{"line":"end","because":"count","decisions":0}"#).contains("no head"));
        assert!(why(&HEAD.replace(r#""format":1"#, r#""format":9"#)).contains("the format 9"));
        assert!(why(&format!("{HEAD}\nhello\n")).starts_with("line 2: "));
        assert!(why(&format!("{HEAD}\n{HEAD}\n")).contains("second head"));
        let stray = r#"{"line":"refreshed","instance":3,"version":1,"shards":[],"answer":{"ok":null}}"#;
        assert_eq!(why(&format!("{HEAD}\n{stray}\n")), "line 2 speaks of instance 3, which was not made before it");
    }

    #[test]
    fn a_recording_that_was_cut_off_is_good() {
        let whole = Recorded::read(&format!("{HEAD}\n{{\"line\":\"end\",\"because\":\"count\",\"decisions\":0}}\n"));
        assert!(whole.is_ok_and(|recorded| !recorded.cut));
        assert!(Recorded::read(&format!("{HEAD}\n{{\"line\":\"sel")).is_ok_and(|recorded| recorded.cut));
    }
}
