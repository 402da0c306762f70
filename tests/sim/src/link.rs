//! The link, as far as the cores see it: enrolment, sessions, messages in order, datagrams that get lost, and sessions that
//! end when nothing has passed for a while. Stands for `keelson-transport`, whose own tests are elsewhere.

use std::time::Duration;

use keelson_agent_core::{Event, LinkNews, Seed, enrol_retry_delay};
use keelson_coordinator_core::Input;
use keelson_protocol::health::{CgroupVersion, DiskFact, Facts, Heartbeat, NodeState};
use keelson_protocol::message::{EnrolReply, EnrolRequest, ToAgent, ToCoordinator};
use keelson_protocol::wire::{self, Message, VERSION_MAX, VERSION_MIN};

use crate::check::Checker;
use crate::coordinator::session_id;
use crate::host::validity_in;
use crate::network::End;
use crate::trace::Decision;
use crate::world::{Ix, SimEvent, World};

/// A session over which nothing passes ends after this time, in milliseconds.
const IDLE_MS: u64 = 10_000;
/// Longest wait for a handshake, an enrolment and a welcome, in milliseconds.
const HANDSHAKE_MS: u64 = 5_000;
const ENROL_MS: u64 = 12_000;
const WELCOME_MS: u64 = 10_000;
/// Bounds of the wait before the next try, in milliseconds: doubles from the first to the last.
const RETRY_MIN_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 15_000;
/// A packet of a stream that was lost is sent again after this time, in milliseconds.
const AGAIN_MS: u64 = 200;
/// Most tries of one packet that are drawn.
const AGAIN_MAX: u64 = 8;
/// One message in so many is encoded and decoded, and each config.
const CODEC_EVERY: u64 = 64;

/// Where a machine's link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// Waits to try again.
    Down,
    /// Has asked for a first certificate.
    Enrolling,
    /// Nobody answers the handshake.
    Calling,
    /// Has said hello in this session.
    Greeting(u32),
    /// The session stands.
    Up(u32),
}

/// A machine's end of the link. Gone with the agent.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stand: Stand,
    /// Tries without success.
    attempts: u32,
    /// Tells the timer that counts from earlier ones.
    serial: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self { stand: Stand::Down, attempts: 0, serial: 0 }
    }
}

/// A session, as both ends and the network between them have it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) machine: Ix,
    /// The agent's life that opened it.
    life: u32,
    up: Direction<ToCoordinator>,
    down: Direction<ToAgent>,
}

/// One direction of a session.
#[derive(Debug)]
struct Direction<T> {
    /// When the last message arrives, so that none overtakes it.
    last: u64,
    /// Messages that a cut holds back.
    held: Vec<Box<T>>,
    /// Since when nothing passes.
    broken: Option<u64>,
}

impl<T> Default for Direction<T> {
    fn default() -> Self {
        Self { last: 0, held: Vec::new(), broken: None }
    }
}

impl World {
    /// How long a message takes now between the coordinator and a machine, in milliseconds, with what is sent again.
    pub(crate) fn delay(&mut self, ix: Ix) -> u64 {
        let (jitter, loss) =
            if self.stormy { (self.weather.jitter_ms, self.weather.loss_permille) } else { (0, 0) };
        let machine = &mut self.machines[ix];
        let mut delay = machine.latency_ms + machine.net.below(jitter + 1);
        for _ in 0..AGAIN_MAX {
            if !machine.net.chance(loss) {
                break;
            }
            delay += AGAIN_MS;
        }
        delay
    }

    /// An agent has started: its link begins.
    pub(crate) fn link_begins(&mut self, ix: Ix) {
        self.machines[ix].link = Link::default();
        if let Some(identity) = self.machines[ix].host.disk.identity {
            self.give(ix, Event::Link(LinkNews::Identity(identity)));
        }
        let wait = self.machines[ix].net.below(RETRY_MIN_MS);
        self.link_wait(ix, Stand::Down, wait);
    }

    fn link_wait(&mut self, ix: Ix, stand: Stand, wait_ms: u64) {
        let machine = &mut self.machines[ix];
        machine.link.stand = stand;
        machine.link.serial += 1;
        let event = SimEvent::LinkTimer(ix as u32, machine.life, machine.link.serial);
        self.queue.push(self.now + wait_ms.max(1), event);
    }

