//! Why a cluster is not (yet) as its blueprint says, in typed reasons.

use std::borrow::Cow;
use std::fmt;

use keelson_protocol::{ClusterName, MachineId, WallTime};
use serde::{Deserialize, Serialize};

use crate::blueprint::BlueprintDiff;
use crate::fault::{Hold, RepairAction, Verdict};
use crate::progress::Standing;

/// What a plan waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "on", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum WaitingOn {
    /// The provider is making a machine.
    ProviderCreate {
        /// The machine.
        machine: MachineId,
    },
    /// The provider refused and is asked again.
    ProviderRetry {
        /// The machine.
        machine: MachineId,
        /// What the provider said.
        why: String,
        /// How often it was asked.
        attempts: u32,
        /// When it is asked again.
        next: WallTime,
    },
    /// The provider refused for good: a person must act.
    ProviderRefused {
        /// The machine.
        machine: MachineId,
        /// What the provider said.
        why: String,
    },
    /// A machine boots; its agent has not enrolled.
    Boot {
        /// The machine.
        machine: MachineId,
    },
    /// The agent enrolled and has not connected.
    Connect {
        /// The machine.
        machine: MachineId,
    },
    /// The agent has an older config.
    Config {
        /// The machine.
        machine: MachineId,
    },
    /// The config restarts a part of the control plane, and another machine of it must be ready first.
    Turn {
        /// The machine.
        machine: MachineId,
        /// The other machine.
        behind: MachineId,
    },
    /// Its etcd member is not a voting one yet.
    EtcdJoin {
        /// The machine.
        machine: MachineId,
        /// What it is now; `None` when etcd was not asked yet.
        standing: Option<Standing>,
    },
    /// The number of etcd members is not the wanted one, and cannot be changed now.
    EtcdSize {
        /// Why not.
        hold: EtcdHold,
    },
    /// It leaves the cluster, and something still depends on it.
    Leave {
        /// The machine.
        machine: MachineId,
        /// What.
        step: LeaveStep,
    },
    /// A unit waits, starts or fails.
    Unit {
        /// The machine.
        machine: MachineId,
        /// The unit.
        unit: String,
        /// Its state in words.
        state: String,
    },
    /// A machine's heartbeats stay away.
    Silent {
        /// The machine.
        machine: MachineId,
    },
    /// A machine is being repaired, or a repair that is due is held back.
    Repair {
        /// The machine.
        machine: MachineId,
        /// What is thought of it.
        verdict: Verdict,
        /// What is being done.
        action: Option<RepairAction>,
        /// Why nothing is done.
        hold: Option<Hold>,
    },
    /// A machine has no power, though it should have.
    Off {
        /// The machine.
        machine: MachineId,
        /// Why the provider did not give it its power.
        why: Option<String>,
    },
    /// The provider is removing a machine.
    ProviderDelete {
        /// The machine.
        machine: MachineId,
        /// Why the last try failed.
        why: Option<String>,
    },
    /// The spec cannot be planned in full.
    Plan {
        /// Why.
        why: String,
    },
    /// The provider has not yet made the API server reachable from outside.
    Endpoint {
        /// What it said.
        why: Option<String>,
    },
    /// The provider has not yet given up the address of a cluster that goes.
    Unexpose {
        /// What it said.
        why: Option<String>,
    },
}

impl WaitingOn {
    /// The machine that is waited for.
    #[must_use]
    pub fn machine(&self) -> Option<&MachineId> {
        match self {
            Self::ProviderCreate { machine }
            | Self::ProviderRetry { machine, .. }
            | Self::ProviderRefused { machine, .. }
            | Self::Boot { machine }
            | Self::Connect { machine }
            | Self::Config { machine }
            | Self::Turn { machine, .. }
            | Self::EtcdJoin { machine, .. }
            | Self::Leave { machine, .. }
            | Self::Repair { machine, .. }
            | Self::Unit { machine, .. }
            | Self::Silent { machine }
            | Self::Off { machine, .. }
            | Self::ProviderDelete { machine, .. } => Some(machine),
            Self::EtcdSize { hold } => Some(hold.machine()),
            Self::Plan { .. } | Self::Endpoint { .. } | Self::Unexpose { .. } => None,
        }
    }

