//! One round: a suite that runs, watched until it ends or has to be ended.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use time::OffsetDateTime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::log::News;
use crate::machines::Machines;
use crate::report::Report;
use crate::suite::{Outcome, Part, Running, Suite, Test};

/// How often the suite's words are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// A suite that was interrupted and has not ended after this time is killed. Longer than its own grace.
const END_MAX: Duration = Duration::from_secs(90);
/// A test that failed so shortly before a machine was found to be lost may have failed for that.
const SUSPECT: time::Duration = time::Duration::seconds(60);

/// Why a round ended, the graver reasons last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// Every test ran.
    Ended,
    /// A test took too long.
    TooLong,
    /// A machine of the cluster was lost; in words.
    Lost(String),
    /// Somebody interrupted the run.
    Interrupted,
}

/// Interrupts by a person or the system.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Done when somebody interrupts.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What runs in a round.
pub(crate) struct Round<'a> {
    pub(crate) suite: &'a Suite<'a>,
    pub(crate) part: Part,
    pub(crate) tests: &'a [&'a Test],
}

/// Why a round is being ended, and when it is ended by force.
struct Ending {
    end: End,
    /// When a machine was found to be lost, if one was.
    lost_at: Option<OffsetDateTime>,
    kill_at: Instant,
}

/// What is known of a round that runs.
struct Watch {
    running: Running,
    /// Tests that take too long.
    overdue: BTreeSet<String>,
    ending: Option<Ending>,
}

impl Round<'_> {
    /// Runs it. What is decided is in `report` afterwards.
    pub(crate) async fn run(
        &self,
        report: &mut Report,
        signals: &mut Signals,
        machines: &mut Machines,
    ) -> Result<End> {
        let running = self.suite.start(self.part, self.tests)?;
        let mut watch = Watch { running, overdue: BTreeSet::new(), ending: None };
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let found = tokio::select! {
                status = watch.running.child.wait() => {
                    status?;
                    break;
                }
                () = signals.next() => Some(End::Interrupted),
                lost = machines.lost() => Some(End::Lost(lost)),
                _ = looks.tick() => {
                    watch.listen(report)?;
                    let is_overdue = self.tests.iter().any(|test| watch.overdue.contains(&test.name));
                    is_overdue.then_some(End::TooLong)
                }
            };
            watch.end(found);
        }
        watch.listen(report)?;
        self.settle(&watch, report)?;
        Ok(watch.ending.map_or(End::Ended, |ending| ending.end))
    }

    /// Puts down what came of the tests. Those that ended only because the round did stay open.
    fn settle(&self, watch: &Watch, report: &mut Report) -> Result<()> {
        let ending = watch.ending.as_ref();
        let ran = match watch.running.result() {
            Ok(ran) => ran,
            // It was killed: what it said while it ran is known.
            Err(_) if ending.is_some() => Default::default(),
            Err(error) => return Err(error),
        };
        let lost_at = ending.and_then(|ending| ending.lost_at);
        for outcome in ran.outcomes {
            match judge(outcome, &watch.overdue, lost_at) {
                Judgement::Decided(outcome) => report.decide(outcome),
                Judgement::Open(name) => report.reopen(&name),
            }
        }
        for name in &watch.overdue {
            report.overdue(name, self.suite.test_minutes());
        }
        if ending.is_none() {
            ensure!(ran.refused.is_none(), "the suite did not begin: {}", ran.refused.unwrap_or_default());
            let ran_any = self.tests.iter().any(|test| !report.is_open(&test.name));
            let log = watch.running.log.path.display();
            ensure!(ran_any, "the suite ended without running a test; see {log}");
        }
        Ok(())
    }
}

impl Watch {
    /// Takes in what the suite said.
    fn listen(&mut self, report: &mut Report) -> Result<()> {
        for news in self.running.log.news()? {
            match news {
                News::Ended { name, state, seconds } => report.progress(&name, &state, seconds)?,
                News::StillRuns { name } if self.ending.is_none() => drop(self.overdue.insert(name)),
                // Ginkgo says it of every test when it is interrupted.
                News::StillRuns { .. } => {}
            }
        }
        Ok(())
    }

    /// Ends the round for what was found, and goes on to harder means when that was begun before.
    fn end(&mut self, found: Option<End>) {
        let is_lost = matches!(found, Some(End::Lost(_)));
        match (&mut self.ending, found) {
            (None, Some(end)) => {
                say(&end);
                self.running.interrupt();
                let kill_at = Instant::now() + END_MAX;
                self.ending = Some(Ending { end, lost_at: None, kill_at });
            }
            // Who interrupts twice does not want to wait.
            (Some(Ending { end: End::Interrupted, .. }), Some(End::Interrupted)) => self.running.kill(),
            // The graver reason counts: a person's wish above all, a lost machine above a test that hangs.
            (Some(ending), Some(end)) if end > ending.end => {
                say(&end);
                ending.end = end;
            }
            (Some(ending), _) if Instant::now() > ending.kill_at => self.running.kill(),
            _ => {}
        }
        if let Some(ending) = self.ending.as_mut().filter(|_| is_lost) {
            ending.lost_at.get_or_insert(OffsetDateTime::now_utc());
        }
    }
}

#[derive(Debug)]
enum Judgement {
    Decided(Outcome),
    Open(String),
}

/// Whether an outcome counts.
fn judge(outcome: Outcome, overdue: &BTreeSet<String>, lost_at: Option<OffsetDateTime>) -> Judgement {
    let is_suspect = lost_at.is_some_and(|lost| outcome.ended > lost - SUSPECT);
    match outcome.state.as_str() {
        "passed" => Judgement::Decided(outcome),
        "failed" | "panicked" | "timedout" | "skipped" if !is_suspect && !overdue.contains(&outcome.name) => {
            Judgement::Decided(outcome)
        }
        _ => Judgement::Open(outcome.name),
    }
}

#[expect(clippy::print_stderr, reason = "a person wants to know why it stops")]
fn say(end: &End) {
    let why = match end {
        End::Ended => return,
        End::TooLong => "a test takes too long",
        End::Lost(lost) => lost,
        End::Interrupted => "interrupted (once more to end at once)",
    };
    eprintln!("{why}; the tests clean up and end");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(state: &str, ended_seconds: i64, overdue: &[&str], lost: Option<i64>) -> bool {
        let at = |seconds: i64| OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds);
        let outcome = Outcome {
            name: "test".to_owned(),
            state: state.to_owned(),
            seconds: 1.0,
            ended: at(ended_seconds),
            why: String::new(),
        };
        let overdue = overdue.iter().map(|name| (*name).to_owned()).collect();
        matches!(judge(outcome, &overdue, lost.map(at)), Judgement::Decided(_))
    }

    #[test]
    fn only_what_ended_by_itself_counts() {
        assert!(verdict("passed", 1000, &[], None));
        assert!(verdict("failed", 1000, &[], None));
        assert!(!verdict("interrupted", 1000, &[], None));
        assert!(!verdict("failed", 1000, &["test"], None));
        assert!(verdict("failed", 1000, &["other"], None));
        // A machine was lost.
        assert!(verdict("passed", 1000, &[], Some(1010)));
        assert!(!verdict("failed", 1000, &[], Some(1010)));
        assert!(verdict("failed", 900, &[], Some(1010)));
    }
}
