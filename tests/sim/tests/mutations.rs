//! Deliberate faults, kept as patches: each still applies, and names the checkers that find it. Whether they do is shown by
//! `cargo xtask sim mutations`, which takes the better part of an hour.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on ends; it asks git"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use keelson_sim::Checker;

/// Fewer faults than this, and some were lost.
const MUTATIONS_MIN: usize = 53;
/// The line that names the checkers begins so.
const EXPECT: &str = "Expect: ";

fn patches() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutations");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut patches: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|end| end == "patch")).collect();
    patches.sort();
    patches
}

#[test]
fn every_fault_says_what_is_broken_and_names_checkers_that_exist() {
    let patches = patches();
    assert!(patches.len() >= MUTATIONS_MIN, "{patches:?}");
    let known = Checker::ALL.map(|checker| checker.to_string());
    for patch in patches {
        let text = std::fs::read_to_string(&patch).unwrap();
        let (head, _) = text.split_once("\n--- a/").unwrap_or_else(|| panic!("{}", patch.display()));
        let (what, expected) = head.split_once(EXPECT).unwrap_or_else(|| panic!("{}", patch.display()));
        assert!(what.trim().ends_with('.'), "{} says in a sentence what is broken", patch.display());
        for name in expected.lines().next().unwrap().split(',') {
            assert!(known.contains(&name.trim().to_owned()), "{}: no checker {name}", patch.display());
        }
    }
}

#[test]
fn every_fault_still_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let git = |arguments: &[&str]| Command::new("git").current_dir(&root).args(arguments).output();
    if !git(&["rev-parse", "--git-dir"]).is_ok_and(|output| output.status.success()) {
        println!("skipped: this is no git repository, so nothing can say whether patches apply");
        return;
    }
    for patch in patches() {
        let output = git(&["apply", "--check", patch.to_str().unwrap()]).unwrap();
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: make it anew: {why}", patch.display());
    }
}
