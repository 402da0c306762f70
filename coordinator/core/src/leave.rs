//! Machines on their way out: what still depends on them is taken away first.

use keelson_model::{BlueprintMachine, Role, Standing};
use keelson_protocol::ClusterName;

use crate::state::CoordinatorCore;

impl CoordinatorCore {
    /// Whether nothing depends on a leaving machine any more.
    pub(crate) fn is_released(&self, name: &ClusterName, machine: &BlueprintMachine) -> bool {
        !machine.roles.contains(&Role::Etcd)
            || self.standings(name).get(&machine.id) == Some(&Standing::Absent)
    }
}
