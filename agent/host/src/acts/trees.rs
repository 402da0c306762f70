//! Directory trees: unmounted below, moved aside, tidied up.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, umount2};

use crate::GivenUp;
use crate::error::HostError;

const MOUNTS: &str = "/proc/self/mountinfo";
/// What the name of a directory that was moved aside ends in, and a number.
const ASIDE: &str = ".broken-";
/// Mounts may lie on each other: so often the list is read again.
const UNMOUNT_ROUNDS_MAX: u32 = 8;
/// Deepest folder in which old files are looked for.
const DEPTH_MAX: u32 = 8;
/// Most old files that are removed in one go.
const OLD_FILES_MAX: u64 = 100_000;

/// Unmounts everything below these directories. Lazily: what a process still holds open must not keep the rest.
pub(super) fn unmount(below: &[String], given_up: &GivenUp) -> Result<String, HostError> {
    let mut count = 0;
    for _ in 0..UNMOUNT_ROUNDS_MAX {
        let all = mounts()?;
        // The last one first: it lies on those before it.
        let found: Vec<&PathBuf> = all
            .iter()
            .rev()
            .filter(|point| below.iter().any(|path| is_below(point, path.as_ref())))
            .collect();
        if found.is_empty() {
            return Ok(if count == 0 { String::new() } else { format!("unmounted {count} file systems") });
        }
        for point in found {
            given_up.check()?;
            match umount2(point, MntFlags::MNT_DETACH) {
                Ok(()) => count += 1,
                // It went with the one that it was mounted on.
                Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
                Err(error) => return Err(HostError::file("unmount", point)(error.into())),
            }
        }
    }
    Err(HostError::refused(below.join(", "), "something is mounted there again and again"))
}

/// Renames a directory; one that is not there is as good as moved. That takes a moment; older copies, which may take
/// minutes, are removed afterwards.
pub(super) fn move_aside(directory: &Path, given_up: &GivenUp) -> Result<String, HostError> {
    let all = mounts()?;
    match fs::symlink_metadata(directory) {
        // As after a kill between the rename and its record.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return keep_newest(directory, &all).map(|()| String::new());
        }
        Err(error) => return Err(HostError::file("look at", directory)(error)),
        Ok(metadata) if !metadata.is_dir() => {
            return Err(HostError::refused(directory.display(), "it is no directory"));
        }
        Ok(_) => {}
    }
    if all.iter().any(|point| point == directory || is_below(point, directory)) {
        return Err(HostError::refused(
            directory.display(),
            "it is a mount, or something is mounted below it",
        ));
    }
    let number = asides(directory)?.iter().map(|(number, _)| number + 1).max().unwrap_or(1);
    let mut aside = directory.as_os_str().to_owned();
    aside.push(format!("{ASIDE}{number}"));
    given_up.check()?;
    fs::rename(directory, &aside).map_err(HostError::file("move aside", directory))?;
    crate::files::sync_directory(directory.parent().unwrap_or(Path::new("/")))?;
    keep_newest(directory, &all)?;
    Ok(format!("moved {} to {}", directory.display(), Path::new(&aside).display()))
}

/// Removes all copies of a directory but the one that was moved aside last.
fn keep_newest(directory: &Path, mounts: &[PathBuf]) -> Result<(), HostError> {
    let mut copies = asides(directory)?;
    copies.sort();
    copies.pop();
    copies.iter().try_for_each(|(_, path)| remove_tree(path, mounts))
}

/// Removes the copies of directories that were moved aside.
pub(super) fn remove_aside(directories: &[String]) -> Result<String, HostError> {
    let all = mounts()?;
    let mut count = 0;
    for directory in directories {
        for (_, path) in asides(directory.as_ref())? {
            remove_tree(&path, &all)?;
            count += 1;
        }
    }
    Ok(if count == 0 { String::new() } else { format!("removed {count} broken copies") })
}

