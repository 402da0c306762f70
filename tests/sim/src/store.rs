//! The coordinator's disk: rows, written all together or not at all.

use std::collections::BTreeMap;

use keelson_coordinator_core::{ClusterRow, Counter, IdempotencyRow, MachineRow, PauseNote, Row, Saved};
use keelson_model::{BlueprintMachine, ClusterMaterial, Operation, OperationId, Plan, PlanName};
use keelson_protocol::{ClusterName, Incarnation, MachineId};

/// What is on the disk.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) clusters: BTreeMap<ClusterName, ClusterRow>,
    material: BTreeMap<ClusterName, ClusterMaterial>,
    pub(crate) machines: BTreeMap<MachineId, MachineRow>,
    pub(crate) operations: BTreeMap<OperationId, Operation>,
    pub(crate) counters: BTreeMap<Counter, u64>,
    plans: BTreeMap<PlanName, Plan>,
    pauses: BTreeMap<Option<ClusterName>, PauseNote>,
    idempotency: BTreeMap<String, IdempotencyRow>,
}

impl Store {
    pub(crate) fn write(&mut self, row: Row) {
        match row {
            Row::Cluster(row) => drop(self.clusters.insert(row.spec.name.clone(), *row)),
            Row::Material(name, material) => drop(self.material.insert(name, *material)),
            Row::RemoveCluster(name) => {
                self.clusters.remove(&name);
                self.material.remove(&name);
            }
            Row::Machine(row) => drop(self.machines.insert(row.id.clone(), *row)),
            Row::RemoveMachine(id) => drop(self.machines.remove(&id)),
            Row::Operation(row) => drop(self.operations.insert(row.id.clone(), *row)),
            Row::RemoveOperation(id) => drop(self.operations.remove(&id)),
            // Events are only ever added, and nothing of the core reads them.
            Row::Event(_) => {}
            Row::Counter(counter, value) => drop(self.counters.insert(counter, value)),
            Row::Plan(plan) => drop(self.plans.insert(plan.name.clone(), *plan)),
            Row::RemovePlan(name) => drop(self.plans.remove(&name)),
            Row::Pause(scope, Some(note)) => drop(self.pauses.insert(scope, note)),
            Row::Pause(scope, None) => drop(self.pauses.remove(&scope)),
            Row::Idempotency(row) => drop(self.idempotency.insert(row.key.clone(), row)),
            Row::RemoveIdempotency(key) => drop(self.idempotency.remove(&key)),
        }
    }

    /// All of it, for a coordinator that starts.
    pub(crate) fn saved(&self) -> Saved {
        Saved {
            clusters: self.clusters.values().cloned().collect(),
            material: self.material.iter().map(|(name, material)| (name.clone(), material.clone())).collect(),
            machines: self.machines.values().cloned().collect(),
            operations: self.operations.values().cloned().collect(),
            counters: self.counters.iter().map(|(counter, value)| (*counter, *value)).collect(),
            plans: self.plans.values().cloned().collect(),
            pauses: self.pauses.iter().map(|(scope, note)| (scope.clone(), note.clone())).collect(),
            idempotency: self.idempotency.values().cloned().collect(),
        }
    }

    /// What a blueprint says of a machine, when one names it with this incarnation.
    pub(crate) fn planned(&self, id: &MachineId, incarnation: Incarnation) -> Option<&BlueprintMachine> {
        // Names of machines begin with the names of their clusters, which may hold the same separator.
        let named = self.clusters.values().filter(|row| id.as_str().starts_with(row.spec.name.as_str()));
        let mut machines = named.filter_map(|row| row.blueprint.machines.get(id));
        machines.find(|machine| machine.incarnation == incarnation)
    }
}
