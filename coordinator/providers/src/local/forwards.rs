//! What is reachable from outside: TCP forwards from the host's loopback to machines. This side keeps the list and
//! makes sure that a forwarder process runs; [`super::forwarder`] carries the list out.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keelson_protocol::{ClusterName, InstallId};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::error::LocalError;
use super::files::{self, FileLock, wait_until};
use super::paths::Paths;
use super::site::Site;
use crate::{ExposeRequest, Exposed, HealthCheck, ProviderError};

/// Ports that are given out when none is asked for. 16443 reminds of the API server's 6443.
const PORTS: RangeInclusive<u16> = 16_443..=17_442;

/// Most targets of one forward: of a hundred workers, each of which leads to all pods of a service, the first are enough.
const TARGETS_MAX: usize = 32;

/// Longest name of a forward, in bytes: a DNS label.
const NAME_BYTES_MAX: usize = 63;

/// How long a fresh forwarder may take until it listens. It starts in some milliseconds on an idle host.
const FORWARDER_WAIT: Duration = Duration::from_secs(10);

/// How long the forwarder may take to end after it was asked, before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// How much of the forwarder's log is quoted when it does not come up, in bytes.
const LOG_BYTES_QUOTED: u64 = 1024;

/// All forwards of an installation.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Forwards {
    /// Grows with each change, so that the forwarder can say which list it has carried out.
    pub(crate) generation: u64,
    pub(crate) forwards: Vec<Forward>,
}

/// One forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Forward {
    pub(crate) cluster: ClusterName,
    pub(crate) name: String,
    /// The port on the host's loopback.
    pub(crate) port: u16,
    pub(crate) targets: Vec<SocketAddr>,
    /// Lists from before there were checks have none.
    #[serde(default)]
    pub(crate) check: HealthCheck,
}

impl Forward {
    fn exposed(&self) -> Exposed {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        Exposed { cluster: self.cluster.clone(), name: self.name.clone(), address }
    }
}

/// What the forwarder has carried out.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ForwarderStatus {
    pub(crate) pid: i32,
    pub(crate) generation: u64,
    /// Ports on which it could not listen, with the reason.
    pub(crate) failed: Vec<(u16, String)>,
}

impl Site {
    /// Makes a service reachable, or changes where it leads; returns once connections are accepted.
    pub(crate) fn expose(
        &self,
        request: &ExposeRequest,
        program: &Path,
        until: Instant,
    ) -> Result<Exposed, LocalError> {
        self.check_install(&request.install)?;
        check_request(request)?;
        let _lock = FileLock::acquire(&self.paths.forwards_lock(), until)?;
        let mut all = read(&self.paths)?;
        let before = all.clone();
        let wanted = choose(&all, request, port_is_free)?;
        all.forwards.retain(|f| (&f.cluster, &f.name) != (&wanted.cluster, &wanted.name));
        all.forwards.push(wanted.clone());
        all.forwards.sort_by(|a, b| (&a.cluster, &a.name).cmp(&(&b.cluster, &b.name)));
        let changed = all != before;
        if changed {
            all.generation += 1;
            files::write_json(&self.paths.forwards(), &all)?;
        }
        let status = carry_out(&self.paths, program, all.generation, until)?;
        let Some((port, why)) = status.failed.iter().find(|(port, _)| *port == wanted.port) else {
            return Ok(wanted.exposed());
        };
        if changed {
            // Another program took the port since we looked: what was refused must not appear later.
            let back = Forwards { generation: all.generation + 1, forwards: before.forwards };
            files::write_json(&self.paths.forwards(), &back)?;
        }
        Err(taken(*port, &format!("another program ({why})")).into())
    }

    /// All exposed services.
    pub(crate) fn exposed(&self, install: &InstallId) -> Result<Vec<Exposed>, LocalError> {
        if *install != self.install.install {
            return Ok(Vec::new());
        }
        Ok(read(&self.paths)?.forwards.iter().map(Forward::exposed).collect())
    }

