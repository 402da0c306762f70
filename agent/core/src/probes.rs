//! Which probes are asked, how often, and what they last said.
//!
//! A probe exists only while something wants its answer; one that nobody wants is forgotten, so that an old answer is
//! never mistaken for a fresh one.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_protocol::MonoTime;
use keelson_protocol::config::ProbeSpec;

use crate::action::Action;
use crate::core::AgentCore;

#[derive(Debug, Default)]
pub(crate) struct Probes {
    running: BTreeMap<ProbeSpec, ProbeRun>,
    wanted: BTreeMap<ProbeSpec, Duration>,
    id_last: u64,
}

#[derive(Debug, Default)]
struct ProbeRun {
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

    /// Somebody wants this probe's answer at least this often, until the next call of [`AgentCore::ask_probes`].
    pub(crate) fn want(&mut self, probe: &ProbeSpec, every: Duration) {
        let known = self.wanted.entry(probe.clone()).or_insert(every);
        *known = every.min(*known);
    }

    /// What it asks about was changed: its answers say nothing any more.
    pub(crate) fn forget(&mut self, probe: &ProbeSpec) {
        self.running.remove(probe);
    }

    pub(crate) fn answered(&mut self, id: u64, _now: MonoTime, result: Result<(), String>) {
        let Some(run) = self.running.values_mut().find(|run| run.in_flight == Some(id)) else { return };
        run.in_flight = None;
        run.failures_in_row = if result.is_ok() { 0 } else { run.failures_in_row.saturating_add(1) };
        run.answer = Some(result);
    }
}

impl AgentCore {
    /// Asks every probe that is wanted and due, and forgets the others.
    pub(crate) fn ask_probes(&mut self) {
        let wanted = std::mem::take(&mut self.probes.wanted);
        self.probes.running.retain(|probe, _| wanted.contains_key(probe));
        for (probe, every) in wanted {
            let run = self.probes.running.entry(probe.clone()).or_default();
            if run.in_flight.is_some() {
                continue;
            }
            match run.began.map(|began| began.plus(every)) {
                Some(due) if due > self.now.mono => self.wake_at(due),
                _ => {
                    self.probes.id_last += 1;
                    let id = self.probes.id_last;
                    run.in_flight = Some(id);
                    run.began = Some(self.now.mono);
                    self.push(Action::Probe { id, probe });
                }
            }
        }
    }
}
