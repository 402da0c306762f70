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

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use time::OffsetDateTime;

use crate::cluster::Cluster;
use crate::images::Images;
use crate::machines::Machines;
use crate::report::{Report, Run};
use crate::round::{End, Round, Signals};
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
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    parallel: u32,
    /// Minutes that one test may take before it is ended and told as such.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
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
    let suite = Suite::new(arguments, cluster.kubeconfig());
    suite.end_orphan().await?;
    let all = suite.list().await?;
    let wanted = Wanted::of(arguments, &all)?;
    let images = Images::open(&arguments.images)?;
    // From here on there is something to clean up.
    let mut signals = Signals::new()?;
    let prepared = tokio::select! {
        prepared = prepare(&cluster, &images, arguments) => prepared,
        () = signals.next() => Err(anyhow!("interrupted; no test has run")),
    };
    let mut report = None;
    let ran = match prepared {
        Ok(()) => {
            let report = report.insert(wanted.begin(arguments, &all)?);
            let began = Instant::now();
            let ran = rounds(&cluster, &suite, &all, &images, report, &mut signals).await;
            report.took(began.elapsed());
            // What is known is kept, whatever became of the rest.
            report.write().and(ran)
        }
        Err(error) => Err(error),
    };
    let cleaned = tokio::select! {
        cleaned = clean_up(&cluster) => cleaned,
        () = signals.next() => Err(anyhow!("interrupted")),
    };
    let cleaned = cleaned.context("the cluster is not as it was before");
    let (Ok(()), Some(report)) = (&ran, &report) else { return ran.and(cleaned) };
    let recorded = arguments.record.as_ref().map_or(Ok(()), |page| report.record(page));
    conclude(report).and(recorded).and(cleaned)
}

/// Takes away what tests and [`prepare`] made, the one also when the other fails.
async fn clean_up(cluster: &Cluster) -> Result<()> {
    let swept = cluster.sweep().await;
    cluster.unserve().await.and(swept)
}

/// Gives the cluster what tests need, and takes away what those of a killed run left.
async fn prepare(cluster: &Cluster, images: &Images, arguments: &Arguments) -> Result<()> {
    cluster.prepare(images, &arguments.registry).await?;
    cluster.sweep().await
}

/// What is to run.
enum Wanted {
    /// What is open of the run that was interrupted.
    Rest(Report),
    /// These tests.
    Tests(Vec<String>),
}

impl Wanted {
    fn of(arguments: &Arguments, all: &[Test]) -> Result<Self> {
        if arguments.resume {
            return Report::resume(&arguments.report, &arguments.cluster, &arguments.commit).map(Self::Rest);
        }
        let chosen = choose(arguments, all)?;
        Ok(Self::Tests(chosen.into_iter().map(|test| test.name.clone()).collect()))
    }

    /// A report in which these tests have not run yet.
    #[expect(clippy::print_stderr, reason = "a run of an hour says what it will do")]
    fn begin(self, arguments: &Arguments, all: &[Test]) -> Result<Report> {
        let report = match self {
            Self::Rest(report) => report,
            Self::Tests(chosen) => {
                let run = Run {
                    started: OffsetDateTime::now_utc(),
                    cluster: arguments.cluster.clone(),
                    commits: vec![arguments.commit.clone()],
                    full: chosen.len() == all.len(),
                    finished: false,
                    seconds: 0.0,
                    parallel: arguments.parallel,
                    incidents: Vec::new(),
                };
                Report::begin(&arguments.report, run, chosen.iter().map(String::as_str))?
            }
        };
        let count = |part| all.iter().filter(|test| test.part == part && report.is_open(&test.name)).count();
        eprintln!("{} tests side by side, {} alone", count(Part::Parallel), count(Part::Serial));
        Ok(report)
    }
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

/// Runs rounds until every test is decided.
#[expect(clippy::print_stderr, reason = "a run of an hour says how far it is")]
async fn rounds(
    cluster: &Cluster,
    suite: &Suite<'_>,
    all: &[Test],
    images: &Images,
    report: &mut Report,
    signals: &mut Signals,
) -> Result<()> {
    let mut machines = Machines::watch(cluster.events())?;
    let mut losses = 0;
    for part in [Part::Parallel, Part::Serial] {
        loop {
            let open: Vec<&Test> =
                all.iter().filter(|test| test.part == part && report.is_open(&test.name)).collect();
            if open.is_empty() {
                break;
            }
            let end = Round { suite, part, tests: &open }.run(report, signals, &mut machines).await?;
            report.write()?;
            match end {
                End::Ended => {}
                End::TooLong => eprintln!("going on with the other tests"),
                End::Lost(lost) => {
                    losses += 1;
                    ensure!(
                        losses <= LOSSES_MAX,
                        "machines were lost too often, {lost}; {}",
                        suite.how_to_go_on()
                    );
                    let again = tokio::select! {
                        again = mended(cluster, suite, images, &lost) => again?,
                        () = signals.next() => bail!("interrupted; {}", suite.how_to_go_on()),
                    };
                    eprintln!("{again}; going on");
                    report.incident(again);
                    machines.forget();
                }
                End::Interrupted => {
                    bail!("interrupted, {} tests are left; {}", report.open(), suite.how_to_go_on())
                }
            }
        }
    }
    ensure!(report.open() == 0, "{} tests of the run are not in this suite; start a new one", report.open());
    report.finish();
    Ok(())
}

/// Waits until a cluster that lost a machine is ready again and has what tests need, and says how long that took.
#[expect(clippy::print_stderr, reason = "a person waits")]
async fn mended(cluster: &Cluster, suite: &Suite<'_>, images: &Images, lost: &str) -> Result<String> {
    eprintln!("{lost}; waiting until the cluster is ready again");
    let began = Instant::now();
    while let Err(error) = cluster.expect_ready().await {
        if began.elapsed() > MEND_MAX {
            let go_on = suite.how_to_go_on();
            let words =
                format!("{lost}; the tests did not fail, they stopped; when the cluster is ready, {go_on}");
            return Err(error.context(words));
        }
        tokio::time::sleep(MEND_POLL).await;
    }
    let seconds = began.elapsed().as_secs();
    cluster.prepare(images, suite.registry()).await?;
    Ok(format!("{lost}; the cluster was ready again after {seconds} s"))
}

#[expect(clippy::print_stderr, reason = "the result of the run")]
fn conclude(report: &Report) -> Result<()> {
    eprint!("{}", report.summary());
    ensure!(report.all_passed(), "not every test passed; see {}", report.page_path().display());
    Ok(())
}
