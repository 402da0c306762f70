//! Files that are looked at are watched from then on (inotify(7)), so that a change is seen at once and not at the next
//! look. A look is what counts: where nothing can be watched, or a change is missed, it finds the same a little later.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::unix::AsyncFd;
use tracing::debug;

/// What may make a file another one. Folders are watched and not files: those are replaced by renaming.
const CHANGES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF);

/// The watch over files that were looked at.
#[derive(Debug)]
pub(crate) struct Watch {
    source: AsyncFd<Source>,
    folders: Mutex<Folders>,
}

#[derive(Debug)]
struct Source(Inotify);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What is watched.
#[derive(Debug, Default)]
struct Folders {
    /// The kernel's number of each folder that is watched.
    numbers: BTreeMap<PathBuf, i32>,
    /// Names that matter in each.
    names: BTreeMap<i32, BTreeSet<OsString>>,
}

impl Watch {
    /// A watch over nothing yet; `None` where the kernel gives none, because other programs have used up its limits.
    pub(crate) fn new() -> Option<Self> {
        let source =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(std::io::Error::from);
        let source = source.and_then(|inotify| AsyncFd::new(Source(inotify)));
        source
            .inspect_err(|error| debug!(%error, "files are not watched, only looked at"))
            .ok()
            .map(|source| Self { source, folders: Mutex::default() })
    }

    /// Watches these files from now on, beside those before.
    pub(crate) fn add<'a>(&self, paths: impl IntoIterator<Item = &'a str>) {
        let mut folders = self.folders.lock().expect("no holder of this lock panics");
        for path in paths.into_iter().map(Path::new) {
            let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let known = folders.numbers.get(folder).copied();
            let number = known.or_else(|| {
                // What is not there is made by us, and then looked at.
                let added = self.source.get_ref().0.add_watch(folder, CHANGES | AddWatchFlags::IN_ONLYDIR);
                added.ok().map(|number| number.as_raw())
            });
            let Some(number) = number else { continue };
            folders.numbers.insert(folder.to_owned(), number);
            folders.names.entry(number).or_default().insert(name.to_owned());
        }
    }

    /// Waits until one of the files may have changed. Cancel-safe: a change that nobody waited for is not lost.
    pub(crate) async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.source.readable().await else { return std::future::pending().await };
            match ready.get_inner().0.read_events() {
                Ok(events) if self.matter(&events) => return,
                Ok(_) => {}
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => {
                    debug!(%error, "files are not watched any more, only looked at");
                    return std::future::pending().await;
                }
            }
        }
    }

    fn matter(&self, events: &[InotifyEvent]) -> bool {
        let mut folders = self.folders.lock().expect("no holder of this lock panics");
        let mut matter = false;
        for event in events {
            let number = event.wd.as_raw();
            matter |= match &event.name {
                Some(name) => folders.names.get(&number).is_some_and(|names| names.contains(name)),
                // The folder itself, or more changes than the kernel has counted.
                None => true,
            };
            if event.mask.intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF) {
                folders.numbers.retain(|_, other| *other != number);
                folders.names.remove(&number);
            }
        }
        matter
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

    use std::fs;
    use std::time::Duration;

    use super::*;

    /// Whether a change is seen. Not seeing one is known after a moment that is long for inotify.
    async fn seen(watch: &Watch) -> bool {
        tokio::time::timeout(Duration::from_millis(300), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn what_happens_to_a_watched_file_is_seen_and_what_happens_beside_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubelet.json");
        fs::write(&file, "1").unwrap();
        let watch = Watch::new().unwrap();
        watch.add([file.to_str().unwrap()]);
        assert!(!seen(&watch).await);
        fs::write(&file, "2").unwrap();
        assert!(seen(&watch).await);
        fs::write(folder.path().join("other"), "3").unwrap();
        assert!(!seen(&watch).await);
        fs::rename(folder.path().join("other"), &file).unwrap();
        assert!(seen(&watch).await);
        fs::remove_file(&file).unwrap();
        assert!(seen(&watch).await);
    }

    #[tokio::test]
    async fn a_folder_that_was_made_again_is_watched_after_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("net.d");
        let file = inner.join("10-pods.conflist");
        fs::create_dir(&inner).unwrap();
        let watch = Watch::new().unwrap();
        let look = || watch.add([file.to_str().unwrap()]);
        look();
        fs::remove_dir(&inner).unwrap();
        assert!(seen(&watch).await);
        fs::create_dir(&inner).unwrap();
        while seen(&watch).await {}
        look();
        fs::write(&file, "1").unwrap();
        assert!(seen(&watch).await);
    }
}
