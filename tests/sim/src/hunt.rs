//! Many seeds, one after the other, and what is left of a case that breaks a rule when everything was taken away that it
//! does not need.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::case::{Case, Fault, FaultKind, Timed, Weather};
use crate::check::{Checker, Violation};
use crate::draw::{Fleet, draw};
use crate::run::{Outcome, run};

/// Most runs that the minimiser may take for one case: a minute or two.
const MINIMISE_RUNS_MAX: usize = 250;

/// What to hunt with.
#[derive(Debug, Clone, Copy)]
pub struct Hunt {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub seeds: u64,
    /// What each is drawn for.
    pub fleet: Fleet,
    /// How many run at the same time.
    pub threads: usize,
}

/// What a hunt found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HuntReport {
    /// Seeds that ran.
    pub seeds: u64,
    /// Seeds that broke a rule.
    pub violations: usize,
    /// Events of all runs.
    pub events: u64,
    /// Time that passed in all worlds together, in milliseconds.
    pub virtual_ms: u64,
    /// Longest time that a fleet took until it was as it shall be, once nothing went wrong, in milliseconds.
    pub converged_ms_max: u64,
    /// The runs that broke a rule, in order of their seeds.
    pub failures: Vec<Outcome>,
}

/// Whether a hunt goes on after a rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// All seeds run.
    GoesOn,
    /// No further seed begins.
    Ends,
}

/// Runs all seeds. `told` hears of each run that breaks a rule, as soon as it is over.
pub fn hunt(hunt: &Hunt, told: impl Fn(&Outcome) + Sync) -> HuntReport {
    hunt_all(hunt, After::GoesOn, told)
}

/// Runs seeds until one breaks a rule. Those that have begun by then end, so that the first failure of the report is that
/// of the lowest seed, however many run at the same time.
pub fn hunt_first(hunt: &Hunt, told: impl Fn(&Outcome) + Sync) -> HuntReport {
    hunt_all(hunt, After::Ends, told)
}

