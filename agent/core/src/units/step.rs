//! The one transition function of a unit: (phase, facts) to (phase, order), with notes for the journal.

use std::collections::VecDeque;
use std::time::Duration;

use keelson_protocol::health::EventKind;
use keelson_protocol::{MonoTime, WallTime};

use super::{
    BAD_ANSWERS_MAX, HUNG_AFTER, Note, REPAIRS_MAX, REPAIRS_WINDOW, SETTLED_AFTER, STABLE_AFTER, START_MAX,
    SYSTEMD_TRIES_MAX,
};
use crate::event::Invocation;
use crate::probes::Said;
use crate::retry::Backoff;

/// systemd brings a program back after one second; the agent steps in when that has not happened a moment later.
const SYSTEMD_GRACE: Duration = Duration::from_secs(2);
/// A unit that fell and has been on its way for so long is on its way up: no stop takes as long.
const STOPPING_MAX: Duration = Duration::from_secs(60);
/// The longest wait for a start doubles this often at most.
const START_DOUBLINGS_MAX: u32 = 3;

/// Where a unit stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nobody has looked yet.
    Unseen,
    /// It is to be started with its present inputs, and something is missing for that.
    Waiting { since: MonoTime, on: String },
    /// Started, and not healthy yet.
    Starting { since: MonoTime },
    /// Running and healthy; for a oneshot: done.
    Healthy { since: MonoTime },
    /// Running, and its probe says that it does not work.
    Unhealthy { since: MonoTime, why: String },
    /// Not running; started again at `retry_at` when what it needs is there.
    Down { since: MonoTime, retry_at: MonoTime, why: String },
    /// Not running, and its budget of repairs is used up until `until`.
    GivenUp { since: MonoTime, until: MonoTime, why: String },
}

impl Phase {
    pub(crate) fn is_healthy(&self) -> bool {
        matches!(self, Self::Healthy { .. })
    }

    pub(crate) fn same_state(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// What was last seen of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Nothing, or only what is out of date.
    Unknown,
    /// On its way up or down.
    Settling,
    /// Not running; `killed` tells whether somebody else ended it.
    Stopped { why: String, killed: bool },
    /// Not running, and systemd will start it soon.
    AutoRestart { why: String, killed: bool },
    /// Running; `current` tells whether with the inputs that are wanted now.
    Running { invocation: Option<Invocation>, current: bool },
    /// A oneshot that ended with success for the inputs that are wanted now.
    Finished,
}

/// Everything that a transition depends on.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) reading: Reading,
    /// Whether a start with the wanted inputs was ordered in this boot.
    pub(crate) started: bool,
    /// Whether its files and certificates are in place; else what is not.
    pub(crate) ready: Result<(), String>,
    /// Whether what it needs holds; else what does not.
    pub(crate) needs: Result<(), String>,
    /// Whether something that it needs is known not to hold, which is less than not known to hold.
    pub(crate) lacks: bool,
    /// Whether the machine itself explains that it does not work: no room, no memory, a disk that takes no writes.
    pub(crate) hindered: bool,
    /// What its health probe last said.
    pub(crate) health: Said,
    /// What the probe last said that tells a dead program from one that waits; `None` when it has none.
    pub(crate) alive: Option<Said>,
    pub(crate) now: MonoTime,
}

impl Facts {
    pub(crate) fn may_start(&self) -> Result<&(), &String> {
        self.ready.as_ref().and(self.needs.as_ref())
    }
}

/// What is to be done with a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// Start it.
    Start(Reason),
    /// Stop it when it runs, and start it.
    Restart(Reason),
    /// Hold it down: systemd would start it again at once.
    Stop,
}

/// Why a unit is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It is new, or its inputs changed.
    Wanted(&'static str),
    /// It fell; costs a part of the budget.
    Repair(String),
}

