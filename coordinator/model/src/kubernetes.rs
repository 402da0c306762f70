//! What is asked of a cluster's API server about its nodes, and what comes back.
//!
//! Times in here are opaque text from clocks of machines, which may be wrong: they are compared for equality, never
//! subtracted.

use std::collections::BTreeMap;
use std::fmt;

use keelson_protocol::MachineId;
use serde::{Deserialize, Serialize};

use crate::plan::{Taint, TaintEffect};

/// Most pods that one answer names; a node runs 110 pods unless it is told otherwise, and nobody reads more than this.
pub const PODS_TOLD_MAX: usize = 50;
/// Longest text of the API server that is kept, in characters: a refusal of a webhook may be a page.
pub const WHY_CHARS_MAX: usize = 300;
/// Key of the taint that tells Kubernetes that a node has no power, so that its volumes may be taken away from it
/// (Kubernetes documentation, "Node Shutdowns", section "Non-graceful node shutdown handling").
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A call to one cluster's API server. Every call can be made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum KubeCall {
    /// All nodes as Kubernetes sees them.
    Nodes,
    /// Brings what is named of a node to what is wanted; everything else of it stays.
    SetNode {
        /// The node.
        node: MachineId,
        /// What is wanted.
        wish: NodeWish,
    },
    /// One pass of a drain: cordons, then asks for the eviction of every pod that must go. Nothing is waited for: the
    /// answer says what is left, and the next pass looks again.
    Drain {
        /// The node.
        node: MachineId,
        /// What becomes of pods that may not be evicted.
        force: DrainForce,
    },
    /// Gives up everything that runs on a node, so that it can run elsewhere at once. Only for a machine that was proven
    /// to have no power: on a machine that still runs, two pods would write to one volume. Marks the node with
    /// [`OUT_OF_SERVICE`], removes its pods without a grace period, and its volume attachments.
    Evacuate {
        /// The node. That Kubernetes does not know it is success.
        node: MachineId,
    },
    /// Removes a node. That it is not there is success.
    DeleteNode {
        /// The node.
        node: MachineId,
    },
}

/// What becomes of pods that may not be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DrainForce {
    /// They stay, and the answer says what keeps them.
    Never,
    /// They are deleted, with the grace period that they ask for, whatever a disruption budget says.
    AfterRefusal,
}

/// What a node shall be. What is not named stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeWish {
    /// Whether new pods may come; `None` leaves that as it is.
    pub cordon: Option<Cordon>,
    /// Labels by key; `None` removes one.
    pub labels: BTreeMap<String, Option<String>>,
    /// Taints to set and to remove.
    pub taints: Vec<TaintWish>,
}

impl NodeWish {
    /// Only whether new pods may come.
    #[must_use]
    pub fn cordon(cordon: Cordon) -> Self {
        Self { cordon: Some(cordon), ..Self::default() }
    }

    /// Takes back what [`KubeCall::Evacuate`] has put on a node: for a machine that has power again.
    #[must_use]
    pub fn in_service() -> Self {
        let taint = out_of_service();
        let absent = TaintWish::Absent { key: taint.key, effect: taint.effect };
        Self { taints: vec![absent], ..Self::default() }
    }
}

/// Whether the scheduler may place new pods on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cordon {
    /// It may.
    Open,
    /// It may not.
    Cordoned,
}

/// A taint that shall be there or shall not. Kubernetes tells taints apart by key and effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum TaintWish {
    /// It shall be there, with this value.
    Present(Taint),
    /// It shall not be there, whatever its value is.
    Absent {
        /// Its key.
        key: String,
        /// Its effect.
        effect: TaintEffect,
    },
}

/// The taint of a node without power.
#[must_use]
pub fn out_of_service() -> Taint {
    Taint { key: OUT_OF_SERVICE.to_owned(), value: "nodeshutdown".to_owned(), effect: TaintEffect::NoExecute }
}

/// What a node says of itself through its kubelet, or its controller when the kubelet is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeReady {
    /// It runs pods.
    True,
    /// Its kubelet says that it cannot run pods.
    False,
    /// Nobody has heard of its kubelet for a while, or it never said anything.
    Unknown,
}

