//! Runs Kubernetes' own test suite against a cluster that Keelson made, and says what came of it.
//!
//! `cargo xtask conformance` builds the suite and the images that its tests ask for, and becomes this program. It loads
//! the images into the workers, runs the tests that may run side by side and then those that may not, and writes a
//! report. The suite runs in **rounds**: a test that hangs, a machine that is lost or a person who interrupts ends a
//! round, what was decided by then counts, and the next round, or the next run with `--resume`, takes the rest.

mod cluster;
mod images;
mod log;
mod machines;
mod page;
mod report;
mod round;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use time::OffsetDateTime;

use crate::cluster::Cluster;
use crate::images::Images;
use crate::machines::Machines;
use crate::report::{Report, Run};
use crate::round::{End, Round};
use crate::suite::{Part, Suite, Test};

/// The tests of `--quick`: some of every area, chosen for what they exercise and for their haste.
const QUICK: &str = include_str!("../quick.txt");
/// A machine that was lost may take this long to be ready again; the coordinator needs seconds.
const MEND_MAX: Duration = Duration::from_secs(600);
/// How often it is looked at meanwhile.
const MEND_POLL: Duration = Duration::from_secs(3);
/// More losses of machines than this in one run are no accident.
const LOSSES_MAX: usize = 5;

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
    /// An OCI archive with the images that the tests ask for.
    #[arg(long)]
    images: PathBuf,
    /// A registry server, from which workers pull what tests want to be pulled.
    #[arg(long)]
    registry: PathBuf,
    /// Where reports go; made when it is not there.
    #[arg(long)]
    report: PathBuf,
    /// The commit that is tested, for the report.
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Only tests whose names match this regular expression.
    #[arg(long)]
    focus: Option<String>,
    /// No tests whose names match this regular expression.
    #[arg(long)]
    skip: Option<String>,
    /// Only a fixed selection of quick tests from all areas.
    #[arg(long, conflicts_with_all = ["focus", "skip"])]
    quick: bool,
    /// Goes on with the run that was interrupted.
    #[arg(long, conflicts_with_all = ["focus", "skip", "quick"])]
    resume: bool,
    /// A page whose part after the marker becomes the report of this run, which must be of all tests.
    #[arg(long, conflicts_with_all = ["focus", "skip", "quick"])]
    record: Option<PathBuf>,
    /// How many tests run side by side.
    #[arg(long, default_value_t = 6)]
    parallel: u32,
    /// Minutes that one test may take before it is ended and told as such.
    #[arg(long, default_value_t = 15)]
    test_minutes: u64,
}

#[expect(clippy::print_stderr, reason = "the edge of a program")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.context("no runtime").and_then(|runtime| runtime.block_on(run(&arguments)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    std::fs::create_dir_all(&arguments.report)?;
    let _alone = report::lock(&arguments.report)?;
    let cluster = Cluster::open(arguments).await?;
    cluster.expect_ready().await?;
    let suite = Suite::new(arguments, cluster.kubeconfig());
    suite.end_orphan().await?;
    let all = suite.list().await?;
    let mut report = begin(arguments, &all)?;
    let images = Images::open(&arguments.images)?;
    let prepare = async || cluster.prepare(&images, &arguments.registry).await;
    prepare().await?;
    // Of a run that was killed.
    cluster.sweep().await?;
    let began = Instant::now();
    let ran = rounds(&cluster, &suite, &all, &mut report, prepare).await;
    report.took(began.elapsed());
    // What is known is kept, whatever became of the rest.
    report.write()?;
    let swept = cluster.sweep().await;
    let unserved = cluster.unserve().await;
    ran?;
    swept.and(unserved)?;
    if let Some(page) = &arguments.record {
        report.record(page)?;
    }
    conclude(&report)
}

