//! What may be broken, and which of it comes next. Decides only: the same seed and cluster, with its pods on the same machines, give the
//! same faults.

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// Of so many steps one has two faults at once.
const PAIR_ONE_IN: u32 = 5;
/// Longest time that the coordinator stays away, in seconds.
const COORDINATOR_AWAY_MAX_S: u64 = 20;
/// Pause between two steps, in seconds: an incident is closed five seconds after its machine works again, and what is
/// found afterwards belongs to the next fault.
const PAUSE_S: std::ops::RangeInclusive<u64> = 6..=12;

/// A machine is made anew at most twice an hour, by a guard of the coordinator; more would test that guard.
const VANISH_MAX: u32 = 2;

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Every process of a machine is killed.
    Kill,
    /// A machine loses its power.
    PowerOff,
    /// A machine stands still for 30 seconds.
    Freeze,
    /// A machine stands still for good.
    Hang,
    /// A machine and the coordinator do not hear each other for 30 seconds.
    CutCoordinator,
    /// The coordinator does not hear a machine for 30 seconds; the other way works.
    CutOneWay,
    /// A machine and all others do not hear each other for 30 seconds.
    CutAll,
    /// A zone and the coordinator do not hear each other for 20 seconds.
    CutZone,
    /// A zone and all others, the coordinator and the other zones, do not hear each other for 20 seconds.
    IsolateZone,
    /// The main process of a unit is killed.
    KillUnit,
    /// The main process of a unit is stopped.
    StopUnit,
    /// A file that the config owns gets other content.
    CorruptFile,
    /// A file that the config owns is deleted.
    DeleteFile,
    /// The coordinator is killed, and started again later.
    KillCoordinator,
    /// The process is killed that carries what is exposed outside.
    KillForwarder,
    /// A machine is removed with its disk.
    Vanish,
    /// The disk of an etcd machine or a master is full for 30 seconds. Not of a worker: kubelet evicts its pods then, and
    /// takes none for five minutes, which the faults after it would be blamed for.
    FillDisk,
    /// Logs that were set aside fill the disk of an etcd machine or a master to nine tenths, until its agent makes room.
    OldLogs,
    /// Empty logs that were set aside use nine tenths of such a disk's inodes, until its agent makes room.
    ManyLogs,
    /// The process is killed that stands between containerd and a pod of a worker.
    KillShim,
}

impl Kind {
    /// How long the cause lasts, in seconds; `None`: until somebody does something about it.
    pub(crate) fn lasts_s(self) -> Option<u64> {
        match self {
            Self::Freeze | Self::CutCoordinator | Self::CutOneWay | Self::CutAll | Self::FillDisk => Some(30),
            Self::CutZone | Self::IsolateZone => Some(20),
            _ => None,
        }
    }

    /// What the coordinator may do to the machines that it hits.
    pub(crate) fn allows(self) -> Allowed {
        match self {
            Self::CutCoordinator
            | Self::CutOneWay
            | Self::CutZone
            | Self::IsolateZone
            | Self::KillUnit
            | Self::CorruptFile
            | Self::DeleteFile
            | Self::FillDisk
            | Self::OldLogs
            | Self::ManyLogs
            | Self::KillShim
            | Self::KillForwarder
            | Self::KillCoordinator => Allowed::Nothing,
            // A stopped agent can only be told from a hung machine by other channels, and a machine has not all of them.
            Self::Kill | Self::PowerOff | Self::Freeze | Self::Hang | Self::CutAll | Self::StopUnit => {
                Allowed::Power
            }
            Self::Vanish => Allowed::Everything,
        }
    }

    /// Whether it uses up a disk, which must not be the host's.
    pub(crate) fn needs_a_limited_disk(self) -> bool {
        matches!(self, Self::FillDisk | Self::OldLogs | Self::ManyLogs)
    }

    /// Whether a machine stands still, cannot be reached or is gone, so that a repair costs it one of its few acts in an hour.
    fn costs_a_repair(self) -> bool {
        matches!(self, Self::Freeze | Self::Hang | Self::CutAll | Self::Vanish)
    }
}

/// What may be done about a fault; more is a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Allowed {
    /// No repair of the machine: its agent or time mends it.
    Nothing,
    /// Its power may be taken and given; it stays the machine that it is.
    Power,
    /// It may be made anew.
    Everything,
}

/// A machine as far as faults are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Victim {
    pub(crate) id: String,
    pub(crate) role: String,
    pub(crate) zone: String,
    /// Whether a pod runs on it now.
    pub(crate) runs_pods: bool,
}

