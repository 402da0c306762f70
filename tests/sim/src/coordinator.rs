//! What the coordinator's shell does: gives inputs to the core and carries out its effects, one after the other, and may
//! be killed before each.

use std::collections::{BTreeMap, BTreeSet};

use keelson_agent_core::Validity;
use keelson_coordinator_core::{
    Asked, CallId, CoordinatorCore, Counter, ETCD_CALLS_MAX, Effect, EnrolId, Input, KUBE_CALLS_MAX,
    MachineRow, Now, PROVIDER_CALLS_MAX, ProviderCall, Row, SessionId, Settings,
};
use keelson_model::etcd::EtcdCall;
use keelson_model::kubernetes::{KubeCall, KubeFailure};
use keelson_model::material::Authority;
use keelson_model::{ClusterMaterial, Plan, Release, ReleaseCatalog};
use keelson_planner::Place;
use keelson_protocol::config::Issuer;
use keelson_protocol::message::{EnrolReply, EnrolRequest, ToAgent};
use keelson_protocol::{ClusterName, Incarnation, MachineId, MonoTime, SecretBytes, WallTime};

use crate::check::{Checker, EFFECTS_BESIDE_MAX, EFFECTS_PER_MACHINE_MAX};
use crate::clock::WALL_BASE_MS;
use crate::host::chain_of;
use crate::infrastructure;
use crate::machine::{Power, TakenByUs};
use crate::trace::Decision;
use crate::world::{Ix, SimEvent, World};

/// How often time passes for the core, in milliseconds, as in the real shell.
pub(crate) const TICK_MS: u64 = 250;
/// Life of a link certificate, and how much earlier than now certificates begin at most, in milliseconds, as in the real ones.
const LINK_LIFE_MS: u64 = 24 * 3_600_000;
const BACKDATED_MS: u64 = 2 * 3_600_000;
/// How long a call to etcd is waited for, in milliseconds, as in the real coordinator.
const ETCD_PATIENCE_MS: u64 = 10_000;

/// The coordinator's process, and what it has on its way.
#[derive(Debug)]
pub(crate) struct Coordinator {
    /// The core, while the process runs.
    pub(crate) core: Option<CoordinatorCore>,
    /// Which process it is.
    pub(crate) life: u32,
    pub(crate) frozen_until: u64,
    /// When it began.
    started: u64,
    /// How far its host's wall clock is set wrong.
    pub(crate) wall_offset_ms: i64,
    settings: Settings,
    effects_done: u64,
    /// It is killed before the effect with this number, for so many milliseconds.
    pub(crate) dies_before: Option<(u64, u64)>,
    enrolments: BTreeMap<EnrolId, (Ix, u32)>,
    next_enrolment: u64,
    /// Sessions that stand for it.
    pub(crate) sessions: BTreeSet<u32>,
    /// Calls to provider, etcd and Kubernetes that are under way.
    calls: [usize; 3],
    /// The newest incarnation of each name that was ever written down.
    incarnations: BTreeMap<MachineId, Incarnation>,
}

impl Coordinator {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            core: None,
            life: 0,
            frozen_until: 0,
            started: 0,
            wall_offset_ms: 0,
            settings,
            effects_done: 0,
            dies_before: None,
            enrolments: BTreeMap::new(),
            next_enrolment: 0,
            sessions: BTreeSet::new(),
            calls: [0; 3],
            incarnations: BTreeMap::new(),
        }
    }

    /// Makes it die before an effect that is so many further on.
    pub(crate) fn die_after(&mut self, effects: u64, down_ms: u64) {
        self.dies_before = Some((self.effects_done + effects, down_ms));
    }

    /// Calls to provider, etcd and Kubernetes that are under way.
    pub(crate) fn calls_under_way(&self) -> usize {
        self.calls.iter().sum()
    }
}

impl World {
    pub(crate) fn coordinator_settings(&self) -> &Settings {
        &self.coordinator.settings
    }

    /// The coordinator's clocks.
    pub(crate) fn coordinator_now(&self) -> Now {
        let passed = i64::try_from(self.now).unwrap_or(i64::MAX);
        let wall = WallTime(WALL_BASE_MS + passed + self.coordinator.wall_offset_ms);
        // Each process counts from its own start.
        Now { mono: MonoTime(self.now - self.coordinator.started), wall }
    }

