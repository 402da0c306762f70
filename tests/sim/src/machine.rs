//! What an agent's shell does: gives events to the core and carries out its actions, in order, and may be killed before
//! each. While a ledger is being written nothing begins but heartbeats.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use keelson_agent_core::{
    Action, AgentCore, Event, Ledger, Look, Me, Observation, PeerChannel, Seed, Start, Step,
};
use keelson_coordinator_core::Asked;
use keelson_protocol::health::NodeState;
use keelson_protocol::peer::{PeerAnswer, PeerSaid, PeerTarget};
use keelson_protocol::remedy::RemedyAct;
use keelson_protocol::{BootId, ClusterName, Generation, Incarnation, MachineId, MonoTime, SecretBytes};

use crate::check::{Checker, FINE_AFTER_MS, WELL_AFTER_MS};
use crate::clock::Clock;
use crate::host::{Host, UnitNews};
use crate::link::{Link, Stand};
use crate::network::End;
use crate::programs::{API_SERVER, ETCD};
use crate::rng::Stream;
use crate::trace::Decision;
use crate::world::{Ix, SimEvent, World};

/// How long systemd waits before it starts an agent again, in milliseconds (`RestartSec`).
const AGENT_AGAIN_MS: u64 = 1_000;

/// How long a peer is waited for, how often it is pinged meanwhile, and the time between two pings, in milliseconds: as the
/// agent does.
const PEER_TIMEOUT_MS: u64 = 400;
const PINGS_MAX: u64 = 3;
const PING_EVERY_MS: u64 = 100;

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    Off,
    On,
    Frozen,
}

/// A machine is as good as heard while fewer than so many of a thousand heartbeats get lost on purpose.
const HEARD_PERMILLE_MIN: u32 = 300;

/// By whom it can be known that a machine works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voucher {
    /// Its own heartbeats.
    Itself,
    /// A peer that is heard and reaches it.
    Peer,
    /// Another machine of its zone works and is as silent: the zone is what is cut off.
    Zone,
}

/// What of a machine was taken away by us: by a fence, or by a restart that a config asks for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TakenByUs {
    pub(crate) member: bool,
    pub(crate) api: bool,
}

/// A machine: one incarnation of an id, from the moment that the provider made it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: MachineId,
    pub(crate) incarnation: Incarnation,
    pub(crate) cluster: ClusterName,
    /// Its zone, by its number.
    pub(crate) zone: usize,
    pub(crate) address: Ipv4Addr,
    pub(crate) power: Power,
    /// Since when it has stood still or been without power; zero before its first boot.
    pub(crate) down_since: Option<u64>,
    /// What we took away and what does not serve again yet, so that nobody has to notice that it is gone: its member of etcd,
    /// its API server.
    pub(crate) taken_by_us: TakenByUs,
    /// What it shows to enrol; it has it still when the infrastructure knows it no more.
    pub(crate) token: SecretBytes,
    /// Until when its agent does not come up, whatever starts it.
    pub(crate) agent_out_until: u64,
    /// Counts boots.
    pub(crate) boots: u32,
    pub(crate) boot_id: BootId,
    /// Counts starts of the agent.
    pub(crate) life: u32,
    pub(crate) clock: Clock,
    pub(crate) host: Host,
    pub(crate) agent: Option<Agent>,
    pub(crate) link: Link,
    /// What came while it stood still.
    pub(crate) backlog: Vec<SimEvent>,
    /// Since when it works and is heard, as far as it was looked at.
    pub(crate) well_since: Option<u64>,
    /// Since when its API server works, as far as it was looked at, and when it last did.
    pub(crate) api_since: Option<u64>,
    pub(crate) api_seen: Option<u64>,
    /// Since when it works, and itself or others can say so, as far as it was looked at.
    pub(crate) fine_since: Option<u64>,
    /// The agent is killed before so many more actions.
    pub(crate) dies_after: Option<u32>,
    /// Until when no boot lasts, and whether it then hangs instead of losing its power.
    pub(crate) bad_until: u64,
    pub(crate) hangs: bool,
    /// The newest generation that its agent has written down, over all its lives.
    pub(crate) kept: Option<Generation>,
    /// Time that a message takes to the coordinator, in milliseconds.
    pub(crate) latency_ms: u64,
    /// Draws for the machine itself, and for its messages.
    pub(crate) random: Stream,
    pub(crate) net: Stream,
}