/// What exactly is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A machine.
    Machine(String),
    /// All machines of a zone.
    Zone(String),
    /// A unit of a machine.
    Unit(String, &'static str),
    /// A file of a machine.
    File(String, &'static str),
    /// The coordinator, which stays away for so many seconds.
    Coordinator(u64),
    /// The forwarder of the infrastructure.
    Forwarder,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) target: Target,
}

impl Fault {
    /// The machine that is hit, when it is one.
    pub(crate) fn machine(&self) -> Option<&str> {
        match &self.target {
            Target::Machine(id) | Target::Unit(id, _) | Target::File(id, _) => Some(id),
            Target::Zone(_) | Target::Coordinator(_) | Target::Forwarder => None,
        }
    }

    /// What is hit, for people.
    pub(crate) fn what(&self) -> String {
        match &self.target {
            Target::Machine(id) => id.clone(),
            Target::Zone(zone) => zone.clone(),
            Target::Unit(id, unit) => format!("{id} {unit}"),
            Target::File(id, path) => format!("{id} {}", path.rsplit('/').next().unwrap_or(path)),
            Target::Coordinator(away_s) => format!("coordinator, {away_s} s"),
            Target::Forwarder => "forwarder".to_owned(),
        }
    }
}

/// Units of a machine with these roles, as `etcd+master`.
fn units(roles: &str) -> Vec<&'static str> {
    let of = |role: &str| -> &[&str] {
        match role {
            "etcd" => &["etcd"],
            "master" => &["kube-apiserver", "kube-controller-manager", "kube-scheduler"],
            _ => &[],
        }
    };
    let node: &[&str] = if roles == "etcd" { &[] } else { &["kubelet", "containerd", "kube-proxy"] };
    roles.split('+').flat_map(of).chain(node).chain(&["keelson-agent"]).copied().collect()
}

/// Files that the config of a machine with these roles owns.
fn files(roles: &str) -> Vec<&'static str> {
    let of = |role: &str| -> &[&str] {
        match role {
            "etcd" => &["/run/systemd/system/etcd.service", "/var/lib/keelson/pki/etcd-server.crt"],
            "master" => &[
                "/run/systemd/system/kube-apiserver.service",
                "/var/lib/keelson/conf/kubelet.json",
                "/var/lib/keelson/pki/kube-apiserver.crt",
            ],
            _ => &[
                "/run/systemd/system/kubelet.service",
                "/var/lib/keelson/conf/kubelet.json",
                "/var/lib/keelson/cni/net.d/10-pods.conflist",
                "/var/lib/keelson/pki/kubelet.crt",
            ],
        }
    };
    roles.split('+').flat_map(of).copied().collect()
}

/// Whether the machines' disks can be filled without harm to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disks {
    /// They are directories of the host's disk.
    OfTheHost,
    /// They have a size of their own.
    Limited,
}

/// Draws faults.
pub(crate) struct Draw {
    random: ChaCha8Rng,
    kinds: Vec<Kind>,
    /// How often a machine was hit by something that costs a repair.
    repairs: BTreeMap<String, u32>,
    /// How often a machine vanished.
    vanished: BTreeMap<String, u32>,
    /// Machines whose disks were filled: an agent makes room once an hour.
    filled: BTreeSet<String>,
}

