//! Keys of the LSM, byte by byte. Their order is the order of lists and scans, so it is tested here.
//!
//! An id or a space ends with 0xFF, which UTF-8 never has: then no key is the prefix of another's, and ids sort as
//! [`super::super::list_order`] says.

use std::ops::Bound;

use crate::counter::Id;

const END: u8 = 0xFF;
const SHARD_BYTES: usize = 4;
const TIME_BYTES: usize = 8;

/// `id · FF · shard`: partials of one id are neighbours.
pub fn partial(id: &Id, shard: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(id.as_str().len() + 1 + SHARD_BYTES);
    key.extend_from_slice(id.as_str().as_bytes());
    key.push(END);
    key.extend_from_slice(&shard.to_be_bytes());
    key
}

/// The id and shard of a partial's key; None when it is no such key.
pub fn parse_partial(key: &[u8]) -> Option<(Id, u32)> {
    let (rest, shard) = key.split_last_chunk::<SHARD_BYTES>()?;
    let id = rest.strip_suffix(&[END])?;
    Some((Id::new(std::str::from_utf8(id).ok()?).ok()?, u32::from_be_bytes(*shard)))
}

/// Range of all partials whose id starts with `prefix` and sorts after `after`.
pub fn partials(prefix: &str, after: Option<&Id>) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let after = after.map(|id| partial(id, u32::MAX));
    let from = match after {
        Some(after) if *after >= *prefix.as_bytes() => Bound::Excluded(after),
        _ => Bound::Included(prefix.into()),
    };
    let until = prefix_end(prefix.as_bytes());
    if let (Bound::Excluded(from), Bound::Excluded(until)) = (&from, &until)
        && from >= until
    {
        // The prefix lies behind us. Ranges must not run backwards.
        return (Bound::Included(until.clone()), Bound::Excluded(until.clone()));
    }
    (from, until)
}

/// `shard · id · FF · key` of an idempotency record.
pub fn record(shard: u32, counter: &Id, key: &str) -> Vec<u8> {
    let id = counter.as_str().as_bytes();
    [&shard.to_be_bytes(), id, &[END], key.as_bytes()].concat()
}

/// `time · key of the record`: the order of expiry.
pub fn expiry(at_ms: u64, record: &[u8]) -> Vec<u8> {
    [&at_ms.to_be_bytes(), record].concat()
}

/// The time and record's key of an expiry key.
pub fn parse_expiry(key: &[u8]) -> Option<(u64, &[u8])> {
    let (at_ms, record) = key.split_first_chunk::<TIME_BYTES>()?;
    Some((u64::from_be_bytes(*at_ms), record))
}

/// `space · FF · key` of a small value.
pub fn value(space: &str, key: &str) -> Vec<u8> {
    [space.as_bytes(), &[END], key.as_bytes()].concat()
}

/// The key of a small value, without its space.
pub fn parse_value<'a>(space: &str, key: &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(key.strip_prefix(space.as_bytes())?.strip_prefix(&[END])?).ok()
}

/// `id of the value · number` of a piece of a large value.
pub fn piece(id: u64, number: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &number.to_be_bytes()].concat()
}

/// The first key behind all that start with `prefix`. A prefix never ends with 0xFF here, unless it is a space's.
fn prefix_end(prefix: &[u8]) -> Bound<Vec<u8>> {
    let mut end = prefix.to_vec();
    match end.last_mut() {
        None => Bound::Unbounded,
        Some(last) => {
            *last = last.checked_add(1).expect("UTF-8 has no byte 0xFF");
            Bound::Excluded(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::list_order;
    use proptest::prelude::*;
    use std::ops::RangeBounds;

    fn id() -> impl Strategy<Value = Id> {
        "[a-c/é\u{10FFFF}]{1,6}".prop_map(|text| Id::new(&text).expect("valid"))
    }

    proptest! {
        #[test]
        fn partials_sort_as_lists_do(a in id(), b in id(), i: u32, j: u32) {
            let expected = list_order(a.as_str(), b.as_str()).then(i.cmp(&j));
            prop_assert_eq!(partial(&a, i).cmp(&partial(&b, j)), expected);
        }

        #[test]
        fn a_partial_key_is_parsed(a in id(), shard: u32) {
            prop_assert_eq!(parse_partial(&partial(&a, shard)), Some((a, shard)));
        }

        #[test]
        fn a_range_holds_what_a_list_must_show(a in id(), prefix in "[a-cé]{0,3}", after in prop::option::of(id()), shard: u32) {
            let shown = a.as_str().starts_with(&prefix)
                && after.as_ref().is_none_or(|after| list_order(a.as_str(), after.as_str()).is_gt());
            prop_assert_eq!(partials(&prefix, after.as_ref()).contains(&partial(&a, shard)), shown);
        }

        #[test]
        fn records_of_different_counters_never_meet(a in id(), b in id(), x in "[ -~]{1,8}", y in "[ -~]{1,8}") {
            let same = a == b && x == y;
            prop_assert_eq!(record(1, &a, &x) == record(1, &b, &y), same);
        }

        #[test]
        fn expiry_sorts_by_time(a: u64, b: u64) {
            let (a_key, b_key) = (expiry(a, b"x"), expiry(b, b"x"));
            prop_assert_eq!(a_key.cmp(&b_key), a.cmp(&b));
            prop_assert_eq!(parse_expiry(&a_key), Some((a, &b"x"[..])));
        }

        #[test]
        fn values_stay_in_their_space(a in "[ab]{0,3}", b in "[ab]{0,3}", key in "[ab]{0,3}") {
            let found = parse_value(&b, &value(&a, &key)).map(str::to_owned);
            prop_assert_eq!(found, (a == b).then_some(key));
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(bytes: Vec<u8>) {
            let _ = (parse_partial(&bytes), parse_expiry(&bytes), parse_value("a", &bytes));
        }
    }
}
