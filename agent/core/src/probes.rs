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
    /// What the last comparison wants to know, and how often.
    wanted: BTreeMap<Arc<ProbeSpec>, Duration>,
    /// Whether [`Self::wanted`] is not yet in [`Self::running`].
    changed: bool,
    id_last: u64,
}

#[derive(Debug, Default)]
struct ProbeRun {
    every: Duration,
    in_flight: Option<u64>,
    began: Option<MonoTime>,
    answer: Option<Result<(), String>>,
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
    Bad { why: String, in_row: u32 },
}

impl Probes {
    pub(crate) fn said(&self, probe: &ProbeSpec) -> Said {
        match self.running.get(probe).map(|run| (&run.answer, run.failures_in_row)) {
            None | Some((None, _)) => Said::Nothing,
            Some((Some(Ok(())), _)) => Said::Good,
            Some((Some(Err(why)), in_row)) => Said::Bad { why: why.clone(), in_row },
        }
    }

    /// A comparison begins: it says anew what it wants to know.
    pub(crate) fn want_none(&mut self) {
        self.wanted.clear();
        self.changed = true;
    }

    /// Somebody wants this probe's answer at least this often, until the next comparison.
    pub(crate) fn want(&mut self, probe: &ProbeSpec, every: Duration) {
        if let Some(known) = self.wanted.get_mut(probe) {
            *known = every.min(*known);
            return;
        }
        let running = self.running.get_key_value(probe).map(|(probe, _)| Arc::clone(probe));
        self.wanted.insert(running.unwrap_or_else(|| Arc::new(probe.clone())), every);
    }

    /// What it asks about was changed: its answers say nothing any more.
    pub(crate) fn forget(&mut self, probe: &ProbeSpec) {
        self.running.remove(probe);
    }

    /// A good answer after a good one is no news.
    pub(crate) fn answered(&mut self, id: u64, result: Result<(), String>) -> News {
        let Some(run) = self.running.values_mut().find(|run| run.in_flight == Some(id)) else {
            return News::None;
        };
        let news = result.is_err() || run.answer != Some(Ok(()));
        run.in_flight = None;
        run.failures_in_row = if result.is_ok() { 0 } else { run.failures_in_row.saturating_add(1) };
        run.answer = Some(result);
        News::when(news)
    }

    /// Brings what runs in line with what is wanted, and forgets the others.
    fn settle(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let wanted = &self.wanted;
        self.running.retain(|probe, _| wanted.contains_key(probe));
        for (probe, every) in wanted {
            match self.running.get_mut(probe) {
                Some(run) => run.every = *every,
                None => {
                    let run = ProbeRun { every: *every, ..ProbeRun::default() };
                    self.running.insert(Arc::clone(probe), run);
                }
            }
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
