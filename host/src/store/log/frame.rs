//! The frame: one group commit in the log.
//!
//! Layout: `magic · number u64 · payload bytes u32 · crc32c u32 of all before and the payload · payload`, little-endian,
//! filled with zeros to whole blocks. A block that holds an acknowledged frame is therefore never written again while
//! the log is in use, and every write covers whole pages.

/// Frames begin at multiples of this.
pub const BLOCK_BYTES: usize = 4096;
/// Starts with a byte that UTF-8 never has, so that no text of a caller inside a payload looks like a frame.
const MAGIC: [u8; 8] = *b"\xFFquipu\xFE\x01";
pub const HEADER_BYTES: usize = 24;

/// A frame whose checksum holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Dense: each frame's is its predecessor's plus one, for as long as the directory lives.
    pub number: u64,
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Bytes on disk, filling included.
    pub fn padded_bytes(&self) -> usize {
        padded(HEADER_BYTES + self.payload.len())
    }
}

pub fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// Reserves the header; the payload is appended behind it, then [`seal`] completes the frame.
pub fn begin(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(HEADER_BYTES, 0);
}

/// Fills in the header and the filling.
pub fn seal(buffer: &mut Vec<u8>, number: u64) {
    let payload_bytes = u32::try_from(buffer.len() - HEADER_BYTES).expect("a frame is limited to LOG_FRAME_BYTES_MAX");
    buffer[..8].copy_from_slice(&MAGIC);
    buffer[8..16].copy_from_slice(&number.to_le_bytes());
    buffer[16..20].copy_from_slice(&payload_bytes.to_le_bytes());
    let crc = checksum(&buffer[..20], &buffer[HEADER_BYTES..]);
    buffer[20..24].copy_from_slice(&crc.to_le_bytes());
    buffer.resize(padded(buffer.len()), 0);
}

/// The number that a header claims, before anything is verified.
pub fn claimed_number(bytes: &[u8]) -> Option<u64> {
    let number = bytes.strip_prefix(&MAGIC)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*number))
}

/// Bytes on disk that a header claims, before anything is verified.
pub fn claimed_bytes(bytes: &[u8]) -> Option<usize> {
    let length = bytes.strip_prefix(&MAGIC)?.get(8..)?.first_chunk::<4>()?;
    Some(padded(HEADER_BYTES + u32::from_le_bytes(*length) as usize))
}

/// The frame at the start of `bytes`, or None when there is none whose checksum holds.
pub fn parse(bytes: &[u8]) -> Option<Frame<'_>> {
    let number = claimed_number(bytes)?;
    let payload_bytes = u32::from_le_bytes(*bytes.get(16..)?.first_chunk::<4>()?) as usize;
    let crc = u32::from_le_bytes(*bytes.get(20..)?.first_chunk::<4>()?);
    let payload = bytes.get(HEADER_BYTES..)?.get(..payload_bytes)?;
    (checksum(&bytes[..20], payload) == crc).then_some(Frame { number, payload })
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(number: u64, payload: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        begin(&mut buffer);
        buffer.extend_from_slice(payload);
        seal(&mut buffer, number);
        buffer
    }

    proptest! {
        #[test]
        fn what_was_sealed_is_parsed(number: u64, payload in prop::collection::vec(any::<u8>(), 0..9000)) {
            let bytes = sealed(number, &payload);
            prop_assert_eq!(bytes.len() % BLOCK_BYTES, 0);
            let frame = parse(&bytes).expect("just sealed");
            prop_assert_eq!(frame.padded_bytes(), bytes.len());
            prop_assert_eq!(claimed_bytes(&bytes), Some(bytes.len()));
            prop_assert_eq!((frame.number, frame.payload), (number, &payload[..]));
        }

        #[test]
        fn one_flipped_bit_is_noticed(payload in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = sealed(7, &payload);
            let at = at.index(HEADER_BYTES + payload.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(parse(&bytes), None);
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let with_magic = [&MAGIC[..], &bytes].concat();
            let _ = (parse(&with_magic), claimed_bytes(&with_magic));
        }
    }

    #[test]
    fn no_text_looks_like_a_frame() {
        assert!(std::str::from_utf8(&MAGIC).is_err());
        assert!(std::str::from_utf8(&MAGIC[..1]).is_err());
    }
}
