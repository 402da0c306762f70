//! What the coordinator hears: heartbeats, health reports, events, and questions for the time.

use std::time::Duration;

use keelson_protocol::health::{
    CertificateHealth, EventKind, HealthReport, Heartbeat, NodeState, Pressure, UnitHealth, UnitState,
};
use keelson_protocol::limits::HEARTBEAT_INTERVAL;
use keelson_protocol::message::ToCoordinator;
use keelson_protocol::{MonoTime, WallTime};

use crate::action::{Action, StepKey};
use crate::certificates::CertificateRun;
use crate::core::AgentCore;
use crate::rest::News;
use crate::units::{Phase, START_MAX, UnitRun};

/// A report is sent this often even when nothing changes, so that a lost one is not missed for long; a little earlier
/// by chance, so that a fleet that came back together does not report together for ever.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// How much earlier at most.
const REPORT_JITTER: Duration = Duration::from_secs(10);
/// At most one report in this time: a boot changes many things at once.
const REPORT_GAP: Duration = Duration::from_millis(200);
/// The clock is compared this often.
const TIME_EVERY: Duration = Duration::from_secs(60);
/// Longer round trips say too little about the clock.
const TIME_ROUND_TRIP_MAX: Duration = Duration::from_secs(5);
/// Numbers of heartbeats and reports begin at the tenths of a second of the monotonic clock, so that they go on growing
/// when the agent is restarted within a boot. Both are sent less often than ten times a second.
const SEQUENCE_MS: u64 = 100;
/// Pressure is told above these values, in percent ...
const DISK_HIGH_PERCENT: u8 = 85;
/// ... and below this one.
const MEMORY_LOW_PERCENT: u8 = 5;
/// It is over when the value is this much better, so that it does not flicker.
const HYSTERESIS_PERCENT: u8 = 5;

const _: () = assert!(SEQUENCE_MS < REPORT_GAP.as_millis() as u64);
const _: () = assert!(SEQUENCE_MS < HEARTBEAT_INTERVAL.as_millis() as u64);

#[derive(Debug)]
pub(crate) struct Reporter {
    heartbeat_sequence: u64,
    heartbeat_at: Option<MonoTime>,
    report_sequence: u64,
    report_at: Option<MonoTime>,
    report_every: Duration,
    reported: Option<HealthReport>,
    /// When the next report is due, unless something new is to be told.
    report_due: Option<MonoTime>,
    /// The machine's state, as of the last comparison.
    state: NodeState,
    /// Since when units start anew because a config wants them otherwise, until everything stands.
    changing_since: Option<MonoTime>,
    time_asked: Option<MonoTime>,
    pub(crate) clock_offset_ms: Option<i64>,
    pub(crate) pressure: Option<Pressure>,
    pressure_at: MonoTime,
    disk_tight: bool,
    pub(crate) memory_tight: bool,
}

impl Reporter {
    pub(crate) fn new(now: MonoTime) -> Self {
        let base = now.0 / SEQUENCE_MS;
        Self {
            heartbeat_sequence: base,
            heartbeat_at: None,
            report_sequence: base,
            report_at: None,
            report_every: REPORT_EVERY,
            reported: None,
            report_due: None,
            state: NodeState::Idle,
            changing_since: None,
            time_asked: None,
            clock_offset_ms: None,
            pressure: None,
            pressure_at: MonoTime(0),
            disk_tight: false,
            memory_tight: false,
        }
    }

    /// Room left, when it was looked at after `since`.
    pub(crate) fn pressure_since(&self, since: MonoTime) -> Option<Pressure> {
        self.pressure.filter(|_| self.pressure_at > since)
    }

    /// A new session: everything is told again.
    pub(crate) fn session_began(&mut self) {
        self.heartbeat_at = None;
        self.reported = None;
        self.report_at = None;
        self.report_due = None;
        self.time_asked = None;
    }

    /// A config has units start anew that stood.
    pub(crate) fn change_began(&mut self, now: MonoTime) {
        self.changing_since.get_or_insert(now);
    }

    /// Whether what does not stand may be out of the way for a change only. One that does not end hides no fault.
    fn is_changing(&self, now: MonoTime) -> bool {
        self.changing_since.is_some_and(|since| now.since(since) < START_MAX)
    }
}

/// When something that happens `every` so often, and last at `last`, is due.
fn due(last: Option<MonoTime>, every: Duration, now: MonoTime) -> MonoTime {
    last.map_or(now, |at| at.plus(every))
}

