//! The simulator's program: one seed, many seeds, a replay file, or a script.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is for the person who started it")]

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use keelson_sim::{
    Case, Fleet, Hunt, Outcome, draw, hunt, hunt_first, minimise, play, run, run_aloud, seed_in_play,
};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// A whole fleet in one process, in virtual time.
#[derive(Debug, Parser)]
#[command(name = "keelson-sim", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play one seed.
    Run {
        /// The seed.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        fleet: FleetArgs,
        /// Whether anything goes wrong.
        #[arg(long, default_value = "on")]
        faults: Faults,
        /// Print every decision.
        #[arg(long)]
        trace: bool,
    },
    /// Play many seeds; of each that breaks a rule, the smallest case that still does is written down.
    Hunt {
        /// How many.
        #[arg(long)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 1)]
        from: u64,
        #[command(flatten)]
        fleet: FleetArgs,
        /// How many run at the same time; as many as there are CPUs when absent.
        #[arg(long)]
        threads: Option<usize>,
        /// Stop when a seed breaks a rule, and write no case down.
        #[arg(long)]
        first: bool,
        /// Form of the result.
        #[arg(long, default_value = "text")]
        output: Output,
        /// Where cases that break a rule are written.
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds"))]
        directory: PathBuf,
    },
    /// Play a script, and print what it says.
    Script {
        /// The file.
        file: PathBuf,
        /// Fail when it says anything else than its golden text, which lies beside it.
        #[arg(long)]
        check: bool,
    },
    /// Play a case that a hunt wrote down.
    Replay {
        /// The file.
        file: PathBuf,
    },
}

/// The fleet.
#[derive(Debug, Clone, Copy, clap::Args)]
struct FleetArgs {
    /// About how many machines.
    #[arg(long, default_value_t = 30)]
    machines: u64,
    /// For how many hours faults and wishes come.
    #[arg(long, default_value_t = 1.0)]
    hours: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Faults {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl FleetArgs {
    fn fleet(self, faults: Faults) -> Fleet {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "hours of a run are few and positive"
        )]
        let duration_ms = (self.hours * 3_600_000.0) as u64;
        Fleet { machines: self.machines, duration_ms, faults: faults == Faults::On }
    }
}

/// A program that panics breaks a rule too, and ends at once: its seed is what one needs to see it again.
fn name_seed_of_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        let seed = seed_in_play();
        eprintln!("that was seed {seed}: cargo xtask sim run --seed {seed} --trace");
    }));
}

