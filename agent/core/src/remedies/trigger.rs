//! When a remedy is due, and when it has helped.

use std::time::Duration;

use keelson_protocol::MonoTime;
use keelson_protocol::config::NodeConfig;
use keelson_protocol::remedy::{RemedySpec, Trigger};

use crate::core::AgentCore;
use crate::desired::Desired;
use crate::probes::Said;
use crate::units::UnitRun;

/// A disk as full as this explains why a program does not start: nothing else is tried before there is room.
const DISK_EXPLAINS_PERCENT: u8 = 97;
/// An answer that a remedy waits for is asked for this often.
const ASKED_WHILE_DUE: Duration = Duration::from_secs(5);

/// Why a remedy is due.
pub(super) struct Cause {
    pub(super) words: String,
    /// Whether somebody must know when nothing helps against it.
    pub(super) grave: bool,
}

impl Cause {
    fn grave(words: String) -> Self {
        Self { words, grave: true }
    }
}

impl AgentCore {
    /// Asks the probes that triggers wait for.
    pub(super) fn ask_for_triggers(&mut self, config: &NodeConfig) {
        for trigger in config.remedies.iter().flat_map(|spec| &spec.when) {
            let Trigger::Says { probe, text, every_s } = trigger else { continue };
            let every = match self.probes.said(probe) {
                Said::Bad { why, .. } if why.contains(text) => ASKED_WHILE_DUE,
                _ => Duration::from_secs((*every_s).into()),
            };
            self.probes.want(probe, every);
        }
    }

    /// What was said before the acts counts no more.
    pub(super) fn forget_answers(&mut self, spec: &RemedySpec) {
        for trigger in &spec.when {
            if let Trigger::Says { probe, .. } = trigger {
                self.probes.forget(probe);
            }
        }
    }

    /// The first trigger that holds.
    pub(super) fn cause_of(&self, spec: &RemedySpec, desired: &Desired) -> Option<Cause> {
        spec.when.iter().find_map(|trigger| self.holds(trigger, desired))
    }

    /// Whether a remedy has made no room, and no more is used since: it would only use up what it may be needed for.
    pub(super) fn is_in_vain(&self, spec: &RemedySpec) -> bool {
        let in_vain = |at: &u8| spec.when.iter().all(|trigger| self.used_percent(trigger) <= Some(*at));
        self.remedies.in_vain_at.get(&spec.name).is_some_and(in_vain)
    }

    /// What is used of what a trigger is about, in percent, when it is about room.
    pub(super) fn used_percent(&self, trigger: &Trigger) -> Option<u8> {
        let pressure = self.reporter.pressure?;
        match trigger {
            Trigger::DiskFull { .. } => Some(pressure.disk_used_percent),
            Trigger::InodesFull { .. } => Some(pressure.inodes_used_percent),
            Trigger::Failing { .. } | Trigger::GivenUp { .. } | Trigger::Says { .. } => None,
        }
    }

    fn holds(&self, trigger: &Trigger, desired: &Desired) -> Option<Cause> {
        match trigger {
            Trigger::Failing { unit, falls, stuck_s } => {
                let stuck = Duration::from_secs((*stuck_s).into());
                let words = self.proven(unit, desired)?.failing((*falls).into(), stuck, self.now.mono)?;
                Some(Cause::grave(format!("{unit} {words}")))
            }
            Trigger::GivenUp { unit, times, stuck_s } => {
                let stuck = Duration::from_secs((*stuck_s).into());
                let words = self.proven(unit, desired)?.given_up((*times).into(), stuck, self.now.mono)?;
                Some(Cause::grave(format!("{unit} {words}")))
            }
            Trigger::DiskFull { percent, alarm_percent } => {
                let used = self.used_percent(trigger)?;
                let words = format!("{used} % of the disk is used");
                (used >= *percent).then_some(Cause { words, grave: used >= *alarm_percent })
            }
            Trigger::InodesFull { percent, alarm_percent } => {
                let used = self.used_percent(trigger)?;
                let words = format!("{used} % of the inodes are used");
                (used >= *percent).then_some(Cause { words, grave: used >= *alarm_percent })
            }
            Trigger::Says { probe, text, .. } => match self.probes.said(probe) {
                Said::Bad { why, .. } if why.contains(text) => {
                    Some(Cause::grave(format!("{}: {why}", probe.name)))
                }
                _ => None,
            },
        }
    }

    /// Whether the machine itself explains why a program does not work: it lacks room or memory, or its disk takes no writes.
    pub(crate) fn hinders_programs(&self) -> bool {
        let full = |pressure: keelson_protocol::health::Pressure| {
            pressure.disk_used_percent.max(pressure.inodes_used_percent) >= DISK_EXPLAINS_PERCENT
        };
        self.reporter.pressure.is_some_and(full) || self.reporter.memory_tight || self.unwritten.is_some()
    }

    /// A unit that has worked with its present inputs, unless the machine explains why it does not any more, or nobody has seen
    /// it a moment ago.
    fn proven(&self, unit: &str, desired: &Desired) -> Option<&UnitRun> {
        if !self.units_seen.in_sight(self.now.mono) || self.hinders_programs() {
            return None;
        }
        let worked = self.ledger.units.get(unit)?.worked?;
        (desired.inputs.get(unit) == Some(&worked)).then(|| self.units.get(unit))?
    }

    /// Whether what made a remedy due is over, seen after `since`; `None` while that is open.
    pub(super) fn is_over(&self, trigger: &Trigger, since: MonoTime) -> Option<bool> {
        match trigger {
            Trigger::Failing { unit, falls, .. } => {
                let run = self.units.get(unit)?;
                let over = run.is_settled(self.now.mono).then_some(true);
                over.or(run.fell_at_least((*falls).into()).then_some(false))
            }
            Trigger::GivenUp { unit, .. } => self.units.get(unit)?.is_settled(self.now.mono).then_some(true),
            Trigger::DiskFull { percent, .. } => {
                self.reporter.pressure_since(since).map(|pressure| pressure.disk_used_percent < *percent)
            }
            Trigger::InodesFull { percent, .. } => {
                self.reporter.pressure_since(since).map(|pressure| pressure.inodes_used_percent < *percent)
            }
            Trigger::Says { probe, .. } => match self.probes.said(probe) {
                Said::Good => Some(true),
                // Still what it was, or no word on it at all: a member that starts again may answer nothing for a while.
                Said::Bad { .. } | Said::Nothing => None,
            },
        }
    }
}
