//! Clusters.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::care::{NotWellView, PauseView};
use super::machine::MachineSummary;
use super::operation::WaitingView;
use super::secret::SecretText;
use super::time::Timestamp;

/// Body of a request that makes a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewClusterBody {
    /// `keelson/v1` when it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// `Cluster` when it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The wish.
    pub spec: ClusterSpecBody,
}

/// A cluster as its owner asks for it. What is left out gets the installation's default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpecBody {
    /// Its name: an RFC 1123 label of at most 40 characters. Never changes.
    pub name: String,
    /// The plan it follows.
    pub plan: String,
    /// The release that it runs; the installation's default release when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Number of workers; the plan's own number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,
    /// Numbers of machines by pool; the plan's own number for a pool that is not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<String, u16>,
    /// NodePort services that users reach from outside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<ExposeBody>,
    /// Addresses of pods (CIDR), 10.244.0.0/16 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_network: Option<String>,
    /// Addresses of Services (CIDR), 10.96.0.0/16 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_network: Option<String>,
    /// Whether deletion is refused until this is switched off.
    #[serde(default)]
    pub deletion_protection: bool,
    /// How pods leave machines that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainBody>,
    /// Labels to select it by, at most 64, with the syntax of Kubernetes' labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// How pods leave machines that go; what is absent stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainBody {
    /// How long disruption budgets are heeded, in seconds, 0 to 86400; 600 unless it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
    /// What happens then; `force` unless it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<DrainThenView>,
}

/// How pods leave machines that go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainView {
    /// How long disruption budgets are heeded, in seconds.
    pub timeout_s: u32,
    /// What happens then.
    pub then: DrainThenView,
}

/// What happens when pods may still not be evicted at the end of a drain's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum DrainThenView {
    /// They are deleted, with their own grace period: the machine goes.
    Force,
    /// They are asked again until it is allowed: the machine stays.
    Wait,
}

/// A NodePort service that is reachable from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExposeBody {
    /// Name for people: lower-case letters, digits and `-`, not `api`.
    pub name: String,
    /// The NodePort, 30000 to 32767.
    pub node_port: u16,
}

/// Body of a request that changes a cluster (JSON merge patch, RFC 7396).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPatchBody {
    /// What changes.
    pub spec: ClusterSpecPatch,
}

/// What can be changed of a cluster that stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpecPatch {
    /// Whether deletion is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_protection: Option<bool>,
    /// Labels that are set; `null` removes one, or, in place of the object, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schema(value_type = Option<BTreeMap<String, Option<String>>>)]
    pub labels: Option<LabelsPatch>,
    /// How pods leave machines that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainBody>,
}

/// A merge patch of labels; `None` removes all.
pub type LabelsPatch = Option<BTreeMap<String, Option<String>>>;

/// Tells a field that is `null` from one that is absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LabelsPatch>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A cluster: what was asked for, what is, and which state of the wish this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Cluster`.
    pub kind: String,
    /// What was asked for, with the defaults that were filled in.
    pub spec: ClusterSpecView,
    /// What is.
    pub status: ClusterStatusView,
    /// Which state of the wish this is.
    pub meta: Meta,
}

/// What was asked for, with the defaults that were filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpecView {
    /// Its name.
    pub name: String,
    /// The plan it follows.
    pub plan: String,
    /// The release that it shall run.
    pub release: String,
    /// Number of workers, when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,
    /// Numbers of machines by pool, where they were asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<String, u16>,
    /// NodePort services that users reach from outside.
    pub expose: Vec<ExposeBody>,
    /// Addresses of pods (CIDR).
    pub pod_network: String,
    /// Addresses of Services (CIDR).
    pub service_network: String,
    /// Whether deletion is refused.
    pub deletion_protection: bool,
    /// How pods leave machines that go.
    pub drain: DrainView,
    /// Labels to select it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Which state of the wish a document shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Generation of the blueprint that is carried out.
    pub generation: u64,
    /// Changes exactly when somebody asks for something else of this cluster; give it in `If-Match` to change
    /// the cluster.
    pub etag: String,
}

/// The state of a cluster in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ClusterState {
    /// It is on its way to being ready for the first time.
    Creating,
    /// Everything is as its blueprint says.
    Ready,
    /// It was ready, works, and becomes what was asked for.
    Updating,
    /// It was ready, and something does not work.
    Degraded,
    /// It is being removed.
    Deleting,
    /// It needs a person.
    Failed,
}

impl ClusterState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Creating, Self::Ready, Self::Updating, Self::Degraded, Self::Deleting, Self::Failed];
}

impl fmt::Display for ClusterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Updating => "updating",
            Self::Degraded => "degraded",
            Self::Deleting => "deleting",
            Self::Failed => "failed",
        })
    }
}

/// What is known of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatusView {
    /// Its name.
    pub name: String,
    /// Its state in one word.
    pub state: ClusterState,
    /// The release that it runs.
    pub release: String,
    /// URL of its API server, when it is reachable from outside.
    pub endpoint: Option<String>,
    /// Its other services that are reachable from outside.
    #[serde(default)]
    pub exposed: Vec<ExposedView>,
    /// Its pools, in order of their names.
    #[serde(default)]
    pub pools: Vec<PoolStatusView>,
    /// Its machines, in order of their ids.
    pub machines: Vec<MachineSummary>,
    /// Statements about it.
    pub conditions: Vec<ConditionView>,
    /// What it waits for; empty when it is as its blueprint says.
    pub waiting: Vec<WaitingView>,
    /// Machines that are not well, in order of their ids.
    #[serde(default)]
    pub not_well: Vec<NotWellView>,
    /// Since when and by whom repair is paused, of this cluster or of everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair_paused: Option<PauseView>,
    /// When it was asked for.
    pub created: Timestamp,
    /// The operation that works on it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

/// How many machines a pool has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatusView {
    /// Its name.
    pub name: String,
    /// Machines that its blueprint names and that stay.
    pub machines: u32,
    /// Machines on their way out.
    pub leaving: u32,
}

/// A service that is reachable from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExposedView {
    /// Its name in the spec.
    pub name: String,
    /// Where users reach it, `host:port`.
    pub address: String,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ConditionState {
    /// It holds.
    Ok,
    /// It does not hold yet, and work on it goes on.
    Progressing,
    /// It does not hold.
    Bad,
    /// It cannot be seen.
    Unknown,
}

impl fmt::Display for ConditionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Progressing => "progressing",
            Self::Bad => "bad",
            Self::Unknown => "unknown",
        })
    }
}

/// One statement about a cluster, with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// What it is about (`Machines`, `ControlPlane`, `Etcd`, `Endpoint`, `Workers`).
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionState,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// Since when it is so.
    pub since: Timestamp,
}

/// Body of a request for another size of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScaleBody {
    /// The pool.
    pub pool: String,
    /// How many machines it shall have.
    pub count: u16,
    /// How pods leave machines that go, from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainBody>,
}

/// Body of a request for a kubeconfig.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubeconfigRequestBody {
    /// Life of the client certificate in seconds, 60 to 86400; an hour when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
}

/// A kubeconfig with a client certificate. Secret: it opens the cluster until it expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeconfigView {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// Always `Kubeconfig`.
    pub kind: String,
    /// The cluster it opens.
    pub cluster: String,
    /// When its certificate ends.
    pub expires: Timestamp,
    /// The file (YAML). Its cluster, user and context are all named `keelson-<cluster>`.
    pub kubeconfig: SecretText,
}
