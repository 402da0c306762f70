//! Files: written atomically, looked at cheaply.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use keelson_agent_core::{Digest, FileSeen, FileWrite, StepOutput};

use crate::error::HostError;

/// Mode of folders that are made on the way to a file.
const DIRECTORY_MODE: u32 = 0o755;
/// Files larger than this are not read: no file of ours is, so their content is another in any case.
const READ_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Suffix of a file that is being written.
const TEMPORARY_SUFFIX: &str = ".keelson-new";

/// Whether a file must outlive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disk when the call returns.
    OnDisk,
    /// It lies in memory anyway, or can be made again.
    InMemory,
}

/// Writes a file so that a reader, or the machine after a power cut, sees the old content or the new one and nothing
/// between. The folders above it are made.
///
/// # Errors
/// [`HostError::File`]. The old content is then untouched.
pub fn write_atomically(
    path: &Path,
    mode: u32,
    content: &[u8],
    durability: Durability,
) -> Result<(), HostError> {
    let temporary = write_beside(path, mode, content, durability)?;
    put_in_place(&temporary, path)?;
    if durability == Durability::OnDisk { sync_directory(folder_of(path)) } else { Ok(()) }
}

/// Replaces files that belong together, with their content and mode, as [`write_atomically`] does each. All are on disk before
/// the first one is put in its place, so that only a crash between two renames leaves them apart.
pub(crate) fn write_together(files: &[(&Path, u32, &[u8])]) -> Result<(), HostError> {
    let mut written: Vec<(PathBuf, &Path)> = Vec::new();
    for (path, mode, content) in files {
        match write_beside(path, *mode, content, Durability::OnDisk) {
            Ok(temporary) => written.push((temporary, path)),
            Err(error) => {
                written.iter().for_each(|(temporary, _)| drop(fs::remove_file(temporary)));
                return Err(error);
            }
        }
    }
    written.iter().try_for_each(|(temporary, path)| put_in_place(temporary, path))?;
    files.iter().try_for_each(|(path, ..)| sync_directory(folder_of(path)))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn put_in_place(temporary: &Path, path: &Path) -> Result<(), HostError> {
    // An empty folder: what a mount makes of a file that was missing for a moment.
    let _ = fs::remove_dir(path);
    let renamed = fs::rename(temporary, path).map_err(HostError::file("rename to", path));
    if renamed.is_err() {
        let _ = fs::remove_file(temporary);
    }
    renamed
}

/// Writes what shall be at `path` to a file beside it.
fn write_beside(
    path: &Path,
    mode: u32,
    content: &[u8],
    durability: Durability,
) -> Result<PathBuf, HostError> {
    make_directory(folder_of(path), DIRECTORY_MODE)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    let temporary = PathBuf::from(temporary);
    let written = write_new(&temporary, mode, content, durability);
    if written.is_err() {
        // What is left would only take room, which may be why it failed.
        let _ = fs::remove_file(&temporary);
    }
    written.map(|()| temporary)
}

fn write_new(temporary: &Path, mode: u32, content: &[u8], durability: Durability) -> Result<(), HostError> {
    // One left by a crash, or put there by somebody else to lead us astray.
    if fs::remove_file(temporary).is_err() {
        let _ = fs::remove_dir(temporary);
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .map_err(HostError::file("create", temporary))?;
    file.write_all(content).map_err(HostError::file("write", temporary))?;
    // Set explicitly, because the process's umask took bits away when the file was made.
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(HostError::file("set the mode of", temporary))?;
    if durability == Durability::OnDisk {
        file.sync_all().map_err(HostError::file("sync", temporary))?;
    }
    Ok(())
}

pub(crate) fn sync_directory(path: &Path) -> Result<(), HostError> {
    let directory = File::open(path).map_err(HostError::file("open", path))?;
    directory.sync_all().map_err(HostError::file("sync", path))
}

/// Makes folders that are absent; existing ones keep their mode.
pub(crate) fn make_directories(directories: &[(String, u32)]) -> Result<(), HostError> {
    directories.iter().try_for_each(|(path, mode)| make_directory(Path::new(path), *mode))
}

fn make_directory(path: &Path, mode: u32) -> Result<(), HostError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent, DIRECTORY_MODE)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        made => made.map_err(HostError::file("make folder", path))?,
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(HostError::file("set the mode of", path))
}

/// Writes each file; one that fails does not keep the others from being written.
pub(crate) fn write_all(files: Vec<FileWrite>) -> Result<StepOutput, HostError> {
    let mut failed = Vec::new();
    for file in files {
        let durability = durability_of(&file.path);
        let path = Path::new(&file.path);
        if let Err(error) = write_atomically(path, file.mode, file.content.expose_secret(), durability) {
            failed.push((file.path, error.chain()));
        }
    }
    Ok(StepOutput::Written { failed })
}

