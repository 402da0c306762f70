//! One step of a run: break, look until all is mended, and judge what was done about it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use time::OffsetDateTime;

use crate::breaker::{Before, Breaker};
use crate::fault::{Allowed, Fault, Target, Victim};
use crate::installation::{Event, Installation};
use crate::observer::{Observer, Pods};
use crate::report::Outcome;
use crate::signals::Signals;
use crate::writer::Writer;

/// A fault that is not mended this long after it began, or after its cause went away, is not recovered.
const MEND_MAX: Duration = Duration::from_secs(180);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Everything must look mended for so long: a look may be older than what the fault has done.
const CONFIRM: Duration = Duration::from_secs(1);
/// Most events that the report of a fault names.
const EVENTS_NAMED_MAX: usize = 12;
/// The event that says what is broken, and not only that something is.
const FOUND: &str = "FaultFound";
/// The event of a repair that has begun.
const REPAIR: &str = "RepairBegun";
/// Reasons of what is done to a machine, also where no repair is begun for it.
const ACTS: [&str; 3] = [REPAIR, "MachineFenced", "MachinePoweredOn"];
/// Events that tell of an end, perhaps of the fault before.
const ENDINGS: [&str; 6] =
    ["FaultMended", "MachineBack", "RepairDone", "UnitHealthy", "UnitStarted", "PeersBack"];

/// Everything that a step needs.
pub(crate) struct Runner<'a> {
    pub(crate) installation: &'a Installation,
    pub(crate) breaker: Breaker<'a>,
    pub(crate) writer: &'a Writer,
    pub(crate) observer: &'a Observer,
    pub(crate) signals: &'a Signals,
    /// The newest event that is known.
    newest: u64,
}

/// A fault that was injected.
struct Case {
    fault: Fault,
    before: Before,
    began: Instant,
    at: OffsetDateTime,
    /// When its cause is to be taken away.
    end_at: Option<Instant>,
    /// When it was, before the fault was mended.
    ended: Option<Instant>,
    /// Until anything was said about it.
    detected: Option<Duration>,
    /// Until it was said what is broken.
    found: Option<Duration>,
    /// Since when it looks mended.
    fine_since: Option<Instant>,
    mended: Option<Instant>,
    waits: String,
}

impl Case {
    /// From when on its mending is timed: nothing mends a cut before its end.
    fn base(&self) -> Instant {
        self.ended.unwrap_or(self.began)
    }

    fn is_overdue(&self) -> bool {
        self.mended.is_none() && self.end_at.is_none() && self.base().elapsed() > MEND_MAX
    }

    /// How long the coordinator needed to say something about it. Nobody but us notices that it is away itself.
    fn detect(&mut self, events: &[Event], zone: &BTreeSet<&str>) {
        if matches!(self.fault.target, Target::Coordinator(_)) {
            return;
        }
        let about = |event: &&Event| {
            let hit = match self.fault.machine() {
                Some(machine) => event.machine == machine,
                None => zone.contains(event.machine.as_str()),
            };
            hit && event.at >= self.at && !ENDINGS.contains(&event.reason.as_str())
        };
        let after = |event: &Event| (event.at - self.at).unsigned_abs();
        let found = |event: &&Event| event.reason == FOUND;
        self.detected = self.detected.or_else(|| events.iter().filter(about).map(after).min());
        self.found = self.found.or_else(|| events.iter().filter(about).filter(found).map(after).min());
    }

    /// Notes whether it looks mended, and calls it mended when it has for a while.
    fn look(&mut self, waits: Option<String>) {
        match waits {
            Some(waits) => {
                self.waits = waits;
                self.fine_since = None;
            }
            None => {
                let since = *self.fine_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= CONFIRM {
                    self.mended = Some(since);
                }
            }
        }
    }
}

impl<'a> Runner<'a> {
    pub(crate) fn new(
        installation: &'a Installation,
        writer: &'a Writer,
        observer: &'a Observer,
        signals: &'a Signals,
    ) -> Result<Self> {
        let breaker = Breaker::open(installation)?;
        let newest = installation.events()?.last().map_or(0, |event| event.id);
        Ok(Self { installation, breaker, writer, observer, signals, newest })
    }

