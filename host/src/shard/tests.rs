//! The writer and journal time: what an entry carries, and what is remembered under it.

use std::sync::Arc;

use super::writer::{Append, Effect, Event};
use super::*;
use crate::counter::{Bounds, Id, key_hash};

struct Shard {
    writer: Writer,
    partials: Partials,
}

impl Shard {
    fn new() -> Self {
        let mut partials = Partials::default();
        partials.load(key_hash("c"), &Id::new("c").expect("valid"), None);
        Self { writer: Writer::new(0, 1, 1, 1_000), partials }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.writer.step(&self.partials, event, &mut effects);
        effects
    }

    /// Has one operation decided at this journal time. The entry that was written, if there was one, and the outcome.
    fn write(&mut self, origin: Origin, time_ms: Option<u64>) -> (Option<Arc<Entry>>, Outcome) {
        let id = Id::new("c").expect("valid");
        let kind = Kind::Add { amount: 1, bounds: Bounds::NONE };
        let op = Op { shard: 0, hash: key_hash("c"), counter: id, kind, key: None, origin, at_ms: 7 };
        self.step(Event::Submit(op));
        let sealed = self.step(Event::Seal { entry_id: 1, time_ms });
        let entry = sealed.into_iter().find_map(|effect| match effect {
            Effect::Append(entry) => Some(entry),
            _ => None,
        });
        let mut outcome = None;
        for effect in self.step(Event::Appended(Append::Applied)) {
            match effect {
                Effect::Apply(entry, slots) => self.partials.apply_at(&entry, &slots),
                Effect::Answer(answers) => outcome = answers.first().map(|(_, outcome)| *outcome),
                other => panic!("{other:?}"),
            }
        }
        (entry, outcome.expect("an answer"))
    }
}

fn peer(producer: u128, seq: u64, as_of_ms: u64) -> Origin {
    Origin::Peer { producer, seq, acked: 0, as_of_ms }
}

fn applied(value: i64) -> Outcome {
    Outcome::Applied { value, replayed: false }
}

#[test]
fn journal_time_never_goes_back_nor_is_it_given_up() {
    let mut shard = Shard::new();
    let mut written = |time_ms| shard.write(Origin::Relaxed, time_ms).0.expect("an entry").time_ms;
    assert_eq!(written(None), None, "the cluster writes format 1");
    assert_eq!(written(Some(500)), Some(500));
    assert_eq!(written(Some(400)), Some(500));
    assert_eq!(written(None), Some(500));
    assert_eq!(written(Some(600)), Some(600));
}

#[test]
fn a_stamp_of_an_earlier_owner_keeps_its_mark_until_a_horizon_above_it() {
    let mut shard = Shard::new();
    // That owner's time had gone on for long, and no entry carried it to this one.
    let stamped = peer(9, 1, 5_000);
    assert_eq!(shard.write(stamped, Some(1_000)).1, applied(1));
    shard.step(Event::ExpireMarks { lifetime_ms: 100 });
    assert_eq!(shard.write(peer(8, 1, 0), Some(2_000)).1, applied(2), "nothing was forgotten yet");
    assert_eq!(shard.write(stamped, Some(2_000)).1, applied(1), "its first outcome");
    shard.step(Event::ExpireMarks { lifetime_ms: 100 });
    shard.write(Origin::Relaxed, Some(6_000));
    let (entry, outcome) = shard.write(stamped, Some(6_000));
    assert_eq!(outcome, Outcome::Refused(Refusal::Forgotten { time_ms: 6_000 }), "a late copy counts no second time");
    assert_eq!(entry, None);
}
