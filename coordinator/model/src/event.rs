//! What happened in the fleet: seen, done, outcome.

use keelson_protocol::{ClusterName, MachineId, WallTime};
use serde::{Deserialize, Serialize};

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// A change of state.
    Info,
    /// Something an operator may want to know.
    Warning,
    /// Somebody must act.
    Alarm,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetEvent {
    /// Grows by one with each event of the installation.
    pub id: u64,
    /// When.
    pub at: WallTime,
    /// How much it matters.
    pub severity: Severity,
    /// What kind, in one word (`MachineSilent`).
    pub reason: String,
    /// Which cluster.
    pub cluster: Option<ClusterName>,
    /// Which machine.
    pub machine: Option<MachineId>,
    /// Of which incident.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<u64>,
    /// What was seen.
    pub cause: String,
    /// What was done, and what came of it.
    pub outcome: String,
}