    pub(crate) fn link_timer(&mut self, ix: Ix, life: u32, serial: u32) {
        let machine = &self.machines[ix];
        if machine.agent.is_none() || machine.life != life || machine.link.serial != serial {
            return;
        }
        match machine.link.stand {
            Stand::Down => self.link_try(ix),
            Stand::Enrolling => self.enrol_failed(ix, None, "no answer"),
            Stand::Calling | Stand::Greeting(_) => self.link_down(ix, "no answer"),
            Stand::Up(_) => {}
        }
    }

    fn link_try(&mut self, ix: Ix) {
        let open = self.coordinator_lives() && self.network.connects(End::Coordinator, self.end(ix));
        let wall = self.machines[ix].clock.wall(self.now);
        let identity = self.machines[ix].host.disk.identity;
        if identity.is_none_or(|held| held.not_after <= wall) {
            return self.enrol(ix, open);
        }
        // By this clock the certificates of both ends are not valid yet: the real link goes by the machine's own.
        let early = identity.is_some_and(|held| wall < held.not_before);
        if !open || early {
            return self.link_wait(ix, Stand::Calling, HANDSHAKE_MS);
        }
        let session = u32::try_from(self.sessions.len()).expect("a run has fewer sessions");
        let life = self.machines[ix].life;
        self.sessions.push(Session {
            machine: ix,
            life,
            up: Direction::default(),
            down: Direction::default(),
        });
        let hello = Box::new(self.hello(ix));
        let at = self.now + 2 * self.delay(ix);
        self.queue.push(at, SimEvent::Opened(session, hello));
        self.link_wait(ix, Stand::Greeting(session), WELCOME_MS);
    }

    fn hello(&self, ix: Ix) -> ToCoordinator {
        let machine = &self.machines[ix];
        let generation = machine.agent.as_ref().and_then(|agent| agent.core.generation());
        let facts = Facts {
            agent_version: "0.1.0".to_owned(),
            kernel: "6.12".to_owned(),
            os: "simulated".to_owned(),
            cgroup: CgroupVersion::V2,
            may_raise_limits: true,
            cpus: 2,
            memory_bytes: 4 << 30,
            disks: vec![DiskFact { mount: "/var".to_owned(), bytes: 20 << 30 }],
            image_digest: None,
            releases: Vec::new(),
            boot: machine.boot_id,
        };
        let (version_min, version_max) = (VERSION_MIN, VERSION_MAX);
        ToCoordinator::Hello {
            version_min,
            version_max,
            boot: machine.boot_id,
            generation,
            facts: Box::new(facts),
        }
    }

    fn enrol(&mut self, ix: Ix, open: bool) {
        let machine = &mut self.machines[ix];
        if machine.host.disk.key == 0 {
            machine.host.disk.key = machine.random.number() | 1;
        }
        let request = EnrolRequest {
            machine: machine.id.clone(),
            incarnation: machine.incarnation,
            token: machine.token.clone(),
            signing_request: machine.host.disk.key.to_be_bytes().to_vec(),
        };
        let life = machine.life;
        if open {
            let at = self.now + 2 * self.delay(ix);
            self.queue.push(at, SimEvent::Enrol(ix as u32, life, Box::new(request)));
        }
        self.link_wait(ix, Stand::Enrolling, if open { ENROL_MS } else { HANDSHAKE_MS });
    }

    fn enrol_failed(&mut self, ix: Ix, code: Option<keelson_protocol::message::RefusalCode>, why: &str) {
        let machine = &mut self.machines[ix];
        machine.link.attempts += 1;
        let mut seed = Seed(machine.net.number());
        let retry_in = enrol_retry_delay(machine.link.attempts, code, &mut seed);
        self.link_wait(ix, Stand::Down, u64::try_from(retry_in.as_millis()).unwrap_or(RETRY_MAX_MS));
        self.give(ix, Event::Link(LinkNews::Enrolling { why: why.to_owned(), retry_in }));
    }

    pub(crate) fn enrol_reply(&mut self, ix: Ix, life: u32, reply: EnrolReply) {
        let machine = &mut self.machines[ix];
        if machine.agent.is_none() || machine.life != life || machine.link.stand != Stand::Enrolling {
            return;
        }
        match reply {
            EnrolReply::Accepted { chain } => {
                let Some(validity) = validity_in(&chain) else { return };
                if validity.not_after <= machine.clock.wall(self.now) {
                    return self.enrol_failed(ix, None, "it is over already by the machine's clock");
                }
                let machine = &mut self.machines[ix];
                machine.host.disk.identity = Some(validity);
                machine.link.attempts = 0;
                self.link_wait(ix, Stand::Down, 1);
                self.give(ix, Event::Link(LinkNews::Identity(validity)));
            }
            EnrolReply::Refused(refusal) => {
                self.enrol_failed(ix, Some(refusal.code), &refusal.to_string());
                self.give(ix, Event::Link(LinkNews::Refused(refusal)));
            }
        }
    }

