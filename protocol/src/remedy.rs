//! Repairs beyond starting a unit again, and giving up one's work when cut off: as data, so that an agent can mend a
//! program that it knows nothing about.
//!
//! A [`RemedySpec`] says when it is due, which units are held down meanwhile, what is done, and how often at most. Its
//! proof is that what made it due is over. The order of a config's remedies is the order of escalation: where several
//! are due, the first whose limit allows it is taken, and no second one begins before it has ended.

use serde::{Deserialize, Serialize};

use crate::config::{NodeConfig, ProbeSpec, UnitKind, at_most, check_path};
use crate::limits::{
    ACT_COMMAND_WORDS_MAX, ACT_TIMEOUT_S_MAX, REMEDIES_MAX, REMEDY_ACTS_MAX, REMEDY_NAMES_MAX,
};

/// Name of the agent's own act, which no remedy may take.
pub const FENCE: &str = "fence";
/// Name under which acts say that they reboot a machine whose work does not end otherwise; no remedy may have it.
pub const FENCE_REBOOT: &str = "fence-reboot";

/// One repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemedySpec {
    /// A plain name, unique in the config: `containerd-state`.
    pub name: String,
    /// When it is due: as soon as one of these holds. It has helped when none of them holds any more.
    pub when: Vec<Trigger>,
    /// Units that are all stopped, at once, before the first act, and held down until the last one. Afterwards they
    /// begin anew, as if they had never been started: a oneshot among them runs again.
    pub hold: Vec<String>,
    /// What is done, in this order. Each is idempotent, because an agent that was killed does its last one again. One
    /// that fails is tried again and then left out: the ones behind it check for themselves what they rely on.
    pub acts: Vec<RemedyAct>,
    /// How often, how soon, how patiently.
    pub limit: RemedyLimit,
}

/// What keeps a repair from becoming a fault of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemedyLimit {
    /// Most times within an hour.
    pub per_hour_max: u8,
    /// Most times within a day.
    pub per_day_max: u8,
    /// Shortest time between two beginnings, in seconds.
    pub cooldown_s: u32,
    /// Up to so many seconds, drawn by each machine, pass between trigger and beginning: what many machines see at once
    /// they must not all mend at once.
    pub spread_s: u16,
    /// How long after the last act it may take to help, in seconds.
    pub settle_s: u16,
}

/// When a remedy is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trigger {
    /// A unit that has worked with its present inputs does not come up any more, though all that it needs is there. One
    /// that never worked with them has a wrong config rather than broken state, and nothing is thrown away for it.
    Failing {
        /// Which.
        unit: String,
        /// So many times in a row it fell by its own doing (not killed from outside) or was restarted, without being healthy
        /// for ten seconds in between ...
        falls: u8,
        /// ... or it fell once and is not healthy for so many seconds.
        stuck_s: u16,
    },
    /// Such a unit is beyond help, whatever was done in between.
    GivenUp {
        /// Which.
        unit: String,
        /// It used up the agent's budget of restarts so many times without working for a while ...
        times: u8,
        /// ... or has not worked for a while for so many seconds.
        stuck_s: u16,
    },
    /// The state disk is used to so many percent.
    DiskFull {
        /// From here on.
        percent: u8,
        /// From here on a repair that did not help is an alarm.
        alarm_percent: u8,
    },
    /// Its inodes are.
    InodesFull {
        /// From here on.
        percent: u8,
        /// From here on a repair that did not help is an alarm.
        alarm_percent: u8,
    },
    /// The answer of a probe is bad and says this.
    Says {
        /// What is asked.
        probe: ProbeSpec,
        /// A part of the bad answer.
        text: String,
        /// How often it is asked, in seconds.
        every_s: u16,
    },
}

