//! `cargo xtask bench`: measures, and prints one JSON object with the named figures.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

use crate::programs::workspace_root;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// How long it takes to plan a fleet of 1,000 clusters with 10,000 machines, and how that grows.
    Plan(OutputArgs),
    /// What a heartbeat and an agent's connection cost the coordinator; three minutes, on loopback.
    Link {
        /// How many agents.
        #[arg(long, default_value_t = 20_000)]
        agents: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// The form of the result.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// Form of the result; there is one.
    #[arg(long, default_value = "json", value_parser = ["json"])]
    output: String,
}

/// Runs `cargo xtask bench`.
pub(crate) fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Plan(_) => program("bench-plan", &[]),
        BenchCommand::Link { agents, .. } => program("bench-link", &["--agents", &agents.to_string()]),
    }
}

/// Compiles and runs a program of tests/bench; its output is ours.
fn program(name: &str, arguments: &[&str]) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_root()?);
    cargo
        .args(["run", "--release", "--locked", "--quiet", "--package", "keelson-bench", "--bin", name, "--"])
        .args(arguments);
    let status = cargo.status().context("cargo cannot be started")?;
    ensure!(status.success(), "{name} failed");
    Ok(())
}
