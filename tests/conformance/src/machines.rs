//! Machines of the cluster that are lost while tests run, by the events that the coordinator tells.
//!
//! The state of machines is no measure: one that is killed can be back within a second, with all its pods started anew.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::Instant;

/// The event of a machine whose heartbeats stay away, whatever it is that happened to it.
const LOST: &str = "MachineSilent";
/// Pause before the events are asked for again, when their stream ended.
const AGAIN: Duration = Duration::from_secs(2);

/// An event, as far as it is read.
#[derive(Debug, Deserialize)]
struct Event {
    reason: String,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    #[serde(default)]
    machine: String,
}

/// The losses of one cluster from now on.
pub(crate) struct Machines {
    /// When the newest loss was that is known; earlier ones are of no interest.
    known: OffsetDateTime,
    follow: Box<dyn Fn() -> Command>,
    stream: Option<(Child, Lines<BufReader<ChildStdout>>)>,
    /// When the stream is opened again, after it ended.
    again_at: Instant,
}

impl Machines {
    /// `follow` makes a command that prints the newest events and all that come, as lines of JSON.
    pub(crate) fn watch(follow: impl Fn() -> Command + 'static) -> Result<Self> {
        let known = OffsetDateTime::now_utc();
        let mut machines = Self { known, follow: Box::new(follow), stream: None, again_at: Instant::now() };
        machines.open()?;
        Ok(machines)
    }

    fn open(&mut self) -> Result<()> {
        let mut command = (self.follow)();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().context("events cannot be followed")?;
        let stdout = child.stdout.take().context("events cannot be read")?;
        self.stream = Some((child, BufReader::new(stdout).lines()));
        Ok(())
    }

    /// Done when a machine is lost; says which. May be dropped and called again at any time.
    pub(crate) async fn lost(&mut self) -> String {
        loop {
            let line = match &mut self.stream {
                Some((_, lines)) => lines.next_line().await.ok().flatten(),
                None => None,
            };
            match line {
                Some(line) => {
                    if let Some(words) = self.news(&line) {
                        return words;
                    }
                }
                // The coordinator went away; it comes back by itself. When to look is kept in a field, as this future
                // may be dropped before it is time.
                None => {
                    if self.stream.take().is_some() {
                        self.again_at = Instant::now() + AGAIN;
                    }
                    tokio::time::sleep_until(self.again_at).await;
                    // What cannot be started now is tried again.
                    if self.open().is_err() {
                        self.again_at = Instant::now() + AGAIN;
                    }
                }
            }
        }
    }

    /// Forgets what was lost until now.
    pub(crate) fn forget(&mut self) {
        self.known = OffsetDateTime::now_utc();
    }

    fn news(&mut self, line: &str) -> Option<String> {
        let event: Event = serde_json::from_str(line).ok()?;
        if event.reason != LOST || event.at <= self.known {
            return None;
        }
        self.known = event.at;
        let at = event.at.time();
        Some(format!(
            "{} was lost at {:02}:{:02}:{:02} UTC",
            event.machine,
            at.hour(),
            at.minute(),
            at.second()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn losses_are_told_once_also_when_the_stream_ends() {
        let event = |reason: &str, at: &str, machine: &str| {
            format!(r#"echo '{{"reason":"{reason}","at":"{at}","machine":"{machine}"}}'"#)
        };
        let script = [
            event(LOST, "2001-01-01T00:00:00Z", "long-ago"),
            "echo 'no event'".to_owned(),
            event("UnitHealthy", "2101-01-01T00:00:00.5Z", "a"),
            event(LOST, "2101-01-01T10:20:30.5Z", "b"),
            event(LOST, "2101-01-01T10:20:31Z", "c"),
        ]
        .join("\n");
        let mut machines = Machines::watch(move || {
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            command
        })
        .unwrap();
        assert_eq!(machines.lost().await, "b was lost at 10:20:30 UTC");
        assert_eq!(machines.lost().await, "c was lost at 10:20:31 UTC");
        // The stream has ended, and says the same when it is opened again, also to somebody who is impatient.
        machines.known = OffsetDateTime::now_utc();
        let words = loop {
            let patience = Duration::from_millis(20);
            if let Ok(words) = tokio::time::timeout(patience, machines.lost()).await {
                break words;
            }
        };
        assert_eq!(words, "b was lost at 10:20:30 UTC");
    }
}
