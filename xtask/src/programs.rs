//! Compiling the programs of this workspace.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use keelson_images::{Progress, ProgressEvent};

use crate::cargo;

/// What everything is compiled for. Named, so that flags for it do not reach build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The source tree: cargo says where this program's crate is, one level below the root.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    let crate_dir = env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask ...`")?;
    let root = Path::new(&crate_dir).parent().context("the crate xtask has no parent directory")?;
    Ok(root.to_owned())
}

/// Compiles `packages` for use: static, so that they need nothing of a root file system, and free of paths of this
/// machine, so that every checkout gives the same bytes. What is compiled together shares the features of its
/// dependencies. Returns the programs by name.
pub(crate) fn compile(
    root: &Path,
    packages: &[&str],
    progress: &mut dyn Progress,
) -> Result<BTreeMap<String, PathBuf>> {
    let step = format!("compile {}", packages.join(", "));
    progress.event(ProgressEvent::Started { step: step.clone(), usual: None });
    let start = Instant::now();
    // Our own files are named relative to the root; only those of dependencies have the home directory in them.
    let mut flags = "-C target-feature=+crt-static".to_owned();
    if let Some(home) = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(default_cargo_home) {
        flags.push_str(&format!(" --remap-path-prefix={}=/cargo", home.display()));
    }
    let mut cargo = cargo::command(root);
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "--message-format=json-render-diagnostics",
        ])
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .env("RUSTFLAGS", flags)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = cargo.output().context("cargo cannot be started")?;
    ensure!(output.status.success(), "{} cannot be compiled; cargo says why above", packages.join(", "));
    let mut programs = BTreeMap::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: serde_json::Value = serde_json::from_slice(line).context("cargo's messages are JSON")?;
        if let Some(path) = message["executable"].as_str() {
            programs.insert(message["target"]["name"].as_str().unwrap_or_default().to_owned(), path.into());
        }
    }
    progress.event(ProgressEvent::Finished { step, took: start.elapsed() });
    Ok(programs)
}

fn default_cargo_home() -> Option<PathBuf> {
    env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"))
}
