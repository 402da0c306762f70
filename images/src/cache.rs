//! The cache: where upstream builds, layers and images live, outside the source tree.
//!
//! Every entry is made in a directory of its own below `tmp/`, made durable, and renamed to its final name. An entry
//! that has its final name is therefore complete, whenever its builder was killed. Builders of the same entry wait
//! for each other on a lock file; the kernel drops the lock of a killed builder.
//!
//! ```text
//! upstream/<project>-<version>-<key16>/{bin/...,origin.json}   programs of one upstream project
//! keys/<input key>             text: the digest of the layer that these inputs gave
//! layers/<digest>/             the directory tree of one layer
//! layers/<digest>.json         its LayerRecord
//! images/<digest>/             manifest.json, sbom.cdx.json
//! containers/<key>.tar         a container image for a test suite
//! downloads/<digest>.part      a transfer that was cut off and can be resumed
//! locks/ tmp/
//! ```

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::files::{self, At, FileError};

/// Where the cache is when set, whatever else is set.
pub const CACHE_DIR_VARIABLE: &str = "KEELSON_CACHE_DIR";

/// The root of the cache. Cheap to clone; making one creates the directories.
#[derive(Clone, Debug)]
pub struct CacheDir {
    root: PathBuf,
}

/// No cache directory can be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// None of the variables that name it is set.
    #[error(
        "no place for the cache: none of KEELSON_CACHE_DIR, XDG_CACHE_HOME and HOME is set; set KEELSON_CACHE_DIR"
    )]
    NoPlace,
    /// It cannot be made or read.
    #[error("the cache directory cannot be used; set KEELSON_CACHE_DIR to a directory that can be written")]
    File(#[from] FileError),
}

impl CacheDir {
    /// The cache of this user: `KEELSON_CACHE_DIR`, else `keelson` below `XDG_CACHE_HOME`, else below `~/.cache`.
    ///
    /// # Errors
    /// No variable names a place, or the directory cannot be made.
    pub fn from_environment() -> Result<CacheDir, CacheError> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set(CACHE_DIR_VARIABLE)
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("keelson")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache").join("keelson")))
            .ok_or(CacheError::NoPlace)?;
        CacheDir::at(&root)
    }

    /// The cache at `root`, made when it is not there. Remains of builders that were killed are removed.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn at(root: &Path) -> Result<CacheDir, CacheError> {
        for name in ["upstream", "keys", "layers", "images", "containers", "downloads", "locks", "tmp"] {
            files::create_dir_all(&root.join(name))?;
        }
        let cache = CacheDir { root: root.canonicalize().at("resolve", root)? };
        cache.sweep()?;
        Ok(cache)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory tree of the layer `digest`, whether or not it is there.
    pub fn layer_dir(&self, digest: &Digest) -> PathBuf {
        self.root.join("layers").join(digest.to_string())
    }

    pub(crate) fn layer_record(&self, digest: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{digest}.json"))
    }

    pub(crate) fn key_file(&self, key: &Digest) -> PathBuf {
        self.root.join("keys").join(key.to_string())
    }

    /// The directory of all images.
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The directory of the image `digest`, whether or not it is there.
    pub fn image_dir(&self, digest: &Digest) -> PathBuf {
        self.images_dir().join(digest.to_string())
    }

    pub(crate) fn upstream_dir(&self, project: &str, version: &str, key: &Digest) -> PathBuf {
        self.root.join("upstream").join(format!("{project}-{version}-{}", key.short()))
    }

    pub(crate) fn container_archive(&self, key: &Digest) -> PathBuf {
        self.root.join("containers").join(format!("{key}.tar"))
    }

    pub(crate) fn partial_download(&self, digest: &Digest) -> PathBuf {
        self.root.join("downloads").join(format!("{digest}.part"))
    }

    /// Takes the lock called `name`, waiting for another process that holds it. `waiting` is called once before a wait.
    pub(crate) fn lock(&self, name: &str, waiting: &mut dyn FnMut()) -> Result<CacheLock, FileError> {
        let path = self.root.join("locks").join(format!("{name}.lock"));
        let file = File::options().create(true).append(true).open(&path).at("open", &path)?;
        if file.try_lock().is_err() {
            waiting();
            file.lock().at("lock", &path)?;
        }
        Ok(CacheLock { _file: file })
    }

    /// A new empty directory for building one entry. It is removed when the value is dropped, or by the next
    /// [`CacheDir::at`] when this process is killed.
    pub(crate) fn temp_dir(&self) -> Result<TempDir, FileError> {
        let _exclusive = self.lock("tmp", &mut || ())?;
        for number in 0_u64.. {
            let path = self.root.join("tmp").join(format!("{}-{number}", std::process::id()));
            let lock_path = path.with_extension("lock");
            let lock = match File::options().create_new(true).write(true).open(&lock_path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                other => other.at("create", &lock_path)?,
            };
            lock.lock().at("lock", &lock_path)?;
            fs::create_dir(&path).at("create", &path)?;
            return Ok(TempDir { path, lock_path, _lock: lock });
        }
        unreachable!("the numbers of temporary directories do not run out")
    }

    /// Renames a finished entry to its final name. When another builder was quicker, its entry stays.
    pub(crate) fn publish(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        files::sync_file_system(from)?;
        if to.exists() {
            return files::remove_all(from);
        }
        files::rename_durably(from, to)
    }

    /// Removes temporary directories whose builder no longer holds their lock.
    fn sweep(&self) -> Result<(), FileError> {
        let _exclusive = self.lock("tmp", &mut || ())?;
        let tmp = self.root.join("tmp");
        for entry in fs::read_dir(&tmp).at("read", &tmp)? {
            let path = entry.at("read", &tmp)?.path();
            if path.extension().is_none_or(|extension| extension != "lock") {
                continue;
            }
            let file = File::open(&path).at("open", &path)?;
            if file.try_lock().is_ok() {
                files::remove_all(&path.with_extension(""))?;
                files::remove_all(&path)?;
            }
        }
        Ok(())
    }
}