/// An agent's process.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) core: AgentCore,
    /// Actions that wait for the ledger to be written.
    queue: VecDeque<Action>,
    /// The ledger that is being written.
    persisting: Option<SecretBytes>,
    /// When the core is woken next.
    wake_at: u64,
}

impl Agent {
    /// A wake that was due while the machine stood still is due now.
    pub(crate) fn wakes_now(&mut self, now: u64) {
        if self.wake_at < now {
            self.wake_at = now;
        }
    }
}

impl Machine {
    pub(crate) fn new(
        (id, incarnation, cluster): (MachineId, Incarnation, ClusterName),
        (zone, address): (usize, Ipv4Addr),
        clock: Clock,
        mut random: Stream,
        mut net: Stream,
    ) -> Self {
        Self {
            id,
            incarnation,
            cluster,
            zone,
            address,
            power: Power::Off,
            down_since: Some(0),
            taken_by_us: TakenByUs::default(),
            token: SecretBytes::new(Vec::new()),
            agent_out_until: 0,
            boots: 0,
            boot_id: BootId(u128::from(random.number())),
            life: 0,
            clock,
            host: Host::default(),
            agent: None,
            link: Link::default(),
            backlog: Vec::new(),
            well_since: None,
            fine_since: None,
            api_since: None,
            api_seen: None,
            dies_after: None,
            bad_until: 0,
            hangs: false,
            kept: None,
            latency_ms: net.between(1, 5),
            random,
            net,
        }
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.power == Power::Frozen
    }

    pub(crate) fn is_off(&self) -> bool {
        self.power == Power::Off
    }
}

impl World {
    /// Whether a machine runs and its agent lives.
    pub(crate) fn machine_hears(&self, ix: Ix) -> bool {
        self.machines[ix].power == Power::On && self.machines[ix].agent.is_some()
    }

    /// Whether a machine does what it is for.
    fn works(&self, ix: Ix) -> bool {
        let machine = &self.machines[ix];
        let ready = |agent: &Agent| agent.core.state() == NodeState::Ready;
        machine.power == Power::On && machine.agent.as_ref().is_some_and(ready)
    }

    /// Whether a machine works and its heartbeats arrive, as far as the weather allows.
    fn is_well(&self, ix: Ix) -> bool {
        self.loses_fewer_than(ix, HEARD_PERMILLE_MIN)
    }

    /// Whether a machine works and some of its heartbeats may arrive.
    fn may_be_heard(&self, ix: Ix) -> bool {
        self.loses_fewer_than(ix, 1_000)
    }

    /// Whether a machine works and has a link on which fewer than so many of a thousand heartbeats get lost on purpose.
    fn loses_fewer_than(&self, ix: Ix, permille: u32) -> bool {
        let machine = &self.machines[ix];
        self.works(ix)
            && self.coordinator_lives()
            && matches!(machine.link.stand, Stand::Up(session) if self.coordinator.sessions.contains(&session))
            && self.network.passes(self.end(ix), End::Coordinator)
            && self.network.heartbeats_lost(self.now) < permille
    }

    pub(crate) fn sample_wellness(&mut self) {
        let machines: Vec<Ix> = self.by_id.values().copied().collect();
        for ix in machines {
            let well = self.is_well(ix);
            let machine = &mut self.machines[ix];
            machine.well_since = well.then(|| machine.well_since.unwrap_or(self.now));
            let fine = well || self.voucher(ix).is_some();
            self.sample_api(ix);
            let machine = &mut self.machines[ix];
            machine.fine_since = fine.then(|| machine.fine_since.unwrap_or(self.now));
        }
    }

