//! `cargo xtask bench`: measures, and prints one JSON object with the named figures.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use keelson_images::{CacheDir, SourceMode};
use keelson_providers::local;

use crate::programs::workspace_root;
use crate::test::Scratch;
use crate::{cargo, host, image, up};

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// How long it takes to plan a fleet of 1,000 clusters with 10,000 machines, and how that grows.
    Plan(OutputArgs),
    /// From `cluster create` to the first running pod, beside `kubeadm init` on the same host; some minutes.
    Create {
        /// How often each of the two makes a cluster; the medians count.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
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
        BenchCommand::Create { rounds, .. } => create(*rounds),
        BenchCommand::Plan(_) => program("bench-plan", &[]),
        BenchCommand::Link { agents, .. } => program("bench-link", &["--agents", &agents.to_string()]),
    }
}

/// Builds everything that both contestants need, and has them make clusters in turn.
fn create(rounds: u32) -> Result<()> {
    let scratch = Scratch::new()?;
    host::prepare(&scratch.path)?;
    let programs = up::build_programs()?;
    let build = image::BuildArgs::newest(SourceMode::Auto);
    let built = image::build(&CacheDir::from_environment()?, &build, &mut image::Lines)?;
    let text = |path: &Path| path.display().to_string();
    let tool = |name: &str| -> Result<String> {
        Ok(text(built.tools.get(name).with_context(|| format!("the release has no {name}"))?))
    };
    let arguments = [
        ("--scratch", text(&scratch.path)),
        ("--rounds", rounds.to_string()),
        ("--image", built.digest.to_string()),
        ("--release", build.release.clone()),
        ("--coordinator", text(&programs.coordinator)),
        ("--keelson", text(&programs.keelson)),
        ("--kubectl", tool("kubectl")?),
        ("--kubeadm", tool("kubeadm")?),
        ("--etcd", tool("etcd")?),
        ("--coredns", tool("coredns")?),
    ];
    let words: Vec<&str> = arguments.iter().flat_map(|(flag, value)| [*flag, value.as_str()]).collect();
    let result = program("bench-create", &words);
    // Whatever a killed contestant left.
    for state_dir in ["keelson", "kubeadm"] {
        local::destroy(&scratch.path.join(state_dir))?;
    }
    std::fs::remove_dir_all(&scratch.path).context("could not remove the scratch directory")?;
    result
}

/// Compiles and runs a program of tests/bench; its output is ours.
fn program(name: &str, arguments: &[&str]) -> Result<()> {
    let mut cargo = cargo::command(&workspace_root()?);
    cargo
        .args(["run", "--release", "--locked", "--quiet", "--package", "keelson-bench", "--bin", name, "--"])
        .args(arguments);
    let status = cargo.status().context("cargo cannot be started")?;
    ensure!(status.success(), "{name} failed");
    Ok(())
}
