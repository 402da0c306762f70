//! The world: everything that there is, and one loop that takes the earliest event and gives it to whom it is for.
//!
//! What happens to whom stands in the files beside this one, each a part of `World`: `coordinator` (its effects), `machine`
//! (an agent's actions), `power`, `programs`, `link`, `faults`, `users`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use keelson_agent_core::{Observation, UnitSeen};
use keelson_coordinator_core::{CallId, CoordinatorCore, Input, ProviderCall};
use keelson_model::etcd::EtcdCall;
use keelson_model::kubernetes::KubeCall;
use keelson_protocol::health::Heartbeat;
use keelson_protocol::message::{EnrolReply, EnrolRequest, ToAgent, ToCoordinator};
use keelson_protocol::{ClusterName, Incarnation, MachineId};

use crate::case::{Case, Fault, Timed, Weather, Wish};
use crate::check::{
    Checker, NOTICED_AFTER_MS, OWNERS_EVERY_MS, SAMPLE_EVERY_MS, UNOWNED_MAX_MS, Violation,
    WAITING_BESIDE_MAX, WAITING_PER_MACHINE_MAX,
};
use crate::coordinator::{Coordinator, settings};
use crate::etcd::FakeEtcd;
use crate::infrastructure::Infrastructure;
use crate::kube::FakeKube;
use crate::link::Session;
use crate::machine::Machine;
use crate::network::{End, Network};
use crate::queue::Queue;
use crate::restraint::Restraint;
use crate::rng::{Stream, Tree};
use crate::store::Store;
use crate::trace::{Decision, Trace};
use crate::users::{USER_EVERY_MS, Users};

/// A machine, by its number in the world. Each incarnation is one of its own.
pub(crate) type Ix = usize;

/// Something that will happen. Those of machines carry the number of the agent's life or of the boot that they belong to:
/// what was meant for an earlier one is dropped.
#[derive(Debug)]
pub(crate) enum SimEvent {
    /// An agent's core wants to be woken.
    Wake(u32, u32),
    /// A probe was answered as it should.
    ProbeGood(u32, u32, u64),
    /// A look at units was answered.
    UnitsSeen(u32, u32, u64, Arc<[UnitSeen]>),
    /// Another answer for an agent's core.
    Agent(u32, u32, Box<keelson_agent_core::Event>),
    /// A ledger is on disk, or could not be written.
    Persisted(u32, u32),
    /// Something in an agent's link is due.
    LinkTimer(u32, u32, u32),
    /// An enrolment was answered.
    EnrolReply(u32, u32, Box<EnrolReply>),
    /// A kernel has started.
    Booted(u32, u32),
    /// An agent is started, in this boot.
    AgentStarts(u32, u32),
    /// Something of a program is due: in this boot, and when nothing else has happened to it.
    Unit(u32, u32, u32, Box<str>),
    /// A message for an agent comes over a session.
    ToMachine(u32, Box<ToAgent>),
    /// A heartbeat comes over a session.
    Heartbeat(u32, Heartbeat),
    /// A message for the coordinator comes over a session.
    Message(u32, Box<ToCoordinator>),
    /// A session's first message comes.
    Opened(u32, Box<ToCoordinator>),
    /// Somebody asks for a first certificate.
    Enrol(u32, u32, Box<EnrolRequest>),
    /// A session is over for the machine.
    Reset(u32),
    /// A session over which nothing passes may end now.
    Idle(u32),
    /// An answer for the coordinator of that life.
    Answer(u32, Box<Input>),
    /// Time passes for the coordinator of that life.
    Tick(u32),
    /// The coordinator starts.
    CoordinatorStarts,
    /// The coordinator goes on.
    CoordinatorThaws,
    /// A call reaches the provider.
    Provider(u32, CallId, Box<ProviderCall>),
    /// A call reaches a machine with an etcd member.
    Etcd(u32, CallId, u32, Box<(ClusterName, EtcdCall)>),
    /// A call reaches an API server.
    Kube(u32, CallId, Box<(ClusterName, KubeCall)>),
    /// A machine goes on.
    Thaw(u32, u32),
    /// A machine that does not bear its boots has had enough of this one.
    BootFails(u32, u32),
    /// A disk has room again.
    DiskFreed(u32),
    /// A cut ends.
    Heals(u64),
    /// A fault of the case.
    Fault(usize),
    /// A wish of the case.
    Wish(usize),
    /// Users look at what became of their wishes.
    Users,
    /// Members of etcd are looked at.
    Sample,
    /// Machines at the provider are compared with the blueprints.
    Owners,
}

