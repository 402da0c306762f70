//! How far a cluster is on its way to its plan, as far as the order of the next steps depends on it.

use std::collections::{BTreeMap, BTreeSet};

use keelson_protocol::MachineId;
use serde::{Deserialize, Serialize};

use crate::blueprint::Blueprint;
use crate::plan::Role;

/// What a machine is in the etcd cluster, by the word of the etcd cluster itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// It is no member.
    Absent,
    /// It was added and does not vote yet.
    Learner,
    /// It votes.
    Voter,
}

/// What the planner has to know of the world to choose the next step. Whatever is not in here is not known, and a step
/// that depends on it waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Standing of machines in the etcd cluster.
    pub etcd: BTreeMap<MachineId, Standing>,
    /// Machines that work as they should.
    pub ready: BTreeSet<MachineId>,
    /// Machines that do not, at this moment: when a pool shrinks they go first.
    pub unwell: BTreeSet<MachineId>,
    /// Leaving machines that nothing depends on any more.
    pub released: BTreeSet<MachineId>,
    /// Machines that are to be made anew, with an empty disk.
    pub renew: BTreeSet<MachineId>,
    /// Of these, the ones that a person has given up together with the state that they hold.
    pub forced: BTreeSet<MachineId>,
}

impl Progress {
    /// Of a world where everything that `blueprint` names works and votes, and where whatever leaves has been let go.
    #[must_use]
    pub fn all_well(blueprint: &Blueprint) -> Self {
        let ids = || blueprint.machines.keys().cloned();
        Self {
            etcd: blueprint.with_role(Role::Etcd).map(|m| (m.id.clone(), Standing::Voter)).collect(),
            ready: ids().collect(),
            unwell: BTreeSet::new(),
            released: ids().collect(),
            renew: BTreeSet::new(),
            forced: BTreeSet::new(),
        }
    }
}