    /// A machine has no session any more and will try again.
    fn link_down(&mut self, ix: Ix, why: &str) {
        let machine = &mut self.machines[ix];
        let most = (RETRY_MIN_MS << machine.link.attempts.min(10)).min(RETRY_MAX_MS);
        machine.link.attempts += 1;
        let retry = machine.net.below(most) + 1;
        self.link_wait(ix, Stand::Down, retry);
        let retry_in = Duration::from_millis(retry);
        self.give(ix, Event::Link(LinkNews::Disconnected { why: why.to_owned(), retry_in }));
    }

    // From machine to coordinator.

    pub(crate) fn send_heartbeat(&mut self, ix: Ix, heartbeat: Heartbeat) {
        if heartbeat.state == NodeState::Ready && !self.was_taken_away(ix) {
            self.taken.remove(&self.machines[ix].id);
        }
        let Stand::Up(session) = self.machines[ix].link.stand else { return };
        if !self.network.passes(self.end(ix), End::Coordinator) {
            return;
        }
        let weather = &self.weather;
        let (jitter, loss, twice) = match self.stormy {
            true => (weather.jitter_ms, weather.loss_permille, weather.duplicate_permille),
            false => (0, 0, 0),
        };
        // Drawn only while that fault lasts, so that it moves no other draw.
        let fault = self.network.heartbeats_lost(self.now);
        let machine = &mut self.machines[ix];
        let at = self.now + machine.latency_ms + machine.net.below(jitter + 1);
        if machine.net.chance(loss) || fault > 0 && machine.net.chance(fault) {
            return;
        }
        if machine.net.chance(twice) {
            self.queue.push(at + machine.net.below(1_000), SimEvent::Heartbeat(session, heartbeat));
        }
        self.queue.push(at, SimEvent::Heartbeat(session, heartbeat));
    }

    pub(crate) fn send_to_coordinator(&mut self, ix: Ix, message: ToCoordinator) {
        let Stand::Up(session) = self.machines[ix].link.stand else { return };
        self.codec(&message, false);
        self.carry_up(session, Box::new(message));
    }

    fn carry_up(&mut self, session: u32, message: Box<ToCoordinator>) {
        let ix = self.sessions[session as usize].machine;
        if !self.network.passes(self.end(ix), End::Coordinator) {
            return self.sessions[session as usize].up.held.push(message);
        }
        let at = self.now + self.delay(ix);
        let up = &mut self.sessions[session as usize].up;
        up.last = up.last.max(at);
        self.queue.push(up.last, SimEvent::Message(session, message));
    }

    pub(crate) fn heartbeat_comes(&mut self, session: u32, heartbeat: Heartbeat) {
        if self.coordinator.sessions.contains(&session) {
            self.input(Input::Heartbeat { session: session_id(session), heartbeat });
        } else if self.coordinator_lives() {
            self.end_for_machine(session);
        }
    }

    pub(crate) fn message_for_coordinator(&mut self, session: u32, message: ToCoordinator) {
        if self.coordinator.sessions.contains(&session) {
            let session = session_id(session);
            let input = match message {
                // As the shell does: the core sees the key, and not the request.
                ToCoordinator::RenewLink { signing_request } => {
                    let key_hash = Some(hex::encode(&signing_request));
                    Input::RenewLink { session, signing_request, key_hash }
                }
                message => Input::Message { session, message },
            };
            self.input(input);
        }
    }

    pub(crate) fn session_opens(&mut self, session: u32, hello: ToCoordinator) {
        if !self.coordinator_lives() {
            return;
        }
        self.coordinator.sessions.insert(session);
        let machine = &self.machines[self.sessions[session as usize].machine];
        let (id, incarnation) = (machine.id.clone(), machine.incarnation);
        self.input(Input::Opened { session: session_id(session), machine: id, incarnation, hello });
    }

    // From coordinator to machine.