    /// Who could tell of a machine that is not heard that it works. That some of its zone are not heard either says nothing as
    /// long as others are.
    fn voucher(&self, ix: Ix) -> Option<Voucher> {
        let machine = &self.machines[ix];
        // Where answers take longer than they are waited for, no peer can tell.
        let peers_tell = !self.stormy || self.weather.jitter_ms < PEER_TIMEOUT_MS;
        let (mut silent, mut heard) = (false, false);
        for other in self.by_id.values().copied().filter(|other| *other != ix && self.works(ix)) {
            let Machine { cluster, zone, .. } = &self.machines[other];
            let (peer, neighbour) = (*cluster == machine.cluster, *zone == machine.zone);
            if !(peer || neighbour) || !self.works(other) {
                continue;
            }
            let (is_heard, connects) = (self.is_well(other), self.connects(ix, other));
            if peer && is_heard && connects && peers_tell {
                return Some(Voucher::Peer);
            }
            let may_be_heard = is_heard || self.may_be_heard(other);
            heard |= neighbour && may_be_heard;
            silent |= neighbour && !may_be_heard && connects;
        }
        (silent && !heard).then_some(Voucher::Zone)
    }

    /// The repair of a machine begins: nobody may have known that it works.
    pub(crate) fn check_repair(&mut self, id: &MachineId) {
        let Some(ix) = self.by_id.get(id).copied() else { return };
        let known = self.machines[ix].fine_since.is_some_and(|since| since + FINE_AFTER_MS <= self.now);
        let voucher = if self.is_well(ix) { Some(Voucher::Itself) } else { self.voucher(ix) };
        if let Some(voucher) = voucher.filter(|_| known) {
            let what = format!("the repair of {id} begins, and {voucher:?} could tell that it works");
            self.violate(Checker::Repair, what);
        }
    }

    /// A machine's power is about to be taken away.
    pub(crate) fn check_fence(&mut self, ix: Ix) {
        if self.machines[ix].power != Power::On {
            return;
        }
        let act = "it is fenced";
        match self.asked_of(&self.machines[ix].id) {
            Asked::Nobody => self.check_act(ix, act),
            // Whoever asks knows what they ask for, and goes against what they were told. Of the quorum nobody was.
            Asked::Person => return self.check_act(ix, act),
            Asked::PersonDespiteGuards | Asked::PersonDespiteQuorum => return self.check_member_act(ix, act),
        }
        let known = self.machines[ix].well_since.is_some_and(|since| since + WELL_AFTER_MS <= self.now);
        if known && self.is_well(ix) && !self.has_left(ix) {
            let what = format!("{} is fenced, and works", self.machines[ix].id);
            self.violate(Checker::Repair, what);
        }
    }

    /// Whether a machine leaves its cluster and has no pod any more, or the whole cluster goes: the next thing is that its
    /// power does.
    pub(crate) fn has_left(&self, ix: Ix) -> bool {
        let machine = &self.machines[ix];
        if self.store.clusters.get(&machine.cluster).is_none_or(|row| !row.wanted) {
            return true;
        }
        let planned = self.store.planned(&machine.id, machine.incarnation);
        let pods = self.kubes.get(&machine.cluster).map_or(0, |kube| kube.pods_on(&machine.id));
        planned.is_some_and(|planned| planned.leaving) && pods == 0
    }

    pub(crate) fn start_agent(&mut self, ix: Ix, boot: u32) {
        let now = self.now;
        let machine = &mut self.machines[ix];
        if machine.is_off() || machine.boots != boot || machine.agent.is_some() {
            return;
        }
        if now < machine.agent_out_until {
            let at = now + AGENT_AGAIN_MS;
            return self.queue.push(at, SimEvent::AgentStarts(ix as u32, boot));
        }
        let ledger = machine.host.read_ledger();
        machine.life += 1;
        machine.host.memory.balancer = None;
        machine.host.memory.peers = None;
        let me = Me { machine: machine.id.clone(), incarnation: machine.incarnation, boot: machine.boot_id };
        let start = Start { me, ledger, version: "0.1.0".to_owned(), seed: Seed(machine.random.number()) };
        let core = AgentCore::restore(start, machine.clock.mono(now), machine.clock.wall(now));
        machine.agent = Some(Agent { core, queue: VecDeque::new(), persisting: None, wake_at: u64::MAX });
        self.check_generation(ix);
        self.give(ix, Event::Woke);
        self.link_begins(ix);
    }

