//! One cluster of the fake fleet: a goal and a number of steps towards it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use keelson_model::{
    Blueprint, BlueprintMachine, ClusterNetwork, ClusterSpec, Condition, ConditionStatus, LinkState,
    MachinePhase, Observed, ObservedMachine, OperationId, Plan, PlanReport, WaitingOn,
};
use keelson_protocol::health::{
    CgroupVersion, Facts, HealthReport, NodeState, Pressure, UnitHealth, UnitState,
};
use keelson_protocol::{BootId, ClusterName, Generation, Incarnation, MachineId, WallTime};

use super::Fault;
use crate::convert::{self, Wanted};
use crate::types::ClusterState;

/// Steps that making a cluster takes: provider, boot, units, ready.
const STEPS_TO_READY: u32 = 3;

/// Where a cluster is on its way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Ready,
    Gone,
}

#[derive(Debug, Clone)]
pub(super) struct FakeCluster {
    pub(super) spec: ClusterSpec,
    pub(super) blueprint: Blueprint,
    pub(super) operation: OperationId,
    pub(super) goal: Goal,
    pub(super) created: WallTime,
    step: u32,
    pub(super) step_since: WallTime,
    was_ready: bool,
    /// Machines that the steps are about; `None` is all.
    moving: Option<BTreeSet<MachineId>>,
}

impl FakeCluster {
    pub(super) fn new(spec: ClusterSpec, plan: &Plan, operation: OperationId, now: WallTime) -> Self {
        let blueprint = blueprint(&spec, plan);
        Self {
            spec,
            blueprint,
            operation,
            goal: Goal::Ready,
            created: now,
            step: 0,
            step_since: now,
            was_ready: false,
            moving: None,
        }
    }

    pub(super) fn advance(&mut self, now: WallTime) {
        self.step = self.step.saturating_add(1);
        self.step_since = now;
        if self.goal == Goal::Ready && self.step >= STEPS_TO_READY {
            self.finish();
        }
    }

    pub(super) fn finish(&mut self) {
        self.step = STEPS_TO_READY;
        self.was_ready = true;
        self.blueprint.machines.retain(|_, machine| !machine.leaving);
    }

    /// Goes on its way to another blueprint; machines that stay as they are stay ready.
    pub(super) fn move_to(&mut self, next: Blueprint, now: WallTime) {
        let same = |id: &MachineId| self.blueprint.machines.get(id) == next.machines.get(id);
        let moving = next.machines.keys().filter(|id| !same(id)).cloned().collect();
        self.moving = self.was_ready.then_some(moving);
        self.blueprint = next;
        (self.step, self.step_since) = (0, now);
    }

    /// The step of one machine.
    fn step_of(&self, machine: &MachineId) -> u32 {
        let moves = self.moving.as_ref().is_none_or(|moving| moving.contains(machine));
        if moves { self.step } else { STEPS_TO_READY }
    }

    pub(super) fn remove(&mut self, operation: OperationId, now: WallTime) {
        (self.goal, self.operation, self.step, self.step_since) = (Goal::Gone, operation, 0, now);
        self.moving = None;
    }

    /// Entity tag of what was asked of it.
    pub(super) fn etag(&self) -> String {
        convert::cluster_etag(&self.spec, self.created, self.wanted())
    }

    pub(super) fn wanted(&self) -> Wanted {
        match self.goal {
            Goal::Ready => Wanted::Present,
            Goal::Gone => Wanted::Absent,
        }
    }

    pub(super) fn was_ready(&self) -> bool {
        self.was_ready
    }

    pub(super) fn is_there(&self) -> bool {
        match self.goal {
            Goal::Ready => self.step >= STEPS_TO_READY,
            Goal::Gone => self.step >= 2,
        }
    }

    pub(super) fn state(&self, fault: Option<&Fault>) -> ClusterState {
        match (self.goal, fault) {
            (Goal::Gone, _) => ClusterState::Deleting,
            (Goal::Ready, Some(Fault::Blocked | Fault::Fails(_))) if !self.is_there() => ClusterState::Failed,
            (Goal::Ready, Some(Fault::Silent)) if self.is_there() => ClusterState::Degraded,
            (Goal::Ready, _) if self.is_there() => ClusterState::Ready,
            (Goal::Ready, _) if self.was_ready => ClusterState::Updating,
            (Goal::Ready, _) => ClusterState::Creating,
        }
    }

    pub(super) fn observed(&self, fault: Option<&Fault>) -> Observed {
        let silent = (fault == Some(&Fault::Silent)).then(|| self.blueprint.machines.keys().last()).flatten();
        let machines = self.blueprint.machines.values().map(|machine| {
            let seen = if silent == Some(&machine.id) { self.silent() } else { self.seen(machine, fault) };
            (machine.id.clone(), seen)
        });
        let stands = self.step >= STEPS_TO_READY || (self.goal == Goal::Ready && self.was_ready);
        let endpoint = stands.then(|| "https://127.0.0.1:26443".to_owned());
        let address = |expose: &keelson_model::ExposeSpec| format!("127.0.0.1:{}", expose.node_port);
        let exposed = match endpoint {
            Some(_) => self.spec.expose.iter().map(|expose| (expose.name.clone(), address(expose))).collect(),
            None => BTreeMap::new(),
        };
        Observed { machines: machines.collect(), endpoint, exposed, ..Observed::default() }
    }

