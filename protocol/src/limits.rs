//! Every limit of the link, with its unit and reason.

use std::time::Duration;

/// How often an agent sends a heartbeat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// A machine whose heartbeats stay away this long is shown as silent: two lost datagrams in a row and a little jitter
/// must not raise an alarm, and an operator shall see a dead machine within three seconds.
pub const SILENT_AFTER: Duration = Duration::from_millis(2_800);

const _: () = assert!(HEARTBEAT_INTERVAL.as_millis() * 2 < SILENT_AFTER.as_millis());
const _: () = assert!(SILENT_AFTER.as_millis() <= 3_000);

/// Largest heartbeat, in bytes. Fits any path MTU (RFC 9000, section 14: at least 1200 bytes).
pub const HEARTBEAT_BYTES_MAX: usize = 128;

/// Largest enrolment message, in bytes: a token, a signing request or a short certificate chain.
pub const ENROL_BYTES_MAX: usize = 16 * 1024;

/// Largest message of an agent on the control stream, in bytes: health of a few dozen units with messages.
pub const TO_COORDINATOR_BYTES_MAX: usize = 256 * 1024;

/// Largest message to an agent on the control stream, in bytes: a whole `NodeConfig` with its files.
pub const TO_AGENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Largest head of a bulk stream, in bytes; what follows it is flow-controlled by QUIC.
pub const BULK_HEAD_BYTES_MAX: usize = 16 * 1024;

/// Most files in one `NodeConfig`: ten times what a machine with all roles needs.
pub const FILES_MAX: usize = 512;

/// Largest single file in a `NodeConfig`, in bytes. Anything larger is release content and travels in bulk.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Most units in one `NodeConfig`: five times what a machine with all roles needs.
pub const UNITS_MAX: usize = 64;

/// Most certificates in one `NodeConfig`.
pub const CERTIFICATES_MAX: usize = 64;

/// Most routes in one `NodeConfig`: one for each other node, for the largest cluster we design for.
pub const ROUTES_MAX: usize = 5_000;

/// Longest text in a message that a person reads (event, reason), in bytes.
pub const TEXT_BYTES_MAX: usize = 4 * 1024;

/// Most events that an agent keeps for a coordinator that is away; then the oldest are dropped and counted.
pub const EVENTS_BUFFERED_MAX: usize = 1_000;

/// Key of a cluster's peer probes, in bytes: as long as the hash that it is for (RFC 2104, section 3).
pub const PEER_KEY_BYTES: usize = 32;

/// Most machines that one question to an agent names: a zone's worth of suspects, in a message of two kilobytes.
pub const PEER_TARGETS_MAX: usize = 16;

/// Most neighbours that an agent asks by itself: enough that their failing together is the machine's own failure.
pub const NEIGHBOURS_MAX: usize = 8;

/// Longest reason why a peer could not be asked, in bytes: the text of a system error.
pub const PEER_WHY_BYTES_MAX: usize = 256;

/// Most remedies in one `NodeConfig`: twice what a machine with all roles has.
pub const REMEDIES_MAX: usize = 16;

/// Most acts of one remedy: a longer one is two.
pub const REMEDY_ACTS_MAX: usize = 16;

/// Most units, paths, control groups or triggers that one list of a remedy names: a unit for each image archive, and
/// room.
pub const REMEDY_NAMES_MAX: usize = 32;

/// Most words of one command of a remedy.
pub const ACT_COMMAND_WORDS_MAX: usize = 64;

/// Longest time that a command of a remedy may take, in seconds: etcd defragments its largest file in half of it.
pub const ACT_TIMEOUT_S_MAX: u16 = 900;
