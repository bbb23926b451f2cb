//! What stands between a recorded instance and the host: it writes down what the host answers, or answers in the
//! host's place when the recording is run again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use wasmtime_wasi::clocks::{HostMonotonicClock, HostWallClock};

use super::format::{Because, Blob, Heard, Line, Seed};
use super::recorder::Recorder;
use crate::policy::imports::backend::{Backend, Error, Space};
use crate::policy::limits;

/// What a binding's instances are made with: nothing, as a rule.
#[derive(Default)]
pub(in crate::policy) struct Taping {
    /// The recorder's id; 0 for none.
    recording: AtomicU64,
    source: Mutex<Source>,
}

#[derive(Default)]
enum Source {
    #[default]
    None,
    /// And the rule's prefix.
    Recorder(Arc<Recorder>, String),
    Player(Arc<Tape>),
}

impl Taping {
    /// Which recording is under way; 0 for none. Instances of another one, or of none, must be made anew.
    pub fn recording(&self) -> u64 {
        self.recording.load(Ordering::Relaxed)
    }

    /// Fails when another recording is under way.
    pub fn record(&self, recorder: &Arc<Recorder>, rule: &str) -> Result<(), ()> {
        let mut source = self.source.lock();
        if !matches!(*source, Source::None) {
            return Err(());
        }
        *source = Source::Recorder(recorder.clone(), rule.to_owned());
        self.recording.store(recorder.id, Ordering::Relaxed);
        Ok(())
    }

    pub fn end(&self, id: u64) {
        let mut source = self.source.lock();
        if matches!(&*source, Source::Recorder(recorder, _) if recorder.id == id) {
            *source = Source::None;
            self.recording.store(0, Ordering::Relaxed);
        }
    }

    /// The instance that is made next gets its answers from this tape.
    pub fn play(&self, tape: &Arc<Tape>) {
        *self.source.lock() = Source::Player(tape.clone());
    }

    /// For a new instance.
    pub fn tape(&self) -> Option<Arc<Tape>> {
        match &*self.source.lock() {
            Source::None => None,
            Source::Recorder(recorder, _) => Some(Arc::new(Tape::recording(recorder))),
            Source::Player(tape) => Some(tape.clone()),
        }
    }

    /// Prefix of the rule that is recorded.
    pub fn rule(&self) -> String {
        match &*self.source.lock() {
            Source::Recorder(_, rule) => rule.clone(),
            Source::None | Source::Player(_) => String::new(),
        }
    }
}

pub(in crate::policy) struct Tape {
    seed: Seed,
    mode: Mode,
}

enum Mode {
    Record {
        recorder: Arc<Recorder>,
        instance: u64,
        /// During the call that is under way.
        heard: Mutex<Vec<Heard>>,
    },
    Play(Mutex<Played>),
}

#[derive(Default)]
struct Played {
    /// Of the call that is under way, in its order; None: was answered already.
    heard: Vec<Option<Heard>>,
    /// The newest answer to a question that has been heard in any call.
    last: HashMap<String, Heard>,
    /// Questions that nothing in the recording answers.
    unanswered: u64,
}

impl Tape {
    fn recording(recorder: &Arc<Recorder>) -> Self {
        let (recorder, instance) = (recorder.clone(), recorder.instance());
        Self { seed: Seed::draw(), mode: Mode::Record { recorder, instance, heard: Mutex::default() } }
    }

    pub fn playing(seed: Seed) -> Self {
        Self { seed, mode: Mode::Play(Mutex::default()) }
    }

    pub fn seed(&self) -> Seed {
        self.seed
    }

    /// The recorder's id; 0 when it plays.
    pub fn id(&self) -> u64 {
        match &self.mode {
            Mode::Record { recorder, .. } => recorder.id,
            Mode::Play(_) => 0,
        }
    }

    /// Takes down the line of the call that has ended, given the instance's number and what the host answered it.
    pub fn write(&self, line: impl FnOnce(u64, Vec<Heard>) -> Line) {
        if let Mode::Record { recorder, instance, heard } = &self.mode
            && !recorder.closed()
        {
            recorder.take(&line(*instance, std::mem::take(&mut heard.lock())));
        }
    }

    /// The host's answers during the next call that is run again.
    pub fn load(&self, answers: &[Heard]) {
        if let Mode::Play(played) = &self.mode {
            let mut played = played.lock();
            for answer in answers {
                played.last.insert(question(answer), answer.clone());
            }
            played.heard = answers.iter().cloned().map(Some).collect();
        }
    }

