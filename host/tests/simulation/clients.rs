//! What callers do, and what they may expect of the answers.

use quipu::counter::{Bounds, Id, arithmetic, key_hash};
use quipu::shard::{Kind, Op, Origin, Outcome, Refusal};

use super::rng::Rng;

/// Additions of distinct powers of two: the value tells which of them were counted, and how often.
pub const SUMS: usize = 5;
const BITS: u32 = 60;

pub fn sum_id(counter: usize) -> Id {
    Id::new(&format!("sum/{counter}")).expect("valid")
}

pub struct SumOp {
    pub counter: usize,
    pub bit: u32,
    pub key: Option<String>,
    pub at_ms: u64,
    pub told: Told,
    /// Keyed, and to be sent again.
    pub retry: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nothing,
    Applied,
    NotApplied,
    Unknown,
    /// Relaxed: it was taken, and no answer follows.
    Accepted,
}

#[derive(Default)]
pub struct Sums {
    pub ops: Vec<SumOp>,
    next_bit: [u32; SUMS],
}

impl Sums {
    /// A new operation, or None when the counter has no bit left.
    pub fn draw(&mut self, rng: &mut Rng, at_ms: u64, keyed: bool) -> Option<usize> {
        let counter = rng.below(SUMS);
        let bit = self.next_bit[counter];
        if bit == BITS {
            return None;
        }
        self.next_bit[counter] += 1;
        let key = keyed.then(|| format!("key-{counter}-{bit}"));
        self.ops.push(SumOp { counter, bit, key, at_ms, told: Told::Nothing, retry: false });
        Some(self.ops.len() - 1)
    }

    pub fn op(&self, nth: usize, origin: Origin) -> Op {
        let op = &self.ops[nth];
        let counter = sum_id(op.counter);
        Op {
            shard: 0,
            hash: key_hash(counter.as_str()),
            counter,
            kind: Kind::Add { amount: 1 << op.bit, bounds: Bounds::NONE },
            key: op.key.as_deref().map(Into::into),
            origin,
            at_ms: op.at_ms,
        }
    }

    pub fn told(&mut self, nth: usize, outcome: Outcome) {
        let op = &mut self.ops[nth];
        match outcome {
            Outcome::Applied { value, .. } => {
                assert!(value & (1 << op.bit) != 0, "the answer {value} lacks its own addition, bit {}", op.bit);
                assert!(op.told != Told::NotApplied, "bit {} of {} was applied after all", op.bit, op.counter);
                (op.told, op.retry) = (Told::Applied, false);
            }
            Outcome::NotApplied | Outcome::Unknown if op.told == Told::Applied => {}
            Outcome::NotApplied if op.told == Told::Accepted => panic!("bit {} of {} was accepted", op.bit, op.counter),
            Outcome::NotApplied | Outcome::Unknown if op.key.is_some() => op.retry = true,
            Outcome::NotApplied => op.told = Told::NotApplied,
            Outcome::Unknown => op.told = Told::Unknown,
            Outcome::Refused(refusal) => panic!("an addition was refused: {refusal}"),
        }
    }

    /// Which operation this is: its bit tells.
    pub fn nth(&self, op: &Op) -> usize {
        let Kind::Add { amount, .. } = op.kind else { panic!("sums are only added to") };
        let same = |sum: &SumOp| sum_id(sum.counter) == op.counter && 1 << sum.bit == amount;
        self.ops.iter().position(same).expect("somebody sent it")
    }

    /// What every read from now on must hold of a counter.
    pub fn acked(&self, counter: usize) -> i64 {
        let acked = self.ops.iter().filter(|op| op.counter == counter && op.told == Told::Applied);
        acked.map(|op| 1 << op.bit).sum()
    }

    /// Everything has healed: the value holds each operation as its caller was told.
    pub fn check(&self, counter: usize, value: i64) {
        let mut rest = value;
        for op in self.ops.iter().filter(|op| op.counter == counter) {
            let counted = value & (1 << op.bit) != 0;
            rest &= !(1 << op.bit);
            match op.told {
                Told::Applied => assert!(counted, "bit {} of {counter} was acknowledged and is lost", op.bit),
                Told::Accepted => assert!(counted, "bit {} of {counter} was accepted and is lost", op.bit),
                Told::NotApplied => assert!(!counted, "bit {} of {counter} was refused and counts", op.bit),
                Told::Unknown => {}
                Told::Nothing => panic!("bit {} of {counter} was never answered", op.bit),
            }
        }
        assert_eq!(rest, 0, "{counter} holds what nobody added");
    }
}

/// A caller who does one thing after the other to a counter of its own, always with a key, and so knows exactly what
/// must come of it.
pub struct Life {
    pub id: Id,
    pub value: Option<i64>,
    bounds: Bounds,
    pub current: Option<Step>,
    count: u64,
}

pub struct Step {
    kind: Kind,
    key: String,
    at_ms: u64,
    expected: Outcome,
    after: Option<i64>,
    /// An attempt is under way.
    pub waits: bool,
}

impl Life {
    pub fn new(nth: usize) -> Self {
        let bounds = if nth == 0 { Bounds { min: Some(0), max: Some(12) } } else { Bounds::NONE };
        Self { id: Id::new(&format!("life/{nth}")).expect("valid"), value: None, bounds, current: None, count: 0 }
    }

    pub fn begin(&mut self, rng: &mut Rng, at_ms: u64) {
        let kind = match rng.below(8) {
            0 => Kind::Create { name: Some("named".into()) },
            1 => Kind::Remove,
            _ => Kind::Add { amount: rng.below(11) as i64 - 4, bounds: self.bounds },
        };
        let applied = |value| Outcome::Applied { value, replayed: false };
        let (expected, after) = match &kind {
            Kind::Create { .. } if self.value.is_some() => (Outcome::Refused(Refusal::Exists), self.value),
            Kind::Create { .. } => (applied(0), Some(0)),
            Kind::Remove | Kind::Skip => (applied(0), None),
            Kind::Add { amount, bounds } => match arithmetic::add(self.value.unwrap_or(0), *amount, *bounds) {
                Ok(value) => (applied(value), Some(value)),
                Err(refused) => (Outcome::Refused(refused.into()), self.value),
            },
        };
        self.count += 1;
        let key = format!("step-{}", self.count);
        self.current = Some(Step { kind, key, at_ms, expected, after, waits: false });
    }

    pub fn attempt(&mut self, ticket: u64) -> Option<Op> {
        let step = self.current.as_mut()?;
        step.waits = true;
        Some(Op {
            shard: 0,
            counter: self.id.clone(),
            hash: key_hash(self.id.as_str()),
            kind: step.kind.clone(),
            key: Some(step.key.as_str().into()),
            origin: Origin::Local { ticket, index: 0 },
            at_ms: step.at_ms,
        })
    }

    pub fn told(&mut self, outcome: Outcome) {
        let step = self.current.as_mut().expect("an answer has its operation");
        step.waits = false;
        let outcome = match outcome {
            Outcome::NotApplied | Outcome::Unknown => return,
            Outcome::Applied { value, .. } => Outcome::Applied { value, replayed: false },
            refused @ Outcome::Refused(_) => refused,
        };
        assert_eq!(outcome, step.expected, "{}: {:?} of {:?}", self.id, step.kind, self.value);
        self.value = step.after;
        self.current = None;
    }
}
