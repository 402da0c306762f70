//! `cargo xtask test`: everything that CI runs.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::programs::workspace_root;
use crate::state::StateArgs;
use crate::{cargo, check, down, host, sim, up};

/// Seeds that the simulator plays: an hour of thirty machines each, two to four minutes on two cores.
const SIM_SEEDS: u32 = 200;

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Leave out the tests on real machines (they need root and minutes).
    #[arg(long)]
    no_e2e: bool,
}

/// Runs `cargo xtask test`.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let root = workspace_root()?;
    let scratch = Scratch::new()?;
    part("prepare this machine", || host::prepare(&scratch.path))?;
    part("check", check::run)?;
    part("test without machines", || {
        cargo::run(&root, &["test", "--workspace", "--exclude", "keelson-e2e", "--locked", "--quiet"])
    })?;
    part(&format!("sim hunt --seeds {SIM_SEEDS}"), || sim::hunt(SIM_SEEDS))?;
    part("sim script of 1,000 machines", sim::thousand)?;
    if args.no_e2e {
        return Ok(());
    }
    e2e(&root, &scratch.path)
}

/// Does a part of the whole, and says how long it took.
fn part<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {name}");
    let began = Instant::now();
    let done = work()?;
    eprintln!("    {name}: {} s", began.elapsed().as_secs());
    Ok(done)
}

/// Makes an installation of its own, tests it, and removes it, also when a test fails.
fn e2e(root: &Path, state_dir: &Path) -> Result<()> {
    let up_args = up::UpArgs::usual(StateArgs::at(state_dir.to_owned()));
    let result = part("up", || up::up(&up_args)).and_then(|installation| {
        part("test on real machines", || {
            let mut cargo = cargo::command(root);
            cargo.args(["test", "--package", "keelson-e2e", "--locked", "--", "--test-threads=1"]);
            for (name, value) in installation.variables() {
                cargo.env(name, value);
            }
            let status = cargo.status().context("cargo cannot be started")?;
            anyhow::ensure!(status.success(), "the tests on real machines failed");
            Ok(())
        })?;
        part("chaos --fixed", || xtask(&["chaos", "--fixed"], state_dir))
            .context("three faults of a highly available cluster were not mended as they should")?;
        let conformance = ["conformance", "--quick", "--cluster", up::CLUSTER];
        part("conformance --quick", || xtask(&conformance, state_dir))
            .context("the quick conformance run did not pass")
    });
    if result.is_err() {
        let log = std::fs::read_to_string(state_dir.join("coordinator.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        eprintln!("last lines of the coordinator's log:");
        tail.iter().rev().for_each(|line| eprintln!("  {line}"));
    }
    let removed = down::remove(state_dir);
    result.and(removed)
}

/// Another chore on the installation that is there.
fn xtask(words: &[&str], state_dir: &Path) -> Result<()> {
    let mut xtask = std::process::Command::new(std::env::current_exe()?);
    xtask.args(words).arg("--state-dir").arg(state_dir);
    let status = xtask.status().context("xtask cannot be started")?;
    anyhow::ensure!(status.success(), "xtask {} failed", words.join(" "));
    Ok(())
}

/// A state directory for one run. What is in it is removed by `down::remove`; the empty rest goes with this value.
pub(crate) struct Scratch {
    pub(crate) path: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        let name = format!("keelson-test-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).context("could not make a scratch directory")?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}
