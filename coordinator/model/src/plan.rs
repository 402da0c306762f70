//! Plans: the make-ups of clusters that an installation offers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// Name of a plan, for example `small`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanName(pub String);

impl fmt::Display for PlanName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Name of a pool within a plan; the middle part of its machines' names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PoolName(pub String);

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a machine does for its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It holds the cluster's state.
    Etcd,
    /// It runs API server, controller-manager and scheduler.
    Master,
    /// It runs users' pods.
    Worker,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Etcd => "etcd",
            Self::Master => "master",
            Self::Worker => "worker",
        })
    }
}

/// Size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    /// CPU limit in thousandths of a core; `None` is unlimited.
    pub cpu_millis: Option<u32>,
    /// Memory limit in bytes; `None` is unlimited.
    pub memory_bytes: Option<u64>,
    /// State disk in bytes.
    pub disk_bytes: u64,
}

/// What a taint does to pods that do not tolerate it (Kubernetes "taints and tolerations").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TaintEffect {
    /// They are not placed there.
    NoSchedule,
    /// They are placed there only when there is no other place.
    PreferNoSchedule,
    /// They are not placed there, and those that run there leave.
    NoExecute,
}

impl TaintEffect {
    /// The word that Kubernetes has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

impl fmt::Display for TaintEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A taint of a Kubernetes node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Taint {
    /// Its key, with the syntax of a label's key.
    pub key: String,
    /// Its value, with the syntax of a label's value.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// What it does.
    pub effect: TaintEffect,
}

impl fmt::Display for Taint {
    /// As `kubectl taint` has it: `key=value:effect`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equals = if self.value.is_empty() { "" } else { "=" };
        write!(f, "{}{equals}{}:{}", self.key, self.value, self.effect)
    }
}

/// A set of equal machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolPlan {
    /// Its name.
    pub name: PoolName,
    /// What its machines do.
    pub roles: BTreeSet<Role>,
    /// How many machines, unless the spec says otherwise.
    pub count: u16,
    /// How large they are.
    pub size: Size,
    /// Fault domains to place them in; empty means all that the infrastructure has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Labels of their Kubernetes nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints of their Kubernetes nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
}

impl PoolPlan {
    /// Whether its machines run pods, and so are Kubernetes nodes.
    #[must_use]
    pub fn has_nodes(&self) -> bool {
        self.roles.contains(&Role::Worker) || self.roles.contains(&Role::Master)
    }
}

/// A make-up of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Its name.
    pub name: PlanName,
    /// One sentence for the user who chooses.
    pub description: String,
    /// Its pools, in the order in which they are listed and numbered.
    pub pools: Vec<PoolPlan>,
}

/// State disk of a machine: a few images and logs; the smallest that upstream's own defaults do not evict on.
const DISK_BYTES: u64 = 20 * 1024 * 1024 * 1024;

impl Plan {
    /// The plans that every installation offers.
    #[must_use]
    pub fn built_in() -> Vec<Self> {
        let size = Size { cpu_millis: None, memory_bytes: None, disk_bytes: DISK_BYTES };
        let pool = |name: &str, roles: &[Role], count| PoolPlan {
            name: PoolName(name.to_owned()),
            roles: roles.iter().copied().collect(),
            count,
            size,
            zones: Vec::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
        };
        vec![
            Self {
                name: PlanName("tiny".to_owned()),
                description: "All roles on one machine, for trying things out".to_owned(),
                pools: vec![pool("node", &[Role::Etcd, Role::Master, Role::Worker], 1)],
            },
            Self {
                name: PlanName("small".to_owned()),
                description: "One etcd machine, one master, two workers".to_owned(),
                pools: vec![
                    pool("etcd", &[Role::Etcd], 1),
                    pool("master", &[Role::Master], 1),
                    pool("worker", &[Role::Worker], 2),
                ],
            },
            Self {
                name: PlanName("ha".to_owned()),
                description:
                    "Three etcd machines, three masters, three workers: outlives any one machine or zone"
                        .to_owned(),
                pools: vec![
                    pool("etcd", &[Role::Etcd], 3),
                    pool("master", &[Role::Master], 3),
                    pool("worker", &[Role::Worker], 3),
                ],
            },
            Self {
                name: PlanName("ha-stacked".to_owned()),
                description:
                    "Three masters that hold etcd as well, three workers: outlives any one machine or zone"
                        .to_owned(),
                pools: vec![
                    pool("master", &[Role::Etcd, Role::Master], 3),
                    pool("worker", &[Role::Worker], 3),
                ],
            },
        ]
    }

    /// The pool of that name.
    #[must_use]
    pub fn pool(&self, name: &PoolName) -> Option<&PoolPlan> {
        self.pools.iter().find(|pool| pool.name == *name)
    }

    /// The pool whose size `--workers` sets: the one that has no other role.
    #[must_use]
    pub fn worker_pool(&self) -> Option<&PoolPlan> {
        self.pools.iter().find(|pool| pool.roles.len() == 1 && pool.roles.contains(&Role::Worker))
    }
}