    /// Injects faults, and looks until they are mended or have had their time. What came of them is added to `outcomes`,
    /// also when it fails because the run cannot go on.
    pub(crate) fn step(&mut self, faults: Vec<Fault>, outcomes: &mut Vec<Outcome>) -> Result<()> {
        let machines = self.machines()?;
        let before = self.installation.incarnations(&machines)?;
        let mut events = Vec::new();
        self.take_events(&mut events);
        events.clear();
        let mut cases = Vec::new();
        let injected = faults.into_iter().try_for_each(|fault| {
            cases.push(self.inject(fault)?);
            Ok(())
        });
        let mended = injected.and_then(|()| self.mend(&mut cases, &machines, &mut events));
        // Whatever happens, nothing stays broken because of us.
        let healed = self.heal(&cases, &machines);
        let gone_on = mended.and(healed);
        if self.signals.interrupted() {
            return gone_on;
        }
        self.take_events(&mut events);
        let after = self.installation.incarnations(&machines).unwrap_or_else(|_| before.clone());
        let violations = violations(&allowed(&cases, &machines), &events, &before, &after);
        outcomes.extend(self.outcomes(&cases, violations, &events, &machines));
        gone_on
    }

    /// What came of each fault. What was done to a machine that none of them hit is told with the first.
    fn outcomes(
        &self,
        cases: &[Case],
        mut violations: Vec<(String, String)>,
        events: &[Event],
        machines: &[Victim],
    ) -> Vec<Outcome> {
        let is_hit = |id: &str| cases.iter().any(|case| hits(case, id, machines));
        let one = |(index, case): (usize, &Case)| {
            let own = |violation: &(String, String)| {
                hits(case, &violation.0, machines) || index == 0 && !is_hit(&violation.0)
            };
            let (mine, rest) = std::mem::take(&mut violations).into_iter().partition(own);
            violations = rest;
            self.outcome(case, mine, events, machines)
        };
        cases.iter().enumerate().map(one).collect()
    }

    /// The machines of the cluster.
    pub(crate) fn machines(&self) -> Result<Vec<Victim>> {
        let seen = |victim: Victim| Victim { runs_pods: self.breaker.runs_pods(&victim.id), ..victim };
        Ok(self.installation.show()?.machines.into_iter().map(|(victim, _)| seen(victim)).collect())
    }

