//! The way back: which stream brought which copy of a producer's sequence.
//!
//! A sequence can be under way more than once, by an old stream and by a new one. A shard answers copies in the order in
//! which they came, and so they are taken here. A copy whose stream ended keeps its place until it is answered: were its
//! answer given to the next copy, a gap before an old copy would be told of a new one, and the producer would begin anew
//! with operations that the new copies are about to apply.

use std::collections::{BTreeMap, VecDeque};

use super::{Op, Origin};

/// The stream and round of a copy; None where the stream ended.
type Copied<S> = Option<(S, u64)>;

/// `S` names a stream.
#[derive(Debug)]
pub struct Routes<S> {
    /// Of each copy that is under way, by (producer, shard, sequence).
    copies: BTreeMap<(u128, u32, u64), VecDeque<Copied<S>>>,
}

impl<S> Default for Routes<S> {
    fn default() -> Self {
        Self { copies: BTreeMap::new() }
    }
}

impl<S: Copy + PartialEq> Routes<S> {
    /// A copy came, and the shard will answer it. Only a peer's have a way back.
    pub fn came(&mut self, stream: S, round: u64, op: &Op) {
        if let Origin::Peer { producer, seq, .. } = op.origin {
            self.copies.entry((producer, op.shard, seq)).or_default().push_back(Some((stream, round)));
        }
    }

    /// The shard answered a copy: the stream and round that its answer goes to, if the stream is still there.
    pub fn back(&mut self, producer: u128, shard: u32, seq: u64) -> Option<(S, u64)> {
        let copies = self.copies.get_mut(&(producer, shard, seq))?;
        let copy = copies.pop_front().flatten();
        if copies.is_empty() {
            self.copies.remove(&(producer, shard, seq));
        }
        copy
    }

    /// The stream ended: the answers to its copies go nowhere.
    pub fn ended(&mut self, stream: S) {
        for copy in self.copies.values_mut().flatten() {
            *copy = copy.filter(|&(of, _)| of != stream);
        }
    }

    /// Another node serves the shard now: what was not answered here never will be.
    pub fn forget(&mut self, shard: u32) {
        self.copies.retain(|&(_, of, _), _| of != shard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::Id;
    use crate::shard::Kind;

    fn op(shard: u32, seq: u64) -> Op {
        let counter = Id::new("c").unwrap();
        let origin = Origin::Peer { producer: 1, seq, acked: 0, as_of_ms: 0 };
        Op { shard, counter, hash: 0, kind: Kind::Skip, key: None, origin, at_ms: 0 }
    }

    #[test]
    fn copies_are_answered_in_the_order_in_which_they_came() {
        let mut routes = Routes::default();
        routes.came('a', 1, &op(0, 7));
        routes.came('b', 2, &op(0, 7));
        assert_eq!(routes.back(1, 0, 7), Some(('a', 1)));
        assert_eq!(routes.back(1, 0, 7), Some(('b', 2)));
        assert_eq!(routes.back(1, 0, 7), None);
    }

    #[test]
    fn ended_streams_and_lost_shards_have_no_way_back() {
        let mut routes = Routes::default();
        for shard in [0, 1] {
            routes.came('a', 1, &op(shard, 1));
            routes.came('b', 1, &op(shard, 1));
        }
        routes.ended('a');
        routes.forget(1);
        assert_eq!(routes.back(1, 0, 1), None, "the answer to the first copy is not the second one's");
        assert_eq!(routes.back(1, 0, 1), Some(('b', 1)));
        assert_eq!(routes.back(1, 1, 1), None);
        assert!(routes.copies.is_empty());
    }
}
