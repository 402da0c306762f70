//! Units: started when what they need is there, restarted when their inputs change, repaired when they fall.
//!
//! The state of a unit is [`Phase`]; [`UnitRun::step`] is its one transition function. Below it stands systemd's own
//! `Restart=always`, which brings a fallen program back after a second even without the agent; above it the budget,
//! which stops what is futile.

use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::MonoTime;
use keelson_protocol::config::{Need, NodeConfig, ProbeSpec, UnitKind, UnitSpec};
use keelson_protocol::health::EventKind;

use crate::action::{Step, StepKey};
use crate::core::AgentCore;
use crate::desired::Desired;
use crate::digest::Digest;
use crate::event::{Active, Invocation, UnitSeen};
use crate::ledger::StartRecord;
use crate::looks::Class;
use crate::probes::Said;
use crate::rest::News;
use crate::unit_text;

mod seen;
mod step;

pub(crate) use seen::UnitsSeen;
pub(crate) use step::{Facts, Order, Phase, Reading, UnitRun};

/// Most repairs of one unit in [`REPAIRS_WINDOW`]: more means that starting again is no remedy, and a person or the
/// coordinator must look. Ten, because on a machine without CPU to spare upstream programs that lose a leader lease
/// exit again and again and do recover.
pub(crate) const REPAIRS_MAX: usize = 10;
/// The time over which repairs are counted.
pub(crate) const REPAIRS_WINDOW: Duration = Duration::from_secs(600);
/// How often in a row systemd may bring a unit back before the agent holds it down and waits longer each time.
pub(crate) const SYSTEMD_TRIES_MAX: u32 = 3;
/// A unit that is healthy for this long has come up. Some programs answer before they have read what they then fall for:
/// a kubelet with a damaged state file says that it is well for a second of each start.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// A unit that is healthy for this long has recovered: its next failure is a first one again.
pub(crate) const STABLE_AFTER: Duration = Duration::from_secs(60);
/// Longest time from start to healthy; doubled with every failure in a row. An API server that migrates its storage or
/// an etcd member that catches up takes minutes.
pub(crate) const START_MAX: Duration = Duration::from_secs(300);
/// A process that lives and does not answer for this long is hung.
pub(crate) const HUNG_AFTER: Duration = Duration::from_secs(30);
/// A unit that was told to stop and is still there is told again after this time: its stop has a time-out of its own.
const STOP_AGAIN: Duration = Duration::from_secs(5);
/// So many bad answers in a row make a healthy unit unhealthy: one may be lost.
pub(crate) const BAD_ANSWERS_MAX: u32 = 3;

/// Health of a unit that starts is asked this often at first, because others wait for it.
const PROBE_STARTING: Duration = Duration::from_millis(100);
/// And for so long.
const STARTING_QUICK: Duration = Duration::from_secs(30);
/// Later, and when something is wrong.
const PROBE_TROUBLED: Duration = Duration::from_secs(1);
/// Health of a healthy unit.
const PROBE_HEALTHY: Duration = Duration::from_secs(5);
/// A check that holds: it asks others (an API server, for all nodes), and nothing is repaired by the answer.
const CHECK_HEALTHY: Duration = Duration::from_secs(10);
/// What a unit waits for is asked this often, because boot time counts.
const PROBE_NEED: Duration = Duration::from_millis(200);
/// And for so long; then once a second, because the wait may last a night.
const NEED_QUICK: Duration = Duration::from_secs(60);

impl AgentCore {
    pub(crate) fn reconcile_units(&mut self, config: &NodeConfig, desired: &Desired) {
        self.stop_stale_units(desired);
        let cleared = self.cleared(desired);
        for spec in &config.units {
            let key = StepKey::Unit(spec.name.clone());
            if self.is_in_flight(&key) {
                continue;
            }
            let Some(mut run) = self.take_run(&spec.name) else { continue };
            if let Some(why) = self.held_for(config, &spec.name) {
                self.hold_down(&spec.name, &mut run, &why);
                self.put_run(&spec.name, run);
                continue;
            }
            let facts = self.facts(desired, spec, &cleared);
            let before = run.phase.clone();
            let order = match &spec.health {
                Some(probe) if spec.kind == UnitKind::Check => run.check(&facts, &probe.name),
                _ => run.step(&facts),
            };
            if !before.same_state(&run.phase) {
                run.since = self.now.wall;
            }
            if run.has_fallen_since(&before) {
                // Perhaps because a file of it is gone; then that is put right before it is started.
                self.look_again(Class::Files);
            }
            self.tell(spec, &mut run, &facts, desired.inputs[&spec.name]);
            self.want_probes(spec, &run, &facts);
            if let Some(at) = run.wake {
                self.wake_at(at);
            }
            // The step's backoff holds the order back; the transition waits for it.
            if let Some(order) = order
                && self.free(&key)
            {
                self.carry_out(desired, spec, &mut run, order);
            }
            self.put_run(&spec.name, run);
        }
    }

