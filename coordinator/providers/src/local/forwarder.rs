//! The forwarder: a small process of its own that carries TCP connections from the host's loopback to machines, so
//! that clusters stay reachable while the coordinator is away.
//!
//! It reads the whole list of forwards whenever that changes, says in a status file what it has carried out, and ends
//! when the installation's directory is gone. Sockets towards machines are made by a thread inside the LAN's namespace.
//! Which target a connection goes to, and when it leaves one, is for `keelson-balancer`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keelson_balancer::{Checks, Targets, carry};
use keelson_protocol::errors::chain;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use super::checks::Asker;
use super::error::LocalError;
use super::files;
use super::forwards::{Forward, ForwarderStatus, Forwards, whole_file_lock};
use super::netns;
use super::paths::Paths;

/// How often the list and the LAN are looked at without being woken.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Most connections at a time, over all forwards. Each holds two descriptors (the hard limit is 20,000 on small hosts)
/// and 16 KiB of buffers; more clients wait in the listeners' queues.
const CONNECTIONS_MAX: usize = 2048;

/// Pause after accepting failed (out of descriptors), so that the failure does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Requests for sockets that wait for the thread inside the LAN. Each waits microseconds.
const SOCKET_QUEUE: usize = 64;

/// Runs the forwarder of the installation in `state_dir` until it is told to end or the installation is gone. When one
/// runs already, this one ends at once.
///
/// # Errors
/// [`LocalError`] when the lock, the signals or the runtime cannot be had.
pub fn run(state_dir: &Path) -> Result<(), LocalError> {
    // A session of its own, so that Ctrl-C for the coordinator is not meant for us. It fails only for a session's
    // leader, who needs none.
    let _ = nix::unistd::setsid();
    raise_open_files();
    let paths = Paths::new(state_dir);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LocalError::file("start the runtime of", "/proc/self"))?;
    runtime.block_on(forward(&paths))
}

/// Lets this process open as many files as it may: shells start programs with a soft limit of 1,024, which a few hundred
/// connections reach.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

async fn forward(paths: &Paths) -> Result<(), LocalError> {
    // Before the lock: whoever finds us by it may send these at once.
    let file_error = LocalError::file("watch signals of", "/proc/self");
    let mut end = signal(SignalKind::terminate()).map_err(file_error)?;
    let file_error = LocalError::file("watch signals of", "/proc/self");
    let mut wake = signal(SignalKind::hangup()).map_err(file_error)?;
    let Some(_lock) = take_lock(paths)? else {
        return Ok(());
    };
    let mut forwarder = Forwarder::default();
    while paths.install().exists() {
        if let Err(error) = forwarder.look(paths).await {
            // Kept going on the last list: a half-read state must not cut off clusters.
            tracing::warn!(error = chain(&error), "cannot follow the list of forwards");
        }
        tokio::select! {
            _ = end.recv() => break,
            _ = wake.recv() => {}
            () = sleep(LOOK_EVERY) => {}
        }
    }
    Ok(())
}

/// The lock that makes this process the forwarder. It is a record lock: the kernel tells others our process id.
fn take_lock(paths: &Paths) -> Result<Option<File>, LocalError> {
    let path = paths.forwarder_lock();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(LocalError::file("open", &path))?;
    Ok(fcntl(&file, FcntlArg::F_SETLK(&whole_file_lock())).is_ok().then_some(file))
}

/// What tells one version of a file from the next.
type Stamp = (u64, u64, i64, i64);

fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec()))
}

#[derive(Default)]
struct Forwarder {
    list: Forwards,
    seen: Option<Stamp>,
    lan: Option<Lan>,
    ports: BTreeMap<u16, Port>,
    status: Option<ForwarderStatus>,
    permits: Permits,
}

struct Permits(Arc<Semaphore>);

impl Default for Permits {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CONNECTIONS_MAX)))
    }
}

/// A port that is listened on.
struct Port {
    leads_to: Forward,
    targets: Arc<Targets>,
    sockets: Sockets,
    task: JoinHandle<()>,
    /// They end with the port.
    checks: Checks,
}

impl Port {
    fn open(listener: TcpListener, forward: &Forward, sockets: &Sockets, permits: &Arc<Semaphore>) -> Self {
        let targets = Arc::new(Targets::default());
        targets.replace(&forward.targets);
        let serving = serve(listener, Arc::clone(&targets), sockets.clone(), Arc::clone(permits));
        let checks = checks(&targets, forward, sockets);
        let task = tokio::spawn(serving);
        Self { leads_to: forward.clone(), targets, sockets: sockets.clone(), task, checks }
    }

    /// Leads new connections there; those that stand are left alone.
    fn lead_to(&mut self, forward: &Forward) {
        if self.leads_to != *forward {
            self.targets.replace(&forward.targets);
            self.checks = checks(&self.targets, forward, &self.sockets);
            self.leads_to = forward.clone();
        }
    }
}

