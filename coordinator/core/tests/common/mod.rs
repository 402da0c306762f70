//! A world around the core: a provider, agents and a disk, all in memory and in virtual time.

#![allow(dead_code, reason = "each test file uses its own part of this one")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

pub(crate) mod demo;
mod programs;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use keelson_coordinator_core::{
    Accepted, CallId, ClusterState, CoordinatorCore, CreateCluster, Effect, EnrolId, Input, Now, PlanChange,
    PlanRefused, ProviderAnswer, ProviderCall, ProviderFailure, Remedy, Row, Saved, ScalePool, SeenMachine,
    SessionId, Settings,
};
use keelson_model::etcd::{EtcdAnswer, EtcdMember};
use keelson_model::kubernetes::{KubeAnswer, KubeCall, KubeFailure, NodeSeen};
use keelson_model::material::Authority;
use keelson_model::{
    ClusterMaterial, ClusterSpec, FleetEvent, Plan, PlanName, PoolName, Release, ReleaseCatalog, Severity,
};
use keelson_planner::Place;
use keelson_protocol::config::Issuer;
use keelson_protocol::health::{
    CgroupVersion, Facts, HealthReport, Heartbeat, NodeState, Pressure, UnitHealth, UnitState,
};
use keelson_protocol::message::{EnrolRequest, ToAgent, ToCoordinator};
use keelson_protocol::peer::{PeerAnswer, PeerSaid, PeerTarget};
use keelson_protocol::wire::{VERSION_MAX, VERSION_MIN};
use keelson_protocol::{
    BootId, ClusterName, Generation, Incarnation, MachineId, MonoTime, SecretBytes, WallTime,
};

/// A machine at the fake provider, with its agent.
#[derive(Debug, Clone)]
pub(crate) struct FakeMachine {
    pub(crate) cluster: ClusterName,
    pub(crate) incarnation: Incarnation,
    pub(crate) token: SecretBytes,
    pub(crate) on: bool,
    /// Whether its heartbeats get through.
    pub(crate) linked: bool,
    pub(crate) boot: BootId,
    /// Until when it boots.
    boots_until: u64,
    pub(crate) enrolled: bool,
    pub(crate) session: Option<SessionId>,
    pub(crate) generation: Option<Generation>,
    /// Until when it applies its config.
    applies_until: u64,
    pub(crate) sequence: u64,
    /// How many disks it has had.
    disks: u32,
}

impl FakeMachine {
    /// It boots again with an empty disk.
    pub(crate) fn lose_disk(&mut self) {
        self.disks += 1;
        self.boot = BootId(self.boot.0 + (1 << 64));
        (self.enrolled, self.session, self.generation, self.sequence) = (false, None, None, 0);
    }

    pub(crate) fn power_off(&mut self) {
        self.on = false;
        self.session = None;
    }
}

