//! Breaks things, knows by what it can be told that they are mended, and takes the cause away again.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keelson_protocol::MachineId;
use keelson_providers::local::faults::{Cut, FaultBench, Side, Ways};
use keelson_providers::{PowerOff, ProviderError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fault::{Fault, Kind, Target};
use crate::installation::Installation;

/// How long the coordinator may take to end or to answer.
const COORDINATOR_MAX: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(100);
/// The time in which connections are compared by what they carried.
const LISTEN: Duration = Duration::from_secs(1);
/// Tells one boot of a machine from another: when its init began.
const BOOT: [&str; 4] = ["systemctl", "show", "--value", "--property=UserspaceTimestampMonotonic"];
/// Where the number of the coordinator's process is, below the state directory.
const PID_FILE: &str = "coordinator.pid";
/// What a filled disk has left, in bytes.
const LEFT_BYTES: u64 = 0;
/// Where logs are that were set aside two days ago.
const OLD_LOGS: &str = "/var/log/keelson-chaos";
/// Makes one so large that nine tenths of the disk are used.
const MAKE_LARGE_LOG: &str = "set -e; read -r all used <<END\n$(df -B1 --output=size,used /var | tail -1)\nEND\n\
    mkdir -p \"$1\"; cd \"$1\"; fallocate -l $((all * 9 / 10 - used)) x.log.1; touch -d '2 days ago' x.log.1";
/// Makes so many empty ones that nine tenths of the inodes are used.
const MAKE_MANY_LOGS: &str = "set -e; read -r all used <<END\n$(df --output=itotal,iused /var | tail -1)\nEND\n\
    mkdir -p \"$1\"; cd \"$1\"; seq -f x.log.%.0f $((all * 9 / 10 - used)) | xargs touch -d '2 days ago'";
/// A disk has room when less than this is used, in percent, of its blocks and of its inodes.
const FULL_PERCENT: u8 = 85;
/// The processes that stand between containerd and pods, one in a line. The kernel keeps 15 letters of a name.
const SHIMS: &str = "for of in /proc/[0-9]*; do read -r name <$of/comm && [ \"$name\" = containerd-shim ] && \
    echo ${of#/proc/}; done 2>/dev/null; true";
/// What a corrupted file holds.
const NONSENSE: &str = "this is not what the config says\n";

/// What was there before a fault.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Before {
    boot: String,
    process: String,
    content: String,
    incarnation: u64,
}

/// Breaks one installation.
pub(crate) struct Breaker<'a> {
    installation: &'a Installation,
    bench: FaultBench,
    /// The coordinator, when it was started from here.
    coordinator: Option<Child>,
}

impl<'a> Breaker<'a> {
    pub(crate) fn open(installation: &'a Installation) -> Result<Self> {
        let bench = FaultBench::open(&installation.state_dir)?;
        Ok(Self { installation, bench, coordinator: None })
    }

    /// What tells later whether a fault is mended.
    pub(crate) fn before(&self, fault: &Fault) -> Result<Before> {
        let mut before = Before::default();
        if let Some(machine) = fault.machine() {
            before.boot = self.boot(machine)?;
            before.incarnation = self.incarnation(machine)?;
        }
        match &fault.target {
            Target::Unit(machine, unit) => before.process = self.process(machine, unit)?,
            Target::File(machine, path) => before.content = self.content(machine, path)?,
            Target::Forwarder => before.process = self.forwarder()?,
            Target::Machine(id) if fault.kind == Kind::KillShim => before.process = self.shims(id)?,
            _ => {}
        }
        Ok(before)
    }

