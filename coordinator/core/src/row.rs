//! What the core keeps on disk.

pub use keelson_model::{Act, Incident};
use std::time::Duration;

use keelson_model::{
    Blueprint, BlueprintMachine, ClusterMaterial, ClusterSpec, Condition, FleetEvent, MachinePhase,
    Operation, OperationId, Plan, PlanName, RepairAction,
};
use keelson_protocol::{ClusterName, Generation, Incarnation, MachineId, WallTime};
use serde::{Deserialize, Serialize};

/// A cluster on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterRow {
    /// What its owner wants.
    pub spec: ClusterSpec,
    /// Whether it shall exist.
    pub wanted: bool,
    /// The plan in force.
    pub blueprint: Blueprint,
    /// When it was asked for.
    pub created: WallTime,
    /// When it was ready for the first time.
    pub first_ready: Option<WallTime>,
    /// When its API server answered for the first time.
    #[serde(default)]
    pub first_answer: Option<WallTime>,
    /// Its conditions, for their `since`.
    pub conditions: Vec<Condition>,
    /// Since when repair of its machines is paused.
    #[serde(default)]
    pub repair_paused: Option<WallTime>,
}

impl ClusterRow {
    /// Whether anybody may ever have used it.
    #[must_use]
    pub fn was_in_use(&self) -> bool {
        self.first_answer.or(self.first_ready).is_some()
    }
}

/// A machine on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineRow {
    /// Its id.
    pub id: MachineId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Which machine of that id.
    pub incarnation: Incarnation,
    /// Its zone, also when no blueprint names it any more.
    #[serde(default)]
    pub zone: String,
    /// Where it is on its way.
    pub phase: MachinePhase,
    /// When its enrolment token was made.
    pub token_made: WallTime,
    /// SHA-256 of the public key that used the token, in hex. The same key may ask again: its answer may have been lost.
    pub enrolled_key: Option<String>,
    /// The same of the last keys that it has asked to be certified since, newest last: it holds one of them.
    #[serde(default)]
    pub renewed_keys: Vec<String>,
    /// Number of the last event that its agent sent.
    pub agent_events: u64,
    /// The newest config that it was sent.
    #[serde(default)]
    pub sent: Option<SentConfig>,
    /// Since when it is drained on its way out.
    #[serde(default)]
    pub leaving_since: Option<WallTime>,
    /// The fault that is being mended.
    #[serde(default)]
    pub incident: Option<Incident>,
    /// Repairs of the last hour, oldest first.
    #[serde(default)]
    pub acts: Vec<Act>,
    /// The repair under way.
    #[serde(default)]
    pub acting: Option<RepairAction>,
    /// Who asked for it, or for [`Self::renew`].
    #[serde(default)]
    pub asked: Asked,
    /// Whether it is to be made anew with an empty disk.
    #[serde(default)]
    pub renew: bool,
    /// Whether a person has accepted that this costs the cluster its state, or it certainly has none.
    #[serde(default)]
    pub forced: bool,
    /// Since when it is proven to have no power, until it is given power again.
    #[serde(default)]
    pub fenced: Option<WallTime>,
    /// Whether the infrastructure was asked to give it its power back since then, and has not answered yet.
    #[serde(default)]
    pub powering: bool,
}

impl MachineRow {
    /// A machine that nothing was asked for yet.
    #[must_use]
    pub fn planned(machine: &BlueprintMachine, cluster: ClusterName, now: WallTime) -> Self {
        Self {
            id: machine.id.clone(),
            cluster,
            incarnation: machine.incarnation,
            zone: machine.zone.clone(),
            phase: MachinePhase::Planned,
            token_made: now,
            enrolled_key: None,
            renewed_keys: Vec::new(),
            agent_events: 0,
            sent: None,
            leaving_since: None,
            incident: None,
            acts: Vec::new(),
            acting: None,
            asked: Asked::Nobody,
            renew: false,
            forced: false,
            fenced: None,
            powering: false,
        }
    }
}

impl MachineRow {
    /// A clock that was ahead must hold nothing until its time has come: what would have happened in the future is taken back,
    /// and all else with it, so that what came first still comes first.
    pub(crate) fn not_after(&mut self, now: WallTime) {
        let ahead = self.times().map(|at| at.0).max().unwrap_or(now.0).saturating_sub(now.0);
        if ahead > 0 {
            self.times().for_each(|at| at.0 = at.0.saturating_sub(ahead));
        }
    }

    /// A clock was set ahead by so much: all that happened is as long ago as before.
    pub(crate) fn later_by(&mut self, ahead: Duration) {
        self.times().for_each(|at| *at = at.plus(ahead));
    }