/// What the agent remembers of a unit while it runs.
#[derive(Debug)]
pub(crate) struct UnitRun {
    pub(crate) phase: Phase,
    /// Since when it has been in that phase.
    pub(crate) since: WallTime,
    /// What is to be told.
    pub(crate) notes: Vec<Note>,
    /// A restart happened and is to be counted in the ledger.
    pub(crate) count_restart: bool,
    /// The health probe's answers are those of an earlier run.
    pub(crate) forget_health: bool,
    /// When the phase wants to be looked at again.
    pub(crate) wake: Option<MonoTime>,
    /// It was healthy with its present inputs.
    pub(crate) was_healthy: bool,
    /// It lives, does not work, and its budget of repairs is used up.
    pub(crate) withheld: bool,
    /// The run that was last seen.
    run: Option<Invocation>,
    /// A start was ordered whose run was not seen yet.
    awaited: bool,
    /// Health is to be told when it comes.
    announce: bool,
    in_flight: Option<Order>,
    /// Why the last start was refused: told once, however often it is tried.
    refused: Option<String>,
    failures: Backoff,
    repairs: VecDeque<MonoTime>,
    /// What it needs did not hold since it fell.
    needs_failed: bool,
    /// Something that it needs is known not to hold.
    blocked: bool,
    /// The machine itself explains that it does not work.
    hindered: bool,
    /// How often in a row it fell or was restarted, with all that it needs, and without coming up in between.
    falls: u32,
    /// Why it last fell.
    fell: String,
    /// Since when it has not been healthy after a fall, with all that it needs.
    failing_since: Option<MonoTime>,
    /// What was in vain, whatever was done in between: that is told, whoever is to blame.
    vain: Tally,
    /// The same without the time in which the machine itself explains it: by this the machine may help itself.
    spent: Tally,
    /// Since when the probe that tells whether it lives has failed.
    dead_since: Option<MonoTime>,
    /// Since when it has been on its way up or down although it was to stay as it is.
    settling_since: Option<MonoTime>,
    /// That probe is good: it is not healthy, because of others.
    lives: bool,
}

impl UnitRun {
    pub(crate) fn new(wall: WallTime) -> Self {
        Self {
            phase: Phase::Unseen,
            since: wall,
            notes: Vec::new(),
            count_restart: false,
            forget_health: false,
            wake: None,
            was_healthy: false,
            withheld: false,
            run: None,
            awaited: false,
            announce: false,
            in_flight: None,
            refused: None,
            failures: Backoff::default(),
            repairs: VecDeque::new(),
            needs_failed: false,
            blocked: false,
            hindered: false,
            falls: 0,
            fell: String::new(),
            failing_since: None,
            vain: Tally::default(),
            spent: Tally::default(),
            dead_since: None,
            settling_since: None,
            lives: false,
        }
    }

    /// Nobody has looked for a while: that it did not work all that time is not known.
    pub(crate) fn was_out_of_sight(&mut self) {
        (self.failing_since, self.vain.since, self.spent.since) = (None, None, None);
    }

    /// Whether it came up, and did not fall at once.
    pub(crate) fn is_settled(&self, now: MonoTime) -> bool {
        matches!(self.phase, Phase::Healthy { since } if now.since(since) >= SETTLED_AFTER)
    }

    /// Whether it runs no more since `before`.
    pub(crate) fn has_fallen_since(&self, before: &Phase) -> bool {
        matches!(self.phase, Phase::Down { .. }) && !before.same_state(&self.phase)
    }

    /// The transition. The order counts only once [`Self::ordered`] is called.
    pub(crate) fn step(&mut self, facts: &Facts) -> Option<Order> {
        self.wake = None;
        while self.repairs.front().is_some_and(|at| facts.now.since(*at) >= REPAIRS_WINDOW) {
            self.repairs.pop_front();
        }
        self.blocked = facts.ready.is_err() || facts.lacks;
        if std::mem::replace(&mut self.hindered, facts.hindered) && !facts.hindered {
            self.relieved();
        }
        // Time in which the machine itself kept it from working is no word on its state, also not when that is over.
        if self.falls == 0 || self.blocked || self.hindered || self.phase.is_healthy() {
            self.failing_since = None;
        } else {
            self.failing_since.get_or_insert(facts.now);
        }
        self.vain.pass(facts.now, !self.blocked);
        self.spent.pass(facts.now, !self.blocked && !self.hindered);
        if facts.reading != Reading::Settling {
            self.settling_since = None;
        }
        // It may live long before it is ready.
        if let (Phase::Starting { .. }, Some(said)) = (&self.phase, &facts.alive) {
            self.lives = *said == Said::Good;
        }
        match &facts.reading {
            Reading::Unknown => None,
            Reading::Settling => self.settling(facts),
            Reading::Finished => {
                self.healthy(facts.now);
                self.falls = 0;
                None
            }
            Reading::Running { current: false, .. } => {
                self.begin(facts, Order::Restart(Reason::Wanted("its inputs changed")))
            }
            Reading::AutoRestart { .. } if !facts.started => {
                self.begin(facts, Order::Restart(Reason::Wanted("its inputs changed")))
            }
            Reading::Stopped { .. } if !facts.started => {
                self.begin(facts, Order::Start(Reason::Wanted("everything it needs is there")))
            }
            Reading::Running { current: true, invocation } => self.running(facts, *invocation),
            Reading::AutoRestart { why, .. } => self.fallen(facts, why, Below::Restarts),
            Reading::Stopped { why, .. } => self.fallen(facts, why, Below::Rests),
        }
    }

