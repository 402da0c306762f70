//! Who may use whom. A new arrow is a decision about the architecture: it is made here and in docs/architecture.md.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Crates of this workspace that each may use, without tests.
const ARROWS: [(&str, &[&str]); 21] = [
    ("keelson-protocol", &[]),
    ("keelson-transport", &["keelson-protocol"]),
    ("keelson-balancer", &[]),
    ("keelson-agent-core", &["keelson-protocol"]),
    ("keelson-host", &["keelson-protocol", "keelson-transport", "keelson-agent-core"]),
    (
        "keelson-agent",
        &["keelson-protocol", "keelson-transport", "keelson-balancer", "keelson-agent-core", "keelson-host"],
    ),
    ("keelson-model", &["keelson-protocol"]),
    ("keelson-planner", &["keelson-protocol", "keelson-model"]),
    ("keelson-coordinator-core", &["keelson-protocol", "keelson-model", "keelson-planner"]),
    ("keelson-pki", &["keelson-protocol", "keelson-model", "keelson-transport"]),
    ("keelson-store", &["keelson-protocol", "keelson-model", "keelson-coordinator-core", "keelson-pki"]),
    ("keelson-providers", &["keelson-protocol", "keelson-balancer"]),
    ("keelson-api", &["keelson-protocol", "keelson-model"]),
    ("keelson-check", &[]),
    ("keelson-kube", &["keelson-protocol", "keelson-model"]),
    ("keelson-cli", &["keelson-protocol", "keelson-model", "keelson-api", "keelson-check"]),
    (
        "keelson-coordinator",
        &[
            "keelson-protocol",
            "keelson-transport",
            "keelson-model",
            "keelson-planner",
            "keelson-coordinator-core",
            "keelson-pki",
            "keelson-store",
            "keelson-providers",
            "keelson-kube",
            "keelson-api",
            "keelson-images",
        ],
    ),
    ("keelson-images", &[]),
    ("keelson-demo", &[]),
    ("keelson-pause", &[]),
    ("keelson-probe", &[]),
];

/// Crates that decide: no runtime, no clock, no entropy below them.
const PURE: [&str; 5] = [
    "keelson-protocol",
    "keelson-agent-core",
    "keelson-model",
    "keelson-planner",
    "keelson-coordinator-core",
];
/// What no pure crate may have among its own dependencies.
const IMPURE: [&str; 9] = ["tokio", "quinn", "rustls", "rand", "rusqlite", "nix", "tracing", "axum", "hyper"];

/// All arrows that are not allowed.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo metadata failed")?;
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut findings = Vec::new();
    for package in metadata.workspace_packages() {
        findings.extend(foreign(package, allowed.get(package.name.as_str()).copied()));
        findings.extend(impure(root, package));
    }
    Ok(findings)
}

fn foreign(package: &Package, allowed: Option<&[&str]>) -> Vec<String> {
    // Tests and chores may use everything; they are not listed.
    let Some(allowed) = allowed else { return Vec::new() };
    let own = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal && d.path.is_some());
    own.filter(|dependency| !allowed.contains(&dependency.name.as_str()))
        .map(|dependency| {
            format!(
                "{} uses {}, which xtask/src/check/arrows.rs does not allow",
                package.name, dependency.name
            )
        })
        .collect()
}

fn impure(root: &Path, package: &Package) -> Vec<String> {
    if !PURE.contains(&package.name.as_str()) {
        return Vec::new();
    }
    let used = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
    let mut findings: Vec<String> = used
        .filter(|dependency| IMPURE.contains(&dependency.name.as_str()))
        .map(|dependency| format!("{} is pure and uses {}", package.name, dependency.name))
        .collect();
    let folder = package.manifest_path.parent().map(|folder| folder.join("clippy.toml"));
    let bans = root.join("xtask/pure-clippy.toml");
    let same = folder.as_ref().is_some_and(|own| {
        std::fs::read(own.as_std_path()).is_ok_and(|own| std::fs::read(&bans).is_ok_and(|bans| own == bans))
    });
    if !same {
        findings.push(format!(
            "{} is pure: its clippy.toml must be a copy of xtask/pure-clippy.toml",
            package.name
        ));
    }
    findings
}
