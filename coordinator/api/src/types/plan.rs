//! Plans, and previews of changes.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::operation::WaitingView;

/// A make-up of a cluster that the installation offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Plan`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// One sentence for the user who chooses.
    pub description: String,
    /// Its pools.
    pub pools: Vec<PoolView>,
    /// Whether the number of workers can be chosen.
    pub workers_sizable: bool,
}

/// A set of equal machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// What its machines do.
    pub roles: Vec<String>,
    /// How many machines, unless the spec says otherwise.
    pub count: u16,
    /// CPU limit in thousandths of a core; absent is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Memory limit in bytes; absent is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// State disk in bytes.
    pub disk_bytes: u64,
}

/// What a change does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum EffectView {
    /// It is made.
    Create,
    /// It gets another config; what runs on it goes on.
    Update,
    /// It is removed and made anew.
    Replace,
    /// It is removed with its disk.
    Delete,
}

impl EffectView {
    /// The sign in front of a line of a printed diff.
    #[must_use]
    pub fn sign(self) -> &'static str {
        match self {
            Self::Create => "+",
            Self::Update => "~",
            Self::Replace => "-/+",
            Self::Delete => "-",
        }
    }
}

impl fmt::Display for EffectView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Replace => "replace",
            Self::Delete => "delete",
        })
    }
}

/// One line of a preview.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangeView {
    /// What happens to it.
    pub effect: EffectView,
    /// To what.
    pub object: String,
    /// What it is.
    pub detail: String,
}

/// What a change would do, worst effect first. Nothing is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanPreview {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `PlanPreview`.
    pub kind: String,
    /// The cluster.
    pub cluster: String,
    /// Generation before; absent for a new cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_generation: Option<u64>,
    /// Generation after; absent when the cluster would be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_generation: Option<u64>,
    /// The changes.
    pub changes: Vec<ChangeView>,
    /// What would stop or delay it now.
    pub waiting: Vec<WaitingView>,
}
