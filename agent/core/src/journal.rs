//! Events: noted, kept until the coordinator has stored them, bounded.
//!
//! An event is sent only after it is on disk: its number must never be used twice, and the coordinator tells events
//! apart by their numbers.

use std::time::Duration;

use keelson_protocol::health::{AgentEvent, EventKind};
use keelson_protocol::limits::EVENTS_BUFFERED_MAX;
use keelson_protocol::message::ToCoordinator;
use keelson_protocol::{MonoTime, WallTime};

use crate::ledger::Ledger;

/// Longest text of an event, in bytes: a reason in a sentence or two. 50 of them fit in one message.
const EVENT_TEXT_BYTES_MAX: usize = 1024;
/// Most events in one message: with the longest texts still below the limit of a message.
const EVENTS_SENT_MAX: usize = 50;
/// Events that were sent and not acknowledged are sent again after this time: the session may outlive a store that
/// failed once.
const RESEND_AFTER: Duration = Duration::from_secs(30);
/// How many events `status` shows.
pub(crate) const RECENT_MAX: usize = 10;

const _: () = assert!(
    EVENTS_SENT_MAX * (3 * EVENT_TEXT_BYTES_MAX + 64) < keelson_protocol::limits::TO_COORDINATOR_BYTES_MAX
);

/// Where the sending of events stands. The events themselves are in the ledger.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// All events up to this number are on disk.
    durable: u64,
    /// All events up to this number were sent in this session.
    sent: u64,
    sent_at: MonoTime,
    /// The last events, stored or not, for people.
    pub(crate) recent: std::collections::VecDeque<AgentEvent>,
}

impl Journal {
    /// Begins with what a ledger from disk holds.
    pub(crate) fn restored(ledger: &Ledger) -> Self {
        let recent = ledger.events.iter().rev().take(RECENT_MAX).rev().cloned().collect();
        Self { durable: ledger.event_next - 1, sent: 0, sent_at: MonoTime(0), recent }
    }

    /// The ledger is in memory alone: a reboot would give the numbers of its events to others.
    pub(crate) fn nothing_is_on_disk(&mut self) {
        self.durable = 0;
    }

    /// Notes an event.
    pub(crate) fn note(
        &mut self,
        ledger: &mut Ledger,
        at: WallTime,
        kind: EventKind,
        [subject, cause, outcome]: [&str; 3],
    ) {
        let event = AgentEvent {
            sequence: ledger.event_next,
            at,
            kind,
            subject: bounded(subject),
            cause: bounded(cause),
            outcome: bounded(outcome),
        };
        ledger.event_next += 1;
        self.recent.push_back(event.clone());
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
        ledger.events.push_back(event);
        while ledger.events.len() > EVENTS_BUFFERED_MAX {
            ledger.events.pop_front();
            ledger.events_dropped += 1;
        }
    }

    /// All events up to `through` are on disk.
    pub(crate) fn persisted(&mut self, through: u64) {
        self.durable = self.durable.max(through);
    }

    /// A new session: everything that is not acknowledged is sent again.
    pub(crate) fn session_began(&mut self) {
        self.sent = 0;
    }

    /// The coordinator has stored everything up to `through`.
    pub(crate) fn stored(&mut self, ledger: &mut Ledger, through: u64) -> bool {
        let before = ledger.events.len();
        while ledger.events.front().is_some_and(|event| event.sequence <= through) {
            ledger.events.pop_front();
        }
        ledger.events.len() != before
    }

    /// What is to be sent now.
    pub(crate) fn unsent(&mut self, ledger: &Ledger, now: MonoTime) -> Option<ToCoordinator> {
        let waiting = ledger.events.front().is_some_and(|event| event.sequence <= self.sent);
        if waiting && now.since(self.sent_at) >= RESEND_AFTER {
            self.sent = 0;
        }
        let batch: Vec<AgentEvent> = ledger
            .events
            .iter()
            .filter(|event| event.sequence > self.sent && event.sequence <= self.durable)
            .take(EVENTS_SENT_MAX)
            .cloned()
            .collect();
        self.sent = batch.last()?.sequence;
        self.sent_at = now;
        Some(ToCoordinator::Events(batch))
    }
}

/// The text, cut at a character border when it is too long.
fn bounded(text: &str) -> String {
    if text.len() <= EVENT_TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(EVENT_TEXT_BYTES_MAX - 3);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_protocol::{Incarnation, MachineId};

    fn note(journal: &mut Journal, ledger: &mut Ledger, subject: &str) {
        journal.note(ledger, WallTime(0), EventKind::Repaired, [subject, "", ""]);
    }

    fn sequences(message: Option<ToCoordinator>) -> Vec<u64> {
        match message {
            Some(ToCoordinator::Events(events)) => events.iter().map(|event| event.sequence).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn events_are_sent_when_durable_once_and_again_when_not_acknowledged() {
        let mut ledger = Ledger::empty(MachineId::new("m").unwrap(), Incarnation(1));
        let mut journal = Journal::default();
        note(&mut journal, &mut ledger, "a");
        note(&mut journal, &mut ledger, "b");
        assert_eq!(sequences(journal.unsent(&ledger, MonoTime(0))), [] as [u64; 0]);
        journal.persisted(1);
        assert_eq!(sequences(journal.unsent(&ledger, MonoTime(0))), [1]);
        journal.persisted(2);
        assert_eq!(sequences(journal.unsent(&ledger, MonoTime(0))), [2]);
        assert_eq!(sequences(journal.unsent(&ledger, MonoTime(0))), [] as [u64; 0]);
        assert!(journal.stored(&mut ledger, 1));
        assert_eq!(sequences(journal.unsent(&ledger, MonoTime(30_000))), [2]);
        journal.session_began();
        assert_eq!(sequences(journal.unsent(&ledger, MonoTime(30_000))), [2]);
    }

    #[test]
    fn the_oldest_are_dropped_and_counted() {
        let mut ledger = Ledger::empty(MachineId::new("m").unwrap(), Incarnation(1));
        let mut journal = Journal::default();
        for _ in 0..EVENTS_BUFFERED_MAX + 5 {
            note(&mut journal, &mut ledger, &"ä".repeat(2_000));
        }
        assert_eq!(ledger.events.len(), EVENTS_BUFFERED_MAX);
        assert_eq!((ledger.events_dropped, ledger.events[0].sequence), (5, 6));
        assert!(ledger.events[0].subject.len() <= EVENT_TEXT_BYTES_MAX);
        assert_eq!(journal.recent.len(), RECENT_MAX);
    }
}
