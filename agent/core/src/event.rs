//! What the shell tells the core.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::WallTime;
use keelson_protocol::config::RouteSpec;
use keelson_protocol::health::Pressure;
use keelson_protocol::message::{Refusal, ToAgent};
use keelson_protocol::peer::PeerAnswer;
use serde::{Deserialize, Serialize};

use crate::action::StepKey;
use crate::digest::Digest;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time has passed ([`crate::AgentCore::next_wake`]).
    Woke,
    /// The answer to [`crate::Action::Persist`].
    Persisted(Result<(), String>),
    /// A step ended.
    StepDone {
        /// Which.
        key: StepKey,
        /// What came of it; the error in words, with its causes.
        result: Result<StepOutput, String>,
    },
    /// The answer to [`crate::Action::Look`].
    Observed {
        /// Of which look.
        id: u64,
        /// What was seen; the error in words when nothing could be seen.
        observation: Result<Observation, String>,
    },
    /// A file or a certificate that was looked at may be another one since. May be lost: they are looked at anyway.
    FilesTouched,
    /// The answer to [`crate::Action::Probe`].
    Probed {
        /// Of which probe.
        id: u64,
        /// `Ok` when the answer was the expected one; else what came instead.
        result: Result<(), String>,
    },
    /// The answer to [`crate::Action::ProbePeers`].
    PeersProbed {
        /// Of which question.
        id: u64,
        /// What came of each target.
        answers: Vec<PeerAnswer>,
    },
    /// News of the link.
    Link(LinkNews),
    /// A message of the coordinator.
    Message(Box<ToAgent>),
}

/// News of the link to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkNews {
    /// The machine holds a link certificate with this validity.
    Identity(Validity),
    /// The machine asks for its first certificate; it was refused, or nobody answered.
    Enrolling {
        /// Why it has none yet.
        why: String,
        /// When it asks again.
        retry_in: Duration,
    },
    /// A session stands.
    Connected {
        /// With whom.
        coordinator: String,
    },
    /// There is no session.
    Disconnected {
        /// Why.
        why: String,
        /// When the next try comes.
        retry_in: Duration,
    },
    /// The coordinator refuses to speak with this machine.
    Refused(Refusal),
}

/// Result of a step that did what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepOutput {
    /// Done; there is nothing to say.
    Done,
    /// Files were written, but for these: path and reason.
    Written {
        /// What could not be written.
        failed: Vec<(String, String)>,
    },
    /// A key was made; here is its signing request (PKCS#10, DER).
    SigningRequest(Vec<u8>),
    /// A certificate was installed.
    Installed(Validity),
    /// An act was done; what it did, in a few words.
    Said(String),
}

/// When a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before: WallTime,
    /// To.
    pub not_after: WallTime,
}

impl Validity {
    /// When it is to be renewed: at two thirds of its life.
    #[must_use]
    pub fn renew_at(self) -> WallTime {
        self.not_before.plus(self.not_after.since(self.not_before) * 2 / 3)
    }
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// Units, each that was asked for, in the order of the question.
    Units(Arc<[UnitSeen]>),
    /// Files, each that was asked for.
    Files(BTreeMap<String, FileSeen>),
    /// Certificates, each that was asked for.
    Certificates(BTreeMap<String, CertificateSeen>),
    /// All routes with our protocol number.
    Routes(BTreeSet<RouteSpec>),
    /// Room left.
    Pressure(Pressure),
}

/// systemd's name for one run of a unit (`InvocationID`, systemd.exec(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Invocation(pub u128);

/// State of a unit as systemd tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitSeen {
    /// In one word.
    pub active: Active,
    /// This run, when there is one.
    pub invocation: Option<Invocation>,
    /// How it ended, in words, when it is not running.
    pub ended: String,
    /// Whether somebody else ended it: a person, a test, or the kernel because memory ran out. That says nothing against
    /// the program's own state.
    pub killed: bool,
}

/// What a unit does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Active {
    /// Nothing: stopped, never started, failed, or not known to systemd.
    Stopped,
    /// It ended and systemd will start it again by itself soon.
    AutoRestart,
    /// On its way up or down, or a job is queued.
    Settling,
    /// It runs.
    Running,
    /// Its program has ended with success and the unit remains (oneshots).
    Exited,
}

/// State of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSeen {
    /// It is not there.
    Absent,
    /// It is there.
    Present {
        /// Digest of its content.
        digest: Digest,
        /// Permission bits.
        mode: u32,
    },
    /// It could not be read.
    Unknown {
        /// Why.
        why: String,
    },
}

/// State of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSeen {
    /// Not there, not readable as PEM, or the key belongs to another certificate.
    Missing {
        /// Which of these.
        why: String,
    },
    /// A pair that belongs together.
    Held(Validity),
}
