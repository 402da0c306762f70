//! Running programs and waiting for what they bring about.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long anything here may take.
const WAIT_MAX: Duration = Duration::from_secs(180);
/// How often something is looked at while it is waited for. Short, because it is part of what is measured.
const POLL: Duration = Duration::from_millis(20);

/// Runs a command and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} ended with {}\n{said}{errors}", output.status);
    Ok(said.into_owned())
}

/// Tries until it succeeds.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => bail!("{what} did not come about: {error:#}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}