impl AgentCore {
    /// Tells what is due; a report also when there may be `news`.
    pub(crate) fn send_reports(&mut self, news: News) {
        if !self.link_view.connected() {
            return;
        }
        let now = self.now.mono;
        match self.reporter.report_due {
            Some(due) if due > now && news != News::Some => self.wake_at(due),
            _ => self.send_report(),
        }
        let heartbeat_due = due(self.reporter.heartbeat_at, HEARTBEAT_INTERVAL, now);
        if heartbeat_due <= self.due_by() {
            self.send_heartbeat();
        } else {
            self.wake_at(heartbeat_due);
        }
        if due(self.reporter.time_asked, TIME_EVERY, now) <= now {
            self.reporter.time_asked = Some(now);
            let asked_at = self.now.wall;
            self.push(Action::Send(ToCoordinator::TimeRequest { asked_at }));
        }
        if let Some(events) = self.journal.unsent(&self.ledger, now) {
            self.push(Action::Send(events));
        }
    }

    fn send_heartbeat(&mut self) {
        self.reporter.heartbeat_at = Some(self.now.mono);
        self.reporter.heartbeat_sequence += 1;
        self.push(Action::Heartbeat(Heartbeat {
            sequence: self.reporter.heartbeat_sequence,
            boot: self.me.boot,
            generation: self.generation().unwrap_or_default(),
            state: self.state(),
            report: self.reporter.report_sequence,
        }));
    }

    fn send_report(&mut self) {
        let now = self.now.mono;
        let mut report = self.report();
        let changed = self.reporter.reported.as_ref().is_none_or(|last| differs(last, &report));
        let every = if changed { REPORT_GAP } else { self.reporter.report_every };
        let at = due(self.reporter.report_at, every, now);
        if at > now {
            self.reporter.report_due = Some(at);
            self.wake_at(at);
            return;
        }
        self.reporter.report_sequence += 1;
        report.sequence = self.reporter.report_sequence;
        self.reporter.report_at = Some(now);
        self.reporter.report_every = REPORT_EVERY - self.seed.jitter(REPORT_JITTER);
        self.reporter.report_due = Some(now.plus(self.reporter.report_every));
        self.reporter.reported = Some(report.clone());
        self.push(Action::Send(ToCoordinator::Health(Box::new(report))));
    }

    /// Health in full, as of now.
    #[must_use]
    pub(crate) fn report(&self) -> HealthReport {
        HealthReport {
            sequence: self.reporter.report_sequence,
            at: self.now.wall,
            generation: self.generation().unwrap_or_default(),
            state: self.state(),
            units: self.unit_healths(),
            pressure: self.reporter.pressure.unwrap_or_default(),
            certificates: self.certificate_healths(),
            clock_offset_ms: self.reporter.clock_offset_ms,
        }
    }

    pub(crate) fn unit_healths(&self) -> Vec<UnitHealth> {
        let Some(config) = &self.ledger.config else { return Vec::new() };
        let health = |name: &String| {
            let run = self.units.get(name)?;
            let state = match &run.phase {
                _ if let Some(why) = run.in_vain(self.now.mono) => UnitState::GivenUp { why },
                Phase::Unseen => UnitState::Waiting { on: "the first look".to_owned() },
                Phase::Waiting { on, .. } => UnitState::Waiting { on: on.clone() },
                Phase::Starting { .. } => UnitState::Starting,
                Phase::Healthy { .. } => UnitState::Healthy,
                Phase::Unhealthy { why, .. } => UnitState::Unhealthy { why: why.clone() },
                Phase::Down { why, .. } => UnitState::Down { why: why.clone() },
                Phase::GivenUp { why, .. } => UnitState::GivenUp { why: why.clone() },
            };
            Some(UnitHealth { name: name.clone(), state, since: run.since, restarts: self.restarts(name) })
        };
        config.units.iter().filter_map(|unit| health(&unit.name)).collect()
    }

    fn certificate_healths(&self) -> Vec<CertificateHealth> {
        let held = |(name, run): (&String, &CertificateRun)| {
            run.validity()
                .map(|validity| CertificateHealth { name: name.clone(), not_after: validity.not_after })
        };
        self.certificates.iter().filter_map(held).collect()
    }

    /// State of the machine in one word.
    #[must_use]
    pub fn state(&self) -> NodeState {
        self.reporter.state
    }

    /// Works the state out anew, after a comparison.
    pub(crate) fn settle_state(&mut self) {
        self.reporter.state = self.judge_state();
        if self.reporter.state == NodeState::Ready {
            self.reporter.changing_since = None;
        }
    }

    fn judge_state(&self) -> NodeState {
        if self.ledger.config.is_none() {
            return NodeState::Idle;
        }
        // A machine that was rebooted while it is cut off has started nothing, and yet is no new one.
        if self.ledger.fence.is_some() || self.is_dismissed() {
            return NodeState::Degraded;
        }
        let given_up = |phase: &Phase| matches!(phase, Phase::GivenUp { .. });
        if self
            .units
            .values()
            .any(|run| run.withheld || given_up(&run.phase) || run.in_vain(self.now.mono).is_some())
        {
            return NodeState::Failed;
        }
        // What it has to tell does not get through without its ledger, and the next start would know nothing of it.
        if self.unwritten.is_some() {
            return NodeState::Degraded;
        }
        let fell = |run: &UnitRun| run.was_healthy && !run.phase.is_healthy();
        if !self.reporter.is_changing(self.now.mono) && self.units.values().any(fell) {
            return NodeState::Degraded;
        }
        if self.unsettled().is_some() { NodeState::Applying } else { NodeState::Ready }
    }

