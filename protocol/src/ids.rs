//! Names and numbers that identify things, each a type of its own so that none can be mistaken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest DNS label (RFC 1123, section 2.1), in bytes. Kubernetes node names must fit in one.
pub const LABEL_BYTES_MAX: usize = 63;

/// Longest cluster name, in bytes: leaves room in a DNS label for `-<pool>-<number>` of its machines.
pub const CLUSTER_NAME_BYTES_MAX: usize = 40;

/// Why a text is no valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The text is longer than its kind allows.
    #[error("`{name}` has {bytes} characters, at most {bytes_max} are allowed")]
    TooLong {
        /// The refused text.
        name: String,
        /// Its length in bytes.
        bytes: usize,
        /// The longest length allowed, in bytes.
        bytes_max: usize,
    },
    /// The text holds a character that the kind does not allow, or begins or ends with a separator.
    #[error("`{name}` is not allowed: use {allowed}, beginning and ending with a letter or digit")]
    BadCharacter {
        /// The refused text.
        name: String,
        /// What is allowed, in words.
        allowed: &'static str,
    },
}

fn check_label(name: &str, bytes_max: usize, extra: &[u8], allowed: &'static str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > bytes_max {
        return Err(NameError::TooLong { name: name.to_owned(), bytes: name.len(), bytes_max });
    }
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || extra.contains(&byte);
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    if bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(());
    }
    Err(NameError::BadCharacter { name: name.to_owned(), allowed })
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident: $bytes_max:expr, $extra:expr, $allowed:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `text` and makes a name of it.
            ///
            /// # Errors
            /// [`NameError`] says which rule the text breaks.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                check_label(&text, $bytes_max, $extra, $allowed)?;
                Ok(Self(text))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    )*};
}

names! {
    /// Name of a cluster: an RFC 1123 label, short enough that its machines' names are labels too.
    ClusterName: CLUSTER_NAME_BYTES_MAX, b"-", "lower-case letters, digits and `-`";
    /// Identity of a machine for its whole life, also its host name and its Kubernetes node name: `<cluster>-<pool>-<number>`.
    MachineId: LABEL_BYTES_MAX, b"-", "lower-case letters, digits and `-`";
    /// Name of a release, for example `1.37.2`.
    ReleaseName: LABEL_BYTES_MAX, b"-.", "lower-case letters, digits, `-` and `.`";
    /// Identity of one Keelson installation; keeps the resources of two installations on one infrastructure apart.
    InstallId: 16, b"", "lower-case letters and digits";
}

/// Counts the states that something has been given. Only ever grows; a receiver refuses an older one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts how often a machine id was given to a new machine. Stands in the link certificate, so that a machine that
/// was replaced cannot speak for its successor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u32);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Drawn anew at every boot of a machine; tells a reconnect from a reboot and from a second holder of an identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub u128);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(), &str>) {
        let got = ClusterName::new(text).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(got, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn cluster_names_follow_rfc_1123() {
        check("demo", Ok(()));
        check("a-1", Ok(()));
        check("", Err("a name must not be empty"));
        let hint = "is not allowed: use lower-case letters, digits and `-`, beginning and ending with a letter or digit";
        for bad in ["Demo", "-demo", "demo-", "de_mo", "de.mo", "dé", "a b", "../x"] {
            check(bad, Err(&format!("`{bad}` {hint}")));
        }
        let long = "x".repeat(41);
        check(&long, Err(&format!("`{long}` has 41 characters, at most 40 are allowed")));
    }

    #[test]
    fn release_names_may_hold_dots() {
        assert!(ReleaseName::new("1.37.2").is_ok());
        assert!(ReleaseName::new(".1").is_err());
    }
}
