//! From a planned machine to one that exists, and back.

use keelson_model::{BlueprintMachine, Hold, MachinePhase, RepairAction, Role, Severity};
use keelson_protocol::{ClusterName, Incarnation, MachineId};

use crate::effect::ProviderCall;
use crate::leave::Parting;
use crate::limits::{ACTS_PER_HOUR_MAX, BOOT_GRACE, EVACUATE_MAX, REBUILD_TRIES_MAX, RENEW_UNKNOWN_MAX};
use crate::metrics::RepairOutcome;
use crate::nodes::KubeFor;
use crate::repair::{begins_too_long, is_under_way, needs_fence, times, too_long};
use crate::row::{MachineRow, Row};
use crate::state::{CallFor, CoordinatorCore, Machine, Now};

/// The next step towards power for a machine that is off.
enum PowerStep {
    /// Take its power away for certain first.
    Fence,
    /// Ask for it anew: it has never spoken, so nothing of it is lost.
    Create,
    PowerOn,
    /// Make it anew around its disk, which also gives it power.
    Rebuild,
    /// Ask once more for the power it may have been given.
    AskAgain,
}

/// Whether a machine was asked for its power, and may still get it soon.
fn gets_power(machine: &Machine) -> bool {
    machine.row.powering && machine.attempts < REBUILD_TRIES_MAX
}

impl CoordinatorCore {
    /// Asks the provider for whatever separates machines from their blueprints.
    pub(crate) fn reconcile_machines(&mut self, now: Now, name: &ClusterName) {
        self.add_planned(now, name);
        let ids: Vec<MachineId> = self.machines_of(name).map(|machine| machine.row.id.clone()).collect();
        for id in ids {
            self.reconcile_machine(now, &id);
        }
    }

    fn add_planned(&mut self, now: Now, name: &ClusterName) {
        let planned =
            self.clusters.get(name).into_iter().flat_map(|cluster| cluster.row.blueprint.machines.values());
        let missing: Vec<MachineRow> = planned
            .filter(|machine| !self.machines.contains_key(&machine.id))
            .map(|machine| MachineRow::planned(machine, name.clone(), now.wall))
            .collect();
        for row in missing {
            self.rows.push(Row::Machine(Box::new(row.clone())));
            self.add_machine(row);
        }
    }

    fn reconcile_machine(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get(id) else { return };
        let due = machine.call.is_none() && machine.after.is_none_or(|after| after <= now.mono);
        if !due {
            return;
        }
        let cluster = machine.row.cluster.clone();
        let planned =
            self.planned(&cluster, id).filter(|planned| planned.incarnation == machine.row.incarnation);
        let planned = planned.cloned();
        match (&machine.row.phase, planned) {
            // It is let go with the next plan, once nothing is left of the machine before it.
            (_, Some(planned)) if planned.leaving && machine.is_unmade() => {
                if self.has_node(&cluster, id) && machine.row.fenced.is_none() {
                    self.call_fence(id, cluster, planned.incarnation);
                }
            }
            (MachinePhase::Refused { .. }, Some(planned)) if !needs_fence(machine) => {
                self.call_create(now, planned, cluster);
            }
            (MachinePhase::Booting { .. } | MachinePhase::Enrolled { .. }, Some(planned))
                if machine.row.fenced.is_none() && self.is_done(now, &cluster, &planned) =>
            {
                if !self.is_exposing(&cluster) {
                    self.call_fence(id, cluster, planned.incarnation);
                }
            }
            // One that is missing is looked for again, and then made anew: asked for as it is it would begin with an empty
            // disk.
            (
                MachinePhase::Refused { .. }
                | MachinePhase::Booting { .. }
                | MachinePhase::Enrolled { .. }
                | MachinePhase::Missing { .. },
                Some(_),
            ) => self.reconcile_acting(now, id),
            // It goes anyway, and its pods can be moved at once when it has no power for certain.
            (MachinePhase::Off { .. }, Some(planned))
                if planned.leaving && !gets_power(machine) && !self.votes_are_short(now, &cluster, id) =>
            {
                if machine.row.fenced.is_none() && self.knows_power(now, machine) {
                    self.call_fence(id, cluster, planned.incarnation);
                }
            }
            (MachinePhase::Off { .. }, Some(planned)) => self.switch_on(now, planned, cluster),
            (
                MachinePhase::Planned
                | MachinePhase::Creating { .. }
                | MachinePhase::Retrying { .. }
                | MachinePhase::Deleting { .. },
                Some(planned),
            ) => self.call_create(now, planned, cluster),
            // A cluster outlives its machines. Where nothing is known of it, nothing is known of them.
            (_, None) if !self.clusters.contains_key(&cluster) => {}
            // Never asked for: there is nothing to remove, and nothing to wait for.
            (MachinePhase::Planned, None) => self.forget_machine(id),
            (_, None) => self.take_away(now, id, cluster),
        }
    }

