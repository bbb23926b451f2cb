//! The last totals that this node computed, for reads that accept an older one.
//!
//! A bounded cache that forgets a whole part when the part is full: a miss costs a fresh read, nothing else.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;

use crate::counter::Id;
use crate::limits;

const PARTS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cached {
    pub value: i128,
    /// When the partials were read.
    pub at: Instant,
    /// The same moment in milliseconds since 1970.
    pub at_ms: u64,
}

#[derive(Debug, Default)]
pub struct Totals([Mutex<HashMap<Id, Cached>>; PARTS]);

impl Totals {
    fn part(&self, hash: u64) -> &Mutex<HashMap<Id, Cached>> {
        &self.0[(hash >> 32) as usize % PARTS]
    }

    pub fn get(&self, hash: u64, id: &Id) -> Option<Cached> {
        self.part(hash).lock().get(id).copied()
    }

    pub fn put(&self, hash: u64, id: &Id, cached: Cached) {
        let mut part = self.part(hash).lock();
        if let Some(known) = part.get_mut(id) {
            *known = cached;
            return;
        }
        if part.len() >= limits::CACHED_TOTALS_MAX / PARTS {
            part.clear();
        }
        part.insert(id.clone(), cached);
    }

    pub fn forget(&self, hash: u64, id: &Id) {
        self.part(hash).lock().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded() {
        let totals = Totals::default();
        let cached = Cached { value: 1, at: Instant::now(), at_ms: 1 };
        for i in 0..3 * limits::CACHED_TOTALS_MAX {
            let id = Id::new(&format!("c{i}")).expect("valid");
            totals.put(crate::counter::key_hash(id.as_str()), &id, cached);
        }
        let kept: usize = totals.0.iter().map(|part| part.lock().len()).sum();
        assert!(kept <= limits::CACHED_TOTALS_MAX, "{kept}");
    }
}
