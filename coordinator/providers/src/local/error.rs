//! What can go wrong on the machine that carries the local provider, and how it is told to the caller.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use keelson_protocol::errors::chain;
use nix::errno::Errno;

use crate::ProviderError;

/// The resource that runs out, as a refusal names it.
pub(crate) const DISK_SPACE: &str = "disk space of this host";

/// Why an act on the host failed.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A file or directory could not be read, written or removed.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused something that is no plain file operation.
    #[error("cannot {doing}")]
    Kernel {
        /// What was being done, with its object.
        doing: String,
        /// What the kernel said.
        source: Errno,
    },
    /// A program could not be started.
    #[error("cannot start `{program}`; is it installed?")]
    Start {
        /// Which program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("`{program}` failed ({status}): {said}")]
    Program {
        /// The program and its most telling arguments.
        program: String,
        /// How it ended.
        status: String,
        /// What it wrote to its standard error, bounded.
        said: String,
    },
    /// Something did not come about in time; whether it will is unknown.
    #[error("{what} did not come about within {} ms", waited.as_millis())]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
    },
    /// A state file is not readable.
    #[error("{} holds no valid state; move it away: what runs is then ended with the next fence of the machine, and removed with its disk when the machine is", path.display())]
    State {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A refusal that the caller of the provider must see as it is.
    #[error(transparent)]
    Refused(#[from] ProviderError),
}

impl LocalError {
    /// An error while `doing` something with `path`; made for `map_err`.
    pub(crate) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }

    /// An error of the kernel while `doing` something; made for `map_err`.
    pub(crate) fn kernel(doing: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let doing = doing.into();
        move |source| Self::Kernel { doing, source }
    }

    fn is_out_of_space(&self) -> bool {
        match self {
            Self::File { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Kernel { source, .. } => *source == Errno::ENOSPC,
            _ => false,
        }
    }
}

impl From<LocalError> for ProviderError {
    fn from(error: LocalError) -> Self {
        match error {
            LocalError::Refused(refusal) => refusal,
            late @ LocalError::Late { .. } => Self::Unknown { detail: chain(&late) },
            full if full.is_out_of_space() => {
                Self::Quota { what: DISK_SPACE.to_owned(), detail: chain(&full) }
            }
            other => Self::Unavailable { detail: chain(&other) },
        }
    }
}
