//! Machines on their way out: what still depends on them is taken away first. Pods are moved, volumes detached, the node
//! and the etcd member removed; then the machine is let go.

use std::collections::BTreeSet;
use std::time::Duration;

use keelson_model::kubernetes::{Cordon, DrainForce, DrainState, KubeAnswer, KubeCall, KubeFailure, PodWait};
use keelson_model::{
    BlueprintMachine, DrainThen, FleetEvent, LeaveStep, MachinePhase, Role, Severity, Standing,
};
use keelson_protocol::{ClusterName, MachineId, MonoTime};

use crate::limits::{DRAINS_AT_ONCE_PERCENT, EVACUATE_LEFT_MAX, FORCED_MAX};
use crate::row::MachineRow;
use crate::state::{Cluster, CoordinatorCore, Machine, Now};

/// How far a leaving machine's node is.
#[derive(Debug, Clone, Default)]
pub struct Parting {
    /// What the last pass of its drain left.
    pub drain: Option<DrainState>,
    /// Why the last call failed.
    pub error: Option<KubeFailure>,
    /// Whether a drain was asked for. Its answer may be lost though it has begun.
    pub(crate) asked: bool,
    /// Whether its pods and volumes are gone.
    drained: bool,
    /// Whether Kubernetes has forgotten it.
    pub(crate) removed: bool,
    /// Kubernetes knew no such node when it was to be drained.
    unknown: bool,
    /// What was told last about what blocks it, so that it is told once.
    told: String,
    /// Pods that were deleted against their disruption budgets, and told.
    forced: BTreeSet<String>,
    /// When this process first saw its drain go on, and how long that had been so by then. Wall clocks jump.
    begun: Option<(MonoTime, Duration)>,
}

impl Parting {
    /// Whether a drain keeps nothing from working any more. A node that Kubernetes knew nothing of may still register while
    /// its machine has power.
    fn is_over(&self, row: &MachineRow) -> bool {
        self.drained && (!self.unknown || row.fenced.is_some())
    }

    /// How long a drain has been going on.
    fn drains_for(&self, now: Now) -> Duration {
        self.begun.map_or(Duration::ZERO, |(seen, before)| before + now.mono.since(seen))
    }
}

impl CoordinatorCore {
    /// Whether nothing depends on a leaving machine any more.
    pub(crate) fn is_released(&self, name: &ClusterName, planned: &BlueprintMachine) -> bool {
        self.leave_step(name, planned).is_none()
    }

    /// What a leaving machine waits for; `None` when it may go.
    pub(crate) fn leave_step(&self, name: &ClusterName, planned: &BlueprintMachine) -> Option<LeaveStep> {
        let machine = self.machines.get(&planned.id)?;
        let unborn = machine.is_unmade() && !self.has_node(name, &planned.id);
        if planned.is_node() && !machine.parting.removed && !unborn {
            if self.keeps_api(name, planned) {
                return Some(LeaveStep::ApiServer);
            }
            let parting = &machine.parting;
            return Some(match (&parting.error, &parting.drain) {
                (Some(failure), _) => LeaveStep::Kubernetes { why: failure.to_string() },
                _ if parting.drained => LeaveStep::Node,
                (None, None) if self.lacks_workers(name, planned) => LeaveStep::Workers,
                (None, None) if let Some(why) = self.kube_silence(name) => LeaveStep::Kubernetes { why },
                (None, None) => LeaveStep::Queued,
                (None, Some(state)) => LeaveStep::Draining { left: state.to_string() },
            });
        }
        // One that was never made may be a member that was added and did not start.
        let standing = self.standings(name).get(&planned.id).copied();
        let member = standing.map_or(!unborn, |standing| standing != Standing::Absent);
        if !planned.roles.contains(&Role::Etcd) || !member {
            return None;
        }
        let in_use = self.members_in_use(name).contains(&planned.id);
        let master = self.outdated_master(name).filter(|_| in_use);
        Some(master.map_or(LeaveStep::EtcdMember, |master| LeaveStep::EtcdClients { master }))
    }

    /// Why nothing is known of a cluster's nodes.
    fn kube_silence(&self, name: &ClusterName) -> Option<String> {
        let kube = &self.clusters.get(name)?.kube;
        kube.error.as_ref().filter(|_| kube.looked.is_none()).map(ToString::to_string)
    }

