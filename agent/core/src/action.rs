//! What the core asks the shell to do.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::SecretBytes;
use keelson_protocol::config::{BalancerSpec, PeerSpec, ProbeSpec, RouteSpec};
use keelson_protocol::health::Heartbeat;
use keelson_protocol::message::ToCoordinator;
use keelson_protocol::peer::PeerTarget;
use keelson_protocol::remedy::RemedyAct;

use crate::digest::Digest;

/// Something to do. The shell carries actions out in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the ledger. It must be on disk before the next action begins; the result comes back as
    /// [`crate::Event::Persisted`] at once.
    Persist(SecretBytes),
    /// Change the machine. Runs beside other steps; the result comes back as [`crate::Event::StepDone`].
    Run(Step),
    /// Look at the machine. The answer comes back as [`crate::Event::Observed`].
    Look(Look),
    /// Ask a probe. The answer comes back as [`crate::Event::Probed`].
    Probe {
        /// Comes back with the answer.
        id: u64,
        /// What to ask.
        probe: Arc<ProbeSpec>,
    },
    /// Ask peers whether they live, all at once. The answer comes back as [`crate::Event::PeersProbed`].
    ProbePeers {
        /// Comes back with the answers.
        id: u64,
        /// How they are asked.
        channel: PeerChannel,
        /// Whom to ask.
        targets: Vec<PeerTarget>,
    },
    /// Send a message to the coordinator. Lost when there is none; the core notices by the missing answer.
    Send(ToCoordinator),
    /// Send a heartbeat. Lost when there is no coordinator.
    Heartbeat(Heartbeat),
}

/// How the machines of a cluster ask each other ([`keelson_protocol::peer`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChannel {
    /// Where this machine answers; the others answer at the same port.
    pub listen: SocketAddrV4,
    /// The cluster's key.
    pub key: SecretBytes,
}

impl PeerChannel {
    pub(crate) fn of(spec: &PeerSpec) -> Self {
        Self { listen: spec.listen, key: spec.key.clone() }
    }
}

/// One look at one class of things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Comes back with the answer: an answer that was on its way while something was changed is stale.
    pub id: u64,
    /// What to look at.
    pub query: Query,
}

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// States of units, asked for each second: the list is shared, not copied.
    Units(Arc<[String]>),
    /// Digests and modes of files; the list is shared, not copied.
    Files(Arc<[String]>),
    /// Validity of certificates, and whether their keys belong to them.
    Certificates(Vec<CertificateFiles>),
    /// The routes that carry our own protocol number.
    Routes,
    /// Room left on disk and in memory.
    Pressure,
}

/// Where a certificate lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Name in the config.
    pub name: String,
    /// The chain (PEM).
    pub certificate_path: String,
    /// The key (PEM).
    pub key_path: String,
}

/// One change of the machine. Each is idempotent: done twice it is as if done once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write files atomically, making the folders above them.
    WriteFiles(Vec<FileWrite>),
    /// Remove files; absent ones are no error.
    RemoveFiles(Vec<String>),
    /// Let systemd read all units again.
    Reload,
    /// Start a unit; nothing happens when it runs.
    Start {
        /// Its name.
        unit: String,
        /// Folders to make first, when they are absent, with this mode.
        directories: Vec<(String, u32)>,
    },
    /// Stop a unit when it runs, and start it.
    Restart {
        /// Its name.
        unit: String,
        /// Folders to make first, when they are absent, with this mode.
        directories: Vec<(String, u32)>,
    },
    /// Stop a unit and forget that it failed; one that systemd does not know is no error.
    Stop {
        /// Its name.
        unit: String,
    },
    /// Make a key for a certificate, keep it in memory, and answer with a signing request.
    MakeKey {
        /// Its name in the config.
        certificate: String,
    },
    /// Write a certificate and the key made for it. Fails when the certificate is for another key.
    InstallCertificate {
        /// Where it goes.
        files: CertificateFiles,
        /// The chain, leaf first (DER).
        chain: Vec<Vec<u8>>,
    },
    /// Make a key for the next link certificate and answer with a signing request.
    MakeLinkKey,
    /// Write the next link certificate with its key and use them from now on.
    InstallLink {
        /// The chain, leaf first (DER).
        chain: Vec<Vec<u8>>,
    },
    /// Change the routes that carry our own protocol number.
    ChangeRoutes {
        /// To add, or to replace where the destination has a route of ours.
        add: Vec<RouteSpec>,
        /// To remove.
        remove: Vec<RouteSpec>,
    },
    /// Run the balancer so, or not at all.
    Balance(Option<BalancerSpec>),
    /// Answer peers so, or not at all.
    AnswerPeers(Option<PeerChannel>),
    /// Do one act of a remedy, or of the fence. Answered with [`crate::StepOutput::Said`].
    Act {
        /// Name of the remedy, or [`keelson_protocol::remedy::FENCE`], or [`keelson_protocol::remedy::FENCE_REBOOT`].
        of: String,
        /// What to do.
        act: RemedyAct,
    },
    /// Switch the machine off; programs are ended first.
    PowerOff,
}

