//! Counters that operators watch.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_model::{FaultClass, RepairAction};
use keelson_protocol::health::EventKind;

/// What the core has counted since the coordinator started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Heartbeats that came.
    pub heartbeats: u64,
    /// Heartbeats that are missing in the sequences.
    pub heartbeats_lost: u64,
    /// Messages that came on control streams.
    pub messages: u64,
    /// Sessions that were accepted.
    pub sessions_opened: u64,
    /// Sessions that were refused.
    pub sessions_refused: u64,
    /// Enrolments that were accepted.
    pub enrolled: u64,
    /// Enrolments that were refused.
    pub enrol_refused: u64,
    /// Certificates that were signed for clusters.
    pub certificates_signed: u64,
    /// Provider calls that were made.
    pub provider_calls: u64,
    /// Provider calls that failed.
    pub provider_failures: u64,
    /// Times that a machine became silent.
    pub machines_silent: u64,
    /// Machines without an owner that were removed.
    pub orphans_swept: u64,
    /// Faults that were found, by class, with the time from the last heartbeat.
    pub detections: BTreeMap<FaultClass, Timing>,
    /// Faults that were mended, by class, with the time from when they were found.
    pub mended: BTreeMap<FaultClass, Timing>,
    /// What agents said of repairs that they made by themselves.
    pub agent_repairs: BTreeMap<AgentRepair, u64>,
    /// Repairs that were begun.
    pub repairs: BTreeMap<RepairAction, u64>,
    /// What came of faults, by class, and of what was done about them; without a class, of machines that a person had
    /// repaired though they were well.
    pub outcomes: BTreeMap<(Option<FaultClass>, RepairOutcome), u64>,
}

/// What came of a fault, or of what was done about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RepairOutcome {
    /// The machine works again, after an act of the coordinator.
    Mended,
    /// The machine works again, and the coordinator has done nothing: its agent has, or a way was free again.
    Unaided,
    /// An act did not help, and another one followed.
    NotEnough,
    /// An act was begun and taken back: the machine was heard, or a guard had come to hold.
    CalledOff,
    /// The machine was removed before it worked again: nobody wanted it any more.
    Removed,
}

impl RepairOutcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Mended, Self::Unaided, Self::NotEnough, Self::CalledOff, Self::Removed];

    /// As a label of a metric has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Mended => "mended",
            Self::Unaided => "unaided",
            Self::NotEnough => "not-enough",
            Self::CalledOff => "called-off",
            Self::Removed => "removed",
        }
    }
}

/// What came of a repair that an agent made, or was to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AgentRepair {
    /// It was made.
    Made,
    /// It was made, and did not help.
    Failed,
    /// It was due, and its budget is used up.
    Withheld,
}

impl AgentRepair {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Made, Self::Failed, Self::Withheld];

    /// What an event of an agent tells; `None` when it is of something else.
    pub(crate) fn of(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::Repaired => Some(Self::Made),
            EventKind::RepairFailed => Some(Self::Failed),
            EventKind::RepairWithheld => Some(Self::Withheld),
            _ => None,
        }
    }

    /// As a label of a metric has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Failed => "failed",
            Self::Withheld => "withheld",
        }
    }
}

/// Limits of the buckets of a [`Timing`], in milliseconds: what is promised (3 s, 30 s, 45 s), and what lies around.
pub const TIMING_LIMITS_MS: [u64; 12] =
    [500, 1_000, 2_000, 3_000, 5_000, 10_000, 20_000, 30_000, 45_000, 60_000, 300_000, 900_000];

/// How often something happened and how long it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// How often.
    pub count: u64,
    /// How long altogether, in milliseconds.
    pub sum_ms: u64,
    /// How often it took no longer than each of [`TIMING_LIMITS_MS`].
    pub within: [u64; TIMING_LIMITS_MS.len()],
}

impl Timing {
    fn add(&mut self, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.count += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
        for (within, limit) in self.within.iter_mut().zip(TIMING_LIMITS_MS) {
            *within += u64::from(ms <= limit);
        }
    }
}

impl Metrics {
    pub(crate) fn detected(&mut self, class: FaultClass, took: Duration) {
        self.detections.entry(class).or_default().add(took);
    }

    pub(crate) fn mended(&mut self, class: FaultClass, took: Duration) {
        self.mended.entry(class).or_default().add(took);
    }

    pub(crate) fn ended(&mut self, class: Option<FaultClass>, outcome: RepairOutcome) {
        *self.outcomes.entry((class, outcome)).or_default() += 1;
    }

    pub(crate) fn repair_begun(&mut self, action: RepairAction) {
        *self.repairs.entry(action).or_default() += 1;
    }
}
