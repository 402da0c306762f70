//! Which probes are asked, how often, and what they last said.
//!
//! A probe exists only while something wants its answer; one that nobody wants is forgotten, so that an old answer is
//! never mistaken for a fresh one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::MonoTime;
use keelson_protocol::config::ProbeSpec;

use crate::action::Action;
use crate::core::AgentCore;
use crate::rest::News;

#[derive(Debug, Default)]
pub(crate) struct Probes {
    running: BTreeMap<Arc<ProbeSpec>, ProbeRun>,
    /// Number of the last comparison.
    comparison: u64,
    /// Whether something may be in [`Self::running`] that the last comparison does not want.
    changed: bool,
    id_last: u64,
}

#[derive(Debug, Default)]
struct ProbeRun {
    /// The last comparison that wants to know.
    wanted_by: u64,
    every: Duration,
    in_flight: Option<u64>,
    began: Option<MonoTime>,
    answer: Option<Result<(), Arc<str>>>,
    failures_in_row: u32,
}

/// What a probe last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// It has not answered yet.
    Nothing,
    /// The expected answer.
    Good,
    /// Another answer, or none, so many times in a row.
    Bad { why: Arc<str>, in_row: u32 },
}

impl Probes {
    pub(crate) fn said(&self, probe: &ProbeSpec) -> Said {
        match self.running.get(probe).map(|run| (&run.answer, run.failures_in_row)) {
            None | Some((None, _)) => Said::Nothing,
            Some((Some(Ok(())), _)) => Said::Good,
            Some((Some(Err(why)), in_row)) => Said::Bad { why: Arc::clone(why), in_row },
        }
    }

    /// A comparison begins: it says anew what it wants to know.
    pub(crate) fn want_none(&mut self) {
        self.comparison += 1;
        self.changed = true;
    }

    /// Somebody wants this probe's answer at least this often, until the next comparison.
    pub(crate) fn want(&mut self, probe: &ProbeSpec, every: Duration) {
        let wanted_by = self.comparison;
        let Some(run) = self.running.get_mut(probe) else {
            let run = ProbeRun { wanted_by, every, ..ProbeRun::default() };
            self.running.insert(Arc::new(probe.clone()), run);
            return;
        };
        run.every = if run.wanted_by == wanted_by { every.min(run.every) } else { every };
        run.wanted_by = wanted_by;
    }

    /// What it asks about was changed: its answers say nothing any more.
    pub(crate) fn forget(&mut self, probe: &ProbeSpec) {
        if let Some(run) = self.running.get_mut(probe) {
            *run = ProbeRun { wanted_by: run.wanted_by, every: run.every, ..ProbeRun::default() };
        }
    }

    /// A good answer after a good one is no news.
    pub(crate) fn answered(&mut self, id: u64, result: Result<(), String>) -> News {
        let Some(run) = self.running.values_mut().find(|run| run.in_flight == Some(id)) else {
            return News::None;
        };
        let news = result.is_err() || run.answer != Some(Ok(()));
        run.in_flight = None;
        run.failures_in_row = if result.is_ok() { 0 } else { run.failures_in_row.saturating_add(1) };
        run.answer = Some(result.map_err(Arc::from));
        News::when(news)
    }

    /// Forgets what the last comparison does not want.
    fn settle(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.running.retain(|_, run| run.wanted_by == self.comparison);
        }
    }
}

impl AgentCore {
    /// Asks every probe that is wanted and due.
    pub(crate) fn ask_probes(&mut self) {
        self.probes.settle();
        let (now, by) = (self.now.mono, self.due_by());
        let mut next: Option<MonoTime> = None;
        for (probe, run) in &mut self.probes.running {
            if run.in_flight.is_some() {
                continue;
            }
            match run.began.map(|began| began.plus(run.every)) {
                Some(due) if due > by => {
                    next = Some(next.map_or(due, |next| next.min(due)));
                }
                _ => {
                    self.probes.id_last += 1;
                    let id = self.probes.id_last;
                    run.in_flight = Some(id);
                    run.began = Some(now);
                    self.out.push(Action::Probe { id, probe: Arc::clone(probe) });
                }
            }
        }
        if let Some(due) = next {
            self.wake_at(due);
        }
    }
}
