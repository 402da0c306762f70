//! A machine in virtual time: systemd, a disk, programs that answer or not, and a coordinator that signs everything.
//!
//! Every action of the core is carried out one at a time, so that a test can kill the agent between any two of them.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this one")]
#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use keelson_agent_core::{
    Action, Active, AgentCore, CertificateSeen, Digest, Event, FileSeen, Invocation, Ledger, LedgerFound,
    LinkNews, Look, Me, Observation, PeerChannel, Query, Seed, Start, Step, StepKey, StepOutput,
    UNIT_DIRECTORY, UnitSeen, Validity,
};
use keelson_protocol::config::*;
use keelson_protocol::health::*;
use keelson_protocol::message::{Refusal, RefusalCode, ToAgent, ToCoordinator};
use keelson_protocol::peer::{PeerAnswer, PeerSaid, PeerTarget};
use keelson_protocol::{BootId, Generation, Incarnation, MachineId, MonoTime, SecretBytes, WallTime};

mod configs;
pub mod repair;

pub use configs::*;
use repair::Faults;

/// How long any action takes.
const ACTION_MS: u64 = 3;
/// After which time a step that is overtaken does anything.
const LATE_MS: u64 = 10;
/// How long a oneshot runs.
pub const ONESHOT_MS: u64 = 150;
/// How a program ends that somebody else ends.
const KILLED: &str = "it was killed by signal 9";
/// `RestartSec` of our units.
const RESTART_MS: u64 = 1_000;

/// A unit as the fake systemd has it.
#[derive(Debug, Default)]
pub struct FakeUnit {
    /// Content of its file when systemd last read it.
    loaded: Option<Digest>,
    pub running: Option<Invocation>,
    /// Digests of its own file and of all files when it was started.
    pub started_with: BTreeMap<String, Digest>,
    auto_restart_at: Option<u64>,
    oneshot_ends_at: Option<u64>,
    exited: bool,
    ended: String,
    pub starts: u32,
}

/// How a program behaves.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// It ends so long after each start.
    pub crashes_after_ms: Option<u64>,
    /// It answers its probe so long after each start.
    pub healthy_after_ms: u64,
    /// systemd counts it as starting for so long after each start.
    pub settles_after_ms: Option<u64>,
    /// It lives and does not answer.
    pub hung: bool,
    pub oneshot: bool,
}

pub struct World {
    pub now: u64,
    pub core: AgentCore,
    pub disk: Option<SecretBytes>,
    /// The ledger that the full disk did not take.
    pub memory: Option<SecretBytes>,
    pub disk_full: bool,
    /// Steps go on side by side: starts and removals take a while, and are overtaken by whatever else is to be done.
    pub overtaken: bool,
    late: VecDeque<(u64, Step)>,
    pub oneshot_ms: u64,
    pub files: BTreeMap<String, (Vec<u8>, u32)>,
    pub units: BTreeMap<String, FakeUnit>,
    pub behaviours: BTreeMap<String, Behaviour>,
    /// Probes by their name that do not answer.
    pub silent: BTreeSet<String>,
    started_at: BTreeMap<String, u64>,
    pub certificates: BTreeMap<String, Validity>,
    pub routes: BTreeSet<RouteSpec>,
    pub balancer: Option<BalancerSpec>,
    /// How peers are answered.
    pub answers_peers: Option<PeerChannel>,
    /// What peers say; those that are not named answer.
    pub peers: BTreeMap<MachineId, PeerSaid>,
    /// When peers were asked, and how many.
    pub peers_asked: Vec<(u64, usize)>,
    pub boot: u128,
    /// Whether it has switched itself off.
    pub off: bool,
    next_invocation: u128,
    pub connected: bool,
    pub certificate_life: Duration,
    /// How much earlier than now a certificate begins.
    pub dates_back: Duration,
    pub signing: bool,
    pub stores_events: bool,
    pub received: Vec<ToCoordinator>,
    pub heartbeats: Vec<Heartbeat>,
    pub stored_events: Vec<AgentEvent>,
    answers: VecDeque<(u64, Event)>,
    actions: VecDeque<Action>,
    /// What was done, in words.
    pub log: Vec<String>,
    /// Steps fail when this says so: it is given the number of the step.
    pub fails: Box<dyn FnMut(u64) -> bool>,
    steps: u64,
    /// Actions and events so far.
    pub ticks: u64,
    pub link_validity: Validity,
    pub faults: Faults,
}

