//! What users ask for.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_model::{
    Blueprint, BlueprintDiff, Change, ClusterMaterial, ClusterSpec, DrainSpec, FleetEvent, Hold,
    MachinePhase, Operation, OperationId, OperationKind, OperationState, RepairAction, Severity, SpecError,
};
use keelson_planner::Wanted;
use keelson_protocol::{ClusterName, MachineId};

use crate::effect::Effect;
use crate::row::{ClusterRow, Counter, IdempotencyRow, Row};
use crate::state::{Cluster, CoordinatorCore, Now};

/// A request for a new cluster.
#[derive(Debug, Clone)]
pub struct CreateCluster {
    /// What is wanted.
    pub spec: ClusterSpec,
    /// Fresh keys for it.
    pub material: ClusterMaterial,
    /// Caller's key and hash of the body, so that a repeated request leads to the same operation.
    pub idempotency: Option<(String, String)>,
}

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The spec is impossible.
    #[error("{why}")]
    Invalid {
        /// Why.
        why: String,
    },
    /// The spec breaks a rule.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No such plan.
    #[error("plan {name} does not exist; there are {known}")]
    UnknownPlan {
        /// Asked for.
        name: String,
        /// Names of all plans.
        known: String,
    },
    /// No such release.
    #[error("release {name} does not exist; there are {known}")]
    UnknownRelease {
        /// Asked for.
        name: String,
        /// Names of all releases.
        known: String,
    },
    /// The cluster is there already.
    #[error("cluster {name} exists already ({why})")]
    Exists {
        /// Its name.
        name: ClusterName,
        /// In which state.
        why: String,
    },
    /// A machine of another cluster has a name that the new cluster's machine would get.
    #[error(
        "machine {machine} of cluster {holder} has a name that this cluster needs; choose another cluster name"
    )]
    MachineNameTaken {
        /// The name.
        machine: MachineId,
        /// Who has it.
        holder: ClusterName,
    },
    /// No such cluster.
    #[error("cluster {name} does not exist")]
    NoCluster {
        /// Asked for.
        name: ClusterName,
    },
    /// The cluster is on its way out.
    #[error("cluster {name} is being deleted")]
    BeingDeleted {
        /// Its name.
        name: ClusterName,
    },
    /// No such machine.
    #[error("machine {machine} does not exist")]
    NoMachine {
        /// Asked for.
        machine: MachineId,
    },
    /// Something is being done to the machine already.
    #[error("machine {machine}: {why}")]
    MachineBusy {
        /// Which.
        machine: MachineId,
        /// What.
        why: String,
    },
    /// The repair would change nothing.
    #[error("{action} of {machine} is of no use: {why}")]
    NoUse {
        /// Of which machine.
        machine: MachineId,
        /// What was asked for.
        action: RepairAction,
        /// Why not.
        why: String,
    },
    /// A guard holds the repair back.
    #[error("{action} of {machine} is held back: {hold}")]
    Held {
        /// Of which machine.
        machine: MachineId,
        /// What was asked for.
        action: RepairAction,
        /// Why not.
        hold: Box<Hold>,
    },
    /// No such operation.
    #[error("operation {id} does not exist")]
    NoOperation {
        /// Asked for.
        id: OperationId,
    },
    /// Deletion is switched off for this cluster.
    #[error("cluster {name} is protected against deletion")]
    Protected {
        /// Its name.
        name: ClusterName,
    },
    /// An operation cannot be cancelled (any more).
    #[error("operation {id} cannot be cancelled: {why}")]
    NotCancellable {
        /// The operation.
        id: OperationId,
        /// Why not.
        why: String,
    },
    /// An idempotency key was used for another request.
    #[error("the idempotency key was used for another request, which led to operation {operation}")]
    KeyReused {
        /// Where that led.
        operation: OperationId,
    },
}

/// Whether deletion is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// What changes of a cluster; `None` leaves a part as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterChange {
    /// Whether deletion is refused.
    pub protection: Option<Protection>,
    /// All labels that the cluster then has.
    pub labels: Option<BTreeMap<String, String>>,
    /// How pods leave machines that go.
    pub drain: Option<DrainSpec>,
}

/// An accepted request.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// The operation that follows.
    pub operation: Operation,
    /// What it will change.
    pub preview: Preview,
    /// What to do now, in order.
    pub effects: Vec<Effect>,
}