/// Removes regular files with such a name that were not written for so long.
pub(super) fn remove_old(directory: &Path, name_contains: &str, age_min_s: u32) -> Result<String, HostError> {
    let root = match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        metadata => metadata.map_err(HostError::file("look at", directory))?,
    };
    let before = SystemTime::now().checked_sub(Duration::from_secs(age_min_s.into()));
    let mut old = Old { device: root.dev(), name_contains, before, count: 0, bytes: 0 };
    if root.is_dir() {
        old.remove_in(directory, DEPTH_MAX);
    }
    let words = format!("removed {} old files, {} MB", old.count, old.bytes / 1_000_000);
    Ok(if old.count == 0 { String::new() } else { words })
}

struct Old<'a> {
    /// Device of the directory where it began.
    device: u64,
    name_contains: &'a str,
    before: Option<SystemTime>,
    count: u64,
    bytes: u64,
}

impl Old<'_> {
    /// What cannot be read or removed is left: others may be working here too.
    fn remove_in(&mut self, directory: &Path, depth: u32) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            // Of the entry itself: a link never leads anywhere.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != self.device || self.count >= OLD_FILES_MAX {
                continue;
            }
            if metadata.is_dir() {
                if depth > 0 {
                    self.remove_in(&entry.path(), depth - 1);
                }
                continue;
            }
            let named = entry.file_name().to_string_lossy().contains(self.name_contains);
            let old = metadata.modified().is_ok_and(|at| self.before.is_some_and(|before| at < before));
            if metadata.is_file() && named && old && fs::remove_file(entry.path()).is_ok() {
                self.count += 1;
                self.bytes += metadata.blocks() * 512;
            }
        }
    }
}

/// Copies of a directory that were moved aside, with their numbers.
fn asides(directory: &Path) -> Result<Vec<(u64, PathBuf)>, HostError> {
    let parent = directory.parent().unwrap_or(Path::new("/"));
    let mut prefix = directory.file_name().unwrap_or_default().to_owned();
    prefix.push(ASIDE);
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(HostError::file("list", parent))?,
    };
    let mut asides = Vec::new();
    for entry in entries {
        let entry = entry.map_err(HostError::file("list", parent))?;
        let name = entry.file_name();
        let number = name.as_bytes().strip_prefix(prefix.as_bytes()).map(String::from_utf8_lossy);
        asides.extend(number.and_then(|number| number.parse().ok()).map(|number| (number, entry.path())));
    }
    Ok(asides)
}

/// Removes a tree, never what is mounted in it.
fn remove_tree(path: &Path, mounts: &[PathBuf]) -> Result<(), HostError> {
    if mounts.iter().any(|point| point == path || is_below(point, path)) {
        return Err(HostError::refused(path.display(), "something is mounted there"));
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(HostError::file("remove", path)),
    }
}

fn is_below(path: &Path, directory: &Path) -> bool {
    path != directory && path.starts_with(directory)
}

/// Where file systems are mounted, in the order in which they were (proc(5)).
fn mounts() -> Result<Vec<PathBuf>, HostError> {
    let text = fs::read(MOUNTS).map_err(HostError::file("read", MOUNTS))?;
    let point = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(unescaped);
    Ok(text.split(|byte| *byte == b'\n').filter_map(point).collect())
}

