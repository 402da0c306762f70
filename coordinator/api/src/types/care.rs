//! Health of machines: what is thought of them, what speaks for it, what is done, and what holds that back.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::time::Timestamp;

/// What is thought of a machine, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum VerdictWord {
    /// It is heard, and says that all is well.
    Well,
    /// It is heard, and its agent repairs something.
    Repairing,
    /// It is heard, and its agent has given up on something.
    GivenUp,
    /// Its heartbeats are late: the others are asked.
    Suspected,
    /// Silent, and others reach it: the way to it is broken.
    CutOff,
    /// Silent, its kernel answers and its agent does not.
    AgentDown,
    /// Silent together with the whole zone.
    ZoneSilent,
    /// Silent together with most of the fleet.
    FleetSilent,
    /// Silent, and what there is of evidence is not enough to say more.
    Undecided,
    /// Silent on all channels with power on.
    Hung,
    /// Without power, by the infrastructure's word.
    Off,
    /// Gone from the infrastructure.
    Missing,
}

/// What is thought of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerdictView {
    /// In one word, for scripts.
    pub word: VerdictWord,
    /// Name for tables: one or two words.
    pub name: String,
    /// In words.
    pub text: String,
}

/// What kind of thing is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum FaultClassView {
    /// A program on the machine.
    Process,
    /// The machine has power and answers nobody.
    Os,
    /// The machine has no power, or is not there.
    Machine,
    /// The way between coordinator and machine.
    Path,
    /// A whole zone, or the way to it.
    Zone,
    /// The coordinator's own network.
    Coordinator,
}

/// What the infrastructure says of a machine's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PowerView {
    /// It was not asked since the heartbeats stopped, or did not answer.
    Unknown,
    /// The machine has power.
    On,
    /// It has none.
    Off,
    /// The infrastructure does not know the machine.
    Missing,
}

/// What the lease of a machine's Kubernetes node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum LeaseView {
    /// Nobody could be asked, or the machine is no node.
    Unknown,
    /// Its kubelet has renewed it lately.
    Fresh,
    /// Its kubelet does not renew it.
    Stale,
}

/// What speaks for a verdict, from channels that do not depend on each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvidenceView {
    /// How long ago its last heartbeat came when it was judged, in milliseconds; null when none came since the
    /// coordinator started.
    pub heartbeat_ms: Option<u64>,
    /// So many other machines of its cluster reached its agent.
    pub peers_reached: u32,
    /// So many reached its kernel and no agent.
    pub peers_refused: u32,
    /// So many got no answer.
    pub peers_silent: u32,
    /// Its power.
    pub power: PowerView,
    /// The lease of its node.
    pub lease: LeaseView,
    /// How many other machines of its zone are heard.
    pub zone_heard: u32,
    /// How many other machines there are in its zone.
    pub zone_others: u32,
    /// All of it in one sentence.
    pub text: String,
}

/// A fault, from the moment it was found until the machine works again. Its events carry its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncidentView {
    /// Its number: `keelson events --incident N`.
    pub number: u64,
    /// When it was found.
    pub opened: Timestamp,
    /// The first verdict.
    pub verdict: VerdictView,
}

/// Something that is done to a machine to mend it, from mild to harsh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RepairActionView {
    /// It is switched on.
    PowerOn,
    /// Its power is taken away and given back. Its disk stays.
    PowerCycle,
    /// It is made anew around its disk.
    Rebuild,
    /// It is made anew with an empty disk.
    Recreate,
}

impl RepairActionView {
    /// All of them, from mild to harsh.
    pub const ALL: [Self; 4] = [Self::PowerOn, Self::PowerCycle, Self::Rebuild, Self::Recreate];
}

impl fmt::Display for RepairActionView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PowerOn => "power-on",
            Self::PowerCycle => "power-cycle",
            Self::Rebuild => "rebuild",
            Self::Recreate => "recreate",
        })
    }
}

/// Why a repair is not made now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldView {
    /// The guard that holds: `paused`, `starting`, `evidence`, `meltdown`, `quorum`, `apiServer`, `busy`, `coolDown`, `retries`, `fence`,
    /// `oldRecord` or `impossible`.
    pub guard: String,
    /// What it says.
    pub text: String,
    /// What ends the hold, in words.
    pub ends_when: String,
    /// When it ends, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Whether only a person can end it.
    pub needs_person: bool,
}

/// A repair that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActView {
    /// What.
    pub action: RepairActionView,
    /// When.
    pub at: Timestamp,
}

/// How far a machine is that leaves its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeavingView {
    /// What still depends on it, in one word: `apiServer`, `workers`, `queued`, `draining`, `kubernetes`, `node`, `etcdClients`, `etcdMember` or `nothing`.
    pub step: String,
    /// The same in words.
    pub text: String,
    /// What ends the step.
    pub ends_when: String,
    /// Since when it is on its way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When pods that may not be evicted are deleted all the same; absent when they never are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced_at: Option<Timestamp>,
    /// Pods that have still to go, those first that somebody must do something for (the first 50).
    pub pods: Vec<PodLeftView>,
    /// How many more there are.
    pub more_pods: u64,
    /// Volumes that are still attached for pods that go.
    pub volumes_attached: u64,
}

/// A pod that has still to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodLeftView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Who makes it again elsewhere, `Deployment web`; absent when nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The disruption budgets that keep it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<String>,
    /// What it waits for, in words.
    pub text: String,
    /// What ends the wait.
    pub ends_when: String,
    /// Whether only a person can end it.
    pub needs_person: bool,
}

/// A machine that is not well, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotWellView {
    /// The machine.
    pub machine: String,
    /// Its cluster.
    pub cluster: String,
    /// What is thought of it.
    pub verdict: VerdictView,
    /// What kind of thing is broken, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_class: Option<FaultClassView>,
    /// What is thought of it and what is done, in one line.
    pub text: String,
    /// Its incident.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<IncidentView>,
    /// The repair that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acting: Option<RepairActionView>,
    /// Why a repair that is due is not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldView>,
}

/// Over how much something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PauseScopeView {
    /// One cluster.
    Cluster,
    /// Everything.
    Fleet,
}

/// Repair that somebody has paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PauseView {
    /// Of how much.
    pub scope: PauseScopeView,
    /// Of which cluster, when it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// Who has paused it, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, in their own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
