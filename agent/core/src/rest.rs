//! When nothing has to be compared. A machine that is as it shall be stays so until something new is seen, a time comes
//! that a comparison asked for, or somebody sets its clock; until then it only looks, asks and tells. So a ready machine
//! costs next to nothing, and a comparison may cost what it needs. One with something under way also goes on with every
//! answer that it waits for, and at least once a second.

use std::time::Duration;

use keelson_protocol::MonoTime;
use keelson_protocol::health::NodeState;
use keelson_protocol::limits::HEARTBEAT_INTERVAL;

use crate::certificates::CertificateRun;
use crate::core::{AgentCore, Now};

/// A machine at rest is compared this often all the same: as often as its files are looked at.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
/// One with something under way is compared at least this often.
const COMPARE_BUSY_EVERY: Duration = Duration::from_secs(1);
/// A wall clock that has moved by this much against the monotonic one was set, in milliseconds: validity of certificates
/// is to be judged anew.
const CLOCK_SET_MS: i64 = 1_000;

/// At rest, what is due again and again is done earlier by up to this time when the core is awake anyway: so looks and
/// probes come to be made together with the heartbeat, and cost no wake of their own. Half of the shortest period, so that
/// two things of that period always meet.
const EARLIER_MAX: Duration = Duration::from_millis(500);

const _: () = assert!(EARLIER_MAX.as_millis() * 2 <= HEARTBEAT_INTERVAL.as_millis());

/// What the last comparison found, and until when it holds.
#[derive(Debug)]
pub(crate) struct Rest {
    /// Whether the machine is as it shall be and nothing is under way.
    resting: bool,
    /// When the next comparison is due, whatever is seen until then.
    due: MonoTime,
    /// How far the wall clock was ahead of the monotonic one, in milliseconds.
    clock_ahead_ms: i64,
}

/// Whether an event tells anything that a comparison could come to another result by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum News {
    /// It does not.
    None,
    /// It may when something is under way: what was waited for has come, and nothing new with it.
    Progress,
    /// It may.
    Some,
}

impl News {
    pub(crate) fn when(new: bool) -> Self {
        if new { Self::Some } else { Self::None }
    }
}

impl Rest {
    /// Nothing was compared yet: it is due at once.
    pub(crate) const NEVER: Self = Self { resting: false, due: MonoTime(0), clock_ahead_ms: 0 };

    /// Whether to compare now.
    pub(crate) fn is_over(&self, now: Now, news: News) -> bool {
        match news {
            News::Some => true,
            News::Progress if !self.resting => true,
            News::Progress | News::None => {
                self.due <= now.mono
                    || ahead_ms(now).abs_diff(self.clock_ahead_ms) >= CLOCK_SET_MS.unsigned_abs()
            }
        }
    }

    /// When a comparison is due.
    pub(crate) fn due(&self) -> MonoTime {
        self.due
    }
}

fn ahead_ms(now: Now) -> i64 {
    now.wall.0.saturating_sub(i64::try_from(now.mono.0).unwrap_or(i64::MAX))
}

impl AgentCore {
    /// Whether nothing is under way, as of the last comparison.
    pub(crate) fn is_resting(&self) -> bool {
        self.rest.resting
    }

    /// Until when things that are due again and again are done now.
    pub(crate) fn due_by(&self) -> MonoTime {
        if self.rest.resting { self.now.mono.plus(EARLIER_MAX) } else { self.now.mono }
    }

    /// Compares what was seen with what is wanted, and notes whether the machine rests from here on.
    pub(crate) fn compare(&mut self) {
        let wake = std::mem::replace(&mut self.wake, self.now.mono.plus(COMPARE_EVERY));
        self.probes.want_none();
        self.reconcile();
        self.settle_state();
        let resting = self.is_at_rest();
        if !resting {
            self.wake_at(self.now.mono.plus(COMPARE_BUSY_EVERY));
        }
        self.rest = Rest { resting, due: self.wake, clock_ahead_ms: ahead_ms(self.now) };
        self.wake = self.wake.min(wake);
    }

    fn is_at_rest(&self) -> bool {
        self.state() == NodeState::Ready
            && self.nothing_in_flight()
            && self.mends_nothing()
            && self.certificates.values().all(CertificateRun::asks_nothing)
    }
}