    /// A machine as it is while nothing of it moves.
    pub(super) fn standing(&self, machine: &BlueprintMachine) -> ObservedMachine {
        self.seen_at(&BlueprintMachine { leaving: false, ..machine.clone() }, None, STEPS_TO_READY)
    }

    fn seen(&self, machine: &BlueprintMachine, fault: Option<&Fault>) -> ObservedMachine {
        self.seen_at(machine, fault, self.step_of(&machine.id))
    }

    fn seen_at(&self, machine: &BlueprintMachine, fault: Option<&Fault>, step: u32) -> ObservedMachine {
        let since = self.step_since;
        let phase = match (self.goal, step) {
            (Goal::Gone, _) => MachinePhase::Deleting { since, why: None },
            (Goal::Ready, _) if machine.leaving => MachinePhase::Deleting { since, why: None },
            (Goal::Ready, 0) if fault == Some(&Fault::Blocked) => {
                MachinePhase::Refused { why: "no right to create machines".to_owned() }
            }
            (Goal::Ready, 0) => MachinePhase::Creating { since },
            (Goal::Ready, 1) => MachinePhase::Booting { since },
            (Goal::Ready, _) => MachinePhase::Enrolled { since },
        };
        let enrolled = matches!(phase, MachinePhase::Enrolled { .. });
        let ready = step >= STEPS_TO_READY;
        let node_state = if ready { NodeState::Ready } else { NodeState::Applying };
        let boot = BootId(7);
        let link = if enrolled { LinkState::Connected { since, boot } } else { LinkState::Never };
        ObservedMachine {
            phase,
            link,
            last_heartbeat_ms: enrolled.then_some(400),
            heard: enrolled.then_some(since),
            silent: false,
            applied: enrolled.then_some((self.blueprint.generation, node_state)),
            health: enrolled.then(|| health(machine, self.blueprint.generation, node_state, since).into()),
            facts: enrolled.then(|| facts(boot).into()),
            verdict: keelson_model::Verdict::Well,
            evidence: None,
            acting: None,
            hold: None,
            refusal: None,
            care: keelson_model::Care::default(),
        }
    }

    fn silent(&self) -> ObservedMachine {
        let since = self.step_since;
        let machine = self.blueprint.machines.values().last().expect("a blueprint has machines");
        ObservedMachine {
            link: LinkState::Lost { since, why: "no heartbeat for 2.8 s".to_owned() },
            last_heartbeat_ms: Some(95_000),
            heard: Some(since),
            silent: true,
            verdict: keelson_model::Verdict::Undecided,
            ..self.seen(machine, None)
        }
    }

    pub(super) fn report(&self, fault: Option<&Fault>) -> PlanReport {
        let wait = |planned: &BlueprintMachine| -> Option<WaitingOn> {
            let machine = planned.id.clone();
            match (self.goal, self.step_of(&machine)) {
                (Goal::Ready, _) if planned.leaving => Some(WaitingOn::ProviderDelete { machine, why: None }),
                (Goal::Gone, 0 | 1) => Some(WaitingOn::ProviderDelete { machine, why: None }),
                (Goal::Gone, _) => None,
                (Goal::Ready, 0) if fault == Some(&Fault::Blocked) => Some(WaitingOn::ProviderRefused {
                    machine,
                    why: "no right to create machines".to_owned(),
                }),
                (Goal::Ready, 0) => Some(WaitingOn::ProviderCreate { machine }),
                (Goal::Ready, 1) => Some(WaitingOn::Boot { machine }),
                (Goal::Ready, 2) => Some(WaitingOn::Unit {
                    machine,
                    unit: "containerd.service".to_owned(),
                    state: "starting".to_owned(),
                }),
                (Goal::Ready, _) => None,
            }
        };
        let mut waiting: Vec<WaitingOn> = self.blueprint.machines.values().filter_map(wait).collect();
        if fault == Some(&Fault::Silent) && self.is_there() {
            let machine = self.blueprint.machines.keys().last().expect("a blueprint has machines").clone();
            waiting.push(WaitingOn::Silent { machine });
        }
        PlanReport { changes: self.blueprint.diff(Some(&self.blueprint)), waiting }
    }

