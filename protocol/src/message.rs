//! The messages of the link, one type for each place where messages travel.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::NodeConfig;
use crate::health::{AgentEvent, Facts, HealthReport, Heartbeat};
use crate::ids::{BootId, Generation, Incarnation, MachineId};
use crate::limits;
use crate::peer::{PeerAnswer, PeerTarget};
use crate::secret::SecretBytes;
use crate::time::WallTime;
use crate::wire::{Message, ProtocolVersion};

/// Asks for the first certificate of a machine. The only message that may come without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// Who asks.
    pub machine: MachineId,
    /// Which machine of that id.
    pub incarnation: Incarnation,
    /// The single-use token from the metadata channel.
    pub token: SecretBytes,
    /// PKCS#10 request (DER) for a key made on the machine.
    pub signing_request: Vec<u8>,
}

/// Answer to [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolReply {
    /// The machine's link certificate, leaf first (DER).
    Accepted {
        /// The chain.
        chain: Vec<Vec<u8>>,
    },
    /// No certificate.
    Refused(Refusal),
}

/// Why the coordinator will not speak with somebody. Append-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RefusalCode {
    /// No blueprint names this machine.
    UnknownMachine,
    /// The token is not the one that was given to this machine.
    WrongToken,
    /// The token has been used.
    TokenUsed,
    /// The token has expired.
    TokenExpired,
    /// The certificate was issued to an earlier machine of this id.
    OldIncarnation,
    /// Another live machine holds this identity.
    SecondHolder,
    /// No protocol version is common to both.
    Version,
    /// The signing request asks for something that the blueprint does not allow.
    BadSigningRequest,
    /// The coordinator cannot answer now; try again later.
    Busy,
}

/// A refusal with its reason in words, for the machine's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The reason.
    pub code: RefusalCode,
    /// The reason in words, with what to do.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.text)
    }
}

/// From agent to coordinator, on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// First message of a session.
    Hello {
        /// Oldest version that the agent understands.
        version_min: ProtocolVersion,
        /// Newest version that the agent understands.
        version_max: ProtocolVersion,
        /// This boot.
        boot: BootId,
        /// Generation of the config in the agent's ledger, if it has one.
        generation: Option<Generation>,
        /// What the machine is.
        facts: Box<Facts>,
    },
    /// Health in full.
    Health(Box<HealthReport>),
    /// Events that the coordinator has not acknowledged yet, oldest first.
    Events(Vec<AgentEvent>),
    /// Asks for a certificate of the config.
    SignCertificate {
        /// Its name in the config.
        name: String,
        /// Generation of the config that names it.
        generation: Generation,
        /// PKCS#10 request (DER).
        signing_request: Vec<u8>,
    },
    /// Asks for the next link certificate.
    RenewLink {
        /// PKCS#10 request (DER).
        signing_request: Vec<u8>,
    },
    /// Asks for the coordinator's time.
    TimeRequest {
        /// The agent's wall clock when it asked.
        asked_at: WallTime,
    },
    /// Answer to `ProbePeers`.
    PeersProbed {
        /// Number of the question.
        id: u64,
        /// What came of each target, at most [`limits::PEER_TARGETS_MAX`].
        answers: Vec<PeerAnswer>,
    },
}

/// From coordinator to agent, on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Answer to `Hello`: the session stands.
    Welcome {
        /// Version that both speak from here on.
        version: ProtocolVersion,
        /// The coordinator's wall clock.
        now: WallTime,
    },
    /// The session is refused and ends.
    Refused(Refusal),
    /// The machine's whole desired state.
    Config(Box<NodeConfig>),
    /// A signed certificate, leaf first (DER).
    Certificate {
        /// Its name in the config.
        name: String,
        /// The chain.
        chain: Vec<Vec<u8>>,
    },
    /// A certificate will not be signed.
    CertificateRefused {
        /// Its name in the config.
        name: String,
        /// Why not.
        why: String,
    },
    /// The next link certificate, leaf first (DER).
    LinkRenewed {
        /// The chain.
        chain: Vec<Vec<u8>>,
    },
    /// All events up to and with this number are on the coordinator's disk.
    EventsStored {
        /// The number.
        through: u64,
    },
    /// Answer to `TimeRequest`.
    Time {
        /// The agent's wall clock when it asked.
        asked_at: WallTime,
        /// The coordinator's wall clock when it answered.
        now: WallTime,
    },
    /// Asks whether the machine can reach others of its cluster.
    ProbePeers {
        /// Comes back with the answers; means nothing in another session.
        id: u64,
        /// Whom to ask, at most [`limits::PEER_TARGETS_MAX`].
        targets: Vec<PeerTarget>,
    },
}

