//! Mounts of the local provider: the machines' root file systems, and what is left of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{FsType, statfs};

use super::error::LocalError;
use super::files;

/// Most layers of one image. The kernel takes 500; the mount options must fit in one page with 6 bytes for each.
pub(crate) const LAYERS_MAX: usize = 400;

/// Most mounts stacked on one of our mount points before we call it a defect.
const STACKED_MAX: usize = 16;

/// A disk has one inode for so many bytes, as ext4 gives it without being asked (`inode_ratio` of mke2fs.conf(5)).
const BYTES_PER_INODE: u64 = 16_384;

/// One line of mountinfo, as far as it matters here (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// File system type.
    pub(crate) kind: String,
    /// Options of the superblock: for cgroup v1 they name the controllers.
    pub(crate) options: String,
}

/// All mounts that this process sees.
pub(crate) fn list() -> Result<Vec<Mount>, LocalError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(LocalError::file("read", path))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// Mount points at or below `dir`, deepest first.
pub(crate) fn below(dir: &Path) -> Result<Vec<PathBuf>, LocalError> {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mut points: Vec<_> = list()?.into_iter().map(|m| m.point).filter(|p| p.starts_with(&dir)).collect();
    points.sort();
    points.reverse();
    Ok(points)
}

fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let point = unescape(left.split(' ').nth(4)?);
    let mut right = right.split(' ');
    let kind = right.next()?.to_owned();
    let options = right.nth(1).unwrap_or_default().to_owned();
    Some(Mount { point: PathBuf::from(point), kind, options })
}

/// Undoes the kernel's `\040` for blank, and the three others.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Mounts an overlay on `root`: `layers` (lowest first) below a fresh upper directory in `dir`, which is made anew.
///
/// The layers are named through short symbolic links relative to `dir`: so their own paths may hold any character
/// (`:` and `,` separate options), and hundreds of them fit into the one page that mount options may fill.
pub(crate) fn mount_overlay(dir: &Path, layers: &[PathBuf], root: &Path) -> Result<(), LocalError> {
    files::remove_tree(dir)?;
    for part in ["l", "upper", "work"] {
        files::make_dir(&dir.join(part))?;
    }
    // The upper directory becomes the machine's `/`, which every user of the machine must be able to enter.
    let upper = dir.join("upper");
    fs::set_permissions(&upper, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(LocalError::file("protect", &upper))?;
    for (number, layer) in layers.iter().enumerate() {
        let link = dir.join("l").join(number.to_string());
        symlink(layer, &link).map_err(LocalError::file("create", &link))?;
    }
    let lower: Vec<_> = (0..layers.len()).rev().map(|number| format!("l/{number}")).collect();
    let options = format!("lowerdir={},upperdir=upper,workdir=work", lower.join(":"));
    fs::create_dir_all(root).map_err(LocalError::file("create", root))?;
    let root = root.to_owned();
    let dir = dir.to_owned();
    on_own_thread("mount", move || mount_in(&dir, &root, &options))
}

fn mount_in(dir: &Path, root: &Path, options: &str) -> Result<(), LocalError> {
    // A working directory of this thread's own, so that the short relative names mean this machine's layers.
    unshare(CloneFlags::CLONE_FS).map_err(LocalError::kernel("give a thread its own working directory"))?;
    std::env::set_current_dir(dir).map_err(LocalError::file("enter", dir))?;
    let attempt =
        |options: &str| mount(Some("keelson"), root, Some("overlay"), MsFlags::empty(), Some(options));
    // `volatile` spares every sync of the upper directory, which is thrown away at the next power-on anyway. Kernels
    // before 5.10 do not know it.
    match attempt(&format!("{options},volatile")) {
        Err(Errno::EINVAL) => attempt(options),
        other => other,
    }
    .map_err(LocalError::kernel(format!("mount the root file system {}", root.display())))?;
    make_private(root)
}

/// Cuts a mount off from the host's propagation, so that nothing mounted inside a machine shows outside.
fn make_private(point: &Path) -> Result<(), LocalError> {
    mount(None::<&str>, point, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(LocalError::kernel(format!("make {} private", point.display())))
}

/// Mounts a tmpfs of limited size on `point`, unless it is there.
pub(crate) fn mount_tmpfs(point: &Path, bytes_max: u64) -> Result<(), LocalError> {
    if is_own_mount(point)? {
        return Ok(());
    }
    let options = format!("size={bytes_max},nr_inodes={},mode=755", bytes_max.div_ceil(BYTES_PER_INODE));
    mount(Some("keelson"), point, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(LocalError::kernel(format!("mount a disk of {bytes_max} bytes on {}", point.display())))?;
    make_private(point)
}

/// Whether something is mounted exactly on `point`.
pub(crate) fn is_own_mount(point: &Path) -> Result<bool, LocalError> {
    let point = fs::canonicalize(point).unwrap_or_else(|_| point.to_owned());
    Ok(list()?.iter().any(|mount| mount.point == point))
}

/// Whether `path` lies in a file system of this kind. A path that cannot be read does not.
pub(crate) fn is_kind(path: &Path, kind: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == kind)
}

/// Takes every mount off `point`; that there is none is success.
pub(crate) fn unmount(point: &Path) -> Result<(), LocalError> {
    for _ in 0..STACKED_MAX {
        // MNT_DETACH: a process of the host that looks into the machine's files must not keep the machine alive.
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(source) => {
                return Err(LocalError::Kernel { doing: format!("unmount {}", point.display()), source });
            }
        }
    }
    Err(LocalError::Kernel { doing: format!("unmount {}", point.display()), source: Errno::EBUSY })
}

/// Removes a directory of ours with all below it, after it is certain that nothing is mounted there any more.
pub(crate) fn remove_tree(dir: &Path) -> Result<(), LocalError> {
    for point in below(dir)? {
        unmount(&point)?;
    }
    match below(dir)?.first() {
        None => files::remove_tree(dir),
        Some(point) => Err(LocalError::Kernel {
            doing: format!("remove {}: {} is still mounted", dir.display(), point.display()),
            source: Errno::EBUSY,
        }),
    }
}

/// Runs `work` on a thread of its own, for acts that change what belongs to a thread (working directory, namespace).
pub(crate) fn on_own_thread<T: Send>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, LocalError> + Send,
) -> Result<T, LocalError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work);
        let thread = thread.map_err(LocalError::file("start a thread of", "/proc/self"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read() {
        let line = r"32 27 0:28 / /sys/fs/cgroup/a\040b rw,relatime shared:4 - cgroup none rw,cpu,cpuacct";
        let expected = Mount {
            point: PathBuf::from("/sys/fs/cgroup/a b"),
            kind: "cgroup".to_owned(),
            options: "rw,cpu,cpuacct".to_owned(),
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse("nonsense"), None);
    }
}
