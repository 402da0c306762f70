//! What the agent does to its machine.
//!
//! Purpose: the hands and eyes of `keelson-agent-core` on Linux: [`Host::look`], [`Host::run`] and [`Host::probe`] carry
//! out one query, one step, one probe, and say what came of it.
//!
//! Place in the data flow: the shell (`keelson-agent`) calls it for every action of the core and hands the answers back.
//!
//! Deliberately does not know: configs, repairs, budgets, the coordinator. It decides nothing: no retry, no order, no
//! opinion. Every call is bounded in what it reads; the shell bounds it in time.

mod acts;
mod certificates;
mod error;
mod facts;
mod files;
mod journal;
mod meters;
mod probe;
mod routes;
mod systemd;
mod terminal;
mod tls;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use keelson_agent_core::{Observation, Query, Step, StepOutput};
use keelson_protocol::config::ProbeSpec;
use tokio::process::{Child, Command};

use acts::Ending;

pub use certificates::{
    PemError, chain_from_pem, chain_to_pem, key_from_pem, key_to_pem, matches_key, validity,
};
pub use error::HostError;
pub use facts::{boot_id, facts, random_number};
pub use files::{Durability, write_atomically};
pub use journal::{JournalRequest, journal};
pub use terminal::{Terminal, TerminalError, kill_group, start_piped};

/// A Linux machine with systemd.
#[derive(Debug, Default)]
pub struct Host {
    systemd: systemd::Systemd,
    digests: Arc<Mutex<files::DigestCache>>,
    pairs: Arc<Mutex<BTreeMap<String, certificates::CachedPair>>>,
    /// Keys made for certificates that have not come yet, by the certificate's name. In memory only: after a crash a new
    /// key is made, and nobody has missed the old one.
    pending_keys: Mutex<BTreeMap<String, certificates::PendingKey>>,
    prober: probe::Prober,
    routes: routes::Routes,
    watch: std::sync::OnceLock<Option<watch::Watch>>,
}

impl Host {
    /// Looks at one class of things.
    ///
    /// # Errors
    /// [`HostError`] when nothing could be seen. What is not there is an answer, not an error.
    pub async fn look(&self, query: Query) -> Result<Observation, HostError> {
        match query {
            Query::Units(names) => Ok(Observation::Units(self.systemd.units(&names).await?.into())),
            Query::Files(paths) => {
                self.watch_files(paths.iter().map(String::as_str));
                let cache = Arc::clone(&self.digests);
                let look = move || Ok(cache.lock().expect("no holder of this lock panics").look(&paths));
                blocking(&FILE_LOOKS, look).await.map(Observation::Files)
            }
            Query::Certificates(pairs) => {
                self.watch_files(
                    pairs.iter().flat_map(|pair| [pair.certificate_path.as_str(), &pair.key_path]),
                );
                let cache = Arc::clone(&self.pairs);
                let look = move || {
                    let mut cache = cache.lock().expect("no holder of this lock panics");
                    Ok(certificates::look(&pairs, &mut cache))
                };
                blocking(&PAIR_LOOKS, look).await.map(Observation::Certificates)
            }
            Query::Routes => Ok(Observation::Routes(self.routes.ours().await?)),
            Query::Pressure => blocking(&METERS, meters::pressure).await.map(Observation::Pressure),
        }
    }

    /// Waits until a file that was looked at may have changed; for ever where files cannot be watched.
    pub async fn files_changed(&self) {
        match self.watch() {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }

    fn watch(&self) -> Option<&watch::Watch> {
        self.watch.get_or_init(watch::Watch::new).as_ref()
    }

    fn watch_files<'a>(&self, paths: impl IntoIterator<Item = &'a str>) {
        if let Some(watch) = self.watch() {
            watch.add(paths);
        }
    }

    /// Carries out one step.
    ///
    /// # Errors
    /// [`HostError`] says what failed and why. [`HostError::NotMine`] for the steps that the shell carries out itself:
    /// those of the link's identity and of the balancer.
    pub async fn run(&self, step: Step) -> Result<StepOutput, HostError> {
        match step {
            Step::WriteFiles(files) => blocking(&WRITES, move || files::write_all(files)).await,
            Step::RemoveFiles(paths) => {
                blocking(&WRITES, move || files::remove_all(&paths).map(drop)).await?;
                Ok(StepOutput::Done)
            }
            Step::Reload => self.systemd.reload().await.map(|()| StepOutput::Done),
            Step::Start { unit, directories } => {
                blocking(&FOLDERS, move || files::make_directories(&directories)).await?;
                self.systemd.start(&unit).await.map(|()| StepOutput::Done)
            }
            Step::Restart { unit, directories } => {
                blocking(&FOLDERS, move || files::make_directories(&directories)).await?;
                self.systemd.restart(&unit).await.map(|()| StepOutput::Done)
            }
            Step::Stop { unit } => self.systemd.stop(&unit).await.map(|()| StepOutput::Done),
            Step::MakeKey { certificate } => {
                let (key, signing_request) = certificates::make_key()?;
                self.pending_keys.lock().expect("no holder of this lock panics").insert(certificate, key);
                Ok(StepOutput::SigningRequest(signing_request))
            }
            Step::InstallCertificate { files, chain } => {
                let key =
                    self.pending_keys.lock().expect("no holder of this lock panics").remove(&files.name);
                let key = key.ok_or_else(|| HostError::NoKey { certificate: files.name.clone() })?;
                let install = move || certificates::install(&files, &chain, &key);
                blocking(&WRITES, install).await.map(StepOutput::Installed)
            }
            Step::ChangeRoutes { add, remove } => {
                self.routes.change(&add, &remove).await.map(|()| StepOutput::Done)
            }
            Step::Act { act, .. } => acts::run(act, &self.systemd).await.map(StepOutput::Said),
            Step::PowerOff => {
                acts::end_machine(Ending::PowerOff, &self.systemd).await.map(|()| StepOutput::Done)
            }
            Step::MakeLinkKey | Step::InstallLink { .. } | Step::Balance(_) | Step::AnswerPeers(_) => {
                Err(HostError::NotMine)
            }
        }
    }