    /// Breaks it.
    pub(crate) fn inject(&mut self, fault: &Fault) -> Result<()> {
        match (&fault.target, fault.kind) {
            (Target::Machine(id), Kind::Kill) => self.bench.kill(&machine(id)?)?,
            (Target::Machine(id), Kind::PowerOff) => {
                self.bench.power_off(&machine(id)?, PowerOff::Hard)?;
            }
            (Target::Machine(id), Kind::Freeze | Kind::Hang) => self.bench.freeze(&machine(id)?)?,
            (Target::Machine(id), Kind::Vanish) => self.bench.vanish(&machine(id)?)?,
            (Target::Machine(id), Kind::FillDisk) => self.bench.fill_disk(&machine(id)?, LEFT_BYTES)?,
            (Target::Machine(id), Kind::OldLogs) => self.make_old_logs(id, MAKE_LARGE_LOG)?,
            (Target::Machine(id), Kind::ManyLogs) => self.make_old_logs(id, MAKE_MANY_LOGS)?,
            (Target::Machine(id), Kind::KillShim) => {
                let shims = self.shims(id)?;
                let shim = shims.lines().next().with_context(|| format!("no pod runs on {id}"))?;
                self.installation.on(id, &["kill", "-KILL", shim])?;
            }
            (Target::Unit(id, unit), kind) => {
                let signal = if kind == Kind::StopUnit { "STOP" } else { "KILL" };
                self.signal_unit(id, unit, signal)?;
            }
            (Target::File(id, path), Kind::CorruptFile) => self.write(id, path, NONSENSE)?,
            (Target::File(id, path), _) => drop(self.installation.on(id, &["rm", "--force", path])?),
            (Target::Coordinator(_), _) => self.kill_coordinator()?,
            (Target::Forwarder, _) => self.bench.kill_forwarder()?,
            (Target::Machine(_) | Target::Zone(_), _) => match cut(fault)? {
                Some(cut) => self.bench.cut(cut)?,
                None => bail!("{:?} cannot be done to {}", fault.kind, fault.what()),
            },
        }
        Ok(())
    }

    /// Takes the cause away, when it is still there; a machine that was mended meanwhile is left as it is.
    pub(crate) fn end(&mut self, fault: &Fault, before: &Before) -> Result<()> {
        match &fault.target {
            Target::Machine(id) if matches!(fault.kind, Kind::Freeze | Kind::Hang) => {
                // It may have been switched off or made anew meanwhile: then there is nothing to thaw.
                let _ = self.bench.thaw(&machine(id)?);
            }
            Target::Machine(id) if fault.kind == Kind::FillDisk => self.free_disk(&machine(id)?)?,
            Target::Machine(id) if matches!(fault.kind, Kind::OldLogs | Kind::ManyLogs) => {
                self.remove_old_logs(id)?;
            }
            Target::Machine(_) | Target::Zone(_) => {
                if let Some(cut) = cut(fault)? {
                    self.bench.mend(&cut)?;
                }
            }
            Target::Unit(id, unit) => {
                // A process that was stopped and is gone needs no signal.
                let _ = self.signal_unit(id, unit, "CONT");
            }
            Target::File(id, path) => self.write(id, path, &before.content)?,
            Target::Coordinator(_) => self.start_coordinator()?,
            // Nobody but the provider can start another one.
            Target::Forwarder => {}
        }
        Ok(())
    }

    /// Takes all causes away, whatever was done. One that cannot be taken away keeps none of the others in force.
    pub(crate) fn end_all(&mut self, machines: &[String]) -> Result<()> {
        let mut first = self.bench.heal().map_err(Into::into);
        for id in machines {
            first = first.and(self.release(id));
        }
        first.and(self.start_coordinator())
    }

    /// Takes away what was done to a machine and is not part of the network.
    fn release(&self, id: &str) -> Result<()> {
        let machine = machine(id)?;
        // Those that are not frozen cannot be thawed.
        let _ = self.bench.thaw(&machine);
        self.free_disk(&machine)
    }

    /// A machine that was switched off or made anew meanwhile has no filled disk, and one whose disk is the host's never
    /// had one.
    fn free_disk(&self, machine: &MachineId) -> Result<()> {
        match self.bench.free_disk(machine) {
            Ok(()) | Err(ProviderError::Invalid { .. } | ProviderError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("the disk of {machine} cannot be freed")),
        }
    }

    fn make_old_logs(&self, id: &str, script: &str) -> Result<()> {
        self.installation.on(id, &["sh", "-c", script, "sh", OLD_LOGS]).map(drop)
    }

    fn remove_old_logs(&self, id: &str) -> Result<()> {
        self.installation.on(id, &["rm", "--recursive", "--force", OLD_LOGS]).map(drop)
    }

