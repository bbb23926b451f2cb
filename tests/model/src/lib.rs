//! The fenced journal of a shard: its specification, as a model that is checked exhaustively.
//!
//! # What it is for
//!
//! A shard has one writer, and the store sees to that: no clock and no lease does. The journal of a shard is a chain of
//! *segments* in Cassandra, each a partition. An owner may write as long as the segment at the end carries its epoch.
//! Any owner may stop or pause between any two steps, any write may arrive late or again, and any answer may be lost.
//!
//! # What is stored
//!
//! - In `shards`, one row: `epoch`; `pointer`, a segment from which the live one is reached; `position`, up to where the
//!   checkpoint goes and in which segment replay begins.
//! - A segment: static `epoch`, `tail`, `next`, and one row for each entry. It is *sealed* once `next` is set.
//!
//! # The rules
//!
//! 1. **Append**: one batch, INSERT the entry and SET tail = seq, IF epoch AND tail = seq - 1 AND next = null. An owner
//!    has one append in flight.
//! 2. **Outcome of an append**: the identical batch is sent again until it is answered. Applied, or refused with our
//!    entry at that seq: applied. Otherwise it was refused under a higher epoch: read that seq at SERIAL. Our entry:
//!    applied. No entry, in a partition that is there: not applied. No partition: unknown.
//! 3. **Takeover**: raise the epoch in `shards`, then read pointer and position; raise the epoch on the segment of the
//!    pointer IF it is lower, then read `tail` and `next`; follow `next` and do the same until there is none; replay
//!    from the position. A segment that is missing means start again from reading the row. An owner whose raise in
//!    `shards` has an unknown outcome raises once more, from what it reads then.
//! 4. **Rotation**, with no append in flight: create the next segment, under an id that is never used again (epoch,
//!    number), with our epoch and tail; `SET next` on the old one IF epoch AND tail AND next = null, which is the moment
//!    of rotation; then, at leisure, move the pointer IF epoch AND it is where we last knew it.
//! 5. **Create must lose to drop**: a copy of a create that arrives after the segment was dropped must not bring it
//!    back. In Cassandra: a plain write with a fixed timestamp below all others, so that it changes nothing that is
//!    there and the tombstone of the drop covers it.
//! 6. **Checkpoint**: partials first, then the position IF epoch AND it is where we last knew it.
//! 7. **Drop**: the oldest sealed segment, when we know that both pointer and position are in later ones.
//! 8. **Exact read**: answered with all that is journaled, once an append that was sent after the read arrived is known
//!    to be applied, or a SERIAL read of the epoch in `shards` that began after it arrived shows ours.
//!
//! # What it found
//!
//! - Rule 5. Otherwise an owner that paused over an append appends to the revived segment, and is told that it applied.
//! - In rules 4 and 6, IF epoch is not enough: a late copy of the same owner's own write would move pointer or position
//!   back, to a segment that it has since dropped.
//! - Two conditions are not needed as long as the rest holds: `next = null` on an append (an owner rotates only with
//!   none in flight, and every other owner has fenced it by epoch), and the epoch on the position once it is compared
//!   with the previous one. They cost nothing and stay.
//!
//! # Where to read next
//!
//! `store` has the conditions, `owner` the steps, `system` how requests travel and how much may happen, `properties`
//! what must hold, `variants` the broken protocols, `check` runs it. What is not covered: README.md.

pub mod check;
pub mod owner;
pub mod properties;
pub mod store;
pub mod system;
pub mod variants;
