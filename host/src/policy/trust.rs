//! Whose components are loaded: with keys set, only those with a detached Ed25519 signature by one of them.
//!
//! The signature is of the component's bytes as they are. Keys are settings of the node; how to change them while it
//! runs, expiry and revocation are not dealt with here: take a key out of the settings and start anew. Built-in
//! policies come with the binary and need no signature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{PUBLIC_KEY_LENGTH, SIGNATURE_LENGTH, Signature, VerifyingKey};

use super::limits;

/// The public keys of those whose components are loaded. `Default` has none: every component is.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    keys: Vec<VerifyingKey>,
}

/// A key in the settings is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    #[error("key {number} is no Ed25519 public key: {reason}")]
    Malformed {
        /// Its place in the list, from 1.
        number: usize,
        reason: String,
    },
    #[error("there are {keys} keys; at most {max} can be set", max = limits::TRUSTED_KEYS_MAX)]
    TooMany { keys: usize },
}

/// Why a component is not trusted. Each is a sentence for whoever uploaded it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error("the component has no signature; this node loads only what one of its {keys} trusted keys has signed")]
    Unsigned { keys: usize },
    #[error("the signature is no Ed25519 signature: {0}")]
    Malformed(String),
    #[error("the signature is not of these bytes by one of this node's {keys} trusted keys")]
    Mismatch { keys: usize },
}

impl Trust {
    /// Reads public keys: 32 bytes each, in hexadecimal or base64.
    pub fn new<K: AsRef<str>>(keys: &[K]) -> Result<Self, BadKey> {
        if keys.len() > limits::TRUSTED_KEYS_MAX {
            return Err(BadKey::TooMany { keys: keys.len() });
        }
        let read =
            |(key, number): (&K, usize)| key_of(key.as_ref()).map_err(|reason| BadKey::Malformed { number, reason });
        Ok(Self { keys: keys.iter().zip(1..).map(read).collect::<Result<_, _>>()? })
    }

    /// Whether signatures are asked for.
    pub fn is_required(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Whether these bytes may be loaded. The signature is 64 bytes in hexadecimal or base64; without keys it is not
    /// looked at.
    pub fn check(&self, bytes: &[u8], signature: Option<&str>) -> Result<(), Untrusted> {
        if !self.is_required() {
            return Ok(());
        }
        let keys = self.keys.len();
        let text = signature.ok_or(Untrusted::Unsigned { keys })?;
        let signature = Signature::from_bytes(&decode::<SIGNATURE_LENGTH>(text).map_err(Untrusted::Malformed)?);
        // Strict: no second signature can be derived from a good one.
        let signed = self.keys.iter().any(|key| key.verify_strict(bytes, &signature).is_ok());
        if signed { Ok(()) } else { Err(Untrusted::Mismatch { keys }) }
    }
}

fn key_of(text: &str) -> Result<VerifyingKey, String> {
    let bytes = decode::<PUBLIC_KEY_LENGTH>(text)?;
    let key = VerifyingKey::from_bytes(&bytes).map_err(|_| "its bytes are no point of the curve".to_owned())?;
    if key.is_weak() {
        return Err("it is a weak key, under which anybody can sign".into());
    }
    Ok(key)
}

/// Bytes from hexadecimal or, where the length is not that of hexadecimal, from base64.
fn decode<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let text = text.trim();
    let bytes = if text.len() == 2 * N { unhex(text) } else { STANDARD.decode(text).ok() };
    let fits = bytes.and_then(|bytes| <[u8; N]>::try_from(bytes).ok());
    fits.ok_or_else(|| format!("it is not {N} bytes in hexadecimal ({} digits) or base64", 2 * N))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8; 2]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    text.as_bytes().as_chunks().0.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn signer(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn trusting(seeds: &[u8]) -> Trust {
        let keys: Vec<String> = seeds.iter().map(|&seed| hex(signer(seed).verifying_key().as_bytes())).collect();
        Trust::new(&keys).expect("they are keys")
    }

    fn signed(seed: u8, bytes: &[u8]) -> String {
        hex(&signer(seed).sign(bytes).to_bytes())
    }

    #[test]
    fn without_keys_everything_passes() {
        let trust = Trust::new::<&str>(&[]).expect("none is good");
        assert_eq!(trust.check(b"anything", None), Ok(()));
        assert_eq!(trust.check(b"anything", Some("not even a signature")), Ok(()));
        assert!(!trust.is_required());
    }

    #[test]
    fn the_published_vector_of_the_standard_verifies() {
        // RFC 8032, section 7.1, test 2.
        let trust = Trust::new(&["3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"]).expect("a key");
        let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        assert_eq!(trust.check(&[0x72], Some(signature)), Ok(()));
        assert_eq!(trust.check(&[0x73], Some(signature)), Err(Untrusted::Mismatch { keys: 1 }));
    }

    #[test]
    fn any_listed_key_will_do_and_no_other() {
        let trust = trusting(&[1, 2]);
        for seed in [1, 2] {
            assert_eq!(trust.check(b"component", Some(&signed(seed, b"component"))), Ok(()));
        }
        assert_eq!(trust.check(b"component", Some(&signed(3, b"component"))), Err(Untrusted::Mismatch { keys: 2 }));
        let missing = trust.check(b"component", None).unwrap_err().to_string();
        assert!(missing.contains("no signature") && missing.contains("2 trusted keys"), "{missing}");
    }

    #[test]
    fn keys_and_signatures_may_be_base64() {
        let key = STANDARD.encode(signer(7).verifying_key().as_bytes());
        let trust = Trust::new(&[format!(" {key}\n")]).expect("a key");
        let signature = STANDARD.encode(signer(7).sign(b"x").to_bytes());
        assert_eq!(trust.check(b"x", Some(&signature)), Ok(()));
    }

    #[test]
    fn what_is_no_key_or_signature_is_named() {
        let good = hex(signer(1).verifying_key().as_bytes());
        let weak = format!("01{}", "0".repeat(62));
        for (bad, why) in [("", "not 32 bytes"), (&*"z".repeat(64), "not 32 bytes"), (&weak, "weak")] {
            let refused = Trust::new(&[&good, bad]).unwrap_err().to_string();
            assert!(refused.starts_with("key 2 ") && refused.contains(why), "{refused}");
        }
        assert_eq!(Trust::new(&vec![good; 65]).unwrap_err(), BadKey::TooMany { keys: 65 });
        let refused = trusting(&[1]).check(b"x", Some("abc")).unwrap_err().to_string();
        assert!(refused.contains("64 bytes in hexadecimal (128 digits)"), "{refused}");
    }

    proptest! {
        #[test]
        fn one_changed_bit_anywhere_is_noticed(bytes in prop::collection::vec(any::<u8>(), 1..200), at: usize, bit in 0u8..8) {
            let trust = trusting(&[1]);
            let signature = signer(1).sign(&bytes).to_bytes();
            prop_assert_eq!(trust.check(&bytes, Some(&hex(&signature))), Ok(()));
            let mut changed = bytes.clone();
            changed[at % bytes.len()] ^= 1 << bit;
            prop_assert!(trust.check(&changed, Some(&hex(&signature))).is_err());
            let mut forged = signature;
            forged[at % SIGNATURE_LENGTH] ^= 1 << bit;
            prop_assert!(trust.check(&bytes, Some(&hex(&forged))).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = Trust::new(&[&text]);
            let _ = trusting(&[1]).check(b"x", Some(&text));
        }
    }
}
