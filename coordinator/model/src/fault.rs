//! What is known of a machine's health: the evidence, the judgement that follows from it, what is done, and what holds it
//! back.

use std::borrow::Cow;
use std::fmt;

use keelson_protocol::{ClusterName, Incarnation, MachineId, WallTime};
use serde::{Deserialize, Serialize};

/// What kind of thing is broken. Each kind has its own remedy, and most have none that destroys anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultClass {
    /// A program on the machine; the machine itself is fine.
    Process,
    /// The machine has power and answers nobody.
    Os,
    /// The machine has no power, or is not there.
    Machine,
    /// The way between coordinator and machine; the machine itself is fine.
    Path,
    /// A whole zone, or the way to it.
    Zone,
    /// The coordinator's own network: most of the fleet seems silent at once.
    Coordinator,
}

impl FaultClass {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Process, Self::Os, Self::Machine, Self::Path, Self::Zone, Self::Coordinator];
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Process => "process",
            Self::Os => "os",
            Self::Machine => "machine",
            Self::Path => "path",
            Self::Zone => "zone",
            Self::Coordinator => "coordinator",
        })
    }
}

/// What the heartbeats of a machine say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "heartbeat", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum HeartbeatSeen {
    /// None came since the coordinator started.
    Never,
    /// The last one came so long ago.
    Ago {
        /// In milliseconds.
        ms: u64,
    },
}

/// What the infrastructure says of a machine's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PowerSeen {
    /// It was not asked since the heartbeats stopped, or did not answer.
    Unknown,
    /// The machine has power.
    On,
    /// It has none.
    Off,
    /// The infrastructure does not know the machine.
    Missing,
}

/// What the lease of a machine's Kubernetes node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LeaseSeen {
    /// Nobody could be asked, or the machine is no node.
    Unknown,
    /// Its kubelet has renewed it lately.
    Fresh,
    /// Its kubelet does not renew it.
    Stale,
}

/// What other machines of the cluster say that were asked to reach a silent one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeersSeen {
    /// So many reached its agent.
    pub reached: u32,
    /// So many reached its kernel and no agent.
    pub refused: u32,
    /// So many got no answer.
    pub silent: u32,
}

impl PeersSeen {
    /// How many have said anything.
    #[must_use]
    pub fn asked(self) -> u32 {
        self.reached + self.refused + self.silent
    }
}

/// Everything that speaks for or against a machine, from channels that do not depend on each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// Its heartbeats.
    pub heartbeat: HeartbeatSeen,
    /// Its peers.
    pub peers: PeersSeen,
    /// Its power.
    pub power: PowerSeen,
    /// Its node.
    pub lease: LeaseSeen,
    /// How many other machines of its zone the coordinator hears.
    pub zone_heard: u32,
    /// How many other machines there are in its zone.
    pub zone_others: u32,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.heartbeat {
            HeartbeatSeen::Never => f.write_str("no heartbeat since the coordinator started")?,
            HeartbeatSeen::Ago { ms } => write!(f, "last heartbeat {ms} ms ago")?,
        }
        let PeersSeen { reached, refused, silent } = self.peers;
        if self.peers.asked() > 0 {
            write!(f, "; peers: {reached} reach it, {refused} reach no agent on it, {silent} get no answer")?;
        } else {
            f.write_str("; no peer was asked")?;
        }
        let power = match self.power {
            PowerSeen::Unknown => "not known",
            PowerSeen::On => "on",
            PowerSeen::Off => "off",
            PowerSeen::Missing => "no such machine",
        };
        let lease = match self.lease {
            LeaseSeen::Unknown => "not known",
            LeaseSeen::Fresh => "renewed",
            LeaseSeen::Stale => "not renewed",
        };
        let Self { zone_heard, zone_others, .. } = self;
        write!(
            f,
            "; power: {power}; node lease: {lease}; {zone_heard} of {zone_others} others of its zone are heard"
        )
    }
}