    /// Whether the coordinator's host answers.
    pub(crate) fn coordinator_lives(&self) -> bool {
        self.coordinator.core.is_some() && self.coordinator.frozen_until <= self.now
    }

    pub(crate) fn start_coordinator(&mut self) {
        if self.coordinator.core.is_some() {
            return;
        }
        self.coordinator.started = self.now;
        let now = self.coordinator_now();
        let core = CoordinatorCore::restore(self.coordinator.settings.clone(), self.store.saved(), now);
        self.coordinator.core = Some(core);
        self.coordinator.life += 1;
        self.queue.push(self.now, SimEvent::Tick(self.coordinator.life));
        self.paths_changed();
    }

    /// The process is killed: whatever was on its way is lost, and only the disk is left.
    pub(crate) fn kill_coordinator(&mut self, down_ms: u64) {
        self.coordinator.core = None;
        self.coordinator.dies_before = None;
        self.coordinator.life += 1;
        self.coordinator.enrolments.clear();
        self.coordinator.sessions.clear();
        self.coordinator.calls = [0; 3];
        self.kubes.values_mut().for_each(crate::kube::FakeKube::coordinator_ended);
        self.note(Decision::Fault { machine: None, what: "the coordinator is dead".to_owned() });
        self.queue.push(self.now + down_ms.max(1), SimEvent::CoordinatorStarts);
        self.paths_changed();
    }

    pub(crate) fn tick(&mut self, life: u32) {
        if life == self.coordinator.life && self.coordinator.core.is_some() {
            self.queue.push(self.now + TICK_MS, SimEvent::Tick(life));
            self.input(Input::Tick);
        }
    }

    pub(crate) fn coordinator_answer(&mut self, life: u32, input: Input) {
        if life != self.coordinator.life {
            return;
        }
        let kind = match &input {
            Input::Provider { .. } => Some(0),
            Input::Etcd { .. } => Some(1),
            Input::Kube { .. } => Some(2),
            _ => None,
        };
        if let Some(kind) = kind {
            self.coordinator.calls[kind] -= 1;
        }
        self.input(input);
    }

    /// Gives an input to the core and carries out what follows.
    pub(crate) fn input(&mut self, input: Input) {
        let now = self.coordinator_now();
        let Some(core) = &mut self.coordinator.core else { return };
        let effects = core.handle(now, input);
        if !effects.is_empty() {
            self.carry_out(effects);
        }
    }

