//! The protocol keeps every property in every state within the bounds, and each broken variant is caught.
//! Larger bounds: `make model`.

use quipu_model::check::check;
use quipu_model::system::Bounds;
use quipu_model::variants::Variant;

const IN_JOURNAL: &str = "an acknowledged entry is in the journal, at its seq and once";
const NOT_APPLIED: &str = "what is `not applied` is never in the journal";
const READABLE: &str = "the journal can be read back, and its seqs are dense";
const POINTER: &str = "a takeover finds the segment of the pointer";
const EXACT: &str = "an exact read is not below what was acknowledged before it";

/// The protocol within these bounds. Returns the situations that were not reached.
fn holds(variant: Variant, bounds: Bounds) -> Vec<&'static str> {
    let report = check(variant, bounds, 2);
    println!("{variant:?} within {bounds:?}: {} states in {:?}", report.states, report.took);
    assert!(report.broken.is_empty(), "{variant:?}: {:#?}", report.broken);
    report.not_reached
}

#[test]
fn holds_with_exact_reads_and_reaches_every_situation() {
    assert_eq!(holds(Variant::Right, Bounds::new(2, 2, 1, 1)), Vec::<&str>::new());
}

#[test]
fn holds_with_three_operations() {
    holds(Variant::Right, Bounds::new(2, 3, 1, 0));
}

#[test]
fn holds_with_two_rotations() {
    holds(Variant::Right, Bounds::new(2, 2, 2, 0));
    holds(Variant::Right, Bounds::new(3, 1, 2, 0));
}

#[test]
fn holds_with_three_takeovers() {
    holds(Variant::Right, Bounds::new(3, 2, 1, 0));
}

#[test]
fn holds_with_two_reads() {
    holds(Variant::Right, Bounds::new(2, 2, 0, 2));
}

#[test]
fn redundant_rules_are_covered_by_others() {
    for variant in Variant::REDUNDANT {
        holds(variant, Bounds::new(2, 2, 2, 0));
        holds(variant, Bounds::new(2, 2, 1, 1));
    }
}

#[test]
fn every_broken_variant_is_caught() {
    for variant in Variant::BROKEN {
        let (property, bounds) = cost(variant);
        let report = check(variant, bounds, 1);
        let (_, history) = report
            .broken
            .iter()
            .find(|(name, _)| *name == property)
            .unwrap_or_else(|| panic!("{variant:?} does not break \"{property}\", but {:?}", report.broken));
        println!("{variant:?} breaks \"{property}\" after {} steps", history.len());
    }
}

/// What a broken variant breaks, and bounds in which it does.
fn cost(variant: Variant) -> (&'static str, Bounds) {
    let reads = Bounds::new(2, 2, 1, 1);
    let rotations = Bounds::new(2, 2, 2, 0);
    match variant {
        Variant::AppendIgnoresTail | Variant::PointerBeforeSeal => (IN_JOURNAL, rotations),
        Variant::SegmentIdsReused | Variant::CreateOutlivesDrop => (IN_JOURNAL, rotations),
        Variant::SettledByRead | Variant::AbsenceInDropped => (NOT_APPLIED, rotations),
        Variant::PointerMovesBack | Variant::DropBeforePointer => (POINTER, rotations),
        Variant::PositionUnconditional | Variant::PositionMovesBack => (READABLE, rotations),
        Variant::DropBeforePosition => (READABLE, rotations),
        Variant::AppendIgnoresEpoch => (EXACT, reads),
        Variant::TakeoverIgnoresNext | Variant::TakeoverReadsBeforeRaise => (EXACT, reads),
        Variant::ConfirmedBeforeArrival | Variant::ReadNotConfirmed => (EXACT, reads),
        Variant::Right | Variant::AppendIgnoresSeal | Variant::PositionIgnoresEpoch => {
            unreachable!("{variant:?} is not broken")
        }
    }
}
