//! Nodes as Kubernetes sees them: looked at, labelled, and taken back into service.

use std::collections::BTreeMap;

use keelson_model::kubernetes::{KubeAnswer, KubeCall, KubeFailure, NodeSeen, NodeWish};
use keelson_model::{BlueprintMachine, Role};
use keelson_protocol::{ClusterName, MachineId, MonoTime};

use crate::effect::{CallId, Effect};
use crate::limits::{
    ENDPOINT_SILENT_AFTER, KUBE_CALLS_MAX, KUBE_LOOK_INTERVAL, KUBE_LOOK_INTERVAL_BUSY, KUBE_RETRY,
};
use crate::row::Row;
use crate::state::{Cluster, CoordinatorCore, Now};

/// Label of a node that says to which pool its machine belongs; kubelets set it themselves.
const POOL_LABEL: &str = "keelson.dev/pool";

/// What is known of a cluster's nodes.
#[derive(Debug, Clone, Default)]
pub struct KubeWatch {
    /// By name.
    pub nodes: BTreeMap<String, NodeWatch>,
    /// When they were last seen.
    pub looked: Option<MonoTime>,
    /// Why the last look failed.
    pub error: Option<KubeFailure>,
    /// When somebody answered at the endpoint last, to whatever was asked.
    answered: Option<MonoTime>,
    /// Since when nobody has, though asked.
    unanswered: Option<MonoTime>,
    /// Since when each look has failed although a master worked. Where none does, that is what is told; and where none is
    /// heard, it may be the coordinator that is cut off.
    failing: Option<MonoTime>,
    call: Option<CallId>,
    after: Option<MonoTime>,
}

impl KubeWatch {
    /// Why nobody answers at the endpoint, when that has lasted.
    pub(crate) fn silent_why(&self, now: Now) -> Option<String> {
        let lasts = self.failing.is_some_and(|since| now.mono.since(since) >= ENDPOINT_SILENT_AFTER);
        self.error.as_ref().filter(|_| lasts).map(ToString::to_string)
    }

    /// Whether somebody answers at the endpoint: one answer that got lost, or is long on its way, does not tell otherwise.
    pub(crate) fn answers(&self, now: Now) -> bool {
        let lasts = self.unanswered.is_some_and(|since| now.mono.since(since) >= ENDPOINT_SILENT_AFTER);
        let lately = |answered| now.mono.since(answered) < KUBE_LOOK_INTERVAL + ENDPOINT_SILENT_AFTER;
        !lasts && self.answered.is_some_and(|answered| self.call.is_some() || lately(answered))
    }

    /// A call has come to its end.
    fn call_ended(&mut self, now: Now, result: &Result<KubeAnswer, KubeFailure>) {
        match result {
            Err(KubeFailure::Unreachable { .. } | KubeFailure::Busy { .. }) => {
                self.unanswered.get_or_insert(now.mono);
            }
            _ => (self.answered, self.unanswered) = (Some(now.mono), None),
        }
    }

    /// Whether it is time to look again.
    pub(crate) fn is_due(&self, now: Now) -> bool {
        self.call.is_none() && self.after.is_none_or(|after| after <= now.mono)
    }
}

/// A node, and when its kubelet gave a sign of life.
#[derive(Debug, Clone)]
pub struct NodeWatch {
    /// As it was seen last.
    pub seen: NodeSeen,
    /// When its lease was first seen as it is now. Clocks of machines may be wrong, so only the change counts.
    pub renewed: MonoTime,
    /// The look before that: its kubelet has lived at some moment after it. `None` when it was never seen to change.
    pub lived_after: Option<MonoTime>,
}

/// What a call to an API server is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KubeFor {
    Look,
    Node(KubeCall),
}

impl CoordinatorCore {
    /// Looks at a cluster's nodes and brings them to what the blueprint says.
    pub(crate) fn reconcile_nodes(&mut self, now: Now, name: &ClusterName) {
        if !self.may_ask_kube(name) {
            return;
        }
        self.look_at_nodes(now, name);
        let ids: Vec<MachineId> = self.node_ids(name);
        for id in ids {
            self.reconcile_node(now, name, &id);
        }
    }

