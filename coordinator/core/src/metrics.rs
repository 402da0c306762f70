//! Counters that operators watch.

/// What the core has counted since the coordinator started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
}
