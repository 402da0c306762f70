//! Control groups of machines, on hosts with version 1 (also hybrid) and version 2. All machines of an installation
//! live below one parent `keelson-<install>`, so that what belongs to a machine, and to an installation, is exact: the
//! membership of a process is its identity, no process id is ever trusted by itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use keelson_protocol::{InstallId, MachineId};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::LocalError;
use super::files::wait_until;
use super::mounts;

/// Where hosts mount control groups (cgroups(7), and systemd's file hierarchy).
const MOUNTS: &str = "/sys/fs/cgroup";

/// The version 1 controller whose groups say which processes a machine has: no init inside rearranges it.
const TRACKER: &str = "freezer";

/// Deepest nesting that is followed. Kubernetes pods are five levels deep, systemd in a machine in a pod ten.
const DEPTH_MAX: usize = 32;

/// Version of the control groups that limit machines on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy for each controller, maybe with a version 2 hierarchy without controllers beside them.
    V1,
    /// One unified hierarchy.
    V2,
}

/// Whether a machine has processes, and whether they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Population {
    /// No process is left.
    Empty,
    /// Processes run.
    Running,
    /// All processes are stopped by the freezer.
    Frozen,
}

/// The control groups of one installation.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    version: CgroupVersion,
    /// Mount points of all hierarchies; the first one is the tracker.
    hierarchies: Vec<PathBuf>,
    /// `keelson-<install>`.
    parent: String,
}

impl Cgroups {
    /// Finds this host's hierarchies.
    pub(crate) fn detect(install: &InstallId) -> Result<Self, LocalError> {
        let (version, hierarchies) = find(&mounts::list()?).ok_or_else(|| LocalError::Kernel {
            doing: format!("find control groups with a freezer below {MOUNTS}"),
            source: Errno::ENOENT,
        })?;
        Ok(Self { version, hierarchies, parent: format!("keelson-{install}") })
    }

    /// The path that runc is given.
    pub(crate) fn path(&self, id: &MachineId) -> String {
        format!("/{}/{id}", self.parent)
    }

    fn tracker(&self, id: &MachineId) -> PathBuf {
        self.hierarchies[0].join(&self.parent).join(id.as_str())
    }

    /// What processes a machine has.
    pub(crate) fn population(&self, id: &MachineId) -> Result<Population, LocalError> {
        let group = self.tracker(id);
        if self.processes(&group)?.is_empty() {
            return Ok(Population::Empty);
        }
        let (file, frozen): (_, fn(&str) -> bool) = match self.version {
            CgroupVersion::V1 => ("freezer.state", |text| text.trim() != "THAWED"),
            CgroupVersion::V2 => ("cgroup.freeze", |text| text.trim() == "1"),
        };
        // Without that file the group has just gone, or it cannot be frozen.
        let text = read_if_there(&group.join(file))?;
        Ok(if frozen(&text.unwrap_or_else(|| "THAWED".to_owned())) {
            Population::Frozen
        } else {
            Population::Running
        })
    }

    fn processes(&self, group: &Path) -> Result<Vec<i32>, LocalError> {
        let mut found = Vec::new();
        for group in tree(group)? {
            let text = match read_if_there(&group.join("cgroup.procs")) {
                // A threaded group (cgroups(7)): its processes are listed in the group that it is a part of.
                Err(LocalError::File { source, .. }) if is(&source, Errno::EOPNOTSUPP) => String::new(),
                text => text?.unwrap_or_default(),
            };
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        Ok(found)
    }

    /// Kills every process of a machine, frozen or not, and waits until none is left.
    pub(crate) fn kill(&self, id: &MachineId, until: Instant) -> Result<(), LocalError> {
        let group = self.tracker(id);
        wait_until(
            || format!("the end of all processes of machine {id}"),
            until,
            || {
                let processes = self.processes(&group)?;
                for process in &processes {
                    match kill(Pid::from_raw(*process), Signal::SIGKILL) {
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(source) => {
                            return Err(LocalError::Kernel {
                                doing: format!("kill process {process}"),
                                source,
                            });
                        }
                    }
                }
                if !processes.is_empty() {
                    self.thaw(&group)?;
                }
                Ok(processes.is_empty())
            },
        )
    }

    /// A frozen process of version 1 dies only once it is thawed, and with it all groups that it is in: one of the machine's
    /// own may have been frozen from inside.
    fn thaw(&self, group: &Path) -> Result<(), LocalError> {
        let (groups, name, text) = match self.version {
            CgroupVersion::V1 => (tree(group)?, "freezer.state", "THAWED"),
            CgroupVersion::V2 => (vec![group.to_owned()], "cgroup.freeze", "0"),
        };
        groups.iter().map(|group| group.join(name)).try_for_each(|file| match fs::write(&file, text) {
            Err(e) if !is_gone(&e) => Err(LocalError::file("thaw", file)(e)),
            _ => Ok(()),
        })
    }

    /// Removes a machine's groups from every hierarchy, after its processes have ended.
    pub(crate) fn remove(&self, id: &MachineId, until: Instant) -> Result<(), LocalError> {
        self.hierarchies.iter().try_for_each(|h| remove_group(&h.join(&self.parent).join(id.as_str()), until))
    }

    /// Removes the installation's parent groups with whatever is left below them.
    pub(crate) fn remove_all(&self, until: Instant) -> Result<(), LocalError> {
        self.hierarchies.iter().try_for_each(|h| remove_group(&h.join(&self.parent), until))
    }

    /// Every group of the installation that exists; for proofs that nothing is left.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| h.join(&self.parent)).filter(|p| p.exists()).collect()
    }
}