/// What follows from the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It is heard, and says that all is well.
    Well,
    /// It is heard, and its agent repairs something.
    Repairing,
    /// It is heard, and its agent has given up on something.
    GivenUp,
    /// Its heartbeats are late: the others are asked.
    Suspected,
    /// Silent, and others reach it: the way to it is broken.
    CutOff,
    /// Silent, its kernel answers and its agent does not.
    AgentDown,
    /// Silent together with the whole zone.
    ZoneSilent,
    /// Silent together with most of the fleet.
    FleetSilent,
    /// Silent, and what there is of evidence is not enough to say more.
    Undecided,
    /// Silent on all channels with power on: it hangs, or nobody can reach it.
    Hung,
    /// Without power, by the infrastructure's word.
    Off,
    /// Gone from the infrastructure.
    Missing,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Well,
        Self::Repairing,
        Self::GivenUp,
        Self::Suspected,
        Self::CutOff,
        Self::AgentDown,
        Self::ZoneSilent,
        Self::FleetSilent,
        Self::Undecided,
        Self::Hung,
        Self::Off,
        Self::Missing,
    ];

    /// Its name for tables and for monitors: one or two words.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Repairing => "repairing itself",
            Self::GivenUp => "given up",
            Self::Suspected => "late",
            Self::CutOff => "cut off",
            Self::AgentDown => "agent down",
            Self::ZoneSilent => "zone silent",
            Self::FleetSilent => "fleet silent",
            Self::Undecided => "silent",
            Self::Hung => "hung",
            Self::Off => "off",
            Self::Missing => "gone",
        }
    }

    /// What kind of thing is broken; `None` when nothing is known to be.
    #[must_use]
    pub fn class(self) -> Option<FaultClass> {
        match self {
            Self::Well | Self::Suspected | Self::Undecided => None,
            Self::Repairing | Self::GivenUp | Self::AgentDown => Some(FaultClass::Process),
            Self::CutOff => Some(FaultClass::Path),
            Self::ZoneSilent => Some(FaultClass::Zone),
            Self::FleetSilent => Some(FaultClass::Coordinator),
            Self::Hung => Some(FaultClass::Os),
            Self::Off | Self::Missing => Some(FaultClass::Machine),
        }
    }

    /// Whether it is one of a machine that does its work, as far as anybody knows.
    #[must_use]
    pub fn is_fine(self) -> bool {
        matches!(self, Self::Well | Self::Suspected)
    }

    /// Whether it is one of a machine that cannot serve anybody.
    #[must_use]
    pub fn is_dead(self) -> bool {
        matches!(self, Self::Hung | Self::Off | Self::Missing)
    }

    /// Whether it is a reason to take a machine's power away, by itself or when it lasts.
    #[must_use]
    pub fn calls_for_repair(self) -> bool {
        matches!(self, Self::GivenUp | Self::AgentDown | Self::Hung | Self::Off | Self::Missing)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Well => "well",
            Self::Repairing => "repairing itself",
            Self::GivenUp => "its agent has given up on something",
            Self::Suspected => "late",
            Self::CutOff => "cut off from the coordinator, and well for others",
            Self::AgentDown => "its agent is down",
            Self::ZoneSilent => "silent with its whole zone",
            Self::FleetSilent => "silent with most of the fleet",
            Self::Undecided => "silent, and not known why",
            Self::Hung => "hung, or out of everybody's reach",
            Self::Off => "without power",
            Self::Missing => "gone",
        })
    }
}

/// Something that the coordinator does to a machine to mend it, from mild to harsh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RepairAction {
    /// It is switched on. Nothing is lost: it had no power.
    PowerOn,
    /// Its power is taken away for certain, and given back. Its disk stays.
    PowerCycle,
    /// It is made anew around its disk, with its name and address.
    Rebuild,
    /// It is made anew with an empty disk, its name and its address.
    Recreate,
}

impl RepairAction {
    /// All of them, from mild to harsh.
    pub const ALL: [Self; 4] = [Self::PowerOn, Self::PowerCycle, Self::Rebuild, Self::Recreate];

    /// Whether it takes something away that may still work.
    #[must_use]
    pub fn is_disruptive(self) -> bool {
        self != Self::PowerOn
    }
}

impl fmt::Display for RepairAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PowerOn => "power-on",
            Self::PowerCycle => "power-cycle",
            Self::Rebuild => "rebuild",
            Self::Recreate => "recreate",
        })
    }
}

/// Over how much a guard watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// One cluster.
    Cluster,
    /// One zone of the infrastructure.
    Zone,
    /// Everything.
    Fleet,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cluster => "cluster",
            Self::Zone => "zone",
            Self::Fleet => "fleet",
        })
    }
}

