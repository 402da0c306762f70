//! The journal, read by journalctl(1): its file format is systemd's own affair.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::STARTS;
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
pub async fn journal(request: &JournalRequest) -> Result<Child, HostError> {
    let mut command = Command::new("journalctl");
    command.args(arguments(request)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.kill_on_drop(true);
    crate::start(&STARTS, command, "journalctl").await
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

/// So many of a unit's last lines are looked through for its last words.
const LAST_WORDS_LINES: &str = "--lines=20";
/// Longest wait for them: all units are waited for with this one.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(2);
/// Longest last words, in characters.
const LAST_WORDS_MAX: usize = 200;

/// The last line that a unit's program wrote in this boot, cut to a length for one line of a report; empty when it wrote
/// nothing or the journal cannot be read.
pub(crate) async fn last_words(unit: &str) -> String {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--quiet", "--boot", "--output=cat", LAST_WORDS_LINES]);
    // What programs print, without what systemd says about them.
    command.arg(format!("--unit={unit}")).arg("_TRANSPORT=stdout");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let output =
        async { crate::start(&STARTS, command, "journalctl").await.ok()?.wait_with_output().await.ok() };
    let output = tokio::time::timeout(LAST_WORDS_WAIT, output).await.ok().flatten();
    output.map(|output| last_line(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default()
}

fn last_line(text: &str) -> String {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    // klog's head (severity, time, thread, file) says nothing to whoever reads the machine's name beside it.
    let klog = line
        .split_once("] ")
        .filter(|(head, _)| head.starts_with(['E', 'F', 'I', 'W']) && head.contains(".go:"));
    let words = klog.map_or(line, |(_, words)| words);
    words.chars().take(LAST_WORDS_MAX).filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_last_line_without_its_head() {
        for (text, expected) in [
            ("", ""),
            ("starting\npanic: oh\n\n", "panic: oh"),
            (
                "E1124 07:58:53.894053     317 run.go:72] \"command failed\" err=\"too many open files\"\n",
                "\"command failed\" err=\"too many open files\"",
            ),
            ("Error [a] b", "Error [a] b"),
        ] {
            assert_eq!(last_line(text), expected);
        }
    }

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
