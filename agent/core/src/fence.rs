//! Giving up one's work: a machine that nobody can reach stops what may run only once, so that it can safely run
//! elsewhere.
//!
//! Three must be silent together: the coordinator, every neighbour, and the one that gives the work out. Then nobody can
//! tell this machine to stop, and after the lease everybody else may take it that it has. When any of the three answers,
//! the work is taken up again: whoever gives it out says then what is still to be done. A machine without neighbours
//! cannot tell its own isolation from a coordinator that is away, and never gives up anything.

use std::slice;
use std::time::Duration;

use keelson_protocol::config::NodeConfig;
use keelson_protocol::health::EventKind;
use keelson_protocol::remedy::{FENCE, FENCE_REBOOT, LeaseSpec, RemedyAct};
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
/// Units are down by then: systemd kills after their own time to stop, which is half a minute. What they run is ended then all
/// the same.
const STOP_MAX: Duration = Duration::from_secs(45);
/// Everything has ended by then. What does not, waits for a disk or a network that is away, and ends with the machine alone.
const END_MAX: Duration = Duration::from_secs(90);
/// Time for an event to be written down before a reboot.
const TELLING: Duration = Duration::from_secs(5);
/// A machine that was told to reboot and is still there after this time is told once more.
const REBOOT_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(crate) struct Fence {
    /// Since when all three are silent.
    silent_since: Option<MonoTime>,
    /// Since when this agent has been ending the work.
    since: Option<MonoTime>,
    /// What is under way.
    act: Option<FenceAct>,
    /// The processes are killed, by this agent, with nothing left that would begin them again.
    ended: bool,
    /// They were killed while units were not down.
    ended_early: bool,
    /// When the machine is to be told to reboot.
    reboots_at: Option<MonoTime>,
}

/// What ends the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FenceAct {
    /// The processes are ended: all units are down.
    End,
    /// The same, although they are not.
    EndEarly,
    /// The machine is rebooted.
    Reboot,
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
        self.fence = Fence::default();
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
        let Some(act) = self.next_fence_act(lease) else { return };
        // A reboot does not wait until what it is to end may be tried again.
        let (of, step) = match act {
            FenceAct::Reboot => (FENCE_REBOOT, RemedyAct::Reboot),
            FenceAct::End | FenceAct::EndEarly => {
                (FENCE, RemedyAct::EndProcesses { cgroups: lease.cgroups.clone() })
            }
        };
        if !self.free(&StepKey::Act(of.to_owned())) {
            return;
        }
        if act != FenceAct::Reboot {
            self.fence.act = Some(act);
        }
        self.run(Step::Act { of: of.to_owned(), act: step });
    }

    /// What is to be done now so that the work ends. Others may rely on that it has, so nothing is waited for without end.
    fn next_fence_act(&mut self, lease: &LeaseSpec) -> Option<FenceAct> {
        if self.fence.ended {
            return None;
        }
        let now = self.now.mono;
        let since = *self.fence.since.get_or_insert(now);
        let runs = |name: &String| !self.never_ran(name) && self.first_up(slice::from_ref(name)).is_some();
        let down = !lease.units.iter().any(runs);
        if now >= since.plus(END_MAX) {
            let at = self.fence.reboots_at.unwrap_or_else(|| self.announce_reboot());
            if at <= now && self.free(&StepKey::Act(FENCE_REBOOT.to_owned())) {
                return Some(FenceAct::Reboot);
            }
            if at > now {
                self.wake_at(at);
            }
        } else {
            self.wake_at(since.plus(if now < since.plus(STOP_MAX) { STOP_MAX } else { END_MAX }));
        }
        match down {
            true => Some(FenceAct::End),
            false if now >= since.plus(STOP_MAX) && !self.fence.ended_early => Some(FenceAct::EndEarly),
            false => None,
        }
    }

    /// Whether a unit cannot run, although systemd says nothing about it: its unit file went with the boot before, and nobody
    /// else starts it. Without this, a machine whose message bus does not come up would reboot again and again.
    fn never_ran(&self, unit: &str) -> bool {
        let start = self.ledger.units.get(unit).and_then(|record| record.start);
        let in_flight = self.is_in_flight(&StepKey::Unit(unit.to_owned()));
        !in_flight
            && self.units_seen.get(unit).is_none()
            && start.is_none_or(|start| start.boot != self.me.boot)
    }

    /// Tells that the machine is going to be rebooted. The event has a moment to reach a disk that may be what hangs.
    fn announce_reboot(&mut self) -> MonoTime {
        let cause = "what this machine has given up does not end";
        self.note(
            EventKind::RepairFailed,
            FENCE,
            cause,
            "the machine is rebooted, unless it ends until then",
        );
        self.persist_now();
        *self.fence.reboots_at.insert(self.now.mono.plus(TELLING))
    }

    pub(crate) fn fence_done(&mut self, result: &Result<StepOutput, String>) {
        let act = self.fence.act.take();
        let Some(fence) = self.ledger.fence.as_mut().filter(|_| result.is_ok()) else { return };
        match act {
            Some(FenceAct::End) => self.fence.ended = true,
            Some(FenceAct::EndEarly) => return self.fence.ended_early = true,
            Some(FenceAct::Reboot) | None => return,
        }
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

    /// A reboot that was ordered has its time; one that could not be is ordered again soon. What ran on by then is ended once
    /// more: without whoever could stop the units, systemd has begun it again.
    pub(crate) fn fence_reboots(&mut self, result: &Result<StepOutput, String>) {
        match result {
            Ok(_) => self.fence.reboots_at = Some(self.now.mono.plus(REBOOT_MAX)),
            Err(_) => self.fence.ended_early = false,
        }
    }

    fn lift_fence(&mut self, cause: &str) {
        (self.fence.silent_since, self.fence.since) = (None, None);
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