    /// Removes every exposed service of a cluster.
    pub(crate) fn unexpose(
        &self,
        install: &InstallId,
        cluster: &ClusterName,
        program: &Path,
        until: Instant,
    ) -> Result<(), LocalError> {
        self.check_install(install)?;
        let _lock = FileLock::acquire(&self.paths.forwards_lock(), until)?;
        let mut all = read(&self.paths)?;
        let before = all.forwards.len();
        all.forwards.retain(|forward| forward.cluster != *cluster);
        if all.forwards.len() < before {
            all.generation += 1;
            files::write_json(&self.paths.forwards(), &all)?;
        } else if forwarder(&self.paths)?.is_none() {
            return Ok(());
        }
        // Also when it is asked for again: the list was written then, and perhaps not carried out.
        carry_out(&self.paths, program, all.generation, until).map(drop)
    }

    /// Starts the forwarder if there is something to forward and none runs.
    pub(crate) fn ensure_forwarder(&self, program: &Path, until: Instant) -> Result<(), LocalError> {
        let _lock = FileLock::acquire(&self.paths.forwards_lock(), until)?;
        if !lacks_forwarder(&self.paths)? {
            return Ok(());
        }
        carry_out(&self.paths, program, read(&self.paths)?.generation, until).map(drop)
    }

    /// The same for somebody who looks again and again: who is changing the list at this moment starts one anyway, and an
    /// installation that is being removed needs none.
    pub(crate) fn revive_forwarder(&self, program: &Path) -> Result<(), LocalError> {
        revive(&self.paths, program, Instant::now() + FORWARDER_WAIT)
    }
}

fn revive(paths: &Paths, program: &Path, until: Instant) -> Result<(), LocalError> {
    if let Some(pid) = forwarder(paths)?.filter(|pid| is_stopped(*pid)) {
        end_hanging(pid)?;
    }
    if !lacks_forwarder(paths)? || !paths.install().exists() {
        return Ok(());
    }
    match FileLock::attempt(&paths.forwards_lock())? {
        Some(_lock) if lacks_forwarder(paths)? => {
            let generation = read(paths)?.generation;
            carry_out(paths, program, generation, until).map(drop)
        }
        _ => Ok(()),
    }
}

/// Whether there is something to forward and nobody who does.
fn lacks_forwarder(paths: &Paths) -> Result<bool, LocalError> {
    Ok(forwarder(paths)?.is_none() && !read(paths)?.forwards.is_empty())
}

/// The list as it is on disk.
pub(crate) fn read(paths: &Paths) -> Result<Forwards, LocalError> {
    Ok(files::read_json(&paths.forwards())?.unwrap_or_default())
}

fn check_request(request: &ExposeRequest) -> Result<(), LocalError> {
    let invalid = |field, detail: String| Err(LocalError::Refused(ProviderError::Invalid { field, detail }));
    if request.name.is_empty() || request.name.len() > NAME_BYTES_MAX {
        return invalid("name", format!("`{}` must have 1 to {NAME_BYTES_MAX} characters", request.name));
    }
    if request.port == Some(0) {
        return invalid("port", "0 is no port; leave it out to get a free one".to_owned());
    }
    request.check.validate()?;
    Ok(())
}

/// The forward that `request` gives: its own port if it has one and asks for no other, else the one it asks for, else
/// the first free one.
fn choose(
    all: &Forwards,
    request: &ExposeRequest,
    is_free: impl Fn(u16) -> bool,
) -> Result<Forward, ProviderError> {
    let own = all.forwards.iter().find(|f| f.cluster == request.cluster && f.name == request.name);
    let holder = |port| all.forwards.iter().find(|f| f.port == port);
    let port = match (own, request.port) {
        (Some(own), None) => own.port,
        (Some(own), Some(port)) if own.port == port => port,
        (_, Some(port)) => match holder(port) {
            Some(other) => return Err(taken(port, &format!("{} of cluster {}", other.name, other.cluster))),
            None if is_free(port) => port,
            None => return Err(taken(port, "another program")),
        },
        (None, None) => {
            PORTS.into_iter().find(|port| holder(*port).is_none() && is_free(*port)).ok_or_else(|| {
                ProviderError::Quota {
                    what: "ports on this host's loopback".to_owned(),
                    detail: format!(
                        "all of {} to {} are taken; end a program that holds one",
                        PORTS.start(),
                        PORTS.end()
                    ),
                }
            })?
        }
    };
    let targets = request.targets.iter().take(TARGETS_MAX).copied().collect();
    let (cluster, name) = (request.cluster.clone(), request.name.clone());
    Ok(Forward { cluster, name, port, targets, check: request.check.clone() })
}

