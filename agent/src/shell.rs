//! The loop: take an input, call the core, carry out its actions in order, sleep until the core wants to be woken.
//!
//! No decision is made here. One rule is kept here: while the ledger is being written, nothing that was decided later
//! begins; only heartbeats pass, because they rely on nothing, and a slow disk must not make a machine look dead.

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use keelson_agent_core::{Action, AgentCore, AgentStatus, Event, LedgerFound, Look, Me, Seed, Start};
use keelson_host::Host;
use keelson_protocol::message::{BulkRequest, ToCoordinator};
use keelson_protocol::{Incarnation, MachineId, SecretBytes};
use keelson_transport::{BulkStream, Identity, LinkClient};
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::bulk;
use crate::clock;
use crate::enrol::{LinkTask, SharedGeneration, wait_for_metadata};
use crate::ledger_file::LedgerFile;
use crate::metadata::Metadata;
use crate::paths::Paths;
use crate::peers::{self, Prober};
use crate::status;
use crate::steps::Steps;

/// Inputs that wait for the core. Every sender waits when it is full, so nothing is lost.
const INPUTS_MAX: usize = 256;
/// A look that takes longer has lost its answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// A write of the ledger that takes longer is given up: a disk that hangs must not keep a machine from giving up its work.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the coordinator is given to hear that the agent stops.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long after a change of a file is waited for more of them.
const FILES_SETTLE: Duration = Duration::from_millis(200);
/// The least time between two looks that changes of files lead to.
const FILES_PAUSE: Duration = Duration::from_secs(1);
/// Threads for work that waits for disks: those of the host, one for the ledger, one for the link's identity, and one to spare.
const BLOCKING_THREADS_MAX: usize = keelson_host::BLOCKING_THREADS_MAX + 3;
/// They go when they have nothing to do, and their memory with them. One is always there, because disks are looked at more
/// often than this: a system that has no threads left has none for the agent either.
const BLOCKING_THREADS_KEPT: Duration = Duration::from_secs(30);

/// What wakes the loop.
pub(crate) enum Input {
    /// For the core.
    Event(Event),
    /// The link's client exists.
    LinkUp(LinkClient),
    /// The machine was enrolled again.
    NewIdentity(Identity),
    /// The coordinator opened a bulk stream.
    Bulk(BulkRequest, Box<BulkStream>),
    /// The agent works for another machine than the metadata names: it must begin anew.
    Restart(String),
    /// Somebody asks for the status.
    Status(oneshot::Sender<AgentStatus>),
}

/// Runs the agent until it is told to stop.
pub(crate) fn run(paths: &Paths) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // The journal has its own.
        .without_time()
        .init();
    // Nothing that the agent makes is for others, unless it says so.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let _lock = lock(paths)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREADS_KEPT)
        .build()
        .context("the tokio runtime could not be made")?;
    let result = runtime.block_on(serve(paths));
    // Work that hangs on a dead disk must not keep the process from ending.
    runtime.shutdown_background();
    result
}

/// Two agents would undo each other's work.
fn lock(paths: &Paths) -> anyhow::Result<Flock<fs::File>> {
    let path = paths.lock();
    fs::create_dir_all(&paths.run)
        .with_context(|| format!("folder {} cannot be made", paths.run.display()))?;
    let file = fs::File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("another agent runs on this machine: it holds {}", path.display()))
}

async fn serve(paths: &Paths) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be watched")?;
    let (machine, incarnation, ledger) = tokio::select! {
        who = who_am_i(paths) => who,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let (mut shell, inputs) = Shell::build(paths, machine, incarnation, ledger)?;
    notify_ready();
    let ended = tokio::select! {
        why = shell.run(inputs) => Err(anyhow::anyhow!("the agent must be started again: {why}")),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    info!("the agent stops; what runs on this machine goes on");
    shell.goodbye().await;
    ended
}

/// Who this machine is: by its metadata, or while there is none, by its ledger. A machine that was rebooted must come
/// up also when the infrastructure's metadata does not.
async fn who_am_i(paths: &Paths) -> (MachineId, Incarnation, LedgerFound) {
    let found = LedgerFile::of(paths).read();
    let metadata = match (Metadata::read(&paths.metadata), found.ledger()) {
        (Ok(metadata), _) => metadata,
        (Err(error), Some(ledger)) => {
            info!(
                error = keelson_protocol::errors::chain(&error),
                "the agent takes its name from its ledger"
            );
            return (ledger.machine.clone(), ledger.incarnation, found);
        }
        (Err(_), None) => wait_for_metadata(paths).await,
    };
    (metadata.machine, metadata.incarnation, found)
}

/// Tells systemd that the agent is up (sd_notify(3)), when its unit asks for that.
fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent =
        std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", path));
    if let Err(error) = sent {
        debug!(%error, "systemd could not be told that the agent is up");
    }
}