/// A node as Kubernetes sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSeen {
    /// Its name: a machine id, unless a user has joined a machine of their own.
    pub name: String,
    /// Tells a node from one of the same name that was removed and made again.
    pub uid: String,
    /// Whether it runs pods.
    pub ready: NodeReady,
    /// Why it is not ready, as Kubernetes says it.
    pub why: Option<String>,
    /// When its kubelet has renewed its lease, by the node's own clock: a kubelet lives whose value changes from one
    /// look to the next. `None` when there is no lease.
    pub lease: Option<String>,
    /// Whether new pods may come.
    pub cordon: Cordon,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints; those of an effect that is not known are left out.
    pub taints: Vec<Taint>,
    /// Changes with each boot of its kernel; `None` until its kubelet has said it.
    pub boot: Option<String>,
    /// Version of its kubelet (`v1.37.2`); `None` until it has said it.
    pub kubelet: Option<String>,
    /// When it was made, by the API server's clock.
    pub created: String,
}

impl NodeSeen {
    /// Whether it is marked as being without power.
    #[must_use]
    pub fn is_out_of_service(&self) -> bool {
        self.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
    }
}

/// What a call gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KubeAnswer {
    /// All nodes, by name.
    Nodes(Vec<NodeSeen>),
    /// What is left on the node after this pass of a drain, or after its evacuation.
    Drained(DrainState),
    /// It is as wanted.
    Done,
}

/// What is left on a node after a pass of a drain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainState {
    /// Pods that have still to go, those first that somebody must do something for; at most [`PODS_TOLD_MAX`]. A pod
    /// that this pass has evicted is among them: the next pass finds it gone.
    pub left: Vec<PodLeft>,
    /// How many more there are.
    pub more: usize,
    /// Volumes that are still attached for pods that go. A volume of a pod that stays (of a DaemonSet) does not count.
    pub volumes_attached: usize,
}

impl DrainState {
    /// The first [`PODS_TOLD_MAX`] of these pods, in the order in which a person has to care for them.
    #[must_use]
    pub fn new(mut left: Vec<PodLeft>, volumes_attached: usize) -> Self {
        left.sort_by(|a, b| {
            let key = |pod: &PodLeft| (pod.why.rank(), pod.namespace.clone(), pod.pod.clone());
            key(a).cmp(&key(b))
        });
        let more = left.len().saturating_sub(PODS_TOLD_MAX);
        left.truncate(PODS_TOLD_MAX);
        Self { left, more, volumes_attached }
    }

    /// Whether nothing is left, so that the machine may go.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.left.is_empty() && self.volumes_attached == 0
    }

    /// Pods whose eviction was refused, as far as they are named: more time alone need not help.
    pub fn blocked(&self) -> impl Iterator<Item = &PodLeft> {
        self.left.iter().filter(|pod| pod.why.is_blocked())
    }
}

impl fmt::Display for DrainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_drained() {
            return f.write_str("drained");
        }
        let pods = self.left.len() + self.more;
        write!(f, "{pods} pods and {} attached volumes are left", self.volumes_attached)?;
        match self.left.first() {
            Some(first) => write!(f, "; {first}"),
            None => Ok(()),
        }
    }
}

/// A pod that has still to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLeft {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Who makes it again elsewhere; `None` when nobody does, then it is gone for good.
    pub owner: Option<PodOwner>,
    /// What it waits for.
    pub why: PodWait,
}

impl fmt::Display for PodLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {}/{}", self.namespace, self.pod)?;
        match &self.owner {
            Some(owner) => write!(f, " of {owner}")?,
            None => f.write_str(" of no controller, which nobody makes again,")?,
        }
        write!(f, " {}", self.why)
    }
}

/// The controller of a pod, as its user knows it: the Deployment rather than its ReplicaSet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodOwner {
    /// What it is (`Deployment`, `StatefulSet`).
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PodOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// What a pod waits for that has still to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wait", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum PodWait {
    /// It was told to end and has its grace period for that; its kubelet removes it.
    Ending {
        /// Who else must let go of it before it can be removed; usually nobody.
        finalizers: Vec<String>,
    },
    /// Its eviction was refused and it was deleted all the same, because the caller said so.
    Forced {
        /// Why the eviction was refused.
        refused: String,
    },
    /// A disruption budget does not allow its eviction now.
    Budget(BudgetSeen),
    /// Several disruption budgets select it, and Kubernetes then evicts it never.
    Budgets {
        /// Their names.
        names: Vec<String>,
    },
    /// Its eviction was refused for another reason, by an admission webhook for example.
    Refused {
        /// What the API server said.
        why: String,
    },
    /// The API server could not say yes or no; the next pass asks again.
    Postponed {
        /// What it said.
        why: String,
    },
}