/// What lies under /run is in memory, and a `sync` there only costs time.
fn durability_of(path: &str) -> Durability {
    if path.starts_with("/run/") { Durability::InMemory } else { Durability::OnDisk }
}

/// Removes each file, and gives the names of those that were there; absent ones are as wanted. One that cannot be removed
/// keeps none of the others.
pub(crate) fn remove_all(paths: &[String]) -> Result<Vec<&str>, HostError> {
    let (mut removed, mut failed) = (Vec::new(), None);
    for path in paths {
        match fs::remove_file(path) {
            Ok(()) => {
                removed.push(Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failed = failed.or(Some(HostError::file("remove", path)(error))),
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Digests of files, with what their `stat` said when they were read: an unchanged file is not read again.
#[derive(Debug, Default)]
pub(crate) struct DigestCache {
    known: BTreeMap<String, (Stamp, Digest)>,
}

/// What changes when a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The stamp of a file now; `None` when it cannot be seen.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::of(&metadata))
    }
}

impl DigestCache {
    pub(crate) fn look(&mut self, paths: &[String]) -> BTreeMap<String, FileSeen> {
        let known = std::mem::take(&mut self.known);
        let mut seen = BTreeMap::new();
        for path in paths {
            seen.insert(path.clone(), self.look_at(path, known.get(path)));
        }
        seen
    }

    fn look_at(&mut self, path: &str, known: Option<&(Stamp, Digest)>) -> FileSeen {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return FileSeen::Absent;
            }
            Err(error) => return FileSeen::Unknown { why: error.to_string() },
        };
        let mode = metadata.mode() & 0o7777;
        if !metadata.is_file() || metadata.len() > READ_BYTES_MAX {
            // A link, a device or something huge is never what was written; an empty digest differs from every content.
            let digest = Digest::of_parts([b"not a file of ours".as_slice()]);
            return FileSeen::Present { digest, mode };
        }
        let stamp = Stamp::of(&metadata);
        let digest = match known {
            Some((at, digest)) if *at == stamp => Ok(*digest),
            _ => read_bounded(path).map(|content| Digest::of(&content)),
        };
        match digest {
            Ok(digest) => {
                self.known.insert(path.to_owned(), (stamp, digest));
                FileSeen::Present { digest, mode }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => FileSeen::Absent,
            Err(error) => FileSeen::Unknown { why: error.to_string() },
        }
    }
}

fn read_bounded(path: &str) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(READ_BYTES_MAX + 1).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_belong_together_stay_as_they_are_when_one_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let (key, chain) = (folder.path().join("key"), folder.path().join("chain"));
        let write = |content: &[u8]| write_together(&[(&key, 0o600, content), (&chain, 0o644, content)]);
        write(b"old").unwrap();
        let taken = folder.path().join("chain.keelson-new");
        fs::create_dir_all(taken.join("full")).unwrap();
        write(b"new").unwrap_err();
        assert_eq!((fs::read(&key).unwrap(), fs::read(&chain).unwrap()), (b"old".to_vec(), b"old".to_vec()));
        assert!(!folder.path().join("key.keelson-new").exists());
        fs::remove_dir_all(&taken).unwrap();
        write(b"new").unwrap();
        assert_eq!((fs::read(&key).unwrap(), fs::read(&chain).unwrap()), (b"new".to_vec(), b"new".to_vec()));
    }

    #[test]
    fn files_are_replaced_whole_with_their_mode() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/file");
        write_atomically(&path, 0o640, b"one", Durability::OnDisk).unwrap();
        write_atomically(&path, 0o600, b"two", Durability::InMemory).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::create_dir_all(path.join("full")).unwrap();
        let error = write_atomically(&path, 0o600, b"x", Durability::InMemory).unwrap_err();
        assert!(error.chain().starts_with("could not rename to "), "{}", error.chain());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_empty_folder_in_the_place_of_a_file_is_taken_away() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::create_dir(&path).unwrap();
        fs::create_dir(root.path().join("file.keelson-new")).unwrap();
        write_atomically(&path, 0o600, b"x", Durability::InMemory).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn looks_tell_content_mode_and_absence() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file").to_str().unwrap().to_owned();
        let mut cache = DigestCache::default();
        let mut look = || cache.look(std::slice::from_ref(&path)).remove(&path).unwrap();
        assert_eq!(look(), FileSeen::Absent);
        write_atomically(Path::new(&path), 0o644, b"x", Durability::InMemory).unwrap();
        assert_eq!(look(), FileSeen::Present { digest: Digest::of(b"x"), mode: 0o644 });
        assert_eq!(look(), FileSeen::Present { digest: Digest::of(b"x"), mode: 0o644 });
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(look(), FileSeen::Present { digest, .. } if digest != Digest::of(b"x")));
    }
}