struct Shell {
    core: AgentCore,
    steps: Steps,
    prober: Prober,
    link: Option<LinkClient>,
    generation: SharedGeneration,
    ledger: LedgerFile,
    /// Actions that wait for the ledger to be written.
    queue: VecDeque<Action>,
    persisting: Option<LedgerWrite>,
    /// A write that was given up and still goes on: no other one begins before it ends.
    hung: Option<JoinHandle<Result<(), String>>>,
    sender: mpsc::Sender<Input>,
}

impl Shell {
    fn build(
        paths: &Paths,
        machine: MachineId,
        incarnation: Incarnation,
        ledger: LedgerFound,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Input>)> {
        let boot = keelson_host::boot_id().context("this boot has no id")?;
        let seed = Seed(keelson_host::random_number().context("there is no randomness")?);
        let version = env!("CARGO_PKG_VERSION");
        let start = Start {
            me: Me { machine: machine.clone(), incarnation, boot },
            ledger,
            version: version.to_owned(),
            seed,
        };
        let core = AgentCore::restore(start, clock::mono(), clock::wall());
        info!(%machine, %incarnation, %boot, version, "the agent starts");
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let generation = SharedGeneration::default();
        *generation.lock().expect("no holder of this lock panics") = core.generation();
        status::serve(paths.socket(), sender.clone()).context("the status socket cannot be made")?;
        let link = LinkTask {
            paths: paths.clone(),
            machine: machine.clone(),
            incarnation,
            facts: keelson_host::facts(version, boot),
            generation: Arc::clone(&generation),
            seed,
            inputs: sender.clone(),
        };
        tokio::spawn(link.run());
        let prober = Prober::new(peers::Me { machine: machine.clone(), incarnation });
        let steps = Steps::new(Arc::new(Host::default()), paths.link(), machine, incarnation);
        tokio::spawn(watch_files(steps.host(), sender.clone()));
        let shell = Self {
            core,
            steps,
            prober,
            link: None,
            generation,
            ledger: LedgerFile::of(paths),
            queue: VecDeque::new(),
            persisting: None,
            hung: None,
            sender,
        };
        Ok((shell, inputs))
    }