/// Why a repair that is due is not made now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "guard", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Hold {
    /// Somebody has paused repair.
    Paused {
        /// Of the cluster or of everything.
        scope: Scope,
        /// Since when.
        since: WallTime,
    },
    /// The coordinator has started, and does not know yet who works.
    Starting {
        /// When it does.
        until: WallTime,
    },
    /// The verdict does not allow it.
    Evidence {
        /// The verdict.
        verdict: Verdict,
    },
    /// So much is broken at once that the cause lies elsewhere.
    Meltdown {
        /// Where.
        scope: Scope,
        /// Machines that are broken or being repaired.
        broken: usize,
        /// Machines that there are.
        total: usize,
        /// How many may be broken at once.
        allowed: usize,
    },
    /// The etcd cluster would lose its quorum.
    Quorum {
        /// Members that vote.
        voters: usize,
        /// Of these work without the machine.
        working: usize,
        /// And must work.
        needed: usize,
    },
    /// No other master works, so that the cluster would have no API server meanwhile.
    ApiServer,
    /// Another machine of the cluster is being worked on.
    Busy {
        /// Which.
        machine: MachineId,
    },
    /// It was repaired a moment ago; what that brought is waited for.
    CoolDown {
        /// When the next repair may come.
        until: WallTime,
    },
    /// It was repaired so often that repair is no remedy.
    Retries {
        /// How often in the last hour.
        acts: usize,
        /// When the next one may come.
        until: WallTime,
    },
    /// Its power could not be taken away for certain.
    Fence {
        /// What the infrastructure said.
        why: String,
    },
    /// The infrastructure has a newer one of this name: the record is old, and not the machine.
    OldRecord {
        /// The newest one that it has.
        newer: Incarnation,
    },
    /// It cannot be done with what the cluster has.
    Impossible {
        /// Why.
        why: String,
    },
}

impl Hold {
    /// Names of all guards, as [`Self::guard`] gives them.
    pub const GUARDS: [&str; 12] = [
        "paused",
        "starting",
        "evidence",
        "meltdown",
        "quorum",
        "apiServer",
        "busy",
        "coolDown",
        "retries",
        "fence",
        "oldRecord",
        "impossible",
    ];