/// What a request changes, or would change.
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    /// The blueprint that follows.
    pub blueprint: Blueprint,
    /// What differs from the one in force.
    pub diff: BlueprintDiff,
}

impl Preview {
    /// Of a change of what stands. Machines that are on their way out already do not go because of it.
    pub(crate) fn of_change(blueprint: Blueprint, before: &Blueprint) -> Self {
        let mut diff = blueprint.diff(Some(before));
        let leaves = |change: &Change| {
            before.machines.values().any(|machine| machine.leaving && machine.id.as_str() == change.object)
        };
        diff.changes.retain(|change| change.effect != keelson_model::Effect::Delete || !leaves(change));
        Self { blueprint, diff }
    }
}

impl CoordinatorCore {
    /// What `create` would do, without doing it.
    ///
    /// # Errors
    /// As [`Self::create_cluster`].
    pub fn preview_create(&self, spec: &ClusterSpec) -> Result<Preview, CommandError> {
        if let Some(cluster) = self.clusters.get(&spec.name) {
            self.check_retry(cluster, spec)?;
            let diff = cluster.row.blueprint.diff(Some(&cluster.row.blueprint));
            return Ok(Preview { blueprint: cluster.row.blueprint.clone(), diff });
        }
        let known = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let plan = self.plan(&spec.plan).ok_or_else(|| self.unknown_plan(spec))?;
        spec.check(plan, self.settings.place.network)?;
        if !self.settings.releases.releases.contains_key(&spec.release) {
            let names = self.settings.releases.releases.keys().map(ToString::to_string).collect();
            return Err(CommandError::UnknownRelease { name: spec.release.to_string(), known: known(names) });
        }
        let planned = self.plan_cluster(spec, Wanted::Present, None);
        let blueprint = planned.map_err(|why| CommandError::Invalid { why })?.blueprint;
        for machine in blueprint.machines.keys() {
            if let Some(holder) = self.machines.get(machine) {
                let holder = holder.row.cluster.clone();
                return Err(CommandError::MachineNameTaken { machine: machine.clone(), holder });
            }
        }
        let diff = blueprint.diff(None);
        Ok(Preview { blueprint, diff })
    }

    pub(crate) fn unknown_plan(&self, spec: &ClusterSpec) -> CommandError {
        CommandError::UnknownPlan { name: spec.plan.to_string(), known: self.plan_names() }
    }

    /// A cluster can be asked for again when it is the same and did not come to be.
    fn check_retry(&self, cluster: &Cluster, spec: &ClusterSpec) -> Result<(), CommandError> {
        let exists = |why: &str| CommandError::Exists { name: spec.name.clone(), why: why.to_owned() };
        if !cluster.row.wanted {
            return Err(exists("it is being deleted; wait for that and try again"));
        }
        if cluster.row.spec != *spec {
            return Err(exists("with another spec; delete it first, or choose another name"));
        }
        let failed =
            self.machines_of(&spec.name).any(|m| matches!(m.row.phase, MachinePhase::Refused { .. }));
        if failed { Ok(()) } else { Err(exists("with the same spec; see `keelson cluster show`")) }
    }

    /// Accepts a request for a new cluster, or for another try at one that a provider refused.
    ///
    /// # Errors
    /// [`CommandError`] says what is wrong with the request.
    pub fn create_cluster(&mut self, now: Now, request: CreateCluster) -> Result<Accepted, CommandError> {
        if let Some(earlier) = self.earlier(&request)? {
            let spec = &request.spec;
            let cluster = self.clusters.get(&spec.name).map(|cluster| cluster.row.blueprint.clone());
            let blueprint = match cluster {
                Some(blueprint) => blueprint,
                None => self.preview_create(spec)?.blueprint,
            };
            let diff = blueprint.diff(None);
            return Ok(Accepted {
                operation: earlier,
                preview: Preview { blueprint, diff },
                effects: Vec::new(),
            });
        }
        let preview = self.preview_create(&request.spec)?;
        let name = request.spec.name.clone();
        if self.clusters.contains_key(&name) {
            self.retry_refused(&name);
        } else {
            self.add_cluster(now, request.spec, request.material, preview.blueprint.clone());
        }
        let operation = self.begin(now, OperationKind::CreateCluster, name, None, request.idempotency);
        self.touched.insert(operation.cluster.clone());
        self.reconcile(now);
        Ok(Accepted { operation, preview, effects: self.take_effects() })
    }

