//! What makes a run: a seed, how bad the world is, and explicit lists of faults and wishes. A seed draws one; a replay file
//! holds one; the minimiser takes parts of one away.

use std::fmt;

use keelson_model::{DrainSpec, Plan, RepairAction};
use keelson_protocol::{ClusterName, MachineId};
use serde::{Deserialize, Serialize};

/// Everything that a run depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Case {
    /// Root of all draws.
    pub seed: u64,
    /// How long faults and wishes come, in milliseconds.
    pub duration_ms: u64,
    /// What goes wrong all the time.
    pub weather: Weather,
    /// What goes wrong once, in order of time.
    pub faults: Vec<Timed<Fault>>,
    /// What users ask for, in order of time.
    pub wishes: Vec<Timed<Wish>>,
}

/// Something at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timed<T> {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// What.
    pub what: T,
}

/// What goes wrong all the time, with its odds. Zero everywhere is a world where nothing does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Weather {
    /// Longest additional delay of a message, in milliseconds.
    pub jitter_ms: u64,
    /// Datagrams lost, and stream packets that must be sent again, of a thousand.
    pub loss_permille: u32,
    /// Datagrams that arrive twice, of a thousand.
    pub duplicate_permille: u32,
    /// How much clocks of machines run too fast or too slow at most, in millionths.
    pub drift_ppm: u32,
    /// Provider calls that take effect and whose answer is lost, of a thousand.
    pub provider_lost_permille: u32,
    /// Creates that break off half done, of a thousand.
    pub provider_broken_permille: u32,
    /// Creates that find no room, of a thousand.
    pub provider_full_permille: u32,
    /// By how many lists the provider's list lags.
    pub provider_lag: usize,
    /// Answers of Kubernetes and etcd that are lost though the call took effect, of a thousand.
    pub answers_lost_permille: u32,
    /// Starts of programs after which the program soon ends, of a thousand.
    pub unit_crash_permille: u32,
    /// Steps on a machine that fail, of a thousand.
    pub step_fails_permille: u32,
    /// Calls to Kubernetes and etcd that are long on their way, of a thousand.
    pub calls_late_permille: u32,
    /// For how long certificates of links are valid, in milliseconds; a day when zero.
    pub link_life_ms: u64,
}

/// A machine that something happens to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// One of those that there are at that moment, by a draw.
    Drawn(u64),
    /// This one.
    Named(MachineId),
}

/// Who is cut off from all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// The coordinator.
    Coordinator,
    /// A machine.
    Machine(Target),
    /// A zone; those within it reach each other.
    Zone(String),
    /// The path between a machine and the coordinator; its peers reach the machine.
    Link(Target),
}

/// In which direction nothing passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Way {
    /// In neither.
    Both,
    /// Nothing comes out of the side.
    Out,
    /// Nothing comes into it.
    In,
}