    /// Takes a unit's state out for a while, and leaves an empty one in its place.
    fn take_run(&mut self, name: &str) -> Option<UnitRun> {
        let empty = UnitRun::new(self.now.wall);
        self.units.get_mut(name).map(|run| std::mem::replace(run, empty))
    }

    fn put_run(&mut self, name: &str, run: UnitRun) {
        if let Some(place) = self.units.get_mut(name) {
            *place = run;
        }
    }

    /// Everything that the transition of a unit depends on.
    fn facts(&self, desired: &Desired, spec: &UnitSpec, cleared: &Result<(), String>) -> Facts {
        let wanted = desired.inputs[&spec.name];
        let record = self.ledger.units.get(&spec.name);
        let start = record.and_then(|record| record.start).filter(|start| start.boot == self.me.boot);
        let done = record.and_then(|record| record.done) == Some(wanted);
        let started = start.is_some_and(|start| start.inputs == wanted);
        let current = |run: Option<Invocation>| {
            let replaced =
                |start: StartRecord| start.before.is_none() || run.is_none() || start.before != run;
            start.is_some_and(|start| start.inputs == wanted && replaced(start))
        };
        let reading = match self.units_seen.get(&spec.name) {
            _ if done && spec.kind == UnitKind::Oneshot => Reading::Finished,
            None => Reading::Unknown,
            Some(seen) => match seen.active {
                // A oneshot may hang for long in what is wanted no more.
                Active::Settling if spec.kind == UnitKind::Oneshot && start.is_some() && !started => {
                    Reading::Running { invocation: seen.invocation, current: false }
                }
                Active::Settling => Reading::Settling,
                Active::Stopped => Reading::Stopped { why: seen.ended.clone(), killed: seen.killed },
                Active::AutoRestart => Reading::AutoRestart { why: seen.ended.clone(), killed: seen.killed },
                Active::Exited if current(seen.invocation) => Reading::Finished,
                Active::Running | Active::Exited => {
                    Reading::Running { invocation: seen.invocation, current: current(seen.invocation) }
                }
            },
        };
        let needs = self.needs(spec);
        Facts {
            reading,
            started,
            ready: cleared.clone().and_then(|()| self.ready(desired, spec)),
            needs,
            lacks: self.lacks(spec),
            hindered: self.hinders_programs(),
            health: match &spec.health {
                None => Said::Good,
                Some(probe) => self.probes.said(probe),
            },
            alive: spec.alive.as_ref().map(|probe| self.probes.said(probe)),
            now: self.now.mono,
        }
    }

    /// Whether nothing is in the way of any unit; the same for all of them, and worked out once.
    fn cleared(&self, desired: &Desired) -> Result<(), String> {
        // One that is stopped is in nobody's way, though its file could not be removed yet.
        if let Some(stale) = self.stale_units(desired).find(|name| !self.is_known_stopped(name)) {
            return Err(format!("{stale} of the config before to stop"));
        }
        self.files.on_its_way(desired).map_or(Ok(()), |path| Err(format!("file {path}")))
    }

    /// Whether everything that a unit reads is in place.
    fn ready(&self, desired: &Desired, spec: &UnitSpec) -> Result<(), String> {
        if !self.files.all_as_wanted() || !self.certificates_stand {
            self.inputs_stand(desired, spec)?;
        }
        if self.files.reload_due || self.is_in_flight(&StepKey::Reload) {
            return Err("systemd to read the unit files".to_owned());
        }
        Ok(())
    }

