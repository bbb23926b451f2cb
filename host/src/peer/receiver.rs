//! What other nodes send: into the commit thread's queue, and the answers back on the stream they came by.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use super::wire::message::OperationOutcome;
use crate::commit::Commits;
use crate::shard::{Op, Origin, Outcome, Routes};

pub type Session = u64;

pub struct Receiver {
    commits: Arc<Commits>,
    /// What this node demands of additions besides what their senders do.
    holding: OnceLock<Holding>,
    state: Mutex<State>,
}

/// Changes an operation to what this node's own rules allow of it.
type Holding = Box<dyn Fn(&mut Op) + Send + Sync>;

#[derive(Debug, Default)]
struct State {
    last_session: Session,
    sessions: HashMap<Session, UnboundedSender<Vec<OperationOutcome>>>,
    routes: Routes<Session>,
}

impl Receiver {
    pub fn new(commits: Arc<Commits>) -> Arc<Self> {
        Arc::new(Self { commits, holding: OnceLock::new(), state: Mutex::default() })
    }

    /// Everything that is accepted from now on goes through this first. Said once, before anything is.
    pub fn hold_to(&self, own_rules: impl Fn(&mut Op) + Send + Sync + 'static) {
        if self.holding.set(Box::new(own_rules)).is_err() {
            tracing::error!("what a node demands of operations is said once");
        }
    }

    /// Outcomes of what comes by this session go to `outcomes`, several at a time.
    pub fn open(&self, outcomes: UnboundedSender<Vec<OperationOutcome>>) -> Session {
        let mut state = self.state.lock();
        state.last_session += 1;
        let session = state.last_session;
        state.sessions.insert(session, outcomes);
        session
    }

    pub fn close(&self, session: Session) {
        let mut state = self.state.lock();
        state.sessions.remove(&session);
        state.routes.ended(session);
    }

    /// Operations with their rounds, in the order of their sequences for each producer and shard.
    pub fn accept(&self, session: Session, mut operations: Vec<(Op, u64)>) {
        if let Some(hold) = self.holding.get() {
            operations.iter_mut().for_each(|(op, _)| hold(op));
        }
        // Held until their ways back are known: nothing is answered before.
        let mut state = self.state.lock();
        let taken = self.commits.submit(operations.iter().map(|(op, _)| op.clone()).collect::<Vec<_>>().into_iter());
        if taken.is_ok() {
            for (op, round) in &operations {
                state.routes.came(session, *round, op);
            }
            return;
        }
        // By the stream that they came by: copies of them that came before have answers of their own.
        let refused = operations.iter().filter_map(|(op, round)| {
            let (_, shard, seq) = sequence(op)?;
            Some(OperationOutcome::new(shard, seq, *round, Outcome::NotApplied))
        });
        state.send(session, refused.collect());
    }

    /// Hands answers on, for as long as the commit thread lives.
    pub async fn run(self: Arc<Self>) {
        let mut answers = Vec::new();
        loop {
            self.commits.peers.take(&mut answers).await;
            let answers = answers.drain(..).map(|answer| ((answer.producer, answer.shard, answer.seq), answer.outcome));
            self.state.lock().answer(answers);
        }
    }

    /// Another node serves the shard now: what was not answered here never will be.
    pub fn forget(&self, shard: u32) {
        self.state.lock().routes.forget(shard);
    }
}

impl State {
    fn answer(&mut self, answers: impl Iterator<Item = ((u128, u32, u64), Outcome)>) {
        let mut by_session: HashMap<Session, Vec<OperationOutcome>> = HashMap::new();
        for ((producer, shard, seq), outcome) in answers {
            let Some((session, round)) = self.routes.back(producer, shard, seq) else { continue };
            by_session.entry(session).or_default().push(OperationOutcome::new(shard, seq, round, outcome));
        }
        for (session, outcomes) in by_session {
            self.send(session, outcomes);
        }
    }

    fn send(&self, session: Session, outcomes: Vec<OperationOutcome>) {
        if let Some(sender) = self.sessions.get(&session) {
            // A stream that ended has closed its session, or is about to.
            let _ = sender.send(outcomes);
        }
    }
}

fn sequence(op: &Op) -> Option<(u128, u32, u64)> {
    match op.origin {
        Origin::Peer { producer, seq, .. } => Some((producer, op.shard, seq)),
        Origin::Local { .. } | Origin::Relaxed => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::commit::tests::{Node, SHARDS};
    use crate::counter::{Bounds, Id, key_hash};
    use crate::shard::Kind;
    use crate::store::memory::MemoryStore;

    /// The first sequence of a producer, for shard 0.
    fn op() -> Op {
        Op {
            shard: 0,
            counter: Id::new("c").expect("valid"),
            hash: key_hash("c"),
            kind: Kind::Add { amount: 1, bounds: Bounds::NONE },
            key: None,
            origin: Origin::Peer { producer: 7, seq: 1, acked: 0, as_of_ms: 0 },
            at_ms: 5,
        }
    }

    #[test]
    fn a_copy_that_is_refused_at_once_takes_no_answer_of_an_earlier_one() {
        let store = Arc::new(MemoryStore::new(SHARDS));
        let node = Node::on(&store);
        node.wait(node.commits.take_over(0)).expect("taken over");
        store.delay_appends(Duration::from_millis(500));
        let receiver = Receiver::new(node.commits.clone());
        let ((to_old, mut old), (to_new, mut new)) = (unbounded_channel(), unbounded_channel());
        let (old_session, new_session) = (receiver.open(to_old), receiver.open(to_new));

        receiver.accept(old_session, vec![(op(), 1)]);
        let mut reserved = 0;
        while node.commits.reserve(1).is_ok() {
            reserved += 1;
        }
        receiver.accept(new_session, vec![(op(), 2)]);
        node.commits.unreserve(reserved);
        let refused = OperationOutcome::new(0, 1, 2, Outcome::NotApplied);
        assert_eq!(node.wait(new.recv()), Some(vec![refused]));

        let applied = OperationOutcome::new(0, 1, 1, Outcome::Applied { value: 1, replayed: false });
        let heard = node.wait(async {
            tokio::select! {
                () = receiver.run() => None,
                heard = old.recv() => heard,
            }
        });
        assert_eq!(heard, Some(vec![applied]));
    }
}
