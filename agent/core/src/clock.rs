//! What time it is, when the machine's own clock is wrong.
//!
//! The coordinator's clock is the cluster's: its certificates are judged by it. What it said is carried on by the
//! monotonic clock, so that a step of the wall clock, to the right time or away from it, changes nothing here.

use std::time::Duration;

use keelson_protocol::health::EventKind;
use keelson_protocol::{MonoTime, WallTime};

use crate::core::{AgentCore, Now};

/// A clock that differs more is wrong: programs begin to refuse certificates and tokens that have just been made.
const WRONG_FROM: Duration = Duration::from_secs(30);
/// It is right again below this, so that it does not flicker.
const RIGHT_BELOW: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// What the coordinator's clock showed, and when.
    anchor: Option<(WallTime, MonoTime)>,
    wrong: bool,
}

impl AgentCore {
    /// The coordinator's clock shows `coordinator` now, and the machine's is off by `offset_ms`. Whether it has gone
    /// wrong, or right again, by that.
    pub(crate) fn clock_compared(&mut self, coordinator: WallTime, offset_ms: i64) -> bool {
        self.clock.anchor = Some((coordinator, self.now.mono));
        let off = Duration::from_millis(offset_ms.unsigned_abs());
        let wrong = if self.clock.wrong { off >= RIGHT_BELOW } else { off > WRONG_FROM };
        if std::mem::replace(&mut self.clock.wrong, wrong) == wrong {
            return false;
        }
        let direction = if offset_ms < 0 { "behind" } else { "ahead of" };
        let cause = format!("it is {:.1} s {direction} the coordinator's", off.as_secs_f32());
        let outcome = if wrong {
            "certificates are judged by the coordinator's clock; programs go by the wrong one until it is set"
        } else {
            "it is right again"
        };
        self.note(EventKind::ClockWrong, "clock", &cause, outcome);
        true
    }

    /// Now, with the machine's own wall clock while it is right, else with the coordinator's.
    pub(crate) fn corrected_now(&self) -> Now {
        let Some((coordinator, at)) = self.clock.anchor else { return self.now };
        let wall = coordinator.plus(self.now.mono.since(at));
        let off = wall.since(self.now.wall).max(self.now.wall.since(wall));
        if off > WRONG_FROM { Now { wall, ..self.now } } else { self.now }
    }
}