/// What is on the fake disk.
#[derive(Debug, Default, Clone)]
pub(crate) struct Disk {
    pub(crate) saved: Saved,
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) core: CoordinatorCore,
    pub(crate) disk: Disk,
    pub(crate) machines: BTreeMap<MachineId, FakeMachine>,
    /// Where the provider leads the users of each service.
    pub(crate) exposed: BTreeMap<(ClusterName, String), Vec<SocketAddr>>,
    pub(crate) events: Vec<FleetEvent>,
    pub(crate) sent: Vec<ToAgent>,
    /// Machines whose power was taken away, in order.
    pub(crate) fences: Vec<MachineId>,
    /// What the provider says to fences, when it does not set them.
    pub(crate) refuse_fence: Option<ProviderFailure>,
    /// What it says when it gives no list.
    pub(crate) refuse_list: Option<ProviderFailure>,
    /// What it says to services that are to be exposed, when it does not.
    pub(crate) refuse_expose: Option<ProviderFailure>,
    /// What it says to services that are to be taken back, when it does not.
    pub(crate) refuse_unexpose: Option<ProviderFailure>,
    /// What it says to being asked to switch a machine on, when it does not.
    pub(crate) refuse_power: Option<ProviderFailure>,
    /// What it says to being asked to make a machine anew around its disk, when it does not.
    pub(crate) refuse_rebuild: Option<ProviderFailure>,
    /// What it says to being asked to remove a machine, when it does not.
    pub(crate) refuse_delete: Option<ProviderFailure>,
    /// Whether it switches machines on and nobody hears that it did.
    pub(crate) lose_power_answers: bool,
    /// Machines whose link breaks before the next config comes through.
    pub(crate) lose_configs: BTreeSet<MachineId>,
    /// What agents say of their machines that are not ready.
    pub(crate) says: BTreeMap<MachineId, NodeState>,
    /// How long machines boot before they speak.
    pub(crate) boot_ms: u64,
    /// How long they take to apply a config.
    pub(crate) apply_ms: u64,
    /// Whether the provider's answers are on their way.
    pub(crate) answers_late: bool,
    /// Machines that its list leaves out.
    pub(crate) unlisted: BTreeSet<MachineId>,
    /// Machines that never speak after their first boot.
    pub(crate) stillborn: BTreeSet<MachineId>,
    /// Machines that never speak, however often they boot.
    pub(crate) mute: BTreeSet<MachineId>,
    /// Machines that it has no room for.
    pub(crate) no_room: BTreeSet<MachineId>,
    /// Failures for the next creates.
    pub(crate) refuse: VecDeque<ProviderFailure>,
    /// Answers that are lost, though the call took effect.
    pub(crate) lose_answers: u32,
    /// The coordinator dies before its effect with this number.
    pub(crate) die_before: Option<u64>,
    effects_done: u64,
    answers: VecDeque<(CallId, Result<ProviderAnswer, ProviderFailure>)>,
    /// Members of each cluster's etcd, once it was founded.
    pub(crate) members: BTreeMap<ClusterName, Vec<EtcdMember>>,
    etcd_answers: VecDeque<(CallId, Result<EtcdAnswer, String>)>,
    /// Whether agents answer what they are asked about their peers.
    pub(crate) peers_answer: bool,
    /// Machines that are cut off from the coordinator alone.
    pub(crate) cut_off: BTreeSet<MachineId>,
    /// Of these, whose agents do not answer peers either.
    pub(crate) refused: BTreeSet<MachineId>,
    /// Machines on which the kernel alone answers: no agent, and so no way for the kubelet to the API server.
    pub(crate) agentless: BTreeSet<MachineId>,
    /// Whether etcd's answers are on their way.
    pub(crate) etcd_answers_late: bool,
    /// Whether etcd answers nothing.
    pub(crate) etcd_silent: bool,
    /// What it says to every change of its members, when it makes none.
    pub(crate) etcd_refuses: Option<String>,
    probed: VecDeque<(SessionId, ToCoordinator)>,
    /// Nodes of each cluster, and how many pods each runs.
    pub(crate) nodes: BTreeMap<ClusterName, BTreeMap<String, (NodeSeen, usize)>>,
    /// Whether pods that were told to go stay, because of a finalizer.
    pub(crate) pods_stay: bool,
    /// Whether nobody answers at the endpoint, though masters work.
    pub(crate) endpoint_silent: bool,
    /// Nodes whose pods a disruption budget keeps.
    pub(crate) budgets: BTreeSet<String>,
    kube_answers: VecDeque<(CallId, Result<KubeAnswer, KubeFailure>)>,
    /// Whether the API server takes its time to give up pods and nodes, and what it was asked for meanwhile.
    pub(crate) evacuates_slowly: bool,
    slow: Vec<(CallId, ClusterName, KubeCall)>,
    pub(crate) ms: u64,
    /// What the next coordinator is started with.
    pub(crate) settings: Settings,
    /// By how much the coordinator's wall clock was set.
    pub(crate) wall_jump_ms: i64,
    next_session: u64,
    next_boot: u128,
}

