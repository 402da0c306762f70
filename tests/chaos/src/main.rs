//! Breaks a highly available cluster for a while, again and again, and measures what its users notice of it.
//!
//! A client writes through the outside endpoint the whole time and knows which writes were acknowledged; a Deployment
//! runs on two workers. Faults are drawn from a seed, one after the other and sometimes two at once, while machines,
//! events and nodes are looked at. It goes through the front door (`keelson`, the Kubernetes API), through a console
//! of the machines, and through the fault bench of the local provider; it knows nothing of what the coordinator thinks.

mod api;
mod breaker;
mod fault;
mod installation;
mod observer;
mod report;
mod run;
mod signals;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::api::{Connection, runtime};
use crate::fault::{Disks, Draw, Fault, Kind, Target};
use crate::installation::Installation;
use crate::observer::Observer;
use crate::report::{Outcome, Report, kind_name};
use crate::run::Runner;
use crate::signals::Signals;
use crate::writer::Writer;

/// The faults of `--fixed`.
const FIXED: [Kind; 3] = [Kind::Kill, Kind::Hang, Kind::Kill];
/// How long the client writes before the first fault: a run begins with a cluster that works.
const QUIET: Duration = Duration::from_secs(5);
/// Pause between two of the fixed faults: their machines' incidents are closed by then.
const FIXED_PAUSE_S: u64 = 6;

/// What is needed; `cargo xtask chaos` fills it in.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// State directory of the installation.
    #[arg(long)]
    state_dir: PathBuf,
    /// The command line program of Keelson.
    #[arg(long)]
    keelson: PathBuf,
    /// The coordinator's program, to start it again.
    #[arg(long)]
    coordinator: PathBuf,
    /// Digest of the node image that the coordinator offers.
    #[arg(long)]
    image: String,
    /// The cluster; made, and deleted afterwards, when it is not there.
    #[arg(long)]
    cluster: String,
    /// The plan with which it is made.
    #[arg(long)]
    plan: String,
    /// For how long new faults are injected.
    #[arg(long)]
    minutes: u64,
    /// From which the faults are drawn.
    #[arg(long)]
    seed: u64,
    /// Three fixed faults.
    #[arg(long)]
    fixed: bool,
    /// Only these kinds.
    #[arg(long, value_enum, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// With which the coordinator was started, when it was.
    #[arg(long)]
    fault_disk_bytes: Option<u64>,
    /// Form of the result.
    #[arg(long, value_enum)]
    output: Output,
}

/// Forms of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
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

fn run(arguments: &Arguments) -> Result<()> {
    let fills = arguments.kinds.iter().any(|kind| kind.needs_a_limited_disk());
    ensure!(
        !fills || arguments.fault_disk_bytes.is_some(),
        "disks of this installation are the host's, which must not be filled; add --fault-disk-bytes"
    );
    let signals = Signals::take()?;
    let installation = Installation::new(arguments);
    say(&format!("waiting for cluster {} of plan {}", arguments.cluster, arguments.plan));
    let is_new = installation.ensure_cluster()?;
    let broken = break_it(arguments, &installation, &signals);
    if !is_new {
        return broken;
    }
    say(&format!("deleting cluster {}", arguments.cluster));
    broken.and(installation.delete_cluster())
}

/// Runs the clients, injects faults, and tells what came of it.
fn break_it(arguments: &Arguments, installation: &Installation, signals: &Signals) -> Result<()> {
    let namespace = format!("chaos-{}-{}", arguments.seed, std::process::id());
    let kubeconfig = installation.kubeconfig()?;
    let connection = runtime()?.block_on(Connection::new(&kubeconfig, &namespace))?;
    let observer = Observer::start(&connection, &namespace)?;
    let writer = Writer::start(&connection, arguments.seed)?;
    let began = Instant::now();
    let mut outcomes = Vec::new();
    let ran = Runner::new(installation, &writer, &observer, signals)
        .and_then(|mut runner| faults(arguments, &mut runner, &mut outcomes));
    let seconds = began.elapsed().as_secs_f64();
    // What is known is told, whatever became of the rest.
    let report = writer.finish().map(|sum| Report::new(arguments.seed, seconds, outcomes, &sum));
    if let Ok(report) = &report {
        print(report, arguments.output)?;
    }
    // Nobody waits for it, and the cluster may be gone in a moment.
    let _ = observer::remove(&connection, &namespace);
    ran.context("the run could not go on")?;
    ensure!(report?.is_good(), "something did not recover, was lost, or was done without need; see above");
    Ok(())
}

/// Injects faults until the time is over.
fn faults(arguments: &Arguments, runner: &mut Runner<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    runner.wait_ready()?;
    runner.wait_pods()?;
    runner.signals.sleep(QUIET)?;
    let disks = if arguments.fault_disk_bytes.is_some() { Disks::Limited } else { Disks::OfTheHost };
    let mut draw = Draw::new(arguments.seed, &arguments.kinds, disks);
    let until = Instant::now() + Duration::from_secs(arguments.minutes * 60);
    let mut fixed = FIXED.iter().enumerate();
    loop {
        let step = if arguments.fixed {
            let Some((index, kind)) = fixed.next() else { return Ok(()) };
            vec![fixed_fault(runner, index, *kind)?]
        } else if Instant::now() < until {
            draw.step(&runner.machines()?)
        } else {
            return Ok(());
        };
        for fault in &step {
            say(&format!("{} {}", kind_name(fault.kind), fault.what()));
        }
        let known = outcomes.len();
        let done = runner.step(step, outcomes);
        outcomes.iter().skip(known).for_each(|outcome| say(&format!("    {}", outcome.line())));
        done?;
        let pause_s = if arguments.fixed { FIXED_PAUSE_S } else { draw.pause_s() };
        runner.signals.sleep(Duration::from_secs(pause_s))?;
        runner.wait_ready()?;
    }
}

/// The master that the client's connection leads to, an etcd machine, a worker.
fn fixed_fault(runner: &Runner<'_>, index: usize, kind: Kind) -> Result<Fault> {
    let machines = runner.installation.show()?.machines;
    let of = |role: &str| -> Vec<String> {
        machines
            .iter()
            .filter(|(victim, _)| victim.role == role)
            .map(|(victim, _)| victim.id.clone())
            .collect()
    };
    let id = match index {
        0 => {
            let inside: Vec<String> = machines.iter().map(|(_, address)| address.clone()).collect();
            runner.breaker.busiest_master(&of("master"), &inside)?
        }
        1 => of("etcd").first().context("the cluster has no etcd machine")?.clone(),
        _ => of("worker").first().context("the cluster has no worker")?.clone(),
    };
    Ok(Fault { kind, target: Target::Machine(id) })
}

#[expect(clippy::print_stderr, reason = "a run of many minutes says what it does")]
fn say(what: &str) {
    let now = time::OffsetDateTime::now_utc().time();
    eprintln!("{:02}:{:02}:{:02}  {what}", now.hour(), now.minute(), now.second());
}

#[expect(clippy::print_stdout, reason = "the result of the run")]
fn print(report: &Report, output: Output) -> Result<()> {
    match output {
        Output::Text => print!("\n{}", report.text()),
        Output::Json => println!("{}", serde_json::to_string(report)?),
    }
    Ok(())
}
