//! Why the host could not do or see something.

use std::io;
use std::path::PathBuf;

/// Why a step or a look failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file operation failed.
    #[error("could not {what} {path}")]
    File {
        /// Verb.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// systemd refused, or could not be asked.
    #[error("systemd did not {what}")]
    Systemd {
        /// Verb and object.
        what: String,
        /// Its reason.
        #[source]
        source: zbus::Error,
    },
    /// The bus on which systemd speaks cannot be reached.
    #[error("the system bus cannot be reached")]
    NoSystemd {
        /// The reason.
        #[source]
        source: zbus::Error,
    },
    /// The kernel refused a change of routes, or could not be asked.
    #[error("the kernel did not {what}")]
    Routes {
        /// Verb and object.
        what: String,
        /// Its reason.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// A key could not be made.
    #[error("a key could not be made")]
    Key {
        /// The reason.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate came for which no key is kept.
    #[error("no key is kept for certificate {certificate}: it came too late, or the agent was restarted")]
    NoKey {
        /// Its name in the config.
        certificate: String,
    },
    /// A certificate came that cannot be used.
    #[error("certificate {certificate} cannot be used: {why}")]
    Certificate {
        /// Its name in the config.
        certificate: String,
        /// Why not.
        why: String,
    },
    /// A number of the machine could not be read.
    #[error("could not read {what}")]
    Meter {
        /// Which.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program did not do what it was run for.
    #[error("{program} failed: {why}")]
    Program {
        /// Its path.
        program: String,
        /// How it ended, and what it printed last.
        why: String,
    },
    /// A process could not be signalled.
    #[error("could not {what} process {process}")]
    Process {
        /// Verb.
        what: &'static str,
        /// Its id.
        process: u32,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What was to be done would have been wrong.
    #[error("{what} is left alone: {why}")]
    Refused {
        /// Of what.
        what: String,
        /// Why.
        why: &'static str,
    },
    /// The step is the shell's.
    #[error("this step is not the host's")]
    NotMine,
    /// The work was given up because the agent stops.
    #[error("the work was given up")]
    Aborted,
}

impl HostError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    pub(crate) fn program(program: &str, why: String) -> Self {
        Self::Program { program: program.to_owned(), why }
    }

    pub(crate) fn refused(what: impl ToString, why: &'static str) -> Self {
        Self::Refused { what: what.to_string(), why }
    }

    /// The error with all its causes in one line, for events and logs.
    #[must_use]
    pub fn chain(&self) -> String {
        keelson_protocol::errors::chain(self)
    }
}