    /// Whether Kubernetes may know a node of that name: of a machine, or of the one before it.
    pub(crate) fn has_node(&self, name: &ClusterName, id: &MachineId) -> bool {
        self.clusters.get(name).is_some_and(|cluster| {
            cluster.kube.looked.is_none() || cluster.kube.nodes.contains_key(id.as_str())
        })
    }

    /// What is to be asked of Kubernetes next, for a node that leaves.
    pub(crate) fn next_parting_call(
        &self,
        now: Now,
        name: &ClusterName,
        planned: &BlueprintMachine,
    ) -> Option<KubeCall> {
        let (machine, cluster) = (self.machines.get(&planned.id)?, self.clusters.get(name)?);
        let node = planned.id.clone();
        if machine.parting.removed {
            return None;
        }
        if machine.parting.drained {
            // A kubelet that still runs would register its node again.
            return machine.row.fenced.is_some().then_some(KubeCall::DeleteNode { node });
        }
        // A machine without power ends no pod, so that a drain would wait for ever.
        if matches!(machine.row.phase, MachinePhase::Off { .. } | MachinePhase::Missing { .. }) {
            return machine.row.fenced.is_some().then_some(KubeCall::Evacuate { node });
        }
        if !has_begun(cluster, machine)
            && (self.keeps_api(name, planned)
                || self.lacks_workers(name, planned)
                || !self.may_begin_drain(now, name, &planned.id))
        {
            return None;
        }
        let late = self.drain_is_late(now, machine);
        let force = match cluster.row.spec.drain.then {
            DrainThen::Force if late => DrainForce::AfterRefusal,
            DrainThen::Force | DrainThen::Wait => DrainForce::Never,
        };
        Some(KubeCall::Drain { node, force })
    }