    /// Whether the quorum of its etcd lacks the vote of a machine that leaves: until it is taken out it has to work. Where
    /// etcd does not say who its members are, that may be why.
    fn votes_are_short(&self, now: Now, name: &ClusterName, id: &MachineId) -> bool {
        let member = self.planned(name, id).is_some_and(|planned| planned.roles.contains(&Role::Etcd));
        let cluster = self.clusters.get(name).filter(|cluster| member && cluster.row.wanted);
        let fenced = self.machines.get(id).and_then(|machine| machine.row.fenced);
        let long = fenced.is_some_and(|since| now.wall.since(since) >= RENEW_UNKNOWN_MAX);
        cluster.filter(|_| self.warm(now)).is_some_and(|cluster| {
            (cluster.etcd.members.is_some() || long) && self.quorum(cluster).outlives_loss(id).is_err()
        })
    }

    /// Whether a machine that is written down as off was seen so by this process, or everybody who lives has had time to come
    /// back: it may have been switched on while nobody watched.
    fn knows_power(&self, now: Now, machine: &Machine) -> bool {
        machine.off_since.is_some() || self.warm(now)
    }

    /// Gives a machine its power, once its pods have been given up or that has taken too long.
    fn switch_on(&mut self, now: Now, planned: BlueprintMachine, cluster: ClusterName) {
        let (id, incarnation) = (planned.id.clone(), planned.incarnation);
        if self.machines.get(&id).is_some_and(|machine| begins_too_long(now, machine)) {
            return self.call_off(now, &id, &too_long());
        }
        match self.power_step(now, &planned, &cluster) {
            None => {}
            Some(PowerStep::Fence) => self.call_fence(&id, cluster, incarnation),
            Some(PowerStep::Create) => {
                self.call_create(now, planned, cluster);
                // Asked for in vain it is one time.
                let first = |machine: &Machine| machine.call.is_some() && machine.attempts == 0;
                if self.machines.get(&id).is_some_and(first) {
                    self.count_power_on(now, &id);
                    self.save_machine(&id);
                }
            }
            Some(PowerStep::AskAgain) => _ = self.call_power_on(now, &id, cluster, incarnation),
            // As long as there is no room for the call it stays as it is, fenced.
            Some(PowerStep::PowerOn) => {
                let has_room = self.call_power_on(now, &id, cluster, incarnation);
                if has_room {
                    self.count_power_on(now, &id);
                    self.begin_power(&id);
                    self.save_machine(&id);
                }
            }
            Some(PowerStep::Rebuild) => {
                let has_room = self.call_rebuild(now, planned, cluster);
                if has_room {
                    self.begin_power(&id);
                    self.save_machine(&id);
                }
            }
        }
    }

    /// What gives its power to a machine that is off, or nothing while that has to wait.
    fn power_step(&self, now: Now, planned: &BlueprintMachine, cluster: &ClusterName) -> Option<PowerStep> {
        let machine = self.machines.get(&planned.id)?;
        // With power its kubelet would begin again what is being given up, and register what is being removed.
        if machine.kube_call.is_some() {
            return None;
        }
        let row = &machine.row;
        let rebuilds = row.acting == Some(RepairAction::Rebuild);
        if row.powering {
            // It may have its power, and work. Asked for once more, power changes nothing; to be made anew it needs a fence.
            return match row.renew || rebuilds {
                true => self.warm(now).then_some(PowerStep::Fence),
                false => Some(PowerStep::AskAgain),
            };
        }
        let held = self.power_held(now, machine);
        if matches!(held, Some(Hold::Paused { .. })) {
            return None;
        }
        let pending = self.evacuation_pending(now, planned, cluster);
        // The list that has it as off may be old: only a fence is a proof, for pods and for a new machine around its disk.
        if row.fenced.is_none() && (pending || needs_fence(machine)) {
            return self.knows_power(now, machine).then_some(PowerStep::Fence);
        }
        // One to be renewed is made anew in a moment. Pods do not wait for what holds the power.
        if pending || row.renew || held.is_some() {
            return None;
        }
        let unknown = row.enrolled_key.is_none() && row.fenced.is_none();
        Some(match rebuilds {
            _ if unknown => PowerStep::Create,
            true => PowerStep::Rebuild,
            false => PowerStep::PowerOn,
        })
    }

