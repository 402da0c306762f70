//! The agent's decision machine: events in, actions out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use keelson_protocol::config::{NodeConfig, UnitKind};
use keelson_protocol::health::EventKind;
use keelson_protocol::limits::{CERTIFICATES_MAX, FILES_MAX, UNITS_MAX};
use keelson_protocol::message::ToAgent;
use keelson_protocol::{BootId, Generation, Incarnation, MachineId, MonoTime, WallTime};

use crate::action::{Action, Step, StepKey};
use crate::certificates::{CertificateRun, LinkRun};
use crate::clock::Clock;
use crate::desired::Desired;
use crate::dismissal::Dismissal;
use crate::event::{Event, LinkNews, Observation, StepOutput};
use crate::fence::Fence;
use crate::files::Files;
use crate::journal::Journal;
use crate::ledger::Ledger;
use crate::looks::{Class, Looks};
use crate::network::Network;
use crate::peers::Peers;
use crate::probes::Probes;
use crate::remedies::Remedies;
use crate::report::Reporter;
use crate::rest::{News, Rest};
use crate::retry::{Backoff, Seed};
use crate::status::LinkView;
use crate::units::{UnitRun, UnitsSeen};

/// The core is woken at least this often: whatever has no time of its own is looked at then.
const WAKE_MAX: Duration = Duration::from_secs(1);
/// Things that may be lost in a crash (events, counters) are written this long after they changed, all at once.
const PERSIST_DELAY: Duration = Duration::from_secs(1);
/// A ledger that could not be written is tried again after this time.
const PERSIST_RETRY: Duration = Duration::from_secs(10);
/// A step that keeps failing for the same reason is told again after this time.
const FAILURE_REPEATED: Duration = Duration::from_secs(600);
/// Most units in the ledger: those of the config and those of the one before.
const UNITS_OWNED_MAX: usize = 4 * UNITS_MAX;
/// Most files in the ledger: those of the config and those of the one before.
const FILES_OWNED_MAX: usize = 4 * (FILES_MAX + 2 * CERTIFICATES_MAX);

/// Who this machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// Its id.
    pub machine: MachineId,
    /// Which machine of that id.
    pub incarnation: Incarnation,
    /// This boot.
    pub boot: BootId,
}

/// What the shell found where the ledger should be.
#[derive(Debug)]
pub enum LedgerFound {
    /// Nothing: a new machine.
    Absent,
    /// A ledger.
    Intact(Box<Ledger>),
    /// A newer one than the disk has, which took no writes: it is gone with this boot.
    InMemory(Box<Ledger>),
    /// Something that cannot be used; it was kept aside.
    SetAside {
        /// Why it cannot be used, and where it is now.
        why: String,
    },
}

impl LedgerFound {
    /// The ledger, if it can be used.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        match self {
            Self::Intact(ledger) | Self::InMemory(ledger) => Some(ledger),
            Self::Absent | Self::SetAside { .. } => None,
        }
    }
}

/// All that a core begins with.
#[derive(Debug)]
pub struct Start {
    /// Who this machine is.
    pub me: Me,
    /// The ledger.
    pub ledger: LedgerFound,
    /// Version of the agent, for the first event.
    pub version: String,
    /// Seed of the jitter.
    pub seed: Seed,
}

/// The moment of a call, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) mono: MonoTime,
    pub(crate) wall: WallTime,
}

