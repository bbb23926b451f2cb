//! The desired owner of every shard: a pure function of the live nodes and the current owners.
//!
//! Every node computes the same map from the same picture, so there is no leader. Nodes with different pictures may
//! disagree for a moment; create-if-absent in the registry settles who gets a shard, and the next picture the rest.

use std::collections::{BTreeMap, BTreeSet};

/// The desired owner of each shard, given who has it now (None: nobody). None for all when `live` is empty.
///
/// Balanced to within one, and no shard leaves a live owner unless balance demands it: moving one fewer is not possible.
/// `live` are the nodes that may own shards; owners that are not among them lose everything.
pub fn desired<'a>(live: &BTreeSet<&'a str>, owners: &[Option<&str>]) -> Vec<Option<&'a str>> {
    let mut room = quotas(live, owners);
    let mut map = vec![None; owners.len()];
    for (place, owner) in map.iter_mut().zip(owners) {
        let kept = owner.and_then(|owner| live.get(owner)).filter(|owner| take(&mut room, owner));
        *place = kept.copied();
    }
    // Whoever has the most room takes next, so that the free shards are spread evenly while nodes fill up.
    for place in map.iter_mut().filter(|place| place.is_none()) {
        let roomiest = room.iter().rev().max_by_key(|(_, room)| **room).map(|(node, _)| *node);
        *place = roomiest.filter(|node| take(&mut room, node));
    }
    map
}

/// The shards that `node` would get if their owner died now, each for itself. Shards without an owner are nobody's to
/// stand by for.
pub fn standbys(live: &BTreeSet<&str>, owners: &[Option<&str>], node: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let others: BTreeSet<&str> = owners.iter().flatten().copied().filter(|owner| *owner != node).collect();
    for dead in others {
        let survivors: BTreeSet<&str> = live.iter().copied().filter(|node| *node != dead).collect();
        let map = desired(&survivors, owners);
        let ours = (0u32..).zip(owners).zip(map);
        let ours = ours.filter(|((_, owner), next)| **owner == Some(dead) && *next == Some(node));
        found.extend(ours.map(|((shard, _), _)| shard));
    }
    found
}

/// How many shards each node should have. Those that have the most now get the larger shares.
fn quotas<'a>(live: &BTreeSet<&'a str>, owners: &[Option<&str>]) -> BTreeMap<&'a str, usize> {
    if live.is_empty() {
        return BTreeMap::new();
    }
    let mut counts: BTreeMap<&str, usize> = live.iter().map(|node| (*node, 0)).collect();
    for owner in owners.iter().flatten() {
        if let Some(count) = counts.get_mut(owner) {
            *count += 1;
        }
    }
    let (share, larger) = (owners.len() / live.len(), owners.len() % live.len());
    let mut ranked: Vec<&'a str> = live.iter().copied().collect();
    ranked.sort_by_key(|node| std::cmp::Reverse(counts[node]));
    ranked.into_iter().enumerate().map(|(rank, node)| (node, share + usize::from(rank < larger))).collect()
}