    /// The first thing that is not as the config wants it, in words.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let (config, desired) = (self.ledger.config.as_ref()?, self.desired.as_ref()?);
        if let Some(why) = &self.unwritten {
            return Some(format!("the ledger cannot be written: {why}"));
        }
        if !self.files.all_as_wanted() {
            let why = self.failure(&StepKey::Files);
            return Some(why.map_or_else(|| "files are being written".to_owned(), str::to_owned));
        }
        let missing = config.certificates.iter().find(|spec| !self.holds_certificate(desired, &spec.name));
        if let Some(spec) = missing {
            return Some(format!("certificate {} is being asked for", spec.name));
        }
        if let Some(stale) = self.stale_units(desired).next() {
            return Some(format!("{stale} of the config before is being removed"));
        }
        let waiting = |name: &str| self.units.get(name).is_none_or(|run| !run.phase.is_healthy());
        if let Some(unit) = config.units.iter().find(|unit| waiting(&unit.name)) {
            return Some(format!("{} is not healthy yet", unit.name));
        }
        self.network.unsettled(config).map(|what| format!("{what} are being set"))
    }

    pub(crate) fn time_came(&mut self, asked_at: WallTime, coordinator: WallTime) -> News {
        let Some(asked) = self.reporter.time_asked else { return News::None };
        let round_trip = self.now.mono.since(asked);
        if round_trip > TIME_ROUND_TRIP_MAX {
            return News::None;
        }
        let half_ms = i64::try_from(round_trip.as_millis() / 2).unwrap_or(0);
        let answered_at = asked_at.0.saturating_add(half_ms);
        let offset_ms = answered_at.saturating_sub(coordinator.0);
        let before = self.reporter.clock_offset_ms.replace(offset_ms);
        let round_trip_half = Duration::from_millis(u64::try_from(half_ms).unwrap_or(0));
        let turned = self.clock_compared(coordinator.plus(round_trip_half), offset_ms);
        // Where it drifts to is told with the next report.
        News::when(before.is_none() || turned)
    }

    pub(crate) fn pressure_seen(&mut self, pressure: Pressure) -> News {
        let before = self.reporter.pressure.replace(pressure);
        self.reporter.pressure_at = self.now.mono;
        let used = pressure.disk_used_percent.max(pressure.inodes_used_percent);
        let disk = crossed(
            &mut self.reporter.disk_tight,
            used >= DISK_HIGH_PERCENT,
            used + HYSTERESIS_PERCENT <= DISK_HIGH_PERCENT,
        );
        let free = pressure.memory_available_percent;
        let memory = crossed(
            &mut self.reporter.memory_tight,
            free <= MEMORY_LOW_PERCENT,
            free >= MEMORY_LOW_PERCENT + HYSTERESIS_PERCENT,
        );
        if disk {
            let cause = format!(
                "{} % of the disk and {} % of its inodes are used",
                pressure.disk_used_percent, pressure.inodes_used_percent
            );
            let outcome = if self.reporter.disk_tight { "room runs short" } else { "there is room again" };
            self.note(EventKind::Pressure, "/var/lib", &cause, outcome);
        }
        if memory {
            let cause = format!("{free} % of the memory are available");
            let outcome =
                if self.reporter.memory_tight { "memory runs short" } else { "there is memory again" };
            self.note(EventKind::Pressure, "memory", &cause, outcome);
        }
        News::when(before != Some(pressure))
    }
}

/// Whether a state with hysteresis changed.
fn crossed(state: &mut bool, begins: bool, ends: bool) -> bool {
    let after = if *state { !ends } else { begins };
    std::mem::replace(state, after) != after
}

/// Whether two reports differ in something that cannot wait for the next minute. Clock and free room drift all the time.
fn differs(last: &HealthReport, next: &HealthReport) -> bool {
    let moved = |a: u8, b: u8| a.abs_diff(b) >= HYSTERESIS_PERCENT;
    (last.generation, last.state) != (next.generation, next.state)
        || last.units != next.units
        || last.certificates != next.certificates
        || moved(last.pressure.disk_used_percent, next.pressure.disk_used_percent)
        || moved(last.pressure.inodes_used_percent, next.pressure.inodes_used_percent)
        || moved(last.pressure.memory_available_percent, next.pressure.memory_available_percent)
        || last.clock_offset_ms.is_none() != next.clock_offset_ms.is_none()
}