/// Everything that there is.
#[derive(Debug)]
pub struct World {
    /// Milliseconds since the beginning.
    pub(crate) now: u64,
    pub(crate) queue: Queue<SimEvent>,
    pub(crate) events: u64,
    pub(crate) weather: Weather,
    pub(crate) faults: Vec<Timed<Fault>>,
    pub(crate) wishes: Vec<Timed<Wish>>,
    /// Whether faults may still come.
    pub(crate) stormy: bool,
    pub(crate) coordinator: Coordinator,
    pub(crate) store: Store,
    pub(crate) infrastructure: Infrastructure,
    pub(crate) machines: Vec<Machine>,
    /// Machines that the provider has.
    pub(crate) by_id: BTreeMap<MachineId, Ix>,
    pub(crate) by_address: BTreeMap<Ipv4Addr, Ix>,
    pub(crate) members: BTreeMap<ClusterName, BTreeSet<Ix>>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) network: Network,
    pub(crate) etcds: BTreeMap<ClusterName, FakeEtcd>,
    pub(crate) kubes: BTreeMap<ClusterName, FakeKube>,
    pub(crate) budgets_hold_until: u64,
    pub(crate) users: Users,
    pub(crate) restraint: Restraint,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<Violation>,
    unowned: BTreeMap<Ix, u64>,
    /// When machines lost their power to a repair, until they work again.
    pub(crate) taken: BTreeMap<MachineId, u64>,
    /// When persons took the power of machines against the guards.
    pub(crate) despite: BTreeMap<MachineId, u64>,
    /// When drains of nodes began.
    pub(crate) drains: BTreeMap<(MachineId, Incarnation), u64>,
    pub(crate) messages: u64,
    pub(crate) tree: Tree,
    /// Draws for calls of the coordinator.
    pub(crate) random: Stream,
}

