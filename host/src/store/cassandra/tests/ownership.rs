//! Several owners of one shard: who can still write, and what the other learns.

use super::*;

#[tokio::test]
async fn only_the_last_owner_appends() {
    let Some(place) = Keyspace::new(1).await else { return };
    let (old, new) = (place.open(|_| ()).await, place.open(|_| ()).await);
    let old_epoch = raise(&old).await;
    fill(&old, old_epoch, 1..=3).await;
    let epoch = raise(&new).await;
    assert!(epoch > old_epoch);
    assert!(!old.confirm(0, old_epoch).await.expect("asks") && new.confirm(0, epoch).await.expect("asks"));
    let late = entry(0, old_epoch, 4, "a", 40);
    assert_eq!(append_one(&old, &late).await, Appended::Fenced { applied: Some(false) });
    assert_eq!(old.journal_bytes(), 0, "it learned that it is no owner");
    fill(&new, epoch, 4..=5).await;
    assert_eq!(append_one(&old, &late).await, Appended::Fenced { applied: Some(false) });
    let own = entry(0, old_epoch, 3, "a", 3);
    assert_eq!(append_one(&old, &own).await, Appended::Fenced { applied: Some(true) });
    old.checkpoint(vec![checkpoint(0, old_epoch, 3, vec![(id("a"), partial(3, 3))])]).await.expect("is ignored");
    assert_eq!(new.shard_row(0).await.expect("reads").position, 0);
    assert_eq!(seqs(&new).await, [1, 2, 3, 4, 5]);
    drop((old, new));
    place.end().await;
}

#[tokio::test]
async fn owners_that_come_at_once_get_epochs_of_their_own() {
    let Some(place) = Keyspace::new(1).await else { return };
    let (one, other) = (place.open(|_| ()).await, place.open(|_| ()).await);
    let mut epochs = Vec::new();
    for _ in 0..10 {
        let (a, b) = tokio::join!(one.raise(0), other.raise(0));
        epochs.extend([a, b].into_iter().filter_map(Result::ok).map(|raised| raised.epoch));
    }
    assert!(epochs.len() >= 10, "one of two gets through");
    let unique: std::collections::BTreeSet<_> = epochs.iter().collect();
    assert_eq!(unique.len(), epochs.len());
    drop((one, other));
    place.end().await;
}

/// The old owner stops before an append; meanwhile its segment is sealed, covered and dropped.
#[tokio::test]
async fn a_paused_owner_does_not_revive_a_dropped_segment() {
    let Some(place) = Keyspace::new(1).await else { return };
    let open = async || place.open(|settings| settings.segment_bytes = 200).await;
    let (old, new, reader) = (open().await, open().await, open().await);
    let old_epoch = raise(&old).await;
    fill(&old, old_epoch, 1..=3).await;
    raise(&reader).await;
    let first = segments(&old).await[0].clone();
    let epoch = raise(&new).await;
    fill(&new, epoch, 4..=20).await;
    new.checkpoint(vec![checkpoint(0, epoch, 15, vec![(id("a"), partial(15, 15))])]).await.expect("checkpoints");
    assert!(!segments(&new).await.contains(&first), "it is dropped");
    let late = entry(0, old_epoch, 4, "a", 40);
    assert_eq!(append_one(&old, &late).await, Appended::Fenced { applied: None });
    assert!(old.segment_row(0, &first).await.expect("reads").is_none(), "it stays dropped");
    let trimmed = reader.read(0, 0, usize::MAX).await;
    assert!(matches!(&trimmed, Err(Error::NotApplied(why)) if why.contains("take it over again")), "{trimmed:?}");
    assert_eq!(seqs(&new).await, [16, 17, 18, 19, 20]);
    let third = raise(&reader).await;
    assert_eq!(seqs(&reader).await, [16, 17, 18, 19, 20]);
    fill(&reader, third, 21..=30).await;
    drop((old, new, reader));
    place.end().await;
}

#[tokio::test]
async fn a_takeover_that_stops_is_begun_again() {
    let Some(place) = Keyspace::new(1).await else { return };
    let (old, new) = (place.open(|_| ()).await, place.open(|_| ()).await);
    let old_epoch = raise(&old).await;
    fill(&old, old_epoch, 1..=2).await;
    new.faults.stop_at(Some(Step::EpochRaised));
    assert!(new.raise(0).await.is_err());
    // The segment does not know yet: the old owner may append, and may not claim to be the owner.
    fill(&old, old_epoch, 3..=3).await;
    assert!(!old.confirm(0, old_epoch).await.expect("asks"));
    new.faults.stop_at(Some(Step::SegmentRaised));
    assert!(new.raise(0).await.is_err());
    let late = entry(0, old_epoch, 4, "a", 4);
    assert_eq!(append_one(&old, &late).await, Appended::Fenced { applied: Some(false) });
    new.faults.stop_at(None);
    let epoch = raise(&new).await;
    assert_eq!(seqs(&new).await, [1, 2, 3]);
    fill(&new, epoch, 4..=4).await;
    drop((old, new));
    place.end().await;
}

/// As a backup of several times leaves them, or one that was restored on top of a new keyspace.
#[tokio::test]
async fn counters_from_ahead_of_the_journal_are_damage() {
    let Some(place) = Keyspace::new(3).await else { return };
    let store = place.open(|_| ()).await;
    store.write_partials(0, &[(id("a"), partial(7, 5))]).await.expect("writes");
    store.cql.session.query_unpaged("UPDATE shards SET position = 5 WHERE shard = 1", ()).await.expect("writes");
    for shard in [0, 1] {
        let why = store.raise(shard).await.expect_err("is not served");
        assert!(matches!(&why, Error::Damaged(why) if why.contains("restore a backup")), "{why}");
    }
    store.raise(2).await.expect("nothing is wrong with it");
    drop(store);
    place.end().await;
}