fn main() -> ExitCode {
    name_seed_of_panic();
    let result = match Arguments::parse().command {
        Command::Run { seed, fleet, faults, trace } => Ok(run_seed(seed, fleet, faults, trace)),
        Command::Hunt { seeds, from, fleet, threads, first, output, directory } => {
            let threads =
                threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
            let hunt = Hunt { from, seeds, fleet: fleet.fleet(Faults::On), threads };
            let directory = (!first).then_some(directory.as_path());
            run_hunt(&hunt, fleet, output, directory)
        }
        Command::Replay { file } => replay(&file),
        Command::Script { file, check } => script(&file, check),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_seed(seed: u64, fleet: FleetArgs, faults: Faults, trace: bool) -> bool {
    println!("seed {seed}, {} machines, {} hours, faults {faults:?}", fleet.machines, fleet.hours);
    let case = draw(seed, fleet.fleet(faults));
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let outcome = if trace { run_aloud(&case) } else { run(&case) };
    tell(&outcome, began.elapsed(), cpu_seconds() - cpu);
    outcome.violation.is_none()
}

fn replay(file: &Path) -> Result<bool> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let case: Case = serde_json::from_str(&text).with_context(|| format!("{} is no case", file.display()))?;
    println!(
        "seed {}, {} faults, {} wishes, from {}",
        case.seed,
        case.faults.len(),
        case.wishes.len(),
        file.display()
    );
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let outcome = run(&case);
    tell(&outcome, began.elapsed(), cpu_seconds() - cpu);
    Ok(outcome.violation.is_none())
}

fn script(file: &Path, check: bool) -> Result<bool> {
    let read = |file: &Path| {
        std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
    };
    let text = read(file)?;
    let golden = file.with_extension("golden");
    let expected = check.then(|| read(&golden)).transpose()?;
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let said = play(&text).with_context(|| format!("{} was not played to its end", file.display()))?;
    print!("{said}");
    eprintln!("played in {:.1} s, {:.1} s of CPU", began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let as_expected = expected.is_none_or(|expected| expected == said);
    if !as_expected {
        eprintln!(
            "it says something else than {}; when that is right, write what it says there",
            golden.display()
        );
    }
    Ok(as_expected)
}

fn tell(outcome: &Outcome, elapsed: Duration, cpu: f64) {
    show_failure(outcome);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let rate = outcome.events as f64 / cpu;
    println!(
        "{} events in {:.2} s, {:.2} s of CPU, {rate:.0} events per second of it; {:.1} virtual minutes with {} machines; converged {} s after the last fault; sum {:016x}",
        outcome.events,
        elapsed.as_secs_f64(),
        cpu,
        outcome.virtual_ms as f64 / 60_000.0,
        outcome.machines,
        outcome.converged_ms / 1_000,
        outcome.sum
    );
}

/// CPU time that this process has used.
fn cpu_seconds() -> f64 {
    let used = getrusage(UsageWho::RUSAGE_SELF).map(|usage| usage.user_time() + usage.system_time());
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    used.map_or(f64::NAN, |time| time.num_microseconds() as f64 / 1e6)
}

fn show_failure(outcome: &Outcome) {
    if let Some(violation) = &outcome.violation {
        println!("seed {}: {violation}", outcome.seed);
        outcome.last.iter().for_each(|line| println!("  {line}"));
    }
}

/// Hunts. Without a directory the first failure ends it, and no case is written down.
fn run_hunt(hunt_for: &Hunt, fleet: FleetArgs, output: Output, directory: Option<&Path>) -> Result<bool> {
    let text = output == Output::Text;
    if text {
        let last = hunt_for.from + hunt_for.seeds - 1;
        println!("seeds {} to {last}, {} machines, {} hours", hunt_for.from, fleet.machines, fleet.hours);
    }
    let began = Instant::now();
    let told = |outcome: &Outcome| {
        if text {
            show_failure(outcome);
        }
    };
    let report = if directory.is_some() { hunt(hunt_for, told) } else { hunt_first(hunt_for, told) };
    let seconds = began.elapsed().as_secs_f64();
    if let Some(directory) = directory {
        for outcome in &report.failures {
            let Some(file) = write_case(hunt_for, outcome, directory)? else { continue };
            if text {
                println!("replay with: cargo xtask sim replay {}", file.display());
            }
        }
    }
    if text {
        println!(
            "{} seeds, {} violations, {} events in {seconds:.1} s, {:.0} virtual hours; slowest convergence {} s",
            report.seeds,
            report.violations,
            report.events,
            report.virtual_ms as f64 / 3_600_000.0,
            report.converged_ms_max / 1_000
        );
    } else {
        let mut value = serde_json::to_value(&report).context("a report cannot be written")?;
        value["wallSeconds"] = serde_json::json!(seconds);
        println!("{value}");
    }
    Ok(report.violations == 0)
}

/// Writes down the smallest case that breaks the rule that an outcome broke.
fn write_case(hunt_for: &Hunt, outcome: &Outcome, directory: &Path) -> Result<Option<PathBuf>> {
    let Some(violation) = &outcome.violation else { return Ok(None) };
    let case = minimise(&draw(outcome.seed, hunt_for.fleet), violation.checker);
    let file = directory.join(format!("{:?}-{}.json", violation.checker, outcome.seed).to_lowercase());
    let case = serde_json::to_string_pretty(&case).context("a case cannot be written")?;
    std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    std::fs::write(&file, case + "\n").with_context(|| format!("{} cannot be written", file.display()))?;
    Ok(Some(file))
}