    pub(super) fn conditions(&self, fault: Option<&Fault>) -> Vec<Condition> {
        let since = self.step_since;
        let condition = |kind: &str, status, reason: &str, message: &str| Condition {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
            since,
        };
        if !self.is_there() {
            let on_its_way = "not all of it runs yet";
            return ["ControlPlane", "Etcd", "Workers"]
                .map(|kind| condition(kind, ConditionStatus::Progressing, "OnItsWay", on_its_way))
                .into();
        }
        let workers = if fault == Some(&Fault::Silent) {
            condition("Workers", ConditionStatus::Unknown, "Silent", "one worker is not heard of")
        } else {
            condition("Workers", ConditionStatus::Ok, "AllReady", "all workers are ready")
        };
        vec![
            condition("ControlPlane", ConditionStatus::Ok, "Answers", "the API server answers"),
            condition("Etcd", ConditionStatus::Ok, "Quorum", "all members answer"),
            workers,
        ]
    }
}

/// A blueprint as a planner would make it.
pub(super) fn blueprint(spec: &ClusterSpec, plan: &Plan) -> Blueprint {
    let mut machines = BTreeMap::new();
    let mut next_number = BTreeMap::new();
    let mut host = 10_u8;
    for pool in &plan.pools {
        let count = spec.count(plan, pool);
        next_number.insert(pool.name.clone(), u32::from(count) + 1);
        for number in 1..=count {
            let id = format!("{}-{}-{number}", spec.name, pool.name);
            let id = MachineId::new(id).expect("cluster and pool names leave room");
            let machine = BlueprintMachine {
                id: id.clone(),
                incarnation: Incarnation(1),
                pool: pool.name.clone(),
                roles: pool.roles.clone(),
                zone: "zone-a".to_owned(),
                address: Ipv4Addr::new(10, 89, 0, host),
                pods: Some(Ipv4Net::new_assert([10, 244, host, 0].into(), 24)),
                image: "sha256:2f".to_owned(),
                size: pool.size,
                labels: pool.labels.clone(),
                taints: pool.taints.clone(),
                seat: None,
                leaving: false,
            };
            machines.insert(id, machine);
            host = host.wrapping_add(1);
        }
    }
    Blueprint {
        cluster: ClusterName::clone(&spec.name),
        generation: Generation(1),
        parent: None,
        rendering: 1,
        release: spec.release.clone(),
        network: ClusterNetwork {
            pods: spec.pod_network,
            services: spec.service_network,
            domain: "cluster.local".to_owned(),
        },
        machines,
        next_number,
        expose: spec.expose.clone(),
    }
}

/// The blueprint that follows `before` on the way to `wanted`: what stands stays as it was made, what is too much leaves.
pub(super) fn next_blueprint(before: &Blueprint, wanted: &Blueprint) -> Blueprint {
    let mut machines = before.machines.clone();
    for machine in machines.values_mut() {
        machine.leaving |= !wanted.machines.contains_key(&machine.id);
    }
    let used: BTreeSet<Ipv4Addr> = before.machines.values().map(|machine| machine.address).collect();
    let mut free = (10..u8::MAX).filter(|host| !used.contains(&Ipv4Addr::new(10, 89, 0, *host)));
    for (id, machine) in &wanted.machines {
        machines.entry(id.clone()).or_insert_with(|| {
            let host = free.next().expect("tests have small clusters");
            let pods = Some(Ipv4Net::new_assert([10, 244, host, 0].into(), 24));
            BlueprintMachine { address: Ipv4Addr::new(10, 89, 0, host), pods, ..machine.clone() }
        });
    }
    if machines == before.machines {
        return before.clone();
    }
    let (generation, parent) = (before.generation.next(), Some(before.generation));
    Blueprint { generation, parent, machines, ..wanted.clone() }
}

fn facts(boot: BootId) -> Facts {
    Facts {
        agent_version: "0.1.0".to_owned(),
        kernel: "6.18.5".to_owned(),
        os: "Debian GNU/Linux 12".to_owned(),
        cgroup: CgroupVersion::V2,
        may_raise_limits: true,
        cpus: 2,
        memory_bytes: 4 * 1024 * 1024 * 1024,
        disks: Vec::new(),
        image_digest: Some("sha256:2f".to_owned()),
        releases: Vec::new(),
        boot,
    }
}

fn health(
    machine: &BlueprintMachine,
    generation: Generation,
    state: NodeState,
    since: WallTime,
) -> HealthReport {
    let unit = |name: &str| UnitHealth {
        name: name.to_owned(),
        state: if state == NodeState::Ready { UnitState::Healthy } else { UnitState::Starting },
        since,
        restarts: 0,
    };
    let names: &[&str] = match machine.pool.0.as_str() {
        "etcd" => &["etcd.service"],
        "master" => &["kube-apiserver.service", "kube-scheduler.service"],
        _ => &["containerd.service", "kubelet.service"],
    };
    HealthReport {
        sequence: 1,
        at: since,
        generation,
        state,
        units: names.iter().map(|name| unit(name)).collect(),
        pressure: Pressure { disk_used_percent: 12, inodes_used_percent: 3, memory_available_percent: 71 },
        certificates: Vec::new(),
        clock_offset_ms: Some(1),
    }
}