impl World {
    /// A world in which nothing has happened yet.
    #[must_use]
    pub fn new(case: &Case) -> Self {
        let tree = Tree::root(case.seed);
        let settings = settings();
        let lag = case.weather.provider_lag;
        let provider = tree.child("provider").stream();
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            events: 0,
            weather: case.weather.clone(),
            faults: case.faults.clone(),
            wishes: case.wishes.clone(),
            stormy: true,
            infrastructure: Infrastructure::new(settings.install.clone(), lag, provider),
            coordinator: Coordinator::new(settings),
            store: Store::default(),
            machines: Vec::new(),
            by_id: BTreeMap::new(),
            by_address: BTreeMap::new(),
            members: BTreeMap::new(),
            sessions: Vec::new(),
            network: Network::default(),
            etcds: BTreeMap::new(),
            kubes: BTreeMap::new(),
            budgets_hold_until: 0,
            users: Users::default(),
            restraint: Restraint::default(),
            trace: Trace::default(),
            violation: None,
            unowned: BTreeMap::new(),
            taken: BTreeMap::new(),
            despite: BTreeMap::new(),
            drains: BTreeMap::new(),
            messages: 0,
            random: tree.child("coordinator").stream(),
            tree,
        };
        world.start_coordinator();
        for number in 0..world.faults.len() {
            world.queue.push(world.faults[number].at_ms, SimEvent::Fault(number));
        }
        for number in 0..world.wishes.len() {
            world.queue.push(world.wishes[number].at_ms, SimEvent::Wish(number));
        }
        world.queue.push(USER_EVERY_MS, SimEvent::Users);
        world.queue.push(SAMPLE_EVERY_MS, SimEvent::Sample);
        world.queue.push(OWNERS_EVERY_MS, SimEvent::Owners);
        world
    }

    /// Plays one event, if one comes before `end` and no rule was broken. Whether there was one.
    pub fn step(&mut self, end: u64) -> bool {
        if self.violation.is_some() {
            return false;
        }
        let Some((now, event)) = self.queue.pop(end) else {
            self.now = self.now.max(end);
            return false;
        };
        self.now = now;
        self.events += 1;
        self.trace.add(now);
        match machine_of(&event) {
            Some(ix) if self.machines[ix].is_frozen() => self.machines[ix].backlog.push(event),
            None if for_coordinator(&event) && self.coordinator.frozen_until > now => {
                self.queue.push(self.coordinator.frozen_until, event);
            }
            _ => self.play(event),
        }
        true
    }

    /// Plays everything before `end`.
    pub fn run_until(&mut self, end: u64) {
        while self.step(end) {}
    }

    fn play(&mut self, event: SimEvent) {
        match event {
            SimEvent::Wake(ix, life) => self.wake(ix as usize, life),
            SimEvent::ProbeGood(ix, life, id) => self.probe_good(ix as usize, life, id),
            SimEvent::UnitsSeen(ix, life, id, seen) => {
                let event =
                    keelson_agent_core::Event::Observed { id, observation: Ok(Observation::Units(seen)) };
                self.agent_answer(ix as usize, life, event);
            }
            SimEvent::Agent(ix, life, event) => self.agent_answer(ix as usize, life, *event),
            SimEvent::Persisted(ix, life) => self.persisted(ix as usize, life),
            SimEvent::LinkTimer(ix, life, serial) => self.link_timer(ix as usize, life, serial),
            SimEvent::EnrolReply(ix, life, reply) => self.enrol_reply(ix as usize, life, *reply),
            SimEvent::Booted(ix, boot) | SimEvent::AgentStarts(ix, boot) => {
                self.start_agent(ix as usize, boot);
            }
            SimEvent::Unit(ix, boot, serial, unit) => self.unit_timer(ix as usize, boot, serial, &unit),
            SimEvent::ToMachine(session, message) => self.message_for_machine(session, *message),
            SimEvent::Heartbeat(session, heartbeat) => self.heartbeat_comes(session, heartbeat),
            SimEvent::Message(session, message) => self.message_for_coordinator(session, *message),
            SimEvent::Opened(session, hello) => self.session_opens(session, *hello),
            SimEvent::Enrol(ix, life, request) => self.enrolment_comes(ix as usize, life, *request),
            SimEvent::Reset(session) => self.session_reset(session),
            SimEvent::Idle(session) => self.session_idle(session),
            SimEvent::Answer(life, input) => self.coordinator_answer(life, *input),
            SimEvent::Tick(life) => self.tick(life),
            SimEvent::CoordinatorStarts => self.start_coordinator(),
            SimEvent::CoordinatorThaws => self.paths_changed(),
            SimEvent::Provider(life, id, call) => self.provider_call(life, id, *call),
            SimEvent::Etcd(life, id, session, call) => self.etcd_call(life, id, session, *call),
            SimEvent::Kube(life, id, call) => self.kube_call(life, id, *call),
            SimEvent::Thaw(ix, boot) => self.thaw(ix as usize, boot),
            SimEvent::BootFails(ix, boot) => self.boot_fails(ix as usize, boot),
            SimEvent::DiskFreed(ix) => self.machines[ix as usize].host.disk.full = false,
            SimEvent::Heals(number) => {
                self.network.heal(number);
                self.paths_changed();
            }
            SimEvent::Fault(number) => self.strike(number),
            SimEvent::Wish(number) => self.wish(number),
            SimEvent::Users => self.users_look(),
            SimEvent::Sample => self.sample_members(),
            SimEvent::Owners => self.compare_owners(),
        }
    }

    /// Takes down that a rule was broken; the first one ends the run.
    pub(crate) fn violate(&mut self, checker: Checker, what: String) {
        let at_ms = self.now;
        self.violation.get_or_insert(Violation { checker, at_ms, what });
    }

    pub(crate) fn note(&mut self, decision: Decision) {
        self.trace.note(self.now, decision);
    }

    /// Milliseconds since the beginning.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The rule that was broken, if one was.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// What was decided.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The coordinator's core, while it runs.
    #[must_use]
    pub fn core(&self) -> Option<&CoordinatorCore> {
        self.coordinator.core.as_ref()
    }

    /// Machines that the provider has.
    #[must_use]
    pub fn machine_count(&self) -> usize {
        self.by_id.len()
    }

    /// Where a machine is in the network.
    pub(crate) fn end(&self, ix: Ix) -> End {
        End::Machine { machine: ix, zone: self.machines[ix].zone }
    }

    /// Whether two machines hear each other.
    pub(crate) fn connects(&self, one: Ix, other: Ix) -> bool {
        one == other || self.network.connects(self.end(one), self.end(other))
    }

    fn sample_members(&mut self) {
        self.queue.push(self.now + SAMPLE_EVERY_MS, SimEvent::Sample);
        self.sample_wellness();
        self.members_say_that_they_started();
        let names: Vec<ClusterName> = self.etcds.keys().cloned().collect();
        for name in names {
            let Some(mut etcd) = self.etcds.remove(&name) else { continue };
            for member in &mut etcd.members {
                let down = !self.member_works(member);
                member.down_since = down.then(|| member.down_since.unwrap_or(self.now));
            }
            let apart: Vec<bool> =
                etcd.members.iter().map(|member| !self.member_counts(&etcd, member)).collect();
            for (member, apart) in etcd.members.iter_mut().zip(apart) {
                member.apart_since = apart.then(|| member.apart_since.unwrap_or(self.now));
            }
            let holds = etcd.holds(|member| member.apart_since.is_none());
            etcd.held_since = holds.then(|| etcd.held_since.unwrap_or(self.now));
            self.etcds.insert(name, etcd);
        }
        let waiting_max = WAITING_BESIDE_MAX + WAITING_PER_MACHINE_MAX * self.machines.len();
        if self.queue.len() > waiting_max {
            self.violate(
                Checker::Bounds,
                format!("{} events wait, at most {waiting_max} may", self.queue.len()),
            );
        }
    }

    /// Whether a member may be believed to work: it does, or has not for so short a time that nobody can know.
    pub(crate) fn seems_to_work(&self, member: &crate::etcd::Member) -> bool {
        self.is_not_noticed(member, member.down_since) || self.member_works(member)
    }

    /// Whether nobody can know yet that a member does not work since then. Who took it away knows.
    fn is_not_noticed(&self, member: &crate::etcd::Member, since: Option<u64>) -> bool {
        let ix = self.by_address.get(&member.address);
        let taken = ix.is_some_and(|ix| self.machines[*ix].taken_by_us.member);
        !taken && since.is_none_or(|since| since + NOTICED_AFTER_MS > self.now)
    }

    /// The same of a member for the whole: it must reach a majority as well.
    pub(crate) fn seems_to_count(&self, etcd: &FakeEtcd, member: &crate::etcd::Member) -> bool {
        self.is_not_noticed(member, member.apart_since) || self.member_counts(etcd, member)
    }

    fn compare_owners(&mut self) {
        self.queue.push(self.now + OWNERS_EVERY_MS, SimEvent::Owners);
        let works = self.coordinator.core.is_some() && self.infrastructure.out_until <= self.now;
        let unowned: Vec<Ix> = self
            .by_id
            .values()
            .copied()
            .filter(|ix| {
                let machine = &self.machines[*ix];
                self.store.planned(&machine.id, machine.incarnation).is_none()
            })
            .collect();
        // While nobody could do anything about it, its time stands still.
        let passed = if works { 0 } else { OWNERS_EVERY_MS };
        let before = std::mem::take(&mut self.unowned);
        for ix in unowned {
            let since = before.get(&ix).map_or(self.now, |since| since + passed);
            self.unowned.insert(ix, since);
            if self.now.saturating_sub(since) > UNOWNED_MAX_MS {
                let (id, minutes) = (self.machines[ix].id.clone(), (self.now - since) / 60_000);
                self.violate(
                    Checker::Owner,
                    format!("{id} is at the provider without an owner for {minutes} minutes"),
                );
            }
        }
    }
}

/// The machine that an event needs to be running.
fn machine_of(event: &SimEvent) -> Option<Ix> {
    match event {
        SimEvent::Wake(ix, _)
        | SimEvent::ProbeGood(ix, ..)
        | SimEvent::Agent(ix, ..)
        | SimEvent::Persisted(ix, _)
        | SimEvent::LinkTimer(ix, ..)
        | SimEvent::EnrolReply(ix, ..)
        | SimEvent::Booted(ix, _)
        | SimEvent::AgentStarts(ix, _)
        | SimEvent::Unit(ix, ..) => Some(*ix as usize),
        _ => None,
    }
}

/// Whether an event needs the coordinator to be running.
fn for_coordinator(event: &SimEvent) -> bool {
    matches!(
        event,
        SimEvent::Heartbeat(..)
            | SimEvent::Message(..)
            | SimEvent::Opened(..)
            | SimEvent::Enrol(..)
            | SimEvent::Answer(..)
            | SimEvent::Tick(_)
    )
}