    /// Runs until the agent must begin anew; returns why.
    async fn run(&mut self, mut inputs: mpsc::Receiver<Input>) -> String {
        self.step(Event::Woke);
        loop {
            let wait = self.core.next_wake().since(clock::mono());
            // biased: first what holds up everything else, last what only passes the time. All branches are cancel-safe.
            tokio::select! {
                biased;
                result = written(&mut self.persisting) => {
                    self.ledger_written(result);
                }
                Some(input) = inputs.recv() => match input {
                    Input::Restart(why) => return why,
                    other => self.take(other),
                },
                () = tokio::time::sleep(wait) => self.step(Event::Woke),
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.step(event),
            Input::LinkUp(client) => self.link = Some(client),
            Input::NewIdentity(identity) => {
                if let Some(link) = &self.link {
                    link.replace_identity(identity);
                }
            }
            Input::Bulk(request, stream) => {
                let status = self.core.status();
                tokio::spawn(bulk::serve(request, *stream, status));
            }
            Input::Restart(_) => unreachable!("the loop has taken it"),
            // Whoever asked may have gone.
            Input::Status(reply) => drop(reply.send(self.core.status())),
        }
    }

    fn step(&mut self, event: Event) {
        let state = self.core.state();
        let actions = self.core.handle(clock::mono(), clock::wall(), event);
        *self.generation.lock().expect("no holder of this lock panics") = self.core.generation();
        if self.core.state() != state {
            info!(state = %self.core.state(), before = %state, "the machine's state changed");
        }
        for action in actions {
            match action {
                Action::Heartbeat(heartbeat) => {
                    if let Some(link) = &self.link {
                        link.heartbeat(heartbeat);
                    }
                }
                other => self.queue.push_back(other),
            }
        }
        while self.persisting.is_none() {
            let Some(action) = self.queue.pop_front() else { break };
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Persist(bytes) => self.persist(bytes),
            Action::Run(step) => self.steps.run(step, &self.sender),
            Action::Look(Look { id, query }) => {
                let host = self.steps.host();
                self.spawn(async move {
                    let observation = match tokio::time::timeout(LOOK_TIMEOUT, host.look(query)).await {
                        Ok(seen) => seen.map_err(|error| error.chain()),
                        Err(_) => Err(format!("no answer within {} s", LOOK_TIMEOUT.as_secs())),
                    };
                    Event::Observed { id, observation }
                });
            }
            Action::Probe { id, probe } => {
                let host = self.steps.host();
                self.spawn(async move { Event::Probed { id, result: host.probe(&probe).await } });
            }
            Action::ProbePeers { id, channel, targets } => {
                let prober = self.prober.clone();
                self.spawn(async move {
                    Event::PeersProbed { id, answers: prober.probe(&channel, targets).await }
                });
            }
            Action::Send(message) => self.send(message),
            Action::Heartbeat(_) => unreachable!("heartbeats do not queue"),
        }
    }

    fn persist(&mut self, bytes: SecretBytes) {
        let hung = self.hung.as_ref().is_some_and(|write| !write.is_finished());
        let work = (!hung).then(|| {
            let (file, bytes) = (self.ledger.clone(), bytes.clone());
            tokio::task::spawn_blocking(move || file.write(&bytes).map_err(|error| error.chain()))
        });
        self.hung = self.hung.take().filter(|_| hung);
        self.persisting = Some(LedgerWrite { work, ends: Instant::now() + WRITE_TIMEOUT, bytes });
    }

    /// The write in flight ended, or is waited for no more.
    fn ledger_written(&mut self, result: Result<(), String>) {
        let Some(LedgerWrite { work, bytes, .. }) = self.persisting.take() else { return };
        self.hung = self.hung.take().or(work.filter(|work| !work.is_finished()));
        let settled = self.ledger.settle(result, &bytes);
        self.step(Event::Persisted(settled));
    }

    fn send(&self, message: ToCoordinator) {
        // The core learns of a lost session by itself, and of a lost message by the missing answer.
        if let Some(Err(error)) = self.link.as_ref().map(|link| link.send(message)) {
            debug!(error = keelson_protocol::errors::chain(&error), "a message was not sent");
        }
    }

    fn spawn(&self, work: impl Future<Output = Event> + Send + 'static) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            // When the loop has ended, nobody waits for the answer.
            let _ = sender.send(Input::Event(work.await)).await;
        });
    }

    /// Waits for the ledger, when it is being written, and tells the coordinator that this is no crash.
    async fn goodbye(&mut self) {
        if let Some(write) = &mut self.persisting {
            write.ends = Instant::now() + GOODBYE;
            let result = written(&mut self.persisting).await;
            let settled = self.persisting.take().map(|write| self.ledger.settle(result, &write.bytes));
            if let Some(Err(why)) = settled {
                debug!(why, "the ledger is not on the disk");
            }
        }
        if let Some(link) = self.link.take() {
            let _ = tokio::time::timeout(GOODBYE, link.shutdown()).await;
        }
    }
}

/// Tells the core of files that somebody has touched, our own writes among them, and not more often than units are
/// looked at.
async fn watch_files(host: Arc<Host>, sender: mpsc::Sender<Input>) {
    loop {
        host.files_changed().await;
        // Who writes one file often writes another.
        tokio::time::sleep(FILES_SETTLE).await;
        if sender.send(Input::Event(Event::FilesTouched)).await.is_err() {
            return;
        }
        tokio::time::sleep(FILES_PAUSE).await;
    }
}

/// A write of the ledger, which ends in time whatever the disk does: everything but heartbeats waits for it.
struct LedgerWrite {
    /// `None` when it was not begun, because an earlier one hangs.
    work: Option<JoinHandle<Result<(), String>>>,
    ends: Instant,
    /// What is written.
    bytes: SecretBytes,
}

/// The end of the write in flight; never, when there is none.
async fn written(persisting: &mut Option<LedgerWrite>) -> Result<(), String> {
    let Some(write) = persisting else { return std::future::pending().await };
    let Some(work) = &mut write.work else {
        return Err("an earlier write of it has not ended yet".to_owned());
    };
    match tokio::time::timeout_at(write.ends, work).await {
        Ok(result) => result.unwrap_or_else(|_| Err("the write was given up".to_owned())),
        Err(_) => Err(format!("it was not written within {} s", WRITE_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that hangs must not keep a machine from giving up its work.
    #[tokio::test]
    async fn a_write_that_hangs_ends_in_time_and_one_behind_it_at_once() {
        let ends = Instant::now();
        let write = |work, ends| Some(LedgerWrite { work, ends, bytes: SecretBytes::new(Vec::new()) });
        let mut hangs = write(Some(tokio::spawn(std::future::pending())), ends);
        assert_eq!(written(&mut hangs).await.unwrap_err(), "it was not written within 20 s");
        let mut behind = write(None, ends);
        assert_eq!(written(&mut behind).await.unwrap_err(), "an earlier write of it has not ended yet");
        let mut good = write(Some(tokio::spawn(async { Ok(()) })), ends + WRITE_TIMEOUT);
        assert_eq!(written(&mut good).await, Ok(()));
    }
}