    /// Carries out effects in order. Whether the coordinator lived through all of them.
    pub(crate) fn carry_out(&mut self, effects: Vec<Effect>) -> bool {
        let machines = self.store.machines.len().max(self.by_id.len());
        let effects_max = EFFECTS_BESIDE_MAX + EFFECTS_PER_MACHINE_MAX * machines;
        if effects.len() > effects_max {
            let what = format!("{} effects of one input, at most {effects_max} may be", effects.len());
            self.violate(Checker::Bounds, what);
        }
        for effect in effects {
            self.coordinator.effects_done += 1;
            match self.coordinator.dies_before {
                Some((number, down_ms)) if self.coordinator.effects_done >= number => {
                    self.kill_coordinator(down_ms);
                    return false;
                }
                _ => self.carry_out_one(effect),
            }
        }
        true
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(rows) => self.write_rows(rows),
            Effect::Provider { id, call } => {
                self.count_call(0, PROVIDER_CALLS_MAX);
                let at = self.now + self.infrastructure.delay(&call);
                self.queue.push(at, SimEvent::Provider(self.coordinator.life, id, Box::new(call)));
            }
            Effect::Etcd { id, session, cluster, call } => {
                self.count_call(1, ETCD_CALLS_MAX);
                let at = self.now + self.random.between(40, 200) + self.late_ms(ETCD_PATIENCE_MS);
                let session = u32::try_from(session.0).unwrap_or(u32::MAX);
                let call = Box::new((cluster, call));
                self.queue.push(at, SimEvent::Etcd(self.coordinator.life, id, session, call));
            }
            Effect::Kube { id, cluster, call } => {
                self.count_call(2, KUBE_CALLS_MAX);
                self.check_drain(&cluster, &call);
                let at = self.now + self.random.between(5, 60) + self.late_ms(kube_patience_ms(&call));
                let call = Box::new((cluster, call));
                self.queue.push(at, SimEvent::Kube(self.coordinator.life, id, call));
            }
            Effect::Send { session, message } => self.send(session, message),
            Effect::Close { session, why } => self.close(session, &why),
            Effect::AcceptEnrol { id, .. } => {
                let chain = chain_of(self.validity(self.link_life_ms()));
                self.reply(id, EnrolReply::Accepted { chain });
            }
            Effect::RefuseEnrol { id, refusal } => self.reply(id, EnrolReply::Refused(refusal)),
            Effect::RenewLink { session, .. } => {
                let chain = chain_of(self.validity(self.link_life_ms()));
                self.send(session, Box::new(ToAgent::LinkRenewed { chain }));
            }
            Effect::SignLeaf { session, spec, .. } => {
                let chain = chain_of(self.validity(u64::from(spec.lifetime_s) * 1_000));
                self.send(session, Box::new(ToAgent::Certificate { name: spec.name, chain }));
            }
            Effect::Note(event) => self.note(Decision::Event(Box::new(event))),
        }
    }

    /// How long a call is on its way, or its answer, beyond what is usual: at most as long as it is waited for.
    fn late_ms(&mut self, patience_ms: u64) -> u64 {
        let late = self.stormy && self.random.chance(self.weather.calls_late_permille);
        if late { self.random.below(patience_ms) } else { 0 }
    }

    fn count_call(&mut self, kind: usize, most: usize) {
        self.coordinator.calls[kind] += 1;
        if self.coordinator.calls[kind] > most {
            let what = format!(
                "{} calls of kind {kind} are under way, at most {most} may be",
                self.coordinator.calls[kind]
            );
            self.violate(Checker::Bounds, what);
        }
    }

    fn link_life_ms(&self) -> u64 {
        match self.weather.link_life_ms {
            0 => LINK_LIFE_MS,
            short => short,
        }
    }

    fn validity(&self, life_ms: u64) -> Validity {
        let now = self.coordinator_now().wall;
        let not_before = WallTime(now.0 - i64::try_from(BACKDATED_MS.min(life_ms)).expect("an hour or two"));
        Validity { not_before, not_after: now.plus(std::time::Duration::from_millis(life_ms)) }
    }

    fn write_rows(&mut self, rows: Vec<Row>) {
        for row in rows {
            self.check_growth(&row);
            self.check_begun(&row);
            self.store.write(row);
        }
    }

    /// What is written down for the first time begins.
    fn check_begun(&mut self, row: &Row) {
        let Row::Machine(row) = row else { return };
        let acts = |row: &MachineRow| row.acting.is_some() || row.renew;
        let by_hand = row.asked != Asked::Nobody;
        if acts(row) && !by_hand && !self.store.machines.get(&row.id).is_some_and(acts) {
            self.check_repair(&row.id);
        }
    }

    fn check_growth(&mut self, row: &Row) {
        let broken = match row {
            Row::Cluster(row) => {
                let name = &row.spec.name;
                let before = self.store.clusters.get(name).map(|old| &old.blueprint);
                let shrank = before.is_some_and(|old| old.generation > row.blueprint.generation);
                let changed = before
                    .is_some_and(|old| old.generation == row.blueprint.generation && *old != row.blueprint);
                if before.map(|old| old.generation) != Some(row.blueprint.generation) {
                    let diff = row.blueprint.diff(before).to_string();
                    self.note(Decision::Blueprint { cluster: name.to_string(), diff });
                }
                (shrank || changed)
                    .then(|| format!("blueprint of {name} went back, or changed without a new generation"))
            }
            Row::Machine(row) => {
                // Rows of machines that are made anew, or of clusters that are made again, are removed in between.
                let newest = self.coordinator.incarnations.entry(row.id.clone()).or_insert(row.incarnation);
                let before = std::mem::replace(newest, row.incarnation.max(*newest));
                (before > row.incarnation).then(|| format!("incarnation of {} went back", row.id))
            }
            Row::Counter(counter, value) => {
                let before = self.store.counters.get(counter);
                // Of a pause it is the time, and nothing when it ends.
                let grows = *counter != Counter::RepairPaused;
                before
                    .is_some_and(|old| grows && old > value)
                    .then(|| format!("counter {} went back", counter.name()))
            }
            _ => None,
        };
        if let Some(what) = broken {
            self.violate(Checker::Growth, what);
        }
    }

    // Enrolment.

    pub(crate) fn enrolment_comes(&mut self, ix: Ix, life: u32, request: EnrolRequest) {
        let id = EnrolId(self.coordinator.next_enrolment);
        self.coordinator.next_enrolment += 1;
        self.coordinator.enrolments.insert(id, (ix, life));
        let key_hash = Some(hex::encode(&request.signing_request));
        self.input(Input::Enrol { id, request, key_hash });
    }

    fn reply(&mut self, id: EnrolId, reply: EnrolReply) {
        let Some((ix, life)) = self.coordinator.enrolments.remove(&id) else { return };
        if self.network.passes(crate::network::End::Coordinator, self.end(ix)) {
            let at = self.now + self.delay(ix);
            self.queue.push(at, SimEvent::EnrolReply(ix as u32, life, Box::new(reply)));
        }
    }

    // Calls.

    pub(crate) fn provider_call(&mut self, life: u32, id: CallId, call: ProviderCall) {
        let (words, machine) = (infrastructure::words(&call), infrastructure::machine_of(&call));
        let fenced = match &call {
            ProviderCall::Fence { machine, .. } => self.by_id.get(machine).copied(),
            _ => None,
        };
        if let Some(ix) = fenced {
            self.check_fence(ix);
        }
        self.check_pause(&call);
        if let Some(ix) = fenced {
            self.check_meltdown(ix);
        }
        let off = machine.as_ref().and_then(|id| self.by_id.get(id).copied());
        let off = off.filter(|ix| self.machines[*ix].is_off() && self.machines[*ix].boots > 0);
        let runs = fenced.filter(|ix| self.machines[*ix].power == Power::On);
        let weather = if self.stormy { self.weather.clone() } else { crate::case::Weather::default() };
        let result = self.infrastructure.call(call, &weather, self.now);
        if let Some(call) = words {
            let answer = match &result {
                Ok(_) => "done".to_owned(),
                Err(failure) => failure.text.clone(),
            };
            self.note(Decision::Call { call: format!("provider: {call}"), answer });
        }
        if let Some(machine) = machine {
            self.power_changed(&machine);
        }
        if let Some(ix) = runs.filter(|ix| self.machines[*ix].is_off()) {
            self.machines[ix].taken_by_us = TakenByUs { member: true, api: true };
            self.check_taken(ix);
        }
        if let Some(ix) = off.filter(|ix| self.machines[*ix].power == Power::On) {
            self.check_powered(ix);
        }
        let at = self.now + self.infrastructure.answer_ms();
        self.queue.push(at, SimEvent::Answer(life, Box::new(Input::Provider { id, result })));
    }

    pub(crate) fn etcd_call(
        &mut self,
        life: u32,
        id: CallId,
        session: u32,
        (name, call): (ClusterName, EtcdCall),
    ) {
        let ix = self.sessions.get(session as usize).map(|session| session.machine);
        let beside =
            ix.filter(|ix| self.machine_hears(*ix) && self.machines[*ix].host.serves("etcd.service"));
        let result = match beside {
            Some(ix) => self.ask_etcd(&name, ix, &call),
            None => Err("the machine's session has ended".to_owned()),
        };
        if call != EtcdCall::Look {
            let answer = result.as_ref().map_or_else(Clone::clone, |_| "done".to_owned());
            self.note(Decision::Call { call: format!("etcd of {name}: {call}"), answer });
        }
        let lost = self.random.chance(self.weather.answers_lost_permille) && self.stormy;
        let result = if lost { Err("the answer was lost".to_owned()) } else { result };
        let at = self.now + self.random.between(5, 50) + self.late_ms(ETCD_PATIENCE_MS);
        self.queue.push(at, SimEvent::Answer(life, Box::new(Input::Etcd { id, result })));
    }

    pub(crate) fn kube_call(&mut self, life: u32, id: CallId, (name, call): (ClusterName, KubeCall)) {
        let (way, patience_ms) = (self.api_for_coordinator(&name), kube_patience_ms(&call));
        if let (KubeCall::Drain { node, .. }, Some(kube)) = (&call, self.kubes.get_mut(&name)) {
            kube.drain_came(node);
        }
        let unreachable = |why: &str| KubeFailure::Unreachable { why: why.to_owned() };
        let result = if way { self.ask_kube(&name, call) } else { Err(unreachable("no API server answers")) };
        let lost = self.random.chance(self.weather.answers_lost_permille) && self.stormy;
        let result = if lost { Err(unreachable("the answer was lost")) } else { result };
        let at = self.now + self.random.between(1, 20) + self.late_ms(patience_ms);
        self.queue.push(at, SimEvent::Answer(life, Box::new(Input::Kube { id, result })));
    }

    fn ask_kube(
        &mut self,
        name: &ClusterName,
        call: KubeCall,
    ) -> Result<keelson_model::kubernetes::KubeAnswer, KubeFailure> {
        self.beat_nodes(name);
        if let KubeCall::Evacuate { node } = &call
            && self.by_id.get(node).is_some_and(|ix| !self.machines[*ix].is_off())
        {
            self.violate(Checker::Evacuation, format!("{node} is evacuated and has power"));
        }
        if let KubeCall::DeleteNode { node } = &call
            && self.by_id.get(node).is_some_and(|ix| !self.machines[*ix].is_off())
            && self.kubes.get(name).is_some_and(|kube| kube.pods_on(node) > 0)
        {
            self.violate(Checker::Evacuation, format!("node {node} is removed, and its pods run on"));
        }
        let words = match &call {
            KubeCall::Nodes | KubeCall::SetNode { .. } => None,
            KubeCall::Drain { node, .. } => Some(format!("drain {node}")),
            KubeCall::Evacuate { node } => Some(format!("evacuate {node}")),
            KubeCall::DeleteNode { node } => Some(format!("delete node {node}")),
        };
        let Some(mut kube) = self.kubes.remove(name) else {
            return Err(KubeFailure::Unreachable { why: String::new() });
        };
        let hold = self.budgets_hold_until > self.now;
        let result = kube.call(call, self.now, hold, |id| self.kubelet_lives(id));
        if let Some(call) = words {
            let answer = match &result {
                Ok(keelson_model::kubernetes::KubeAnswer::Drained(state)) => state.to_string(),
                Ok(_) => "done".to_owned(),
                Err(failure) => failure.to_string(),
            };
            self.note(Decision::Call { call: format!("kubernetes of {name}: {call}"), answer });
        }
        self.kubes.insert(name.clone(), kube);
        result
    }
}