    /// Waits until everything is ready.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        let until = Instant::now() + MEND_MAX;
        while let Some(waits) = self.waits(None) {
            if Instant::now() > until {
                bail!("the cluster is not ready after {} s: {waits}", MEND_MAX.as_secs());
            }
            self.signals.sleep(LOOK_EVERY)?;
        }
        Ok(())
    }

    /// Waits until the pods of the Deployment run.
    pub(crate) fn wait_pods(&self) -> Result<()> {
        let (until, now) = (Instant::now() + MEND_MAX, Instant::now());
        while self.observer.pods_since(now) == Pods::Missing {
            if Instant::now() > until {
                bail!("the pods of the Deployment are not Ready after {} s", MEND_MAX.as_secs());
            }
            self.signals.sleep(LOOK_EVERY)?;
        }
        Ok(())
    }

    /// Why not everything, or one machine, is ready; looked at without disturbing.
    fn waits(&self, only: Option<&str>) -> Option<String> {
        let shown = match self.installation.show() {
            Ok(shown) => shown,
            Err(error) => return Some(format!("{error:#}")),
        };
        let waits = match only {
            Some(id) => shown.unready.get(id).map(|state| format!("{id} is {state}")),
            None => shown.waits,
        };
        waits.or_else(|| self.observer.nodes_wait(only))
    }

    fn inject(&mut self, fault: Fault) -> Result<Case> {
        let before = self.breaker.before(&fault)?;
        let (began, at) = (Instant::now(), OffsetDateTime::now_utc());
        self.breaker.inject(&fault)?;
        let lasts_s = match fault.target {
            Target::Coordinator(away_s) => Some(away_s),
            _ => fault.kind.lasts_s(),
        };
        let end_at = lasts_s.map(|seconds| began + Duration::from_secs(seconds));
        Ok(Case {
            fault,
            before,
            began,
            at,
            end_at,
            ended: None,
            detected: None,
            found: None,
            fine_since: None,
            mended: None,
            waits: String::new(),
        })
    }

    fn mend(&mut self, cases: &mut [Case], machines: &[Victim], events: &mut Vec<Event>) -> Result<()> {
        loop {
            self.end_due(cases)?;
            self.take_events(events);
            let is_alone = cases.len() == 1;
            for case in cases.iter_mut().filter(|case| case.mended.is_none()) {
                case.detect(events, &zone(case, machines));
                let own = || self.breaker.waits(&case.fault, &case.before, case.ended.is_some());
                // What another fault has broken is not waited for.
                let only = case.fault.machine().filter(|_| !is_alone);
                // The forwarder in a pair is no machine, and has nothing to do with the other one.
                let rest = is_alone || case.fault.target != Target::Forwarder;
                let ready = rest.then(|| self.waits(only)).flatten();
                let waits = ready.or_else(own).or_else(|| self.pods_wait(case, machines));
                case.look(waits);
            }
            // A cause that is still there is not mended by what was done about it, only held.
            let is_done = |case: &Case| case.mended.is_some() || case.is_overdue();
            if cases.iter().all(is_done) {
                return Ok(());
            }
            self.signals.sleep(LOOK_EVERY)?;
        }
    }

    /// Takes away causes whose time has come; one that was mended while it lasted as well.
    fn end_due(&mut self, cases: &mut [Case]) -> Result<()> {
        for case in cases.iter_mut() {
            let is_due = case.end_at.is_some_and(|end| end <= Instant::now() || case.mended.is_some());
            if is_due {
                self.breaker.end(&case.fault, &case.before)?;
                case.end_at = None;
                if case.mended.is_none() {
                    case.ended = Some(Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Ends what is still broken, and waits until the cluster is ready. What cannot be ended keeps nothing else in force.
    fn heal(&mut self, cases: &[Case], machines: &[Victim]) -> Result<()> {
        let mut first = Ok(());
        for case in cases.iter().filter(|case| case.mended.is_none() || case.end_at.is_some()) {
            first = first.and(self.breaker.end(&case.fault, &case.before));
        }
        let ids: Vec<String> = machines.iter().map(|victim| victim.id.clone()).collect();
        first.and(self.breaker.end_all(&ids))?;
        self.wait_ready()
    }

    /// Pods of a worker that was hit must run elsewhere, or again.
    fn pods_wait(&self, case: &Case, machines: &[Victim]) -> Option<String> {
        let is_missing = is_worker(case, machines) && self.observer.pods_since(case.began) == Pods::Missing;
        is_missing.then(|| "not all pods of the Deployment are Ready".to_owned())
    }

    /// Adds the events that are new. While the coordinator is away there are none; they are told later.
    fn take_events(&mut self, events: &mut Vec<Event>) {
        let Ok(list) = self.installation.events() else { return };
        let newest = self.newest;
        events.extend(list.into_iter().filter(|event| event.id > newest));
        self.newest = events.last().map_or(newest, |event| event.id.max(newest));
    }

    fn outcome(
        &self,
        case: &Case,
        violations: Vec<(String, String)>,
        events: &[Event],
        machines: &[Victim],
    ) -> Outcome {
        let seconds = |duration: Duration| duration.as_secs_f64();
        let until = case.mended.unwrap_or_else(Instant::now);
        let pods = is_worker(case, machines).then(|| self.observer.pods_since(case.began));
        let named = events.iter().filter(|event| hits(case, &event.machine, machines));
        Outcome {
            kind: case.fault.kind,
            target: case.fault.what(),
            at: case.at,
            cause_seconds: case.ended.map(|ended| seconds(ended.duration_since(case.began))),
            detect_seconds: case.detected.map(seconds),
            found_seconds: case.found.map(seconds),
            mend_seconds: case.mended.map(|at| seconds(at.saturating_duration_since(case.base()))),
            pods_back_seconds: match pods {
                Some(Pods::Back(after)) => Some(seconds(after)),
                _ => None,
            },
            api_gap_seconds: seconds(self.writer.longest_gap(case.began, until)),
            recovered: case.mended.is_some(),
            violations: violations.into_iter().map(|(machine, what)| format!("{machine}: {what}")).collect(),
            waited_for: if case.mended.is_some() { String::new() } else { case.waits.clone() },
            events: named
                .take(EVENTS_NAMED_MAX)
                .map(|event| format!("{}: {}: {}", event.reason, event.cause, event.outcome))
                .collect(),
        }
    }
}

/// The machines of the zone that a fault hits.
fn zone<'m>(case: &Case, machines: &'m [Victim]) -> BTreeSet<&'m str> {
    let in_zone = |victim: &&Victim| matches!(&case.fault.target, Target::Zone(zone) if *zone == victim.zone);
    machines.iter().filter(in_zone).map(|victim| victim.id.as_str()).collect()
}

fn hits(case: &Case, machine: &str, machines: &[Victim]) -> bool {
    case.fault.machine() == Some(machine) || zone(case, machines).contains(machine)
}

/// Whether a fault hits a worker as a whole.
fn is_worker(case: &Case, machines: &[Victim]) -> bool {
    let Target::Machine(id) = &case.fault.target else { return false };
    machines.iter().any(|victim| victim.id == *id && victim.role == "worker")
}

/// What may be done to each machine.
fn allowed(cases: &[Case], machines: &[Victim]) -> BTreeMap<String, Allowed> {
    let most = |victim: &Victim| {
        let hit = cases.iter().filter(|case| hits(case, &victim.id, machines));
        hit.map(|case| case.fault.kind.allows()).max().unwrap_or(Allowed::Nothing)
    };
    machines.iter().map(|victim| (victim.id.clone(), most(victim))).collect()
}

/// What was done to machines and should not have been: each with its machine.
fn violations(
    allowed: &BTreeMap<String, Allowed>,
    events: &[Event],
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> Vec<(String, String)> {
    let may = |id: &str| allowed.get(id).copied().unwrap_or(Allowed::Everything);
    let repairs = events
        .iter()
        .filter(|event| ACTS.contains(&event.reason.as_str()) && may(&event.machine) == Allowed::Nothing)
        .map(|event| {
            (event.machine.clone(), format!("{} {} ({})", event.reason, event.outcome, event.cause))
        });
    let replaced = before
        .iter()
        .filter(|(id, incarnation)| may(id) < Allowed::Everything && after.get(*id) != Some(incarnation))
        .map(|(id, _)| (id.clone(), "it was made anew".to_owned()));
    repairs.chain(replaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &str, machine: &str) -> Event {
        Event {
            id: 1,
            at: OffsetDateTime::UNIX_EPOCH,
            reason: reason.to_owned(),
            machine: machine.to_owned(),
            cause: "the evidence says so".to_owned(),
            outcome: "power-cycle".to_owned(),
        }
    }

    #[test]
    fn what_was_done_without_need_is_a_violation() {
        let allowed = BTreeMap::from([
            ("cut".to_owned(), Allowed::Nothing),
            ("frozen".to_owned(), Allowed::Power),
            ("gone".to_owned(), Allowed::Everything),
        ]);
        let incarnations = |cut: u64, frozen: u64, gone: u64| {
            [("cut", cut), ("frozen", frozen), ("gone", gone)].map(|(id, n)| (id.to_owned(), n)).into()
        };
        let before = incarnations(1, 2, 3);
        let check = |events: &[Event], after: BTreeMap<String, u64>, expected: &[&str]| {
            let found = violations(&allowed, events, &before, &after);
            let names: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(names, expected, "{found:?}");
        };
        check(&[], before.clone(), &[]);
        check(&[event("FaultFound", "cut"), event(REPAIR, "frozen")], before.clone(), &[]);
        for reason in ACTS {
            check(&[event(reason, "cut")], before.clone(), &["cut"]);
        }
        check(&[], incarnations(1, 4, 5), &["frozen"]);
        check(&[event(REPAIR, "gone")], incarnations(1, 2, 4), &[]);
    }
}