    /// The agent's process ends, and systemd will start it again; what runs on the machine goes on.
    pub(crate) fn kill_agent(&mut self, ix: Ix) {
        let machine = &mut self.machines[ix];
        machine.dies_after = None;
        // What was being written may have been, and then nothing more was done.
        let written = machine.random.chance(500);
        let Some(agent) = machine.agent.take() else { return };
        if let Some(bytes) = agent.persisting.filter(|_| written) {
            let _ = machine.host.write_ledger(bytes);
        }
        let event = SimEvent::AgentStarts(ix as u32, machine.boots);
        let id = machine.id.to_string();
        self.queue.push(self.now + AGENT_AGAIN_MS, event);
        self.note(Decision::Machine { machine: id, what: "the agent is dead".to_owned() });
        self.path_changed(ix);
        self.machines[ix].link = Link::default();
    }

    pub(crate) fn wake(&mut self, ix: Ix, life: u32) {
        let now = self.now;
        let machine = &mut self.machines[ix];
        let Some(agent) = machine.agent.as_mut().filter(|agent| machine.life == life && agent.wake_at == now)
        else {
            return;
        };
        agent.wake_at = u64::MAX;
        let due = machine.clock.when(agent.core.next_wake());
        if due > now {
            // It was put off since this was asked for.
            agent.wake_at = due;
            self.queue.push(due, SimEvent::Wake(ix as u32, life));
        } else {
            self.give(ix, Event::Woke);
        }
    }

    pub(crate) fn probe_good(&mut self, ix: Ix, life: u32, id: u64) {
        self.agent_answer(ix, life, Event::Probed { id, result: Ok(()) });
    }

    pub(crate) fn agent_answer(&mut self, ix: Ix, life: u32, event: Event) {
        if self.machines[ix].life == life {
            self.give(ix, event);
        }
    }

    pub(crate) fn persisted(&mut self, ix: Ix, life: u32) {
        let machine = &mut self.machines[ix];
        let Some(agent) = machine.agent.as_mut().filter(|_| machine.life == life) else { return };
        let Some(bytes) = agent.persisting.take() else { return };
        // What is on the disk from here on is never forgotten; what is only in memory may be.
        if !machine.host.disk.full && agent.core.generation() > machine.kept {
            let ledger = Ledger::decode(bytes.expose_secret()).expect("the core has just written it");
            machine.kept = machine.kept.max(ledger.config.map(|config| config.generation));
        }
        let written = machine.host.write_ledger(bytes);
        self.give(ix, Event::Persisted(written));
    }

    /// Gives an event to an agent's core and carries out what follows.
    pub(crate) fn give(&mut self, ix: Ix, event: Event) {
        let now = self.now;
        let machine = &mut self.machines[ix];
        let (mono, wall) = (machine.clock.mono(now), machine.clock.wall(now));
        let offered = matches!(event, Event::Message(_));
        let Some(agent) = &mut machine.agent else { return };
        let actions = agent.core.handle(mono, wall, event);
        for action in actions {
            match action {
                // They rely on nothing, and a slow disk must not make a machine look dead.
                Action::Heartbeat(heartbeat) => self.send_heartbeat(ix, heartbeat),
                action if self.carries_out_at_once(ix) => self.carry_out_action(ix, action),
                action => self.queue_action(ix, action),
            }
        }
        self.carry_out_queue(ix);
        if offered {
            self.check_generation(ix);
        }
        self.set_wake(ix);
    }

    /// Whether nothing is in front of an action, as nearly always.
    fn carries_out_at_once(&self, ix: Ix) -> bool {
        let machine = &self.machines[ix];
        let rests = |agent: &Agent| agent.persisting.is_none() && agent.queue.is_empty();
        machine.dies_after.is_none() && machine.agent.as_ref().is_some_and(rests)
    }

    fn queue_action(&mut self, ix: Ix, action: Action) {
        if let Some(agent) = &mut self.machines[ix].agent {
            agent.queue.push_back(action);
        }
    }