/// The agent's mind. The contract: call [`Self::handle`] for every event and carry out the returned actions in their
/// order; a [`Action::Persist`] is on disk before the next action begins; every look, probe and step is answered by
/// exactly one event, a time-out included. Call it with [`Event::Woke`] at [`Self::next_wake`]. Times must not go back.
/// Getters may be called at any moment.
#[derive(Debug)]
pub struct AgentCore {
    pub(crate) me: Me,
    pub(crate) ledger: Ledger,
    pub(crate) desired: Option<Desired>,
    pub(crate) journal: Journal,
    pub(crate) units: BTreeMap<String, UnitRun>,
    pub(crate) units_seen: UnitsSeen,
    /// When units that are to be stopped were last told so.
    pub(crate) stopping: BTreeMap<String, MonoTime>,
    pub(crate) files: Files,
    pub(crate) certificates: BTreeMap<String, CertificateRun>,
    /// Whether all were held as wanted at the last comparison.
    pub(crate) certificates_stand: bool,
    pub(crate) link: LinkRun,
    pub(crate) link_view: LinkView,
    pub(crate) network: Network,
    pub(crate) peers: Peers,
    pub(crate) probes: Probes,
    pub(crate) remedies: Remedies,
    pub(crate) fence: Fence,
    pub(crate) dismissal: Dismissal,
    pub(crate) clock: Clock,
    pub(crate) looks: Looks,
    pub(crate) reporter: Reporter,
    pub(crate) seed: Seed,
    pub(crate) now: Now,
    in_flight: BTreeSet<StepKey>,
    failures: BTreeMap<StepKey, Failure>,
    dirty: Dirty,
    /// What each write of the ledger that is under way puts on the disk, oldest first.
    writes: VecDeque<Written>,
    /// The last refusal of a config, told once however often the config comes.
    refused: Option<String>,
    /// Why the ledger could not be written, told once however often it is tried.
    pub(crate) unwritten: Option<String>,
    pub(crate) out: Vec<Action>,
    pub(crate) wake: MonoTime,
    pub(crate) rest: Rest,
}

/// A step that failed, and when it may be tried again.
#[derive(Debug)]
struct Failure {
    backoff: Backoff,
    retry_at: MonoTime,
    why: String,
    told_at: MonoTime,
}

/// How much a write of the ledger puts on the disk.
#[derive(Debug, Clone, Copy)]
struct Written {
    /// Number of the last event.
    events: u64,
    /// How often progress of remedies had been noted.
    remedies: u64,
}

/// Whether the ledger in memory differs from the one on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dirty {
    Clean,
    Since { due: MonoTime },
}

impl AgentCore {
    /// Begins, from nothing or from a ledger. Start, restart and reboot are the same path.
    #[must_use]
    pub fn restore(start: Start, now: MonoTime, wall: WallTime) -> Self {
        let Start { me, ledger, version, seed } = start;
        // Numbers of events that were used must not be used again, and a ledger that is not there may have been lost: the
        // milliseconds since 1970 are ahead of any count.
        let event_next = u64::try_from(wall.0).unwrap_or(1).max(1);
        let empty = || Ledger { event_next, ..Ledger::empty(me.machine.clone(), me.incarnation) };
        let in_memory = matches!(ledger, LedgerFound::InMemory(_));
        let (mut ledger, mut found) = match ledger {
            LedgerFound::Absent => (empty(), "there is no ledger: the machine is new".to_owned()),
            LedgerFound::SetAside { why } => (empty(), why),
            LedgerFound::Intact(ledger) | LedgerFound::InMemory(ledger) => (*ledger, String::new()),
        };
        if (&ledger.machine, ledger.incarnation) != (&me.machine, me.incarnation) {
            found = format!(
                "the ledger is of {} incarnation {}: its config is not used",
                ledger.machine, ledger.incarnation
            );
            ledger.machine = me.machine.clone();
            ledger.incarnation = me.incarnation;
            ledger.config = None;
            ledger.remedies.clear();
            (ledger.fence, ledger.dismissed) = (None, None);
        }
        let desired = ledger.config.as_ref().map(Desired::of);
        // An earlier version of the agent may have owned fewer files for the same config.
        ledger.files.extend(desired.iter().flat_map(|desired| desired.owned.iter().cloned()));
        let seed_mixed = Seed(seed.0 ^ u64::try_from(me.boot.0 & u128::from(u64::MAX)).unwrap_or(0));
        let mut core = Self {
            desired,
            journal: Journal::restored(&ledger),
            units: BTreeMap::new(),
            units_seen: UnitsSeen::default(),
            stopping: BTreeMap::new(),
            files: Files::new(),
            certificates: BTreeMap::new(),
            certificates_stand: false,
            link: LinkRun::default(),
            link_view: LinkView::new(wall),
            network: Network::default(),
            peers: Peers::new(now),
            probes: Probes::default(),
            remedies: Remedies::default(),
            fence: Fence::default(),
            dismissal: Dismissal::default(),
            clock: Clock::default(),
            looks: Looks::default(),
            reporter: Reporter::new(now),
            seed: seed_mixed,
            now: Now { mono: now, wall },
            in_flight: BTreeSet::new(),
            failures: BTreeMap::new(),
            dirty: Dirty::Clean,
            writes: VecDeque::new(),
            refused: None,
            unwritten: None,
            out: Vec::new(),
            wake: now,
            rest: Rest::NEVER,
            me,
            ledger,
        };
        core.prepare_runs();
        // The agent before may have begun a change.
        core.inputs_touched(|_| true);
        core.settle_state();
        let outcome = match core.generation() {
            Some(generation) => format!("works on generation {generation} of its ledger"),
            None => "waits for a config".to_owned(),
        };
        let cause = if found.is_empty() { format!("boot {}", core.me.boot) } else { found };
        core.note(EventKind::AgentStarted, &format!("keelson-agent {version}"), &cause, &outcome);
        if in_memory {
            core.nothing_is_on_disk();
        }
        core
    }