/// How long a call to Kubernetes is waited for, in milliseconds, as in the real coordinator.
fn kube_patience_ms(call: &KubeCall) -> u64 {
    match call {
        KubeCall::Nodes | KubeCall::Evacuate { .. } => 5_000,
        KubeCall::SetNode { .. } | KubeCall::Drain { .. } | KubeCall::DeleteNode { .. } => 20_000,
    }
}

/// A session's number for the core.
pub(crate) fn session_id(session: u32) -> SessionId {
    SessionId(u64::from(session))
}

/// What does not change.
pub(crate) fn settings() -> Settings {
    let release: Release = serde_json::from_value(serde_json::json!({
        "name": "1.37.2", "components": {}, "images": { "pause": "registry.local/pause:1" },
        "archives": { "pause": "/opt/keelson/releases/1.37.2/pause.tar" }, "upgradeFrom": [], "image": "1234",
    }))
    .expect("that is a release");
    Settings {
        install: "sim".parse().expect("that is an install id"),
        place: Place {
            network: "10.210.0.0/16".parse().expect("that is a network"),
            first_address: [10, 210, 1, 0].into(),
            zones: ["zone-a", "zone-b", "zone-c"].map(str::to_owned).to_vec(),
        },
        plans: Plan::built_in(),
        releases: ReleaseCatalog { releases: BTreeMap::from([(release.name.clone(), release)]) },
        token_key: SecretBytes::new(vec![3; 32]),
    }
}

/// Keys of a cluster, in name only.
pub(crate) fn material() -> ClusterMaterial {
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