    /// How often the host had no answer in a call that was run again.
    pub fn unanswered(&self) -> u64 {
        match &self.mode {
            Mode::Record { .. } => 0,
            Mode::Play(played) => played.lock().unanswered,
        }
    }

    /// What the host answers: `live` asks it, in a recording; else the recorded answer to the same question.
    pub fn answer(&self, question_of: impl FnOnce() -> String, live: impl FnOnce() -> Heard) -> Option<Heard> {
        match &self.mode {
            Mode::Record { .. } => {
                let answer = live();
                self.hear(|| answer.clone());
                Some(answer)
            }
            Mode::Play(played) => played.lock().answer(&question_of()),
        }
    }

    fn hear(&self, answer: impl FnOnce() -> Heard) {
        let Mode::Record { recorder, heard, .. } = &self.mode else { return };
        if recorder.closed() {
            return;
        }
        let mut heard = heard.lock();
        if heard.len() >= limits::HEARD_MAX {
            return recorder.close(Because::HostCalls);
        }
        heard.push(answer());
    }

    pub fn node_cpu(&self, live: f64) -> f64 {
        match self.answer(|| "node-cpu".into(), || Heard::NodeCpu { cpu: live }) {
            Some(Heard::NodeCpu { cpu }) => cpu,
            _ => 0.0,
        }
    }

    /// What `registry` and `storage` see.
    pub fn backend(self: &Arc<Self>, behind: Option<Arc<dyn Backend>>) -> Option<Arc<dyn Backend>> {
        match self.mode {
            Mode::Record { .. } => Some(Arc::new(Heeding { tape: self.clone(), behind: behind? })),
            Mode::Play(_) => Some(Arc::new(Playing(self.clone()))),
        }
    }
}

impl Played {
    /// The first answer of this call that was not given yet, else the newest of any call.
    fn answer(&mut self, asked: &str) -> Option<Heard> {
        let next = self.heard.iter_mut().find(|answer| answer.as_ref().is_some_and(|answer| question(answer) == asked));
        let answer = next.and_then(Option::take).or_else(|| self.last.get(asked).cloned());
        self.unanswered += u64::from(answer.is_none());
        answer
    }
}

/// What was asked, so that the same question gives the same text.
fn question(answer: &Heard) -> String {
    match answer {
        Heard::WallClock { .. } => "wall-clock".into(),
        Heard::MonotonicClock { .. } => "monotonic-clock".into(),
        Heard::NodeCpu { .. } => "node-cpu".into(),
        Heard::Get { space, key, .. } => asked::get(*space, key),
        Heard::List { space, prefix, limit, .. } => asked::list(*space, prefix, *limit),
        Heard::Put { space, key, .. } => asked::put(*space, key),
        Heard::Delete { space, key, .. } => asked::delete(*space, key),
        Heard::Partial { counter, shard, .. } => asked::partial(counter, *shard),
    }
}

/// Texts of questions.
pub(in crate::policy) mod asked {
    use super::Space;

    pub fn get(space: Space, key: &str) -> String {
        format!("get {space:?} {key}")
    }
    pub fn list(space: Space, prefix: &str, limit: usize) -> String {
        format!("list {space:?} {limit} {prefix}")
    }
    pub fn put(space: Space, key: &str) -> String {
        format!("put {space:?} {key}")
    }
    pub fn delete(space: Space, key: &str) -> String {
        format!("delete {space:?} {key}")
    }
    pub fn partial(counter: &str, shard: u32) -> String {
        format!("partial {shard} {counter}")
    }
}

/// Passes everything on and writes down the answers. One that comes too late for its call is not heard of.
struct Heeding {
    tape: Arc<Tape>,
    behind: Arc<dyn Backend>,
}

#[async_trait]
impl Backend for Heeding {
    async fn get(&self, space: Space, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let answer = self.behind.get(space, plugin, key).await;
        self.tape.hear(|| Heard::Get { space, key: key.into(), answer: answer.clone().map(|value| value.map(Blob)) });
        answer
    }

    async fn list(
        &self,
        space: Space,
        plugin: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let answer = self.behind.list(space, plugin, prefix, limit).await;
        self.tape.hear(|| {
            let blobs = |list: Vec<(String, Vec<u8>)>| list.into_iter().map(|(key, value)| (key, Blob(value)));
            let answer = answer.clone().map(|list| blobs(list).collect());
            Heard::List { space, prefix: prefix.into(), limit, answer }
        });
        answer
    }

