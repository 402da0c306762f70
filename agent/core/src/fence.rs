//! Giving up one's work: a machine that nobody can reach stops what may run only once, so that it can safely run
//! elsewhere.
//!
//! Three must be silent together: the coordinator, every neighbour, and the one that gives the work out. Then nobody can
//! tell this machine to stop, and after the lease everybody else may take it that it has. When any of the three answers,
//! the work is taken up again: whoever gives it out says then what is still to be done. A machine without neighbours
//! cannot tell its own isolation from a coordinator that is away, and never gives up anything.

use std::time::Duration;

use keelson_protocol::config::NodeConfig;
use keelson_protocol::health::EventKind;
use keelson_protocol::remedy::{FENCE, LeaseSpec, RemedyAct};
use keelson_protocol::{MonoTime, WallTime};

use crate::action::{Step, StepKey};
use crate::core::AgentCore;
use crate::event::StepOutput;
use crate::ledger::FenceRecord;
use crate::looks::Class;
use crate::peers::Isolation;
use crate::probes::Said;
use crate::units::BAD_ANSWERS_MAX;

/// The one that gives the work out is asked this often while nobody else answers.
const ASKED_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Fence {
    /// Since when all three are silent.
    silent_since: Option<MonoTime>,
    /// The processes are killed, by this agent.
    ended: bool,
}

impl AgentCore {
    pub(crate) fn reconcile_fence(&mut self, config: &NodeConfig) {
        let neighbours = config.peers.as_ref().is_some_and(|peers| !peers.neighbours.is_empty());
        let Some(lease) = config.lease.as_ref().filter(|_| neighbours) else {
            return self.lift_fence("the config has no lease for this machine");
        };
        if self.ledger.fence.is_some() {
            return self.keep_fence(lease);
        }
        if !matches!(self.isolation(), Isolation::Alone { .. }) {
            self.fence.silent_since = None;
            return;
        }
        self.probes.want(&lease.probe, ASKED_EVERY);
        match self.probes.said(&lease.probe) {
            Said::Bad { in_row, .. } if in_row >= BAD_ANSWERS_MAX => {}
            Said::Good => {
                self.fence.silent_since = None;
                return;
            }
            Said::Bad { .. } | Said::Nothing => return,
        }
        let now = self.now.mono;
        let ends = self.fence.silent_since.get_or_insert(now).plus(seconds(lease));
        if ends > now {
            return self.wake_at(ends);
        }
        // On disk before anything is stopped: an agent that is killed now must not start it again.
        self.ledger.fence = Some(FenceRecord { since: self.now.wall, told: false });
        self.fence.ended = false;
        self.forget_starts(&lease.units);
        self.persist_now();
    }

    fn keep_fence(&mut self, lease: &LeaseSpec) {
        self.probes.want(&lease.probe, ASKED_EVERY);
        // After a start of the agent its isolation is not known: only an answer ends what was begun.
        match self.isolation() {
            Isolation::Connected => return self.lift_fence("the coordinator is back"),
            Isolation::LinkOnly { .. } => return self.lift_fence("a neighbour can be reached again"),
            Isolation::Unknown { .. } | Isolation::Alone { .. } => {}
        }
        if self.probes.said(&lease.probe) == Said::Good {
            return self.lift_fence(&format!("{} answers again", lease.probe.name));
        }
        let key = StepKey::Act(FENCE.to_owned());
        if !self.fence.ended && self.first_up(&lease.units).is_none() && self.free(&key) {
            let act = RemedyAct::EndProcesses { cgroups: lease.cgroups.clone() };
            self.run(Step::Act { of: FENCE.to_owned(), act });
        }
    }

    pub(crate) fn fence_done(&mut self, result: &Result<StepOutput, String>) {
        let Some(fence) = &mut self.ledger.fence else { return };
        if result.is_err() {
            return;
        }
        self.fence.ended = true;
        if !std::mem::replace(&mut fence.told, true) {
            let lease = self.ledger.config.as_ref().and_then(|config| config.lease.as_ref());
            let seconds = lease.map_or(0, |lease| lease.lost_after_s);
            let cause = format!(
                "neither the coordinator nor a neighbour nor {} answered for {seconds} s",
                lease.map_or("who gives out the work", |lease| lease.probe.name.as_str())
            );
            let outcome = "its work is stopped, and stays so until one of them answers";
            self.note(EventKind::Fenced, FENCE, &cause, outcome);
        }
    }

    fn lift_fence(&mut self, cause: &str) {
        self.fence.silent_since = None;
        let Some(fence) = self.ledger.fence.take() else { return };
        let outcome = format!(
            "what was stopped is started again after {} s",
            self.now.wall.since(fence.since).as_secs()
        );
        self.note(EventKind::FenceLifted, FENCE, cause, &outcome);
        self.look_again(Class::Units);
        self.persist_now();
    }

    /// Whether a unit is among the work that is given up. As long as its processes are being ended it stays down, also when
    /// somebody has answered meanwhile: what starts there would be ended with them.
    pub(crate) fn is_fenced_off(&self, config: &NodeConfig, unit: &str) -> bool {
        let ends = || self.is_in_flight(&StepKey::Act(FENCE.to_owned()));
        let lease = config.lease.as_ref().filter(|_| self.ledger.fence.is_some() || ends());
        lease.is_some_and(|lease| lease.units.iter().any(|fenced| fenced == unit))
    }

    /// Since when this machine has given up its work; `None` when it has not.
    #[must_use]
    pub fn fenced_since(&self) -> Option<WallTime> {
        self.ledger.fence.as_ref().map(|fence| fence.since)
    }
}

fn seconds(lease: &LeaseSpec) -> Duration {
    Duration::from_secs(lease.lost_after_s.into())
}
