//! What the agent must not forget: its config, what it owns, what it started, and events nobody has stored yet.
//!
//! On disk: magic (8 bytes), version (u16, big endian), SHA-256 of the payload, payload (postcard). A ledger of another
//! version or with a wrong checksum is refused whole: half a memory is worse than none, and the coordinator sends the
//! config again. The config is part of it, so that a field more in a config is a version more here. Golden bytes of
//! every version stay in `golden/`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keelson_protocol::config::NodeConfig;
use keelson_protocol::health::AgentEvent;
use keelson_protocol::{BootId, Incarnation, MachineId, SecretBytes, WallTime};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::event::Invocation;

const MAGIC: &[u8; 8] = b"KEELSONL";
/// 2: configs name peers. 3: configs have remedies and leases, and what was done of them is remembered. 4: a machine
/// remembers that it was dismissed. 5: units may have a watchdog. Nothing older was ever released, so nothing reads it.
const VERSION: u16 = 5;
const HEAD_BYTES: usize = 8 + 2 + 32;
/// Largest ledger, in bytes: the largest config and a full buffer of long events, twice.
const LEDGER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The agent's memory over restarts and reboots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The machine that it belongs to.
    pub machine: MachineId,
    /// Which machine of that id.
    pub incarnation: Incarnation,
    /// The last accepted config.
    pub config: Option<NodeConfig>,
    /// Every unit that the agent may have made and not yet removed.
    pub units: BTreeMap<String, UnitRecord>,
    /// Every file that the agent may have made and not yet removed.
    pub files: BTreeSet<String>,
    /// Digest of the specification that each held certificate was issued for.
    pub certificates: BTreeMap<String, Digest>,
    /// Events that the coordinator has not stored yet, oldest first.
    pub events: VecDeque<AgentEvent>,
    /// Number of the next event.
    pub event_next: u64,
    /// How many events were dropped since the coordinator was last told.
    pub events_dropped: u64,
    /// What was done of each remedy.
    pub remedies: BTreeMap<String, RemedyRecord>,
    /// The machine has given up its work.
    pub fence: Option<FenceRecord>,
    /// Since when the machine has no work any more, by its clock: the coordinator has said that its place is taken.
    pub dismissed: Option<WallTime>,
}

/// What is known of a unit that the agent made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// The last start that was ordered. Written before the order.
    pub start: Option<StartRecord>,
    /// Inputs that a oneshot has ended with success for.
    pub done: Option<Digest>,
    /// Inputs that the unit was last healthy with.
    pub worked: Option<Digest>,
}

/// What was done of a remedy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemedyRecord {
    /// When it was begun within the last day, oldest first, by the machine's clock.
    pub begun: VecDeque<WallTime>,
    /// How far it is, while it is under way.
    pub progress: Option<Progress>,
}

/// A remedy under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Digest of its specification.
    pub spec: Digest,
    /// The boot in which it was begun.
    pub boot: BootId,
    /// How many of its acts are done.
    pub done: u8,
    /// Why it was begun.
    pub cause: String,
    /// What its acts did, in words.
    pub did: Vec<String>,
}

/// The machine has given up its work because it is cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRecord {
    /// Since when, by the machine's clock.
    pub since: WallTime,
    /// All of it was stopped, and that is told.
    pub told: bool,
}

/// A start that was ordered.
///
/// A run of the unit has these inputs exactly when it is of the same boot and not the run `before`. So a crash between
/// this record and the order, or between the order and its result, is resolved by looking at the unit alone. When an input is
/// changed before the next start, the inputs become those of nothing: systemd may start it again with either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// In which boot.
    pub boot: BootId,
    /// Digest of the inputs.
    pub inputs: Digest,
    /// The run that was to be replaced.
    pub before: Option<Invocation>,
    /// How often the unit was started again during this boot.
    pub restarts: u32,
}

/// Why bytes are no ledger that this agent can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Too short, too long, or without our magic.
    #[error("the file is no ledger ({bytes} bytes)")]
    NoLedger {
        /// Its size in bytes.
        bytes: usize,
    },
    /// Written by a newer agent.
    #[error("the ledger has version {got}, this agent understands up to {known}")]
    Newer {
        /// Version in the file.
        got: u16,
        /// Newest version understood.
        known: u16,
    },
    /// Written by an older agent, in a form that is no longer read.
    #[error(
        "the ledger has version {got}, this agent reads only {known}: it waits for the coordinator to send the config again"
    )]
    Older {
        /// Version in the file.
        got: u16,
        /// The version understood.
        known: u16,
    },
    /// The content is not what was written.
    #[error("the ledger's checksum is wrong: the file was damaged")]
    Checksum,
    /// The checksum is right, and yet the content cannot be decoded.
    #[error("the ledger cannot be decoded")]
    Malformed,
}

impl Ledger {
    /// An empty memory of a machine.
    #[must_use]
    pub fn empty(machine: MachineId, incarnation: Incarnation) -> Self {
        Self {
            machine,
            incarnation,
            config: None,
            units: BTreeMap::new(),
            files: BTreeSet::new(),
            certificates: BTreeMap::new(),
            events: VecDeque::new(),
            event_next: 1,
            events_dropped: 0,
            remedies: BTreeMap::new(),
            fence: None,
            dismissed: None,
        }
    }

    /// The form on disk. Secret, because configs hold secrets.
    #[must_use]
    pub fn encode(&self) -> SecretBytes {
        let payload = postcard::to_stdvec(self).expect("a ledger has no type that postcard cannot write");
        let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(Digest::of(&payload).as_bytes());
        bytes.extend_from_slice(&payload);
        SecretBytes::new(bytes)
    }

