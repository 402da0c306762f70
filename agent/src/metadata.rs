//! What the infrastructure tells a new machine: who it is, whom to ask, how to know them, and a single-use token.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use keelson_protocol::{Incarnation, MachineId, SecretBytes};
use serde::Deserialize;

/// Largest metadata file, in bytes.
const BYTES_MAX: u64 = 64 * 1024;
/// Most coordinators.
pub(crate) const COORDINATORS_MAX: usize = 16;

/// The metadata of a machine. `Debug` does not show the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) machine: MachineId,
    pub(crate) incarnation: Incarnation,
    pub(crate) coordinators: Vec<SocketAddr>,
    pub(crate) ca_fingerprint: String,
    pub(crate) token: SecretBytes,
}

/// Why there is no usable metadata.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetadataError {
    #[error("the metadata file {path} cannot be read; the infrastructure writes it before the first boot")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The parser's own text may quote the token, so only the place is told.
    #[error("the metadata file {path} is not what it should be at line {line}, column {column}")]
    Malformed { path: PathBuf, line: usize, column: usize },
    #[error("the metadata file {path} names {count} coordinators, 1 to {COORDINATORS_MAX} are allowed")]
    Coordinators { path: PathBuf, count: usize },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    machine: MachineId,
    incarnation: Incarnation,
    coordinators: Vec<SocketAddr>,
    ca_fingerprint: String,
    token: String,
}

impl Metadata {
    pub(crate) fn read(path: &Path) -> Result<Self, MetadataError> {
        let failed = |source| MetadataError::Read { path: path.to_owned(), source };
        let mut text = Vec::new();
        File::open(path).map_err(failed)?.take(BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
        let raw: Raw = serde_json::from_slice(&text).map_err(|error| MetadataError::Malformed {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
        })?;
        let count = raw.coordinators.len();
        if !(1..=COORDINATORS_MAX).contains(&count) {
            return Err(MetadataError::Coordinators { path: path.to_owned(), count });
        }
        Ok(Self {
            machine: raw.machine,
            incarnation: raw.incarnation,
            coordinators: raw.coordinators,
            ca_fingerprint: raw.ca_fingerprint,
            token: SecretBytes::new(raw.token.into_bytes()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"machine":"demo-worker-1","incarnation":2,"coordinators":["10.0.0.1:7443"],
        "caFingerprint":"ab","token":"s3cret"}"#;

    fn read(text: &str) -> Result<Metadata, MetadataError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Metadata::read(file.path())
    }

    #[test]
    fn metadata_is_read_and_its_token_never_shown() {
        let metadata = read(GOOD).unwrap();
        assert_eq!((metadata.machine.as_str(), metadata.incarnation.0), ("demo-worker-1", 2));
        assert!(!format!("{metadata:?}").contains("s3cret"));
    }

    #[test]
    fn what_is_wrong_is_told_without_content() {
        let bad = GOOD.replace("\"s3cret\"", "[\"s3cret\"]");
        let error = read(&bad).unwrap_err();
        assert!(error.to_string().contains("at line 2, column"), "{error}");
        assert!(!keelson_protocol::errors::chain(&error).contains("s3cret"));
        let none = GOOD.replace("\"10.0.0.1:7443\"", "");
        assert!(read(&none).unwrap_err().to_string().contains("names 0 coordinators"));
    }
}