    /// The transition of a check: it follows its probe, which asks for `asked`, and never orders anything.
    pub(crate) fn check(&mut self, facts: &Facts, asked: &str) -> Option<Order> {
        let now = facts.now;
        if facts.may_start().is_err() {
            return self.begin(facts, Order::Stop);
        }
        match (&self.phase, &facts.health) {
            (_, Said::Good) => self.healthy(now),
            (Phase::Healthy { .. } | Phase::Unhealthy { .. }, Said::Nothing) => {}
            (Phase::Healthy { .. }, Said::Bad { in_row, .. }) if *in_row < BAD_ANSWERS_MAX => {}
            (Phase::Healthy { .. }, Said::Bad { why, .. }) => self.unhealthy(now, why.to_string()),
            (Phase::Unhealthy { since, .. }, Said::Bad { why, .. }) => {
                self.phase = Phase::Unhealthy { since: *since, why: why.to_string() };
            }
            (Phase::Starting { .. }, Said::Nothing) => {}
            (_, Said::Nothing) => self.phase = Phase::Starting { since: now },
            (before, Said::Bad { why, .. }) => {
                let since = match before {
                    Phase::Waiting { since, .. } | Phase::Starting { since } => *since,
                    _ => now,
                };
                // Told when it comes, because it was not there when it was first asked for.
                self.announce = true;
                self.phase = Phase::Waiting { since, on: format!("{asked}: {why}") };
            }
        }
        None
    }

    /// `order` is on its way.
    pub(crate) fn ordered(&mut self, order: Order, now: MonoTime) {
        match &order {
            Order::Stop => {}
            Order::Start(reason) | Order::Restart(reason) => {
                if let Reason::Repair(_) = reason {
                    self.repairs.push_back(now);
                    self.count_restart = true;
                    if let (Order::Restart(_), Reason::Repair(why)) = (&order, reason) {
                        self.failures.failures += 1;
                        self.vain.count += 1;
                        self.falls += u32::from(!self.hindered);
                        self.spent.count += u32::from(!self.hindered);
                        self.fell.clone_from(why);
                    }
                }
                self.phase = Phase::Starting { since: now };
                self.awaited = true;
                self.announce = true;
                self.withheld = false;
                self.needs_failed = false;
                self.dead_since = None;
                self.lives = false;
            }
        }
        self.in_flight = Some(order);
    }

    /// What came of the order in flight.
    pub(crate) fn done(&mut self, result: &Result<(), String>, now: MonoTime) -> Option<Note> {
        let reason = match self.in_flight.take()? {
            Order::Stop => return None,
            Order::Start(reason) | Order::Restart(reason) => reason,
        };
        let news = result.as_ref().err() != self.refused.as_ref();
        self.refused = result.as_ref().err().cloned();
        let outcome = match result {
            Ok(()) => "started".to_owned(),
            Err(why) => {
                let why = format!("could not be started: {why}");
                self.awaited = false;
                self.phase = Phase::Down { since: now, retry_at: now, why: why.clone() };
                why
            }
        };
        match reason {
            Reason::Repair(cause) => {
                (result.is_ok() || news).then_some((EventKind::Repaired, cause, outcome))
            }
            Reason::Wanted(cause) => {
                result.is_ok().then(|| (EventKind::UnitStarted, cause.to_owned(), outcome))
            }
        }
    }