/// Something that goes wrong once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Fault {
    /// A machine loses its power.
    PowerLoss {
        /// Which machine.
        target: Target,
    },
    /// A machine's kernel starts again.
    Reboot {
        /// Which machine.
        target: Target,
    },
    /// A machine stands still, and goes on later.
    Freeze {
        /// Which machine.
        target: Target,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// An agent is killed before it carries out so many more actions.
    AgentCrash {
        /// Which machine.
        target: Target,
        /// How many it still carries out.
        actions: u32,
    },
    /// An agent ends, and does not come up for a while: it falls at each start.
    AgentOut {
        /// Which machine.
        target: Target,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// The coordinator's wall clock is set, so far from the right time.
    CoordinatorClock {
        /// How far, in milliseconds.
        off_ms: i64,
    },
    /// A machine's disk takes no more bytes.
    DiskFull {
        /// Which machine.
        target: Target,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// A machine's disk is blank after its next boot, which comes at once.
    DiskLost {
        /// Which machine.
        target: Target,
    },
    /// A machine loses its power, or hangs, now and soon after each boot.
    BadBoots {
        /// Which machine.
        target: Target,
        /// For how long, in milliseconds.
        for_ms: u64,
        /// Whether it hangs.
        hangs: bool,
    },
    /// The infrastructure loses a machine with its disk.
    Vanish {
        /// Which machine.
        target: Target,
    },
    /// The host of a machine that was taken away comes back, with the machine and its disk. The infrastructure knows nothing
    /// of it.
    ComesBack {
        /// Which machine, of those that were taken away and have no place any more.
        target: Target,
    },
    /// A program ends.
    UnitCrash {
        /// Which machine.
        target: Target,
        /// Which of those that run, by a draw.
        unit: u64,
    },
    /// A program lives on and does nothing.
    UnitHang {
        /// Which machine.
        target: Target,
        /// Which of those that run, by a draw.
        unit: u64,
    },
    /// A machine's wall clock is set.
    ClockJump {
        /// Which machine.
        target: Target,
        /// By how much, in milliseconds.
        by_ms: i64,
    },
    /// Nothing passes between a side and all others.
    Partition {
        /// Who is cut off.
        side: Side,
        /// In which direction.
        way: Way,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// The coordinator is killed before it carries out so many more effects.
    CoordinatorCrash {
        /// How many it still carries out.
        effects: u64,
        /// When it is started again, in milliseconds.
        down_ms: u64,
    },
    /// The coordinator stands still.
    CoordinatorFreeze {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// The provider answers nothing.
    ProviderOut {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// A zone has no room for another machine.
    ZoneFull {
        /// Which.
        zone: String,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// The provider answers, and lists no machine.
    ProviderListsNothing {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// Disruption budgets allow no pod to go.
    BudgetsHold {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// Heartbeats of the whole fleet get lost; sessions stand, and everything else arrives.
    HeartbeatsLost {
        /// How many, of a thousand.
        permille: u32,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// A person pauses repair of everything.
    RepairPaused {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// A person has a machine repaired, whether it needs that or not.
    RepairByHand {
        /// Which machine.
        target: Target,
        /// What is asked for.
        action: RepairAction,
        /// Whether against the guards that do not cost the cluster.
        over: bool,
    },
}

/// Kinds of faults, so that a seed can draw which exist at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the fault of the same name")]
pub enum FaultKind {
    PowerLoss,
    Reboot,
    Freeze,
    AgentCrash,
    DiskFull,
    DiskLost,
    Vanish,
    UnitCrash,
    UnitHang,
    ClockJump,
    Partition,
    CoordinatorCrash,
    CoordinatorFreeze,
    ProviderOut,
    BudgetsHold,
    HeartbeatsLost,
    ProviderListsNothing,
    RepairByHand,
    ZoneFull,
    ComesBack,
    BadBoots,
    RepairPaused,
    AgentOut,
    CoordinatorClock,
}

impl FaultKind {
    /// Kinds that seeds draw from. A list that leaves out what is there is an error of the provider that no seed draws:
    /// beside a machine that is dead too, nobody could tell it from the truth.
    pub const DRAWN: [Self; 23] = [
        Self::PowerLoss,
        Self::Reboot,
        Self::Freeze,
        Self::AgentCrash,
        Self::DiskFull,
        Self::DiskLost,
        Self::Vanish,
        Self::UnitCrash,
        Self::UnitHang,
        Self::ClockJump,
        Self::Partition,
        Self::CoordinatorCrash,
        Self::CoordinatorFreeze,
        Self::ProviderOut,
        Self::BudgetsHold,
        Self::HeartbeatsLost,
        Self::RepairByHand,
        Self::ZoneFull,
        Self::ComesBack,
        Self::BadBoots,
        Self::RepairPaused,
        Self::AgentOut,
        Self::CoordinatorClock,
    ];
}

impl Fault {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::PowerLoss { .. } => FaultKind::PowerLoss,
            Self::Reboot { .. } => FaultKind::Reboot,
            Self::Freeze { .. } => FaultKind::Freeze,
            Self::AgentCrash { .. } => FaultKind::AgentCrash,
            Self::DiskFull { .. } => FaultKind::DiskFull,
            Self::DiskLost { .. } => FaultKind::DiskLost,
            Self::Vanish { .. } => FaultKind::Vanish,
            Self::ComesBack { .. } => FaultKind::ComesBack,
            Self::BadBoots { .. } => FaultKind::BadBoots,
            Self::RepairPaused { .. } => FaultKind::RepairPaused,
            Self::AgentOut { .. } => FaultKind::AgentOut,
            Self::CoordinatorClock { .. } => FaultKind::CoordinatorClock,
            Self::UnitCrash { .. } => FaultKind::UnitCrash,
            Self::UnitHang { .. } => FaultKind::UnitHang,
            Self::ClockJump { .. } => FaultKind::ClockJump,
            Self::Partition { .. } => FaultKind::Partition,
            Self::CoordinatorCrash { .. } => FaultKind::CoordinatorCrash,
            Self::CoordinatorFreeze { .. } => FaultKind::CoordinatorFreeze,
            Self::ProviderOut { .. } => FaultKind::ProviderOut,
            Self::BudgetsHold { .. } => FaultKind::BudgetsHold,
            Self::HeartbeatsLost { .. } => FaultKind::HeartbeatsLost,
            Self::RepairByHand { .. } => FaultKind::RepairByHand,
            Self::ZoneFull { .. } => FaultKind::ZoneFull,
            Self::ProviderListsNothing { .. } => FaultKind::ProviderListsNothing,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: &u64| format!("for {:.1} s", *ms as f64 / 1_000.0);
        match self {
            Self::PowerLoss { .. } => f.write_str("loses its power"),
            Self::Reboot { .. } => f.write_str("reboots"),
            Self::Freeze { for_ms, .. } => write!(f, "freezes {}", seconds(for_ms)),
            Self::AgentCrash { actions, .. } => write!(f, "agent is killed before action {actions}"),
            Self::DiskFull { for_ms, .. } => write!(f, "disk is full {}", seconds(for_ms)),
            Self::DiskLost { .. } => f.write_str("loses its disk"),
            Self::Vanish { .. } => f.write_str("vanishes with its disk"),
            Self::ComesBack { .. } => f.write_str("comes back, and was taken away"),
            Self::BadBoots { for_ms, hangs, .. } => {
                let what = if *hangs { "hangs" } else { "loses its power" };
                write!(f, "{what} now and after each boot {}", seconds(for_ms))
            }
            Self::RepairPaused { for_ms } => write!(f, "a person pauses repair {}", seconds(for_ms)),
            Self::AgentOut { for_ms, .. } => write!(f, "agent does not come up {}", seconds(for_ms)),
            Self::CoordinatorClock { off_ms } => {
                write!(f, "coordinator's wall clock is set {off_ms} ms ahead")
            }
            Self::UnitCrash { .. } => f.write_str("a program ends"),
            Self::UnitHang { .. } => f.write_str("a program hangs"),
            Self::ClockJump { by_ms, .. } => write!(f, "wall clock is set by {by_ms} ms"),
            Self::Partition { side, way, for_ms } => {
                write!(f, "nothing passes {} {}", side_text(side, *way), seconds(for_ms))
            }
            Self::CoordinatorCrash { effects, down_ms } => {
                write!(f, "coordinator is killed before effect {effects}, {}", seconds(down_ms))
            }
            Self::CoordinatorFreeze { for_ms } => write!(f, "coordinator freezes {}", seconds(for_ms)),
            Self::ProviderOut { for_ms } => write!(f, "provider is out {}", seconds(for_ms)),
            Self::ZoneFull { zone, for_ms } => write!(f, "{zone} is full {}", seconds(for_ms)),
            Self::ProviderListsNothing { for_ms } => write!(f, "provider lists nothing {}", seconds(for_ms)),
            Self::BudgetsHold { for_ms } => write!(f, "budgets let no pod go {}", seconds(for_ms)),
            Self::RepairByHand { action, over, .. } => {
                let over = if *over { ", against the guards" } else { "" };
                write!(f, "a person asks for {action}{over}")
            }
            Self::HeartbeatsLost { permille, for_ms } => {
                write!(f, "{permille} of 1000 heartbeats are lost {}", seconds(for_ms))
            }
        }
    }
}

fn side_text(side: &Side, way: Way) -> String {
    let side = match side {
        Side::Coordinator => "the coordinator".to_owned(),
        Side::Machine(_) => "the machine".to_owned(),
        Side::Zone(zone) => zone.clone(),
        Side::Link(_) => return "between the machine and the coordinator".to_owned(),
    };
    match way {
        Way::Both => format!("between {side} and the others"),
        Way::Out => format!("out of {side}"),
        Way::In => format!("into {side}"),
    }
}

/// What a user asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wish", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Wish {
    /// A new cluster.
    Create {
        /// Its name.
        cluster: ClusterName,
        /// The plan it follows.
        plan: String,
        /// How many workers; the plan's own number when absent.
        workers: Option<u16>,
    },
    /// Another size of a pool.
    Scale {
        /// Its name.
        cluster: ClusterName,
        /// The pool.
        pool: String,
        /// How many machines it shall have.
        count: u16,
        /// How pods leave machines that go; as before when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drain: Option<DrainSpec>,
    },
    /// A plan of their own, new or changed.
    Plan {
        /// What it shall be.
        plan: Box<Plan>,
    },
    /// No cluster of that name any more.
    Delete {
        /// Its name.
        cluster: ClusterName,
    },
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { cluster, plan, workers: None } => write!(f, "create {cluster} plan={plan}"),
            Self::Create { cluster, plan, workers: Some(workers) } => {
                write!(f, "create {cluster} plan={plan} workers={workers}")
            }
            Self::Scale { cluster, pool, count, drain: None } => {
                write!(f, "scale {cluster} {pool} to {count}")
            }
            Self::Scale { cluster, pool, count, drain: Some(drain) } => {
                let (seconds, then) = (drain.timeout_s, drain.then);
                write!(f, "scale {cluster} {pool} to {count}, drains have {seconds} s, then {then:?}")
            }
            Self::Plan { plan } => {
                write!(f, "apply plan {}: {}", plan.name, plan.differences(None).join("; "))
            }
            Self::Delete { cluster } => write!(f, "delete {cluster}"),
        }
    }
}
