//! What our own acts keep from working at one time: drains, repairs side by side, and the last API server.

use keelson_coordinator_core::Asked;
use keelson_model::etcd::EtcdCall;
use keelson_model::kubernetes::{DrainForce, KubeCall};
use keelson_model::{BlueprintMachine, DrainThen, Role};
use keelson_protocol::{ClusterName, MachineId};

use crate::check::{
    Checker, DRAINED_PERCENT_MAX, NOTICED_AFTER_MS, ON_ITS_WAY_MS, QUORUM_NOTICED_MS, TAKEN_FOR_MS,
    TAKEN_PERCENT_MAX,
};
use crate::world::{Ix, World};

impl World {
    /// All that a machine runs is about to be taken away for a while, by an act of ours.
    pub(crate) fn check_act(&mut self, ix: Ix, act: &str) {
        // One that was taken away is no part of its cluster any more.
        if !self.was_taken_away(ix) {
            self.check_member_act(ix, act);
            self.check_api_act(ix, act);
        }
    }

    /// A machine's API server is about to be taken away for a while: another one must be left, if another one ever worked.
    /// One that has just stopped may be taken for a working one, and one that has just begun for one that does not.
    pub(crate) fn check_api_act(&mut self, ix: Ix, act: &str) {
        let machine = &self.machines[ix];
        let known = machine.api_since.is_some_and(|since| since + QUORUM_NOTICED_MS <= self.now);
        let cluster = self.store.clusters.get(&machine.cluster).filter(|row| row.wanted);
        let Some(row) = cluster.filter(|_| known && self.api_serves(ix)) else { return };
        let stays = |other: &Ix| {
            let other = &self.machines[*other];
            row.blueprint.machines.get(&other.id).is_some_and(|planned| {
                planned.incarnation == other.incarnation && !planned.leaving && other.api_seen.is_some()
            })
        };
        let works = |other: &Ix| {
            let other_one = &self.machines[*other];
            let seen = other_one.api_seen.filter(|_| !other_one.taken_by_us.api);
            let lately = seen.is_some_and(|seen| seen + NOTICED_AFTER_MS > self.now);
            lately || self.api_serves(*other)
        };
        let mut others =
            self.members.get(&machine.cluster).into_iter().flatten().filter(|other| **other != ix);
        if others.clone().any(stays) && !others.any(works) {
            let what = format!("{} has the last API server of {}: {act}", machine.id, machine.cluster);
            self.violate(Checker::Disruption, what);
        }
    }

    /// Masters of a cluster whose API servers work.
    pub(crate) fn api_servers(&self, name: &ClusterName) -> Vec<Ix> {
        let members = self.members.get(name).into_iter().flatten().copied();
        members.filter(|ix| self.api_serves(*ix)).collect()
    }

    /// Members of etcd were changed: those that `served` before do so still, unless they are on their way out.
    pub(crate) fn check_api_after(&mut self, name: &ClusterName, served: &[Ix], call: &EtcdCall) {
        let row = self.store.clusters.get(name);
        let stays = |ix: &Ix| {
            let planned = row.and_then(|row| row.blueprint.machines.get(&self.machines[*ix].id));
            planned.is_some_and(|planned| {
                !planned.leaving && planned.incarnation == self.machines[*ix].incarnation
            })
        };
        // A member that has just stopped may be taken for one that works.
        let lost = |ix: &Ix| !self.api_serves(*ix) && !self.seems_to_know_member(*ix);
        let mut lost = served.iter().copied().filter(stays).filter(lost);
        if let Some(ix) = lost.next() {
            let what =
                format!("the API server on {} knows no member of etcd after: {call}", self.machines[ix].id);
            self.violate(Checker::Disruption, what);
        }
    }

    pub(crate) fn sample_api(&mut self, ix: Ix) {
        let serves = self.api_serves(ix);
        let (now, machine) = (self.now, &mut self.machines[ix]);
        machine.api_since = serves.then(|| machine.api_since.unwrap_or(now));
        machine.api_seen = if serves { Some(now) } else { machine.api_seen };
    }

