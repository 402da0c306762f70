//! Network namespaces, each kept alive by a bind mount of our own. The host's namespace is never touched: whatever
//! needs another one runs on a thread that has entered it and ends there.

use std::fs::{self, File};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::NSFS_MAGIC;

use super::error::LocalError;
use super::mounts::{is_kind, on_own_thread, unmount};

/// Makes a new, empty network namespace and mounts it on `path`, in place of what was there.
pub(crate) fn create(path: &Path) -> Result<(), LocalError> {
    remove(path)?;
    File::create(path).map_err(LocalError::file("create", path))?;
    on_own_thread("netns", || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(LocalError::kernel("make a network namespace"))?;
        bind(Path::new("/proc/thread-self/ns/net"), path)
    })
}

/// Gives a namespace a second name.
pub(crate) fn publish(draft: &Path, path: &Path) -> Result<(), LocalError> {
    File::create(path).map_err(LocalError::file("create", path))?;
    bind(draft, path)
}

fn bind(source: &Path, path: &Path) -> Result<(), LocalError> {
    mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(LocalError::kernel(format!("keep a network namespace at {}", path.display())))
}

/// Whether a namespace is mounted on `path`. After a reboot of the host the file is there and the namespace is not.
pub(crate) fn exists(path: &Path) -> bool {
    is_kind(path, NSFS_MAGIC)
}

/// Gives the namespace up; that there is none is success.
pub(crate) fn remove(path: &Path) -> Result<(), LocalError> {
    unmount(path)?;
    super::files::remove_file(path)
}

/// Runs `work` inside the namespace at `path`. Programs that `work` starts are inside as well.
pub(crate) fn inside<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, LocalError> + Send,
) -> Result<T, LocalError> {
    on_own_thread("netns", || {
        enter(path)?;
        work()
    })
}

/// Moves the calling thread into the namespace at `path`, for good.
pub(crate) fn enter(path: &Path) -> Result<(), LocalError> {
    let file = File::open(path).map_err(LocalError::file("open", path))?;
    setns(&file, CloneFlags::CLONE_NEWNET)
        .map_err(LocalError::kernel(format!("enter the network namespace {}", path.display())))
}

/// Names of the network interfaces of the calling thread's namespace.
pub(crate) fn interfaces() -> Result<Vec<String>, LocalError> {
    let path = Path::new("/proc/thread-self/net/dev");
    let text = fs::read_to_string(path).map_err(LocalError::file("read", path))?;
    Ok(text.lines().skip(2).filter_map(|l| Some(l.split_once(':')?.0.trim().to_owned())).collect())
}
