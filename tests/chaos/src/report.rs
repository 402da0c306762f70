//! What a run has found: a table for people, a document for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use time::OffsetDateTime;

use crate::fault::Kind;
use crate::writer::Sum;

/// Longest name of what was hit in the table, in characters.
const TARGET_CHARS: usize = 44;

/// What came of a fault.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) kind: Kind,
    /// What was hit.
    pub(crate) target: String,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) at: OffsetDateTime,
    /// How long its cause lasted, when it had to be taken away from outside before anything could be mended.
    pub(crate) cause_seconds: Option<f64>,
    /// Until the first event about it: the machine is silent, or something on it fell. None when no event told of it.
    pub(crate) detect_seconds: Option<f64>,
    /// Until the coordinator said which kind of fault it is, when it did: that needs evidence, and for a machine that has power
    /// and says nothing ten seconds of it.
    pub(crate) found_seconds: Option<f64>,
    /// Until everything was ready again: from the beginning, or from the end of a cause that had to be taken away.
    pub(crate) mend_seconds: Option<f64>,
    /// Until both pods of the Deployment were Ready again, when a worker was hit and they were not all the time.
    pub(crate) pods_back_seconds: Option<f64>,
    /// Longest time without a successful write that touches the time of the fault.
    pub(crate) api_gap_seconds: f64,
    pub(crate) recovered: bool,
    /// What was done and should not have been.
    pub(crate) violations: Vec<String>,
    /// What was waited for in the end, when it did not recover.
    pub(crate) waited_for: String,
    /// The first events about what was hit.
    pub(crate) events: Vec<String>,
}

impl Outcome {
    pub(crate) fn is_good(&self) -> bool {
        self.recovered && self.violations.is_empty()
    }

    /// What came of it on one line.
    pub(crate) fn line(&self) -> String {
        let Self { target, detect_seconds, mend_seconds, .. } = self;
        let (detect, mend) = (cell(*detect_seconds), cell(*mend_seconds));
        format!("{target}: detected {detect} s, mended {mend} s, {}", self.word())
    }

    fn word(&self) -> String {
        if !self.recovered {
            return format!("NOT RECOVERED: {}", self.waited_for);
        }
        match self.violations.as_slice() {
            [] => "recovered".to_owned(),
            list => format!("VIOLATION: {}", list.join("; ")),
        }
    }
}

/// Figures of all faults of one kind.
#[derive(Debug, Default, Serialize)]
struct OfKind {
    faults: usize,
    recovered: usize,
    detect_max_seconds: Option<f64>,
    found_max_seconds: Option<f64>,
    mend_median_seconds: Option<f64>,
    mend_max_seconds: Option<f64>,
    api_gap_max_seconds: Option<f64>,
}

/// What a run has found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    faults: usize,
    recovered: usize,
    violations: usize,
    pub(crate) writes_acknowledged: usize,
    pub(crate) writes_lost: usize,
    writes_failed: u64,
    api_unavailable_seconds: f64,
    api_longest_gap_seconds: f64,
    detect_p99_seconds: Option<f64>,
    mend_p99_seconds: Option<f64>,
    kinds: BTreeMap<String, OfKind>,
    details: Vec<Outcome>,
}

impl Report {
    pub(crate) fn new(seed: u64, seconds: f64, outcomes: Vec<Outcome>, sum: &Sum) -> Self {
        let detect: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.detect_seconds).collect();
        let mend: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.mend_seconds).collect();
        Self {
            seed,
            seconds,
            faults: outcomes.len(),
            recovered: outcomes.iter().filter(|outcome| outcome.recovered).count(),
            violations: outcomes.iter().map(|outcome| outcome.violations.len()).sum(),
            writes_acknowledged: sum.acknowledged,
            writes_lost: sum.lost,
            writes_failed: sum.failed,
            api_unavailable_seconds: sum.unavailable.as_secs_f64(),
            api_longest_gap_seconds: sum.longest.as_secs_f64(),
            detect_p99_seconds: percentile(detect, 99),
            mend_p99_seconds: percentile(mend, 99),
            kinds: kinds(&outcomes),
            details: outcomes,
        }
    }

    /// Whether everything recovered, nothing was done without need and nothing was lost.
    pub(crate) fn is_good(&self) -> bool {
        self.writes_lost == 0 && self.details.iter().all(Outcome::is_good)
    }

    /// The table and the figures.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{:<9} {:<16} {:<TARGET_CHARS$} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7}  outcome\n",
            "at", "fault", "what", "cause s", "detect", "found", "mend", "pods", "api gap"
        );
        for outcome in &self.details {
            let at = outcome.at.time();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:02}:{:02}:{:02}  {:<16} {:<TARGET_CHARS$} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7.1}  {}",
                at.hour(),
                at.minute(),
                at.second(),
                kind_name(outcome.kind),
                outcome.target,
                cell(outcome.cause_seconds),
                cell(outcome.detect_seconds),
                cell(outcome.found_seconds),
                cell(outcome.mend_seconds),
                cell(outcome.pods_back_seconds),
                outcome.api_gap_seconds,
                outcome.word()
            );
        }
        let _ = writeln!(
            text,
            "\n{} faults in {:.0} s, {} recovered, {} violations; detect p99 {} s, mend p99 {} s",
            self.faults,
            self.seconds,
            self.recovered,
            self.violations,
            cell(self.detect_p99_seconds),
            cell(self.mend_p99_seconds)
        );
        let _ = writeln!(
            text,
            "{} writes acknowledged, {} lost, {} failed; API unavailable {:.1} s, longest gap {:.1} s",
            self.writes_acknowledged,
            self.writes_lost,
            self.writes_failed,
            self.api_unavailable_seconds,
            self.api_longest_gap_seconds
        );
        text
    }
}