    /// A node was seen. One that Kubernetes knew nothing of when it was to be drained has registered since, and may run pods.
    pub(crate) fn node_appeared(&mut self, id: &MachineId) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        if machine.row.fenced.is_none() && std::mem::take(&mut machine.parting.unknown) {
            machine.parting.drained = false;
        }
    }

    /// Whether a machine that leaves has nothing more to do, so that its power may be taken away: its pods are gone, and its
    /// etcd member is taken out.
    pub(crate) fn is_done(&self, now: Now, name: &ClusterName, planned: &BlueprintMachine) -> bool {
        let member = planned.roles.contains(&Role::Etcd);
        let out = !member || self.standings(name).get(&planned.id) == Some(&Standing::Absent);
        let machine = self.machines.get(&planned.id);
        let drained =
            machine.is_some_and(|machine| machine.parting.drained || self.drain_has_ended(now, machine));
        planned.leaving && planned.is_node() && drained && out && !self.keeps_api(name, planned)
    }

    /// Whether a master that leaves may be the last one that works: none of those that stay does, or begins anew in a moment
    /// with another config. One that is not heard, because it is cut off or because the coordinator has just started, may serve
    /// its users all the same.
    pub(crate) fn keeps_api(&self, name: &ClusterName, planned: &BlueprintMachine) -> bool {
        let Some(cluster) = self.clusters.get(name).filter(|cluster| cluster.row.wanted) else {
            return false;
        };
        planned.roles.contains(&Role::Master)
            && self.may_serve(planned)
            && !cluster
                .row
                .blueprint
                .staying(Role::Master)
                .any(|other| self.works(other) && (self.is_settled(other) || !self.was_sent_lately(other)))
    }

    /// Whether a machine may serve its users: it is not known to be without power, hung or gone. The verdict on one that is heard
    /// again may be of before.
    pub(crate) fn may_serve(&self, planned: &BlueprintMachine) -> bool {
        self.made(planned).is_some_and(|machine| {
            machine.row.fenced.is_none() && (machine.is_heard() || !machine.verdict.is_dead())
        })
    }

    /// Whether the pods of a worker that leaves would have nowhere to go: most of the workers that stay do not work, or
    /// are still to come.
    fn lacks_workers(&self, name: &ClusterName, planned: &BlueprintMachine) -> bool {
        let Some(cluster) = self.clusters.get(name).filter(|_| planned.roles.contains(&Role::Worker)) else {
            return false;
        };
        let staying = || cluster.row.blueprint.staying(Role::Worker);
        staying().filter(|other| self.works(other)).count() * 2 < staying().count()
    }

    /// Whether the time for a machine's drain is over.
    pub(crate) fn drain_is_late(&self, now: Now, machine: &Machine) -> bool {
        let cluster = self.clusters.get(&machine.row.cluster);
        cluster.is_some_and(|cluster| machine.parting.drains_for(now) >= cluster.row.spec.drain.timeout())
    }

    /// Whether pods that were forced to go, or volumes, have had their time as well: a finalizer that nobody removes, or an
    /// API server that never says yes or no. They are given up when the machine has no power.
    fn drain_has_ended(&self, now: Now, machine: &Machine) -> bool {
        let cluster = self.clusters.get(&machine.row.cluster);
        cluster.is_some_and(|cluster| {
            let drain = cluster.row.spec.drain;
            drain.then == DrainThen::Force && machine.parting.drains_for(now) >= drain.timeout() + FORCED_MAX
        })
    }

    /// A pass of a drain was made. Its time counts from the first one, and outlives the coordinator: those that wait for
    /// the drains of others have theirs before them.
    fn note_drain(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let cluster = self.clusters.get(&machine.row.cluster);
        let timeout = cluster.map(|cluster| cluster.row.spec.drain.timeout()).unwrap_or_default();
        let first = machine.row.leaving_since.is_none();
        let since = *machine.row.leaving_since.get_or_insert(now.wall);
        // While nobody was there to ask, no pod was asked or forced to go: what follows that time begins now.
        machine.parting.begun.get_or_insert((now.mono, now.wall.since(since).min(timeout)));
        if first {
            self.save_machine(id);
        }
    }

    /// Drains go on side by side as long as they, and repairs, leave most of the cluster alone. What an earlier process has
    /// begun is known only once the nodes were looked at.
    fn may_begin_drain(&self, now: Now, name: &ClusterName, id: &MachineId) -> bool {
        let Some(cluster) = self.clusters.get(name).filter(|cluster| cluster.kube.looked.is_some()) else {
            return false;
        };
        let nodes = cluster.row.blueprint.machines.values().filter(|machine| machine.is_node());
        let total = nodes.clone().filter(|planned| self.has_enrolled(planned)).count();
        let out = nodes.filter(|planned| planned.id != *id).filter(|planned| {
            let draining =
                |m: &Machine| has_begun(cluster, m) && !m.parting.is_over(&m.row) || m.kube_call.is_some();
            planned.leaving && self.machines.get(&planned.id).is_some_and(draining)
                || self.is_repaired(now, planned)
        });
        out.count() < (total * DRAINS_AT_ONCE_PERCENT / 100).max(1)
    }

    /// Takes the answer to a call about one node.
    pub(crate) fn node_answered(
        &mut self,
        now: Now,
        name: &ClusterName,
        call: &KubeCall,
        result: Result<KubeAnswer, KubeFailure>,
    ) {
        let Some(id) = crate::nodes::node_of(call).cloned() else { return };
        let leaving = self.planned(name, &id).is_some_and(|planned| planned.leaving);
        if !leaving && let KubeCall::Evacuate { .. } = call {
            return self.evacuated(now, name, &id, result);
        }
        if let (KubeCall::Drain { .. }, Ok(_)) = (call, &result) {
            self.note_drain(now, &id);
        }
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let parting = &mut machine.parting;
        parting.error = result.as_ref().err().cloned();
        match (call, result) {
            (KubeCall::Drain { .. } | KubeCall::Evacuate { .. }, Ok(KubeAnswer::Drained(state))) => {
                // What is left of a machine without power holds nothing any more: a finalizer keeps a pod's name, and no
                // more than that.
                let given_up = matches!(call, KubeCall::Evacuate { .. })
                    && machine.row.fenced.is_some_and(|since| now.wall.since(since) >= EVACUATE_LEFT_MAX);
                parting.drained = state.is_drained() || given_up;
                parting.drain = Some(state.clone());
                if parting.drained {
                    machine.kube_after = None;
                }
                self.tell_drain(now, name, &id, &state);
            }
            // Kubernetes never heard of it, or has forgotten it.
            (KubeCall::Drain { .. } | KubeCall::Evacuate { .. }, Err(KubeFailure::NoNode { .. })) => {
                parting.error = None;
                (parting.drained, parting.unknown) = (true, true);
                machine.kube_after = None;
            }
            // With power again its kubelet registers another one.
            (KubeCall::DeleteNode { .. }, Ok(_)) if machine.row.fenced.is_none() => {}
            (KubeCall::DeleteNode { .. }, Ok(_)) => {
                parting.removed = true;
                self.plan_soon(name);
                self.note_leave(
                    now,
                    name,
                    &id,
                    Severity::Info,
                    "NodeRemoved",
                    "its pods and volumes are gone",
                );
            }
            (KubeCall::SetNode { .. }, Ok(_)) => self.look_at_nodes_soon(name),
            // It is tried again until the time for it is over.
            (KubeCall::Evacuate { .. }, Err(_)) => {}
            _ => {}
        }
    }

    /// The pods of a machine without power were given up, or could not be.
    fn evacuated(
        &mut self,
        now: Now,
        name: &ClusterName,
        id: &MachineId,
        result: Result<KubeAnswer, KubeFailure>,
    ) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let outcome = match result {
            Ok(_) => "they run elsewhere at once",
            Err(KubeFailure::NoNode { .. }) => "kubernetes knows no such node",
            // Tried again in a moment, as long as that makes sense.
            Err(_) => return,
        };
        machine.evacuated = true;
        machine.kube_after = None;
        self.look_at_nodes_soon(name);
        self.note_repair(
            now,
            id,
            Severity::Info,
            "PodsGivenUp",
            "the machine has no power for certain",
            outcome,
        );
    }

    /// Tells how a drain goes on, each thing once.
    fn tell_drain(&mut self, now: Now, name: &ClusterName, id: &MachineId, state: &DrainState) {
        self.tell_forced(now, name, id, state);
        let blocked: Vec<String> = state.blocked().map(ToString::to_string).collect();
        let (severity, reason, cause) = if state.is_drained() {
            (Severity::Info, "NodeDrained", "nothing is left on it".to_owned())
        } else if blocked.is_empty() {
            (Severity::Info, "NodeDraining", "the machine leaves the cluster".to_owned())
        } else {
            (Severity::Warning, "DrainBlocked", blocked.join("; "))
        };
        let Some(machine) = self.machines.get_mut(id) else { return };
        let told = format!("{reason} {cause}");
        if machine.parting.told != told {
            machine.parting.told = told;
            self.note_leave(now, name, id, severity, reason, &cause);
        }
    }

    /// Tells of each pod that was deleted although its disruption budget did not allow it: its owner has to hear of it.
    fn tell_forced(&mut self, now: Now, name: &ClusterName, id: &MachineId, state: &DrainState) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let forced = state.left.iter().filter(|pod| matches!(pod.why, PodWait::Forced { .. }));
        let mut news = Vec::new();
        for pod in forced {
            if machine.parting.forced.insert(format!("{}/{}", pod.namespace, pod.pod)) {
                news.push(pod.to_string());
            }
        }
        if !news.is_empty() {
            self.note_leave(now, name, id, Severity::Warning, "DrainForced", &news.join("; "));
        }
    }

    fn note_leave(
        &mut self,
        now: Now,
        name: &ClusterName,
        id: &MachineId,
        severity: Severity,
        reason: &str,
        cause: &str,
    ) {
        let outcome = match reason {
            "NodeDraining" => "its pods are asked to go, within their disruption budgets".to_owned(),
            "DrainForced" => "the time of the drain is over: deleted with their own grace period".to_owned(),
            "NodeDrained" => "the node is removed next".to_owned(),
            "NodeRemoved" => "Kubernetes has forgotten the node".to_owned(),
            _ => self.deadline_text(now, name, id),
        };
        let event = self.event(now, severity, reason);
        self.note(FleetEvent {
            cluster: Some(name.clone()),
            machine: Some(id.clone()),
            cause: cause.to_owned(),
            outcome,
            ..event
        });
    }

    fn deadline_text(&self, now: Now, name: &ClusterName, id: &MachineId) -> String {
        let Some(cluster) = self.clusters.get(name) else { return String::new() };
        let spent = self.machines.get(id).map(|machine| machine.parting.drains_for(now)).unwrap_or_default();
        let left = cluster.row.spec.drain.timeout().saturating_sub(spent).as_secs();
        match cluster.row.spec.drain.then {
            DrainThen::Force => format!("asked again; in {left} s they are deleted all the same"),
            DrainThen::Wait => "asked again until it is allowed".to_owned(),
        }
    }
}

/// Whether a machine's drain has begun, or may have: it was asked for, or its node takes no new pods.
pub(crate) fn has_begun(cluster: &Cluster, machine: &Machine) -> bool {
    let seen = cluster.kube.nodes.get(machine.row.id.as_str());
    machine.parting.asked || seen.is_some_and(|node| node.seen.cordon == Cordon::Cordoned)
}
