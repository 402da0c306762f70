//! `cargo xtask chaos`: breaks a highly available cluster for a while, and measures what its users notice.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::programs::workspace_root;
use crate::state::StateArgs;
use crate::test::Scratch;
use crate::up::{self, Output, Started, Steps, UpArgs};
use crate::{cargo, down};

/// The plan whose clusters are broken unless another one is named.
const PLAN: &str = "ha";

/// How large the disks of an installation are that is made for a run, so that they can be filled: in memory, and a machine
/// uses a quarter of it.
const FAULT_DISK_BYTES: u64 = 2 << 30;

/// Seeds that are drawn are below this: short enough to be typed.
const SEEDS: u128 = 1_000_000;

/// For how long, and what.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChaosArgs {
    /// State directory of an installation to use; without it one is made for the run and removed afterwards.
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// The cluster; made, and deleted afterwards, when it is not there.
    #[arg(long, default_value = "chaos")]
    cluster: String,
    /// The plan with which it is made: `ha`, or `ha-stacked`, whose masters are the etcd machines as well.
    #[arg(long, default_value = PLAN)]
    plan: String,
    /// For how long new faults are injected, in minutes.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// From which the faults are drawn; drawn itself when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Three fixed faults instead: the master that a client's connection leads to, an etcd machine, a worker.
    #[arg(long, conflicts_with_all = ["minutes", "kinds", "plan"])]
    fixed: bool,
    /// Only faults of these kinds, with commas between them: kill, power-off, freeze, hang, cut-coordinator, cut-one-way,
    /// cut-all, cut-zone, isolate-zone, kill-unit, stop-unit, corrupt-file, delete-file, kill-coordinator, kill-forwarder, vanish,
    /// fill-disk, old-logs, many-logs, kill-shim.
    #[arg(long)]
    kinds: Option<String>,
    /// Give machines disks in memory of so many bytes, so that `fill-disk`, `old-logs` and `many-logs` come too. Filled ones take that
    /// much of the host's memory. Two gigabytes in an installation that is made for the run; one that is there keeps what it was made with.
    #[arg(long, value_name = "BYTES")]
    fault_disk_bytes: Option<u64>,
    /// Form of the result on standard output; progress goes to standard error.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Runs `cargo xtask chaos`.
pub(crate) fn run(args: &ChaosArgs) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let seed = args.seed.unwrap_or_else(|| u64::try_from(now % SEEDS).unwrap_or_default());
    let signals = Signals::take()?;
    if let Some(state_dir) = &args.state_dir {
        return on(args, seed, StateArgs::at(state_dir.clone()), &signals);
    }
    let scratch = Scratch::new()?;
    let usual = (!args.fixed).then_some(FAULT_DISK_BYTES);
    let args = &ChaosArgs { fault_disk_bytes: args.fault_disk_bytes.or(usual), ..args.clone() };
    let result = on(args, seed, StateArgs::at(scratch.path.clone()), &signals);
    result.and(down::remove(&scratch.path))
}

/// Breaks a cluster of one installation.
fn on(args: &ChaosArgs, seed: u64, state: StateArgs, signals: &Signals) -> Result<()> {
    let fault_disk_bytes = up::fault_disk_bytes(&state.directory()?, args.fault_disk_bytes)?;
    let again = again(args, seed, fault_disk_bytes);
    eprintln!("seed {seed}: repeat with `{again}`");
    let up = UpArgs { fault_disk_bytes, ..UpArgs::usual(state) };
    let started = up::start(&up, &mut Steps::default())?;
    let status = signals.run(&mut command(args, seed, &started)?)?;
    ensure!(status.success(), "the run did not end well; repeat it with `{again}`");
    Ok(())
}

/// The command that draws the same faults again: a seed alone does not, as the kinds and the disks decide what is drawn.
fn again(args: &ChaosArgs, seed: u64, fault_disk_bytes: Option<u64>) -> String {
    let mut again = "cargo xtask chaos".to_owned();
    if args.fixed {
        again += " --fixed";
    } else {
        again += &format!(" --seed {seed} --minutes {}", args.minutes);
    }
    if let Some(kinds) = &args.kinds {
        again += &format!(" --kinds {kinds}");
    }
    if args.plan != PLAN {
        again += &format!(" --plan {}", args.plan);
    }
    if let Some(bytes) = fault_disk_bytes {
        again += &format!(" --fault-disk-bytes {bytes}");
    }
    again
}

/// The program that does it, with all that it needs to know.
fn command(args: &ChaosArgs, seed: u64, started: &Started) -> Result<Command> {
    let mut cargo = cargo::command(&workspace_root()?);
    cargo.args(["run", "--locked", "--quiet", "--package", "keelson-chaos", "--"]);
    cargo.arg("--state-dir").arg(&started.state_dir);
    cargo.arg("--keelson").arg(&started.keelson.program);
    cargo.arg("--coordinator").arg(&started.programs.coordinator);
    cargo.args(["--image", &started.image.digest.to_string(), "--cluster", &args.cluster]);
    cargo.args(["--plan", &args.plan]);
    cargo.args(["--minutes", &args.minutes.to_string(), "--seed", &seed.to_string()]);
    cargo.args(args.fixed.then_some("--fixed"));
    if let Some(bytes) = started.fault_disk_bytes {
        cargo.args(["--fault-disk-bytes", &bytes.to_string()]);
    }
    cargo.args(args.kinds.iter().flat_map(|kinds| ["--kinds", kinds.as_str()]));
    cargo.args(["--output", if args.output == Output::Json { "json" } else { "text" }]);
    Ok(cargo)
}

/// Ctrl-C and SIGTERM are for the program that runs; this one cleans up after it.
struct Signals {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    interrupted: bool,
    running: Option<Pid>,
}

impl Signals {
    /// Takes both signals. They are handled and not blocked, as programs that are started inherit a block.
    fn take() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut interrupt, mut terminate) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let listen = async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                state.interrupted = true;
                if let Some(pid) = state.running {
                    // It may have ended a moment ago, and was not waited for yet: then this does nothing.
                    let _ = kill(pid, Signal::SIGTERM);
                }
            }
        };
        let work = move || runtime.block_on(listen);
        std::thread::Builder::new().name("signals".to_owned()).spawn(work)?;
        Ok(Self { state })
    }

    /// Runs a program to its end, unless somebody has interrupted.
    fn run(&self, command: &mut Command) -> Result<ExitStatus> {
        let mut child = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(!state.interrupted, "interrupted");
            let child = command.spawn().context("cargo cannot be started")?;
            state.running = Some(Pid::from_raw(i32::try_from(child.id())?));
            child
        };
        let status = child.wait();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).running = None;
        Ok(status?)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ChaosArgs,
    }

    #[test]
    fn the_command_that_repeats_a_run_says_all_that_decides_its_faults() {
        let check = |words: &[&str], disk_bytes, expected: &str| {
            let line = Line::try_parse_from([&["chaos"], words].concat()).unwrap();
            assert_eq!(again(&line.args, 7, disk_bytes), expected);
        };
        check(&[], None, "cargo xtask chaos --seed 7 --minutes 20");
        check(&["--fixed"], None, "cargo xtask chaos --fixed");
        // What an installation was made with counts like what was asked for.
        check(
            &["--kinds", "hang,vanish", "--minutes", "3", "--state-dir", "/state", "--plan", "ha-stacked"],
            Some(2048),
            "cargo xtask chaos --seed 7 --minutes 3 --kinds hang,vanish --plan ha-stacked --fault-disk-bytes 2048",
        );
    }
}