/// A lock on one entry of the cache, held until dropped or until the process ends.
#[derive(Debug)]
pub(crate) struct CacheLock {
    _file: File,
}

/// A directory below `tmp/` that belongs to this process.
#[derive(Debug)]
pub(crate) struct TempDir {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl TempDir {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A failure here is repaired by the sweep of the next opening.
        let _ = files::remove_all(&self.path);
        let _ = files::remove_all(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, CacheDir) {
        let dir = tempfile::tempdir().unwrap();
        let cache = CacheDir::at(dir.path()).unwrap();
        (dir, cache)
    }

    #[test]
    fn the_remains_of_a_killed_builder_are_swept_and_those_of_a_live_one_stay() {
        let (_dir, cache) = cache();
        let live = cache.temp_dir().unwrap();
        fs::write(live.path().join("half"), "x").unwrap();
        let dead = cache.root().join("tmp").join("1-0");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.with_extension("lock"), "").unwrap();

        CacheDir::at(cache.root()).unwrap();

        assert!(live.path().join("half").exists());
        assert!(!dead.exists() && !dead.with_extension("lock").exists());
        let path = live.path().to_owned();
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_published_entry_is_never_replaced() {
        let (_dir, cache) = cache();
        let to = cache.root().join("layers").join("entry");
        for content in ["first", "second"] {
            let temp = cache.temp_dir().unwrap();
            let tree = temp.path().join("tree");
            fs::create_dir(&tree).unwrap();
            fs::write(tree.join("f"), content).unwrap();
            cache.publish(&tree, &to).unwrap();
            assert!(!tree.exists());
        }
        assert_eq!(fs::read_to_string(to.join("f")).unwrap(), "first");
    }

    #[test]
    fn a_lock_excludes_and_is_free_after_its_holder() {
        let (_dir, cache) = cache();
        let held = cache.lock("key", &mut || panic!("nobody holds it")).unwrap();
        let path = cache.root().join("locks").join("key.lock");
        assert!(File::open(&path).unwrap().try_lock().is_err());
        drop(held);
        assert!(File::open(&path).unwrap().try_lock().is_ok());
    }
}