fn taken(port: u16, holder: &str) -> ProviderError {
    let what = format!("port {port} of 127.0.0.1");
    ProviderError::Conflict { what, holder: format!("{holder}; end that, or ask for any port") }
}

fn port_is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The forwarder's process, from the kernel's own record of who holds its lock: a process id that was reused is never
/// mistaken for it.
pub(crate) fn forwarder(paths: &Paths) -> Result<Option<Pid>, LocalError> {
    let path = paths.forwarder_lock();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LocalError::file("open", path)(e)),
    };
    let mut lock = whole_file_lock();
    fcntl(&file, FcntlArg::F_GETLK(&mut lock))
        .map_err(LocalError::kernel(format!("ask who holds {}", path.display())))?;
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then(|| Pid::from_raw(lock.l_pid)))
}

/// A write lock on a whole file, as fcntl(2) wants it described.
pub(crate) fn whole_file_lock() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Makes sure that a forwarder runs and has carried out generation `generation`; wakes it up.
fn carry_out(
    paths: &Paths,
    program: &Path,
    generation: u64,
    until: Instant,
) -> Result<ForwarderStatus, LocalError> {
    let until = until.min(Instant::now() + FORWARDER_WAIT);
    match forwarder(paths)? {
        // It may end between question and signal; then the wait below starts none, and the next call does.
        Some(pid) => wake(pid)?,
        None => start(paths, program)?,
    }
    let mut found = None;
    let done = wait_until(
        || "the forwarder".to_owned(),
        until,
        || {
            let Some(pid) = forwarder(paths)? else { return Ok(false) };
            let status: Option<ForwarderStatus> = files::read_json(&paths.forwarder_status())?;
            found = status.filter(|s| s.pid == pid.as_raw() && s.generation >= generation);
            Ok(found.is_some())
        },
    );
    match (done, found) {
        (Ok(()), Some(status)) => Ok(status),
        (Err(LocalError::Late { what, waited }), _) => {
            // One that only takes long, on a slow or full disk, may serve users meanwhile.
            if let Some(pid) = forwarder(paths)?.filter(|pid| is_stopped(*pid)) {
                end_hanging(pid)?;
            }
            let said = files::tail(&paths.forwarder_log(), LOG_BYTES_QUOTED)?;
            let what = format!("{what} (started as `{}`; it said: {})", program.display(), said.trim());
            Err(LocalError::Late { what, waited })
        }
        (Err(other), _) => Err(other),
        (Ok(()), None) => unreachable!("the wait ends only with a status"),
    }
}

fn wake(pid: Pid) -> Result<(), LocalError> {
    match kill(pid, Signal::SIGHUP) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(source) => {
            Err(LocalError::Kernel { doing: format!("wake the forwarder (process {pid})"), source })
        }
    }
}

/// Whether a process was stopped (SIGSTOP) and not continued: the state in proc_pid_stat(5).
fn is_stopped(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
}

/// Ends a forwarder that does not do its work: another one can.
fn end_hanging(pid: Pid) -> Result<(), LocalError> {
    tracing::warn!(%pid, "the forwarder hangs, and is ended");
    end(pid, Signal::SIGKILL)
}

/// Sends a signal that ends the forwarder. One that is gone already is as wanted.
fn end(pid: Pid, signal: Signal) -> Result<(), LocalError> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(source) => {
            Err(LocalError::Kernel { doing: format!("end the forwarder (process {pid})"), source })
        }
    }
}