    /// Reads the form on disk.
    ///
    /// # Errors
    /// [`LedgerError`] says what is wrong; the file is then to be kept aside, not deleted.
    pub fn decode(bytes: &[u8]) -> Result<Self, LedgerError> {
        let no_ledger = LedgerError::NoLedger { bytes: bytes.len() };
        if bytes.len() > LEDGER_BYTES_MAX {
            return Err(no_ledger);
        }
        let (head, payload) = bytes.split_at_checked(HEAD_BYTES).ok_or(no_ledger.clone())?;
        if !head.starts_with(MAGIC) {
            return Err(no_ledger);
        }
        let got = u16::from_be_bytes([head[8], head[9]]);
        if got > VERSION {
            return Err(LedgerError::Newer { got, known: VERSION });
        }
        if got < VERSION {
            return Err(LedgerError::Older { got, known: VERSION });
        }
        if Digest::of(payload).as_bytes() != &head[10..] {
            return Err(LedgerError::Checksum);
        }
        let (ledger, rest) =
            postcard::take_from_bytes::<Self>(payload).map_err(|_| LedgerError::Malformed)?;
        if !rest.is_empty() {
            return Err(LedgerError::Malformed);
        }
        Ok(ledger)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests rewrite golden files")]
mod tests {
    use super::*;
    use keelson_protocol::Generation;
    use keelson_protocol::config::PeerSpec;
    use keelson_protocol::health::EventKind;

    fn sample() -> Ledger {
        let mut ledger = Ledger::empty(MachineId::new("demo-worker-1").unwrap(), Incarnation(3));
        ledger.files.insert("/var/lib/keelson/x".to_owned());
        ledger.certificates.insert("kubelet".to_owned(), Digest::of(b"spec"));
        let start = StartRecord {
            boot: BootId(7),
            inputs: Digest::of(b"inputs"),
            before: Some(Invocation(9)),
            restarts: 2,
        };
        ledger
            .units
            .insert("a.service".to_owned(), UnitRecord { start: Some(start), ..UnitRecord::default() });
        let progress = Progress {
            spec: Digest::of(b"remedy"),
            boot: BootId(7),
            done: 2,
            cause: "it fell".to_owned(),
            did: vec!["stopped it".to_owned()],
        };
        let record = RemedyRecord { begun: VecDeque::from([WallTime(4)]), progress: Some(progress) };
        ledger.remedies.insert("mend".to_owned(), record);
        ledger.fence = Some(FenceRecord { since: WallTime(6), told: true });
        ledger.dismissed = Some(WallTime(8));
        ledger.events.push_back(AgentEvent {
            sequence: 1,
            at: WallTime(5),
            kind: EventKind::AgentStarted,
            subject: "agent".to_owned(),
            cause: "boot".to_owned(),
            outcome: "ok".to_owned(),
        });
        ledger.event_next = 2;
        ledger.config = Some(config());
        ledger
    }

    /// A config with nothing in it but what a later field would move.
    fn config() -> NodeConfig {
        NodeConfig {
            generation: Generation(4),
            machine: MachineId::new("demo-worker-1").unwrap(),
            incarnation: Incarnation(3),
            cluster: "demo".parse().unwrap(),
            release: "1.37.2".parse().unwrap(),
            files: Vec::new(),
            certificates: Vec::new(),
            units: Vec::new(),
            routes: Vec::new(),
            balancer: None,
            peers: Some(PeerSpec {
                listen: "10.0.0.12:7447".parse().unwrap(),
                key: SecretBytes::new(vec![7; 32]),
                neighbours: Vec::new(),
            }),
            remedies: Vec::new(),
            lease: None,
        }
    }

    #[test]
    fn decode_reverses_encode() {
        assert_eq!(Ledger::decode(sample().encode().expose_secret()), Ok(sample()));
    }

    #[test]
    fn every_damage_is_refused() {
        let good = sample().encode().expose_secret().to_vec();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0x20;
            assert!(Ledger::decode(&bad).is_err(), "flip at {position}");
            assert!(Ledger::decode(&good[..position]).is_err(), "cut at {position}");
        }
        let mut newer = good;
        newer[9] = 6;
        assert_eq!(Ledger::decode(&newer), Err(LedgerError::Newer { got: 6, known: 5 }));
    }

    #[test]
    fn bytes_of_older_versions_are_refused_with_what_comes_next() {
        let older = [
            include_str!("../golden/ledger-v1.hex"),
            include_str!("../golden/ledger-v2.hex"),
            include_str!("../golden/ledger-v3.hex"),
            include_str!("../golden/ledger-v4.hex"),
        ];
        for (got, hex) in (1..).zip(older.map(str::trim)) {
            let pair = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(pair).collect();
            let error = Ledger::decode(&bytes).unwrap_err();
            assert_eq!(error, LedgerError::Older { got, known: 5 });
            let text = format!(
                "the ledger has version {got}, this agent reads only 5: it waits for the coordinator to send the config again"
            );
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn bytes_of_version_5_stay_readable() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/ledger-v5.hex");
        let hex: String =
            sample().encode().expose_secret().iter().map(|byte| format!("{byte:02x}")).collect();
        if std::env::var_os("KEELSON_GOLDEN_WRITE").is_some() {
            std::fs::write(path, format!("{hex}\n")).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap().trim(), hex);
    }
}
