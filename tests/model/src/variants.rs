//! The protocol, and the ways to break it that the model must catch.
//!
//! Each broken variant leaves out one rule. The checker must find a history in which that costs something, else the
//! rule is not needed or the model does not see what it is for. Two rules turned out to be covered by others; they are
//! `REDUNDANT` and a test holds them to it.

/// Which protocol is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// The protocol as it is specified.
    Right,
    /// An append does not ask for the epoch of the segment.
    AppendIgnoresEpoch,
    /// An append does not ask for the tail of the segment.
    AppendIgnoresTail,
    /// An append does not ask whether the segment is sealed.
    AppendIgnoresSeal,
    /// The pointer moves to the next segment before the old one is sealed.
    PointerBeforeSeal,
    /// The pointer moves without asking where it was, so a late copy moves it back.
    PointerMovesBack,
    /// A takeover serves from the segment of the pointer, sealed or not.
    TakeoverIgnoresNext,
    /// A takeover reads the tail of a segment before it raises the epoch there.
    TakeoverReadsBeforeRaise,
    /// The next segment has the next number, whoever makes it.
    SegmentIdsReused,
    /// A late copy of a create brings a dropped segment back.
    CreateOutlivesDrop,
    /// A read that does not find an entry while the owner's epoch stands is taken for `not applied`.
    SettledByRead,
    /// An entry that is not found because its segment was dropped is taken for `not applied`.
    AbsenceInDropped,
    /// A confirmation that began before a read arrived answers it.
    ConfirmedBeforeArrival,
    /// An exact read is answered without asking for the epoch.
    ReadNotConfirmed,
    /// The position moves without any condition.
    PositionUnconditional,
    /// The position moves IF epoch, without asking where it was.
    PositionMovesBack,
    /// The position moves IF it is where it was, without asking for the epoch.
    PositionIgnoresEpoch,
    /// A segment is dropped when the position has passed it, wherever the pointer is.
    DropBeforePointer,
    /// A segment is dropped when the pointer has passed it, wherever the position is.
    DropBeforePosition,
}

impl Variant {
    /// Every variant that must be caught.
    pub const BROKEN: [Variant; 16] = [
        Variant::AppendIgnoresEpoch,
        Variant::AppendIgnoresTail,
        Variant::PointerBeforeSeal,
        Variant::PointerMovesBack,
        Variant::TakeoverIgnoresNext,
        Variant::TakeoverReadsBeforeRaise,
        Variant::SegmentIdsReused,
        Variant::CreateOutlivesDrop,
        Variant::SettledByRead,
        Variant::AbsenceInDropped,
        Variant::ConfirmedBeforeArrival,
        Variant::ReadNotConfirmed,
        Variant::PositionUnconditional,
        Variant::PositionMovesBack,
        Variant::DropBeforePointer,
        Variant::DropBeforePosition,
    ];

    /// Variants that keep every property within the bounds, since other rules cover for the one that they leave out.
    pub const REDUNDANT: [Variant; 2] = [Variant::AppendIgnoresSeal, Variant::PositionIgnoresEpoch];

    pub(crate) fn pointer_ignores_previous(self) -> bool {
        self == Variant::PointerMovesBack
    }

    pub(crate) fn position_ignores_epoch(self) -> bool {
        matches!(self, Variant::PositionUnconditional | Variant::PositionIgnoresEpoch)
    }

    pub(crate) fn position_ignores_previous(self) -> bool {
        matches!(self, Variant::PositionUnconditional | Variant::PositionMovesBack)
    }
}
