//! What the tests of the protocol share: samples of every message, strategies for arbitrary ones, folders.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod samples;
pub(crate) mod strategies;

use std::path::PathBuf;

/// Folder of the golden bytes of all released versions.
pub(crate) fn golden_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/golden"))
}

/// Folder of the fuzz corpora.
pub(crate) fn corpus_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus"))
}

/// Files of a folder with their content, sorted by name. A folder that is not there has none.
#[allow(
    clippy::disallowed_methods,
    reason = "the golden bytes are files; the ban is for the code under test"
)]
pub(crate) fn files(directory: &PathBuf) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files = entries
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_file())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect::<Vec<_>>();
    files.sort();
    files
}
