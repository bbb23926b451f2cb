//! What a panic ends: one policy for the whole program.
//!
//! A panic while a request is answered ends that request: its client is answered 500, and what it held is released by
//! guards. A panic in a thread or task that owns state ends the process at once, because what it owned may be half
//! changed: a single process replays its log at the next start, and the shards of a node of a cluster go to others, which
//! fence it. Replaying a journal owns nothing yet: a panic there is damage of that shard, and the others go on.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;

use futures_util::FutureExt;

/// Exit code of a process that a panic has ended: EX_SOFTWARE of sysexits.h.
pub const EXIT_PANIC: i32 = 70;

/// Names the point at which a test makes the program panic; see [`point`].
const POINT_VARIABLE: &str = "QUIPU_TEST_PANIC_AT";

/// Held by whatever owns state. Dropped while its thread unwinds, it ends the process.
#[derive(Debug)]
pub struct Owner(&'static str);

impl Owner {
    /// `who` is named in the last line of the process.
    pub fn new(who: &'static str) -> Self {
        Self(who)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The panic's own message and place are printed already.
            eprintln!("quipu: {} has panicked, so the process ends; what was acknowledged is in the journal", self.0);
            std::process::exit(EXIT_PANIC);
        }
    }
}

/// A task that owns state.
pub async fn owned<T>(who: &'static str, task: impl Future<Output = T>) -> T {
    let _owner = Owner::new(who);
    task.await
}

/// Carries out what owns nothing that outlives it, such as the answer to a request. An error is the panic's message.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".into())
}

/// A place where a test can make the program panic: the environment of the process names it. Otherwise it does nothing.
pub fn point(name: &str) {
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var(POINT_VARIABLE).ok());
    assert!(chosen.as_deref() != Some(name), "a test asked for a panic at {name}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caught_panic_says_what_it_was() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let whole: Result<(), _> = caught(async { panic!("whole") }).await;
        let made: Result<(), _> = caught(async { panic!("made of {}", 2) }).await;
        assert_eq!((whole, made), (Err("whole".into()), Err("made of 2".into())));
    }
}
