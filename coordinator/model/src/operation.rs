//! Long work that a user asked for.

use std::fmt;

use keelson_protocol::{ClusterName, WallTime};
use serde::{Deserialize, Serialize};

/// Identity of an operation, `op-` and a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub String);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OperationKind {
    /// Make a cluster.
    CreateCluster,
    /// Remove a cluster.
    DeleteCluster,
    /// Change the size of a cluster's pool.
    ScaleCluster,
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::CreateCluster => "create cluster",
            Self::DeleteCluster => "delete cluster",
            Self::ScaleCluster => "scale cluster",
        })
    }
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum OperationState {
    /// It goes on.
    Running,
    /// It goes on only when a person acts.
    Blocked {
        /// What must be done.
        why: String,
    },
    /// It is done.
    Succeeded {
        /// When.
        at: WallTime,
    },
    /// It ended without success.
    Failed {
        /// When.
        at: WallTime,
        /// Why.
        why: String,
    },
    /// A user cancelled it.
    Cancelled {
        /// When.
        at: WallTime,
        /// What was left in place.
        left: String,
    },
}

/// Long work that a user asked for. It outlives the client that asked, and the coordinator's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Its identity.
    pub id: OperationId,
    /// What was asked for.
    pub kind: OperationKind,
    /// For which cluster.
    pub cluster: ClusterName,
    /// What exactly, where the kind does not say it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When it was asked for.
    pub created: WallTime,
    /// How far it is.
    #[serde(flatten)]
    pub state: OperationState,
}

impl Operation {
    /// What was asked for, in words.
    #[must_use]
    pub fn what(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}, {detail}", self.kind),
            None => self.kind.to_string(),
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self.state {
            OperationState::Running | OperationState::Blocked { .. } => false,
            OperationState::Succeeded { .. }
            | OperationState::Failed { .. }
            | OperationState::Cancelled { .. } => true,
        }
    }
}