pub fn machine() -> MachineId {
    MachineId::new("demo-worker-1").unwrap()
}

fn wall_of(now: u64) -> WallTime {
    WallTime(1_700_000_000_000 + i64::try_from(now).unwrap())
}

impl World {
    pub fn new() -> Self {
        let link_validity = Validity { not_before: wall_of(0), not_after: wall_of(86_400_000) };
        let mut world = Self {
            now: 1_000,
            core: restore(LedgerFound::Absent, 1, 1_000, wall_of(1_000)),
            disk: None,
            memory: None,
            disk_full: false,
            overtaken: false,
            late: VecDeque::new(),
            oneshot_ms: ONESHOT_MS,
            files: BTreeMap::new(),
            units: BTreeMap::new(),
            behaviours: BTreeMap::new(),
            silent: BTreeSet::new(),
            started_at: BTreeMap::new(),
            certificates: BTreeMap::new(),
            routes: BTreeSet::new(),
            balancer: None,
            answers_peers: None,
            peers: BTreeMap::new(),
            peers_asked: Vec::new(),
            boot: 1,
            off: false,
            next_invocation: 1,
            connected: false,
            certificate_life: Duration::from_secs(86_400),
            dates_back: Duration::ZERO,
            signing: true,
            stores_events: true,
            received: Vec::new(),
            heartbeats: Vec::new(),
            stored_events: Vec::new(),
            answers: VecDeque::new(),
            actions: VecDeque::new(),
            log: Vec::new(),
            fails: Box::new(|_| false),
            steps: 0,
            ticks: 0,
            link_validity,
            faults: Faults::default(),
        };
        world.give(Event::Woke);
        world.connect();
        world
    }

    pub fn connect(&mut self) {
        self.connected = true;
        self.give(Event::Link(LinkNews::Identity(self.link_validity)));
        self.give(Event::Link(LinkNews::Connected { coordinator: "10.0.0.1:7443".to_owned() }));
    }

    pub fn disconnect(&mut self) {
        self.connected = false;
        let why = "the coordinator has gone".to_owned();
        self.give(Event::Link(LinkNews::Disconnected { why, retry_in: Duration::from_secs(1) }));
    }

    pub fn offer(&mut self, config: &NodeConfig) {
        self.give(Event::Message(Box::new(ToAgent::Config(Box::new(config.clone())))));
    }

    /// The coordinator does not speak with this machine.
    pub fn refuse(&mut self, code: RefusalCode) {
        self.connected = false;
        let refusal = Refusal { code, text: "no blueprint has this machine".to_owned() };
        self.give(Event::Link(LinkNews::Refused(refusal)));
    }

    /// The coordinator asks whether this machine can reach others.
    pub fn ask(&mut self, id: u64, targets: Vec<PeerTarget>) {
        self.give(Event::Message(Box::new(ToAgent::ProbePeers { id, targets })));
    }

    /// The host has seen that files were touched.
    pub fn touch_files(&mut self) {
        self.give(Event::FilesTouched);
    }

    fn give(&mut self, event: Event) {
        let actions = self.core.handle(MonoTime(self.now), self.wall(), event);
        self.actions.extend(actions);
    }

    fn answer(&mut self, event: Event) {
        self.answer_after(ACTION_MS, event);
    }

