//! What is written is read, and whatever else is read does no harm.

use super::*;
use proptest::prelude::*;

fn id() -> impl Strategy<Value = Id> {
    "[a-zé/]{1,40}".prop_map(|text| Id::new(&text).expect("valid"))
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        (any::<i64>(), any::<bool>()).prop_map(|(value, replayed)| Outcome::Applied { value, replayed }),
        Just(Outcome::Refused(Refused::Overflow.into())),
        any::<i64>().prop_map(|min| Outcome::Refused(Refused::BelowMin { min }.into())),
        any::<i64>().prop_map(|max| Outcome::Refused(Refused::AboveMax { max }.into())),
        Just(Outcome::Refused(Refusal::Exists)),
        Just(Outcome::Refused(Refusal::KeyReused)),
        Just(Outcome::Refused(Refusal::Gap)),
        Just(Outcome::NotApplied),
        Just(Outcome::Unknown),
    ]
}

fn partial() -> impl Strategy<Value = Partial> {
    (any::<i64>(), any::<u64>(), any::<u32>(), any::<bool>(), prop::option::of("[ -~]{0,20}")).prop_map(
        |(value, created_at_ms, generation, removed, name)| Partial {
            value,
            seq: 0,
            created_at_ms,
            generation,
            removed,
            name: name.map(Into::into),
        },
    )
}

fn entry() -> impl Strategy<Value = Entry> {
    let action = prop_oneof![any::<i64>().prop_map(Action::Add), Just(Action::Create), Just(Action::Remove)];
    let key =
        (id(), "[ -~]{1,128}", action, any::<i64>(), any::<u64>()).prop_map(|(counter, key, action, value, at_ms)| {
            KeyRecord { counter, key: key.into(), action, value, at_ms, time_ms: None }
        });
    let outcomes = prop::collection::vec((any::<u64>(), outcome()), 0..4);
    let mark = (any::<u128>(), any::<u64>(), any::<u64>(), outcomes)
        .prop_map(|(producer, through, at_ms, outcomes)| Mark { producer, through, at_ms, outcomes });
    (
        (any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<Option<u64>>()),
        prop::collection::vec((id(), partial()), 0..6),
        prop::collection::vec(key, 0..4),
        prop::collection::vec(mark, 0..4),
    )
        .prop_map(|((shard, epoch, seq, id, time_ms), changes, keys, marks)| Entry {
            shard,
            epoch,
            seq,
            id,
            time_ms,
            changes: changes
                .into_iter()
                .map(|(counter, partial)| Change {
                    hash: key_hash(counter.as_str()),
                    counter,
                    partial: Partial { seq, ..partial },
                })
                .collect(),
            keys: keys.into_iter().map(|record| KeyRecord { time_ms, ..record }).collect(),
            marks,
        })
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// An entry without items, with sections at its end.
fn with_sections(sections: &[(u64, &[u8])]) -> Result<Entry, Damaged> {
    let mut bytes = vec![FORMAT_2, 3, 1, 7, 9, 100, 0, 0, 0];
    put_sections(&mut bytes, sections);
    Entry::decode(&sealed(bytes))
}

fn put_sections(out: &mut Vec<u8>, sections: &[(u64, &[u8])]) {
    put(out, sections.len() as u64);
    for (tag, bytes) in sections {
        put(out, *tag);
        put(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

#[test]
fn a_section_of_a_later_program_is_skipped_or_refused_by_its_tag() {
    let bare = with_sections(&[]);
    assert!(bare.is_ok());
    assert_eq!(with_sections(&[(2, b"later"), (1000, b"")]), bare);
    assert_eq!(with_sections(&[(2, b"later"), (5, b"x")]), Err(Damaged::Section(5)));
    assert!(Damaged::Section(5).to_string().contains("use a later program"));
    let mut cut = vec![FORMAT_2, 3, 1, 7, 9, 100, 0, 0, 0, 1, 2, 200, 1];
    cut.push(0);
    assert_eq!(Entry::decode(&sealed(cut)), Err(Damaged::Short));
}

#[test]
fn records_of_a_checkpoint_may_have_sections_too() {
    let partial = Partial { value: 5, seq: 3, ..Partial::default() };
    let record = KeyRecord {
        counter: Id::new("c").expect("valid"),
        key: "k".into(),
        action: Action::Add(1),
        value: 5,
        at_ms: 17,
        time_ms: Some(19),
    };
    let mark = Mark { producer: 7, through: 1, at_ms: 5, outcomes: vec![] };
    let (mut of_partial, mut of_record, mut of_mark) = (Vec::new(), Vec::new(), Vec::new());
    partial.encode(&mut of_partial);
    record.encode(&mut of_record);
    mark.encode(&mut of_mark);
    for bytes in [&mut of_partial, &mut of_record, &mut of_mark] {
        put_sections(bytes, &[(4, b"later")]);
    }
    assert_eq!(Partial::decode(&of_partial), Ok(partial));
    assert_eq!(KeyRecord::decode(&of_record), Ok(record));
    assert_eq!(Mark::decode(&of_mark), Ok(mark));
    for bytes in [&mut of_partial, &mut of_record, &mut of_mark] {
        let at = bytes.len() - 7;
        bytes[at] = 3;
    }
    assert_eq!(Partial::decode(&of_partial), Err(Damaged::Section(3)));
    assert_eq!(KeyRecord::decode(&of_record), Err(Damaged::Section(3)));
    assert_eq!(Mark::decode(&of_mark), Err(Damaged::Section(3)));
}

proptest! {
    #[test]
    fn what_was_written_is_read(entry in entry()) {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        prop_assert_eq!(Entry::decode(&bytes), Ok(entry));
    }

    #[test]
    fn one_flipped_bit_is_noticed(entry in entry(), at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Entry::decode(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_panic(mut bytes: Vec<u8>) {
        let _ = Entry::decode(&bytes);
        // Behind a right checksum the fields themselves are exercised.
        for format in [FORMAT_1, FORMAT_2] {
            bytes.insert(0, format);
            let _ = Entry::decode(&sealed(bytes.clone()));
        }
        let _ = KeyRecord::decode(&bytes);
        let _ = Mark::decode(&bytes);
    }

    #[test]
    fn an_idempotency_record_survives_its_checkpoint(entry in entry(), time_ms: Option<u64>) {
        for record in entry.keys {
            let record = KeyRecord { time_ms, ..record };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert_eq!(KeyRecord::decode(&bytes), Ok(record));
        }
    }

    #[test]
    fn a_partial_survives_its_checkpoint(partial in partial(), seq: u64) {
        let partial = Partial { seq, ..partial };
        let mut bytes = Vec::new();
        partial.encode(&mut bytes);
        prop_assert_eq!(Partial::decode(&bytes), Ok(partial));
    }
}
