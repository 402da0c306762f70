//! Machines.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::care::{
    ActView, EvidenceView, FaultClassView, HoldView, IncidentView, LeavingView, RepairActionView, VerdictView,
};
use super::operation::WaitingView;
use super::time::Timestamp;

/// The state of a machine in one word, made of what provider, link and agent say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum MachineState {
    /// Planned; nothing was asked of the provider yet.
    Planned,
    /// The provider is making it.
    Creating,
    /// The provider refused for now and is asked again.
    Retrying,
    /// The provider refused for good; a person must act.
    Refused,
    /// Switched on; its agent has not enrolled.
    Booting,
    /// Its agent has enrolled and is not connected yet.
    Connecting,
    /// It is on its way to its config.
    Applying,
    /// Its config is applied and everything in it is healthy.
    Ready,
    /// Something that was healthy is not; repair is under way.
    Degraded,
    /// Repair has used up its budget.
    Failed,
    /// Its heartbeats stay away: nothing is known of it.
    Silent,
    /// It has no power, though it should have.
    Off,
    /// It is being removed.
    Deleting,
}

impl MachineState {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Planned,
        Self::Creating,
        Self::Retrying,
        Self::Refused,
        Self::Booting,
        Self::Connecting,
        Self::Applying,
        Self::Ready,
        Self::Degraded,
        Self::Failed,
        Self::Silent,
        Self::Off,
        Self::Deleting,
    ];
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Planned => "planned",
            Self::Creating => "creating",
            Self::Retrying => "retrying",
            Self::Refused => "refused",
            Self::Booting => "booting",
            Self::Connecting => "connecting",
            Self::Applying => "applying",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Silent => "silent",
            Self::Off => "off",
            Self::Deleting => "deleting",
        })
    }
}

/// A machine as its cluster's status shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineSummary {
    /// Its id, also its host name and its node name.
    pub id: String,
    /// Its roles, joined with `+`.
    pub role: String,
    /// Its state in one word.
    pub state: MachineState,
    /// Since when it is in that state, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What is thought of its health; absent before it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<VerdictView>,
    /// Its address.
    pub address: String,
    /// Its fault domain.
    pub zone: String,
    /// The release that it runs.
    pub release: String,
    /// Its agent.
    pub agent: AgentView,
    /// Its units, in the order of its config.
    pub health: Vec<UnitHealthView>,
}

/// What is known of a machine's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Whether a session with it stands.
    pub connected: bool,
    /// Its version, when it ever said so.
    pub version: Option<String>,
    /// How long ago its last heartbeat came, in milliseconds; null when none came since the coordinator started.
    pub last_heartbeat_ms: Option<u64>,
    /// Since when it is connected, or away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// How its last session ended, when none stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The state of a unit in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum UnitStateView {
    /// Not started: something it needs does not hold yet.
    Waiting,
    /// Started, not yet healthy.
    Starting,
    /// Running and healthy; for a oneshot: done.
    Healthy,
    /// Running, but its probe fails.
    Unhealthy,
    /// Not running; a restart is due.
    Down,
    /// Not running, and the restart budget is used up for now.
    GivenUp,
}

impl fmt::Display for UnitStateView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Down => "down",
            Self::GivenUp => "given up",
        })
    }
}

/// Health of one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnitHealthView {
    /// Unit name.
    pub unit: String,
    /// Its state.
    pub state: UnitStateView,
    /// Since when, by the machine's clock.
    pub since: Timestamp,
    /// How often it was started again during this boot.
    pub restarts: u32,
    /// What it waits for, or why it is not healthy; empty when it is.
    pub message: String,
}

/// A machine in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Machine`.
    pub kind: String,
    /// Its cluster.
    pub cluster: String,
    /// Its pool.
    pub pool: String,
    /// What its cluster's status shows of it.
    #[serde(flatten)]
    pub summary: MachineSummary,
    /// Which machine of that id: grows when it is replaced.
    pub incarnation: u32,
    /// Its node image.
    pub image: String,
    /// Generation of the config that it shall have.
    pub generation: u64,
    /// Generation of the config that it says it has applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_generation: Option<u64>,
    /// What the machine is, when its agent has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<FactsView>,
    /// Room left on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<PressureView>,
    /// Its certificates.
    pub certificates: Vec<CertificateView>,
    /// Its clock minus the coordinator's, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
    /// What kind of thing is broken, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_class: Option<FaultClassView>,
    /// What speaks for the verdict, when it is not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceView>,
    /// The fault that is being mended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<IncidentView>,
    /// The repair that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acting: Option<RepairActionView>,
    /// The repair that comes next, and when, if it goes on as it is and no guard holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<ActView>,
    /// Why a repair that is due is not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldView>,
    /// Its last repairs, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acts: Vec<ActView>,
    /// Since when it is proven to have no power, until it is given power again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Timestamp>,
    /// How far it is, when it leaves its cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<LeavingView>,
    /// What it waits for.
    pub waiting: Vec<WaitingView>,
}

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FactsView {
    /// Kernel release.
    pub kernel: String,
    /// Operating system.
    pub os: String,
    /// Version of the control groups, 1 or 2.
    pub cgroup_version: u8,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Digest of its node image, when it is known.
    pub image_digest: Option<String>,
}

/// Room left on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PressureView {
    /// Used part of the state disk, in percent.
    pub disk_used_percent: u8,
    /// Used part of its inodes, in percent.
    pub inodes_used_percent: u8,
    /// Available part of the memory, in percent.
    pub memory_available_percent: u8,
}

/// A certificate that a machine holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateView {
    /// Its name.
    pub name: String,
    /// When it ends.
    pub not_after: Timestamp,
}

/// Body of a request for a shell. The connection is upgraded to `keelson-shell`; `ShellFrame`s of the link protocol,
/// framed as on the link, follow in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShellRequestBody {
    /// Program and arguments; empty means root's shell.
    #[serde(default)]
    pub command: Vec<String>,
    /// Value of `TERM` of its pseudo terminal; empty: it has none, and its streams carry bytes as they are.
    #[serde(default)]
    pub terminal: String,
    /// Rows of the terminal.
    pub rows: u16,
    /// Columns of the terminal.
    pub columns: u16,
}
