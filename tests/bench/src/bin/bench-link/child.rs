//! A child process that answers each line on its input with one JSON object.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

/// A running child. It is killed when this value goes.
pub(crate) struct Child {
    process: std::process::Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Child {
    /// Starts this program again in another role.
    pub(crate) fn start(role: &str, folder: &Path, count: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).arg(folder).arg(count.to_string());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().context("the child has no input")?;
        let output = BufReader::new(process.stdout.take().context("the child has no output")?);
        Ok(Self { process, input, output })
    }

    /// Asks how it is.
    pub(crate) fn ask(&mut self) -> Result<Value> {
        self.input.write_all(b"?\n").context("the child has ended")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).context("the child has ended")
    }

    /// Kills it at once, as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.kill();
    }
}

/// Lines of this process's input, as they come.
pub(crate) fn questions() -> tokio::sync::mpsc::Receiver<()> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.is_err() || sender.blocking_send(()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Answers a question.
#[expect(clippy::print_stdout, reason = "this is the protocol between the processes")]
pub(crate) fn answer(value: &Value) {
    println!("{value}");
}