    pub(crate) fn send(&mut self, session: keelson_coordinator_core::SessionId, message: Box<ToAgent>) {
        let session = u32::try_from(session.0).unwrap_or(u32::MAX);
        if !self.coordinator.sessions.contains(&session) {
            return;
        }
        let ix = self.sessions[session as usize].machine;
        match &*message {
            ToAgent::Welcome { .. } => self.check_identity(ix),
            ToAgent::Config(config) => {
                let (machine, generation) = (self.machines[ix].id.to_string(), config.generation.0);
                self.note(Decision::Config { machine, generation });
            }
            _ => {}
        }
        self.codec(&*message, matches!(*message, ToAgent::Config(_)));
        self.carry_down(session, message);
    }

    fn carry_down(&mut self, session: u32, message: Box<ToAgent>) {
        let ix = self.sessions[session as usize].machine;
        if !self.network.passes(End::Coordinator, self.end(ix)) {
            return self.sessions[session as usize].down.held.push(message);
        }
        let at = self.now + self.delay(ix);
        let down = &mut self.sessions[session as usize].down;
        down.last = down.last.max(at);
        self.queue.push(down.last, SimEvent::ToMachine(session, message));
    }

    pub(crate) fn message_for_machine(&mut self, session: u32, message: ToAgent) {
        let ix = self.sessions[session as usize].machine;
        if self.machines[ix].is_frozen() {
            return self.machines[ix].backlog.push(SimEvent::ToMachine(session, Box::new(message)));
        }
        let stand = self.machines[ix].link.stand;
        if !self.session_is_of_agent(session)
            || !matches!(stand, Stand::Greeting(s) | Stand::Up(s) if s == session)
        {
            return;
        }
        match message {
            ToAgent::Welcome { .. } => {
                let link = &mut self.machines[ix].link;
                link.attempts = 0;
                link.serial += 1;
                link.stand = Stand::Up(session);
                self.give(ix, Event::Link(LinkNews::Connected { coordinator: "coordinator".to_owned() }));
            }
            ToAgent::Refused(refusal) => {
                let wait = self.machines[ix].net.below(RETRY_MAX_MS) + 1;
                self.link_wait(ix, Stand::Down, wait);
                let (why, retry_in) = (refusal.to_string(), Duration::from_millis(wait));
                self.give(ix, Event::Link(LinkNews::Refused(refusal)));
                self.give(ix, Event::Link(LinkNews::Disconnected { why, retry_in }));
            }
            message => self.give(ix, Event::Message(Box::new(message))),
        }
    }

    /// The coordinator ends a session.
    pub(crate) fn close(&mut self, session: keelson_coordinator_core::SessionId, why: &str) {
        let number = u32::try_from(session.0).unwrap_or(u32::MAX);
        if !self.coordinator.sessions.remove(&number) {
            return;
        }
        let input = Input::Closed { session, why: why.to_owned() };
        self.coordinator_closes(input);
        self.end_for_machine(number);
    }

    /// Tells the core that a session has ended, a moment later.
    fn coordinator_closes(&mut self, input: Input) {
        self.queue.push(self.now + 1, SimEvent::Answer(self.coordinator.life, Box::new(input)));
    }

    /// Tells the machine that a session has ended, when that reaches it.
    fn end_for_machine(&mut self, session: u32) {
        let ix = self.sessions[session as usize].machine;
        if self.network.passes(End::Coordinator, self.end(ix)) {
            let at = (self.now + self.delay(ix)).max(self.sessions[session as usize].down.last);
            self.queue.push(at, SimEvent::Reset(session));
        } else {
            self.breaks(session);
        }
    }

    pub(crate) fn session_reset(&mut self, session: u32) {
        let ix = self.sessions[session as usize].machine;
        if self.machines[ix].is_frozen() {
            return self.machines[ix].backlog.push(SimEvent::Reset(session));
        }
        self.ends_on_machine(session, "the coordinator does not know the session");
    }

    fn ends_on_machine(&mut self, session: u32, why: &str) {
        let ix = self.sessions[session as usize].machine;
        let stand = self.machines[ix].link.stand;
        if self.session_is_of_agent(session)
            && matches!(stand, Stand::Greeting(s) | Stand::Up(s) if s == session)
        {
            self.link_down(ix, why);
        }
    }

    fn session_is_of_agent(&self, session: u32) -> bool {
        let session = &self.sessions[session as usize];
        let machine = &self.machines[session.machine];
        machine.agent.is_some() && machine.life == session.life && !machine.is_off()
    }