    /// Why a fault cannot be called mended as far as it itself is concerned. `has_ended`: its cause was taken away.
    pub(crate) fn waits(&self, fault: &Fault, before: &Before, has_ended: bool) -> Option<String> {
        match self.is_mended(fault, before, has_ended) {
            Ok(true) => None,
            Ok(false) => Some(format!("{} is not mended", fault.what())),
            Err(error) => Some(format!("{error:#}")),
        }
    }

    fn is_mended(&self, fault: &Fault, before: &Before, has_ended: bool) -> Result<bool> {
        let is_booted = |id: &str| Ok::<_, anyhow::Error>(self.boot(id)? != before.boot);
        Ok(match (&fault.target, fault.kind) {
            (Target::Machine(id), Kind::Freeze) => has_ended || is_booted(id)?,
            (Target::Machine(id), Kind::Kill | Kind::PowerOff | Kind::Hang) => is_booted(id)?,
            (Target::Machine(id), Kind::Vanish) => self.incarnation(id)? > before.incarnation,
            (Target::Machine(id), Kind::OldLogs | Kind::ManyLogs) => {
                has_room(&self.installation.on(id, &["df", "--output=pcent,ipcent", "/var"])?)
            }
            (Target::Machine(id), Kind::KillShim) => {
                let shims = self.shims(id)?;
                let killed = before.process.lines().next();
                let as_many = shims.lines().count() >= before.process.lines().count();
                as_many && shims.lines().all(|shim| Some(shim) != killed)
            }
            (Target::Unit(id, unit), _) => {
                let process = self.process(id, unit)?;
                process != "0" && (process != before.process || is_booted(id)?)
            }
            (Target::File(id, path), _) => {
                let content = self.content(id, path)?;
                // A certificate that was lost is not given back, another one is issued.
                content == before.content || content.starts_with("-----BEGIN CERTIFICATE-----")
            }
            (Target::Forwarder, _) => {
                let process = self.forwarder()?;
                !process.is_empty() && process != before.process
            }
            (Target::Machine(_) | Target::Zone(_) | Target::Coordinator(_), _) => has_ended,
        })
    }

    /// The master whose API server carries most from outside: the one to which a client's connection leads.
    pub(crate) fn busiest_master(&self, masters: &[String], inside: &[String]) -> Result<String> {
        let count = || masters.iter().map(|id| self.carried(id, inside)).collect::<Result<Vec<u64>>>();
        let before = count()?;
        std::thread::sleep(LISTEN);
        let growth = count()?.into_iter().zip(before).map(|(after, before)| after.saturating_sub(before));
        let busiest = growth.zip(masters).max_by_key(|(growth, _)| *growth);
        let (growth, id) = busiest.context("the cluster has no masters")?;
        ensure!(growth > 0, "no API server is asked from outside");
        Ok(id.clone())
    }

    /// Bytes that came to a master's API server through connections of others than the cluster's own machines.
    fn carried(&self, master: &str, inside: &[String]) -> Result<u64> {
        let text = self.installation.on(master, &["ss", "-tinOH", "sport", "=", ":6443"])?;
        Ok(carried(&text, inside))
    }

    fn boot(&self, machine: &str) -> Result<String> {
        Ok(self.installation.on(machine, &BOOT)?.trim().to_owned())
    }

    fn process(&self, machine: &str, unit: &str) -> Result<String> {
        let show = ["systemctl", "show", "--value", "--property=MainPID", unit];
        Ok(self.installation.on(machine, &show)?.trim().to_owned())
    }

    /// The forwarder's process; nothing while none runs.
    fn forwarder(&self) -> Result<String> {
        Ok(self.bench.forwarder()?.map(|pid| pid.to_string()).unwrap_or_default())
    }

    /// Whether a pod runs on a machine now, as far as can be seen.
    pub(crate) fn runs_pods(&self, machine: &str) -> bool {
        self.shims(machine).is_ok_and(|shims| !shims.is_empty())
    }

    fn shims(&self, machine: &str) -> Result<String> {
        Ok(self.installation.on(machine, &["sh", "-c", SHIMS])?.trim().to_owned())
    }

