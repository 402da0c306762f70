//! Programs that are run to their end.

use std::process::Stdio;
use std::time::Duration;

use keelson_protocol::remedy::Argument;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::error::HostError;
use crate::{Queue, STARTS};

/// So much of each of a program's outputs is read, in bytes: a table of ten thousand images is smaller.
const OUTPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// So much of what a failed program printed goes into its error, in characters.
const QUOTE_MAX: usize = 200;

/// What a program printed.
pub(super) struct Printed {
    pub(super) text: String,
    errors: String,
    succeeded: bool,
    code: String,
}

impl Printed {
    /// The output of a program that succeeded.
    pub(super) fn good(self, program: &str) -> Result<String, HostError> {
        if self.succeeded {
            return Ok(self.text);
        }
        let last = self.errors.lines().chain(self.text.lines()).map(str::trim).rfind(|line| !line.is_empty());
        let last = self.errors.lines().map(str::trim).rfind(|line| !line.is_empty()).or(last);
        let quote: String = last.unwrap_or_default().chars().take(QUOTE_MAX).collect();
        Err(HostError::program(program, format!("{}: {quote}", self.code)))
    }
}

/// Runs `command`, with what `argument` tells as its last word.
pub(super) async fn run(
    mut command: Vec<String>,
    argument: Option<&Argument>,
    done_when: Option<&str>,
    timeout_s: u16,
) -> Result<String, HostError> {
    if let Some(argument) = argument {
        command.push(tell(argument, timeout_s).await?);
    }
    let printed = print(&command, timeout_s).await?;
    let words = what(&command);
    let before = done_when.is_some_and(|text| printed.errors.contains(text) || printed.text.contains(text));
    if !printed.succeeded && before {
        return Ok(format!("{words} was done before"));
    }
    printed.good(&command[0]).map(|_| format!("ran {words}"))
}

/// A number in the JSON that a program prints: only a number, so that no output can become an option.
async fn tell(argument: &Argument, timeout_s: u16) -> Result<String, HostError> {
    let program = &argument.command[0];
    let text = print(&argument.command, timeout_s).await?.good(program)?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| HostError::program(program, format!("it printed no JSON: {error}")))?;
    let number = value.pointer(&argument.pointer).and_then(Value::as_u64);
    let missing = || HostError::program(program, format!("it printed no number at {}", argument.pointer));
    number.map(|number| number.to_string()).ok_or_else(missing)
}

/// A command in two or three words: its program and what is no option.
fn what(command: &[String]) -> String {
    let program = command[0].rsplit('/').next().unwrap_or_default();
    let words = command[1..].iter().filter(|word| !word.starts_with('-')).take(2);
    words.fold(program.to_owned(), |text, word| text + " " + word)
}

/// Runs a program to its end and reads what it prints. One that takes longer is killed.
pub(super) async fn print(command: &[String], timeout_s: u16) -> Result<Printed, HostError> {
    print_in(&STARTS, command, timeout_s).await
}

/// The same, with the queue in which it waits for its start.
pub(super) async fn print_in(
    queue: &'static Queue,
    command: &[String],
    timeout_s: u16,
) -> Result<Printed, HostError> {
    let (program, arguments) = command.split_first().ok_or(HostError::NotMine)?;
    let mut process = Command::new(program);
    process.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Tools read settings from there, and a unit of systemd has none.
    process.env("HOME", "/").kill_on_drop(true);
    let work = async {
        let mut child = crate::start(queue, process, program).await?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let (text, errors) = tokio::join!(read(output), read(errors));
        let status = child.wait().await.map_err(HostError::file("wait for", program))?;
        Ok(Printed { text, errors, succeeded: status.success(), code: status.to_string() })
    };
    let within = Duration::from_secs(timeout_s.into());
    let late = || HostError::program(program, format!("it did not end within {timeout_s} s"));
    tokio::time::timeout(within, work).await.map_err(|_| late())?
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = (&mut pipe).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await;
        // A program whose pipe is full would never end.
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Vec<String> {
        ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn programs_are_run_and_told() {
        let good = run(shell("exit 0"), None, None, 5).await.unwrap();
        assert_eq!(good, "ran sh exit 0");
        let error = run(shell("echo first; echo why >&2; exit 3"), None, None, 5).await.unwrap_err();
        assert_eq!(error.chain(), "/bin/sh failed: exit status: 3: why");
        let before = run(shell("echo already compacted >&2; exit 1"), None, Some("compacted"), 5).await;
        assert!(before.unwrap().ends_with("was done before"));
        let error = run(shell("sleep 60"), None, None, 1).await.unwrap_err();
        assert_eq!(error.chain(), "/bin/sh failed: it did not end within 1 s");
        let error = run(vec!["/no/such".to_owned()], None, None, 1).await.unwrap_err();
        assert!(error.chain().starts_with("could not start /no/such"), "{}", error.chain());
    }

    #[tokio::test]
    async fn a_number_of_one_program_is_the_argument_of_another() {
        let argument = |json: &str| Argument {
            command: shell(&format!("echo '{json}'")),
            pointer: "/0/Status/header/revision".to_owned(),
        };
        let compare = |argument: Argument| async move {
            run(shell("test \"$0\" = 30"), Some(&argument), None, 5).await.map_err(|error| error.chain())
        };
        compare(argument(r#"[{"Status":{"header":{"revision":30}}}]"#)).await.unwrap();
        for evil in [r#"[{"Status":{"header":{"revision":"--help"}}}]"#, "[]", "no"] {
            let why = compare(argument(evil)).await.unwrap_err();
            assert!(why.contains("it printed no"), "{why}");
        }
    }

    #[tokio::test]
    async fn a_program_that_prints_without_end_is_read_in_part() {
        let printed = print(&shell("head -c 10000000 /dev/zero"), 20).await.unwrap();
        assert_eq!(printed.good("x").unwrap().len() as u64, OUTPUT_BYTES_MAX);
    }
}