    fn earlier(&self, request: &CreateCluster) -> Result<Option<Operation>, CommandError> {
        let Some((key, body_hash)) = &request.idempotency else { return Ok(None) };
        let Some(row) = self.idempotency.get(key) else { return Ok(None) };
        if row.body_hash != *body_hash {
            return Err(CommandError::KeyReused { operation: row.operation.clone() });
        }
        Ok(self.operations.get(&row.operation).cloned())
    }

    fn add_cluster(&mut self, now: Now, spec: ClusterSpec, material: ClusterMaterial, blueprint: Blueprint) {
        let name = spec.name.clone();
        let row = ClusterRow {
            spec,
            wanted: true,
            blueprint,
            created: now.wall,
            first_ready: None,
            first_answer: None,
            conditions: Vec::new(),
            repair_paused: None,
        };
        self.rows.push(Row::Cluster(Box::new(row.clone())));
        self.rows.push(Row::Material(name.clone(), Box::new(material.clone())));
        self.clusters.insert(name.clone(), Cluster::new(row, Arc::new(material)));
        self.take_addresses(&name);
        self.reserve_incarnations(&name);
    }

    pub(crate) fn retry_refused(&mut self, name: &ClusterName) {
        let refused: Vec<MachineId> = self
            .machines_of(name)
            .filter(|machine| matches!(machine.row.phase, MachinePhase::Refused { .. }))
            .map(|machine| machine.row.id.clone())
            .collect();
        for id in refused {
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.row.phase = MachinePhase::Planned;
                machine.attempts = 0;
                machine.after = None;
            }
            self.save_machine(&id);
        }
    }

    /// Accepts a request to remove a cluster. Asking again leads to the operation that is under way.
    ///
    /// # Errors
    /// [`CommandError::NoCluster`] or [`CommandError::Protected`].
    pub fn delete_cluster(&mut self, now: Now, name: &ClusterName) -> Result<Accepted, CommandError> {
        let preview = self.preview_delete(name)?;
        let running = self.running(name, OperationKind::DeleteCluster).cloned();
        if let Some(operation) = running {
            return Ok(Accepted { operation, preview, effects: Vec::new() });
        }
        self.end_running(now, name, "the cluster is being deleted");
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.row.wanted = false;
            cluster.row.blueprint = preview.blueprint.clone();
            let row = Row::Cluster(Box::new(cluster.row.clone()));
            self.rows.push(row);
        }
        let operation = self.begin(now, OperationKind::DeleteCluster, name.clone(), None, None);
        self.touched.insert(operation.cluster.clone());
        self.reconcile(now);
        Ok(Accepted { operation, preview, effects: self.take_effects() })
    }

    /// What `delete` would do, without doing it.
    ///
    /// # Errors
    /// As [`Self::delete_cluster`].
    pub fn preview_delete(&self, name: &ClusterName) -> Result<Preview, CommandError> {
        let cluster =
            self.clusters.get(name).ok_or_else(|| CommandError::NoCluster { name: name.clone() })?;
        let row = &cluster.row;
        if row.wanted && row.spec.deletion_protection {
            return Err(CommandError::Protected { name: name.clone() });
        }
        let planned = self.plan_cluster(&row.spec, Wanted::Absent, Some(&row.blueprint));
        let blueprint = planned.map_err(|why| CommandError::Invalid { why })?.blueprint;
        let diff = blueprint.diff(Some(&row.blueprint));
        Ok(Preview { blueprint, diff })
    }

    /// Changes what can be changed of a cluster without planning it anew, in one row. Blueprints hold none of it, so no
    /// machine hears of it.
    ///
    /// # Errors
    /// [`CommandError::NoCluster`], or [`CommandError::Spec`] when a label or a time is not valid; nothing is changed
    /// then.
    pub fn update_cluster(
        &mut self,
        name: &ClusterName,
        change: ClusterChange,
    ) -> Result<Vec<Effect>, CommandError> {
        let ClusterChange { protection, labels, drain } = change;
        let cluster =
            self.clusters.get_mut(name).ok_or_else(|| CommandError::NoCluster { name: name.clone() })?;
        let mut spec = cluster.row.spec.clone();
        if let Some(protection) = protection {
            spec.deletion_protection = protection == Protection::On;
        }
        if let Some(labels) = labels {
            spec.labels = labels;
        }
        spec.drain = drain.unwrap_or(spec.drain);
        spec.check_labels()?;
        spec.check_drain()?;
        cluster.row.spec = spec;
        let row = Row::Cluster(Box::new(cluster.row.clone()));
        self.rows.push(row);
        Ok(self.take_effects())
    }

    /// Writes down who was given access to what: the audit trail. The event gets its id here, and must hold no secret.
    /// Access is given only after the effects were carried out, so none can be had without its event.
    pub fn audit(&mut self, event: FleetEvent) -> Vec<Effect> {
        self.note(event);
        self.take_effects()
    }

    /// Cancels an operation at its next safe point.
    ///
    /// # Errors
    /// [`CommandError::NoOperation`], [`CommandError::NotCancellable`] or [`CommandError::Protected`]; nothing is changed
    /// then.
    pub fn cancel_operation(
        &mut self,
        now: Now,
        id: &OperationId,
    ) -> Result<(Operation, Vec<Effect>), CommandError> {
        let operation =
            self.operations.get(id).ok_or_else(|| CommandError::NoOperation { id: id.clone() })?;
        let refuse = |why: &str| CommandError::NotCancellable { id: id.clone(), why: why.to_owned() };
        if operation.is_done() {
            return Err(refuse("it has ended"));
        }
        let name = operation.cluster.clone();
        match operation.kind {
            OperationKind::CreateCluster => {
                let row = self.clusters.get(&name).map(|cluster| &cluster.row);
                if row.is_some_and(|row| row.was_in_use()) {
                    return Err(refuse(
                        "its API server has answered, and somebody may use it; to remove it, delete the cluster",
                    ));
                }
            }
            OperationKind::DeleteCluster => {
                return Err(refuse("machines that were removed do not come back; create the cluster again"));
            }
            OperationKind::ScaleCluster => {
                return Err(refuse("scale the pool to the size that it shall have instead"));
            }
        }
        // A create that is cancelled leaves nothing behind: what was made so far is removed.
        self.preview_delete(&name)?;
        let left = "what was made so far is being removed".to_owned();
        let cancelled =
            Operation { state: OperationState::Cancelled { at: now.wall, left }, ..operation.clone() };
        // Both are written down at once.
        self.save_operation(cancelled.clone());
        Ok((cancelled, self.delete_cluster(now, &name)?.effects))
    }

    pub(crate) fn begin(
        &mut self,
        now: Now,
        kind: OperationKind,
        cluster: ClusterName,
        detail: Option<String>,
        idempotency: Option<(String, String)>,
    ) -> Operation {
        let id = OperationId(format!("op-{}", self.take_number(Counter::Operation)));
        let state = OperationState::Running;
        let operation =
            Operation { id: id.clone(), kind, cluster: cluster.clone(), detail, created: now.wall, state };
        self.save_operation(operation.clone());
        if let Some((key, body_hash)) = idempotency {
            let row = IdempotencyRow { key: key.clone(), body_hash, operation: id, at: now.wall };
            self.idempotency.insert(key, row.clone());
            self.rows.push(Row::Idempotency(row));
        }
        let event = self.event(now, Severity::Info, "OperationStarted");
        self.note(FleetEvent {
            cluster: Some(cluster),
            cause: "a user asked for it".to_owned(),
            outcome: format!("{}: operation {}", operation.what(), operation.id),
            ..event
        });
        operation
    }

    pub(crate) fn save_operation(&mut self, operation: Operation) {
        self.rows.push(Row::Operation(Box::new(operation.clone())));
        self.operations.insert(operation.id.clone(), operation);
    }

    pub(crate) fn running(&self, name: &ClusterName, kind: OperationKind) -> Option<&Operation> {
        self.open_operations(name).find(move |operation| operation.kind == kind)
    }

    /// Operations of a cluster that are not done.
    pub(crate) fn open_operations(&self, name: &ClusterName) -> impl Iterator<Item = &Operation> {
        self.operations.values().filter(move |operation| operation.cluster == *name && !operation.is_done())
    }

    fn end_running(&mut self, now: Now, name: &ClusterName, why: &str) {
        let open: Vec<Operation> = self.open_operations(name).cloned().collect();
        for operation in open {
            let state = OperationState::Failed { at: now.wall, why: why.to_owned() };
            self.save_operation(Operation { state, ..operation });
        }
    }
}