/// How long removing a tree may take: ten gigabytes in small files, on a slow disk.
const TREE_TIMEOUT: Duration = Duration::from_secs(600);
/// What an act needs beside its programs.
const ACT_MARGIN: Duration = Duration::from_secs(10);

/// Longest time that an act may take: its programs have limits of their own.
fn act_timeout(act: &RemedyAct) -> Duration {
    let programs = |count: u32, timeout_s: u16| ACT_MARGIN + Duration::from_secs(timeout_s.into()) * count;
    match act {
        RemedyAct::Run { argument, timeout_s, .. } => programs(1 + u32::from(argument.is_some()), *timeout_s),
        RemedyAct::Sweep { timeout_s, .. } => programs(4, *timeout_s),
        RemedyAct::MoveAside { .. } | RemedyAct::RemoveAside { .. } | RemedyAct::RemoveOld { .. } => {
            TREE_TIMEOUT
        }
        RemedyAct::EndProcesses { .. }
        | RemedyAct::Unmount { .. }
        | RemedyAct::RemoveFiles { .. }
        | RemedyAct::Reboot => Duration::from_secs(60),
    }
}

impl Step {
    /// What the step works on: at most one step of a key is in flight.
    #[must_use]
    pub fn key(&self) -> StepKey {
        match self {
            Self::WriteFiles(_) | Self::RemoveFiles(_) => StepKey::Files,
            Self::Reload => StepKey::Reload,
            Self::Start { unit, .. } | Self::Restart { unit, .. } | Self::Stop { unit } => {
                StepKey::Unit(unit.clone())
            }
            Self::MakeKey { certificate } => StepKey::Certificate(certificate.clone()),
            Self::InstallCertificate { files, .. } => StepKey::Certificate(files.name.clone()),
            Self::MakeLinkKey | Self::InstallLink { .. } => StepKey::Link,
            Self::ChangeRoutes { .. } => StepKey::Routes,
            Self::Balance(_) => StepKey::Balancer,
            Self::AnswerPeers(_) => StepKey::Peers,
            Self::Act { of, .. } => StepKey::Act(of.clone()),
            Self::PowerOff => StepKey::Power,
        }
    }

    /// Longest time that the step may take; the shell then reports it as failed. A hung disk or a stuck systemd must
    /// not block the thing for ever.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        match self {
            Self::WriteFiles(_) | Self::RemoveFiles(_) | Self::Reload => Duration::from_secs(60),
            Self::Act { act, .. } => act_timeout(act),
            Self::PowerOff => Duration::from_secs(60),
            _ => Duration::from_secs(30),
        }
    }
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileWrite {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// The bytes. Kept as a secret whatever they are, so that no log shows them.
    pub content: SecretBytes,
    /// Their digest.
    pub digest: Digest,
}

/// What a step works on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKey {
    /// The set of owned files.
    Files,
    /// systemd's view of the unit files.
    Reload,
    /// A unit.
    Unit(String),
    /// A certificate of the config.
    Certificate(String),
    /// The link certificate.
    Link,
    /// Routes.
    Routes,
    /// The balancer.
    Balancer,
    /// The answering of peers.
    Peers,
    /// Acts of the remedy of that name, or of the fence.
    Act(String),
    /// The machine's power.
    Power,
}

impl std::fmt::Display for StepKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Files => f.write_str("files"),
            Self::Reload => f.write_str("systemd reload"),
            Self::Unit(name) => f.write_str(name),
            Self::Certificate(name) => write!(f, "certificate {name}"),
            Self::Link => f.write_str("link certificate"),
            Self::Routes => f.write_str("routes"),
            Self::Balancer => f.write_str("balancer"),
            Self::Peers => f.write_str("answering of peers"),
            Self::Act(name) => write!(f, "remedy {name}"),
            Self::Power => f.write_str("power"),
        }
    }
}