    fn content(&self, machine: &str, path: &str) -> Result<String> {
        self.installation.on(machine, &["cat", path])
    }

    fn incarnation(&self, machine: &str) -> Result<u64> {
        self.installation.incarnation(machine)
    }

    fn signal_unit(&self, machine: &str, unit: &str, signal: &str) -> Result<()> {
        let signal = format!("--signal={signal}");
        let words = ["systemctl", "kill", "--kill-whom=main", &signal, unit];
        self.installation.on(machine, &words).map(drop)
    }

    /// Writes in place, so that owner and mode stay.
    fn write(&self, machine: &str, path: &str, content: &str) -> Result<()> {
        let script = ["sh", "-c", "printf %s \"$2\" >\"$1\"", "sh", path, content];
        self.installation.on(machine, &script).map(drop)
    }

    fn kill_coordinator(&mut self) -> Result<()> {
        let pid =
            running(&self.installation.state_dir).context("no coordinator of this installation runs")?;
        kill(pid, Signal::SIGKILL).context("the coordinator cannot be killed")?;
        if let Some(mut child) = self.coordinator.take() {
            child.wait()?;
        }
        self.wait(|| !is_alive(pid), "to be gone")
    }

    /// Starts the coordinator, when none runs, and waits until it answers. Two would work on the same machines.
    fn start_coordinator(&mut self) -> Result<()> {
        if !self.installation.answers() && running(&self.installation.state_dir).is_none() {
            self.coordinator = Some(self.spawn_coordinator()?);
        }
        self.wait(|| self.installation.answers(), "to answer")
    }

    /// As `cargo xtask up` does, so that `down` finds it.
    fn spawn_coordinator(&self) -> Result<Child> {
        let state_dir = &self.installation.state_dir;
        let log = File::options().append(true).create(true).open(state_dir.join("coordinator.log"))?;
        let mut command = Command::new(&self.installation.coordinator);
        command.arg("serve").arg("--state-dir").arg(state_dir).args(&self.installation.coordinator_arguments);
        // A group of its own: Ctrl-C is meant for the run.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().context("the coordinator cannot be started")?;
        std::fs::write(state_dir.join(PID_FILE), child.id().to_string())?;
        Ok(child)
    }