    /// The guard that holds, in one word; the same as in its JSON.
    #[must_use]
    pub fn guard(&self) -> &'static str {
        match self {
            Self::Paused { .. } => "paused",
            Self::Starting { .. } => "starting",
            Self::Evidence { .. } => "evidence",
            Self::Meltdown { .. } => "meltdown",
            Self::Quorum { .. } => "quorum",
            Self::ApiServer => "apiServer",
            Self::Busy { .. } => "busy",
            Self::CoolDown { .. } => "coolDown",
            Self::Retries { .. } => "retries",
            Self::Fence { .. } => "fence",
            Self::OldRecord { .. } => "oldRecord",
            Self::Impossible { .. } => "impossible",
        }
    }

    /// When it ends, where that is known.
    #[must_use]
    pub fn until(&self) -> Option<WallTime> {
        match self {
            Self::Starting { until } | Self::CoolDown { until } | Self::Retries { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Whether only the name of the cluster, typed as a sign that its loss is understood, goes against it.
    #[must_use]
    pub fn costs_cluster(&self) -> bool {
        matches!(self, Self::Quorum { .. } | Self::OldRecord { .. } | Self::Impossible { .. })
    }

    /// Whether only a person can end it.
    #[must_use]
    pub fn needs_person(&self) -> bool {
        matches!(self, Self::Paused { .. } | Self::OldRecord { .. } | Self::Impossible { .. })
    }

    /// What ends the hold of a machine of `cluster`, in words; commands can be typed as they are.
    #[must_use]
    pub fn ends_when(&self, cluster: &ClusterName, machine: &MachineId) -> Cow<'static, str> {
        let words = match self {
            Self::Paused { scope: Scope::Cluster, .. } => {
                return format!("somebody runs `keelson repair resume --cluster {cluster}`").into();
            }
            Self::Paused { .. } => "somebody runs `keelson repair resume`",
            Self::Starting { .. } => "the machines that come back have come back",
            Self::Evidence { .. } => {
                return format!(
                    "more is known of the machine; if nothing comes, look at it, and have it repaired when it is dead: \
                     `keelson machine repair {machine} --action power-cycle`"
                )
                .into();
            }
            Self::Meltdown { .. } => {
                "fewer machines are broken; look for the common cause: network, host, storage, a bad change"
            }
            Self::Quorum { voters: 1, .. } => {
                let pool = pool_of(cluster, machine).unwrap_or("POOL");
                let scale = format!("keelson cluster scale {cluster} --pool {pool} --count 3");
                return format!("another etcd member votes; while it is the only one, add some: `{scale}`")
                    .into();
            }
            Self::Quorum { .. } => {
                "other etcd members work again; where most of their disks are lost, see the runbook \
                 docs/runbooks/quorum-lost.md"
            }
            Self::ApiServer => "another master works",
            Self::Busy { .. } => "the other machine is ready, or gone",
            Self::CoolDown { .. } => "the time is over",
            Self::Retries { .. } => "the time is over; look for the cause meanwhile",
            Self::Fence { .. } => "the infrastructure confirms that the machine has no power",
            Self::OldRecord { .. } => "a newer copy of the coordinator's database is restored",
            Self::Impossible { .. } => {
                let over = format!("--override --confirm-loss-of {cluster}");
                let command = format!("keelson machine repair {machine} --action recreate {over}");
                return format!("a person decides that its state is lost: `{command}`").into();
            }
        };
        words.into()
    }
}

/// The pool of a machine, by its name: `<cluster>-<pool>-<number>`.
fn pool_of<'a>(cluster: &ClusterName, machine: &'a MachineId) -> Option<&'a str> {
    let rest = machine.as_str().strip_prefix(cluster.as_str())?.strip_prefix('-')?;
    rest.rsplit_once('-').map(|(pool, _)| pool)
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused { scope, .. } => write!(f, "repair of the {scope} is paused"),
            Self::Starting { .. } => {
                f.write_str("the coordinator has just started, and does not know yet who works")
            }
            Self::Evidence { verdict } => write!(f, "nothing is done on this evidence: {verdict}"),
            Self::Meltdown { scope, broken, total, allowed } => write!(
                f,
                "{broken} of {total} machines of the {scope} are broken at once, more than {allowed}: \
                 the cause lies elsewhere"
            ),
            Self::Quorum { voters, working, needed } => {
                write!(f, "only {working} of {voters} etcd members would work, and {needed} must")
            }
            Self::ApiServer => {
                f.write_str("no other master works, and the cluster would have no API server meanwhile")
            }
            Self::Busy { machine } => {
                write!(f, "{machine} is being worked on, or begins anew: no more at a time")
            }
            Self::CoolDown { .. } => f.write_str("what the last repair brought is waited for"),
            Self::Retries { acts, .. } => write!(f, "it was repaired {acts} times in an hour, to no avail"),
            Self::Fence { why } => write!(f, "its power could not be taken away for certain: {why}"),
            Self::OldRecord { newer } => write!(
                f,
                "the infrastructure has incarnation {newer} of it, newer than the record: was an old copy of the \
                 database restored?"
            ),
            Self::Impossible { why } => f.write_str(why),
        }
    }
}

/// A fault of a machine, from the moment it was found until the machine works again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Its number, unique in the installation; its events carry it.
    pub number: u64,
    /// When it was found.
    pub opened: WallTime,
    /// The first verdict.
    pub verdict: Verdict,
    /// What the coordinator has done about it last.
    #[serde(default)]
    pub tried: Option<RepairAction>,
}

/// A repair that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// What.
    pub action: RepairAction,
    /// When.
    pub at: WallTime,
    /// Whether it was called off before its power was known to be taken away: then it was no try.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub called_off: bool,
}

/// A repair that is not due yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// What.
    pub action: RepairAction,
    /// When, if the verdict stays what it is, and no guard holds it.
    pub at: WallTime,
}

/// What a repair that a person asks for would come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairPreview {
    /// The machine.
    pub machine: MachineId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// What would be done.
    pub action: RepairAction,
    /// Whether pods run on it.
    pub pods: bool,
    /// Whether its API server is the only one of the cluster that works.
    pub only_api: bool,
    /// Its member of the etcd cluster, by name.
    pub etcd_member: Option<String>,
    /// What the caller goes against.
    pub against: Option<Hold>,
}