impl World {
    /// A world whose network has few addresses.
    pub(crate) fn in_network(network: &str) -> Self {
        let mut settings = settings();
        settings.place.network = network.parse().unwrap();
        let mut world = Self::new();
        world.core = CoordinatorCore::restore(settings.clone(), Saved::default(), at(0));
        world.settings = settings;
        world
    }

    pub(crate) fn new() -> Self {
        let disk = Disk::default();
        let core = CoordinatorCore::restore(settings(), disk.saved.clone(), at(0));
        Self {
            core,
            disk,
            machines: BTreeMap::new(),
            exposed: BTreeMap::new(),
            events: Vec::new(),
            sent: Vec::new(),
            fences: Vec::new(),
            refuse_fence: None,
            refuse_list: None,
            refuse_expose: None,
            refuse_unexpose: None,
            refuse_power: None,
            refuse_rebuild: None,
            refuse_delete: None,
            lose_power_answers: false,
            lose_configs: BTreeSet::new(),
            says: BTreeMap::new(),
            boot_ms: 0,
            apply_ms: 0,
            answers_late: false,
            unlisted: BTreeSet::new(),
            etcd_answers_late: false,
            stillborn: BTreeSet::new(),
            mute: BTreeSet::new(),
            no_room: BTreeSet::new(),
            refuse: VecDeque::new(),
            lose_answers: 0,
            die_before: None,
            effects_done: 0,
            answers: VecDeque::new(),
            members: BTreeMap::new(),
            etcd_answers: VecDeque::new(),
            peers_answer: true,
            cut_off: BTreeSet::new(),
            refused: BTreeSet::new(),
            agentless: BTreeSet::new(),
            etcd_silent: false,
            etcd_refuses: None,
            probed: VecDeque::new(),
            nodes: BTreeMap::new(),
            pods_stay: false,
            endpoint_silent: false,
            budgets: BTreeSet::new(),
            kube_answers: VecDeque::new(),
            evacuates_slowly: false,
            slow: Vec::new(),
            ms: 0,
            settings: settings(),
            wall_jump_ms: 0,
            next_session: 0,
            next_boot: 1,
        }
    }

    pub(crate) fn now(&self) -> Now {
        let now = at(self.ms);
        Now { wall: WallTime(now.wall.0 + self.wall_jump_ms), ..now }
    }

    /// Asks for a cluster.
    pub(crate) fn create(&mut self, spec: &ClusterSpec) -> Accepted {
        let request = CreateCluster { spec: spec.clone(), material: material(), idempotency: None };
        let accepted = self.core.create_cluster(self.now(), request).unwrap();
        self.carry_out(accepted.effects.clone());
        accepted
    }

    /// Asks for a cluster's removal.
    pub(crate) fn delete(&mut self, name: &str) {
        let accepted = self.core.delete_cluster(self.now(), &name.parse().unwrap()).unwrap();
        self.carry_out(accepted.effects);
    }

    /// Asks for another size of a pool.
    pub(crate) fn scale(&mut self, name: &str, pool: &str, count: u16) {
        let pool = PoolName(pool.to_owned());
        let request = ScalePool { cluster: name.parse().unwrap(), pool, count, drain: None };
        let accepted = self.core.scale_pool(self.now(), &request).unwrap();
        self.carry_out(accepted.effects);
    }

    /// Applies a plan, and gives back what that changes.
    pub(crate) fn apply_plan(&mut self, plan: Plan) -> Result<PlanChange, PlanRefused> {
        let (change, effects) = self.core.apply_plan(self.now(), plan, "admin")?;
        self.carry_out(effects);
        Ok(change)
    }

    /// Removes a plan.
    pub(crate) fn delete_plan(&mut self, name: &str) -> Result<(), PlanRefused> {
        let effects = self.core.delete_plan(self.now(), &PlanName(name.to_owned()), "admin")?;
        self.carry_out(effects);
        Ok(())
    }