/// The kernel writes what would end a field as `\` and three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let digits =
            behind.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(u8::is_ascii_digit));
        match digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MsFlags, mount};

    fn wanted() -> GivenUp {
        GivenUp::default()
    }

    fn tree(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
    }

    fn names(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn one_copy_is_kept_aside() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("state");
        assert_eq!(move_aside(&state, &wanted()).unwrap(), "");
        for round in 1..=3 {
            tree(root.path(), &["state/a/b", "state.broken-x/kept", "statement.broken-7/kept"]);
            let words = move_aside(&state, &wanted()).unwrap();
            assert!(words.ends_with(&format!("state.broken-{round}")), "{words}");
            assert_eq!(move_aside(&state, &wanted()).unwrap(), "");
            let expected = [&format!("state.broken-{round}"), "state.broken-x", "statement.broken-7"];
            assert_eq!(names(root.path()), expected);
        }
        let directories = [state.to_str().unwrap().to_owned()];
        assert_eq!(remove_aside(&directories).unwrap(), "removed 1 broken copies");
        assert_eq!(remove_aside(&directories).unwrap(), "");
        assert_eq!(names(root.path()), ["state.broken-x", "statement.broken-7"]);
    }

    #[test]
    fn links_and_files_are_not_moved() {
        let root = tempfile::tempdir().unwrap();
        tree(root.path(), &["elsewhere/precious", "file"]);
        std::os::unix::fs::symlink(root.path().join("elsewhere"), root.path().join("link")).unwrap();
        for name in ["link", "file"] {
            let error = move_aside(&root.path().join(name), &wanted()).unwrap_err();
            assert!(error.chain().ends_with("it is no directory"), "{}", error.chain());
        }
    }

    #[test]
    fn mounts_are_taken_away_first_and_never_moved_or_removed() {
        let root = tempfile::tempdir().unwrap();
        tree(root.path(), &["state/pods/a b/x", "state/other/x", "precious/data"]);
        let state = root.path().join("state");
        let bind = |to: &str| {
            let from = root.path().join("precious");
            mount(Some(&from), &root.path().join(to), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        };
        if bind("state/pods/a b").is_err() {
            // Only root may mount; as anybody else there is nothing to see here.
            assert!(!nix::unistd::geteuid().is_root());
            return;
        }
        bind("state/pods/a b").unwrap();
        bind("state/other").unwrap();
        let state_folder = [state.to_str().unwrap().to_owned()];
        let given_up = wanted();
        drop(crate::Waits(given_up.clone()));
        assert!(matches!(unmount(&state_folder, &given_up), Err(HostError::Aborted)));
        let error = move_aside(&state, &wanted()).unwrap_err();
        assert!(error.chain().contains("something is mounted below it"), "{}", error.chain());
        let below = state_folder;
        assert_eq!(unmount(&below, &wanted()).unwrap(), "unmounted 3 file systems");
        assert_eq!(unmount(&below, &wanted()).unwrap(), "");
        assert!(matches!(move_aside(&state, &given_up), Err(HostError::Aborted)));
        move_aside(&state, &wanted()).unwrap();
        // A copy in which something is mounted is not removed, and neither is what is mounted.
        bind("state.broken-1/other").unwrap();
        assert!(remove_aside(&below).unwrap_err().chain().contains("something is mounted there"));
        unmount(&[root.path().join("state.broken-1").to_str().unwrap().to_owned()], &wanted()).unwrap();
        remove_aside(&below).unwrap();
        assert_eq!(fs::read(root.path().join("precious/data")).unwrap(), b"precious/data");
        assert_eq!(names(root.path()), ["precious"]);
    }

    #[test]
    fn old_files_go_by_name_and_age() {
        let root = tempfile::tempdir().unwrap();
        let files = ["pods/a/0.log", "pods/a/0.log.20260101-000000", "pods/a/0.log.2.gz", "x.log.1"];
        tree(root.path(), &files);
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("pods/a/passwd.log.1")).unwrap();
        for file in &files[..3] {
            let file = fs::File::options().write(true).open(root.path().join(file)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(7_200)).unwrap();
        }
        let words = remove_old(root.path(), ".log.", 3_600).unwrap();
        assert!(words.starts_with("removed 2 old files"), "{words}");
        assert_eq!(names(&root.path().join("pods/a")), ["0.log", "passwd.log.1"]);
        assert!(root.path().join("x.log.1").exists(), "too young");
        assert_eq!(remove_old(&root.path().join("no"), ".log.", 1).unwrap(), "");
    }

    #[test]
    fn escapes_of_the_kernel_are_undone() {
        assert_eq!(unescaped(br"/a\040b\134c"), Path::new("/a b\\c"));
        assert_eq!(unescaped(br"/a\04"), Path::new(r"/a\04"));
        assert!(mounts().unwrap().contains(&PathBuf::from("/")));
    }
}