/// The version in force and the mount points, tracker first.
fn find(mounts: &[mounts::Mount]) -> Option<(CgroupVersion, Vec<PathBuf>)> {
    let ours = || mounts.iter().filter(|m| m.point.starts_with(MOUNTS));
    let names_tracker = |m: &&mounts::Mount| m.options.split(',').any(|o| o == TRACKER);
    let (version, tracker) = match ours().filter(|m| m.kind == "cgroup").find(names_tracker) {
        Some(freezer) => (CgroupVersion::V1, freezer),
        None => (CgroupVersion::V2, ours().find(|m| m.kind == "cgroup2")?),
    };
    let others = ours().filter(|m| m.kind.starts_with("cgroup") && m.point != tracker.point);
    Some((version, std::iter::once(tracker).chain(others).map(|m| m.point.clone()).collect()))
}

/// The version in force on this host; `None` when there are no control groups.
pub(crate) fn version() -> Result<Option<CgroupVersion>, LocalError> {
    Ok(find(&mounts::list()?).map(|(version, _)| version))
}

/// Controllers that limit processes on this host.
pub(crate) fn controllers() -> Result<Vec<String>, LocalError> {
    let mounts = mounts::list()?;
    let Some((version, points)) = find(&mounts) else { return Ok(Vec::new()) };
    Ok(match version {
        CgroupVersion::V1 => mounts
            .iter()
            .filter(|m| m.kind == "cgroup" && points.contains(&m.point))
            .flat_map(|m| m.options.split(',').map(str::to_owned))
            .collect(),
        CgroupVersion::V2 => {
            let text = read_if_there(&points[0].join("cgroup.controllers"))?.unwrap_or_default();
            // Version 2 freezes and tracks processes without a controller.
            text.split_whitespace()
                .map(str::to_owned)
                .chain([TRACKER.to_owned(), "cpuacct".to_owned()])
                .collect()
        }
    })
}

/// A group and all below it, parents first. A group that vanishes meanwhile is left out.
fn tree(group: &Path) -> Result<Vec<PathBuf>, LocalError> {
    let mut found = Vec::new();
    let mut level = vec![group.to_owned()];
    for _ in 0..DEPTH_MAX {
        let mut next = Vec::new();
        for group in level {
            match children(&group) {
                Ok(below) => next.extend(below),
                Err(e) if is_gone(&e) => continue,
                Err(e) => return Err(LocalError::file("list", group)(e)),
            }
            found.push(group);
        }
        if next.is_empty() {
            return Ok(found);
        }
        level = next;
    }
    Err(LocalError::Kernel { doing: format!("follow {} to its end", group.display()), source: Errno::ELOOP })
}

fn children(group: &Path) -> io::Result<Vec<PathBuf>> {
    let mut below = Vec::new();
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            below.push(entry.path());
        }
    }
    Ok(below)
}

fn remove_group(group: &Path, until: Instant) -> Result<(), LocalError> {
    wait_until(
        || format!("the removal of {}", group.display()),
        until,
        || {
            for group in tree(group)?.iter().rev() {
                match fs::remove_dir(group) {
                    Ok(()) => {}
                    Err(e) if is_gone(&e) => {}
                    // Processes that were killed leave their group a moment later.
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy => return Ok(false),
                    Err(e) => return Err(LocalError::file("remove", group)(e)),
                }
            }
            Ok(!group.exists())
        },
    )
}

fn read_if_there(path: &Path) -> Result<Option<String>, LocalError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(LocalError::file("read", path)(e)),
    }
}

/// A control group that is removed while it is read says ENODEV.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || is(error, Errno::ENODEV)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &str, kind: &str, options: &str) -> mounts::Mount {
        mounts::Mount { point: point.into(), kind: kind.into(), options: options.into() }
    }

    #[test]
    fn hybrid_hosts_are_version_1_and_unified_hosts_version_2() {
        let freezer = mount("/sys/fs/cgroup/freezer", "cgroup", "rw,freezer");
        let cpu = mount("/sys/fs/cgroup/cpu", "cgroup", "rw,cpu,cpuacct");
        let beside = mount("/sys/fs/cgroup/unified", "cgroup2", "rw");
        let elsewhere = mount("/mnt/x", "cgroup2", "rw");
        let (version, points) = find(&[elsewhere, cpu, beside, freezer]).unwrap();
        assert_eq!(version, CgroupVersion::V1);
        let expected = ["freezer", "cpu", "unified"].map(|name| Path::new(MOUNTS).join(name));
        assert_eq!(points, expected);
        let (version, points) = find(&[mount(MOUNTS, "cgroup2", "rw,nsdelegate")]).unwrap();
        assert_eq!((version, points), (CgroupVersion::V2, vec![PathBuf::from(MOUNTS)]));
        assert_eq!(find(&[]), None);
    }
}