    /// The coordinator dies before the effect that is so many further on.
    pub(crate) fn die_after(&mut self, effects: u64) {
        self.die_before = Some(self.effects_done + effects);
    }

    /// Half a second of everything. Returns whether the coordinator died.
    pub(crate) fn step(&mut self) {
        self.ms += 500;
        self.input(Input::Tick);
        while !self.answers_late
            && let Some((id, result)) = self.answers.pop_front()
        {
            self.input(Input::Provider { id, result });
        }
        while !self.etcd_answers_late
            && let Some((id, result)) = self.etcd_answers.pop_front()
        {
            self.input(Input::Etcd { id, result });
        }
        while let Some((session, message)) = self.probed.pop_front() {
            self.input(Input::Message { session, message });
        }
        while let Some((id, result)) = self.kube_answers.pop_front() {
            self.input(Input::Kube { id, result });
        }
        let ids: Vec<MachineId> = self.machines.keys().cloned().collect();
        for id in ids {
            self.agent(&id);
        }
    }

    pub(crate) fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.step();
        }
    }

    pub(crate) fn input(&mut self, input: Input) {
        let effects = self.core.handle(self.now(), input);
        self.carry_out(effects);
    }

    pub(crate) fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.effects_done += 1;
            if self.die_before == Some(self.effects_done) {
                // What was not done is never done; the next process knows only the disk.
                return self.restart();
            }
            match effect {
                Effect::Persist(rows) => rows.into_iter().for_each(|row| self.disk.write(row)),
                Effect::Provider { id, call } => self.provider(id, call),
                Effect::Kube {
                    id,
                    cluster,
                    call: call @ (KubeCall::Evacuate { .. } | KubeCall::DeleteNode { .. }),
                } if self.evacuates_slowly => {
                    self.slow.push((id, cluster, call));
                }
                Effect::Kube { id, cluster, call } => {
                    let result = self.kube(&cluster, call);
                    self.kube_answers.push_back((id, result));
                }
                Effect::Etcd { id, cluster, call, .. } => {
                    let result = self.etcd(&cluster, call);
                    self.etcd_answers.push_back((id, result));
                }
                Effect::Send { session, message } => self.deliver(session, *message),
                Effect::Close { session, .. } => self.end_session(session),
                Effect::AcceptEnrol { machine, .. } => {
                    if let Some(machine) = self.machines.get_mut(&machine) {
                        machine.enrolled = true;
                    }
                }
                Effect::RefuseEnrol { .. } | Effect::RenewLink { .. } | Effect::SignLeaf { .. } => {}
                Effect::Note(event) => self.events.push(event),
            }
        }
    }

    /// The API server does what it was asked for long ago.
    pub(crate) fn evacuate_at_last(&mut self) {
        self.evacuates_slowly = false;
        for (id, cluster, call) in std::mem::take(&mut self.slow) {
            let result = self.kube(&cluster, call);
            self.kube_answers.push_back((id, result));
        }
    }

    /// Whether a list of the provider is on its way.
    pub(crate) fn awaits_list(&self) -> bool {
        self.answers.iter().any(|(_, result)| matches!(result, Ok(ProviderAnswer::Machines(_))))
    }

    /// The provider's answers of until now arrive, and none to what is asked because of them.
    pub(crate) fn answer_once(&mut self) {
        for (id, result) in std::mem::take(&mut self.answers) {
            self.input(Input::Provider { id, result });
        }
    }

    /// The provider's lists of until now arrive, and no other answer.
    pub(crate) fn answer_lists(&mut self) {
        let is_list = |result: &Result<ProviderAnswer, ProviderFailure>| {
            matches!(result, Ok(ProviderAnswer::Machines(_)))
        };
        let (lists, others) = std::mem::take(&mut self.answers).into_iter().partition(|(_, it)| is_list(it));
        self.answers = others;
        let lists: VecDeque<_> = lists;
        for (id, result) in lists {
            self.input(Input::Provider { id, result });
        }
    }

    /// The same of etcd's answers.
    pub(crate) fn etcd_answer_once(&mut self) {
        for (id, result) in std::mem::take(&mut self.etcd_answers) {
            self.input(Input::Etcd { id, result });
        }
    }

    /// The states that a cluster has in so many steps.
    pub(crate) fn states(&mut self, cluster: &str, steps: u32) -> BTreeSet<ClusterState> {
        let mut states = BTreeSet::new();
        for _ in 0..steps {
            self.step();
            states.extend(self.state(cluster));
        }
        states
    }

    /// What came of the events that are no mere news.
    pub(crate) fn warnings(&self) -> Vec<&str> {
        let warnings = self.events.iter().filter(|event| event.severity != Severity::Info);
        warnings.map(|event| event.outcome.as_str()).collect()
    }

    /// The coordinator is killed and started again.
    pub(crate) fn restart(&mut self) {
        self.die_before = None;
        self.answers.clear();
        self.etcd_answers.clear();
        self.kube_answers.clear();
        self.machines.values_mut().for_each(|machine| machine.session = None);
        self.core = CoordinatorCore::restore(self.settings.clone(), self.disk.saved.clone(), self.now());
    }

    fn provider(&mut self, id: CallId, call: ProviderCall) {
        let answer = match call {
            ProviderCall::Create { machine, .. } if self.no_room.contains(&machine.id) => {
                Err(ProviderFailure { remedy: Remedy::Retry, text: "no room".to_owned() })
            }
            ProviderCall::Create { machine, cluster, token } => match self.refuse.pop_front() {
                Some(failure) => Err(failure),
                None => {
                    self.power_on(machine.id, machine.incarnation, cluster, token);
                    Ok(ProviderAnswer::Created)
                }
            },
            ProviderCall::Delete { .. } if self.refuse_delete.is_some() => {
                Err(self.refuse_delete.clone().unwrap())
            }
            ProviderCall::Delete { machine, incarnation, .. } => {
                if self.machines.get(&machine).is_some_and(|found| found.incarnation == incarnation) {
                    self.machines.remove(&machine);
                }
                Ok(ProviderAnswer::Done)
            }
            ProviderCall::Fence { machine, .. } => {
                self.fences.push(machine.clone());
                match self.refuse_fence.clone() {
                    Some(failure) => Err(failure),
                    None => {
                        // What is not there has no power.
                        self.machines.get_mut(&machine).into_iter().for_each(FakeMachine::power_off);
                        Ok(ProviderAnswer::Fenced)
                    }
                }
            }
            ProviderCall::Rebuild { .. } if self.refuse_rebuild.is_some() => {
                Err(self.refuse_rebuild.clone().unwrap())
            }
            ProviderCall::Rebuild { machine: planned, .. } => {
                let machine = planned.id.clone();
                assert!(!self.machines[&machine].on, "{machine} has power");
                let boot = BootId(self.next_boot);
                self.next_boot += 1;
                let fake = self.machines.get_mut(&machine).unwrap();
                (fake.on, fake.linked, fake.boot, fake.sequence) = (true, true, boot, 0);
                Ok(ProviderAnswer::Created)
            }
            ProviderCall::PowerOn { machine, .. } => {
                let boot = BootId(self.next_boot);
                self.next_boot += 1;
                let unknown = self.lose_power_answers.then(unknown);
                match (self.machines.get_mut(&machine), self.refuse_power.clone()) {
                    (_, Some(failure)) => Err(failure),
                    (Some(fake), None) => {
                        if !fake.on {
                            (fake.on, fake.linked, fake.boot, fake.sequence) = (true, true, boot, 0);
                            fake.boots_until = self.ms + self.boot_ms;
                        }
                        unknown.map_or(Ok(ProviderAnswer::Created), Err)
                    }
                    (None, None) => {
                        Err(ProviderFailure { remedy: Remedy::Retry, text: "not there".to_owned() })
                    }
                }
            }
            ProviderCall::List if self.refuse_list.is_some() => Err(self.refuse_list.clone().unwrap()),
            ProviderCall::List => Ok(ProviderAnswer::Machines(self.list())),
            ProviderCall::Expose { .. } if self.refuse_expose.is_some() => {
                Err(self.refuse_expose.clone().unwrap())
            }
            ProviderCall::Expose { cluster, name, targets, .. } => {
                self.exposed.insert((cluster, name), targets);
                Ok(ProviderAnswer::Exposed(([127, 0, 0, 1], 16443).into()))
            }
            ProviderCall::Unexpose { .. } if self.refuse_unexpose.is_some() => {
                Err(self.refuse_unexpose.clone().unwrap())
            }
            ProviderCall::Unexpose { cluster } => {
                self.exposed.retain(|(owner, _), _| *owner != cluster);
                Ok(ProviderAnswer::Done)
            }
        };
        let lost = self.lose_answers > 0;
        self.lose_answers = self.lose_answers.saturating_sub(1);
        self.answers.push_back((id, if lost { Err(unknown()) } else { answer }));
    }

    fn power_on(
        &mut self,
        id: MachineId,
        incarnation: Incarnation,
        cluster: ClusterName,
        token: SecretBytes,
    ) {
        let boot = BootId(self.next_boot);
        self.next_boot += 1;
        let fresh = FakeMachine {
            cluster,
            incarnation,
            token: token.clone(),
            on: true,
            linked: !self.stillborn.remove(&id),
            boot,
            boots_until: self.ms + self.boot_ms,
            enrolled: false,
            session: None,
            generation: None,
            applies_until: 0,
            sequence: 0,
            disks: 1,
        };
        let machine = self.machines.entry(id).or_insert(fresh);
        machine.token = token;
        if !machine.on {
            machine.on = true;
            machine.boot = boot;
            machine.sequence = 0;
        }
    }

    fn list(&self) -> Vec<SeenMachine> {
        let seen = |(id, machine): (&MachineId, &FakeMachine)| SeenMachine {
            machine: id.clone(),
            cluster: machine.cluster.clone(),
            incarnation: machine.incarnation,
            on: machine.on,
        };
        self.machines.iter().filter(|(id, _)| !self.unlisted.contains(id)).map(seen).collect()
    }

    /// What a machine's agent does in half a second: enrol, connect, or send a heartbeat.
    fn agent(&mut self, id: &MachineId) {
        let Some(machine) = self.machines.get(id).cloned() else { return };
        if !machine.on || !machine.linked || self.mute.contains(id) || self.ms < machine.boots_until {
            return;
        }
        if !machine.enrolled {
            return self.enrol(id, &machine);
        }
        let Some(session) = machine.session else { return self.connect(id) };
        let machine = self.machines.get_mut(id).unwrap();
        machine.sequence += 1;
        let state = match machine.generation {
            Some(_) if self.ms < machine.applies_until => NodeState::Applying,
            Some(_) => self.says.get(id).copied().unwrap_or(NodeState::Ready),
            None => NodeState::Idle,
        };
        let heartbeat = Heartbeat {
            sequence: machine.sequence,
            boot: machine.boot,
            generation: machine.generation.unwrap_or_default(),
            state,
            report: 0,
        };
        self.input(Input::Heartbeat { session, heartbeat });
    }

    /// A machine's agent reports one unit, and nothing else.
    pub(crate) fn tell_unit(&mut self, id: &MachineId, unit: &str, state: UnitState) {
        self.tell_units(id, [(unit, state)]);
    }

    /// A machine's agent reports these units, and nothing else.
    pub(crate) fn tell_units<const N: usize>(&mut self, id: &MachineId, units: [(&str, UnitState); N]) {
        let machine = &self.machines[id];
        let since = self.now().wall;
        let report = HealthReport {
            sequence: 0,
            at: since,
            generation: machine.generation.unwrap_or_default(),
            state: self.says.get(id).copied().unwrap_or(NodeState::Ready),
            units: units
                .map(|(name, state)| UnitHealth { name: name.to_owned(), state, since, restarts: 0 })
                .into(),
            pressure: Pressure { disk_used_percent: 1, inodes_used_percent: 1, memory_available_percent: 90 },
            certificates: Vec::new(),
            clock_offset_ms: None,
        };
        let session = machine.session.unwrap();
        self.input(Input::Message { session, message: ToCoordinator::Health(Box::new(report)) });
    }

    fn enrol(&mut self, id: &MachineId, machine: &FakeMachine) {
        let request = EnrolRequest {
            machine: id.clone(),
            incarnation: machine.incarnation,
            token: machine.token.clone(),
            signing_request: vec![1],
        };
        let key_hash = Some(format!("key of {id} on disk {}", machine.disks));
        self.input(Input::Enrol { id: EnrolId(0), request, key_hash });
    }

    /// Opens a session of a machine, as its agent would.
    pub(crate) fn connect(&mut self, id: &MachineId) {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let machine = self.machines.get_mut(id).unwrap();
        machine.session = Some(session);
        let (incarnation, hello) = (machine.incarnation, hello(machine.boot, machine.generation));
        self.input(Input::Opened { session, machine: id.clone(), incarnation, hello });
    }

    /// A machine answers what it was asked about its peers: who has power and is linked answers it.
    fn probe(&mut self, session: SessionId, id: u64, targets: &[PeerTarget]) {
        let answer = |target: &PeerTarget| {
            let there = |id| self.cut_off.contains(id) || self.agentless.contains(id);
            let reached = |fake: &&FakeMachine| fake.on && (fake.linked || there(&target.machine));
            let said = match self.machines.get(&target.machine).filter(reached) {
                Some(fake)
                    if fake.enrolled
                        && !self.refused.contains(&target.machine)
                        && !self.agentless.contains(&target.machine) =>
                {
                    PeerSaid::Answered { round_trip_us: 300 }
                }
                Some(_) => PeerSaid::Refused,
                None => PeerSaid::Silent,
            };
            PeerAnswer { machine: target.machine.clone(), said }
        };
        let answers = targets.iter().map(answer).collect();
        self.probed.push_back((session, ToCoordinator::PeersProbed { id, answers }));
    }

    fn deliver(&mut self, session: SessionId, message: ToAgent) {
        if let (ToAgent::ProbePeers { id, targets }, true) = (&message, self.peers_answer) {
            self.probe(session, *id, targets);
        }
        if let ToAgent::Config(config) = &message
            && let Some((id, machine)) =
                self.machines.iter_mut().find(|(_, machine)| machine.session == Some(session))
        {
            match self.lose_configs.remove(id) {
                true => (machine.session, machine.linked) = (None, false),
                false => {
                    machine.generation = Some(config.generation);
                    machine.applies_until = self.ms + self.apply_ms;
                }
            }
        }
        self.sent.push(message);
    }

    fn end_session(&mut self, session: SessionId) {
        for machine in self.machines.values_mut() {
            if machine.session == Some(session) {
                machine.session = None;
            }
        }
    }

    pub(crate) fn state(&self, name: &str) -> Option<ClusterState> {
        let cluster = self.core.cluster(&name.parse().unwrap())?;
        Some(self.core.cluster_state(cluster, self.now()))
    }

    /// Names of the events so far, without doubles in a row.
    pub(crate) fn reasons(&self) -> Vec<&str> {
        let mut reasons: Vec<&str> = self.events.iter().map(|event| event.reason.as_str()).collect();
        reasons.dedup();
        reasons
    }
}