    // What passes and what does not.

    /// Something changed in the network, or who listens: sessions break or come back.
    pub(crate) fn paths_changed(&mut self) {
        for ix in 0..self.machines.len() {
            self.path_changed(ix);
        }
    }

    pub(crate) fn path_changed(&mut self, ix: Ix) {
        if let Stand::Greeting(session) | Stand::Up(session) = self.machines[ix].link.stand {
            self.breaks(session);
        }
    }

    /// Brings a session in line with what passes.
    pub(crate) fn breaks(&mut self, session: u32) {
        let ix = self.sessions[session as usize].machine;
        let known = self.coordinator.sessions.contains(&session);
        let ends =
            self.coordinator_lives() && self.session_is_of_agent(session) && !self.machines[ix].is_frozen();
        let up = ends && self.network.passes(self.end(ix), End::Coordinator);
        // A coordinator that does not know the session sends nothing in it.
        let greeting = matches!(self.machines[ix].link.stand, Stand::Greeting(_));
        let down = ends && (known || greeting) && self.network.passes(End::Coordinator, self.end(ix));
        let now = self.now;
        let entry = &mut self.sessions[session as usize];
        entry.up.broken = (!up).then(|| entry.up.broken.unwrap_or(now));
        entry.down.broken = (!down).then(|| entry.down.broken.unwrap_or(now));
        if !up || !down {
            self.queue.push(now + IDLE_MS, SimEvent::Idle(session));
        }
        let held_up = if up { std::mem::take(&mut entry.up.held) } else { Vec::new() };
        let held_down = if down { std::mem::take(&mut entry.down.held) } else { Vec::new() };
        held_up.into_iter().for_each(|message| self.carry_up(session, message));
        held_down.into_iter().for_each(|message| self.carry_down(session, message));
    }

    pub(crate) fn session_idle(&mut self, session: u32) {
        let now = self.now;
        let over = |broken: Option<u64>| broken.is_some_and(|since| since + IDLE_MS <= now);
        let entry = &self.sessions[session as usize];
        let (up, down, ix) = (over(entry.up.broken), over(entry.down.broken), entry.machine);
        if up && self.coordinator_lives() && self.coordinator.sessions.remove(&session) {
            let why = "timed out".to_owned();
            self.coordinator_closes(Input::Closed { session: session_id(session), why });
            // From now on nothing comes from here either.
            self.sessions[session as usize].down.broken.get_or_insert(now);
            self.queue.push(now + IDLE_MS, SimEvent::Idle(session));
        }
        if down && !self.machines[ix].is_frozen() {
            self.ends_on_machine(session, "timed out");
            self.sessions[session as usize].up.broken.get_or_insert(now);
            self.queue_idle_once(session);
        }
    }

    /// The machine has given a session up: the coordinator hears nothing more of it.
    fn queue_idle_once(&mut self, session: u32) {
        if self.coordinator.sessions.contains(&session) {
            self.queue.push(self.now + IDLE_MS, SimEvent::Idle(session));
        }
    }

    // Checks.

    fn check_identity(&mut self, ix: Ix) {
        let machine = &self.machines[ix];
        let (id, incarnation) = (machine.id.clone(), machine.incarnation);
        let row = self.store.machines.get(&id).map(|row| row.incarnation);
        if row != Some(incarnation) {
            let what = format!("{id} incarnation {incarnation} is welcomed, {row:?} is in force");
            return self.violate(Checker::Identity, what);
        }
        let twin = self.by_id.get(&id).is_some_and(|other| *other != ix && !self.machines[*other].is_off());
        if twin {
            self.violate(Checker::Identity, format!("two machines live as {id}"));
        }
    }

    fn codec<M: Message + PartialEq>(&mut self, message: &M, always: bool) {
        self.messages += 1;
        if !always && !self.messages.is_multiple_of(CODEC_EVERY) {
            return;
        }
        let decoded = wire::encode(message).map_err(|error| error.to_string());
        let decoded = decoded.and_then(|bytes| wire::decode::<M>(&bytes).map_err(|error| error.to_string()));
        match decoded {
            Ok(decoded) if decoded == *message => {}
            Ok(_) => self.violate(Checker::Codec, format!("{} arrives as another", M::NAME)),
            Err(why) => self.violate(Checker::Codec, why),
        }
    }
}