/// One thing that a remedy does. Append-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RemedyAct {
    /// Run a program and wait for its end.
    Run {
        /// Program (absolute path) and arguments. Never a shell line.
        command: Vec<String>,
        /// A last argument that another program tells.
        argument: Option<Argument>,
        /// A text in the output of a failed run that means that this was done before.
        done_when: Option<String>,
        /// How long each of the two may take, in seconds.
        timeout_s: u16,
    },
    /// Kill every process in these control groups and below, by their names from the root of the hierarchies.
    EndProcesses {
        /// For example `kubepods.slice`. One that does not exist is empty.
        cgroups: Vec<String>,
    },
    /// Unmount everything that is mounted below these directories.
    Unmount {
        /// The directories, which themselves stay as they are.
        below: Vec<String>,
    },
    /// Rename a directory to `<directory>.broken-<n>`. One such copy is kept; older ones are removed afterwards. Refused
    /// when the directory is a mount or something is mounted below it.
    MoveAside {
        /// Which.
        directory: String,
    },
    /// Remove the copies that [`RemedyAct::MoveAside`] kept.
    RemoveAside {
        /// Of these directories.
        directories: Vec<String>,
    },
    /// Remove files; absent ones are no error.
    RemoveFiles {
        /// Which.
        paths: Vec<String>,
    },
    /// Remove regular files below a directory on its own file system, by name and age.
    RemoveOld {
        /// Below here.
        directory: String,
        /// A part of the name of each.
        name_contains: String,
        /// Written last so long ago, in seconds.
        age_min_s: u32,
    },
    /// Remove what a program keeps, nothing uses, and can be had again. Three programs print tables: the first word of
    /// each line names the thing.
    Sweep {
        /// Prints what there is.
        list: Vec<String>,
        /// Prints what is used: a thing that is named anywhere in it stays, and so does each that shares a digest
        /// (`sha256:...`) in its line with one that stays for this reason.
        used: Vec<String>,
        /// Prints where things came from ...
        source: Vec<String>,
        /// ... and only things whose line shares a word with the first word of a line that says this are removed: all
        /// others cannot be had again.
        source_says: String,
        /// Removes the things that are appended to it.
        remove: Vec<String>,
        /// How long each of the four may take, in seconds.
        timeout_s: u16,
    },
    /// Reboot the machine. Done when its boot is another one.
    Reboot,
}

/// An argument that is a number in the JSON that a program prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argument {
    /// Program (absolute path) and arguments.
    pub command: Vec<String>,
    /// Where in its output (RFC 6901).
    pub pointer: String,
}

/// When a machine gives up its work because nobody can see any more whether it still does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSpec {
    /// Coordinator, neighbours and [`Self::probe`] were silent for so long, in seconds.
    pub lost_after_s: u16,
    /// Asks the one that gives the work out. Asked only while coordinator and neighbours are silent.
    pub probe: ProbeSpec,
    /// Units that are all stopped, at once, before anything is killed, and held down.
    pub units: Vec<String>,
    /// Control groups whose processes are then killed.
    pub cgroups: Vec<String>,
}

/// Rules for all remedies and the lease of `config`.
pub(crate) fn check(config: &NodeConfig) -> Result<(), String> {
    at_most("remedies", config.remedies.len(), REMEDIES_MAX)?;
    for (index, remedy) in config.remedies.iter().enumerate() {
        let twice = config.remedies[..index].iter().any(|other| other.name == remedy.name);
        if !is_plain(&remedy.name) || [FENCE, FENCE_REBOOT].contains(&remedy.name.as_str()) || twice {
            return Err(format!("`{}` is no name for a remedy, or not the only one", remedy.name));
        }
        remedy.check(config).map_err(|why| format!("remedy {}: {why}", remedy.name))?;
    }
    let Some(lease) = &config.lease else { return Ok(()) };
    if lease.lost_after_s == 0 {
        return Err("lease: it is lost at the first silence; give it at least 1 s".to_owned());
    }
    let checked = units_exist(&lease.units, config).and_then(|()| check_cgroups(&lease.cgroups));
    checked.map_err(|why| format!("lease: {why}"))
}

impl RemedySpec {
    fn check(&self, config: &NodeConfig) -> Result<(), String> {
        at_most("triggers", self.when.len(), REMEDY_NAMES_MAX)?;
        at_most("acts", self.acts.len(), REMEDY_ACTS_MAX)?;
        units_exist(&self.hold, config)?;
        if self.when.is_empty() || self.acts.is_empty() {
            return Err("it has no trigger or no act".to_owned());
        }
        if self.limit.per_hour_max == 0 || self.limit.per_day_max < self.limit.per_hour_max {
            return Err("it may be done at least once an hour, and as often a day as an hour".to_owned());
        }
        for trigger in &self.when {
            match trigger {
                Trigger::Failing { falls: 0, .. } | Trigger::GivenUp { times: 0, .. } => {
                    return Err("it is due before anything has happened; count at least 1".to_owned());
                }
                Trigger::Failing { unit, .. } | Trigger::GivenUp { unit, .. } => {
                    units_exist(std::slice::from_ref(unit), config)?;
                }
                Trigger::DiskFull { percent, alarm_percent }
                | Trigger::InodesFull { percent, alarm_percent } => {
                    if *percent == 0 || alarm_percent < percent || *alarm_percent > 100 {
                        return Err(format!("{percent} and {alarm_percent} are no percentages in order"));
                    }
                }
                Trigger::Says { text, every_s, .. } if text.is_empty() || *every_s == 0 => {
                    return Err("a probe is asked without end, or any answer is bad".to_owned());
                }
                Trigger::Says { .. } => {}
            }
        }
        self.acts.iter().try_for_each(RemedyAct::check)
    }
}

