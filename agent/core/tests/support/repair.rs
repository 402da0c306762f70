//! Faults that need a remedy, what the acts of remedies do about them, and configs that have remedies.

use super::*;
use keelson_protocol::remedy::*;

/// How long a reboot takes from the order to the end of the boot.
const REBOOT_MS: u64 = 5_000;

/// Troubles of the machine.
#[derive(Debug, Default)]
pub struct Faults {
    /// Room that was used up.
    pub disk_percent: u8,
    /// And of the inodes.
    pub inodes_percent: u8,
    /// Probes by their name that give a bad answer with this text.
    pub says: BTreeMap<String, String>,
    /// Units whose programs cannot work until an act whose log line has this in it.
    pub cured_by: BTreeMap<String, String>,
    /// Files that cannot be read until they are written anew.
    pub unreadable: BTreeSet<String>,
    /// A unit that does not stop.
    pub unstoppable: Option<String>,
    /// Acts fail whose log line has this in it.
    pub failing_act: Option<String>,
    /// How long an act takes.
    pub act_ms: u64,
    /// The machine's wall clock minus the right one.
    pub clock_ms: i64,
    /// What passed in a moment, for all clocks but the monotonic one.
    pub passed_ms: i64,
    /// Looks at the machine fail: systemd does not answer, or the disk does not.
    pub blind: bool,
    /// The machine does not reboot when it is told to.
    pub never_reboots: bool,
    /// The machine goes down then.
    pub(super) reboot_at: Option<u64>,
}

impl World {
    /// The machine's own wall clock.
    pub(super) fn wall(&self) -> WallTime {
        WallTime(self.true_wall().0 + self.faults.clock_ms)
    }

    /// The right time.
    pub(super) fn true_wall(&self) -> WallTime {
        WallTime(wall_of(self.now).0 + self.faults.passed_ms)
    }

    /// Reboots when that was ordered and its time has come.
    pub(super) fn play_reboot(&mut self) -> bool {
        let due = self.faults.reboot_at.is_some_and(|at| at <= self.now);
        if due {
            self.faults.reboot_at = None;
            self.cure("reboot");
            self.reboot();
        }
        due
    }

    /// Breaks a unit's state: its program ends soon after each start, until an act with `cure` in its log line.
    pub fn corrupt(&mut self, unit: &str, cure: &str) {
        self.corrupt_later(unit, cure, 100);
    }

    /// The same, of a program that ends so long after each start; it may have become healthy by then.
    pub fn corrupt_later(&mut self, unit: &str, cure: &str, ends_after_ms: u64) {
        self.faults.cured_by.insert(unit.to_owned(), cure.to_owned());
        self.behaviours.get_mut(unit).unwrap().crashes_after_ms = Some(ends_after_ms);
        self.fall(unit);
    }

    pub(super) fn act(&mut self, of: &str, act: &RemedyAct) -> Result<StepOutput, String> {
        let words = match act {
            RemedyAct::Run { command, .. } => format!("ran {}", command[0]),
            RemedyAct::EndProcesses { cgroups } => format!("ended {}", cgroups.join(" ")),
            RemedyAct::Unmount { below } => format!("unmounted {}", below.join(" ")),
            RemedyAct::MoveAside { directory } => format!("moved {directory}"),
            RemedyAct::RemoveAside { directories } => format!("removed copies of {}", directories.join(" ")),
            RemedyAct::RemoveFiles { paths } => format!("removed {}", paths.join(" ")),
            RemedyAct::RemoveOld { directory, .. } => format!("removed old files of {directory}"),
            RemedyAct::Sweep { .. } => "swept".to_owned(),
            RemedyAct::Reboot => "reboot".to_owned(),
        };
        let line = format!("{of}: {words}");
        self.log.push(line.clone());
        if self.faults.failing_act.as_ref().is_some_and(|failing| line.contains(failing)) {
            return Err("no such luck".to_owned());
        }
        if *act == RemedyAct::Reboot {
            self.faults.reboot_at = (!self.faults.never_reboots).then_some(self.now + REBOOT_MS);
        } else {
            self.cure(&line);
        }
        Ok(StepOutput::Said(words))
    }