    /// New inputs: what happened with the old ones does not count against them.
    pub(crate) fn inputs_changed(&mut self) {
        self.failures = Backoff::default();
        self.repairs.clear();
        self.was_healthy = false;
        self.withheld = false;
        self.needs_failed = false;
        self.falls = 0;
        (self.vain, self.spent) = (Tally::default(), Tally::default());
    }

    /// The machine itself is in its way no more. What it did not do meanwhile says nothing, and one that was given up need not
    /// wait any longer. What was spent stays so: it may have been in its own way, by its appetite for memory.
    fn relieved(&mut self) {
        self.falls = 0;
        self.needs_failed = true;
        if self.withheld {
            self.repairs.clear();
        }
    }

    /// It is held down until `on`; then it begins anew. What was in vain before is not forgotten, and the time since counts for
    /// nothing.
    pub(crate) fn held(&mut self, now: MonoTime, on: &str) {
        self.spent.since = None;
        let since = match self.phase {
            Phase::Waiting { since, .. } => since,
            _ => now,
        };
        self.phase = Phase::Waiting { since, on: on.to_owned() };
        self.run = None;
        self.awaited = false;
        self.announce = true;
        self.withheld = false;
        self.failures = Backoff::default();
        self.repairs.clear();
        self.falls = 0;
    }

    /// Whether it is to be asked if it lives: it is not healthy, or has been starting for too long.
    pub(crate) fn is_doubted(&self, now: MonoTime) -> bool {
        match self.phase {
            Phase::Unhealthy { .. } => true,
            Phase::Starting { since } => {
                let vain = self.vain.since.is_some_and(|vain| now.since(vain) >= REPAIRS_WINDOW / 2);
                vain || now.since(since) > self.start_max()
            }
            _ => false,
        }
    }

    pub(crate) fn fell_at_least(&self, falls: u32) -> bool {
        self.falls >= falls
    }

    /// What it does instead of becoming healthy, when it fell `falls` times in a row, or once and has not become healthy
    /// for `stuck`.
    pub(crate) fn failing(&self, falls: u32, stuck: Duration, now: MonoTime) -> Option<String> {
        if self.lives {
            return None;
        }
        let seconds = now.since(self.failing_since?);
        if self.falls >= falls {
            return Some(format!("fell {} times without coming up: {}", self.falls, self.fell));
        }
        let long = seconds >= stuck;
        long.then(|| format!("has not become healthy for {} s: {}", seconds.as_secs(), self.fell))
    }

    /// That nothing has helped it for long. Its budget of repairs may last for ever then: one that hangs at each start is
    /// given so much time for each.
    pub(crate) fn in_vain(&self, now: MonoTime) -> Option<String> {
        let waits = self.lives || self.blocked || matches!(self.phase, Phase::Waiting { .. });
        let long = now.since(self.vain.since?) >= REPAIRS_WINDOW;
        let minutes = REPAIRS_WINDOW.as_secs() / 60;
        (long && !waits && !self.phase.is_healthy())
            .then(|| format!("nothing has helped for {minutes} minutes: {}", self.fell))
    }

    /// That it is beyond help: its budget of repairs was used up `times` times, or it has not worked for `stuck`.
    pub(crate) fn given_up(&self, times: u32, stuck: Duration, now: MonoTime) -> Option<String> {
        if self.lives || self.blocked || self.phase.is_healthy() {
            return None;
        }
        let seconds = now.since(self.spent.since?);
        let spent = u32::try_from(REPAIRS_MAX).map_or(u32::MAX, |max| max * times);
        let (vain, fell) = (self.spent.count, &self.fell);
        (vain >= spent || seconds >= stuck)
            .then(|| format!("was started again {vain} times within {} s in vain: {fell}", seconds.as_secs()))
    }

    fn note(&mut self, kind: EventKind, cause: impl Into<String>, outcome: impl Into<String>) {
        self.notes.push((kind, cause.into(), outcome.into()));
    }

    fn begin(&mut self, facts: &Facts, order: Order) -> Option<Order> {
        match facts.may_start() {
            Ok(()) => Some(order),
            Err(on) => {
                let since = match &self.phase {
                    Phase::Waiting { since, .. } => *since,
                    _ => facts.now,
                };
                self.phase = Phase::Waiting { since, on: on.clone() };
                None
            }
        }
    }

