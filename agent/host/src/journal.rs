//! The journal, read by journalctl(1): its file format is systemd's own affair.

use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::error::HostError;

/// Most lines of one request: 10,000 lines are two megabytes, and nobody reads more.
const LINES_MAX: u32 = 10_000;

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalRequest {
    /// Only this unit.
    pub unit: Option<String>,
    /// How many of the last lines.
    pub lines: u32,
    /// Whether to go on with new lines.
    pub follow: bool,
}

/// Starts to read; the text is the child's standard output. Dropping the child kills it.
///
/// # Errors
/// [`HostError::File`] when there is no journalctl.
pub fn journal(request: &JournalRequest) -> Result<Child, HostError> {
    let mut command = Command::new("journalctl");
    command.args(arguments(request)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn().map_err(HostError::file("start", "journalctl"))
}

fn arguments(request: &JournalRequest) -> Vec<String> {
    let mut arguments = vec!["--no-pager".to_owned(), "--output=short-iso".to_owned(), "--boot".to_owned()];
    arguments.push(format!("--lines={}", request.lines.min(LINES_MAX)));
    if let Some(unit) = &request.unit {
        // One word with its option, so that no name can become an option of its own.
        arguments.push(format!("--unit={unit}"));
    }
    if request.follow {
        arguments.push("--follow".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_bounded_and_no_name_is_an_option() {
        let request =
            JournalRequest { unit: Some("--file=/etc/shadow".to_owned()), lines: u32::MAX, follow: true };
        assert_eq!(
            arguments(&request)[3..],
            ["--lines=10000", "--unit=--file=/etc/shadow", "--follow"].map(str::to_owned)
        );
    }
}
