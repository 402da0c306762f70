//! What the programs of a cluster do: Kubernetes with its nodes and pods, and the members of etcd.

use std::collections::BTreeMap;

use keelson_model::etcd::{EtcdAnswer, EtcdCall, EtcdMember, MemberId};
use keelson_model::kubernetes::{
    Cordon, DrainForce, DrainState, KubeAnswer, KubeCall, KubeFailure, NodeReady, NodeSeen, PodLeft,
    PodOwner, PodWait, TaintWish, out_of_service,
};
use keelson_model::{BlueprintMachine, Role, SeatBegins};
use keelson_planner::node::member_name;
use keelson_protocol::{ClusterName, MachineId};

use super::{FakeMachine, World};

impl World {
    /// What Kubernetes does: machines with a config register, one pod goes with each pass of a drain.
    pub(super) fn kube(&mut self, cluster: &ClusterName, call: KubeCall) -> Result<KubeAnswer, KubeFailure> {
        if self.endpoint_silent {
            return Err(KubeFailure::Unreachable { why: "connection refused".to_owned() });
        }
        let blueprint = self.core.cluster(cluster).unwrap().row.blueprint.clone();
        let nodes = self.nodes.entry(cluster.clone()).or_default();
        let lives = |id: &MachineId| {
            let linked = |fake: &FakeMachine| fake.linked || self.cut_off.contains(id);
            self.machines.get(id).is_some_and(|fake| fake.on && linked(fake) && fake.generation.is_some())
        };
        let serves = |role: Role| blueprint.with_role(role).any(|machine| lives(&machine.id));
        if !serves(Role::Master) || !serves(Role::Etcd) {
            return Err(KubeFailure::Unreachable { why: "connection refused".to_owned() });
        }
        for machine in blueprint.machines.values().filter(|machine| machine.is_node() && lives(&machine.id)) {
            if !machine.leaving {
                nodes.entry(machine.id.to_string()).or_insert_with(|| (node(&machine.id), 2));
            }
        }
        let find = |nodes: &mut BTreeMap<String, (NodeSeen, usize)>, id: &MachineId| {
            nodes.get(id.as_str()).cloned().ok_or(KubeFailure::NoNode { node: id.clone() })
        };
        match call {
            KubeCall::Nodes => {
                for (id, (node, _)) in nodes.iter_mut() {
                    if lives(&id.parse().unwrap()) {
                        node.lease = Some(self.ms.to_string());
                    }
                }
                Ok(KubeAnswer::Nodes(nodes.values().map(|(node, _)| node.clone()).collect()))
            }
            KubeCall::SetNode { node, wish } => {
                let (mut seen, pods) = find(nodes, &node)?;
                for (key, value) in wish.labels {
                    match value {
                        Some(value) => seen.labels.insert(key, value),
                        None => seen.labels.remove(&key),
                    };
                }
                seen.taints.retain(|taint| {
                    !wish
                        .taints
                        .iter()
                        .any(|wish| matches!(wish, TaintWish::Absent { key, .. } if *key == taint.key))
                });
                nodes.insert(node.to_string(), (seen, pods));
                Ok(KubeAnswer::Done)
            }
            KubeCall::Drain { node, force } => {
                let (seen, pods) = find(nodes, &node)?;
                let kept =
                    self.pods_stay || self.budgets.contains(node.as_str()) && force == DrainForce::Never;
                let pods = if kept { pods } else { pods.saturating_sub(1) };
                nodes.insert(node.to_string(), (seen, pods));
                let why = if kept {
                    PodWait::Refused { why: "a budget".to_owned() }
                } else if self.budgets.contains(node.as_str()) {
                    PodWait::Forced { refused: "may not be evicted: a budget".to_owned() }
                } else {
                    PodWait::Ending { finalizers: Vec::new() }
                };
                let left = |number| pod_left(number, why.clone());
                Ok(KubeAnswer::Drained(DrainState::new((0..pods).map(left).collect(), 0)))
            }
            KubeCall::Evacuate { node } => {
                assert!(!self.machines.get(&node).is_some_and(|machine| machine.on), "{node} has power");
                let (mut seen, _) = find(nodes, &node)?;
                seen.taints = vec![out_of_service()];
                nodes.insert(node.to_string(), (seen, 0));
                let ending = || PodWait::Ending { finalizers: vec!["example.com/keeps".to_owned()] };
                let left = if self.pods_stay { vec![pod_left(0, ending())] } else { Vec::new() };
                Ok(KubeAnswer::Drained(DrainState::new(left, 0)))
            }
            KubeCall::DeleteNode { node } => {
                nodes.remove(node.as_str());
                Ok(KubeAnswer::Done)
            }
        }
    }

    /// What etcd does: the founding members are those of the first seat, whoever joins starts as a learner.
    pub(super) fn etcd(&mut self, cluster: &ClusterName, call: EtcdCall) -> Result<EtcdAnswer, String> {
        if self.etcd_silent {
            return Err("there is no leader".to_owned());
        }
        if let Some(why) = self.etcd_refuses.clone().filter(|_| !matches!(call, EtcdCall::Look)) {
            return Err(why);
        }
        let blueprint = self.core.cluster(cluster).unwrap().row.blueprint.clone();
        let members = self.members.entry(cluster.clone()).or_insert_with(|| {
            let founding = blueprint.with_role(Role::Etcd).filter(|machine| {
                machine.seat.as_ref().is_some_and(|seat| seat.begins == SeatBegins::Founding)
            });
            let member = |machine: &BlueprintMachine| EtcdMember {
                id: MemberId(u64::from(machine.address.to_bits())),
                name: member_name(machine),
                address: Some(machine.address),
                learner: false,
            };
            founding.map(member).collect()
        });
        match call {
            EtcdCall::Look => {
                for member in members.iter_mut().filter(|member| member.name.is_empty()) {
                    let machine = blueprint.machines.values().find(|m| Some(m.address) == member.address);
                    let started = machine.filter(|machine| {
                        self.machines
                            .get(&machine.id)
                            .is_some_and(|fake| fake.on && fake.generation.is_some())
                    });
                    member.name = started.map(member_name).unwrap_or_default();
                }
                let leader = members.first().map(|member| member.id);
                return Ok(EtcdAnswer::Members { members: members.clone(), leader });
            }
            EtcdCall::AddLearner { address } => {
                assert!(members.iter().all(|member| !member.learner), "one learner at a time");
                let id = MemberId(u64::from(address.to_bits()) + (self.ms << 32));
                members.push(EtcdMember { id, name: String::new(), address: Some(address), learner: true });
            }
            EtcdCall::Promote { member } => {
                members.iter_mut().filter(|other| other.id == member).for_each(|m| m.learner = false);
            }
            EtcdCall::MoveLeader { to } => {
                let index = members.iter().position(|member| member.id == to).unwrap();
                members.swap(0, index);
            }
            EtcdCall::Remove { member } => {
                assert_ne!(members[0].id, member, "the leader is not removed");
                members.retain(|other| other.id != member);
            }
        }
        Ok(EtcdAnswer::Done)
    }
}

fn node(id: &MachineId) -> NodeSeen {
    NodeSeen {
        name: id.to_string(),
        uid: id.to_string(),
        ready: NodeReady::True,
        why: None,
        lease: None,
        cordon: Cordon::Open,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        boot: None,
        kubelet: None,
        created: String::new(),
    }
}

fn pod_left(number: usize, why: PodWait) -> PodLeft {
    let owner = Some(PodOwner { kind: "Deployment".to_owned(), name: "web".to_owned() });
    PodLeft { namespace: "default".to_owned(), pod: format!("web-{number}"), owner, why }
}