    fn settling(&mut self, facts: &Facts) -> Option<Order> {
        match self.phase {
            Phase::Unseen => {
                self.phase = Phase::Starting { since: facts.now };
                None
            }
            Phase::Starting { since } if facts.now.since(since) > self.start_max() => {
                let seconds = facts.now.since(since).as_secs();
                let cause = format!("it has been starting for {seconds} s");
                if facts.alive.is_none() {
                    return self.repair_living(facts, cause);
                }
                self.unhealthy(facts.now, cause);
                None
            }
            // systemd has begun it again, and waits for a program that does not say that it has started.
            Phase::Down { retry_at, .. } if facts.now.since(retry_at) > STOPPING_MAX => {
                self.phase = Phase::Starting { since: facts.now };
                None
            }
            Phase::Unhealthy { since, .. } if facts.alive.is_some() => {
                self.hung(facts, since, "it has not started".to_owned())
            }
            // Somebody has restarted it, and it does not come up: no answer of its probe is about this run.
            Phase::Healthy { .. } | Phase::Unhealthy { .. } => {
                let ends = self.settling_since.get_or_insert(facts.now).plus(STOPPING_MAX);
                if facts.now >= ends {
                    self.phase = Phase::Starting { since: facts.now };
                    self.announce = true;
                }
                self.wake = Some(ends.max(facts.now));
                None
            }
            _ => None,
        }
    }

    fn running(&mut self, facts: &Facts, invocation: Option<Invocation>) -> Option<Order> {
        if self.run != invocation {
            self.noticed(facts, invocation);
            return None;
        }
        let now = facts.now;
        match (&self.phase, &facts.health) {
            (Phase::Healthy { since }, Said::Good | Said::Nothing) => {
                let healthy_for = now.since(*since);
                if healthy_for >= SETTLED_AFTER {
                    self.falls = 0;
                } else {
                    self.wake = Some(since.plus(SETTLED_AFTER));
                }
                if healthy_for >= STABLE_AFTER {
                    self.failures = Backoff::default();
                    (self.vain, self.spent) = (Tally::default(), Tally::default());
                } else if self.wake.is_none() && (self.failures.failures > 0 || self.vain.count > 0) {
                    self.wake = Some(since.plus(STABLE_AFTER));
                }
            }
            (_, Said::Good) => self.healthy(now),
            (Phase::Healthy { .. }, Said::Bad { why, in_row }) => {
                if *in_row >= BAD_ANSWERS_MAX {
                    self.unhealthy(now, why.to_string());
                }
            }
            (Phase::Starting { since }, said) => {
                if now.since(*since) > self.start_max() {
                    let why = match said {
                        Said::Bad { why, .. } => why.to_string(),
                        Said::Good | Said::Nothing => "its probe has not answered".to_owned(),
                    };
                    self.unhealthy(now, why);
                }
            }
            (Phase::Unhealthy { since, .. }, Said::Bad { why, .. }) => {
                let (since, why) = (*since, why.to_string());
                return self.hung(facts, since, why);
            }
            (Phase::Unhealthy { .. }, Said::Nothing) => {}
            // It was started by somebody else.
            (Phase::Unseen | Phase::Waiting { .. } | Phase::Down { .. } | Phase::GivenUp { .. }, _) => {
                self.phase = Phase::Starting { since: now };
            }
        }
        None
    }

    /// Another run than the last time: ours, one from before the agent started, or one that systemd began.
    fn noticed(&mut self, facts: &Facts, invocation: Option<Invocation>) {
        let now = facts.now;
        self.run = invocation;
        // What was said of the run before says nothing about this one.
        (self.dead_since, self.lives) = (None, false);
        self.forget_health = true;
        self.wake = Some(now);
        if std::mem::take(&mut self.awaited) {
            return;
        }
        let fell = match &self.phase {
            Phase::Unseen => None,
            Phase::Down { why, .. } | Phase::GivenUp { why, .. } => Some(why.clone()),
            Phase::Waiting { .. }
            | Phase::Starting { .. }
            | Phase::Healthy { .. }
            | Phase::Unhealthy { .. } => {
                let why = "its process was replaced by another";
                self.failures.failures += 1;
                // How the run before ended was not seen.
                self.count_fall(facts, why, true);
                self.note(EventKind::UnitFailed, why, "systemd or a person started it again");
                Some(why.to_owned())
            }
        };
        if let Some(why) = fell {
            self.repairs.push_back(now);
            self.count_restart = true;
            self.announce = true;
            self.note(EventKind::Repaired, why, "started again by systemd");
        }
        self.phase = Phase::Starting { since: now };
    }

