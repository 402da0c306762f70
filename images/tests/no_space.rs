//! A cache on a disk without room: that is said before the first minute is spent, with what to do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::path::{Path, PathBuf};

use keelson_images::{BuildRequest, CacheDir, Release, Reuse, Silent, SourceMode, build_image};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A small disk; unmounted when this value goes.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        mount(Some("small"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=16m")).unwrap();
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_disk_without_room_is_found_at_once() {
    let disk = SmallDisk::new();
    let cache = CacheDir::at(disk.0.path()).unwrap();
    let recipes = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new("/bin/true").to_owned();
    let request = BuildRequest {
        cargo_lock: recipes.join("../Cargo.lock"),
        recipes,
        release: Release::newest(),
        source: SourceMode::Build,
        agent: program.clone(),
        pause: program,
        preload: Vec::new(),
        base: Reuse::Cached,
    };
    let error = build_image(&cache, &request, &mut Silent).unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    let mut chain = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        chain.push(error.to_string());
        source = error.source();
    }
    let said = chain.join(": ");
    assert!(said.contains("bytes free") && said.contains("KEELSON_CACHE_DIR"), "{said}");
}