    /// Looks at the nodes of every cluster whose time it is. Nothing else is compared for that; the answer is the reason
    /// to compare.
    pub(crate) fn look_at_due_nodes(&mut self, now: Now) {
        let due = self
            .clusters
            .iter()
            .filter(|(name, cluster)| cluster.kube.is_due(now) && self.may_ask_kube(name));
        let names: Vec<ClusterName> = due.map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.look_at_nodes(now, name));
    }

    fn may_ask_kube(&self, name: &ClusterName) -> bool {
        self.clusters.get(name).is_some_and(|cluster| cluster.row.wanted) && self.endpoint(name).is_some()
    }

    fn look_at_nodes(&mut self, now: Now, name: &ClusterName) {
        if self.clusters.get(name).is_some_and(|cluster| cluster.kube.is_due(now))
            && let Some(id) = self.call_kube(name, KubeFor::Look, KubeCall::Nodes)
            && let Some(cluster) = self.clusters.get_mut(name)
        {
            cluster.kube.call = Some(id);
        }
    }

    fn node_ids(&self, name: &ClusterName) -> Vec<MachineId> {
        let Some(cluster) = self.clusters.get(name) else { return Vec::new() };
        let nodes = cluster.row.blueprint.machines.values().filter(|machine| machine.is_node());
        nodes.map(|machine| machine.id.clone()).collect()
    }

    fn reconcile_node(&mut self, now: Now, name: &ClusterName, id: &MachineId) {
        let Some(machine) = self.machines.get(id) else { return };
        if machine.kube_call.is_some() || machine.kube_after.is_some_and(|after| after > now.mono) {
            return;
        }
        let Some(planned) = self.planned(name, id) else { return };
        let call = if planned.leaving {
            self.next_parting_call(now, name, planned)
        } else if self.evacuation_pending(now, planned, name) {
            machine.row.fenced.is_some().then(|| KubeCall::Evacuate { node: id.clone() })
        } else {
            self.next_wish(name, planned)
        };
        let Some(call) = call else { return };
        let drains = matches!(call, KubeCall::Drain { .. });
        let call = self.call_kube(name, KubeFor::Node(call.clone()), call);
        if let Some(machine) = self.machines.get_mut(id) {
            machine.kube_call = call;
            machine.parting.asked |= drains && call.is_some();
        }
    }

    /// What separates a node that stays from what it shall be.
    fn next_wish(&self, name: &ClusterName, planned: &BlueprintMachine) -> Option<KubeCall> {
        let seen = &self.clusters.get(name)?.kube.nodes.get(planned.id.as_str())?.seen;
        let mut wish = NodeWish::default();
        let ready = self
            .machines
            .get(&planned.id)
            .is_some_and(|machine| machine.is_heard() && machine.row.incarnation == planned.incarnation);
        if seen.is_out_of_service() && ready {
            wish = NodeWish::in_service();
        }
        let missing =
            node_labels(planned).into_iter().filter(|(key, value)| seen.labels.get(key) != Some(value));
        wish.labels = missing.map(|(key, value)| (key, Some(value))).collect();
        (wish != NodeWish::default()).then(|| KubeCall::SetNode { node: planned.id.clone(), wish })
    }

    fn call_kube(&mut self, name: &ClusterName, purpose: KubeFor, call: KubeCall) -> Option<CallId> {
        if self.kube_calls.len() >= KUBE_CALLS_MAX {
            return None;
        }
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.kube_calls.insert(id, (name.clone(), purpose));
        self.effects.push(Effect::Kube { id, cluster: name.clone(), call });
        Some(id)
    }

    pub(crate) fn on_kube(&mut self, now: Now, id: CallId, result: Result<KubeAnswer, KubeFailure>) {
        let Some((name, purpose)) = self.kube_calls.remove(&id) else { return };
        self.touched.insert(name.clone());
        if let Some(cluster) = self.clusters.get_mut(&name) {
            cluster.kube.call_ended(now, &result);
        }
        match purpose {
            KubeFor::Look => self.nodes_seen(now, &name, result),
            KubeFor::Node(call) => {
                let node = node_of(&call).cloned();
                let machine = node.as_ref().and_then(|node| self.machines.get_mut(node));
                let Some(machine) = machine.filter(|machine| machine.kube_call == Some(id)) else { return };
                machine.kube_call = None;
                machine.kube_after = Some(now.mono.plus(KUBE_RETRY));
                self.node_answered(now, &name, &call, result);
            }
        }
    }

    fn nodes_seen(&mut self, now: Now, name: &ClusterName, result: Result<KubeAnswer, KubeFailure>) {
        let busy = self.clusters.get(name).is_some_and(|cluster| self.nodes_matter(cluster));
        let blueprint = self.clusters.get(name).map(|cluster| &cluster.row.blueprint);
        let works = blueprint.is_some_and(|b| b.with_role(Role::Master).any(|master| self.works(master)));
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        let kube = &mut cluster.kube;
        kube.call = None;
        kube.error = result.as_ref().err().cloned();
        kube.failing = kube.error.as_ref().filter(|_| works).map(|_| kube.failing.unwrap_or(now.mono));
        let soon = busy || kube.error.is_some();
        kube.after = Some(now.mono.plus(if soon { KUBE_LOOK_INTERVAL_BUSY } else { KUBE_LOOK_INTERVAL }));
        let Ok(KubeAnswer::Nodes(nodes)) = result else { return };
        if cluster.row.first_answer.is_none() {
            cluster.row.first_answer = Some(now.wall);
            let row = Row::Cluster(Box::new(cluster.row.clone()));
            self.rows.push(row);
        }
        let kube = &mut cluster.kube;
        let mut before = std::mem::take(&mut kube.nodes);
        for seen in nodes {
            let old = before.remove(&seen.name).filter(|old| old.seen.uid == seen.uid);
            let watch = match old {
                Some(old) if old.seen.lease == seen.lease => NodeWatch { seen, ..old },
                Some(_) => NodeWatch { seen, renewed: now.mono, lived_after: kube.looked },
                None => NodeWatch { seen, renewed: now.mono, lived_after: None },
            };
            kube.nodes.insert(watch.seen.name.clone(), watch);
        }
        kube.looked = Some(now.mono);
        let seen: Vec<MachineId> = kube.nodes.keys().filter_map(|name| name.parse().ok()).collect();
        seen.iter().for_each(|id| self.node_appeared(id));
    }

    /// Whether something about a cluster's nodes changes, so that they are looked at often.
    pub(crate) fn nodes_matter(&self, cluster: &Cluster) -> bool {
        let name = &cluster.row.spec.name;
        cluster.row.blueprint.machines.values().filter(|planned| planned.is_node()).any(|planned| {
            let machine = self.machines.get(&planned.id);
            planned.leaving
                || !machine.is_some_and(crate::state::Machine::is_heard)
                || !cluster.kube.nodes.contains_key(planned.id.as_str())
                || self.next_wish(name, planned).is_some()
        })
    }

    /// Asks for a cluster's nodes at the next tick.
    pub(crate) fn look_at_nodes_soon(&mut self, name: &ClusterName) {
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.kube.after = None;
        }
    }
}

/// The node that a call is about.
pub(crate) fn node_of(call: &KubeCall) -> Option<&MachineId> {
    match call {
        KubeCall::Nodes => None,
        KubeCall::SetNode { node, .. }
        | KubeCall::Drain { node, .. }
        | KubeCall::Evacuate { node }
        | KubeCall::DeleteNode { node } => Some(node),
    }
}

/// Labels that a node shall have. Kubelets may not give roles to themselves (Kubernetes "NodeRestriction"), so the
/// coordinator does.
fn node_labels(planned: &BlueprintMachine) -> BTreeMap<String, String> {
    let mut labels = planned.labels.clone();
    labels.insert(POOL_LABEL.to_owned(), planned.pool.to_string());
    for (role, word) in [(Role::Master, "control-plane"), (Role::Worker, "worker")] {
        if planned.roles.contains(&role) {
            labels.insert(format!("node-role.kubernetes.io/{word}"), String::new());
        }
    }
    labels
}