/// What is said of a call whose answer was lost.
fn unknown() -> ProviderFailure {
    ProviderFailure { remedy: Remedy::Retry, text: "timed out".to_owned() }
}

impl Disk {
    fn write(&mut self, row: Row) {
        let saved = &mut self.saved;
        match row {
            Row::Cluster(row) => {
                saved.clusters.retain(|old| old.spec.name != row.spec.name);
                saved.clusters.push(*row);
            }
            Row::Material(name, material) => saved.material.push((name, *material)),
            Row::RemoveCluster(name) => {
                saved.clusters.retain(|old| old.spec.name != name);
                saved.material.retain(|(old, _)| *old != name);
            }
            Row::Machine(row) => {
                saved.machines.retain(|old| old.id != row.id);
                saved.machines.push(*row);
            }
            Row::RemoveMachine(id) => saved.machines.retain(|old| old.id != id),
            Row::Operation(row) => {
                saved.operations.retain(|old| old.id != row.id);
                saved.operations.push(*row);
            }
            Row::RemoveOperation(id) => saved.operations.retain(|old| old.id != id),
            Row::Event(_) => {}
            Row::Counter(counter, value) => {
                saved.counters.retain(|(old, _)| *old != counter);
                saved.counters.push((counter, value));
            }
            Row::Plan(plan) => {
                saved.plans.retain(|old| old.name != plan.name);
                saved.plans.push(*plan);
            }
            Row::RemovePlan(name) => saved.plans.retain(|old| old.name != name),
            Row::Pause(scope, note) => {
                saved.pauses.retain(|(old, _)| *old != scope);
                saved.pauses.extend(note.map(|note| (scope, note)));
            }
            Row::Idempotency(row) => saved.idempotency.push(row),
            Row::RemoveIdempotency(key) => saved.idempotency.retain(|old| old.key != key),
        }
    }
}

