//! Repair: paused and resumed, asked for by hand, and how it stands.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::care::{HoldView, IncidentView, NotWellView, PauseView, RepairActionView};

/// Body of a request that pauses repair, or resumes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PauseBody {
    /// Of this cluster; of everything when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Why, for the record: one line of at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How repair stands in the whole fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepairStatusView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `RepairStatus`.
    pub kind: String,
    /// Where it is paused.
    pub paused: Vec<PauseView>,
    /// How many machines are in which way.
    pub counts: RepairCounts,
    /// Machines that are not well (the first 500), in order of their ids.
    pub not_well: Vec<NotWellView>,
}

/// How many machines are in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepairCounts {
    /// Not well.
    pub not_well: u32,
    /// With an open incident.
    pub incidents: u32,
    /// Being repaired.
    pub acting: u32,
    /// With a repair that is due and held back.
    pub held: u32,
}

/// Body of a request to repair a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RepairBody {
    /// What shall be done.
    pub action: RepairActionView,
    /// Whether to go against `meltdown`, `busy` and `apiServer`. Nothing goes against `starting`.
    #[serde(default, rename = "override")]
    pub over: bool,
    /// The name of its cluster, to go against `quorum`, `oldRecord` and `impossible` as well: its loss is understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
}

/// A repair that a person asked for, begun or only previewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepairView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Repair`.
    pub kind: String,
    /// The machine.
    pub machine: String,
    /// Its cluster.
    pub cluster: String,
    /// What is done.
    pub action: RepairActionView,
    /// Whether it has begun; false for a preview.
    pub begun: bool,
    /// What happens to power, disk, pods and etcd, a sentence each.
    pub what: Vec<String>,
    /// The etcd member on the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_member: Option<String>,
    /// The hold that it goes against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<HoldView>,
    /// The incident that it belongs to, once it has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<IncidentView>,
}

/// Which repairs of a machine a person could ask for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepairOptionsView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `RepairOptions`.
    pub kind: String,
    /// The machine.
    pub machine: String,
    /// All actions, from mild to harsh.
    pub actions: Vec<RepairOptionView>,
}

/// Whether one repair is possible now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepairOptionView {
    /// The repair.
    pub action: RepairActionView,
    /// Whether it would be made.
    pub allowed: bool,
    /// The guard that holds it; going against it is possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldView>,
    /// Why it is of no use or not possible now, when no guard is the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