/// A report in which the tests of this run have not run yet.
#[expect(clippy::print_stderr, reason = "a run of an hour says what it will do")]
fn begin(arguments: &Arguments, all: &[Test]) -> Result<Report> {
    let report = if arguments.resume {
        Report::resume(&arguments.report)?
    } else {
        let chosen = choose(arguments, all)?;
        let run = Run {
            started: OffsetDateTime::now_utc(),
            commit: arguments.commit.clone(),
            full: chosen.len() == all.len(),
            finished: false,
            seconds: 0.0,
            parallel: arguments.parallel,
            incidents: Vec::new(),
        };
        Report::begin(&arguments.report, run, chosen.iter().map(|test| test.name.as_str()))?
    };
    let count = |part| all.iter().filter(|test| test.part == part && report.is_open(&test.name)).count();
    eprintln!("{} tests side by side, {} alone", count(Part::Parallel), count(Part::Serial));
    Ok(report)
}

/// The tests that the arguments ask for.
fn choose<'a>(arguments: &Arguments, all: &'a [Test]) -> Result<Vec<&'a Test>> {
    if arguments.quick {
        let names = QUICK.lines().filter(|line| !line.is_empty());
        return names
            .map(|name| {
                let test = all.iter().find(|test| test.name == name);
                test.with_context(|| format!("quick.txt names `{name}`, which this suite does not have"))
            })
            .collect();
    }
    let pattern = |text: &Option<String>, flag: &str| {
        let compile = |text: &String| {
            regex_lite::Regex::new(text).with_context(|| format!("{flag} is no regular expression"))
        };
        text.as_ref().map(compile).transpose()
    };
    let (focus, skip) = (pattern(&arguments.focus, "--focus")?, pattern(&arguments.skip, "--skip")?);
    let chosen: Vec<&Test> = all
        .iter()
        .filter(|test| focus.as_ref().is_none_or(|focus| focus.is_match(&test.name)))
        .filter(|test| !skip.as_ref().is_some_and(|skip| skip.is_match(&test.name)))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "none of the {} conformance tests matches; look at --focus and --skip",
        all.len()
    );
    Ok(chosen)
}

/// Runs rounds until every test is decided. `prepare` gives the cluster what tests need, once more after a machine was
/// lost with it.
#[expect(clippy::print_stderr, reason = "a run of an hour says how far it is")]
async fn rounds(
    cluster: &Cluster,
    suite: &Suite<'_>,
    all: &[Test],
    report: &mut Report,
    prepare: impl AsyncFn() -> Result<()>,
) -> Result<()> {
    let mut signals = round::Signals::new()?;
    let mut machines = Machines::watch(cluster.events())?;
    for part in [Part::Parallel, Part::Serial] {
        loop {
            let open: Vec<&Test> =
                all.iter().filter(|test| test.part == part && report.is_open(&test.name)).collect();
            if open.is_empty() {
                break;
            }
            let end = Round { suite, part, tests: &open }.run(report, &mut signals, &mut machines).await?;
            report.write()?;
            match end {
                End::Ended => {}
                End::TooLong => eprintln!("going on with the other tests"),
                End::Lost(lost) => {
                    let again = mended(cluster, &lost).await?;
                    prepare().await?;
                    eprintln!("{again}; going on");
                    ensure!(report.incident(again) <= LOSSES_MAX, "machines were lost too often: {lost}");
                }
                End::Interrupted => bail!(
                    "interrupted; {} tests are left; go on with: cargo xtask conformance --resume",
                    report.open()
                ),
            }
        }
    }
    report.finish();
    Ok(())
}

/// Waits until a cluster that lost a machine is ready again, and says how long that took.
#[expect(clippy::print_stderr, reason = "a person waits")]
async fn mended(cluster: &Cluster, lost: &str) -> Result<String> {
    eprintln!("{lost}; waiting until the cluster is ready again");
    let began = Instant::now();
    while let Err(error) = cluster.expect_ready().await {
        if began.elapsed() > MEND_MAX {
            let words = format!("{lost}; the tests did not fail, they stopped");
            return Err(error.context(words).context(
                "the cluster did not become ready again; when it is, go on with: cargo xtask conformance --resume",
            ));
        }
        tokio::time::sleep(MEND_POLL).await;
    }
    Ok(format!("{lost}; the cluster was ready again after {} s", began.elapsed().as_secs()))
}

#[expect(clippy::print_stderr, reason = "the result of the run")]
fn conclude(report: &Report) -> Result<()> {
    eprint!("{}", report.summary());
    ensure!(report.all_passed(), "not every test passed; see {}", report.page_path().display());
    Ok(())
}
