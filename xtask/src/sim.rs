//! `cargo xtask sim`: plays whole fleets in virtual time; what it can do is told by the simulator itself.

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::cargo;
use crate::mutations::{self, MutationsArgs};
use crate::programs::workspace_root;

/// The word that is not for the simulator: it asks whether its checkers bite.
const MUTATIONS: &str = "mutations";
/// A thousand machines are silent when the coordinator starts.
const THOUSAND: &str = "tests/sim/scripts/large/silent_after_restart.txt";

/// Arguments of the simulator.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct SimArgs {
    /// `run --seed S`, `hunt --seeds N`, `replay FILE`, `mutations`; `--help` after one of these lists its options.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs `cargo xtask sim`.
pub(crate) fn run(args: &SimArgs) -> Result<()> {
    if args.arguments.first().is_some_and(|word| word == MUTATIONS) {
        return mutations::run(&MutationsArgs::parse_from(&args.arguments));
    }
    simulate(&args.arguments)
}

/// Plays the first seeds.
pub(crate) fn hunt(seeds: u32) -> Result<()> {
    simulate(&["hunt".to_owned(), "--seeds".to_owned(), seeds.to_string()])
}

/// Plays the script of a thousand machines, which is too large for a debug build.
pub(crate) fn thousand() -> Result<()> {
    simulate(&["script".to_owned(), THOUSAND.to_owned(), "--check".to_owned()])
}

fn simulate(arguments: &[String]) -> Result<()> {
    let mut cargo = cargo::command(&workspace_root()?);
    // A debug build is several times slower, and a hunt is as good as the number of its seeds.
    cargo.args(["run", "--release", "--locked", "--quiet", "--package", "keelson-sim", "--"]);
    let status = cargo.args(arguments).status().context("cargo cannot be started")?;
    ensure!(status.success(), "the simulator found something, or could not be run");
    Ok(())
}
