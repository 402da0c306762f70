//! Running the programs that a build needs: looked up first, output kept for the error, ended with their parent.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use crate::files::is_disk_full;

/// Last lines of a failed program's output that its error shows. The cause is nearly always among them.
const OUTPUT_LINES_SHOWN: usize = 25;
/// Bytes of a line of output that are kept; a longer one is cut.
const OUTPUT_LINE_BYTES_MAX: usize = 2_000;

/// A program could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed.
    #[error("{program} is not installed (not found in PATH); {remedy}")]
    Missing {
        /// Its name.
        program: String,
        /// What to do.
        remedy: String,
    },
    /// It could not be started.
    #[error("{program} cannot be started")]
    Start {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It wrote to a full disk.
    #[error(
        "{program} ran out of disk space; free some, or set KEELSON_CACHE_DIR to a directory on a larger disk\n{output}"
    )]
    DiskFull {
        /// Its name.
        program: String,
        /// The last lines of its output.
        output: String,
    },
    /// It ended with an error.
    #[error("{program} failed ({status})\n{output}")]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its output.
        output: String,
    },
}

impl CommandError {
    /// Whether the file system had no room left.
    pub fn is_disk_full(&self) -> bool {
        match self {
            CommandError::DiskFull { .. } => true,
            CommandError::Start { source, .. } => is_disk_full(source),
            CommandError::Missing { .. } | CommandError::Failed { .. } => false,
        }
    }
}

/// The path of `program` in `PATH`.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}

/// Checks that a program is there and says how to get it when not.
pub(crate) fn require(program: &str, remedy: &str) -> Result<(), CommandError> {
    match find_program(program) {
        Some(_) => Ok(()),
        None => Err(CommandError::Missing { program: program.to_owned(), remedy: remedy.to_owned() }),
    }
}

/// A command that is killed when the thread that started it ends, however it ends. `setpriv` does that without unsafe
/// code of our own. Its messages are in English, as `failure` looks for one.
pub(crate) fn tied(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).env("LC_ALL", "C");
    command
}

/// Runs a command to its end and returns what it wrote to its standard output.
pub(crate) fn output(program: &str, command: &mut Command) -> Result<String, CommandError> {
    let start = |source| CommandError::Start { program: program.to_owned(), source };
    let output = command.stdin(Stdio::null()).output().map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failure(program, output.status, text.lines().map(str::to_owned).collect()))
}

/// Runs a command to its end, giving each line of its output (both streams) to `line`.
pub(crate) fn run(
    program: &str,
    command: &mut Command,
    line: &mut dyn FnMut(&str),
) -> Result<(), CommandError> {
    let start = |source| CommandError::Start { program: program.to_owned(), source };
    let (reader, writer) = io::pipe().map_err(start)?;
    let copy = writer.try_clone().map_err(start)?;
    command.stdin(Stdio::null()).stdout(writer).stderr(copy);
    let mut child = command.spawn().map_err(start)?;
    // The command holds the writing ends; reading would never end with them open here.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut kept = std::collections::VecDeque::new();
    for text in BufReader::new(reader).split(b'\n') {
        let mut text = String::from_utf8_lossy(&text.map_err(start)?).into_owned();
        text.truncate(text.floor_char_boundary(OUTPUT_LINE_BYTES_MAX));
        line(&text);
        if kept.len() == OUTPUT_LINES_SHOWN {
            kept.pop_front();
        }
        kept.push_back(text);
    }
    let status = child.wait().map_err(start)?;
    if status.success() { Ok(()) } else { Err(failure(program, status, kept.into())) }
}

fn failure(program: &str, status: ExitStatus, lines: Vec<String>) -> CommandError {
    let first = lines.len().saturating_sub(OUTPUT_LINES_SHOWN);
    let output = lines[first..].join("\n");
    let program = program.to_owned();
    if output.to_lowercase().contains("no space left on device") {
        CommandError::DiskFull { program, output }
    } else {
        CommandError::Failed { program, status, output }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Vec<String>, CommandError> {
        let mut lines = Vec::new();
        run("sh", tied("sh").args(["-c", script]), &mut |line| lines.push(line.to_owned()))?;
        Ok(lines)
    }

    #[test]
    fn both_streams_come_in_order() {
        assert_eq!(shell("echo a; echo b >&2; printf c").unwrap(), ["a", "b", "c"]);
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output() {
        let error = shell("for i in $(seq 100); do echo line $i; done; exit 3").unwrap_err().to_string();
        assert!(error.starts_with("sh failed (exit status: 3)\nline 76\n"), "{error}");
        assert!(error.ends_with("line 100"), "{error}");
    }

    #[test]
    fn a_full_disk_is_recognised() {
        let error = shell("cat /etc/passwd > /dev/full").unwrap_err();
        assert!(error.is_disk_full(), "{error}");
    }

    #[test]
    fn a_missing_program_comes_with_its_remedy() {
        let error = require("keelson-no-such-program", "apt-get install it").unwrap_err().to_string();
        assert_eq!(error, "keelson-no-such-program is not installed (not found in PATH); apt-get install it");
    }
}