/// A kind's name, as on the command line.
pub(crate) fn kind_name(kind: Kind) -> String {
    let name = clap::ValueEnum::to_possible_value(&kind);
    name.map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn cell(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1}"))
}

fn kinds(outcomes: &[Outcome]) -> BTreeMap<String, OfKind> {
    let mut by_kind: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        by_kind.entry(kind_name(outcome.kind)).or_default().push(outcome);
    }
    let figures = |of: &[&Outcome], figure: fn(&Outcome) -> Option<f64>| -> Vec<f64> {
        of.iter().filter_map(|outcome| figure(outcome)).collect()
    };
    by_kind
        .into_iter()
        .map(|(name, of)| {
            let mend = figures(&of, |outcome| outcome.mend_seconds);
            let row = OfKind {
                faults: of.len(),
                recovered: of.iter().filter(|outcome| outcome.recovered).count(),
                detect_max_seconds: percentile(figures(&of, |outcome| outcome.detect_seconds), 100),
                found_max_seconds: percentile(figures(&of, |outcome| outcome.found_seconds), 100),
                mend_median_seconds: percentile(mend.clone(), 50),
                mend_max_seconds: percentile(mend, 100),
                api_gap_max_seconds: percentile(figures(&of, |outcome| Some(outcome.api_gap_seconds)), 100),
            };
            (name, row)
        })
        .collect()
}

/// The smallest value that is no smaller than `percent` of all (nearest rank).
fn percentile(mut values: Vec<f64>, percent: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn outcome(mend: Option<f64>, violation: Option<&str>) -> Outcome {
        Outcome {
            kind: Kind::Kill,
            target: "chaos-etcd-1".to_owned(),
            at: OffsetDateTime::UNIX_EPOCH,
            cause_seconds: None,
            detect_seconds: Some(2.25),
            found_seconds: Some(9.75),
            mend_seconds: mend,
            pods_back_seconds: None,
            api_gap_seconds: 0.5,
            recovered: mend.is_some(),
            violations: violation.iter().map(|text| (*text).to_owned()).collect(),
            waited_for: "chaos-etcd-1 is off".to_owned(),
            events: Vec::new(),
        }
    }

    fn report(outcomes: Vec<Outcome>, lost: usize) -> Report {
        let second = Duration::from_secs(1);
        let sum = Sum { acknowledged: 9, lost, failed: 1, unavailable: second, longest: second };
        Report::new(7, 60.0, outcomes, &sum)
    }

    #[test]
    fn a_run_is_good_when_all_recovered_and_nothing_was_lost_or_done_without_need() {
        assert!(report(vec![outcome(Some(4.0), None)], 0).is_good());
        assert!(!report(vec![outcome(Some(4.0), None)], 1).is_good());
        assert!(!report(vec![outcome(None, None)], 0).is_good());
        assert!(!report(vec![outcome(Some(4.0), Some("it was made anew"))], 0).is_good());
    }

    #[test]
    fn a_table_says_what_came_of_each_fault() {
        let text = report(vec![outcome(Some(4.0), None), outcome(None, None)], 0).text();
        assert!(text.contains("2.2     9.8     4.0       -     0.5  recovered"), "{text}");
        assert!(text.contains("NOT RECOVERED: chaos-etcd-1 is off"), "{text}");
        assert!(text.contains("2 faults in 60 s, 1 recovered, 0 violations"), "{text}");
    }

    #[test]
    fn programs_find_the_figures_by_their_names() {
        let document = serde_json::to_value(report(vec![outcome(Some(4.0), None)], 0)).unwrap();
        let figures = [
            ("faults", 1.0),
            ("recovered", 1.0),
            ("writes_lost", 0.0),
            ("api_unavailable_seconds", 1.0),
            ("detect_p99_seconds", 2.25),
            ("mend_p99_seconds", 4.0),
        ];
        for (name, value) in figures {
            assert_eq!(document[name].as_f64(), Some(value), "{name}");
        }
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(values.clone(), 99), Some(198.0));
        assert_eq!(percentile(values, 100), Some(200.0));
        assert_eq!(percentile(vec![3.0, 1.0, 2.0], 50), Some(2.0));
        assert_eq!(percentile(Vec::new(), 99), None);
    }
}