    /// Whether a unit's files and certificates are in place; else which is not.
    fn inputs_stand(&self, desired: &Desired, spec: &UnitSpec) -> Result<(), String> {
        for input in inputs_of(spec) {
            if let Some(wanted) = desired.files.get(&input) {
                if !self.files.is_as_wanted(&input, wanted) {
                    return Err(format!("file {input}"));
                }
            } else if !self.holds_certificate(desired, &input) {
                return Err(format!("certificate {input}"));
            }
        }
        Ok(())
    }

    /// Whether everything that a unit needs holds; else the first that does not.
    fn needs(&self, spec: &UnitSpec) -> Result<(), String> {
        for need in &spec.needs {
            match need {
                Need::Unit(name) => {
                    let healthy = self.units.get(name).is_some_and(|run| run.phase.is_healthy());
                    if !healthy {
                        return Err(name.clone());
                    }
                }
                Need::Probe(probe) => self.answers(probe)?,
                Need::AnyProbe(probes) => {
                    let mut silent = None;
                    for probe in probes {
                        match self.answers(probe) {
                            Ok(()) => {
                                silent = None;
                                break;
                            }
                            Err(why) => silent = silent.or(Some(why)),
                        }
                    }
                    if let Some(why) = silent {
                        return Err(why);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether something that a unit needs is known not to hold. A probe that nobody has asked is no such knowledge.
    fn lacks(&self, spec: &UnitSpec) -> bool {
        let bad = |probe: &ProbeSpec| matches!(self.probes.said(probe), Said::Bad { .. });
        spec.needs.iter().any(|need| match need {
            Need::Unit(name) => !self.units.get(name).is_some_and(|run| run.phase.is_healthy()),
            Need::Probe(probe) => bad(probe),
            Need::AnyProbe(probes) => !probes.is_empty() && probes.iter().all(bad),
        })
    }

    /// Whether a probe answered as it should; else what it said.
    fn answers(&self, probe: &ProbeSpec) -> Result<(), String> {
        match self.probes.said(probe) {
            Said::Good => Ok(()),
            Said::Nothing => Err(probe.name.clone()),
            Said::Bad { why, .. } => Err(format!("{}: {why}", probe.name)),
        }
    }

    /// Carries over what the transition wants known.
    fn tell(&mut self, spec: &UnitSpec, run: &mut UnitRun, facts: &Facts, wanted: Digest) {
        for (kind, cause, outcome) in std::mem::take(&mut run.notes) {
            self.note(kind, &spec.name, &cause, &outcome);
        }
        if std::mem::take(&mut run.count_restart) {
            self.count_restart(&spec.name);
        }
        if std::mem::take(&mut run.forget_health) {
            spec.health.iter().chain(&spec.alive).for_each(|probe| self.probes.forget(probe));
        }
        let came_up = run.is_settled(facts.now) || facts.reading == Reading::Finished;
        if let (true, Some(record)) = (came_up, self.ledger.units.get_mut(&spec.name))
            && record.worked != Some(wanted)
        {
            record.worked = Some(wanted);
            self.persist_soon();
        }
        let record = self.ledger.units.get_mut(&spec.name).filter(|record| record.done != Some(wanted));
        if let (Some(record), UnitKind::Oneshot, Reading::Finished) = (record, spec.kind, &facts.reading) {
            record.done = Some(wanted);
            self.persist_now();
        }
    }

    fn count_restart(&mut self, name: &str) {
        if let Some(start) = self.ledger.units.get_mut(name).and_then(|record| record.start.as_mut()) {
            start.restarts += 1;
            self.persist_soon();
        }
    }

    /// How often the unit was started again during this boot.
    pub(crate) fn restarts(&self, name: &str) -> u32 {
        let start = self.ledger.units.get(name).and_then(|record| record.start);
        start.filter(|start| start.boot == self.me.boot).map_or(0, |start| start.restarts)
    }

    fn want_probes(&mut self, spec: &UnitSpec, run: &UnitRun, facts: &Facts) {
        let now = self.now.mono;
        if let (Some(probe), UnitKind::Check, Ok(_)) = (&spec.health, spec.kind, facts.may_start()) {
            let every = match (&run.phase, &facts.health) {
                (Phase::Healthy { .. }, Said::Good | Said::Nothing) => CHECK_HEALTHY,
                (Phase::Starting { since } | Phase::Waiting { since, .. }, _)
                    if now.since(*since) < NEED_QUICK =>
                {
                    PROBE_NEED
                }
                _ => PROBE_TROUBLED,
            };
            self.probes.want(probe, every);
        }
        if let (Some(probe), Reading::Running { current: true, .. }) = (&spec.health, &facts.reading) {
            let every = match (&run.phase, &facts.health) {
                (Phase::Healthy { .. }, Said::Good | Said::Nothing) => PROBE_HEALTHY,
                (Phase::Starting { since }, _) if now.since(*since) < STARTING_QUICK => PROBE_STARTING,
                _ => PROBE_TROUBLED,
            };
            self.probes.want(probe, every);
        }
        if let (Some(probe), true) = (&spec.alive, run.is_doubted(now)) {
            self.probes.want(probe, PROBE_TROUBLED);
        }
        let waiting_since = match &run.phase {
            Phase::Waiting { since, .. }
            | Phase::Down { since, .. }
            | Phase::GivenUp { since, .. }
            | Phase::Unhealthy { since, .. } => *since,
            Phase::Unseen | Phase::Starting { .. } | Phase::Healthy { .. } => return,
        };
        if facts.ready.is_err() {
            return;
        }
        let every = if now.since(waiting_since) < NEED_QUICK { PROBE_NEED } else { PROBE_TROUBLED };
        for need in &spec.needs {
            let probes = match need {
                Need::Unit(_) => &[],
                Need::Probe(probe) => std::slice::from_ref(probe),
                Need::AnyProbe(probes) => probes.as_slice(),
            };
            for probe in probes {
                self.probes.want(probe, every);
            }
        }
    }

    fn carry_out(&mut self, desired: &Desired, spec: &UnitSpec, run: &mut UnitRun, order: Order) {
        let unit = spec.name.clone();
        let mode = unit_text::directory_mode(spec);
        let directories = spec.state_directories.iter().map(|path| (path.clone(), mode)).collect();
        let seen = self.units_seen.get(&unit).and_then(|seen| seen.invocation);
        let step = match order {
            Order::Stop => Step::Stop { unit },
            Order::Start { .. } => Step::Start { unit, directories },
            Order::Restart { .. } => Step::Restart { unit, directories },
        };
        if !matches!(order, Order::Stop) {
            let restarts = self.restarts(&spec.name);
            let record = self.ledger.units.entry(spec.name.clone()).or_default();
            record.start = Some(StartRecord {
                boot: self.me.boot,
                inputs: desired.inputs[&spec.name],
                before: seen,
                restarts,
            });
            record.done = None;
            // A crash from here on is resolved by comparing the run with this record.
            self.persist_now();
            spec.health.iter().chain(&spec.alive).for_each(|probe| self.probes.forget(probe));
        }
        run.ordered(order, self.now.mono);
        if std::mem::take(&mut run.count_restart) {
            self.count_restart(&spec.name);
        }
        self.run(step);
    }

    /// Something else than the unit's own state has it stopped, and keeps it so.
    fn hold_down(&mut self, name: &str, run: &mut UnitRun, why: &str) {
        let before = run.phase.clone();
        run.held(self.now.mono, why);
        if !before.same_state(&run.phase) {
            run.since = self.now.wall;
        }
        if self.is_to_be_stopped(name) {
            run.ordered(Order::Stop, self.now.mono);
            self.run(Step::Stop { unit: name.to_owned() });
        }
    }

    pub(crate) fn unit_done(&mut self, name: &str, result: Result<(), String>) {
        self.look_again(Class::Units);
        if result.is_err() {
            self.look_again(Class::Files);
            // An order that failed has a wait of its own.
            self.stopping.remove(name);
        }
        self.units_seen.forget(name);
        let Some(mut run) = self.take_run(name) else { return };
        if let Some((kind, cause, outcome)) = run.done(&result, self.now.mono) {
            self.note(kind, name, &cause, &outcome);
        }
        self.put_run(name, run);
    }

    /// A new config: units whose inputs changed begin with a clean record.
    pub(crate) fn units_changed(&mut self, before: Option<&Desired>) {
        let Some(desired) = &self.desired else { return };
        for (name, run) in &mut self.units {
            let old = before.and_then(|before| before.inputs.get(name));
            if old != desired.inputs.get(name) {
                if run.was_healthy {
                    self.reporter.change_began(self.now.mono);
                }
                run.inputs_changed();
            }
        }
    }

    /// Inputs are others now, or may be. A unit that is still to be started with them has no record any more of what it runs
    /// with, also when the change is taken back: systemd may start it again before the agent does.
    pub(crate) fn inputs_touched(&mut self, touched: impl Fn(&str) -> bool) {
        let (Some(desired), Some(config)) = (&self.desired, &self.ledger.config) else { return };
        for spec in &config.units {
            let record = self.ledger.units.get_mut(&spec.name).and_then(|record| record.start.as_mut());
            if let Some(start) = record.filter(|start| start.inputs != desired.inputs[&spec.name])
                && inputs_of(spec).iter().any(|input| touched(input))
            {
                start.inputs = Digest::of_nothing();
            }
        }
    }

    /// Units that read other files and certificates in the config that comes, or are none of it, have no record any more: what
    /// becomes of what they read is not watched from here on.
    pub(crate) fn forget_starts_with_other_inputs(&mut self, config: &NodeConfig) {
        let before = self.ledger.config.as_ref();
        for (name, record) in &mut self.ledger.units {
            let inputs = |config: &NodeConfig| config.unit(name).map(inputs_of);
            if let Some(start) = record.start.as_mut().filter(|_| before.and_then(inputs) != inputs(config)) {
                start.inputs = Digest::of_nothing();
            }
        }
    }

    /// Units of earlier configs that are not gone yet.
    pub(crate) fn stale_units<'a>(&'a self, desired: &'a Desired) -> impl Iterator<Item = &'a String> {
        self.ledger.units.keys().filter(|name| !desired.inputs.contains_key(*name))
    }

    /// Whether a unit does not run, and nothing is under way that would start it.
    pub(crate) fn is_known_stopped(&self, name: &str) -> bool {
        self.units_seen.get(name).is_some_and(|seen| seen.active == Active::Stopped)
            && !self.is_in_flight(&StepKey::Unit(name.to_owned()))
    }

    fn stop_stale_units(&mut self, desired: &Desired) {
        let stale: Vec<String> = self.stale_units(desired).cloned().collect();
        for name in stale {
            if self.is_to_be_stopped(&name) {
                self.run(Step::Stop { unit: name });
            }
        }
    }

    /// Whether a unit runs, and a stop may be ordered now. One that was told is told again only after a while: it may take
    /// its time, or somebody starts it again and again.
    fn is_to_be_stopped(&mut self, name: &str) -> bool {
        let Some(active) = self.units_seen.get(name).map(|seen| seen.active) else { return false };
        if active == Active::Stopped {
            self.stopping.remove(name);
            return false;
        }
        if let Some(again) = self.stopping.get(name).map(|at| at.plus(STOP_AGAIN))
            && again > self.now.mono
        {
            self.wake_at(again);
            return false;
        }
        let free = self.free(&StepKey::Unit(name.to_owned()));
        if free {
            self.stopping.insert(name.to_owned(), self.now.mono);
        }
        free
    }

    /// A look at all units was answered.
    pub(crate) fn units_answered(&mut self, seen: Arc<[UnitSeen]>) -> News {
        let now = self.now.mono;
        if !self.units_seen.in_sight(now) {
            self.units.values_mut().for_each(UnitRun::was_out_of_sight);
        }
        self.units_seen.answered(seen, now)
    }

    /// The file of a unit of an earlier config was removed: nothing of it is left.
    pub(crate) fn forget_stale_unit(&mut self, name: &str) {
        let wanted = self.ledger.config.as_ref().is_some_and(|config| config.unit(name).is_some());
        if !wanted {
            self.ledger.units.remove(name);
            self.units_seen.forget(name);
            self.units_seen.list_anew();
        }
    }

    /// Whether a unit is on its way up, so that it is worth looking often.
    pub(crate) fn units_starting(&self) -> bool {
        let quick = |since: MonoTime| self.now.mono.since(since) < STARTING_QUICK;
        self.units.values().any(|run| matches!(run.phase, Phase::Starting { since } if quick(since)))
    }
}

/// Paths of the files, and names of the certificates, that a unit reads when it is started.
fn inputs_of(spec: &UnitSpec) -> Vec<String> {
    let unit_file = (spec.kind != UnitKind::Check).then(|| unit_text::path(&spec.name));
    spec.restart_on.iter().cloned().chain(unit_file).collect()
}

/// A note about a unit: kind, cause, outcome.
pub(crate) type Note = (EventKind, String, String);
