//! Producers on other nodes, and the streams that they use.

use quipu::shard::producer;
use quipu::shard::writer::Event;
use quipu::shard::{Kind, Origin, Outcome};

use super::super::Mutation;
use super::super::streams::Stream;
use super::{NODES, World};

impl World {
    pub(super) fn produce(&mut self, peer: usize, event: producer::Event) {
        let mut effects = Vec::new();
        self.peers[peer].producer.step(event, &mut effects);
        let round = self.peers[peer].producer.round();
        for effect in effects {
            match effect {
                producer::Effect::Send(mut op) => {
                    if let (Some(Mutation::StampsOfWallClocks), Origin::Peer { as_of_ms, .. }) =
                        (self.mutation, &mut op.origin)
                    {
                        *as_of_ms = self.wall_ms(NODES + peer);
                    }
                    self.summary.skips += u64::from(op.kind == Kind::Skip);
                    if let Some(stream) = self.peers[peer].stream {
                        self.streams[stream].to_node.push_back((round, op));
                    }
                }
                producer::Effect::Answer { token, outcome } => {
                    let (nth, _) = self.peers[peer].tokens.remove(&token).expect("a token is answered once");
                    self.count(outcome);
                    self.note(|world| {
                        let op = &world.sums.ops[nth];
                        format!("token {token}: sum/{} bit {} key {:?}: {outcome:?}", op.counter, op.bit, op.key)
                    });
                    self.sums.told(nth, outcome);
                }
                producer::Effect::RetryLater => self.peers[peer].wants_retry = true,
                producer::Effect::DrawId => self.peers[peer].wants_id = true,
            }
        }
    }

    /// A producer connects, tries again, or gets the id that it wants.
    pub(super) fn peer_acts(&mut self) {
        let nth = self.rng.below(self.peers.len());
        if self.peers[nth].wants_id {
            self.peers[nth].wants_id = false;
            self.summary.renamed += 1;
            let producer = u128::from(self.rng.next() | 2);
            self.note(|_| format!("peer {nth} begins anew"));
            self.produce(nth, producer::Event::Renamed { producer });
        } else if self.peers[nth].stream.is_none() {
            self.connect(nth);
        } else if std::mem::take(&mut self.peers[nth].wants_retry) {
            self.produce(nth, producer::Event::Retry);
        }
    }

    pub(super) fn connect(&mut self, peer: usize) {
        let node = self.some_node();
        if !self.nodes[node].serves() {
            return;
        }
        let life = self.nodes[node].life;
        let (to_node, to_peer) = Default::default();
        self.streams.push(Stream { peer, node, life, open: true, to_node, to_peer });
        self.peers[peer].stream = Some(self.streams.len() - 1);
        if self.mutation == Some(Mutation::NewSequencesOnReconnect) {
            let again: Vec<(u64, usize)> =
                self.peers[peer].tokens.iter().map(|(&token, &(nth, _))| (token, nth)).collect();
            self.peers[peer].producer = producer::Producer::new(u128::from(self.rng.next() | 2));
            for (token, nth) in again {
                let op = self.sums.op(nth, Origin::Relaxed);
                self.produce(peer, producer::Event::Submit { token, op });
            }
        }
        self.produce(peer, producer::Event::Connected);
    }

    pub(super) fn cut_a_stream(&mut self) {
        let open: Vec<usize> = (0..self.streams.len()).filter(|&nth| self.streams[nth].open).collect();
        if !open.is_empty() {
            let nth = open[self.rng.below(open.len())];
            self.cut(nth);
        }
    }

    /// The producer sees the stream end. What is on it may be delivered still, or only in part.
    pub(super) fn cut(&mut self, nth: usize) {
        let stream = &mut self.streams[nth];
        stream.open = false;
        let kept = self.rng.below(stream.to_node.len() + 1);
        stream.to_node.truncate(kept);
        let kept = self.rng.below(stream.to_peer.len() + 1);
        stream.to_peer.truncate(kept);
        let (peer, nothing_follows) = (stream.peer, stream.to_node.is_empty());
        if nothing_follows && self.rng.percent(50) {
            self.ended(nth);
        }
        self.peers[peer].stream = None;
        self.produce(peer, producer::Event::Disconnected);
    }

    /// The node sees the stream end, behind everything that came by it. Its operations are with the writer all the same.
    fn ended(&mut self, nth: usize) {
        let at = self.streams[nth].node;
        if self.nodes[at].life == self.streams[nth].life {
            self.summary.ended += 1;
            self.nodes[at].routes.ended(nth);
        }
    }

    /// Streams with something to deliver; one that broke is seldom in a hurry.
    pub(super) fn busy_stream(&mut self, has: impl Fn(&Stream) -> bool) -> Option<usize> {
        let busy: Vec<usize> = (0..self.streams.len()).filter(|&nth| has(&self.streams[nth])).collect();
        if busy.is_empty() {
            return None;
        }
        let nth = busy[self.rng.below(busy.len())];
        (self.calm || self.streams[nth].open || self.rng.percent(15)).then_some(nth)
    }

    pub(super) fn deliver_to_node(&mut self) {
        let Some(nth) = self.busy_stream(|stream| !stream.to_node.is_empty()) else { return };
        for _ in 0..1 + self.rng.below(4) {
            let stream = &mut self.streams[nth];
            let at = stream.node;
            let Some((round, op)) = stream.to_node.pop_front() else {
                if !stream.open {
                    self.ended(nth);
                }
                return;
            };
            if self.nodes[at].life != stream.life {
                stream.to_node.clear();
                return;
            }
            let Origin::Peer { seq, .. } = op.origin else { panic!("producers send as peers") };
            if self.nodes[at].serves() {
                self.nodes[at].routes.came(nth, round, &op);
                self.step(at, Event::Submit(op));
            } else {
                self.streams[nth].to_peer.push_back((round, seq, Outcome::NotApplied));
            }
        }
    }

    pub(super) fn deliver_to_peer(&mut self) {
        let Some(nth) = self.busy_stream(|stream| !stream.to_peer.is_empty()) else { return };
        let stream = &mut self.streams[nth];
        let peer = stream.peer;
        if let Some((round, seq, outcome)) = stream.to_peer.pop_front() {
            self.produce(peer, producer::Event::Answered { round, seq, outcome });
        }
    }

    /// The deadline of a producer's operation passes.
    pub(super) fn time_out(&mut self) {
        let peer = self.rng.below(self.peers.len());
        let late = self.peers[peer].tokens.iter().find(|(_, (_, deadline))| *deadline <= self.now_ms);
        if let Some((&token, _)) = late {
            self.produce(peer, producer::Event::Expired { token });
        }
    }
}
