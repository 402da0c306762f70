//! What was seen of the world. What could not be seen is `Unknown`, never absent.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_protocol::health::{Facts, HealthReport, NodeState};
use keelson_protocol::{BootId, Generation, MachineId, WallTime};
use serde::{Deserialize, Serialize};

use crate::fault::{Act, Due, Evidence, Hold, Incident, RepairAction, Verdict};
use crate::kubernetes::DrainState;
use crate::progress::Standing;
use crate::report::{EtcdHold, LeaveStep};

/// Something that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Seen<T> {
    /// It is surely not there.
    Absent,
    /// It may or may not be there.
    Unknown {
        /// Since when.
        since: WallTime,
        /// Why it could not be seen.
        why: String,
    },
    /// It is there.
    Known(T),
}

/// Where a machine is on its way. Each variant holds what a person asks next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum MachinePhase {
    /// Planned; nothing was asked of the provider yet.
    Planned,
    /// The provider is making it.
    Creating {
        /// Since when.
        since: WallTime,
    },
    /// The provider refused for now; it is asked again.
    Retrying {
        /// What it said.
        why: String,
        /// How often it was asked.
        attempts: u32,
        /// When it is asked again.
        next: WallTime,
    },
    /// The provider refused for good; a person must act.
    Refused {
        /// What it said.
        why: String,
    },
    /// Switched on; its agent has not enrolled yet.
    Booting {
        /// Since when.
        since: WallTime,
    },
    /// Its agent has enrolled at least once.
    Enrolled {
        /// Since when.
        since: WallTime,
    },
    /// The provider says that it is off, though it should be on.
    Off {
        /// Since when.
        since: WallTime,
    },
    /// The provider does not know it any more, though it should exist.
    Missing {
        /// Since when.
        since: WallTime,
    },
    /// It is being removed.
    Deleting {
        /// Since when.
        since: WallTime,
        /// Why the last try failed.
        why: Option<String>,
    },
}

/// The link to a machine's agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// It never connected since the coordinator started.
    Never,
    /// A session stands.
    Connected {
        /// Since when.
        since: WallTime,
        /// Its boot.
        boot: BootId,
    },
    /// The session ended.
    Lost {
        /// Since when.
        since: WallTime,
        /// How it ended.
        why: String,
    },
}

/// Everything that was seen of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedMachine {
    /// Where it is on its way.
    pub phase: MachinePhase,
    /// Its link.
    pub link: LinkState,
    /// How long ago its last heartbeat came, in milliseconds; `None` when none came since the coordinator started.
    pub last_heartbeat_ms: Option<u64>,
    /// When the last heartbeat came.
    pub heard: Option<WallTime>,
    /// Whether its heartbeats stay away for longer than [`keelson_protocol::limits::SILENT_AFTER`].
    pub silent: bool,
    /// Generation and state of the last heartbeat.
    pub applied: Option<(Generation, NodeState)>,
    /// The newest health report.
    pub health: Option<Arc<HealthReport>>,
    /// What the machine is.
    pub facts: Option<Arc<Facts>>,
    /// What is to be thought of it.
    pub verdict: Verdict,
    /// What speaks for that, when something is wrong.
    pub evidence: Option<Evidence>,
    /// The repair that is under way.
    pub acting: Option<RepairAction>,
    /// Why a repair that is due is not made.
    pub hold: Option<Hold>,
    /// Why the provider did not do what it was asked for last.
    pub refusal: Option<String>,
    /// The record of what was done about it.
    pub care: Care,
}

/// What was done about a machine, and how far that is. Nothing is planned by it: it is for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Care {
    /// The fault that is being mended.
    pub incident: Option<Incident>,
    /// What will be done about it next, if nothing changes.
    pub due: Option<Due>,
    /// Repairs of the last hour, oldest first.
    pub acts: Vec<Act>,
    /// Since when it is proven to have no power.
    pub fenced: Option<WallTime>,
    /// Since when it is on its way out.
    pub leaving_since: Option<WallTime>,
    /// What the last pass of its drain left.
    pub drain: Option<DrainState>,
}

/// Everything that was seen of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its machines.
    pub machines: BTreeMap<MachineId, ObservedMachine>,
    /// Where its API server is reachable from outside.
    pub endpoint: Option<String>,
    /// Where its other services are reachable from outside, by name.
    pub exposed: BTreeMap<String, String>,
    /// Standing of machines in its etcd cluster; empty when etcd was not asked.
    pub etcd: BTreeMap<MachineId, Standing>,
    /// Why its etcd does not yet get the size that the spec wants.
    pub etcd_hold: Option<EtcdHold>,
    /// Machines that wait to get the newest config, and which other machine must be ready first.
    pub turns: BTreeMap<MachineId, MachineId>,
    /// When its blueprint was made, as far as that is known.
    pub planned: Option<WallTime>,
    /// Machines on their way out, and what still depends on them.
    pub leaving: BTreeMap<MachineId, LeaveStep>,
}