    fn cure(&mut self, line: &str) {
        let cured: Vec<String> = self
            .faults
            .cured_by
            .iter()
            .filter(|(_, cure)| line.contains(cure.as_str()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in cured {
            self.faults.cured_by.remove(&name);
            self.faults.says.remove(&name);
            match name.as_str() {
                "disk" => self.faults.disk_percent = 50,
                "inodes" => self.faults.inodes_percent = 5,
                _ => {
                    if let Some(behaviour) = self.behaviours.get_mut(&name) {
                        behaviour.crashes_after_ms = None;
                        behaviour.hung = false;
                    }
                }
            }
        }
    }

    /// What acts did, in their order.
    pub fn acts(&self) -> Vec<&str> {
        let act = |line: &&String| line.contains(": ") && !line.starts_with("--");
        self.log.iter().filter(act).map(String::as_str).collect()
    }
}

pub fn failing(unit: &str) -> Trigger {
    Trigger::Failing { unit: unit.to_owned(), falls: 5, stuck_s: 180 }
}

pub fn remedy(name: &str, when: Trigger, acts: Vec<RemedyAct>) -> RemedySpec {
    let limit = RemedyLimit { per_hour_max: 1, per_day_max: 2, cooldown_s: 600, spread_s: 0, settle_s: 180 };
    RemedySpec { name: name.to_owned(), when: vec![when], hold: Vec::new(), acts, limit }
}

pub fn move_aside(directory: &str) -> RemedyAct {
    RemedyAct::MoveAside { directory: directory.to_owned() }
}

/// The small worker with remedies like a real one's, the milder before the harsher, and a lease.
pub fn remedied(generation: u64) -> NodeConfig {
    let mut config = worker(generation);
    let held = |units: &[&str]| units.iter().map(|unit| (*unit).to_owned()).collect::<Vec<_>>();
    let cgroups = vec!["kubepods".to_owned()];
    let runtime = RemedySpec {
        hold: held(&["kubelet.service", "containerd.service", "prepare.service"]),
        ..remedy(
            "runtime",
            failing("containerd.service"),
            vec![
                RemedyAct::EndProcesses { cgroups: cgroups.clone() },
                RemedyAct::Unmount { below: vec!["/var/lib/containerd".to_owned()] },
                move_aside("/var/lib/containerd"),
            ],
        )
    };
    let files = RemedySpec {
        hold: held(&["kubelet.service"]),
        ..remedy(
            "kubelet-files",
            failing("kubelet.service"),
            vec![RemedyAct::RemoveFiles { paths: vec!["/var/lib/kubelet/state".to_owned()] }],
        )
    };
    let directory = RemedySpec {
        hold: held(&["kubelet.service"]),
        ..remedy("kubelet-directory", failing("kubelet.service"), vec![move_aside("/var/lib/kubelet")])
    };
    let given_up = |unit: &str| Trigger::GivenUp { unit: unit.to_owned(), times: 2, stuck_s: 3_600 };
    let mut reboot = remedy("reboot", given_up("containerd.service"), vec![RemedyAct::Reboot]);
    reboot.when.push(given_up("kubelet.service"));
    reboot.limit.cooldown_s = 3_600;
    config.remedies = vec![disk(), runtime, files, directory, reboot];
    config.lease = Some(LeaseSpec {
        lost_after_s: 60,
        probe: probe("API server"),
        units: held(&["kubelet.service", "containerd.service"]),
        cgroups,
    });
    config
}

/// Makes room.
pub fn disk() -> RemedySpec {
    let acts = vec![
        RemedyAct::RemoveOld {
            directory: "/var/log".to_owned(),
            name_contains: ".log.".to_owned(),
            age_min_s: 60,
        },
        RemedyAct::RemoveAside { directories: vec!["/var/lib/containerd".to_owned()] },
    ];
    remedy("disk", Trigger::DiskFull { percent: 85, alarm_percent: 90 }, acts)
}

/// A ready worker with remedies, some minutes after its start.
pub fn remedied_and_ready() -> (World, NodeConfig) {
    let (mut world, config) = (world(), remedied(1));
    world.offer(&config);
    world.run_until_ready(60_000);
    world.run_for(65_000);
    world.log.clear();
    (world, config)
}
