//! `cargo xtask check`: style that a machine can keep.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

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
    cargo(&root, &["fmt", "--all", "--check"])?;
    cargo(&root, &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"])?;
    eprintln!("check: fine");
    Ok(())
}

/// Runs cargo at the root of the tree; what it prints goes where ours goes.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    eprintln!("==> cargo {}", arguments.join(" "));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let status = cargo.current_dir(root).args(arguments).status().context("cargo cannot be started")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}
