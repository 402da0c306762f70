//! The core's state, and the loop that compares what shall be with what is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keelson_model::etcd::EtcdCall;
use keelson_model::{
    Care, ClusterMaterial, EtcdHold, Evidence, FleetEvent, LeaveStep, LinkState, MachinePhase, Observed,
    ObservedMachine, Operation, OperationId, Plan, PlanName, ReleaseCatalog, RepairAction, Severity, Verdict,
};
use keelson_planner::{Addresses, Place};
use keelson_protocol::config::NodeConfig;
use keelson_protocol::health::{Facts, HealthReport, Heartbeat, NodeState};
use keelson_protocol::message::Refusal;
use keelson_protocol::{
    BootId, ClusterName, Generation, Incarnation, InstallId, MachineId, MonoTime, SecretBytes, WallTime,
};

use crate::effect::{CallId, Effect, HealthCheck, Input, SessionId};
use crate::etcd::EtcdWatch;
use crate::leave::Parting;
use crate::limits::{BOOT_GRACE, RETURN_PAUSE_MAX, WARM_UP, WARM_UP_MAX};
use crate::metrics::Metrics;
use crate::nodes::{KubeFor, KubeWatch};
use crate::peers::{PeerQuestion, PeerWord};
use crate::repair::Repair;
use crate::rollout::RenderKey;
use crate::row::{ClusterRow, Counter, IdempotencyRow, MachineRow, PauseNote, Row, Saved};

/// The two clocks, read by the shell at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For intervals.
    pub mono: MonoTime,
    /// For records.
    pub wall: WallTime,
}

/// What does not change while the coordinator runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This installation.
    pub install: InstallId,
    /// Where machines can be placed.
    pub place: Place,
    /// The plans that are always there; [`CoordinatorCore::plans`] knows those of users too.
    pub plans: Vec<Plan>,
    /// The releases that users may choose.
    pub releases: ReleaseCatalog,
    /// Key that enrolment tokens and the keys of peer probes are derived from.
    pub token_key: SecretBytes,
}

/// A cluster in memory.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// What is on disk.
    pub row: ClusterRow,
    /// Its keys.
    pub material: Arc<ClusterMaterial>,
    /// Its services that users reach from outside, by name.
    pub exposures: BTreeMap<String, Exposure>,
    /// Whether the provider has confirmed, for a cluster that goes, that nothing is exposed any more.
    pub unexposed: bool,
    /// The call under way that removes them.
    pub(crate) unexpose_call: Option<CallId>,
    /// When to ask again after a failure.
    pub(crate) unexpose_after: Option<MonoTime>,
    /// How often that has failed, and why it last did.
    pub(crate) unexpose_attempts: u32,
    pub(crate) unexpose_error: Option<String>,
    /// What is known of its etcd.
    pub etcd: EtcdWatch,
    /// What is known of its nodes.
    pub kube: KubeWatch,
    /// Why its etcd does not yet get the size that the spec wants.
    pub held: Option<EtcdHold>,
    /// Why the spec cannot be planned in full.
    pub lacking: Option<String>,
    /// When the blueprint in force was made; nothing when a coordinator before this one made it.
    pub(crate) planned: Option<WallTime>,
    /// Whether the blueprint in force may not be the last step on the way to the spec.
    pub(crate) plan_due: bool,
    /// Whether something of it is on its way and has to be looked at again without being told.
    pub(crate) busy: bool,
}

/// A service that is, or shall be, reachable from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// Where it leads.
    pub targets: Vec<SocketAddr>,
    /// How the provider shall see that a target works.
    pub check: HealthCheck,
    /// Where users reach it, once the provider has said so.
    pub address: Option<SocketAddr>,
    /// Whether the provider has confirmed these targets.
    pub set: bool,
    /// What the provider said last.
    pub error: Option<String>,
    pub(crate) call: Option<CallId>,
    /// Whether that call is about targets of before: they are told one after the other, or the older would win at times.
    pub(crate) stale: bool,
    pub(crate) attempts: u32,
    pub(crate) after: Option<MonoTime>,
}