fn take(room: &mut BTreeMap<&str, usize>, node: &str) -> bool {
    match room.get_mut(node) {
        Some(room @ 1..) => {
            *room -= 1;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

    fn case() -> impl Strategy<Value = (BTreeSet<&'static str>, Vec<Option<&'static str>>)> {
        let live = prop::collection::btree_set(prop::sample::select(&NAMES[..]), 1..6);
        let owners = prop::collection::vec(prop::option::of(prop::sample::select(&NAMES[..])), 0..40);
        (live, owners)
    }

    fn count(map: &[Option<&str>], node: &str) -> usize {
        map.iter().filter(|owner| **owner == Some(node)).count()
    }

    /// Shards of live owners that are with somebody else in `map`.
    fn moved(live: &BTreeSet<&str>, owners: &[Option<&str>], map: &[Option<&str>]) -> usize {
        let held = owners.iter().zip(map).filter(|(owner, _)| owner.is_some_and(|owner| live.contains(owner)));
        held.filter(|(owner, wanted)| owner != wanted).count()
    }

    /// The fewest moves of any balanced map, by trying every choice of who gets the larger shares.
    fn fewest_moves(live: &BTreeSet<&str>, owners: &[Option<&str>]) -> usize {
        let (share, larger) = (owners.len() / live.len(), owners.len() % live.len());
        let choices = (0u32..1 << live.len()).filter(|choice| choice.count_ones() as usize == larger);
        let moves = choices.map(|choice| {
            let quota = |i: usize| share + (choice >> i & 1) as usize;
            live.iter().enumerate().map(|(i, node)| count(owners, node).saturating_sub(quota(i))).sum()
        });
        moves.min().unwrap()
    }

    proptest! {
        #[test]
        fn every_shard_has_a_live_owner_and_shares_differ_by_one_at_most((live, owners) in case()) {
            let map = desired(&live, &owners);
            prop_assert!(map.iter().all(|owner| owner.is_some_and(|owner| live.contains(owner))));
            let counts: Vec<_> = live.iter().map(|node| count(&map, node)).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        }

        #[test]
        fn no_balanced_map_moves_fewer_shards((live, owners) in case()) {
            prop_assert_eq!(moved(&live, &owners, &desired(&live, &owners)), fewest_moves(&live, &owners));
        }

        #[test]
        fn a_reached_map_is_stable((live, owners) in case()) {
            let map = desired(&live, &owners);
            prop_assert_eq!(desired(&live, &map), map);
        }

        #[test]
        fn a_map_reached_shard_by_shard_in_any_order_stays_balanced_and_ends(
            (live, owners) in case(), order in prop::collection::vec(any::<prop::sample::Index>(), 200)
        ) {
            let mut now = owners;
            for pick in order {
                let map = desired(&live, &now);
                let open: Vec<usize> = (0..now.len()).filter(|&shard| now[shard] != map[shard]).collect();
                if open.is_empty() { break }
                let shard = open[pick.index(open.len())];
                // An owner lets go first, then somebody takes it.
                now[shard] = match now[shard].is_some_and(|owner| live.contains(owner)) {
                    true => None,
                    false => map[shard],
                };
            }
            prop_assert_eq!(&desired(&live, &now), &now);
        }

        #[test]
        fn one_node_stands_by_for_each_shard_and_gets_it_when_its_owner_dies((live, owners) in case()) {
            let map = desired(&live, &owners);
            for shard in 0..map.len() {
                let survivors: BTreeSet<_> = live.iter().copied().filter(|node| Some(*node) != map[shard]).collect();
                let next = desired(&survivors, &map)[shard];
                let stand_by = live.iter().filter(|node| standbys(&live, &map, node).contains(&(shard as u32)));
                prop_assert_eq!(stand_by.copied().collect::<Vec<_>>(), next.into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_map_depends_on_no_order_of_the_nodes() {
        let owners = [Some("b"), None, Some("c"), None, Some("x")];
        let forward: BTreeSet<_> = ["a", "b", "c"].into();
        let backward: BTreeSet<_> = ["c", "b", "a"].into();
        let map = desired(&forward, &owners);
        assert_eq!(map, desired(&backward, &owners));
        assert_eq!(map, [Some("b"), Some("a"), Some("c"), Some("b"), Some("c")]);
    }

    #[test]
    fn a_node_that_joins_takes_its_share_from_those_who_have_most() {
        let live: BTreeSet<_> = ["a", "b", "c"].into();
        let owners: Vec<_> = (0..12).map(|shard| Some(if shard < 7 { "a" } else { "b" })).collect();
        let map = desired(&live, &owners);
        assert_eq!(NAMES[..3].iter().map(|node| count(&map, node)).collect::<Vec<_>>(), [4, 4, 4]);
        assert_eq!(moved(&live, &owners, &map), 4);
    }

    #[test]
    fn without_live_nodes_nobody_is_desired() {
        assert_eq!(desired(&BTreeSet::new(), &[Some("a"), None]), [None, None]);
        assert!(standbys(&["a"].into(), &[Some("a"), None], "a").is_empty());
    }
}
