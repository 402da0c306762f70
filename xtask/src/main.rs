//! `cargo xtask`: one command for every chore.

#![allow(clippy::print_stderr, reason = "a chore tells the person who started it how far it is")]

mod bench;
mod cargo;
mod chaos;
mod check;
mod conformance;
mod coordinator;
mod demo;
mod down;
mod host;
mod image;
mod mutations;
mod programs;
mod sim;
mod state;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Every chore of the source tree.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Set up this machine, build everything, and end with a running demo cluster.
    Up(up::UpArgs),
    /// Remove every process, namespace, mount and container that `up` made.
    Down(down::DownArgs),
    /// Run everything that CI runs.
    Test(test::TestArgs),
    /// Check style: formatting, lints, dependency arrows, documents, no binary files.
    Check,
    /// Run Kubernetes' own conformance suite against a cluster; hours for all of it.
    Conformance(conformance::ConformanceArgs),
    /// Break a highly available cluster for a while, and measure what its users notice.
    Chaos(chaos::ChaosArgs),
    /// Measure something and print the figures.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Play whole fleets in virtual time: one seed, many, or a case that once broke a rule; or break the code, to see it found.
    Sim(sim::SimArgs),
    /// Build, list, show and verify node images.
    #[command(subcommand)]
    Image(image::ImageCommand),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Up(args) => up::run(&args),
        Chore::Down(args) => down::run(&args),
        Chore::Test(args) => test::run(&args),
        Chore::Check => check::run(),
        Chore::Conformance(args) => conformance::run(&args),
        Chore::Chaos(args) => chaos::run(&args),
        Chore::Bench(command) => bench::run(&command),
        Chore::Sim(args) => sim::run(&args),
        Chore::Image(command) => image::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
