//! A complete plan of one cluster, and what differs between two.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use keelson_protocol::{ClusterName, Generation, Incarnation, MachineId, ReleaseName};
use serde::{Deserialize, Serialize};

use crate::plan::{PoolName, Role, Size, Taint};
use crate::spec::ExposeSpec;

/// Everything that shall be, so complete that whoever carries it out chooses nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blueprint {
    /// The cluster.
    pub cluster: ClusterName,
    /// Grows with each blueprint of the cluster.
    pub generation: Generation,
    /// The blueprint that this one follows.
    pub parent: Option<Generation>,
    /// Which rendering of machines' configs it was made for; a newer coordinator renders anew, as a new generation.
    pub rendering: u32,
    /// The release that it runs.
    pub release: ReleaseName,
    /// Its networks.
    pub network: ClusterNetwork,
    /// Its machines.
    pub machines: BTreeMap<MachineId, BlueprintMachine>,
    /// The number that the next machine of each pool gets; numbers are never used twice.
    pub next_number: BTreeMap<PoolName, u32>,
    /// NodePort services that users reach from outside.
    pub expose: Vec<ExposeSpec>,
}

/// The networks of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetwork {
    /// Addresses of pods.
    pub pods: Ipv4Net,
    /// Addresses of Services.
    pub services: Ipv4Net,
    /// Domain of Services' names.
    pub domain: String,
}

impl ClusterNetwork {
    /// Address of the `kubernetes` Service: the first of the network.
    #[must_use]
    pub fn api_service(&self) -> Ipv4Addr {
        nth(self.services, 1)
    }

    /// Address of the DNS Service: the tenth of the network, as kubeadm has it.
    #[must_use]
    pub fn dns_service(&self) -> Ipv4Addr {
        nth(self.services, 10)
    }
}

fn nth(network: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()) + n)
}

/// One machine of a blueprint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlueprintMachine {
    /// Its id.
    pub id: MachineId,
    /// Which machine of that id.
    pub incarnation: Incarnation,
    /// Its pool.
    pub pool: PoolName,
    /// What it does.
    pub roles: BTreeSet<Role>,
    /// Its fault domain.
    pub zone: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Addresses of its pods; `None` on machines that run none.
    pub pods: Option<Ipv4Net>,
    /// Its node image.
    pub image: String,
    /// Its size.
    pub size: Size,
    /// Labels of its Kubernetes node, beside those that every node has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints of its Kubernetes node, beside that of masters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// Its seat in the etcd cluster; `None` on machines without that role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<EtcdSeat>,
    /// Whether it is on its way out: nothing new is given to it, and it is removed once nothing depends on it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub leaving: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// How a machine's etcd member came to be. Written once, when the machine is planned: a member compares it with the
/// cluster at its first start only, so it never changes while others come and go, and no member restarts for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdSeat {
    /// Whether it founds the etcd cluster or joins it.
    pub begins: SeatBegins,
    /// All members at its first start, itself included, with their addresses.
    pub members: BTreeMap<MachineId, Ipv4Addr>,
}

/// How an etcd member starts for the first time (etcd's `initial-cluster-state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SeatBegins {
    /// It founds the etcd cluster together with the others that are named.
    Founding,
    /// It joins a cluster that stands, as a learner first.
    Joining,
}

impl Blueprint {
    /// Machines with `role`, in order of their ids.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &BlueprintMachine> {
        self.machines.values().filter(move |machine| machine.roles.contains(&role))
    }

    /// Machines with `role` that stay, in order of their ids.
    pub fn staying(&self, role: Role) -> impl Iterator<Item = &BlueprintMachine> {
        self.with_role(role).filter(|machine| !machine.leaving)
    }

    /// What would change from `parent` to this one.
    #[must_use]
    pub fn diff(&self, parent: Option<&Self>) -> BlueprintDiff {
        let none = BTreeMap::new();
        let before = parent.map_or(&none, |parent| &parent.machines);
        let mut changes = Vec::new();
        for (id, machine) in &self.machines {
            match before.get(id) {
                None => changes.push(Change::new(Effect::Create, id, machine.describe())),
                Some(old) if old == machine => {}
                Some(old) if old.incarnation != machine.incarnation => {
                    changes.push(Change::new(Effect::Replace, id, machine.describe()));
                }
                Some(old) if machine.leaving && !old.leaving => {
                    changes.push(Change::new(Effect::Delete, id, machine.describe()));
                }
                Some(_) => changes.push(Change::new(Effect::Update, id, machine.describe())),
            }
        }
        for (id, old) in before {
            if !self.machines.contains_key(id) {
                changes.push(Change::new(Effect::Delete, id, old.describe()));
            }
        }
        changes.sort_by(|a, b| b.effect.cmp(&a.effect).then_with(|| a.object.cmp(&b.object)));
        BlueprintDiff { from: parent.map(|parent| parent.generation), to: self.generation, changes }
    }
}

impl BlueprintMachine {
    /// Whether it runs pods, and so is a Kubernetes node.
    #[must_use]
    pub fn is_node(&self) -> bool {
        self.pods.is_some()
    }

    /// Whether it runs pods and is nothing else.
    #[must_use]
    pub fn only_runs_pods(&self) -> bool {
        self.roles.len() == 1 && self.roles.contains(&Role::Worker)
    }

    fn describe(&self) -> String {
        let roles: Vec<String> = self.roles.iter().map(ToString::to_string).collect();
        format!("{} in {} at {}", roles.join("+"), self.zone, self.address)
    }
}

/// What a change does to an object, from least to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// It is made.
    Create,
    /// It gets another config; what runs on it goes on.
    Update,
    /// It is removed and made anew.
    Replace,
    /// It is removed with its disk.
    Delete,
}

impl Effect {
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

/// One line of a diff.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What happens to it.
    pub effect: Effect,
    /// To what.
    pub object: String,
    /// What it is.
    pub detail: String,
}

impl Change {
    fn new(effect: Effect, id: &MachineId, detail: String) -> Self {
        Self { effect, object: id.to_string(), detail }
    }
}

/// What differs between two blueprints, worst effect first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlueprintDiff {
    /// Generation before; `None` for a new cluster.
    pub from: Option<Generation>,
    /// Generation after.
    pub to: Generation,
    /// The changes.
    pub changes: Vec<Change>,
}

impl fmt::Display for BlueprintDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.changes.is_empty() {
            return writeln!(f, "  nothing changes");
        }
        for change in &self.changes {
            writeln!(f, "  {:<3} {:<24} {}", change.effect.sign(), change.object, change.detail)?;
        }
        Ok(())
    }
}
