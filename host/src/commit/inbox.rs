//! How answers come back to the serving threads: one inbox each, filled once per group commit.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::shard::Outcome;

/// Where the answers for one serving thread go, or others of this thread's news. One task waits on it.
#[derive(Debug)]
pub struct Inbox<T = Answer> {
    answers: Mutex<Vec<T>>,
    wake: Notify,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self { answers: Mutex::default(), wake: Notify::new() }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// The ticket's low half, which the serving thread drew.
    pub slot: u32,
    /// The operation's place among those of the slot.
    pub index: u32,
    pub outcome: Outcome,
}

impl<T> Inbox<T> {
    /// Waits for answers and swaps them into `into`, which must be empty.
    pub async fn take(&self, into: &mut Vec<T>) {
        loop {
            let woken = self.wake.notified();
            std::mem::swap(&mut *self.answers.lock(), into);
            if !into.is_empty() {
                return;
            }
            woken.await;
        }
    }

    /// Hands answers over, leaving `answers` empty.
    pub fn put(&self, answers: &mut Vec<T>) {
        if answers.is_empty() {
            return;
        }
        let mut waiting = self.answers.lock();
        if waiting.is_empty() {
            std::mem::swap(&mut *waiting, answers);
        } else {
            waiting.append(answers);
        }
        drop(waiting);
        self.wake.notify_one();
    }
}

/// A ticket names the serving thread and the slot that waits there.
pub fn ticket(inbox: u32, slot: u32) -> u64 {
    u64::from(inbox) << 32 | u64::from(slot)
}
