//! Directory trees as values: the canonical digest of a tree, fixed times, and copying recipe files into one.
//!
//! The digest of a tree is the SHA-256 of a tar stream of it: entries sorted by path, owner, mode, content and link
//! targets as they are, every time the same, hard links as separate files, no extended attributes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::digest::{Digest, HashingWriter};
use crate::files::{At, FileError};

/// The permission bits, set-user-id, set-group-id and sticky: all of a mode that a tree carries.
const MODE_BITS: u32 = 0o7777;

/// What is known about a tree after reading all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeSummary {
    pub(crate) digest: Digest,
    /// Sum of the sizes of the files.
    pub(crate) size_bytes: u64,
    pub(crate) entries: u64,
}

/// Reads a whole tree. `epoch` stands in for every modification time.
pub(crate) fn summarize(root: &Path, epoch: u64) -> Result<TreeSummary, FileError> {
    let mut tar = tar::Builder::new(HashingWriter::new(io::sink()));
    let (mut size_bytes, mut entries) = (0, 0);
    walk(root, &mut |path, relative, meta| {
        entries += 1;
        size_bytes += append(&mut tar, path, relative, meta, epoch)?;
        Ok(())
    })?;
    let digest = tar.into_inner().at("read", root)?.finish().0;
    Ok(TreeSummary { digest, size_bytes, entries })
}

/// The tar stream of a tree: what [`summarize`] takes the digest of. For trees that fit into memory.
pub(crate) fn to_tar(root: &Path, epoch: u64) -> Result<Vec<u8>, FileError> {
    let mut tar = tar::Builder::new(Vec::new());
    walk(root, &mut |path, relative, meta| append(&mut tar, path, relative, meta, epoch).map(drop))?;
    tar.into_inner().at("read", root)
}

/// Sets the modification time of everything in a tree, the root included.
pub(crate) fn set_times(root: &Path, epoch: u64) -> Result<(), FileError> {
    let time = TimeSpec::new(epoch.cast_signed(), 0);
    walk(root, &mut |path, _, _| {
        utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(io::Error::from)
            .at("set the time of", path)
    })
}

/// Calls `visit(path, path below root, metadata)` for the root and everything below it, sorted, parents first.
/// Setting the time of a directory in `visit` holds, as nothing is made in it afterwards.
fn walk(
    root: &Path,
    visit: &mut dyn FnMut(&Path, &Path, &fs::Metadata) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
        let meta = fs::symlink_metadata(&path).at("read", &path)?;
        visit(&path, &relative, &meta)?;
        if meta.is_dir() {
            let mut names = child_names(&path)?;
            names.sort();
            pending.extend(names.into_iter().rev().map(|name| relative.join(name)));
        }
    }
    Ok(())
}

fn child_names(dir: &Path) -> Result<Vec<OsString>, FileError> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>())
        .at("read", dir)
}

/// Appends one entry and returns the number of bytes of its content.
fn append(
    tar: &mut tar::Builder<impl Write>,
    path: &Path,
    relative: &Path,
    meta: &fs::Metadata,
    epoch: u64,
) -> Result<u64, FileError> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(epoch);
    header.set_uid(meta.uid().into());
    header.set_gid(meta.gid().into());
    header.set_mode(meta.mode() & MODE_BITS);
    header.set_size(0);
    let name = Path::new(".").join(relative);
    let kind = meta.file_type();
    let result = if kind.is_file() {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(meta.len());
        File::open(path).and_then(|file| tar.append_data(&mut header, &name, file))
    } else if kind.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, name.join(""), io::empty())
    } else if kind.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        // The mode of a symbolic link means nothing and differs between file systems.
        header.set_mode(0o777);
        fs::read_link(path).and_then(|target| tar.append_link(&mut header, &name, target))
    } else {
        let kind = if kind.is_socket() { "a socket" } else { "a device or pipe" };
        Err(io::Error::other(format!("{kind} cannot be part of a layer")))
    };
    result.at("read", path)?;
    Ok(if kind.is_file() { meta.len() } else { 0 })
}

/// Writes a file with its mode, and its missing parent directories with mode 0755, whatever the umask.
pub(crate) fn write_file(root: &Path, relative: &str, mode: u32, content: &[u8]) -> Result<(), FileError> {
    let path = prepare(root, relative)?;
    fs::write(&path, content).at("write", &path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).at("set the mode of", &path)
}

/// Copies a file from outside the tree.
pub(crate) fn copy_file(root: &Path, relative: &str, mode: u32, from: &Path) -> Result<(), FileError> {
    let path = prepare(root, relative)?;
    fs::copy(from, &path).at("copy", from)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).at("set the mode of", &path)
}

/// Makes a symbolic link, replacing what is there.
pub(crate) fn link(root: &Path, relative: &str, target: &str) -> Result<(), FileError> {
    let path = prepare(root, relative)?;
    symlink(target, &path).at("create", &path)
}

/// Makes a directory with its mode; its missing parents get 0755.
pub(crate) fn make_dir(root: &Path, relative: &str, mode: u32) -> Result<(), FileError> {
    let mut path = root.to_owned();
    for part in Path::new(relative).components() {
        path.push(part);
        if !path.is_dir() {
            fs::create_dir(&path).at("create", &path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).at("set the mode of", &path)?;
        }
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).at("set the mode of", &path)
}