impl RemedyAct {
    /// Whether it takes away what nobody gives back: state, processes, mounts, the running machine. Such an act must be on
    /// record before it begins, because limits that were not written down do not hold. Acts that only make room, or run a
    /// program of the config, do not wait for the record: a full disk is why there is none.
    #[must_use]
    pub fn destroys(&self) -> bool {
        match self {
            Self::EndProcesses { .. }
            | Self::Unmount { .. }
            | Self::MoveAside { .. }
            | Self::RemoveFiles { .. }
            | Self::Reboot => true,
            Self::Run { .. } | Self::RemoveAside { .. } | Self::RemoveOld { .. } | Self::Sweep { .. } => {
                false
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Run { command, argument, done_when, timeout_s } => {
                check_command(command)?;
                if done_when.as_ref().is_some_and(String::is_empty) {
                    return Err("any failure of a command counts as done".to_owned());
                }
                argument.iter().try_for_each(|argument| check_command(&argument.command))?;
                check_timeout(*timeout_s)
            }
            Self::EndProcesses { cgroups } => check_cgroups(cgroups),
            Self::Unmount { below } => check_paths(below),
            Self::MoveAside { directory } => check_path(directory),
            Self::RemoveAside { directories } => check_paths(directories),
            Self::RemoveFiles { paths } => check_paths(paths),
            Self::RemoveOld { directory, name_contains, .. } => {
                if name_contains.is_empty() {
                    return Err("files are removed whatever their names".to_owned());
                }
                // Logs are no state, but they grow as such.
                if directory == LOGS { Ok(()) } else { check_path(directory) }
            }
            Self::Sweep { list, used, source, source_says, remove, timeout_s } => {
                [list, used, source, remove].into_iter().try_for_each(|command| check_command(command))?;
                if source_says.is_empty() {
                    return Err("things are removed wherever they came from".to_owned());
                }
                check_timeout(*timeout_s)
            }
            Self::Reboot => Ok(()),
        }
    }
}

/// The one directory outside of [`crate::config::WRITABLE_ROOTS`] below which old files may be removed.
const LOGS: &str = "/var/log";

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b))
}

fn units_exist(names: &[String], config: &NodeConfig) -> Result<(), String> {
    at_most("units", names.len(), REMEDY_NAMES_MAX)?;
    for name in names {
        match config.unit(name).map(|unit| unit.kind) {
            None => return Err(format!("the config does not have {name}")),
            Some(UnitKind::Check) => return Err(format!("{name} is a check: nothing runs")),
            Some(UnitKind::Exec | UnitKind::Notify | UnitKind::Oneshot) => {}
        }
    }
    Ok(())
}

fn check_command(command: &[String]) -> Result<(), String> {
    at_most("words of a command", command.len(), ACT_COMMAND_WORDS_MAX)?;
    if command.first().is_some_and(|program| program.starts_with('/')) {
        return Ok(());
    }
    Err("the program of a command must be an absolute path".to_owned())
}

fn check_timeout(timeout_s: u16) -> Result<(), String> {
    if (1..=ACT_TIMEOUT_S_MAX).contains(&timeout_s) {
        return Ok(());
    }
    Err(format!("a command may take 1 s to {ACT_TIMEOUT_S_MAX} s, not {timeout_s} s"))
}

fn check_paths(paths: &[String]) -> Result<(), String> {
    at_most("paths", paths.len(), REMEDY_NAMES_MAX)?;
    paths.iter().try_for_each(|path| check_path(path))
}

/// Plain names below the root: the root itself would be the whole machine.
fn check_cgroups(cgroups: &[String]) -> Result<(), String> {
    at_most("control groups", cgroups.len(), REMEDY_NAMES_MAX)?;
    let plain =
        |cgroup: &&String| cgroup.split('/').all(|part| is_plain(part) && part != "." && part != "..");
    match cgroups.iter().find(|cgroup| !plain(cgroup)) {
        None => Ok(()),
        Some(cgroup) => Err(format!("`{cgroup}` is no control group below the root")),
    }
}