impl PodWait {
    /// Whether its eviction was refused.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        matches!(self, Self::Budget(_) | Self::Budgets { .. } | Self::Refused { .. })
    }

    /// Whether only a person can end the wait, by changing something in the cluster or by forcing the drain.
    #[must_use]
    pub fn needs_person(&self) -> bool {
        match self {
            Self::Budget(budget) => budget.allows_never(),
            Self::Budgets { .. } | Self::Refused { .. } => true,
            Self::Ending { .. } | Self::Forced { .. } | Self::Postponed { .. } => false,
        }
    }

    /// What ends the wait, in words.
    #[must_use]
    pub fn ends_when(&self) -> &'static str {
        match self {
            Self::Ending { finalizers } if !finalizers.is_empty() => {
                "its controllers remove their finalizers; if they do not run, remove the finalizers by hand"
            }
            Self::Ending { .. } | Self::Forced { .. } => "its kubelet has ended it",
            Self::Budget(budget) if budget.allows_never() => {
                "a person lowers minAvailable of the budget, or runs more replicas"
            }
            Self::Budget(_) => "more pods of the budget are healthy elsewhere",
            Self::Budgets { .. } => "a person removes all but one of the budgets",
            Self::Refused { .. } => "a person removes the cause of the refusal",
            Self::Postponed { .. } => "the API server accepts the call",
        }
    }

    /// Place in a list for people: what needs somebody first, what ends by itself last.
    fn rank(&self) -> u8 {
        match self {
            wait if wait.needs_person() => 0,
            Self::Budget(_) | Self::Budgets { .. } | Self::Refused { .. } => 1,
            Self::Postponed { .. } => 2,
            Self::Ending { finalizers } if !finalizers.is_empty() => 3,
            Self::Forced { .. } => 4,
            Self::Ending { .. } => 5,
        }
    }
}

impl fmt::Display for PodWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ending { finalizers } if finalizers.is_empty() => f.write_str("is ending"),
            Self::Ending { finalizers } => write!(f, "is ending, kept by {}", finalizers.join(", ")),
            Self::Forced { refused } => write!(f, "was deleted although it was not to be evicted: {refused}"),
            Self::Budget(budget) => write!(f, "may not be evicted: {budget}"),
            Self::Budgets { names } => {
                write!(f, "can never be evicted: disruption budgets {} all select it", names.join(" and "))
            }
            Self::Refused { why } => write!(f, "may not be evicted: {why}"),
            Self::Postponed { why } => write!(f, "will be asked to go again: {why}"),
        }
    }
}

/// A disruption budget with its numbers, in pods (policy/v1, `PodDisruptionBudgetStatus`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetSeen {
    /// Its name, in the pod's namespace.
    pub name: String,
    /// How many more may be evicted now.
    pub allowed: i32,
    /// How many are healthy.
    pub healthy: i32,
    /// How many must be healthy.
    pub wanted: i32,
    /// How many there should be.
    pub expected: i32,
    /// What the API server said.
    pub message: String,
}

impl BudgetSeen {
    /// Whether it allows no eviction even when every pod is healthy: all pods that should be there must be.
    #[must_use]
    pub fn allows_never(&self) -> bool {
        self.wanted > 0 && self.expected <= self.wanted
    }
}

impl fmt::Display for BudgetSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, healthy, wanted, expected, .. } = self;
        write!(f, "disruption budget {name} wants {wanted} of {expected} pods healthy, {healthy} are")?;
        if self.allows_never() { f.write_str(", so it never allows one to go") } else { Ok(()) }
    }
}

/// Why a call was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "failure", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum KubeFailure {
    /// No answer came: the call may or may not have taken effect.
    #[error("the API server cannot be reached: {why}")]
    Unreachable {
        /// What was seen.
        why: String,
    },
    /// The API server answers, and cannot do it now.
    #[error("the API server cannot do it now: {why}")]
    Busy {
        /// What it said.
        why: String,
    },
    /// The certificate is not accepted, or its user lacks a right.
    #[error("the API server does not allow it: {why}")]
    Denied {
        /// What it said.
        why: String,
    },
    /// Kubernetes does not know the node.
    #[error("kubernetes knows no node {node}")]
    NoNode {
        /// The node.
        node: MachineId,
    },
    /// The API server refuses the call as it is.
    #[error("the API server refuses it: {why}")]
    Refused {
        /// What it said.
        why: String,
    },
}