    /// Takes an event and answers with what is to be done.
    #[must_use = "actions that are not carried out leave the core waiting for their answers"]
    pub fn handle(&mut self, now: MonoTime, wall: WallTime, event: Event) -> Vec<Action> {
        self.now = Now { mono: now.max(self.now.mono), wall };
        self.wake = self.now.mono.plus(WAKE_MAX);
        let mut news = self.take(event);
        if self.rest.is_over(self.now, news) {
            news = News::Some;
            self.compare();
        } else {
            self.wake_at(self.rest.due());
        }
        self.pass_time(news);
        self.flush();
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Woke`] is due, at the latest.
    #[must_use]
    pub fn next_wake(&self) -> MonoTime {
        self.wake
    }

    /// Generation of the config that the machine works on.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.ledger.config.as_ref().map(|config| config.generation)
    }

    fn take(&mut self, event: Event) -> News {
        match event {
            Event::Woke => return News::None,
            Event::Persisted(result) => {
                self.persisted(result);
                return News::Progress;
            }
            Event::FilesTouched => {
                self.looks.changed(Class::Files, self.now.mono);
                self.looks.changed(Class::Certificates, self.now.mono);
                return News::None;
            }
            Event::Observed { id, observation } => return self.observed(id, observation).max(News::Progress),
            Event::Probed { id, result } => return self.probes.answered(id, result),
            Event::Message(message) => return self.message(*message),
            Event::StepDone { key, result } => self.step_done(key, result),
            Event::PeersProbed { id, answers } => self.peers_probed(id, answers),
            Event::Link(news) => self.link_news(news),
        }
        News::Some
    }

    pub(crate) fn reconcile(&mut self) {
        if self.is_dismissed() {
            return self.reconcile_dismissal();
        }
        if let (Some(config), Some(desired)) = (self.ledger.config.take(), self.desired.take()) {
            self.reconcile_files(&config, &desired);
            self.reconcile_certificates(&config, &desired);
            self.reconcile_network(&config);
            self.reconcile_peers(&config);
            // Before the units: what is held down must not be started again.
            self.reconcile_fence(&config);
            self.reconcile_remedies(&config, &desired);
            self.reconcile_units(&config, &desired);
            self.ledger.config = Some(config);
            self.desired = Some(desired);
        }
    }

    /// Does what time alone makes due.
    fn pass_time(&mut self, news: News) {
        self.look_at_what_is_due();
        self.reconcile_link();
        self.look_at_pressure();
        self.ask_probes();
        self.send_reports(news);
    }

    /// Puts the ledger in front of everything that this call decided, when it is due.
    fn flush(&mut self) {
        let Dirty::Since { due } = self.dirty else { return };
        if due > self.now.mono {
            self.wake_at(due);
            return;
        }
        self.dirty = Dirty::Clean;
        self.writes.push_back(Written { events: self.ledger.event_next - 1, remedies: self.remedies.noted });
        self.out.insert(0, Action::Persist(self.ledger.encode()));
    }

    /// What this core begins with is in memory alone.
    fn nothing_is_on_disk(&mut self) {
        self.journal.nothing_is_on_disk();
        self.remedies.noted += 1;
        self.unwritten = Some("the disk took no writes when the agent was started anew".to_owned());
        self.persist_now();
    }

    /// Writes end in their order, so that the end of an older one says nothing of a newer one.
    fn persisted(&mut self, result: Result<(), String>) {
        let Some(written) = self.writes.pop_front() else { return };
        match result {
            Ok(()) => {
                self.unwritten = None;
                self.journal.persisted(written.events);
                self.remedies.written = written.remedies;
            }
            Err(why) => {
                if tell_once(&mut self.unwritten, &why) {
                    let outcome = format!("tried again every {} s", PERSIST_RETRY.as_secs());
                    self.note(EventKind::ActionFailed, "ledger", &why, &outcome);
                }
                self.dirty = Dirty::Since { due: self.now.mono.plus(PERSIST_RETRY) };
            }
        }
    }

    fn step_done(&mut self, key: StepKey, result: Result<StepOutput, String>) {
        if !self.in_flight.remove(&key) {
            return;
        }
        let result = match result {
            Ok(StepOutput::Written { failed }) if !failed.is_empty() => {
                let (path, why) = &failed[0];
                self.step_failed(&key, format!("{path}: {why}"));
                Ok(StepOutput::Written { failed })
            }
            Ok(output) => {
                // A key is half of the way: a certificate that cannot be written keeps its wait, and is told once.
                if !matches!(output, StepOutput::SigningRequest(_)) {
                    self.failures.remove(&key);
                }
                Ok(output)
            }
            Err(why) => {
                self.step_failed(&key, why.clone());
                Err(why)
            }
        };
        match key {
            StepKey::Files => self.files_done(result),
            StepKey::Reload => self.reload_done(&result),
            StepKey::Unit(name) => self.unit_done(&name, result.map(|_| ())),
            StepKey::Certificate(name) => self.certificate_done(&name, result),
            StepKey::Link => self.link_done(result),
            StepKey::Routes => self.routes_done(result.is_ok()),
            StepKey::Balancer => self.balancer_done(result.is_ok()),
            StepKey::Peers => self.responder_done(result.is_ok()),
            StepKey::Act(name) => self.act_done(&name, result),
            StepKey::Power => self.power_off_ordered(result.is_ok()),
        }
    }

    fn step_failed(&mut self, key: &StepKey, why: String) {
        let now = self.now.mono;
        let before = self.failures.remove(key);
        let failures = before.as_ref().map_or(0, |failure| failure.backoff.failures) + 1;
        let backoff = Backoff { failures };
        let told =
            before.filter(|failure| failure.why == why && now.since(failure.told_at) < FAILURE_REPEATED);
        let told_at = told.map_or(now, |failure| failure.told_at);
        if told_at == now {
            let outcome = format!("tried again in {} s", backoff.delay().as_secs());
            self.note(EventKind::ActionFailed, &key.to_string(), &why, &outcome);
        }
        let retry_at = now.plus(backoff.delay());
        self.failures.insert(key.clone(), Failure { backoff, retry_at, why, told_at });
    }

    fn observed(&mut self, id: u64, observation: Result<Observation, String>) -> News {
        // A stale answer shows the machine as it was before our last change: it is asked again instead.
        let Some(class) = self.looks.answered(id, self.now.mono) else { return News::None };
        if observation.is_ok() {
            self.looks.succeeded(class);
        }
        match observation {
            Ok(Observation::Units(units)) => self.units_answered(units),
            Ok(Observation::Files(files)) => self.files.seen(files),
            Ok(Observation::Certificates(certificates)) => self.certificates_seen(certificates),
            Ok(Observation::Routes(routes)) => self.network.routes_seen(routes),
            Ok(Observation::Pressure(pressure)) => self.pressure_seen(pressure),
            // Unknown is not absent: nothing changes, and the next look comes in its time.
            Err(why) => {
                if self.looks.failed(class, &why) {
                    self.note(EventKind::ActionFailed, class.name(), &why, "could not look; tried again");
                }
                News::None
            }
        }
    }

    fn link_news(&mut self, news: LinkNews) {
        if let LinkNews::Identity(validity) = &news {
            self.link.identity = Some(*validity);
            return;
        }
        self.link_view.take(&news, self.now.wall);
        self.link_changed();
        if let LinkNews::Refused(refusal) = &news {
            self.turned_away(refusal);
        }
        if matches!(news, LinkNews::Connected { .. }) {
            self.welcomed();
            self.journal.session_began();
            self.reporter.session_began();
            self.requests_again();
            if self.ledger.events_dropped > 0 {
                let cause = format!(
                    "{} events were dropped while the coordinator was away",
                    self.ledger.events_dropped
                );
                self.ledger.events_dropped = 0;
                self.note(EventKind::EventsDropped, "events", &cause, "the oldest are lost");
            }
        }
    }

    fn message(&mut self, message: ToAgent) -> News {
        match message {
            // The link has dealt with these two.
            ToAgent::Welcome { .. } | ToAgent::Refused(_) => return News::None,
            ToAgent::Config(config) => self.offered(*config),
            ToAgent::Certificate { name, chain } => self.certificate_came(&name, chain),
            ToAgent::CertificateRefused { name, why } => self.certificate_refused(&name, &why),
            ToAgent::LinkRenewed { chain } => self.link_came(chain),
            ToAgent::EventsStored { through } => {
                if self.journal.stored(&mut self.ledger, through) {
                    self.persist_soon();
                }
                return News::None;
            }
            ToAgent::Time { asked_at, now } => return self.time_came(asked_at, now),
            ToAgent::ProbePeers { id, targets } => self.coordinator_asks(id, targets),
        }
        News::Some
    }

    fn offered(&mut self, config: NodeConfig) {
        match self.judge(&config) {
            Verdict::Known => {}
            Verdict::Refuse(why) => {
                let subject = format!("generation {}", config.generation);
                if tell_once(&mut self.refused, &format!("{subject}: {why}")) {
                    self.note(EventKind::ConfigRefused, &subject, &why, "the machine keeps what it has");
                }
            }
            Verdict::Accept => self.accept(config),
        }
    }

    fn judge(&self, config: &NodeConfig) -> Verdict {
        let (machine, incarnation) = (&config.machine, config.incarnation);
        if (machine, incarnation) != (&self.me.machine, self.me.incarnation) {
            return Verdict::Refuse(format!(
                "it is for {machine} incarnation {incarnation}, this is {} incarnation {}",
                self.me.machine, self.me.incarnation
            ));
        }
        if let Err(why) = config.check() {
            return Verdict::Refuse(why);
        }
        match &self.ledger.config {
            None => Verdict::Accept,
            Some(mine) if config.generation > mine.generation => self.judge_room(config),
            Some(mine) if config.generation < mine.generation => {
                Verdict::Refuse(format!("it is older than generation {}, which is applied", mine.generation))
            }
            Some(mine) if mine == config => Verdict::Known,
            Some(_) => Verdict::Refuse("another config of the same generation is applied".to_owned()),
        }
    }

    /// A stream of configs must not let the list of what is still to be removed grow without bound.
    fn judge_room(&self, config: &NodeConfig) -> Verdict {
        let units = self.ledger.units.len() + config.units.len();
        let files = self.ledger.files.len() + config.files.len() + 2 * config.certificates.len();
        if units > UNITS_OWNED_MAX || files > FILES_OWNED_MAX {
            return Verdict::Refuse("things of earlier configs must be removed first".to_owned());
        }
        Verdict::Accept
    }

    fn accept(&mut self, config: NodeConfig) {
        let changing: Vec<String> =
            self.files.changing().chain(self.certificates_changing()).cloned().collect();
        self.inputs_touched(|input| changing.iter().any(|other| other == input));
        let subject = format!("generation {}", config.generation);
        let cause = match self.generation() {
            Some(generation) => format!("follows generation {generation}"),
            None => "the first config".to_owned(),
        };
        let outcome = format!(
            "{} units, {} files, {} certificates",
            config.units.len(),
            config.files.len(),
            config.certificates.len()
        );
        for unit in config.units.iter().filter(|unit| unit.kind != UnitKind::Check) {
            self.ledger.units.entry(unit.name.clone()).or_default();
        }
        self.units_seen.list_anew();
        let desired = Desired::of(&config);
        self.ledger.files.extend(desired.owned.iter().cloned());
        let before = self.desired.replace(desired);
        self.forget_starts_with_other_inputs(&config);
        self.ledger.config = Some(config);
        self.refused = None;
        self.prepare_runs();
        self.units_changed(before.as_ref());
        self.forget_remedies();
        self.files.config_changed();
        self.network.config_changed();
        self.looks.all_now(self.now.mono);
        self.note(EventKind::ConfigAccepted, &subject, &cause, &outcome);
        self.persist_now();
    }

    /// Makes room for the state of everything in the config, and drops that of everything else.
    fn prepare_runs(&mut self) {
        let Some(config) = &self.ledger.config else { return };
        let wall = self.now.wall;
        self.units.retain(|name, _| config.unit(name).is_some());
        for unit in &config.units {
            self.units.entry(unit.name.clone()).or_insert_with(|| UnitRun::new(wall));
        }
        self.certificates.retain(|name, _| config.certificates.iter().any(|spec| spec.name == *name));
        for spec in &config.certificates {
            self.certificates.entry(spec.name.clone()).or_default();
        }
        // Addresses of certificates may have moved, so that what was seen says nothing any more.
        self.certificates.values_mut().for_each(CertificateRun::forget_seen);
    }

    // What the parts share.

    /// Notes an event; it goes to disk soon and then to the coordinator.
    pub(crate) fn note(&mut self, kind: EventKind, subject: &str, cause: &str, outcome: &str) {
        self.journal.note(&mut self.ledger, self.now.wall, kind, [subject, cause, outcome]);
        self.persist_soon();
    }

    /// The ledger must be on disk before anything that this call decided.
    pub(crate) fn persist_now(&mut self) {
        self.dirty = Dirty::Since { due: self.now.mono };
    }

    /// The ledger must be on disk some time soon.
    pub(crate) fn persist_soon(&mut self) {
        if self.dirty == Dirty::Clean {
            self.dirty = Dirty::Since { due: self.now.mono.plus(PERSIST_DELAY) };
        }
    }

    /// The core wants to be woken at `at`, or earlier.
    pub(crate) fn wake_at(&mut self, at: MonoTime) {
        self.wake = self.wake.min(at.max(self.now.mono));
    }

    pub(crate) fn push(&mut self, action: Action) {
        self.out.push(action);
    }

    /// Whether a step of `key` may begin: none is in flight, and the wait after the last failure is over.
    pub(crate) fn free(&mut self, key: &StepKey) -> bool {
        if self.in_flight.contains(key) {
            return false;
        }
        match self.failures.get(key).map(|failure| failure.retry_at) {
            Some(retry_at) if retry_at > self.now.mono => {
                self.wake_at(retry_at);
                false
            }
            _ => true,
        }
    }

    pub(crate) fn nothing_in_flight(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub(crate) fn is_in_flight(&self, key: &StepKey) -> bool {
        self.in_flight.contains(key)
    }

    /// Why the last step of `key` failed, while it is waiting to be tried again.
    pub(crate) fn failure(&self, key: &StepKey) -> Option<&str> {
        self.failures.get(key).map(|failure| failure.why.as_str())
    }

    pub(crate) fn run(&mut self, step: Step) {
        let fresh = self.in_flight.insert(step.key());
        assert!(fresh, "one step in flight per key: callers ask `free` first");
        self.push(Action::Run(step));
    }

    /// A change was made: what is on its way shows the time before it.
    pub(crate) fn look_again(&mut self, class: Class) {
        self.looks.changed(class, self.now.mono);
    }
}

enum Verdict {
    Accept,
    Known,
    Refuse(String),
}

/// Whether `what` is another thing than was told last.
fn tell_once(told: &mut Option<String>, what: &str) -> bool {
    let fresh = told.as_deref() != Some(what);
    *told = Some(what.to_owned());
    fresh
}
