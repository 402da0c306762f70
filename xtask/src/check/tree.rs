//! What lies in the tree: documents that must be there, files that must not, sizes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Documents that somebody new needs.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "docs/architecture.md",
    "docs/protocol.md",
    "docs/glossary.md",
    "docs/performance.md",
    "docs/decisions/README.md",
];
/// Largest source file, in lines: more hold two ideas.
const LINES_MAX: usize = 800;
/// Largest file, in bytes: more is a build output.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes looked at to tell text from binary.
const PROBE_BYTES: usize = 8_000;
/// Where small binary files are right: golden bytes and fuzz corpora of the wire format.
const BINARY_FOLDERS: [&str; 3] = ["protocol/golden/", "tests/fuzz/corpus/", "tests/fuzz/"];
/// Words that must not be left in code.
const LEFTOVERS: [&str; 3] = [concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK:")];

/// All findings on the files that git tracks or would track.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let missing = DOCUMENTS.iter().filter(|document| !root.join(document).is_file());
    let mut findings: Vec<String> = missing.map(|document| format!("{document} is missing")).collect();
    for file in files(root)? {
        findings.extend(check_file(root, &file));
    }
    Ok(findings)
}

fn files(root: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let output = git.output().context("git cannot be started")?;
    ensure!(output.status.success(), "git ls-files failed");
    let names = String::from_utf8(output.stdout).context("a file name is no text")?;
    Ok(names.split_terminator('\0').map(str::to_owned).collect())
}

fn check_file(root: &Path, file: &str) -> Vec<String> {
    // A file that git knows and that was removed from the work tree.
    let Ok(content) = std::fs::read(root.join(file)) else { return Vec::new() };
    let mut findings = Vec::new();
    let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
    if size > FILE_BYTES_MAX {
        findings.push(format!("{file} has {size} bytes: build outputs do not belong here"));
    }
    let binary = content.iter().take(PROBE_BYTES).any(|byte| *byte == 0);
    if binary && !BINARY_FOLDERS.iter().any(|folder| file.starts_with(folder)) {
        findings.push(format!("{file} is a binary file"));
    }
    if file.ends_with(".rs") {
        findings.extend(check_source(file, &String::from_utf8_lossy(&content)));
    }
    findings
}

fn check_source(file: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        findings.push(format!(
            "{file} has {lines} lines, at most {LINES_MAX} are allowed: which two ideas live in it?"
        ));
    }
    if !text.trim_start().starts_with("//!") {
        findings.push(format!("{file} does not begin with a sentence (//!) that says what it is for"));
    }
    for word in LEFTOVERS {
        if text.contains(word) {
            findings.push(format!("{file} says {word}"));
        }
    }
    findings
}
