//! Events.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::time::Timestamp;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum SeverityView {
    /// A change of state.
    Info,
    /// Something an operator may want to know.
    Warning,
    /// Somebody must act.
    Alarm,
}

impl fmt::Display for SeverityView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Alarm => "alarm",
        })
    }
}

/// Something that happened: what was seen, what was done, what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Event`.
    pub kind: String,
    /// Grows by one with each event of the installation.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// How much it matters.
    pub severity: SeverityView,
    /// What kind, in one word.
    pub reason: String,
    /// Which cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Which machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Of which incident.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<u64>,
    /// What was seen.
    pub cause: String,
    /// What was done, and what came of it.
    pub outcome: String,
}
