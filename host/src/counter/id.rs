//! The name of a counter: 1 to 512 bytes of UTF-8. Every byte is allowed, `/` included.

use compact_str::CompactString;

use crate::limits;

/// A checked counter id. Up to 24 bytes live inline, so the common id costs no allocation and no pointer chase.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(CompactString);

/// Why a text cannot name a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("a counter id must not be empty")]
    Empty,
    #[error("a counter id has at most {} bytes; this one has {bytes}", limits::COUNTER_ID_BYTES_MAX)]
    TooLong { bytes: usize },
}

impl Id {
    pub fn new(text: &str) -> Result<Self, Invalid> {
        match text.len() {
            0 => Err(Invalid::Empty),
            bytes if bytes > limits::COUNTER_ID_BYTES_MAX => Err(Invalid::TooLong { bytes }),
            _ => Ok(Self(CompactString::new(text))),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0.as_str())
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_counted_in_bytes() {
        assert_eq!(Id::new(""), Err(Invalid::Empty));
        assert!(Id::new(&"x".repeat(512)).is_ok());
        assert_eq!(Id::new(&"é".repeat(257)), Err(Invalid::TooLong { bytes: 514 }));
    }

    #[test]
    fn common_ids_cost_no_heap() {
        assert_eq!(size_of::<Id>(), 24);
        assert!(!Id::new("a-counter-of-24-bytes-ok").expect("valid").0.is_heap_allocated());
    }
}