    fn healthy(&mut self, now: MonoTime) {
        if let Phase::Healthy { .. } = self.phase {
            return;
        }
        let took = match &self.phase {
            Phase::Starting { since } | Phase::Unhealthy { since, .. } => now.since(*since),
            _ => Duration::ZERO,
        };
        let was_unhealthy = matches!(self.phase, Phase::Unhealthy { .. });
        if std::mem::take(&mut self.announce) || was_unhealthy {
            let cause = if was_unhealthy { "it works again" } else { "it works" };
            self.note(EventKind::UnitHealthy, cause, format!("after {:.1} s", took.as_secs_f32()));
        }
        self.phase = Phase::Healthy { since: now };
        self.was_healthy = true;
        self.dead_since = None;
        self.lives = false;
        self.withheld = false;
        self.needs_failed = false;
    }

    fn unhealthy(&mut self, now: MonoTime, why: String) {
        self.note(EventKind::UnitFailed, why.clone(), "it runs and does not answer as it should");
        self.phase = Phase::Unhealthy { since: now, why };
    }

    /// It runs, and is not healthy. One that says that it lives waits for others: to restart it would only take away
    /// what it still does for them.
    fn hung(&mut self, facts: &Facts, since: MonoTime, why: String) -> Option<Order> {
        let patience = HUNG_AFTER.max(self.failures.delay());
        self.lives = facts.alive == Some(Said::Good);
        let dead_since = match facts.alive {
            None => Some(since),
            Some(Said::Nothing) => self.dead_since,
            Some(Said::Good) => {
                self.dead_since = None;
                let why = format!("answers, and is not ready: {why}");
                self.phase = Phase::Unhealthy { since, why };
                return None;
            }
            Some(Said::Bad { .. }) => Some(*self.dead_since.get_or_insert(facts.now)),
        };
        self.phase = Phase::Unhealthy { since, why: why.clone() };
        let dead_since = dead_since?;
        if facts.now.since(dead_since) < patience {
            self.wake = Some(dead_since.plus(patience));
            return None;
        }
        let seconds = facts.now.since(since).as_secs();
        self.repair_living(facts, format!("it has not worked for {seconds} s: {why}"))
    }

    /// Restarts what lives and does not work, unless that cannot help or was done too often.
    fn repair_living(&mut self, facts: &Facts, cause: String) -> Option<Order> {
        if let Err(on) = facts.may_start() {
            if let Phase::Unhealthy { why, .. } = &mut self.phase {
                *why = format!("{cause}; not restarted, because it waits for {on}");
            }
            return None;
        }
        if self.repairs.len() < REPAIRS_MAX {
            return Some(Order::Restart(Reason::Repair(cause)));
        }
        let until = self.budget_returns(facts.now);
        self.wake = Some(until);
        if !std::mem::replace(&mut self.withheld, true) {
            self.note(EventKind::RepairWithheld, cause, withheld_outcome(facts.now, until));
        }
        None
    }