    /// Whether only a person can end the wait.
    #[must_use]
    pub fn needs_person(&self) -> bool {
        match self {
            Self::ProviderRefused { .. } => true,
            Self::Repair { hold: Some(hold), .. } => hold.needs_person(),
            _ => false,
        }
    }

    /// Whether something failed that only a person can bring on. What a person has paused has not failed.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        let paused = matches!(self, Self::Repair { hold: Some(Hold::Paused { .. }), .. });
        self.needs_person() && !paused
    }

    /// What ends a wait of `cluster`, in words.
    #[must_use]
    pub fn ends_when(&self, cluster: &ClusterName) -> Cow<'static, str> {
        let words = match self {
            Self::ProviderCreate { .. } => "the provider reports the machine as running",
            Self::ProviderRetry { .. } => "the provider accepts the call",
            Self::ProviderRefused { .. } => {
                "a person removes the cause; the provider is asked again every two minutes, and at once when the size \
                 is asked for again"
            }
            Self::Boot { .. } => "its agent asks for a certificate",
            Self::Connect { .. } => "its agent connects",
            Self::Silent { .. } => {
                "its agent is heard again, or the provider says that it is off; if neither comes, look at the machine"
            }
            Self::Config { .. } => "its agent reports the newest generation",
            Self::Turn { .. } => "the machine before it is ready with the same config",
            Self::EtcdJoin { .. } => "its member has caught up with the others and votes",
            Self::EtcdSize { .. } => "all members vote and work",
            Self::Leave { step, .. } => step.ends_when(),
            Self::Repair { machine, hold: Some(hold), .. } => return hold.ends_when(cluster, machine),
            Self::Repair { hold: None, .. } => "the machine works again",
            Self::Unit { .. } => "the unit answers its health probe",
            Self::Off { .. } => "the provider reports the machine as running",
            Self::ProviderDelete { .. } => "the provider no longer lists the machine",
            Self::Plan { .. } => "there is room, or less is asked for",
            Self::Endpoint { .. } => "the provider reports the address, and the API server answers there",
            Self::Unexpose { .. } => "the provider has given up the address",
        };
        words.into()
    }
}

impl fmt::Display for WaitingOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProviderCreate { .. } => f.write_str("the provider is making it"),
            Self::ProviderRetry { why, attempts, .. } => {
                write!(f, "the provider refused {attempts} times and is asked again: {why}")
            }
            Self::ProviderRefused { why, .. } => write!(f, "the provider refused: {why}"),
            Self::Boot { .. } => f.write_str("booting"),
            Self::Connect { .. } => f.write_str("enrolled, connecting"),
            Self::Config { .. } => f.write_str("receiving its config"),
            Self::Turn { behind, .. } => {
                write!(f, "gets its config after {behind}, so that only one restarts at a time")
            }
            Self::EtcdJoin { standing: Some(Standing::Learner), .. } => {
                f.write_str("its etcd member catches up")
            }
            Self::EtcdJoin { .. } => f.write_str("its etcd member is being added"),
            Self::Leave { step, .. } => write!(f, "leaving: {step}"),
            Self::Repair { verdict, hold: Some(hold), .. } => write!(f, "{verdict}; not repaired: {hold}"),
            Self::Repair { verdict, action: Some(action), .. } => write!(f, "{verdict}; repair: {action}"),
            Self::Repair { verdict, .. } => write!(f, "{verdict}"),
            Self::EtcdSize { hold } => write!(f, "the next etcd member comes or goes later: {hold}"),
            Self::Unit { unit, state, .. } => write!(f, "{unit} {state}"),
            Self::Silent { .. } => f.write_str("no heartbeat"),
            Self::Off { why: None, .. } => f.write_str("switched off"),
            Self::Off { why: Some(why), .. } => write!(f, "switched off, and the provider says: {why}"),
            Self::ProviderDelete { why: None, .. } => f.write_str("the provider is removing it"),
            Self::ProviderDelete { why: Some(why), .. } => {
                write!(f, "the provider could not remove it and is asked again: {why}")
            }
            Self::Plan { why } => write!(f, "not all that was asked for can be planned: {why}"),
            Self::Endpoint { why: None } => f.write_str("the API server's outside address"),
            Self::Endpoint { why: Some(why) } => write!(f, "the API server's outside address: {why}"),
            Self::Unexpose { why: None } => {
                f.write_str("the provider gives up the API server's outside address")
            }
            Self::Unexpose { why: Some(why) } => {
                write!(
                    f,
                    "the provider could not give up the API server's outside address and is asked again: {why}"
                )
            }
        }
    }
}

