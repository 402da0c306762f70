//! `cargo xtask check`: style that a machine can keep.

use anyhow::{Result, bail};

use crate::cargo;
use crate::programs::workspace_root;

mod arrows;
mod tree;

/// Runs all checks and lists all findings at once.
pub(crate) fn run() -> Result<()> {
    let root = workspace_root()?;
    let mut findings = arrows::check(&root)?;
    findings.extend(tree::check(&root)?);
    if !findings.is_empty() {
        bail!("{} findings:\n  {}", findings.len(), findings.join("\n  "));
    }
    eprintln!("dependency arrows, documents, file kinds and sizes: fine");
    cargo::run(&root, &["fmt", "--all", "--check"])?;
    cargo::run(
        &root,
        &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"],
    )?;
    eprintln!("check: fine");
    Ok(())
}
