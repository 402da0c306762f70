//! Starting and stopping the coordinator of an installation made by `up`.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the coordinator may take until its API answers.
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to end.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How long a new process may take until the kernel knows its command line.
const WORDS_MAX: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(50);

/// The coordinator of a state directory.
pub(crate) struct Coordinator {
    state_dir: PathBuf,
}

impl Coordinator {
    pub(crate) fn of(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned() }
    }

    /// Makes sure that `program` runs with these arguments. One that runs with another program or other arguments is
    /// replaced; machines do not notice.
    pub(crate) fn ensure(
        &self,
        program: &Path,
        arguments: &[String],
        ready: impl Fn() -> bool,
    ) -> Result<()> {
        let wanted = format!("{} {}", fingerprint(program)?, arguments.join(" "));
        let running = fs::read_to_string(self.file("coordinator.version")).unwrap_or_default();
        if self.pid().is_some() && running == wanted && ready() {
            return Ok(());
        }
        self.stop()?;
        let mut child = self.start(program, arguments)?;
        let deadline = Instant::now() + START_MAX;
        while !ready() {
            // Asked of the child itself: right after its start, /proc does not know its words yet.
            if let Some(status) = child.try_wait()? {
                bail!("the coordinator ended with {status}:\n{}", self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("the coordinator did not become ready:\n{}", self.log_tail());
            }
            std::thread::sleep(POLL);
        }
        fs::write(self.file("coordinator.version"), wanted).context("could not write the version file")
    }

    fn start(&self, program: &Path, arguments: &[String]) -> Result<Child> {
        fs::create_dir_all(&self.state_dir).context("could not make the state directory")?;
        let log = File::options().create(true).append(true).open(self.file("coordinator.log"))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--state-dir").arg(&self.state_dir).args(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("could not start {}", program.display()))?;
        fs::write(self.file("coordinator.pid"), child.id().to_string())
            .context("could not write the pid file")?;
        Ok(child)
    }

    /// Ends the coordinator, when it runs.
    pub(crate) fn stop(&self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        for (signal, patience) in [(Signal::SIGTERM, STOP_MAX), (Signal::SIGKILL, STOP_MAX)] {
            // It may have ended since it was looked at.
            let _ = kill(pid, signal);
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                if self.pid().is_none() {
                    return Ok(());
                }
                std::thread::sleep(POLL);
            }
        }
        bail!("the coordinator (process {pid}) does not end")
    }

    /// The process, when it lives and is this installation's coordinator: a number alone may belong to somebody else.
    fn pid(&self) -> Option<Pid> {
        let pid: i32 = fs::read_to_string(self.file("coordinator.pid")).ok()?.trim().parse().ok()?;
        let words = words_of(pid)?;
        let mut words = words.split(|byte| *byte == 0);
        let own = words.any(|word| word == self.state_dir.as_os_str().as_encoded_bytes());
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let zombie = state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
        (own && !zombie).then(|| Pid::from_raw(pid))
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.file("coordinator.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }
}

/// The command line of a process. One that has just been started may have none for a moment.
fn words_of(pid: i32) -> Option<Vec<u8>> {
    let deadline = Instant::now() + WORDS_MAX;
    loop {
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        if !words.is_empty() || Instant::now() > deadline {
            return Some(words);
        }
        std::thread::sleep(POLL);
    }
}

/// Tells one build of a program from another.
fn fingerprint(program: &Path) -> Result<String> {
    let meta = fs::metadata(program).with_context(|| format!("{} is not there", program.display()))?;
    let modified = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{}-{}", modified.as_nanos(), meta.len()))
}