    fn fallen(&mut self, facts: &Facts, why: &str, below: Below) -> Option<Order> {
        let now = facts.now;
        self.awaited = false;
        match &self.phase {
            Phase::Unseen => {
                let grace = if below == Below::Restarts { SYSTEMD_GRACE } else { Duration::ZERO };
                let why = format!("it was not running when the agent started: {why}");
                self.phase = Phase::Down { since: now, retry_at: now.plus(grace), why };
            }
            Phase::Waiting { .. }
            | Phase::Starting { .. }
            | Phase::Healthy { .. }
            | Phase::Unhealthy { .. } => {
                self.failures.failures += 1;
                self.count_fall(facts, why, facts.reading.was_killed());
                let mut delay = self.failures.delay();
                if below == Below::Restarts && self.failures.failures <= SYSTEMD_TRIES_MAX {
                    delay += SYSTEMD_GRACE;
                }
                self.note(EventKind::UnitFailed, why, format!("started again within {} s", delay.as_secs()));
                self.phase = Phase::Down { since: now, retry_at: now.plus(delay), why: why.to_owned() };
            }
            Phase::Down { .. } | Phase::GivenUp { .. } => {}
        }
        let hold =
            (below == Below::Restarts && self.failures.failures > SYSTEMD_TRIES_MAX).then_some(Order::Stop);
        match self.phase.clone() {
            Phase::Down { retry_at, since, why } => {
                hold.or_else(|| self.start_again(facts, since, retry_at, why))
            }
            Phase::GivenUp { until, .. } if below == Below::Restarts => {
                self.wake = Some(until);
                Some(Order::Stop)
            }
            Phase::GivenUp { until, why, .. } => self.try_once_more(facts, until, why),
            _ => None,
        }
    }

    /// A fall counts against the unit's own state only while nothing else explains it.
    fn count_fall(&mut self, facts: &Facts, why: &str, by_others: bool) {
        if facts.ready.is_ok() && !facts.lacks {
            // That it does not stay up is told in any case. Nothing is thrown away, and no machine rebooted, because somebody
            // else ended it.
            self.vain.count += 1;
            let own = u32::from(!facts.hindered && !by_others);
            (self.falls, self.spent.count) = (self.falls + own, self.spent.count + own);
        }
        why.clone_into(&mut self.fell);
    }

    fn start_again(
        &mut self,
        facts: &Facts,
        since: MonoTime,
        retry_at: MonoTime,
        why: String,
    ) -> Option<Order> {
        if facts.now < retry_at {
            self.wake = Some(retry_at);
            return None;
        }
        if let Err(on) = facts.may_start() {
            self.needs_failed = true;
            let ended = why.split("; waits for ").next().unwrap_or_default();
            self.phase = Phase::Down { since, retry_at, why: format!("{ended}; waits for {on}") };
            return None;
        }
        if self.repairs.len() < REPAIRS_MAX {
            return Some(Order::Start(Reason::Repair(why)));
        }
        let until = self.budget_returns(facts.now);
        self.wake = Some(until);
        let minutes = REPAIRS_WINDOW.as_secs() / 60;
        let why = format!("{why}; started again {REPAIRS_MAX} times in {minutes} minutes, to no avail");
        self.note(EventKind::RepairWithheld, why.clone(), withheld_outcome(facts.now, until));
        self.needs_failed = false;
        self.phase = Phase::GivenUp { since: facts.now, until, why };
        None
    }

    /// When the window allows, or when something that it needs has come back: the world is another one then.
    fn try_once_more(&mut self, facts: &Facts, until: MonoTime, why: String) -> Option<Order> {
        if facts.may_start().is_err() {
            self.needs_failed = true;
            return None;
        }
        if self.needs_failed {
            self.repairs.clear();
            self.failures = Backoff::default();
        } else if facts.now < until {
            self.wake = Some(until);
            return None;
        }
        Some(Order::Start(Reason::Repair(why)))
    }

    fn budget_returns(&self, now: MonoTime) -> MonoTime {
        self.repairs.front().map_or(now, |first| first.plus(REPAIRS_WINDOW))
    }

    fn start_max(&self) -> Duration {
        START_MAX * 2u32.pow(self.failures.failures.min(START_DOUBLINGS_MAX))
    }
}

impl Reading {
    fn was_killed(&self) -> bool {
        matches!(self, Self::Stopped { killed: true, .. } | Self::AutoRestart { killed: true, .. })
    }
}

/// How often a unit fell or was restarted since it last worked for a while, and since when it has not.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    count: u32,
    since: Option<MonoTime>,
}

impl Tally {
    /// Time passes, which counts only while it `tells` something.
    fn pass(&mut self, now: MonoTime, tells: bool) {
        self.since = (self.count > 0 && tells).then(|| self.since.unwrap_or(now));
    }
}

/// What systemd does with a unit that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    /// It starts it again soon.
    Restarts,
    /// Nothing.
    Rests,
}

fn withheld_outcome(now: MonoTime, until: MonoTime) -> String {
    format!("left as it is; tried again in {} s", until.since(now).as_secs())
}