/// Why the etcd cluster does not change its members now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum EtcdHold {
    /// A member joins, or is not known to vote.
    Joining {
        /// The machine.
        machine: MachineId,
    },
    /// A member leaves.
    Leaving {
        /// The machine.
        machine: MachineId,
    },
    /// A member does not work as it should.
    Unready {
        /// The machine.
        machine: MachineId,
    },
}

impl EtcdHold {
    /// The machine that is the reason.
    #[must_use]
    pub fn machine(&self) -> &MachineId {
        match self {
            Self::Joining { machine } | Self::Leaving { machine } | Self::Unready { machine } => machine,
        }
    }
}

impl fmt::Display for EtcdHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joining { machine } => write!(f, "{machine} is not a voting member yet"),
            Self::Leaving { machine } => write!(f, "{machine} is leaving the etcd cluster"),
            Self::Unready { machine } => write!(f, "{machine} does not work as it should"),
        }
    }
}

/// What still depends on a machine that leaves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum LeaveStep {
    /// None of the masters that stay works, or is ready with what it was sent: it keeps the API server until one is.
    ApiServer,
    /// Most of the workers that stay do not work yet, and its pods would have nowhere to go.
    Workers,
    /// Other nodes are drained first.
    Queued,
    /// Pods and volumes are left on it.
    Draining {
        /// Which, and what keeps them, in words.
        left: String,
    },
    /// The API server could not be asked.
    Kubernetes {
        /// Why.
        why: String,
    },
    /// Kubernetes still knows the node.
    Node,
    /// Its etcd member works, and a master may know none that stays and works until it has taken its newest config.
    EtcdClients {
        /// The master.
        master: MachineId,
    },
    /// Its etcd member is still one.
    EtcdMember,
}

impl LeaveStep {
    /// What ends the step, in words.
    #[must_use]
    pub fn ends_when(&self) -> &'static str {
        match self {
            Self::ApiServer => "a master that stays works with its newest config",
            Self::Workers => "half of the workers that stay work",
            Self::Queued => "other nodes are drained",
            Self::Draining { .. } => {
                "its pods run elsewhere and its volumes are detached; at the end of its time they are deleted all the \
                 same, and ten minutes later the machine goes with what is left, unless drains of the cluster shall wait"
            }
            Self::Kubernetes { .. } => "the API server answers",
            Self::Node => "Kubernetes has forgotten the node",
            Self::EtcdClients { .. } => {
                "the masters have taken a config that names a member that stays and works"
            }
            Self::EtcdMember => "the other members have taken it out",
        }
    }
}

impl fmt::Display for LeaveStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiServer => {
                f.write_str("no master that stays works with its newest config, and it keeps the API server")
            }
            Self::Workers => {
                f.write_str("most of the workers that stay do not work yet, and its pods need a place to go")
            }
            Self::Queued => f.write_str("its drain waits for that of others"),
            Self::Draining { left } => f.write_str(left),
            Self::Kubernetes { why } => f.write_str(why),
            Self::Node => f.write_str("the node is being removed"),
            Self::EtcdClients { master } => {
                write!(f, "{master} may know no etcd member yet that stays and works")
            }
            Self::EtcdMember => f.write_str("its etcd member is being taken out"),
        }
    }
}

/// Why a plan does not go further, beside what it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    /// What differs from the blueprint before.
    pub changes: BlueprintDiff,
    /// What is waited for; empty when the cluster is as its blueprint says.
    pub waiting: Vec<WaitingOn>,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConditionStatus {
    /// It holds.
    Ok,
    /// It does not hold yet, and work on it goes on.
    Progressing,
    /// It does not hold.
    Bad,
    /// It cannot be seen.
    Unknown,
}

impl fmt::Display for ConditionStatus {
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about (`Machines`, `ControlPlane`, `Etcd`, `Endpoint`, `Workers`).
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// Since when it is so.
    pub since: WallTime,
}