impl Exposure {
    /// One that takes the place of another.
    pub(crate) fn new(targets: Vec<SocketAddr>, check: HealthCheck, before: Option<&Self>) -> Self {
        let address = before.and_then(|before| before.address);
        let call = before.and_then(|before| before.call);
        let stale = call.is_some();
        Self { targets, check, address, set: false, error: None, call, stale, attempts: 0, after: None }
    }
}

/// A machine in memory.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What is on disk.
    pub row: MachineRow,
    /// The provider call under way.
    pub(crate) call: Option<CallId>,
    /// Failed calls in a row.
    pub(crate) attempts: u32,
    /// Why the last call failed.
    pub(crate) refusal: Option<String>,
    /// When the provider may be asked again.
    pub(crate) after: Option<MonoTime>,
    /// When the provider last said that it is on. A list that was begun before says nothing about it.
    pub(crate) on_since: Option<MonoTime>,
    /// Until when it may boot in silence.
    pub(crate) boots_until: Option<MonoTime>,
    /// When it was last sent a config.
    pub(crate) sent_at: Option<MonoTime>,
    /// A newer incarnation of it that the infrastructure has.
    pub(crate) newer: Option<Incarnation>,
    /// The session that stands.
    pub session: Option<SessionId>,
    /// Whether it has said how it is: in this session, or the one before without a break, and since the last gap.
    pub(crate) spoke: bool,
    /// The link, for people.
    pub link: LinkState,
    /// When it was last heard in sessions that have ended; [`CoordinatorCore::last_heard`] knows all of them.
    pub(crate) heard_before: Option<MonoTime>,
    /// The boot of its last session.
    pub(crate) boot: Option<BootId>,
    /// The last heartbeat of that boot that said something new.
    pub heartbeat: Option<Heartbeat>,
    /// Since when it has been on its way to a config.
    pub(crate) applies_since: Option<MonoTime>,
    /// Whether its heartbeats stay away.
    pub silent: bool,
    /// The newest health report.
    pub health: Option<Arc<HealthReport>>,
    /// What the machine is.
    pub facts: Option<Arc<Facts>>,
    /// Digest of the services in the newest config that was rendered for it.
    pub(crate) services: Option<(RenderKey, String)>,
    /// Generation of the config that its agent holds or was sent in this session.
    pub(crate) told: Option<Generation>,
    /// The call about its node that is under way.
    pub(crate) kube_call: Option<CallId>,
    /// When the next one may be made.
    pub(crate) kube_after: Option<MonoTime>,
    /// How far its node is on its way out.
    pub parting: Parting,
    /// What is to be thought of it.
    pub verdict: Verdict,
    /// What speaks for that.
    pub evidence: Option<Evidence>,
    /// Since when it is not well.
    pub(crate) suspected: Option<MonoTime>,
    /// When it was last judged to be silent together with its zone or with the fleet.
    pub(crate) silent_together: Option<MonoTime>,
    /// When peers were last asked about it.
    pub(crate) peers_asked: Option<MonoTime>,
    /// When peers last reached it while it was not heard.
    pub(crate) reached_at: Option<MonoTime>,
    /// When the provider last listed it with power.
    pub(crate) seen_on: Option<MonoTime>,
    /// When the provider last listed it without power.
    pub(crate) seen_off: Option<MonoTime>,
    /// When this process last asked for its power, or was told that it does not get it; `None` once it was fenced.
    pub(crate) power_asked: Option<MonoTime>,
    /// When the infrastructure last failed to take its power away.
    pub(crate) fence_failed: Option<MonoTime>,
    /// Since when it is known to be without power.
    pub(crate) off_since: Option<MonoTime>,
    /// Whether its pods were given up since.
    pub(crate) evacuated: bool,
    /// Since when somebody with its token asks to enrol again with a key that it never had.
    pub(crate) other_key: Option<MonoTime>,
    /// The fault that is open, in memory.
    pub(crate) repair: Option<Repair>,
}