    fn carry_out_queue(&mut self, ix: Ix) {
        loop {
            let machine = &mut self.machines[ix];
            let Some(agent) = machine.agent.as_mut().filter(|agent| agent.persisting.is_none()) else {
                return;
            };
            let Some(action) = agent.queue.pop_front() else { return };
            match &mut machine.dies_after {
                Some(0) => return self.kill_agent(ix),
                Some(left) => *left -= 1,
                None => {}
            }
            self.carry_out_action(ix, action);
        }
    }

    fn set_wake(&mut self, ix: Ix) {
        let now = self.now;
        let machine = &mut self.machines[ix];
        let Some(agent) = &mut machine.agent else { return };
        let wake: MonoTime = agent.core.next_wake();
        // A core that wants to be woken at once, again and again, would never let time pass.
        let due = machine.clock.when(wake).max(now + 1);
        if due < agent.wake_at {
            agent.wake_at = due;
            self.queue.push(due, SimEvent::Wake(ix as u32, machine.life));
        }
    }

    fn carry_out_action(&mut self, ix: Ix, action: Action) {
        match action {
            Action::Persist(bytes) => {
                let machine = &mut self.machines[ix];
                let at = self.now + machine.random.between(1, 15);
                if let Some(agent) = &mut machine.agent {
                    agent.persisting = Some(bytes);
                }
                self.queue.push(at, SimEvent::Persisted(ix as u32, machine.life));
            }
            Action::Run(step) => self.run_step(ix, step),
            Action::Look(Look { id, query }) => {
                let machine = &mut self.machines[ix];
                let observation = machine.host.look(query);
                let wait = machine.random.between(1, 4);
                match observation {
                    // With probes, nearly all that an agent is answered: in the queue itself, and not behind a box.
                    Observation::Units(seen) => {
                        let event = SimEvent::UnitsSeen(ix as u32, machine.life, id, seen);
                        self.queue.push(self.now + wait, event);
                    }
                    observation => {
                        self.answer(ix, wait, Event::Observed { id, observation: Ok(observation) })
                    }
                }
            }
            Action::Probe { id, probe } => {
                let result = self.probe(ix, &probe);
                let machine = &mut self.machines[ix];
                let wait = machine.random.between(1, 4);
                match result {
                    Ok(()) => {
                        let event = SimEvent::ProbeGood(ix as u32, machine.life, id);
                        self.queue.push(self.now + wait, event);
                    }
                    Err(_) => self.answer(ix, wait, Event::Probed { id, result }),
                }
            }
            Action::ProbePeers { id, channel, targets } => self.probe_peers(ix, id, &channel, targets),
            Action::Send(message) => self.send_to_coordinator(ix, message),
            Action::Heartbeat(heartbeat) => self.send_heartbeat(ix, heartbeat),
        }
    }

    /// Asks peers: those that are reached both ways, run and were told to answer with the same key do so.
    fn probe_peers(&mut self, ix: Ix, id: u64, channel: &PeerChannel, targets: Vec<PeerTarget>) {
        let mut all = true;
        let mut ask = |target: PeerTarget| {
            let said = match self.ping_comes(ix) {
                true => self.ask_peer(ix, channel, &target),
                false => PeerSaid::Silent,
            };
            all &= said != PeerSaid::Silent;
            PeerAnswer { machine: target.machine, said }
        };
        let answers = targets.into_iter().map(&mut ask).collect();
        let wait = if all { self.machines[ix].random.between(1, 4) } else { PEER_TIMEOUT_MS };
        self.answer(ix, wait, Event::PeersProbed { id, answers });
    }

    /// Whether the weather lets one of a peer's pings arrive, and its answer come back in time.
    fn ping_comes(&mut self, ix: Ix) -> bool {
        if !self.stormy {
            return true;
        }
        let (jitter, loss) = (self.weather.jitter_ms, self.weather.loss_permille);
        let net = &mut self.machines[ix].net;
        let mut way = || (!net.chance(loss)).then(|| net.below(jitter + 1));
        (0..PINGS_MAX).any(|ping| {
            let (there, back) = (way(), way());
            there.zip(back).is_some_and(|(there, back)| ping * PING_EVERY_MS + there + back < PEER_TIMEOUT_MS)
        })
    }

