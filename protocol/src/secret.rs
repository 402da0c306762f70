//! Bytes that must never be printed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Secret bytes: a key, a token, a file that holds one. `Debug` shows only the length, so that no log, error or event
/// can show the content by accident. Serialized only into configs on the link and into ledgers readable by root.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes `bytes` as a secret.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The content. The name is long on purpose: every use stands out in a review.
    #[must_use]
    pub fn expose_secret(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}
