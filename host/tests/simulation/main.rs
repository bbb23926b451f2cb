//! A seeded simulation of one shard: owners that take it over from each other, crash and are fenced; appends that are
//! delayed, lost, refused or of unknown outcome; producers on streams that break; callers that retry with keys;
//! checkpoints, evictions and readers in between; and wall clocks that step by days or stand still, each machine's its own.
//! It runs exactly the state machines of `quipu::shard`.
//!
//! What must hold: an acknowledged operation counts once, a refused one never, an unknown one at most once and exactly
//! once when it is retried with its key; an accepted relaxed one counts once, unless it was in the memory of a node that
//! crashed or in an append that nobody settled; nothing is visible that is not journaled; reads of a growing counter do not
//! go back; after healing the total is the sum of what was applied.
//!
//! `QUIPU_SIM_SEEDS=10000` runs more seeds, `QUIPU_SIM_SEED=17` one, and `QUIPU_SIM_TRACE=1` says what happens in it.

mod clients;
mod disk;
mod node;
mod rng;
mod streams;
mod world;

use std::cell::Cell;
use std::panic::catch_unwind;

use world::World;

/// A mistake put in on purpose, which the simulation has to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    AnswerBeforeDurable,
    MarksNotInTheEntry,
    KeysNotInTheEntry,
    TakeoverWithoutFence,
    /// Readers make resident what they read, whatever was forgotten meanwhile.
    ReaderWithoutGuard,
    /// The checkpoint's position moves with its first piece.
    PositionBeforeItsPieces,
    /// A checkpoint of an earlier ownership, which the store ignored, makes partials clean.
    CheckpointOfAnEarlierEpoch,
    /// A producer gives its operations new sequences when it connects again.
    NewSequencesOnReconnect,
    /// An attempt that is not written settles an entry of which an earlier attempt may be.
    NotWrittenAfterUnknown,
    /// Relaxed operations that a writer gives back go nowhere.
    DropWhatIsReturned,
    /// A node that stands by follows counters, and not what recognises repetitions.
    StandbyWithoutMarks,
    /// Journal time is the owner's wall clock.
    AgesOfWallClocks,
    /// A checkpoint drops idempotency records that are old by the owner's wall clock.
    RecordsDroppedByWallClock,
    /// The same, but they are hidden from then on, and that never less.
    RecordsHiddenByWallClock,
    /// A producer says how new its operations are by its own wall clock.
    StampsOfWallClocks,
}

const MUTATIONS: [Mutation; 15] = [
    Mutation::AnswerBeforeDurable,
    Mutation::MarksNotInTheEntry,
    Mutation::KeysNotInTheEntry,
    Mutation::TakeoverWithoutFence,
    Mutation::ReaderWithoutGuard,
    Mutation::PositionBeforeItsPieces,
    Mutation::CheckpointOfAnEarlierEpoch,
    Mutation::NewSequencesOnReconnect,
    Mutation::NotWrittenAfterUnknown,
    Mutation::DropWhatIsReturned,
    Mutation::StandbyWithoutMarks,
    Mutation::AgesOfWallClocks,
    Mutation::RecordsDroppedByWallClock,
    Mutation::RecordsHiddenByWallClock,
    Mutation::StampsOfWallClocks,
];

const SEEDS: u64 = 300;
const STEPS: usize = 3_000;
/// A mutation must be noticed within so many seeds.
const MUTATION_SEEDS: u64 = 5_000;

thread_local! {
    /// Panics of this thread are what is looked for.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, and is {text:?}")))
}

fn run(seed: u64, mutation: Option<Mutation>) -> world::Summary {
    let mut world = World::new(seed, mutation, setting("QUIPU_SIM_TRACE").is_some());
    world.storm(STEPS);
    world.heal();
    world.forward();
    world.check();
    world.summary()
}

#[test]
fn whatever_happens_every_operation_counts_as_its_caller_was_told() {
    let seeds = match setting("QUIPU_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("QUIPU_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut total = world::Summary::default();
    for seed in seeds {
        match catch_unwind(|| run(seed, None)) {
            Ok(summary) => total += summary,
            Err(failure) => {
                eprintln!(
                    "replay: QUIPU_SIM_SEED={seed} QUIPU_SIM_TRACE=1 cargo test --release -p quipu --test simulation"
                );
                std::panic::resume_unwind(failure);
            }
        }
    }
    println!("{total:?}");
    if setting("QUIPU_SIM_SEED").is_none() {
        total.assert_eventful();
    }
}

#[test]
fn the_same_seed_runs_the_same_way_twice() {
    for seed in 0..20 {
        assert_eq!(run(seed, None), run(seed, None), "seed {seed}");
    }
}

#[test]
fn every_mistake_put_in_is_noticed() {
    // The failures are expected: their messages would only hide one that is not.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !EXPECTED.get() {
            hook(info);
        }
    }));
    EXPECTED.set(true);
    let noticed = MUTATIONS.map(|mutation| {
        (mutation, (0..MUTATION_SEEDS).find(|&seed| catch_unwind(|| run(seed, Some(mutation))).is_err()))
    });
    EXPECTED.set(false);
    println!("first seed that notices: {noticed:?}");
    let missed: Vec<_> = noticed.iter().filter(|(_, seed)| seed.is_none()).collect();
    assert!(missed.is_empty(), "not noticed within {MUTATION_SEEDS} seeds: {missed:?}");
}