/// Until when a machine may boot, as a coordinator that starts finds it written down.
fn boots_until(row: &MachineRow, now: Now) -> Option<MonoTime> {
    match row.phase {
        MachinePhase::Booting { since } | MachinePhase::Enrolled { since } => {
            let left = BOOT_GRACE.checked_sub(now.wall.since(since))?;
            Some(now.mono.plus(left))
        }
        _ => None,
    }
}

impl Machine {
    /// The wall clock was set ahead by so much: all that happened to it is as long ago as before.
    pub(crate) fn wall_was_set_ahead(&mut self, by: Duration) {
        self.row.later_by(by);
        if let LinkState::Connected { since, .. } | LinkState::Lost { since, .. } = &mut self.link {
            *since = since.plus(by);
        }
    }

    /// The wall clock was set back to this: nothing has happened to it later.
    pub(crate) fn wall_was_set_back(&mut self, to: WallTime) {
        self.row.not_after(to);
        if let LinkState::Connected { since, .. } | LinkState::Lost { since, .. } = &mut self.link {
            *since = (*since).min(to);
        }
    }

    pub(crate) fn new(row: MachineRow) -> Self {
        Self {
            row,
            call: None,
            attempts: 0,
            refusal: None,
            after: None,
            on_since: None,
            boots_until: None,
            sent_at: None,
            newer: None,
            session: None,
            spoke: false,
            link: LinkState::Never,
            heard_before: None,
            boot: None,
            heartbeat: None,
            applies_since: None,
            silent: false,
            health: None,
            facts: None,
            told: None,
            kube_call: None,
            kube_after: None,
            parting: Parting::default(),
            verdict: Verdict::Well,
            evidence: None,
            suspected: None,
            silent_together: None,
            peers_asked: None,
            reached_at: None,
            seen_on: None,
            seen_off: None,
            power_asked: None,
            fence_failed: None,
            off_since: None,
            evacuated: false,
            repair: None,
            services: None,
            other_key: None,
        }
    }

    /// Whether nothing is known to have run on it, and it is not being made at this moment. Where the answer to a call was
    /// lost it may be there all the same, until it is removed.
    pub(crate) fn is_unmade(&self) -> bool {
        let asked_for =
            matches!(self.row.phase, MachinePhase::Creating { .. } | MachinePhase::Retrying { .. });
        let unmade = asked_for && self.call.is_none() && self.row.enrolled_key.is_none();
        unmade || matches!(self.row.phase, MachinePhase::Planned | MachinePhase::Refused { .. })
    }

    /// Whether a session stands and its heartbeats come.
    pub(crate) fn is_heard(&self) -> bool {
        self.session.is_some() && !self.silent
    }

    /// Whether it is heard, and what is known of it is no older than its session.
    pub(crate) fn speaks(&self) -> bool {
        self.is_heard() && self.spoke
    }

    /// Whether it holds the config of `generation` or a later one, and everything in it is healthy.
    pub(crate) fn is_ready_with(&self, generation: Generation) -> bool {
        let told = self.heartbeat.map(|heartbeat| (heartbeat.generation, heartbeat.state));
        self.speaks() && told.is_some_and(|(has, state)| has >= generation && state == NodeState::Ready)
    }
}

/// What a session said last. Kept apart from its machine, because it is written 20,000 times a second and found by a
/// number.
#[derive(Debug, Clone)]
pub(crate) struct Voice {
    pub(crate) machine: MachineId,
    /// When the last heartbeat came; before the first one, when the session was opened.
    pub(crate) heard: MonoTime,
    pub(crate) heartbeat: Option<Heartbeat>,
    /// Whether a heartbeat came in this session.
    pub(crate) beats: bool,
    /// The machine was called silent, or may be gone: its next heartbeat ends that.
    pub(crate) awaited: bool,
}

