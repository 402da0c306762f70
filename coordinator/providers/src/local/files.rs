//! Files that survive a crash, locks that survive a killed coordinator, and programs with a deadline.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::LocalError;

/// Files and directories of the state belong to root alone: they hold enrolment tokens and machines' disks.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How often a condition outside this process is looked at again. Short, because creating a machine takes 100 ms.
pub(crate) const POLL: Duration = Duration::from_millis(2);

/// Most bytes kept of a program's standard error: enough for its message, too few to flood a log.
const SAID_BYTES_MAX: u64 = 2 * 1024;

/// Largest state file that is read, in bytes. The largest legitimate one (forwards of 1,000 clusters) is below 1 MiB.
const STATE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Makes a directory that only root can enter, and its parents.
pub(crate) fn make_dir(path: &Path) -> Result<(), LocalError> {
    fs::create_dir_all(path).map_err(LocalError::file("create", path))?;
    fs::set_permissions(path, Permissions::from_mode(DIR_MODE)).map_err(LocalError::file("protect", path))
}

/// Writes a file so that after a crash either the old or the new content is there, whole.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), LocalError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let draft = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        sync_parent(path)
    };
    write().map_err(LocalError::file("write", path))
}

/// Bytes that programs can still write to the file system of `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, LocalError> {
    let found = statvfs(path).map_err(LocalError::kernel(format!("measure {}", path.display())))?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// Makes the names in the directory of `path` survive a crash of the host.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Writes `value` as JSON, atomically.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), LocalError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|source| LocalError::State { path: path.to_owned(), source })?;
    text.push(b'\n');
    write_atomically(path, &text)
}

/// Reads a JSON state file; `None` when it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LocalError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LocalError::file("read", path)(e)),
    };
    let mut text = Vec::new();
    file.take(STATE_BYTES_MAX).read_to_end(&mut text).map_err(LocalError::file("read", path))?;
    let value = serde_json::from_slice(&text)
        .map_err(|source| LocalError::State { path: path.to_owned(), source })?;
    Ok(Some(value))
}

/// Removes a file; that it is not there is success.
pub(crate) fn remove_file(path: &Path) -> Result<(), LocalError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(LocalError::file("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes a directory and all below it; that it is not there is success. Never call it over a mount.
pub(crate) fn remove_tree(path: &Path) -> Result<(), LocalError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(LocalError::file("remove", path)(e)),
        _ => Ok(()),
    }
}

/// The last `bytes_max` bytes of a file as text; empty when there is none.
pub(crate) fn tail(path: &Path, bytes_max: u64) -> Result<String, LocalError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(LocalError::file("read", path)(e)),
    }
}

/// Looks at `condition` until it is true or `until` has come.
pub(crate) fn wait_until(
    what: impl FnOnce() -> String,
    until: Instant,
    mut condition: impl FnMut() -> Result<bool, LocalError>,
) -> Result<(), LocalError> {
    let begin = Instant::now();
    loop {
        if condition()? {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(LocalError::Late { what: what(), waited: begin.elapsed() });
        }
        thread::sleep(POLL);
    }
}

/// An exclusive lock on a file, across threads and processes. A program that was given [`FileLock::handle`] keeps the
/// lock when this process is killed, so that a new coordinator waits for what the old one had begun.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: Flock<File>,
    path: PathBuf,
}

impl FileLock {
    /// Waits for the lock until `until`.
    pub(crate) fn acquire(path: &Path, until: Instant) -> Result<Self, LocalError> {
        let mut held = None;
        wait_until(
            || format!("the lock {}", path.display()),
            until,
            || {
                held = Self::attempt(path)?;
                Ok(held.is_some())
            },
        )?;
        Ok(held.expect("the wait ended because the lock is held"))
    }

    /// Takes the lock when nobody has it.
    pub(crate) fn attempt(path: &Path) -> Result<Option<Self>, LocalError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(path)
            .map_err(LocalError::file("open", path))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, source)) => {
                return Err(LocalError::Kernel { doing: format!("lock {}", path.display()), source });
            }
        };
        // The previous holder may have removed the file between our opening and locking it; then the lock is void.
        let inode = file.metadata().map_err(LocalError::file("read", path))?.ino();
        let current = fs::metadata(path).is_ok_and(|there| there.ino() == inode);
        Ok(current.then(|| Self { file, path: path.to_owned() }))
    }

    /// A handle that keeps the lock for as long as a program holds it.
    pub(crate) fn handle(&self) -> Result<File, LocalError> {
        self.file.try_clone().map_err(LocalError::file("hand on", &self.path))
    }

    /// Gives the lock up and removes its file.
    pub(crate) fn remove(self) -> Result<(), LocalError> {
        remove_file(&self.path)
    }
}

/// Runs a program that does one thing and ends. `input` goes to its standard input.
pub(crate) fn run(
    name: &str,
    command: &mut Command,
    input: Option<&str>,
    until: Instant,
) -> Result<(), LocalError> {
    run_into(name, command, Stdio::null(), input, until)
}

/// As [`run`]; the program's output goes to `output`.
pub(crate) fn run_into(
    name: &str,
    command: &mut Command,
    output: Stdio,
    input: Option<&str>,
    until: Instant,
) -> Result<(), LocalError> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(output).stderr(Stdio::piped());
    let start = |source| LocalError::Start { program: name.to_owned(), source };
    let mut child = command.spawn().map_err(start)?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        // A program that ends early closes its end; its own message says why, so the broken pipe says nothing new.
        let _ = pipe.write_all(text.as_bytes());
    }
    let mut status = None;
    let ended = wait_until(
        || format!("the end of `{name}`"),
        until,
        || {
            status = child.try_wait().map_err(start_again(name))?;
            Ok(status.is_some())
        },
    );
    if let Err(late) = ended {
        // Killed and reaped, so that nothing goes on behind the caller's back.
        let _ = child.kill();
        let _ = child.wait();
        return Err(late);
    }
    let status = status.expect("the wait ended because there is a status");
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(pipe) = child.stderr.take() {
        // What can be read is kept; a failure to read changes nothing about the failure that is reported.
        let _ = pipe.take(SAID_BYTES_MAX).read_to_string(&mut said);
    }
    let said = said.trim().replace('\n', "; ");
    Err(LocalError::Program { program: name.to_owned(), status: status.to_string(), said })
}

fn start_again(name: &str) -> impl FnOnce(io::Error) -> LocalError {
    let program = name.to_owned();
    move |source| LocalError::Start { program, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn a_lock_is_exclusive_and_can_be_taken_again_after_its_file_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = FileLock::acquire(&path, soon()).unwrap();
        let refused = FileLock::acquire(&path, Instant::now());
        assert!(matches!(refused, Err(LocalError::Late { .. })), "{refused:?}");
        first.remove().unwrap();
        FileLock::acquire(&path, soon()).unwrap();
    }

    #[test]
    fn a_program_with_the_handle_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = FileLock::acquire(&path, soon()).unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(lock.handle().unwrap()).spawn().unwrap();
        // As after kill -9: no destructor runs.
        std::mem::forget(lock);
        assert!(FileLock::acquire(&path, Instant::now()).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let mut command = Command::new("sh");
        let error = run("sh -c", command.args(["-c", "cat >&2; exit 3"]), Some("no such thing\n"), soon());
        assert_eq!(error.unwrap_err().to_string(), "`sh -c` failed (exit status: 3): no such thing");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let error = run("sleep", Command::new("sleep").arg("60"), None, Instant::now());
        assert!(matches!(error, Err(LocalError::Late { .. })), "{error:?}");
    }
}