impl KubeFailure {
    /// Whether asking again is of no use before a person has acted.
    #[must_use]
    pub fn needs_person(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::Refused { .. } => true,
            Self::Unreachable { .. } | Self::Busy { .. } | Self::NoNode { .. } => false,
        }
    }

    /// What to do about it, in words.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Busy { .. } => {
                "see whether the masters are healthy: keelson cluster show CLUSTER --explain; it is tried again"
            }
            Self::Denied { .. } => {
                "see whether somebody has removed the roles and bindings that begin with `keelson:`"
            }
            Self::NoNode { .. } => "see whether its kubelet runs: keelson machine show MACHINE",
            Self::Refused { .. } => "see whether an admission webhook of the cluster refuses it",
        }
    }
}

/// The beginning of a text of the API server: [`WHY_CHARS_MAX`] characters, in one line.
#[must_use]
pub fn short_why(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WHY_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(healthy: i32, wanted: i32, expected: i32) -> BudgetSeen {
        let message = "no".to_owned();
        BudgetSeen { name: "web".to_owned(), allowed: 0, healthy, wanted, expected, message }
    }

    fn left(pod: &str, why: PodWait) -> PodLeft {
        let owner = Some(PodOwner { kind: "Deployment".to_owned(), name: "web".to_owned() });
        PodLeft { namespace: "shop".to_owned(), pod: pod.to_owned(), owner, why }
    }

    fn ending() -> PodWait {
        PodWait::Ending { finalizers: Vec::new() }
    }

    #[test]
    fn a_budget_that_wants_every_pod_never_allows_one_to_go() {
        let check = |healthy, wanted, expected, never| {
            assert_eq!(budget(healthy, wanted, expected).allows_never(), never, "{wanted} of {expected}");
        };
        check(2, 2, 2, true);
        check(1, 3, 2, true);
        check(1, 2, 3, false);
        // Its controller has not counted yet.
        check(0, 0, 0, false);
    }

    #[test]
    fn what_needs_a_person_is_told_first() {
        let state = DrainState::new(
            vec![
                left("b", ending()),
                left("a", ending()),
                left("c", PodWait::Ending { finalizers: vec!["example.org/x".to_owned()] }),
                left("d", PodWait::Postponed { why: "slow down".to_owned() }),
                left("e", PodWait::Budget(budget(1, 1, 2))),
                left("f", PodWait::Budget(budget(2, 2, 2))),
            ],
            0,
        );
        let order: Vec<&str> = state.left.iter().map(|pod| pod.pod.as_str()).collect();
        assert_eq!(order, ["f", "e", "d", "c", "a", "b"]);
        assert_eq!(state.blocked().count(), 2);
        assert_eq!(
            state.to_string(),
            "6 pods and 0 attached volumes are left; pod shop/f of Deployment web may not be evicted: \
             disruption budget web wants 2 of 2 pods healthy, 2 are, so it never allows one to go"
        );
    }

    #[test]
    fn an_answer_names_few_pods_and_counts_the_others() {
        let pods = (0..PODS_TOLD_MAX + 7).map(|number| left(&format!("p{number:03}"), ending())).collect();
        let state = DrainState::new(pods, 0);
        assert_eq!((state.left.len(), state.more), (PODS_TOLD_MAX, 7));
        assert!(!state.is_drained());
        assert!(!DrainState::new(Vec::new(), 1).is_drained());
        assert!(DrainState::default().is_drained());
    }

    #[test]
    fn calls_and_answers_survive_being_written_down() {
        let mut wish = NodeWish::in_service();
        wish.labels.insert("a".to_owned(), None);
        let call = KubeCall::SetNode { node: MachineId::new("demo-worker-1").unwrap(), wish };
        let text = serde_json::to_string(&call).unwrap();
        assert_eq!(serde_json::from_str::<KubeCall>(&text).unwrap(), call);
        let answer =
            KubeAnswer::Drained(DrainState::new(vec![left("a", PodWait::Budget(budget(1, 1, 1)))], 2));
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<KubeAnswer>(&text).unwrap(), answer);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(short_why("a\n  b"), "a b");
        let cut = short_why(&"ä".repeat(WHY_CHARS_MAX + 1));
        assert_eq!(cut.chars().count(), WHY_CHARS_MAX + 3);
    }
}
