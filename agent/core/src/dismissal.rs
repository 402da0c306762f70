//! Leaving for good: a machine whose place another one has taken, or that no blueprint names any more, and that came back
//! with its host after it was given up.
//!
//! Its certificates are still good for days, so that its kubelet would serve the node of the machine that replaced it, from
//! the same address. The infrastructure that lost it once may not know of it, and then nobody but the machine itself can
//! end that: it switches itself off when the coordinator says so. Its disk stays as it is, for whoever wants to look.

use std::time::Duration;

use keelson_protocol::MonoTime;
use keelson_protocol::health::EventKind;
use keelson_protocol::message::{Refusal, RefusalCode};

use crate::action::{Step, StepKey};
use crate::core::AgentCore;

/// Subject of the events.
const SUBJECT: &str = "machine";

/// A coordinator that says for so long that it knows no such machine means it: one that was restored from an old copy of
/// its database leaves people this time to notice.
const UNKNOWN_MAX: Duration = Duration::from_secs(600);
/// Longest pause between two such refusals that are about the same: the link tries four times in this time, and enrolment
/// twice.
const UNKNOWN_PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Dismissal {
    /// Since when the coordinator says that it knows no such machine, and when it said so last.
    unknown: Option<(MonoTime, MonoTime)>,
    /// It was said during this life of the agent that the machine is to go. What the ledger says alone starts nothing and
    /// ends nothing: meanwhile the machine may have been taken back.
    said: bool,
}

impl AgentCore {
    /// The coordinator does not speak with this machine.
    pub(crate) fn turned_away(&mut self, refusal: &Refusal) {
        let now = self.now.mono;
        let goes = match refusal.code {
            RefusalCode::OldIncarnation => true,
            RefusalCode::UnknownMachine => {
                let goes_on = |(_, last): &(MonoTime, MonoTime)| now.since(*last) <= UNKNOWN_PAUSE_MAX;
                let since = self.dismissal.unknown.filter(goes_on).map_or(now, |(since, _)| since);
                self.dismissal.unknown = Some((since, now));
                now.since(since) >= UNKNOWN_MAX
            }
            _ => false,
        };
        if !goes {
            return;
        }
        self.dismissal.said = true;
        if self.ledger.dismissed.is_none() {
            self.ledger.dismissed = Some(self.now.wall);
            let outcome = "the machine starts nothing any more and switches itself off";
            self.note(EventKind::Fenced, SUBJECT, &refusal.to_string(), outcome);
            // On disk before it has no power: the next boot must not begin the work again.
            self.persist_now();
        }
    }

    /// The coordinator speaks with this machine.
    pub(crate) fn welcomed(&mut self) {
        self.dismissal = Dismissal::default();
        if self.ledger.dismissed.take().is_some() {
            self.note(
                EventKind::FenceLifted,
                SUBJECT,
                "the coordinator knows it again",
                "its work begins again",
            );
            self.persist_now();
        }
    }

    /// Whether the machine has no work any more.
    pub(crate) fn is_dismissed(&self) -> bool {
        self.ledger.dismissed.is_some()
    }

    /// Switches the machine off, when that was said.
    pub(crate) fn reconcile_dismissal(&mut self) {
        if self.dismissal.said && self.free(&StepKey::Power) {
            self.run(Step::PowerOff);
        }
    }

    /// The machine goes down in a moment. Should it not, the next refusal begins this anew.
    pub(crate) fn power_off_ordered(&mut self, ordered: bool) {
        self.dismissal.said &= !ordered;
    }
}
