//! What must always hold, and what must be reached so that it was put to the test.

use stateright::Property;

use crate::owner::{Owner, Serving};
use crate::store::{Answer, Request};
use crate::system::{Journal, State, Told};

/// Every property of the model.
pub fn all() -> Vec<Property<Journal>> {
    vec![
        Property::always("an acknowledged entry is in the journal, at its seq and once", |_, state| {
            acknowledged(state)
        }),
        Property::always("no two acknowledged entries have the same seq", |_, state| one_owner_per_seq(state)),
        Property::always("what is `not applied` is never in the journal", |_, state| not_applied(state)),
        Property::always("the journal can be read back, and its seqs are dense", |_, state| readable(state)),
        Property::always("a takeover finds the segment of the pointer", |_, state| pointer_is_there(state)),
        Property::always("an exact read is not below what was acknowledged before it", |_, state: &State| {
            !state.read_below
        }),
        Property::sometimes("two owners serve, one of them fenced", |_, state| serving(state).count() == 2),
        Property::sometimes("a takeover between create and seal", |_, state| orphan_segment(state)),
        Property::sometimes("a takeover between seal and pointer", |_, state| followed_next(state)),
        Property::sometimes("an owner whose segment was dropped", |_, state| stands_on_dropped(state)),
        Property::sometimes("a late append of an earlier epoch", |_, state| late_append(state)),
        Property::sometimes("an append that applied and is refused to its repetition", |_, state| repeated(state)),
        Property::sometimes("an outcome that nobody can know", |_, state| told(state, Told::Unknown)),
        Property::sometimes("an append that is settled as not applied", |_, state| told(state, Told::NotApplied)),
        Property::sometimes("an entry known only from the checkpoint", |_, state| trimmed(state)),
        Property::sometimes("an exact read that was answered", |_, state| read_answered(state)),
    ]
}

fn journal(state: &State) -> Option<Vec<u8>> {
    state.store.replay(&state.store.shard.position).ok().map(|(log, _)| log)
}

/// Journal or checkpoint: replay begins with what the checkpoint covers. A journal that cannot be read has lost it all.
fn acknowledged(state: &State) -> bool {
    let log = journal(state).unwrap_or_default();
    state.told.iter().enumerate().all(|(op, told)| match told {
        Told::Applied(seq) => {
            log.get(usize::from(*seq) - 1) == Some(&(op as u8))
                && log.iter().filter(|entry| usize::from(**entry) == op).count() == 1
        }
        _ => true,
    })
}

fn one_owner_per_seq(state: &State) -> bool {
    let applied: Vec<_> = state.told.iter().filter(|told| matches!(told, Told::Applied(_))).collect();
    applied.iter().enumerate().all(|(i, told)| !applied[..i].contains(told))
}

fn not_applied(state: &State) -> bool {
    let log = journal(state).unwrap_or_default();
    state.told.iter().enumerate().all(|(op, told)| *told != Told::NotApplied || !log.contains(&(op as u8)))
}

fn readable(state: &State) -> bool {
    journal(state).is_some()
}

fn pointer_is_there(state: &State) -> bool {
    state.store.segments.contains_key(&state.store.shard.pointer)
}

fn serving(state: &State) -> impl Iterator<Item = &Serving> {
    state.owners.iter().filter_map(|owner| match owner {
        Owner::Serving(serving) => Some(serving),
        _ => None,
    })
}

/// A segment to which nothing will ever link, beside a later owner that serves.
fn orphan_segment(state: &State) -> bool {
    let linked = |id| state.store.segments.values().any(|segment| segment.next == Some(id));
    let orphan = |epoch| state.store.segments.keys().any(|id| id.epoch > 0 && id.epoch < epoch && !linked(*id));
    serving(state).any(|owner| state.store.dropped.is_empty() && orphan(owner.epoch))
}

fn followed_next(state: &State) -> bool {
    serving(state).any(|owner| owner.segment.epoch < owner.epoch && owner.pointer != owner.segment)
}

fn stands_on_dropped(state: &State) -> bool {
    serving(state).any(|owner| owner.waiting.is_some() && state.store.dropped.contains(&owner.segment))
}

/// One that the segment's epoch does not refuse yet, though the shard's epoch is past it.
fn late_append(state: &State) -> bool {
    state
        .late
        .iter()
        .any(|request| matches!(request, Request::Append { epoch, .. } if *epoch < state.store.shard.epoch))
}

/// Refused under a higher epoch, when an earlier copy had applied.
fn repeated(state: &State) -> bool {
    serving(state).any(|owner| {
        let answer = owner.waiting.as_ref().and_then(|waiting| waiting.answer.as_ref());
        matches!(answer, Some(Answer::Refused { epoch: Some(epoch), done: true }) if *epoch > owner.epoch)
    })
}

fn told(state: &State, what: Told) -> bool {
    state.told.contains(&what)
}

fn trimmed(state: &State) -> bool {
    let in_segments = |op: &u8| state.store.segments.values().any(|segment| segment.entries.values().any(|e| e == op));
    state.store.shard.position.covered.iter().any(|op| !in_segments(op))
}

/// One that had something to miss.
fn read_answered(state: &State) -> bool {
    state.reads > 0 && state.acknowledged() > 0 && serving(state).all(|owner| owner.read.is_none())
}