    /// A machine's power was taken for its repair: with it no more may be without at this moment than the budget allows.
    pub(crate) fn check_taken(&mut self, ix: Ix) {
        let machine = &self.machines[ix];
        let (id, name) = (machine.id.clone(), machine.cluster.clone());
        let Some(row) = self.store.clusters.get(&name).filter(|row| row.wanted) else { return };
        let planned = row.blueprint.machines.get(&id).filter(|planned| !planned.leaving);
        let Some(planned) = planned.filter(|planned| planned.incarnation == machine.incarnation) else {
            return;
        };
        if matches!(self.asked_of(&id), Asked::PersonDespiteGuards | Asked::PersonDespiteQuorum) {
            self.despite.insert(id.clone(), self.now);
            self.taken.insert(id, self.now);
            return;
        }
        let alike = |other: &&BlueprintMachine| is_worker(other) == is_worker(planned);
        let most = match is_worker(planned) {
            true => (row.blueprint.machines.values().filter(alike).count() * TAKEN_PERCENT_MAX / 100).max(1),
            false => 1,
        };
        // One on its way out comes back for nobody.
        let others = self.taken_of(&name).filter(alike).filter(|other| other.id != id && !other.leaving);
        // Nobody knew of what a person did against the guards a moment ago when this fence was asked for.
        let unknown = |id: &MachineId| self.despite.get(id).is_some_and(|at| at + ON_ITS_WAY_MS > self.now);
        let others = others.filter(|other| !unknown(&other.id));
        let others: Vec<String> = others.map(|other| other.id.to_string()).collect();
        if others.len() >= most {
            let what = format!(
                "{id} is fenced while {} are without power, {most} may be at once",
                others.join(" and ")
            );
            self.violate(Checker::Disruption, what);
        }
        self.taken.insert(id, self.now);
    }

    /// Machines of a cluster that have lost their power to a repair and do not work yet.
    pub(crate) fn taken_of(&self, name: &ClusterName) -> impl Iterator<Item = &BlueprintMachine> {
        let machines =
            self.store.clusters.get(name).into_iter().flat_map(|row| row.blueprint.machines.values());
        machines.filter(|planned| self.taken.get(&planned.id).is_some_and(|at| at + TAKEN_FOR_MS > self.now))
    }

    /// Pods are only forced away when the time for the drain is over, and the cluster's owner wants it then.
    fn check_force(&mut self, name: &ClusterName, node: &MachineId, force: DrainForce) {
        let spec = self.store.clusters.get(name).map(|row| row.spec.drain).unwrap_or_default();
        let Some(incarnation) = self.store.machines.get(node).map(|row| row.incarnation) else { return };
        let begun = *self.drains.entry((node.clone(), incarnation)).or_insert(self.now);
        let late = u128::from(self.now - begun) >= spec.timeout().as_millis();
        if force != DrainForce::Never && !(late && spec.then == DrainThen::Force) {
            let what =
                format!("pods are forced away from {node}, which drains since {begun} ms, with {spec:?}");
            self.violate(Checker::Disruption, what);
        }
    }

    /// A drain begins. Later the cluster may have become smaller, so it is judged by what was planned at this moment.
    pub(crate) fn check_drain(&mut self, name: &ClusterName, call: &KubeCall) {
        let KubeCall::Drain { node, force } = call else { return };
        self.check_force(name, node, *force);
        let planned = self
            .store
            .clusters
            .get(name)
            .map_or(0, |row| row.blueprint.machines.values().filter(|machine| machine.is_node()).count());
        let most = (planned * DRAINED_PERCENT_MAX / 100).max(1);
        let Some(mut out) = self.kubes.get_mut(name).and_then(|kube| kube.drain_asked(node)) else { return };
        // One that has left, with all its pods, keeps nobody waiting.
        let left = |other: &BlueprintMachine| self.by_id.get(&other.id).is_some_and(|ix| self.has_left(*ix));
        let taken = self.taken_of(name).filter(|other| other.is_node() && other.id != *node && !left(other));
        out.extend(taken.map(|other| other.id.clone()));
        if out.len() + 1 > most {
            let out: Vec<&str> = out.iter().map(MachineId::as_str).collect();
            let what = format!(
                "the drain of {node} begins while {} are drained or without power, {most} may be at once",
                out.join(" and ")
            );
            self.violate(Checker::Disruption, what);
        }
    }
}

/// Whether a machine is nothing but a worker.
fn is_worker(machine: &BlueprintMachine) -> bool {
    machine.roles.iter().all(|role| *role == Role::Worker)
}
