//! Segments that follow one another, and takeovers in the middle of that.

use super::*;

/// Three entries.
const SMALL_BYTES: u64 = 60;
const SMALL: fn(&mut Settings) = |settings| settings.segment_bytes = SMALL_BYTES;

/// The owner stops at a step of a rotation; another takes over, and goes on from what was acknowledged.
async fn taken_over_at(step: Step) {
    let Some(place) = Keyspace::new(1).await else { return };
    let (old, new) = (place.open(SMALL).await, place.open(SMALL).await);
    let old_epoch = raise(&old).await;
    let mut last = 0;
    while old.owned(0).expect("is owned").last().bytes < SMALL_BYTES {
        last += 1;
        fill(&old, old_epoch, last..=last).await;
    }
    let owned = old.owned(0).expect("is owned");
    old.faults.stop_at(Some(step));
    assert!(old.rotate(0, &owned).await.is_err(), "it stopped");
    old.faults.stop_at(None);
    let epoch = raise(&new).await;
    assert_eq!(seqs(&new).await, (1..=last).collect::<Vec<_>>(), "{step:?}");
    let late = entry(0, old_epoch, last + 1, "a", 99);
    assert_eq!(append_one(&old, &late).await, Appended::Fenced { applied: Some(false) }, "{step:?}");
    fill(&new, epoch, last + 1..=last + 12).await;
    assert_eq!(seqs(&new).await, (1..=last + 12).collect::<Vec<_>>(), "{step:?}");
    let all = segments(&new).await;
    assert!(all.len() >= 3, "{step:?}: {all:?}");
    drop((old, new));
    place.end().await;
}

#[tokio::test]
async fn a_takeover_after_a_segment_was_created() {
    taken_over_at(Step::SegmentCreated).await;
}

#[tokio::test]
async fn a_takeover_after_a_segment_was_sealed() {
    taken_over_at(Step::SegmentSealed).await;
}

/// The same owner goes on after a rotation that stopped at any step.
#[tokio::test]
async fn an_owner_goes_on_after_a_rotation_that_stopped() {
    for step in [Step::SegmentCreated, Step::SegmentSealed] {
        let Some(place) = Keyspace::new(1).await else { return };
        let store = place.open(SMALL).await;
        let epoch = raise(&store).await;
        store.faults.stop_at(Some(step));
        fill(&store, epoch, 1..=12).await;
        store.faults.stop_at(None);
        fill(&store, epoch, 13..=30).await;
        assert_eq!(seqs(&store).await, (1..=30).collect::<Vec<_>>(), "{step:?}");
        assert!(segments(&store).await.len() > 3, "{step:?}");
        drop(store);
        place.end().await;
    }
}

#[tokio::test]
async fn an_entry_of_a_sealed_segment_is_recognised() {
    let Some(place) = Keyspace::new(1).await else { return };
    let store = place.open(SMALL).await;
    let epoch = raise(&store).await;
    fill(&store, epoch, 1..=20).await;
    let again = entry(0, epoch, 2, "a", 2);
    assert_eq!(append_one(&store, &again).await, Appended::Applied);
    let impostor = Arc::new(Entry { id: 7, ..Entry::clone(&again) });
    assert_eq!(append_one(&store, &impostor).await, Appended::Fenced { applied: Some(false) });
    raise(&store).await;
    assert_eq!(append_one(&store, &again).await, Appended::Fenced { applied: Some(true) });
    assert_eq!(seqs(&store).await, (1..=20).collect::<Vec<_>>());
    drop(store);
    place.end().await;
}

/// A stop between two deletions leaves a chain whose rest the next owner finds and drops.
#[tokio::test]
async fn segments_left_by_a_stop_are_dropped_later() {
    let Some(place) = Keyspace::new(1).await else { return };
    let store = place.open(SMALL).await;
    let epoch = raise(&store).await;
    fill(&store, epoch, 1..=20).await;
    let before = segments(&store).await;
    store.faults.stop_at(Some(Step::SegmentDrops));
    store.checkpoint(vec![checkpoint(0, epoch, 20, vec![(id("a"), partial(20, 20))])]).await.expect("checkpoints");
    assert!(before.len() > 3, "{before:?}");
    assert_eq!(store.shard_row(0).await.expect("reads").segment, before[before.len() - 1], "the pointer moved");
    assert_eq!(segments(&store).await, before, "nothing is dropped yet");
    let other = place.open(SMALL).await;
    let epoch = raise(&other).await;
    fill(&other, epoch, 21..=21).await;
    other.checkpoint(vec![checkpoint(0, epoch, 21, vec![(id("a"), partial(21, 21))])]).await.expect("checkpoints");
    for id in &before[..before.len() - 1] {
        assert!(other.segment_row(0, id).await.expect("reads").is_none(), "{id} is dropped");
    }
    drop((store, other));
    place.end().await;
}

/// Sealing was carried out and not answered: the same successor is taken when the rotation is tried again.
#[tokio::test]
async fn a_rotation_that_is_tried_again_keeps_its_successor() {
    let Some(place) = Keyspace::new(1).await else { return };
    let store = place.open(SMALL).await;
    let epoch = raise(&store).await;
    fill(&store, epoch, 1..=2).await;
    for step in [Step::SegmentCreated, Step::SegmentSealed, Step::SegmentSealed] {
        store.faults.stop_at(Some(step));
        let owned = store.owned(0).expect("is owned");
        assert!(store.rotate(0, &owned).await.is_err(), "it stopped");
        assert_eq!(store.owned(0).expect("is owned").next_segment().id, format!("{epoch}.2"), "one was begun");
    }
    store.faults.stop_at(None);
    fill(&store, epoch, 3..=3).await;
    assert_eq!(segments(&store).await, ["0.0".to_owned(), format!("{epoch}.1")]);
    drop(store);
    place.end().await;
}

#[tokio::test]
async fn a_pointer_to_nothing_is_damage() {
    let Some(place) = Keyspace::new(1).await else { return };
    let store = place.open(SMALL).await;
    store
        .cql
        .session
        .query_unpaged("DELETE FROM journal WHERE shard = 0 AND segment = '0.0'", ())
        .await
        .expect("drops");
    assert!(matches!(store.raise(0).await, Err(Error::Damaged(why)) if why.contains("segment 0.0")));
    drop(store);
    place.end().await;
}
