//! Processes, found by their control groups: whoever began them, and whatever they call themselves.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::HostError;

/// Where control groups are mounted: the one hierarchy (cgroups(7), version 2), or a folder for each (version 1).
const MOUNT: &str = "/sys/fs/cgroup";
/// Processes may have begun others meanwhile, and a killed one needs a moment to go: so often they are looked for.
const ROUNDS_MAX: u32 = 100;
/// A moment.
const ROUND: Duration = Duration::from_millis(100);
/// Deepest control group below one that was named: those of nested containers.
const DEPTH_MAX: u32 = 16;

pub(super) async fn end_processes(names: &[String]) -> Result<String, HostError> {
    let groups = groups(Path::new(MOUNT), names).map_err(HostError::file("list", MOUNT))?;
    let me = std::process::id();
    let mut ended = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let mut left = BTreeSet::new();
        for group in &groups {
            processes(group, DEPTH_MAX, &mut left).map_err(HostError::file("read", group))?;
        }
        left.remove(&me);
        if left.is_empty() {
            let words = format!("ended {} processes", ended.len());
            return Ok(if ended.is_empty() { String::new() } else { words });
        }
        for id in left {
            let Ok(process) = i32::try_from(id) else { continue };
            match kill(Pid::from_raw(process), Signal::SIGKILL) {
                // It has just gone by itself.
                Ok(()) | Err(Errno::ESRCH) => ended.insert(id),
                Err(error) => {
                    let why = io::Error::from(error);
                    return Err(HostError::Process { what: "kill", process: id, source: why });
                }
            };
        }
        tokio::time::sleep(ROUND).await;
    }
    Err(HostError::refused(names.join(", "), "processes there do not end"))
}

/// The folders of control groups, in every hierarchy that has them. What cannot be looked at is no empty group: whoever asks
/// is about to take away what its processes use.
fn groups(mount: &Path, names: &[String]) -> io::Result<Vec<PathBuf>> {
    let mut roots = vec![mount.to_owned()];
    if !mount.join("cgroup.controllers").try_exists()? {
        for hierarchy in fs::read_dir(mount)? {
            roots.push(hierarchy?.path());
        }
    }
    let mut groups = Vec::new();
    for group in roots.iter().flat_map(|root| names.iter().map(move |name| root.join(name))) {
        if group.join("cgroup.procs").try_exists()? {
            groups.push(group);
        }
    }
    Ok(groups)
}

/// Ids of all processes in `group` and below. What vanishes meanwhile is empty.
fn processes(group: &Path, depth: u32, into: &mut BTreeSet<u32>) -> io::Result<()> {
    let text = match fs::read_to_string(group.join("cgroup.procs")) {
        Ok(text) => text,
        // The group was removed before or after it was opened.
        Err(error) if error.kind() == io::ErrorKind::NotFound || is(&error, Errno::ENODEV) => {
            return Ok(());
        }
        // A threaded group (cgroups(7)): its processes are listed in the group that it is a part of.
        Err(error) if is(&error, Errno::EOPNOTSUPP) => String::new(),
        Err(error) => return Err(error),
    };
    // A zero is a process of an outer namespace.
    into.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|id| *id != 0));
    if depth == 0 {
        return Ok(());
    }
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            processes(&entry.path(), depth - 1, into)?;
        }
    }
    Ok(())
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(root: &Path, name: &str, processes: &str) {
        let path = root.join(name);
        fs::create_dir_all(&path).unwrap();
        // As the kernel does, every group has the file.
        for above in path.ancestors().take_while(|above| *above != root) {
            fs::OpenOptions::new().create(true).append(true).open(above.join("cgroup.procs")).unwrap();
        }
        fs::write(path.join("cgroup.procs"), processes).unwrap();
    }

    fn found(root: &Path, names: &[&str]) -> Vec<u32> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut ids = BTreeSet::new();
        groups(root, &names).unwrap().iter().for_each(|group| processes(group, DEPTH_MAX, &mut ids).unwrap());
        ids.into_iter().collect()
    }

    #[test]
    fn processes_are_found_in_one_hierarchy_and_in_many() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "systemd/kubepods/pod1/c1", "11\n12\n");
        group(root.path(), "memory/kubepods/pod1", "12\n13\n0\n");
        group(root.path(), "systemd/system.slice/sshd.service", "99\n");
        assert_eq!(found(root.path(), &["kubepods", "no.slice"]), [11, 12, 13]);
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu").unwrap();
        group(root.path(), "kubepods.slice/a/b/c", "21\n");
        group(root.path(), "x/kubepods.slice", "22\n");
        assert_eq!(found(root.path(), &["kubepods.slice"]), [21]);
    }

    #[test]
    fn groups_that_cannot_be_listed_are_not_empty() {
        let names = ["kubepods".to_owned()];
        let root = tempfile::tempdir().unwrap();
        assert!(groups(&root.path().join("not mounted"), &names).is_err());
        group(root.path(), "systemd/kubepods", "11\n");
        // What has no list of processes, and is no folder either.
        let file = root.path().join("systemd/kubepods/cgroup.procs");
        assert!(processes(&file, DEPTH_MAX, &mut BTreeSet::new()).is_err());
    }

    #[tokio::test]
    async fn groups_that_do_not_exist_are_empty() {
        assert_eq!(end_processes(&["keelson-no-such.slice".to_owned()]).await.unwrap(), "");
    }
}