    /// When things happened to it.
    fn times(&mut self) -> impl Iterator<Item = &mut WallTime> {
        let since = match &mut self.phase {
            MachinePhase::Creating { since }
            | MachinePhase::Booting { since }
            | MachinePhase::Enrolled { since }
            | MachinePhase::Off { since }
            | MachinePhase::Missing { since }
            | MachinePhase::Deleting { since, .. } => Some(since),
            MachinePhase::Planned | MachinePhase::Retrying { .. } | MachinePhase::Refused { .. } => None,
        };
        let acts = self.acts.iter_mut().map(|act| &mut act.at);
        let opened = self.incident.iter_mut().map(|incident| &mut incident.opened);
        let others = self.fenced.iter_mut().chain(&mut self.leaving_since);
        acts.chain(opened).chain(others).chain(std::iter::once(&mut self.token_made)).chain(since)
    }
}

/// Who asked for a repair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// Nobody: the evidence calls for it.
    #[default]
    Nobody,
    /// A person, within the guards.
    Person,
    /// A person, against the guards that do not cost the cluster.
    PersonDespiteGuards,
    /// A person who has typed that the loss of the quorum is understood.
    PersonDespiteQuorum,
}

/// A config that a machine was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentConfig {
    /// Its generation.
    pub generation: Generation,
    /// Digest of what restarts programs when it changes (SHA-256, hex).
    pub services: String,
    /// Machines with etcd that it names.
    #[serde(default)]
    pub etcd: Vec<MachineId>,
}

/// A remembered request of an API client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRow {
    /// Key and caller.
    pub key: String,
    /// Hash of the request's body.
    pub body_hash: String,
    /// What the request led to.
    pub operation: OperationId,
    /// When.
    pub at: WallTime,
}

/// Who has paused repair, and why. Since when is with what is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PauseNote {
    /// Who.
    pub by: String,
    /// Why, in their own words.
    pub reason: Option<String>,
}

/// Numbers that are given away once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Counter {
    /// The next incarnation of a machine.
    Incarnation,
    /// The next operation.
    Operation,
    /// The next event.
    Event,
    /// The next incident.
    Incident,
    /// When repair of the whole fleet was paused, in milliseconds since 1970; 0 when it is not.
    RepairPaused,
}

impl Counter {
    /// All counters.
    pub const ALL: [Self; 5] =
        [Self::Incarnation, Self::Operation, Self::Event, Self::Incident, Self::RepairPaused];

    /// Its name on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Incarnation => "incarnation",
            Self::Operation => "operation",
            Self::Event => "event",
            Self::Incident => "incident",
            Self::RepairPaused => "repair-paused",
        }
    }
}

/// A change on disk.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A cluster, new or changed.
    Cluster(Box<ClusterRow>),
    /// A cluster's keys. Sealed before they are written.
    Material(ClusterName, Box<ClusterMaterial>),
    /// A cluster and its keys are gone.
    RemoveCluster(ClusterName),
    /// A machine, new or changed.
    Machine(Box<MachineRow>),
    /// A machine is gone.
    RemoveMachine(MachineId),
    /// An operation, new or changed.
    Operation(Box<Operation>),
    /// An old operation is forgotten.
    RemoveOperation(OperationId),
    /// An event.
    Event(Box<FleetEvent>),
    /// A counter's next value.
    Counter(Counter, u64),
    /// A plan of a user, new or changed.
    Plan(Box<Plan>),
    /// A plan of a user is gone.
    RemovePlan(PlanName),
    /// Who has paused repair of a cluster, or of everything when there is none; without a note it is resumed.
    Pause(Option<ClusterName>, Option<PauseNote>),
    /// A request to remember.
    Idempotency(IdempotencyRow),
    /// A request to forget.
    RemoveIdempotency(String),
}

/// Everything that was on disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Saved {
    /// Clusters.
    pub clusters: Vec<ClusterRow>,
    /// Their keys.
    pub material: Vec<(ClusterName, ClusterMaterial)>,
    /// Machines.
    pub machines: Vec<MachineRow>,
    /// Operations.
    pub operations: Vec<Operation>,
    /// Counters.
    pub counters: Vec<(Counter, u64)>,
    /// Plans of users.
    pub plans: Vec<Plan>,
    /// Who has paused repair of which cluster; of everything where there is none.
    pub pauses: Vec<(Option<ClusterName>, PauseNote)>,
    /// Remembered requests.
    pub idempotency: Vec<IdempotencyRow>,
}
