//! What Ginkgo prints while tests run: which ended, and which run for too long.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Between what it says of one test and of the next.
const RULE: &str = "-----";

/// Something that Ginkgo said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum News {
    /// A test ended, in a state that is `passed`, `failed`, `interrupted` or another of Ginkgo's.
    Ended { name: String, state: String, seconds: f64 },
    /// A test runs for longer than tests are left alone (`--poll-progress-after`).
    StillRuns { name: String },
}

/// Reads a log while it is written.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    read_to: u64,
    /// State and seconds of a test, when the line before said them.
    head: Option<(String, f64)>,
    /// The line after the newest rule: the name of the test that runs, when tests run one after the other.
    title: String,
    after_rule: bool,
}

impl Log {
    pub(crate) fn of(path: PathBuf) -> Self {
        Self { path, read_to: 0, head: None, title: String::new(), after_rule: false }
    }

    /// What was said since the last call.
    pub(crate) fn news(&mut self) -> Result<Vec<News>> {
        let mut file =
            File::open(&self.path).with_context(|| format!("{} cannot be read", self.path.display()))?;
        file.seek(SeekFrom::Start(self.read_to))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // Only whole lines.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        self.read_to += whole as u64;
        let text = String::from_utf8_lossy(&bytes[..whole]);
        Ok(text.lines().filter_map(|line| self.line(line)).collect())
    }

    fn line(&mut self, line: &str) -> Option<News> {
        let is_rule = line.starts_with(RULE);
        if let Some((state, seconds)) = self.head.take() {
            // Side by side, a test's name follows its state; one after the other, it was said when the test began.
            let title = if is_rule { &self.title } else { line };
            let name = name(title)?;
            self.after_rule = is_rule;
            return Some(News::Ended { name, state, seconds });
        }
        self.head = head(line);
        if std::mem::replace(&mut self.after_rule, is_rule) {
            line.clone_into(&mut self.title);
        }
        let (name, _) = line.trim().split_once(" (Spec Runtime: ")?;
        Some(News::StillRuns { name: name.to_owned() })
    }
}

/// The name in a title: that of its containers and its own, after a mark when it failed, and its labels.
fn name(title: &str) -> Option<String> {
    let (name, _labels) = title.rsplit_once(" [")?;
    Some(name.replacen("[It] ", "", 1))
}

/// Reads `• [1.234 seconds]` and `• [FAILED] [1.234 seconds]`: state and seconds.
fn head(line: &str) -> Option<(String, f64)> {
    let rest = line.strip_prefix("• [")?;
    let (state, seconds) = rest.split_once("] [").unwrap_or(("passed", rest));
    let seconds = seconds.strip_suffix(" seconds]")?.parse().ok()?;
    Some((state.to_lowercase(), seconds))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn tests_that_ended_and_tests_that_do_not_end() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::of(file.path().to_owned());
        let name = "[sig-a] B [Feature:X] should c [Conformance]";
        write!(file, "---\n• [4.674 seconds]\n{name} [sig-a, Conformance]\na/b.go:79\n• [FAI").unwrap();
        let ended =
            |state: &str, seconds| News::Ended { name: name.to_owned(), state: state.to_owned(), seconds };
        assert_eq!(log.news().unwrap(), [ended("passed", 4.674)]);
        let failed = "[sig-a] B [Feature:X] [It] should c [Conformance] [sig-a, Conformance]";
        write!(file, "LED] [60.0 seconds]\n{failed}\n").unwrap();
        assert_eq!(log.news().unwrap(), [ended("failed", 60.0)]);
        let serial = format!("-----\n{name} [sig-a, Serial]\na/b.go:79\n  STEP: x\n• [1.5 seconds]\n");
        let next = "-----\n[sig-b] other [sig-b]\n• [FAILED] [2.5 seconds]\n-----\n";
        write!(file, "{serial}{next}").unwrap();
        let other =
            News::Ended { name: "[sig-b] other".to_owned(), state: "failed".to_owned(), seconds: 2.5 };
        assert_eq!(log.news().unwrap(), [ended("passed", 1.5), other]);
        write!(file, "Automatically polling progress:\n  {name} (Spec Runtime: 5m0.003s)\n    a/b.go:12\n")
            .unwrap();
        assert_eq!(log.news().unwrap(), [News::StillRuns { name: name.to_owned() }]);
        assert_eq!(log.news().unwrap(), []);
    }
}