    fn wait(&self, done: impl Fn() -> bool, what: &str) -> Result<()> {
        let until = Instant::now() + COORDINATOR_MAX;
        while !done() {
            ensure!(
                Instant::now() < until,
                "waited {} s for the coordinator {what}",
                COORDINATOR_MAX.as_secs()
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

fn machine(id: &str) -> Result<MachineId> {
    id.parse().with_context(|| format!("`{id}` is no name of a machine"))
}

/// The cut that a fault is.
fn cut(fault: &Fault) -> Result<Option<Cut>> {
    let cut = |from, to, ways| Ok(Some(Cut { from, to, ways }));
    match (&fault.target, fault.kind) {
        (Target::Machine(id), Kind::CutCoordinator) => {
            cut(Side::Machine(machine(id)?), Side::Coordinator, Ways::Both)
        }
        (Target::Machine(id), Kind::CutOneWay) => {
            cut(Side::Machine(machine(id)?), Side::Coordinator, Ways::OneWay)
        }
        (Target::Machine(id), Kind::CutAll) => cut(Side::Machine(machine(id)?), Side::Rest, Ways::Both),
        (Target::Zone(zone), kind) => {
            let others = if kind == Kind::IsolateZone { Side::Rest } else { Side::Coordinator };
            cut(Side::Zone(zone.clone()), others, Ways::Both)
        }
        _ => Ok(None),
    }
}

/// The process of an installation's coordinator, when it lives: a number alone may belong to somebody else by now.
fn running(state_dir: &Path) -> Option<Pid> {
    let pid: i32 = std::fs::read_to_string(state_dir.join(PID_FILE)).ok()?.trim().parse().ok()?;
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let pid = Pid::from_raw(pid);
    (is_coordinator_of(&words, state_dir) && is_alive(pid)).then_some(pid)
}

/// Whether the words of a process, as `/proc` has them, are those of this installation's coordinator.
fn is_coordinator_of(words: &[u8], state_dir: &Path) -> bool {
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    let state_dir = state_dir.as_os_str().as_encoded_bytes();
    words.get(1) == Some(&b"serve".as_slice()) && words.contains(&state_dir)
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.is_empty() && !state.starts_with('Z')
}

/// Sums what `ss -tinOH` says was received, without connections from the addresses `inside` and from loopback.
fn carried(text: &str, inside: &[String]) -> u64 {
    let one = |line: &str| {
        let peer = line.split_whitespace().nth(4)?.rsplit_once(':')?.0;
        let peer = peer.trim_start_matches("[::ffff:").trim_end_matches(']');
        if peer.starts_with("127.") || inside.iter().any(|address| address == peer) {
            return None;
        }
        let received = line.split_whitespace().find_map(|word| word.strip_prefix("bytes_received:"))?;
        received.parse::<u64>().ok()
    };
    text.lines().filter_map(one).sum()
}

/// Whether less is used than what calls for room, by what `df --output=pcent,ipcent` says.
fn has_room(text: &str) -> bool {
    let used = |word: &str| word.strip_suffix('%').and_then(|word| word.parse::<u8>().ok());
    let words = text.lines().last().unwrap_or_default().split_whitespace();
    let shares: Option<Vec<u8>> = words.map(used).collect();
    shares.is_some_and(|shares| shares.len() == 2 && shares.iter().all(|used| *used < FULL_PERCENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_that_of_blocks_and_of_inodes() {
        let said = |blocks: &str, inodes: &str| format!("Use% IUse%\n {blocks}   {inodes}\n");
        assert!(has_room(&said("84%", "3%")));
        assert!(!has_room(&said("85%", "3%")) && !has_room(&said("12%", "91%")));
        assert!(!has_room(&said("12%", "-")) && !has_room(&said("12%", "")) && !has_room(""));
    }

    #[test]
    fn only_connections_from_outside_are_counted() {
        let text = "\
ESTAB 0 0 [::ffff:10.210.0.6]:6443 [::ffff:10.210.0.1]:40000 cubic bytes_sent:9 bytes_received:700 segs_out:3
ESTAB 0 0 [::ffff:10.210.0.6]:6443 [::ffff:10.210.0.8]:40001 cubic bytes_sent:9 bytes_received:50 segs_out:3
ESTAB 0 0 [::ffff:127.0.0.1]:6443 [::ffff:127.0.0.1]:40002 cubic bytes_received:60
ESTAB 0 0 10.210.0.6:6443 10.210.0.1:40003 cubic bytes_received:3
LISTEN 0 0 *:6443 *:* cubic";
        assert_eq!(carried(text, &["10.210.0.8".to_owned()]), 703);
    }

    #[test]
    fn only_the_coordinator_of_this_installation_is_taken_for_it() {
        let is_own = |words: &str| is_coordinator_of(words.as_bytes(), Path::new("/state/one"));
        assert!(is_own("/bin/keelson-coordinator\0serve\0--state-dir\0/state/one\0--image\0sha256:1\0"));
        assert!(!is_own("/bin/keelson-coordinator\0serve\0--state-dir\0/state/two\0"));
        assert!(!is_own("tail\0/state/one\0"));
        assert!(!is_own(""));
    }

    #[test]
    fn faults_of_the_network_are_cuts() {
        let fault = |kind, target| Fault { kind, target };
        let machine = || Target::Machine("chaos-etcd-1".to_owned());
        let made = cut(&fault(Kind::CutOneWay, machine())).unwrap().unwrap();
        assert_eq!((made.to, made.ways), (Side::Coordinator, Ways::OneWay));
        for (kind, others) in [(Kind::CutZone, Side::Coordinator), (Kind::IsolateZone, Side::Rest)] {
            let made = cut(&fault(kind, Target::Zone("zone-a".to_owned()))).unwrap().unwrap();
            assert_eq!(
                (made.from, made.to, made.ways),
                (Side::Zone("zone-a".to_owned()), others, Ways::Both)
            );
        }
        assert_eq!(cut(&fault(Kind::Kill, machine())).unwrap(), None);
    }
}
