//! The installation as a whole.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::care::{NotWellView, PauseView};
use super::operation::WaitingView;
use super::repair::RepairCounts;
use super::time::Timestamp;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Version`.
    pub kind: String,
    /// Version of the coordinator.
    pub version: String,
    /// Identity of the installation.
    pub install: String,
    /// Versions of this API that it serves.
    pub api_versions: Vec<String>,
    /// Versions of the link protocol that it speaks.
    pub protocol: ProtocolView,
}

/// A range of versions of the link protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolView {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

/// The fleet on one screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Status`.
    pub kind: String,
    /// Identity of the installation.
    pub install: String,
    /// Version of the coordinator.
    pub version: String,
    /// When its process started.
    pub started: Timestamp,
    /// Clusters by state.
    pub clusters: ClusterCounts,
    /// Machines.
    pub machines: MachineCounts,
    /// Operations that have not ended.
    pub operations: OperationCounts,
    /// Repair of the whole fleet.
    #[serde(default)]
    pub repair: RepairSummary,
    /// Machines that are not well (the first 100).
    #[serde(default)]
    pub not_well: Vec<NotWellView>,
    /// What only a person can end, in the whole fleet (the first 100).
    pub needs_person: Vec<WaitingView>,
}

/// Clusters by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterCounts {
    /// All.
    pub total: u32,
    /// On their way.
    pub creating: u32,
    /// As they should be.
    pub ready: u32,
    /// On their way to what was asked for, and working.
    pub updating: u32,
    /// Not as they should be.
    pub degraded: u32,
    /// Being removed.
    pub deleting: u32,
    /// In need of a person.
    pub failed: u32,
}

/// Machines of the fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineCounts {
    /// All.
    pub total: u32,
    /// With a session that stands.
    pub connected: u32,
    /// Ready.
    pub ready: u32,
    /// Whose heartbeats stay away.
    pub silent: u32,
}

/// Repair of the whole fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepairSummary {
    /// Where it is paused.
    pub paused: Vec<PauseView>,
    /// How many machines are in which way.
    pub counts: RepairCounts,
}

/// Operations that have not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationCounts {
    /// Going on.
    pub running: u32,
    /// Waiting for a person.
    pub blocked: u32,
}

/// Answer of `/healthz` and `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthView {
    /// Whether the coordinator can do its work.
    pub ready: bool,
    /// What it cannot do, in words; empty when ready.
    pub problems: Vec<String>,
}