fn at(ms: u64) -> Now {
    Now { mono: MonoTime(ms), wall: WallTime(1_800_000_000_000 + i64::try_from(ms).unwrap()) }
}

pub(crate) fn hello(boot: BootId, generation: Option<Generation>) -> ToCoordinator {
    ToCoordinator::Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        boot,
        generation,
        facts: Box::new(Facts {
            agent_version: "0.1.0".to_owned(),
            kernel: "6.1".to_owned(),
            os: "Debian".to_owned(),
            cgroup: CgroupVersion::V2,
            may_raise_limits: true,
            cpus: 2,
            memory_bytes: 1,
            disks: Vec::new(),
            image_digest: None,
            releases: Vec::new(),
            boot,
        }),
    }
}

pub(crate) fn small(name: &str) -> ClusterSpec {
    named(name, "small")
}

pub(crate) fn named(name: &str, plan: &str) -> ClusterSpec {
    serde_json::from_value(serde_json::json!({ "name": name, "plan": plan, "release": "1.37.2" })).unwrap()
}

fn settings() -> Settings {
    let release: Release = serde_json::from_value(serde_json::json!({
        "name": "1.37.2", "components": {}, "images": {}, "archives": {}, "upgradeFrom": [], "image": "1234",
    }))
    .unwrap();
    Settings {
        install: "test".parse().unwrap(),
        place: Place {
            network: "10.210.0.0/16".parse().unwrap(),
            first_address: [10, 210, 1, 0].into(),
            zones: ["zone-a", "zone-b", "zone-c"].map(str::to_owned).to_vec(),
        },
        plans: Plan::built_in(),
        releases: ReleaseCatalog { releases: BTreeMap::from([(release.name.clone(), release)]) },
        token_key: SecretBytes::new(vec![3; 32]),
    }
}

fn material() -> ClusterMaterial {
    let authority = || Authority { certificate: "certificate".to_owned(), key: SecretBytes::new(vec![1]) };
    let issuers = [Issuer::Kubernetes, Issuer::Etcd, Issuer::FrontProxy];
    ClusterMaterial {
        authorities: BTreeMap::from(issuers.map(|issuer| (issuer, authority()))),
        signer: authority(),
        service_account_key: SecretBytes::new(vec![2]),
        service_account_public_key: String::new(),
        encryption_key: SecretBytes::new(vec![3]),
    }
}