    fn answer_after(&mut self, ms: u64, event: Event) {
        let at = self.now + ms;
        let place = self.answers.partition_point(|(other, _)| *other <= at);
        self.answers.insert(place, (at, event));
    }

    /// Kills the agent: everything that it had in mind or on its way is lost, everything else goes on.
    pub fn kill_agent(&mut self) {
        let read = |bytes: &SecretBytes| Box::new(Ledger::decode(bytes.expose_secret()).unwrap());
        let ledger = match (&self.memory, &self.disk) {
            (Some(bytes), _) => LedgerFound::InMemory(read(bytes)),
            (None, Some(bytes)) => LedgerFound::Intact(read(bytes)),
            (None, None) => LedgerFound::Absent,
        };
        self.start_agent(ledger);
    }

    /// Kills the agent and starts one that finds this where its ledger should be.
    pub fn start_agent(&mut self, ledger: LedgerFound) {
        self.actions.clear();
        self.late.clear();
        self.answers.clear();
        self.log.push("-- the agent is killed".to_owned());
        // The balancer lives in the agent, and so does what answers peers.
        self.balancer = None;
        self.answers_peers = None;
        self.core = restore(ledger, self.boot, self.now, self.wall());
        self.give(Event::Woke);
        if self.connected {
            self.connect();
        }
    }

    /// Cuts the power: all programs and all of /run are gone.
    pub fn reboot(&mut self) {
        self.log.push("-- reboot".to_owned());
        self.boot += 1;
        self.off = false;
        self.units.clear();
        self.routes.clear();
        self.memory = None;
        self.files.retain(|path, _| !path.starts_with("/run/"));
        self.kill_agent();
    }

    /// Numbers of the events that the coordinator has stored, which follow one another.
    pub fn stored_numbers(&self) -> Vec<u64> {
        let numbers: Vec<u64> = self.stored_events.iter().map(|event| event.sequence).collect();
        let first = numbers.first().copied().unwrap_or_default();
        assert_eq!(numbers, (first..first + numbers.len() as u64).collect::<Vec<_>>());
        numbers
    }

    /// Plays until `ms` have passed.
    pub fn run_for(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.tick(end) {}
        self.now = end;
    }

    /// Plays so many actions and events, at most.
    pub fn run_ticks(&mut self, count: u64) {
        for _ in 0..count {
            self.tick(self.now + 60_000);
        }
    }

    /// Plays until the machine is ready, at most for `ms`; the time it took.
    pub fn run_until_ready(&mut self, ms: u64) -> u64 {
        let (begin, end) = (self.now, self.now + ms);
        while self.core.state() != NodeState::Ready {
            assert!(
                self.tick(end),
                "not ready after {ms} ms: {:#?}\n{}",
                self.core.status(),
                self.log.join("\n")
            );
        }
        self.now - begin
    }

