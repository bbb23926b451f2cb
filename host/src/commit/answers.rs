//! Answers of a group on their way to those who wait: serving threads, and peers.

use std::sync::atomic::Ordering;

use super::{Answer, Commits};
use crate::shard::writer::Answers;
use crate::shard::{Origin, Outcome};

/// What became of an operation that another node sent.
#[derive(Debug, Clone, Copy)]
pub struct PeerAnswer {
    pub shard: u32,
    pub producer: u128,
    pub seq: u64,
    pub outcome: Outcome,
}

/// Collected by one thread, and delivered with one lock and one wake-up for each who waits.
pub struct Collected {
    /// By inbox.
    local: Vec<Vec<Answer>>,
    peers: Vec<PeerAnswer>,
}

impl Collected {
    pub fn new(commits: &Commits) -> Self {
        Self { local: commits.inboxes.iter().map(|_| Vec::new()).collect(), peers: Vec::new() }
    }

    pub fn take(&mut self, commits: &Commits, shard: u32, answers: Answers) {
        for (origin, outcome) in answers {
            match origin {
                Origin::Local { ticket, index } => {
                    if let Some(inbox) = self.local.get_mut((ticket >> 32) as usize) {
                        inbox.push(Answer { slot: ticket as u32, index, outcome });
                    }
                }
                Origin::Relaxed if matches!(outcome, Outcome::NotApplied | Outcome::Unknown) => {
                    commits.stats.relaxed_lost.fetch_add(1, Ordering::Relaxed);
                }
                Origin::Relaxed => {}
                Origin::Peer { producer, seq, .. } => self.peers.push(PeerAnswer { shard, producer, seq, outcome }),
            }
        }
    }

    pub fn deliver(&mut self, commits: &Commits) {
        for (inbox, answers) in commits.inboxes.iter().zip(&mut self.local) {
            inbox.put(answers);
        }
        commits.peers.put(&mut self.peers);
    }
}