fn hunt_all(hunt: &Hunt, after: After, told: impl Fn(&Outcome) + Sync) -> HuntReport {
    let found = AtomicBool::new(false);
    let next = AtomicU64::new(hunt.from);
    let report = Mutex::new(HuntReport {
        seeds: 0,
        violations: 0,
        events: 0,
        virtual_ms: 0,
        converged_ms_max: 0,
        failures: Vec::new(),
    });
    std::thread::scope(|scope| {
        for _ in 0..hunt.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = after == After::Ends && found.load(Ordering::Relaxed);
                    if over || seed >= hunt.from + hunt.seeds {
                        return;
                    }
                    let outcome = run(&draw(seed, hunt.fleet));
                    if outcome.violation.is_some() {
                        found.store(true, Ordering::Relaxed);
                        told(&outcome);
                    }
                    report.lock().unwrap_or_else(PoisonError::into_inner).take(outcome);
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.failures.sort_by_key(|outcome| outcome.seed);
    report
}

impl HuntReport {
    fn take(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.virtual_ms += outcome.virtual_ms;
        if outcome.violation.is_some() {
            self.violations += 1;
            self.failures.push(outcome);
        } else {
            self.converged_ms_max = self.converged_ms_max.max(outcome.converged_ms);
        }
    }
}

/// Takes away from a case what is not needed to break the same rule: time, weather, kinds of faults, halves of the lists,
/// single faults and wishes.
#[must_use]
pub fn minimise(case: &Case, checker: Checker) -> Case {
    minimise_by(case, checker, |case| run(case).violation)
}

fn minimise_by(case: &Case, checker: Checker, play: impl Fn(&Case) -> Option<Violation>) -> Case {
    let mut search = Search { best: case.clone(), checker, play, runs: 0 };
    search.shorten();
    search.attempt(|case| case.weather = Weather::default());
    search.drop_weather();
    search.drop_kinds();
    search.thin_faults();
    search.thin_wishes();
    search.shorten();
    search.best
}

struct Search<Play> {
    best: Case,
    checker: Checker,
    /// What a case breaks.
    play: Play,
    runs: usize,
}

impl<Play: Fn(&Case) -> Option<Violation>> Search<Play> {
    /// Keeps a change of the case when the same rule is still broken.
    fn attempt(&mut self, change: impl FnOnce(&mut Case)) -> bool {
        let mut case = self.best.clone();
        change(&mut case);
        if case == self.best || self.runs >= MINIMISE_RUNS_MAX {
            return false;
        }
        self.runs += 1;
        let broken = (self.play)(&case).is_some_and(|violation| violation.checker == self.checker);
        if broken {
            self.best = case;
        }
        broken
    }

    fn shorten(&mut self) {
        let last = self.best.faults.last().map_or(0, |fault| fault.at_ms);
        let last = self.best.wishes.last().map_or(last, |wish| wish.at_ms.max(last));
        if let Some(violation) = (self.play)(&self.best).filter(|v| v.checker != Checker::Liveness) {
            let end = violation.at_ms + 1;
            self.attempt(|case| {
                case.duration_ms = case.duration_ms.min(end);
                case.faults.retain(|fault| fault.at_ms < end);
                case.wishes.retain(|wish| wish.at_ms < end);
            });
        }
        self.attempt(|case| case.duration_ms = case.duration_ms.min(last + 1));
    }

    fn drop_weather(&mut self) {
        self.attempt(|case| case.weather.jitter_ms = 0);
        self.attempt(|case| case.weather.loss_permille = 0);
        self.attempt(|case| case.weather.duplicate_permille = 0);
        self.attempt(|case| case.weather.drift_ppm = 0);
        self.attempt(|case| case.weather.provider_lost_permille = 0);
        self.attempt(|case| case.weather.provider_broken_permille = 0);
        self.attempt(|case| case.weather.provider_full_permille = 0);
        self.attempt(|case| case.weather.provider_lag = 0);
        self.attempt(|case| case.weather.answers_lost_permille = 0);
        self.attempt(|case| case.weather.unit_crash_permille = 0);
        self.attempt(|case| case.weather.step_fails_permille = 0);
        self.attempt(|case| case.weather.calls_late_permille = 0);
        self.attempt(|case| case.weather.link_life_ms = 0);
    }

    fn drop_kinds(&mut self) {
        let mut kinds: Vec<FaultKind> = self.best.faults.iter().map(|fault| fault.what.kind()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            self.attempt(|case| case.faults.retain(|fault| fault.what.kind() != kind));
        }
    }

    fn thin_faults(&mut self) {
        let mut size = self.best.faults.len().div_ceil(2);
        while size > 0 {
            let mut begin = 0;
            while begin < self.best.faults.len() {
                let gone = self.attempt(|case| cut::<Fault>(&mut case.faults, begin, size));
                begin += if gone { 0 } else { size };
            }
            size /= 2;
        }
    }

    fn thin_wishes(&mut self) {
        let mut size = self.best.wishes.len().div_ceil(2);
        while size > 0 {
            let mut begin = 0;
            while begin < self.best.wishes.len() {
                let gone = self.attempt(|case| cut(&mut case.wishes, begin, size));
                begin += if gone { 0 } else { size };
            }
            size /= 2;
        }
    }
}

fn cut<T>(list: &mut Vec<Timed<T>>, begin: usize, size: usize) {
    let end = (begin + size).min(list.len());
    list.drain(begin..end);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever runs hunts by the clock reads these.
    #[test]
    fn a_report_names_its_seeds_and_violations() {
        let fleet = Fleet { machines: 1, duration_ms: 1, faults: false };
        let report = hunt(&Hunt { from: 5, seeds: 2, fleet, threads: 1 }, |_| {});
        let value = serde_json::to_value(&report).expect("a report can be written");
        assert_eq!((&value["seeds"], &value["violations"]), (&2.into(), &0.into()), "{value}");
        assert_eq!(value["failures"], serde_json::json!([]));
    }

    /// A rule that breaks where a certain fault follows a certain wish: nothing else is left.
    #[test]
    fn a_minimised_case_is_what_breaks_the_rule_and_no_more() {
        let case = draw(3, Fleet { machines: 30, duration_ms: 3_600_000, faults: true });
        let (fault, wish) = (&case.faults[case.faults.len() / 2], &case.wishes[case.wishes.len() / 2]);
        let (what, at_ms) = ("as planned".to_owned(), fault.at_ms.max(wish.at_ms) + 1_000);
        let broken = Violation { checker: Checker::Quorum, at_ms, what };
        let play = |case: &Case| {
            let both = case.faults.contains(fault) && case.wishes.contains(wish);
            (both && case.duration_ms >= fault.at_ms).then(|| broken.clone())
        };
        let least = minimise_by(&case, Checker::Quorum, play);
        assert_eq!((&least.faults, &least.wishes), (&vec![fault.clone()], &vec![wish.clone()]));
        assert_eq!(least.weather, Weather::default());
        assert!(least.duration_ms <= at_ms && case.duration_ms > at_ms, "{}", least.duration_ms);
        // One that breaks another rule is left as it is.
        assert_eq!(minimise_by(&case, Checker::Disk, play), case);
    }
}