fn checks(targets: &Arc<Targets>, forward: &Forward, sockets: &Sockets) -> Checks {
    Checks::start(targets, |target| Asker::new(target, forward.check.clone(), sockets.clone()))
}

impl Drop for Port {
    fn drop(&mut self) {
        // Ends the listener and every connection that came through it.
        self.task.abort();
    }
}

impl Forwarder {
    /// Reads what is wanted and brings the ports to it.
    async fn look(&mut self, paths: &Paths) -> Result<(), LocalError> {
        let lan = stamp(&paths.lan()).filter(|_| netns::exists(&paths.lan()));
        if self.lan.as_ref().map(|lan| lan.stamp) != lan {
            // The LAN is new (or gone): every port must make its sockets in the new one.
            self.ports.clear();
            self.lan = None;
            if let Some(stamp) = lan {
                self.lan = Some(Lan::enter(&paths.lan(), stamp)?);
            }
        }
        let seen = stamp(&paths.forwards());
        if seen != self.seen {
            self.list = files::read_json(&paths.forwards())?.unwrap_or_default();
            self.seen = seen;
        }
        let failed = self.bring_about().await;
        let pid = nix::unistd::getpid().as_raw();
        let status = ForwarderStatus { pid, generation: self.list.generation, failed };
        if self.status.as_ref() != Some(&status) {
            files::write_json(&paths.forwarder_status(), &status)?;
            self.status = Some(status);
        }
        Ok(())
    }

    /// Listens where it should and nowhere else. Gives the ports that it could not have.
    async fn bring_about(&mut self) -> Vec<(u16, String)> {
        let wanted: BTreeMap<_, _> =
            self.list.forwards.iter().map(|forward| (forward.port, forward)).collect();
        self.ports.retain(|port, _| wanted.contains_key(port));
        let mut failed = Vec::new();
        for (number, forward) in wanted {
            if let Some(port) = self.ports.get_mut(&number) {
                port.lead_to(forward);
                continue;
            }
            let Some(lan) = &self.lan else {
                failed.push((number, "the network of the installation is gone".to_owned()));
                continue;
            };
            match TcpListener::bind((Ipv4Addr::LOCALHOST, number)).await {
                Ok(listener) => {
                    let port = Port::open(listener, forward, &lan.sockets, &self.permits.0);
                    self.ports.insert(number, port);
                }
                Err(error) => failed.push((number, error.to_string())),
            }
        }
        failed
    }
}

async fn serve(listener: TcpListener, targets: Arc<Targets>, sockets: Sockets, permits: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                // Reaped here, so that the set does not grow.
                Some(_) = connections.join_next() => {}
            }
        };
        match accepted {
            Ok((client, _)) => {
                let (targets, sockets) = (Arc::clone(&targets), sockets.clone());
                connections.spawn(async move {
                    carry(client, &targets, |target| dial(&sockets, target)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The way to the thread inside the LAN.
pub(super) type Sockets = mpsc::Sender<(AddressFamily, oneshot::Sender<nix::Result<OwnedFd>>)>;

/// A thread inside the LAN's namespace that makes sockets there. It ends when nobody can ask it any more.
struct Lan {
    stamp: Stamp,
    sockets: Sockets,
}

impl Lan {
    fn enter(path: &Path, stamp: Stamp) -> Result<Self, LocalError> {
        let (sockets, mut requests) = mpsc::channel::<(AddressFamily, oneshot::Sender<_>)>(SOCKET_QUEUE);
        let (entered, has_entered) = std::sync::mpsc::channel();
        let path = path.to_owned();
        let thread = std::thread::Builder::new().name("lan".to_owned());
        let work = move || {
            let result = netns::enter(&path);
            let inside = result.is_ok();
            // The starter waits for exactly this; that it is gone is impossible.
            let _ = entered.send(result);
            while inside && let Some((family, answer)) = requests.blocking_recv() {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                // Whoever asked may have given up.
                let _ = answer.send(socket(family, SockType::Stream, flags, None));
            }
        };
        thread.spawn(work).map_err(LocalError::file("start a thread of", "/proc/self"))?;
        has_entered.recv().expect("the thread says whether it has entered")?;
        Ok(Self { stamp, sockets })
    }
}

/// Connects to a target inside the LAN.
pub(super) async fn dial(sockets: &Sockets, target: SocketAddr) -> io::Result<TcpStream> {
    make_socket(sockets, target).await?.connect(target).await
}

async fn make_socket(sockets: &Sockets, target: SocketAddr) -> io::Result<TcpSocket> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (answer, made) = oneshot::channel();
    let gone = || io::Error::new(io::ErrorKind::NetworkDown, "the thread inside the LAN has ended");
    sockets.send((family, answer)).await.map_err(|_| gone())?;
    let socket = made.await.map_err(|_| gone())??;
    Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(socket)))
}
