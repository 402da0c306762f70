//! Runs Kubernetes' own test suite against a cluster that Keelson made, and says what came of it.
//!
//! `cargo xtask conformance` builds the suite and the images that its tests ask for, and calls this program. It loads the
//! images into the workers, runs the tests that may run side by side and then those that may not, and writes a report.

mod cluster;
mod report;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::cluster::Cluster;
use crate::report::Report;
use crate::suite::{Part, Suite};

/// What is needed; `cargo xtask conformance` fills it in.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// The cluster.
    #[arg(long)]
    cluster: String,
    /// The command line program of Keelson.
    #[arg(long)]
    keelson: PathBuf,
    /// Its context file.
    #[arg(long)]
    context: PathBuf,
    /// kubectl of the suite's version.
    #[arg(long)]
    kubectl: PathBuf,
    /// Ginkgo's runner.
    #[arg(long)]
    ginkgo: PathBuf,
    /// The compiled suite.
    #[arg(long)]
    suite: PathBuf,
    /// A JSON list of `{name, archive}`: the images that the tests ask for.
    #[arg(long)]
    images: PathBuf,
    /// Where reports go; made when it is not there.
    #[arg(long)]
    report: PathBuf,
    /// Only tests whose names match this regular expression.
    #[arg(long)]
    focus: Option<String>,
    /// No tests whose names match this regular expression.
    #[arg(long)]
    skip: Option<String>,
    /// How many tests run side by side.
    #[arg(long, default_value_t = 4)]
    parallel: u32,
    /// Minutes after which the tests that still run are interrupted, and told as such.
    #[arg(long, default_value_t = 240)]
    minutes: u64,
}

#[expect(clippy::print_stderr, reason = "the edge of a program")]
fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a run of hours says how far it is")]
fn run(arguments: &Arguments) -> Result<()> {
    let cluster = Cluster::open(arguments)?;
    cluster.expect_ready()?;
    let suite = Suite::new(arguments, cluster.kubeconfig(), Duration::from_secs(arguments.minutes * 60));
    let chosen = suite.choose()?;
    let count = |part| chosen.iter().filter(|test| test.part == part).count();
    ensure!(!chosen.is_empty(), "no conformance test matches; look at --focus and --skip");
    eprintln!(
        "{} tests: {} side by side, {} alone",
        chosen.len(),
        count(Part::Parallel),
        count(Part::Serial)
    );
    let images = std::fs::read(&arguments.images).context("the list of images cannot be read")?;
    cluster.load_images(&serde_json::from_slice::<Vec<cluster::Image>>(&images)?)?;
    std::fs::create_dir_all(&arguments.report)?;
    let mut report = Report::of(&chosen);
    report.compare(&arguments.report)?;
    for part in [Part::Parallel, Part::Serial] {
        if count(part) > 0 {
            let ran = suite.run(part, &arguments.report).map(|outcomes| report.add(outcomes));
            // What is known is kept, whatever comes next.
            report.write(&arguments.report)?;
            ran?;
        }
    }
    eprint!("{}", report.summary());
    if let Some(dead) = cluster.unready_machines()? {
        bail!("{dead} while the tests ran; failures may be due to that");
    }
    ensure!(
        report.all_passed(),
        "not every test passed; see {}",
        arguments.report.join("report.md").display()
    );
    Ok(())
}
