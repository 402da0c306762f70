//! The targets of one service: which of them a new connection tries, and when connections leave one.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::health::{Answer, Health};

/// A target that refused a connection is tried last for this time: longer than a check needs to see it dead.
const AVOIDED_FOR: Duration = Duration::from_secs(5);

/// The targets of one service, with what is known of each. Shared by those who change the list, those who check and
/// those who connect.
#[derive(Debug, Default)]
pub struct Targets {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    rows: Vec<Row>,
    next: usize,
}

#[derive(Debug)]
struct Row {
    address: SocketAddr,
    health: Health,
    avoided_until: Option<Instant>,
    /// Tells the connections of this target to end. Dropped with the row, which ends none of them.
    leave: watch::Sender<()>,
}

/// A target that a new connection may try.
#[derive(Debug)]
pub struct Candidate {
    address: SocketAddr,
    leave: watch::Receiver<()>,
}

impl Candidate {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends once the target was found dead, since the candidate was given out, while another one is alive. A target
    /// that is taken off the list keeps its connections.
    pub async fn left(&mut self) {
        if self.leave.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Targets {
    /// Takes a new list. What is known of targets that stay is kept; connections to those that go may finish.
    pub fn replace(&self, addresses: &[SocketAddr]) {
        let mut table = self.lock();
        let mut known = std::mem::take(&mut table.rows);
        let row = |address: &SocketAddr| match known.iter().position(|row| row.address == *address) {
            Some(place) => known.swap_remove(place),
            None => Row {
                address: *address,
                health: Health::Unknown { bad: 0 },
                avoided_until: None,
                leave: watch::Sender::new(()),
            },
        };
        table.rows = addresses.iter().map(row).collect();
    }

    /// The list.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.lock().rows.iter().map(|row| row.address).collect()
    }

    /// Those that are known as dead.
    #[must_use]
    pub fn unhealthy(&self) -> Vec<SocketAddr> {
        let table = self.lock();
        table.rows.iter().filter(|row| row.health.is_unhealthy()).map(|row| row.address).collect()
    }

    /// The targets that a new connection tries, in order: each time another one first, those that refused a moment ago
    /// later, and those that are known as dead last, or not at all while one is proven to live.
    #[must_use]
    pub fn in_turn(&self, now: Instant) -> Vec<Candidate> {
        let mut table = self.lock();
        let count = table.rows.len();
        let first = table.next;
        table.next = (first + 1) % count.max(1);
        let proven = table.rows.iter().any(|row| row.health.is_healthy());
        let rows = (0..count).map(|step| &table.rows[(first + step) % count]);
        let mut rows: Vec<&Row> = rows.filter(|row| !(proven && row.health.is_unhealthy())).collect();
        rows.sort_by_key(|row| {
            (row.health.is_unhealthy(), row.avoided_until.is_some_and(|until| until > now))
        });
        rows.iter().map(|row| Candidate { address: row.address, leave: row.leave.subscribe() }).collect()
    }

    /// A target took a connection.
    pub(crate) fn accepted(&self, address: SocketAddr) {
        self.avoid(address, None);
    }

    /// A target did not take a connection.
    pub(crate) fn refused(&self, address: SocketAddr, now: Instant) {
        self.avoid(address, Some(now + AVOIDED_FOR));
    }

    fn avoid(&self, address: SocketAddr, until: Option<Instant>) {
        if let Some(row) = self.lock().rows.iter_mut().find(|row| row.address == address) {
            row.avoided_until = until;
        }
    }

    /// Takes the answer to a check. Connections leave a target with every answer that confirms its death, not with the
    /// first alone, as it may have been the last one then; and never with an answer of another target: after a stall
    /// of our own all seem dead, and each then speaks for itself.
    pub fn heard(&self, address: SocketAddr, answer: &Answer) {
        let mut table = self.lock();
        let Some(place) = table.rows.iter().position(|row| row.address == address) else { return };
        let other_works = table.rows.iter().any(|row| row.address != address && row.health.is_healthy());
        let row = &mut table.rows[place];
        let before = row.health;
        row.health = before.after(answer);
        if row.health.is_unhealthy() && *answer != Answer::Good && other_works {
            row.leave.send_replace(());
        }
        if row.health.is_unhealthy() && !before.is_unhealthy() {
            warn!(target = %address, ?answer, other_works, "a target does not work");
        } else if row.health.is_healthy() && !before.is_healthy() {
            info!(target = %address, "a target works");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is a whole one, so a holder that panicked left nothing half-done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn targets(ports: &[u16]) -> Targets {
        let targets = Targets::default();
        targets.replace(&ports.iter().copied().map(address).collect::<Vec<_>>());
        targets
    }

    fn order(targets: &Targets, now: Instant) -> Vec<u16> {
        targets.in_turn(now).iter().map(|candidate| candidate.address.port()).collect()
    }

    fn candidate(targets: &Targets, port: u16) -> Candidate {
        let mut all = targets.in_turn(Instant::now()).into_iter();
        all.find(|candidate| candidate.address.port() == port).unwrap()
    }

    fn is_left(candidate: &Candidate) -> bool {
        candidate.leave.has_changed().unwrap_or(false)
    }

    #[test]
    fn targets_take_turns_and_those_that_refused_come_last() {
        let targets = targets(&[1, 2, 3]);
        let now = Instant::now();
        targets.refused(address(1), now);
        assert_eq!(order(&targets, now), [2, 3, 1]);
        assert_eq!(order(&targets, now), [2, 3, 1]);
        assert_eq!(order(&targets, now + AVOIDED_FOR), [3, 1, 2]);
        targets.accepted(address(1));
        assert_eq!(order(&targets, now), [1, 2, 3]);
        targets.replace(&[]);
        assert_eq!(order(&targets, now), []);
    }

    #[test]
    fn a_dead_target_is_tried_last_and_not_at_all_while_one_is_proven() {
        let targets = targets(&[1, 2, 3]);
        let now = Instant::now();
        targets.heard(address(1), &Answer::Silence);
        assert_eq!(order(&targets, now), [2, 3, 1], "nothing is known of the others");
        targets.heard(address(2), &Answer::Good);
        assert_eq!(order(&targets, now), [2, 3]);
        targets.heard(address(2), &Answer::Silence);
        targets.heard(address(3), &Answer::Silence);
        assert_eq!(order(&targets, now), [3, 1, 2], "all seem dead: all are tried in turn");
        assert_eq!(order(&targets, now), [1, 2, 3]);
        targets.heard(address(1), &Answer::Good);
        targets.heard(address(1), &Answer::Good);
        assert_eq!(order(&targets, now), [1]);
    }

    #[test]
    fn connections_leave_a_dead_target_only_for_one_that_works() {
        let targets = targets(&[1, 2]);
        let (on_1, on_2) = (candidate(&targets, 1), candidate(&targets, 2));
        targets.heard(address(1), &Answer::Silence);
        assert!(!is_left(&on_1), "nothing is known of the other");
        targets.heard(address(2), &Answer::Silence);
        targets.heard(address(2), &Answer::Good);
        targets.heard(address(2), &Answer::Good);
        assert!(!is_left(&on_1), "the other works now, and this one may as well");
        targets.heard(address(1), &Answer::Good);
        assert!(!is_left(&on_1));
        targets.heard(address(1), &Answer::Silence);
        assert!(is_left(&on_1) && !is_left(&on_2));
        targets.heard(address(2), &Answer::Silence);
        assert!(!is_left(&on_2), "it is the last one");
    }

    #[test]
    fn a_target_that_goes_keeps_its_connections_and_one_that_stays_keeps_its_health() {
        let targets = targets(&[1, 2, 3]);
        let (on_1, on_2) = (candidate(&targets, 1), candidate(&targets, 2));
        targets.heard(address(3), &Answer::Good);
        targets.replace(&[address(3), address(2)]);
        for port in [1, 2] {
            targets.heard(address(port), &Answer::Silence);
        }
        assert!(!is_left(&on_1) && is_left(&on_2));
        assert_eq!(order(&targets, Instant::now()), [3]);
        assert_eq!(targets.addresses(), [3, 2].map(address));
    }
}