    /// Takes down that a machine is switched on which was found without power.
    fn count_power_on(&mut self, now: Now, id: &MachineId) {
        // One that the quorum lacks is switched on without end, and its repairs have to be remembered as well.
        let room = |machine: &Machine| times(machine, RepairAction::PowerOn) < ACTS_PER_HOUR_MAX;
        if self.machines.get(id).is_some_and(|machine| !is_under_way(machine) && room(machine)) {
            self.remember(now, id, RepairAction::PowerOn);
        }
    }

    /// From here on the machine may have power, whatever becomes of the answer. What was done to let it go begins anew: its
    /// kubelet will register its node again.
    fn begin_power(&mut self, id: &MachineId) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        (machine.row.fenced, machine.row.powering) = (None, true);
        (machine.parting, machine.row.leaving_since) = (Parting::default(), None);
    }

    fn call_rebuild(&mut self, now: Now, planned: BlueprintMachine, cluster: ClusterName) -> bool {
        let id = planned.id.clone();
        let token = self.token(&id, planned.incarnation);
        self.call_for_power(now, &id, ProviderCall::Rebuild { machine: Box::new(planned), cluster, token })
    }

    fn call_power_on(
        &mut self,
        now: Now,
        id: &MachineId,
        cluster: ClusterName,
        incarnation: Incarnation,
    ) -> bool {
        self.call_for_power(now, id, ProviderCall::PowerOn { machine: id.clone(), cluster, incarnation })
    }

    /// Whether there was room for the call.
    fn call_for_power(&mut self, now: Now, id: &MachineId, call: ProviderCall) -> bool {
        let Some(call) = self.call(CallFor::PowerOn(id.clone()), call) else { return false };
        let Some(machine) = self.machines.get_mut(id) else { return false };
        (machine.call, machine.power_asked) = (Some(call), Some(now.mono));
        true
    }

    /// Whether pods of a machine without power have still to be given up, so that they run elsewhere at once.
    pub(crate) fn evacuation_pending(
        &self,
        now: Now,
        planned: &BlueprintMachine,
        name: &ClusterName,
    ) -> bool {
        let (Some(machine), Some(cluster)) = (self.machines.get(&planned.id), self.clusters.get(name)) else {
            return false;
        };
        let runs_pods = planned.roles.contains(&Role::Worker) && machine.row.enrolled_key.is_some();
        let others = cluster.row.blueprint.staying(Role::Worker).count() > 1;
        let stands = cluster.row.wanted && cluster.row.was_in_use();
        // One that was asked for may still force pods away: they must not begin again under it.
        let asked = machine.kube_call.and_then(|call| self.kube_calls.get(&call));
        let under_way = asked.is_some_and(|(_, purpose)| {
            matches!(purpose, KubeFor::Node(keelson_model::kubernetes::KubeCall::Evacuate { .. }))
        });
        let in_time = machine.off_since.is_some_and(|since| now.mono.since(since) < EVACUATE_MAX);
        // As long as it gets no power, there is time.
        let held =
            || matches!(self.power_held(now, machine), Some(hold) if !matches!(hold, Hold::Paused { .. }));
        runs_pods && others && stands && !machine.evacuated && (in_time || under_way || held())
    }

    /// Removes a machine that no blueprint names. One that was made anew may still run: its power is taken away first, and
    /// Kubernetes is told, so that nothing of it is there twice.
    fn take_away(&mut self, now: Now, id: &MachineId, cluster: ClusterName) {
        let wanted = self.clusters.get(&cluster).is_some_and(|cluster| cluster.row.wanted);
        let renewed = wanted && self.planned(&cluster, id).is_some();
        let Some(machine) = self.machines.get(id) else { return };
        let powerless =
            machine.row.fenced.is_some() || matches!(machine.row.phase, MachinePhase::Deleting { .. });
        if renewed && !powerless {
            let incarnation = machine.row.incarnation;
            return self.call_fence(id, cluster, incarnation);
        }
        if renewed
            && let Some(planned) = self.planned(&cluster, id).cloned()
            && self.evacuation_pending(now, &planned, &cluster)
        {
            return;
        }
        self.call_delete(now, id, cluster);
    }

    pub(crate) fn planned(&self, cluster: &ClusterName, id: &MachineId) -> Option<&BlueprintMachine> {
        self.clusters.get(cluster)?.row.blueprint.machines.get(id)
    }

    fn call_create(&mut self, now: Now, planned: BlueprintMachine, cluster: ClusterName) {
        let id = planned.id.clone();
        let token = self.token(&id, planned.incarnation);
        let call = ProviderCall::Create { machine: Box::new(planned), cluster, token };
        let Some(call) = self.call(CallFor::Create(id.clone()), call) else { return };
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.call = Some(call);
        // A machine that was off keeps that word until it is on: the operator asks why, not what we do about it.
        let keeps = matches!(
            machine.row.phase,
            MachinePhase::Creating { .. }
                | MachinePhase::Off { .. }
                | MachinePhase::Retrying { .. }
                | MachinePhase::Refused { .. }
        );
        if !keeps {
            machine.row.phase = MachinePhase::Creating { since: now.wall };
            machine.row.token_made = now.wall;
            self.save_machine(&id);
        }
    }

    fn call_delete(&mut self, now: Now, id: &MachineId, cluster: ClusterName) {
        let Some(machine) = self.machines.get(id) else { return };
        let incarnation = machine.row.incarnation;
        let call = ProviderCall::Delete { machine: id.clone(), cluster, incarnation };
        let Some(call) = self.call(CallFor::Delete(id.clone()), call) else { return };
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.call = Some(call);
        if !matches!(machine.row.phase, MachinePhase::Deleting { .. }) {
            machine.row.phase = MachinePhase::Deleting { since: now.wall, why: None };
            self.save_machine(id);
        }
    }

    /// The provider has made a machine, or has switched on one that was off.
    pub(crate) fn machine_on(&mut self, now: Now, id: &MachineId, was_off: bool) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.attempts = 0;
        machine.after = None;
        machine.off_since = None;
        machine.on_since = Some(now.mono);
        machine.boots_until = Some(now.mono.plus(BOOT_GRACE));
        machine.row.phase = match machine.row.enrolled_key {
            Some(_) => MachinePhase::Enrolled { since: now.wall },
            None => MachinePhase::Booting { since: now.wall },
        };
        // One that only had no power needs no act for this: its blueprint wants it on.
        let incident = machine.row.incident.as_mut().filter(|incident| was_off && incident.tried.is_none());
        if let Some(incident) = incident {
            incident.tried = Some(RepairAction::PowerOn);
            self.metrics.repair_begun(RepairAction::PowerOn);
        }
        self.acted(now, id);
        self.save_machine(id);
        let (reason, cause) = if was_off {
            ("MachinePoweredOn", "the machine was off, and its blueprint wants it on")
        } else {
            ("MachineCreated", "the blueprint names a machine that did not exist")
        };
        self.note_repair(now, id, Severity::Info, reason, cause, "the provider reports it as running");
    }

    /// The provider has removed a machine. One that is made anew keeps its incident and its record of repairs.
    pub(crate) fn machine_deleted(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get(id) else { return };
        let (cluster, old) = (machine.row.cluster.clone(), machine.row.clone());
        let successor = self.planned(&cluster, id);
        let successor = successor.map(|planned| MachineRow::planned(planned, cluster.clone(), now.wall));
        let cause = if successor.is_some() { "it is made anew" } else { "no blueprint names it" };
        let outcome = "the provider has removed it with its disk";
        self.note_repair(now, id, Severity::Info, "MachineDeleted", cause, outcome);
        if let Some(incident) = old.incident.as_ref().filter(|_| successor.is_none()) {
            self.metrics.ended(incident.verdict.class(), RepairOutcome::Removed);
            let cause = format!("incident {}: {}", incident.number, incident.verdict);
            self.note_repair(now, id, Severity::Info, "FaultEnded", &cause, "its machine was removed");
        }
        self.forget_machine(id);
        if let Some(fresh) = successor {
            let row = MachineRow { incident: old.incident, acts: old.acts, ..fresh };
            self.rows.push(Row::Machine(Box::new(row.clone())));
            self.add_machine(row);
        }
    }

    fn forget_machine(&mut self, id: &MachineId) {
        if let Some(machine) = self.remove_machine(id) {
            self.touched.insert(machine.row.cluster.clone());
            self.free_addresses(&machine.row.cluster);
            self.rows.push(Row::RemoveMachine(id.clone()));
            if let Some(session) = machine.session {
                self.sessions.remove(&session);
                let why = "the machine was removed".to_owned();
                self.effects.push(crate::effect::Effect::Close { session, why });
            }
        }
    }
}