    async fn put(&self, space: Space, plugin: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        let answer = self.behind.put(space, plugin, key, value).await;
        self.tape.hear(|| Heard::Put { space, key: key.into(), answer: answer.clone() });
        answer
    }

    async fn delete(&self, space: Space, plugin: &str, key: &str) -> Result<(), Error> {
        let answer = self.behind.delete(space, plugin, key).await;
        self.tape.hear(|| Heard::Delete { space, key: key.into(), answer: answer.clone() });
        answer
    }

    async fn partial(&self, counter: &str, shard: u32) -> Result<Option<i64>, Error> {
        let answer = self.behind.partial(counter, shard).await;
        self.tape.hear(|| Heard::Partial { counter: counter.into(), shard, answer: answer.clone() });
        answer
    }
}

/// Answers from the recording. What nothing was heard about is unavailable, and a write is taken.
struct Playing(Arc<Tape>);

impl Playing {
    fn heard(&self, asked: String) -> Option<Heard> {
        match &self.0.mode {
            Mode::Play(played) => played.lock().answer(&asked),
            Mode::Record { .. } => None,
        }
    }
}

#[async_trait]
impl Backend for Playing {
    async fn get(&self, space: Space, _: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.heard(asked::get(space, key)) {
            Some(Heard::Get { answer, .. }) => answer.map(|value| value.map(|Blob(value)| value)),
            _ => Err(Error::Unavailable),
        }
    }

    async fn list(&self, space: Space, _: &str, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        match self.heard(asked::list(space, prefix, limit)) {
            Some(Heard::List { answer, .. }) => {
                answer.map(|list| list.into_iter().map(|(key, Blob(value))| (key, value)).collect())
            }
            _ => Err(Error::Unavailable),
        }
    }

    async fn put(&self, space: Space, _: &str, key: &str, _: &[u8]) -> Result<(), Error> {
        match self.heard(asked::put(space, key)) {
            Some(Heard::Put { answer, .. }) => answer,
            _ => Ok(()),
        }
    }

    async fn delete(&self, space: Space, _: &str, key: &str) -> Result<(), Error> {
        match self.heard(asked::delete(space, key)) {
            Some(Heard::Delete { answer, .. }) => answer,
            _ => Ok(()),
        }
    }

    async fn partial(&self, counter: &str, shard: u32) -> Result<Option<i64>, Error> {
        match self.heard(asked::partial(counter, shard)) {
            Some(Heard::Partial { answer, .. }) => answer,
            _ => Err(Error::Unavailable),
        }
    }
}

/// The clocks of an instance with a tape.
pub(in crate::policy) struct Clocks {
    tape: Arc<Tape>,
    /// What the monotonic clock counts from.
    began: std::time::Instant,
}

impl Clocks {
    pub fn new(tape: &Arc<Tape>) -> Self {
        Self { tape: tape.clone(), began: std::time::Instant::now() }
    }
}

impl HostWallClock for Clocks {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        let live = || Heard::WallClock { ns: nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()) };
        match self.tape.answer(|| "wall-clock".into(), live) {
            Some(Heard::WallClock { ns }) => Duration::from_nanos(ns),
            _ => Duration::ZERO,
        }
    }
}

impl HostMonotonicClock for Clocks {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        let live = || Heard::MonotonicClock { ns: nanos(self.began.elapsed()) };
        match self.tape.answer(|| "monotonic-clock".into(), live) {
            Some(Heard::MonotonicClock { ns }) => ns,
            _ => 0,
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_played_tape_answers_in_order_and_then_with_the_newest() {
        let tape = Tape::playing(Seed([0; 32]));
        let clock = |tape: &Tape| tape.answer(|| "wall-clock".into(), || unreachable!("it plays"));
        assert_eq!((clock(&tape), tape.unanswered()), (None, 1));
        tape.load(&[Heard::WallClock { ns: 1 }, Heard::NodeCpu { cpu: 0.5 }, Heard::WallClock { ns: 2 }]);
        assert_eq!(tape.node_cpu(0.9), 0.5);
        for ns in [1, 2, 2, 2] {
            assert_eq!(clock(&tape), Some(Heard::WallClock { ns }));
        }
        tape.load(&[]);
        assert_eq!((clock(&tape), tape.unanswered()), (Some(Heard::WallClock { ns: 2 }), 1));
    }
}