/// What a provider call is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallFor {
    Create(MachineId),
    Delete(MachineId),
    Fence(MachineId),
    PowerOn(MachineId),
    Orphan(MachineId),
    List,
    Expose(ClusterName, String),
    Unexpose(ClusterName),
}

/// The coordinator's decisions.
///
/// Call [`Self::handle`] for every input (or [`Self::take`] for each of many, then [`Self::settle`]) and the command
/// methods for every request, then carry out the effects in order;
/// a `Persist` must be on disk before the next effect begins. Calls must not go back in time. Getters may be called at
/// any moment.
#[derive(Debug, Clone)]
pub struct CoordinatorCore {
    pub(crate) settings: Settings,
    pub(crate) clusters: BTreeMap<ClusterName, Cluster>,
    /// Addresses of all blueprints' machines.
    pub(crate) addresses: Addresses,
    pub(crate) machines: BTreeMap<MachineId, Machine>,
    /// The config that was rendered last.
    pub(crate) rendered: Option<(MachineId, RenderKey, NodeConfig)>,
    /// Machines of each cluster, also of clusters that are gone while their machines go.
    pub(crate) members: BTreeMap<ClusterName, BTreeSet<MachineId>>,
    pub(crate) sessions: BTreeMap<SessionId, Voice>,
    pub(crate) operations: BTreeMap<OperationId, Operation>,
    /// Plans of users.
    pub(crate) plans: BTreeMap<PlanName, Plan>,
    pub(crate) idempotency: BTreeMap<String, IdempotencyRow>,
    pub(crate) counters: BTreeMap<Counter, u64>,
    pub(crate) calls: BTreeMap<CallId, CallFor>,
    /// Questions to clusters' etcd that are under way.
    pub(crate) etcd_calls: BTreeMap<CallId, (ClusterName, EtcdCall)>,
    /// Questions to clusters' API servers that are under way.
    pub(crate) kube_calls: BTreeMap<CallId, (ClusterName, KubeFor)>,
    pub(crate) next_call: u64,
    pub(crate) next_list: MonoTime,
    /// When the list under way, or the last one, was begun.
    pub(crate) list_begun: MonoTime,
    /// Since when the provider gives no list, and whether that was told.
    pub(crate) list_failing: Option<(MonoTime, bool)>,
    /// Listed machines without a blueprint that could not be removed, and why.
    pub(crate) orphans_failed: BTreeMap<MachineId, String>,
    /// Machines whose sessions were refused: why, and when that was told.
    pub(crate) refusals: BTreeMap<MachineId, (Refusal, MonoTime)>,
    /// Machines at the provider of which nothing is known, and since when each is listed.
    pub(crate) unknown: BTreeMap<(MachineId, Incarnation), MonoTime>,
    pub(crate) started: MonoTime,
    /// Until when machines that were not heard since the start may be on their way back.
    pub(crate) returning_until: MonoTime,
    /// Since when the coordinator has been listening without a gap. Before that it may have missed heartbeats.
    pub(crate) listening_since: MonoTime,
    pub(crate) last_tick: MonoTime,
    /// What both clocks said when something was last taken or compared.
    pub(crate) last_look: Now,
    /// The last question to peers about each machine that was asked about.
    pub(crate) peer_questions: BTreeMap<MachineId, PeerQuestion>,
    /// What peers said about machines.
    pub(crate) peer_answers: BTreeMap<MachineId, Vec<PeerWord>>,
    pub(crate) next_peer_question: u64,
    pub(crate) metrics: Metrics,
    /// Since when repair of everything is paused.
    pub(crate) repair_paused: Option<WallTime>,
    /// Who has paused repair, by cluster; of everything where there is none.
    pub(crate) pauses: BTreeMap<Option<ClusterName>, PauseNote>,
    /// Clusters that something happened to since they were last compared with their blueprints. Keeps the work of an
    /// input in proportion to one cluster, not to the fleet.
    pub(crate) touched: BTreeSet<ClusterName>,
    /// Rows and other effects of the call under way.
    pub(crate) rows: Vec<Row>,
    pub(crate) effects: Vec<Effect>,
}