    /// One action or one event; false when the next one lies beyond `end`.
    fn tick(&mut self, end: u64) -> bool {
        self.ticks += 1;
        assert!(self.ticks < 3_000_000, "the core does not come to rest: {:#?}", self.core.status());
        if self.play_reboot() {
            return true;
        }
        if self.off {
            return false;
        }
        if let Some(action) = self.actions.pop_front() {
            self.carry_out(action);
            return true;
        }
        let late = self.late.front().map_or(u64::MAX, |(at, _)| *at);
        let wake = self.core.next_wake().0.max(self.now);
        let answer = self.answers.front().map_or(u64::MAX, |(at, _)| *at);
        let systemd = self.next_of_systemd();
        let next = wake.min(answer).min(systemd).min(late).min(self.faults.reboot_at.unwrap_or(u64::MAX));
        if next > end {
            return false;
        }
        self.now = self.now.max(next);
        if self.faults.reboot_at == Some(next) {
            return true;
        }
        if late == next {
            let (_, step) = self.late.pop_front().unwrap();
            self.run_step(step);
        } else if systemd <= answer.min(wake) {
            self.play_systemd();
        } else if answer <= wake {
            let (_, event) = self.answers.pop_front().unwrap();
            self.give(event);
        } else {
            // A core that wants to be woken at once, again and again, would never let time pass.
            self.now = self.now.max(wake) + 1;
            self.give(Event::Woke);
        }
        true
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Persist(bytes) => {
                if self.disk_full {
                    self.memory = Some(bytes);
                    return self.give(Event::Persisted(Err("no room".to_owned())));
                }
                (self.disk, self.memory) = (Some(bytes), None);
                self.give(Event::Persisted(Ok(())));
            }
            Action::Run(step @ (Step::Start { .. } | Step::RemoveFiles(_))) if self.overtaken => {
                self.late.push_back((self.now + LATE_MS, step));
            }
            Action::Run(step) => self.run_step(step),
            Action::Look(Look { id, query }) => {
                let blind = self.faults.blind.then(|| "nothing is seen".to_owned());
                let observation = blind.map_or_else(|| Ok(self.look(query)), Err);
                self.answer(Event::Observed { id, observation });
            }
            Action::Probe { id, probe } => {
                let result = self.probe(&probe);
                self.answer(Event::Probed { id, result });
            }
            Action::ProbePeers { id, channel, targets } => {
                assert_eq!(channel.listen.port(), 7447);
                self.peers_asked.push((self.now, targets.len()));
                let answers = targets.into_iter().map(|target| self.peer(target.machine)).collect();
                self.answer(Event::PeersProbed { id, answers });
            }
            Action::Send(message) if self.connected => self.coordinate(message),
            Action::Heartbeat(heartbeat) if self.connected => self.heartbeats.push(heartbeat),
            Action::Send(_) | Action::Heartbeat(_) => {}
        }
    }

    fn peer(&self, machine: MachineId) -> PeerAnswer {
        let answered = PeerSaid::Answered { round_trip_us: 200 };
        let said = self.peers.get(&machine).cloned().unwrap_or(answered);
        PeerAnswer { machine, said }
    }

    /// From now on all neighbours of the small worker say this.
    pub fn peers_say(&mut self, said: &PeerSaid) {
        self.peers = neighbours().into_iter().map(|peer| (peer.machine, said.clone())).collect();
    }

    fn coordinate(&mut self, message: ToCoordinator) {
        match &message {
            ToCoordinator::SignCertificate { name, signing_request, .. } if self.signing => {
                let (name, chain) = (name.clone(), vec![signing_request.clone()]);
                self.answer(Event::Message(Box::new(ToAgent::Certificate { name, chain })));
            }
            ToCoordinator::RenewLink { signing_request } if self.signing => {
                let chain = vec![signing_request.clone()];
                self.answer(Event::Message(Box::new(ToAgent::LinkRenewed { chain })));
            }
            ToCoordinator::Events(events) => {
                let last = self.stored_events.last().map_or(0, |event| event.sequence);
                for event in events {
                    match self.stored_events.iter().find(|stored| stored.sequence == event.sequence) {
                        Some(stored) => assert_eq!(stored, event, "a number was used twice"),
                        None => self.stored_events.push(event.clone()),
                    }
                }
                assert!(
                    events[0].sequence <= last + 1 || !self.stores_events || last == 0,
                    "events were lost"
                );
                if self.stores_events {
                    let through = events.last().unwrap().sequence;
                    self.answer(Event::Message(Box::new(ToAgent::EventsStored { through })));
                }
            }
            ToCoordinator::TimeRequest { asked_at } => {
                // The coordinator's clock is 500 ms ahead.
                let now = self.true_wall().plus(Duration::from_millis(500));
                self.answer(Event::Message(Box::new(ToAgent::Time { asked_at: *asked_at, now })));
            }
            _ => {}
        }
        self.received.push(message);
    }

    fn look(&self, query: Query) -> Observation {
        match query {
            Query::Units(names) => {
                Observation::Units(names.iter().map(|name| self.unit_seen(name)).collect())
            }
            Query::Files(paths) => Observation::Files(
                paths
                    .iter()
                    .map(|path| {
                        let seen = self.files.get(path).map_or(FileSeen::Absent, |(content, mode)| {
                            FileSeen::Present { digest: Digest::of(content), mode: *mode }
                        });
                        let damaged = self.faults.unreadable.contains(path);
                        let unknown = FileSeen::Unknown { why: "input/output error".to_owned() };
                        (path.clone(), if damaged { unknown } else { seen })
                    })
                    .collect(),
            ),
            Query::Certificates(pairs) => Observation::Certificates(
                pairs
                    .into_iter()
                    .map(|pair| {
                        let missing = CertificateSeen::Missing { why: "it is not there".to_owned() };
                        let held = self
                            .certificates
                            .get(&pair.name)
                            .filter(|_| self.files.contains_key(&pair.key_path));
                        (pair.name, held.map_or(missing, |validity| CertificateSeen::Held(*validity)))
                    })
                    .collect(),
            ),
            Query::Routes => Observation::Routes(self.routes.clone()),
            Query::Pressure => Observation::Pressure(Pressure {
                disk_used_percent: self.faults.disk_percent.max(10),
                inodes_used_percent: self.faults.inodes_percent.max(1),
                memory_available_percent: 60,
            }),
        }
    }

    fn unit_seen(&self, name: &str) -> UnitSeen {
        let Some(unit) = self.units.get(name) else {
            let ended = "unknown".to_owned();
            return UnitSeen { active: Active::Stopped, invocation: None, ended, killed: false };
        };
        let active = match unit {
            FakeUnit { auto_restart_at: Some(_), .. } => Active::AutoRestart,
            FakeUnit { oneshot_ends_at: Some(_), .. } => Active::Settling,
            FakeUnit { running: Some(_), .. } if self.settles(name) => Active::Settling,
            FakeUnit { exited: true, .. } => Active::Exited,
            FakeUnit { running: Some(_), .. } => Active::Running,
            _ => Active::Stopped,
        };
        let invocation = unit.running.filter(|_| matches!(active, Active::Running | Active::Exited));
        let killed = unit.ended == KILLED;
        UnitSeen { active, invocation, ended: unit.ended.clone(), killed }
    }

    fn settles(&self, name: &str) -> bool {
        let after = self.behaviours.get(name).and_then(|behaviour| behaviour.settles_after_ms);
        let since = self.started_at.get(name).copied().unwrap_or_default();
        after.is_some_and(|after| self.now < since + after)
    }

    fn probe(&self, probe: &ProbeSpec) -> Result<(), String> {
        if self.silent.contains(&probe.name) {
            return Err("connection refused".to_owned());
        }
        if let Some(text) = self.faults.says.get(&probe.name) {
            return Err(text.clone());
        }
        // The probe of a unit has its name; all others ask something elsewhere.
        let Some(behaviour) = self.behaviours.get(&probe.name) else { return Ok(()) };
        let running = self.units.get(&probe.name).is_some_and(|unit| unit.running.is_some());
        let since = self.started_at.get(&probe.name).copied().unwrap_or(u64::MAX);
        let up = running && !behaviour.hung && self.now >= since.saturating_add(behaviour.healthy_after_ms);
        if up { Ok(()) } else { Err("no answer".to_owned()) }
    }

    fn run_step(&mut self, step: Step) {
        self.steps += 1;
        let key = step.key();
        // A step that is told to have failed may have happened all the same.
        let fails = (self.fails)(self.steps);
        let happens = !fails || self.steps.is_multiple_of(2);
        let mut result = if happens { self.effect(step) } else { Ok(StepOutput::Done) };
        if fails {
            result = Err("injected".to_owned());
        }
        let slow = if matches!(key, StepKey::Act(_)) { self.faults.act_ms } else { 0 };
        self.answer_after(ACTION_MS + slow, Event::StepDone { key, result });
    }

    fn effect(&mut self, step: Step) -> Result<StepOutput, String> {
        match step {
            Step::WriteFiles(writes) => {
                let mut failed = Vec::new();
                for write in writes {
                    if self.disk_full && !write.path.starts_with("/run/") {
                        failed.push((write.path, "no room".to_owned()));
                        continue;
                    }
                    assert_eq!(Digest::of(write.content.expose_secret()), write.digest);
                    self.log.push(format!("write {}", write.path));
                    self.faults.unreadable.remove(&write.path);
                    self.files.insert(write.path, (write.content.expose_secret().to_vec(), write.mode));
                }
                return Ok(StepOutput::Written { failed });
            }
            Step::RemoveFiles(paths) => {
                for path in paths {
                    self.log.push(format!("remove {path}"));
                    self.files.remove(&path);
                }
            }
            Step::Reload => self.reload(),
            Step::PowerOff => {
                self.log.push("switch off".to_owned());
                self.off = true;
                self.units.clear();
            }
            Step::Start { unit, .. } => {
                self.log.push(format!("start {unit}"));
                let up = self
                    .units
                    .get(&unit)
                    .is_some_and(|unit| unit.running.is_some() && unit.auto_restart_at.is_none());
                if !up {
                    self.start(&unit)?;
                }
            }
            Step::Restart { unit, .. } => {
                self.log.push(format!("restart {unit}"));
                self.start(&unit)?;
            }
            Step::Stop { unit } => {
                self.log.push(format!("stop {unit}"));
                if self.faults.unstoppable.as_ref() != Some(&unit) {
                    self.stop_by_hand(&unit);
                }
            }
            Step::MakeKey { certificate } => return Ok(StepOutput::SigningRequest(certificate.into_bytes())),
            Step::InstallCertificate { .. } if self.disk_full => return Err("no room".to_owned()),
            Step::InstallCertificate { files, .. } => {
                self.log.push(format!("install {}", files.name));
                self.files.insert(files.certificate_path, (b"chain".to_vec(), 0o644));
                self.files.insert(files.key_path, (b"key".to_vec(), 0o600));
                let validity = self.validity();
                self.certificates.insert(files.name, validity);
                return Ok(StepOutput::Installed(validity));
            }
            Step::MakeLinkKey => return Ok(StepOutput::SigningRequest(b"link".to_vec())),
            Step::InstallLink { .. } => {
                self.link_validity = self.validity();
                self.log.push("install link".to_owned());
                return Ok(StepOutput::Installed(self.link_validity));
            }
            Step::ChangeRoutes { add, remove } => {
                self.log.push(format!("routes +{} -{}", add.len(), remove.len()));
                self.routes.retain(|route| !remove.contains(route));
                self.routes.retain(|route| !add.iter().any(|new| new.destination == route.destination));
                self.routes.extend(add);
            }
            Step::Balance(spec) => {
                self.log.push("balance".to_owned());
                self.balancer = spec;
            }
            Step::AnswerPeers(channel) => {
                self.log.push("answer peers".to_owned());
                self.answers_peers = channel;
            }
            Step::Act { of, act } => return self.act(&of, &act),
        }
        Ok(StepOutput::Done)
    }

    fn validity(&self) -> Validity {
        let now = wall_of(self.now);
        let not_before = WallTime(now.0 - i64::try_from(self.dates_back.as_millis()).unwrap());
        Validity { not_before, not_after: now.plus(self.certificate_life) }
    }

    fn reload(&mut self) {
        self.log.push("reload".to_owned());
        let on_disk: BTreeMap<String, Digest> = self
            .files
            .iter()
            .filter_map(|(path, (content, _))| {
                Some((path.strip_prefix(UNIT_DIRECTORY)?, Digest::of(content)))
            })
            .map(|(name, digest)| (name.trim_start_matches('/').to_owned(), digest))
            .collect();
        self.units.retain(|name, unit| on_disk.contains_key(name) || unit.running.is_some());
        for (name, digest) in on_disk {
            self.units.entry(name).or_default().loaded = Some(digest);
        }
    }

    fn start(&mut self, name: &str) -> Result<(), String> {
        let files =
            self.files.iter().map(|(path, (content, _))| (path.clone(), Digest::of(content))).collect();
        let behaviour = self.behaviours.get(name).cloned().unwrap_or_default();
        let now = self.now;
        let unit = self.units.get_mut(name).filter(|unit| unit.loaded.is_some());
        let unit = unit.ok_or_else(|| format!("Unit {name} not found."))?;
        unit.running = Some(Invocation(self.next_invocation));
        self.next_invocation += 1;
        unit.started_with = files;
        unit.auto_restart_at = None;
        unit.exited = false;
        unit.starts += 1;
        unit.oneshot_ends_at = behaviour.oneshot.then_some(now + self.oneshot_ms);
        self.started_at.insert(name.to_owned(), now);
        Ok(())
    }

    /// What `systemctl stop` does.
    pub fn stop_by_hand(&mut self, name: &str) {
        if let Some(unit) = self.units.get_mut(name) {
            unit.running = None;
            unit.auto_restart_at = None;
            unit.oneshot_ends_at = None;
            unit.exited = false;
            unit.ended = "it was stopped".to_owned();
        }
    }

    /// What `systemctl restart` does, between two looks.
    pub fn restart_by_hand(&mut self, name: &str) {
        let next = self.next_invocation;
        self.next_invocation += 1;
        let now = self.now;
        if let Some(unit) = self.units.get_mut(name).filter(|unit| unit.running.is_some()) {
            unit.running = Some(Invocation(next));
            self.started_at.insert(name.to_owned(), now);
        }
    }

    /// Stops a unit and lets systemd read its files again.
    pub fn forget_unit(&mut self, name: &str) {
        self.stop_by_hand(name);
        self.units.remove(name);
    }

    /// Somebody ends the program of a unit; systemd will start it again.
    pub fn crash(&mut self, name: &str) {
        self.end_program(name, KILLED);
    }

    /// The program of a unit ends by itself; systemd will start it again.
    pub fn fall(&mut self, name: &str) {
        self.end_program(name, "it ended with exit code 2");
    }

    fn end_program(&mut self, name: &str, how: &str) {
        let restart_at = self.now + RESTART_MS;
        let oneshot = self.behaviours.get(name).is_some_and(|behaviour| behaviour.oneshot);
        let unit = self.units.get_mut(name).unwrap();
        unit.running = None;
        unit.exited = false;
        how.clone_into(&mut unit.ended);
        unit.auto_restart_at = (!oneshot).then_some(restart_at);
    }

    fn crash_due(&self, name: &str) -> u64 {
        let after = self.behaviours.get(name).and_then(|behaviour| behaviour.crashes_after_ms);
        let running = self.units[name].running.is_some() && !self.units[name].exited;
        match (after, self.started_at.get(name)) {
            (Some(after), Some(since)) if running => since + after,
            _ => u64::MAX,
        }
    }

    fn next_of_systemd(&self) -> u64 {
        let of = |(name, unit): (&String, &FakeUnit)| {
            let timers = [unit.auto_restart_at, unit.oneshot_ends_at].into_iter().flatten().min();
            timers.unwrap_or(u64::MAX).min(self.crash_due(name))
        };
        self.units.iter().map(of).min().unwrap_or(u64::MAX)
    }

    fn play_systemd(&mut self) {
        let names: Vec<String> = self.units.keys().cloned().collect();
        for name in names {
            if self.crash_due(&name) <= self.now {
                self.units.get_mut(&name).unwrap().oneshot_ends_at = None;
                self.fall(&name);
            } else if self.units[&name].auto_restart_at.is_some_and(|at| at <= self.now) {
                let _ = self.start(&name);
            } else if self.units[&name].oneshot_ends_at.is_some_and(|at| at <= self.now) {
                let unit = self.units.get_mut(&name).unwrap();
                unit.oneshot_ends_at = None;
                unit.exited = true;
            }
        }
    }

    /// How often any unit was started.
    pub fn starts(&self) -> u32 {
        self.units.values().map(|unit| unit.starts).sum()
    }

    /// Kinds and subjects of all events, stored by the coordinator or not.
    pub fn events_of(&self, kind: EventKind) -> Vec<String> {
        let stored = self.stored_events.iter().filter(|event| event.kind == kind);
        stored.map(|event| format!("{}: {} -> {}", event.subject, event.cause, event.outcome)).collect()
    }

    /// The last health report.
    pub fn report(&self) -> &HealthReport {
        let report = self.received.iter().rev().find_map(|message| match message {
            ToCoordinator::Health(report) => Some(report),
            _ => None,
        });
        report.unwrap()
    }

    /// Everything that the config wants holds on the machine itself, whatever the core believes.
    pub fn assert_converged(&self, config: &NodeConfig) {
        for file in &config.files {
            let (content, mode) = &self.files[&file.path];
            assert_eq!((content.as_slice(), *mode), (file.content.bytes(), file.mode), "{}", file.path);
        }
        for unit in &config.units {
            if matches!(unit.kind, UnitKind::Oneshot | UnitKind::Check) {
                continue;
            }
            let fake = &self.units[&unit.name];
            assert!(fake.running.is_some(), "{} does not run", unit.name);
            for path in unit.restart_on.iter().chain([&format!("{UNIT_DIRECTORY}/{}", unit.name)]) {
                if let Some((content, _)) = self.files.get(path) {
                    let with = fake.started_with.get(path);
                    assert_eq!(with, Some(&Digest::of(content)), "{} runs with an old {path}", unit.name);
                }
            }
        }
        for (name, unit) in &self.units {
            let wanted = config.unit(name).is_some();
            assert!(wanted || unit.running.is_none(), "{name} still runs");
        }
        let stale = |path: &&String| {
            path.starts_with(UNIT_DIRECTORY) && config.unit(path.rsplit('/').next().unwrap()).is_none()
        };
        assert_eq!(self.files.keys().find(stale), None);
        assert_eq!(self.routes, config.routes.iter().copied().collect());
        assert_eq!(self.balancer, config.balancer);
        let answers = self.answers_peers.as_ref().map(|channel| (channel.listen, &channel.key));
        assert_eq!(answers, config.peers.as_ref().map(|peers| (peers.listen, &peers.key)));
    }
}

fn restore(ledger: LedgerFound, boot: u128, now: u64, wall: WallTime) -> AgentCore {
    let me = Me { machine: machine(), incarnation: Incarnation(1), boot: BootId(boot) };
    let start = Start { me, ledger, version: "0.1.0".to_owned(), seed: Seed(7) };
    AgentCore::restore(start, MonoTime(now), wall)
}

/// A world whose programs behave as the small worker's do.
pub fn world() -> World {
    let mut world = World::new();
    let behaviour = |healthy_after_ms| Behaviour { healthy_after_ms, ..Behaviour::default() };
    world.behaviours.insert("containerd.service".to_owned(), behaviour(300));
    world.behaviours.insert("kubelet.service".to_owned(), behaviour(900));
    world
        .behaviours
        .insert("prepare.service".to_owned(), Behaviour { oneshot: true, ..Behaviour::default() });
    world
}

/// A ready worker.
pub fn ready() -> (World, NodeConfig) {
    let (mut world, config) = (world(), worker(1));
    world.offer(&config);
    world.run_until_ready(60_000);
    world.assert_converged(&config);
    (world, config)
}