/// Head of a bulk stream, which the coordinator opens; what follows depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkRequest {
    /// The journal, as text. Ends after `lines`, or goes on until the stream is reset.
    Journal {
        /// Only this unit.
        unit: Option<String>,
        /// How many of the last lines.
        lines: u32,
        /// Whether to go on with new lines.
        follow: bool,
    },
    /// What `keelson-agent status` prints, as JSON.
    Status,
    /// A command; [`ShellFrame`]s follow in both directions.
    Shell {
        /// Program and arguments; empty means root's shell.
        command: Vec<String>,
        /// Value of `TERM` of its pseudo terminal; empty: it has none, and its three streams carry bytes as they are.
        terminal: String,
        /// Rows of the terminal.
        rows: u16,
        /// Columns of the terminal.
        columns: u16,
    },
}

/// Answer to [`BulkRequest`], before the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkReply {
    /// The content follows.
    Accepted,
    /// It will not come.
    Refused {
        /// Why, with what to do.
        why: String,
    },
}

/// A frame of a shell stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShellFrame {
    /// Keys or input one way, output the other.
    Data(Vec<u8>),
    /// The user's terminal has another size now.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// The command ended. Last frame from the machine.
    Exit {
        /// Its exit code; 128 + n for signal n.
        code: i32,
    },
    /// Error output of a command without a terminal.
    Error(Vec<u8>),
    /// Nothing more comes as input of a command without a terminal.
    EndOfInput,
}

impl Message for Heartbeat {
    const KIND: u8 = 1;
    const NAME: &'static str = "heartbeat";
    const BYTES_MAX: usize = limits::HEARTBEAT_BYTES_MAX;
}

impl Message for EnrolRequest {
    const KIND: u8 = 2;
    const NAME: &'static str = "enrolment request";
    const BYTES_MAX: usize = limits::ENROL_BYTES_MAX;
}

impl Message for EnrolReply {
    const KIND: u8 = 3;
    const NAME: &'static str = "enrolment reply";
    const BYTES_MAX: usize = limits::ENROL_BYTES_MAX;
}

impl Message for ToCoordinator {
    const KIND: u8 = 4;
    const NAME: &'static str = "message to the coordinator";
    const BYTES_MAX: usize = limits::TO_COORDINATOR_BYTES_MAX;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Health(report) if report.units.len() > limits::UNITS_MAX => Err(format!(
                "health of {} units, at most {} are allowed",
                report.units.len(),
                limits::UNITS_MAX
            )),
            Self::Events(events) if events.len() > limits::EVENTS_BUFFERED_MAX => {
                Err(format!("{} events, at most {} are allowed", events.len(), limits::EVENTS_BUFFERED_MAX))
            }
            Self::PeersProbed { answers, .. } => check_answers(answers),
            _ => Ok(()),
        }
    }
}

fn check_answers(answers: &[PeerAnswer]) -> Result<(), String> {
    let count = answers.len();
    if count > limits::PEER_TARGETS_MAX {
        return Err(format!("answers of {count} peers, at most {} are allowed", limits::PEER_TARGETS_MAX));
    }
    answers.iter().try_for_each(PeerAnswer::check)
}

impl Message for ToAgent {
    const KIND: u8 = 5;
    const NAME: &'static str = "message to the agent";
    const BYTES_MAX: usize = limits::TO_AGENT_BYTES_MAX;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Config(config) => config.check(),
            Self::ProbePeers { targets, .. } if targets.len() > limits::PEER_TARGETS_MAX => Err(format!(
                "{} peers to ask, at most {} are allowed",
                targets.len(),
                limits::PEER_TARGETS_MAX
            )),
            _ => Ok(()),
        }
    }
}

impl Message for BulkRequest {
    const KIND: u8 = 6;
    const NAME: &'static str = "bulk request";
    const BYTES_MAX: usize = limits::BULK_HEAD_BYTES_MAX;
}

impl Message for BulkReply {
    const KIND: u8 = 7;
    const NAME: &'static str = "bulk reply";
    const BYTES_MAX: usize = limits::BULK_HEAD_BYTES_MAX;
}

impl Message for ShellFrame {
    const KIND: u8 = 8;
    const NAME: &'static str = "shell frame";
    const BYTES_MAX: usize = limits::BULK_HEAD_BYTES_MAX + 64;
}