    fn ask_peer(&self, ix: Ix, channel: &PeerChannel, target: &PeerTarget) -> PeerSaid {
        let Some(other) = self.by_address.get(&target.address).copied() else { return PeerSaid::Silent };
        let machine = &self.machines[other];
        if machine.power != Power::On || !self.connects(ix, other) {
            return PeerSaid::Silent;
        }
        match (&machine.agent, &machine.host.memory.peers) {
            (Some(_), Some(peers))
                if peers.key != channel.key || machine.incarnation != target.incarnation =>
            {
                PeerSaid::Silent
            }
            (Some(_), Some(_)) => PeerSaid::Answered { round_trip_us: 1_000 },
            _ => PeerSaid::Refused,
        }
    }

    fn answer(&mut self, ix: Ix, wait_ms: u64, event: Event) {
        let event = SimEvent::Agent(ix as u32, self.machines[ix].life, Box::new(event));
        self.queue.push(self.now + wait_ms, event);
    }

    fn run_step(&mut self, ix: Ix, step: Step) {
        match step {
            Step::Act { act: RemedyAct::Reboot, .. } => return self.reboots_itself(ix),
            Step::PowerOff => return self.switches_itself_off(ix),
            _ => {}
        }
        let key = step.key();
        let fails = self.stormy && self.machines[ix].random.chance(self.weather.step_fails_permille);
        // A step that is told to have failed may have happened all the same.
        let happens = !fails || self.machines[ix].random.chance(500);
        let mut result = Err("it was not tried".to_owned());
        if happens {
            self.check_step(ix, &step);
            let (done, news) = self.machines[ix].host.carry_out(step);
            result = done;
            match news {
                Some(UnitNews::Started(unit)) => self.unit_started(ix, &unit),
                Some(UnitNews::Stopped(unit)) => self.told(ix, &format!("{unit} is stopped")),
                None => {}
            }
        }
        if fails {
            result = Err("input/output error".to_owned());
        }
        let wait = self.machines[ix].random.between(2, 30);
        self.answer(ix, wait, Event::StepDone { key, result });
    }

    /// Some infrastructures start a machine again that ends by itself, others leave it off.
    fn reboots_itself(&mut self, ix: Ix) {
        self.told(ix, "reboots itself");
        self.check_act(ix, "it reboots itself");
        if self.machines[ix].random.chance(500) {
            self.reboot(ix);
        } else {
            self.lose_power(ix);
        }
    }

    fn switches_itself_off(&mut self, ix: Ix) {
        self.told(ix, "switches itself off");
        self.check_act(ix, "it switches itself off");
        self.lose_power(ix);
    }

    /// A program that serves is taken away for a moment.
    fn check_step(&mut self, ix: Ix, step: &Step) {
        let (Step::Restart { unit, .. } | Step::Stop { unit }) = step else { return };
        if self.was_taken_away(ix) || !self.machines[ix].host.serves(unit) {
            return;
        }
        // Until its API has answered nobody uses a cluster, and all begins at once.
        let used =
            self.store.clusters.get(&self.machines[ix].cluster).is_some_and(|row| row.first_answer.is_some());
        match unit.as_str() {
            ETCD => {
                self.check_member_act(ix, "its agent restarts it");
                self.machines[ix].taken_by_us.member = used;
            }
            API_SERVER => {
                self.check_api_act(ix, "its agent restarts it");
                self.machines[ix].taken_by_us.api = used;
            }
            _ => {}
        }
    }

    pub(crate) fn told(&mut self, ix: Ix, what: &str) {
        let machine = self.machines[ix].id.to_string();
        self.note(Decision::Machine { machine, what: what.to_owned() });
    }

    fn check_generation(&mut self, ix: Ix) {
        let machine = &self.machines[ix];
        let generation = machine.agent.as_ref().and_then(|agent| agent.core.generation());
        if machine.agent.is_some() && generation < machine.kept {
            let what = format!("{} went from generation {:?} to {generation:?}", machine.id, machine.kept);
            self.violate(Checker::Growth, what);
        }
    }
}
