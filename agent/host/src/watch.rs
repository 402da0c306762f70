//! Files that are looked at are watched from then on (inotify(7)), so that a change is seen at once and not at the next
//! look. A look is what counts: where nothing can be watched, or a change is missed, it finds the same a little later.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask, Watches};
use tracing::debug;

/// What may make a file another one. Folders are watched and not files: those are replaced by renaming.
const CHANGES: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::ATTRIB)
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);
/// Bytes that are read at once: some dozens of changes.
const BUFFER: usize = 4096;

/// The watch over files that were looked at.
pub(crate) struct Watch {
    changes: tokio::sync::Mutex<EventStream<Vec<u8>>>,
    watched: Mutex<Watched>,
}

/// What is watched.
struct Watched {
    kernel: Watches,
    /// The kernel's number of each folder that is watched.
    numbers: BTreeMap<PathBuf, i32>,
    /// Names that matter in each.
    names: BTreeMap<i32, BTreeSet<OsString>>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch {
    /// A watch over nothing yet; `None` where the kernel gives none, because other programs have used up its limits.
    pub(crate) fn new() -> Option<Self> {
        let begun = Inotify::init().and_then(|inotify| {
            let kernel = inotify.watches();
            let watched = Watched { kernel, numbers: BTreeMap::new(), names: BTreeMap::new() };
            let changes = inotify.into_event_stream(vec![0; BUFFER])?;
            Ok(Self { changes: tokio::sync::Mutex::new(changes), watched: Mutex::new(watched) })
        });
        begun.inspect_err(|error| debug!(%error, "files are not watched, only looked at")).ok()
    }

    /// Watches these files from now on, beside those before.
    pub(crate) fn add<'a>(&self, paths: impl IntoIterator<Item = &'a str>) {
        let mut watched = self.watched.lock().expect("no holder of this lock panics");
        for path in paths.into_iter().map(Path::new) {
            let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let known = watched.numbers.get(folder).copied();
            // What is not there is made by us, and then looked at.
            let number = known.or_else(|| {
                let added = watched.kernel.add(folder, CHANGES).ok();
                added.map(|descriptor| descriptor.get_watch_descriptor_id())
            });
            let Some(number) = number else { continue };
            watched.numbers.insert(folder.to_owned(), number);
            watched.names.entry(number).or_default().insert(name.to_owned());
        }
    }

    /// Waits until one of the files may have changed. Cancel-safe: a change that nobody waited for is not lost.
    pub(crate) async fn changed(&self) {
        let mut changes = self.changes.lock().await;
        while let Some(change) = changes.next().await {
            match change {
                Ok(event) if self.matters(&event) => return,
                Ok(_) => {}
                Err(error) => {
                    debug!(%error, "files are not watched any more, only looked at");
                    break;
                }
            }
        }
        std::future::pending().await
    }

    fn matters(&self, event: &EventOwned) -> bool {
        let mut watched = self.watched.lock().expect("no holder of this lock panics");
        let number = event.wd.get_watch_descriptor_id();
        let matters = match &event.name {
            Some(name) => watched.names.get(&number).is_some_and(|names| names.contains(name)),
            // The folder itself, or more changes than the kernel has counted.
            None => true,
        };
        if event.mask.intersects(EventMask::IGNORED | EventMask::MOVE_SELF) {
            watched.numbers.retain(|_, other| *other != number);
            watched.names.remove(&number);
        }
        matters
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
