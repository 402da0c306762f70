//! The container runtime that carries machines: Debian's runc, told what to do by its command line and a bundle.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use keelson_protocol::MachineId;

use super::error::LocalError;
use super::files::{self, FileLock};
use super::paths::{MachinePaths, Paths};

/// Most bytes of a machine's console that are kept once it grew beyond [`CONSOLE_BYTES_MAX`].
pub(crate) const CONSOLE_BYTES_KEPT: u64 = 64 * 1024;

/// A console log that is larger is cut. Enough for some hundred boots of a quiet init.
const CONSOLE_BYTES_MAX: u64 = 1024 * 1024;

/// Lines of the journal that a console shows.
const JOURNAL_LINES: &str = "200";

/// SIGRTMIN+3 as glibc numbers it: systemd halts the machine (systemd(1), "Signals").
const HALT_SIGNAL: &str = "37";

/// Starts a machine from its bundle and returns once its init runs.
///
/// runc holds the machine's lock as well: when the coordinator is killed while runc works, the next coordinator waits
/// for it instead of working against it. The shell puts the lock on descriptor 3, which runc hands to nobody.
pub(crate) fn start(
    paths: &Paths,
    machine: &MachinePaths,
    id: &MachineId,
    lock: &FileLock,
    until: Instant,
) -> Result<(), LocalError> {
    cap_console(machine)?;
    files::remove_file(&machine.runc_log())?;
    let console_path = machine.console();
    let console = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&console_path)
        .map_err(LocalError::file("open", &console_path))?;
    let errors = console.try_clone().map_err(LocalError::file("open", &console_path))?;
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec "$@" 3<&0 </dev/null"#, "sh", "runc", "--root"])
        .arg(paths.runc())
        .arg("--log")
        .arg(machine.runc_log())
        .args(["run", "--detach", "--bundle"])
        .arg(machine.bundle())
        .arg(id.as_str())
        .current_dir("/")
        .stdin(Stdio::from(lock.handle()?))
        .stdout(Stdio::from(console))
        .stderr(Stdio::from(errors));
    let start = |source| LocalError::Start { program: "runc run".to_owned(), source };
    let mut child = command.spawn().map_err(start)?;
    let mut status = None;
    let ended = files::wait_until(
        || format!("the start of machine {id}"),
        until,
        || {
            let start = |source| LocalError::Start { program: "runc run".to_owned(), source };
            status = child.try_wait().map_err(start)?;
            Ok(status.is_some())
        },
    );
    if let Err(late) = ended {
        // Killed and reaped; what it made so far is cleaned at the next power-on or delete.
        let _ = child.kill();
        let _ = child.wait();
        return Err(late);
    }
    let status = status.expect("the wait ended because there is a status");
    if status.success() {
        return Ok(());
    }
    let said = files::tail(&machine.runc_log(), CONSOLE_BYTES_KEPT)?;
    let said = said.lines().last().unwrap_or("no message").to_owned();
    Err(LocalError::Program { program: format!("runc run {id}"), status: status.to_string(), said })
}

/// Asks the machine's init to shut down.
pub(crate) fn halt(paths: &Paths, id: &MachineId, until: Instant) -> Result<(), LocalError> {
    command(paths, "kill", &[id.as_str(), HALT_SIGNAL], until)
}

/// Stops all processes of the machine; they keep their memory.
pub(crate) fn pause(paths: &Paths, id: &MachineId, until: Instant) -> Result<(), LocalError> {
    command(paths, "pause", &[id.as_str()], until)
}

/// Lets the processes of the machine go on.
pub(crate) fn resume(paths: &Paths, id: &MachineId, until: Instant) -> Result<(), LocalError> {
    command(paths, "resume", &[id.as_str()], until)
}

/// Makes runc forget a machine whose processes have ended; that it does not know it is success.
pub(crate) fn forget(machine: &MachinePaths) -> Result<(), LocalError> {
    // `runc delete --force` would do the same with another process and 30 ms: what runc keeps is this directory and
    // the control groups, and both are removed by us, exactly, also when runc no longer understands its own state.
    files::remove_tree(machine.runc_state())
}

fn command(paths: &Paths, verb: &str, args: &[&str], until: Instant) -> Result<(), LocalError> {
    let mut command = Command::new("runc");
    command.arg("--root").arg(paths.runc()).arg(verb).args(args).current_dir("/");
    files::run(&format!("runc {verb} {}", args.join(" ")), &mut command, None, until)
}

/// The last lines of the journal on the machine's disk, read from outside; empty when there is none. Works for a
/// machine that is off or does not come up.
pub(crate) fn journal(machine: &MachinePaths, until: Instant) -> Result<String, LocalError> {
    let (journal, text) = (machine.journal(), machine.journal_text());
    if !journal.is_dir() {
        return Ok(String::new());
    }
    let file = File::create(&text).map_err(LocalError::file("create", &text))?;
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=short-iso", "--lines", JOURNAL_LINES, "--directory"]);
    files::run_into("journalctl", command.arg(&journal), Stdio::from(file), None, until)?;
    files::tail(&text, CONSOLE_BYTES_KEPT)
}

/// Cuts a console log that has grown too large. Init appends to it, so it goes on at the new end.
pub(crate) fn cap_console(machine: &MachinePaths) -> Result<(), LocalError> {
    let path = machine.console();
    match fs::metadata(&path) {
        Ok(found) if found.len() > CONSOLE_BYTES_MAX => {
            let kept = files::tail(&path, CONSOLE_BYTES_KEPT)?;
            fs::write(&path, kept).map_err(LocalError::file("shorten", &path))
        }
        _ => Ok(()),
    }
}