impl CoordinatorCore {
    /// Takes up where an earlier process left off, or starts afresh. Effects of the first [`Input::Tick`] do the rest.
    #[must_use]
    pub fn restore(settings: Settings, saved: Saved, now: Now) -> Self {
        let mut material: BTreeMap<_, _> = saved.material.into_iter().collect();
        let clusters = saved.clusters.into_iter().filter_map(|row| {
            let name = row.spec.name.clone();
            let material = Arc::new(material.remove(&name)?);
            Some((name, Cluster::new(row, material)))
        });
        let mut core = Self {
            clusters: clusters.collect(),
            addresses: Addresses::new(),
            machines: BTreeMap::new(),
            rendered: None,
            members: BTreeMap::new(),
            sessions: BTreeMap::new(),
            operations: saved
                .operations
                .into_iter()
                .map(|operation| (operation.id.clone(), operation))
                .collect(),
            plans: saved.plans.into_iter().map(|plan| (plan.name.clone(), plan)).collect(),
            idempotency: saved.idempotency.into_iter().map(|row| (row.key.clone(), row)).collect(),
            counters: saved.counters.into_iter().collect(),
            calls: BTreeMap::new(),
            etcd_calls: BTreeMap::new(),
            kube_calls: BTreeMap::new(),
            next_call: 0,
            next_list: now.mono,
            list_begun: now.mono,
            list_failing: None,
            orphans_failed: BTreeMap::new(),
            refusals: BTreeMap::new(),
            unknown: BTreeMap::new(),
            started: now.mono,
            returning_until: now.mono.plus(WARM_UP),
            listening_since: now.mono,
            last_tick: now.mono,
            last_look: now,
            peer_questions: BTreeMap::new(),
            peer_answers: BTreeMap::new(),
            next_peer_question: 0,
            metrics: Metrics::default(),
            repair_paused: None,
            pauses: saved.pauses.into_iter().collect(),
            touched: BTreeSet::new(),
            rows: Vec::new(),
            effects: Vec::new(),
            settings,
        };
        let paused = core.counters.get(&Counter::RepairPaused).copied().filter(|at| *at > 0);
        core.repair_paused = paused.map(|at| WallTime(i64::try_from(at).unwrap_or(i64::MAX)));
        for mut row in saved.machines {
            row.not_after(now.wall);
            let (id, until) = (row.id.clone(), boots_until(&row, now));
            core.add_machine(row);
            core.machines.get_mut(&id).into_iter().for_each(|machine| machine.boots_until = until);
        }
        let names: Vec<ClusterName> = core.clusters.keys().cloned().collect();
        names.iter().for_each(|name| core.take_addresses(name));
        core.touched.extend(core.clusters.keys().chain(core.members.keys()).cloned());
        core.note_start(now);
        core
    }

    fn note_start(&mut self, now: Now) {
        let event = self.event(now, Severity::Info, "CoordinatorStarted");
        let (clusters, machines) = (self.clusters.len(), self.machines.len());
        self.note(FleetEvent {
            cause: "the coordinator was started".to_owned(),
            outcome: format!("{clusters} clusters with {machines} machines are expected back"),
            ..event
        });
    }

