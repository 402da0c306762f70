//! What must never happen, whatever goes wrong: the safety checkers. Each looks only at what an event touched.

use std::fmt;

use serde::Serialize;

/// Which rule was broken. docs/simulation.md has a paragraph on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Checker {
    /// No act of ours costs an etcd cluster its quorum.
    Quorum,
    /// Never two live machines of one identity, and nobody is accepted with an identity that is not in force.
    Identity,
    /// Acts of ours make no more nodes unavailable at one time than the budget allows.
    Disruption,
    /// No disk is destroyed that a blueprint names.
    Disk,
    /// Generations, incarnations and counters only grow.
    Growth,
    /// Nothing at the provider stays without an owner.
    Owner,
    /// Queues and answers have bounds.
    Bounds,
    /// No node is evacuated whose machine has power.
    Evacuation,
    /// No machine's power is taken away that works and can be heard, and no repair begins of one whose neighbours know that
    /// it works.
    Repair,
    /// Nothing is repaired while a person has paused repair, and no machine is given its power again and again without end.
    Restraint,
    /// What is sent arrives as it was.
    Codec,
    /// When nothing goes wrong any more, everything becomes as it shall be.
    Liveness,
}

impl Checker {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Quorum,
        Self::Identity,
        Self::Disruption,
        Self::Disk,
        Self::Growth,
        Self::Owner,
        Self::Bounds,
        Self::Evacuation,
        Self::Repair,
        Self::Restraint,
        Self::Codec,
        Self::Liveness,
    ];
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Which rule.
    pub checker: Checker,
    /// When, in milliseconds.
    pub at_ms: u64,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.checker, crate::trace::time(self.at_ms), self.what)
    }
}

/// A member that stopped working less than this long ago may be taken for a working one, in milliseconds: an agent needs
/// 15 seconds to be sure that a program hangs, and what it says is then on its way.
pub(crate) const NOTICED_AFTER_MS: u64 = 30_000;
/// An agent asks a unit in trouble once a second, and waits three seconds for the answer: a quorum that is younger than
/// this, in milliseconds, may not have been noticed.
pub(crate) const QUORUM_NOTICED_MS: u64 = 5_000;
/// A machine that has worked and was heard for so long is known to be well, in milliseconds.
pub(crate) const WELL_AFTER_MS: u64 = 30_000;
/// A machine that has worked for so long while a neighbour could tell so is known to work, in milliseconds: those that were
/// asked when it did not are asked again every 15 seconds, and what they say counts for 20.
pub(crate) const FINE_AFTER_MS: u64 = 45_000;
/// How often members are looked at, in milliseconds.
pub(crate) const SAMPLE_EVERY_MS: u64 = 5_000;
/// How often the provider's machines are compared with the blueprints, in milliseconds.
pub(crate) const OWNERS_EVERY_MS: u64 = 60_000;
/// How long a machine may be without an owner while coordinator and provider work, in milliseconds: a list each half
/// minute finds it, and a provider that loses answers needs some tries.
pub(crate) const UNOWNED_MAX_MS: u64 = 15 * 60_000;
/// Effects of one input: some for each machine of the fleet when all come back at once, and a few beside.
pub(crate) const EFFECTS_PER_MACHINE_MAX: usize = 8;
/// See [`EFFECTS_PER_MACHINE_MAX`].
pub(crate) const EFFECTS_BESIDE_MAX: usize = 256;
/// Events that wait for each machine: its timers, its answers, and messages of a burst that a cut held back.
pub(crate) const WAITING_PER_MACHINE_MAX: usize = 512;
/// See [`WAITING_PER_MACHINE_MAX`].
pub(crate) const WAITING_BESIDE_MAX: usize = 10_000;
/// Part of a cluster's nodes that may be drained at one time, in percent; at least one.
pub(crate) const DRAINED_PERCENT_MAX: usize = 25;
/// Part of a cluster's workers that may be without power for their repair at one time, in percent; at least one. Of the
/// machines of the control plane it is one.
pub(crate) const TAKEN_PERCENT_MAX: usize = 10;
/// A call that was asked for reaches the provider within this time, in milliseconds.
pub(crate) const ON_ITS_WAY_MS: u64 = 5_000;
/// How often a machine may be given its power within an hour when nobody asks for it: six times because it was found without,
/// six times for a repair, and some when calls are under way.
pub(crate) const POWERED_PER_HOUR_MAX: usize = 14;
/// A machine that does not work so long after its power was taken is broken, and not what we keep from working, in
/// milliseconds.
pub(crate) const TAKEN_FOR_MS: u64 = 120_000;
