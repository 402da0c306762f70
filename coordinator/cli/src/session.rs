//! Everything around the program, as an argument: streams, environment, clock, Ctrl-C.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::WallTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often an operation that is watched is read.
const POLL: Duration = Duration::from_millis(500);

/// What a command runs in. Tests make their own.
pub struct Session {
    /// Results.
    pub stdout: Box<dyn Write + Send>,
    /// Progress, hints, errors.
    pub stderr: Box<dyn Write + Send>,
    /// Answers of a person, keys of a shell. Taken by the first who reads.
    pub stdin: Option<Box<dyn BufRead + Send>>,
    /// Whether a person can answer.
    pub stdin_is_terminal: bool,
    /// Whether results go to a person.
    pub stdout_is_terminal: bool,
    /// Whether progress goes to a person.
    pub stderr_is_terminal: bool,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Columns of the terminal.
    pub columns: u16,
    /// The wall clock.
    pub clock: Arc<dyn Fn() -> WallTime + Send + Sync>,
    /// Becomes true at Ctrl-C.
    pub interrupt: watch::Receiver<bool>,
    /// How often an operation that is watched is read.
    pub poll: Duration,
    /// The exit code of a command on a machine, which is passed on in place of our own.
    pub passed_on: Option<u8>,
}

impl Session {
    /// The process' own streams, environment, clock and signals. Needs a running tokio runtime.
    #[must_use]
    pub fn of_process() -> Self {
        let (sender, interrupt) = watch::channel(false);
        tokio::spawn(async move {
            // A process that ends its jobs by SIGTERM means the same as a person who presses Ctrl-C.
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            loop {
                tokio::select! {
                    pressed = tokio::signal::ctrl_c() => if pressed.is_err() { break },
                    _ = terminate.recv() => {}
                }
                if sender.send(true).is_err() {
                    break;
                }
            }
        });
        Self {
            stdout: Box::new(std::io::stdout()),
            stderr: Box::new(std::io::stderr()),
            stdin: Some(Box::new(std::io::BufReader::new(std::io::stdin()))),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
            // What is not UTF-8 is none of ours.
            environment: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            columns: crate::terminal::size().map_or(100, |size| size.columns),
            clock: Arc::new(wall_clock),
            interrupt,
            poll: POLL,
            passed_on: None,
        }
    }

    /// An environment variable that is set and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The user's home.
    pub(crate) fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from)
    }

    /// The time now.
    pub(crate) fn now(&self) -> WallTime {
        (self.clock)()
    }
}

#[allow(clippy::disallowed_methods)] // The edge of the program: everything inside gets the time as an argument.
fn wall_clock() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