/// Starts a forwarder that belongs to nobody: the shell ends at once, so the host's init inherits it.
fn start(paths: &Paths, program: &Path) -> Result<(), LocalError> {
    let path = paths.forwarder_log();
    let log = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(LocalError::file("open", &path))?;
    let errors = log.try_clone().map_err(LocalError::file("open", &path))?;
    let start = |source| LocalError::Start { program: program.display().to_string(), source };
    let mut shell = Command::new("sh")
        .args(["-c", r#""$@" &"#, "sh"])
        .arg(program)
        .args(["local-forwarder", "--state-dir"])
        .arg(paths.state_dir())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(errors))
        .spawn()
        .map_err(start)?;
    shell.wait().map(drop).map_err(start)
}

/// Ends the forwarder; that there is none is success.
pub(crate) fn stop(paths: &Paths) -> Result<(), LocalError> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let Some(pid) = forwarder(paths)? else { return Ok(()) };
        end(pid, signal)?;
        let gone = || Ok(forwarder(paths)? != Some(pid));
        match wait_until(|| format!("the end of process {pid}"), Instant::now() + STOP_WAIT, gone) {
            Err(LocalError::Late { .. }) if signal == Signal::SIGTERM => {}
            other => return other,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, port: Option<u16>) -> ExposeRequest {
        ExposeRequest {
            install: InstallId::new("i").unwrap(),
            cluster: ClusterName::new("demo").unwrap(),
            name: name.to_owned(),
            targets: Vec::new(),
            check: HealthCheck::Tcp,
            port,
        }
    }

    #[test]
    fn a_list_from_before_there_were_checks_is_read() {
        let text = r#"{"generation":7,"forwards":[
            {"cluster":"demo","name":"api","port":16443,"targets":["10.210.0.10:6443"]},
            {"cluster":"demo","name":"web","port":16444,"targets":[],"check":{"https":{"path":"/readyz"}}}
        ]}"#;
        let all: Forwards = serde_json::from_str(text).unwrap();
        let checks: Vec<&HealthCheck> = all.forwards.iter().map(|forward| &forward.check).collect();
        assert_eq!(checks, [&HealthCheck::Tcp, &HealthCheck::Https { path: "/readyz".to_owned() }]);
    }

    #[test]
    fn a_forwarder_is_started_again_only_for_an_installation_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        std::fs::create_dir_all(paths.forwards().parent().unwrap()).unwrap();
        let forwards = vec![choose(&Forwards::default(), &request("api", None), |_| true).unwrap()];
        files::write_json(&paths.forwards(), &Forwards { generation: 1, forwards }).unwrap();
        // That it would be started shows in that it cannot be.
        let nothing = directory.path().join("no program");
        assert!(revive(&paths, &nothing, Instant::now()).is_ok());
        std::fs::write(paths.install(), "{}").unwrap();
        assert!(revive(&paths, &nothing, Instant::now()).is_err());
    }

    #[test]
    fn ports_are_kept_chosen_or_refused() {
        let mut all = Forwards::default();
        let free = |port: u16| port != 16_443;
        all.forwards.push(choose(&all, &request("api", None), free).unwrap());
        let check = |name, port, expected: Result<u16, &str>| {
            let got = choose(&all, &request(name, port), free).map(|f| f.port).map_err(|e| e.to_string());
            assert_eq!(got, expected.map_err(str::to_owned), "{name} {port:?}");
        };
        check("api", None, Ok(16_444));
        check("web", None, Ok(16_445));
        check("api", Some(16_444), Ok(16_444));
        check("api", Some(20_000), Ok(20_000));
        let remedy = "end that, or ask for any port";
        let ours =
            format!("port 16444 of 127.0.0.1 exists already and belongs to api of cluster demo; {remedy}");
        check("web", Some(16_444), Err(&ours));
        let foreign =
            format!("port 16443 of 127.0.0.1 exists already and belongs to another program; {remedy}");
        check("web", Some(16_443), Err(&foreign));
    }
}