/// Makes room for a file: parents made, an older file or link removed.
fn prepare(root: &Path, relative: &str) -> Result<PathBuf, FileError> {
    let path = root.join(relative);
    if let Some((parent, _)) = relative.rsplit_once('/')
        && !root.join(parent).is_dir()
    {
        make_dir(root, parent, 0o755)?;
    }
    if fs::symlink_metadata(&path).is_ok() {
        fs::remove_file(&path).at("replace", &path)?;
    }
    Ok(path)
}

/// Copies the recipe directory `from` (files and links as in the source tree) over the tree at `root`. Only the
/// execute bit of a file counts, as in git.
pub(crate) fn overlay(from: &Path, root: &Path) -> Result<(), FileError> {
    for (relative, entry) in recipe_entries(from)? {
        match entry {
            RecipeEntry::File { mode, content } => write_file(root, &relative, mode, &content)?,
            RecipeEntry::Link { target } => link(root, &relative, &target)?,
        }
    }
    Ok(())
}

/// A canonical digest of a recipe directory, for keys.
pub(crate) fn recipe_digest(from: &Path) -> Result<Digest, FileError> {
    let mut key = crate::digest::KeyBuilder::new("recipe");
    for (relative, entry) in recipe_entries(from)? {
        key = match entry {
            RecipeEntry::File { mode, content } => {
                key.with(&relative, &mode.to_le_bytes()).with("content", &content)
            }
            RecipeEntry::Link { target } => key.with(&relative, b"link").with("target", target.as_bytes()),
        };
    }
    Ok(key.finish())
}

enum RecipeEntry {
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

fn recipe_entries(from: &Path) -> Result<Vec<(String, RecipeEntry)>, FileError> {
    let mut entries = Vec::new();
    walk(from, &mut |path, relative, meta| {
        let name = String::from_utf8_lossy(relative.as_os_str().as_bytes()).into_owned();
        if meta.is_symlink() {
            let target = fs::read_link(path).at("read", path)?;
            entries.push((name, RecipeEntry::Link { target: target.to_string_lossy().into_owned() }));
        } else if meta.is_file() {
            let mode = if meta.mode() & 0o100 == 0 { 0o644 } else { 0o755 };
            entries.push((name, RecipeEntry::File { mode, content: crate::files::read(path)? }));
        }
        Ok(())
    })?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: u64 = 1_000_000_000;

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_file(dir.path(), "usr/bin/tool", 0o755, b"program").unwrap();
        write_file(dir.path(), "etc/secret", 0o600, b"s").unwrap();
        link(dir.path(), "bin", "usr/bin").unwrap();
        make_dir(dir.path(), "var/empty", 0o700).unwrap();
        let long = format!("usr/{}/{}", "d".repeat(90), "f".repeat(120));
        write_file(dir.path(), &long, 0o644, b"").unwrap();
        dir
    }

    fn digest(dir: &tempfile::TempDir) -> Digest {
        summarize(dir.path(), EPOCH).unwrap().digest
    }

    #[test]
    fn the_same_tree_made_twice_has_the_same_digest() {
        let (one, other) = (sample(), sample());
        assert_eq!(summarize(one.path(), EPOCH).unwrap(), summarize(other.path(), EPOCH).unwrap());
        set_times(one.path(), 5).unwrap();
        assert_eq!(digest(&one), digest(&other));
        assert_eq!(fs::symlink_metadata(one.path().join("bin")).unwrap().mtime(), 5);
    }

    #[test]
    fn every_difference_shows_in_the_digest() {
        let before = digest(&sample());
        let changes: [fn(&Path); 7] = [
            |root| fs::write(root.join("etc/secret"), "t").unwrap(),
            |root| fs::set_permissions(root.join("etc/secret"), fs::Permissions::from_mode(0o644)).unwrap(),
            |root| {
                fs::set_permissions(root.join("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap()
            },
            |root| link(root, "bin", "usr/sbin").unwrap(),
            |root| fs::remove_dir(root.join("var/empty")).unwrap(),
            |root| fs::rename(root.join("etc/secret"), root.join("etc/other")).unwrap(),
            |root| std::os::unix::fs::chown(root.join("etc/secret"), Some(1), None).unwrap(),
        ];
        for (number, change) in changes.iter().enumerate() {
            let dir = sample();
            change(dir.path());
            assert_ne!(digest(&dir), before, "change {number}");
        }
    }

    #[test]
    fn a_recipe_goes_over_a_tree_and_replaces() {
        let (recipe, tree) = (tempfile::tempdir().unwrap(), sample());
        write_file(recipe.path(), "etc/secret", 0o640, b"new").unwrap();
        link(recipe.path(), "usr/bin/tool", "other").unwrap();
        overlay(recipe.path(), tree.path()).unwrap();
        assert_eq!(fs::read(tree.path().join("etc/secret")).unwrap(), b"new");
        assert_eq!(fs::metadata(tree.path().join("etc/secret")).unwrap().mode() & MODE_BITS, 0o644);
        assert_eq!(fs::read_link(tree.path().join("usr/bin/tool")).unwrap(), Path::new("other"));

        let before = recipe_digest(recipe.path()).unwrap();
        write_file(recipe.path(), "etc/secret", 0o755, b"new").unwrap();
        assert_ne!(recipe_digest(recipe.path()).unwrap(), before);
    }

    #[test]
    fn a_socket_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let error = summarize(dir.path(), EPOCH).unwrap_err();
        assert_eq!(error.source.to_string(), "a socket cannot be part of a layer");
    }
}
