//! Plans, and previews of changes.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
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
    /// Whether it comes with the coordinator and stays as it is.
    #[serde(default)]
    pub built_in: bool,
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
    /// CPU limit as Kubernetes writes it (`2`, `500m`); absent is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Memory limit as Kubernetes writes it (`4Gi`); absent is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// State disk as Kubernetes writes it (`20Gi`).
    #[serde(default)]
    pub disk: String,
    /// CPU limit in thousandths of a core; absent is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Memory limit in bytes; absent is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// State disk in bytes.
    pub disk_bytes: u64,
    /// Fault domains to place its machines in; absent is all that the infrastructure has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Labels of its Kubernetes nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints of its Kubernetes nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<TaintBody>,
}

/// Body of a request that makes or changes a plan; what a plan's own document shows can be sent back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlanBody {
    /// `keelson/v1` when it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// `Plan` when it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name, the one of the address: a DNS label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One sentence for the user who chooses.
    #[serde(default)]
    pub description: String,
    /// Its pools, 1 to 16.
    pub pools: Vec<PoolBody>,
    /// Follows from the pools and is not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers_sizable: Option<bool>,
    /// Cannot be chosen and is not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_in: Option<bool>,
}

/// A set of equal machines, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolBody {
    /// Its name: a DNS label of at most 15 characters.
    pub name: String,
    /// What its machines do: of etcd, master, worker.
    pub roles: Vec<String>,
    /// How many machines, unless a cluster's spec says otherwise.
    pub count: u16,
    /// CPU limit as Kubernetes writes it (`2`, `500m`); unlimited when absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub cpu: Option<String>,
    /// Memory limit as Kubernetes writes it (`4Gi`); unlimited when absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub memory: Option<String>,
    /// State disk as Kubernetes writes it (`20Gi`), at least 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub disk: Option<String>,
    /// In place of `cpu`: thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// In place of `memory`: bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// In place of `disk`: bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Fault domains to place its machines in; all that the infrastructure has when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Labels of its Kubernetes nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints of its Kubernetes nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<TaintBody>,
}

/// YAML makes a number of `cpu: 2`; it means the same as the text.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a quantity, for example 2, 500m or 4Gi")]
    enum TextOrNumber {
        Text(String),
        Whole(u64),
        Part(f64),
    }
    let value = Option::<TextOrNumber>::deserialize(deserializer)?;
    Ok(value.map(|value| match value {
        TextOrNumber::Text(text) => text,
        TextOrNumber::Whole(number) => number.to_string(),
        TextOrNumber::Part(number) => number.to_string(),
    }))
}

/// A taint of a Kubernetes node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaintBody {
    /// Its key, with the syntax of a label's key.
    pub key: String,
    /// Its value, with the syntax of a label's value.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// What it does.
    pub effect: TaintEffectView,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum TaintEffectView {
    /// They are not placed there.
    NoSchedule,
    /// They are placed there only when there is no other place.
    PreferNoSchedule,
    /// They are not placed there, and those that run there leave.
    NoExecute,
}

impl fmt::Display for TaintBody {
    /// As `kubectl taint` has it: `key=value:effect`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equals = if self.value.is_empty() { "" } else { "=" };
        write!(f, "{}{equals}{}:{:?}", self.key, self.value, self.effect)
    }
}

/// What came, or would come, of a request to make, change or remove a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PlanOutcome {
    /// It is new.
    Created,
    /// It is another one.
    Changed,
    /// It was like this before; nothing was done.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// What a change of a plan does, or would do, to it and to the clusters that use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanChangeView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `PlanChange`.
    pub kind: String,
    /// Name of the plan.
    pub name: String,
    /// What came, or would come, of it.
    pub outcome: PlanOutcome,
    /// ETag of the plan that stood there before; absent when none did. Sent as `If-Match` (as `If-None-Match: *` when it
    /// is absent), a preview is applied to nothing but what it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
    /// What differs, one sentence a difference.
    pub differences: Vec<String>,
    /// What it comes to for each cluster that uses the plan.
    pub clusters: Vec<PlanPreview>,
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
