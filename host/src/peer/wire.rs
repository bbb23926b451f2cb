//! Messages between nodes, and their conversion to what the rest of the program speaks. What another node sends is
//! checked like what a client sends.

use crate::counter::{Bounds, Id, Refused, key_hash};
use crate::limits;
use crate::shard::entry::{Action, KeyRecord};
use crate::shard::partials::Partial;
use crate::shard::{Kind, Op, Origin, Outcome, Refusal};

/// Generated from `proto/peer.proto`.
pub mod message {
    tonic::include_proto!("quipu.peer.v1");
}

use message::{ListedPartial, Operation, OperationOutcome, key_record, operation, operation_outcome, refused};

/// A message that no node of ours would send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of a peer is malformed: {0}")]
pub struct Malformed(&'static str);

impl Operation {
    /// `op.origin` is that of a producer.
    pub fn new(op: Op, round: u64) -> Self {
        let (seq, acked, as_of_ms) = match op.origin {
            Origin::Peer { seq, acked, as_of_ms, .. } => (seq, acked, as_of_ms),
            Origin::Local { .. } | Origin::Relaxed => (0, 0, 0),
        };
        let kind = match op.kind {
            Kind::Add { amount, bounds: Bounds { min, max } } => {
                Some(operation::Kind::Add(message::Add { amount, min, max }))
            }
            Kind::Create { name } => Some(operation::Kind::Create(message::Create { name: name.map(String::from) })),
            Kind::Remove => Some(operation::Kind::Remove(message::Remove {})),
            Kind::Skip => None,
        };
        let (counter, key) = (op.counter.as_str().to_owned(), op.key.map(String::from));
        Self { shard: op.shard, seq, acked, round, counter, kind, key, at_ms: op.at_ms, as_of_ms }
    }

    pub fn into_op(self, producer: u128, shards: u32) -> Result<Op, Malformed> {
        let counter = Id::new(&self.counter).map_err(|_| Malformed("no counter id"))?;
        if self.shard >= shards {
            return Err(Malformed("no such shard"));
        }
        let key_bytes_max = limits::IDEMPOTENCY_KEY_BYTES_MAX + limits::BATCH_KEY_SUFFIX_BYTES_MAX;
        if self.key.as_ref().is_some_and(|key| key.len() > key_bytes_max) || self.seq == 0 {
            return Err(Malformed("no such key or sequence"));
        }
        let kind = match self.kind {
            Some(operation::Kind::Add(message::Add { amount, min, max })) => {
                Kind::Add { amount, bounds: Bounds { min, max } }
            }
            Some(operation::Kind::Create(message::Create { name })) => Kind::Create { name: name.map(Into::into) },
            Some(operation::Kind::Remove(message::Remove {})) => Kind::Remove,
            None => Kind::Skip,
        };
        Ok(Op {
            shard: self.shard,
            hash: key_hash(counter.as_str()),
            counter,
            kind,
            key: self.key.map(Into::into),
            origin: Origin::Peer { producer, seq: self.seq, acked: self.acked, as_of_ms: self.as_of_ms },
            at_ms: self.at_ms,
        })
    }
}

impl From<Outcome> for operation_outcome::Outcome {
    fn from(outcome: Outcome) -> Self {
        let refused = |why| Self::Refused(message::Refused { why: Some(why) });
        match outcome {
            Outcome::Applied { value, replayed } => Self::Applied(message::Applied { value, replayed }),
            Outcome::NotApplied => Self::NotApplied(message::NotApplied {}),
            Outcome::Unknown => Self::Unknown(message::UnknownOutcome {}),
            Outcome::Refused(Refusal::Arithmetic(Refused::Overflow)) => refused(refused::Why::Overflow(true)),
            Outcome::Refused(Refusal::Arithmetic(Refused::BelowMin { min })) => refused(refused::Why::BelowMin(min)),
            Outcome::Refused(Refusal::Arithmetic(Refused::AboveMax { max })) => refused(refused::Why::AboveMax(max)),
            Outcome::Refused(Refusal::Exists) => refused(refused::Why::Exists(true)),
            Outcome::Refused(Refusal::KeyReused) => refused(refused::Why::KeyReused(true)),
            Outcome::Refused(Refusal::Gap) => refused(refused::Why::Gap(true)),
            Outcome::Refused(Refusal::Forgotten { time_ms }) => refused(refused::Why::ForgottenAtMs(time_ms)),
        }
    }
}

impl OperationOutcome {
    pub fn new(shard: u32, seq: u64, round: u64, outcome: Outcome) -> Self {
        Self { shard, seq, round, outcome: Some(outcome.into()) }
    }

    /// An outcome that a newer node invented is unknown to us.
    pub fn outcome(&self) -> Outcome {
        match &self.outcome {
            Some(operation_outcome::Outcome::Applied(applied)) => {
                Outcome::Applied { value: applied.value, replayed: applied.replayed }
            }
            Some(operation_outcome::Outcome::NotApplied(_)) => Outcome::NotApplied,
            Some(operation_outcome::Outcome::Unknown(_)) | None => Outcome::Unknown,
            Some(operation_outcome::Outcome::Refused(refused)) => match refused.why {
                Some(refused::Why::Overflow(_)) => Outcome::Refused(Refused::Overflow.into()),
                Some(refused::Why::BelowMin(min)) => Outcome::Refused(Refused::BelowMin { min }.into()),
                Some(refused::Why::AboveMax(max)) => Outcome::Refused(Refused::AboveMax { max }.into()),
                Some(refused::Why::Exists(_)) => Outcome::Refused(Refusal::Exists),
                Some(refused::Why::KeyReused(_)) => Outcome::Refused(Refusal::KeyReused),
                Some(refused::Why::Gap(_)) => Outcome::Refused(Refusal::Gap),
                Some(refused::Why::ForgottenAtMs(time_ms)) => Outcome::Refused(Refusal::Forgotten { time_ms }),
                None => Outcome::Unknown,
            },
        }
    }
}

impl From<&KeyRecord> for message::KeyRecord {
    fn from(record: &KeyRecord) -> Self {
        let action = match record.action {
            Action::Add(amount) => Some(key_record::Action::Add(amount)),
            Action::Create => Some(key_record::Action::Create(true)),
            Action::Remove => Some(key_record::Action::Remove(true)),
            Action::Skip => None,
        };
        Self { action, value: record.value, at_ms: record.at_ms }
    }
}

impl message::KeyRecord {
    pub fn into_record(self, counter: Id, key: &str) -> KeyRecord {
        let action = match self.action {
            Some(key_record::Action::Add(amount)) => Action::Add(amount),
            Some(key_record::Action::Create(_)) => Action::Create,
            Some(key_record::Action::Remove(_)) => Action::Remove,
            None => Action::Skip,
        };
        KeyRecord { counter, key: key.into(), action, value: self.value, at_ms: self.at_ms, time_ms: None }
    }
}

impl ListedPartial {
    pub fn new(shard: u32, partial: Partial) -> Self {
        Self {
            shard,
            value: partial.value,
            seq: partial.seq,
            created_at_ms: partial.created_at_ms,
            generation: partial.generation,
            removed: partial.removed,
            name: partial.name.map(String::from),
        }
    }

    pub fn into_partial(self) -> (u32, Partial) {
        let partial = Partial {
            value: self.value,
            seq: self.seq,
            created_at_ms: self.created_at_ms,
            generation: self.generation,
            removed: self.removed,
            name: self.name.map(Into::into),
        };
        (self.shard, partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(op: &Op) -> Op {
        let Origin::Peer { producer, .. } = op.origin else { panic!("producers send as peers") };
        Operation::new(op.clone(), 3).into_op(producer, 12).expect("well formed")
    }

    #[test]
    fn operations_arrive_as_they_were_sent() {
        let counter = Id::new("likes/1").expect("valid");
        let kinds = [
            Kind::Add { amount: i64::MIN, bounds: Bounds { min: Some(-5), max: None } },
            Kind::Create { name: Some("Likes".into()) },
            Kind::Create { name: None },
            Kind::Remove,
            Kind::Skip,
        ];
        for kind in kinds {
            let op = Op {
                shard: 11,
                hash: key_hash(counter.as_str()),
                counter: counter.clone(),
                kind,
                key: Some("k".into()),
                origin: Origin::Peer { producer: u128::MAX, seq: 7, acked: 6, as_of_ms: 4 },
                at_ms: 5,
            };
            assert_eq!(there_and_back(&op), op);
        }
    }

    #[test]
    fn outcomes_arrive_as_they_were_sent() {
        let outcomes = [
            Outcome::Applied { value: i64::MIN, replayed: true },
            Outcome::NotApplied,
            Outcome::Unknown,
            Outcome::Refused(Refused::Overflow.into()),
            Outcome::Refused(Refused::BelowMin { min: -1 }.into()),
            Outcome::Refused(Refused::AboveMax { max: 1 }.into()),
            Outcome::Refused(Refusal::Exists),
            Outcome::Refused(Refusal::KeyReused),
            Outcome::Refused(Refusal::Gap),
            Outcome::Refused(Refusal::Forgotten { time_ms: 9 }),
        ];
        for outcome in outcomes {
            assert_eq!(OperationOutcome::new(1, 2, 3, outcome).outcome(), outcome);
        }
    }

    #[test]
    fn malformed_operations_are_refused() {
        let good = Operation { shard: 1, seq: 1, counter: "c".into(), ..Operation::default() };
        assert!(good.clone().into_op(1, 2).is_ok());
        for bad in [
            Operation { shard: 2, ..good.clone() },
            Operation { seq: 0, ..good.clone() },
            Operation { counter: String::new(), ..good.clone() },
            Operation { key: Some("k".repeat(1000)), ..good },
        ] {
            assert!(bad.into_op(1, 2).is_err());
        }
    }
}