impl Draw {
    /// A draw of these kinds; of all when none is named. The host's own disk is never filled.
    pub(crate) fn new(seed: u64, kinds: &[Kind], disks: Disks) -> Self {
        let kinds = if kinds.is_empty() { Kind::value_variants() } else { kinds };
        let is_possible = |kind: &Kind| !kind.needs_a_limited_disk() || disks == Disks::Limited;
        let kinds = kinds.iter().copied().filter(is_possible).collect();
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            kinds,
            repairs: BTreeMap::new(),
            vanished: BTreeMap::new(),
            filled: BTreeSet::new(),
        }
    }

    /// The next step: one fault, or two at once on machines of different roles.
    ///
    /// The two are of different zones as well: with two of its three machines silent a zone is taken for broken, and by
    /// design nothing disruptive is done there until a person or one of the machines says otherwise.
    pub(crate) fn step(&mut self, machines: &[Victim]) -> Vec<Fault> {
        let mut step = vec![self.fault(machines)];
        let pair = self.random.random_ratio(1, PAIR_ONE_IN);
        let first = machines.iter().find(|victim| step[0].machine() == Some(&victim.id)).cloned();
        let (true, Some(first)) = (pair, first) else { return step };
        let others: Vec<Victim> = machines
            .iter()
            .filter(|other| other.role != first.role && other.zone != first.zone)
            .cloned()
            .collect();
        if !others.is_empty() {
            let second = self.fault(&others);
            // A whole zone beside a machine is more than two machines.
            step.extend((!matches!(second.target, Target::Zone(_))).then_some(second));
        }
        step
    }

    /// How long to wait before the next step, in seconds.
    pub(crate) fn pause_s(&mut self) -> u64 {
        self.random.random_range(PAUSE_S)
    }

    fn fault(&mut self, machines: &[Victim]) -> Fault {
        let of = |is_wanted: &dyn Fn(&Victim) -> bool| -> Vec<Victim> {
            machines.iter().filter(|victim| is_wanted(victim)).cloned().collect()
        };
        let is_worker = |victim: &Victim| victim.role.split('+').any(|role| role == "worker");
        let others = of(&|victim| !is_worker(victim));
        let runs_pods = of(&|victim| is_worker(victim) && victim.runs_pods);
        let never_filled: Vec<Victim> =
            others.iter().filter(|victim| !self.filled.contains(&victim.id)).cloned().collect();
        let may_vanish = of(&|victim| self.may_vanish(victim));
        let is_possible = |kind: &Kind| match kind {
            Kind::Vanish => !may_vanish.is_empty(),
            Kind::FillDisk => !others.is_empty(),
            Kind::OldLogs | Kind::ManyLogs => !never_filled.is_empty(),
            Kind::KillShim => !runs_pods.is_empty(),
            _ => true,
        };
        let possible: Vec<Kind> = self.kinds.iter().copied().filter(is_possible).collect();
        // What was asked for cannot be done to any of these machines: the least is done.
        let kind = possible.choose(&mut self.random).copied().unwrap_or(Kind::KillUnit);
        let target = match kind {
            Kind::KillCoordinator => {
                Target::Coordinator(self.random.random_range(0..=COORDINATOR_AWAY_MAX_S))
            }
            Kind::Vanish => {
                let id = self.victim(&may_vanish, kind).id;
                *self.vanished.entry(id.clone()).or_default() += 1;
                Target::Machine(id)
            }
            Kind::KillForwarder => Target::Forwarder,
            Kind::FillDisk | Kind::OldLogs | Kind::ManyLogs => {
                let possible = if kind == Kind::FillDisk { &others } else { &never_filled };
                let id = self.victim(possible, kind).id;
                self.filled.insert(id.clone());
                Target::Machine(id)
            }
            Kind::KillShim => Target::Machine(self.victim(&runs_pods, kind).id),
            Kind::CutZone | Kind::IsolateZone => Target::Zone(self.victim(machines, kind).zone),
            Kind::KillUnit | Kind::StopUnit => {
                let victim = self.victim(machines, kind);
                Target::Unit(victim.id, self.one_of(&units(&victim.role)))
            }
            Kind::CorruptFile | Kind::DeleteFile => {
                let victim = self.victim(machines, kind);
                Target::File(victim.id, self.one_of(&files(&victim.role)))
            }
            _ => Target::Machine(self.victim(machines, kind).id),
        };
        Fault { kind, target }
    }

    fn may_vanish(&self, victim: &Victim) -> bool {
        self.vanished.get(&victim.id).is_none_or(|times| *times < VANISH_MAX)
    }

    /// A machine; for what costs a repair one of those that it cost fewest until now, as repairs of one machine become
    /// rarer with each.
    fn victim(&mut self, machines: &[Victim], kind: Kind) -> Victim {
        let count = |victim: &Victim| self.repairs.get(&victim.id).copied().unwrap_or(0);
        let least = machines.iter().map(count).min().unwrap_or(0);
        let possible: Vec<&Victim> =
            machines.iter().filter(|victim| !kind.costs_a_repair() || count(victim) == least).collect();
        let victim = (*possible.choose(&mut self.random).expect("a cluster has machines")).clone();
        if kind.costs_a_repair() {
            *self.repairs.entry(victim.id.clone()).or_default() += 1;
        }
        victim
    }

    fn one_of(&mut self, names: &[&'static str]) -> &'static str {
        names.choose(&mut self.random).expect("every role has some")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines() -> Vec<Victim> {
        let zones = ["zone-a", "zone-b", "zone-c"];
        let machine = |role: &str, index: usize| Victim {
            id: format!("chaos-{role}-{}", index + 1),
            role: role.to_owned(),
            zone: zones[index].to_owned(),
            runs_pods: index > 0,
        };
        ["etcd", "master", "worker"].iter().flat_map(|role| (0..3).map(move |i| machine(role, i))).collect()
    }

    fn steps(seed: u64, kinds: &[Kind], count: usize) -> Vec<Vec<Fault>> {
        let mut draw = Draw::new(seed, kinds, Disks::Limited);
        (0..count).map(|_| draw.step(&machines())).collect()
    }

    #[test]
    fn a_seed_is_a_run() {
        assert_eq!(steps(7, &[], 50), steps(7, &[], 50));
        assert_ne!(steps(7, &[], 50), steps(8, &[], 50));
    }

    #[test]
    fn every_kind_comes_and_some_come_in_pairs_of_different_roles_and_zones() {
        let steps = steps(1, &[], 400);
        for kind in Kind::value_variants() {
            assert!(steps.iter().flatten().any(|fault| fault.kind == *kind), "{kind:?}");
        }
        let machines = machines();
        let pairs: Vec<_> = steps.iter().filter(|step| step.len() > 1).collect();
        assert!((20..150).contains(&pairs.len()), "{}", pairs.len());
        for pair in pairs {
            let of = |fault: &Fault| machines.iter().find(|victim| fault.machine() == Some(&victim.id));
            if let (Some(one), Some(other)) = (of(&pair[0]), of(&pair[1])) {
                assert!(one.role != other.role && one.zone != other.zone, "{pair:?}");
            }
        }
    }

    #[test]
    fn a_machine_of_two_roles_has_what_both_have() {
        assert_eq!(units("etcd"), ["etcd", "keelson-agent"]);
        let both = units("etcd+master");
        assert!(["etcd", "kube-apiserver", "kubelet"].iter().all(|unit| both.contains(unit)), "{both:?}");
        assert_eq!(files("etcd+master").len(), files("etcd").len() + files("master").len());
    }

    #[test]
    fn kinds_may_be_chosen_and_repairs_are_spread_evenly() {
        let steps = steps(3, &[Kind::Hang], 18);
        let mut hits: BTreeMap<&str, usize> = BTreeMap::new();
        for fault in steps.iter().flatten() {
            assert_eq!(fault.kind, Kind::Hang);
            *hits.entry(fault.machine().unwrap()).or_default() += 1;
        }
        assert!(hits.len() == 9 && hits.values().all(|hits| *hits <= 4), "{hits:?}");
    }

    #[test]
    fn every_machine_may_vanish_and_disks_of_workers_are_not_filled() {
        let steps = steps(5, &[Kind::Vanish, Kind::FillDisk], 60);
        let of = |kind: Kind| -> BTreeSet<&str> {
            let faults = steps.iter().flatten().filter(|fault| fault.kind == kind);
            faults.map(|fault| fault.machine().unwrap()).collect()
        };
        assert_eq!(of(Kind::Vanish).len(), 9);
        let filled = of(Kind::FillDisk);
        assert!(filled.len() == 6 && filled.iter().all(|id| !id.contains("worker")), "{filled:?}");
    }

    #[test]
    fn only_where_a_pod_runs_its_shim_is_killed() {
        let hit: BTreeSet<String> = steps(5, &[Kind::KillShim], 60)
            .iter()
            .flatten()
            .filter(|fault| fault.kind == Kind::KillShim)
            .map(|fault| fault.machine().unwrap().to_owned())
            .collect();
        assert_eq!(hit, ["chaos-worker-2", "chaos-worker-3"].map(str::to_owned).into());
    }

    #[test]
    fn an_agent_is_asked_to_make_room_once() {
        let steps = steps(5, &[Kind::OldLogs, Kind::ManyLogs, Kind::FillDisk, Kind::KillUnit], 200);
        let mut filled = BTreeSet::new();
        let mut logs = 0;
        for fault in steps.iter().flatten().filter(|fault| fault.kind != Kind::KillUnit) {
            let fresh = filled.insert(fault.machine().unwrap());
            assert!(fresh || fault.kind == Kind::FillDisk, "{fault:?}");
            logs += usize::from(fault.kind != Kind::FillDisk);
        }
        assert!(logs > 0 && filled.len() == 6, "{logs} of {filled:?}");
    }

    #[test]
    fn no_machine_vanishes_more_often_than_it_may_be_made_anew() {
        let mut times: BTreeMap<String, u32> = BTreeMap::new();
        for fault in steps(5, &[Kind::Vanish], 60).into_iter().flatten() {
            if fault.kind == Kind::Vanish {
                *times.entry(fault.machine().unwrap().to_owned()).or_default() += 1;
            }
        }
        assert!(times.len() == 9 && times.values().all(|times| *times == VANISH_MAX), "{times:?}");
    }

    #[test]
    fn the_disk_of_the_host_is_never_filled() {
        let mut draw = Draw::new(1, &[Kind::FillDisk, Kind::OldLogs, Kind::ManyLogs], Disks::OfTheHost);
        let steps: Vec<_> = (0..50).flat_map(|_| draw.step(&machines())).collect();
        assert!(steps.iter().all(|fault| !fault.kind.needs_a_limited_disk()));
    }
}
