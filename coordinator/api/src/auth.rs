//! Who asks: bearer tokens.
//!
//! Only digests of tokens are kept, and digests are compared without a branch on their content, so that neither memory
//! nor timing tells a token.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::types::SecretText;

/// Shortest token, in characters: 128 random bits in hexadecimal.
pub const TOKEN_CHARS_MIN: usize = 32;

/// Largest token file, in bytes.
const TOKEN_FILE_BYTES_MAX: u64 = 4096;

/// A caller that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(pub String);

/// Why a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("the token file {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Others may read the file.
    #[error("others may read the token file {path} (mode {mode:o}); run `chmod 600 {path}`")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The token could be guessed.
    #[error("a token needs at least {TOKEN_CHARS_MIN} characters, this one has {chars}")]
    TooShort {
        /// Its length.
        chars: usize,
    },
}

/// The tokens that are accepted.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    tokens: Vec<Accepted>,
}

#[derive(Debug, Clone)]
struct Accepted {
    caller: Caller,
    digest: [u8; 32],
}

impl AuthConfig {
    /// Accepts nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts `token` as `caller` too.
    ///
    /// # Errors
    /// [`TokenError::TooShort`].
    pub fn with_token(mut self, caller: &str, token: &SecretText) -> Result<Self, TokenError> {
        let token = token.expose_secret();
        if token.len() < TOKEN_CHARS_MIN {
            return Err(TokenError::TooShort { chars: token.len() });
        }
        let accepted = Accepted { caller: Caller(caller.to_owned()), digest: Sha256::digest(token).into() };
        self.tokens.push(accepted);
        Ok(self)
    }

    /// Accepts the token in the file `path` as `caller` too. Only its owner may be able to read it.
    ///
    /// # Errors
    /// [`TokenError`] names the file and what is wrong with it.
    pub fn with_token_file(self, caller: &str, path: &Path) -> Result<Self, TokenError> {
        let read = |source| TokenError::Read { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(read)?;
        let mode = file.metadata().map_err(read)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Mode { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text).map_err(read)?;
        self.with_token(caller, &SecretText::new(text.trim()))
    }

    /// Who shows the content of this `Authorization` header, if it is anybody known.
    #[must_use]
    pub fn caller(&self, authorization: &str) -> Option<&Caller> {
        let (scheme, token) = authorization.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(token.trim()).into();
        let mut found = None;
        for accepted in &self.tokens {
            if equal(&accepted.digest, &digest) {
                found = Some(&accepted.caller);
            }
        }
        found
    }
}

/// Compares in a time that does not depend on where the digests differ.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let mut difference = 0_u8;
    for (a, b) in a.iter().zip(b) {
        difference = std::hint::black_box(difference | (a ^ b));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_the_whole_token_is_accepted() {
        let auth = AuthConfig::new().with_token("admin", &SecretText::new(TOKEN)).unwrap();
        assert_eq!(auth.caller(&format!("Bearer {TOKEN}")), Some(&Caller("admin".to_owned())));
        assert_eq!(auth.caller(&format!("bearer {TOKEN}")), Some(&Caller("admin".to_owned())));
        for wrong in
            ["", "Bearer", "Bearer ", "Basic 0123456789abcdef0123456789abcdef", &format!("Bearer {TOKEN}0")]
        {
            assert_eq!(auth.caller(wrong), None, "{wrong}");
        }
        assert_eq!(AuthConfig::new().caller(&format!("Bearer {TOKEN}")), None);
    }

    #[test]
    fn a_token_file_must_be_private_and_long_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let check = |content: &str, mode: u32| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            AuthConfig::new().with_token_file("admin", &path).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(check(&format!("{TOKEN}\n"), 0o600), Ok(()));
        assert!(check(TOKEN, 0o640).unwrap_err().contains("chmod 600"));
        assert_eq!(
            check("short", 0o600).unwrap_err(),
            "a token needs at least 32 characters, this one has 5"
        );
        assert!(!format!("{:?}", AuthConfig::new().with_token_file("admin", &path)).contains("short"));
    }
}