    /// Takes one input and returns what to do.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Effect> {
        self.take(now, input);
        self.settle(now)
    }

    /// Takes one input, and leaves what follows from it to [`Self::settle`]. Of a burst of inputs, as when a fleet comes
    /// back, each is taken, and what they mean together is settled once.
    pub fn take(&mut self, now: Now, input: Input) {
        self.notice_wall_clock(now);
        match input {
            Input::Tick => self.on_tick(now),
            Input::Enrol { id, request, key_hash } => self.on_enrol(now, id, &request, key_hash),
            Input::Opened { session, machine, incarnation, hello } => {
                self.on_opened(now, session, &machine, incarnation, hello);
            }
            Input::Heartbeat { session, heartbeat } => self.on_heartbeat(now, session, heartbeat),
            Input::Message { session, message } => self.on_message(now, session, message),
            Input::RenewLink { session, signing_request, key_hash } => {
                self.on_renew_link(session, signing_request, key_hash);
            }
            Input::Closed { session, why } => self.on_closed(now, session, why),
            Input::Provider { id, result } => self.on_provider(now, id, result),
            Input::Etcd { id, result } => self.on_etcd(now, id, result),
            Input::Kube { id, result } => self.on_kube(now, id, result),
        }
    }

    /// Compares and returns what to do, after whatever was taken.
    pub fn settle(&mut self, now: Now) -> Vec<Effect> {
        self.reconcile(now);
        self.take_effects()
    }

    /// Compares what shall be with what is, for each cluster that something happened to, and asks for what is missing.
    pub(crate) fn reconcile(&mut self, now: Now) {
        self.notice_wall_clock(now);
        for name in std::mem::take(&mut self.touched) {
            self.reconcile_plan(now, &name);
            self.reconcile_etcd(now, &name);
            self.reconcile_configs(&name);
            self.reconcile_nodes(now, &name);
            // Nobody is led to a machine whose power is about to go.
            self.reconcile_exposures(now, &name);
            self.reconcile_machines(now, &name);
            self.reconcile_progress(now, &name);
            self.note_busy(&name);
        }
        self.reconcile_list(now);
    }

    fn note_busy(&mut self, name: &ClusterName) {
        let Some(cluster) = self.clusters.get(name) else { return };
        let busy = cluster.plan_due
            || self.etcd_matters(cluster)
            || self.has_stale_configs(name)
            || self.nodes_matter(cluster)
            || self.machines_of(name).any(|machine| machine.row.acting.is_some() || machine.row.renew);
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.busy = busy;
        }
    }

    pub(crate) fn add_machine(&mut self, row: MachineRow) {
        self.members.entry(row.cluster.clone()).or_default().insert(row.id.clone());
        self.machines.insert(row.id.clone(), Machine::new(row));
    }

    pub(crate) fn remove_machine(&mut self, id: &MachineId) -> Option<Machine> {
        let machine = self.machines.remove(id)?;
        self.forget_peer_answers(id);
        if let Some(members) = self.members.get_mut(&machine.row.cluster) {
            members.remove(id);
            if members.is_empty() {
                self.members.remove(&machine.row.cluster);
            }
        }
        Some(machine)
    }

    /// Machines of a cluster.
    pub fn machines_of(&self, name: &ClusterName) -> impl Iterator<Item = &Machine> {
        self.members.get(name).into_iter().flatten().filter_map(|id| self.machines.get(id))
    }

    /// Says that something happened to a machine's cluster.
    pub(crate) fn touch(&mut self, id: &MachineId) {
        if let Some(machine) = self.machines.get(id) {
            self.touched.insert(machine.row.cluster.clone());
        }
    }

    /// Rows first, in one transaction, then everything else.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        let mut effects = std::mem::take(&mut self.effects);
        if !self.rows.is_empty() {
            effects.insert(0, Effect::Persist(std::mem::take(&mut self.rows)));
        }
        effects
    }

    /// Brings the record of addresses in line with a cluster's blueprint. A machine that goes keeps its address in the
    /// record until the provider has removed it; then nothing of it can answer there.
    pub(crate) fn take_addresses(&mut self, name: &ClusterName) {
        let machines =
            self.clusters.get(name).into_iter().flat_map(|cluster| cluster.row.blueprint.machines.values());
        self.addresses.extend(machines.map(|machine| (machine.address, name.clone())));
    }

    /// Gives back addresses that no machine of a cluster has any more, once the last one that goes is gone.
    pub(crate) fn free_addresses(&mut self, name: &ClusterName) {
        if self.machines_of(name).any(|machine| self.planned(name, &machine.row.id).is_none()) {
            return;
        }
        let keeps: BTreeSet<Ipv4Addr> = self
            .clusters
            .get(name)
            .map(|cluster| cluster.row.blueprint.machines.values().map(|machine| machine.address).collect())
            .unwrap_or_default();
        self.addresses.retain(|address, holder| holder != name || keeps.contains(address));
    }

    /// Keeps the counter above every incarnation in use.
    pub(crate) fn reserve_incarnations(&mut self, name: &ClusterName) {
        let Some(cluster) = self.clusters.get(name) else { return };
        let used =
            cluster.row.blueprint.machines.values().map(|machine| u64::from(machine.incarnation.0)).max();
        let next = self.counters.get(&Counter::Incarnation).copied().unwrap_or(1);
        if let Some(used) = used
            && used >= next
        {
            self.set_counter(Counter::Incarnation, used + 1);
        }
    }

    pub(crate) fn set_counter(&mut self, counter: Counter, value: u64) {
        self.counters.insert(counter, value);
        self.rows.push(Row::Counter(counter, value));
    }

    pub(crate) fn take_number(&mut self, counter: Counter) -> u64 {
        let value = self.counters.get(&counter).copied().unwrap_or(1);
        self.set_counter(counter, value + 1);
        value
    }

    /// An event to fill in and give to [`Self::note`].
    pub(crate) fn event(&self, now: Now, severity: Severity, reason: &str) -> FleetEvent {
        FleetEvent {
            id: 0,
            at: now.wall,
            severity,
            reason: reason.to_owned(),
            cluster: None,
            machine: None,
            incident: None,
            cause: String::new(),
            outcome: String::new(),
        }
    }

    /// Numbers an event, writes it down and tells whoever listens.
    pub(crate) fn note(&mut self, event: FleetEvent) {
        let event = FleetEvent { id: self.take_number(Counter::Event), ..event };
        self.rows.push(Row::Event(Box::new(event.clone())));
        self.effects.push(Effect::Note(event));
    }

    pub(crate) fn save_machine(&mut self, id: &MachineId) {
        if let Some(machine) = self.machines.get(id) {
            self.rows.push(Row::Machine(Box::new(machine.row.clone())));
        }
    }

    /// Whether silence since the start means something.
    pub(crate) fn warm(&self, now: Now) -> bool {
        now.mono >= self.returning_until
    }

    /// A machine has come back, or is new: while that goes on, others may follow.
    pub(crate) fn someone_returned(&mut self, now: Now) {
        let more = now.mono.plus(RETURN_PAUSE_MAX).min(self.started.plus(WARM_UP_MAX));
        self.returning_until = self.returning_until.max(more);
    }

    /// Everything that was seen of a cluster.
    #[must_use]
    pub fn observed(&self, name: &ClusterName, now: Now) -> Observed {
        let machines = self.machines_of(name);
        let machines = machines.map(|machine| (machine.row.id.clone(), self.observed_machine(machine, now)));
        let exposures = self.clusters.get(name).into_iter().flat_map(|cluster| &cluster.exposures);
        let services = exposures.filter(|(service, _)| *service != crate::provider::API_EXPOSURE);
        let exposed =
            services.filter_map(|(service, e)| Some((service.clone(), e.address?.to_string()))).collect();
        let cluster = self.clusters.get(name);
        Observed {
            machines: machines.collect(),
            endpoint: self.endpoint(name),
            exposed,
            etcd: self.standings(name),
            etcd_hold: cluster.and_then(|cluster| cluster.held.clone()),
            turns: self.turns(name),
            planned: cluster.and_then(|cluster| cluster.planned),
            leaving: self.leave_steps(name),
        }
    }

    fn leave_steps(&self, name: &ClusterName) -> BTreeMap<MachineId, LeaveStep> {
        let cluster = self.clusters.get(name);
        let leaving =
            cluster.into_iter().flat_map(|c| c.row.blueprint.machines.values()).filter(|m| m.leaving);
        leaving.filter_map(|planned| Some((planned.id.clone(), self.leave_step(name, planned)?))).collect()
    }

    /// Everything that was seen of a machine.
    #[must_use]
    pub fn observed_machine(&self, machine: &Machine, now: Now) -> ObservedMachine {
        let last = self.last_heard(machine).map(|last| now.mono.since(last));
        let ms = |last: Duration| u64::try_from(last.as_millis()).unwrap_or(u64::MAX);
        let ago = |last: Duration| WallTime(now.wall.0 - i64::try_from(last.as_millis()).unwrap_or(i64::MAX));
        ObservedMachine {
            phase: machine.row.phase.clone(),
            link: machine.link.clone(),
            last_heartbeat_ms: last.map(ms),
            heard: last.map(ago),
            silent: machine.silent,
            applied: machine.heartbeat.map(|heartbeat| (heartbeat.generation, heartbeat.state)),
            health: machine.health.clone(),
            facts: machine.facts.clone(),
            verdict: machine.verdict,
            evidence: machine.evidence.clone(),
            acting: machine.row.acting.or(machine.row.renew.then_some(RepairAction::Recreate)),
            refusal: machine.refusal.clone(),
            hold: machine.repair.as_ref().and_then(|repair| repair.hold.clone()),
            care: Care {
                incident: machine.row.incident.clone(),
                due: self.due(now, machine),
                acts: machine.row.acts.iter().filter(|act| !act.called_off).cloned().collect(),
                fenced: machine.row.fenced,
                leaving_since: machine.row.leaving_since,
                drain: machine.parting.drain.clone(),
            },
        }
    }

    /// When a machine was last heard; `None` when it was not since the coordinator started.
    #[must_use]
    pub fn last_heard(&self, machine: &Machine) -> Option<MonoTime> {
        let voice = machine.session.and_then(|session| self.sessions.get(&session));
        voice.map(|voice| voice.heard).or(machine.heard_before)
    }

    /// URL of the API server for users outside.
    #[must_use]
    pub fn endpoint(&self, name: &ClusterName) -> Option<String> {
        let exposure = self.clusters.get(name)?.exposures.get(crate::provider::API_EXPOSURE)?;
        Some(format!("https://{}", exposure.address?))
    }

    /// What does not change.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// All clusters.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.values()
    }

    /// A cluster.
    #[must_use]
    pub fn cluster(&self, name: &ClusterName) -> Option<&Cluster> {
        self.clusters.get(name)
    }

    /// All machines.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values()
    }

    /// A machine.
    #[must_use]
    pub fn machine(&self, id: &MachineId) -> Option<&Machine> {
        self.machines.get(id)
    }

    /// All operations.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.operations.values()
    }

    /// An operation.
    #[must_use]
    pub fn operation(&self, id: &OperationId) -> Option<&Operation> {
        self.operations.get(id)
    }

    /// Number of the newest event; 0 when there is none.
    #[must_use]
    pub fn newest_event(&self) -> u64 {
        self.counters.get(&Counter::Event).map_or(0, |next| next - 1)
    }

    /// What was counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

impl Cluster {
    pub(crate) fn new(row: ClusterRow, material: Arc<ClusterMaterial>) -> Self {
        Self {
            row,
            material,
            exposures: BTreeMap::new(),
            unexposed: false,
            unexpose_call: None,
            unexpose_after: None,
            unexpose_attempts: 0,
            unexpose_error: None,
            etcd: EtcdWatch::default(),
            kube: KubeWatch::default(),
            held: None,
            lacking: None,
            planned: None,
            plan_due: true,
            busy: true,
        }
    }
}