impl RepairPreview {
    /// What happens to power, disk, pods and etcd, a sentence each.
    #[must_use]
    pub fn what(&self) -> Vec<String> {
        let keeps = self.action != RepairAction::Recreate;
        let mut what = vec![
            match self.action {
                RepairAction::PowerOn => "it is switched on; its disk stays",
                RepairAction::PowerCycle => "its power is taken away and given back; its disk stays",
                RepairAction::Rebuild => {
                    "its power is taken away, and it is made anew around its disk, which stays"
                }
                RepairAction::Recreate => {
                    "it is removed with its disk, and made anew empty, with its name and address"
                }
            }
            .to_owned(),
        ];
        if self.pods && self.action.is_disruptive() {
            let left = if keeps { "" } else { "; what they have written to this disk is gone" };
            what.push(format!(
                "its pods end without a grace period and begin elsewhere, where others can take them{left}"
            ));
        }
        if self.only_api && self.action.is_disruptive() {
            what.push(format!(
                "the API of cluster {} does not answer meanwhile: no other master works",
                self.cluster
            ));
        }
        match &self.etcd_member {
            Some(member) if matches!(self.against, Some(Hold::Impossible { .. })) => what.push(format!(
                "everything that cluster {} knows is lost, all its objects: etcd member {member} is the only one, and begins empty",
                self.cluster
            )),
            _ if matches!(self.against, Some(Hold::OldRecord { .. })) => what.push(
                match keeps {
                    true => "the machine of the record is meant, which may be gone; the newer one stays as it is",
                    false => "the newer machine is removed, with its disk and all that only it holds",
                }
                .to_owned(),
            ),
            Some(member) if !keeps && matches!(self.against, Some(Hold::Quorum { .. })) => what.push(format!(
                "etcd member {member} loses its data, and an empty one joins only when the others have a quorum again"
            )),
            Some(member) if !keeps => what.push(format!(
                "etcd member {member} is taken out, and an empty one takes its place and catches up"
            )),
            Some(member) if self.action.is_disruptive() => {
                what.push(format!("etcd member {member} is away meanwhile, and comes back with its data"));
            }
            _ => {}
        }
        if let Some(hold) = &self.against {
            what.push(format!("this goes against a guard: {hold}"));
        }
        what
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_has_the_name_that_its_json_has() {
        let holds = [
            Hold::Paused { scope: Scope::Fleet, since: WallTime(1) },
            Hold::Starting { until: WallTime(1) },
            Hold::Evidence { verdict: Verdict::CutOff },
            Hold::Meltdown { scope: Scope::Zone, broken: 2, total: 4, allowed: 1 },
            Hold::Quorum { voters: 3, working: 1, needed: 2 },
            Hold::ApiServer,
            Hold::Busy { machine: "demo-etcd-1".parse().unwrap() },
            Hold::CoolDown { until: WallTime(1) },
            Hold::Retries { acts: 6, until: WallTime(1) },
            Hold::Fence { why: String::new() },
            Hold::OldRecord { newer: Incarnation(2) },
            Hold::Impossible { why: String::new() },
        ];
        for (hold, guard) in holds.iter().zip(Hold::GUARDS) {
            assert_eq!(serde_json::to_value(hold).unwrap()["guard"], guard);
            assert_eq!(hold.guard(), guard);
        }
    }

    #[test]
    fn only_a_new_machine_costs_the_one_that_an_old_record_does_not_know() {
        let told = |action| {
            let preview = RepairPreview {
                machine: "demo-etcd-1".parse().unwrap(),
                cluster: "demo".parse().unwrap(),
                action,
                pods: true,
                only_api: false,
                etcd_member: None,
                against: Some(Hold::OldRecord { newer: Incarnation(2) }),
            };
            preview.what().join("; ")
        };
        assert!(told(RepairAction::Recreate).contains("the newer machine is removed, with its disk"));
        for keeps in [RepairAction::PowerCycle, RepairAction::Rebuild] {
            let told = told(keeps);
            assert!(told.contains("the newer one stays as it is") && !told.contains("is removed"), "{told}");
        }
    }
}
