//! What came of a run, for people and for the next run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::suite::{Chosen, Outcome};

/// Where results stand, so that the next run can be compared with them.
const RESULTS: &str = "results.json";
/// Longest reason in the readable report, in characters.
const WHY_MAX: usize = 400;

/// What came of each test.
#[derive(Debug, Default)]
pub(crate) struct Report {
    tests: BTreeMap<String, Test>,
    before: BTreeMap<String, Test>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Test {
    /// `passed`, `failed`, `timedout`, `interrupted`, `panicked`, `aborted`, or `not run`.
    state: String,
    seconds: f64,
    why: String,
}

impl Test {
    fn passed(&self) -> bool {
        self.state == "passed"
    }
}

impl Report {
    /// A report in which nothing has run yet.
    pub(crate) fn of(chosen: &[Chosen]) -> Self {
        let not_run = || Test {
            state: "not run".to_owned(),
            seconds: 0.0,
            why: "the suite ended before it came to this test".to_owned(),
        };
        let tests = chosen.iter().map(|test| (test.name.clone(), not_run())).collect();
        Self { tests, before: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, outcomes: Vec<Outcome>) {
        for Outcome { name, state, seconds, why } in outcomes {
            self.tests.insert(name, Test { state, seconds, why });
        }
    }

    /// Reads the results that are in the folder from an earlier run, if any.
    pub(crate) fn compare(&mut self, folder: &Path) -> Result<()> {
        if let Ok(text) = std::fs::read(folder.join(RESULTS)) {
            self.before = serde_json::from_slice(&text)?;
        }
        Ok(())
    }

    pub(crate) fn all_passed(&self) -> bool {
        self.tests.values().all(Test::passed)
    }

    /// Writes the results and the readable report.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        // Tests that were not chosen this time keep what came of them before.
        let mut results = self.before.clone();
        results.extend(self.tests.clone());
        std::fs::write(folder.join(RESULTS), serde_json::to_vec_pretty(&results)?)?;
        Ok(std::fs::write(folder.join("report.md"), self.page())?)
    }

    fn count(&self, state: impl Fn(&Test) -> bool) -> usize {
        self.tests.values().filter(|test| state(test)).count()
    }

    /// A few lines for the terminal; the last one is the plain closing line of a test runner.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for (name, test) in self.tests.iter().filter(|(_, test)| !test.passed()) {
            let _ = writeln!(text, "{}: {name}\n    {}", test.state, cut(&test.why));
        }
        for (name, now) in &self.tests {
            let was = self.before.get(name).map(Test::passed);
            match (was, now.passed()) {
                (Some(true), false) => drop(writeln!(text, "passed before: {name}")),
                (Some(false), true) => drop(writeln!(text, "passes now: {name}")),
                _ => {}
            }
        }
        let passed = self.count(Test::passed);
        let _ = writeln!(text, "{passed} passed, {} failed", self.tests.len() - passed);
        text
    }

    fn page(&self) -> String {
        let passed = self.count(Test::passed);
        let mut text = format!("# Conformance\n\n{passed} of {} tests passed.\n", self.tests.len());
        if passed < self.tests.len() {
            text.push_str("\n| did not pass | state | seconds | reason |\n| --- | --- | --- | --- |\n");
        }
        for (name, test) in self.tests.iter().filter(|(_, test)| !test.passed()) {
            let why = cut(&test.why).replace('|', "\\|");
            let _ = writeln!(text, "| {name} | {} | {:.0} | {why} |", test.state, test.seconds);
        }
        text.push_str("\n| passed | seconds |\n| --- | --- |\n");
        for (name, test) in self.tests.iter().filter(|(_, test)| test.passed()) {
            let _ = writeln!(text, "| {name} | {:.0} |", test.seconds);
        }
        text
    }
}

/// A reason on one line.
fn cut(why: &str) -> String {
    let line: String = why.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(WHY_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Part;

    fn outcome(name: &str, state: &str) -> Outcome {
        Outcome { name: name.to_owned(), state: state.to_owned(), seconds: 1.0, why: "a\n  b".to_owned() }
    }

    #[test]
    fn what_did_not_run_did_not_pass_and_changes_are_told() {
        let chosen =
            ["one", "two", "three"].map(|name| Chosen { name: name.to_owned(), part: Part::Parallel });
        let folder = tempfile::tempdir().unwrap();
        let mut first = Report::of(&chosen);
        first.add(vec![outcome("one", "passed"), outcome("two", "failed"), outcome("three", "passed")]);
        first.write(folder.path()).unwrap();
        let mut second = Report::of(&chosen);
        second.compare(folder.path()).unwrap();
        second.add(vec![outcome("one", "passed"), outcome("two", "passed")]);
        assert!(!second.all_passed());
        let expected = "not run: three\n    the suite ended before it came to this test\npassed before: three\n\
                        passes now: two\n2 passed, 1 failed\n";
        assert_eq!(second.summary(), expected);
        assert!(second.page().contains("| three | not run | 0 |"), "{}", second.page());
    }
}