    /// Asks a probe. Bounded by the probe's own time-out.
    ///
    /// # Errors
    /// What came instead of the expected answer, in words for people.
    pub async fn probe(&self, probe: &ProbeSpec) -> Result<(), String> {
        self.prober.ask(probe).await
    }
}

/// A kind of work that waits for disks, of which one goes on at a time. A thread cannot be ended, so that work on a disk
/// that hangs keeps its thread: its next try waits here, where it can be given up, and takes no other thread.
type Queue = tokio::sync::Mutex<()>;

static FILE_LOOKS: Queue = Queue::const_new(());
static PAIR_LOOKS: Queue = Queue::const_new(());
static METERS: Queue = Queue::const_new(());
static WRITES: Queue = Queue::const_new(());
/// Folders that units need, which must not wait for anything else that is written.
static FOLDERS: Queue = Queue::const_new(());
/// Mounts that remedies take away.
static MOUNTS: Queue = Queue::const_new(());
/// Programs that are started: whoever starts one waits until the kernel has read it from the disk.
static STARTS: Queue = Queue::const_new(());
/// The program that ends the machine: it stands behind no other one.
static ENDS: Queue = Queue::const_new(());
/// Certificates that probes show and believe.
static PROBE_FILES: Queue = Queue::const_new(());

/// Most threads that these queues and that for trees take; the ledger and the link's identity need one each besides.
pub const BLOCKING_THREADS_MAX: usize = 10;

/// Runs what may wait for a disk beside the loop, so that a slow disk never delays a heartbeat.
async fn blocking<T: Send + 'static>(
    queue: &'static Queue,
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let turn = queue.lock().await;
    let work = move || {
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| HostError::Aborted)?
}

/// Tells work that nobody waits for it any more. What it was about to do may be the opposite of what is done next.
#[derive(Debug, Clone, Default)]
struct GivenUp(Arc<AtomicBool>);

impl GivenUp {
    /// # Errors
    /// [`HostError::Aborted`] once nobody waits for the work any more.
    fn check(&self) -> Result<(), HostError> {
        if self.0.load(Ordering::Acquire) { Err(HostError::Aborted) } else { Ok(()) }
    }
}

/// Gives work up when it is dropped.
struct Waits(GivenUp);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Release);
    }
}

/// As [`blocking`], for work that begins nothing more once nobody waits for it: it asks before each thing that it does.
async fn blocking_while_wanted<T: Send + 'static>(
    queue: &'static Queue,
    work: impl FnOnce(&GivenUp) -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let waits = Waits(GivenUp::default());
    let given_up = waits.0.clone();
    blocking(queue, move || work(&given_up)).await
}

/// Starts a program beside the loop; not one that nobody waits for any more.
async fn start(queue: &'static Queue, mut command: Command, program: &str) -> Result<Child, HostError> {
    let spawn = move |given_up: &GivenUp| given_up.check().map(|()| command.spawn());
    let started = blocking_while_wanted(queue, spawn).await?;
    started.map_err(HostError::file("start", program))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    static HUNG: Queue = Queue::const_new(());
    static OTHER: Queue = Queue::const_new(());
    /// Long for work that nothing holds up, and short for a test.
    const GIVEN_UP_AFTER: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn work_on_a_disk_that_hangs_keeps_one_thread_however_often_it_is_tried() {
        let (disk_comes_back, disk) = mpsc::channel::<()>();
        let hung = blocking(&HUNG, move || disk.recv().map_err(|_| HostError::Aborted));
        assert!(tokio::time::timeout(GIVEN_UP_AFTER, hung).await.is_err());
        for _ in 0..3 {
            let tried = blocking(&HUNG, || -> Result<(), HostError> { panic!("it has begun") });
            assert!(tokio::time::timeout(GIVEN_UP_AFTER, tried).await.is_err());
        }
        assert_eq!(blocking(&OTHER, || Ok(1)).await.unwrap(), 1);
        disk_comes_back.send(()).unwrap();
        assert_eq!(blocking(&HUNG, || Ok(2)).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn work_that_was_given_up_while_its_disk_hung_begins_nothing_more() {
        static GIVEN_UP: Queue = Queue::const_new(());
        let (disk_comes_back, disk) = mpsc::channel::<()>();
        let (says, said) = mpsc::channel();
        let hung = blocking_while_wanted(&GIVEN_UP, move |given_up| {
            given_up.check()?;
            disk.recv().map_err(|_| HostError::Aborted)?;
            says.send(given_up.check().is_err()).map_err(|_| HostError::Aborted)
        });
        assert!(tokio::time::timeout(GIVEN_UP_AFTER, hung).await.is_err());
        disk_comes_back.send(()).unwrap();
        assert!(said.recv().unwrap());
    }
}
