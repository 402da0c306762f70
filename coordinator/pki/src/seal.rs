//! Sealing of secrets at rest: ChaCha20-Poly1305 (RFC 8439) with a random nonce before each sealed text.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use keelson_protocol::SecretBytes;
use ring::rand::SecureRandom;

/// Bytes of a sealing key.
pub(crate) const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// Why something could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key has another length.
    #[error("the sealing key has {bytes} bytes, {KEY_BYTES} are needed")]
    KeyLength {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Entropy,
    /// The sealed bytes were changed, or were sealed with another key or for another name.
    #[error(
        "{name} cannot be opened: it was changed, or sealed with another key; restore the key file that belongs to this state directory"
    )]
    Refused {
        /// What was sealed.
        name: String,
    },
}

/// The key that everything secret in the store is sealed with.
pub struct SealingKey(ChaCha20Poly1305);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey")
    }
}

impl SealingKey {
    /// Fresh key bytes, for a new installation.
    ///
    /// # Errors
    /// [`SealError::Entropy`].
    pub fn generate() -> Result<SecretBytes, SealError> {
        let mut bytes = [0_u8; KEY_BYTES];
        ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| SealError::Entropy)?;
        Ok(SecretBytes::new(bytes.to_vec()))
    }

    /// Takes key bytes.
    ///
    /// # Errors
    /// [`SealError::KeyLength`].
    pub fn new(bytes: &SecretBytes) -> Result<Self, SealError> {
        let bytes: [u8; KEY_BYTES] = bytes
            .expose_secret()
            .try_into()
            .map_err(|_| SealError::KeyLength { bytes: bytes.expose_secret().len() })?;
        Ok(Self(ChaCha20Poly1305::new(&Key::from(bytes))))
    }

    /// Seals `content` under `name`; only the same name opens it, so that rows cannot be exchanged.
    ///
    /// # Errors
    /// [`SealError::Entropy`].
    pub fn seal(&self, name: &str, content: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0_u8; NONCE_BYTES];
        ring::rand::SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Entropy)?;
        let payload = Payload { msg: content, aad: name.as_bytes() };
        let sealed = self.0.encrypt(&Nonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| SealError::Refused { name: name.to_owned() })?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens what [`Self::seal`] made.
    ///
    /// # Errors
    /// [`SealError::Refused`] when it was changed or sealed with another key or name.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let refused = || SealError::Refused { name: name.to_owned() };
        let (nonce, sealed) = sealed.split_at_checked(NONCE_BYTES).ok_or_else(refused)?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| refused())?;
        let payload = Payload { msg: sealed, aad: name.as_bytes() };
        self.0.decrypt(&Nonce::from(nonce), payload).map_err(|_| refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_and_name_open_it() {
        let key = SealingKey::new(&SealingKey::generate().unwrap()).unwrap();
        let other = SealingKey::new(&SealingKey::generate().unwrap()).unwrap();
        let mut sealed = key.seal("cluster/demo", b"secret").unwrap();
        assert_eq!(key.open("cluster/demo", &sealed).unwrap(), b"secret");
        let refused = Err(SealError::Refused { name: "cluster/demo".to_owned() });
        assert_eq!(other.open("cluster/demo", &sealed), refused);
        assert!(key.open("cluster/other", &sealed).is_err());
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        sealed[20] ^= 1;
        assert_eq!(key.open("cluster/demo", &sealed), refused);
        assert!(key.open("cluster/demo", b"short").is_err());
    }
}
