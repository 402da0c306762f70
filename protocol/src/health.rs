//! What an agent knows about its machine: facts, health and events.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, Generation, ReleaseName};
use crate::time::WallTime;

/// Which control groups the kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupVersion {
    /// Version 1, or the hybrid layout whose version 2 tree has no controllers.
    V1,
    /// Version 2.
    V2,
}

/// What changes only with a reboot or a new image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Version of the agent.
    pub agent_version: String,
    /// Kernel release.
    pub kernel: String,
    /// Operating system, for people.
    pub os: String,
    /// Control groups.
    pub cgroup: CgroupVersion,
    /// Whether processes here may lower their OOM score (CAP_SYS_RESOURCE).
    pub may_raise_limits: bool,
    /// Logical CPUs that the kernel has, whatever the machine may use of them.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Disks that hold state.
    pub disks: Vec<DiskFact>,
    /// Digest of the node image, when it is known.
    pub image_digest: Option<String>,
    /// Releases that the image carries.
    pub releases: Vec<ReleaseFact>,
    /// This boot.
    pub boot: BootId,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFact {
    /// Where it is mounted.
    pub mount: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// One release on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseFact {
    /// Its name.
    pub name: ReleaseName,
    /// Digest of its content.
    pub digest: String,
}

/// The state of a machine in one word. Order is from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeState {
    /// The config is applied and everything in it is healthy.
    Ready,
    /// It has no config yet.
    Idle,
    /// It is on its way to the config.
    Applying,
    /// Something that was healthy is not; repair is under way.
    Degraded,
    /// Repair has used up its budget; a person or the coordinator must act.
    Failed,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Idle => "idle",
            Self::Applying => "applying",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        })
    }
}

/// Sent each second as a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Grows by one with each heartbeat of a boot.
    pub sequence: u64,
    /// This boot.
    pub boot: BootId,
    /// Generation of the config that is applied.
    pub generation: Generation,
    /// State in one word.
    pub state: NodeState,
    /// Number of the newest health report: a coordinator that missed it knows from here.
    pub report: u64,
}

/// Health in full. Sent when it changes, and once a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// Grows by one with each report of a boot.
    pub sequence: u64,
    /// When it was made, by the machine's clock.
    pub at: WallTime,
    /// Generation of the config that the machine works on.
    pub generation: Generation,
    /// State in one word.
    pub state: NodeState,
    /// Every unit of the config, in its order.
    pub units: Vec<UnitHealth>,
    /// Room left.
    pub pressure: Pressure,
    /// Certificates held.
    pub certificates: Vec<CertificateHealth>,
    /// The machine's clock minus the coordinator's, in milliseconds.
    pub clock_offset_ms: Option<i64>,
}

/// State of a unit. Each variant holds what a person asks next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum UnitState {
    /// Not started: something it needs does not hold yet.
    Waiting {
        /// What it waits for, in words.
        on: String,
    },
    /// Started, not yet healthy.
    Starting,
    /// Running and healthy; for a oneshot: done.
    Healthy,
    /// Running, but its probe fails.
    Unhealthy {
        /// What the probe said.
        why: String,
    },
    /// Not running; a restart is due.
    Down {
        /// How it ended.
        why: String,
    },
    /// Not running, and the restart budget is used up for now.
    GivenUp {
        /// How it ended and how often it was tried.
        why: String,
    },
}

/// Health of one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitHealth {
    /// Unit name.
    pub name: String,
    /// Its state.
    pub state: UnitState,
    /// Since when it has been in that state, by the machine's clock.
    pub since: WallTime,
    /// How often it was started again during this boot.
    pub restarts: u32,
}

/// Room left on the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Used part of the state disk, in percent.
    pub disk_used_percent: u8,
    /// Used part of its inodes, in percent.
    pub inodes_used_percent: u8,
    /// Available part of the memory, in percent.
    pub memory_available_percent: u8,
}

/// One certificate that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateHealth {
    /// Its name in the config.
    pub name: String,
    /// When it ends.
    pub not_after: WallTime,
}

/// What kind of thing happened. Append-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    /// The agent started.
    AgentStarted,
    /// A config was accepted.
    ConfigAccepted,
    /// A config was refused.
    ConfigRefused,
    /// A unit was started for the first time, or because its inputs changed.
    UnitStarted,
    /// A unit became healthy.
    UnitHealthy,
    /// A unit was found down or unhealthy.
    UnitFailed,
    /// A repair was made.
    Repaired,
    /// A repair was due and not made, because its budget is used up.
    RepairWithheld,
    /// A certificate was issued or renewed.
    CertificateIssued,
    /// A certificate was refused by the coordinator.
    CertificateRefused,
    /// Disk, inodes or memory run short, or no longer do.
    Pressure,
    /// A host action failed.
    ActionFailed,
    /// Events were dropped because the coordinator was away for too long.
    EventsDropped,
    /// The coordinator is lost and no neighbour can be reached: the machine is cut off.
    PeersLost,
    /// A machine that was cut off can reach a neighbour or the coordinator again.
    PeersBack,
    /// A repair was made, and what it was made for is still so.
    RepairFailed,
    /// A machine that is cut off gave up its work.
    Fenced,
    /// It takes it up again.
    FenceLifted,
    /// The machine's clock is wrong, or is right again.
    ClockWrong,
    /// A repair is due and has been given a time of its own, so that not all machines make it in one moment.
    RepairDue,
}

/// Something that happened on a machine: what was seen, what was done, what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEvent {
    /// Grows by one with each event of a machine, over boots.
    pub sequence: u64,
    /// When, by the machine's clock.
    pub at: WallTime,
    /// What kind.
    pub kind: EventKind,
    /// Which unit, file, certificate or config.
    pub subject: String,
    /// What was seen, and which rule fired.
    pub cause: String,
    /// What was done, and what came of it.
    pub outcome: String,
}
