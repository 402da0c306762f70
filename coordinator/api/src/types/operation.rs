//! Long work and what it waits for.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cluster::ConditionState;
use super::time::Timestamp;
use crate::problem::ProblemView;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OperationKindView {
    /// Make a cluster.
    CreateCluster,
    /// Remove a cluster.
    DeleteCluster,
    /// Change the size of a cluster's pool.
    ScaleCluster,
}

impl fmt::Display for OperationKindView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::CreateCluster => "create cluster",
            Self::DeleteCluster => "delete cluster",
            Self::ScaleCluster => "scale cluster",
        })
    }
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OperationStateView {
    /// It goes on.
    Running,
    /// It goes on only when a person acts.
    Blocked,
    /// It is done.
    Succeeded,
    /// It ended without success.
    Failed,
    /// A user cancelled it.
    Cancelled,
}

impl fmt::Display for OperationStateView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Blocked => "blocked",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Long work that a user asked for. It outlives the client that asked and the coordinator's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Operation`.
    pub kind: String,
    /// Its path below `/v1`: `operations/<id>`.
    pub name: String,
    /// Its identity.
    pub id: String,
    /// What was asked for.
    pub action: OperationKindView,
    /// For which cluster.
    pub cluster: String,
    /// What exactly, where the action does not say it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Whether it has ended.
    pub done: bool,
    /// How far it is.
    pub state: OperationStateView,
    /// Progress.
    pub metadata: OperationMetadata,
    /// Why it is blocked, failed or was cancelled, and what was left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ProblemView>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
}

impl OperationView {
    /// What was asked for, in words: `scale cluster demo, pool worker from 2 to 3`.
    #[must_use]
    pub fn what(&self) -> String {
        let detail = self.detail.as_ref().map_or_else(String::new, |detail| format!(", {detail}"));
        format!("{} {}{detail}", self.action, self.cluster)
    }
}

/// Progress of an operation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationMetadata {
    /// One line for each machine that it concerns, in order of their ids.
    pub machines: Vec<MachineStep>,
    /// What it waits for.
    pub waiting: Vec<WaitingView>,
    /// Part of the machines that are where they should be, in percent; absent when that says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
}

/// Where one machine is on the way of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineStep {
    /// The machine.
    pub machine: String,
    /// Its roles, joined with `+`.
    pub role: String,
    /// What happens on it now, in a few words.
    pub step: String,
    /// How that looks.
    pub status: ConditionState,
    /// Since when.
    pub since: Timestamp,
    /// What ends the step; absent when the machine is where it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_when: Option<String>,
}

/// Something that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitingView {
    /// Its entry in the catalogue: `keelson explain CODE`.
    pub code: String,
    /// The machine that is waited for, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// What it is, in words.
    pub text: String,
    /// Since when.
    pub since: Timestamp,
    /// What ends the wait, in words.
    pub ends_when: String,
    /// Whether only a person can end it.
    pub needs_person: bool,
}
